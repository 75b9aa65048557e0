"""The catalogue: quantisation rules one by one, published sizes, and files without weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from pshard.catalogue import entries, header, names, resolve, write_skeleton
from pshard.catalogue.mixes import (
    MIXES,
    MixContext,
    choose_types,
    converted_type,
    fitting_type,
    is_quantised,
    is_sensitive,
    layer_order,
)
from pshard.catalogue.random_weights import SCALE_OFFSETS, random_tensor
from pshard.catalogue.shapes import load_record, model_names, select_layers
from pshard.errors import ModelError, SettingError
from pshard.gguf.file import SkippedArray, read_header

PUBLISHED = json.loads((Path(__file__).parent.parent / "data" / "published_sizes.json").read_text())
SIZES = {entry.name: entry for entry in entries()}
TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "MXFP4": 39}


def types_of(name: str) -> dict[str, str]:
    """Type name of every tensor of a catalogue model."""
    by_id = {number: kind for kind, number in TYPE_IDS.items()}
    return {tensor.name: by_id[tensor.type] for tensor in header(name).tensors}


def dense(n_layer: int, *, tied: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    """A small dense model."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (512, 1000)), ("output_norm.weight", (512,))]
    if not tied:
        shapes.append(("output.weight", (512, 1000)))
    for layer in range(n_layer):
        shapes += [
            (f"blk.{layer}.{name}.weight", (512, 512))
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        ]
    return shapes


def context(
    n_layer: int, *, architecture: str = "llama", n_head: int = 8, n_head_kv: int = 2, n_expert: int = 0
) -> MixContext:
    return MixContext(architecture=architecture, n_layer=n_layer, n_head=n_head, n_head_kv=n_head_kv, n_expert=n_expert)


# --- one test per rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.ffn_up.weight", (512, 512), True),
        ("blk.0.ffn_up_exps.weight", (512, 512, 8), True),
        ("blk.0.attn_q.bias", (512,), False),
        ("blk.0.ffn_up_exps.bias", (512, 8), False),
        ("blk.0.ssm_norm.weight", (512, 2), False),
        ("blk.0.ffn_gate_inp.weight", (512, 8), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (512, 1), False),
        ("blk.0.ssm_conv1d.weight", (4, 512), False),
        ("blk.0.shortconv.conv.weight", (3, 512), False),
        ("blk.0.shortconv.in_proj.weight", (512, 1536), True),
        ("blk.0.ssm_a", (1, 8), False),
        ("position_embd.weight", (512, 512), False),
        ("token_types.weight", (512, 2), False),
        ("token_embd.weight", (512, 1000), True),
    ],
)
def test_what_a_quantiser_leaves_alone(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_quantised(name, shape) is expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.ffn_up.weight", (512, 512), "F16"),
        ("token_embd.weight", (512, 1000), "F16"),
        ("blk.0.attn_norm.weight", (512,), "F32"),
        ("blk.0.ssm_norm.weight", (512, 2), "F32"),
        ("blk.0.ffn_gate_inp.weight", (512, 8), "F32"),
        ("blk.0.ssm_conv1d.weight", (4, 512), "F32"),
        ("blk.0.ssm_a", (1, 8), "F32"),
        ("blk.0.ffn_norm", (512,), "F32"),
        ("blk.0.ffn_up_exps.bias", (512, 8), "F32"),
    ],
)
def test_type_of_conversion(name: str, shape: tuple[int, ...], expected: str) -> None:
    assert converted_type(name, shape) == expected


def test_sensitive_layers_are_the_outer_eighths_and_every_third_between() -> None:
    # 32 layers: 0-3, 28-31, and 4 + 2, 4 + 5, ...
    assert [i for i in range(32) if is_sensitive(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    # fewer than eight layers: no leading eighth, and 7 * 4 // 8 = 3
    assert [i for i in range(4) if is_sensitive(i, 4)] == [2, 3]


@pytest.mark.parametrize(
    ("wanted", "row", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 1408, "Q5_0"),
        ("Q5_K", 1408, "Q5_1"),
        ("Q6_K", 1408, "Q8_0"),
        ("Q4_0", 1408, "Q4_0"),
        ("Q4_K", 100, "F16"),
        ("Q8_0", 100, "F16"),
    ],
)
def test_rows_that_a_block_does_not_divide_fall_back(wanted: str, row: int, expected: str) -> None:
    assert fitting_type(wanted, row) == expected


@pytest.mark.parametrize(
    ("mix", "head", "base"),
    [
        ("Q4_0", "Q6_K", "Q4_0"),
        ("Q4_K_M", "Q6_K", "Q4_K"),
        ("Q6_K", "Q6_K", "Q6_K"),
        ("Q8_0", "Q8_0", "Q8_0"),
        ("F16", "F16", "F16"),
    ],
)
def test_the_head_is_wider_and_a_tied_embedding_is_the_head(mix: str, head: str, base: str) -> None:
    separate = choose_types(dense(8), mix, context(8))
    assert (separate["output.weight"], separate["token_embd.weight"]) == (head, base)
    assert choose_types(dense(8, tied=True), mix, context(8))["token_embd.weight"] == head


def test_a_head_that_the_base_type_does_not_fit_is_q8_0() -> None:
    shapes = [("token_embd.weight", (1408, 100)), ("output.weight", (1408, 100))]
    assert choose_types(shapes, "Q4_K_M", context(1)) == {"output.weight": "Q8_0", "token_embd.weight": "Q5_0"}


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q5_K_M"])
def test_values_and_down_projections_are_boosted_in_sensitive_layers(mix: str) -> None:
    types = choose_types(dense(32), mix, context(32))
    for layer in range(32):
        boosted = "Q6_K" if is_sensitive(layer, 32) else MIXES[mix].base
        assert types[f"blk.{layer}.attn_v.weight"] == types[f"blk.{layer}.ffn_down.weight"] == boosted
        for other in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
            assert types[f"blk.{layer}.{other}.weight"] == MIXES[mix].base


@pytest.mark.parametrize("mix", ["Q4_0", "Q6_K", "Q8_0"])
def test_plain_mixtures_boost_nothing(mix: str) -> None:
    types = choose_types(dense(32), mix, context(32))
    assert {kind for name, kind in types.items() if name.startswith("blk.")} == {MIXES[mix].base}


def test_values_are_counted_by_occurrence_not_by_layer() -> None:
    # Granite 4 hybrids have attention in 4 of 40 layers: of four occurrences, the last two are sensitive.
    types = types_of("granite-4.0-h-small:Q4_K_M")
    values = [types[f"blk.{layer}.attn_v.weight"] for layer in (5, 15, 25, 35)]
    assert values == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]


@pytest.mark.parametrize(("mix", "expected"), [("Q4_K_M", "Q5_K"), ("Q5_K_M", "Q6_K"), ("Q4_0", "Q4_0")])
def test_fused_projections_have_one_type_in_every_layer(mix: str, expected: str) -> None:
    types = types_of(f"phi-4:{mix}")
    assert {kind for name, kind in types.items() if "attn_qkv" in name} == {expected}


@pytest.mark.parametrize(
    ("architecture", "n_head_kv", "expected"),
    [("llama", 2, "Q5_K"), ("llama", 8, "Q4_K"), ("qwen2", 2, "Q5_K"), ("qwen3", 2, "Q4_K")],
)
def test_values_of_grouped_80_layer_models_are_at_least_q5_k(architecture: str, n_head_kv: int, expected: str) -> None:
    types = choose_types(dense(80), "Q4_K_M", context(80, architecture=architecture, n_head_kv=n_head_kv))
    values = Counter(types[f"blk.{layer}.attn_v.weight"] for layer in range(80))
    assert values == {"Q6_K": 40, expected: 40}
    assert choose_types(dense(80), "Q4_0", context(80))["blk.40.attn_v.weight"] == "Q4_0"


def test_eight_experts_widen_attention() -> None:
    types = types_of("mixtral-8x7b:Q4_K_M")
    assert {types[f"blk.{i}.{part}.weight"] for i in range(32) for part in ("attn_k", "attn_v")} == {"Q8_0"}
    assert {types[f"blk.{i}.attn_output.weight"] for i in range(32)} == {"Q5_K"}
    assert types_of("mixtral-8x7b:Q6_K")["blk.0.attn_output.weight"] == "Q6_K"


def test_down_projections_of_experts_go_by_layer_number() -> None:
    # Layer 0 of DeepSeek V2 Lite is dense; routed and shared experts of the others follow their own layer's number.
    types = types_of("deepseek-v2-lite:Q4_K_M")
    for layer in range(1, 27):
        # 1408-wide rows of the routed experts fall back; the shared experts' 2816-wide ones fit
        boosted = is_sensitive(layer, 27)
        assert types[f"blk.{layer}.ffn_down_exps.weight"] == ("Q8_0" if boosted else "Q5_0")
        assert types[f"blk.{layer}.ffn_down_shexp.weight"] == ("Q6_K" if boosted else "Q4_K")


def test_mxfp4_is_for_stacked_experts_only() -> None:
    types = types_of("gpt-oss-20b:MXFP4")
    assert {kind for name, kind in types.items() if name.endswith("_exps.weight")} == {"MXFP4"}
    assert {types["token_embd.weight"], types["output.weight"], types["blk.0.attn_q.weight"]} == {"Q8_0"}
    assert (
        types["blk.0.attn_sinks.weight"]
        == types["blk.0.ffn_up_exps.bias"]
        == types["blk.0.ffn_gate_inp.weight"]
        == "F32"
    )


def test_files_are_ordered_by_layer_then_name() -> None:
    shuffled = [
        "blk.10.ffn_up.weight",
        "token_embd.weight",
        "blk.2.ffn_up.weight",
        "blk.2.attn_q.weight",
        "output.weight",
    ]
    assert sorted(shuffled, key=layer_order) == [
        "output.weight", "token_embd.weight", "blk.2.attn_q.weight", "blk.2.ffn_up.weight", "blk.10.ffn_up.weight",
    ]  # fmt: skip
    shapes = dense(12)
    assert choose_types(shapes, "Q4_K_M", context(12)) == choose_types(reversed(shapes), "Q4_K_M", context(12))


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [(":", range(8)), ("0:", range(8)), ("3::4", [3, 7]), ("0:2,5,7:", [0, 1, 5, 7]), ("6", [6])],
)
def test_layer_selections(text: str, expected: list[int]) -> None:
    assert select_layers(text, 8) == list(expected)


@pytest.mark.parametrize("model", model_names())
def test_records_are_consistent(model: str) -> None:
    record = load_record(model)
    shapes = record.shapes()
    assert len(dict(shapes)) == len(shapes), "a tensor is given twice"
    assert {layer_order(name)[0] for name, _ in shapes} == set(range(-1, record.n_layer))
    shape = dict(shapes)
    hyperparameters = record.hyperparameters
    assert shape["token_embd.weight"] == (hyperparameters["embedding_length"], record.vocabulary.n_tokens)
    assert hyperparameters.get("vocab_size", record.vocabulary.n_tokens) == record.vocabulary.n_tokens
    for name, dimensions in shapes:
        if name.endswith("_exps.weight"):
            assert dimensions[2] == hyperparameters["expert_count"]
        if name.endswith("attn_k.weight"):
            heads = hyperparameters["attention.head_count_kv"]
            n_head_kv = heads[layer_order(name)[0]] if isinstance(heads, list) else heads
            n_head = hyperparameters["attention.head_count"]
            head_dim = hyperparameters.get("attention.key_length", hyperparameters["embedding_length"] // n_head)
            assert dimensions == (hyperparameters["embedding_length"], n_head_kv * head_dim)


def test_the_catalogue_covers_what_it_promises() -> None:
    assert len(SIZES) >= 16
    assert len({entry.architecture for entry in SIZES.values()}) >= 8
    offered = Counter(name.partition(":")[2] for name in names())
    assert set(offered) == set(MIXES)
    assert {"llama-3.3-70b:Q4_K_M", "qwen3-30b-a3b:Q4_K_M", "gpt-oss-120b:MXFP4"} <= set(names())


def test_parameter_counts_are_the_published_ones() -> None:
    assert SIZES["gpt-oss-20b"].n_parameters == 20_914_757_184
    assert SIZES["qwen3-30b-a3b"].n_parameters == 30_532_122_624
    assert SIZES["llama-3.1-8b"].n_parameters == 8_030_261_248 + 64  # the file adds its rope factors


# --- published files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published["name"])
def test_file_size_is_within_one_percent_of_the_published_file(published: dict[str, int | str]) -> None:
    model, quantisation = str(published["name"]).split(":")
    entry = SIZES[model]
    difference = abs(entry.file_bytes[quantisation] - int(published["bytes"])) - int(published["rounding_bytes"])
    assert difference <= 0.01 * int(published["bytes"])


def test_every_model_of_4b_parameters_or_more_has_a_published_size() -> None:
    known = {published["name"].partition(":")[0] for published in PUBLISHED}
    known.add("deepseek-v3")  # the shapes of deepseek-r1
    assert load_record("deepseek-v3").shapes() == load_record("deepseek-r1").shapes()
    assert [entry.name for entry in SIZES.values() if entry.n_parameters >= 4e9 and entry.name not in known] == []


def test_tables_that_are_known_to_the_byte() -> None:
    # Beside tensors there is only metadata, whose size is known to a few kB: no tensor can have another type.
    exact = {published["name"]: published["bytes"] for published in PUBLISHED if published["rounding_bytes"] == 0}
    for name in (
        "llama-3.3-70b:Q4_K_M",
        "qwen3-30b-a3b:Q4_K_M",
        "qwen3-235b-a22b:Q4_K_M",
        "phi-4:Q4_K_M",
        "qwen2.5-72b:Q4_K_M",
    ):
        model, quantisation = name.split(":")
        assert abs(SIZES[model].file_bytes[quantisation] - exact[name]) < 10_000


# --- headers and names ------------------------------------------------------------------------------------------------


def test_a_header_reads_like_a_file() -> None:
    found = header("qwen3-30b-a3b:q4_k_m")
    assert found.path is None
    assert found.parts == ()
    assert found.metadata["general.architecture"] == "qwen3moe"
    assert found.metadata["general.file_type"] == 15
    assert found.metadata["qwen3moe.block_count"] == 48
    assert found.metadata["qwen3moe.expert_count"] == 128
    assert found.metadata["tokenizer.ggml.tokens"] == SkippedArray("string", 151936)
    tensor = {tensor.name: tensor for tensor in found.tensors}["blk.7.ffn_gate_exps.weight"]
    assert tensor.shape == (2048, 768, 128)
    assert tensor.type == TYPE_IDS["Q4_K"]
    assert tensor.n_bytes == 2048 * 768 * 128 // 256 * 144
    assert found.tensors[-1].offset + found.tensors[-1].n_bytes <= found.file_bytes
    for before, after in zip(found.tensors, found.tensors[1:], strict=False):
        assert after.offset == math.ceil((before.offset + before.n_bytes) / 32) * 32


@pytest.mark.parametrize("model", model_names())
def test_every_model_is_understood(model: str) -> None:
    from pshard.model.model import model_from_header

    found = model_from_header(header(model))
    assert list(found.warnings) == []
    assert found.n_layer == SIZES[model].n_layer - load_record(model).hyperparameters.get("nextn_predict_layers", 0)
    assert found.tied_head is ("output.weight" not in {tensor.name for tensor in header(model).tensors})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3.1-8b", ("llama-3.1-8b", "Q4_K_M")),
        ("gpt-oss-20b", ("gpt-oss-20b", "MXFP4")),
        ("Qwen3-8B:q8_0", ("qwen3-8b", "Q8_0")),
        (" qwen3-8b : f16 ", ("qwen3-8b", "F16")),
    ],
)
def test_names_are_forgiving(name: str, expected: tuple[str, str]) -> None:
    assert resolve(name) == expected


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("lama-3.3-70b", ["'lama-3.3-70b'", "llama-3.3-70b", "pshard models"]),
        ("zzz", ["'zzz'", "pshard models", "GGUF"]),
        ("qwen3-8b:Q4KM", ["'Q4KM'", "Q4_0, Q4_K_M", "qwen3-8b:Q4_K_M"]),
        ("gpt-oss-20b:Q4_K_M", ["MXFP4", "gpt-oss-20b:MXFP4"]),
        ("../models/qwen3-8b", ["pshard models"]),
    ],
)
def test_unknown_names_say_what_is_near(name: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        header(name)
    for part in parts:
        assert part in str(error.value)


# --- skeletons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["qwen3-0.6b:Q8_0", "granite-4.0-h-tiny:Q4_K_M", "falcon-h1-7b:Q5_K_M", "gpt-oss-20b", "gemma-3-4b:F16"]
)
def test_a_skeleton_reads_back_as_its_model(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    n_bytes = write_skeleton(name, path)
    expected = header(name)
    found = read_header(path)
    assert [(t.name, t.shape, t.type, t.n_bytes) for t in found.tensors] == [
        (t.name, t.shape, t.type, t.n_bytes) for t in expected.tensors
    ]
    assert found.file_bytes == path.stat().st_size == n_bytes
    assert path.stat().st_blocks * 512 < 1 << 20
    architecture = expected.metadata["general.architecture"]
    for key, value in expected.metadata.items():
        if not key.startswith("tokenizer."):
            assert found.metadata[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert found.metadata["tokenizer.ggml.model"] == "no_vocab"
    vocabulary = expected.metadata["tokenizer.ggml.tokens"]
    assert isinstance(vocabulary, SkippedArray)
    assert found.metadata[f"{architecture}.vocab_size"] == vocabulary.length


def test_a_skeleton_replaces_nothing_unasked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(SettingError, match="--force"):
        write_skeleton("qwen3-0.6b", path)
    assert path.read_bytes() == b"precious"
    write_skeleton("qwen3-0.6b", path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"
    with pytest.raises(SettingError, match="not a folder"):
        write_skeleton("qwen3-0.6b", tmp_path / "missing" / "model.gguf")


def test_a_failed_skeleton_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.truncate", full)
    with pytest.raises(OSError, match="No space left"):
        write_skeleton("qwen3-0.6b", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("type_name", ["F32", "F16", "MXFP4", *SCALE_OFFSETS])
def test_random_weights_are_numbers_of_the_right_size(type_name: str) -> None:
    shape = (2048, 32)
    data = np.concatenate(list(random_tensor("blk.0.ffn_up.weight", shape, type_name, seed=3, index=7)))
    kind = GGMLQuantizationType[type_name]
    weights = dequantize(data.view({"F32": np.float32, "F16": np.float16}.get(type_name, np.uint8)), kind)
    assert weights.size == 2048 * 32
    assert np.isfinite(weights).all()
    # the table of MXFP4 scales has powers of two only
    within = 0.5 if type_name == "MXFP4" else 0.05
    assert np.sqrt(np.mean(weights**2)) == pytest.approx(2048**-0.5, rel=within)
    assert len(np.unique(weights)) > 10


@pytest.mark.parametrize(
    ("name", "shape", "low", "high"),
    [
        ("blk.0.attn_norm.weight", (4096,), 0.5, 1.5),
        ("blk.0.attn_q.bias", (4096,), -0.1, 0.1),
        ("blk.0.ssm_a", (1, 4096), -1.5, -0.5),
        ("blk.0.ssm_conv1d.weight", (4, 1024), -(0.75**0.5), 0.75**0.5),
    ],
)
def test_random_vectors_are_what_their_names_ask_for(
    name: str, shape: tuple[int, int], low: float, high: float
) -> None:
    (data,) = random_tensor(name, shape, "F32", seed=0, index=0)
    values = data.view(np.float32)
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high


def test_a_filled_skeleton_is_its_seed(tmp_path: Path) -> None:
    from pshard.catalogue import skeleton

    small = replace(header("qwen3-0.6b:Q4_K_M"), tensors=header("qwen3-0.6b:Q4_K_M").tensors[2:13])
    calls: list[tuple[int, int]] = []

    def write(name: str, seed: int | None) -> np.ndarray:
        path = tmp_path / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(skeleton, "header", lambda name: small)
            n_bytes = write_skeleton("qwen3-0.6b", path, seed=seed, on_bytes=lambda *of: calls.append(of))
        assert path.stat().st_size == n_bytes
        return np.fromfile(path, np.uint8)

    first, again, other, hole = write("a", 0), write("b", 0), write("c", 1), write("d", None)
    assert (first == again).all()
    start = first.size - sum(-(-t.n_bytes // 32) * 32 for t in small.tensors)
    assert (first[:start] == hole[:start]).all()
    assert not hole[start:].any()
    assert 0.5 < np.mean(first[start:] != other[start:]) < 1.0
    # every tensor lies where the header says it does
    reader = GGUFReader(tmp_path / "a")
    for found, expected in zip(reader.tensors, small.tensors, strict=True):
        assert found.name == expected.name
        assert np.isfinite(dequantize(found.data, found.tensor_type)).all()
    total = sum(t.n_bytes for t in small.tensors)
    assert calls[-1] == (total, total)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_models_lists_every_model() -> None:
    from pshard.cli.models import command

    text = CliRunner().invoke(command, [])
    assert text.exit_code == 0
    assert text.output.splitlines()[0].split()[:4] == ["model", "architecture", "layers", "parameters"]
    row = next(line for line in text.output.splitlines() if line.startswith("llama-3.3-70b"))
    assert row.split() == ["llama-3.3-70b", "llama", "80", "70.6", "B", "37.2", "39.6", "46.5", "53.9", "69.8", "131.4"]
    document = json.loads(CliRunner().invoke(command, ["--json"]).output)
    assert document["schema_version"] == 1
    assert [model["name"] for model in document["models"]] == list(model_names())
    assert document["models"][0]["file_bytes"] == SIZES[model_names()[0]].file_bytes


def test_skeleton_says_what_it_wrote(tmp_path: Path) -> None:
    from pshard.cli.skeleton import command

    path = tmp_path / "model.gguf"
    text = CliRunner().invoke(command, ["qwen3-0.6b", "-o", str(path)])
    assert text.exit_code == 0
    assert "qwen3-0.6b:Q4_K_M, 0.36 GiB" in text.output
    document = json.loads(CliRunner().invoke(command, ["qwen3-0.6b", "-o", str(path), "--force", "--json"]).output)
    assert document == {
        "schema_version": 1, "path": str(path), "name": "qwen3-0.6b:Q4_K_M", "file_bytes": path.stat().st_size,
        "seed": None,
    }  # fmt: skip
    refused = CliRunner().invoke(command, ["qwen3-0.6b", "-o", str(path), "--seed", "1"])
    assert refused.exit_code == 2
    assert "--fill random" in refused.output
