"""A model against what llama.cpp logged for it, and the names and types that it is asked for by."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_cases import (
    Q8_0,
    llama_keys,
    llama_tensors,
    oracle_header,
    oracle_models,
    write_llama,
    write_oracle_model,
)
from model_cases import make

from pshard import _core
from pshard.errors import GgufError, SettingError
from pshard.model.model import Model, data_type, model_from_header, read_model

MIB = 1 << 20
ROUNDING_MIB = 0.006  # the log prints two decimals


def next_token_tensors(model: Model) -> list[_core.Tensor]:
    """Return those of layers that predict tokens further on."""
    return [t for t in model.tensors if _core.layer_of(t.name) >= model.n_layer]


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
