"""The whole error table of the memory model against llama.cpp, and what an estimate costs.

python bench/bench_memory.py            table by model and set, as docs/memory.md has it
python bench/bench_memory.py --write    the same into docs/memory.md
pytest bench/bench_memory.py            time per placement and per estimate, and the exact number of replays
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))

import oracle
from memory_errors import error_table, write_table
from planning_cases import stretched_model
from projector_cases import write_projector_table

import pshard
from pshard import _core
from pshard.launch.placements import placement_from_flags
from pshard.model.model import Model


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


def seconds_and_replays(model: Model, n_gpus: int) -> tuple[float, int]:
    """Processor seconds of the fastest of many estimates from nothing, and the replays that one takes."""
    devices = [192 << 30] * n_gpus
    fastest = math.inf
    for _ in range(100):
        start = time.process_time()
        report = pshard.estimate_memory(model, n_ctx=8192, devices=devices)
        fastest = min(fastest, time.process_time() - start)
    assert report.fits
    placement = placement_from_flags(model.core, -1, [], devices=devices)
    context = _core.ContextParameters()
    context.n_ctx = 8192
    buffers = _core.ComputeBuffers(model.core, context, 512, n_gpus)
    buffers(placement)
    return fastest, buffers.n_replays


# 80 dense layers; 94 layers of experts; 94 of experts whose mixers are three recurrent, then one attention.
@pytest.mark.parametrize(
    ("model", "n_replays", "max_seconds"),
    [
        (lambda: pshard.read_model("llama-3.3-70b:Q4_K_M"), (6, 10), 1e-3),
        (lambda: pshard.read_model("qwen3-235b-a22b:Q4_K_M"), (7, 10), 3e-3),
        (lambda: stretched_model("qwen3-next-80b-a3b-q4km", 94), (17, 31), 3e-3),
    ],
    ids=["llama-3.3-70b", "qwen3-235b-a22b", "qwen3-next-of-94-layers"],
)
@pytest.mark.parametrize("n_gpus", [1, 2])
def test_one_estimate_as_users_call_it(
    benchmark: BenchmarkFixture,
    model: Callable[[], Model],
    n_replays: tuple[int, int],
    max_seconds: float,
    n_gpus: int,
) -> None:
    """All of `estimate_memory`, Python included, from a model whose header is read."""
    found = model()
    benchmark(pshard.estimate_memory, found, n_ctx=8192, devices=[192 << 30] * n_gpus)
    seconds, replays = seconds_and_replays(found, n_gpus)
    benchmark.extra_info |= {"processor_seconds": seconds, "replays": replays}
    assert replays == n_replays[n_gpus - 1]
    if benchmark.stats is not None:
        assert seconds < max_seconds


@pytest.mark.parametrize("name", ["llama31-8b-q4km", "qwen3-next-80b-a3b-q4km"])
def test_estimates_are_linear_in_layers(benchmark: BenchmarkFixture, name: str) -> None:
    """Twice the layers: the same replays, and about the time that doubling explains."""
    (small, few), (large, many) = (seconds_and_replays(stretched_model(name, n), 1) for n in (96, 192))
    benchmark.pedantic(pshard.estimate_memory, (stretched_model(name, 192),), {"n_ctx": 8192, "devices": [1 << 40]})
    benchmark.extra_info |= {"seconds": (small, large), "replays": (few, many)}
    assert few == many
    if benchmark.stats is not None:
        assert large < 2.5 * small


if __name__ == "__main__":
    start = time.perf_counter()
    if "--write" in sys.argv:
        write_table()
        write_projector_table()
    else:
        sys.stdout.write("\n".join(error_table()) + "\n")
    sys.stderr.write(f"{time.perf_counter() - start:.1f} s\n")
