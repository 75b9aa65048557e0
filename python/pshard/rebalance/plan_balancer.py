"""A one-GPU plan that is watched: measured latencies correct the machine, and the tiers are planned again.

The latencies are of the GPU and of the CPU, where JSON lines name them, or of the engine as a whole, where its counters
tell them. The latter say nothing about which part is slow: all are corrected alike, so that the best placement seldom
changes, and what does is what to expect of it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.planning.planner import DEFAULT_N_BATCH, plan
from pshard.rebalance.balancer import UNMEASURED_FACTOR, LoadBalancer
from pshard.rebalance.corrections import Factors, corrected_machine
from pshard.rebalance.deployment import PHASES, Deployment, Move, Phase, Tables, Way
from pshard.rebalance.worth import Proposal, break_even_seconds, least_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pshard import _core
    from pshard.machine.machine import Machine
    from pshard.model.model import Model
    from pshard.planning.planner import Plan
    from pshard.rebalance.history import Bounds, Placement

    Array = np.typing.NDArray[np.float64]

# Of a machine, which corrections are of.
Part = Literal["gpu", "cpu", "link"]
ENGINE = "engine"
# Groups of a layer that tell nothing of a device's speed: a device with these alone is idle.
WITHOUT_PRODUCTS = ("norms", "router")


# How much less a certain gain may be stated than it is: what is not searched in finer parts.
CERTAIN_GAIN_TOLERANCE = 0.01
MOST_PRICED = 128


class PlanBalancer(LoadBalancer):
    """Latencies of a planned engine in, decisions on its plan out.

    Attributes
    ----------
    planned : Plan
    corrections : mapping from part to Factors
        What the plan's machine was corrected by.
    proposed : Plan or None
        By the last decision.
    proposed_corrections : mapping from part to Factors
        Those of its machine.

    Parameters
    ----------
    planned : Plan
        With speeds, and a placement that stock llama.cpp can be told.
    shards : sequence of str
        ``("engine",)``, or names of the GPU and the CPU as the metrics have them; a name that begins with cpu or host
        is the CPU's.
    profiled : Machine, optional
        The plan's machine before it was corrected; the plan's by default.
    corrections : mapping from {"gpu", "cpu", "link"} to Factors, optional
        By which it was.
    more
        As the other arguments of `LoadBalancer`.

    Raises
    ------
    SettingError
        The plan has no speeds, or no such placement; several shards are of one part.
    """

    counts_layers = False

    def __init__(
        self,
        planned: Plan,
        shards: Sequence[str] = (ENGINE,),
        *,
        profiled: Machine | None = None,
        corrections: Mapping[Part, Factors] | None = None,
        **more: Any,
    ) -> None:
        self.proposed: Plan | None = None
        self.corrections: dict[Part, Factors] = {}
        self.proposed_corrections: dict[Part, Factors] = {}
        self._profiled = profiled or planned.machine
        self._shards = _with_idle_gpu(planned, shards)
        super().__init__(**more)
        self.redeploy(planned, corrections or {})

    def redeploy(self, planned: Plan, corrections: Mapping[Part, Factors]) -> None:
        """Say that another plan is deployed, for a machine corrected so; latencies begin anew."""
        if planned.stock is None or not planned.stock.viable:
            message = (
                f"the plan of {planned.model.name} has no speeds, or nothing to compare; plan for a machine with them."
            )
            raise SettingError(message)
        deployment = _deployment(planned, self._shards)
        self.planned = planned
        self.corrections = dict(corrections)
        self.deploy(deployment)

    def adopt(self) -> None:
        """Take what was proposed for what is deployed; latencies begin anew."""
        assert self.proposed is not None
        self.redeploy(self.proposed, self.proposed_corrections)

    @property
    def placement(self) -> Placement:
        """What a runtime sees of the present plan, in short."""
        return _placements(self.planned)

    def _proposed_placement(self, proposal: Proposal) -> Placement:
        assert self.proposed is not None
        return _placements(self.proposed)

    def _propose(self, deployment: Deployment, phase: Phase, bounds: Array) -> Proposal | None:
        """Plan for the corrected machine; `bounds` is of shape (D, 3): estimate, lower, upper."""
        table = self._all_bounds(deployment)
        self.proposed_corrections = _corrections(table[..., 0], deployment.shards)
        try:
            self.proposed = replan(self.planned, self._machine(table[..., 0]))
        except NoFeasiblePlanError:
            return None
        plans = self.planned, self.proposed

        def seconds(factors: Array) -> tuple[float, float]:
            machine = self._machine(factors.reshape(table.shape[:2]))
            old, new = (stock_seconds(planned, machine) for planned in plans)
            return old, new

        old, new = seconds(table[..., 0].ravel())
        gain = old / new
        is_same = self.placement == _placements(self.proposed)
        least = gain if is_same else least_ratio(
            seconds, table[..., 1].ravel(), table[..., 2].ravel(), CERTAIN_GAIN_TOLERANCE, MOST_PRICED
        )  # fmt: skip
        move = _move(*plans)
        return Proposal(
            counts=_counts(self.proposed, deployment.shards),
            is_same=is_same,
            gain=gain,
            certain_gain=min(gain, least),
            single_stream_gain=gain,
            move=move,
            break_even_seconds=None if gain <= 1 or move.seconds is None else break_even_seconds(move.seconds, gain),
        )

    def _all_bounds(self, deployment: Deployment) -> Array:
        """Factors of both phases against the machine as profiled, with their bounds. Shape (phases, D, 3).

        A phase without latencies takes the other's; a part that is idle is as it was, and as profiled when it is due.
        """
        measured = {phase: self._bounds(deployment, phase) for phase in PHASES if self._has_estimates(phase)}
        due = self._due()
        rows = np.empty((len(PHASES), len(deployment.shards), 3))
        for i, phase in enumerate(PHASES):
            relative = measured.get(phase, next(iter(measured.values())))
            for j, name in enumerate(deployment.shards):
                if name in due:
                    rows[i, j] = 1.0, 1 / UNMEASURED_FACTOR, UNMEASURED_FACTOR
                else:
                    rows[i, j] = self._correction(name, phase) * (relative[j] if deployment.counts[j] else 1.0)
        return rows

    def _last_bounds(self, device: str) -> dict[Phase, Bounds]:
        """Nothing: the machine that the next plan is for is corrected by it."""
        return {}

    def _correction(self, name: str, phase: Phase) -> float:
        factors = self.corrections.get(_parts(name)[0], Factors())
        return factors.decode if phase == "decode" else factors.prefill

    def _machine(self, factors: Array) -> Machine:
        """Correct the machine as profiled; `factors` is of shape (phases, D)."""
        assert self.deployment is not None
        n_threads = self.planned.settings.n_threads
        return corrected(self._profiled, _corrections(factors, self.deployment.shards), n_threads)


def corrected(machine: Machine, corrections: Mapping[Part, Factors], n_threads: int | None) -> Machine:
    """Return a machine whose parts take so many times as long; as it is, where nothing is to be corrected."""
    if not corrections:
        return machine
    gpu, cpu, link = (corrections.get(part) for part in ("gpu", "cpu", "link"))
    return corrected_machine(machine, gpu=gpu, cpu=cpu, link=link, n_threads=n_threads)


def replan(planned: Plan, machine: Machine) -> Plan:
    """Plan what was planned for another machine.

    Raises
    ------
    NoFeasiblePlanError
        Nothing fits.
    """
    settings = planned.settings
    return plan(
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


def stock_seconds(planned: Plan, machine: Machine) -> float:
    """Return the seconds of the workload under a plan's stock placement, on some machine."""
    from pshard import _core

    assert planned.stock is not None
    settings = planned.settings
    context = settings.context(planned.stock.n_ubatch, runtime=False)
    workload = _core.Workload(settings.prompt_tokens, settings.generate_tokens)
    core = machine.core(settings.n_threads, "plain" if settings.budget_bytes > 0 else "interleaved")
    priced = _core.price_workload(planned.model.core, core, context, workload, planned.stock.placement)
    return priced.total_seconds


def _move(old: Plan, new: Plan) -> Move:
    """Tell which weights the GPU gets that it has not, by the placement of stock llama.cpp, and how long they take."""
    assert old.stock is not None
    assert new.stock is not None
    there, wanted = (_on_gpu(plan.model, plan.stock.placement) for plan in (old, new) if plan.stock is not None)
    layers = {layer for _, layer in there.keys() ^ wanted.keys() if layer is not None}
    n_bytes = sum(size for tensor, size in wanted.items() if tensor not in there)
    link = new.machine.profile.link
    if link is None:
        return Move(len(layers), {"gpu": n_bytes}, None)
    way = Way("pcie", max(link.up.bytes_per_second))
    return Move(len(layers), {"gpu": n_bytes}, n_bytes / way.bytes_per_second, {"gpu": way})


def _on_gpu(model: Model, placement: _core.Placement) -> dict[tuple[str, int | None], int]:
    """Bytes of the tensors that lie in VRAM, by name and layer; the head's have no layer."""
    from pshard import _core

    exceptions = {exception.name: exception.where for exception in placement.exceptions}
    found: dict[tuple[str, int | None], int] = {}
    for index, (layer, pattern) in enumerate(zip(model.core.layers, placement.layer_pattern, strict=True)):
        for tensor in layer.tensors:
            by_group = placement.patterns[pattern][_core.group_of(tensor.name)]
            if _core.is_pinned(exceptions.get(tensor.name, by_group)):
                found[tensor.name, index] = tensor.n_bytes
    if _core.is_pinned(placement.head):
        found.update({(tensor.name, None): tensor.n_bytes for tensor in model.core.head})
    return found


def _placements(planned: Plan) -> str:
    """Return a digest of what a runtime sees of a plan, for comparison."""
    from pshard.launch.flags import stock_arguments

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
    return hashlib.sha256(repr((stock, tiers)).encode()).hexdigest()[:16]


def _corrections(factors: Array, shards: Sequence[str]) -> dict[Part, Factors]:
    """Return what each part is corrected by; `factors` is of shape (phases, D)."""
    return {
        part: Factors(**dict(zip(PHASES, factors[:, index].tolist(), strict=True)))
        for index, name in enumerate(shards)
        for part in _parts(name)
    }


def _parts(name: str) -> tuple[Part, ...]:
    """Parts of the machine that a shard's latencies are of."""
    if name == ENGINE:
        return ("gpu", "cpu", "link")
    return ("cpu",) if _is_cpu(name) else ("gpu",)


def _is_cpu(name: str) -> bool:
    return name.lower().startswith(("cpu", "host"))


def _deployment(planned: Plan, shards: Sequence[str]) -> Deployment:
    """Describe a plan's parts as shards: each counts as one layer, or none where it is idle, with its own seconds."""
    settings = planned.settings
    assert planned.stock is not None
    time = planned.stock.time
    tables: dict[Phase, Tables] = {}
    counts: tuple[int, ...] = (1,) * len(shards)
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
        _check_parts(shards)
        counts = _counts(planned, shards)
        for phase, tier in _passes(planned).items():
            busy = np.array([_busy(tier, name) for name in shards])
            if any(counts) and (busy[np.array(counts) > 0] > 0).all():
                tables[phase] = Tables(tier.micro_batch, np.tile(busy, (sum(counts), 1)))
    if not tables:
        message = f"nothing of the plan of {planned.model.name} runs on what the metrics name; are they of this plan?"
        raise SettingError(message)
    return Deployment(shards=tuple(shards), counts=counts, tables=tables, objective="latency")


def _check_parts(shards: Sequence[str]) -> None:
    for part in ([name for name in shards if _is_cpu(name) is on_host] for on_host in (False, True)):
        if len(part) > 1:
            message = (
                f"the metrics name {' and '.join(part)}, but a plan has one GPU and one CPU; leave out the others' "
                "lines, or give the map that they are of."
            )
            raise SettingError(message)


def _with_idle_gpu(planned: Plan, shards: Sequence[str]) -> tuple[str, ...]:
    """Add a GPU that computes nothing now, and that no latencies are of: it may be tried again."""
    is_named = any(name == ENGINE or not _is_cpu(name) for name in shards)
    return (*shards,) if is_named or _counts(planned, ["gpu0"])[0] else (*shards, "gpu0")


def _counts(planned: Plan, shards: Sequence[str]) -> tuple[int, ...]:
    """Return which shards multiply anything in decode (of a plan of prompts alone, in prefill): 1, or 0."""
    passes = _passes(planned)
    if list(shards) == [ENGINE] or not passes:
        return (1,) * len(shards)
    from pshard import _core

    placement = passes["decode" if planned.settings.generate_tokens else "prefill"].placement
    on_host = {
        placement.patterns[pattern][_core.Group[group]] == _core.Where.cpu
        for layer, pattern in zip(planned.model.layers, placement.layer_pattern, strict=True)
        for group in layer.groups
        if group not in WITHOUT_PRODUCTS
    }
    return tuple(int(_is_cpu(name) in on_host) for name in shards)


def _passes(planned: Plan) -> dict[Phase, _core.Candidate]:
    """Return what is priced for each phase: the smallest tier's best, and the largest's."""
    best = [tier.candidates[tier.best] for tier in planned.tiers if tier.best >= 0]
    return {"decode": best[0], "prefill": best[-1]} if best else {}


def _busy(tier: _core.Candidate, name: str) -> float:
    """Seconds that a tier's pass keeps the GPU or the CPU busy."""
    from pshard import _core

    return tier.time.busy_seconds[_core.Lane.cpu if _is_cpu(name) else _core.Lane.gpu]
