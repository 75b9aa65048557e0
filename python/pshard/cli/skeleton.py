"""``pshard skeleton``: a model of the catalogue as a file without weights."""

from __future__ import annotations

from pathlib import Path

import click

from pshard.cli._output import Output, with_output


@click.command("skeleton")
@click.argument("name")
@click.option(
    "-o", "--output", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@with_output
def command(out: Output, name: str, path: Path, force: bool) -> None:
    """Write model NAME of the catalogue as a sparse GGUF.

    The file has the published file's hyperparameters, tensor names, shapes and types and its full size, but no
    vocabulary, and a hole for data: a few kilobytes on disk.
    """
    from pshard.catalogue import resolve, write_skeleton

    file_bytes = write_skeleton(name, path, overwrite=force)
    model, quantisation = resolve(name)
    out.line(f"{path}: {model}:{quantisation}, {file_bytes / 2**30:.2f} GiB, all but its header a hole")
    out.json({"schema_version": 1, "path": str(path), "name": f"{model}:{quantisation}", "file_bytes": file_bytes})
