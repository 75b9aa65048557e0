"""A machine that takes no time to measure: seconds follow from the work by stated rates, and the clock is a counter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pshard.probes import Attention, Peak, Product, Read, Result, Start, Storage, Work
from pshard.profile import Sample
from pshard.rates import bits_per_weight

CORE_BYTES_PER_SECOND, DRAM_BYTES_PER_SECOND = 12e9, 20e9
CORE_FLOP_PER_SECOND, CORE_PEAK = 40e9, 100e9
START_SECONDS = 5e-6
STORAGE_BYTES_PER_SECOND = 2e9
SPREAD = 0.02


@dataclass
class FakeClock:
    """Stands still unless it is told to go on."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeProber:
    """Measures by the constants above. `change` maps work to what is different about its result, or raises."""

    clock: FakeClock = field(default_factory=FakeClock)
    set_up_seconds: float = 0.0
    change: Callable[[Work, Result], Result] = lambda work, result: result
    asked: list[tuple[Work, float]] = field(default_factory=list)

    def measure(self, work: Work, budget_seconds: float) -> Result:
        self.asked.append((work, budget_seconds))
        self.clock.now += self.set_up_seconds + budget_seconds
        return self.change(work, result(work))


def dram(n_threads: int) -> float:
    return min(DRAM_BYTES_PER_SECOND, n_threads * CORE_BYTES_PER_SECOND)


def result(work: Work) -> Result:
    n_bytes, n_flop = amounts(work)
    seconds = START_SECONDS
    if isinstance(work, Storage):
        seconds = n_bytes / STORAGE_BYTES_PER_SECOND
    elif isinstance(work, Peak):
        seconds = n_flop / (work.n_threads * CORE_PEAK)
    elif not isinstance(work, Start):
        seconds = max(n_bytes / dram(work.n_threads), n_flop / (work.n_threads * CORE_FLOP_PER_SECOND))
        if not isinstance(work, Read):
            seconds += START_SECONDS
    sample = Sample(
        median_seconds=seconds, minimum_seconds=0.97 * seconds, spread=SPREAD, drift=0.01, count=20, is_settled=True
    )
    return Result(work, sample, n_bytes, n_flop)


def amounts(work: Work) -> tuple[float, float]:
    """Bytes and FLOP of one repetition."""
    match work:
        case Read():
            return 1e9, 0.0
        case Product():
            n_weights = work.n_rows * work.n_columns * max(1, work.n_used)
            return n_weights * bits_per_weight(work.type) / 8.0, 2.0 * n_weights * work.batch
        case Attention():
            n_cells = work.depth * work.n_kv_heads * work.head_size
            return 4.0 * n_cells, 4.0 * work.batch * work.depth * work.n_heads * work.head_size
        case Peak():
            return 0.0, 1e9
        case Storage():
            return float(work.n_bytes), 0.0
        case _:
            return 0.0, 0.0


def noisy(found: Result, spread: float, drift: float = 0.0) -> Result:
    return replace(
        found,
        sample=Sample(
            median_seconds=found.sample.median_seconds,
            minimum_seconds=0.5 * found.sample.median_seconds,
            spread=spread,
            drift=drift,
            count=5,
            is_noisy=True,
        ),
    )
