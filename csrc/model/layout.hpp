// How a value lies in memory, as ggml's tensors do.
#pragma once

#include <array>
#include <cstdint>

#include "model/tensor.hpp"

namespace pshard {

inline constexpr int64_t kActivationBytes = 4;
inline constexpr DataType kF32{0, 1, 4};
inline constexpr DataType kF16{1, 1, 2};
inline constexpr DataType kI32{26, 1, 4};
inline constexpr DataType kI64{27, 1, 8};

// Elements per dimension and bytes from one to the next.
struct Layout {
  DataType type = kF32;
  std::array<int64_t, 4> ne{1, 1, 1, 1};
  std::array<int64_t, 4> nb{0, 0, 0, 0};

  [[nodiscard]] static Layout packed(std::array<int64_t, 4> ne, const DataType& type = kF32);
  [[nodiscard]] int64_t n_elements() const { return ne[0] * ne[1] * ne[2] * ne[3]; }
  [[nodiscard]] int64_t n_rows() const { return ne[1] * ne[2] * ne[3]; }
  [[nodiscard]] int64_t n_bytes() const;                                                 // from the first element to the last
  [[nodiscard]] int64_t data_bytes() const { return n_rows() * type.row_bytes(ne[0]); }  // without the gaps
  bool operator==(const Layout&) const = default;
};

}  // namespace pshard
