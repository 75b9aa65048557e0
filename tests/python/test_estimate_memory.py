"""What a launch takes of every memory: against llama.cpp's allocations, and against itself."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import oracle
import pytest
from gguf_cases import header_of, llama_keys, llama_tensors, oracle_models, write_oracle_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pshard
from pshard import Draft, MemoryReport, Model, SettingError, _core, estimate_memory
from pshard.model.model import model_from_header, type_name

GIB = 1 << 30
FLASH = {0: "off", 1: "on", -1: "auto"}
# Every so many rows of a model are held against its public estimate on each run; bench/bench_memory.py holds all.
STRIDE = 23


def launch(row: oracle.Row) -> dict[str, Any]:
    """A row's launch as arguments of the public function."""
    kv = type_name(row.type_kv).lower()
    return {
        "n_ctx": row.n_ctx,
        "n_batch": row.n_batch,
        "n_ubatch": row.n_ubatch,
        "flash_attn": FLASH[row.fa],
        "type_k": kv,
        "type_v": kv,
        "n_seq_max": row.n_seq_max,
        "n_gpu_layers": row.ngl,
        "kv_unified": bool(row.kv_unified),
        "offload_kqv": bool(row.offload_kqv),
        "swa_full": bool(row.swa_full),
        "tensor_overrides": [(row.ot, "CPU")] if row.ot else [],
        "devices": [mib << 20 for mib in row.devices],
    }


def llama(**more: Any) -> Model:
    return model_from_header(header_of({"general.architecture": "llama", **{
        f"llama.{key}": value for key, value in llama_keys(**more).items()
    }}, llama_tensors()), "tiny")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return oracle.model("llama31-8b-q4km")


# --- against llama.cpp ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracle.names())
def test_the_public_estimate_is_the_cores(name: str) -> None:
    model = oracle.model(name)
    for row in oracle.rows(name)[::STRIDE]:
        report, core = estimate_memory(model, **launch(row)), row.report(model)
        assert report.n_ctx_actual == row.n_ctx_actual, row
        assert [(d.model_bytes, d.context_bytes, d.compute_bytes) for d in report.devices] == [
            (gpu.weights_bytes, gpu.cache_bytes, gpu.compute_bytes) for gpu in core.gpus
        ], row
        host = report.host
        assert (host.model_bytes, host.context_bytes, host.compute_bytes) == (
            core.host.weights_bytes, core.host.cache_bytes, core.host.compute_bytes
        ), row  # fmt: skip
        assert [d.model_bytes for d in report.devices] == row.gpu_model
        assert [d.context_bytes for d in report.devices] == row.gpu_context


@pytest.mark.parametrize("name", oracle.names())
def test_every_context_is_padded_as_llama_cpp_pads_it(name: str) -> None:
    model = oracle.model(name)
    seen = {(row.n_ctx, row.n_seq_max, row.kv_unified): row for row in oracle.rows(name)}
    for row in seen.values():
        assert estimate_memory(model, **launch(row)).n_ctx_actual == row.n_ctx_actual


@pytest.mark.parametrize(
    ("name", "n_seq_max", "mib"),
    # From llama.cpp's log lines, which have two decimals.
    [("llama31-8b-q4km", 1, "0.49"), ("qwen3-32b-q4km", 4, "2.32"), ("gemma3-27b-q4km", 1, "1.00"),
     ("bge-large-en-f16", 1, "0.12"), ("qwen3-0.6b-q8_0", 16, "9.27")],
)  # fmt: skip
def test_the_output_buffer_holds_logits_of_each_sequence(name: str, n_seq_max: int, mib: str) -> None:
    report = estimate_memory(oracle.model(name), n_ctx=4096, n_seq_max=n_seq_max, devices=[80 * GIB])
    assert f"{report.output_bytes / 2**20:.2f}" == mib


@pytest.mark.parametrize(
    ("name", "few", "all_tokens"),
    # What llama.cpp reserves (8192 cells for four sequences, one device, n_outputs_max 4 and 0): device, then host.
    [
        ("llama31-8b-q4km", (121645184, 25178144), (271056896, 25180160)),
        ("qwen3-30b-a3b-q4km", (96479360, 16789536), (358125568, 16791552)),
        ("gemma3-27b-q4km", (175655040, 35147808), (548012032, 35149824)),
    ],
)
def test_a_server_reserves_few_logits(name: str, few: tuple[int, int], all_tokens: tuple[int, int]) -> None:
    launch: dict[str, Any] = {"n_ctx": 8192, "flash_attn": "on", "n_seq_max": 4, "kv_unified": True}
    for n_outputs_max, expected in ((4, few), (None, all_tokens)):
        report = estimate_memory(oracle.model(name), **launch, n_outputs_max=n_outputs_max, devices=[1 << 40])
        assert (report.devices[0].compute_bytes, report.host.compute_bytes) == expected


# --- against itself ---------------------------------------------------------------------------------------------------

NAMES = ["llama31-8b-q4km", "qwen3-30b-a3b-q4km", "gemma3-27b-q4km", "deepseek-v2-lite-q4km", "qwen3-next-80b-a3b-q4km"]
contexts = st.integers(1, 64).map(lambda n: n * 1024)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(NAMES),
    lengths=st.tuples(contexts, contexts),
    n_gpu_layers=st.integers(-1, 60),
    n_seq_max=st.integers(1, 8),
    unified=st.booleans(),
    offload=st.booleans(),
    gib=st.lists(st.integers(4, 80), max_size=4),
)
def test_context_grows_with_its_length_and_sums_add_up(
    name: str, lengths: tuple[int, int], n_gpu_layers: int, n_seq_max: int, unified: bool, offload: bool, gib: list[int]
) -> None:
    model = oracle.model(name)
    short, long = (
        estimate_memory(
            model, n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, n_seq_max=n_seq_max, kv_unified=unified, offload_kqv=offload,
            devices=[n * GIB for n in gib], ram_bytes=256 * GIB,
        )
        for n_ctx in sorted(lengths)
    )  # fmt: skip
    assert short.n_ctx_actual <= long.n_ctx_actual
    for before, after in zip((*short.devices, short.host), (*long.devices, long.host), strict=True):
        assert before.context_bytes <= after.context_bytes
        assert before.model_bytes == after.model_bytes
    for report in (short, long):
        assert len(report.devices) == len(gib)
        for memory in (*report.devices, report.host):
            allowed = sum(a.n_bytes for a in report.allowances if a.where == memory.name and not a.on_demand)
            output = report.output_bytes if memory is report.host else 0
            in_a_run = memory.compute_bound_bytes - memory.compute_bytes
            assert report.used_bytes(memory.name) == memory.total_bytes + in_a_run + allowed + output
            left = report.left_bytes(memory.name)
            assert left is not None
            assert left + report.used_bytes(memory.name) == memory.free_bytes
        assert report.fits == all((report.left_bytes(m.name) or 0) >= 0 for m in (*report.devices, report.host))
        assert 0 <= report.page_locked_bytes <= report.host.total_bytes + report.output_bytes


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_conserved_when_layers_move(name: str) -> None:
    model = oracle.model(name)
    totals = set()
    for n_gpu_layers in (1, 5, 20):
        report = estimate_memory(model, n_ctx=4096, n_gpu_layers=n_gpu_layers, devices=[24 * GIB, 8 * GIB])
        totals.add(sum(d.model_bytes for d in report.devices) + report.host.model_bytes)
    # Alignment of a few tensors differs between devices and host.
    assert max(totals) - min(totals) < 1 << 20


def test_without_a_gpu_all_is_in_host_memory(model: Model) -> None:
    report = estimate_memory(model, n_ctx=4096)
    assert report.devices == ()
    assert report.host.model_bytes > 4 * GIB
    assert report.page_locked_bytes == 0
    assert report.allowances == ()
    assert report.left_bytes("Host") is None
    assert report.fits


def test_one_device_alone(model: Model) -> None:
    report = estimate_memory(model, n_ctx=4096, devices=[8 * GIB, 24 * GIB], split_mode="none", main_gpu=1)
    alone = estimate_memory(model, n_ctx=4096, devices=[24 * GIB])
    assert [d.name for d in report.devices] == ["CUDA0", "CUDA1"]
    assert report.devices[0].total_bytes == 0
    assert report.devices[1].total_bytes == alone.devices[0].total_bytes
    assert {a.where for a in report.allowances} == {"CUDA1"}
    nowhere = estimate_memory(model, n_ctx=4096, devices=[8 * GIB], split_mode="none", main_gpu=-1)
    assert nowhere.devices[0].total_bytes == 0


def test_proportions_move_layers(model: Model) -> None:
    by_memory = estimate_memory(model, n_ctx=4096, devices=[12 * GIB, 12 * GIB])
    asked = estimate_memory(model, n_ctx=4096, devices=[12 * GIB, 12 * GIB], tensor_split=[3, 1])
    assert asked.devices[0].model_bytes > 1.4 * by_memory.devices[0].model_bytes
    assert (
        estimate_memory(model, n_ctx=4096, devices=[12 * GIB, 12 * GIB], tensor_split=[0, 0]).devices
        == by_memory.devices
    )


def test_an_override_may_name_any_device(model: Model) -> None:
    plain = estimate_memory(model, n_ctx=4096, devices=[24 * GIB, 24 * GIB], tensor_split=[1, 0])
    moved = estimate_memory(
        model, n_ctx=4096, devices=[24 * GIB, 24 * GIB], tensor_split=[1, 0],
        tensor_overrides=[(r"blk\.[0-9]\.ffn_down", "CUDA1"), (r"blk\.1[0-9]\.ffn_down", "CPU")],
    )  # fmt: skip
    down = sum(
        _core.gpu_tensor_bytes(t) for layer in model.core.layers[:10] for t in layer.tensors if "ffn_down" in t.name
    )
    assert moved.devices[1].model_bytes - plain.devices[1].model_bytes == down
    assert moved.host.model_bytes > plain.host.model_bytes


def test_the_mapping_spans_what_lies_between(tmp_path: Any) -> None:
    path = write_oracle_model("qwen3-0.6b-q8_0", tmp_path / "model.gguf")
    loaded = pshard.read_model(path)
    everything = estimate_memory(loaded, n_ctx=4096)
    tensors = loaded.tensors
    assert everything.mapped_bytes == max(t.offset + t.n_bytes for t in tensors) - min(t.offset for t in tensors)
    gpu = estimate_memory(loaded, n_ctx=4096, devices=[24 * GIB])
    embedding = next(t for t in tensors if t.name == "token_embd.weight")
    assert gpu.mapped_bytes == embedding.n_bytes
    partial = estimate_memory(loaded, n_ctx=4096, devices=[24 * GIB], n_gpu_layers=10)
    assert gpu.mapped_bytes < partial.mapped_bytes < everything.mapped_bytes
    locked = estimate_memory(loaded, n_ctx=4096, devices=[24 * GIB], load_mode="none")
    assert locked.mapped_bytes == 0
    assert locked.page_locked_bytes == gpu.page_locked_bytes + gpu.host.model_bytes


# --- beside the model -------------------------------------------------------------------------------------------------


def test_a_draft_follows_the_models_context() -> None:
    main, small = oracle.model("qwen3-32b-q4km"), oracle.model("qwen3-0.6b-q8_0")
    launch = {"n_ctx": 5000, "n_seq_max": 2, "devices": [80 * GIB]}
    alone = estimate_memory(main, **launch)
    report = estimate_memory(main, **launch, draft=small)
    assert report.devices == alone.devices
    assert report.draft is not None
    assert report.draft.n_ctx_actual == report.n_ctx_actual == 5120
    beside = estimate_memory(small, n_ctx=5120, n_seq_max=2, devices=[80 * GIB])
    assert report.draft.devices == beside.devices
    # One process: one CUDA context, but graphs and temporary buffers of both.
    assert sum(a.what == "CUDA context" for a in report.allowances) == 1
    assert sum(a.what == "CUDA graph" for a in report.allowances) == 2
    grown = report.used_bytes("CUDA0") - alone.used_bytes("CUDA0")
    own = sum(a.n_bytes for a in beside.allowances if a.what in ("CUDA graph", "temporary buffers of kernels"))
    assert grown == beside.devices[0].total_bytes + own


def test_a_draft_has_settings_of_its_own() -> None:
    main, small = oracle.model("qwen3-32b-q4km"), oracle.model("qwen3-0.6b-q8_0")
    draft = Draft(model=small, n_gpu_layers=0, type_k="q8_0", type_v="q8_0")
    report = estimate_memory(main, n_ctx=4096, devices=[80 * GIB], draft=draft)
    assert report.draft is not None
    assert report.draft.devices[0].model_bytes == 0
    assert report.draft.host.context_bytes > 0
    second = Draft(model=small, device_names=("CUDA1",))
    report = estimate_memory(main, n_ctx=4096, devices=[80 * GIB, 8 * GIB], tensor_split=[1, 0], draft=second)
    assert report.draft is not None
    assert report.draft.devices[0].total_bytes == 0
    assert report.draft.devices[1].model_bytes > 600 << 20


# --- allowances -------------------------------------------------------------------------------------------------------


def test_each_allowance_has_a_source(model: Model) -> None:
    report = estimate_memory(model, n_ctx=8192, devices=[24 * GIB, 24 * GIB])
    for name in ("CUDA0", "CUDA1"):
        kinds = [a.what for a in report.allowances if a.where == name]
        assert kinds.count("CUDA context") == kinds.count("cuBLAS workspace") == kinds.count("CUDA graph") == 1
    for allowance in report.allowances:
        assert allowance.n_bytes > 0
        assert re.search(r"github\.com|nvidia\.com|ggml/src", allowance.source)
    assert sum(a.n_bytes for a in report.allowances if a.where == "CUDA0") < GIB  # what --fit keeps free by default


def test_temporary_buffers_follow_the_widest_product(model: Model) -> None:
    def pool(**launch: Any) -> int:
        report = estimate_memory(model, n_ctx=8192, devices=[24 * GIB], **launch)
        return next(a.n_bytes for a in report.allowances if a.what.startswith("temporary"))

    # 512 tokens of 14336 values, 36 bytes for 32 of them, and 12 MiB of partial tiles.
    assert pool() == 512 * 14336 // 32 * 36 + (12 << 20)
    assert pool(n_ubatch=2048) == 4 * 512 * 14336 // 32 * 36 + (12 << 20)
    # Without flash attention, weights of all cells as f16: 32 heads, 8192 cells, and 128 values of each head.
    assert pool(flash_attn="off") == 2 * 512 * 32 * (8192 + 128) + (12 << 20)


# --- what is not replayed ---------------------------------------------------------------------------------------------


@cache
def hidden(name: str) -> Model:
    """One of the models under a name that no architecture has."""
    known = oracle_models()[name]
    own = known["metadata"]["general.architecture"] + "."
    metadata = {
        f"novel.{key.removeprefix(own)}" if key.startswith(own) else key: value
        for key, value in known["metadata"].items()
    } | {"general.architecture": "novel"}
    tensors = [(name, tuple(shape), kind) for name, shape, kind in known["tensors"]]
    return model_from_header(header_of(metadata, tensors), "novel")


def test_an_unknown_architecture_widens_its_bound() -> None:
    report = estimate_memory(hidden("llama31-8b-q4km"), n_ctx=8192, devices=[24 * GIB])
    assert not report.exact
    assert report.devices[0].compute_bound_bytes == 2 * report.devices[0].compute_bytes + (64 << 20)
    assert report.used_bytes("CUDA0") > report.devices[0].total_bytes + report.devices[0].compute_bytes
    assert any("not replayed" in warning for warning in report.warnings)
    exact = estimate_memory(oracle.model("llama31-8b-q4km"), n_ctx=8192, devices=[24 * GIB])
    assert exact.exact
    assert exact.devices[0].compute_bound_bytes == exact.devices[0].compute_bytes


@pytest.mark.parametrize("name", oracle.names())
def test_the_wide_bound_holds_for_models_whose_architecture_is_hidden(name: str) -> None:
    for row in oracle.rows(name)[::STRIDE]:
        report = estimate_memory(hidden(name), **launch(row))
        bounds = [device.compute_bound_bytes for device in report.devices]
        assert all(want <= bound for want, bound in zip(row.gpu_compute, bounds, strict=True)), row
        assert row.host_compute <= report.host.compute_bound_bytes, row


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_document_has_every_sum(model: Model) -> None:
    report = estimate_memory(model, n_ctx=8192, devices=[4 * GIB, 24 * GIB], ram_bytes=GIB)
    document = report.to_dict()
    assert document["schema_version"] == 1
    assert document["fits"] is report.fits is True
    assert document["totals"] == [
        {"name": name, "used_bytes": report.used_bytes(name), "left_bytes": report.left_bytes(name)}
        for name in ("CUDA0", "CUDA1", "Host")
    ]


def test_what_is_short_is_said(model: Model) -> None:
    report = estimate_memory(model, n_ctx=131072, devices=[8 * GIB], ram_bytes=64 * GIB)
    assert not report.fits
    lacking = report.left_bytes("CUDA0")
    assert lacking is not None
    assert any(warning.startswith(f"CUDA0 lacks {-lacking / 2**20:.0f} MiB") for warning in report.warnings)


def test_the_names_are_public() -> None:
    assert pshard.estimate_memory is estimate_memory
    assert pshard.MemoryReport is MemoryReport
    with pytest.raises(SettingError, match="load_mode='fast'"):
        estimate_memory(oracle.model("qwen3-0.6b-q8_0"), n_ctx=512, load_mode="fast")
