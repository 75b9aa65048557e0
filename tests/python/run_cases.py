"""Small models to run, and what makes measuring short; for tests of runs."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_cases
import numpy as np
import pytest

from pshard.cli import main
from pshard.model.model import Model, model_from_header, read_model

Q4_K, Q8_0, F16, F32 = 12, 8, 1, 0


def header(n_layer: int = 4, kind: int = Q8_0) -> tuple[dict[str, object], list[tuple[str, tuple[int, ...], int]]]:
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (256, 512), Q8_0),
        ("output_norm.weight", (256,), F32),
        ("output.weight", (256, 512), Q8_0),
    ]
    for i in range(n_layer):
        tensors += [
            (f"blk.{i}.{name}.weight", shape, t)
            for name, shape, t in (
                ("attn_norm", (256,), F32),
                ("attn_q", (256, 256), kind),
                ("attn_k", (256, 64), kind),
                ("attn_v", (256, 64), kind),
                ("attn_output", (256, 256), kind),
                ("ffn_norm", (256,), F32),
                ("ffn_gate", (256, 512), kind),
                ("ffn_up", (256, 512), kind),
                ("ffn_down", (512, 256), kind),
            )
        ]
    return gguf_cases.llama_keys(n_layer), tensors


def model(n_layer: int = 4, kind: int = Q8_0) -> Model:
    keys, tensors = header(n_layer, kind)
    metadata = {f"llama.{key}": value for key, value in keys.items()} | {"general.architecture": "llama"}
    return model_from_header(gguf_cases.header_of(metadata, tensors), "tiny")


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, object]:
    assert main(["run", *arguments, "--backend", "host", "--json"]) == code
    out = capsys.readouterr().out
    return json.loads(out) if out else {}


def write_weights(path: Path, n_layer: int = 4) -> dict[str, bytes]:
    """Write a file with blocks of its own for each tensor, and return them by name."""
    path = gguf_cases.write_sparse(path, "llama", *header(n_layer))
    random = np.random.default_rng(1)
    written = {}
    with path.open("r+b") as file:
        for tensor in read_model(str(path)).tensors:
            if tensor.type == Q8_0:
                blocks = np.empty(tensor.n_bytes // 34, dtype=[("scale", "<f2"), ("quants", "i1", 32)])
                blocks["scale"] = random.uniform(0.01, 0.1, blocks.shape)
                blocks["quants"] = random.integers(-127, 128, (len(blocks), 32))
                data = blocks.tobytes()
            else:
                data = random.standard_normal(tensor.n_bytes // 4).astype("<f4").tobytes()
            file.seek(tensor.offset)
            file.write(data)
            written[tensor.name] = data
    return written
