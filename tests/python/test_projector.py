"""Projectors: weights and compute buffers are what llama.cpp reserves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
from gguf_cases import header_of, write_llama, write_sparse
from memory_errors import PAGE
from projector_cases import FIRST, LAST, as_reserved, cases, header, projector, projector_table, reserved

from pshard import ModelError, estimate_memory, read_projector
from pshard.launch.line import parse_launch_line
from pshard.memory.projector import Input, projector_from_header
from pshard.memory.stock_fit import fit_line

GIB = 1 << 30


@pytest.mark.parametrize("name", sorted(cases()))
def test_compute_buffers_are_what_llama_cpp_reserves(name: str) -> None:
    rows = reserved(name)
    assert len(rows) >= 6
    for encoder, on_gpu, flash_attn, given, found in rows:
        made = encoder.buffers(given, on_gpu=on_gpu, flash_attn=flash_attn)
        assert as_reserved(made, on_gpu=on_gpu) == found, (on_gpu, flash_attn, given)


def test_the_table_of_the_page_is_todays() -> None:
    table = PAGE.read_text().partition(FIRST)[2].partition(LAST)[0]
    assert table.splitlines() == projector_table(), "run: python bench/bench_memory.py --write"


@pytest.mark.parametrize("name", sorted(cases()))
def test_weights_are_what_llama_cpp_loads(name: str) -> None:
    loaded, weights = projector(name), cases()[name]["weights"].values()
    # A file with two encoders is loaded once for each, with what belongs to it.
    assert loaded.weights_bytes == sum(n_bytes for n_bytes, _ in weights)
    assert loaded.memory("CUDA0").model_bytes == sum(buffer_bytes for _, buffer_bytes in weights)
    assert loaded.memory("Host").model_bytes == loaded.weights_bytes


def test_a_kind_that_llama_cpp_does_not_know_is_refused() -> None:
    with pytest.raises(ModelError, match="knows no projector type 'clairvoyant'"):
        projector("gemma3-4b", clip__projector_type="clairvoyant")


def test_an_image_in_tiles_has_at_most_those_of_the_grids() -> None:
    encoder = projector("granite4-vision-3b").encoders[0]
    assert encoder.warmup == Input(width=384, height=384)
    assert encoder.largest == Input(width=384, height=384 * 5, tile_columns=2)  # 768 x 768, and all of it once
    assert encoder.image(100, 4000) == encoder.largest
    grown, plain = (encoder.buffers(given, on_gpu=True) for given in (encoder.largest, encoder.warmup))
    assert grown.compute_bytes > 4 * plain.compute_bytes


@pytest.mark.parametrize(
    ("name", "n_images"), [("internvl3-8b", 4), ("gemma4v-e4b", 4), ("deepseek-ocr", 3), ("deepseek-ocr2", 4)]
)
def test_images_that_are_encoded_together_take_more(name: str, n_images: int) -> None:
    encoder = projector(name).encoders[0]
    together = encoder.buffers(replace(encoder.warmup, n_images=n_images), on_gpu=True)
    most = encoder.most(on_gpu=True)
    assert most.compute_bytes >= together.compute_bytes > 2 * encoder.buffers(encoder.warmup, on_gpu=True).compute_bytes
    assert together.output_bytes == n_images * encoder.buffers(encoder.warmup, on_gpu=True).output_bytes
    one_more = encoder.buffers(replace(encoder.warmup, n_images=n_images + 1), on_gpu=True)
    assert together.output_bytes <= most.output_bytes < one_more.output_bytes
    alone = projector_from_header(header(name), batch_max_tokens=0).encoders[0].most(on_gpu=True)
    assert alone.compute_bytes < most.compute_bytes or encoder.largest != encoder.warmup


def test_the_input_is_llama_cpps_warm_up() -> None:
    patches = {name: e.n_positions(e.warmup) for name in cases() for e in projector(name).encoders[:1]}
    assert patches["gemma3-4b"] == 64 * 64
    assert patches["llava15-7b"] == 24 * 24
    assert patches["qwen25vl-7b"] == 92 * 92  # 46 tokens a side, each of 2 x 2 patches
    assert patches["mistral-small31"] == 32 * 32
    assert patches["ultravox"] == 1500


def test_the_largest_image_is_more_than_the_warm_up() -> None:
    memory = projector("qwen25vl-7b").memory("CUDA0")
    assert memory.largest_n_positions == 128 * 128
    assert memory.largest_compute_bytes > 2 * memory.compute_bytes
    assert memory.largest_host_bytes > 2 * memory.host_bytes
    assert memory.output_bytes == 64 * 64 * 3584 * 4
    fixed = projector("gemma3-4b").memory("CUDA0")
    assert fixed.largest_compute_bytes == fixed.compute_bytes
    assert fixed.output_bytes == 256 * 2560 * 4


def test_tokens_may_be_limited() -> None:
    def largest(name: str, tokens: int) -> int:
        encoder = projector_from_header(header(name), image_max_tokens=tokens).encoders[0]
        assert encoder.n_positions(encoder.largest) >= encoder.n_positions(encoder.warmup)
        return encoder.n_positions(encoder.largest)

    assert largest("qwen25vl-7b", 1024) == 92 * 92
    assert largest("pixtral-12b", 400) == 400
    assert largest("gemma3-4b", 64) == 64 * 64


def test_both_encoders_count() -> None:
    vision, audio = cases()["gemma3-4b"], cases()["voxtral"]
    metadata = {**audio["metadata"], **vision["metadata"], "clip.audio.projector_type": "voxtral"}
    metadata["clip.vision.projector_type"] = metadata.pop("clip.projector_type")
    tensors = [(n, tuple(shape), kind) for n, shape, kind in vision["tensors"] + audio["tensors"]]
    both = projector_from_header(header_of(metadata, tensors))
    assert len(both.encoders) == 2
    found = both.memory("CUDA0")
    parts = [projector(name).memory("CUDA0") for name in ("gemma3-4b", "voxtral")]
    assert found.compute_bytes == sum(part.compute_bytes for part in parts)
    assert found.host_bytes == sum(part.host_bytes for part in parts)


def test_a_file_without_a_tensor_is_refused() -> None:
    case = cases()["llava15-7b"]
    tensors = [(n, tuple(shape), kind) for n, shape, kind in case["tensors"] if n != "v.position_embd.weight"]
    broken = projector_from_header(header_of(case["metadata"], tensors))
    with pytest.raises(ModelError, match=r"'v\.position_embd' is missing"):
        broken.memory("CUDA0")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"general__architecture": "llama"}, "is not a projector's"),
        ({"clip__has_vision_encoder": False}, "neither images nor sound"),
        ({"clip__vision__patch_size": "14"}, "clip.vision.patch_size is '14'"),
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
    assert grown == memory.model_bytes + memory.compute_bytes
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
    assert server.fit_target_bytes == (GIB + read_projector(words[-1]).weights_bytes + taken.compute_bytes,)
    assert library.fit_target_bytes == (GIB,)
    assert server.exact
    assert not any("upper bound" in warning for warning in server.warnings)
    assert any("does not look at it" in warning for warning in library.warnings)
