"""The rules of single architectures, against llama.cpp's own: what a file need not say."""

from __future__ import annotations

from typing import Any

import pytest
from gguf_cases import F16, F32, Tensors, llama_keys, oracle_header
from model_cases import decoder, make, windows, with_layers

from pshard import _core
from pshard.errors import ModelError
from pshard.model.architectures import ARCHITECTURES
from pshard.model.model import Model, model_from_header


def ropes(model: Model) -> list[bool]:
    return [layer.parameters.uses_rope for layer in model.layers]


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
