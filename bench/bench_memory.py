"""The whole error table of the memory model against llama.cpp, and what an estimate costs.

python bench/bench_memory.py            table by model and set, as docs/memory.md has it
python bench/bench_memory.py --write    the same into docs/memory.md
pytest bench/bench_memory.py            time per placement and per estimate, and the exact number of replays
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))

import oracle
from memory_errors import error_table, write_table

import pshard
from pshard import _core


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
    buffers = _core.ComputeBuffers(model, _core.ContextParameters(), 512)
    placements = partial_placements(model)
    for placement in placements:
        buffers(placement)
    n_replays = buffers.n_replays
    benchmark(lambda: [buffers(placement) for placement in placements])
    benchmark.extra_info["placements"] = len(placements)
    benchmark.extra_info["replays"] = n_replays
    assert buffers.n_replays == n_replays


# 80 dense layers; 94 layers of experts.
@pytest.mark.parametrize("name", ["llama-3.3-70b:Q4_K_M", "qwen3-235b-a22b:Q4_K_M"])
@pytest.mark.parametrize("n_gpus", [1, 2])
def test_one_estimate_from_nothing(name: str, n_gpus: int, benchmark: BenchmarkFixture) -> None:
    model = pshard.read_model(name)
    report = benchmark(pshard.estimate_memory, model, n_ctx=8192, devices=[192 << 30] * n_gpus)
    assert report.fits
    assert sum(device.model_bytes for device in report.devices) > 39 << 30


if __name__ == "__main__":
    start = time.perf_counter()
    if "--write" in sys.argv:
        write_table()
    else:
        sys.stdout.write("\n".join(error_table()) + "\n")
    sys.stderr.write(f"{time.perf_counter() - start:.1f} s\n")
