#include "stream/queue_costs.hpp"

#include <algorithm>
#include <vector>

#include "probe/random.hpp"

namespace pshard {
namespace {

constexpr int kRuns = 9;
constexpr int kOperations = 500;
constexpr int64_t kColumns = 32;  // the least that a kernel multiplies

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + kRuns / 2, values.end());
  return values[kRuns / 2];
}

}  // namespace

QueueCosts queue_costs(HostBackend& backend) {
  const Queue gpu{gpu_device(0), Stream::compute};
  const Queue host{Device::host, Stream::compute};
  Buffer weights(row_bytes(WeightType::f16, kColumns));
  Buffer x(kColumns * 4);
  Buffer y(64);
  fill_random(WeightType::f16, 1, kColumns, 1, weights.data());
  std::fill_n(x.as<float>(), kColumns, 1.0F);
  Product product{WeightType::f16, 1, kColumns, 1};
  product.weights = weights.data();
  product.x = x.as<float>();
  product.y = y.as<float>();
  std::vector<double> op;
  std::vector<double> handoff;
  for (int run = 0; run < kRuns; ++run) {
    backend.forget_events();
    const Event begin = backend.record(gpu);
    for (int i = 0; i < kOperations; ++i) backend.multiply(gpu, product);
    const Event end = backend.record(gpu);
    const Event first = backend.record(gpu);
    Event last = first;
    for (int i = 0; i < kOperations; ++i) {
      const Queue next = i % 2 == 0 ? host : gpu;
      backend.wait(next, last);
      last = backend.record(next);
    }
    backend.finish({});
    op.push_back((backend.seconds(end) - backend.seconds(begin)) / kOperations);
    handoff.push_back((backend.seconds(last) - backend.seconds(first)) / kOperations);
  }
  backend.forget_events();
  return {median(op), median(handoff)};
}

}  // namespace pshard
