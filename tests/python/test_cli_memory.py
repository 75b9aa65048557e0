"""``pshard memory``: the sheet, its document, and how it is asked."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from gguf_cases import write_oracle_model, write_sparse
from projector_cases import cases
from test_memory_check import fake

from pshard import estimate_memory, read_model
from pshard.cli import main

GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle_model("llama31-8b-q4km", tmp_path_factory.mktemp("models") / "model.gguf")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle_model("qwen3-0.6b-q8_0", tmp_path_factory.mktemp("models") / "draft.gguf")


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = cases()["qwen25vl-7b"]
    keys = {k.removeprefix("clip."): v for k, v in case["metadata"].items() if k != "general.architecture"}
    tensors = [(name, tuple(shape), kind) for name, shape, kind in case["tensors"]]
    return write_sparse(tmp_path_factory.mktemp("models") / "mmproj.gguf", "clip", keys, tensors)


def run(capsys: pytest.CaptureFixture[str], text: str, code: int = 0) -> tuple[str, str]:
    assert main(["memory", *shlex.split(text)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(capsys, f"{text} --json")[0])
    return found


def cells(text: str, row: str) -> list[float]:
    """Numbers of a row of the sheet."""
    line = next(line for line in text.splitlines() if line.startswith(row))
    return [float(cell) for cell in re.findall(r"-?\d+\.\d", line.removeprefix(row))]


# --- the sheet --------------------------------------------------------------------------------------------------------


def test_a_line_has_the_bytes_of_the_function(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, f"llama-fit-params -m {model} -c 8192 -fa on -ngl 20 -ot ffn_up=CPU --devices 24G")
    report = estimate_memory(
        read_model(model), n_ctx=8192, flash_attn="on", n_gpu_layers=20, tensor_overrides=[("ffn_up", "CPU")],
        devices=[24 * GIB],
    )  # fmt: skip
    expected = report.to_dict()
    assert {key: found[key] for key in expected} == json.loads(json.dumps(expected))
    assert (found["program"], found["ignored"], found["check"]) == ("llama-fit-params", [], None)


def test_a_server_line_has_the_servers_defaults(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, f"{model} -c 8192 -fa on --devices 1024G")
    assert (found["n_seq_max"], found["n_ctx_actual"], found["n_ctx_sequence"]) == (4, 8192, 8192)
    # llama.cpp's own figures for four sequences in one cache and four outputs.
    assert (found["devices"][0]["compute_bytes"], found["host"]["compute_bytes"]) == (121645184, 25178144)
    kinds = {a["what"] for a in found["allowances"] if a["on_demand"]}
    assert kinds == {"cache of past prompts, at most"}


def test_people_read_a_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, error = run(capsys, f"{model} -c 8192 -fa on -t 8 --temp 0.7 --devices 24G,12G --ram 64G")
    assert error == "note: no bearing on memory: -t 8, --temp 0.7\n"
    found = document(capsys, f"{model} -c 8192 -fa on --devices 24G,12G --ram 64G")
    parts = [*found["devices"], found["host"]]
    for row, key in (
        ("weights", "model_bytes"),
        ("KV cache, state", "context_bytes"),
        ("compute buffers", "compute_bytes"),
    ):
        assert cells(text, row) == pytest.approx([part[key] / MIB for part in parts if part[key]], abs=0.051)
    totals = found["totals"]
    assert cells(text, "used") == pytest.approx([total["used_bytes"] / MIB for total in totals], abs=0.051)
    assert cells(text, "free before") == [24576.0, 12288.0, 65536.0]
    assert cells(text, "stays free") == pytest.approx([total["left_bytes"] / MIB for total in totals], abs=0.051)
    assert "defaults of llama-server" in text
    assert "8192 tokens, shared by 4 sequences" in text
    assert text.count("* CUDA context: an allowance") == 1


def test_a_draft_and_a_projector_have_rows(
    model: Path, draft: Path, mmproj: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{model} -c 8192 -fa on -md {draft} --spec-type draft-simple --mmproj {mmproj} --devices 24G"
    text, error = run(capsys, line)
    assert error == ""
    found = document(capsys, line)
    assert cells(text, "draft: weights")[0] == pytest.approx(
        found["draft"]["devices"][0]["model_bytes"] / MIB, abs=0.051
    )
    assert cells(text, "mmproj: weights") == pytest.approx([found["projector"]["model_bytes"] / MIB], abs=0.051)
    assert cells(text, "mmproj: compute") == pytest.approx([found["projector"]["compute_bytes"] / MIB], abs=0.051)
    assert "The largest image (16384 positions), or a batch of images" in text
    # Four slots, and three drafted tokens for each of them.
    assert found["output_bytes"] == 4 * 4 * 4 * 128256
    assert found["draft"]["output_bytes"] == 4 * 4 * 151936


def test_a_projector_may_stay_on_the_host(model: Path, mmproj: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, where in (
        ("", "CUDA0"), ("--no-mmproj-offload", "Host"), ("-mmdev CUDA1", "CUDA1"), ("-mmdev none", "Host"),
        ("-dev CUDA1", "CUDA1"), ("-dev none", "Host"),
    ):  # fmt: skip
        found = document(capsys, f"{model} -c 4096 --mmproj {mmproj} {flags} --devices 24G,24G")
        assert found["projector"]["where"] == where, flags


def test_devices_are_chosen_and_ordered_by_name(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, f"{model} -c 4096 -dev CUDA1 --devices 24G,16G")
    assert [d["name"] for d in found["devices"]] == ["CUDA0", "CUDA1"]
    assert found["devices"][0]["model_bytes"] == 0
    assert found["devices"][1]["model_bytes"] > 4 * GIB
    _, error = run(capsys, f"{model} -c 4096 -dev CUDA2 --devices 24G", code=2)
    assert "-dev names CUDA2, but the devices are: CUDA0" in error


def test_speculation_is_not_asked_without_its_kind(
    model: Path, draft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, error = run(capsys, f"{model} -c 4096 -md {draft} --devices 24G")
    assert "llama.cpp loads the draft and never asks it" in error


def test_the_length_is_the_training_length_for_each_sequence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, f"{model} --devices 400G")["n_ctx_actual"] == 131072
    assert document(capsys, f"{model} -np 2 --devices 400G")["n_ctx_actual"] == 2 * 131072  # --fit gives it to each
    assert document(capsys, f"{model} -np 2 -fit off --devices 400G")["n_ctx_actual"] == 131072


def test_where_fit_would_change_the_line_it_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = run(capsys, f"{model} -c 8192 --devices 6G")
    assert "--fit is on and wants 1024 MiB free on CUDA0" in error
    for quiet in ("-fit off", "-fitt 64"):
        assert "--fit is on" not in run(capsys, f"{model} -c 8192 {quiet} --devices 6G")[1]


def test_checkpoints_of_windows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_oracle_model("gemma3-27b-q4km", tmp_path / "model.gguf")
    found = document(capsys, f"{path} -c 32768 -np 1 --devices 48G")
    checkpoints = next(a for a in found["allowances"] if "checkpoints" in a["what"])
    windows = 52 * 1536 * 2 * 16 * 128 * 2  # layers, cells of 1024 + 512, K and V, heads, elements, f16
    assert checkpoints["n_bytes"] == 32 * windows
    assert checkpoints["on_demand"]
    assert not any("checkpoints" in a["what"] for a in document(capsys, f"{path} -ctxcp 0 --devices 48G")["allowances"])


def test_without_a_gpu_it_says_so(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    class Nothing:
        devices = ()
        reason = "no driver"

    monkeypatch.setattr("pshard._core.query_gpus", Nothing)
    text, error = run(capsys, f"{model} -c 4096")
    assert "no GPU here (no driver)" in error
    assert "CUDA0" not in text
    assert run(capsys, f"{model} -c 4096 --devices none")[1] == ""


# --- beside the binary's own figures ----------------------------------------------------------------------------------


def test_a_check_shows_both_columns(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = fake(tmp_path, f"echo \"$@\" > {tmp_path}/asked\nprintf 'CUDA0 4403 1024 300 \\nHost 281 0 24 \\n'")
    text, _ = run(capsys, f"llama-fit-params {model} -c 8192 -fa on --devices 24G --check {binary}")
    table = text.partition("difference")[2]
    rows = [line.split() for line in table.splitlines() if line.startswith(("CUDA0 ", "Host "))]
    assert rows == [
        ["CUDA0", "weights", "4403", "4403", "0"],
        ["CUDA0", "context", "1024", "1024", "0"],
        ["CUDA0", "compute", "258", "300", "-42"],
        ["Host", "weights", "281", "281", "0"],
        ["Host", "context", "0", "0", "0"],
        ["Host", "compute", "24", "24", "0"],
    ]
    assert f"-m {model} -c 8192" in (tmp_path / "asked").read_text()
    found = document(capsys, f"{model} -c 8192 -fa on --devices 24G --check {binary}")["check"]
    assert found["left_out"] == ["a unified cache", "logits for 4 tokens only"]
    assert found["argv"][0] == binary
    assert found["rows"][0]["differences_mib"][2] == found["rows"][0]["compute_mib"] - 300


def test_a_check_that_fails_prints_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, error = run(capsys, f"{model} -c 4096 --devices 24G --check {tmp_path}/none", code=1)
    assert text == ""
    assert "no such program" in error
    slow = fake(tmp_path, "sleep 30")
    _, error = run(capsys, f"{model} -c 4096 --devices 24G --check {slow} --check-timeout 0.2", code=1)
    assert "did not end within 0.2 s" in error


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "give a model"),
        ("-c 4096", "names no model"),
        ("{model} -c 8k", "-c 8k: a whole number"),
        ("{model} -c 4096 --devices 24X", "'24X' is not a size"),
        ("{model} -c 4096 --devices 24G,0G", "CUDA1 has no memory"),
        ("{model} -c 4096 -ctv q8_0 -fa off --devices 24G", "needs flash attention"),
        ("{model} -c 4096 -ot ffn=CUDA_Hosts --devices 24G", "the devices are CPU, CUDA0"),
        ("{model} -c 4096 --check-timeout 0", "--check-timeout"),
    ],
)
def test_what_cannot_be_is_a_usage_error(text: str, part: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, error = run(capsys, text.format(model=model), code=2)
    assert out == ""
    assert part in error


def test_a_projector_in_the_models_place_is_named(mmproj: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = run(capsys, f"{mmproj} -c 4096 --devices 24G", code=1)
    assert "projector, not a language model" in error


def test_a_catalogue_model_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "llama-3.3-70b:Q4_K_M -c 8192 --devices 48G")
    assert found["model"] == "llama-3.3-70b:Q4_K_M"
    assert found["devices"][0]["model_bytes"] > 39 * GIB
