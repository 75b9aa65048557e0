"""``pshard check``: does a plan registry hold for a model."""

from __future__ import annotations

from pathlib import Path

import click

from pshard.cli._output import Output, with_output


@click.command("check")
@click.argument("registry", type=click.Path(path_type=Path))
@click.argument("model")
@with_output
def command(out: Output, /, *, registry: Path, model: str) -> None:
    """Check every plan of a REGISTRY against a MODEL.

    REGISTRY is a file, or the model that it lies beside; every tensor of MODEL is checked. Exit code 1 means that the
    runtime would trip over something.
    """
    from pshard.cli.show import print_faults
    from pshard.model.model import read_model
    from pshard.registry import find_registry
    from pshard.registry.errors import RegistryError
    from pshard.registry.faults import find_faults
    from pshard.registry.store import read_registry

    path = find_registry(registry)
    faults = find_faults(read_registry(path), read_model(model))
    n_faults = sum(not fault.is_note for fault in faults)
    out.json(
        {
            "schema_version": 1,
            "path": str(path),
            "model": model,
            "is_sound": n_faults == 0,
            "faults": faults,
        }
    )
    print_faults(out, faults)
    if n_faults:
        message = f"{path}: {n_faults} of its faults would mislead the runtime; write it again (`pshard plan`)."
        raise RegistryError(message)
