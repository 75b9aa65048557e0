"""Headers that no description fits: guessed with a warning, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from gguf_cases import F16, F32, Tensors, header_of, llama_keys, llama_tensors
from model_cases import decoder, make, windows, with_layers

from pshard.errors import ModelError
from pshard.memory.memory import estimate_memory
from pshard.model.model import model_from_header


def test_unknown_architecture_is_planned_with_a_warning() -> None:
    model = decoder("brand-new", 2, attention__sliding_window=64)
    assert windows(model) == [0, 0]
    assert model.kv_bytes_per_cell(0) == 2 * 2 * 64
    [warning] = model.warnings
    assert "architecture 'brand-new' is not known" in warning


def test_layers_of_an_unknown_architecture_slide_where_the_file_says_so() -> None:
    model = decoder("brand-new", 2, attention__sliding_window=64, attention__sliding_window_pattern=[True, False])
    assert windows(model) == [64, 0]


def test_layers_that_no_description_fits_are_guessed_from_their_tensors() -> None:
    known = decoder("brand-new", 2)
    metadata = {**known.header.metadata}
    tensors = [(t.name.replace("attn_output", "attn_mystery"), t.shape, t.type) for t in known.tensors]
    model = model_from_header(header_of(metadata, tensors))
    assert not model.is_replayed
    assert any("not described" in warning for warning in model.warnings)
    assert model.kv_bytes_per_cell(0) == known.kv_bytes_per_cell(0)
    sheet = estimate_memory(model, n_ctx=1024, devices=[24 << 30])
    other = estimate_memory(known, n_ctx=1024, devices=[24 << 30])
    assert sheet.devices[0].model_bytes == other.devices[0].model_bytes
    assert sheet.devices[0].context_bytes == other.devices[0].context_bytes
    assert sheet.devices[0].compute_bytes > 0
    assert sheet.devices[0].compute_bound_bytes == 4 * sheet.devices[0].compute_bytes + (256 << 20)
    assert not sheet.exact


def test_last_layers_read_the_caches_of_earlier_ones() -> None:
    keys = {"attention__sliding_window": 64, "attention__sliding_window_pattern": [True, False] * 4}
    model = decoder("gemma4", 8, attention__shared_kv_layers=4, **keys)
    assert [layer.parameters.shared_cache for layer in model.layers] == [-1, -1, -1, -1, 2, 3, 2, 3]
    assert [model.kv_bytes_per_cell(i) > 0 for i in range(8)] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("n_shared", [5, 8])
def test_a_layer_cannot_read_the_cache_of_one_that_slides_otherwise(n_shared: int) -> None:
    keys = {"attention__sliding_window": 64, "attention__sliding_window_pattern": [True, False] * 4}
    with pytest.raises(ModelError, match="would read the cache of layer"):
        decoder("gemma4", 8, attention__shared_kv_layers=n_shared, **keys)


@pytest.mark.parametrize("architecture", ["clip", "wavtokenizer-dec"])
def test_architecture_that_cannot_be_planned_is_refused(architecture: str) -> None:
    with pytest.raises(ModelError, match=f"architecture '{architecture}' cannot be planned: "):
        decoder(architecture, 2)


def test_recurrent_mixer_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="layer 0 has a recurrent mixer of unknown kind"):
        make("brand-new", llama_keys(1), with_layers({"ssm_new.weight": ((256, 64), F16)}))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"attention.head_count_kv": 3}, "64 wide, but 3 KV heads"),
        ({"attention.head_count": 0}, "0 heads"),
        ({"attention.head_count": -1}, r"head_count is -1; it must be a whole number"),
        ({"attention.head_count_kv": [2]}, "a list of 1"),
        ({"attention.key_length": 2**31}, "it must be a whole number from 0 to"),
        ({"embedding_length": "wide"}, "embedding_length is 'wide'"),
        ({"embedding_length": None}, "embedding_length is None; it must be present"),
        ({"block_count": 1}, r"tensor 'blk\.1\..*' lies outside the 1 layers"),
        ({"block_count": 3}, "layer 2 has no tensors"),
        ({"block_count": 400}, "400 layers .* not a complete model"),
        ({"block_count": 513}, r"block_count is 513; it must be a whole number from 0 to 512\. .* convert it again"),
        ({"nextn_predict_layers": 2}, "not a complete model"),
        ({"expert_count": 8, "expert_used_count": 9}, "9 experts used of 8"),
        ({"expert_count": 8}, "0 experts used of 8"),
        ({"logit_scale": float("nan")}, "logit_scale is nan"),
        ({"attention.sliding_window": 64, "attention.sliding_window_pattern": [True]}, "one flag for each"),
    ],
)
def test_contradictory_metadata_is_refused(keys: dict[str, Any], reason: str) -> None:
    architecture = "granite" if "logit_scale" in keys else "gemma3"
    given = {key: value for key, value in llama_keys(2, **keys).items() if value is not None}
    with pytest.raises(ModelError, match=reason):
        make(architecture, given, llama_tensors(2))


def expert_tensors(n_expert: int = 8) -> Tensors:
    dense = [t for t in llama_tensors(2) if "ffn_" not in t[0] or "norm" in t[0]]
    return dense + [
        (f"blk.{i}.{name}.weight", shape, F32)
        for i in range(2)
        for name, shape in (
            ("ffn_gate_inp", (256, n_expert)),
            ("ffn_gate_exps", (256, 64, n_expert)),
            ("ffn_up_exps", (256, 64, n_expert)),
            ("ffn_down_exps", (64, 256, n_expert)),
        )
    ]


@pytest.mark.parametrize(
    ("count", "used", "reason"),
    [
        (1 << 24, 1 << 24, r"llama\.expert_count is 16777216; it must be a whole number from 0 to 1024\. .* convert"),
        (8, 1 << 24, r"llama\.expert_used_count is 16777216; it must be a whole number from 0 to 1024"),
        (1024, 1024, r"'blk\.0\.ffn_gate_exps\.weight' holds 8 experts, but expert_count is 1024\. Convert"),
        (7, 2, "holds 8 experts, but expert_count is 7"),
        (0, 0, "holds 8 experts, but expert_count is 0"),
        (8, 9, "9 experts used of 8"),
    ],
)
def test_expert_counts_are_held_against_the_experts(count: int, used: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        make("llama", llama_keys(2, expert_count=count, expert_used_count=used), expert_tensors())


def test_as_many_experts_as_llama_cpp_loads_are_planned() -> None:
    keys = llama_keys(2, expert_count=1024, expert_used_count=1024)
    assert make("llama", keys, expert_tensors(1024)).hyperparameters.n_expert_used == 1024


def test_layers_that_no_key_counts_are_limited_too() -> None:
    keys = llama_keys(2)
    del keys["block_count"]
    assert make("llama", keys, llama_tensors(512)).n_layer == 512
    with pytest.raises(ModelError, match=r"llama\.block_count is 513; it must be a whole number from 0 to 512"):
        make("llama", keys, llama_tensors(513))


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("token_embd", "embedding: "),
        ("blk.1.attn_q", "layer 1: "),
        ("blk.0.attn_v", "layer 0: "),
        ("blk.1.attn_output", "layer 1: "),
        ("blk.1.ffn_up", "layer 1: "),
        ("blk.0.ffn_down", "layer 0 "),
    ],
)
def test_a_missing_tensor_is_named(missing: str, part: str) -> None:
    tensors = [t for t in llama_tensors(2) if t[0] != f"{missing}.weight"]
    name = missing.rpartition(".")[2]
    with pytest.raises(ModelError, match=rf"{part}.*{name}\.weight' is missing.* file is .*complete"):
        make("llama", llama_keys(2), tensors)


@pytest.mark.parametrize("missing", ["ffn_gate_inp", "ffn_up_exps", "ffn_down_exps"])
def test_a_missing_expert_tensor_is_named(missing: str) -> None:
    tensors = [t for t in expert_tensors() if t[0] != f"blk.1.{missing}.weight"]
    with pytest.raises(ModelError, match=f"layer 1.*{missing}.weight' is missing"):
        make("llama", llama_keys(2, expert_count=8, expert_used_count=2), tensors)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "general.architecture is None"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "general.type is 'adapter'"),
    ],
)
def test_what_is_no_model_is_refused(metadata: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        model_from_header(header_of(metadata, llama_tensors()))


def test_a_decoder_without_any_head_is_refused() -> None:
    tensors = [t for t in llama_tensors(1) if t[0] not in ("output.weight", "token_embd.weight")]
    with pytest.raises(ModelError, match=r"neither output\.weight nor token_embd\.weight"):
        make("llama", llama_keys(1), tensors)
