#include <pybind11/native_enum.h>

#include <optional>
#include <stdexcept>
#include <utility>

#include "bindings/bindings.hpp"
#include "plan/plan.hpp"

using namespace py::literals;

namespace {

using pshard::Budget;
using pshard::Candidate;
using pshard::ComputeBuffers;
using pshard::ContextParameters;
using pshard::FitDevice;
using pshard::FitDraft;
using pshard::FitOutcome;
using pshard::FitProbe;
using pshard::Found;
using pshard::GpuLayers;
using pshard::Knobs;
using pshard::Machine;
using pshard::Model;
using pshard::Overflow;
using pshard::PassCost;
using pshard::Placement;
using pshard::RuntimePlan;
using pshard::StockFit;
using pshard::StockPlan;
using pshard::Strategy;
using pshard::Term;
using pshard::TierPlan;
using pshard::Workload;
using pshard::WorkloadTime;

// Strategies by their names, which are the stable key.
Strategy strategy_named(const std::string& name) {
  if (name == to_string(Strategy::stock)) return Strategy::stock;
  const auto strategy = pshard::strategy_from_name(name);
  if (!strategy) throw std::invalid_argument("unknown strategy '" + name + "'");
  return *strategy;
}

Overflow overflow_named(const std::string& name) {
  for (const Overflow value : {Overflow::none, Overflow::attn, Overflow::up, Overflow::gate}) {
    if (to_string(value) == name) return value;
  }
  throw std::invalid_argument("unknown overflow '" + name + "'; one of NONE, ATTN, UP and GATE");
}

void bind_inputs(py::module_& m) {
  py::class_<Workload>(m, "Workload")
      .def(py::init([](int64_t prompt_tokens, int64_t generate_tokens) {
             if (prompt_tokens < 0 || generate_tokens < 0) {
               throw std::invalid_argument("a workload of " + std::to_string(prompt_tokens) + " prompt and " +
                                           std::to_string(generate_tokens) + " generated tokens; neither may be negative");
             }
             return Workload{prompt_tokens, generate_tokens};
           }),
           "prompt_tokens"_a, "generate_tokens"_a)
      .def_readonly("prompt_tokens", &Workload::prompt_tokens)
      .def_readonly("generate_tokens", &Workload::generate_tokens);
  py::class_<Budget>(m, "Budget")
      .def(py::init([](int64_t vram_bytes, int64_t ram_bytes) {
             return Budget{vram_bytes, ram_bytes};
           }),
           "vram_bytes"_a, "ram_bytes"_a)
      .def_readwrite("vram_bytes", &Budget::vram_bytes)
      .def_readwrite("ram_bytes", &Budget::ram_bytes);
  py::class_<Knobs>(m, "Knobs")
      .def(py::init([](int32_t n_pinned, int32_t n_attn_pinned, const std::string& overflow, bool output_on_gpu, bool pin_from_back) {
             return Knobs{n_pinned, n_attn_pinned, overflow_named(overflow), output_on_gpu, pin_from_back};
           }),
           "n_pinned"_a = 0, "n_attn_pinned"_a = 0, "overflow"_a = "NONE", "output_on_gpu"_a = false, "pin_from_back"_a = false)
      .def_readonly("n_pinned", &Knobs::n_pinned)
      .def_readonly("n_attn_pinned", &Knobs::n_attn_pinned)
      .def_property_readonly("overflow", [](const Knobs& knobs) { return std::string(to_string(knobs.overflow)); })
      .def_readonly("output_on_gpu", &Knobs::output_on_gpu)
      .def_readonly("pin_from_back", &Knobs::pin_from_back)
      .def(
          "__eq__", [](const Knobs& a, const Knobs& b) { return a == b; }, "other"_a, py::is_operator())
      .def("__hash__", [](const Knobs& k) {
        return py::hash(py::make_tuple(k.n_pinned, k.n_attn_pinned, static_cast<int>(k.overflow), k.output_on_gpu, k.pin_from_back));
      });
}

void bind_results(py::module_& m) {
  py::class_<Found>(m, "Found")
      .def_readonly("viable", &Found::viable)
      .def_readonly("knobs", &Found::knobs)
      .def_readonly("seconds", &Found::seconds)
      .def_readonly("memory", &Found::memory)
      .def_readonly("missing_vram_bytes", &Found::missing_vram_bytes)
      .def_readonly("missing_ram_bytes", &Found::missing_ram_bytes);
  py::class_<FitDevice>(m, "FitDevice")
      .def(py::init([](int64_t free_bytes, int64_t margin_bytes) {
             if (free_bytes >= 0 && margin_bytes >= 0) return FitDevice{.free_bytes = free_bytes, .margin_bytes = margin_bytes};
             throw std::invalid_argument("a device with " + std::to_string(free_bytes) + " bytes free and a margin of " +
                                         std::to_string(margin_bytes) + "; neither may be negative");
           }),
           "free_bytes"_a, "margin_bytes"_a = 0)
      .def_readonly("free_bytes", &FitDevice::free_bytes)
      .def_readonly("margin_bytes", &FitDevice::margin_bytes)
      .def_property_readonly("target_bytes", &FitDevice::target_bytes);
  py::class_<FitDraft>(m, "FitDraft")
      .def(py::init([](const Model& model, const ContextParameters& context, Placement placement, std::vector<size_t> gpus) {
             check(placement, model.layers().size());
             if (gpus.size() == static_cast<size_t>(placement.n_gpu))
               return FitDraft{&model, context, std::move(placement), std::move(gpus)};
             throw std::invalid_argument("the draft has " + std::to_string(placement.n_gpu) + " GPUs, of which " +
                                         std::to_string(gpus.size()) + " are named; name each of them");
           }),
           "model"_a, "context"_a, "placement"_a, "gpus"_a, py::keep_alive<1, 2>());
  py::class_<GpuLayers>(m, "GpuLayers")
      .def_readonly("n_layer", &GpuLayers::n_layer)
      .def_readonly("n_partial", &GpuLayers::n_partial)
      .def_property_readonly("overflow", [](const GpuLayers& layers) { return std::string(to_string(layers.overflow)); });
  py::class_<FitProbe>(m, "FitProbe").def_readonly("layers", &FitProbe::layers).def_readonly("bytes", &FitProbe::bytes);
  py::native_enum<FitOutcome>(m, "FitOutcome", "enum.Enum")
      .value("unchanged", FitOutcome::unchanged)
      .value("shorter_context", FitOutcome::shorter_context)
      .value("distributed", FitOutcome::distributed)
      .value("refused", FitOutcome::refused)
      .finalize();
  py::class_<StockFit>(m, "StockFit")
      .def_readonly("outcome", &StockFit::outcome)
      .def_readonly("n_ctx", &StockFit::n_ctx)
      .def_readonly("layers", &StockFit::layers)
      .def_readonly("placement", &StockFit::placement)
      .def_readonly("memory", &StockFit::memory)
      .def_readonly("ends", &StockFit::ends)
      .def_readonly("probes", &StockFit::probes)
      .def_readonly("n_measured", &StockFit::n_measured);
  py::class_<Candidate>(m, "Candidate")
      .def_readonly("strategy", &Candidate::strategy)
      .def_readonly("micro_batch", &Candidate::micro_batch)
      .def_readonly("viable", &Candidate::viable)
      .def_readonly("knobs", &Candidate::knobs)
      .def_readonly("time", &Candidate::time)
      .def_readonly("memory", &Candidate::memory)
      .def_readonly("placement", &Candidate::placement)
      .def_readonly("missing_vram_bytes", &Candidate::missing_vram_bytes)
      .def_readonly("missing_ram_bytes", &Candidate::missing_ram_bytes);
  py::class_<TierPlan>(m, "TierPlan")
      .def_readonly("batch_size", &TierPlan::batch_size)
      .def_readonly("kv_fill_tokens", &TierPlan::kv_fill_tokens)
      .def_readonly("candidates", &TierPlan::candidates)
      .def_readonly("best", &TierPlan::best)
      .def_readonly("n_priced", &TierPlan::n_priced)
      .def_readonly("n_replays", &TierPlan::n_replays);
  py::class_<WorkloadTime>(m, "WorkloadTime")
      .def_readonly("prompt_seconds", &WorkloadTime::prompt_seconds)
      .def_readonly("generate_seconds", &WorkloadTime::generate_seconds)
      .def_readonly("spread_seconds", &WorkloadTime::spread_seconds)
      .def_readonly("basis", &WorkloadTime::basis)
      .def_readonly("decode", &WorkloadTime::decode)
      .def_property_readonly("total_seconds", &WorkloadTime::total);
  py::class_<StockPlan>(m, "StockPlan")
      .def_readonly("viable", &StockPlan::viable)
      .def_readonly("n_ubatch", &StockPlan::n_ubatch)
      .def_readonly("knobs", &StockPlan::knobs)
      .def_readonly("placement", &StockPlan::placement)
      .def_readonly("memory", &StockPlan::memory)
      .def_readonly("time", &StockPlan::time)
      .def_readonly("missing_vram_bytes", &StockPlan::missing_vram_bytes)
      .def_readonly("missing_ram_bytes", &StockPlan::missing_ram_bytes);
  py::class_<RuntimePlan>(m, "RuntimePlan")
      .def_readonly("viable", &RuntimePlan::viable)
      .def_readonly("prompt_tier", &RuntimePlan::prompt_tier)
      .def_readonly("decode_tier", &RuntimePlan::decode_tier)
      .def_readonly("prompt_seconds", &RuntimePlan::prompt_seconds)
      .def_readonly("switch_seconds", &RuntimePlan::switch_seconds)
      .def_readonly("switch_bytes", &RuntimePlan::switch_bytes)
      .def_readonly("generate_seconds", &RuntimePlan::generate_seconds)
      .def_property_readonly("total_seconds", &RuntimePlan::total);
}

Found search_one(const std::string& strategy, const Model& model, const std::optional<Machine>& machine, const ContextParameters& context,
                 const Workload& workload, const Budget& budget, int64_t batch_size, bool exhaustively) {
  std::optional<PassCost> cost;
  if (machine) cost.emplace(model, *machine, tier_pass(model, context, workload, batch_size));
  ComputeBuffers compute(model, context, batch_size);
  const Term term{cost ? &*cost : nullptr, 1.0};
  const std::span terms(&term, cost ? 1 : 0);
  return exhaustively ? pshard::search_exhaustively(strategy_named(strategy), model, context, compute, terms, budget)
                      : pshard::search(strategy_named(strategy), model, context, compute, terms, budget);
}

}  // namespace

void bind_plan(py::module_& m) {
  bind_inputs(m);
  bind_results(m);
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("strategy_names", [] {
    std::vector<std::string> names;
    for (const Strategy strategy : pshard::kPullRequestStrategies) names.emplace_back(to_string(strategy));
    return names;
  });
  m.def(
      "offloads_head", [](const std::string& strategy, const Model& model) { return offloads_head(strategy_named(strategy), model); },
      "strategy"_a, "model"_a);
  m.def(
      "make_placement",
      [](const std::string& strategy, const Knobs& knobs, const Model& model) {
        return pshard::make_placement(strategy_named(strategy), knobs, model);
      },
      "strategy"_a, "knobs"_a, "model"_a);
  m.def(
      "all_knobs", [](const std::string& strategy, const Model& model) { return pshard::all_knobs(strategy_named(strategy), model); },
      "strategy"_a, "model"_a);
  m.def("tier_ladder", &pshard::tier_ladder, "context"_a, "n_draft"_a = 0, "tier_max"_a = 0);
  m.def("tier_pass", &pshard::tier_pass, "model"_a, "context"_a, "workload"_a, "n_tokens"_a);
  m.def(
      "stock_fit",
      [](const Model& model, const ContextParameters& context, std::vector<FitDevice> gpus, std::optional<FitDevice> host,
         int64_t n_ctx_min, bool offload_kqv, bool op_offload, std::optional<Placement> given, int32_t n_gpu_layers,
         std::optional<FitDraft> draft) {
        if (given) check(*given, model.layers().size());
        return pshard::stock_fit(model, context,
                                 {.gpus = std::move(gpus),
                                  .host = host,
                                  .n_ctx_min = n_ctx_min,
                                  .offload_kqv = offload_kqv,
                                  .op_offload = op_offload,
                                  .given = std::move(given),
                                  .n_gpu_layers = n_gpu_layers,
                                  .draft = std::move(draft)});
      },
      "model"_a, "context"_a, "gpus"_a, py::kw_only(), "host"_a = py::none(), "n_ctx_min"_a = pshard::FitRequest{}.n_ctx_min,
      "offload_kqv"_a = true, "op_offload"_a = true, "given"_a = py::none(), "n_gpu_layers"_a = -1, "draft"_a = py::none(), no_gil);
  m.def("search", &search_one, "strategy"_a, "model"_a, "machine"_a, "context"_a, "workload"_a, "budget"_a, "batch_size"_a,
        "exhaustively"_a = false, no_gil);
  m.def(
      "plan_tier",
      [](const Model& model, const std::optional<Machine>& machine, const ContextParameters& context, const Workload& workload,
         const Budget& budget, const std::vector<std::string>& strategies, int64_t batch_size, const StockFit& fit,
         const ContextParameters& fit_context, bool allow_stock_fit) {
        std::vector<Strategy> parsed;
        check(fit.placement, model.layers().size());
        for (const std::string& name : strategies) parsed.push_back(strategy_named(name));
        return pshard::plan_tier(model, machine ? &*machine : nullptr, context, workload, budget, parsed, batch_size, fit, fit_context,
                                 allow_stock_fit);
      },
      "model"_a, "machine"_a, "context"_a, "workload"_a, "budget"_a, "strategies"_a, "batch_size"_a, "fit"_a, "fit_context"_a,
      "allow_stock_fit"_a = true, no_gil);
  m.def(
      "plan_stock",
      [](const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload, const Budget& budget,
         const std::vector<int64_t>& micro_batches) {
        for (const int64_t n_ubatch : micro_batches) {
          ContextParameters with_micro_batch = context;
          with_micro_batch.n_ubatch = n_ubatch;
          check(with_micro_batch);
        }
        return pshard::plan_stock(model, machine, context, workload, budget, micro_batches);
      },
      "model"_a, "machine"_a, "context"_a, "workload"_a, "budget"_a, "micro_batches"_a, no_gil);
  m.def(
      "plan_runtime",
      [](const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
         const std::vector<TierPlan>& tiers) {
        for (const TierPlan& tier : tiers) {
          for (const Candidate& candidate : tier.candidates) {
            if (candidate.viable) check(candidate.placement, model.layers().size());
          }
        }
        return pshard::plan_runtime(model, machine, context, workload, tiers);
      },
      "model"_a, "machine"_a, "context"_a, "workload"_a, "tiers"_a, no_gil);
  m.def(
      "price_workload",
      [](const Model& model, const Machine& machine, const ContextParameters& context, const Workload& workload,
         const Placement& placement) {
        check(context);
        check(placement, model.layers().size());
        return pshard::price_workload(model, machine, context, workload, placement);
      },
      "model"_a, "machine"_a, "context"_a, "workload"_a, "placement"_a, no_gil);
}
