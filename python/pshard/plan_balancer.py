"""A one-GPU plan that is watched: measured latencies correct the machine, and the tiers are planned again.

The latencies are of the GPU and of the CPU, where JSON lines name them, or of the engine as a whole, where its counters
tell them. The latter say nothing about which part is slow: all are corrected alike, so that the best placement seldom
changes, and what does is what to expect of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pshard.corrections import Factors, corrected_machine
from pshard.deployment import PHASES, Deployment, Move, Phase, Tables
from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.planner import DEFAULT_N_BATCH, plan
from pshard.rebalance import LoadBalancer
from pshard.worth import Proposal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pshard import _core
    from pshard.machine import Machine
    from pshard.planner import Plan

    Array = np.typing.NDArray[np.float64]

ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class Replanned:
    """A plan for the corrected machine, and the workload's seconds there under the old one and under it."""

    plan: Plan
    old_seconds: float
    new_seconds: float


class PlanBalancer(LoadBalancer):
    """Latencies of a planned engine in, decisions on its plan out.

    Attributes
    ----------
    planned : Plan
    proposed : Replanned or None
        By the last decision.

    Parameters
    ----------
    planned : Plan
        With speeds, and a placement that stock llama.cpp can be told.
    shards : sequence of str
        ``("engine",)``, or names of the GPU and the CPU as the metrics have them; a name that begins with cpu or host
        is the CPU's.
    more
        As the other arguments of `LoadBalancer`.

    Raises
    ------
    SettingError
        The plan has no speeds, or no such placement; several shards are of one part.
    """

    counts_layers = False

    def __init__(self, planned: Plan, shards: Sequence[str] = (ENGINE,), **more: Any) -> None:
        if planned.stock is None or not planned.stock.viable:
            message = (
                f"the plan of {planned.model.name} has no speeds, or nothing to compare; plan for a machine with them."
            )
            raise SettingError(message)
        self.planned = planned
        self.proposed: Replanned | None = None
        super().__init__(deployment=_deployment(planned, shards), **more)

    def _propose(self, deployment: Deployment, phase: Phase, bounds: Array) -> Proposal | None:
        """Plan for the corrected machine; `bounds` is of shape (D, 3): estimate, lower, upper."""
        settled = {other: self._bounds(deployment, other) for other in PHASES if self._has_estimates(other)}
        estimate = {p: dict(zip(deployment.shards, table[:, 0], strict=True)) for p, table in settled.items()}
        machine = _machine(self.planned, estimate)
        try:
            self.proposed = replan(self.planned, machine)
        except NoFeasiblePlanError:
            return None
        gain = self._gain(machine)
        corners = (self._gain(_machine(self.planned, corner)) for corner in _corners(deployment.shards, settled))
        return Proposal(
            counts=deployment.counts,
            is_same=_placements(self.planned) == _placements(self.proposed.plan),
            gain=gain,
            certain_gain=min(gain, *corners),
            single_stream_gain=gain,
            move=Move(0, None, None),
            break_even_seconds=None,
        )

    def adopt(self) -> None:
        """Take what was proposed for what is deployed; latencies begin anew."""
        assert self.proposed is not None
        assert self.deployment is not None
        self._left[_placements(self.planned)] = self._clock()
        self.planned = self.proposed.plan
        self.deploy(_deployment(self.planned, self.deployment.shards))

    def _placement(self, proposal: Proposal) -> object:
        """Return what a runtime sees of the plan that is proposed: all counts are alike."""
        assert self.proposed is not None
        return _placements(self.proposed.plan)

    def _gain(self, machine: Machine) -> float:
        assert self.proposed is not None
        return _stock_seconds(self.planned, machine) / _stock_seconds(self.proposed.plan, machine)


def replan(planned: Plan, machine: Machine) -> Replanned:
    """Plan what was planned for another machine, and price the old placement on it.

    Raises
    ------
    NoFeasiblePlanError
        Nothing fits.
    """
    settings = planned.settings
    new = plan(
        planned.model,
        machine,
        n_ctx=settings.n_ctx,
        vram_bytes=settings.budget_bytes,
        # What was left open then is left open now.
        n_batch=None if settings.n_batch == DEFAULT_N_BATCH else settings.n_batch,
        n_ubatch=settings.n_ubatch if len(settings.micro_batches) == 1 else None,
        n_seq_max=settings.n_seq_max,
        flash_attn=settings.flash_attn,
        type_k=settings.type_k,
        type_v=settings.type_v,
        n_threads=settings.n_threads,
        prompt_tokens=settings.prompt_tokens,
        generate_tokens=settings.generate_tokens,
        n_draft=settings.n_draft,
        strategy=settings.strategy,
        tier_max=settings.tier_max or None,
    )
    return Replanned(new, _stock_seconds(planned, machine), _stock_seconds(new, machine))


def _stock_seconds(planned: Plan, machine: Machine) -> float:
    """Seconds of the workload under a plan's stock placement, on some machine."""
    from pshard import _core
    from pshard.registry.context import context_of
    from pshard.registry.write import settings_of

    assert planned.stock is not None
    settings = planned.settings
    context = context_of(settings_of(planned), planned.stock.n_ubatch, planned.model)
    context.pshard_runtime = False
    context.n_batch = max(settings.n_batch, planned.stock.n_ubatch)
    workload = _core.Workload(settings.prompt_tokens, settings.generate_tokens)
    core = machine.core(settings.n_threads, "plain" if settings.budget_bytes > 0 else "interleaved")
    priced = _core.price_workload(planned.model.core, core, context, workload, planned.stock.placement)
    return priced.total_seconds


def _placements(planned: Plan) -> object:
    """Return what of a plan a runtime sees, for comparison."""
    from pshard.launch import stock_arguments

    assert planned.stock is not None
    stock = (tuple(stock_arguments(planned.model, planned.stock.placement)), planned.stock.n_ubatch)
    tiers = []
    for tier in planned.tiers:
        best = tier.candidates[tier.best] if tier.best >= 0 else None
        knobs = best.knobs if best is not None else None
        tiers.append(
            None
            if best is None or knobs is None
            else (best.strategy, knobs.n_pinned, knobs.n_attn_pinned, str(knobs.overflow), knobs.output_on_gpu)
        )
    return stock, tuple(tiers)


def _corners(shards: Sequence[str], settled: Mapping[Phase, Array]) -> Iterator[dict[Phase, dict[str, float]]]:
    """Yield every way in which each factor is at one of its bounds: one of two shards may be fast, and the other slow.

    Of at most two shards in two phases there are 16.
    """
    bounds = np.concatenate([table[:, 1:] for table in settled.values()])
    for corner in product(*bounds.tolist()):
        values = iter(corner)
        yield {phase: {name: next(values) for name in shards} for phase in settled}


def _machine(planned: Plan, factors: Mapping[Phase, Mapping[str, float]]) -> Machine:
    """Correct a plan's machine by the factors of its shards, by phase; a phase without any takes the other's."""
    shards = list(dict.fromkeys(name for by_shard in factors.values() for name in by_shard))

    def of(name: str) -> Factors:
        decode = factors.get("decode", factors.get("prefill", {})).get(name, 1.0)
        prefill = factors.get("prefill", factors.get("decode", {})).get(name, 1.0)
        return Factors(decode, prefill)

    n_threads = planned.settings.n_threads
    if ENGINE in shards:
        whole = of(ENGINE)
        return corrected_machine(planned.machine, gpu=whole, cpu=whole, link=whole, n_threads=n_threads)
    parts = {("cpu" if _is_cpu(name) else "gpu"): of(name) for name in shards}
    return corrected_machine(planned.machine, gpu=parts.get("gpu"), cpu=parts.get("cpu"), n_threads=n_threads)


def _is_cpu(name: str) -> bool:
    return name.lower().startswith(("cpu", "host"))


def _deployment(planned: Plan, shards: Sequence[str]) -> Deployment:
    """Describe a plan's parts as shards: each has all layers as far as a count goes, and its own predicted seconds."""
    settings = planned.settings
    assert planned.stock is not None
    time = planned.stock.time
    tables: dict[Phase, Tables] = {}
    if list(shards) == [ENGINE]:
        per_token = {
            "decode": (time.generate_seconds, settings.generate_tokens),
            "prefill": (time.prompt_seconds, settings.prompt_tokens),
        }
        for phase in PHASES:
            seconds, tokens = per_token[phase]
            if tokens > 0 and seconds > 0:
                tables[phase] = Tables(1, np.array([[seconds / tokens]]))
    else:
        best = [tier.candidates[tier.best] for tier in planned.tiers if tier.best >= 0]
        passes: dict[Phase, _core.Candidate] = {"decode": best[0], "prefill": best[-1]}
        shards = [name for name in shards if any(_busy(tier, name) for tier in passes.values())]
        for part in ([name for name in shards if _is_cpu(name) is is_cpu] for is_cpu in (False, True)):
            if len(part) > 1:
                message = (
                    f"the metrics name {' and '.join(part)}, but a plan has one GPU and one CPU; leave out the others' "
                    "lines, or give the map that they are of."
                )
                raise SettingError(message)
        for phase, tier in passes.items():
            busy = np.array([[_busy(tier, name) for name in shards]])
            if busy.size and (busy > 0).all():
                tables[phase] = Tables(tier.micro_batch, np.repeat(busy, len(shards), axis=0))
    if not tables:
        message = f"nothing of the plan of {planned.model.name} runs on what the metrics name; are they of this plan?"
        raise SettingError(message)
    return Deployment(shards=tuple(shards), counts=(1,) * len(shards), tables=tables, objective="latency")


def _busy(tier: _core.Candidate, name: str) -> float:
    """Seconds that a tier's pass keeps the GPU or the CPU busy."""
    from pshard import _core

    return tier.time.busy_seconds[_core.Lane.cpu if _is_cpu(name) else _core.Lane.gpu]
