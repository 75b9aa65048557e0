"""The ways to lay a model out over a pool of devices, tried by strategy; alike devices are planned once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pshard import _core
from pshard.fleet import groupings
from pshard.fleet.tpu_chips import with_chips
from pshard.sharding.copies import LEAST_GAIN, SharedUsers, tokens_per_second
from pshard.sharding.problem import NotJoinedError, ShardProblem
from pshard.sharding.replica import DoesNotFitError, Replica, plan_replica
from pshard.sharding.tensor_parallel import NotDivisibleError
from pshard.sharding.types import Priced, Refused, StrategyKind

if TYPE_CHECKING:
    from pshard.cluster.cluster import Device
    from pshard.fleet.groupings import Part, Way

# Of more copies, all are taken that have users.
MANY_COPIES = 8


class ShardSearch:
    """Tries strategies; the best way of each is kept."""

    def __init__(self, problem: ShardProblem) -> None:
        self.problem = problem
        self.users = problem.parameters.users
        self.refused: list[Refused] = []
        self.basis = _core.Basis.measured
        self._planned: dict[tuple[object, ...], tuple[list[Device], Replica | DoesNotFitError]] = {}
        self._best_copies: dict[tuple[int, int, bool], tuple[Part, Replica | None]] = {}

    def run(self) -> tuple[list[Priced], list[Refused]]:
        """Return the possible strategies, and why the others are not."""
        pool = self.problem.pool
        found = [
            self.best("none", [[(device,)] for device in pool]),
            self.best("pipeline_parallel", self._pipelines()),
            self.best("tensor_parallel", [[group] for group in self._tensor_groups()]),
            self.best("tensor_and_pipeline_parallel", self._hybrids()),
            self._data(),
            self._tpu(),
        ]
        possible = [priced for priced in found if priced is not None]
        return (possible or self._last_resort()), self.refused

    def best(self, strategy: StrategyKind, ways: Sequence[Way]) -> Priced | None:
        """Return the best of several ways to lay one copy out; this strategy's last word."""
        self.refused = [entry for entry in self.refused if entry.strategy != strategy]
        found: list[Replica] = []
        refused = []
        for way in ways:
            try:
                replica = self._replica(way, self.users)
            except (NotDivisibleError, NotJoinedError) as error:
                refused.append(Refused(strategy=strategy, reason=str(error)))
            except DoesNotFitError as error:
                reason = error.reason
                refused.append(Refused(strategy=strategy, reason=reason, missing_bytes=error.missing_bytes))
            else:
                if len(way) > 1 and len(replica.stages) == 1:
                    refused.append(Refused(strategy=strategy, reason="one stage alone is faster"))
                else:
                    found.append(replica)
        if found:
            return self._priced(strategy, [max(found, key=self._speed)])
        if not ways:
            refused = [Refused(strategy=strategy, reason=_too_few(strategy))]
        self.refused.append(min(refused, key=lambda entry: entry.missing_bytes or 1 << 60))
        return None

    def _speed(self, replica: Replica) -> float:
        speed = replica.stream_tokens_per_second if self.users == 1 else replica.users_tokens_per_second
        return speed or 0.0

    def _replica(self, way: Way, users: int) -> Replica:
        """Plan one copy; on devices that are alike it is planned once."""
        for group in way:
            self.problem.check_ranks(len(group))
        devices = [device for group in way for device in group]
        key = self.problem.alike(devices), tuple(map(len, way)), users
        if key not in self._planned:
            self._planned[key] = devices, self._plan(way, users)
        known, planned = self._planned[key]
        found = planned.on({a.name: b for a, b in zip(known, devices, strict=True)})
        if isinstance(found, DoesNotFitError):
            raise found
        return found

    def _plan(self, way: Way, users: int) -> Replica | DoesNotFitError:
        groups = [self.problem.group(devices, users) for devices in way]
        try:
            return plan_replica(self.problem, groups, users, search_order=len(groups) > 1)
        except DoesNotFitError as error:
            return error

    def _tensor_groups(self) -> Iterator[Part]:
        """Devices that may share every layer: the fastest 2, 3, ... of all, of each host, and of equal ones."""
        pool = self.problem.by_speed(self.problem.pool)
        seen = set()
        for key in (lambda d: 0, lambda d: d.host, lambda d: (d.host, d.product, d.memory_total_bytes)):
            for group in groupings.grouped(pool, key):
                for n_ranks in range(2, len(group) + 1):
                    ranks = group[:n_ranks]
                    if ranks not in seen:
                        seen.add(ranks)
                        yield ranks

    def _pipelines(self) -> list[Way]:
        """Return pipelines of single devices: of few also without some, which is faster now and then."""
        pool = self.problem.pool
        if self.problem.has_speeds and len(pool) <= groupings.ALL_GROUPINGS:
            return [way for way in groupings.of_some(pool) if 1 < len(way) == sum(map(len, way))]
        return [[(device,) for device in pool]] if len(pool) > 1 else []

    def _hybrids(self) -> list[Way]:
        """Return groups of ranks in a pipeline: of few devices every grouping, also of some; of more the likely good.

        Ranks are the fastest 2, 3, ... of each host and of each product. Where devices are not too many, also of one
        host and of all, the others are stages of their own, and the best is improved step by step.
        """
        pool = self.problem.by_speed(self.problem.pool)
        if self.problem.has_speeds and len(pool) <= groupings.ALL_GROUPINGS:
            return [way for way in groupings.of_some(pool) if 1 < len(way) < sum(map(len, way))]
        by_host = groupings.grouped(pool, lambda device: device.host)
        by_product = groupings.grouped(pool, lambda device: (device.host, device.product, device.memory_total_bytes))
        found = [*groupings.narrowed(by_host), *groupings.narrowed(by_product)]
        improves = self.problem.has_speeds and len(pool) <= groupings.IMPROVED_GROUPINGS
        if improves:
            found += [way for host in (pool, *by_host) for way in groupings.narrowed([host])]
            found = [groupings.with_others(way, pool) for way in found]
        different = {tuple(tuple(d.name for d in group) for group in way): way for way in found if len(way) > 1}
        ways: list[Way] = list(different.values())
        return self._improved(ways) if ways and improves else ways

    def _improved(self, ways: list[Way]) -> list[Way]:
        """Add what the best way becomes by changes that each make it faster."""

        def value(way: Way) -> float:
            replica = self._try(way, self.users)
            return -1.0 if replica is None else self._speed(replica)

        best = max(ways, key=value)
        while True:
            near = max((way for way in groupings.near(best) if len(way) > 1), key=value, default=best)
            if value(near) <= value(best) * (1.0 + LEAST_GAIN):
                return [*ways, best]
            best = near

    # --- copies -------------------------------------------------------------------------------------------------------

    def _data(self) -> Priced | None:
        """Try copies on parts of the pool: runs of neighbours, and such runs within hosts; some devices left over."""
        pool = self.problem.pool
        if self.users == 1 or len(pool) < 2:
            reason = "one user is served by one copy" if self.users == 1 else _too_few("data_parallel")
            self.refused.append(Refused(strategy="data_parallel", reason=reason))
            return None
        partitions = groupings.partitions(pool)
        tried: list[tuple[float, list[Part], Priced | Refused]] = []
        for layers_shared in (True, False):
            for parts in partitions:
                fastest = max((speed for speed, _, _ in tried), default=0.0)
                if not layers_shared and fastest >= self._most_of_pipelines():
                    break
                found = self._copies(parts, layers_shared=layers_shared)
                tried.append((_copies_speed(found), parts, found))
                if not self.problem.has_speeds and isinstance(found, Priced):
                    return found
        _, parts, best = max(tried, key=lambda one: one[0])
        if isinstance(best, Priced) and groupings.ALL_COPIES < len(pool) <= groupings.IMPROVED_GROUPINGS:
            best = self._improved_copies(groupings.with_others(parts, pool), best)
        if isinstance(best, Priced):
            return best
        refused = [found for _, _, found in tried if isinstance(found, Refused)]
        self.refused.append(min(refused, key=lambda entry: entry.missing_bytes or 1 << 60))
        return None

    def _improved_copies(self, parts: Sequence[Part], best: Priced) -> Priced:
        """Change the parts one by one, or give one copy all idle devices, while that makes the copies faster."""
        while True:
            others = [
                *groupings.near(parts),
                *groupings.with_idle_ones(parts, {shard.device.name for shard in best.shards}),
            ]
            near = [(self._copies(other, layers_shared=True), other) for other in others if len(other) > 1]
            found, other = max(near, key=lambda one: _copies_speed(one[0]), default=(best, parts))
            if not isinstance(found, Priced) or _copies_speed(found) <= _copies_speed(best) * (1.0 + LEAST_GAIN):
                return best
            best, parts = found, other

    def _most_of_pipelines(self) -> float:
        """Tokens per second that copies whose devices share no layer cannot exceed: no token passes one any faster."""
        return self.users / self.problem.least_seconds if self.problem.has_speeds else float("inf")

    def _copies(self, parts: Sequence[Part], *, layers_shared: bool) -> Priced | Refused:
        """Give each part of the pool a copy, in the best way that it fits, and share out the users by speed.

        No copy gets more users than it has room for. With `layers_shared` the devices of a host share every layer, else
        each device has its own; of few devices every way is tried.
        """
        copies = SharedUsers(self, layers_shared=layers_shared)
        even = -(-self.users // len(parts))
        alone = [(copies.speed(part, even) or copies.speed(part, 1), part) for part in parts]
        ranked = [(speed, part) for speed, part in sorted(alone, key=lambda one: -one[0]) if speed > 0.0]
        # No more copies than users: a copy without one serves nobody.
        ranked = ranked[: self.users]
        if len(ranked) < 2:
            return Refused(strategy="data_parallel", reason="two copies do not fit")
        # Of few copies, the fastest alone may be the best.
        least = 2 if len(ranked) <= MANY_COPIES else len(ranked)
        served = [copies.served(ranked[:n]) for n in range(least, len(ranked) + 1)]
        found = [replicas for replicas in served if not isinstance(replicas, Refused)]
        if not found:
            return next(replicas for replicas in reversed(served) if isinstance(replicas, Refused))
        return self._priced("data_parallel", max(found, key=tokens_per_second))

    def best_copy(self, part: Part, users: int, *, layers_shared: bool) -> Replica | None:
        """Return the best copy on some devices for so many users; None where it does not fit."""
        key = self.problem.alike(part), users, layers_shared
        if key not in self._best_copies:
            found = [replica for way in self._ways(part, layers_shared) if (replica := self._try(way, users))]
            best = max(found, key=lambda replica: replica.users_tokens_per_second or 0.0, default=None)
            self._best_copies[key] = part, best
        known, best = self._best_copies[key]
        return None if best is None else best.on({a.name: b for a, b in zip(known, part, strict=True)})

    def _ways(self, part: Part, layers_shared: bool) -> list[Way]:
        fastest = self.problem.by_speed(part)
        if len(self.problem.pool) <= groupings.IMPROVED_GROUPINGS and len(part) <= groupings.SMALL_PART:
            return [*groupings.groupings(fastest)]
        if not layers_shared:
            return [[(device,) for device in part]]
        by_host = groupings.grouped(part, lambda device: device.host)
        fewer = range(1, len(part)) if len(self.problem.pool) <= groupings.IMPROVED_GROUPINGS else ()
        return [[part], *([fastest[:n]] for n in fewer), *([by_host] if 1 < len(by_host) < len(part) else [])]

    def lacking(self, part: Part, users: int, *, layers_shared: bool) -> DoesNotFitError | None:
        """Return what the copy of a part lacks that comes nearest to having room for so many users."""
        errors = []
        for way in self._ways(part, layers_shared):
            try:
                self._replica(way, users)
            except DoesNotFitError as error:
                errors.append(error)
            except (NotDivisibleError, NotJoinedError):
                continue
            else:
                return None
        return min(errors, key=lambda error: error.missing_bytes, default=None)

    def _try(self, way: Way, users: int) -> Replica | None:
        try:
            return self._replica(way, users)
        except (NotDivisibleError, NotJoinedError, DoesNotFitError):
            return None

    # --- special devices ----------------------------------------------------------------------------------------------

    def _tpu(self) -> Priced | None:
        tpus = [device for device in self.problem.pool if device.family == "tpu"]
        if not tpus:
            self.refused.append(Refused(strategy="tpu_tensor_parallel", reason="there is no TPU"))
            return None
        cluster, chips = with_chips(self.problem.cluster, tpus)
        search = ShardSearch(ShardProblem(self.problem.model, cluster, self.problem.parameters))
        found = search.best("tpu_tensor_parallel", [[tuple(chips)]] if len(chips) > 1 else [])
        self.refused += search.refused
        self.basis = max(self.basis, search.basis)
        return found

    def _last_resort(self) -> list[Priced]:
        """Try the CPU alone, and behind the pool."""
        cpus = sorted(self.problem.cpus, key=lambda cpu: -self.problem.capacity[cpu.name])
        slow = [cpu for cpu in cpus if cpu.speed.source == "none"]
        if slow and self.problem.has_speeds:
            return []
        found = [self.best("none", [[(cpu,)] for cpu in cpus[:1]])]
        if self.problem.pool and cpus:
            found.append(self.best("pipeline_parallel", [[(d,) for d in (*self.problem.pool, *cpus)]]))
        return [priced for priced in found if priced is not None]

    # --- prices -------------------------------------------------------------------------------------------------------

    def _priced(self, strategy: StrategyKind, replicas: Sequence[Replica]) -> Priced:
        self.basis = max(self.basis, *(replica.basis for replica in replicas))
        shards = [shard for i, replica in enumerate(replicas) for shard in replica.shards(self.problem, i)]
        first = replicas[0]
        stages = max(len(replica.stages) for replica in replicas)
        ranks = max(stage.group.n_ranks for replica in replicas for stage in replica.stages)
        priced = self.problem.has_speeds
        return Priced(
            strategy=strategy,
            description=_describe(strategy, replicas, stages, ranks),
            shards=tuple(shards),
            n_stages=stages,
            n_ranks=ranks,
            n_replicas=len(replicas),
            users_of_replicas=tuple(replica.users for replica in replicas),
            stream_tokens_per_second=first.stream_tokens_per_second,
            users_tokens_per_second=sum(r.users_tokens_per_second or 0.0 for r in replicas) if priced else None,
            prompt_seconds=first.prompt_seconds,
            bubble=first.bubble,
            all_reduce_seconds=first.all_reduce_seconds,
            micro_batches=max(replica.micro_batches for replica in replicas),
            exact=all(replica.exact for replica in replicas),
        )


def _describe(strategy: StrategyKind, replicas: Sequence[Replica], stages: int, ranks: int) -> str:
    devices = [stage.group.devices for stage in replicas[0].stages]
    first = devices[0][0].name
    return {
        "none": f"one device ({first})",
        "pipeline_parallel": f"pipeline of {stages} stages" if stages > 1 else f"pipeline of one stage ({first})",
        "tensor_parallel": f"tensor parallel over {ranks} devices",
        "tpu_tensor_parallel": f"tensor parallel over {ranks} TPU chips",
        "tensor_and_pipeline_parallel": f"pipeline of {stages} stages, each tensor parallel over up to {ranks} devices",
        "data_parallel": f"{len(replicas)} copies, each on {sum(map(len, devices))} "
        + ("device" if sum(map(len, devices)) == 1 else "devices"),
    }[strategy]


def _copies_speed(found: Priced | Refused) -> float:
    return -1.0 if isinstance(found, Refused) else found.users_tokens_per_second or 0.0


def _too_few(strategy: StrategyKind) -> str:
    if strategy == "none":
        return "there is no accelerator"
    if strategy == "tensor_and_pipeline_parallel":
        return "no host, and no kind of device, has several accelerators beside others"
    return "it takes two accelerators"
