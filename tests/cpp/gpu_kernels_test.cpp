// The kernels of the GPU, run on the CPU thread by thread, against products in double precision of weights that other code decodes.
#if !defined(__CUDACC__)

#include "cuda_on_host.hpp"
// First the words, then what is written in them.
#include <gtest/gtest.h>

#include "gpu_cases.hpp"
#include "probe/gpu_queue.cuh"
#include "probe/gpu_reference.hpp"
#include "probe/gpu_sum.cuh"
#include "probe/random.hpp"

namespace pshard {
namespace {

// As large as is asked for and no larger, so that a sanitizer finds what is read or written beside it, and loads what is read of the few
// bytes up to there; at odd multiples of 16 bytes.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t n) : n_(n), bytes_(static_cast<std::size_t>(n) * sizeof(T) + 48) {
    void* start = bytes_.data() + bytes_.size() - static_cast<std::size_t>(n) * sizeof(T);
    const auto address = reinterpret_cast<std::uintptr_t>(start);
    data_ = reinterpret_cast<T*>(address / 16 * 16);
    behind_ = std::make_unique<Behind>(data_ + n, bytes_.data() + bytes_.size() + 1);
  }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] int64_t size() const { return n_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t n_;
  std::vector<uint8_t> bytes_;
  T* data_;
  std::unique_ptr<Behind> behind_;
};

Exact<float> random_values(int64_t n, uint64_t seed) {
  Exact<float> values(n);
  Random random(seed);
  for (int64_t i = 0; i < n; ++i) values[i] = random.next_float();
  return values;
}

Exact<uint8_t> random_weights(WeightType type, int64_t n_rows, int64_t n_columns) {
  Exact<uint8_t> weights(n_rows * row_bytes(type, n_columns));
  fill_random(type, n_rows, n_columns, static_cast<uint64_t>(type) + 1, weights.data());
  return weights;
}

Exact<float> unwritten(int64_t n) {
  Exact<float> values(n);
  std::fill_n(values.data(), n, std::numeric_limits<float>::quiet_NaN());
  return values;
}

std::string product_fault(const GpuProduct& shape, bool is_backwards) {
  const Exact<uint8_t> weights = random_weights(shape.type, shape.n_rows, shape.n_columns);
  const Exact<float> x = random_values(shape.batch * shape.n_columns, 7);
  const Exact<float> y = unwritten(shape.batch * shape.n_rows);
  const Exact<uint8_t> scratch(scratch_bytes(shape));
  HostQueue queue{is_backwards};
  queue_product(queue, shape, weights.data(), x.data(), y.data(), scratch.data());
  return fault_of_product(shape, weights.data(), x.data(), y.data(), shape.batch * shape.n_rows);
}

class GpuProducts : public ::testing::TestWithParam<WeightType> {};

TEST_P(GpuProducts, AreRight) {
  bool is_backwards = false;
  for (const GpuProduct& shape : gpu_cases::products(GetParam())) {
    is_backwards = !is_backwards;
    EXPECT_EQ(product_fault(shape, is_backwards), "") << "batch " << shape.batch << ", columns " << shape.n_columns;
  }
}

// The shapes are what their comments say.
TEST(GpuCases, DivideTheColumnsAndTheRows) {
  EXPECT_EQ(layout_of(GpuProduct{WeightType::q4_k, 20, 1280, 10}).n_parts, 2);
  const ProductLayout three = layout_of(GpuProduct{WeightType::q4_k, 20, 1792, 10});
  EXPECT_EQ(three.n_parts, 3);
  EXPECT_NE(three.part_columns % 256, 0);
  EXPECT_LT(1792 - 2 * three.part_columns, three.part_columns);
  std::vector<int64_t> tiles;
  for (const GpuExperts& shape : gpu_cases::experts(WeightType::f16)) tiles.push_back(layout_of(shape).tile_batch);
  EXPECT_EQ(tiles, (std::vector<int64_t>{0, 0, 32, 64, 128, 32, 32}));
  EXPECT_GT(layout_of(gpu_cases::attention(64)[0]).n_splits, 1);
}

TEST_P(GpuProducts, OfSmallestAndLargestBlocksAreRight) {
  const GpuProduct shape{GetParam(), 3, 256, 1};
  const Exact<uint8_t> weights(weight_bytes(shape));
  const Exact<float> x = random_values(shape.n_columns, 3);
  const Exact<uint8_t> scratch(scratch_bytes(shape));
  for (const int byte : {0x00, 0x01, 0x7b, 0x81}) {  // of F16: 0, subnormal, 61280 and small negative numbers; none is infinite
    std::fill_n(weights.data(), weights.size(), static_cast<uint8_t>(byte));
    const Exact<float> y = unwritten(shape.n_rows);
    HostQueue queue;
    queue_product(queue, shape, weights.data(), x.data(), y.data(), scratch.data());
    EXPECT_EQ(fault_of_product(shape, weights.data(), x.data(), y.data(), 64), "") << byte;
  }
}

std::string experts_fault(const GpuExperts& shape, bool is_backwards) {
  const Exact<uint8_t> weights = random_weights(shape.type, shape.n_experts * shape.n_rows, shape.n_columns);
  const Exact<float> x = random_values(shape.batch * (shape.has_own_rows ? shape.n_used : 1) * shape.n_columns, 5);
  const Exact<float> y = unwritten(shape.batch * shape.n_used * shape.n_rows);
  const Exact<int32_t> ids(shape.batch * shape.n_used);
  const std::vector<int32_t> chosen = random_experts(shape, 11);
  std::copy(chosen.begin(), chosen.end(), ids.data());
  const Exact<uint8_t> scratch(scratch_bytes(shape));
  HostQueue queue{is_backwards};
  queue_experts(queue, shape, weights.data(), ids.data(), x.data(), y.data(), scratch.data());
  return fault_of_experts(shape, weights.data(), ids.data(), x.data(), y.data(), y.size());
}

TEST_P(GpuProducts, OfExpertsAreRight) {
  bool is_backwards = false;
  for (const GpuExperts& shape : gpu_cases::experts(GetParam())) {
    is_backwards = !is_backwards;
    EXPECT_EQ(experts_fault(shape, is_backwards), "") << "experts " << shape.n_experts << ", tokens " << shape.batch;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, GpuProducts, ::testing::ValuesIn(gpu_cases::kTypes), [](const auto& info) { return name_of(info.param); });

std::string attention_fault(const AttentionShape& shape, bool is_causal, bool is_backwards) {
  const int64_t n_cache = shape.depth * shape.n_kv_heads * shape.head_size;
  const Exact<uint8_t> keys = random_weights(WeightType::f16, 1, n_cache);
  const Exact<uint8_t> values(2 * n_cache);
  fill_random(WeightType::f16, 1, n_cache, 9, values.data());
  const Exact<float> queries = random_values(shape.batch * shape.n_heads * shape.head_size, 13);
  for (int64_t i = 0; i < queries.size(); ++i) queries[i] *= 4.0F;  // scores that differ
  const Exact<float> out = unwritten(queries.size());
  const Exact<uint8_t> scratch(gpu_scratch_bytes(shape));
  HostQueue queue{is_backwards};
  queue_attention(queue, shape, is_causal, queries.data(), keys.data(), values.data(), out.data(), scratch.data());
  return fault_of_attention(shape, is_causal, queries.data(), reinterpret_cast<const uint16_t*>(keys.data()),
                            reinterpret_cast<const uint16_t*>(values.data()), out.data(), out.size());
}

class GpuAttention : public ::testing::TestWithParam<int64_t> {};

TEST_P(GpuAttention, IsRight) {
  bool is_backwards = false;
  for (const AttentionShape& shape : gpu_cases::attention(GetParam())) {
    is_backwards = !is_backwards;
    EXPECT_EQ(attention_fault(shape, false, is_backwards), "") << "batch " << shape.batch;
    EXPECT_EQ(attention_fault(shape, true, !is_backwards), "") << "causal, batch " << shape.batch;
  }
}

TEST(GpuAttentionTiles, InSeveralTilesIsRight) {
  EXPECT_EQ(attention_fault({1, 1, 64, 80, 66}, false, true), "");
  EXPECT_EQ(attention_fault({4, 2, 64, 70, 20}, true, false), "");
}

INSTANTIATE_TEST_SUITE_P(Heads, GpuAttention, ::testing::ValuesIn(gpu_cases::kHeadSizes));

TEST(GpuSum, IsThatOfAllWords) {
  const Exact<uint64_t> words(2 * 5003);
  Random random(1);
  unsigned long long expected = 7;
  for (int64_t i = 0; i < words.size(); ++i) expected += words[i] = random.next();
  unsigned long long sum = 7;
  HostQueue{}.launch("sum_words", sum_words, Grid{2}, kReadThreads, reinterpret_cast<const uint8_t*>(words.data()), words.size() / 2, &sum);
  EXPECT_EQ(sum, expected);
}

TEST(GpuWords, AreCopied) {
  const Exact<uint32_t> from(300);
  const Exact<uint32_t> to(300);
  for (int64_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint32_t>(i * i + 1);
  HostQueue{}.launch("copy_words_of", copy_words_of, grid_over(300), kPlainThreads, from.data(), from.size(), to.data());
  for (int64_t i = 0; i < from.size(); ++i) EXPECT_EQ(to[i], from[i]);
}

// What the references find is worth as much as what they refuse.
TEST(GpuReference, FindsWhatIsWrong) {
  const GpuProduct shape{WeightType::q4_k, 8, 256, 2};
  const Exact<uint8_t> weights = random_weights(shape.type, shape.n_rows, shape.n_columns);
  const Exact<float> x = random_values(shape.batch * shape.n_columns, 7);
  const Exact<float> y = unwritten(shape.batch * shape.n_rows);
  const Exact<uint8_t> scratch(scratch_bytes(shape));
  HostQueue queue;
  EXPECT_NE(fault_of_product(shape, weights.data(), x.data(), y.data(), 64), "") << "nothing was written";
  queue_product(queue, shape, weights.data(), x.data(), y.data(), scratch.data());
  ASSERT_EQ(fault_of_product(shape, weights.data(), x.data(), y.data(), 64), "");
  weights[150] = static_cast<uint8_t>(weights[150] ^ 0x40U);
  EXPECT_NE(fault_of_product(shape, weights.data(), x.data(), y.data(), 64), "") << "one code differs";
}

__global__ void write_without_waiting(int* seen) {
  __shared__ int value;
  if (threadIdx.x == 0) value = 5;
  seen[threadIdx.x] = value;
  value = 0;
}

__global__ void wait_apart() {
  if (threadIdx.x < 16) __syncthreads();
}

TEST(CudaOnHost, AMissingBarrierShows) {
  int seen[64] = {};
  HostQueue{true}.launch("write_without_waiting", write_without_waiting, Grid{}, 64, static_cast<int*>(seen));
  EXPECT_NE(seen[63], 5);
}

__global__ void load_words_of(const uint8_t* from, uint32_t* to) { to[threadIdx.x] = load4(from + 4 * threadIdx.x); }

TEST(CudaOnHost, ALoadBehindAnArrayIsAnError) {
  uint32_t to[32];
  const Exact<uint8_t> whole(128);
  EXPECT_NO_THROW(HostQueue{}.launch("load_words_of", load_words_of, Grid{}, 32, whole.data(), static_cast<uint32_t*>(to)));
  const Exact<uint8_t> short_of_two(126);
  EXPECT_THROW(HostQueue{}.launch("load_words_of", load_words_of, Grid{}, 32, short_of_two.data(), static_cast<uint32_t*>(to)),
               std::logic_error);
}

TEST(CudaOnHost, ThreadsThatWaitApartAreAnError) {
  EXPECT_THROW(HostQueue{}.launch("wait_apart", wait_apart, Grid{}, 32), std::logic_error);
}

}  // namespace
}  // namespace pshard

#endif
