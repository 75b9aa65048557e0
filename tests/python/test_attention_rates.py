"""Attention by the type of the cache: which series prices it, what is estimated, and that a plan says so."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace
from test_measure import measured

from pshard import _core
from pshard.machine.attention_rates import estimated_types, series_by_query, series_of_any_cache
from pshard.machine.machine import Machine, load_machine
from pshard.machine.profile import Profile, Series
from pshard.model.model import read_model
from pshard.planning.planner import Plan, plan
from pshard.probe.works import Attention

N_THREADS = 4
F16_ID, Q8_0_ID = 1, 8


def series(kind: str, depth: int | None = None, source: str = "measured", spread: float = 0.05) -> Series:
    rates = {1.0: 8e9, 32.0: 10e9, 64.0: 90e9, 512.0: 100e9} if kind == "F16" else {1.0: 6e9, 8.0: 7e9}
    return Series(
        operation="attention",
        type=kind,
        n_threads=N_THREADS,
        depth=depth,
        batch=tuple(rates),
        flop_per_second=tuple(rates.values()),
        source=source,
        spread=spread,
    )


def test_a_type_that_was_measured_is_taken_as_it_is_and_f16_below_its_tiles():
    attention = [series("Q8_0", 4096), series("F16", 4096), series("F16", 1024), series("Q8_0", 1024)]
    assert [(s.type, s.depth) for s in series_of_any_cache(attention)] == [("F16", 1024), ("F16", 4096)]
    found = series_by_query(attention)
    assert list(found["Q8_0"]) == [series("Q8_0", 1024), series("Q8_0", 4096)]
    assert [s.batch for s in found["F16"]] == [(1.0, 32.0)] * 2
    assert {s.source for s in found["F16"]} == {"measured"}


@pytest.mark.parametrize(
    ("known", "name", "like", "spread"),
    [
        (["F16", "Q8_0", "Q4_0"], "Q5_0", "Q4_0", 0.3),  # a relative
        (["F16", "Q8_0", "Q4_0"], "IQ4_NL", "Q4_0", 0.45),
        (["F16", "Q8_0"], "Q4_1", "Q8_0", 0.3),
        (["F16"], "Q8_0", "F16", 0.45),
        (["F16", "Q8_0"], "BF16", "F16", 0.3),  # no tiles, though its numbers are as wide
    ],
)
def test_what_was_not_measured_is_estimated_with_a_wider_range(known, name, like, spread):
    found = series_by_query([series(kind) for kind in known])[name]
    assert [(s.type, s.source, s.spread) for s in found] == [(like, "estimated", pytest.approx(spread))]
    assert max(found[0].batch) < 64


def test_tiles_alone_say_hardly_anything_of_single_queries():
    tiles = replace(series("F16"), batch=(512.0,), flop_per_second=(100e9,))
    assert series_by_query([tiles])["Q8_0"][0].spread >= 0.9
    assert series_by_query([]) == {}
    assert list(series_of_any_cache([])) == []


def test_only_what_was_measured_counts_as_known():
    assert estimated_types([series("F16"), series("Q8_0")], ["Q8_0", "F16", "Q4_0", "Q4_0"]) == ["Q4_0"]
    assert estimated_types([series("F16", source="reference")], ["Q8_0"]) == []


def without_quantised_caches(profile: Profile) -> Profile:
    """As a profile was before these were measured."""
    kept = tuple(s for s in profile.cpu.series if s.operation != "attention" or s.type == "F16")
    return replace(profile, cpu=replace(profile.cpu, series=kept))


def of_cpu(profile: Profile, **cache: str) -> Plan:
    return plan(
        read_model("llama-3.2-1b:Q4_0"),
        Machine("here", profile),
        vram_bytes=0,
        n_threads=N_THREADS,
        n_ctx=4096,
        prompt_tokens=2048,
        generate_tokens=16,
        **cache,
    )


def slower_over_quantised_caches(work, result):
    """A tenth of the rate: as if decoding values took most of the time."""
    return replace_seconds(result, 10.0) if isinstance(work, Attention) and work.type != "F16" else result


def replace_seconds(result, by: float):
    median, least = result.sample.median_seconds * by, result.sample.minimum_seconds * by
    return dataclasses.replace(result, sample=replace(result.sample, median_seconds=median, minimum_seconds=least))


def test_a_plan_prices_a_quantised_cache_by_its_own_rates():
    profile = measured(slower_over_quantised_caches)
    core = Machine("here", profile).core(N_THREADS).cpu
    assert [at.depth for at in core.attention_by_query[Q8_0_ID]] == [1024, 4096, 16384]
    assert core.attention_by_query[Q8_0_ID][0].rates.basis == _core.Basis.measured
    assert {at.rates.batch[-1] for at in core.attention_by_query[F16_ID]} == {32.0}
    halves = of_cpu(profile).fit_time
    packed = of_cpu(profile, type_k="q8_0", type_v="q8_0").fit_time
    mixed = of_cpu(profile, type_k="q8_0").fit_time
    assert packed.prompt_seconds > mixed.prompt_seconds > halves.prompt_seconds
    assert packed.basis == halves.basis


def test_an_old_profile_widens_the_range_and_says_so():
    profile = measured()
    old = without_quantised_caches(profile)
    cache = {"type_k": "q8_0", "type_v": "q8_0"}
    before, now = of_cpu(old, **cache), of_cpu(profile, **cache)
    assert any("Attention over a cache of Q8_0 was not measured" in warning for warning in before.warnings)
    assert before.fit_time.basis == _core.Basis.estimated
    share = before.fit_time.spread_seconds / before.fit_time.total_seconds
    assert share > 1.2 * now.fit_time.spread_seconds / now.fit_time.total_seconds
    assert not any("was not measured" in warning for warning in (*now.warnings, *of_cpu(old).warnings))
    other = of_cpu(profile, type_k="q5_1", type_v="q8_0")
    assert any("Attention over a cache of Q5_1 was not measured" in warning for warning in other.warnings)


def test_reference_machines_attend_one_by_one_over_quantised_caches():
    machine = load_machine(gpu="rtx-3090")
    cpu = machine.core(8).cpu
    (halves,), (packed,) = cpu.attention, cpu.attention_by_query[Q8_0_ID]
    assert packed.rates.rate(512.0) == pytest.approx(halves.rates.rate(63.0))
    assert packed.rates.basis == _core.Basis.estimated
    assert machine.core(8).gpu.attention_by_query == {}
