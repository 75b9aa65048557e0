"""Settings of a launch against llama.cpp's rules, one by one."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from gguf_cases import header_of, llama_keys, llama_tensors

from pshard import Model, SettingError, estimate_memory
from pshard.memory.settings import override_warnings
from pshard.model.model import model_from_header

GIB = 1 << 30
DENSE, EXPERTS, WINDOWS, LATENT, ENCODER = (
    "llama31-8b-q4km", "qwen3-30b-a3b-q4km", "gemma3-27b-q4km", "deepseek-v2-lite-q4km", "bge-large-en-f16"
)  # fmt: skip


def estimate(name: str = DENSE, **launch: Any) -> Any:
    return estimate_memory(oracle.model(name), **({"n_ctx": 4096, "devices": [24 * GIB]} | launch))


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "launch", "parts"),
    [
        (DENSE, {"n_ctx": -1}, ["n_ctx=-1", "from 0"]),
        (DENSE, {"n_ctx": True}, ["n_ctx=True"]),
        (DENSE, {"n_ctx": 1 << 31}, ["n_ctx=2147483648"]),
        (DENSE, {"n_batch": 0}, ["n_batch=0", "from 1"]),
        (DENSE, {"n_ubatch": -1}, ["n_ubatch=-1"]),
        (DENSE, {"n_seq_max": 0}, ["n_seq_max=0"]),
        (DENSE, {"n_seq_max": 257}, ["n_seq_max=257", "at most 256"]),
        # More sequences than a batch has tokens: llama.cpp stops with an assertion.
        (DENSE, {"n_seq_max": 200, "n_ctx": 128}, ["n_seq_max=200", "n_ctx=128"]),
        (DENSE, {"n_seq_max": 64, "n_batch": 32}, ["n_seq_max=64", "n_batch=32"]),
        (DENSE, {"n_seq_max": 4, "n_outputs_max": 2}, ["n_outputs_max=2", "4 sequences"]),
        # ggml_add() of scores by sequence and distances of all tokens: llama.cpp stops with an assertion.
        ("t5-base-f16", {"n_seq_max": 2}, ["n_seq_max=2", "--kv-unified"]),
        (DENSE, {"flash_attn": "yes"}, ["flash_attn='yes'", "'auto'"]),
        (DENSE, {"flash_attn": "off", "type_v": "q8_0"}, ["type_v='q8_0'", "needs flash attention"]),
        (DENSE, {"type_k": "q6_k"}, ["type_k='q6_k'", "iq4_nl"]),
        (DENSE, {"type_v": "int8"}, ["type_v='int8'", "q8_0"]),
        (LATENT, {"type_k": "q8_0"}, ["type_v='f16'", "one latent cache", "'q8_0'"]),
        (DENSE, {"n_gpu_layers": "all"}, ["n_gpu_layers='all'", "whole number"]),
        (DENSE, {"devices": [24 * GIB, 0]}, ["devices=0", "CUDA1 has no memory"]),
        (DENSE, {"devices": [GIB] * 17}, ["devices=17", "at most 16"]),
        (DENSE, {"split_mode": "columns"}, ["split_mode='columns'", "none, layer, row, tensor"]),
        (DENSE, {"split_mode": "row", "devices": [GIB]}, ["split_mode='row'", "no split buffers"]),
        (DENSE, {"split_mode": "tensor", "devices": [GIB, GIB]}, ["split_mode='tensor'", "whole layers"]),
        (DENSE, {"split_mode": "tensor", "devices": [GIB]}, ["split_mode='tensor'", "advises against"]),
        (DENSE, {"split_mode": "tensor", "devices": []}, ["split_mode='tensor'", "without a GPU"]),
        (DENSE, {"split_mode": "none", "main_gpu": 1}, ["main_gpu=1", "1 devices"]),
        (DENSE, {"tensor_split": [1, -1], "devices": [GIB, GIB]}, ["tensor_split=(1, -1)", "negative"]),
        (DENSE, {"tensor_split": [1.0] * 16}, ["tensor_split", "fewer than 16"]),
        (DENSE, {"tensor_overrides": [("blk(", "CPU")]}, ["'blk('", "not a regular expression"]),
        (DENSE, {"tensor_overrides": [("ffn", "CUDA1")]}, ["ffn=CUDA1", "CPU, CUDA0"]),
    ],
)  # fmt: skip
def test_what_llama_cpp_refuses_is_refused(name: str, launch: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        estimate(name, **launch)
    for part in parts:
        assert part in str(caught.value)


def test_heads_must_hold_whole_blocks() -> None:
    # Heads of 96 elements hold three blocks of 32, heads of 16 hold none.
    assert estimate("phi3-mini-4k-q4km", flash_attn="on", type_k="q8_0", type_v="q8_0").devices
    keys = llama_keys() | {"attention.head_count": 16, "attention.head_count_kv": 4}
    metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in keys.items()}}
    model = model_from_header(header_of(metadata, llama_tensors()))
    assert estimate_memory(model, n_ctx=512).host.context_bytes > 0
    for setting in ("type_k", "type_v"):
        with pytest.raises(SettingError, match=f"{setting}='q8_0': its blocks of 32 values do not divide heads of 16"):
            estimate_memory(model, n_ctx=512, **{setting: "q8_0"})


# --- warned of --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "launch", "part"),
    [
        (DENSE, {"n_ctx": 5000}, "n_ctx=5000 becomes 5120: llama.cpp counts cells in multiples of 256"),
        (DENSE, {"n_ctx": 10000, "n_seq_max": 3}, "n_ctx=10000 becomes 10752, 3584 for each of 3 sequences"),
        (DENSE, {"n_ctx": 262144}, "262144 tokens per sequence exceeds the 131072"),
        (DENSE, {"n_ubatch": 4096, "n_ctx": 8192}, "n_ubatch=4096 is cut to 2048 by n_batch=2048"),
        (DENSE, {"n_ubatch": 1024, "n_ctx": 512}, "n_ubatch=1024 is cut to 512 by n_ctx=512"),
        (DENSE, {"swa_full": True}, "swa_full has no effect"),
        (ENCODER, {"n_ubatch": 256, "n_ctx": 512}, "longer than n_ubatch=256 tokens"),
        (DENSE, {"n_gpu_layers": 10, "devices": []}, "There is no GPU"),
        (DENSE, {"tensor_split": [0.0, 0.0], "devices": [GIB, GIB]}, "all zeros"),
        (DENSE, {"tensor_split": [1.0], "devices": [GIB, GIB]}, "leaves CUDA1 without layers"),
        (DENSE, {"tensor_split": [1.0, 0.0, 1.0], "devices": [GIB] * 3}, "leaves CUDA1 without layers"),
        (DENSE, {"tensor_split": [1.0, 1.0, 0.0], "devices": [GIB, GIB]}, "3 proportions for 2 devices"),
        (EXPERTS, {"tensor_overrides": [(r"blk\.\d+\.ffn_gate_exp\.", "CPU")]}, "blk.0.ffn_gate_exps.weight"),
        (DENSE, {"tensor_overrides": [("exps", "CPU")]}, "The override 'exps' matches no tensor"),
        ("bitnet-2b-q4km", {"tensor_overrides": [("token_embd", "CUDA0")]}, "moved to CUDA0, it takes bytes"),
        (
            EXPERTS,
            {"tensor_overrides": [("exps", "CPU"), ("ffn_up_exps", "CUDA0")]},
            "'ffn_up_exps' matches only tensors that earlier ones take",
        ),
    ],
)
def test_what_is_hardly_meant_is_warned_of(name: str, launch: dict[str, Any], part: str) -> None:
    report = estimate(name, **launch)
    assert any(part in warning for warning in report.warnings), report.warnings


@pytest.mark.parametrize(
    ("name", "launch"),
    [
        (DENSE, {}),
        (DENSE, {"n_gpu_layers": 99}),  # how people write "all"
        (EXPERTS, {"tensor_overrides": [("exps", "CPU")]}),
        (WINDOWS, {"swa_full": True}),
        (ENCODER, {"n_ctx": 512}),
    ],
)
def test_a_sound_launch_has_no_warnings(name: str, launch: dict[str, Any]) -> None:
    assert estimate(name, **launch).warnings == ()


def test_a_context_of_zero_is_the_training_length() -> None:
    assert estimate(n_ctx=0).n_ctx_actual == 131072
    assert estimate("gemma2-9b-q4km", n_ctx=0).n_ctx_actual == 8192


def test_a_file_that_does_not_tell_its_training_length_needs_a_context() -> None:
    keys = {f"llama.{key}": value for key, value in llama_keys().items() if key != "context_length"}
    model = model_from_header(header_of({"general.architecture": "llama", **keys}, llama_tensors()))
    with pytest.raises(SettingError, match="n_ctx=0: 0 means the training length, which this file does not tell"):
        estimate_memory(model, n_ctx=0)
    assert estimate_memory(model, n_ctx=512).n_ctx_actual == 512


def test_many_overrides_are_one_warning(dense: Model) -> None:
    rules = [(rf"blk\.{layer}\.ffn_up_exps", "CPU") for layer in range(5)]
    (warning,) = override_warnings(dense, rules)
    assert "and 3 more match no tensor" in warning
    assert "blk.0.ffn_up.weight" in warning


@pytest.fixture
def dense() -> Model:
    return oracle.model(DENSE)
