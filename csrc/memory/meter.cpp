#include "memory/meter.hpp"

namespace pshard {

Meter::Meter(const Model& model, const ContextParameters& context, int64_t n_tokens, int n_gpu)
    : model_(model), context_(context), n_tokens_(n_tokens), n_gpu_(n_gpu) {}

ContextParameters Meter::resolved(const Placement& placement) {
  ContextParameters context = context_;
  if (!model_.hyperparameters().traits.fuses_attention) context.flash_attn = context.flash_attn_auto = false;
  if (!context.flash_attn || !context.flash_attn_auto || context.type_v.block_elements > 1) return context;
  if (!deciding_) deciding_.emplace(model_, context_, context_.n_seq_max, n_gpu_);
  context.flash_attn = deciding_->attends_in_place(placement);
  return context;
}

MemoryReport Meter::operator()(const Placement& placement, MemoryStage stage) {
  check(placement, model_.layers().size());
  const ContextParameters context = resolved(placement);
  MemoryReport report = resident_memory(model_, placement, context);
  std::optional<ComputeBuffers>& reserved = reserved_[context.flash_attn ? 1 : 0];
  if (!reserved) reserved.emplace(model_, context, n_tokens_, n_gpu_);
  const ComputeBytes compute = stage == MemoryStage::stated ? (*reserved)(placement) : reserved->running(placement);
  for (size_t gpu = 0; gpu < report.gpus.size(); ++gpu) report.gpus[gpu].compute_bytes = compute.gpu_bytes[gpu];
  if (!report.gpus.empty()) report.gpus.front().stream_bytes = compute.gpu_stream_bytes;
  report.host.compute_bytes = compute.host_bytes;
  return report;
}

}  // namespace pshard
