"""Adapters for the models of the oracle, and what llama.cpp takes for them (tests/data/adapters.json.gz)."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import gguf
from gguf_cases import DATA, header_of

from pshard.memory.adapters import Adapter
from pshard.model.model import Model

F16 = 1


def rows() -> list[dict[str, Any]]:
    """Launches with adapters: of each the bytes of the adapters and of the compute buffers, by memory."""
    with gzip.open(DATA / "adapters.json.gz") as file:
        found: list[dict[str, Any]] = json.load(file)["rows"]
    return found


def adapter(model: Model, pattern: str, rank: int, *, scale: float = 1.0, **changes: Any) -> Adapter:
    """Return a LoRA adapter of all matrices whose names a pattern finds, norms left out."""
    pairs = []
    for tensor in model.tensors:
        if len(tensor.shape) < 2 or not tensor.name.endswith(".weight") or "_norm" in tensor.name:
            continue
        if not re.search(pattern, tensor.name):
            continue
        n_in, n_out, *experts = tensor.shape
        down, up = (n_in, rank, *experts), (rank, n_out, *experts)
        if tensor.name == "token_embd.weight":
            down, up = (rank, n_out), (rank, n_in)
        pairs += [(f"{tensor.name}.lora_a", down, F16), (f"{tensor.name}.lora_b", up, F16)]
    keys = {"general.architecture": model.architecture, "general.type": "adapter", "adapter.type": "lora", **changes}
    return Adapter("adapter.gguf", header_of(keys, pairs), scale)


def write_adapter(path: Path, made: Adapter) -> Path:
    """Write an adapter with gguf.GGUFWriter."""
    writer = gguf.GGUFWriter(path, str(made.header.metadata["general.architecture"]))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for tensor in made.header.tensors:
        writer.add_tensor(tensor.name, gguf.np.zeros(tuple(reversed(tensor.shape)), dtype="float16"))
    return _write(writer, path)


def write_control_vector(path: Path, width: int) -> Path:
    """Write a control vector of two layers."""
    writer = gguf.GGUFWriter(path, "controlvector")
    for layer in (1, 2):
        writer.add_tensor(f"direction.{layer}", gguf.np.zeros(width, dtype="float32"))
    return _write(writer, path)


def _write(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
