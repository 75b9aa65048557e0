"""A model against what llama.cpp logged for it, and the rules of single architectures against llama.cpp's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_cases import (
    F16,
    F32,
    Q8_0,
    Tensors,
    header_of,
    llama_keys,
    llama_tensors,
    oracle_header,
    oracle_models,
    write_llama,
    write_oracle_model,
)

from pshard import _core
from pshard.errors import GgufError, ModelError, SettingError
from pshard.memory.memory import estimate_memory
from pshard.model.architectures import ARCHITECTURES
from pshard.model.model import Model, data_type, model_from_header, read_model

MIB = 1 << 20
ROUNDING_MIB = 0.006  # the log prints two decimals


def make(architecture: str, keys: dict[str, Any], tensors: Tensors) -> Model:
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()} | {"general.architecture": architecture}
    return model_from_header(header_of(metadata, tensors))


def decoder(architecture: str, n_layer: int = 8, **keys: Any) -> Model:
    """A small model with ordinary attention and dense FFN in each layer."""
    return make(
        architecture, llama_keys(n_layer, **{k.replace("__", "."): v for k, v in keys.items()}), llama_tensors(n_layer)
    )


def windows(model: Model) -> list[int]:
    return [layer.parameters.window for layer in model.layers]


def ropes(model: Model) -> list[bool]:
    return [layer.parameters.uses_rope for layer in model.layers]


def next_token_tensors(model: Model) -> list[_core.Tensor]:
    """Return those of layers that predict tokens further on."""
    return [t for t in model.tensors if _core.layer_of(t.name) >= model.n_layer]


# --- against llama.cpp --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracle_models())
def test_layers_vocabulary_and_bytes_are_those_of_llama_cpp(name: str) -> None:
    model, expected = model_from_header(oracle_header(name)), oracle_models()[name]
    assert model.n_layer + model.n_layer_nextn == expected["n_layer"]
    assert model.hyperparameters.n_vocab == expected["n_vocab"]
    assert model.warnings == ()
    tied_copy = next(t.n_bytes for t in model.tensors if t.name == "token_embd.weight") if model.tied_head else 0
    of_next_tokens = sum(t.n_bytes for t in next_token_tensors(model))
    assert sum(model.group_bytes().values()) + of_next_tokens == model.tensor_bytes + tied_copy
    assert sum(model.bytes_by_type().values()) == model.tensor_bytes < model.file_bytes


@pytest.mark.parametrize("name", [name for name, model in oracle_models().items() if model["kv_caches"]])
def test_kv_bytes_are_those_that_llama_cpp_logged(name: str) -> None:
    model = model_from_header(oracle_header(name))
    with_kv = [i for i, layer in enumerate(model.layers) if layer.parameters.n_head_kv]
    full = [i for i in with_kv if not model.layers[i].parameters.window]
    sliding = [i for i in with_kv if model.layers[i].parameters.window]
    for caches in oracle_models()[name]["kv_caches"]:
        # With a sliding window llama.cpp logs two caches: layers without a window first.
        assert len(caches) == (2 if sliding else 1)
        for layers, (cells, n_layer, streams, type_k, k_mib, type_v, v_mib) in zip(
            (full, sliding), caches, strict=False
        ):
            assert len(layers) == n_layer
            n_bytes = sum(model.kv_bytes_per_cell(i, type_k, type_v) for i in layers) * cells * streams
            assert n_bytes / MIB == pytest.approx(k_mib + v_mib, abs=2 * ROUNDING_MIB)


@pytest.mark.parametrize("name", [name for name, model in oracle_models().items() if model["states"]])
def test_state_bytes_are_those_that_llama_cpp_logged(name: str) -> None:
    model = model_from_header(oracle_header(name))
    for n_seq, conv_mib, scan_mib in oracle_models()[name]["states"]:
        conv = sum(4 * layer.parameters.conv_state for layer in model.layers) * n_seq
        scan = sum(4 * layer.parameters.scan_state for layer in model.layers) * n_seq
        assert conv / MIB == pytest.approx(conv_mib, abs=ROUNDING_MIB)
        assert scan / MIB == pytest.approx(scan_mib, abs=ROUNDING_MIB)
        assert sum(map(model.state_bytes, range(model.n_layer))) * n_seq == conv + scan


def test_a_whole_file_reads_as_its_header(tmp_path: Path) -> None:
    model = read_model(write_oracle_model("gpt-oss-20b-mxfp4", tmp_path / "gpt.gguf"))
    oracle = model_from_header(oracle_header("gpt-oss-20b-mxfp4"))
    assert model.name == "gpt"
    assert model.group_bytes() == oracle.group_bytes()
    assert model.bytes_by_type() == oracle.bytes_by_type()
    assert model.file_bytes == pytest.approx(oracle.file_bytes, abs=4096)


def test_groups_of_a_mixture_of_experts() -> None:
    groups = model_from_header(oracle_header("qwen3-30b-a3b-q4km")).layers[0].groups
    assert {group: [t.name.removeprefix("blk.0.") for t in tensors] for group, tensors in groups.items()} == {
        "norms": ["attn_norm.weight", "ffn_norm.weight"],
        "attention": [f"attn_{n}.weight" for n in ("q", "k", "v", "output", "q_norm", "k_norm")],
        "router": ["ffn_gate_inp.weight"],
        "experts_up": ["ffn_up_exps.weight"],
        "experts_gate": ["ffn_gate_exps.weight"],
        "experts_down": ["ffn_down_exps.weight"],
    }


def test_next_token_layers_are_stored_and_left_out() -> None:
    model = model_from_header(oracle_header("glm45-air-q4km"))
    assert (model.n_layer, model.n_layer_nextn) == (46, 1)
    left_out = next_token_tensors(model)
    assert left_out == [t for t in model.tensors if t.name.startswith("blk.46.")]
    assert sum(t.n_bytes for t in left_out) > 1 << 30
    assert not {t.name for t in left_out} & {t.name for layer in model.core.layers for t in layer.tensors}


def test_equal_layers_share_a_class() -> None:
    classes = [layer.layer_class for layer in model_from_header(oracle_header("qwen3-next-80b-a3b-q4km")).core.layers]
    assert max(classes) == 3  # two mixers, each with FFN-down in two types
    assert all(classes[i] != classes[3] for i in range(0, 48, 4))


# --- rules of architectures ---------------------------------------------------------------------------------------


def test_gpt_oss_alternates_window_and_full() -> None:
    model = model_from_header(oracle_header("gpt-oss-20b-mxfp4"))
    assert windows(model) == [128, 0] * 12
    assert model.hyperparameters.traits.gating == _core.Gating.softmax_of_selected
    assert not model.hyperparameters.traits.normalised_expert_weights


def test_gemma3_attends_fully_in_every_sixth_layer() -> None:
    assert windows(decoder("gemma3", 12, attention__sliding_window=1024)) == ([1024] * 5 + [0]) * 2
    assert windows(decoder("gemma3", 12)) == [0] * 12


def test_gemma2_has_window_and_softcaps_without_being_told() -> None:
    model = decoder("gemma2", 4)
    assert windows(model) == [4096, 0, 4096, 0]
    traits = model.hyperparameters.traits
    assert (traits.attention_softcap, traits.logits_softcap, traits.scaled_embedding) == (50.0, 30.0, True)


def test_cohere2_rotates_only_where_it_slides() -> None:
    model = decoder("cohere2", 8, attention__sliding_window=4096, logit_scale=0.25)
    assert windows(model) == [4096, 4096, 4096, 0] * 2
    assert ropes(model) == [True, True, True, False] * 2
    traits = model.hyperparameters.traits
    assert traits.sum == _core.Sum.ffn_residual_attention
    assert traits.scaled_logits
    assert not traits.scaled_embedding


def test_llama4_chunks_of_8192_whatever_the_file_says() -> None:
    model = decoder("llama4", 8, attention__sliding_window=100)
    assert windows(model) == [8192, 8192, 8192, 0] * 2
    assert ropes(model) == [True, True, True, False] * 2
    assert windows(decoder("llama4", 8, attention__sliding_window=0)) == [0] * 8
    traits = model.hyperparameters.traits
    assert traits.weight_before_ffn
    assert traits.gating == _core.Gating.sigmoid


def test_window_pattern_in_the_file_goes_before_the_architectures() -> None:
    pattern = [True, False, False, True]
    by_flags = decoder("gemma3", 4, attention__sliding_window=64, attention__sliding_window_pattern=pattern)
    assert windows(by_flags) == [64, 0, 0, 64]
    by_period = decoder("gemma3", 4, attention__sliding_window=64, attention__sliding_window_pattern=2)
    assert windows(by_period) == [64, 0, 64, 0]


@pytest.mark.parametrize("architecture", ["phi3", "starcoder2", "llama", "qwen2"])
def test_a_window_that_llama_cpp_does_not_apply_is_ignored(architecture: str) -> None:
    assert windows(decoder(architecture, 4, attention__sliding_window=64)) == [0] * 4


def test_lfm2_slides_in_all_its_attention_layers() -> None:
    assert windows(decoder("lfm2", 3, attention__sliding_window=64)) == [64] * 3


def test_smollm3_leaves_every_fourth_layer_unrotated() -> None:
    assert ropes(decoder("smollm3", 8)) == [True, True, True, False] * 2


@pytest.mark.parametrize(("finetuned", "rotated"), [(None, True), (True, True), (False, False)])
def test_granite_switches_rope_off(finetuned: bool | None, rotated: bool) -> None:
    keys = {} if finetuned is None else {"rope__scaling__finetuned": finetuned}
    assert ropes(decoder("granite", 2, **keys)) == [rotated] * 2
    assert ropes(decoder("llama", 2, **keys)) == [True] * 2


def test_granite_scales_what_its_file_names() -> None:
    traits = decoder("granite", 1, embedding_scale=12.0, logit_scale=16.0).hyperparameters.traits
    assert (traits.scaled_embedding, traits.scaled_residual, traits.scaled_logits) == (True, False, True)


@pytest.mark.parametrize(
    ("architecture", "keys", "gating", "normalised", "scaled"),
    [
        ("qwen3moe", {}, "softmax", True, False),
        ("qwen2moe", {}, "softmax", False, False),
        ("llama", {}, "softmax", True, False),
        ("deepseek2", {}, "softmax", False, False),
        (
            "deepseek2",
            {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5},
            "sigmoid",
            True,
            True,
        ),
        ("glm4moe", {"expert_weights_scale": 1.0}, "sigmoid", False, False),
        ("glm4moe", {"expert_gating_func": 1, "expert_weights_norm": True}, "softmax", True, False),
        ("minimax-m2", {}, "sigmoid", True, False),
        ("gpt-oss", {}, "softmax_of_selected", False, False),
        ("llama4", {}, "sigmoid", False, False),
        ("lfm2moe", {"expert_gating_func": 1}, "softmax", True, False),
        ("nemotron_h_moe", {"expert_weights_norm": True}, "sigmoid", True, False),
    ],
)
def test_routing(architecture: str, keys: dict[str, Any], gating: str, normalised: bool, scaled: bool) -> None:
    traits = decoder(architecture, 1, expert_count=8, expert_used_count=2, **keys).hyperparameters.traits
    assert (traits.gating.name, traits.normalised_expert_weights, traits.scaled_expert_weights) == (
        gating,
        normalised,
        scaled,
    )


@pytest.mark.parametrize(("n_expert", "normed"), [(0, True), (16, True), (128, False)])
def test_llama4_norms_without_weights_but_not_in_its_128_expert_model(n_expert: int, normed: bool) -> None:
    traits = decoder("llama4", 1, expert_count=n_expert, expert_used_count=min(n_expert, 1)).hyperparameters.traits
    assert traits.norm_without_weight == normed
    assert traits.temperature == _core.Temperature.unrotated


def is_set(value: Any) -> bool:
    return value not in (_core.Sum.sequential, _core.LateRows.no, _core.Temperature.none) and bool(value)


def architectures_with(trait: str, **keys: Any) -> set[str]:
    return {name for name in ARCHITECTURES if is_set(getattr(decoder(name, 1, **keys).hyperparameters.traits, trait))}


@pytest.mark.parametrize(
    ("trait", "architectures"),
    [
        (
            "late_rows",
            "bailingmoe3 cogvlm cohere2moe gemma3n gemma4 gpt-oss hy_v3 qwen3next qwen35 qwen35moe nemotron_h "
            "nemotron_h_moe step35",
        ),
        ("sum", "command-r cohere2 cohere2moe falcon phi2 plamo"),
        ("gated_attention", "qwen3next qwen35 qwen35moe"),
        ("scaled_embedding", "afmoe gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 grok minicpm minicpm3"),
        ("weight_before_ffn", "llama4"),
        ("temperature", "llama4"),
        ("norm_without_weight", "llama4"),
        ("attention_softcap", "gemma2 grok"),
        ("logits_softcap", "gemma2 gemma3n"),
    ],
)
def test_who_has_a_trait_without_being_told(trait: str, architectures: str) -> None:
    assert architectures_with(trait) == set(architectures.split())


def test_gptneox_is_parallel_where_its_file_says_so() -> None:
    assert architectures_with("sum", use_parallel_residual=True) - architectures_with("sum") == {"gptneox"}


def test_every_architecture_of_the_table_can_be_described() -> None:
    for architecture in ARCHITECTURES:
        model = decoder(architecture, 4)
        assert bool(model.warnings) == ARCHITECTURES[architecture].guessed
        assert model.n_layer == 4


def mla(n_layer: int, keys: dict[str, Any], head_count_kv: int) -> Model:
    layer = {
        "attn_norm": ((256,), F32),
        "attn_q": ((256, 8 * 48), F16),
        "attn_kv_a_mqa": ((256, 80), F16),
        "attn_kv_a_norm": ((64,), F32),
        "attn_output": ((256, 256), F16),
        "ffn_up": ((256, 512), F16),
        "ffn_down": ((512, 256), F16),
    }
    if "attention.key_length_mla" in keys:
        layer |= {"attn_k_b": ((32, 64, 8), F16), "attn_v_b": ((64, 32, 8), F16)}
    else:
        layer["attn_kv_b"] = ((64, 8 * (32 + 32)), F16)
    tensors: Tensors = [("token_embd.weight", (256, 100), F16), ("output_norm.weight", (256,), F32)]
    tensors += [(f"blk.{i}.{name}.weight", *what) for i in range(n_layer) for name, what in layer.items()]
    common = {"attention.head_count_kv": head_count_kv, "attention.kv_lora_rank": 64, "rope.dimension_count": 16}
    return make("deepseek2", llama_keys(n_layer, **common, **keys), tensors)


def test_mla_caches_the_latent_and_no_v() -> None:
    latent = {"attention.key_length": 80, "attention.value_length": 64}
    model = mla(2, latent | {"attention.key_length_mla": 48, "attention.value_length_mla": 32}, head_count_kv=1)
    assert model.kv_bytes_per_cell(0) == 2 * 80
    assert model.kv_bytes_per_cell(1, "q8_0", "f16") == -(-80 // 32) * 34
    h = model.hyperparameters
    assert (h.kv_lora_rank, h.rope_dim, h.head_dim_k_mla, h.head_dim_v_mla) == (64, 16, 48, 32)


def test_mla_files_without_mla_lengths_cache_every_head() -> None:
    model = mla(2, {"attention.key_length": 48, "attention.value_length": 32}, head_count_kv=8)
    assert model.kv_bytes_per_cell(0) == 2 * 8 * (48 + 32)


def test_mla_latent_of_another_width_is_refused() -> None:
    with pytest.raises(ModelError, match=r"key_length is 81, but the latent of layer 0 has 64 \+ 16"):
        mla(1, {"attention.key_length": 81, "attention.key_length_mla": 48, "attention.value_length_mla": 32}, 1)


SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 16, "ssm.time_step_rank": 8, "ssm.group_count": 2}


def with_layers(*layers: dict[str, tuple[tuple[int, ...], int]]) -> Tensors:
    tensors: Tensors = [("token_embd.weight", (256, 100), F16), ("output_norm.weight", (256,), F32)]
    return tensors + [(f"blk.{i}.{name}", *what) for i, layer in enumerate(layers) for name, what in layer.items()]


ATTENTION = {f"attn_{n}.weight": ((256, w), F16) for n, w in (("q", 256), ("k", 64), ("v", 64), ("output", 256))}
SCAN = {
    "ssm_a": ((16, 512), F32),
    "ssm_d": ((512,), F32),
    "ssm_dt.bias": ((512,), F32),
    "ssm_out.weight": ((512, 256), F16),
}
MAMBA = SCAN | {
    "ssm_in.weight": ((256, 1024), F16),
    "ssm_conv1d.weight": ((4, 512), F32),
    "ssm_x.weight": ((512, 40), F16),
    "ssm_dt.weight": ((8, 512), F16),
}
MAMBA2 = SCAN | {"ssm_in.weight": ((256, 1096), F16), "ssm_conv1d.weight": ((4, 576), F32)}
FFN = {"ffn_up.weight": ((256, 512), F16), "ffn_down.weight": ((512, 256), F16)}


def test_hybrid_layers_are_told_by_their_tensors() -> None:
    kv = {"attention.head_count_kv": [0, 2, 0, 2]}
    model = make("nemotron_h", llama_keys(4, **SSM, **kv), with_layers(MAMBA2, ATTENTION, FFN, MAMBA2 | ATTENTION))
    assert [layer.parameters.mixer.name for layer in model.layers] == ["mamba2", "attention", "none", "mamba2"]
    state = 4 * (3 * (512 + 2 * 2 * 16) + 16 * 512)
    assert [model.state_bytes(i) for i in range(4)] == [state, 0, 0, state]
    cell = 2 * 2 * (32 + 32)
    assert [model.kv_bytes_per_cell(i) for i in range(4)] == [0, cell, 0, cell]  # falcon-h1 keeps both


def test_first_generation_mamba_convolves_the_inner_size_alone() -> None:
    model = make("jamba", llama_keys(1, **SSM), with_layers(MAMBA | FFN))
    assert model.layers[0].parameters.mixer == _core.Mixer.mamba
    assert model.state_bytes(0) == 4 * (3 * 512 + 16 * 512)


def test_short_convolutions_keep_their_last_inputs() -> None:
    conv = {
        "shortconv.conv.weight": ((3, 256), F32),
        "shortconv.in_proj.weight": ((256, 768), F16),
        "shortconv.out_proj.weight": ((256, 256), F16),
    }
    model = make("lfm2", llama_keys(2, **{"shortconv.l_cache": 3}), with_layers(conv | FFN, ATTENTION | FFN))
    assert model.layers[0].parameters.mixer == _core.Mixer.short_convolution
    assert (model.state_bytes(0), model.kv_bytes_per_cell(0)) == (4 * 2 * 256, 0)
    assert list(model.layers[0].groups) == ["mixer", "ffn_up", "ffn_down"]


def test_lfm2_final_norm_lies_in_the_head() -> None:
    tensors = with_layers(ATTENTION | FFN)
    tensors[1] = ("token_embd_norm.weight", (256,), F32)
    model = make("lfm2", llama_keys(1), tensors)
    assert [t.name for t in model.core.head] == ["token_embd_norm.weight", "token_embd.weight"]


def test_encoder_has_neither_cache_nor_tied_head() -> None:
    model = model_from_header(oracle_header("bge-large-en-f16"))
    assert not model.tied_head
    assert model.head_bytes == 0
    assert {model.kv_bytes_per_cell(i) for i in range(model.n_layer)} == {0}


def test_key_lengths_of_sliding_layers() -> None:
    # attn_k is 64 wide: 2 KV heads of 32, or of what the file says
    model = decoder("gemma3", 6, attention__sliding_window=64, attention__key_length=32, attention__key_length_swa=32)
    assert {layer.parameters.head_dim_k for layer in model.layers} == {32}
    with pytest.raises(ModelError, match=r"blk\.0\.attn_k\.weight' is 64 wide, but 2 KV heads of 16"):
        decoder("gemma3", 6, attention__sliding_window=64, attention__key_length_swa=16)


# --- what is refused ----------------------------------------------------------------------------------------------


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


# --- names and types ----------------------------------------------------------------------------------------------


def test_a_path_is_a_path_and_a_missing_one_is_said(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "my.gguf")
    assert read_model(path).name == read_model(str(path)).name == "my"
    for missing in (tmp_path / "no.gguf", "no.gguf", f"{tmp_path}/no"):
        with pytest.raises(GgufError, match="cannot be read"):
            read_model(missing)


def test_an_empty_name_is_said() -> None:
    with pytest.raises(SettingError, match=r"name is empty; give the path of a GGUF file, or a name that"):
        read_model("")


def test_tied_head_is_a_copy_of_the_embedding(tmp_path: Path) -> None:
    model = make("llama", llama_keys(2), llama_tensors(2, tied=True))
    assert model.tied_head
    assert model.embedding_bytes == 256 * 1000 // 32 * 34
    assert model.head_bytes == model.embedding_bytes + 4 * 256
    assert not read_model(write_llama(tmp_path / "m.gguf")).tied_head


def test_data_types_by_name_and_number() -> None:
    assert data_type("q8_0") == data_type("Q8_0") == data_type(Q8_0)
    assert (data_type("q4_k").block_elements, data_type("q4_k").block_bytes) == (256, 144)
    assert data_type("f16").row_bytes(5) == 10
    with pytest.raises(SettingError, match=r"type 'q9' is not a ggml type; the types are f32, f16, q4_0"):
        data_type("q9")
