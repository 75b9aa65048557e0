"""From a name to what the published file's header says."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.catalogue.mixes import MIXES, block_of, choose_types
from pshard.catalogue.shapes import Record, load_record, model_names
from pshard.errors import ModelError

if TYPE_CHECKING:
    from pshard.gguf.file import GgufHeader, TensorInfo

DEFAULT_QUANTISATION = "Q4_K_M"

_ALIGNMENT = 32  # of the tensor data and of every tensor in it: GGUF's default


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue; ``file_bytes`` maps its quantisations to the size of their files."""

    name: str
    title: str
    architecture: str
    n_layer: int
    n_parameters: int
    file_bytes: dict[str, int]


def names() -> list[str]:
    """Every full name that `header` takes, sorted by model; a model's quantisations come smallest first."""
    return [f"{model}:{quantisation}" for model in model_names() for quantisation in load_record(model).quantisations]


def entries() -> list[Entry]:
    """Describe every model of the catalogue, sorted by name."""
    found = []
    for name in model_names():
        record = load_record(name)
        found.append(
            Entry(
                name=name,
                title=record.title,
                architecture=record.architecture,
                n_layer=record.n_layer,
                n_parameters=sum(math.prod(shape) for _, shape in record.shapes()),
                file_bytes={quantisation: _file_bytes(record, quantisation) for quantisation in record.quantisations},
            )
        )
    return found


def resolve(name: str) -> tuple[str, str]:
    """Split a name into model and quantisation, whatever its case, and check both.

    Raises
    ------
    ModelError
        If the catalogue has no such model, or not in that quantisation; the message lists what is nearest.
    """
    wanted, _, quantisation = (part.strip() for part in name.partition(":"))
    model = wanted.lower()
    if model not in model_names():
        near = difflib.get_close_matches(model, model_names(), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        message = (
            f"no model {wanted!r} in the catalogue: {hint}`pshard models` lists all, or give the path of a GGUF file"
        )
        raise ModelError(message)
    offered = load_record(model).quantisations
    if not quantisation:
        return model, DEFAULT_QUANTISATION if DEFAULT_QUANTISATION in offered else offered[0]
    if quantisation.upper() not in offered:
        near = difflib.get_close_matches(quantisation.upper(), offered, n=1) or [offered[0]]
        message = f"the catalogue has {model} as {', '.join(offered)}, not as {quantisation!r}; try {model}:{near[0]}"
        raise ModelError(message)
    return model, quantisation.upper()


def header(name: str) -> GgufHeader:
    """Build the header that the published file of `name` has.

    Parameters
    ----------
    name : str
        ``MODEL:QUANTISATION``, see `names`; without a quantisation, `DEFAULT_QUANTISATION` or the model's only one.

    Returns
    -------
    GgufHeader
        With no path and no parts. Offsets and ``file_bytes`` count the metadata by its approximate size.

    Raises
    ------
    ModelError
        If the catalogue has no such model or quantisation.
    """
    from pshard.gguf.file import GgufHeader, SkippedArray

    model, quantisation = resolve(name)
    record = load_record(model)
    tensors = _tensor_table(record, quantisation)
    metadata = {
        **_metadata(record, quantisation),
        "tokenizer.ggml.model": record.vocabulary.model,
        "tokenizer.ggml.tokens": SkippedArray("string", record.vocabulary.n_tokens),
    }
    return GgufHeader(
        path=None, version=3, metadata=metadata, tensors=tensors, file_bytes=_file_bytes(record, quantisation), parts=()
    )


def _metadata(record: Record, quantisation: str) -> dict[str, object]:
    """Metadata of the file but for its tokenizer, under GGUF's keys."""
    return {
        "general.architecture": record.architecture,
        "general.name": record.title,
        "general.file_type": MIXES[quantisation].file_type,
        "general.quantization_version": 2,
        **{f"{record.architecture}.{key}": value for key, value in record.hyperparameters.items()},
    }


def _sizes(record: Record, quantisation: str) -> list[tuple[str, tuple[int, ...], str, int]]:
    """Name, shape, type name and bytes of every tensor, in file order."""
    shape_of = dict(record.shapes())
    sizes = []
    for name, kind in choose_types(shape_of.items(), quantisation, record.mix_context()).items():
        elements, block_bytes = block_of(kind)
        sizes.append((name, shape_of[name], kind, math.prod(shape_of[name]) // elements * block_bytes))
    return sizes


def _aligned(n: int) -> int:
    return (n + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _data_start(record: Record) -> int:
    """Approximate offset of the tensor data: the metadata with its vocabulary, and the exact tensor table."""
    table = sum(len(name) + 8 + 4 + 8 * len(shape) + 4 + 8 for name, shape in record.shapes())
    return _aligned(record.vocabulary.n_bytes + table)


def _file_bytes(record: Record, quantisation: str) -> int:
    return _data_start(record) + sum(_aligned(n_bytes) for *_, n_bytes in _sizes(record, quantisation))


def _tensor_table(record: Record, quantisation: str) -> tuple[TensorInfo, ...]:
    from gguf import GGMLQuantizationType

    from pshard.gguf.file import TensorInfo

    offset = _data_start(record)
    tensors = []
    for name, shape, kind, n_bytes in _sizes(record, quantisation):
        tensors.append(
            TensorInfo(name=name, shape=shape, type=int(GGMLQuantizationType[kind]), n_bytes=n_bytes, offset=offset)
        )
        offset += _aligned(n_bytes)
    return tuple(tensors)
