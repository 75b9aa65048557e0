"""The document of a plan: one dict of plain values, which ``--json`` prints and the tables are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.launch import LLAMA_CPP_VERSION, LOAD_MODE, common_arguments, stock_arguments

if TYPE_CHECKING:
    from pshard import _core
    from pshard.planner import Plan

SCHEMA_VERSION = 1

Document = dict[str, object]

# A difference this small is a tie: it is within the noise of repeated runs.
TIE = 0.01


def describe(plan: Plan) -> Document:
    """Return the document of a plan; docs/plan.md describes it field by field."""
    settings = plan.settings
    best = _stock_choice(plan)
    whole = plan.whole_vram_bytes
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": plan.model.name,
            "architecture": plan.model.architecture,
            "path": None if plan.model.header.path is None else str(plan.model.header.path),
            "file_bytes": plan.model.file_bytes,
            "n_layer": plan.model.n_layer,
            "n_ctx_train": plan.model.hyperparameters.n_ctx_train,
        },
        "machine": {
            "name": plan.machine.name,
            "vram_bytes": plan.machine.vram_bytes,
            "ram_bytes": plan.machine.ram_bytes,
            "n_threads": settings.n_threads,
            "notes": list(plan.machine.notes_for(settings.n_threads)),
        },
        "workload": {
            "n_ctx": settings.n_ctx,
            "n_batch": settings.n_batch,
            "n_ubatch": settings.n_ubatch,
            "n_seq_max": settings.n_seq_max,
            "flash_attn": settings.flash_attn,
            "type_k": settings.type_k,
            "type_v": settings.type_v,
            "prompt_tokens": settings.prompt_tokens,
            "generate_tokens": settings.generate_tokens,
            "n_draft": settings.n_draft,
            "strategy": settings.strategy,
        },
        "budget_bytes": settings.budget_bytes,
        "pshard_disabled": whole is not None,
        "baseline_vram_bytes": whole,
        "stock_fit": {
            "flags": stock_arguments(plan.model, plan.fit.placement),
            "fits_whole": plan.fit.fits_whole,
            "n_ubatch": settings.n_ubatch,
            "vram_bytes": plan.fit.memory.gpu.total(),
            "host_bytes": plan.fit.memory.host.total(),
            "prompt_seconds": plan.fit_time.prompt_seconds,
            "generate_seconds": plan.fit_time.generate_seconds,
        },
        "tiers": [_tier(tier) for tier in plan.tiers],
        "llama_cpp": best,
        "pshard_runtime": _runtime(plan),
        "registry_path": None,
        "warnings": list(plan.warnings),
    }


def _tier(tier: _core.TierPlan) -> Document:
    best = tier.candidates[tier.best] if tier.best >= 0 else None
    fastest = None if best is None else best.time.seconds
    candidates = [_candidate(tier, candidate, fastest) for candidate in tier.candidates]
    if best is not None:
        chosen = {key: value for key, value in candidates[tier.best].items() if key != "loss"}
    else:
        nearest = min(tier.candidates, key=lambda c: c.missing_vram_bytes + c.missing_ram_bytes)
        chosen = {key: value for key, value in _candidate(tier, nearest, None).items() if key != "loss"} | {"strategy": None}
    return chosen | {"n_placements_priced": tier.n_priced, "candidates": candidates}


def _candidate(tier: _core.TierPlan, candidate: _core.Candidate, fastest: float | None) -> Document:
    """One strategy at one tier; where it does not fit, every figure is null and the missing bytes stand."""
    viable, time, memory, knobs = candidate.viable, candidate.time, candidate.memory, candidate.knobs
    figures: Document = {
        "n_pinned": knobs.n_pinned,
        "n_attn_pinned": knobs.n_attn_pinned,
        "overflow": knobs.overflow,
        "output_on_gpu": knobs.output_on_gpu,
        "pin_from_back": knobs.pin_from_back,
        "n_ubatch": candidate.micro_batch,
        "seconds": time.seconds,
        "seconds_low": max(time.seconds - time.spread_seconds, 0.0),
        "seconds_high": time.seconds + time.spread_seconds,
        "basis": time.basis.name,
        "tokens_per_second": tier.batch_size / time.seconds,
        "vram_bytes": memory.gpu.total(),
        "weights_bytes": memory.gpu.weights_bytes,
        "kv_bytes": memory.gpu.cache_bytes,
        "compute_bytes": memory.gpu.compute_bytes,
        "stream_bytes": memory.gpu.stream_bytes,
        "host_bytes": memory.host.total(),
        "bottleneck": time.bottleneck.name,
        "busy_seconds": _by_lane(time.busy_seconds),
        "critical_seconds": _by_lane(time.critical_seconds),
        "splits": {
            "count": time.n_splits,
            "input_bytes": round(time.weights_up_bytes),
            "activation_bytes": round(time.activation_bytes),
            "write_back_bytes": round(time.write_back_bytes),
        },
        "loss": None if fastest is None else time.seconds / fastest - 1.0,
    }
    return {
        "batch_size": tier.batch_size,
        "viable": viable,
        "strategy": candidate.strategy,
        **(figures if viable else dict.fromkeys(figures)),
        "kv_fill_tokens": tier.kv_fill_tokens,
        "missing_bytes": None if viable else candidate.missing_vram_bytes + candidate.missing_ram_bytes,
    }


def _by_lane(seconds: list[float]) -> dict[str, float]:
    from pshard import _core

    return {_core.Lane(index).name: value for index, value in enumerate(seconds)}


def model_file(plan: Plan) -> str:
    """Path of the model, or the usual name of a published file where the model came from the catalogue."""
    path = plan.model.header.path
    return str(path) if path is not None else plan.model.name.replace(":", "-") + ".gguf"


def _launch(plan: Plan, placement: _core.Placement, n_ubatch: int) -> list[str]:
    settings = plan.settings
    arguments = ["llama-server", *common_arguments(
        file=model_file(plan),
        n_ctx=settings.n_ctx,
        n_seq_max=settings.n_seq_max,
        flash_attn=settings.flash_attn,
        type_k=settings.type_k,
        type_v=settings.type_v,
        n_threads=settings.n_threads,
    )]  # fmt: skip
    arguments += ["-b", str(max(settings.n_batch, n_ubatch)), "-ub", str(n_ubatch)]
    return [*arguments, "--fit", "off", *stock_arguments(plan.model, placement), "--load-mode", LOAD_MODE]


def _stock_choice(plan: Plan) -> Document | None:
    """What stock llama.cpp should be launched with: our placement, unless ``--fit``'s own is as good."""
    fit_fits = plan.fit.memory.gpu.total() <= plan.settings.budget_bytes and (
        plan.fit.memory.host.total() <= plan.machine.ram_bytes
    )
    if not plan.stock.viable and not fit_fits:
        return None
    fit_wins = fit_fits and (
        not plan.stock.viable or plan.fit_time.total_seconds <= plan.stock.time.total_seconds * (1.0 + TIE)
    )
    if fit_wins:
        placement, memory, time, n_ubatch = plan.fit.placement, plan.fit.memory, plan.fit_time, plan.settings.n_ubatch
    else:
        placement, memory, time = plan.stock.placement, plan.stock.memory, plan.stock.time
        n_ubatch = plan.stock.n_ubatch
    return {
        "argv": _launch(plan, placement, n_ubatch),
        "engine": f"llama.cpp {LLAMA_CPP_VERSION}",
        "load_mode": LOAD_MODE,
        "is_stock_fit": fit_wins,
        "n_ubatch": n_ubatch,
        "vram_bytes": memory.gpu.total(),
        "host_bytes": memory.host.total(),
        "prompt_seconds": time.prompt_seconds,
        "generate_seconds": time.generate_seconds,
        "seconds_low": max(time.total_seconds - time.spread_seconds, 0.0),
        "seconds_high": time.total_seconds + time.spread_seconds,
        "basis": time.basis.name,
        "bottleneck": time.decode.bottleneck.name,
        "up_bytes_per_token": round(time.decode.weights_up_bytes + time.decode.activation_bytes),
        "speedup_over_stock_fit": plan.fit_time.total_seconds / time.total_seconds,
    }


def _runtime(plan: Plan) -> Document | None:
    """The workload on the pshard runtime, which changes placements between prompt and decode."""
    runtime, settings = plan.runtime, plan.settings
    if not runtime.viable:
        return None
    prompt, decode = plan.tiers[runtime.prompt_tier], plan.tiers[runtime.decode_tier]
    decode_time = decode.candidates[decode.best].time
    arguments = ["llama-server", *common_arguments(
        file=model_file(plan),
        n_ctx=settings.n_ctx,
        n_seq_max=settings.n_seq_max,
        flash_attn=settings.flash_attn,
        type_k=settings.type_k,
        type_v=settings.type_v,
        n_threads=settings.n_threads,
    )]  # fmt: skip
    return {
        "argv": [*arguments, "-pshard", "-mva", str(settings.budget_bytes >> 20)],
        "engine": "llama.cpp with pull request #22692",
        "prompt_tier": prompt.batch_size,
        "decode_tier": decode.batch_size,
        "prompt_seconds": runtime.prompt_seconds,
        "switch_seconds": runtime.switch_seconds,
        "switch_bytes": runtime.switch_bytes,
        "generate_seconds": runtime.generate_seconds,
        "bottleneck": decode_time.bottleneck.name,
        "up_bytes_per_token": round(decode_time.weights_up_bytes + decode_time.activation_bytes),
        "speedup_over_stock_fit": plan.fit_time.total_seconds / runtime.total_seconds,
    }
