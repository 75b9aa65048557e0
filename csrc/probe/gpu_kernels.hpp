// What a GPU multiplies: products with quantised weights as GGUF stores them, routed experts, and attention over an F16 cache. Functions
// queue their work on a stream and return. Pointers are the device's, aligned to 16 bytes, as cudaMalloc() and slots of an arena are; no
// CUDA header is needed to call them. They exist only where pshard is built with CUDA.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "probe/attention.hpp"
#include "probe/blocks.hpp"

struct CUstream_st;  // cudaStream_t is a pointer to it; nullptr is the default stream

namespace pshard {

using GpuStream = CUstream_st*;

// A call of the CUDA runtime failed; the message has its name and what the runtime says.
class GpuError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws GpuError where this build has no code for the GPU that is current, with how to build it.
void require_kernels();

inline constexpr int64_t kGpuAlignment = 16;
inline constexpr int64_t kMaxGpuBatch = 8192;
inline constexpr int64_t kVectorBatch = 8;  // up to so many rows of activations are multiplied without tensor cores

struct GpuProduct {
  WeightType type = WeightType::f16;
  int64_t n_rows = 0;     // outputs
  int64_t n_columns = 0;  // inputs, a multiple of 32 and of the type's block
  int64_t batch = 1;      // rows of activations, at most kMaxGpuBatch
};

// Whether there are kernels for it: for all that have a WeightType, which kernels must know to compile.
[[nodiscard]] bool gpu_multiplies(WeightType type);

// Throw std::invalid_argument, naming the field, for a shape that no kernel takes.
void check(const GpuProduct& shape);
[[nodiscard]] int64_t weight_bytes(const GpuProduct& shape);
// Of the scratch that a call needs: rounded activations, and partial sums. Calls on one stream may share it.
[[nodiscard]] int64_t scratch_bytes(const GpuProduct& shape);

// y[batch][n_rows] = x[batch][n_columns] times the transposed weights. Up to kVectorBatch rows: with quantised weights, activations are
// rounded to 8 bits with a scale per 32, and sums of 8-bit products are exact; with F16, to F16; with BF16 and F32 they stay as they are.
// More rows: weights and activations are rounded to F16, which for F32 keeps as many digits as TF32 would, and summed in 32 bits.
void multiply(const GpuProduct& shape, const void* weights, const float* x, float* y, void* scratch, GpuStream stream);

// Routed experts: `batch` tokens, each with n_used of the n_experts matrices, which follow each other in `weights`.
struct GpuExperts {
  WeightType type = WeightType::f16;
  int64_t n_rows = 0;
  int64_t n_columns = 0;
  int64_t n_experts = 1;      // at most 1024
  int64_t n_used = 1;         // different ones for each token
  int64_t batch = 1;          // tokens
  bool has_own_rows = false;  // x is [batch][n_used][n_columns], as behind the first product; otherwise [batch][n_columns]
};

void check(const GpuExperts& shape);
[[nodiscard]] int64_t weight_bytes(const GpuExperts& shape);  // of all experts
[[nodiscard]] int64_t scratch_bytes(const GpuExperts& shape);

// y[batch][n_used][n_rows]; ids[batch][n_used] are the experts of each token, all from 0 to n_experts - 1.
void multiply_experts(const GpuExperts& shape, const void* weights, const int32_t* ids, const float* x, float* y, void* scratch,
                      GpuStream stream);

// Copies words from page-locked memory of the host, or within the device, without a copy engine.
void copy_words(void* to, const void* from, int64_t n_words, GpuStream stream);

// Fused attention: out[batch][n_heads][head_size], of queries of the same shape, scores times 1 / sqrt(head_size), over keys and values
// [depth][n_kv_heads][head_size] in F16. Query token j sees cells up to depth - batch + j where `is_causal`, all cells otherwise.
// head_size is 64, 96, 128, 192 or 256.
void check_gpu(const AttentionShape& shape);
[[nodiscard]] int64_t gpu_scratch_bytes(const AttentionShape& shape);
void attend(const AttentionShape& shape, bool is_causal, const float* queries, const void* keys, const void* values, float* out,
            void* scratch, GpuStream stream);

}  // namespace pshard
