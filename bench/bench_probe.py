"""CPU probes against what the same run can do: the best simple loop, the roofline, perfect overlap.

Gates: reading reaches 0.97 of the fastest simple loop (numpy's sums and maxima, and the plain C++ loop), taken in turns
on one thread, over the pages that malloc() gives, as engines read them. The best of each side counts, over more turns
where other work on the machine has kept the gate from holding. numpy asks for huge pages for its own arrays; what they
give is reported beside it. Kernels are reported as fractions of their roofline: what memory delivers, and
multiply-adds in registers. Overlap is the time that copy and product would take side by side if neither slowed the
other, over the time they take.

    pytest bench/bench_probe.py
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pshard import _core
from pshard.machine.cpus import physical_cpus
from pshard.weight_types import COMMON, interleaved_types

MAX_BYTES = 4 << 30
N_ROWS, N_COLUMNS = 4096, 4096
MIN_READ_SHARE = 0.97
ROUNDS, MOST_ROUNDS = 4, 24
KERNELS = [(name, "plain") for name in COMMON] + [(n, "interleaved") for n in interleaved_types() if n in COMMON]
POLICY = _core.MeasurePolicy(budget_seconds=0.5)


@pytest.fixture(scope="module")
def probe() -> _core.CpuProbe:
    return _core.CpuProbe(physical_cpus(), max_bytes=MAX_BYTES)


def fastest(run: Callable[[], object], rounds: int = 3) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_read_against_simple_loops(benchmark: BenchmarkFixture, probe: _core.CpuProbe) -> None:
    plain = _core.CpuProbe(physical_cpus()[:1], max_bytes=MAX_BYTES, path="scalar")
    n_bytes = int(probe.read(n_threads=1, policy=POLICY).n_bytes)
    huge = np.ones(n_bytes // 8, dtype=np.uint64)
    array = np.frombuffer(mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint64)
    array[:] = 1
    loops: dict[str, Callable[[], object]] = {
        "numpy sum": array.sum,
        "numpy max": array.max,
        "numpy max, huge pages": huge.max,
    }
    rates = dict.fromkeys(("probe", "C++ loop", *loops), 0.0)

    def compare() -> float:
        for name, reader in (("probe", probe), ("C++ loop", plain)):
            result = reader.read(n_threads=1, policy=POLICY)
            rates[name] = max(rates[name], result.n_bytes / result.time.minimum_seconds)
        for name, run in loops.items():
            rates[name] = max(rates[name], array.nbytes / fastest(run))
        return rates["probe"] / max(rates[name] for name in ("C++ loop", "numpy sum", "numpy max"))

    share = benchmark.pedantic(compare, rounds=ROUNDS if benchmark.enabled else 1)
    for _ in range(MOST_ROUNDS - ROUNDS if benchmark.enabled else 0):
        if share >= MIN_READ_SHARE:
            break
        share = compare()
    benchmark.extra_info |= {f"{name}, bytes/s": rate for name, rate in rates.items()} | {"share": share}
    if benchmark.enabled:
        assert share >= MIN_READ_SHARE


@dataclass(frozen=True)
class Roof:
    """What this run can do at most with all threads."""

    bytes_per_second: float
    flop_per_second: float
    int8_flop_per_second: float

    def of(self, type: str, result: _core.ProbeResult) -> float:
        units = self.flop_per_second if type == "F16" else self.int8_flop_per_second
        return min(units, result.n_flop / result.n_bytes * self.bytes_per_second)


@pytest.fixture(scope="module")
def roof(probe: _core.CpuProbe) -> Roof:
    peak = probe.peak(n_threads=probe.n_threads, policy=POLICY)
    read = probe.read(n_threads=probe.n_threads, policy=POLICY)
    return Roof(read.bytes_per_second, peak.floats.flop_per_second, peak.bytes.flop_per_second)


@pytest.mark.parametrize("batch", [1, 16, 512])
@pytest.mark.parametrize(("type", "layout"), KERNELS)
def test_product_against_its_roofline(
    benchmark: BenchmarkFixture, probe: _core.CpuProbe, roof: Roof, type: str, layout: str, batch: int
) -> None:
    shape = {"n_rows": N_ROWS, "n_columns": N_COLUMNS, "batch": batch, "n_threads": probe.n_threads}
    result = benchmark.pedantic(probe.product, (type, layout), shape | {"policy": POLICY}, rounds=1)
    benchmark.extra_info |= {
        "flop/s": result.flop_per_second,
        "of roofline": result.flop_per_second / roof.of(type, result),
        "noisy": result.time.is_noisy,
    }
    assert result.n_flop == 2 * N_ROWS * N_COLUMNS * batch
    assert result.is_cold


@pytest.mark.skipif(len(physical_cpus()) < 2, reason="copies and products overlap on two CPUs or more")
@pytest.mark.parametrize("batch", [1, 16])
def test_overlap_of_copy_and_product(benchmark: BenchmarkFixture, probe: _core.CpuProbe, batch: int) -> None:
    shape = {"n_rows": N_ROWS, "n_columns": N_COLUMNS, "batch": batch, "chunk_bytes": 4 << 20}
    result = benchmark.pedantic(probe.contention, ("Q4_0", "plain"), shape | {"policy": POLICY}, rounds=1)
    copy = result.copy_under_product.bytes_per_second / result.copy_alone.bytes_per_second
    product = result.product_under_copy.flop_per_second / result.product_alone.flop_per_second
    # What takes a second alone on each side takes 1 / (rate left) beside the other; both have ended with the slower.
    benchmark.extra_info |= {"copy rate left": copy, "product rate left": product, "overlap": min(copy, product, 1.0)}
    assert copy > 0
    assert product > 0
