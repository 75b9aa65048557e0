"""What the commands that read a llama.cpp launch line share: the line itself, the GPUs' memory, notes on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._options import read_sizes
from pshard.cli._output import Output

if TYPE_CHECKING:
    from pshard.launch.line import LaunchLine

# Own options are long ones; all else belongs to the line. `-h` is llama.cpp's help there, and ours here.
LINE_SETTINGS: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


def with_launch_line(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the launch line as its argument, and ``--devices``."""
    command = click.option(
        "--devices", callback=read_sizes, metavar="SIZE,...",
        help="Free memory of each GPU: 24G,12G (GiB), 24576M; none.  [default: the GPUs of this machine]",
    )(command)  # fmt: skip
    return click.argument("line", nargs=-1, type=click.UNPROCESSED, metavar="MODEL [LLAMA.CPP FLAGS]")(command)


def read_line(out: Output, tokens: tuple[str, ...], program: str | None = None) -> LaunchLine:
    """Parse a launch line, whose `program` is llama-server unless said, and say on stderr what of it is not counted."""
    from pshard.launch.line import DEFAULT_PROGRAM, parse_launch_line

    if not tokens:
        message = "give a model, and llama.cpp's flags behind it."
        raise click.UsageError(message)
    line = parse_launch_line(tokens, program or DEFAULT_PROGRAM)
    if line.ignored:
        out.note(f"no bearing on memory: {', '.join(line.ignored)}")
    for warning in line.warnings:
        out.warn(warning)
    return line


def devices_or_here(out: Output, devices: tuple[int, ...] | None) -> tuple[int, ...]:
    """Free memory of each GPU as it was given, else of this machine's."""
    if devices is not None:
        return devices
    from pshard import _core

    found = _core.query_gpus()
    if not found.devices:
        out.note(f"no GPU here ({found.reason}), so that all is in host memory; name others with --devices 24G,12G")
    return tuple(device.free_bytes for device in found.devices)
