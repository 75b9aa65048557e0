"""What the header of a GGUF file says, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One line of the tensor table.

    Attributes
    ----------
    name : str
    shape : tuple of int
        As in the file: the first dimension is the contiguous one. One to four dimensions.
    type : int
        ggml type number.
    n_bytes : int
        Size of the data, without padding.
    offset : int
        First byte of the data, counted from the start of the part that holds it.
    part : int
        Index of that part.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    n_bytes: int
    offset: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """Stands for a metadata value that was stepped over: a vocabulary, or a text too long to matter here.

    Attributes
    ----------
    element_type : str
        GGUF element type, ``"string"`` for a vocabulary.
    length : int
        Elements (bytes for a long text, whose element type is ``"uint8"``).
    """

    element_type: str
    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a GGUF model, whose parts are joined.

    Attributes
    ----------
    path : Path or None
        First part; None for a header that was not read from a file.
    version : int
    metadata : dict
        Scalars, strings and short arrays (as lists) as Python values, the rest as `SkippedArray`. Of a split file: the
        first part's.
    tensors : tuple of TensorInfo
        In file order, part after part.
    file_bytes : int
        All parts together.
    parts : tuple of Path
    """

    path: Path | None
    version: int
    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int
    parts: tuple[Path, ...] = ()
