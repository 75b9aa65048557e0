"""``pshard fit``: what llama.cpp's ``--fit`` decides for a launch line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pshard.cli._launch import LINE_SETTINGS, devices_or_here, read_line, with_launch_line
from pshard.cli._options import read_size
from pshard.cli._output import Output, with_output
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard.memory.report import DeviceMemory


@click.command("fit", context_settings=LINE_SETTINGS)
@with_launch_line
@click.option(
    "--ram", "ram_bytes", callback=read_size, metavar="SIZE",
    help="Host memory, like 64G: it counts where there is no GPU.",
)  # fmt: skip
@with_output
def command(out: Output, /, *, line: tuple[str, ...], devices: tuple[int, ...] | None, ram_bytes: int | None) -> None:
    """Print what llama.cpp's --fit decides: -c, -ngl, -ts and -ot.

    \b
    pshard fit model.gguf --devices 24G,12G
    pshard fit llama-server -m model.gguf -c 32768 --fit-target 512,2048 --devices 24G,12G

    The first line is what llama-fit-params prints for the same arguments, and the table what that takes of every
    memory. The line is llama.cpp's own: the program's name (llama-fit-params where it is left out; llama-server has
    other defaults), the model first or with -m, and llama.cpp's flags, those of --fit among them: -fitt (--fit-target)
    MiB[,MiB...] and -fitc (--fit-ctx) N. Exit code 3 where --fit gives up, because what it would change is given.
    """
    from pshard.memory.launch_memory import line_model
    from pshard.memory.stock_fit import fit_line

    launch = read_line(out, line, "llama-fit-params")
    result = fit_line(launch, line_model(launch), devices_or_here(out, devices), ram_bytes)
    for warning in result.warnings:
        out.warn(warning)
    out.json(result.to_dict() | {"program": launch.program, "ignored": list(launch.ignored)})
    out.line(result.line)
    out.line()
    out.table(
        ["MiB", "weights", "KV cache, state", "compute", "all", "stays free"],
        [_cells(memory) for memory in (*result.devices, result.host)],
    )


def _cells(memory: DeviceMemory) -> list[str | None]:
    used = memory.total_bytes
    parts = (memory.model_bytes, memory.context_bytes, memory.compute_bytes, used)
    left = None if memory.free_bytes is None else f"{(memory.free_bytes - used) / MIB:.1f}"
    return [memory.name, *(f"{n_bytes / MIB:.1f}" for n_bytes in parts), left]
