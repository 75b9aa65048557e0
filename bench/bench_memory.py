"""The whole error table of the memory model against llama.cpp, and what an estimate costs.

python bench/bench_memory.py            table by model and set
pytest bench/bench_memory.py            time per placement, and the exact number of replays
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))

import oracle

from pshard import _core

MIB = 1 << 20


def error_table() -> list[str]:
    columns = f"{'rows':>4} | {'GPU exact':>9} {'within':>7} {'worst':>6} {'MiB':>7} | {'host exact':>10} {'MiB':>6}"
    lines = [f"{'model':26} {'set':13} {columns}"]
    total: dict[str, int] = defaultdict(int)
    for name in oracle.names():
        model = oracle.model(name)
        by_set: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
        for row in oracle.rows(name):
            report = row.report(model)
            by_set[row.set].append(
                (row.gpu_compute, report.gpu.compute_bytes, row.host_compute, report.host.compute_bytes)
            )
        for set_name, rows in by_set.items():
            exact = sum(want == found for want, found, _, _ in rows)
            within = sum(abs(want - found) <= max(0.15 * want, 64 * MIB) for want, found, _, _ in rows)
            worst = max(abs(want - found) / max(want, 1) for want, found, _, _ in rows)
            worst_mib = max(abs(want - found) for want, found, _, _ in rows) / MIB
            host_exact = sum(want == found for _, _, want, found in rows)
            host_mib = max(abs(want - found) for _, _, want, found in rows) / MIB
            for key, value in (("rows", len(rows)), ("exact", exact), ("within", within), ("host", host_exact)):
                total[key] += value
            lines.append(
                f"{name:26} {set_name:13} {len(rows):4} | {exact / len(rows):9.1%} {within / len(rows):7.1%} "
                f"{worst:6.1%} {worst_mib:7.1f} | {host_exact / len(rows):10.1%} {host_mib:6.1f}"
            )
    n = total["rows"]
    lines.append(
        f"all {n} rows: GPU exact {total['exact'] / n:.1%}, within 15 % or 64 MiB {total['within'] / n:.1%}; "
        f"host exact {total['host'] / n:.1%}"
    )
    return lines


def partial_placements(model: _core.Model) -> list[_core.Placement]:
    """Pinned layers in front of streamed ones, one placement per number of pinned layers."""
    n_layer = len(model.layers)
    result = []
    for n_pinned in range(n_layer + 1):
        placement = _core.Placement()
        placement.patterns = [
            _core.LayerPlacement(where) for where in (_core.Where.pinned, _core.Where.stream_a, _core.Where.stream_b)
        ]
        placement.layer_pattern = [0 if i < n_pinned else 1 + i % 2 for i in range(n_layer)]
        placement.head = _core.Where.pinned
        result.append(placement)
    return result


@pytest.mark.parametrize("name", ["llama31-8b-q4km", "qwen3-next-80b-a3b-q4km"])
def test_compute_buffers_of_a_placement(name: str, benchmark: BenchmarkFixture) -> None:
    model = oracle.model(name).core
    compute = _core.ComputeBuffers(model, _core.ContextParameters(), 512)
    placements = partial_placements(model)
    for placement in placements:
        compute(placement)
    n_replays = compute.n_replays
    benchmark(lambda: [compute(placement) for placement in placements])
    benchmark.extra_info["placements"] = len(placements)
    benchmark.extra_info["replays"] = n_replays
    assert compute.n_replays == n_replays


@pytest.mark.parametrize("name", ["llama31-8b-q4km", "qwen3-next-80b-a3b-q4km"])
def test_one_estimate_from_nothing(name: str, benchmark: BenchmarkFixture) -> None:
    model = oracle.model(name)
    row = oracle.rows(name)[0]
    placement, context = row.placement(model), row.context()
    benchmark(_core.memory, model.core, placement, context, 512)


if __name__ == "__main__":
    start = time.perf_counter()
    sys.stdout.write("\n".join(error_table()) + "\n")
    sys.stdout.write(f"{time.perf_counter() - start:.1f} s\n")
