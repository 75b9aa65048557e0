"""GGUF files for tests: sound ones by the gguf package, broken ones byte by byte, headers of well-known models."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pshard.gguf.file import GgufHeader, TensorInfo, quant_sizes

DATA = Path(__file__).parents[1] / "data"
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
ALIGNMENT = 32


Tensors = list[tuple[str, tuple[int, ...], int]]


def n_bytes(shape: tuple[int, ...], type_id: int) -> int:
    elements, block = quant_sizes()[type_id]
    n = 1
    for size in shape:
        n *= size
    return n // elements * block


def write_sparse(
    path: Path,
    architecture: str,
    keys: dict[str, Any],
    tensors: Tensors,
    tokens: int = 0,
    merges: int = 0,
) -> Path:
    """Write a file with gguf.GGUFWriter whose tensor data is a hole.

    Keys go below the architecture unless they have a prefix of their own; shapes are as in the file.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name = key if key.startswith(("general.", "split.", "tokenizer.")) else f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_string(name, value)
    if tokens:
        writer.add_token_list([f"token{i}" for i in range(tokens)])
        writer.add_token_scores([0.0] * tokens)
        writer.add_token_types([1] * tokens)
    if merges:
        writer.add_token_merges([f"tok en{i}" for i in range(merges)])
    end = 0
    for name, shape, type_id in tensors:
        kind = gguf.GGMLQuantizationType(type_id)
        size = n_bytes(shape, type_id)
        writer.add_tensor_info(name, list(reversed(shape)), np.dtype("float32"), size, raw_dtype=kind)
        end = (end + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT + size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.flush()
    writer.close()
    header_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate((header_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT + end)
    return path


def llama_keys(n_layer: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "block_count": n_layer,
        "context_length": 4096,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
    } | more


def llama_tensors(n_layer: int = 2, tied: bool = False) -> Tensors:
    tensors: Tensors = [
        ("token_embd.weight", (256, 1000), Q8_0),
        ("output_norm.weight", (256,), F32),
    ]
    if not tied:
        tensors.append(("output.weight", (256, 1000), Q4_K))
    for i in range(n_layer):
        for name, shape, type_id in (
            ("attn_norm", (256,), F32),
            ("attn_q", (256, 256), Q8_0),
            ("attn_k", (256, 64), Q8_0),
            ("attn_v", (256, 64), F16),
            ("attn_output", (256, 256), Q8_0),
            ("ffn_norm", (256,), F32),
            ("ffn_gate", (256, 512), Q4_K),
            ("ffn_up", (256, 512), Q4_K),
            ("ffn_down", (512, 256), Q4_K),
        ):
            tensors.append((f"blk.{i}.{name}.weight", shape, type_id))
    return tensors


def write_llama(path: Path, **more: Any) -> Path:
    return write_sparse(path, "llama", llama_keys(), llama_tensors(), **more)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


@dataclass
class RawGguf:
    """A GGUF whose every field can be wrong. Counts are taken from the lists unless given."""

    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    keys: list[bytes] = field(default_factory=lambda: [RawGguf.key("general.architecture", 8, text("llama"))])
    tensors: list[bytes] = field(default_factory=lambda: [RawGguf.tensor("a.weight", (32, 2), Q8_0, 0)])
    data_bytes: int = 68

    @staticmethod
    def key(name: str | bytes, type_id: int, payload: bytes) -> bytes:
        return text(name) + struct.pack("<I", type_id) + payload

    @staticmethod
    def tensor(name: str | bytes, shape: tuple[int, ...], type_id: int, offset: int) -> bytes:
        return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, offset)

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        return b"GGUF" + struct.pack("<IQQ", self.version, n_tensors, n_keys) + b"".join(self.keys + self.tensors)

    def content(self) -> bytes:
        head = self.header()
        return head + bytes(-len(head) % ALIGNMENT) + bytes(self.data_bytes)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.content())
        return path


@lru_cache(maxsize=1)
def oracle_models() -> dict[str, Any]:
    """The models that llama.cpp's own allocations are known for.

    Per model `metadata`, `tensors` (name, shape, type), `file_bytes`, `n_layer`, `n_vocab`, and what llama.cpp logged:
    `kv_caches` (per launch, a list of caches: cells, layers, streams, type K, K MiB, type V, V MiB) and `states`
    (sequences, convolution MiB, scan MiB).
    """
    with gzip.open(DATA / "oracle_models.json.gz") as file:
        models: dict[str, Any] = json.load(file)
    return models


def header_of(metadata: dict[str, Any], tensors: Tensors, file_bytes: int = 0) -> GgufHeader:
    """A header that no file stands behind; offsets count from the start of the data."""
    table = []
    offset = 0
    for name, shape, type_id in tensors:
        size = n_bytes(tuple(shape), type_id)
        table.append(TensorInfo(name, tuple(shape), type_id, size, offset))
        offset += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return GgufHeader(None, 3, metadata, tuple(table), file_bytes)


def oracle_header(name: str) -> GgufHeader:
    """The header of one of them."""
    model = oracle_models()[name]
    return header_of(model["metadata"], model["tensors"], model["file_bytes"])


def write_oracle_model(name: str, path: Path) -> Path:
    """A sparse file of one of them, of the size of the real one."""
    model = oracle_models()[name]
    architecture = model["metadata"]["general.architecture"]
    keys = {key.removeprefix(f"{architecture}."): value for key, value in model["metadata"].items()}
    keys.pop("general.architecture")
    return write_sparse(path, architecture, keys, [(n, tuple(s), t) for n, s, t in model["tensors"]])
