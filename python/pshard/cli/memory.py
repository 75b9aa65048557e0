"""``pshard memory``: what a llama.cpp launch line takes of every memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pshard.cli._launch import LINE_SETTINGS, devices_or_here, read_line, with_launch_line
from pshard.cli._options import read_size
from pshard.cli._output import Output, with_output

if TYPE_CHECKING:
    from pshard.launch.line import LaunchLine
    from pshard.memory.check import CheckRow


@click.command("memory", context_settings=LINE_SETTINGS)
@with_launch_line
@click.option("--ram", "ram_bytes", callback=read_size, metavar="SIZE", help="Free host memory, like 64G.")
@click.option(
    "--check", "binary", metavar="BINARY",
    help="Ask this llama-fit-params for the same launch, and show its figures beside these.",
)  # fmt: skip
@click.option(
    "--check-timeout", "timeout_seconds", type=click.FloatRange(0, min_open=True), default=120.0, show_default=True,
    metavar="SECONDS", help="How long BINARY may take.",
)  # fmt: skip
@with_output
def command(
    out: Output,
    /,
    *,
    line: tuple[str, ...],
    devices: tuple[int, ...] | None,
    ram_bytes: int | None,
    binary: str | None,
    timeout_seconds: float,
) -> None:
    """Show what a llama.cpp launch takes of every memory.

    \b
    pshard memory model.gguf -c 32768 -ctk q8_0 -ctv q8_0 --devices 24G
    pshard memory llama-server -m model.gguf -ngl 30 -md draft.gguf --mmproj mmproj.gguf --devices 24G,12G

    It is counted from the model's header alone. The line is llama.cpp's own: the program's name (llama-server where it
    is left out, whose defaults then hold; or llama-cli, llama-fit-params), the model first or with -m, and llama.cpp's
    flags in its own spelling. Flags that have no bearing on memory may stay; stderr lists them. Compute buffers,
    weights and caches are what llama.cpp allocates; what driver and libraries take besides is an allowance with its
    source.
    """
    from pshard.cli._memory_tables import print_check, print_report
    from pshard.memory.launch_memory import line_memory

    launch = read_line(out, line)
    free = devices_or_here(out, devices)
    report = line_memory(launch, free, ram_bytes)
    for warning in report.warnings:
        out.warn(warning)
    document = report.to_dict() | {"program": launch.program, "ignored": list(launch.ignored), "check": None}
    if binary is not None:
        rows, asked, left_out = _check(launch, free, binary, timeout_seconds)
        document["check"] = {
            "argv": asked,
            "left_out": left_out,
            "rows": [{**_fields(row), "differences_mib": list(row.differences_mib)} for row in rows],
        }
    out.json(document)
    print_report(out, report, launch)
    if binary is not None:
        print_check(out, rows, asked, left_out)


def _check(
    line: LaunchLine, devices: tuple[int, ...], binary: str, timeout_seconds: float
) -> tuple[tuple[CheckRow, ...], list[str], list[str]]:
    """Put the print mode's figures beside ours for the same line, as far as it can be said there."""
    from pshard.memory.check import ask, comparable, compare, print_arguments
    from pshard.memory.launch_memory import line_memory

    arguments, left_out = print_arguments(line, has_gpu=bool(devices))
    engine = ask(binary, arguments, timeout_seconds)
    return compare(line_memory(comparable(line), devices), engine), [binary, *arguments], left_out


def _fields(row: CheckRow) -> dict[str, object]:
    from msgspec.structs import asdict

    return asdict(row)
