"""``pshard models``: the models that can be planned by name."""

from __future__ import annotations

import click

from pshard.cli._output import Output, with_output


@click.command("models")
@with_output
def command(out: Output) -> None:
    """List the built-in catalogue: models that need no download.

    Sizes are those of the published files, in GiB. A name is MODEL:QUANTISATION, such as llama-3.3-70b:Q4_K_M; without
    the quantisation it means Q4_K_M, or the only one there is.
    """
    from pshard.catalogue import entries

    found = entries()
    quantisations = list(dict.fromkeys(q for entry in found for q in entry.file_bytes))
    out.table(
        ["model", "architecture", "layers", "parameters", *quantisations],
        [
            [
                entry.name,
                entry.architecture,
                entry.n_layer,
                f"{entry.n_parameters / 1e9:.1f} B",
                *(f"{entry.file_bytes[q] / 2**30:.1f}" if q in entry.file_bytes else None for q in quantisations),
            ]
            for entry in found
        ],
    )
    out.hint("pshard plan MODEL:QUANTISATION --vram 12G")
    out.json(
        {
            "schema_version": 1,
            "models": [
                {
                    "name": entry.name,
                    "title": entry.title,
                    "architecture": entry.architecture,
                    "n_layer": entry.n_layer,
                    "n_parameters": entry.n_parameters,
                    "file_bytes": entry.file_bytes,
                }
                for entry in found
            ],
        }
    )
