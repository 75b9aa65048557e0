"""Read the header of one GGUF file: metadata and tensor table, never the weights.

Every length is checked against the file before it is used, and nothing is allocated by a length that was not checked.
The file is read in chunks of 1 MiB, so a header costs its own size and a file of any length costs no more. Vocabulary
arrays are stepped over, not decoded.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from pshard.errors import GgufError
from pshard.gguf.header import GgufHeader, SkippedArray, TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_CHUNK_BYTES = 1 << 20
_DEFAULT_ALIGNMENT = 32

# Far above any real model, and low enough that a hostile header cannot keep the reader busy.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_NAME_BYTES = 63  # llama.cpp's GGML_MAX_NAME less the terminator
_MAX_DIMENSIONS = 4
_INT64_MAX = (1 << 63) - 1

# What is decoded; anything longer is kept as a SkippedArray. One entry per layer or label is all that planning needs.
_MAX_KEPT_STRING_BYTES = 1 << 16
_MAX_KEPT_NUMBERS = 4096
_MAX_KEPT_STRINGS = 256

_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # name length, name, type, value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # name length, name, dimension count, type, offset

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<?")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def read_part(path: Path) -> GgufHeader:
    """Read the header of one file, whether whole or a part of a split model.

    Parameters
    ----------
    path : Path

    Returns
    -------
    GgufHeader

    Raises
    ------
    GgufError
        The file is missing, truncated, big-endian or not a sound GGUF. The message names file,
        offset, value and remedy.
    """
    try:
        with path.open("rb") as file:
            return _HeaderReader(path, file).read()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        raise GgufError(message) from error


class _HeaderReader:
    """Walks one file front to back. `_position` is absolute; `_buffer` holds the bytes from `_buffer_start` on."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = file.seek(0, 2)
        self._position = 0
        self._buffer = b""
        self._buffer_start = 0

    def read(self) -> GgufHeader:
        version = self._read_version()
        n_tensors = self._read_count("tensors", _MIN_TENSOR_BYTES, _MAX_TENSORS)
        n_keys = self._read_count("metadata keys", _MIN_KEY_BYTES, _MAX_KEYS)
        metadata = self._read_metadata(n_keys)
        tensors = self._read_tensors(n_tensors, self._alignment(metadata))
        return GgufHeader(
            path=self._path,
            version=version,
            metadata=metadata,
            tensors=tensors,
            file_bytes=self._size,
            parts=(self._path,),
        )

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _fail(self, offset: int, what: str) -> GgufError:
        return GgufError(f"{self._path}: at byte {offset}: {what}")

    def _require(self, n_bytes: int, what: str) -> None:
        left = self._size - self._position
        if n_bytes > left:
            raise self._fail(
                self._position,
                f"{what} needs {n_bytes} bytes, but {left} are left of {self._size}. "
                "The file is truncated or damaged; download it again.",
            )

    def _window(self, n_bytes: int) -> int:
        """Make at least `n_bytes` (checked by the caller) readable in the buffer; return the position's index in it."""
        index = self._position - self._buffer_start
        if index + n_bytes > len(self._buffer):
            self._file.seek(self._position)
            self._buffer = self._file.read(max(n_bytes, _CHUNK_BYTES))
            self._buffer_start = self._position
            index = 0
            if len(self._buffer) < n_bytes:
                raise self._fail(
                    self._position, "the file became shorter while it was read. Wait for its download to end."
                )
        return index

    def _take(self, n_bytes: int, what: str) -> bytes:
        self._require(n_bytes, what)
        index = self._window(n_bytes)
        self._position += n_bytes
        return self._buffer[index : index + n_bytes]

    def _skip(self, n_bytes: int, what: str) -> None:
        self._require(n_bytes, what)
        self._position += n_bytes

    def _u32(self, what: str) -> int:
        return int(_U32.unpack(self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack(self._take(8, what))[0])

    def _name(self, what: str, max_bytes: int) -> str:
        start = self._position
        length = self._u64(f"the length of {what}")
        if not 0 < length <= max_bytes:
            raise self._fail(
                start,
                f"{what} has {length} bytes; 1 to {max_bytes} are allowed. The file is damaged; download it again.",
            )
        raw = self._take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._fail(
                start, f"{what} is {raw[:40]!r}, which is not UTF-8. The file is damaged; download it again."
            ) from error

    # --- fixed part
    # ----------------------------------------------------------------------------------------------------

    def _read_version(self) -> int:
        magic = self._take(min(4, self._size), "the magic number")
        if magic != _MAGIC:
            raise self._fail(
                0,
                f"the file begins with {magic!r} instead of {_MAGIC!r}: not a GGUF. Give a .gguf file, or convert the "
                "model to one.",
            )
        version = self._u32("the version")
        if version & 0xFFFF == 0:
            raise self._fail(
                4,
                f"the version reads as {version:#x}: a big-endian GGUF. Only little-endian files are supported; "
                "convert it with gguf_convert_endian.py.",
            )
        if version not in _VERSIONS:
            remedy = (
                "Convert the model again" if version < _VERSIONS[0] else "Upgrade pshard, or convert the model again"
            )
            raise self._fail(4, f"GGUF version {version}; versions 2 and 3 can be read. {remedy}.")
        return version

    def _read_count(self, what: str, min_bytes: int, limit: int) -> int:
        start = self._position
        count = self._u64(f"the number of {what}")
        if count > limit or count * min_bytes > self._size - start:
            raise self._fail(
                start,
                f"{count} {what} declared, more than a file of {self._size} bytes can hold or than the limit of "
                f"{limit}. "
                "The file is truncated or damaged; download it again.",
            )
        return count

    # --- metadata ----------------------------------------------------------------------------------------------------

    def _read_metadata(self, n_keys: int) -> dict[str, object]:
        metadata: dict[str, object] = {}
        for i in range(n_keys):
            start = self._position
            key = self._name(f"metadata key {i}", _MAX_KEY_BYTES)
            if key in metadata:
                raise self._fail(
                    start, f"metadata key '{key}' occurs twice. The file is damaged; convert the model again."
                )
            metadata[key] = self._read_value(key, self._u32(f"the type of '{key}'"))
        return metadata

    def _read_value(self, key: str, type_id: int) -> object:
        if type_id == _ARRAY:
            return self._read_array(key)
        if type_id == _STRING:
            return self._read_string(f"the text of '{key}'")
        if type_id not in _SCALARS:
            raise self._unknown_value_type(key, type_id)
        codec = _SCALARS[type_id][1]
        return codec.unpack(self._take(codec.size, f"the value of '{key}'"))[0]

    def _read_string(self, what: str) -> str | SkippedArray:
        length = self._u64(f"the length of {what}")
        if length > _MAX_KEPT_STRING_BYTES:
            self._skip(length, what)
            return SkippedArray("uint8", length)
        # Texts are for people; one bad byte in a licence does not make a model unusable.
        return self._take(length, what).decode(errors="replace")

    def _read_array(self, key: str) -> object:
        start = self._position
        type_id = self._u32(f"the element type of '{key}'")
        count = self._u64(f"the length of '{key}'")
        what = f"the {count} elements of '{key}'"
        if type_id == _STRING:
            if count * 8 > self._size - self._position:  # every string has at least its length
                self._require(count * 8, what)
            if count <= _MAX_KEPT_STRINGS and not key.startswith("tokenizer."):
                return [self._read_string(f"element {i} of '{key}'") for i in range(count)]
            self._skip_strings(count, key)
            return SkippedArray("string", count)
        if type_id == _ARRAY:
            raise self._fail(
                start, f"'{key}' is an array of arrays, which llama.cpp does not read. Convert the model again."
            )
        if type_id not in _SCALARS:
            raise self._unknown_value_type(key, type_id)
        name, codec = _SCALARS[type_id]
        if count > _MAX_KEPT_NUMBERS or key.startswith("tokenizer."):
            self._skip(count * codec.size, what)
            return SkippedArray(name, count)
        raw = self._take(count * codec.size, what)
        return [value for (value,) in codec.iter_unpack(raw)]

    def _skip_strings(self, count: int, key: str) -> None:
        from pshard import _core

        while count:
            index = self._window(min(8, self._size - self._position))
            n_strings, n_bytes = _core.skip_strings(memoryview(self._buffer)[index:], count)
            self._position += n_bytes
            count -= n_strings
            if count and not n_strings:  # the next string reaches beyond the buffer
                what = f"a string of '{key}'"
                self._skip(self._u64(f"the length of {what}"), what)
                count -= 1

    def _unknown_value_type(self, key: str, type_id: int) -> GgufError:
        return self._fail(
            self._position,
            f"'{key}' has value type {type_id}; 0 to 12 are known. The file is damaged or newer than this pshard.",
        )

    def _alignment(self, metadata: dict[str, object]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 0 < alignment <= _CHUNK_BYTES
            or alignment & (alignment - 1)
        ):
            raise self._fail(
                self._position,
                f"general.alignment is {alignment!r}; it must be a power of two of at most {_CHUNK_BYTES}. Convert "
                "the model again.",
            )
        return alignment

    # --- tensor table
    # ----------------------------------------------------------------------------------------------------

    def _read_tensors(self, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
        sizes = quant_sizes()
        table: list[TensorInfo] = []
        names: set[str] = set()
        entry_starts: list[int] = []
        for i in range(n_tensors):
            start = self._position
            name = self._name(f"the name of tensor {i}", _MAX_NAME_BYTES)
            if name in names:
                raise self._fail(start, f"tensor '{name}' occurs twice. The file is damaged; convert the model again.")
            names.add(name)
            table.append(self._read_tensor(start, name, sizes))
            entry_starts.append(start)

        # Where the data of each tensor must lie: one after the other, each padded; llama.cpp refuses anything else.
        data_start = aligned(self._position, alignment)
        expected = 0
        for i, (tensor, start) in enumerate(zip(table, entry_starts, strict=True)):
            self._check_place(tensor, start, expected, alignment, data_start)
            expected = aligned(tensor.offset + tensor.n_bytes, alignment)
            table[i] = replace(tensor, offset=data_start + tensor.offset)
        return tuple(table)

    def _read_tensor(self, start: int, name: str, sizes: dict[int, tuple[int, int]]) -> TensorInfo:
        n_dimensions = self._u32(f"the dimension count of '{name}'")
        if not 0 < n_dimensions <= _MAX_DIMENSIONS:
            raise self._fail(
                start,
                f"tensor '{name}' has {n_dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are allowed. The file is "
                "damaged.",
            )
        raw = self._take(8 * n_dimensions + 12, f"the shape, type and offset of '{name}'")
        *shape, type_id, offset = struct.unpack(f"<{n_dimensions}QIQ", raw)
        if type_id not in sizes:
            raise self._fail(
                start,
                f"tensor '{name}' has type {type_id}, unknown to gguf {_gguf_version()}; upgrade the gguf package or "
                "re-quantise.",
            )
        block_elements, block_bytes = sizes[type_id]
        n_elements = 1
        for n in shape:
            n_elements *= n
        if n_elements == 0 or n_elements > _INT64_MAX // block_bytes:
            raise self._fail(
                start, f"tensor '{name}' has shape {shape}: empty, or too large to address. The file is damaged."
            )
        if shape[0] % block_elements:
            raise self._fail(
                start,
                f"tensor '{name}' has rows of {shape[0]} elements, not a multiple of the {block_elements} in a block "
                f"of type {type_id}. "
                "Re-quantise the model.",
            )
        return TensorInfo(name, tuple(shape), type_id, n_elements // block_elements * block_bytes, offset)

    def _check_place(self, tensor: TensorInfo, start: int, expected: int, alignment: int, data_start: int) -> None:
        if tensor.offset % alignment:
            raise self._fail(
                start,
                f"tensor '{tensor.name}' has data offset {tensor.offset}, not a multiple of the alignment "
                f"{alignment}. Re-quantise.",
            )
        if tensor.offset != expected:
            how = (
                "overlaps the tensor before it"
                if tensor.offset < expected
                else "leaves a gap after the tensor before it"
            )
            raise self._fail(
                start,
                f"tensor '{tensor.name}' has data offset {tensor.offset}, which {how} (expected {expected}); "
                "llama.cpp refuses such a file. Re-quantise the model.",
            )
        end = data_start + tensor.offset + tensor.n_bytes
        if end > self._size:
            raise self._fail(
                start,
                f"the data of tensor '{tensor.name}' ends at byte {end}, but the file has {self._size}. "
                "The file is truncated; download it again.",
            )


def aligned(n: int, alignment: int) -> int:
    """Return the next multiple of `alignment` from `n` on."""
    return (n + alignment - 1) // alignment * alignment


def quant_sizes() -> dict[int, tuple[int, int]]:
    """Block size of every ggml type the `gguf` package knows: type number -> (elements, bytes)."""
    from gguf import GGML_QUANT_SIZES

    return {int(type_id): size for type_id, size in GGML_QUANT_SIZES.items()}


def _gguf_version() -> str:
    from importlib.metadata import version

    return version("gguf")
