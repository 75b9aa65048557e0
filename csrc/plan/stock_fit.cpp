#include "plan/stock_fit.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "memory/meter.hpp"

namespace pshard {

namespace {

constexpr int64_t kContextStep = 256;

int64_t n_streams(const ContextParameters& context) { return context.kv_unified ? 1 : std::max<int64_t>(1, context.n_seq_max); }

// Tokens of the largest micro-batch.
int64_t n_tokens(const Model& model, const ContextParameters& context) {
  const int64_t n_batch = model.hyperparameters().traits.causal ? std::min(context.n_ctx, context.n_batch) : context.n_batch;
  return std::min(n_batch, context.n_ubatch);
}

std::vector<int64_t> free_bytes(const std::vector<FitDevice>& gpus) {
  std::vector<int64_t> bytes;
  for (const FitDevice& gpu : gpus) bytes.push_back(gpu.free_bytes);
  return bytes;
}

// A distribution with its memory. Partial layers begin at GPU `first_partial`; all before it have whole layers only, or a boundary layer.
struct Shape {
  std::vector<GpuLayers> gpus;
  size_t first_partial = 0;
  MemoryReport memory;

  [[nodiscard]] int64_t bytes(size_t gpu) const { return memory.gpus[gpu].total(); }
};

// Layers to go from one distribution towards another that is `distance` layers away, to meet a target `room` bytes from the first, which
// is `span` bytes from the other. A negative guess wraps, as in llama.cpp, so that the step is the largest.
uint32_t step_towards(uint32_t distance, int64_t room, int64_t span) {
  const int64_t guess = span == 0 ? 0 : int64_t{distance} * room / span;
  return std::min(std::max(static_cast<uint32_t>(guess), 1U), distance - 1);
}

class Fit {
 public:
  Fit(const Model& model, const ContextParameters& context, const FitRequest& request)
      : model_(model),
        context_(context),
        request_(request),
        shapes_(model, free_bytes(request.gpus), request.offload_kqv, request.op_offload),
        has_experts_(model.hyperparameters().n_expert > 0) {}

  StockFit run() {
    const bool open_context = context_.n_ctx == 0;
    if (open_context) context_.n_ctx = longest_context();
    keep(request_.given ? *request_.given : shapes_.initial());
    if (!fits()) {
      if (open_context) shorten_context();
      // On one device the shorter context is taken on trust: nothing is measured again.
      if (result_.outcome != FitOutcome::shorter_context || request_.gpus.size() > 1) distribute();
    }
    result_.n_ctx = context_.n_ctx;
    add_draft(result_.memory, -1);
    return std::move(result_);
  }

 private:
  [[nodiscard]] size_t n_gpu() const { return request_.gpus.size(); }
  // The output counts as a layer, prediction layers do not.
  [[nodiscard]] uint32_t n_all() const { return static_cast<uint32_t>(model_.layers().size()) + 1; }
  [[nodiscard]] int64_t target(size_t gpu) const { return request_.gpus[gpu].target_bytes(); }

  [[nodiscard]] int64_t longest_context() const {
    const int64_t n_ctx_train = model_.hyperparameters().n_ctx_train;
    if (n_ctx_train < 1) throw std::invalid_argument("n_ctx is 0, the training length, which the file does not tell; give a context");
    return std::min(n_ctx_train * n_streams(context_), kFullContext);
  }

  MemoryReport measure(const Placement& placement) {
    ++result_.n_measured;
    if (!meter_) meter_.emplace(model_, context_, n_tokens(model_, context_), static_cast<int>(n_gpu()));
    MemoryReport report = (*meter_)(placement);
    add_draft(report, 1);
    return report;
  }

  void add_draft(MemoryReport& report, int64_t sign) {
    if (!request_.draft) return;
    const FitDraft& draft = *request_.draft;
    if (!draft_memory_) {
      ContextParameters context = draft.context;
      context.n_ctx = context_.n_ctx;
      draft_memory_ = Meter(*draft.model, context, n_tokens(*draft.model, context), draft.placement.n_gpu)(draft.placement);
    }
    const auto add = [&](DeviceBytes& to, const DeviceBytes& bytes) {
      to.weights_bytes += sign * bytes.weights_bytes;
      to.cache_bytes += sign * bytes.cache_bytes;
      to.compute_bytes += sign * bytes.compute_bytes;
    };
    for (size_t gpu = 0; gpu < draft.gpus.size(); ++gpu) {
      if (draft.gpus[gpu] < report.gpus.size()) add(report.gpus[draft.gpus[gpu]], draft_memory_->gpus[gpu]);
    }
    add(report.host, draft_memory_->host);
  }

  void set_context(int64_t n_ctx) {
    context_.n_ctx = n_ctx;
    meter_.reset();
    draft_memory_.reset();
  }

  void keep(Placement placement) {
    result_.memory = measure(placement);
    result_.placement = std::move(placement);
  }

  // Bytes of all devices that --fit looks at, and of those that it may use.
  [[nodiscard]] int64_t used_bytes(const MemoryReport& report) const {
    if (n_gpu() == 0) return report.host.total();
    int64_t bytes = 0;
    for (const DeviceBytes& gpu : report.gpus) bytes += gpu.total();
    return bytes;
  }
  [[nodiscard]] int64_t target_bytes() const {
    if (n_gpu() == 0) return request_.host ? request_.host->target_bytes() : INT64_MAX;
    int64_t bytes = 0;
    for (const FitDevice& gpu : request_.gpus) bytes += gpu.target_bytes();
    return bytes;
  }

  [[nodiscard]] bool fits() const {
    if (n_gpu() == 0) return used_bytes(result_.memory) <= target_bytes();
    for (size_t gpu = 0; gpu < n_gpu(); ++gpu) {
      if (result_.memory.gpus[gpu].total() > target(gpu)) return false;
    }
    return true;
  }

  // Where the devices together have too little: a context between the shortest and the longest, as if bytes were linear in it.
  void shorten_context() {
    const int64_t n_longest = context_.n_ctx;
    const int64_t n_shortest = std::min(request_.n_ctx_min * n_streams(context_), kFullContext);
    const int64_t longest_bytes = used_bytes(result_.memory);
    if (longest_bytes <= target_bytes() || n_longest <= n_shortest) return;
    int64_t target = target_bytes();
    if (n_gpu() > 1) {
      // What llama.cpp expects to lose at the borders between devices: half a layer each, or of expert models a sixth.
      int64_t weights_bytes = 0;
      for (const DeviceBytes& gpu : result_.memory.gpus) weights_bytes += gpu.weights_bytes;
      const auto n_layer = static_cast<int64_t>(model_.layers().size());
      const int64_t n_on_gpu = request_.n_gpu_layers < 0 ? n_layer : std::clamp<int64_t>(request_.n_gpu_layers, 1, n_layer);
      const int64_t layer_bytes = weights_bytes / n_on_gpu;
      target -= static_cast<int64_t>(n_gpu() + 1) * layer_bytes / (has_experts_ ? 6 : 2);
    }
    set_context(n_shortest);
    keep(std::move(result_.placement));
    const int64_t shortest_bytes = used_bytes(result_.memory);
    if (target <= shortest_bytes) return;
    const int64_t n_ctx = n_shortest + (n_longest - n_shortest) * (target - shortest_bytes) / (longest_bytes - shortest_bytes);
    set_context(std::max(n_ctx - n_ctx % (kContextStep * n_streams(context_)), n_shortest));
    keep(std::move(result_.placement));
    result_.outcome = FitOutcome::shorter_context;
  }

  void distribute() {
    if (n_gpu() == 0 || request_.given) {
      result_.outcome = FitOutcome::refused;
      return;
    }
    const bool experts_return = has_experts_ && used_bytes(measure(shapes_.without_experts())) < target_bytes();
    Shape shape = fill_from_the_back();
    if (experts_return) return_experts(shape);
    result_.outcome = FitOutcome::distributed;
    result_.placement = shapes_.distributed(shape.gpus);
    result_.memory = std::move(shape.memory);
    for (GpuLayers& gpu : shape.gpus) {
      if (gpu.n_partial > gpu.n_layer) gpu.n_partial = 0;  // wrapped
    }
    result_.layers = std::move(shape.gpus);
  }

  Shape measured(Shape shape) {
    shape.memory = measure(shapes_.distributed(shape.gpus));
    FitProbe& probe = result_.probes.emplace_back(FitProbe{.layers = shape.gpus, .bytes = {}});
    for (const DeviceBytes& gpu : shape.memory.gpus) probe.bytes.push_back(gpu.total());
    return shape;
  }

  // False position: from `low`, which GPU `gpu` has room for, towards `high`, which it has not, until they are one layer apart. `moved`
  // goes so many layers from a shape; `count` counts them.
  template <class Moved, class Count>
  Shape last_that_fits(size_t gpu, Shape low, Shape high, Moved moved, Count count) {
    const auto apart = [&] { return count(high.gpus[gpu]) - count(low.gpus[gpu]); };
    for (uint32_t distance = apart(), last = n_all() + 1; distance > 1; last = std::exchange(distance, apart())) {
      if (distance >= last) {  // nothing is left to move, or a count has wrapped
        result_.ends = false;
        break;
      }
      const uint32_t step = step_towards(distance, target(gpu) - low.bytes(gpu), high.bytes(gpu) - low.bytes(gpu));
      Shape tried = measured(moved(low, step));
      (tried.bytes(gpu) <= target(gpu) ? low : high) = std::move(tried);
    }
    return low;
  }

  // Layers for the last GPU, then for the one before it, as many as each has room for; of expert models without their experts.
  Shape fill_from_the_back() {
    Shape shape = measured({.gpus = std::vector<GpuLayers>(n_gpu()), .first_partial = n_gpu(), .memory = {}});
    uint32_t n_left = n_all();
    for (size_t gpu = n_gpu(); gpu-- > 0;) {
      const bool is_last = gpu + 1 == n_gpu();
      if (n_left == 0) continue;
      Shape all = shape;
      all.gpus[gpu].n_layer = n_left;
      if (has_experts_) all.gpus[gpu].n_partial = is_last ? n_left - 1 : n_left;  // the output has no experts
      all = measured(std::move(all));
      if (all.bytes(gpu) <= target(gpu)) {
        shape = std::move(all);
      } else {
        const auto add_layers = [&](Shape more, uint32_t n) {
          GpuLayers& layers = more.gpus[gpu];
          layers.n_layer += n;
          // Where the output alone fitted first, the next ones count it again, and one layer more is whole.
          if (has_experts_) layers.n_partial += is_last && layers.n_partial == 0 ? n - 1 : n;
          return more;
        };
        shape = last_that_fits(gpu, std::move(shape), std::move(all), add_layers, [](const GpuLayers& layers) { return layers.n_layer; });
      }
      n_left -= shape.gpus[gpu].n_layer;
    }
    return shape;
  }

  // Makes partial layers whole on the first GPU, then on the next, as many as each has room for, and then a part of one more.
  void return_experts(Shape& shape) {
    shape.first_partial = n_gpu();
    while (shape.first_partial > 0 && shape.gpus[shape.first_partial - 1].n_layer > 0) --shape.first_partial;
    for (size_t gpu = 0; gpu <= shape.first_partial && shape.first_partial < n_gpu(); ++gpu) {
      Shape all = measured(with_all_whole(shape, gpu));
      if (all.bytes(gpu) <= target(gpu)) {
        shape = std::move(all);
      } else {
        const auto make_whole = [&](Shape more, uint32_t n) { return with_whole(std::move(more), gpu, n); };
        shape = last_that_fits(gpu, std::move(shape), std::move(all), make_whole, [](const GpuLayers& layers) { return layers.n_whole(); });
      }
      add_boundary_layer(shape, gpu);
    }
  }

  // All layers behind those of `gpu` given to it, whole, but for the output.
  [[nodiscard]] Shape with_all_whole(Shape shape, size_t gpu) const {
    for (size_t other = shape.first_partial; other < n_gpu(); ++other) {
      const uint32_t n = shape.gpus[other].n_layer - (other + 1 == n_gpu() ? 1 : 0);
      shape.gpus[gpu].n_layer += n;
      shape.gpus[other].n_layer -= n;
      shape.gpus[other].n_partial = 0;
    }
    shape.first_partial = n_gpu() - 1;
    return shape;
  }

  // The next `n` partial layers given to `gpu`, whole.
  [[nodiscard]] Shape with_whole(Shape shape, size_t gpu, uint32_t n) const {
    for (; shape.first_partial < n_gpu(); ++shape.first_partial) {
      GpuLayers& other = shape.gpus[shape.first_partial];
      const uint32_t n_here = std::min(n, other.n_partial);
      other.n_layer -= n_here;
      other.n_partial -= n_here;
      shape.gpus[gpu].n_layer += n_here;
      n -= n_here;
      if (other.n_partial > 0) break;
    }
    return shape;
  }

  // The next partial layer given to `gpu` with the largest part of its experts that fits there, the rest on the GPU behind it.
  void add_boundary_layer(Shape& shape, size_t gpu) {
    if (shape.first_partial >= n_gpu()) return;
    if (shape.gpus[shape.first_partial].n_layer <= (gpu + 1 < n_gpu() ? 0U : 1U)) return;
    Shape more = shape;
    GpuLayers& other = more.gpus[more.first_partial];
    --other.n_layer;
    --other.n_partial;
    ++more.gpus[gpu].n_layer;
    ++more.gpus[gpu].n_partial;
    if (other.n_partial == 0) ++more.first_partial;
    const auto part_fits = [&](Overflow kept) {
      more.gpus[gpu].overflow = kept;
      more = measured(std::move(more));
      const bool next_fits = gpu + 1 == n_gpu() || more.bytes(gpu + 1) < target(gpu + 1);
      if (more.bytes(gpu) >= target(gpu) || !next_fits) return false;
      shape = more;
      return true;
    };
    if (part_fits(Overflow::up)) {
      part_fits(Overflow::gate);
    } else {
      part_fits(Overflow::attn);
    }
  }

  const Model& model_;
  ContextParameters context_;
  const FitRequest& request_;
  FitShapes shapes_;
  bool has_experts_;
  std::optional<Meter> meter_;  // of this context, like
  std::optional<MemoryReport> draft_memory_;
  StockFit result_;
};

}  // namespace

StockFit stock_fit(const Model& model, const ContextParameters& context, const FitRequest& request) {
  if (request.given && static_cast<size_t>(request.given->n_gpu) != request.gpus.size()) {
    throw std::invalid_argument("the placement given has " + std::to_string(request.given->n_gpu) + " GPUs, the fit " +
                                std::to_string(request.gpus.size()) + "; name the same in both");
  }
  return Fit(model, context, request).run();
}

}  // namespace pshard
