// A backend that counts the time of whoever queues a pass: in the calls that hand over its work, and between them, which is the executor's.
#pragma once

#include <chrono>
#include <utility>

#include "stream/backend.hpp"

namespace pshard {

class MeteredBackend final : public Backend {
 public:
  // `backend` outlives it.
  explicit MeteredBackend(Backend& backend) : backend_(backend), look_seconds_(seconds_of_a_look()) {}

  // Of the last pass: from its first event until its end is waited for; and of that, in copies, products, attention and checks. Of the two
  // looks at the clock around each call, one is of neither: it is left out.
  [[nodiscard]] double queueing_seconds() const { return queueing_seconds_ - look_seconds_ * n_calls_; }
  [[nodiscard]] double work_seconds() const { return work_seconds_; }

  uint8_t* arena(Device device) override { return backend_.arena(device); }
  int64_t arena_bytes(Device device) const override { return backend_.arena_bytes(device); }
  int64_t scratch_bytes(const Product& product) const override { return backend_.scratch_bytes(product); }
  int64_t scratch_bytes(const AttentionShape& shape) const override { return backend_.scratch_bytes(shape); }
  bool reads_host_memory() const override { return backend_.reads_host_memory(); }
  bool lock(const uint8_t* bytes, int64_t n_bytes) override { return backend_.lock(bytes, n_bytes); }
  void unlock_all() override { backend_.unlock_all(); }

  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    work([&] { backend_.copy(queue, to, from, n_bytes); });
  }
  void multiply(Queue queue, const Product& product) override {
    work([&] { backend_.multiply(queue, product); });
  }
  void attend(Queue queue, const AttentionWork& attention) override {
    work([&] { backend_.attend(queue, attention); });
  }
  void inspect(Queue queue, const uint8_t* bytes, int64_t n_bytes, std::function<void(const uint8_t*)> look) override {
    work([&] { backend_.inspect(queue, bytes, n_bytes, std::move(look)); });
  }
  void check_attention(Queue queue, const AttentionWork& attention) override {
    work([&] { backend_.check_attention(queue, attention); });
  }
  int64_t y_row(const Product& product, int64_t i) const override { return backend_.y_row(product, i); }

  Event record(Queue queue) override { return backend_.record(queue); }
  Event begin(Queue queue) override { return backend_.begin(queue); }
  void wait(Queue queue, Event event) override { backend_.wait(queue, event); }
  void finish(const std::function<void()>& poll) override {
    if (is_queueing_) queueing_seconds_ = seconds_since(start_);
    is_queueing_ = false;
    backend_.finish(poll);
  }
  bool has_come(Event event) override { return backend_.has_come(event); }
  double seconds(Event event) override { return backend_.seconds(event); }
  void forget_events() override {
    backend_.forget_events();
    is_queueing_ = true;
    work_seconds_ = 0.0;
    n_calls_ = 0;
    start_ = Clock::now();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
  static double seconds_of_a_look() {
    constexpr int kLooks = 64;
    const auto start = Clock::now();
    for (int i = 1; i < kLooks; ++i) static_cast<void>(Clock::now());
    return seconds_since(start) / kLooks;
  }
  template <typename Call>
  void work(const Call& call) {
    ++n_calls_;
    const auto start = Clock::now();
    call();
    work_seconds_ += seconds_since(start);
  }

  Backend& backend_;
  double look_seconds_;
  int n_calls_ = 0;
  Clock::time_point start_{};
  bool is_queueing_ = false;
  double queueing_seconds_ = 0.0;
  double work_seconds_ = 0.0;
};

}  // namespace pshard
