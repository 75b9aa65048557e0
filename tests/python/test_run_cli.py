"""``pshard run`` on the host backend: small models, everything checked, no clock looked at."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_cases
import numpy as np
import pytest

from pshard import _core
from pshard.cli import main
from pshard.cpus import physical_cpus
from pshard.execution import ExecutionError, execute, split_kind
from pshard.host_backend import Wanted, measure_host_backend, share_cpus
from pshard.model import Model, model_from_header
from pshard.run_document import describe, metrics_lines, trace_of
from pshard.run_sources import workload_of_layers, workload_of_map

Q4_K, Q8_0, F32 = 12, 8, 0


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


def test_a_file_is_run_layer_by_layer_on_two_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, tensors = header()
    path = gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", keys, tensors)
    trace, metrics = tmp_path / "trace.json", tmp_path / "metrics.jsonl"
    common = ("--prompt", "24", "--generate", "4", "--passes", "2", "--check")
    found = run(capsys, str(path), "--layers", "1,3", *common, "--trace", str(trace), "--metrics", str(metrics))
    assert found["weights"] == "generated"  # a file of holes has no weights
    assert [phase["phase"] for phase in found["phases"]] == ["prefill", "decode"]
    for phase in found["phases"]:
        assert phase["checked"] > 0
        for peak, planned in zip(phase["arena_peak_bytes"], phase["vram_bytes"], strict=True):
            assert 0 < peak <= planned
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {(line["shard"], line["layers"], line["phase"], line["n_tokens"]) for line in lines} == {
        (shard, layers, phase, n)
        for shard, layers in (("gpu0", 1), ("gpu1", 3))
        for phase, n in (("prefill", 24), ("decode", 1))
    }
    assert set(lines[0]) == {"shard", "layers", "phase", "n_tokens", "latency_us", "time_unix_s"}
    events = json.loads(trace.read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"gpu0 compute", "gpu1 compute"} <= tracks
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


def test_the_weights_of_a_file_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, tensors = header()
    path = gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", keys, tensors)
    data = bytearray(path.read_bytes())
    blocks = np.frombuffer(bytes(data[-34 * 2048 :]), dtype=np.uint8).copy()
    blocks[:] = 60  # finite scales
    start = len(data) - sum(-(-gguf_cases.n_bytes(shape, kind) // 32) * 32 for _, shape, kind in tensors)
    data[start:] = bytes([60]) * (len(data) - start)
    path.write_bytes(bytes(data))
    found = run(capsys, str(path), "--layers", "4", "--tier", "3", "--passes", "1", "--check")
    assert found["weights"] == "file"
    assert found["phases"][0]["checked"] > 0


def test_a_map_names_the_shards() -> None:
    m = model()
    devices = [
        {"name": "a/0", "kind": "cuda", "n_layer": 1},
        {"name": "a/1", "kind": "cuda", "n_layer": 0},
        {"name": "a/cpu", "kind": "cpu", "n_layer": 2},
        {"name": "b/0", "kind": "cuda", "n_layer": 1},
    ]
    document = {"map": {"head": "last", "devices": devices}}
    workload, shards = workload_of_map(m, document, prompt_tokens=0, generate_tokens=1)
    assert shards == ("a/cpu", "a/0", "b/0")
    result = execute(m, workload, cpus=share_cpus(physical_cpus(), 2), passes=1, shards=shards, check=True)
    lines = [json.loads(line) for line in metrics_lines(result)]
    assert {(line["shard"], line["layers"]) for line in lines} == {("a/0", 1), ("a/cpu", 2), ("b/0", 1)}


def test_predictions_stand_beside_what_ran() -> None:
    m = model()
    cpus = share_cpus(physical_cpus(), 1)
    measured = measure_host_backend(
        cpus, Wanted({"Q8_0": (512, 256)}, {}, (1, 16), (8, 2, 32), 256), max_bytes=1 << 26, ram_bytes=1 << 34,
        budget_seconds=0.01,
    )  # fmt: skip
    workload = workload_of_layers(m, [4], prompt_tokens=16, generate_tokens=2)
    machines = {n: measured.machine(n) for n in (16, 1)}
    result = execute(m, workload, machines=machines, cpus=cpus, passes=2)
    for phase in result.phases:
        assert phase.predicted is not None
        assert phase.predicted.seconds > 0
        assert len(phase.predicted_splits) == len(phase.schedule.splits)
        assert {split_kind(split) for split in phase.schedule.splits} == set(phase.by_kind())
    document = describe(result)
    assert document["tokens_per_second"] == pytest.approx(1 / result.phases[-1].seconds)
    assert document["ttft_seconds"] == pytest.approx(result.phases[0].seconds)
    names = {event["args"]["name"] for event in trace_of(result)["traceEvents"] if event["name"] == "process_name"}
    assert names == {"measured", "predicted"}


def test_what_cannot_be_run_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    q2_k = 10
    with pytest.raises(ExecutionError, match="without a native kernel"):
        m = model(kind=q2_k)
        execute(m, workload_of_layers(m, [4], prompt_tokens=0, generate_tokens=1), cpus=share_cpus([0], 1))
    keys, tensors = header()
    path = str(gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", keys, tensors))
    run(capsys, path, "--layers", "1,2", code=2)
    run(capsys, path, "--layers", "one", code=2)
    run(capsys, path, "--layers", "4", "--map", path, code=2)
    run(capsys, path, "--layers", "4", "--routing", "zipf:x", code=2)
    run(capsys, path, "--map", path, code=2)


def test_cpus_are_shared_out() -> None:
    one = share_cpus([0, 2, 4, 6], 1)
    assert (one.host, one.compute, one.copy) == ((0, 2, 4), ((0, 2, 4),), ((6,),))
    two = share_cpus([0, 1, 2, 3], 2)
    assert (two.compute, two.copy, two.host) == (((0,), (1,)), ((2,), (3,)), (0, 1, 2, 3))
    assert share_cpus([5], 2).compute == ((5,), (5,))


def test_decode_alone_fits_the_memory_that_is_planned() -> None:
    # The logits are larger than all other activations, and only the last device has them.
    keys, tensors = header()
    tensors = [
        (name, (256, 32768) if "token_embd" in name or name == "output.weight" else s, t) for name, s, t in tensors
    ]
    metadata = {f"llama.{key}": value for key, value in keys.items()} | {"general.architecture": "llama"}
    m = model_from_header(gguf_cases.header_of(metadata, tensors), "tiny")
    workload = workload_of_layers(m, [1, 3], prompt_tokens=0, generate_tokens=2)
    result = execute(m, workload, cpus=share_cpus(physical_cpus(), 2), passes=1, check=True)
    for peak, planned in zip(result.phases[0].arena_bytes, workload.arena_bytes, strict=True):
        assert peak <= planned


def test_an_order_without_waits_is_not_checked() -> None:
    m = model()
    workload = workload_of_layers(m, [4], prompt_tokens=0, generate_tokens=1)
    with pytest.raises(ValueError, match="cannot be checked"):
        execute(m, workload, cpus=share_cpus(physical_cpus(), 1), check=True, order=_core.Order.unordered)
