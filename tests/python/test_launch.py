"""Flags for stock llama.cpp: what they say is the placement that they were made from, tensor by tensor."""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import groupby

import pytest
from gguf_cases import oracle_header
from hypothesis import given
from hypothesis import strategies as st

from pshard import _core, catalogue
from pshard.launch.flags import common_arguments, number_pattern, stock_arguments
from pshard.launch.placements import placement_from_flags
from pshard.model.model import Model, model_from_header, read_model

MIB = 1 << 20
# One quantisation of each model: placements do not depend on it.
NAMES = [next(names) for _, names in groupby(catalogue.names(), key=lambda name: name.partition(":")[0])]

# llama.cpp's own expansions of its short flags: for the first N layers, `blk\.<i>` and one of these.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE = r"\.ffn_(up|down|gate)\."


@cache
def model_named(name: str) -> Model:
    return read_model(name)


def context() -> _core.ContextParameters:
    parameters = _core.ContextParameters()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 8192, 2048, 512
    return parameters


def parse(model: Model, flags: list[str]) -> _core.Placement:
    """Read flags as llama.cpp does: in order, the first override that fits wins."""
    n_gpu_layers, op_offload, overrides = None, True, []
    rest = iter(flags)
    for flag in rest:
        if flag == "-ngl":
            value = next(rest)
            n_gpu_layers = -1 if value == "all" else int(value)
        elif flag == "-dev":
            assert next(rest) == "none"
            n_gpu_layers, op_offload = 0, False
        elif flag == "--no-op-offload":
            op_offload = False
        elif flag in ("--n-cpu-moe", "--n-cpu-ffn"):
            tail = EXPERTS if flag == "--n-cpu-moe" else DENSE
            overrides += [(rf"blk\.{i}{tail}", "CPU") for i in range(int(next(rest)))]
        elif flag == "-ot":
            for item in next(rest).split(","):
                assert item.count("=") == 1
                pattern, _, device = item.partition("=")
                overrides.append((pattern, device))
        else:
            pytest.fail(f"{flag} is not a placement flag")
    assert n_gpu_layers is not None
    return placement_from_flags(model.core, n_gpu_layers, overrides, op_offload=op_offload)


def wheres(model: Model, placement: _core.Placement) -> dict[str, _core.Where]:
    """Where every tensor and every layer's cache lies."""
    exceptions = {exception.name: exception.where for exception in placement.exceptions}
    found = {"head": placement.head}
    for index, layer in enumerate(model.core.layers):
        pattern = placement.patterns[placement.layer_pattern[index]]
        found[f"cache of {index}"] = pattern[_core.Group.cache]
        for tensor in layer.tensors:
            found[tensor.name] = exceptions.get(tensor.name, pattern[_core.group_of(tensor.name)])
    return found


def assert_exact(model: Model, placement: _core.Placement) -> list[str]:
    flags = stock_arguments(model, placement)
    parsed = parse(model, flags)
    assert wheres(model, parsed) == wheres(model, placement), flags
    assert parsed.op_offload == placement.op_offload
    said, meant = (_core.memory(model.core, p, context(), 512) for p in (parsed, placement))
    for device in ("gpu", "host"):
        assert getattr(said, device).weights_bytes == getattr(meant, device).weights_bytes, flags
        assert getattr(said, device).cache_bytes == getattr(meant, device).cache_bytes, flags
    return flags


@given(st.sets(st.integers(0, 1299)))
def test_number_patterns_match_just_their_numbers(numbers: set[int]) -> None:
    pattern = re.compile(rf"blk\.({number_pattern(numbers)})\." if numbers else "never")
    assert {n for n in range(1400) if pattern.search(f"blk.{n}.ffn_up.weight")} == numbers
    assert not set(",=") & set(pattern.pattern)


@given(st.integers(0, 300), st.integers(0, 300))
def test_number_patterns_of_ranges_are_short(first: int, count: int) -> None:
    numbers = range(first, first + count)
    pattern = number_pattern(numbers)
    assert {n for n in range(700) if re.fullmatch(pattern, str(n))} == set(numbers)
    assert len(pattern) <= 60


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_stock_placement_is_said_exactly(name: str) -> None:
    model = model_named(name)
    knobs = _core.all_knobs("STOCK", model.core)
    chosen = random.Random(name).sample(knobs, min(12, len(knobs)))
    for one in [knobs[0], knobs[-1], *chosen]:
        assert_exact(model, _core.make_placement("STOCK", one, model.core))


@pytest.mark.parametrize("name", NAMES)
def test_stock_fit_is_said_exactly_at_every_budget(name: str) -> None:
    model = model_named(name)
    whole = _core.stock_fit(model.core, context(), [_core.FitDevice(1 << 60)]).memory.gpu.total()
    for share in (0, 3, 11, 37, 68, 95, 100):
        gpu = _core.FitDevice(whole, whole - whole * share // 100)
        assert_exact(model, _core.stock_fit(model.core, context(), [gpu]).placement)


def test_what_fits_is_one_flag() -> None:
    model = model_named("llama-3.1-8b:Q4_K_M")
    fit = _core.stock_fit(model.core, context(), [_core.FitDevice(1 << 60)])
    assert stock_arguments(model, fit.placement) == ["-ngl", "all"]


def test_without_a_gpu_no_device_is_used() -> None:
    model = model_named("qwen3-30b-a3b:Q4_K_M")
    fit = _core.stock_fit(model.core, context(), [])
    assert assert_exact(model, fit.placement) == ["-dev", "none"]


def stock(
    model: Model, n_pinned: int, n_attn_pinned: int, overflow: str = "NONE", head: bool = True
) -> _core.Placement:
    knobs = _core.Knobs(n_pinned, n_attn_pinned, overflow, output_on_gpu=head, pin_from_back=True)
    return _core.make_placement("STOCK", knobs, model.core)


def test_short_flags_where_they_are_exact() -> None:
    experts, dense = model_named("qwen3-30b-a3b:Q4_K_M"), model_named("llama-3.1-8b:Q4_K_M")
    assert stock_arguments(experts, stock(experts, 20, 48)) == ["-ngl", "all", "--n-cpu-moe", "28"]
    assert stock_arguments(dense, stock(dense, 20, 32)) == ["-ngl", "all", "--n-cpu-ffn", "12"]
    # layers 0 to 7 are on the CPU whole, 8 to 27 with their experts only
    assert stock_arguments(experts, stock(experts, 20, 40)) == ["-ngl", "41", "--n-cpu-moe", "28"]
    assert stock_arguments(dense, stock(dense, 20, 20)) == ["-ngl", "21"]
    assert stock_arguments(dense, stock(dense, 0, 0)) == ["-ngl", "1"]
    assert stock_arguments(dense, stock(dense, 0, 0, head=False)) == ["-ngl", "0"]


def test_a_boundary_layer_and_a_head_are_named_plainly() -> None:
    dense, tied = model_named("llama-3.1-8b:Q4_K_M"), model_named("llama-3.2-1b:Q8_0")
    flags = stock_arguments(dense, stock(dense, 20, 32, "GATE", head=False))
    assert flags == [
        "-ngl", "all", "-ot",
        r"^(output|output_norm)\.=CPU,blk\.([0-9]|10)\.ffn_(down|gate|up)\.=CPU,blk\.11\.ffn_down\.=CPU",
    ]  # fmt: skip
    assert tied.tied_head
    flags = stock_arguments(tied, stock(tied, 16, 16, head=False))
    assert flags == ["-ngl", "all", "-ot", r"^(output_norm|token_embd)\.=CPU"]


def test_prediction_layers_count() -> None:
    model = model_named("glm-4.5-air:Q4_K_M")
    assert (model.n_layer, model.n_layer_nextn) == (46, 1)
    assert stock_arguments(model, stock(model, 45, 45))[:2] == ["-ngl", "47"]


@pytest.mark.parametrize(
    "strategy", ["GPUONLY_LAYERPIN_LAYERSTREAM", "GPUONLY_ATTNPIN_FFNSTREAM", "DYNAMIC_FFNCPU_ATTNSTREAM"]
)
def test_what_streams_is_never_said_with_stock_flags(strategy: str) -> None:
    for name in ("llama-3.1-8b:Q4_K_M", "qwen3-30b-a3b:Q4_K_M"):
        model = model_named(name)
        every = _core.all_knobs(strategy, model.core)
        for knobs in (*every[:20], *every[20:-20:17], *every[-20:]):
            placement = _core.make_placement(strategy, knobs, model.core)
            places = set(wheres(model, placement).values())
            if places & {_core.Where.stream_a, _core.Where.stream_b}:
                with pytest.raises(ValueError, match="streamed at every batch"):
                    stock_arguments(model, placement)


def test_what_flags_cannot_say_is_refused() -> None:
    model = model_named("llama-3.1-8b:Q4_K_M")
    front = _core.make_placement("STATIC_ATTNPRIO_ALLMODELS", _core.Knobs(4, 4), model.core)
    with pytest.raises(ValueError, match="KV is not on the GPU"):
        stock_arguments(model, front)
    biased = model_from_header(oracle_header("qwen2-0.5b-q8_0"), "biased")
    weight_alone = placement_from_flags(biased.core, 99, [(r"blk\.3\.attn_k\.weight", "CPU")])
    with pytest.raises(ValueError, match=r"blk\.3\.attn_k\.bias stays on the GPU"):
        stock_arguments(biased, weight_alone)
    streamed = stock(model, 32, 32)
    streamed.head = _core.Where.stream_a
    with pytest.raises(ValueError, match="head is streamed"):
        stock_arguments(model, streamed)


def test_single_tensors_are_said_exactly() -> None:
    model = model_named("llama-3.1-8b:Q4_K_M")
    single = placement_from_flags(model.core, 99, [(r"blk\.3\.attn_k\.", "CPU")])
    assert assert_exact(model, single) == ["-ngl", "all", "-ot", r"blk\.3\.attn_k\.=CPU"]


def test_common_arguments_leave_defaults_out() -> None:
    plain = common_arguments(
        file="m.gguf", n_ctx=8192, n_seq_max=1, flash_attn=True, type_k="f16", type_v="f16", n_threads=8
    )
    assert plain == ["-m", "m.gguf", "-c", "8192", "-fa", "on", "-t", "8"]
    full = common_arguments(
        file="m.gguf", n_ctx=64, n_seq_max=4, flash_attn=False, type_k="q8_0", type_v="f32", n_threads=1
    )
    assert full[4:] == ["-fa", "off", "-t", "1", "-np", "4", "-ctk", "q8_0", "-ctv", "f32"]
