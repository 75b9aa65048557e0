// The few words that kernels are written in beside CUDA's own: halves as their bits, wide loads, sums over a warp, and the matrix units.
// Kernels use nothing else, so that tests/cpp/cuda_on_host.hpp, which gives the same words to a host compiler, runs all of them on a CPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_fp16.h>

namespace pshard {
namespace {

constexpr unsigned kAllLanes = 0xffffffffU;

__device__ inline float to_float(uint16_t half) { return __half2float(__ushort_as_half(half)); }
__device__ inline uint16_t to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }

// Through the read-only cache; the pointer is aligned to the size.
__device__ inline uint4 load16(const void* from) { return __ldg(static_cast<const uint4*>(from)); }
__device__ inline uint2 load8(const void* from) { return __ldg(static_cast<const uint2*>(from)); }
__device__ inline uint32_t load4(const void* from) { return __ldg(static_cast<const unsigned*>(from)); }
__device__ inline uint16_t load2(const void* from) { return __ldg(static_cast<const unsigned short*>(from)); }
__device__ inline uint8_t load1(const void* from) { return __ldg(static_cast<const unsigned char*>(from)); }
__device__ inline void store16(void* to, uint4 value) { *static_cast<uint4*>(to) = value; }

// c + a . b, of four signed bytes each.
__device__ inline int dot4(uint32_t a, uint32_t b, int c) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }

__device__ inline float from_lane_xor(float value, int mask) { return __shfl_xor_sync(kAllLanes, value, mask); }

__device__ inline float as_float(uint32_t word) { return __uint_as_float(word); }

// Bytes of `a`, numbered 0 to 3, and of `b`, 4 to 7, that the nibbles of `order` name, the last of which becomes the lowest.
__device__ inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t order) { return __byte_perm(a, b, order); }

// Two halves in a word.
__device__ inline __half2 as_halves(uint32_t word) { return *reinterpret_cast<const __half2*>(&word); }
__device__ inline uint32_t as_word(__half2 halves) { return *reinterpret_cast<const uint32_t*>(&halves); }
__device__ inline uint32_t pack_halves(float low, float high) { return as_word(__floats2half2_rn(low, high)); }
__device__ inline uint32_t subtract_halves(uint32_t a, uint32_t b) { return as_word(__hsub2(as_halves(a), as_halves(b))); }
__device__ inline uint32_t multiply_halves(uint32_t a, uint32_t b) { return as_word(__hmul2(as_halves(a), as_halves(b))); }
__device__ inline uint32_t multiply_add_halves(uint32_t a, uint32_t b, uint32_t c) {
  return as_word(__hfma2(as_halves(a), as_halves(b), as_halves(c)));
}

// Copies to shared memory that nobody waits for until `wait_for_async_groups`, and then only their own thread. Turing has none.
#if __CUDA_ARCH__ >= 800
__device__ inline void copy_async4(void* shared, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
}
__device__ inline void copy_async16(void* shared, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ inline void end_of_async_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `n` groups are on their way.
template <int n>
__device__ inline void wait_for_async_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
#else
__device__ inline void copy_async4(void* shared, const void* from) { *static_cast<uint32_t*>(shared) = load4(from); }
__device__ inline void copy_async16(void* shared, const void* from) { store16(shared, load16(from)); }
__device__ inline void end_of_async_group() {}
template <int n>
__device__ inline void wait_for_async_groups() {}
#endif

// Four 8 x 8 matrices of halves from shared memory: lane l gives the address of row l % 8 of matrix l / 8, aligned to 16 bytes. It gets, of
// each matrix, the elements 2 * (l % 4) and the next of row l / 4; transposed: of column l / 4.
__device__ inline void load_matrices(uint32_t (&out)[4], const uint16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&out)[4], const uint16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// c[16][8] += a[16][16] . b[16][8], of halves, summed in 32 bits. With g = lane / 4 and t = lane % 4, a lane holds of
//   a: columns 2t, 2t + 1 of row g, of row g + 8; columns 2t + 8, 2t + 9 of row g, of row g + 8
//   b: rows 2t, 2t + 1 of column g; rows 2t + 8, 2t + 9 of column g
//   c: columns 2t, 2t + 1 of row g, of row g + 8
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // Turing multiplies half of it at once
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

}  // namespace
}  // namespace pshard

#endif

namespace pshard {
namespace {

constexpr int kWarp = 32;

__device__ inline uint32_t pack(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }
__device__ inline uint16_t low_half(uint32_t word) { return static_cast<uint16_t>(word & 0xffffU); }
__device__ inline uint16_t high_half(uint32_t word) { return static_cast<uint16_t>(word >> 16); }

// Of two BF16 in a word, each the upper half of a float.
__device__ inline float lower_bfloat(uint32_t word) { return as_float(word << 16); }
__device__ inline float upper_bfloat(uint32_t word) { return as_float(word & 0xffff0000U); }

// Of 4 * n bytes at an address that is only even, as blocks of odd numbers of words are.
template <int n>
__device__ inline void load_words(uint32_t (&out)[n], const uint8_t* from) {
#pragma unroll
  for (int i = 0; i < n; ++i) out[i] = pack(load2(from + 4 * i), load2(from + 4 * i + 2));
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = fmaxf(value, from_lane_xor(value, mask));
  return value;
}

}  // namespace
}  // namespace pshard
