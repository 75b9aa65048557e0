"""Whole sharding plans: what they cost for many GPUs, and how near their groupings come to the best of all.

Cost is counted in what is planned and solved, which does not depend on the machine, and in the ratio of seconds within
one run. Groupings are held against every grouping of random small clusters.

    pytest bench/bench_sharding.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from pshard.cluster.cluster import Cluster, Device, Host, Link, LinkKind, Speed
from pshard.errors import NoFeasiblePlanError
from pshard.fleet import groupings
from pshard.fleet.solver import Assignment, assign
from pshard.model.model import Model, read_model
from pshard.sharding import replica as shard_replica
from pshard.sharding.problem import NotJoinedError, ShardProblem
from pshard.sharding.replica import DoesNotFitError, Replica, plan_replica
from pshard.sharding.sharding import plan_sharding
from pshard.sharding.tensor_parallel import NotDivisibleError
from pshard.sharding.types import ShardParameters

GIB = 1 << 30
MEMORY = {"rtx-4090-24g": 24, "rtx-3090-24g": 24, "rtx-3060-12g": 12, "rtx-4060-8g": 8, "h100-sxm-80g": 80}


def link(kind: LinkKind, ends: tuple[str, ...], rate: float, latency: float) -> Link:
    return Link(kind=kind, ends=ends, bandwidth_bytes_per_second=rate, latency_seconds=latency, source="given")


def hosts_of(names: list[list[str]], *, slots: list[float], network: float) -> Cluster:
    """Hosts of reference GPUs, each with its slots' rate, on one network."""
    hosts, devices, links = [], [], []
    for h, gpus in enumerate(names):
        host = f"h{h}"
        hosts.append(Host(name=host))
        for i, name in enumerate(gpus):
            speed = Speed(source="reference", name=name)
            devices.append(
                Device(name=f"{host}g{i}", kind="nvidia", host=host, memory_total_bytes=MEMORY[name] * GIB, speed=speed)
            )
            links.append(link("pcie", (f"{host}g{i}", host), slots[h], 5e-6))
    if len(hosts) > 1:
        links.append(link("ethernet", tuple(host.name for host in hosts), network, 10e-6))
    return Cluster(hosts=tuple(hosts), devices=tuple(devices), links=tuple(links))


def boxes(n_gpu: int) -> Cluster:
    """Boxes of eight H100 on switches, joined by InfiniBand."""
    here = hosts_of([["h100-sxm-80g"] * 8] * (n_gpu // 8), slots=[50e9] * (n_gpu // 8), network=50e9)
    switches = [
        link("nvswitch", tuple(d.name for d in here.devices if d.host == host), 370e9, 3e-6) for host in here.host_names
    ]
    return Cluster(hosts=here.hosts, devices=here.devices, links=(*here.links, *switches))


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", [1, 64])
def test_many_gpus_cost_little_more_than_few(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model("llama-3.3-70b:Q4_K_M")
    counts: list[int] = []
    seconds: list[float] = []

    def counted(*arguments: Any, **keywords: Any) -> Assignment:
        counts[-1] += 1
        return assign(*arguments, **keywords)

    monkeypatch.setattr(shard_replica, "assign", counted)
    for n_gpu in (32, 256):
        counts.append(0)
        best = float("inf")
        here = boxes(n_gpu)
        for _ in range(2):
            counts[-1] = 0
            begin = time.process_time()
            plan = plan_sharding(model, here, ShardParameters(users=users))
            best = min(best, time.process_time() - begin)
        seconds.append(best)
        assert plan.chosen is not None
    # Boxes are alike: what is new in more of them is how many copies the users are shared out among.
    assert counts[1] <= 4 * counts[0] + 8
    assert seconds[1] <= 16 * seconds[0]


# --- groupings ------------------------------------------------------------------------------------------------------


def partitions(devices: tuple[Device, ...]) -> Iterator[list[tuple[Device, ...]]]:
    """Every way to divide devices into parts."""
    if not devices:
        yield []
        return
    first, rest = devices[0], devices[1:]
    for others in partitions(rest):
        yield [(first,), *others]
        for i, part in enumerate(others):
            yield [*others[:i], (first, *part), *others[i + 1 :]]


class EveryGrouping:
    """The best of all plans: copies, groupings of each in every order, and shares of the users."""

    def __init__(self, model: Model, cluster: Cluster, users: int) -> None:
        self.problem = ShardProblem(model, cluster, ShardParameters(users=users))
        self.users = users
        self.copy = cache(self._copy)

    def speed(self) -> float:
        """Tokens per second of the users."""
        if self.users == 1:
            return self.copy(self.problem.pool, 1)
        best = 0.0
        for parts in partitions(self.problem.pool):
            # Users to the copies one after the other, each with what the rest can do with what is left.
            reachable = [0.0] + [float("-inf")] * self.users
            for part in parts:
                alone = [0.0, *(self.copy(part, n) for n in range(1, self.users + 1))]
                reachable = [max(reachable[n - m] + alone[m] for m in range(n + 1)) for n in range(self.users + 1)]
            best = max(best, reachable[self.users])
        return best

    def _copy(self, devices: tuple[Device, ...], users: int) -> float:
        found = (self._replica(groups, users) for groups in partitions(devices))
        speeds = [r.stream_tokens_per_second if users == 1 else r.users_tokens_per_second for r in found if r]
        return max((speed or 0.0 for speed in speeds), default=float("-inf"))

    def _replica(self, groups: list[tuple[Device, ...]], users: int) -> Replica | None:
        try:
            made = [self.problem.group(self.problem.by_speed(group), users) for group in groups]
            return plan_replica(self.problem, made, users, search_order=True)
        except (NotDivisibleError, NotJoinedError, DoesNotFitError):
            return None


def random_cluster(seed: int, n_gpu: int) -> Cluster:
    choose = random.Random(seed)
    names = [choose.choice(list(MEMORY)) for _ in range(n_gpu)]
    border = choose.randint(1, n_gpu)
    hosts = [part for part in (names[:border], names[border:]) if part]
    slots = [choose.choice([3e9, 12e9, 25e9]) for _ in hosts]
    return hosts_of(hosts, slots=slots, network=choose.choice([0.1e9, 1e9, 10e9]))


@pytest.mark.parametrize("every", [True, False], ids=["every grouping", "likely groupings"])
@pytest.mark.parametrize(("users", "n_gpu", "draws"), [(1, 4, 20), (1, 5, 12), (3, 4, 12)])
def test_groupings_are_within_two_percent_of_the_best_of_all(
    users: int, n_gpu: int, draws: int, every: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not every:  # as of more devices
        monkeypatch.setattr(groupings, "ALL_GROUPINGS", 0)
        monkeypatch.setattr(groupings, "ALL_COPIES", 0)
    ratios = []
    for seed in range(draws):
        here = random_cluster(seed, n_gpu)
        model = read_model(("llama-3.1-8b:Q4_K_M", "qwen2.5-32b:Q4_K_M")[seed % 2])
        exact = EveryGrouping(model, here, users).speed()
        try:
            plan = plan_sharding(model, here, ShardParameters(users=users))
        except NoFeasiblePlanError:
            assert exact <= 0.0
            continue
        assert plan.chosen is not None
        chosen = plan.chosen
        found = chosen.stream_tokens_per_second if users == 1 else chosen.users_tokens_per_second
        ratios.append(exact / found if found else float("inf"))
    assert len(ratios) > draws // 2
    assert max(ratios) <= 1.02
