#include "plan/stock_fit.hpp"

#include <algorithm>
#include <array>

namespace pshard {
namespace {

// Layers on the GPU, the output layer among them, and how many of them are partial.
struct Shape {
  int32_t n_layer = 0;
  int32_t n_partial = 0;
  Overflow overflow = Overflow::none;
};

// The tensors that llama.cpp's override patterns move: `ffn_(gate|up|down).*` catches routers and shared experts too, the pattern for
// experts only `_exps`.
LayerPlacement partial_layer(Overflow overflow) {
  LayerPlacement placement = LayerPlacement::uniform(Where::pinned);
  const auto move = [&](auto... groups) { ((placement[groups] = Where::cpu), ...); };
  switch (overflow) {
    case Overflow::attn:
      move(Group::ffn_up, Group::experts_up, Group::shared_up);
      [[fallthrough]];
    case Overflow::up:
      move(Group::ffn_gate, Group::experts_gate, Group::shared_gate, Group::router);
      [[fallthrough]];
    case Overflow::gate:
      move(Group::ffn_down, Group::experts_down, Group::shared_down);
      break;
    case Overflow::none:
      move(Group::experts_up, Group::experts_gate, Group::experts_down);
      break;
  }
  return placement;
}

class Fit {
 public:
  Fit(const Model& model, const ContextParameters& context)
      : model_(model), context_(context), n_layer_(static_cast<int32_t>(model.layers().size())) {}

  [[nodiscard]] Placement placement_of(const Shape& shape) const {
    const int32_t n_all = n_layer_ + model_.hyperparameters().n_layer_nextn;
    // llama.cpp places by all layers of the file; --fit counts its patterns by the computed ones.
    const int32_t first_on_gpu = shape.n_layer == 0 ? n_all : std::max(n_all + 1 - shape.n_layer, 0);
    const int32_t first_partial = n_layer_ + 1 - shape.n_layer + (shape.n_layer - shape.n_partial);
    Placement placement;
    placement.op_offload = true;
    placement.head = shape.n_layer > 0 ? Where::pinned : Where::cpu;
    placement.patterns = {LayerPlacement::uniform(Where::cpu), LayerPlacement::uniform(Where::pinned), partial_layer(Overflow::none),
                          partial_layer(shape.overflow)};
    for (int32_t layer = 0; layer < n_layer_; ++layer) {
      uint8_t pattern = layer < first_on_gpu ? 0 : 1;
      if (pattern == 1 && shape.n_partial > 0 && layer >= first_partial) pattern = layer == first_partial ? 3 : 2;
      placement.layer_pattern.push_back(pattern);
    }
    return placement;
  }

  [[nodiscard]] int64_t bytes(const Shape& shape) {
    ++n_probes_;
    return memory(model_, placement_of(shape), context_, std::min(context_.n_batch, context_.n_ubatch)).gpu.total();
  }

  // Largest number of steps in [0, delta) beyond `low` that stays within the target: false position between `low`, which fits, and `high`,
  // which does not.
  template <class ShapeOf>
  int32_t steps_that_fit(int32_t delta, int64_t low_bytes, int64_t high_bytes, int64_t target, ShapeOf shape_of) {
    int32_t steps = 0;
    while (delta > 1) {
      const int64_t guess = high_bytes > low_bytes ? delta * (target - low_bytes) / (high_bytes - low_bytes) : 1;
      const auto step = static_cast<int32_t>(std::clamp<int64_t>(guess, 1, delta - 1));
      const int64_t step_bytes = bytes(shape_of(steps + step));
      if (step_bytes <= target) {
        steps += step;
        delta -= step;
        low_bytes = step_bytes;
      } else {
        delta = step;
        high_bytes = step_bytes;
      }
    }
    return steps;
  }

  Shape fit(int64_t target) {
    const bool has_experts = model_.hyperparameters().n_expert > 0;
    const auto with_layers = [&](int32_t n) { return Shape{n, has_experts && n > 0 ? n - 1 : 0, Overflow::none}; };
    Shape shape = with_layers(n_layer_ + 1);
    const int64_t all_bytes = bytes(shape);
    if (all_bytes > target) {
      const int64_t none_bytes = bytes(with_layers(0));
      return with_layers(steps_that_fit(n_layer_ + 1, none_bytes, all_bytes, target, with_layers));
    }
    // llama.cpp asks once more with the experts of every layer on the host, and stops there unless something is left.
    if (!has_experts || bytes_without_experts() >= target) return shape;

    const auto with_whole = [&](int32_t n) { return Shape{n_layer_ + 1, n_layer_ - n, Overflow::none}; };
    const int64_t whole_bytes = bytes(with_whole(n_layer_));
    int32_t n_whole = n_layer_;
    if (whole_bytes > target) n_whole = steps_that_fit(n_layer_, all_bytes, whole_bytes, target, with_whole);
    shape = with_whole(n_whole);
    if (shape.n_partial == 0) return shape;
    const auto part_fits = [&](Overflow overflow) {
      Shape part = shape;
      part.overflow = overflow;
      if (bytes(part) >= target) return false;
      shape = part;
      return true;
    };
    if (part_fits(Overflow::up)) {
      part_fits(Overflow::gate);
    } else {
      part_fits(Overflow::attn);
    }
    return shape;
  }

  [[nodiscard]] int32_t n_probes() const { return n_probes_; }
  [[nodiscard]] Shape whole() const { return {n_layer_ + 1 + model_.hyperparameters().n_layer_nextn, 0, Overflow::none}; }

 private:
  int64_t bytes_without_experts() {
    Placement placement = placement_of(whole());
    std::fill(placement.layer_pattern.begin(), placement.layer_pattern.end(), uint8_t{2});
    ++n_probes_;
    return memory(model_, placement, context_, std::min(context_.n_batch, context_.n_ubatch)).gpu.total();
  }

  const Model& model_;
  const ContextParameters& context_;
  int32_t n_layer_;
  int32_t n_probes_ = 0;
};

}  // namespace

StockFit stock_fit(const Model& model, const ContextParameters& context, int64_t target_bytes, bool has_gpu) {
  Fit fit(model, context);
  StockFit result;
  Shape shape;
  if (has_gpu) {
    shape = fit.whole();
    result.fits_whole = fit.bytes(shape) <= target_bytes;
    if (!result.fits_whole) shape = fit.fit(target_bytes);
  }
  result.n_gpu_layers = shape.n_layer;
  result.n_partial = shape.n_partial;
  result.overflow = shape.overflow;
  result.placement = fit.placement_of(shape);
  result.placement.op_offload = has_gpu;
  result.memory = memory(model, result.placement, context, std::min(context.n_batch, context.n_ubatch));
  result.n_probes = fit.n_probes();
  return result;
}

}  // namespace pshard
