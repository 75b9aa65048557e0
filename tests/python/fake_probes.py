"""A machine that takes no time to measure: seconds follow from the work by stated rates, and the clock is a counter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pshard.machine.profile import Sample
from pshard.machine.rates import bits_per_weight
from pshard.probe.gpu_work import (
    BesideCpu,
    BesideGpu,
    BothWays,
    Copy,
    GpuAttention,
    GpuProduct,
    GpuRead,
    GpuStart,
    GpuWork,
    Handoff,
    PageLock,
)
from pshard.probe.works import Attention, Peak, Product, Read, RecurrentScan, Result, Start, Storage, Work

CORE_BYTES_PER_SECOND, DRAM_BYTES_PER_SECOND = 12e9, 20e9
CORE_FLOP_PER_SECOND, CORE_PEAK = 40e9, 100e9
START_SECONDS = 5e-6
STORAGE_BYTES_PER_SECOND = 2e9
SPREAD = 0.02

# Of a GPU that nobody built: made up for tests, no measurement of any.
GPU_BYTES_PER_SECOND, GPU_FLOP_PER_SECOND, GPU_START_SECONDS = 300e9, 45e12, 3e-6
HOP_SECONDS, SYNCHRONISE_SECONDS, TO_GPU_SECONDS, TO_CPU_SECONDS = 5e-6, 1e-6, 8e-6, 11e-6
UP_BYTES_PER_SECOND, DOWN_BYTES_PER_SECOND, SET_UP_SECONDS, PAGEABLE_BYTES_PER_SECOND = 24e9, 25e9, 4e-6, 6e9
BESIDE_SHARE, CPU_BESIDE_SHARE = 0.8, 0.3
PAGE_LOCK_BYTES = 20 << 30


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
    if isinstance(work, GpuWork):
        return gpu_result(work)
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
    return timed(work, seconds, n_bytes, n_flop)


def timed(work: Work, seconds: float, n_bytes: float = 0.0, n_flop: float = 0.0, **parts: Result) -> Result:
    sample = Sample(
        median_seconds=seconds, minimum_seconds=0.97 * seconds, spread=SPREAD, drift=0.01, count=20, is_settled=True
    )
    return Result(work, sample, n_bytes, n_flop, parts=parts)


def copy_seconds(work: Copy) -> float:
    if work.memory == "pageable":
        return work.chunk_bytes / PAGEABLE_BYTES_PER_SECOND
    return SET_UP_SECONDS + work.chunk_bytes / (
        UP_BYTES_PER_SECOND if work.direction == "up" else DOWN_BYTES_PER_SECOND
    )


def gpu_result(work: GpuWork) -> Result:
    match work:
        case GpuRead():
            return timed(work, 1e9 / GPU_BYTES_PER_SECOND * (2.0 if work.copies else 1.0), 1e9)
        case GpuStart():
            parts = {"hop": timed(work, HOP_SECONDS), "synchronise": timed(work, SYNCHRONISE_SECONDS)}
            return timed(work, GPU_START_SECONDS, **parts)
        case Handoff():
            return timed(work, TO_GPU_SECONDS, to_cpu=timed(work, TO_CPU_SECONDS))
        case GpuProduct():
            n_matrices = min(work.n_experts, work.n_tokens * work.n_used) if work.n_used else 1
            n_weights = work.n_rows * work.n_columns
            n_bytes = n_matrices * n_weights * bits_per_weight(work.type) / 8.0
            n_flop = 2.0 * n_weights * work.n_tokens * max(1, work.n_used)
            return timed(work, GPU_START_SECONDS + roof_seconds(n_bytes, n_flop), n_bytes, n_flop)
        case GpuAttention():
            n_cells = work.depth * work.n_kv_heads * work.head_size
            n_flop = 4.0 * work.batch * work.depth * work.n_heads * work.head_size
            return timed(work, GPU_START_SECONDS + roof_seconds(4.0 * n_cells, n_flop), 4.0 * n_cells, n_flop)
        case Copy():
            return timed(work, copy_seconds(work), work.chunk_bytes)
        case BothWays():
            up, down = (copy_seconds(Copy(direction=way, chunk_bytes=work.chunk_bytes)) for way in ("up", "down"))
            n = work.chunk_bytes
            parts = {"down": timed(work, down, n), "up_beside": timed(work, up / BESIDE_SHARE, n)}
            return timed(work, up, n, **parts, down_beside=timed(work, down / BESIDE_SHARE, n))
        case BesideGpu() | BesideCpu():
            share = BESIDE_SHARE if isinstance(work, BesideGpu) else CPU_BESIDE_SHARE
            copy, product = work.chunk_bytes / UP_BYTES_PER_SECOND, 1e-3
            n_bytes = DRAM_BYTES_PER_SECOND * product
            return timed(
                work,
                copy,
                work.chunk_bytes,
                product=timed(work, product, n_bytes),
                copy_beside=timed(work, copy / share, work.chunk_bytes),
                product_beside=timed(work, product / share, n_bytes),
            )
        case PageLock():
            return timed(work, 1.0, PAGE_LOCK_BYTES)


def roof_seconds(n_bytes: float, n_flop: float) -> float:
    return max(n_bytes / GPU_BYTES_PER_SECOND, n_flop / GPU_FLOP_PER_SECOND)


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
            n_bytes = 2.0 * n_cells * bits_per_weight(work.type) / 8.0
            return n_bytes, 4.0 * work.batch * work.depth * work.n_heads * work.head_size
        case RecurrentScan():
            n_elements = work.n_heads * work.n_rows * work.n_columns
            return 4.0 * n_elements, 6.0 * n_elements * work.batch
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
