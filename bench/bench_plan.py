"""Planning: a full ladder inside plan(), and how its cost grows with layers.

Gates: under 50 ms for 80 dense layers, under 100 ms for 94 layers of 128 experts; twice the layers cost at most about
twice the time and the placements priced. Ratios and counts compare runs of one session; the two limits are the
project's promise for a desktop core.

    pytest bench/bench_plan.py
"""

from __future__ import annotations

import statistics
import time

import pytest
from gguf_cases import header_of, llama_keys
from pytest_benchmark.fixture import BenchmarkFixture

from pshard import Plan, load_machine, plan, read_model
from pshard.machine import Machine
from pshard.model import Model, model_from_header

GIB = 1 << 30
BUDGET = 12 * GIB
MAX_SECONDS = {"llama-3.3-70b:Q4_K_M": 0.050, "qwen3-235b-a22b:Q4_K_M": 0.100}
# Doubling the layers: twice the work, and one part in ten for what does not follow from counting.
MAX_GROWTH = 2.2
Q4_K, F32 = 12, 0


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = load_machine(gpu="rtx-3060-12g", ram="256G@51GB/s", pcie="4x16")
    machine.core()  # the profile of the machine, made once per machine and not part of a plan
    return machine


def n_priced(result: Plan) -> int:
    return sum(tier.n_priced for tier in result.tiers)


def assert_is_a_plan(result: Plan) -> None:
    assert [tier.batch_size for tier in result.tiers] == [1, 16, 512, 1024, 2048, 4096, 8192]
    for tier in result.tiers:
        assert len(tier.candidates) == 6
        best = tier.candidates[tier.best]
        assert best.viable
        assert best.memory.gpu.total() <= BUDGET
        assert best.time.seconds == min(c.time.seconds for c in tier.candidates if c.viable)


@pytest.mark.parametrize("name", MAX_SECONDS)
def test_plan(benchmark: BenchmarkFixture, machine: Machine, name: str) -> None:
    model = read_model(name)
    result = benchmark.pedantic(plan, (model, machine), {"vram_bytes": BUDGET}, rounds=15, warmup_rounds=2)
    assert_is_a_plan(result)
    benchmark.extra_info["n_priced"] = n_priced(result)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = statistics.median(benchmark.stats.stats.data)
    assert seconds < MAX_SECONDS[name]


def synthetic(n_layer: int) -> Model:
    """A dense model of layers of 0.5 GB."""
    tensors = [("token_embd.weight", (8192, 128256), Q4_K), ("output_norm.weight", (8192,), F32)]
    for i in range(n_layer):
        for name, shape, kind in (
            ("attn_norm", (8192,), F32),
            ("attn_q", (8192, 8192), Q4_K),
            ("attn_k", (8192, 1024), Q4_K),
            ("attn_v", (8192, 1024), Q4_K),
            ("attn_output", (8192, 8192), Q4_K),
            ("ffn_norm", (8192,), F32),
            ("ffn_gate", (8192, 28672), Q4_K),
            ("ffn_up", (8192, 28672), Q4_K),
            ("ffn_down", (28672, 8192), Q4_K),
        ):
            tensors.append((f"blk.{i}.{name}.weight", shape, kind))
    keys = llama_keys(n_layer) | {
        "context_length": 131072,
        "embedding_length": 8192,
        "feed_forward_length": 28672,
        "attention.head_count": 64,
        "attention.head_count_kv": 8,
    }
    metadata = {f"llama.{key}": value for key, value in keys.items()} | {"general.architecture": "llama"}
    return model_from_header(header_of(metadata, tensors), f"{n_layer} layers")


def test_cost_is_linear_in_layers(benchmark: BenchmarkFixture, machine: Machine) -> None:
    small, large = synthetic(40), synthetic(80)

    def timed(model: Model) -> tuple[float, Plan]:
        # The same share of the model fits in both.
        budget = int(0.3 * model.file_bytes) if model.file_bytes else int(0.3 * sum(t.n_bytes for t in model.tensors))
        start = time.perf_counter()
        result = plan(model, machine, vram_bytes=budget)
        return time.perf_counter() - start, result

    timed(small), timed(large)
    rounds = [(timed(small), timed(large)) for _ in range(9)]
    benchmark.pedantic(timed, (large,), rounds=3)
    seconds = [statistics.median(pair[i][0] for pair in rounds) for i in (0, 1)]
    priced = [n_priced(rounds[0][i][1]) for i in (0, 1)]
    benchmark.extra_info |= {"time_ratio": seconds[1] / seconds[0], "n_priced": priced}
    assert priced[1] <= MAX_GROWTH * priced[0]
    if benchmark.stats is not None:
        assert seconds[1] <= MAX_GROWTH * seconds[0]
