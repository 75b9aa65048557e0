// What a pass is given from outside: tokens, positions, masks, and what else the host fills in.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace pshard {

// What the host fills in before the pass. One tensor each, shared by all layers; a device that reads it gets one copy.
enum class GraphInput : uint8_t {
  none,
  tokens,
  layer_tokens,  // the same once more, for embeddings that the layers read
  positions,
  state_rows,
  other_state_rows,  // of sequences that are not in the micro-batch
  key_cells,
  value_cells,
  mask,
  indexer_cells,
  indexer_mask,
  key_cells_window,
  value_cells_window,
  mask_window,
  encoded,  // what an encoder has made
  encoded_mask,
  distances,  // classes of distances between tokens and cells
  decay_slopes,
  decay_of_queries,
  decay_of_keys,
  decay_of_pairs,
  attention_scale,
  key_rotation,
  value_rotation,
  key_rotation_window,
  value_rotation_window,
  output_rows,
  rope_factors,  // a weight that all layers share; like an input it is copied once, where they lie in host memory
  given,         // what an encoder of images or sound is given has numbers instead of names, from here on
};
inline constexpr int kGivenInputCount = 30;
inline constexpr int kGraphInputCount = static_cast<int>(GraphInput::given) + kGivenInputCount;
using InputBits = uint64_t;  // one bit per GraphInput
static_assert(kGraphInputCount <= 64);
[[nodiscard]] constexpr InputBits input_bit(GraphInput input) { return InputBits{1} << static_cast<unsigned>(input); }

// Graph inputs in the order in which they are read first.
class InputList {
 public:
  void add(GraphInput input) {
    if ((bits_ & input_bit(input)) != 0) return;
    inputs_[n_++] = input;
    bits_ |= input_bit(input);
  }
  [[nodiscard]] const GraphInput* begin() const { return inputs_.data(); }
  [[nodiscard]] const GraphInput* end() const { return inputs_.data() + n_; }
  [[nodiscard]] InputBits bits() const { return bits_; }
  [[nodiscard]] int32_t size() const { return n_; }
  bool operator==(const InputList& other) const { return bits_ == other.bits_ && std::equal(begin(), end(), other.begin()); }

 private:
  std::array<GraphInput, kGraphInputCount> inputs_{};
  uint8_t n_ = 0;
  InputBits bits_ = 0;
};

}  // namespace pshard
