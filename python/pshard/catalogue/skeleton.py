"""A model of the catalogue as a file: everything but the trained weights.

The file has the full size and a sound header, but its tensor data is a hole, so it takes a few kilobytes of disk. It
stands in for the real file wherever only the header counts: an engine can be asked what it would allocate. Filled with
random weights it stands in wherever only the time counts: an engine runs it as it would run the real one.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.catalogue.published import header
from pshard.errors import SettingError
from pshard.gguf.part import aligned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gguf import GGUFWriter

    from pshard.gguf.file import TensorInfo


def write_skeleton(
    name: str,
    path: Path | str,
    *,
    overwrite: bool = False,
    seed: int | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `name` as a GGUF without vocabulary, sparse or with random weights.

    The file appears under its name only when it is whole.

    Parameters
    ----------
    name : str
        ``MODEL:QUANTISATION`` of the catalogue.
    path : path-like
        Where to write; its folder must exist.
    overwrite : bool
        Whether to replace a file that is there.
    seed : int, optional
        Fill it with random weights, the same for the same seed, at least 0; by default its data is a hole.
    on_bytes : callable
        Called with the bytes filled so far, and with all.

    Returns
    -------
    int
        Bytes of the file, holes included.

    Raises
    ------
    ModelError
        If the catalogue has no such model or quantisation.
    SettingError
        If `path` exists and `overwrite` is false, or its folder does not exist.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    path = Path(path)
    published = header(name)
    if path.exists() and not overwrite:
        message = f"{path} exists; name another file, or pass --force to replace it"
        raise SettingError(message)
    if not path.parent.is_dir():
        message = f"{path.parent} is not a folder; create it first"
        raise SettingError(message)

    architecture = str(published.metadata["general.architecture"])
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(part)
    try:
        writer = GGUFWriter(path=None, arch=architecture)
        _add_metadata(writer, architecture, published.metadata)
        for tensor in published.tensors:
            # the writer wants numpy's order, slowest dimension first
            shape = tuple(reversed(tensor.shape))
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.float16), tensor.n_bytes, raw_dtype=GGMLQuantizationType(tensor.type)
            )
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        align = writer.data_alignment
        data_bytes = sum(aligned(tensor.n_bytes, align) for tensor in published.tensors)
        data_start = aligned(temporary.stat().st_size, align)
        n_bytes = data_start + data_bytes
        os.truncate(temporary, n_bytes)
        if seed is not None:
            _fill(temporary, data_start, align, published.tensors, seed, on_bytes)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return n_bytes


def _fill(
    path: Path,
    start: int,
    alignment: int,
    tensors: Sequence[TensorInfo],
    seed: int,
    on_bytes: Callable[[int, int], None],
) -> None:
    from gguf import GGMLQuantizationType

    from pshard.catalogue.random_weights import random_tensor

    total = sum(tensor.n_bytes for tensor in tensors)
    done = 0
    with path.open("r+b") as file:
        for index, tensor in enumerate(tensors):
            file.seek(start)
            for part in random_tensor(tensor.name, tensor.shape, GGMLQuantizationType(tensor.type).name, seed, index):
                file.write(part.data)
                done += part.nbytes
                on_bytes(done, total)
            start += aligned(tensor.n_bytes, alignment)


def _add_metadata(writer: GGUFWriter, architecture: str, metadata: dict[str, object]) -> None:
    """Add all but the tokenizer, in whose place the file says that it has none and how many tokens to expect."""
    from gguf import GGUFValueType

    from pshard.gguf.file import SkippedArray

    for key, value in metadata.items():
        match value:
            case _ if key == "general.architecture" or key.startswith("tokenizer."):
                pass  # the writer has added the one, and the other is replaced
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case list():
                writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType.INT32)
            case _:
                writer.add_string(key, str(value))
    writer.add_tokenizer_model("no_vocab")
    vocabulary = metadata["tokenizer.ggml.tokens"]
    if isinstance(vocabulary, SkippedArray) and f"{architecture}.vocab_size" not in metadata:
        writer.add_vocab_size(vocabulary.length)
