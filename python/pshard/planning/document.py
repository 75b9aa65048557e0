"""The document of a plan: one dict of plain values, which ``--json`` prints and the tables are made from."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, TypedDict

from pshard.launch.flags import LLAMA_CPP_VERSION, LOAD_MODE, common_arguments, stock_arguments
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard import _core
    from pshard.planning.planner import Plan

SCHEMA_VERSION = 1

Document = dict[str, object]


class Stretch(TypedDict):
    """Layers that are placed alike, and which of their groups lie where."""

    first: int
    count: int
    pinned: list[str]
    streamed: list[str]
    cpu: list[str]


# A difference this small is a tie: it is within the noise of repeated runs.
TIE = 0.01

STOCK_FIGURES = (
    "prompt_seconds",
    "generate_seconds",
    "seconds_low",
    "seconds_high",
    "basis",
    "bottleneck",
    "link_bytes_per_token",
)
RUNTIME_FIGURES = (
    "prompt_seconds",
    "switch_seconds",
    "switch_bytes",
    "generate_seconds",
    "seconds_low",
    "seconds_high",
    "basis",
    "bottleneck",
    "link_bytes_per_token",
    "speedup_over_stock_fit",
)


def describe(plan: Plan) -> Document:
    """Return the document of a plan; docs/plan.md describes it field by field."""
    settings = plan.settings
    whole = plan.whole_vram_bytes
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": plan.model.name,
            "architecture": plan.model.architecture,
            "path": None if plan.model.header.path is None else str(plan.model.header.path),
            "file_bytes": plan.model.file_bytes,
            "n_parameters": plan.model.n_parameters,
            "n_layer": plan.model.n_layer,
            "n_ctx_train": plan.model.hyperparameters.n_ctx_train,
        },
        "machine": {
            **plan.machine.to_dict(),
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
        "stock_fit": _stock_fit(plan),
        "tiers": [_tier(plan, tier) for tier in plan.tiers],
        "llama_cpp": _llama_cpp(plan),
        "pshard_runtime": _pshard_runtime(plan),
        "registry_path": None,
        "warnings": list(plan.warnings),
    }


# --- tiers ------------------------------------------------------------------------------------------------------------


def _tier(plan: Plan, tier: _core.TierPlan) -> Document:
    best = tier.candidates[tier.best] if tier.best >= 0 else None
    fastest = best.time.seconds if best is not None and plan.machine.has_speeds else None
    candidates = [_candidate(plan, tier, candidate, fastest) for candidate in tier.candidates]
    if best is not None:
        chosen = dict(candidates[tier.best])
    else:
        # Stock fit may fit and yet not be allowed, where a strategy is forced.
        missing = [c.missing_vram_bytes + c.missing_ram_bytes for c in tier.candidates if not c.viable]
        chosen = dict.fromkeys(candidates[0]) | {
            "batch_size": tier.batch_size,
            "viable": False,
            "kv_fill_tokens": tier.kv_fill_tokens,
            "missing_bytes": min(missing),
        }
    del chosen["loss"]
    return chosen | {"n_placements_priced": tier.n_priced, "candidates": candidates}


def _candidate(plan: Plan, tier: _core.TierPlan, candidate: _core.Candidate, fastest: float | None) -> Document:
    """One strategy at one tier; where it does not fit, every figure is null and the missing bytes stand."""
    viable, time, memory, knobs = candidate.viable, candidate.time, candidate.memory, candidate.knobs
    layers = _layers(plan, candidate.placement)
    placed: Document = {
        "n_pinned": knobs.n_pinned,
        "n_attn_pinned": knobs.n_attn_pinned,
        "overflow": knobs.overflow,
        "output_on_gpu": knobs.output_on_gpu,
        "pin_from_back": knobs.pin_from_back,
        "layers": layers,
        "n_ubatch": candidate.micro_batch,
        "vram_bytes": memory.gpu.total(),
        "weights_bytes": memory.gpu.weights_bytes,
        "kv_bytes": memory.gpu.cache_bytes,
        "compute_bytes": memory.gpu.compute_bytes,
        "stream_bytes": memory.gpu.stream_bytes,
        "host_bytes": memory.host.total(),
    }
    timed: Document = {
        "seconds": time.seconds,
        "seconds_low": max(time.seconds - time.spread_seconds, 0.0),
        "seconds_high": time.seconds + time.spread_seconds,
        "basis": time.basis.name,
        "tokens_per_second": tier.batch_size / time.seconds if time.seconds > 0 else None,
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
    has_time = viable and plan.machine.has_speeds
    return {
        "batch_size": tier.batch_size,
        "viable": viable,
        "strategy": candidate.strategy,
        **(placed if viable else dict.fromkeys(placed)),
        **(timed if has_time else dict.fromkeys(timed)),
        "kv_fill_tokens": tier.kv_fill_tokens,
        "missing_bytes": None if viable else candidate.missing_vram_bytes + candidate.missing_ram_bytes,
    }


def _layers(plan: Plan, placement: _core.Placement) -> list[Stretch]:
    """Describe a placement front to back, in stretches of layers that are placed alike."""
    from pshard import _core

    present = {*plan.model.group_bytes(), "cache"} - {"embedding", "head"}
    groups = [group for group in _core.Group if group.name in present]
    place = {
        _core.Where.pinned: "pinned",
        _core.Where.stream_a: "streamed",
        _core.Where.stream_b: "streamed",
        _core.Where.cpu: "cpu",
    }

    wheres = [tuple(place[pattern[group]] for group in groups) for pattern in placement.patterns]
    stretches: list[Stretch] = []
    first = 0
    for at, stretch in groupby(wheres[index] for index in placement.layer_pattern):
        named: dict[str, list[str]] = {"pinned": [], "streamed": [], "cpu": []}
        for group, here in zip(groups, at, strict=True):
            named[here].append(group.name)
        count = len(list(stretch))
        stretches.append(
            Stretch(first=first, count=count, pinned=named["pinned"], streamed=named["streamed"], cpu=named["cpu"])
        )
        first += count
    return stretches


def _by_lane(seconds: list[float]) -> dict[str, float]:
    from pshard import _core

    return {_core.Lane(index).name: value for index, value in enumerate(seconds)}


# --- the workload under each engine -----------------------------------------------------------------------------------


def _stock_fit(plan: Plan) -> Document:
    """Describe what ``--fit`` decides by itself, whether it fits or not."""
    return {
        "flags": stock_arguments(plan.model, plan.fit.placement),
        "viable": _fit_fits(plan),
        "fits_whole": plan.settings.budget_bytes > 0 and plan.fit.outcome.name == "unchanged",
        "n_ubatch": plan.settings.n_ubatch,
        **_stock_figures(plan.fit.memory, plan.fit_time),
    }


def _llama_cpp(plan: Plan) -> Document | None:
    """Choose what stock llama.cpp is launched with: our placement, unless ``--fit``'s own is as good."""
    stock, fit_fits = plan.stock, _fit_fits(plan)
    if (stock is None or not stock.viable) and not fit_fits:
        return None
    fit_wins = stock is None or (
        fit_fits and (not stock.viable or _total_seconds(plan.fit_time) <= stock.time.total_seconds * (1.0 + TIE))
    )
    if stock is None or fit_wins:
        placement, memory, time, n_ubatch = plan.fit.placement, plan.fit.memory, plan.fit_time, plan.settings.n_ubatch
    else:
        placement, memory, time, n_ubatch = stock.placement, stock.memory, stock.time, stock.n_ubatch
    return {
        "argv": [
            *_launch(plan),
            *("-b", str(max(plan.settings.n_batch, n_ubatch)), "-ub", str(n_ubatch)),
            *("--fit", "off"),
            *stock_arguments(plan.model, placement),
            *("--load-mode", LOAD_MODE),
        ],
        "engine": f"llama.cpp {LLAMA_CPP_VERSION}",
        "load_mode": LOAD_MODE,
        "is_stock_fit": fit_wins,
        "layers": _layers(plan, placement),
        "output_on_gpu": placement.head.name == "pinned",
        "n_ubatch": n_ubatch,
        **_stock_figures(memory, time),
        "speedup_over_stock_fit": None if time is None else _total_seconds(plan.fit_time) / time.total_seconds,
    }


def _pshard_runtime(plan: Plan) -> Document | None:
    """Describe the workload on the pshard runtime, which changes placements between prompt and decode."""
    settings = plan.settings
    viable = [tier for tier in plan.tiers if tier.best >= 0]
    if not viable or settings.budget_bytes < MIB:
        return None
    runtime = plan.runtime
    if runtime is not None:
        prompt, decode = plan.tiers[runtime.prompt_tier], plan.tiers[runtime.decode_tier]
    else:  # as the runtime takes them where no tier has a speed
        decode = viable[0]
        prompt = next((tier for tier in viable if tier.batch_size >= settings.prompt_tokens), viable[-1])
    return {
        "argv": [*_launch(plan), "-pshard", "-mva", str(settings.budget_bytes // MIB)],
        "engine": "llama.cpp with pull request #22692",
        "prompt_tier": prompt.batch_size,
        "decode_tier": decode.batch_size,
        **_runtime_figures(plan, prompt.candidates[prompt.best].time, decode.candidates[decode.best].time),
    }


def _runtime_figures(plan: Plan, prompt: _core.PassTime, decode: _core.PassTime) -> Document:
    runtime = plan.runtime
    if runtime is None:
        return dict.fromkeys(RUNTIME_FIGURES)
    before_decode = runtime.prompt_seconds + runtime.switch_seconds
    # Prompt and switch are as uncertain as a pass of the prompt's tier, tokens as one of theirs.
    spread = before_decode * _relative_spread(prompt) + runtime.generate_seconds * _relative_spread(decode)
    figures = (
        runtime.prompt_seconds,
        runtime.switch_seconds,
        runtime.switch_bytes,
        runtime.generate_seconds,
        max(runtime.total_seconds - spread, 0.0),
        runtime.total_seconds + spread,
        max(prompt.basis, decode.basis).name,
        decode.bottleneck.name,
        _link_bytes(decode),
        _total_seconds(plan.fit_time) / runtime.total_seconds,
    )
    return dict(zip(RUNTIME_FIGURES, figures, strict=True))


def _fit_fits(plan: Plan) -> bool:
    memory = plan.fit.memory
    return bool(memory.gpu.total() <= plan.settings.budget_bytes and memory.host.total() <= plan.machine.ram_bytes)


def _stock_figures(memory: _core.MemoryReport, time: _core.WorkloadTime | None) -> Document:
    """Bytes and seconds under one placement; the seconds are null on a machine without speeds."""
    n_bytes: Document = {"vram_bytes": memory.gpu.total(), "host_bytes": memory.host.total()}
    if time is None:
        return n_bytes | dict.fromkeys(STOCK_FIGURES)
    figures = (
        time.prompt_seconds,
        time.generate_seconds,
        max(time.total_seconds - time.spread_seconds, 0.0),
        time.total_seconds + time.spread_seconds,
        time.basis.name,
        time.decode.bottleneck.name,
        _link_bytes(time.decode),
    )
    return n_bytes | dict(zip(STOCK_FIGURES, figures, strict=True))


def _total_seconds(time: _core.WorkloadTime | None) -> float:
    """Seconds of the workload under stock fit, which is priced wherever anything is."""
    assert time is not None
    return time.total_seconds


def _relative_spread(time: _core.PassTime) -> float:
    return time.spread_seconds / time.seconds


def _link_bytes(decode: _core.PassTime) -> int:
    """Bytes over PCIe in one pass, both ways."""
    return round(decode.weights_up_bytes + decode.activation_bytes + decode.write_back_bytes)


def _launch(plan: Plan) -> list[str]:
    settings = plan.settings
    return ["llama-server", *common_arguments(
        file=model_file(plan),
        n_ctx=settings.n_ctx,
        n_seq_max=settings.n_seq_max,
        flash_attn=settings.flash_attn,
        type_k=settings.type_k,
        type_v=settings.type_v,
        n_threads=settings.n_threads,
    )]  # fmt: skip


def model_file(plan: Plan) -> str:
    """Path of the model, or the usual name of a published file where the model came from the catalogue."""
    path = plan.model.header.path
    return str(path) if path is not None else plan.model.name.replace(":", "-") + ".gguf"
