#include "cost/op_cost.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace pshard {

double distinct_expert_share(int64_t n_expert, int64_t n_expert_used, double n_tokens) {
  if (n_expert <= 0 || n_expert_used >= n_expert) return 1.0;
  const double missed_by_one = 1.0 - static_cast<double>(n_expert_used) / static_cast<double>(n_expert);
  return 1.0 - std::pow(missed_by_one, n_tokens);
}

double activation_rows(const Operation& operation, int64_t n_expert_used) {
  const auto rows = static_cast<double>(operation.m);
  return operation.kind == OpKind::mul_mat_id ? rows / static_cast<double>(std::max<int64_t>(n_expert_used, 1)) : rows;
}

double weight_bytes_read(const Operation& operation, int64_t n_expert, int64_t n_expert_used) {
  if (operation.weight == nullptr || operation.kind == OpKind::get_rows) return 0.0;
  const auto bytes = static_cast<double>(operation.weight->n_bytes);
  if (operation.kind != OpKind::mul_mat_id) return bytes;
  return bytes * distinct_expert_share(n_expert, n_expert_used, activation_rows(operation, n_expert_used));
}

namespace {

const RateSeries* find(const std::vector<ShapeRates>& shapes, const Operation& operation) {
  const auto is_its = [&](const ShapeRates& shape) {
    return shape.is_routed == (operation.kind == OpKind::mul_mat_id) && shape.type == operation.weight->type.id &&
           shape.n_rows == operation.n && shape.n_columns == operation.k;
  };
  const auto found = std::find_if(shapes.begin(), shapes.end(), is_its);
  return found == shapes.end() ? nullptr : &found->series;
}

const RateSeries& series_for(const Operation& operation, const Processor& processor, bool is_copied) {
  if (is_copied) {
    if (const RateSeries* series = find(processor.copied_shapes, operation)) return *series;
  }
  if (const RateSeries* series = find(processor.shapes, operation)) return *series;
  const auto type = static_cast<size_t>(operation.weight->type.id);
  const auto& table = operation.kind == OpKind::mul_mat_id ? processor.mul_mat_id : processor.mul_mat;
  if (type >= table.size() || table[type].empty()) {
    throw std::invalid_argument("tensor '" + operation.weight->name + "' has ggml type " + std::to_string(type) +
                                ", for which the machine has no rate, not even an estimated one");
  }
  return table[type];
}

bool is_attention(const Operation& operation) { return operation.kind == OpKind::attention || operation.kind == OpKind::attention_kq; }

// Cells of the cache that an attention reads. Without fusion it is two products, of n_kv rows and of n_kv columns.
double cells_read(const Operation& operation) {
  return static_cast<double>(operation.kind == OpKind::attention ? operation.k : std::max(operation.n, operation.k));
}

// From so many cells on llama.cpp deals those of a single query to the threads.
constexpr double kDealtFrom = 512.0;

// Share of an attention's cells that decides how long it takes. Masked ones are skipped; but those of a single query are dealt in equal
// parts, masked or not, in the order of the cache, so the thread with the first part skips none and is the last.
double decisive_share(const Operation& operation, const Processor& processor, double n_query_tokens) {
  if (!processor.skips_masked) return 1.0;
  const bool is_dealt = operation.kind == OpKind::attention && attends_together(operation.key_type, operation.value_type) &&
                        n_query_tokens == 1.0 && cells_read(operation) >= kDealtFrom;
  return is_dealt ? std::min(1.0, processor.n_threads * operation.unmasked) : operation.unmasked;
}

const AttentionTable& attention_table(const Processor& processor, int32_t type) {
  const auto index = static_cast<size_t>(type);
  const bool is_told = index < processor.attention_by_query.size() && !processor.attention_by_query[index].empty();
  return is_told ? processor.attention_by_query[index] : processor.attention;
}

// An attention's arithmetic and first reads, without its launch.
Cost attention_over(const Operation& operation, const AttentionTable& table, double flop, double cache_bytes, double n_query_tokens) {
  Cost cost;
  cost.seconds = attention_seconds(table, flop, cache_bytes, n_query_tokens, cells_read(operation));
  double spread = 0.0;
  for (const AttentionRates& at_depth : table) {
    cost.basis = std::max(cost.basis, at_depth.rates.basis);
    spread = std::max(spread, at_depth.rates.spread);
  }
  cost.spread_seconds = spread * cost.seconds;
  return cost;
}

// Over keys and values of two types: half of the work is that of a cache of the one, half that of the other. Which half takes longer is not
// known, so the range reaches half-way to either.
Cost attention_cost(const Operation& operation, const Processor& processor, double flop, double cache_bytes, double n_query_tokens) {
  if (attends_together(operation.key_type, operation.value_type)) {
    return attention_over(operation, processor.attention, flop, cache_bytes, n_query_tokens);
  }
  const AttentionTable& of_keys = attention_table(processor, operation.key_type);
  const AttentionTable& of_values = attention_table(processor, operation.value_type);
  Cost cost = attention_over(operation, of_keys, 0.5 * flop, 0.5 * cache_bytes, n_query_tokens);
  const Cost values = attention_over(operation, of_values, 0.5 * flop, 0.5 * cache_bytes, n_query_tokens);
  const double difference = std::abs(cost.seconds - values.seconds);
  cost += values;
  cost.spread_seconds += 0.5 * difference;
  return cost;
}

// Null for what is no scan, or none that was measured.
const RateSeries* scan_series(const Operation& operation, const Processor& processor) {
  const RateSeries* series = nullptr;
  switch (operation.recurrence) {
    case Recurrence::none:
      break;
    case Recurrence::mamba:
      series = &processor.mamba;
      break;
    case Recurrence::mamba2:
      series = &processor.mamba2;
      break;
    case Recurrence::delta_net:
      series = &processor.delta_net;
      break;
  }
  return series != nullptr && !series->empty() ? series : nullptr;
}

}  // namespace

Cost operation_cost(const Operation& operation, const Processor& processor, int64_t n_expert, int64_t n_expert_used, double n_query_tokens,
                    bool is_copied) {
  if (operation.is_view || (operation.weight == nullptr && operation.activation_bytes + operation.cache_bytes == 0)) return {};
  const double weight_bytes = weight_bytes_read(operation, n_expert, n_expert_used);
  const double share = decisive_share(operation, processor, n_query_tokens);
  const double cache_bytes = share * static_cast<double>(operation.cache_bytes);
  const double bytes = weight_bytes + static_cast<double>(operation.activation_bytes) + cache_bytes;
  const double flop = share * operation.flop;
  double seconds = std::max(bytes / processor.memory_peak_bytes_per_second, flop / processor.peak_flop_per_second);
  Basis basis = processor.basis;
  double spread = processor.spread;
  const bool is_product = operation.kind == OpKind::mul_mat || operation.kind == OpKind::mul_mat_id;
  if (is_product && operation.weight != nullptr && operation.m > 0) {
    const RateSeries& series = series_for(operation, processor, is_copied);
    double rows = static_cast<double>(operation.m);
    if (operation.kind == OpKind::mul_mat_id) {
      const double share = distinct_expert_share(n_expert, n_expert_used, activation_rows(operation, n_expert_used));
      rows /= std::max(share * static_cast<double>(n_expert), 1.0);  // rows per expert that is used at all
    }
    seconds = std::max(seconds, flop / series.rate(rows));
    basis = series.basis;
    spread = series.spread;
  } else if (const RateSeries* series = scan_series(operation, processor)) {
    seconds = std::max({seconds, bytes / processor.memory_bytes_per_second, flop / series->rate(n_query_tokens)});
    basis = std::max(basis, series->basis);
    spread = std::max(spread, series->spread);
  } else {
    seconds = std::max(seconds, bytes / processor.memory_bytes_per_second);
    if (is_attention(operation) && !processor.attention.empty()) {
      const Cost cost = attention_cost(operation, processor, flop, cache_bytes, n_query_tokens);
      seconds = std::max(seconds, cost.seconds);
      basis = std::max(basis, cost.basis);
      spread = std::max(spread, cost.seconds > 0.0 ? cost.spread_seconds / cost.seconds : 0.0);
    }
  }
  seconds += processor.op_seconds;
  return {seconds, seconds * spread, basis};
}

Cost without_launch(const Cost& cost, const Processor& processor) {
  if (cost.seconds <= processor.op_seconds) return {0.0, 0.0, cost.basis};
  const double seconds = cost.seconds - processor.op_seconds;
  return {seconds, cost.spread_seconds * seconds / cost.seconds, cost.basis};
}

}  // namespace pshard
