// Which cells each token attends to, where an indexer chooses them (DeepSeek 3.2, GLM 5).
#include <algorithm>

#include "model/gpu_attention.hpp"
#include "model/graph.hpp"

namespace pshard {

namespace {

// DeepSeek's lightning indexer: keys of one head in a cache of their own, scored against queries of
// many.
class Indexer {
 public:
  explicit Indexer(Graph& g)
      : g_(g), dim_(g.parameters().indexer_dim), n_head_(g.hyperparameters().indexer_n_head), n_streams_(g.pass().n_streams) {}

  void store_keys(Node normed) {
    const int64_t n = g_.n_tokens();
    Node key = g_.project("indexer.attn_k", normed);
    key = g_.fresh(OpKind::elementwise, {key}, Layout::packed(g_.layout(key).ne));  // mean and variance, whatever other norms do
    key = g_.add(g_.mul(key, g_.require("indexer.k_norm")), *g_.find_bias("indexer.k_norm"));
    key = rotated(g_.rope(g_.reshape(key, {dim_, 1, n, 1})));
    const Node rows = g_.view(key, {dim_, n, 1, 1}, {dim_ * kActivationBytes, dim_ * kActivationBytes * n, dim_ * kActivationBytes * n});
    g_.store({rows, g_.input(GraphInput::indexer_cells, Layout::packed({n, 1, 1, 1}, kI64))}, g_.pass().type_k.row_bytes(dim_) * n);
  }

  // [chosen cells, tokens, 1, streams]
  Node choose(Node normed, Node query_input) {
    const int64_t n = g_.n_tokens() / n_streams_;
    const int64_t n_kv = g_.pass().n_kv;
    Node query = g_.reshape(g_.project("indexer.attn_q_b", query_input), {dim_, n_head_, g_.n_tokens(), 1});
    query = rotated(g_.rope(query));
    const Layout q = g_.layout(query);
    query = g_.view(query, {dim_, n_head_, n, n_streams_}, {q.nb[1], q.nb[2], q.nb[2] * n});
    const Node shares = g_.project("indexer.proj", normed);
    const Layout w = g_.layout(shares);
    const Node scaled = g_.map(g_.view(shares, {n_head_, n, 1, n_streams_}, {w.nb[1], w.nb[1] * n, w.nb[1] * n}));
    g_.in(Group::cache);
    const Node mask = g_.input(GraphInput::indexer_mask, Layout::packed({n_kv, n, 1, n_streams_}, kF16));
    const Node scores = g_.fresh(OpKind::attention, {query, kCache, scaled, mask}, Layout::packed({n_kv, n, 1, n_streams_}));
    Operation& operation = g_.operation(scores);
    const DataType& type = g_.pass().type_k;
    operation.cache_bytes = type.row_bytes(dim_) * n_kv * n_streams_;
    operation.cache[0] = cache_operand(Layout::packed({dim_, n_kv, 1, n_streams_}, type));
    operation.n = n_head_;
    operation.k = n_kv;
    operation.m = g_.n_tokens();
    operation.flop = 2.0 * static_cast<double>(dim_ * n_head_) * static_cast<double>(g_.n_tokens() * n_kv);
    operation.host_only = dim_ != 128 || (n_head_ != 64 && n_head_ != 32) || !gpu_attends_to(type);
    const int64_t chosen = std::min(n_kv, g_.hyperparameters().indexer_top_k);
    const Node best = g_.fresh(OpKind::elementwise, {scores}, Layout::packed({chosen, n, 1, n_streams_}, kI32));
    return g_.cont(best);
  }

 private:
  Node rotated(Node x) { return g_.mul_mat(g_.input(GraphInput::key_rotation, Layout::packed({dim_, dim_, 1, 1})), x); }

  Graph& g_;
  int64_t dim_;
  int64_t n_head_;
  int64_t n_streams_;
};

}  // namespace

Node choose_cells(Graph& g, Node normed, Node query_input) {
  Indexer indexer(g);
  indexer.store_keys(normed);
  return indexer.choose(normed, query_input);
}

Node only_cells(Graph& g, Node mask, Node selected) {
  const Layout full = g.layout(mask);
  const Node closed = g.fresh(OpKind::elementwise, {mask}, full);
  const Node cells = g.view(closed, {1, full.ne[0], full.ne[1], full.ne[3]}, {full.nb[0], full.nb[1], full.nb[3]});
  const Layout s = g.layout(selected);
  const Node ids = g.view(selected, {s.ne[0], s.ne[1], s.ne[3], 1}, {s.nb[1], s.nb[3], s.nb[3] * s.ne[3]});
  const Node zeros = g.map(g.room(Layout::packed({1, s.ne[0], s.ne[1], s.ne[3]})));
  const Node open = g.write_rows(cells, zeros, ids);
  return g.add(g.view(open, full.ne, {full.nb[1], full.nb[2], full.nb[3]}), mask);
}

}  // namespace pshard
