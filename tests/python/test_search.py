"""The search against pricing every placement: the same choice for a small part of the work."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_cases import (
    ALL_STRATEGIES,
    MODEL_NAMES,
    Rates,
    batches,
    context,
    core_machine,
    cut_model,
    models,
    rates,
    whole_model_bytes,
    without_gpu,
)

from pshard import _core
from pshard.model.model import Model

WORKLOAD = _core.Workload(1024, 256)


def both_ways(
    strategy: str,
    model: Model,
    machine: _core.Machine,
    parameters: _core.ContextParameters,
    budget: _core.Budget,
    batch: int,
) -> tuple[_core.Found, _core.Found]:
    arguments = (strategy, model.core, machine, parameters, WORKLOAD, budget, batch)
    return _core.search(*arguments), _core.search(*arguments, exhaustively=True)


def assert_same(quick: _core.Found, slow: _core.Found) -> None:
    assert quick.viable == slow.viable
    assert quick.knobs == slow.knobs
    assert quick.seconds == slow.seconds  # not approximately: the same placement priced by the same code
    for device in ("gpu", "host"):
        ours, theirs = getattr(quick.memory, device), getattr(slow.memory, device)
        for field in ("weights_bytes", "cache_bytes", "compute_bytes", "stream_bytes"):
            assert getattr(ours, field) == getattr(theirs, field)
    assert quick.missing_vram_bytes == slow.missing_vram_bytes
    assert quick.missing_ram_bytes == slow.missing_ram_bytes


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=models(),
    machine=rates().map(core_machine),
    batch=batches(),
    n_seq_max=st.sampled_from([1, 4]),
    flash_attn=st.booleans(),
    vram_share=st.floats(0.0, 1.2),
    ram_share=st.sampled_from([0.3, 1.0, 100.0]),
)
def test_chooses_what_pricing_everything_chooses(
    strategy: str,
    model: Model,
    machine: _core.Machine,
    batch: int,
    n_seq_max: int,
    flash_attn: bool,
    vram_share: float,
    ram_share: float,
) -> None:
    whole = whole_model_bytes(model)
    parameters = context(n_ubatch=max(batch, 512), n_seq_max=n_seq_max, flash_attn=flash_attn)
    budget = _core.Budget(max(1, int(vram_share * whole)), int(ram_share * whole))
    assert_same(*both_ways(strategy, model, machine, parameters, budget, batch))


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), model=models(), batch=batches(), runtime=st.booleans(), flash_attn=st.booleans())
def test_bytes_without_a_replay_are_never_too_many(
    strategy: str, data: st.DataObject, model: Model, batch: int, runtime: bool, flash_attn: bool
) -> None:
    parameters = context(n_ubatch=max(batch, 512), flash_attn=flash_attn)
    parameters.pshard_runtime = runtime
    knobs = data.draw(st.sampled_from(_core.all_knobs(strategy, model.core)))
    placement = _core.make_placement(strategy, knobs, model.core)
    buffers = _core.ComputeBuffers(model.core, parameters, batch)
    least = buffers.gpu_at_least(placement)
    assert buffers.n_replays == 0
    assert 0 <= least <= buffers(placement).gpu_bytes[0]


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@pytest.mark.parametrize(("name", "n_layer"), [("llama31-8b-q4km", 32), ("gpt-oss-20b-mxfp4", 24)])
@pytest.mark.parametrize("batch", [1, 512])
def test_chooses_the_same_for_a_whole_model(strategy: str, name: str, n_layer: int, batch: int) -> None:
    model = cut_model(name, n_layer)
    machine = core_machine(Rates(gpu_memory=900e9, link=24e9, copy_engines=2))
    whole = whole_model_bytes(model)
    for vram_share in (0.15, 0.5, 0.85):
        budget = _core.Budget(int(vram_share * whole), 1 << 50)
        assert_same(*both_ways(strategy, model, machine, context(), budget, batch))


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_without_a_gpu_there_is_one_choice(strategy: str, name: str) -> None:
    model = cut_model(name, 4)
    if strategy in ("STATIC_ATTNPRIO_ALLMODELS", "STATIC_FITPARAMS_DENSEPRIO_MOEONLY", "STOCK"):
        found = _core.search(
            strategy, model.core, without_gpu(core_machine()), context(), WORKLOAD, _core.Budget(0, 1 << 50), 1
        )
        assert found.viable
        assert (found.knobs.n_pinned, found.knobs.n_attn_pinned, found.knobs.output_on_gpu) == (0, 0, False)
        assert found.memory.gpu.total() == 0


def n_priced(model: Model, vram_share: float, batch: int) -> tuple[int, int]:
    """Placements that a tier priced, and how many there are."""
    machine = core_machine()
    parameters = context(n_ubatch=max(batch, 512))
    target = int(vram_share * whole_model_bytes(model))
    fit = _core.stock_fit(model.core, context(), [_core.FitDevice(target)])
    names = _core.strategy_names()
    tier = _core.plan_tier(
        model.core, machine, parameters, WORKLOAD, _core.Budget(target, 1 << 50), names, batch, fit, context()
    )
    return tier.n_priced, sum(len(_core.all_knobs(name, model.core)) for name in names)


@pytest.mark.parametrize("name", ["llama31-8b-q4km", "qwen3-30b-a3b-q4km"])
@pytest.mark.parametrize("batch", [1, 512])
def test_prices_a_small_part_of_the_placements(name: str, batch: int) -> None:
    model = cut_model(name, 32)
    priced, n_all = n_priced(model, 0.5, batch)
    assert n_all > 1500
    assert priced < n_all / 5


def test_refuses_an_unknown_strategy() -> None:
    model = cut_model("llama31-8b-q4km", 2)
    with pytest.raises(ValueError, match="FASTEST"):
        _core.search("FASTEST", model.core, core_machine(), context(), WORKLOAD, _core.Budget(1, 1), 1)
