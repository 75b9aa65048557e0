"""A binary's own print mode: how it is asked, and how it may fail."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import oracle
import pytest

from pshard import estimate_memory
from pshard.launch.line import parse_launch_line
from pshard.memory.check import CheckError, ask, comparable, compare, print_arguments, read_print

GIB = 1 << 30
# Printed by llama-fit-params (llama.cpp 0c1e57098) for llama31-8b-q4km, -c 8192, on null devices of 24 and 12 GiB.
RECORDED = "CUDA0 2729 704 172 \nCUDA1 1674 320 354 \nHost 281 0 72 \n"


def fake(folder: Path, script: str, name: str = "llama-fit-params") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def arguments(text: str) -> list[str]:
    return print_arguments(parse_launch_line(shlex.split(text)))[0]


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_line_is_said_in_flags_of_the_print_mode() -> None:
    line = (
        "a.gguf -c 8192 -ub 256 -np 2 -fa on -ctk q8_0 -ngl 20 -ot exps=CPU,norm=CUDA1 -ts 3,1 -dev CUDA1,CUDA0 -nkvo "
        "--swa-full --no-op-offload --no-host -nr -t 8"
    )
    assert arguments(line) == shlex.split(
        "-m a.gguf -c 8192 -b 2048 -ub 256 -np 2 -fa on -ctk q8_0 -ctv f16 -ngl 20 -ot exps=CPU,norm=CUDA1 -sm layer "
        "-mg 0 -ts 3,1 -dev CUDA1,CUDA0 --swa-full --no-kv-offload --no-op-offload --no-host --no-repack --fit-print on"
    )


def test_without_a_gpu_weights_are_left_as_they_are() -> None:
    # llama.cpp's table leaves out the buffer of repacked weights, which there are where none lie in page-locked memory.
    assert "--no-repack" not in arguments("a.gguf -c 8192")
    assert "--no-repack" in arguments("a.gguf -c 8192 -dev none")
    assert "--no-repack" in arguments("a.gguf -c 8192 --no-host")
    assert "--no-repack" in print_arguments(parse_launch_line(["a.gguf"]), has_gpu=False)[0]


def test_what_the_print_mode_cannot_say_is_named_and_left_out() -> None:
    line = parse_launch_line(["a.gguf", "-md", "d.gguf", "--mmproj", "p.gguf"])
    _, left_out = print_arguments(line)
    assert left_out == ["a unified cache", "logits for 4 tokens only", "the draft model", "the projector"]
    other = comparable(line)
    assert (other.program, other.n_seq_max, other.kv_unified, other.n_outputs_max) == (
        "llama-fit-params",
        4,
        False,
        None,
    )
    assert other.draft_model is other.projector is None
    assert print_arguments(parse_launch_line(["llama-fit-params", "a.gguf"]))[1] == []
    _, left_out = print_arguments(parse_launch_line(["a.gguf", "--spec-type", "draft-mtp"]))
    assert left_out[-1] == "the draft that the model brings"
    _, left_out = print_arguments(parse_launch_line(["a.gguf", "--spec-type", "draft-mtp", "-md", "b.gguf"]))
    assert "the draft that the model brings" not in left_out


def test_the_binary_is_run_and_read(tmp_path: Path) -> None:
    rows = "\n".join(f"printf '%s \\n' '{line.rstrip()}'" for line in RECORDED.splitlines())
    script = f'echo "$@" > {tmp_path}/asked\necho "0.01 I printing estimated memory ..." >&2\n{rows}'
    found = ask(fake(tmp_path, script), ["-m", "a.gguf", "--fit-print", "on"])
    assert found == {"CUDA0": (2729, 704, 172), "CUDA1": (1674, 320, 354), "Host": (281, 0, 72)}
    assert (tmp_path / "asked").read_text() == "-m a.gguf --fit-print on\n"


def test_the_llama_program_has_it_as_a_command(tmp_path: Path) -> None:
    script = f"echo \"$@\" > {tmp_path}/asked\necho 'Host 1 2 3 '"
    assert ask(fake(tmp_path, script, "llama"), ["-m", "a.gguf"]) == {"Host": (1, 2, 3)}
    assert (tmp_path / "asked").read_text() == "fit-params -m a.gguf\n"


def test_a_program_on_the_path_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "echo 'Host 1 2 3 '")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ask("llama-fit-params", []) == {"Host": (1, 2, 3)}


def test_rows_are_found_among_other_lines() -> None:
    text = f"loading\n0.00.1 I llama: 3 4 5\n{RECORDED}done 1 2\n"
    assert list(read_print(text)) == ["CUDA0", "CUDA1", "Host"]


# --- failing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("echo 'error: invalid argument: --fit-print' >&2; exit 1", "code 1: 'error: invalid argument: --fit-print'"),
        ("kill -ABRT $$", "ended with code -6"),
        ("echo '-c 8192 -ngl 33'", "printed no table of memory but '-c 8192 -ngl 33'"),
        ("true", "printed no table of memory but ''"),
        ("sleep 30", "did not end within 0.2 s"),
    ],
)
def test_each_failure_is_a_sentence(tmp_path: Path, script: str, part: str) -> None:
    with pytest.raises(CheckError) as caught:
        ask(fake(tmp_path, script), [], timeout_seconds=0.2 if "sleep" in script else 30)
    assert part in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_missing_binary_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="no such program"):
        ask(str(tmp_path / "llama-fit-params"), [])
    text = tmp_path / "text"
    text.write_text("not a program")
    text.chmod(0o755)
    with pytest.raises(CheckError, match="cannot be run: Exec format error"):
        ask(str(text), [])


# --- comparing --------------------------------------------------------------------------------------------------------


def test_both_columns_of_a_recorded_launch() -> None:
    launch = {"n_ctx": 8192, "devices": [24 * GIB, 12 * GIB]}
    report = estimate_memory(oracle.model("llama31-8b-q4km"), **launch)
    rows = compare(report, read_print(RECORDED))
    assert [row.name for row in rows] == ["CUDA0", "CUDA1", "Host"]
    assert [(row.engine_model_mib, row.engine_context_mib, row.engine_compute_mib) for row in rows] == [
        (2729, 704, 172), (1674, 320, 354), (281, 0, 72)
    ]  # fmt: skip
    assert [row.differences_mib for row in rows] == [(0, 0, 0)] * 3


def test_a_device_that_one_side_lacks_is_empty_there() -> None:
    report = estimate_memory(oracle.model("llama31-8b-q4km"), n_ctx=8192, devices=[24 * GIB])
    rows = {row.name: row for row in compare(report, {"ROCm0": (5, 6, 7), "Host": (281, 0, 8)})}
    assert list(rows) == ["CUDA0", "ROCm0", "Host"]
    assert rows["ROCm0"].differences_mib == (-5, -6, -7)
    assert rows["CUDA0"].engine_model_mib == 0
    assert rows["CUDA0"].differences_mib[0] == rows["CUDA0"].model_mib > 4000
