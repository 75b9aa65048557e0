"""What the commands that read a llama.cpp launch line share: the line itself, sizes of memories, notes on stderr."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._output import Output

if TYPE_CHECKING:
    from pshard.launch_line import LaunchLine

MIB = 1 << 20
MEBIBYTES = {"": 1024, "g": 1024, "gib": 1024, "m": 1, "mib": 1}

# Own options are long ones; all else belongs to the line. `-h` is llama.cpp's help there, and ours here.
LINE_SETTINGS: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


def parse_size(text: str) -> int:
    """Bytes of ``12G``, ``12GiB``, ``12288M`` or ``12``, which is GiB as well.

    Raises
    ------
    click.BadParameter
        None of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in MEBIBYTES:
        message = f"{text!r} is not a size; examples: 12G, 12GiB, 12288M, 11.5 (GiB where no unit is given)."
        raise click.BadParameter(message)
    return round(float(found[1]) * MEBIBYTES[found[2]] * MIB)


def size_option(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Read one size; None where it was not given."""
    return None if text is None else parse_size(text)


def sizes_option(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read a list of sizes (``24G,12G``, or ``none``); None where it was not given."""
    if text is None:
        return None
    return () if text.strip().lower() == "none" else tuple(parse_size(part) for part in text.split(","))


def with_launch_line(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the launch line as its argument, and ``--devices``."""
    command = click.option(
        "--devices", callback=sizes_option, metavar="SIZE,...",
        help="Free memory of each GPU: 24G,12G (GiB), 24576M; none.  [default: the GPUs of this machine]",
    )(command)  # fmt: skip
    return click.argument("line", nargs=-1, type=click.UNPROCESSED, metavar="MODEL [LLAMA.CPP FLAGS]")(command)


def read_line(out: Output, tokens: tuple[str, ...], program: str | None = None) -> LaunchLine:
    """Parse a launch line, whose `program` is llama-server unless said, and say on stderr what of it is not counted."""
    from pshard.launch_line import DEFAULT_PROGRAM, parse_launch_line

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
