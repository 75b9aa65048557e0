"""Projectors, what llama.cpp reserves for them, and the table of docs/memory.md that says how exact pshard is."""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

from gguf_cases import DATA, header_of
from memory_errors import MIB, PAGE

from pshard.gguf.file import GgufHeader
from pshard.memory.projector import Buffers, Encoder, Input, Projector, projector_from_header

FIRST, LAST = "<!-- projectors -->\n", "<!-- end of projectors -->\n"

Row = tuple[Encoder, bool, str, Input, tuple[int, int]]


@cache
def cases() -> dict[str, dict[str, Any]]:
    """Headers, and what llama.cpp's clip.cpp reserves, by name."""
    with gzip.open(DATA / "projectors.json.gz") as file:
        document = json.load(file)
    return {case["name"]: case for case in document["projectors"]}


def header(name: str, **changes: Any) -> GgufHeader:
    case = cases()[name]
    metadata = {**case["metadata"], **{key.replace("__", "."): value for key, value in changes.items()}}
    return header_of(metadata, [(n, tuple(shape), kind) for n, shape, kind in case["tensors"]])


def projector(name: str, **changes: Any) -> Projector:
    return projector_from_header(header(name, **changes))


def reserved(name: str) -> list[Row]:
    """Rows of a projector: encoder, whether on a GPU, flash attention, input, and bytes there and in host memory."""
    encoders, rows = {encoder.core.is_of_sound: encoder for encoder in projector(name).encoders}, cases()[name]["rows"]
    return [
        (
            encoders[encoder == "audio"], on_gpu, flash_attn,
            Input(width=width, height=height, n_images=n_images, tile_columns=tiles[0] if tiles else 0),
            (device_bytes, host_bytes),
        )
        for encoder, on_gpu, flash_attn, n_images, width, height, device_bytes, host_bytes, *tiles in rows
    ]  # fmt: skip


def as_reserved(made: Buffers, *, on_gpu: bool) -> tuple[int, int]:
    """Bytes on the GPU and in host memory."""
    return (made.compute_bytes, made.host_bytes) if on_gpu else (0, made.compute_bytes)


def is_exact(row: Row) -> bool:
    encoder, on_gpu, flash_attn, given, found = row
    made = encoder.buffers(given, on_gpu=on_gpu, flash_attn=flash_attn)
    return as_reserved(made, on_gpu=on_gpu) == found


def projector_table() -> list[str]:
    """Lines of a Markdown table, one for each projector."""
    heads = [
        "projector",
        "kind",
        "positions",
        "rows",
        "exact",
        "GPU, MiB",
        "without flash attention",
        "in host memory",
        "largest",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name in sorted(cases()):
        loaded, rows = projector(name), reserved(name)
        plain, unfused = (loaded.memory("CUDA0", flash_attn=flash_attn) for flash_attn in ("auto", "off"))
        sizes = (plain.compute_bytes, unfused.compute_bytes, plain.host_bytes, plain.largest_compute_bytes)
        cells = [
            name, plain.kind, str(plain.n_positions), str(len(rows)), f"{sum(map(is_exact, rows)) / len(rows):.0%}",
            *(f"{n_bytes / MIB:.1f}" for n_bytes in sizes),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_projector_table() -> None:
    """Bring the table of the page up to date."""
    before, _, rest = PAGE.read_text().partition(FIRST)
    after = rest.partition(LAST)[2]
    PAGE.write_text(before + FIRST + "".join(f"{text}\n" for text in projector_table()) + LAST + after)
