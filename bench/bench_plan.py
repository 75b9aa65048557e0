"""Planning: a full ladder inside plan(), and how its cost grows with layers.

Gates: under 50 ms for 80 dense layers, under 100 ms for 94 layers of 128 experts. Seconds are the processor's, of the
fastest round: other programs only ever add. Beside them the exact numbers of placements priced and of blocks that the
allocator was replayed for. Twice the layers: the placements priced and the time of pricing one each grow by what
doubling explains.

    pytest bench/bench_plan.py
"""

from __future__ import annotations

import time

import pytest
from gguf_cases import header_of, llama_keys
from pytest_benchmark.fixture import BenchmarkFixture

from pshard import Plan, load_machine, plan, read_model
from pshard.machine.machine import Machine
from pshard.model.model import Model, model_from_header

GIB = 1 << 30
BUDGET = 12 * GIB
MAX_SECONDS = {"llama-3.3-70b:Q4_K_M": 0.050, "qwen3-235b-a22b:Q4_K_M": 0.100}
# Of about a million pairs of a placement and a layer.
MAX_REPLAYS = 6000
# What twice the layers may multiply by. The count is exact but not smooth: it depends on where the budget cuts.
MAX_GROWTH_PRICED = 2.5
MAX_GROWTH_SECONDS_PER_PLACEMENT = 2.2
BUDGET_SHARES = (0.3, 0.6, 0.9)
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


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", MAX_SECONDS)
def test_plan(benchmark: BenchmarkFixture, machine: Machine, name: str) -> None:
    model = read_model(name)
    result = benchmark.pedantic(plan, (model, machine), {"vram_bytes": BUDGET}, rounds=15, warmup_rounds=2)
    assert_is_a_plan(result)
    n_replays = sum(tier.n_replays for tier in result.tiers)
    benchmark.extra_info |= {"n_priced": n_priced(result), "n_replays": n_replays}
    assert 0 < n_replays < MAX_REPLAYS
    if benchmark.stats is None:  # --benchmark-disable
        return
    assert min(benchmark.stats.stats.data) < MAX_SECONDS[name]


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


def test_cost_grows_with_layers(benchmark: BenchmarkFixture, machine: Machine) -> None:
    small, large = synthetic(40), synthetic(80)

    def ladders(model: Model) -> tuple[float, int]:
        """Plan for three budgets that hold the same shares of any model: seconds and placements priced."""
        whole = sum(tensor.n_bytes for tensor in model.tensors)
        start = time.perf_counter()
        priced = sum(n_priced(plan(model, machine, vram_bytes=int(share * whole))) for share in BUDGET_SHARES)
        return time.perf_counter() - start, priced

    benchmark.pedantic(ladders, (large,), rounds=3, warmup_rounds=1)
    rounds = [(ladders(small), ladders(large)) for _ in range(9)]
    seconds = [min(pair[i][0] for pair in rounds) for i in (0, 1)]
    priced = [rounds[0][i][1] for i in (0, 1)]
    assert all(pair[i][1] == priced[i] for pair in rounds for i in (0, 1))
    growth = priced[1] / priced[0]
    benchmark.extra_info |= {"n_priced": priced, "growth_priced": growth, "growth_seconds": seconds[1] / seconds[0]}
    assert growth <= MAX_GROWTH_PRICED
    if benchmark.stats is not None:
        assert seconds[1] / seconds[0] <= growth * MAX_GROWTH_SECONDS_PER_PLACEMENT
