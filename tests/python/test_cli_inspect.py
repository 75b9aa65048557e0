"""``pshard inspect``, against sums worked by hand from published shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pshard.cli import main
from pshard.cli._output import format_bytes
from pshard.cli.inspect import spans


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["inspect", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_json_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    document = inspect(capsys, "qwen3-30b-a3b:Q4_K_M")
    assert document["schema_version"] == 1
    assert document["n_layer"] == len(document["layers"]) == 48
    assert (document["n_expert"], document["n_expert_used"]) == (128, 8)
    # Q and output, K and V, experts, router, norms of layer and heads; then embedding and head, and the last norm
    per_layer = 2 * 4096 * 2048 + 2 * 512 * 2048 + 128 * 3 * 768 * 2048 + 128 * 2048 + 2 * 2048 + 2 * 128
    assert document["n_parameters"] == 2 * 151936 * 2048 + 48 * per_layer + 2048
    assert sum(document["group_bytes"].values()) == document["tensor_bytes"] == sum(document["type_bytes"].values())
    by_layer = sum(sum(layer["group_bytes"].values()) for layer in document["layers"])
    outside = document["group_bytes"]["embedding"] + document["group_bytes"]["head"]
    assert by_layer + outside == document["tensor_bytes"] < document["file_bytes"]
    # the router stays F32
    assert document["group_bytes"]["router"] == 48 * 128 * 2048 * 4


def test_kv_of_the_whole_model_follows_the_types(capsys: pytest.CaptureFixture[str]) -> None:
    # 48 layers of 4 heads of 128, K and V; q8_0 has 34 bytes per 32 elements
    full = inspect(capsys, "qwen3-30b-a3b:Q4_K_M")
    assert full["kv_bytes_per_1024_tokens"] == 1024 * 48 * 4 * 128 * 2 * 2
    mixed = inspect(capsys, "qwen3-30b-a3b:Q4_K_M", "-ctk", "q8_0")
    assert mixed["kv_bytes_per_1024_tokens"] == 1024 * 48 * 4 * 128 * (34 / 32 + 2)


def test_text_names_kinds_of_layers_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "gpt-oss-20b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gpt-oss-20b:MXFP4: gpt-oss, 20.91 B parameters, 11.")
    table = [line.split() for line in lines if " attention " in line and "experts_up" in line]
    # every second layer has a window of 128 tokens; 8 heads of 64, K and V, two bytes each
    assert [row[0] for row in table] == ["12", "12"]
    assert table[0][1:6] == ["0,", "2,", "4,", "...,", "22"]
    assert "128" in table[0] and "128" not in table[1]
    assert "2048" in table[0] and "2048" in table[1]
    assert "KV cache (f16): 48.0 MiB per 1024 tokens" in lines
    assert "  24.0 MiB of it in layers that keep no more than a window of 128 tokens" in lines


def test_recurrent_state_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    document = inspect(capsys, "mamba2-2.7b")
    assert document["kv_bytes_per_1024_tokens"] == 0
    assert document["state_bytes_per_sequence"] > 0
    assert main(["inspect", "mamba2-2.7b"]) == 0
    text = capsys.readouterr().out
    assert "No KV cache" in text
    assert f"Recurrent state: {format_bytes(document['state_bytes_per_sequence'])} per sequence" in text


def test_a_file_says_the_same_as_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert main(["skeleton", "llama-3.2-1b:Q8_0", "-o", str(path)]) == 0
    capsys.readouterr()
    by_name = inspect(capsys, "llama-3.2-1b:Q8_0")
    by_path = inspect(capsys, str(path))
    differing = {key for key in by_name if by_name[key] != by_path[key]}
    assert differing <= {"model", "file_bytes"}
    assert by_path["file_bytes"] == path.stat().st_size
    assert by_path["tied_head"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "no-such-model"], 1, "no-such-model"),
        (["inspect", "no/such/file.gguf"], 1, "no/such/file.gguf"),
        (["inspect", "gpt-oss-20b", "-ctk", "q9"], 2, "q9"),
        (["inspect"], 2, "MODEL"),
    ],
)
def test_bad_input_is_named(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err


@pytest.mark.parametrize(
    ("indices", "text"),
    [([0], "0"), ([0, 1, 2, 5], "0-2, 5"), ([0, 2, 4, 6], "0, 2, 4, 6"), ([0, 2, 4, 6, 8, 9], "0, 2, 4, ..., 8-9")],
)
def test_spans(indices: list[int], text: str) -> None:
    assert spans(indices) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (10 * 1024**2, "10.0 MiB"),
        (999 * 1024**2, "999 MiB"),
        (1000 * 1024**2, "0.98 GiB"),
        (404494125856, "377 GiB"),
        (5000 * 1024**4, "5000 TiB"),
        (-(3 << 30), "-3.00 GiB"),
    ],
)
def test_format_bytes(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text
