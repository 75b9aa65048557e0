// GPUs that this machine's own threads stand in for: an arena of host memory as device memory, pinned threads as compute stream and lanes.
// Copies are copies, products are products, events are waited for; only the rates are those of a CPU.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "probe/attention.hpp"
#include "probe/cpu_path.hpp"
#include "stream/backend.hpp"
#include "stream/host_product.hpp"
#include "stream/work_queue.hpp"

namespace pshard {

struct HostDevice {
  std::vector<int> compute_cpus;
  std::vector<int> copy_cpus;  // lanes take them in turn; copies in one direction run one after the other, as on one copy engine
  int64_t arena_bytes = 0;
};

struct HostBackendOptions {
  std::vector<int> host_cpus;  // of the splits that the CPU computes
  std::vector<HostDevice> devices;
  int64_t page_lock_bytes = 0;  // at most so much is page-locked
  CpuPath path{};
};

class HostBackend : public Backend {
 public:
  // Throws StreamError where an arena does not fit in memory, ProbeError where a CPU is not available to this process.
  explicit HostBackend(const HostBackendOptions& options);
  ~HostBackend() override;

  uint8_t* arena(Device device) override;
  int64_t arena_bytes(Device device) const override;
  bool reads_host_memory() const override { return true; }
  bool lock(const uint8_t* bytes, int64_t n_bytes) override;
  void unlock_all() override;
  // Whether copies from there need no staging.
  [[nodiscard]] bool is_locked(const uint8_t* bytes, int64_t n_bytes) const;
  void copy(Queue queue, uint8_t* to, const uint8_t* from, int64_t n_bytes) override;
  void multiply(Queue queue, const Product& product) override;
  void attend(Queue queue, const AttentionWork& work) override;
  void inspect(Queue queue, const uint8_t* bytes, int64_t n_bytes, std::function<void(const uint8_t*)> look) override;
  void check_attention(Queue queue, const AttentionWork& work) override;
  int64_t y_row(const Product&, int64_t i) const override { return i; }
  Event record(Queue queue) override;
  void wait(Queue queue, Event event) override;
  void finish(const std::function<void()>& poll) override;
  bool has_come(Event event) override;
  double seconds(Event event) override;
  void forget_events() override;
  // Passes by what is queued, until `finish`, which throws the reason.
  void give_up(const std::string& reason) { failure_.set(reason); }
  // Calls `work` when the queue gets there, also after a failure. It throws nothing.
  void always(Queue queue, std::function<void()> work) { queue_of(queue).push({.alone = std::move(work), .always = true}); }

 private:
  using ProductKey = std::tuple<WeightType, int64_t, int64_t, int64_t, bool, bool>;
  using AttentionKey = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
  // What one device is made of; of the host, only the first queue.
  struct Part {
    Buffer arena;
    std::vector<std::unique_ptr<WorkQueue>> queues;  // by Stream
    std::mutex up, down;                             // one copy at a time in each direction
    Buffer ring;                                     // page-locked, that copies of other memory are staged through
    std::map<ProductKey, std::unique_ptr<HostProduct>> products;
    std::map<AttentionKey, std::unique_ptr<Attention>> attentions;
  };
  [[nodiscard]] Part& part(Device device);
  [[nodiscard]] WorkQueue& queue_of(Queue queue);
  [[nodiscard]] Attention& attention_of(Queue queue, const AttentionShape& shape);

  const Kernels& kernels_;
  int64_t page_lock_bytes_;
  Failure failure_;
  std::vector<std::unique_ptr<Part>> parts_;  // by Device
  std::vector<std::unique_ptr<Signal>> events_;
  std::map<const uint8_t*, int64_t> locked_;
  std::mutex end_mutex_;
  std::condition_variable end_;
  int n_running_ = 0;  // queues that `finish` waits for
};

}  // namespace pshard
