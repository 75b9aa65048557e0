"""What the compiled core refuses: bad input raises ValueError, however it arrives; nothing is read out of bounds."""

from __future__ import annotations

import pytest
from planning_cases import GIB, context, core_machine, cut_model

from pshard import _core

N_LAYER = 4
MODEL = cut_model("llama31-8b-q4km", N_LAYER).core
MACHINE = core_machine()
WORKLOAD = _core.Workload(64, 8)
BUDGET = _core.Budget(8 * GIB, 64 * GIB)


def placement(layer_pattern: list[int], n_patterns: int = 1) -> _core.Placement:
    made = _core.Placement()
    made.patterns = [_core.LayerPlacement(_core.Where.cpu)] * n_patterns
    made.layer_pattern = layer_pattern
    return made


GOOD = placement([0] * N_LAYER)
PLACED = {
    "price_pass": lambda bad: _core.price_pass(MODEL, MACHINE, _core.Pass(), bad),
    "price_workload": lambda bad: _core.price_workload(MODEL, MACHINE, context(), WORKLOAD, bad),
    "memory": lambda bad: _core.memory(MODEL, bad, context(), 1),
    "compute_buffers": lambda bad: _core.ComputeBuffers(MODEL, context(), 1)(bad),
    "switch_from": lambda bad: _core.switch_cost(MODEL, MACHINE, bad, GOOD, [0] * N_LAYER),
    "switch_to": lambda bad: _core.switch_cost(MODEL, MACHINE, GOOD, bad, [0] * N_LAYER),
}


@pytest.mark.parametrize("entry", PLACED)
@pytest.mark.parametrize(
    ("layer_pattern", "n_patterns", "message"),
    [
        ([0] * 3, 1, "has 3 layers, the model 4"),
        ([0] * 300, 1, "has 300 layers, the model 4"),
        ([], 0, "has 0 layers, the model 4"),
        ([0] * N_LAYER, 0, r"layer_pattern\[0\] is 0, but the placement has 0 patterns"),
        ([0, 1, 2, 0], 2, r"layer_pattern\[2\] is 2, but the placement has 2 patterns"),
        ([0, 0, 0, 255], 1, r"layer_pattern\[3\] is 255"),
    ],
)
def test_a_placement_that_does_not_match_the_model(
    entry: str, layer_pattern: list[int], n_patterns: int, message: str
) -> None:
    PLACED[entry](GOOD)
    with pytest.raises(ValueError, match=message):
        PLACED[entry](placement(layer_pattern, n_patterns))


@pytest.mark.parametrize("n_bytes", [[], [0] * 3, [0] * 5])
def test_a_switch_needs_the_cache_of_every_layer(n_bytes: list[int]) -> None:
    with pytest.raises(ValueError, match=f"each of the model's 4 layers, not of {len(n_bytes)}"):
        _core.switch_cost(MODEL, MACHINE, GOOD, GOOD, n_bytes)


PASSED = {
    "price_pass": lambda bad: _core.price_pass(MODEL, MACHINE, bad, GOOD),
    "embedding_operations": lambda bad: _core.embedding_operations(MODEL, bad),
    "layer_operations": lambda bad: _core.layer_operations(MODEL, 0, bad),
    "head_operations": lambda bad: _core.head_operations(MODEL, bad),
}


@pytest.mark.parametrize("entry", PASSED)
@pytest.mark.parametrize(
    ("field", "least"),
    [("n_tokens", 1), ("n_outputs", 1), ("n_seqs", 1), ("n_streams", 1), ("n_kv", 0), ("n_kv_window", 0)],
)
@pytest.mark.parametrize("flash_attn", [True, False])
def test_a_pass_with_an_impossible_count(entry: str, field: str, least: int, flash_attn: bool) -> None:
    made = _core.Pass()
    made.flash_attn = flash_attn
    setattr(made, field, least)
    PASSED[entry](made)
    for value in (least - 1, -5, 1 << 31, -(1 << 63)):
        setattr(made, field, value)
        with pytest.raises(ValueError, match=f"{field} is {value}; it must be within {least}"):
            PASSED[entry](made)


CONTEXT = {
    "price_workload": lambda bad: _core.price_workload(MODEL, MACHINE, bad, WORKLOAD, GOOD),
    "memory": lambda bad: _core.memory(MODEL, GOOD, bad, 1),
    "compute_buffers": lambda bad: _core.ComputeBuffers(MODEL, bad, 1),
    "cache_cells": lambda bad: _core.cache_cells(MODEL, bad),
    "cache_bytes": lambda bad: _core.cache_bytes(MODEL, MODEL.layers[0], bad),
    "tier_pass": lambda bad: _core.tier_pass(MODEL, bad, WORKLOAD, 1),
    "stock_fit": lambda bad: _core.stock_fit(MODEL, bad, [_core.FitDevice(1 << 30)]),
}


@pytest.mark.parametrize("entry", CONTEXT)
@pytest.mark.parametrize("field", ["n_ctx", "n_batch", "n_ubatch", "n_seq_max"])
@pytest.mark.parametrize("value", [0, -5])
def test_a_context_with_an_impossible_count(entry: str, field: str, value: int) -> None:
    if (entry, field, value) == ("stock_fit", "n_ctx", 0):
        pytest.skip("leaves the context to --fit")
    bad = context()
    setattr(bad, field, value)
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be at least 1"):
        CONTEXT[entry](bad)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(IndexError):
        _core.layer_operations(MODEL, N_LAYER, _core.Pass())


@pytest.mark.parametrize("overflow", ["NOPE", "none", ""])
def test_an_unknown_overflow(overflow: str) -> None:
    with pytest.raises(ValueError, match=f"unknown overflow '{overflow}'; one of NONE, ATTN, UP and GATE"):
        _core.Knobs(1, overflow=overflow)


@pytest.mark.parametrize("overflow", ["NONE", "ATTN", "UP", "GATE"])
def test_a_known_overflow_is_kept(overflow: str) -> None:
    assert _core.Knobs(1, overflow=overflow).overflow == overflow


@pytest.mark.parametrize("tokens", [(-1, 0), (0, -1)])
def test_a_negative_workload(tokens: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="neither may be negative"):
        _core.Workload(*tokens)


@pytest.mark.parametrize("micro_batch", [0, -5])
def test_an_impossible_micro_batch(micro_batch: int) -> None:
    with pytest.raises(ValueError, match=f"n_ubatch is {micro_batch}; it must be at least 1"):
        _core.plan_stock(MODEL, MACHINE, context(), WORKLOAD, BUDGET, [512, micro_batch])


def test_tiers_and_fits_of_another_model() -> None:
    strategies = _core.strategy_names()
    fit = _core.stock_fit(MODEL, context(), [_core.FitDevice(BUDGET.vram_bytes)])
    tier = _core.plan_tier(MODEL, MACHINE, context(), WORKLOAD, BUDGET, strategies, 1, fit, context())
    assert _core.plan_runtime(MODEL, MACHINE, context(), WORKLOAD, [tier]).viable
    other = cut_model("llama31-8b-q4km", N_LAYER + 1).core
    with pytest.raises(ValueError, match="has 4 layers, the model 5"):
        _core.plan_runtime(other, MACHINE, context(), WORKLOAD, [tier])
    with pytest.raises(ValueError, match="has 4 layers, the model 5"):
        _core.plan_tier(other, MACHINE, context(), WORKLOAD, BUDGET, strategies, 1, fit, context())


def test_a_switch_on_a_machine_without_a_link_curve() -> None:
    machine = _core.Machine()
    machine.has_gpu = True
    assert _core.switch_cost(MODEL, machine, GOOD, GOOD, [0] * N_LAYER).seconds == 0.0
