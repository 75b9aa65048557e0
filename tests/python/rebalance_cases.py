"""What tests and benches of the rebalancer share: a clock, shards of a given true speed, the document's algorithm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pshard.rebalance.balancer import LoadBalancer
from pshard.rebalance.deployment import Deployment, Tables, Way

GIB = 1 << 30


@dataclass
class Clock:
    """Seconds that pass when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shards:
    """Devices with a true time per layer, and the noise of their latencies.

    The truth is not the solver's: a pass has a part that does not depend on its layers, noise is log-normal with a
    share that neighbours in time have in common, and some passes take several times as long.
    """

    layer_us: np.ndarray  # of each device
    spread: float
    seed: int
    fixed_us: float = 0.0
    alike: float = 0.0  # correlation of a shard's neighbouring passes
    outliers: float = 0.0  # share of passes
    slowdown: np.ndarray = field(default_factory=lambda: np.ones(0))

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.state = self.random.standard_normal(len(self.layer_us))
        if not len(self.slowdown):
            self.slowdown = np.ones(len(self.layer_us))

    def true_us(self, counts: tuple[int, ...]) -> np.ndarray:
        """Median latency of each shard with so many layers; 0 without any."""
        counts_ = np.array(counts)
        busy: np.ndarray = np.where(counts_ > 0, (counts_ * self.layer_us + self.fixed_us) * self.slowdown, 0.0)
        return busy

    def latencies_us(self, counts: tuple[int, ...]) -> np.ndarray:
        """One pass; shape (D,)."""
        one: np.ndarray = self.many_latencies_us(counts, 1)[0]
        return one

    def many_latencies_us(self, counts: tuple[int, ...], n: int) -> np.ndarray:
        """Return n passes; shape (n, D)."""
        shape = (n, len(self.layer_us))
        noise = self.random.standard_normal(shape)
        if self.alike:
            for row in noise:
                self.state = row[:] = self.alike * self.state + np.sqrt(1 - self.alike**2) * row
        factors = np.exp(self.spread * noise)
        if self.outliers:
            late = self.random.random(shape) < self.outliers
            factors = np.where(late, self.random.uniform(3, 10, shape), factors)
        return self.true_us(counts) * factors


def run_passes(balancer: LoadBalancer, shards: Shards, n: int, clock: Clock, seconds: float = 0.05) -> None:
    """Record n passes, `seconds` apart."""
    deployment = balancer.deployment
    assert deployment is not None
    used = [name for name, count in zip(deployment.shards, deployment.counts, strict=True) if count]
    passes = shards.many_latencies_us(deployment.counts, n)[:, np.array(deployment.counts) > 0].tolist()
    for latencies in passes:
        clock.now += seconds
        for name, latency in zip(used, latencies, strict=True):
            balancer.record(name, latency, time_unix_s=clock.now)


def deployment(
    layer_us: np.ndarray,
    counts: tuple[int, ...],
    *,
    capacity_layers: tuple[int, ...] | None = None,
    link_bytes_per_second: np.ndarray | None = None,
    **more: Any,
) -> Deployment:
    """Layers of one GiB, predicted to take so long on each device; memories that hold so many."""
    rates = None if link_bytes_per_second is None else link_bytes_per_second.tolist()
    n_layer = sum(counts)
    tables = Tables(1, np.tile(layer_us * 1e-6, (n_layer, 1)))
    return Deployment(
        shards=tuple(f"gpu{i}" for i in range(len(counts))),
        counts=counts,
        tables={"decode": tables, "prefill": tables},
        layer_bytes=np.full((n_layer, len(counts)), GIB, dtype=np.int64),
        capacity_bytes=None if capacity_layers is None else np.array(capacity_layers, dtype=np.int64) * GIB,
        ways=None if rates is None else tuple(Way("pcie", rate) for rate in rates),
        **more,
    )


class DocumentBalancer:
    """The load balancer document's algorithm, written from its description: the baseline that ours is compared with.

    Means of all passes, whole microseconds per layer, layers in inverse proportion to them, rounded, the last shard in
    the order of a hash map taking the rest: that order is given here, since it could be any.
    """

    def __init__(self, shards: list[tuple[str, int]], *, min_samples: int = 100, threshold: float = 2.0) -> None:
        self.layers = dict(shards)
        self.min_samples = min_samples
        self.threshold = threshold
        self.total = dict.fromkeys(self.layers, 0)
        self.forwards = dict.fromkeys(self.layers, 0)

    def record(self, name: str, latency_us: float) -> None:
        self.total[name] += int(latency_us)
        self.forwards[name] += 1

    def per_layer_us(self, name: str) -> int:
        if not self.layers[name] or not self.forwards[name]:
            return 0
        return self.total[name] // self.forwards[name] // self.layers[name]

    def evaluate(self) -> dict[str, int] | None:
        """Suggested layers; None where it finds nothing to do."""
        if any(n < self.min_samples for n in self.forwards.values()):
            return None
        per_layer = {name: self.per_layer_us(name) for name in self.layers}
        known = [us for us in per_layer.values() if us > 0]
        if not known or max(known) / min(known) <= self.threshold:
            return None
        n_layer = sum(self.layers.values())
        inverse = sum(1 / us for us in known)
        suggested: dict[str, int] = {}
        for name, us in per_layer.items():
            left = n_layer - sum(suggested.values())
            share = round(n_layer / us / inverse) if us else 0
            is_last = len(suggested) == len(per_layer) - 1
            suggested[name] = left if is_last else min(share, left)
        return suggested
