"""Launch lines drawn at random, with every setting that sizes memory, against what llama.cpp itself says of them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import oracle
import pytest
from gguf_cases import DATA

from pshard.memory.memory import estimate
from pshard.memory.placed import place
from pshard.memory.report import MemoryReport
from pshard.memory.settings import ContextSettings, PlacementSettings

with gzip.open(DATA / "memory_lines.json.gz") as _file:
    LINES: list[dict[str, Any]] = json.load(_file)["lines"]
MODELS = sorted({line["model"] for line in LINES})


def settings(line: dict[str, Any]) -> tuple[ContextSettings, PlacementSettings]:
    devices = tuple((f"CUDA{i}", mib << 20) for i, mib in enumerate(line["devices_mib"]))
    overrides = tuple((pattern, device) for pattern, device in line["placement"].get("tensor_overrides", ()))
    placement = PlacementSettings(**(line["placement"] | {"devices": devices, "tensor_overrides": overrides}))
    return ContextSettings(**line["context"]), placement


def estimated(line: dict[str, Any]) -> MemoryReport:
    return estimate(oracle.model(line["model"]), *settings(line))


def said(report: MemoryReport) -> dict[str, list[int]]:
    parts = {m.name: [m.model_bytes, m.context_bytes, m.compute_bytes] for m in (*report.devices, report.host)}
    return {name: n_bytes for name, n_bytes in parts.items() if any(n_bytes)}


@pytest.mark.parametrize("name", MODELS)
def test_every_line_is_exact(name: str) -> None:
    for line in LINES:
        if line["model"] == name:
            assert said(estimated(line)) == line["bytes"], line


def test_lines_have_every_setting() -> None:
    assert len(LINES) >= 600
    assert set(MODELS) <= {*oracle.names(), *oracle.more_names()}
    assert len(MODELS) >= 199
    for part, names in {
        "context": ("n_outputs_max", "kv_unified", "flash_attn", "type_k", "type_v", "swa_full"),
        "placement": ("offload_kqv", "op_offload", "split_mode", "tensor_split", "tensor_overrides"),
    }.items():
        for name in names:
            assert sum(name in line[part] for line in LINES) >= 10, name
    types = {line["context"].get("type_k", "f16") for line in LINES}
    assert types >= {"f32", "bf16", "q8_0", "q4_0", "iq4_nl"}


RUNS = [line for line in LINES if "run" in line]


def test_a_run_takes_what_llama_cpp_allocates() -> None:
    assert len(RUNS) >= 100
    for line in RUNS:
        placed = place(oracle.model(line["model"]), *settings(line))
        run = placed.bytes_of_a_run()
        assert run is not None
        parts = dict(zip((*placed.names, "Host"), (*run.gpus, run.host), strict=True))
        assert {name: part.compute_bytes for name, part in parts.items() if part.compute_bytes} == line["run"], line


def test_where_a_run_takes_more_the_report_counts_it_and_says_so() -> None:
    larger = [
        line
        for line in RUNS
        if any(line["run"][name] > part[2] for name, part in line["bytes"].items() if name in line["run"])
    ]
    assert larger
    for line in larger:
        report = estimated(line)
        (warning,) = [text for text in report.warnings if text.startswith("A run takes other compute buffers")]
        for memory in (*report.devices, report.host):
            run_bytes = line["run"].get(memory.name, 0)
            assert memory.compute_bound_bytes == max(memory.compute_bytes, run_bytes)
            assert (f"in {memory.name}" in warning) == (run_bytes != memory.compute_bytes)


def test_without_flash_attention_a_cache_on_the_host_is_attended_to_there() -> None:
    """`llm_graph_context::build_attn_mha` asks for it, which llama.cpp forgets where it measures."""
    model = oracle.model("llama31-8b-q4km")
    placement = PlacementSettings(devices=(("CUDA0", 1 << 40),), offload_kqv=False)
    placed = place(model, ContextSettings(n_ctx=8192, n_outputs_max=1, flash_attn="off"), placement)
    run = placed.bytes_of_a_run()
    assert run is not None
    scores = 8192 * 512 * 32 * 4
    assert run.host.compute_bytes > scores > run.gpus[0].compute_bytes
    fused = place(model, ContextSettings(n_ctx=8192, n_outputs_max=1, flash_attn="on"), placement)
    found, run = fused.bytes(), fused.bytes_of_a_run()
    assert run is not None
    assert (run.host.compute_bytes, run.gpu.compute_bytes) == (found.host.compute_bytes, found.gpu.compute_bytes)


def test_no_kernel_of_fused_attention_takes_iq4_nl() -> None:
    """ggml/src/ggml-cuda/fattn.cu: so attention runs on the host, and its scores do not exist."""
    model = oracle.model("llama31-8b-q4km")
    where = PlacementSettings(devices=(("CUDA0", 1 << 40),))
    kinds = {
        name: place(model, ContextSettings(n_ctx=8192, flash_attn="on", type_k=name, type_v=name), where).bytes()
        for name in ("q4_0", "iq4_nl")
    }
    assert kinds["iq4_nl"].gpu.cache_bytes == kinds["q4_0"].gpu.cache_bytes
    assert kinds["iq4_nl"].host.compute_bytes > kinds["q4_0"].host.compute_bytes
