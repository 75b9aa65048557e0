// Writes down the pass of an encoder: GraphWriter's words, and the parts that encoders of images and sound share, by names of the file's
// tensors (".weight" and ".bias" are added where they are looked up). encoder_kinds.hpp lists the kinds that are described in these words.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "model/encoder.hpp"
#include "model/encoder_layer.hpp"
#include "model/graph_writer.hpp"

namespace pshard {

// A node, or a weight as it lies in the file.
struct Operand {
  Node node = kNoValue;
  const Tensor* weight = nullptr;

  Operand() = default;
  Operand(Node from) : node(from) {}              // NOLINT(google-explicit-constructor)
  Operand(const Tensor& from) : weight(&from) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] bool exists() const { return node != kNoValue || weight != nullptr; }
};

class EncoderGraph : public GraphWriter {
 public:
  EncoderGraph(const Encoder& encoder, const EncoderInput& input);

  [[nodiscard]] bool is(std::string_view kind) const { return encoder_.kind == kind; }
  [[nodiscard]] int64_t width() const { return input_.width; }
  [[nodiscard]] int64_t height() const { return input_.height; }
  [[nodiscard]] int64_t n_images() const { return input_.n_images; }
  [[nodiscard]] int64_t tile_columns() const { return input_.tile_columns; }
  [[nodiscard]] bool flash_attn() const { return input_.flash_attn; }

  // A number of the file, or what llama.cpp takes where it has none; without `otherwise` it must be there.
  [[nodiscard]] int64_t number(std::string_view key) const;
  [[nodiscard]] int64_t number(std::string_view key, int64_t otherwise) const;
  [[nodiscard]] std::vector<int64_t> numbers(std::string_view key) const;

  [[nodiscard]] int64_t n_embd() const { return n_embd_; }
  [[nodiscard]] int64_t n_layer() const { return n_layer_; }
  [[nodiscard]] int64_t patch() const { return patch_; }
  void set_patch(int64_t patch) { patch_ = patch; }
  [[nodiscard]] int64_t merge(int64_t otherwise) const;  // patches that become one, by side
  [[nodiscard]] int64_t columns() const { return input_.width / patch_; }
  [[nodiscard]] int64_t rows() const { return input_.height / patch_; }
  [[nodiscard]] int64_t n_patches() const { return columns() * rows(); }

  // Tensor "NAME.weight", else "NAME"; `require` throws where there is neither.
  [[nodiscard]] const Tensor* find(std::string_view name) const;
  [[nodiscard]] const Tensor* find_bias(std::string_view name) const;
  [[nodiscard]] const Tensor& require(std::string_view name) const;
  [[nodiscard]] bool has(std::string_view name) const { return find(name) != nullptr; }
  [[nodiscard]] std::string layer_name(int64_t layer, std::string_view part) const;

  Node raw(int64_t channels = 3);
  Node indices(int64_t n, int64_t n_rows = 1);
  Node floats(std::array<int64_t, 4> ne);

  using GraphWriter::add;
  using GraphWriter::concat;
  using GraphWriter::cont;
  using GraphWriter::mul;
  Node add(Node a, const Operand& b) { return b.weight != nullptr ? add(a, *b.weight) : add(a, b.node); }
  Node cont(const Operand& x, std::array<int64_t, 4> ne);
  Node concat(const Tensor& a, Node b, size_t dimension);
  Node concat(Node a, const Tensor& b, size_t dimension);
  Node look_up(const Tensor& table, Node rows);
  Node cast(Node x, const DataType& type);
  Node in_place(Node x);  // written over x, whoever else reads that
  Node reshape(Node x, int64_t n0, int64_t n1, int64_t n2 = 1, int64_t n3 = 1) { return GraphWriter::reshape(x, {n0, n1, n2, n3}); }

  // From here on, inputs and results of products are held within limits (Gemma 4); columns are f32 unless the kernel is f16 (DeepSeek-OCR).
  void clamp_products() { clamps_ = true; }
  void keep_f32_columns() { keeps_f32_columns_ = true; }
  // Parts with the bias of the same name where there is one.
  Node linear(std::string_view name, Node x);
  Node norm(std::string_view name, Node x, NormKind kind);
  Node plain_norm(Node x, NormKind kind);
  Node ffn(std::string_view up, std::string_view down, Node x, int activations = 1, std::string_view gate = {});

  // The kernel as a matrix with a row for each of its results.
  Node flat_product(const Tensor& kernel, Node columns);

  // x[columns, rows, channels, images], and so the results. Columns are unfolded and multiplied; the direct ones are one operation.
  Node conv_2d(std::string_view name, Node x, int64_t stride, int64_t padding);
  Node conv_2d_direct(std::string_view name, Node x, int64_t stride, int64_t padding);
  Node conv_2d_by_channel_direct(std::string_view name, Node x, int64_t stride, int64_t padding);
  Node conv_2d_by_channel(std::string_view name, Node x, int64_t stride, int64_t padding);
  Node conv_1d(std::string_view name, Node x, int64_t stride, int64_t padding);
  Node unfold(const Operand& kernel, Node x, int64_t side, const DataType& type);
  Node pool_2d(Node x, int64_t columns, int64_t rows);
  Node pad(Node x, std::array<int64_t, 4> more);

  // [n, positions, images] as an image again: [columns, rows, n, images]; and back.
  Node as_image(Node x);
  Node as_rows(Node x);
  Node channels_first(Node x);  // [columns, rows, n] as [n, columns, rows]

  Node patches();  // of the image, one per column: [n_embd, n_patches, images]
  // Two kernels for two frames, both of which see a still image; patches are then ordered by groups of 2 x 2.
  Node grouped_patches(int64_t group = 2);
  Node grouped(const Operand& x, int64_t group);
  // The file's table of positions, resized to the image's.
  Operand position_table();

  Node numbered(int64_t n);  // 0, 1, ... as indices
  // o(attention): queries, keys and values are [head size, heads, positions, images].
  Node attend(std::string_view out, Node q, Node k, Node v, Node mask = kNoValue, const Tensor* sinks = nullptr);
  Node layer(int64_t index, Node x, int64_t n_positions, int64_t n_batch, const LayerStyle& style);
  // All layers, with norms before and behind them where the file has such: [n_embd, positions, images].
  Node transformer(Node x, int64_t n_positions, const LayerStyle& style, const Operand& positions = {});

  // merge x merge neighbours side by side, in one column.
  Node merge_patches(Node x, int64_t merge);
  // `factor` columns in one.
  Node stack(Node x, int64_t factor);

  // Rotation of one half of a head by the first positions and of the other by the second.
  std::function<Node(Node)> rotation_2d(Node first, Node second);
  std::function<Node(Node)> rotation(Node positions);

 private:
  Node given_input(const Layout& layout);
  [[nodiscard]] DataType column_type(const Tensor& kernel) const;
  Node heads(Node x, int64_t n_head, int64_t n_positions, int64_t n_batch);
  Node product(Node x, const Tensor& weight, int64_t rows, int64_t n);
  Node layer_ffn(int64_t index, Node x, int activations);
  Node layer_experts(int64_t index, Node x);

  const Encoder& encoder_;
  EncoderInput input_;
  std::map<std::string_view, const Tensor*> tensors_;
  int64_t n_embd_ = 0;
  int64_t n_head_ = 0;
  int64_t n_head_kv_ = 0;
  int64_t head_dim_ = 0;
  int64_t n_layer_ = 0;
  int64_t patch_ = 1;
  int n_given_ = 0;
  bool clamps_ = false;
  bool keeps_f32_columns_ = false;
};

}  // namespace pshard
