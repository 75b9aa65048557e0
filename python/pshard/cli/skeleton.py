"""``pshard skeleton``: a model of the catalogue as a file without trained weights."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pshard.cli._options import FILE
from pshard.cli._output import Output, with_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@click.command("skeleton")
@click.argument("name")
@click.option("-o", "--output", "path", required=True, type=FILE, help="The file to write.")
@click.option(
    "--fill",
    type=click.Choice(["hole", "random"]),
    default="hole",
    show_default=True,
    help="What stands for the weights: nothing, or random numbers that an engine can run.",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Of --fill random: another N, other weights.  [default: 0]"
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@with_output
def command(out: Output, name: str, path: Path, fill: str, seed: int | None, *, force: bool) -> None:
    """Write model NAME of the catalogue as a GGUF without vocabulary.

    The file has the published file's hyperparameters, tensor names, shapes and types and its full size. Its data is a
    hole, a few kilobytes on disk; or, with --fill random, weights that say nothing, but take an engine as long as the
    real ones.
    """
    from pshard.catalogue import resolve, write_skeleton

    if fill == "hole" and seed is not None:
        message = f"--seed {seed} is for --fill random; a hole has no weights"
        raise click.UsageError(message)
    if fill == "random":
        seed = seed or 0
    with _progress() as on_bytes:
        file_bytes = write_skeleton(name, path, overwrite=force, seed=seed, on_bytes=on_bytes)
    model, quantisation = resolve(name)
    data = "all but its header a hole" if seed is None else f"random weights of seed {seed}"
    out.line(f"{path}: {model}:{quantisation}, {file_bytes / 2**30:.2f} GiB, {data}")
    out.json(
        {
            "schema_version": 1,
            "path": str(path),
            "name": f"{model}:{quantisation}",
            "file_bytes": file_bytes,
            "seed": seed,
        }
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on stderr, at a terminal only."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("")
        yield lambda done, total: progress.update(bar, completed=done, total=total)
