"""One copy of a model on groups of devices in a pipeline: which layers where, how fast, and that nothing overflows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pshard import _core
from pshard.fleet.solver import Assignment, assign
from pshard.quantities import GIB, MAX_BYTES
from pshard.sharding.types import Shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pshard.cluster.cluster import Device
    from pshard.sharding.problem import Group, ShardProblem

# Where buffers are less for more layers after all, each repair raises what one memory needs.
MAX_REPAIRS = 64


class DoesNotFitError(Exception):
    """No assignment fits; what each device lacks in the one that lacks the fewest bytes."""

    def __init__(self, lacking: dict[str, int]) -> None:
        super().__init__()
        self.lacking = lacking

    def on(self, devices: Mapping[str, Device]) -> DoesNotFitError:
        """Return the same of others of these devices, by name, that are alike."""
        return DoesNotFitError({devices[name].name: n_bytes for name, n_bytes in self.lacking.items()})

    @property
    def missing_bytes(self) -> int:
        """Of all devices together."""
        return sum(self.lacking.values())

    @property
    def reason(self) -> str:
        """In half a sentence."""
        lacking = [f"{name} lacks {n_bytes / GIB:.2f} GiB" for name, n_bytes in self.lacking.items()]
        return ", ".join(lacking) or "no links lead from the first host through these devices and back"


@dataclass(frozen=True, slots=True)
class StageOf:
    """Layers ``begin`` to ``end - 1`` on a group, with the bytes of each rank."""

    group: Group
    begin: int
    end: int
    ranks: tuple[_core.DeviceBytes, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """Seconds of one pass through the stages: each with what it waits for its input."""

    stages: tuple[float, ...]
    waits: tuple[float, ...]

    @property
    def busy(self) -> tuple[float, ...]:
        """Of each stage, waiting included."""
        return tuple(a + b for a, b in zip(self.stages, self.waits, strict=True))

    def cycle(self, n: int) -> float:
        """Seconds until each of `n` passes, one behind the other, has gone through and may come again."""
        return max(sum(self.busy), n * max(self.busy))

    def drained(self, n: int) -> float:
        """Seconds until the last of `n` passes has left."""
        return sum(self.busy) + (n - 1) * max(self.busy)


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy for `users` users.

    Attributes
    ----------
    stages : tuple of StageOf
    users : int
    exact : bool
    stream, prompt : Flow or None
        One token of one user; a micro-batch of a prompt. None without speeds.
    micro_batches : int
        Groups that its users go through in.
    users_tokens_per_second : float or None
    prompt_seconds, bubble, all_reduce_seconds : float or None
    basis : _core.Basis
    """

    stages: tuple[StageOf, ...]
    users: int
    exact: bool
    stream: Flow | None
    micro_batches: int
    users_tokens_per_second: float | None
    prompt_seconds: float | None
    bubble: float | None
    all_reduce_seconds: float | None
    basis: _core.Basis

    @property
    def stream_tokens_per_second(self) -> float | None:
        """Of one user alone."""
        return None if self.stream is None else 1.0 / sum(self.stream.busy)

    def on(self, devices: Mapping[str, Device]) -> Replica:
        """Return the same on others of these devices, by name, that are alike."""
        stages = [
            replace(stage, group=replace(stage.group, devices=tuple(devices[d.name] for d in stage.group.devices)))
            for stage in self.stages
        ]
        return replace(self, stages=tuple(stages))

    def shards(self, problem: ShardProblem, replica: int) -> list[Shard]:
        """One shard for each device."""
        found = []
        for index, stage in enumerate(self.stages):
            for rank, (device, used) in enumerate(zip(stage.group.devices, stage.ranks, strict=True)):
                found.append(
                    Shard(
                        device=device,
                        first_layer=stage.begin,
                        last_layer=stage.end - 1,
                        replica=replica,
                        stage=index,
                        rank=rank,
                        n_ranks=stage.group.n_ranks,
                        weight_share=problem.weight_share(stage.group.ranks[rank], stage.begin, stage.end),
                        has_head=index + 1 == len(self.stages),
                        weights_bytes=used.weights_bytes,
                        cache_bytes=used.cache_bytes,
                        compute_bytes=used.compute_bytes,
                        capacity_bytes=problem.capacity[device.name],
                        seconds=None if self.stream is None else self.stream.stages[index],
                        transfer_seconds=None if self.stream is None else self.stream.waits[index],
                    )
                )
        return found


def plan_replica(problem: ShardProblem, groups: Sequence[Group], users: int, *, search_order: bool) -> Replica:
    """Give the layers to the groups.

    Parameters
    ----------
    problem : ShardProblem
    groups : sequence of Group
    users : int
        Of this copy.
    search_order : bool
        The groups may follow each other in any order.

    Returns
    -------
    Replica

    Raises
    ------
    DoesNotFitError
    """
    tables = _Tables(problem, groups, users)
    stages, exact = tables.solve(search_order=search_order)
    if not problem.has_speeds:
        return Replica(stages, users, exact, None, 1, None, None, None, None, _core.Basis.estimated)
    stream = flow(problem, stages, problem.pass_(1, users))
    per_second, micro_batches = _users_speed(problem, stages, users)
    prompt = flow(problem, stages, problem.prompt_pass)
    n_prompt = math.ceil(max(problem.parameters.max_seq_len // 2, 1) / problem.parameters.n_ubatch)
    seconds = prompt.drained(n_prompt)
    one = problem.pass_(1, users)
    times = [problem.times(stage.group, one) for stage in stages]
    n_layer = problem.model.n_layer
    reduced = sum(t.all_reduce * (s.end - s.begin) / n_layer for t, s in zip(times, stages, strict=True))
    return Replica(
        stages=stages,
        users=users,
        exact=exact,
        stream=stream,
        micro_batches=micro_batches,
        users_tokens_per_second=per_second,
        prompt_seconds=seconds,
        bubble=1.0 - n_prompt * sum(prompt.busy) / (len(stages) * seconds),
        all_reduce_seconds=reduced,
        basis=max(t.basis for t in times),
    )


def flow(problem: ShardProblem, stages: Sequence[StageOf], pass_: _core.Pass) -> Flow:
    """Price a pass through stages: hidden state in from the first host's memory, logits back to it."""
    hidden_bytes, logits_bytes = problem.message_bytes(pass_)
    groups = [stage.group for stage in stages]
    times = [problem.times(group, pass_) for group in groups]
    seconds = [float(t.layers[stage.begin : stage.end].sum()) for t, stage in zip(times, stages, strict=True)]
    seconds[-1] += times[-1].head + float(problem.host_seconds(groups[-1:], logits_bytes)[0])
    between = problem.transfers(groups, pass_)
    entry = float(problem.host_seconds(groups[:1], hidden_bytes)[0])
    return Flow(tuple(seconds), (entry, *(float(between[i - 1, i]) for i in range(1, len(groups)))))


def _users_speed(problem: ShardProblem, stages: Sequence[StageOf], users: int) -> tuple[float, int]:
    """Tokens per second of all users, and the number of micro-batches that gives it."""
    asked = problem.parameters.micro_batches
    depth = len(stages)
    candidates = {min(users, n) for n in ((asked,) if asked else (1, depth, 2 * depth))}
    best = (0.0, 1)
    for n in sorted(candidates):
        speed = users / flow(problem, stages, problem.pass_(math.ceil(users / n), users)).cycle(n)
        best = max(best, (speed, n), key=lambda pair: pair[0])
    return best


class _Tables:
    """What the solver is given for one copy."""

    def __init__(self, problem: ShardProblem, groups: Sequence[Group], users: int) -> None:
        self.problem = problem
        self.groups = tuple(groups)
        self.users = users
        self.memories = [(g, rank) for g, group in enumerate(self.groups) for rank in range(group.n_ranks)]
        found = [problem.layer_bytes(group, users) for group in self.groups]
        self.layer_bytes = np.concatenate([layers for layers, _ in found], axis=1)
        self.head_bytes = np.concatenate([head for _, head in found])
        self.capacity = np.array(
            [problem.capacity[device.name] for group in self.groups for device in group.devices], dtype=np.int64
        )
        self.run_table: list[int] | None = None
        self.run_bytes: NDArray[np.int64] | None = None
        self._seconds()

    def _seconds(self) -> None:
        problem, groups = self.problem, self.groups
        n, n_layer = len(groups), problem.model.n_layer
        if not problem.has_speeds:
            # As if speed went with memory, so that the stages are cut by it.
            room = np.array([sum(problem.capacity[d.name] for d in group.devices) for group in groups], dtype=float)
            self.layer_seconds = np.tile(1.0 / np.maximum(room, 1.0) * room.max(), (n_layer, 1))
            self.transfer = np.where(np.isinf(problem.transfers(groups, problem.pass_(1, self.users))), np.inf, 0.0)
            self.entry = self.exit = np.zeros(n)
            return
        depth = min(self.users, n)
        pass_ = problem.pass_(math.ceil(self.users / depth), self.users)
        times = [problem.times(group, pass_) for group in groups]
        hidden_bytes, logits_bytes = problem.message_bytes(pass_)
        self.layer_seconds = np.array([t.layers for t in times]).T
        self.transfer = problem.transfers(groups, pass_)
        self.entry = problem.host_seconds(groups, hidden_bytes)
        self.exit = np.array([t.head for t in times]) + problem.host_seconds(groups, logits_bytes)

    def solve(self, *, search_order: bool) -> tuple[tuple[StageOf, ...], bool]:
        """Solve, and measure what was found: without compute buffers at first, then with those of every run of layers.

        So what is found is as good as any that fits, and where the first fits, no more is measured.
        """
        throughput = self.users > 1 or not self.problem.has_speeds
        reachable = np.isfinite(self.entry) & np.isfinite(self.exit)
        blocked = np.where(reachable, 0, MAX_BYTES)[[g for g, _ in self.memories]]
        fixed = np.zeros(len(self.memories), dtype=np.int64)
        for _ in range(MAX_REPAIRS):
            found = assign(
                self.layer_seconds,
                self.layer_bytes,
                self.capacity,
                fixed_bytes=fixed,
                transfer_seconds=self.transfer,
                entry_seconds=np.where(np.isfinite(self.entry), self.entry, 0.0),
                exit_seconds=np.where(np.isfinite(self.exit), self.exit, 0.0),
                entry_bytes=blocked,
                exit_bytes=self.head_bytes + blocked,
                memory_device=[g for g, _ in self.memories],
                run_table=self.run_table,
                run_bytes=self.run_bytes,
                objective="throughput" if throughput else "latency",
                search_order=search_order,
            )
            stages = self._measure(found)
            before = fixed.copy()
            lacking = self._lacking(found, stages, fixed)
            if found.feasible and not lacking:
                return stages, found.exact and not before.any()
            if self.run_table is None and len(self.groups) > 1:  # of one stage only one run counts
                self._set_buffers()
                fixed = before
            elif (fixed == before).all():
                break
        raise DoesNotFitError(lacking)

    def _set_buffers(self) -> None:
        tables: dict[int, int] = {}
        found: list[NDArray[np.int64]] = []
        index = []
        for g, rank in self.memories:
            group = self.groups[g]
            table = self.problem.buffers(group.ranks[rank], self.users, is_cpu=group.devices[rank].is_cpu)
            if id(table) not in tables:
                tables[id(table)] = len(found)
                found.append(table)
            index.append(tables[id(table)])
        self.run_table, self.run_bytes = index, np.array(found)

    def _measure(self, found: Assignment) -> tuple[StageOf, ...]:
        stages = []
        for stage in found.stages:
            group = self.groups[stage.device]
            ranks = [
                self.problem.measure(part, stage.begin, stage.end, self.users, is_cpu=device.is_cpu)
                for part, device in zip(group.ranks, group.devices, strict=True)
            ]
            stages.append(StageOf(group, stage.begin, stage.end, tuple(ranks)))
        return tuple(stages)

    def _lacking(self, found: Assignment, stages: Sequence[StageOf], fixed: NDArray[np.int64]) -> dict[str, int]:
        """Return what memories lack; and let the solver know of it, where it counted less than was measured."""
        index = {memory: i for i, memory in enumerate(self.memories)}
        lacking = {}
        for at, stage in zip(found.stages, stages, strict=True):
            for rank, used in enumerate(stage.ranks):
                i = index[at.device, rank]
                total = used.weights_bytes + used.cache_bytes + used.compute_bytes
                if total > self.capacity[i]:
                    lacking[stage.group.devices[rank].name] = int(total - self.capacity[i])
                    counted = self.layer_bytes[stage.begin : stage.end, i].sum()
                    counted += self.head_bytes[i] if stage.end == len(self.layer_bytes) else 0
                    if self.run_table is not None and self.run_bytes is not None:
                        counted += self.run_bytes[self.run_table[i], stage.begin, stage.end]
                    fixed[i] = max(fixed[i], total - counted)
        return lacking
