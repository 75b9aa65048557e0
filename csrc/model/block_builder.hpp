// Builds one Block in the order in which llama.cpp's graph executes (depth first, first operand first). The forward_*.cpp files say what
// a layer computes in these words; sizes, FLOP and bytes are counted here, once.
//
// Counting: a product of an n x k weight with m rows costs 2 n k m FLOP; element-wise work costs one FLOP per element that it writes
// (negligible beside its bytes). Activations are f32. A view or reshape is an operation without work; it matters where ggml could
// have worked in place: it never overwrites through a view.
#pragma once

#include <array>
#include <initializer_list>
#include <string_view>

#include "model/forward.hpp"

namespace pshard {

inline constexpr int64_t kActivationBytes = 4;

class BlockBuilder {
 public:
  // Names are looked up in `tensors`; `layer` is null outside the layers. All must outlive the block.
  BlockBuilder(const Model& model, const Pass& pass, const std::vector<Tensor>& tensors, const Layer* layer = nullptr)
      : model_(model), pass_(pass), tensors_(tensors), layer_(layer) {
    input_.fill(kNoValue);
  }

  [[nodiscard]] const Model& model() const { return model_; }
  [[nodiscard]] const Hyperparameters& hyperparameters() const { return model_.hyperparameters(); }
  [[nodiscard]] const GraphTraits& traits() const { return model_.hyperparameters().traits; }
  [[nodiscard]] const LayerParameters& parameters() const { return layer_->parameters; }
  [[nodiscard]] const Pass& pass() const { return pass_; }

  // Tensor "NAME.weight", else "NAME"; null where the layer has neither.
  [[nodiscard]] const Tensor* find(std::string_view name) const;
  [[nodiscard]] const Tensor* find_bias(std::string_view name) const;
  // Same, throwing std::invalid_argument where it is missing.
  [[nodiscard]] const Tensor& require(std::string_view name) const;

  int32_t add_value(int64_t n_bytes);
  // A graph input; asking twice gives the same value. `n_bytes` must not differ between calls.
  int32_t graph_input(GraphInput input, int64_t n_bytes);
  int32_t positions() { return graph_input(GraphInput::positions, pass_.n_tokens * 4); }
  [[nodiscard]] int64_t bytes_of(int32_t value) const { return block_.values[static_cast<size_t>(value)].n_bytes; }

  // weight x activation, for `rows` rows. The group is the weight's.
  int32_t mul_mat(const Tensor& weight, int32_t input, int64_t rows);
  // weight x activation through the bias and what follows a projection by name; no-op bias where the layer has none.
  int32_t project(std::string_view name, int32_t input, int64_t rows);
  // Routed experts: every row passes `used` of them. out[n, used, rows].
  int32_t mul_mat_id(const Tensor& weight, int32_t input, int32_t ids, int64_t rows, int64_t used);
  // Batched product without a weight tensor in the cache group or elsewhere: out[n, m] with contraction length k, `batch` times.
  int32_t product(Group group, std::initializer_list<int32_t> inputs, int64_t n, int64_t k, int64_t m, int64_t batch);

  // `n_bytes` of a value under another shape.
  int32_t view(int32_t base, int64_t n_bytes);
  int32_t reshape(int32_t base) { return view(base, bytes_of(base)); }
  // out_bytes written from the inputs; overwrites one of them where that is allowed.
  int32_t elementwise(Group group, std::initializer_list<int32_t> inputs, int64_t out_bytes, const Tensor* weight = nullptr);
  // The same into memory of its own.
  int32_t fresh(OpKind kind, Group group, std::initializer_list<int32_t> inputs, int64_t out_bytes, const Tensor* weight = nullptr);
  // Norm with its weight and bias. `name` may have no weight: then nothing happens.
  int32_t norm(std::string_view name, int32_t input);
  // The same in another group than the tensor's name says.
  int32_t norm(std::string_view name, int32_t input, Group group);
  int32_t add(Group group, int32_t a, int32_t b) { return elementwise(group, {a, b}, bytes_of(a)); }

  // Into the cache or recurrent state: `cache_bytes` written.
  void store(Group group, std::initializer_list<int32_t> inputs, int64_t cache_bytes);
  // Keeps the rows whose logits are wanted.
  int32_t output_rows(Group group, int32_t input, int64_t row_bytes);

  // The operations from `first` on are fused on a GPU, which keeps `values` alive until the last of them.
  void fuse(size_t first, std::initializer_list<int32_t> values);
  [[nodiscard]] size_t n_operations() const { return block_.operations.size(); }

  Operation& last() { return block_.operations.back(); }
  Value& value(int32_t index) { return block_.values[static_cast<size_t>(index)]; }
  Block take(int32_t residual_in, int32_t residual_out);

 private:
  Operation& append(OpKind kind, Group group, std::initializer_list<int32_t> inputs, int32_t output);

  const Model& model_;
  const Pass& pass_;
  const std::vector<Tensor>& tensors_;
  const Layer* layer_;
  Block block_;
  std::array<int32_t, kGraphInputCount> input_{};
};

// The parts of a layer; each takes and returns values of the builder's block.
int32_t build_attention(BlockBuilder& b, int32_t normed);  // up to and without the output projection
int32_t build_attention_output(BlockBuilder& b, int32_t attended, int64_t rows);
int32_t build_mixer(BlockBuilder& b, int32_t residual);            // recurrent mixers, with their norm and output projection
int32_t build_ffn(BlockBuilder& b, int32_t normed, int64_t rows);  // dense FFN, or experts with shared experts

}  // namespace pshard
