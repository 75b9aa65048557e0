// The kernels on a GPU, also under compute-sanitizer, with the shapes that gpu_kernels_test.cpp runs on a CPU. Elsewhere its absence is
// said.
#include <gtest/gtest.h>

#include <algorithm>

#include "gpu_cases.hpp"
#include "probe/devices.hpp"
#include "probe/gpu.hpp"
#include "probe/gpu_reference.hpp"
#include "probe/random.hpp"

namespace pshard {
namespace {

class CudaKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (const GpuQuery query = query_gpus(); query.devices.empty()) GTEST_SKIP() << "no GPU: " << query.reason;
    gpu_ = open_gpu(0);
  }

  // Exactly so many bytes: a sanitizer sees the next.
  template <typename T>
  GpuBytes on_device(const std::vector<T>& values) {
    GpuBytes bytes(*gpu_, static_cast<int64_t>(values.size() * sizeof(T)));
    gpu_->copy(GpuLane::compute, bytes.data(), values.data(), bytes.size());
    gpu_->synchronise(GpuLane::compute);
    return bytes;
  }
  GpuBytes unwritten(int64_t n_bytes) {
    GpuBytes bytes(*gpu_, std::max<int64_t>(n_bytes, 16));
    gpu_->fill(GpuLane::compute, bytes.data(), 0xff, bytes.size());
    return bytes;
  }
  std::vector<float> floats(const GpuBytes& bytes) {
    std::vector<float> values(static_cast<size_t>(bytes.size() / 4));
    gpu_->copy(GpuLane::compute, values.data(), bytes.data(), bytes.size());
    gpu_->synchronise(GpuLane::compute);
    return values;
  }

  std::unique_ptr<Gpu> gpu_;
};

std::vector<float> random_values(int64_t n) {
  Random random(7);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = random.next_float();
  return values;
}

std::vector<uint8_t> random_weights(WeightType type, int64_t n_rows, int64_t n_columns) {
  std::vector<uint8_t> weights(static_cast<size_t>(n_rows * row_bytes(type, n_columns)));
  fill_random(type, n_rows, n_columns, 3, weights.data());
  return weights;
}

TEST_F(CudaKernels, MultiplyEveryType) {
  for (const WeightType type : gpu_cases::kTypes) {
    for (const GpuProduct& shape : gpu_cases::products(type)) {
      const std::vector<uint8_t> weights = random_weights(type, shape.n_rows, shape.n_columns);
      const std::vector<float> x = random_values(shape.batch * shape.n_columns);
      const GpuBytes y = unwritten(shape.batch * shape.n_rows * 4);
      const GpuBytes scratch = unwritten(scratch_bytes(shape));
      const GpuBytes weights_there = on_device(weights);
      const GpuBytes x_there = on_device(x);
      gpu_->multiply(GpuLane::compute, shape, weights_there.data(), x_there.as<float>(), y.as<float>(), scratch.data());
      EXPECT_EQ(fault_of_product(shape, weights.data(), x.data(), floats(y).data(), shape.batch * shape.n_rows), "")
          << name_of(type) << ", batch " << shape.batch << ", columns " << shape.n_columns;
    }
  }
}

TEST_F(CudaKernels, MultiplyExpertsOfEveryType) {
  for (const WeightType type : gpu_cases::kTypes) {
    for (const GpuExperts& shape : gpu_cases::experts(type)) {
      const int64_t n_y_rows = shape.batch * shape.n_used;
      const std::vector<uint8_t> weights = random_weights(type, shape.n_experts * shape.n_rows, shape.n_columns);
      const std::vector<float> x = random_values((shape.has_own_rows ? n_y_rows : shape.batch) * shape.n_columns);
      const std::vector<int32_t> ids = random_experts(shape, 11);
      const GpuBytes y = unwritten(n_y_rows * shape.n_rows * 4);
      const GpuBytes scratch = unwritten(scratch_bytes(shape));
      const GpuBytes weights_there = on_device(weights);
      const GpuBytes x_there = on_device(x);
      const GpuBytes ids_there = on_device(ids);
      gpu_->multiply_experts(GpuLane::compute, shape, weights_there.data(), ids_there.as<int32_t>(), x_there.as<float>(), y.as<float>(),
                             scratch.data());
      EXPECT_EQ(fault_of_experts(shape, weights.data(), ids.data(), x.data(), floats(y).data(), n_y_rows * shape.n_rows), "")
          << name_of(type) << ", experts " << shape.n_experts << ", tokens " << shape.batch;
    }
  }
}

TEST_F(CudaKernels, AttendWithEverySizeOfHead) {
  for (const int64_t head_size : gpu_cases::kHeadSizes) {
    for (const AttentionShape& shape : gpu_cases::attention(head_size)) {
      const int64_t n_cache = shape.depth * shape.n_kv_heads * head_size;
      const std::vector<uint8_t> keys = random_weights(WeightType::f16, 1, n_cache);
      std::vector<uint8_t> values(keys.size());
      fill_random(WeightType::f16, 1, n_cache, 9, values.data());
      std::vector<float> queries = random_values(shape.batch * shape.n_heads * head_size);
      for (float& value : queries) value *= 4.0F;  // scores that differ
      const auto n_out = static_cast<int64_t>(queries.size());
      const GpuBytes out = unwritten(n_out * 4);
      const GpuBytes scratch = unwritten(gpu_scratch_bytes(shape));
      const GpuBytes queries_there = on_device(queries);
      const GpuBytes keys_there = on_device(keys);
      const GpuBytes values_there = on_device(values);
      gpu_->attend(GpuLane::compute, shape, queries_there.as<float>(), keys_there.data(), values_there.data(), out.as<float>(),
                   scratch.data());
      EXPECT_EQ(fault_of_attention(shape, false, queries.data(), reinterpret_cast<const uint16_t*>(keys.data()),
                                   reinterpret_cast<const uint16_t*>(values.data()), floats(out).data(), n_out),
                "")
          << "heads of " << head_size << ", batch " << shape.batch;
    }
  }
}

TEST_F(CudaKernels, SumWords) {
  const int64_t n_words = 2 * 50021;
  std::vector<uint64_t> words(static_cast<size_t>(n_words));
  Random random(1);
  uint64_t expected = 0;
  for (uint64_t& word : words) expected += word = random.next();
  const GpuBytes words_there = on_device(words);
  const GpuBytes sum = on_device(std::vector<uint64_t>{0});
  gpu_->sum(GpuLane::compute, words_there.data(), n_words, sum.as<uint64_t>());
  uint64_t found = 0;
  gpu_->copy(GpuLane::compute, &found, sum.data(), 8);
  gpu_->synchronise(GpuLane::compute);
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace pshard
