"""Placements as ``ot=`` lines: short enough, exact to the tensor, the planner's own where fields say the same."""

from __future__ import annotations

from functools import cache

import pytest
import registry_cases as cases
from gguf_cases import oracle_header
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import models

from pshard import _core, catalogue
from pshard.model.model import Model, model_from_header, read_model
from pshard.registry.errors import RegistryError
from pshard.registry.format import LINE_BYTES, STRATEGIES, Override
from pshard.registry.overrides import (
    compile_pattern,
    is_at,
    line_bytes,
    overrides_of,
    placement_of,
    placement_places,
    places,
    regenerate,
    tensor_names,
)
from pshard.registry.reader import parse

LAYER_GROUPS = [group for group in _core.Group if group.name not in ("embedding", "head")]


@cache
def published() -> tuple[str, ...]:
    """One quantisation of each model of the catalogue."""
    return tuple({name.split(":")[0]: name for name in catalogue.names()}.values())


def is_exact(model: Model, placement: _core.Placement) -> bool:
    items = overrides_of(model, placement)
    assert line_bytes(items) == len("ot=" + ",".join(map(str, items)) + "\n") <= LINE_BYTES
    names = tensor_names(model)
    # As a file has it: the text is read again.
    line = parse(
        b"[fingerprint=0x0000000000000000]\n[variant budget=1 cache_ubatch=1]\n[tier 0 bs=1]\nstrategy="
        b"STATIC_ATTNPRIO_ALLMODELS n_pinned=0 n_attn_pinned=0 overflow=NONE tps=0 vram=0 output_on_gpu=0 "
        b"pin_from_back=0\not=" + ",".join(map(str, items)).encode() + b"\n"
    )
    assert not line.is_damaged
    read = line.sections[0].variants[0].tiers[0].overrides
    assert read == items
    return is_at(placement_places(model, placement), places(read, names))


@pytest.mark.parametrize("name", published())
def test_every_published_model_fits_the_readers_line(name: str) -> None:
    model = read_model(name)
    n = model.n_layer
    for strategy in _core.strategy_names():
        for knobs in (
            _core.Knobs(),
            _core.Knobs(0, n, output_on_gpu=True),
            _core.Knobs(n // 2, n, "UP" if "STATIC" not in strategy else "NONE", pin_from_back=True),
        ):
            assert is_exact(model, _core.make_placement(strategy, knobs, model.core))


def test_a_model_of_94_layers_takes_the_terse_form_and_one_of_32_the_planners() -> None:
    large = read_model("qwen3-235b-a22b:Q4_K_M")
    assert large.n_layer == 94
    items = overrides_of(large, _core.make_placement(STRATEGIES[3], _core.Knobs(0, 94), large.core))
    assert {item.buffer for item in items} == {"C"}
    assert line_bytes(items) < LINE_BYTES
    small = read_model("llama-3.1-8b:Q4_K_M")
    items = overrides_of(small, _core.make_placement(STRATEGIES[3], _core.Knobs(0, 32), small.core))
    assert str(items[2]) == r"blk\.0\.ffn_((up|gate|down)\.|(up|down|gate|gate_up)_(ch|)exps).*=CUDA_Host:3"
    assert str(items[3]) == r"blk\.0\..*=CUDA_Host:0"


@pytest.mark.parametrize("name", cases.SAMPLES)
def test_fields_regenerate_what_the_planner_wrote(name: str) -> None:
    """The rule, against every line of the samples, over-long ones included."""
    raw = cases.sample(name).decode().split("\n")
    lines = iter([line for line in raw if line.startswith("ot=")])
    for section in parse(cases.sample(name)).sections:
        for variant in section.variants:
            for tier in variant.tiers:
                if tier.strategy is None:
                    continue
                line = next(lines)
                n_layer = line.count(r"\..*=CUDA_Host:")
                assert "ot=" + ",".join(map(str, regenerate(tier, n_layer))) == line


@given(model=models(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_placement_is_said_exactly(model: Model, data: st.DataObject) -> None:
    wheres = st.sampled_from([where for where in _core.Where if where <= _core.Where.cpu])  # the runtime has one GPU
    placement = _core.Placement()
    patterns = []
    for _ in range(data.draw(st.integers(1, 3))):
        pattern = _core.LayerPlacement(data.draw(wheres))
        for group in data.draw(st.lists(st.sampled_from(LAYER_GROUPS), max_size=4)):
            pattern[group] = data.draw(wheres)
        patterns.append(pattern)
    placement.patterns = patterns
    placement.layer_pattern = [data.draw(st.integers(0, len(patterns) - 1)) for _ in range(model.n_layer)]
    placement.head = data.draw(st.sampled_from([_core.Where.pinned, _core.Where.cpu]))
    names = [t.name for layer in model.layers for tensors in layer.groups.values() for t in tensors]
    some = data.draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    placement.exceptions = [_core.TensorException(name, data.draw(wheres)) for name in some]
    assert is_exact(model, placement)
    # and back: the same bytes, wherever a tensor counts with its group or as an exception
    again = placement_of(model, places(overrides_of(model, placement), tensor_names(model)), op_offload=False)
    assert placement_places(model, again) == placement_places(model, placement)
    assert is_exact(model, again)


@given(model=models(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_four_strategies_are_what_their_fields_regenerate(model: Model, data: st.DataObject) -> None:
    strategy = data.draw(st.sampled_from(STRATEGIES))
    n_pinned = data.draw(st.integers(0, model.n_layer))
    n_attn = data.draw(st.integers(n_pinned, model.n_layer)) if strategy == STRATEGIES[3] else 0
    back, head = data.draw(st.booleans()), data.draw(st.booleans())
    placement = _core.make_placement(
        strategy, _core.Knobs(n_pinned, n_attn, output_on_gpu=head, pin_from_back=back), model.core
    )
    tier = cases.tier(
        strategy=strategy, n_pinned=n_pinned, n_attn_pinned=n_attn, output_on_gpu=head, pin_from_back=back
    )
    found = places(regenerate(tier, model.n_layer), tensor_names(model))
    assert is_at(placement_places(model, placement), found)


def test_overflow_of_a_dense_layer_is_the_planners() -> None:
    model = read_model("llama-3.1-8b:Q4_K_M")
    for overflow in ("ATTN", "UP", "GATE"):
        for strategy in STRATEGIES[:3]:
            placement = _core.make_placement(strategy, _core.Knobs(3, 0, overflow), model.core)
            tier = cases.tier(strategy=strategy, n_pinned=3, n_attn_pinned=0, overflow=overflow)
            found = places(regenerate(tier, model.n_layer), tensor_names(model))
            assert is_at(placement_places(model, placement), found)


def test_kv_goes_by_the_last_item_that_names_the_layer() -> None:
    layer, ffn = Override(r"blk\.1\..*", 0), Override(r"blk\.1\.ffn_up\.", 3)
    assert places((ffn, layer), ("blk.1.ffn_up.weight",)).layers == {1: 0}
    assert places((ffn, layer), ("blk.1.ffn_up.weight",)).tensors == {"blk.1.ffn_up.weight": 3}
    swapped = places((layer, ffn), ("blk.1.ffn_up.weight",))
    assert swapped.layers == {1: 3} and swapped.tensors == {"blk.1.ffn_up.weight": 0}
    # one pattern for two layers places their tensors and not their KV
    both = places((Override(r"blk\.(0|1)\..*", 0),), ("blk.1.ffn_up.weight",))
    assert both.layers == {} and both.tensors == {"blk.1.ffn_up.weight": 0}
    # a choice outside of a group reaches other layers
    choice = places((Override(r"blk\.1\.attn|blk\.2\.ffn", 2),), ("blk.2.ffn_up.weight",))
    assert choice.tensors == {"blk.2.ffn_up.weight": 2} and choice.layers == {1: 2, 2: 2}


@pytest.mark.parametrize("pattern", ["(a+)+b", "(" * 80, "a{9}{9}", "x" * 5000, ".*.*.*.*", "[a", "(?P<n>a)"])
def test_patterns_that_no_planner_writes_are_not_tried(pattern: str) -> None:
    assert isinstance(compile_pattern(pattern), str)
    assert places((Override(pattern, 0),), ("aaaa",)).tensors == {}


def test_a_layer_without_a_place_cannot_be_priced() -> None:
    model = model_from_header(oracle_header("qwen2-0.5b-q8_0"))
    items = overrides_of(model, _core.make_placement(STRATEGIES[3], _core.Knobs(), model.core))
    with pytest.raises(RegistryError, match="KV of layer 23"):
        placement_of(model, places(items[:-1], tensor_names(model)), op_offload=False)
