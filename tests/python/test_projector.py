"""Projectors: weights from the header, compute within the stated bounds of what llama.cpp reserves."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import oracle
import pytest
from gguf_cases import DATA, header_of, write_llama, write_sparse

from pshard import ModelError, estimate_memory, read_projector
from pshard.gguf_file import GgufHeader
from pshard.launch_line import parse_launch_line
from pshard.projector import BOUND_FACTOR, Projector, projector_from_header
from pshard.stock_fit import fit_line

GIB = 1 << 30


@cache
def cases() -> dict[str, dict[str, Any]]:
    """Projectors of thirteen kinds and what llama.cpp's mtmd_get_memory_usage says of them, by name."""
    with gzip.open(DATA / "projectors.json.gz") as file:
        document = json.load(file)
    return {case["name"]: case for case in document["projectors"]}


def header(name: str, **changes: Any) -> GgufHeader:
    case = cases()[name]
    metadata = {**case["metadata"], **{key.replace("__", "."): value for key, value in changes.items()}}
    return header_of(metadata, [(n, tuple(shape), kind) for n, shape, kind in case["tensors"]])


def projector(name: str, **changes: Any) -> Projector:
    return projector_from_header(header(name, **changes))


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("name", sorted(cases()))
def test_what_llama_cpp_reserves_is_within_the_bounds(name: str, flash_attn: bool) -> None:
    reserved = cases()[name][f"flash_attn_{'on' if flash_attn else 'off'}"]
    memory = projector(name).memory("CUDA0", flash_attn=flash_attn)
    assert memory.compute_bytes <= reserved["device_compute_bytes"] <= memory.compute_bound_bytes
    assert memory.compute_bound_bytes == BOUND_FACTOR * memory.compute_bytes
    # Beside its inputs, a projector may compute something small on the host.
    assert memory.host_bytes <= reserved["host_compute_bytes"] <= memory.host_bytes + (9 << 20)


def test_the_input_is_llama_cpps_warm_up() -> None:
    patches = {name: projector(name).encoders[0].warmup.n_positions for name in cases()}
    assert patches["gemma3-4b"] == 64 * 64
    assert patches["llava15-7b"] == 24 * 24
    assert patches["qwen25vl-7b"] == 92 * 92  # 46 tokens a side, each of 2 x 2 patches
    assert patches["mistral-small31"] == 32 * 32
    assert patches["ultravox"] == 1500


def test_the_largest_image_is_more_than_the_warm_up() -> None:
    memory = projector("qwen25vl-7b").memory("CUDA0")
    assert memory.largest_n_positions == 128 * 128
    assert memory.largest_bound_bytes > 3 * memory.compute_bound_bytes
    fixed = projector("gemma3-4b").memory("CUDA0")
    assert fixed.largest_bound_bytes == fixed.compute_bound_bytes


def test_tokens_may_be_limited() -> None:
    limited = projector_from_header(header("qwen25vl-7b"), image_max_tokens=1024).encoders[0]
    assert limited.largest.n_positions == limited.warmup.n_positions == 92 * 92
    assert projector_from_header(header("pixtral-12b"), image_max_tokens=400).encoders[0].largest.n_positions == 400
    assert projector_from_header(header("gemma3-4b"), image_max_tokens=64).encoders[0].largest.n_positions == 64 * 64


def test_weights_are_those_of_the_file() -> None:
    loaded = projector("internvl3-8b")
    n_bytes = sum(tensor.n_bytes for tensor in loaded.header.tensors)
    assert loaded.memory("Host").model_bytes == n_bytes
    on_gpu = loaded.memory("CUDA0").model_bytes
    assert n_bytes <= on_gpu < n_bytes + 128 * len(loaded.header.tensors)


def test_both_encoders_count() -> None:
    vision, audio = cases()["gemma3-4b"], cases()["voxtral"]
    metadata = {**audio["metadata"], **vision["metadata"]}
    tensors = [(n, tuple(shape), kind) for n, shape, kind in vision["tensors"] + audio["tensors"]]
    both = projector_from_header(header_of(metadata, tensors))
    assert len(both.encoders) == 2
    parts = [projector(name).memory("CUDA0") for name in ("gemma3-4b", "voxtral")]
    assert both.memory("CUDA0").compute_bytes == sum(part.compute_bytes for part in parts)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"general__architecture": "llama"}, "is not a projector's"),
        ({"clip__has_vision_encoder": False}, "neither images nor sound"),
        ({"clip__vision__patch_size": "14"}, "clip.vision.patch_size is '14'"),
        ({"clip__vision__embedding_length": None}, "clip.vision.embedding_length is None"),
        ({"clip__vision__image_size": -1}, "clip.vision.image_size is -1"),
    ],
)
def test_a_file_that_is_none_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelError) as caught:
        projector("gemma3-4b", **changes)
    assert part in str(caught.value)


def test_a_model_is_no_projector(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="with --mmproj"):
        read_projector(path)


def stored(folder: Path) -> Path:
    case = cases()["gemma3-4b"]
    keys = {key: value for key, value in case["metadata"].items() if key != "general.architecture"}
    return write_sparse(
        folder / "mmproj.gguf", "clip", {key.removeprefix("clip."): value for key, value in keys.items()},
        [(n, tuple(shape), kind) for n, shape, kind in case["tensors"]],
    )  # fmt: skip


def test_it_takes_memory_beside_the_model(tmp_path: Path) -> None:
    path = stored(tmp_path)
    model = oracle.model("gemma3-27b-q4km")
    alone = estimate_memory(model, n_ctx=4096, devices=[24 * GIB])
    report = estimate_memory(model, n_ctx=4096, devices=[24 * GIB], projector=path)
    memory = report.projector
    assert memory is not None
    assert memory.name == "mmproj.gguf"
    assert (memory.kind, memory.where) == ("gemma3", "CUDA0")
    grown = report.used_bytes("CUDA0") - alone.used_bytes("CUDA0")
    assert grown == memory.model_bytes + memory.compute_bound_bytes
    assert report.used_bytes("Host") - alone.used_bytes("Host") == memory.host_bytes == 896 * 896 * 3 * 4
    without_flash = estimate_memory(model, n_ctx=4096, devices=[24 * GIB], projector=path, flash_attn="off").projector
    assert without_flash is not None
    assert without_flash.compute_bytes > 4096**2 * 16 * 4  # every pair of patches, for every head
    on_host = estimate_memory(model, n_ctx=4096, projector=read_projector(path))
    assert on_host.projector is not None
    assert on_host.projector.where == "Host"


def test_fit_of_a_server_leaves_room_for_it(tmp_path: Path) -> None:
    words = ["-m", "model.gguf", "-np", "1", "-c", "8192", "--mmproj", str(stored(tmp_path))]
    model = oracle.model("gemma3-27b-q4km")
    server, library = (
        fit_line(parse_launch_line([program, *words]), model, [12 * GIB])
        for program in ("llama-server", "llama-fit-params")
    )
    taken = read_projector(words[-1]).memory("CUDA0")
    assert server.fit_target_bytes == (GIB + taken.model_bytes + taken.compute_bound_bytes,)
    assert library.fit_target_bytes == (GIB,)
    assert not server.exact
    assert any("upper bound" in warning for warning in server.warnings)
    assert any("does not look at it" in warning for warning in library.warnings)
