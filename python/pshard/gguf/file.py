"""Read the header of a GGUF model, whole or split into parts (``-00001-of-0000N.gguf``).

Of a split model every part must be there, sound, and belong: its number, the count of parts and the count of all
tensors are checked. The tensor tables are joined and the sizes summed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import GgufError
from pshard.gguf.header import GgufHeader, SkippedArray, TensorInfo
from pshard.gguf.part import quant_sizes, read_part

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["GgufHeader", "SkippedArray", "TensorInfo", "quant_sizes", "read_header"]

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def read_header(path: str | PathLike[str]) -> GgufHeader:
    """Read the header of a GGUF file, or of all parts of a split one.

    Parameters
    ----------
    path : path-like
        A GGUF file; of a split model any part, which stands for the whole.

    Returns
    -------
    GgufHeader

    Raises
    ------
    GgufError
        The file is missing, truncated, big-endian or not a sound GGUF, or a part is missing or does not belong. The
        message names file, offset, value and what to do.
    """
    named = Path(path)
    header = read_part(named)
    count = _split_value(named, header, "split.count", default=1)
    if count <= 1:
        return header
    return _join([read_part(part) for part in _part_paths(named, count)], count)


def _split_value(path: Path, header: GgufHeader, key: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        message = (
            f"{path}: {key} is {value!r}; a part of a split model needs a whole number there. Split the model again."
        )
        raise GgufError(message)
    return value


def _part_paths(path: Path, count: int) -> list[Path]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        message = (
            f"{path}: split.count says this is one part of {count}, but the name does not end in "
            f"'-NNNNN-of-{count:05d}.gguf'. Give the parts their original names, or merge them with llama-gguf-split "
            "--merge."
        )
        raise GgufError(message)
    paths = [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    for part in paths:
        if not part.is_file():
            message = f"{part}: this part of a model of {count} parts is missing. Put all parts into one folder."
            raise GgufError(message)
    return paths


def _join(parts: list[GgufHeader], count: int) -> GgufHeader:
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for i, part in enumerate(parts):
        path = part.parts[0]
        for key, expected in (("split.no", i), ("split.count", count)):
            value = _split_value(path, part, key)
            if value != expected:
                message = (
                    f"{path}: {key} is {value}, expected {expected}; the parts are mixed up. Download this part again."
                )
                raise GgufError(message)
        for tensor in part.tensors:
            if tensor.name in names:
                message = f"{path}: tensor '{tensor.name}' is in an earlier part already. Download the parts again."
                raise GgufError(message)
            names.add(tensor.name)
            tensors.append(replace(tensor, part=i))
    first = parts[0]
    if "split.tensors.count" in first.metadata:
        expected = _split_value(first.parts[0], first, "split.tensors.count")
        if expected != len(tensors):
            message = (
                f"{first.path}: split.tensors.count is {expected}, but the {count} parts hold {len(tensors)} tensors. "
                "The parts are of different models; download them again."
            )
            raise GgufError(message)
    return GgufHeader(
        path=first.path,
        version=first.version,
        metadata=first.metadata,
        tensors=tuple(tensors),
        file_bytes=sum(part.file_bytes for part in parts),
        parts=tuple(part.parts[0] for part in parts),
    )
