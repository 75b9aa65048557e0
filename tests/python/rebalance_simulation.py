"""Scenarios that the rebalancer and the document's algorithm go through on the same latencies.

The truth is another model than the solver's. Devices differ from their predictions by up to 15 %, a pass has a part
that does not depend on layers, noise is log-normal and may be correlated, some passes take several times as long, and
speeds change. Moves are made at once, and their time is added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from rebalance_cases import GIB, Clock, DocumentBalancer, Shards, deployment, run_passes

from pshard.rebalance.balancer import LoadBalancer, RebalanceConfig
from pshard.rebalance.deployment import Deployment

LAYER_GIB = 0.25
LINK_BYTES_PER_SECOND = 10e9
PASSES_PER_LOOK = 25


@dataclass(frozen=True)
class Scenario:
    """A truth: `slowdown` and `extra_us` say by pass number what changes, as arrays of shape (D,)."""

    name: str
    layer_us: np.ndarray
    counts: tuple[int, ...]
    spread: float = 0.1
    alike: float = 0.0
    outliers: float = 0.01
    fixed_us: float = 100.0
    capacity_layers: tuple[int, ...] | None = None
    slowdown: Callable[[int], np.ndarray] | None = None
    extra_us: Callable[[int], np.ndarray] | None = None
    passes: int = 4000

    def true_us(self, number: int, counts: tuple[int, ...]) -> np.ndarray:
        counts_ = np.array(counts)
        slowdown = 1.0 if self.slowdown is None else self.slowdown(number)
        extra = 0.0 if self.extra_us is None else self.extra_us(number)
        return np.where(counts_ > 0, (counts_ * self.layer_us + self.fixed_us) * slowdown + extra, 0.0)

    def best_us(self, number: int) -> float:
        """Slowest stage of the truly best counts that fit, by trying bounds: what nobody can beat."""
        n_layer = sum(self.counts)
        slowdown = np.ones(len(self.counts)) if self.slowdown is None else self.slowdown(number)
        extra = np.zeros(len(self.counts)) if self.extra_us is None else self.extra_us(number)
        ones = self.layer_us * slowdown
        caps = np.array(self.capacity_layers or (n_layer,) * len(self.counts))
        steps = (np.arange(1, n_layer + 1)[:, None] * ones + self.fixed_us * slowdown + extra).ravel()
        low, high = 0, len(steps) - 1
        steps.sort()
        while low < high:
            middle = (low + high) // 2
            most = np.floor((steps[middle] * (1 + 1e-12) - extra - self.fixed_us * slowdown) / ones).clip(0, caps)
            low, high = (low, middle) if most.sum() >= n_layer else (middle + 1, high)
        return float(steps[low])


@dataclass
class Outcome:
    """What became of it; microseconds are the slowest stage's true ones."""

    moves: int = 0
    useless_moves: int = 0  # to what is not faster
    overflows: int = 0  # moves to more layers than fit
    move_seconds: float = 0.0
    mean_us: float = 0.0
    last_us: float = 0.0
    best_us: float = 0.0
    counts: tuple[int, ...] = ()
    history: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


def simulate(scenario: Scenario, seed: int, *, ours: bool) -> Outcome:
    """Run one of the two algorithms through a scenario; the same seed gives both the same noise."""
    random = np.random.default_rng(seed)
    n = len(scenario.counts)
    predicted = scenario.layer_us * random.uniform(0.85, 1.15, n)
    noise = Shards(np.ones(n), scenario.spread, seed, alike=scenario.alike, outliers=scenario.outliers)
    clock = Clock()
    names = [f"gpu{i}" for i in range(n)]
    counts = scenario.counts
    outcome = Outcome(history=[(0, counts)])

    def present(counts: tuple[int, ...]) -> Deployment:
        # A layer of the cases is of one GiB; here it is of less, so the link is faster.
        links = np.full(n, LINK_BYTES_PER_SECOND / LAYER_GIB)
        return deployment(predicted, counts, capacity_layers=scenario.capacity_layers, link_bytes_per_second=links)

    balancer = LoadBalancer(RebalanceConfig(eval_interval_secs=1.0), clock=clock)
    document = DocumentBalancer(list(zip(names, counts, strict=True)))
    if ours:
        balancer.deploy(present(counts))
    total = 0.0
    for number in range(scenario.passes):
        factors = noise.latencies_us((1,) * n)
        latencies = scenario.true_us(number, counts) * factors
        total += float(scenario.true_us(number, counts).max())
        clock.now += float(latencies.max()) * 1e-6
        for name, count, latency in zip(names, counts, latencies.tolist(), strict=True):
            if count and ours:
                balancer.record(name, latency, time_unix_s=clock.now)
            elif count:
                document.record(name, latency)
        if number % PASSES_PER_LOOK:
            continue
        suggested = _suggestion(balancer if ours else None, document)
        if suggested is None:
            continue
        before, after = (float(scenario.true_us(number, c).max()) for c in (counts, suggested))
        outcome.moves += 1
        outcome.useless_moves += after >= before
        if scenario.capacity_layers is not None:
            outcome.overflows += any(c > cap for c, cap in zip(suggested, scenario.capacity_layers, strict=True))
        moved = np.abs(np.array(suggested) - np.array(counts)).sum() / 2
        outcome.move_seconds += float(moved) * LAYER_GIB * GIB / LINK_BYTES_PER_SECOND
        counts = suggested
        outcome.history.append((number, counts))
        if ours:
            balancer.deploy(present(counts))
        else:
            document = DocumentBalancer(list(zip(names, counts, strict=True)))
    last = scenario.passes - 1
    outcome.counts = counts
    outcome.mean_us = total / scenario.passes
    outcome.last_us = float(scenario.true_us(last, counts).max())
    outcome.best_us = scenario.best_us(last)
    return outcome


def follow_two(
    slowdown: Callable[[float], float], seconds: float, *, retry_secs: float, seed: int = 1
) -> list[tuple[float, tuple[int, ...]]]:
    """Follow every proposal for two even devices, the second of which slows down by time; return when and what.

    Eight layers of a GiB, over links of 5 GB/s; a pass every half second.
    """
    clock = Clock()
    begin = clock.now
    layer_us = np.full(2, 500.0)
    shards = Shards(layer_us, 0.1, seed)
    balancer = LoadBalancer(
        RebalanceConfig(retry_secs=retry_secs),
        deployment(layer_us, (4, 4), link_bytes_per_second=np.full(2, 5e9)),
        clock=clock,
    )
    taken = []
    while clock.now - begin < seconds:
        shards.slowdown = np.array([1.0, slowdown(clock.now - begin)])
        run_passes(balancer, shards, 20, clock, seconds=0.5)
        decision = balancer.evaluate()
        if decision.kind == "rebalance" and balancer.deployment is not None:
            counts = tuple(count for _, count in decision.suggested or ())
            taken.append((clock.now - begin, counts))
            balancer.deploy(balancer.deployment.with_counts(counts))
    return taken


def _suggestion(balancer: LoadBalancer | None, document: DocumentBalancer) -> tuple[int, ...] | None:
    if balancer is None:
        suggested = document.evaluate()
        if suggested is None or suggested == document.layers:
            return None
        return tuple(suggested.values())
    decision = balancer.evaluate()
    return tuple(n for _, n in decision.suggested or ()) if decision.kind == "rebalance" else None


def _only(device: int, n: int, value: float) -> np.ndarray:
    return np.where(np.arange(n) == device, value, 0.0)


def _throttled(n: int, device: int, factor: float, first: int, last: int) -> Callable[[int], np.ndarray]:
    return lambda number: 1 + _only(device, n, factor - 1 if first <= number < last else 0.0)


EVEN = np.full(4, 500.0)
UNEVEN = np.array([220.0, 260.0, 300.0, 450.0, 500.0, 700.0, 900.0, 1300.0])

SCENARIOS = (
    Scenario("throttled 1.5x for good", EVEN, (16,) * 4, slowdown=_throttled(4, 2, 1.5, 1000, 10**9)),
    Scenario("throttled 3x for good", EVEN, (16,) * 4, slowdown=_throttled(4, 2, 3.0, 1000, 10**9)),
    Scenario("throttled 1.5x, then well again", EVEN, (16,) * 4, slowdown=_throttled(4, 2, 1.5, 1000, 2500)),
    Scenario(
        "slow link: 12 ms more per pass", EVEN, (16,) * 4, extra_us=lambda i: _only(1, 4, 12_000.0 if i > 800 else 0.0)
    ),
    Scenario("noise of 5 %", EVEN, (16,) * 4, spread=0.05),
    Scenario("noise of 20 %", EVEN, (16,) * 4, spread=0.2),
    Scenario("noise of 50 %", EVEN, (16,) * 4, spread=0.5, outliers=0.03),
    Scenario("noise of 20 %, alike neighbours", EVEN, (16,) * 4, spread=0.2, alike=0.8),
    Scenario("drift to 1.8x", EVEN, (16,) * 4, slowdown=lambda i: 1 + _only(0, 4, min(0.8, i / 3000))),
    Scenario("flapping 1.5x every 400", EVEN, (16,) * 4, slowdown=lambda i: 1 + _only(3, 4, 0.5 * (i // 400 % 2))),
    Scenario("eight uneven devices", UNEVEN, (10,) * 8, spread=0.2),
    Scenario(
        "eight uneven devices, tight memory", UNEVEN, (10,) * 8, spread=0.2,
        capacity_layers=(14, 12, 14, 12, 14, 12, 14, 12),
    ),
)  # fmt: skip
