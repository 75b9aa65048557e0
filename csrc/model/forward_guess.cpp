// A layer of an architecture that no description fits, guessed from its tensors: every weight multiplies something of its width, attention
// reads the layer's caches, and all that comes of it is there at once. So it is an estimate, and rather too much than too little.
#include <algorithm>
#include <vector>

#include "model/graph.hpp"

namespace pshard {

namespace {

bool is_ffn(const Tensor& tensor) { return local_name(tensor.name).starts_with("ffn_"); }

// Not so norms, biases and tables.
bool is_matrix(const Tensor& tensor) { return tensor.shape[1] > 1 && tensor.type.id != kI32.id && tensor.name.ends_with(".weight"); }

class Guess {
 public:
  Guess(Graph& g, Node normed) : g_(g), normed_(normed) {}

  void multiply(const Tensor& weight) {
    const int64_t n = weight.shape[1] * weight.shape[2] * weight.shape[3];
    const int64_t k = weight.shape[0];
    const int64_t m = g_.ne(normed_, 1);
    const Node product = g_.fresh(OpKind::mul_mat, {kWeight, of_width(k)}, Layout::packed({n, m, 1, 1}), &weight);
    Operation& operation = g_.operation(product);
    operation.group = group_of(weight.name);
    operation.n = n;
    operation.k = k;
    operation.m = m;
    operation.offload_rows = m;
    operation.flop = 2.0 * static_cast<double>(n * k) * static_cast<double>(m);
    results_.push_back(product);
  }

  void attend() {
    const LayerParameters& p = g_.parameters();
    const auto heads = [&](int64_t width, int64_t n) { return g_.reshape(of_width(width * n), {width, n, g_.n_tokens(), 1}); };
    const Node query = heads(p.head_dim_k, p.n_head);
    const Node key = heads(p.head_dim_k, p.n_head_kv);
    const Node value = p.head_dim_v > 0 ? heads(p.head_dim_v, p.n_head_kv) : kNoValue;
    results_.push_back(attend_to_heads(g_, query, key, value));
  }

  // Scores of the cells of a second cache, by which some are chosen, and the mask that comes of it; where there is no such cache, for every
  // head of the indexer, and with a mask of its own that is cut out of a graph input.
  void choose_cells() {
    const LayerParameters& p = g_.parameters();
    const int64_t n_heads = p.compression > 0 ? 1 : g_.hyperparameters().indexer_n_head;
    const int64_t n_cells = g_.pass().n_kv / std::max<int64_t>(p.compression, 1) * std::max<int64_t>(n_heads, 1);
    Node seen = kNoValue;
    if (p.compression == 0) {
      const Node all = g_.input(GraphInput::distances, Layout::packed({g_.pass().n_kv, g_.n_tokens(), 1, 1}));
      seen = g_.reshape(all, {g_.pass().n_kv * g_.n_tokens(), 1, 1, 1});
    }
    const Layout scores = Layout::packed({n_cells, g_.n_tokens(), 1, 1});
    for (int i = 0; i < 2; ++i) results_.push_back(g_.fresh(OpKind::elementwise, {normed_, seen}, scores));
  }

  // As the residual is there once for each of the states side by side: before, behind, and while they are mixed.
  void mix_states(int64_t n) {
    for (int i = 0; i < 3; ++i) results_.push_back(g_.repeat(normed_, {g_.ne(normed_, 0), g_.ne(normed_, 1), n, 1}));
  }

  // Everything is alive up to here.
  Node sum() {
    constexpr size_t kOperands = 6;
    const Layout out = Layout::packed(g_.layout(normed_).ne);
    for (const Node result : results_) g_.expand(result);
    Node total = normed_;
    for (size_t first = results_.size(); first > 0;) {
      const size_t n = std::min(kOperands, first);
      first -= n;
      std::array<Node, kOperands> part{kNoValue, kNoValue, kNoValue, kNoValue, kNoValue, kNoValue};
      std::copy_n(results_.begin() + static_cast<std::ptrdiff_t>(first), n, part.begin());
      total = g_.fresh(OpKind::elementwise, {total, part[0], part[1], part[2], part[3], part[4], part[5]}, out);
      g_.expand(total);
    }
    return total;
  }

 private:
  Node of_width(int64_t width) {
    const auto fits = [&](Node node) { return g_.ne(node, 0) == width; };
    const auto last = std::find_if(results_.rbegin(), results_.rend(), fits);
    if (last != results_.rend()) return *last;
    return fits(normed_) ? normed_ : g_.repeat(normed_, {width, g_.ne(normed_, 1), 1, 1});
  }

  Graph& g_;
  Node normed_;
  std::vector<Node> results_;
};

bool has_usual_ffn(const Graph& g) {
  if (g.find("ffn_down") != nullptr) return g.find("ffn_up") != nullptr;
  const bool has_up = g.find("ffn_up_exps") != nullptr || g.find("ffn_gate_up_exps") != nullptr;
  return g.find("ffn_down_exps") != nullptr && g.find("ffn_gate_inp") != nullptr && has_up;
}

}  // namespace

Node build_guessed_layer(Graph& g, const Layer& layer, Node residual, bool drop_rows) {
  g.in(Group::norms);
  const bool knows_ffn = has_usual_ffn(g);
  Guess guess(g, g.rms(residual));
  for (const Tensor& tensor : layer.tensors) {
    if (is_matrix(tensor) && !(knows_ffn && is_ffn(tensor))) guess.multiply(tensor);
  }
  g.in(Group::norms);
  if (g.traits().n_side_by_side > 1) guess.mix_states(g.traits().n_side_by_side);
  if (layer.parameters.indexer_dim > 0 || layer.parameters.compression > 0) guess.choose_cells();
  if (layer.parameters.n_head_kv > 0) guess.attend();
  g.in(Group::norms);
  Node middle = g.add(guess.sum(), residual);
  if (drop_rows) middle = g.output_rows(middle);
  return knows_ffn ? g.add(build_ffn(g, g.rms(middle)), middle) : middle;
}

}  // namespace pshard
