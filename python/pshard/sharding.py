"""Sharding a model over many devices: every strategy that is possible, priced, and the best of them.

The strategies are those of ai-hwaccel's sharding planner; what it decides by rules is here decided by the bytes of the
memory model, the seconds of the cost model and the links, for whole layers of real models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.shard_problem import NotJoinedError, ShardProblem
from pshard.shard_replica import DoesNotFitError, Replica, plan_replica
from pshard.shard_types import Priced, Refused, ShardingPlan, ShardParameters, StrategyKind
from pshard.tensor_parallel import NotDivisibleError, apportion, apportion_within
from pshard.tpu_chips import with_chips

if TYPE_CHECKING:
    from pshard.cluster import Cluster, Device
    from pshard.model import Model

GIB = 1 << 30
# What the document prefers, where nothing is known of speed: ranks share layers only over fast links.
PREFERENCE: tuple[StrategyKind, ...] = (
    "none", "tpu_tensor_parallel", "tensor_parallel", "tensor_and_pipeline_parallel", "pipeline_parallel",
    "data_parallel",
)  # fmt: skip
SLOW_LINKS_PREFERENCE: tuple[StrategyKind, ...] = (
    "none", "tpu_tensor_parallel", "pipeline_parallel", "tensor_and_pipeline_parallel", "tensor_parallel",
    "data_parallel",
)  # fmt: skip


def plan_sharding(model: Model, cluster: Cluster, parameters: ShardParameters | None = None) -> ShardingPlan:
    """Price every strategy and choose.

    Parameters
    ----------
    model : Model
    cluster : Cluster
    parameters : ShardParameters, optional

    Returns
    -------
    ShardingPlan
        With `chosen` None, the empty plan, where no device is available at all.

    Raises
    ------
    SettingError
        A parameter outside its range.
    NoFeasiblePlanError
        No strategy fits; with what each lacks and what would help.
    """
    from pshard.shard_heuristic import heuristic, prefers_ranks

    parameters = parameters or ShardParameters()
    _check(parameters)
    rule = heuristic(model, cluster)
    notes = [*cluster.notes]
    notes += [
        f"{device.name} is left out: {device.unavailable_reason or 'it is not available'}."
        for device in cluster.devices
        if not device.available
    ]
    if not any(device.available for device in cluster.devices):
        return ShardingPlan(
            model=model, cluster=cluster, parameters=parameters, chosen=None, others=(), refused=(), heuristic=rule,
            reason="There is no device.", basis="", warnings=model.warnings, notes=tuple(notes),
        )  # fmt: skip
    problem = ShardProblem(model, cluster, parameters)
    notes += problem.notes
    search = _Search(problem)
    found, refused = search.run()
    if not found:
        raise _does_not_fit(problem, refused)
    if problem.without_speed:
        notes.append(
            f"No speed is known of {', '.join(problem.without_speed)}: strategies are taken in a fixed order, layers "
            "are cut by memory, and nothing is priced. Give speed = ... in the cluster file."
        )
    order = PREFERENCE if prefers_ranks(cluster, len(problem.pool)) else SLOW_LINKS_PREFERENCE
    ranked = sorted(found, key=lambda priced: _rank(priced, parameters.users, order))
    chosen, *others = ranked
    return ShardingPlan(
        model=model,
        cluster=cluster,
        parameters=parameters,
        chosen=chosen,
        others=tuple(others),
        refused=tuple(refused),
        heuristic=rule,
        reason=_reason(chosen, others, parameters.users),
        basis="" if problem.without_speed else search.basis,
        warnings=tuple(model.warnings),
        notes=tuple(notes),
    )


def _check(parameters: ShardParameters) -> None:
    numbers = {
        "max_seq_len": parameters.max_seq_len,
        "users": parameters.users,
        "micro_batches": 1 if parameters.micro_batches is None else parameters.micro_batches,
        "n_ubatch": parameters.n_ubatch,
    }
    for name, value in numbers.items():
        if not 1 <= value < 1 << 31:
            message = f"{name} is {value}; a whole number from 1 to {(1 << 31) - 1} is wanted."
            raise SettingError(message)


def _rank(priced: Priced, users: int, order: Sequence[StrategyKind] = PREFERENCE) -> tuple[float, int]:
    speed = priced.stream_tokens_per_second if users == 1 else priced.users_tokens_per_second
    return (-(speed or 0.0), order.index(priced.strategy))


def _reason(chosen: Priced, others: Sequence[Priced], users: int) -> str:
    load = "one stream" if users == 1 else f"{users} users"
    if not others:
        return f"{chosen.description} is the only strategy that is possible."
    second = others[0]
    ours, theirs = (-_rank(priced, users)[0] for priced in (chosen, second))
    if ours == 0.0:
        return f"{chosen.description} comes first in the fixed order, before {second.description}."
    gain = "as fast as" if ours == theirs else f"{ours / theirs:.2f} times"
    runner_up = f"{second.description}, {theirs:.3g}"
    return f"{chosen.description}: {ours:.3g} tokens/s for {load}, {gain} the runner-up ({runner_up})."


def _does_not_fit(problem: ShardProblem, refused: Sequence[Refused]) -> NoFeasiblePlanError:
    lacking = [entry for entry in refused if entry.missing_bytes > 0]
    least = min(lacking, key=lambda entry: entry.missing_bytes, default=None)
    capacities = "; ".join(f"{name} may hold {capacity / GIB:.2f} GiB" for name, capacity in problem.capacity.items())
    why = " ".join([*(f"{entry.strategy}: {entry.reason}." for entry in refused), *problem.notes])
    helps = "a smaller quantisation or a shorter --max-seq-len"
    if problem.parameters.users > 1:
        helps = "a smaller quantisation, a shorter --max-seq-len or fewer --users"
    if least is None:
        message = f"{problem.model.name} cannot be sharded on these devices. {capacities}. {why}"
        return NoFeasiblePlanError(message, 0)
    missing = least.missing_bytes
    message = (
        f"{problem.model.name} does not fit: {missing / GIB:.2f} GiB are missing ({missing} bytes) at the least, for "
        f"{least.strategy}: {least.reason}. {capacities}. {why} It fits with that much more there, or with {helps}."
    )
    return NoFeasiblePlanError(message, missing)


class _Search:
    """Tries strategies; the best way of each is kept."""

    def __init__(self, problem: ShardProblem) -> None:
        self.problem = problem
        self.users = problem.parameters.users
        self.refused: list[Refused] = []
        self.basis = "measured"
        self._order = ("measured", "imported", "reference", "estimated")

    def run(self) -> tuple[list[Priced], list[Refused]]:
        """Return the possible strategies, and why the others are not."""
        pool = self.problem.pool
        found = [
            self.best("none", [[(device,)] for device in pool]),
            self.best("pipeline_parallel", [[(device,) for device in pool]] if len(pool) > 1 else []),
            self.best("tensor_parallel", [[group] for group in self._tensor_groups()]),
            self.best("tensor_and_pipeline_parallel", self._hybrids()),
            self._data(),
            self._tpu(),
        ]
        possible = [priced for priced in found if priced is not None]
        return (possible or self._last_resort()), self.refused

    def best(self, strategy: StrategyKind, ways: Sequence[Sequence[tuple[Device, ...]]]) -> Priced | None:
        """Return the best of several ways to lay one copy out, each a list of groups; this strategy's last word."""
        self.refused = [entry for entry in self.refused if entry.strategy != strategy]
        found, refused = [], []
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
                    found.append(self._priced(strategy, [replica]))
        if found:
            return min(found, key=lambda priced: _rank(priced, self.users))
        if not ways:
            refused = [Refused(strategy=strategy, reason=_too_few(strategy))]
        self.refused.append(min(refused, key=lambda entry: entry.missing_bytes or 1 << 60))
        return None

    def _replica(self, way: Sequence[tuple[Device, ...]], users: int, problem: ShardProblem | None = None) -> Replica:
        problem = problem or self.problem
        groups = [problem.group(devices, users) for devices in way]
        return plan_replica(problem, groups, users, search_order=len(groups) > 1)

    def _tensor_groups(self) -> Iterator[tuple[Device, ...]]:
        """Devices that may share every layer: the fastest 2, 3, ... of all, of each host, and of equal ones."""
        pool = self.problem.by_speed(self.problem.pool)
        seen = set()
        for key in (lambda d: 0, lambda d: d.host, lambda d: (d.host, d.product, d.memory_total_bytes)):
            for group in _grouped(pool, key):
                for n_ranks in range(2, len(group) + 1):
                    ranks = group[:n_ranks]
                    if ranks not in seen:
                        seen.add(ranks)
                        yield ranks

    def _hybrids(self) -> list[list[tuple[Device, ...]]]:
        by_host = _grouped(self.problem.pool, lambda device: device.host)
        if len(by_host) > 1 and any(len(group) > 1 for group in by_host):
            return _narrowed([self.problem.by_speed(group) for group in by_host])
        by_product = _grouped(
            self.problem.pool, lambda device: (device.host, device.product, device.memory_total_bytes)
        )
        return _narrowed(by_product) if len(by_product) > 1 else []

    # --- copies -------------------------------------------------------------------------------------------------------

    def _data(self) -> Priced | None:
        """Try copies on equal parts of the pool: single devices, hosts, or runs of neighbours, some left over."""
        pool = self.problem.pool
        parts: list[list[tuple[Device, ...]]] = []
        if len(pool) > 1:
            parts.append([(device,) for device in pool])
            by_host = _grouped(pool, lambda device: device.host)
            if len(by_host) > 1:
                parts.append(by_host)
            for size in range(2, len(pool) // 2 + 1):
                parts.append([pool[i : i + size] for i in range(0, len(pool) - size + 1, size)])
        if self.users == 1 or not parts:
            reason = "one user is served by one copy" if self.users == 1 else _too_few("data_parallel")
            self.refused.append(Refused(strategy="data_parallel", reason=reason))
            return None
        tried = [self._copies(part) for part in parts]
        found = [priced for priced in tried if isinstance(priced, Priced)]
        if found:
            return min(found, key=lambda priced: _rank(priced, self.users))
        refused = [entry for entry in tried if isinstance(entry, Refused)]
        self.refused.append(min(refused, key=lambda entry: entry.missing_bytes or 1 << 60))
        return None

    def _copies(self, parts: Sequence[tuple[Device, ...]]) -> Priced | Refused:
        """Give each part of the pool a copy, in the best way that it fits, and share out the users by speed.

        No copy gets more users than it has room for.
        """
        alone = []
        for part in parts:
            ways: list[list[tuple[Device, ...]]] = [[part]]
            if len(part) > 1:
                ways.append([(device,) for device in part])
            replicas = [replica for way in ways if (replica := self._try(way, 1)) is not None]
            if replicas:
                alone.append(max(replicas, key=lambda replica: replica.stream_tokens_per_second or 0.0))
        alone.sort(key=lambda replica: -(replica.stream_tokens_per_second or 0.0))
        # No more copies than users: a copy without one serves nobody.
        alone = alone[: max(self.users, 1)]
        if len(alone) < 2:
            return Refused(strategy="data_parallel", reason="two copies do not fit")
        speeds = [replica.stream_tokens_per_second or 1.0 for replica in alone]
        ways = [[stage.group.devices for stage in replica.stages] for replica in alone]
        wanted = apportion(self.users, speeds)
        served = [self._try(way, users) for way, users in zip(ways, wanted, strict=True)]
        if None in served:
            most = [self._most_users(way) for way in ways]
            if sum(most) < self.users:
                return self._too_many_users(ways, wanted, sum(most))
            shares = apportion_within(self.users, speeds, most)
            served = [self._try(way, users) for way, users in zip(ways, shares, strict=True)]
        return self._priced("data_parallel", [replica for replica in served if replica is not None])

    def _most_users(self, way: Sequence[tuple[Device, ...]]) -> int:
        """Return how many users a copy has room for, of all; it has room for one."""
        fits, too_many = 1, self.users + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._try(way, middle) is None:
                too_many = middle
            else:
                fits = middle
        return fits

    def _too_many_users(
        self, ways: Sequence[Sequence[tuple[Device, ...]]], wanted: Sequence[int], most: int
    ) -> Refused:
        """Say how many users the copies have room for, and what they lack for those that they should get."""
        lacking: dict[str, int] = {}
        for way, users in zip(ways, wanted, strict=True):
            try:
                self._replica(way, users)
            except DoesNotFitError as error:
                lacking |= error.lacking
        too_many = DoesNotFitError(lacking)
        reason = f"{len(ways)} copies have room for {most} users together; for {self.users}, {too_many.reason}"
        return Refused(strategy="data_parallel", reason=reason, missing_bytes=too_many.missing_bytes)

    def _try(self, way: Sequence[tuple[Device, ...]], users: int) -> Replica | None:
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
        problem = ShardProblem(self.problem.model, cluster, self.problem.parameters)
        return self._in(problem, lambda: self.best("tpu_tensor_parallel", [[tuple(chips)]] if len(chips) > 1 else []))

    def _in(self, problem: ShardProblem, run: Callable[[], Priced | None]) -> Priced | None:
        outer, self.problem = self.problem, problem
        try:
            return run()
        finally:
            self.problem = outer

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
        for replica in replicas:
            self.basis = max(self.basis, replica.basis.name, key=self._order.index)
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


def _grouped(devices: Sequence[Device], key: Callable[[Device], object]) -> list[tuple[Device, ...]]:
    groups: dict[object, list[Device]] = {}
    for device in devices:
        groups.setdefault(key(device), []).append(device)
    return [tuple(group) for group in groups.values()]


def _narrowed(groups: Sequence[tuple[Device, ...]]) -> list[list[tuple[Device, ...]]]:
    """Return groups of at most 2, 3, ... devices each, the first of each group."""
    largest = max(map(len, groups))
    return [[group[:n_ranks] for group in groups] for n_ranks in range(2, largest + 1)]


def _too_few(strategy: StrategyKind) -> str:
    if strategy == "none":
        return "there is no accelerator"
    if strategy == "tensor_and_pipeline_parallel":
        return "no host, and no kind of device, has several accelerators beside others"
    return "it takes two accelerators"
