"""The runtime's choice of plans."""

from __future__ import annotations

from dataclasses import replace

import planning_cases
import pytest
import registry_cases as cases
from hypothesis import given
from hypothesis import strategies as st

from pshard import _core
from pshard.registry.format import Section, Tier, Variant
from pshard.registry.overrides import overrides_of
from pshard.registry.reader import parse
from pshard.registry.rules import load, prompt_plan, switch_cost, tier_for


def section(*variants: Variant) -> Section:
    return Section(fingerprint=7, settings=cases.SETTINGS, variants=variants)


def planned(budget: int, cache_ubatch: int, *sizes: int, vram: float | None = None) -> Variant:
    tiers = tuple(cases.tier(i, size, vram_mib=float(budget if vram is None else vram)) for i, size in enumerate(sizes))
    return Variant(budget_mib=budget, cache_ubatch=cache_ubatch, tiers=tiers)


DISABLED = Variant(budget_mib=3000, cache_ubatch=512, baseline_vram_mib=2500.5)


def test_a_disabled_variant_that_fits_comes_first() -> None:
    both = section(planned(2000, 8192, 1, 8192), DISABLED)
    loaded = load(both, 2600)
    assert loaded is not None and loaded.disabled
    loaded = load(both, 2500)
    assert loaded is not None and not loaded.disabled and loaded.budget_mib == 2000


def test_the_largest_cache_then_the_largest_budget() -> None:
    many = section(planned(1000, 8192, 1), planned(1500, 8192, 1), planned(1800, 512, 1), planned(5000, 8192, 1))
    loaded = load(many, 2000)
    assert loaded is not None and (loaded.cache_ubatch, loaded.budget_mib) == (8192, 1500)
    loaded = load(many, 2000, cache_ubatch=512)
    assert loaded is not None and (loaded.cache_ubatch, loaded.budget_mib) == (512, 1800)


def test_single_tiers_are_salvaged_from_larger_budgets() -> None:
    large = planned(4000, 512, 1, 16, 512, vram=3900.0)
    large = replace(large, tiers=(large.tiers[0], replace(large.tiers[1], vram_mib=1900.0), large.tiers[2]))
    loaded = load(section(large), 2000)
    assert loaded is not None
    assert (loaded.budget_mib, loaded.salvaged, [t.batch_size for t in loaded.tiers]) == (0, (16,), [16])
    small = planned(1500, 512, 1, 512)
    loaded = load(section(small, large), 2000)
    assert loaded is not None
    assert (loaded.budget_mib, loaded.salvaged, [t.batch_size for t in loaded.tiers]) == (1500, (16,), [1, 16, 512])
    assert load(section(large), 1000) is None
    # above the chosen cache size they are dropped
    loaded = load(section(planned(1500, 8, 1, 8), large), 2000)
    assert loaded is not None and [t.batch_size for t in loaded.tiers] == [1, 8]


def test_tiers_that_are_not_viable_are_not_loaded_and_one_without_overrides_stops_it() -> None:
    whole = planned(1000, 512, 1, 512)
    loaded = load(section(replace(whole, tiers=(Tier(index=0, batch_size=1), whole.tiers[1]))), 1000)
    assert loaded is not None and [t.batch_size for t in loaded.tiers] == [512]
    loaded = load(section(replace(whole, tiers=(replace(whole.tiers[0], overrides=()), whole.tiers[1]))), 1000)
    assert loaded is not None and "bs=1" in loaded.refused


def test_the_planners_own_sample() -> None:
    two = parse(cases.sample("two_sections_two_budgets")).sections[1]
    for budget, expected in ((300, 300), (10_000, 300), (250, 200), (200, 200)):
        loaded = load(two, budget)
        assert loaded is not None and loaded.budget_mib == expected
    # below both budgets, tiers that need less: 197.3 MiB for one token, 198.3 for sixteen
    loaded = load(two, 198)
    assert loaded is not None and (loaded.budget_mib, loaded.salvaged) == (0, (1,))


@given(st.lists(st.integers(1, 9000), min_size=1, unique=True), st.integers(1, 10_000))
def test_the_smallest_tier_that_covers(sizes: list[int], n_tokens: int) -> None:
    chosen = tier_for([cases.tier(0, size) for size in sizes], n_tokens).batch_size
    assert chosen in sizes
    if chosen < n_tokens:
        assert chosen == max(sizes)
    else:
        assert not any(n_tokens <= size < chosen for size in sizes)


def test_the_micro_batch_of_a_long_prompt() -> None:
    rates = {1: 30.0, 512: 1000.0, 2048: 2000.0, 4096: 2500.0}
    tiers = tuple(cases.tier(i, size, tokens_per_second=rate) for i, (size, rate) in enumerate(rates.items()))
    loaded = load(section(Variant(budget_mib=1, cache_ubatch=4096, tiers=tiers)), 1)
    assert loaded is None or loaded  # vram is above the budget, but the budget is the variant's
    assert loaded is not None
    # 600 tokens: two of 512 take 1.024 s, one of 2048 takes 1.024 s as well, one of 4096 1.638 s; ties go to the small
    plan = prompt_plan(loaded, 600)
    assert (plan.ubatch, plan.seconds, plan.tier.batch_size) == (512, pytest.approx(1.024), 2048)
    assert prompt_plan(loaded, 8000).ubatch == 4096
    short = prompt_plan(loaded, 100)
    assert (short.ubatch, short.seconds, short.tier.batch_size) == (4096, None, 512)


def test_a_switch_moves_what_becomes_resident() -> None:
    model = planning_cases.cut_model("llama31-8b-q4km", 4)
    machine = planning_cases.core_machine()
    context = planning_cases.context()

    def tier(n_pinned: int) -> Tier:
        placement = _core.make_placement("GPUONLY_LAYERPIN_LAYERSTREAM", _core.Knobs(n_pinned), model.core)
        return cases.tier(overrides=overrides_of(model, placement))

    assert switch_cost(model, machine, tier(2), tier(2), context, 1000).seconds == 0.0
    up = switch_cost(model, machine, tier(1), tier(3), context, 1000)
    weights = sum(layer.n_bytes for layer in model.layers[1:3])
    kv = 2 * 1000 * model.kv_bytes_per_cell(0)
    assert up.up_bytes == weights + kv and up.down_bytes == 0
    down = switch_cost(model, machine, tier(3), tier(1), context, 1000)
    assert (down.up_bytes, down.down_bytes) == (0, kv)
