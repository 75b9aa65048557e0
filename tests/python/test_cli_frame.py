"""The frame that all commands share: loading, modes of output, endings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pshard.cli import COMMANDS, _output, group, main
from pshard.cli._errors import run
from pshard.cli._output import Output, with_output
from pshard.errors import GgufError, NoFeasiblePlanError, SettingError

HEAVY = ["numpy", "gguf", "rich", "msgspec", "psutil", "pshard._core"]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    done = python(
        "import sys\nfrom pshard.cli import main\n"
        f"code = main({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert done.stdout.strip() == f"pshard {version('pshard')}" if "--version" in arguments else "Usage:" in done.stdout


def test_help_lists_every_command_with_a_sentence() -> None:
    text = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    listed = text.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[2:3].isalpha()] == list(COMMANDS)
    assert "..." not in listed  # each sentence is there whole


def test_help_shows_the_examples_line_by_line() -> None:
    lines = CliRunner().invoke(group, ["-h"], terminal_width=100).output.splitlines()
    examples = [" ".join(line.split()) for line in lines if line.startswith("  pshard plan ")]
    assert examples == [
        "pshard plan llama-3.3-70b:Q4_K_M --vram 12G a published model, no download",
        "pshard plan model.gguf a file, on this machine",
    ]
    assert not any("\\b" in line or "\b" in line for line in lines)


def test_module_is_the_same_command() -> None:
    module = subprocess.run([sys.executable, "-m", "pshard", "--help"], capture_output=True, text=True, timeout=60)
    function = python("import sys; from pshard.cli import main; sys.exit(main(['--help']))")
    assert module.returncode == 0
    assert module.stdout == function.stdout
    assert module.stdout.startswith("Usage: pshard ")


def test_a_wrong_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plam"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No such command 'plam'" in captured.err


# --- modes of output --------------------------------------------------------------------------------------------------


def speak(out: Output) -> None:
    out.line("a line of any length " + "x" * 200)
    out.table(["model", "size"], [["tiny[q4]", 12], ["large", 3456], ["none", None]], title="Models")
    out.json({"schema_version": 1, "sizes": [12, 3456]})
    out.warn("an estimate")
    out.hint("try more VRAM")


def test_people_get_lines_and_aligned_tables(capsys: pytest.CaptureFixture[str]) -> None:
    speak(Output())
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "a line of any length " + "x" * 200
    assert captured.out.splitlines()[1:] == [
        "Models",
        "model      size",
        "───────────────",
        "tiny[q4]     12",
        "large      3456",
        "none",
    ]
    # no terminal here: the hint is for people who can act on it
    assert captured.err == "warning: an estimate\n"


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    speak(Output(as_json=True))
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema_version": 1, "sizes": [12, 3456]}
    assert captured.err == "warning: an estimate\n"


@pytest.mark.parametrize(("as_json", "expected"), [(False, "hint: more\n"), (True, "")])
def test_hints_go_to_a_terminal(
    as_json: bool, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Output(as_json=as_json).hint("more")
    assert capsys.readouterr() == ("", expected)


def test_piped_tables_are_not_cut() -> None:
    done = python(
        "from pshard.cli._output import Output\nOutput().table(['a', 'b'], [['x' * 300, 'y' * 300]])", COLUMNS="40"
    )
    assert "x" * 300 + "  " in done.stdout
    assert "y" * 300 in done.stdout


def test_a_table_that_is_too_wide_gives_its_rows_one_below_the_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("TERM", "xterm")
    rows = [["gpu0", "12.3 GiB", "weights and cache of all layers"], ["host", None, "first\nsecond"]]
    Output().table(["device", "stays free", "what"], rows, title="Devices")
    assert capsys.readouterr().out.splitlines() == [
        "Devices",
        "device      gpu0",
        "stays free  12.3 GiB",
        "what        weights and",
        "            cache of all",
        "            layers",
        "",
        "device      host",
        "what        first",
        "            second",
    ]


@pytest.mark.parametrize(
    ("environment", "escapes", "colour"),
    [({}, False, False), ({"FORCE_COLOR": "1"}, True, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False)],
)
def test_colour_obeys_the_environment(environment: dict[str, str], escapes: bool, colour: bool) -> None:
    clean = {"NO_COLOR": "", "FORCE_COLOR": "", "TERM": "xterm-256color"}
    done = python(
        "from pshard.cli._output import _console\n_console().print('[bold red]hot[/]')", **{**clean, **environment}
    )
    assert ("\x1b[" in done.stdout) is escapes
    assert ("31m" in done.stdout) is colour


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1", "2.5 GiB"], True),
        (["-3", ""], True),
        (["~4", "≤ 5"], True),
        (["1", "x1"], False),
        (["1, 2", "3"], False),
        (["", ""], False),
    ],
)
def test_columns_of_numbers_are_recognised(cells: list[str], numeric: bool) -> None:
    assert _output._are_numbers(cells) is numeric


# --- endings ----------------------------------------------------------------------------------------------------------


def failing(error: BaseException) -> click.Group:
    @click.group()
    @click.option("--debug", is_flag=True)
    def frame(debug: bool) -> None:
        pass

    @frame.command()
    @with_output
    def act(out: Output) -> None:
        out.line("before")
        raise error

    return frame


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GgufError("model.gguf: cut off"), 1, "pshard: model.gguf: cut off\n"),
        (SettingError("n_ctx must be positive"), 2, "pshard: n_ctx must be positive\n"),
        (NoFeasiblePlanError("4 GiB are missing", 4 << 30), 3, "pshard: 4 GiB are missing\n"),
        (FileNotFoundError(2, "No such file or directory", "a.gguf"), 1, "pshard: a.gguf: No such file or directory\n"),
        (click.ClickException("not a size"), 1, "Error: not a size\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_failure_has_its_code_and_one_sentence(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(error), ["act"]) == code
    captured = capsys.readouterr()
    assert captured.out == "before\n"
    assert captured.err == message


def test_a_defect_is_called_one_and_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(KeyError("blk.3")), ["act"]) == 1
    brief = capsys.readouterr().err
    assert "KeyError: 'blk.3'" in brief
    assert "pshard --debug" in brief
    assert "Traceback" not in brief
    assert run(failing(SettingError("no")), ["--debug", "act"]) == 2
    full = capsys.readouterr().err
    assert "Traceback" in full
    assert "raise error" in full


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["--help"]], ids=" ".join)
def test_a_full_disk_is_a_plain_failure(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pshard", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == "pshard: No space left on device\n"


def test_success_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @with_output
    def act(out: Output) -> None:
        speak(out)

    assert run(act, ["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_interrupt_gives_130() -> None:
    code = (
        "import sys, time, click\nfrom pshard.cli._errors import run\n"
        "@click.command()\ndef act():\n    print('ready', flush=True)\n    time.sleep(60)\nsys.exit(run(act, []))"
    )
    # A background shell starts its children with SIGINT ignored, and Python leaves an ignored signal alone.
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("n_lines", [1, 200_000], ids=["little", "much"])
def test_a_reader_that_leaves_ends_it_quietly(n_lines: int) -> None:
    code = (
        "import sys, click\nfrom pshard.cli._errors import run\nfrom pshard.cli._output import Output\n"
        "@click.command()\ndef act():\n    sys.stdin.readline()\n"
        f"    for i in range({n_lines}): Output().line(str(i))\n"
        "sys.exit(run(act, []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1
