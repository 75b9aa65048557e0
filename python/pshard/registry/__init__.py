"""Plan registries of the llama.cpp pull request: the files beside a model that its runtime loads plans from.

`reader` takes the text apart and `format` holds and prints what is in it; `overrides` turns placements into ``ot=``
items and back; `faults` finds what the runtime would trip over, `rules` knows which plan it uses when; `choice` picks
the placements that go together, `store` replaces files, `write` does all of it for a plan.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

SUFFIX = ".tensor_overrides.pshard_registry"


def registry_path(model_path: str | PathLike[str]) -> Path:
    """Path of the registry that the runtime looks for, beside the (first part of the) model's file."""
    return Path(f"{model_path}{SUFFIX}")


def find_registry(path: str | PathLike[str]) -> Path:
    """Path of the registry that is meant: the file itself, or of a model the one beside it (beside its first part)."""
    path = Path(path)
    if path.suffix != ".gguf":
        return path
    return registry_path(path.with_name(re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-00001-of-\1.gguf", path.name)))
