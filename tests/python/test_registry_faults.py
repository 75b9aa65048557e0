"""Faults of plans: what the runtime accepts without a word and then computes wrongly, aborts on or drops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import registry_cases as cases
from gguf_cases import oracle_header

from pshard import _core
from pshard.model.model import Model, model_from_header
from pshard.registry.faults import find_faults, never_uploaded
from pshard.registry.format import Override, Registry, Section, Tier
from pshard.registry.overrides import overrides_of
from pshard.registry.reader import parse


def kinds(*tiers: Tier, model: Model | None = None, **fields: int) -> set[str]:
    variant = replace(cases.variant(200, tiers[-1].batch_size, *tiers), **fields)
    section = Section(fingerprint=7, settings=cases.SETTINGS, variants=(variant,))
    return {fault.kind for fault in find_faults(Registry((section,)), model)}


def test_a_sound_plan_has_none() -> None:
    assert kinds(cases.tier(), cases.tier(1, 16), cases.tier(2, 512)) == set()


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"overrides": cases.overrides()[:-1]}, "no_place"),
        ({"overrides": (*cases.overrides()[:-1], Override(r"blk\.(1|2)\..*", 3))}, "no_kv_place"),
        ({"overrides": (*cases.overrides(), Override(r"blk\.0\.ffn_up\.", 3))}, "kv_apart"),
        ({"overrides": (Override("^output", 7), *cases.overrides()[1:])}, "backend"),
        ({"overrides": (Override("^(output", 3), *cases.overrides()[1:])}, "pattern"),
        ({"vram_mib": 200.1}, "over_budget"),
        ({"n_pinned": 2, "n_attn_pinned": 2}, "fields_differ"),
    ],
)
def test_faults_of_a_tier(fields: dict[str, object], kind: str) -> None:
    # A second tier says how many layers there are.
    assert kind in kinds(cases.tier(**fields), cases.tier(1, 512))


def test_faults_of_a_variant() -> None:
    assert kinds(cases.tier(0, 16), cases.tier(1, 1)) >= {"tier_order"}
    assert kinds(cases.tier(), cases.tier()) >= {"tier_twice"}
    assert kinds(cases.tier(0, 0), cases.tier(1, 512)) >= {"tier_empty"}
    assert kinds(cases.tier(), cases.tier(1, 512), cache_ubatch=16) >= {"tier_dropped"}
    twice = Section(fingerprint=7, settings=cases.SETTINGS, variants=(cases.variant(), cases.variant()))
    assert {f.kind for f in find_faults(Registry((twice, twice)))} == {"variant_twice", "section_twice"}
    many = tuple(replace(cases.variant(), budget_mib=100 + i) for i in range(9))
    section = Section(fingerprint=7, settings=cases.SETTINGS, variants=many)
    faults = find_faults(Registry((section,)))
    assert [(fault.kind, fault.is_note) for fault in faults] == [("too_many", True)]


def test_what_is_never_uploaded() -> None:
    a, ab, b = frozenset("a"), frozenset("ab"), frozenset("b")
    assert never_uploaded({1: ab, 16: ab, 512: ab}) == frozenset()
    assert never_uploaded({1: ab, 16: ab, 512: a}) == frozenset()
    assert never_uploaded({1: b, 16: ab, 512: a}) == a
    assert never_uploaded({1: a, 16: ab, 512: b, 1024: a}) == a  # not in the tier between
    assert never_uploaded({1: b, 16: b, 512: a}) == frozenset()  # nothing is in both
    assert never_uploaded({1: a, 4: b}) == frozenset()  # the runtime starts with the smallest, where none has 16
    assert kinds(
        cases.tier(0, 1, overrides=cases.overrides(2, 0), n_pinned=0, n_attn_pinned=0),
        cases.tier(1, 16),
        cases.tier(2, 512),
    ) == {"never_uploaded"}


@pytest.fixture(scope="module")
def model() -> Model:
    return model_from_header(oracle_header("qwen3-32b-q4km"), "qwen3-32b")


def sample_faults(model: Model, **changes: bytes) -> set[str]:
    data = cases.sample("qwen3-32b-q4km_2000_8192_auto")
    for old, new in changes.values():
        assert old in data
        data = data.replace(old, new)
    return {fault.kind for fault in find_faults(parse(data), model) if fault.kind != "vram"}


def test_a_plan_of_the_planner_is_sound_for_its_model(model: Model) -> None:
    assert sample_faults(model) == set()


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (rb"blk\.63\.", rb"blk\.64\.", "no_such_layer"),
        (rb",blk\.63\..*=CUDA_Host:1", b"", "no_place"),
        (b"_(ch|)exps).*=", b"_(ch|)exps)x.*=", "fields_differ"),
        (b"n_attn_pinned=0", b"n_attn_pinned=65", "stale"),
    ],
)
def test_plans_are_checked_tensor_by_tensor(model: Model, old: bytes, new: bytes, kind: str) -> None:
    assert kind in sample_faults(model, only=(old, new))


def test_a_false_vram_is_found(model: Model) -> None:
    placement = _core.make_placement("STATIC_ATTNPRIO_ALLMODELS", _core.Knobs(4, 4), model.core)
    tier = cases.tier(n_pinned=4, n_attn_pinned=4, overrides=overrides_of(model, placement), vram_mib=1.0)
    assert kinds(tier, model=model) == {"vram"}


def test_rope_factors_are_a_note() -> None:
    llama = model_from_header(oracle_header("llama31-8b-q4km"), "llama")
    faults = find_faults(Registry(), llama)
    assert [(fault.kind, fault.is_note) for fault in faults] == [("rope_freqs", True)]
