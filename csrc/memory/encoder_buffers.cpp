#include "memory/encoder_buffers.hpp"

#include "memory/replay.hpp"

namespace pshard {

namespace {

// What is given lies in host memory before the pass, in the order in which it is read.
InputBytes place_inputs(const Block& block, ReplayState& state) {
  InputBytes n_bytes{};
  ReplayState::InputOffsets& offsets = state.inputs_in(Where::cpu);
  for (const Operation& operation : block.operations) {
    for (const int32_t operand : operation.inputs) {
      if (!is_value(operand) || !block.values[static_cast<size_t>(operand)].is_input) continue;
      const Value& value = block.values[static_cast<size_t>(operand)];
      const auto input = static_cast<size_t>(value.input);
      if (n_bytes[input] > 0) continue;
      n_bytes[input] = value.n_bytes;
      offsets[input] = state.arena(Where::cpu).allocate(value.n_bytes);
    }
  }
  return n_bytes;
}

}  // namespace

EncoderBuffers encoder_buffers(const Block& block, bool on_gpu) {
  const Where where = on_gpu ? Where::pinned : Where::cpu;
  const BlockPlacement placement{.layer = LayerPlacement::uniform(where), .embedding = where, .head = where};
  const ScheduledBlock scheduled = schedule_block(block, placement, {}, {}, 0);
  ReplayState state(1);
  for (const int32_t leaf : block.leaves) {
    const auto v = static_cast<size_t>(leaf);
    if (!block.values[v].is_room) continue;
    state.rooms.push_back(state.arena(scheduled.homes[v]).allocate(block.values[v].n_bytes));
  }
  const InputBytes input_bytes = place_inputs(block, state);
  ReplayOutlook outlook;
  for (const Where place : {Where::cpu, Where::pinned}) outlook.last_reads[place] = ~InputBits{0};  // no block comes after this one
  const ReplayPeaks peaks = replay(scheduled, outlook, input_bytes, state);
  EncoderBuffers buffers{.gpu_bytes = peaks[1].bytes, .host_bytes = peaks[0].bytes};
  buffers.output_bytes = block.values[static_cast<size_t>(block.residual_out)].n_bytes;
  for (const Operation& operation : block.operations) {
    if (operation.kind == OpKind::attention && operation.host_only) buffers.attends_on_gpu = false;
  }
  return buffers;
}

}  // namespace pshard
