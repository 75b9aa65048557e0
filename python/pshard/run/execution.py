"""Run a plan on this machine, and hold what was predicted against what was measured.

A run has phases: the full micro-batches of the prompt, what is left of it, one generated token. Each has a placement,
a schedule made of it, and as many passes as the workload needs, of which some are run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pshard.errors import PshardError, SettingError
from pshard.weight_types import executed_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pshard import _core
    from pshard.model.model import Model
    from pshard.planning.planner import Plan, Settings
    from pshard.run.host_backend import HostCpus

PhaseName = Literal["prefill", "decode"]
Span = tuple[float, float]

DEFAULT_PASSES = 5
CHECKING_NOTE = "Everything was checked meanwhile, which takes most of the time: the seconds are not those of the plan."
# A file with more holes than this has the shape of a model, but not its weights.
LEAST_STORED = 0.9
# Less than this share of the weights being multiplied says too little of the model.
LEAST_EXECUTED = 0.9
# A batch of at most so many tokens generates or verifies.
LARGEST_DECODE = 511


class ExecutionError(PshardError):
    """A run that cannot start, or went wrong; the message says what was found."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A kind of pass.

    Attributes
    ----------
    name : str
        "prefill" or "decode".
    n_tokens : int
        Of one pass.
    count : int
        Passes that the workload needs.
    strategy : str
    placement : _core.Placement
    pass_ : _core.Pass
    vram_bytes : tuple of int
        What the plan gives it of each GPU; it may not take more.
    """

    name: PhaseName
    n_tokens: int
    count: int
    strategy: str
    placement: _core.Placement
    pass_: _core.Pass
    vram_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be run.

    Attributes
    ----------
    phases : tuple of Phase
    cache_bytes : tuple of int
        Of each layer.
    arena_bytes : tuple of int
        Memory of each GPU.
    is_limited : bool
        Whether that is a budget; if not, the GPUs give what the executor's own layout takes, where that is more.
    """

    phases: tuple[Phase, ...]
    cache_bytes: tuple[int, ...]
    arena_bytes: tuple[int, ...]
    is_limited: bool = True


@dataclass(frozen=True)
class PhaseResult:
    """A phase as it ran.

    Attributes
    ----------
    phase : Phase
    schedule : _core.Schedule
    records : tuple of _core.PassRecord
        Without the first pass, which touches memory for the first time.
    times_unix_s : tuple of float
        When each ended.
    predicted : _core.PassTime or None
        Of the operations that are executed; None where no machine was given to price it with.
    predicted_splits : tuple of _core.SplitTime
    switch : _core.SwitchRecord
        What became resident for it.
    arena_bytes : tuple of int
        Peak of each GPU's arena.
    """

    phase: Phase
    schedule: _core.Schedule
    records: tuple[_core.PassRecord, ...]
    times_unix_s: tuple[float, ...]
    predicted: _core.PassTime | None
    predicted_splits: tuple[_core.SplitTime, ...]
    switch: _core.SwitchRecord
    arena_bytes: tuple[int, ...]

    @cached_property
    def typical(self) -> _core.PassRecord:
        """The pass of median length, of two the shorter. All figures are of this one, so that they add up."""
        return sorted(self.records, key=lambda record: record.seconds)[(len(self.records) - 1) // 2]

    @property
    def seconds(self) -> float:
        """Of the typical pass."""
        return self.typical.seconds

    @property
    def compute_seconds(self) -> float:
        """Of all splits of the typical pass."""
        return sum(split.compute_seconds for split in self.typical.splits)

    @property
    def copy_seconds(self) -> float:
        """For which the typical pass copied weights and cache, summed over devices and directions.

        Lanes of one direction share a copy engine: while one copies, the other waits, so that both at once count once.
        """
        return sum(_seconds(spans) for spans in self._copying())

    @property
    def overlap(self) -> float | None:
        """Share of the shorter of copying and computing during which the other went on too; None without copies."""
        shorter = min(self.compute_seconds, self.copy_seconds)
        if shorter <= 0.0:
            return None
        computing = self._computing()
        hidden = sum(_seconds(copying) - _seconds(_without(copying, computing)) for copying in self._copying())
        return max(0.0, min(1.0, hidden / shorter))

    def _copying(self) -> list[list[Span]]:
        """Return when each copy engine of the typical pass worked, or had work that waited for its other lane."""
        by_engine: dict[tuple[int, str], list[Span]] = defaultdict(list)
        for copy in self.typical.copies:
            engine = "up" if copy.stream.startswith("lane") else copy.stream
            by_engine[copy.device, engine].append((copy.begin_seconds, copy.end_seconds))
        return [_joined(spans) for spans in by_engine.values()]

    def _computing(self) -> list[Span]:
        """Return when splits of the typical pass computed: up to their ends, but for copies between operations."""
        own: dict[int, list[Span]] = defaultdict(list)
        for copy in self.typical.copies:
            split = self.typical.splits[copy.split]
            if split.begin_seconds <= copy.begin_seconds and copy.end_seconds <= split.end_seconds:
                own[copy.split].append((copy.begin_seconds, copy.end_seconds))
        found = []
        for i, split in enumerate(self.typical.splits):
            within = _joined(own[i])
            begin = split.end_seconds - split.compute_seconds - _seconds(within)
            found += _without([(begin, split.end_seconds)], within)
        return _joined(found)

    def by_kind(self) -> dict[str, tuple[int, float | None, float]]:
        """Return for each kind of split: how many, predicted and measured seconds of computing."""
        kinds = [split_kind(split) for split in self.schedule.splits]
        predicted: dict[str, float] = defaultdict(float)
        for kind, time_ in zip(kinds, self.predicted_splits, strict=False):
            predicted[kind] += time_.compute_seconds
        found: dict[str, tuple[int, float | None, float]] = {}
        for kind in sorted(set(kinds)):
            splits = zip(self.typical.splits, kinds, strict=True)
            measured = sum(split.compute_seconds for split, its_kind in splits if its_kind == kind)
            found[kind] = (kinds.count(kind), predicted[kind] if self.predicted_splits else None, measured)
        return found


@dataclass(frozen=True)
class Execution:
    """A run.

    Attributes
    ----------
    model : Model
    backend : str
        "host" or "cuda".
    phases : tuple of PhaseResult
        In the order of the workload: full micro-batches of the prompt, the rest, decode; only what it needs.
    locked_bytes, staged_bytes : int
        Host memory that is copied from: page-locked, or copied through a page-locked ring since more was refused.
    weights : str
        "file", or "generated".
    shards : tuple of str
        Names of the devices: the host, then the GPUs.
    is_checking : bool
        Everything was compared meanwhile, so that seconds say nothing of speed.
    notes : tuple of str
    """

    model: Model
    backend: str
    phases: tuple[PhaseResult, ...]
    locked_bytes: int
    staged_bytes: int
    weights: str
    shards: tuple[str, ...]
    is_checking: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def ttft_seconds(self) -> float | None:
        """Measured time to the first token: all passes of the prompt; None where none ran."""
        prefill = [result for result in self.phases if result.phase.name == "prefill"]
        return sum(result.phase.count * result.seconds for result in prefill) if prefill else None

    @property
    def tokens_per_second(self) -> float | None:
        """Measured rate of decode; None where none ran."""
        decode = next((result for result in self.phases if result.phase.name == "decode"), None)
        return decode.phase.n_tokens / decode.seconds if decode else None


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Return the same time without overlaps, in order."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def _without(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """Return the parts of spans that are in none of the others, which are joined."""
    left = []
    for begin, end in spans:
        at = begin
        for other_begin, other_end in others:
            if other_end <= at or other_begin >= end:
                continue
            if other_begin > at:
                left.append((at, other_begin))
            at = other_end
        if at < end:
            left.append((at, end))
    return left


def _seconds(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def split_kind(split: _core.Split) -> str:
    """Say what a split is: "cpu", "offloaded" (weights copied when it runs), "streamed" or "resident"."""
    if split.device == 0:
        return "cpu"
    if split.offloads:
        return "offloaded"
    return "streamed" if split.streams else "resident"


def workload_of(plan: Plan, *, tier: int | None = None) -> Workload:
    """Take the phases of a plan: those of its workload by the runtime's rule, or one tier.

    Parameters
    ----------
    plan : Plan
    tier : int, optional
        Tokens of one batch: the smallest tier that covers it, filled with so many.

    Returns
    -------
    Workload

    Raises
    ------
    SettingError
        No tier covers `tier`, or the plan has no speeds to choose by.
    """
    from pshard import _core

    settings, core = plan.settings, plan.model.core
    context = context_of(settings, max(t.batch_size for t in plan.tiers))
    work = _core.Workload(settings.prompt_tokens, settings.generate_tokens)

    def phase(name: PhaseName, chosen: _core.TierPlan, n_tokens: int, count: int, fill: int | None = None) -> Phase:
        candidate = chosen.candidates[chosen.best]
        pass_ = pass_of(core, context, work, name, n_tokens, fill)
        return Phase(
            name, n_tokens, count, candidate.strategy, candidate.placement, pass_, (candidate.memory.gpu.total(),)
        )

    if tier is not None:
        covering = [t for t in plan.tiers if t.best >= 0 and t.batch_size >= tier]
        if not covering:
            sizes = ", ".join(str(t.batch_size) for t in plan.tiers if t.best >= 0)
            message = f"tier {tier}: no tier of the plan covers it; there are {sizes}."
            raise SettingError(message)
        phases = [phase("decode" if tier <= LARGEST_DECODE else "prefill", covering[0], tier, 1)]
    else:
        phases = _phases(plan, phase)
    caches = tuple(_core.cache_bytes(core, layer, context) for layer in core.layers)
    return Workload(tuple(phases), caches, (max(phase.vram_bytes[0] for phase in phases),))


def pass_of(
    core: _core.Model,
    context: _core.ContextParameters,
    work: _core.Workload,
    name: PhaseName,
    n_tokens: int,
    fill: int | None = None,
) -> _core.Pass:
    """Return one pass of a phase: behind `fill` tokens, its own included, or behind as many as a tier mostly is."""
    from pshard import _core

    if fill is not None:
        # A tier of few tokens is taken for one that generates, behind a whole prompt; any other for the middle of one.
        work = _core.Workload(fill if n_tokens <= LARGEST_DECODE else 2 * fill - n_tokens, 0)
    pass_ = _core.tier_pass(core, context, work, n_tokens)
    if name == "prefill":
        pass_.n_outputs = 1
    return pass_


def prompt_batches(prompt_tokens: int, n_ubatch: int) -> list[tuple[int, int, int]]:
    """Divide a prompt: tokens of a micro-batch, how many there are, and the tokens behind which they mostly run."""
    ubatch = min(n_ubatch, prompt_tokens)
    full, rest = divmod(prompt_tokens, ubatch)
    return [(ubatch, full, (full + 1) * ubatch // 2), *([(rest, 1, prompt_tokens)] if rest else [])]


def _phases(plan: Plan, phase: Callable[..., Phase]) -> list[Phase]:
    settings, runtime = plan.settings, plan.runtime
    if runtime is None or not runtime.viable:
        message = "the plan has no tiers that run the whole workload; give a larger budget, or one --tier."
        raise SettingError(message)
    phases = []
    if settings.prompt_tokens:
        chosen = plan.tiers[runtime.prompt_tier]
        n_ubatch = chosen.candidates[chosen.best].micro_batch
        for batch in prompt_batches(settings.prompt_tokens, n_ubatch):
            phases.append(phase("prefill", chosen, *batch))
    if settings.generate_tokens:
        phases.append(phase("decode", plan.tiers[runtime.decode_tier], 1, settings.generate_tokens))
    return phases


def context_of(settings: Settings, n_ubatch: int) -> _core.ContextParameters:
    """Return the context that all tiers of a plan share: its cache is sized for the largest."""
    from pshard import _core
    from pshard.model.model import data_type

    context = _core.ContextParameters()
    context.pshard_runtime = True
    context.n_ctx = settings.n_ctx
    context.n_batch = max(settings.n_batch, n_ubatch)
    context.n_ubatch = n_ubatch
    context.n_seq_max = settings.n_seq_max
    context.flash_attn = settings.flash_attn
    context.type_k = data_type(settings.type_k)
    context.type_v = data_type(settings.type_v)
    return context


def schedules_of(model: Model, workload: Workload) -> list[_core.Schedule]:
    """Make the schedule of each phase.

    Raises
    ------
    ExecutionError
        Several sequences, or most of the weights have no kernel here.
    """
    from pshard import _core

    try:
        schedules = [
            _core.make_schedule(model.core, phase.placement, phase.pass_, list(workload.cache_bytes))
            for phase in workload.phases
        ]
    except ValueError as error:
        raise ExecutionError(str(error)) from error
    for schedule in schedules:
        left = [entry for entry in schedule.left_out if entry.weight_bytes]
        missing = sum(entry.weight_bytes for entry in left)
        if schedule.weight_bytes < LEAST_EXECUTED * (schedule.weight_bytes + missing):
            reasons = ", ".join(entry.what for entry in left)
            message = (
                f"{model.name}: only {schedule.weight_bytes / (schedule.weight_bytes + missing):.0%} of its products "
                f"can be run here, not {reasons}; give a model in {', '.join(executed_types())}."
            )
            raise ExecutionError(message)
    return schedules


def price(
    model: Model, phase: Phase, schedule: _core.Schedule, machines: Sequence[_core.Machine]
) -> tuple[_core.PassTime | None, tuple[_core.SplitTime, ...]]:
    """Price what a phase executes, and let its schedule copy experts in slices where the price says so."""
    from pshard import _core

    if not machines:
        return None, ()
    time_, splits = _core.price_executed(model.core, list(machines), phase.pass_, phase.placement)
    schedule.slice([split.is_sliced for split in splits])
    return time_, tuple(splits)


def shard_names(n_gpu: int) -> tuple[str, ...]:
    """Return what the host and the GPUs are called where nobody named them."""
    return ("host", *(f"gpu{i}" for i in range(n_gpu)))


def has_weights(model: Model) -> bool:
    """Whether the model's file holds its weights: it exists, and is not made of holes."""
    try:
        status = [Path(part).stat() for part in model.header.parts]
    except OSError:
        return False
    stored = sum(part.st_blocks * 512 for part in status)
    return bool(status) and stored >= LEAST_STORED * sum(part.st_size for part in status)


def execute(
    model: Model,
    workload: Workload,
    *,
    machines: Mapping[int, Sequence[_core.Machine]] | None = None,
    cpus: HostCpus | None = None,
    host_cpus: Sequence[int] = (),
    page_lock_bytes: int = 1 << 62,
    passes: int = DEFAULT_PASSES,
    routing_exponent: float = 0.0,
    seed: int = 1,
    check: bool = False,
    order: _core.Order | None = None,
    shards: Sequence[str] = (),
    on_pass: Callable[[str, int, int], None] = lambda what, done, of: None,
    on_record: Callable[[Phase, _core.Schedule, _core.PassRecord, float], None] = lambda *_: None,
) -> Execution:
    """Run a workload on this machine.

    Parameters
    ----------
    model : Model
    workload : Workload
    machines : mapping, optional
        Tokens of a pass -> what it is priced with: a machine for each GPU, or one for all where they are alike.
    cpus : HostCpus, optional
        Threads that stand in for GPUs; without them, the GPUs of the CUDA runtime run.
    host_cpus : sequence of int
        That compute the CPU's splits, where `cpus` is not given.
    page_lock_bytes : int
        Most that is page-locked; the rest is staged.
    passes : int
        Of each phase, at least 1, beside one that warms up.
    routing_exponent : float
        Experts are drawn uniformly with 0, by Zipf's law with any other exponent.
    seed : int
    check : bool
        Compare what arrives by checksum, and every product with a reference.
    order : _core.Order, optional
        `overlapped` by default.
    shards : sequence of str
        Names of the host and the GPUs; "host", "gpu0" and so on by default.
    on_pass : callable
        Called with what runs, how many passes of it are done, and of how many.
    on_record : callable
        Called after each pass but those that warm up: its phase and schedule, its record, and when it ended in seconds
        since 1970.

    Returns
    -------
    Execution

    Raises
    ------
    ExecutionError
        What went wrong, or was found wrong.
    """
    from pshard import _core

    schedules = schedules_of(model, workload)
    priced = [
        price(model, phase, schedule, (machines or {}).get(phase.n_tokens, ()))
        for phase, schedule in zip(workload.phases, schedules, strict=True)
    ]
    n_gpu = len(workload.arena_bytes)
    from_file = has_weights(model)
    files = [str(part) for part in model.header.parts] if from_file else []
    tensors = [_core.TensorInFile(t.name, t.part, t.offset, t.n_bytes) for t in model.tensors] if from_file else []
    on_pass("weights", 0, 1)
    results = []
    try:
        executor = _core.Executor(
            schedules,
            host_cpus=list(cpus.host if cpus is not None else host_cpus),
            devices=cpus.devices(workload.arena_bytes) if cpus is not None else None,
            vram_bytes=[list(phase.vram_bytes) for phase in workload.phases],
            page_lock_bytes=page_lock_bytes,
            files=files,
            tensors=tensors,
            routing_exponent=routing_exponent,
            seed=seed,
            order=order or _core.Order.overlapped,
            check=check,
            is_limited=workload.is_limited,
        )
        for i, phase in enumerate(workload.phases):
            what = f"{phase.name}, {phase.n_tokens} tokens"
            on_pass(what, 0, passes + 1)
            switch = executor.load(i)
            records, times = [], []
            for done in range(passes + 1):
                records.append(executor.run(i))
                times.append(time.time())
                if done:
                    on_record(phase, schedules[i], records[-1], times[-1])
                on_pass(what, done + 1, passes + 1)
            arenas = tuple(executor.arena_bytes(i, gpu) for gpu in range(n_gpu))
            results.append(
                PhaseResult(phase, schedules[i], tuple(records[1:]), tuple(times[1:]), *priced[i], switch, arenas)
            )
    except (_core.StreamError, _core.ProbeError) as error:
        message = f"{model.name}: {error}"
        raise ExecutionError(message) from error
    notes = [CHECKING_NOTE] if check else []
    notes += _notes(model, schedules, from_file=from_file, staged_bytes=executor.staged_bytes)
    return Execution(
        model, "cuda" if cpus is None else "host", tuple(results), executor.locked_bytes, executor.staged_bytes,
        "file" if from_file else "generated", tuple(shards) or shard_names(n_gpu), check, tuple(notes),
    )  # fmt: skip


def _notes(model: Model, schedules: Sequence[_core.Schedule], *, from_file: bool, staged_bytes: int) -> list[str]:
    from pshard import _core

    notes = []
    if not from_file:
        notes.append("There is no file with the weights, so valid random blocks of their types and shapes are used.")
    left = {entry.what: entry.count for schedule in schedules for entry in schedule.left_out}
    notes.append(f"Not executed, and not priced here: {'; '.join(left)}.")
    if staged_bytes:
        notes.append(f"{staged_bytes} bytes could not be page-locked: copied through a page-locked ring.")
    cache = _core.last_level_cache_bytes()
    working = min(schedule.weight_bytes for schedule in schedules)
    if working < 10 * cache:
        notes.append(
            f"The {working / 2**20:.0f} MiB of weights are less than ten times the last-level cache of this machine "
            f"({cache / 2**20:.0f} MiB), which may hold some of them from one pass to the next."
        )
    return notes
