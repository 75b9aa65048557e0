// Writes a Block down as ggml builds a graph. A node is described first; it takes its place in the list when it is expanded, or when
// something that reads it is: depth first, first operand first. So a description that expands what llama.cpp's expands has llama.cpp's
// order, and with it the lifetimes. Sizes, FLOP and bytes are counted here, once; what a model adds to these words is in graph.hpp
// (language models) and encoder_graph.hpp (encoders of images and sound).
//
// Counting: a product of an n x k weight with m rows costs 2 n k m FLOP; element-wise work costs one FLOP per element that it writes
// (negligible beside its bytes). Activations are f32. A view is an operation without work; it matters because ggml never overwrites
// through a view, and because a view that another device reads is copied with the gaps in it.
#pragma once

#include <array>
#include <initializer_list>
#include <vector>

#include "model/forward.hpp"
#include "model/layout.hpp"

namespace pshard {

using Node = int32_t;  // index of a value of the block

class GraphWriter {
 public:
  GraphWriter() { input_.fill(kNoValue); }

  // The group of the nodes described from here on; a weight brings its own.
  void in(Group group) { group_ = group; }
  [[nodiscard]] Group group() const { return group_; }

  [[nodiscard]] const Layout& layout(Node node) const { return nodes_[static_cast<size_t>(node)].layout; }
  [[nodiscard]] int64_t ne(Node node, size_t dimension) const { return layout(node).ne[dimension]; }

  // What is there before the block: a graph input (asking twice gives the same node; the layout must not differ), or a value that the
  // block before leaves.
  Node input(GraphInput input, const Layout& layout);
  Node given(const Layout& layout) { return leaf(layout); }
  // Memory that nothing fills before its first reader.
  Node room(const Layout& layout);

  // Products. A weight's rows are out[n]; every row of x passes one (mul_mat), or the experts that ids name for it (mul_mat_id).
  Node mul_mat(const Tensor& weight, Node x);
  Node mul_mat(Node a, Node b);
  Node mul_mat_id(const Tensor& weight, Node x, Node ids);

  // Element-wise: overwrites an operand of its own layout that nobody reads afterwards.
  Node map(Node x) { return element_wise({x}, packed_like(x)); }  // scale, clamp, activation, square
  Node add(Node a, Node b) { return stepped(Step::add, element_wise({a, b}, packed_like(a))); }
  Node add(Node a, const Tensor& weight) { return stepped(Step::add, element_wise({a, kWeight}, packed_like(a), &weight)); }
  Node add_id(Node a, const Tensor& weight, Node ids) {  // to the output of each expert its own
    return stepped(Step::add, element_wise({a, kWeight, ids}, layout(a), &weight));
  }
  Node mul(Node a, Node b) { return stepped(Step::multiply, element_wise({a, b}, packed_like(a))); }
  Node mul(Node a, const Tensor& weight) { return stepped(Step::multiply, element_wise({a, kWeight}, packed_like(a), &weight)); }
  Node div(Node a, Node b) { return element_wise({a, b}, packed_like(a)); }
  Node scale(Node x) { return stepped(Step::scale, map(x)); }
  Node activate(Node x) { return stepped(Step::activate, map(x)); }  // SiLU, sigmoid or softplus
  Node rms(Node x) { return stepped(Step::rms_norm, map(x)); }       // RMS norm without a weight
  Node element_wise(std::initializer_list<int32_t> operands, const Layout& layout, const Tensor* weight = nullptr);

  // Into memory of their own.
  Node glu(Node gate, Node up);  // act(gate) * up; `up` may be kNoValue: then both halves of `gate`
  Node sum_rows(Node x);         // or their means
  Node cont(Node x) { return fresh(OpKind::copy, {x}, packed_like(x)); }
  Node cont(Node x, std::array<int64_t, 4> ne) { return fresh(OpKind::copy, {x}, Layout::packed(ne)); }
  Node repeat(Node x, std::array<int64_t, 4> ne) { return fresh(OpKind::copy, {x}, Layout::packed(ne)); }
  Node concat(Node a, Node b, size_t dimension);
  Node get_rows(Node x, Node ids);
  Node write_rows(Node into, Node rows, Node ids);  // `into`'s memory, written over
  // Outputs of the experts that each row passed, [n, experts, rows], weighted where there are weights.
  Node sum_of_experts(Node outputs, Node weights);
  Node fresh(OpKind kind, std::initializer_list<int32_t> operands, const Layout& layout, const Tensor* weight = nullptr);

  // The same memory under another shape. `view` keeps x's strides from its first dimension on where none are given.
  Node reshape(Node x, std::array<int64_t, 4> ne);
  Node view(Node x, std::array<int64_t, 4> ne, std::array<int64_t, 3> strides);
  Node permute(Node x, std::array<size_t, 4> axes);  // x's dimension i becomes dimension axes[i]
  Node transpose(Node x) { return permute(x, {1, 0, 2, 3}); }
  // The last `parts` of dimension 0.
  Node slice(Node x, int64_t n_elements);

  // The node, and all that it needs, takes its place in the list.
  void expand(Node node);
  // It stays to the end of the pass: llama.cpp hands it out.
  void keep(Node node) { nodes_[static_cast<size_t>(node)].value.is_kept = true; }

  // The operations listed from `first` on are one kernel on a GPU, which keeps `values` alive until behind the `n_behind`-th operation
  // after them.
  void fuse(size_t first, std::initializer_list<Node> values, int32_t n_behind);

  // ggml does not know the operation's weight as one: it does not decide where the operation runs.
  void read_aside(Node node);
  // Nor does a weight, or the first `n_bytes` of it, that is read through a view.
  void read_as_view(Node node, int64_t n_bytes = 0);

  Operation& operation(Node node) { return nodes_[static_cast<size_t>(node)].operation; }
  Value& value(Node node) { return nodes_[static_cast<size_t>(node)].value; }
  [[nodiscard]] size_t n_listed() const { return block_.operations.size(); }

  Block& block() { return block_; }
  Block take();

 protected:
  Node stepped(Step step, Node node) {
    operation(node).step = step;
    return node;
  }
  void fuses_nothing() { fuses_ = false; }
  Node describe(OpKind kind, std::initializer_list<int32_t> operands, const Layout& layout);
  [[nodiscard]] Layout packed_like(Node x) const { return Layout::packed(layout(x).ne, layout(x).type); }

 private:
  struct Described {
    Layout layout;
    Value value;
    Operation operation;
    bool is_leaf = false;
    bool is_listed = false;
  };

  Node leaf(const Layout& layout);
  Node alias(Node x, const Layout& layout);

  Block block_;
  std::vector<Described> nodes_;
  Group group_ = Group::norms;
  bool fuses_ = true;
  std::array<Node, kGraphInputCount> input_{};
};

}  // namespace pshard
