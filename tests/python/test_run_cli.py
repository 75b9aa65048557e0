"""``pshard run`` on the host backend: small models, everything checked, no clock looked at."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_cases
import oracle
import pytest
from run_cases import F16, Q8_0, header, model, run, write_weights

from pshard import _core
from pshard.cli import main
from pshard.errors import SettingError
from pshard.machine.cpus import physical_cpus
from pshard.machine.machine import load_machine
from pshard.model.model import Model, model_from_header, read_model
from pshard.registry.errors import RegistryError
from pshard.registry.overrides import placement_of, places, tensor_names
from pshard.registry.store import read_registry
from pshard.run import host_backend
from pshard.run.document import MEASURED, PREDICTED, describe, metrics_lines, trace_of
from pshard.run.execution import (
    CHECKING_NOTE,
    ExecutionError,
    Workload,
    execute,
    schedules_of,
    split_kind,
)
from pshard.run.expert_rows import rows_per_expert
from pshard.run.host_backend import (
    HostCpus,
    HostMeasured,
    Wanted,
    measure_host_backend,
    share_cpus,
)
from pshard.run.sources import workload_of_layers, workload_of_map, workload_of_registry
from pshard.run.wanted_shapes import wanted_of

pytestmark = pytest.mark.usefixtures("measured_in_a_moment")


def test_a_file_is_run_layer_by_layer_on_two_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, tensors = header()
    path = gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", keys, tensors)
    trace, metrics = tmp_path / "trace.json", tmp_path / "metrics.jsonl"
    common = (str(path), "--layers", "1,3", "--prompt", "24", "--generate", "4", "--passes", "2")
    measured = run(capsys, *common, "--trace", str(trace), "--metrics", str(metrics))
    assert measured["checking"] is False
    found = run(capsys, *common, "--check")
    assert found["checking"] is True
    assert CHECKING_NOTE in found["notes"]
    assert found["weights"] == "generated"  # a file of holes has no weights
    assert [phase["passes_run"] for phase in found["phases"]] == [2, 2]  # though the prompt needs one
    assert [phase["phase"] for phase in found["phases"]] == ["prefill", "decode"]
    for phase in found["phases"]:
        assert phase["checked"] > 0
        assert all(peak > 0 for peak in phase["arena_peak_bytes"])
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {(line["shard"], line["layers"], line["phase"], line["n_tokens"]) for line in lines} == {
        (shard, layers, phase, n)
        for shard, layers in (("host", 0), ("gpu0", 1), ("gpu1", 3))  # which attends: no GPU does with heads of 32
        for phase, n in (("prefill", 24), ("decode", 1))
    }
    assert set(lines[0]) == {"shard", "layers", "phase", "n_tokens", "latency_us", "time_unix_s"}
    events = json.loads(trace.read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"gpu0 compute", "gpu1 compute"} <= tracks
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


def test_the_weights_of_a_file_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    written = write_weights(path)
    made = []
    real = _core.Executor

    def executor(*arguments: Any, **options: Any) -> _core.Executor:
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(_core, "Executor", executor)
    found = run(capsys, str(path), "--layers", "4", "--tier", "3", "--passes", "1", "--check")
    assert found["weights"] == "file"
    assert found["phases"][0]["checked"] > 0  # what is copied and multiplied is what the executor's source holds
    multiplied = [name for name in written if "norm" not in name and name != "token_embd.weight"]
    assert len({written[name] for name in multiplied}) == len(multiplied) == 4 * 7 + 1
    for name in multiplied:
        assert made[0].weights(0, name) == written[name], name
    with pytest.raises(ValueError, match="not in schedule"):
        made[0].weights(0, "missing")


def test_a_plan_made_now_and_a_registry_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(m: Model, cpus: HostCpus, batches: tuple[int, ...], **_: object) -> HostMeasured:
        batches = (1, max(batches))
        wanted = Wanted(*wanted_of(m), batches, rows_per_expert(m, batches), (8, 2, 32), 512)
        return measure_host_backend(cpus, wanted, max_bytes=1 << 26, ram_bytes=1 << 34, budget_seconds=0.01)

    monkeypatch.setattr(host_backend, "measure_here", measure)
    path = tmp_path / "tiny.gguf"
    write_weights(path, 40)
    work = ("--prompt", "40", "--generate", "4", "--passes", "1")
    found = run(capsys, str(path), "--vram", "24M", *work)
    assert [phase["phase"] for phase in found["phases"]] == ["prefill", "decode"]
    for phase in found["phases"]:
        assert phase["predicted_seconds"] > 0
        assert phase["arena_peak_bytes"] <= phase["vram_bytes"]
    registry = tmp_path / "tiny.pshard_registry"
    assert main(["plan", str(path), "--machine", "rtx-5090", "--vram", "24M", "-o", str(registry)]) == 0
    capsys.readouterr()
    # Its heads of 32 are none that a GPU attends with: where the cache is streamed, the CPU does.
    found = run(capsys, str(path), "--registry", str(registry), *work)
    assert [phase["passes_run"] for phase in found["phases"]] == [1, 1]
    assert found["phases"][0]["up_bytes"] > 0


def test_a_map_names_the_shards() -> None:
    m = model()
    devices = [
        {"name": "a/0", "kind": "cuda", "n_layer": 1},
        {"name": "a/1", "kind": "cuda", "n_layer": 0},
        {"name": "a/cpu", "kind": "cpu", "n_layer": 2},
        {"name": "b/0", "kind": "cuda", "n_layer": 1},
    ]
    document: dict[str, Any] = {
        "parameters": {"max_seq_len": 1024, "n_ubatch": 16, "type_k": "f16", "type_v": "f16"},
        "map": {"head": "last", "devices": devices},
    }
    prompt, _ = workload_of_map(m, document, prompt_tokens=40, generate_tokens=0)
    assert [(phase.n_tokens, phase.count) for phase in prompt.phases] == [(16, 2), (8, 1)]
    assert prompt.cache_bytes[0] == 1024 * 2 * 64 * 2  # tokens, K and V, width, F16
    document["parameters"] |= {"type_k": "q8_0"}
    quantised, _ = workload_of_map(m, document, prompt_tokens=40, generate_tokens=0)
    assert [(p.pass_.type_k.id, p.pass_.type_v.id) for p in quantised.phases] == [(Q8_0, F16)] * 2
    assert quantised.cache_bytes[0] < 0.8 * prompt.cache_bytes[0]
    document["parameters"] |= {"type_k": "q3"}
    with pytest.raises(SettingError, match="'q3', which is none of f32, f16"):
        workload_of_map(m, document, prompt_tokens=40, generate_tokens=0)
    document["parameters"] |= {"type_k": "f16"}
    with pytest.raises(SettingError, match="1025 tokens do not fit in a context of 1024"):
        workload_of_map(m, document, prompt_tokens=1000, generate_tokens=25)
    workload, shards = workload_of_map(m, document, prompt_tokens=0, generate_tokens=1)
    assert shards == ("a/cpu", "a/0", "a/1", "b/0")  # b/0 is the third GPU, whatever the second has
    assert (workload.arena_bytes[0] > 0, workload.arena_bytes[2] > 0) == (True, True)
    result = execute(m, workload, cpus=share_cpus(physical_cpus(), 3), passes=1, shards=shards, check=True)
    (ran,) = result.phases
    lines = [json.loads(line) for line in metrics_lines(ran.phase, ran.schedule, ran.typical, 0.0, shards)]
    assert {(line["shard"], line["layers"]) for line in lines} == {("a/0", 1), ("a/cpu", 2), ("b/0", 1)}


def test_a_prompt_attends_to_what_is_there_and_no_more() -> None:
    m = model()
    # 256 tokens are one pass that reads 256 cells, whatever is generated behind them; a rest reads all of its prompt.
    (one, decode) = workload_of_layers(m, [4], prompt_tokens=256, generate_tokens=64).phases
    assert (one.pass_.n_kv, one.pass_.n_filled, one.pass_.n_outputs) == (256, 256, 1)
    assert (decode.pass_.n_kv, decode.pass_.n_filled) == (512, 256 + 32)
    (many, rest) = workload_of_layers(m, [4], prompt_tokens=2600, generate_tokens=0, n_ubatch=256).phases
    assert [(p.n_tokens, p.count, p.pass_.n_filled) for p in (many, rest)] == [(256, 10, 11 * 128), (40, 1, 2600)]
    (large, left) = workload_of_layers(m, [4], prompt_tokens=3000, generate_tokens=0, n_ubatch=1024).phases
    assert [(p.n_tokens, p.count, p.pass_.n_filled) for p in (large, left)] == [(1024, 2, 3 * 512), (952, 1, 3000)]


def test_predictions_stand_beside_what_ran() -> None:
    m = model()
    cpus = share_cpus(physical_cpus(), 1)
    measured = measure_host_backend(
        cpus, Wanted({"Q8_0": ((512, 256),)}, {}, (1, 16), {}, (8, 2, 32), 256), max_bytes=1 << 26, ram_bytes=1 << 34,
        budget_seconds=0.01,
    )  # fmt: skip
    workload = workload_of_layers(m, [4], prompt_tokens=16, generate_tokens=2)
    machines = {n: [measured.machine(n)] for n in (16, 1)}
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


def test_the_trace_has_a_track_for_each_lane() -> None:
    m = model(6)
    placement = _core.Placement()
    placement.patterns = [_core.LayerPlacement(_core.Where.stream_a), _core.LayerPlacement(_core.Where.stream_b)]
    placement.layer_pattern = [i % 2 for i in range(6)]
    placement.head = _core.Where.cpu
    whole = workload_of_layers(m, [6], prompt_tokens=0, generate_tokens=2)
    workload = replace(whole, phases=tuple(replace(phase, placement=placement) for phase in whole.phases))
    cpus = share_cpus(physical_cpus(), 1)
    result = execute(m, workload, machines={1: [load_machine("rtx-5090").core()]}, cpus=cpus, passes=1)
    events = trace_of(result)["traceEvents"]
    tracks = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"}
    for process in (MEASURED, PREDICTED):
        lanes = {"gpu0 compute", "gpu0 lane a", "gpu0 lane b", "gpu0 down", "host compute"}
        assert {name for of, name in tracks if of == process} == lanes


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminal to draw the progress bar on")
def test_an_interrupt_ends_a_run_with_130(tmp_path: Path) -> None:
    path = gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", *header())
    metrics = tmp_path / "metrics.jsonl"
    terminal, stderr = os.openpty()
    arguments = ["run", str(path), "--layers", "4", "--prompt", "0", "--generate", "1", "--passes", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pshard", *arguments, "--backend", "host", "--metrics", str(metrics)],
        stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(stderr)
    drawn = b""
    try:
        while b"decode, 1 tokens" not in drawn or metrics.read_bytes().count(b"\n") < 3:  # as passes end, lines come
            drawn += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        drain = threading.Thread(target=_read_all, args=(terminal,), daemon=True)
        drain.start()
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(terminal)
    assert process.returncode == 130
    assert out == b""
    lines = metrics.read_bytes().split(b"\n")
    assert lines.pop() == b""  # what is there is whole
    assert {json.loads(line)["phase"] for line in lines} == {"decode"}


def _read_all(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


def test_what_cannot_be_run_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    iq2_s = 22
    with pytest.raises(ExecutionError, match="without a native kernel"):
        m = model(kind=iq2_s)
        execute(m, workload_of_layers(m, [4], prompt_tokens=0, generate_tokens=1), cpus=share_cpus([0], 1))
    keys, tensors = header()
    path = str(gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", keys, tensors))
    run(capsys, path, "--layers", "1,2", code=2)
    run(capsys, path, "--layers", "one", code=2)
    run(capsys, path, "--layers", "4", "--map", path, code=2)
    for exponent in ("x", "nan", "inf", "-1", "10.5"):
        run(capsys, path, "--layers", "4", "--routing", f"zipf:{exponent}", code=2)
    run(capsys, path, "--layers", "4", "--check", "--metrics", str(tmp_path / "m.jsonl"), code=2)
    ignored = (
        ("--vram", "1G"),
        ("--machine", "rtx-5090"),
        ("-ctk", "f16"),
        ("-ctv", "f16"),
        ("--strategy", "x"),
        ("--pshard-tier-max", "64"),
    )
    for option in ignored:
        run(capsys, path, "--layers", "4", *option, code=2)
    for option in (*ignored[1:], ("-c", "512")):  # a registry is for a budget
        run(capsys, path, "--registry", path, *option, code=2)
    for option in (*ignored, ("-c", "512")):
        run(capsys, path, "--map", path, *option, code=2)
    run(capsys, path, "--map", path, code=2)


@pytest.mark.parametrize("name", ["gemma3n-e2b-q4km", "rwkv7-0.4b-f16"])
def test_more_than_the_hidden_state_is_not_carried(name: str) -> None:
    # Embeddings of all layers, and the values of the first.
    m = oracle.model(name)
    workload = workload_of_layers(m, [m.n_layer], prompt_tokens=0, generate_tokens=1)
    with pytest.raises(ExecutionError, match="hands more than the hidden state from layer to layer"):
        execute(m, workload, cpus=share_cpus([0], 1))


@pytest.mark.parametrize("name", ["qwen3-0.6b:Q8_0", "llama-3.2-1b:Q4_K_M", "granite-4.0-h-tiny:Q4_K_M"])
def test_layers_by_hand_have_the_arena_that_they_need(name: str, tmp_path: Path) -> None:
    m = read_model(name)
    holes = tmp_path / "weights"
    with holes.open("wb") as file:
        file.truncate(max(t.offset + t.n_bytes for t in m.tensors))
    half = m.n_layer // 2
    cpus = share_cpus(physical_cpus(), 2)

    def executor(workload: Workload, arenas: tuple[int, ...], *, is_limited: bool) -> _core.Executor:
        return _core.Executor(
            schedules_of(m, workload), host_cpus=list(cpus.host), devices=cpus.devices(arenas),
            vram_bytes=[list(arenas)], page_lock_bytes=0, is_limited=is_limited, files=[str(holes)],
            tensors=[_core.TensorInFile(t.name, 0, t.offset, t.n_bytes) for t in m.tensors],
        )  # fmt: skip

    for batch in (1, 64, 512):
        workload = workload_of_layers(m, [half, m.n_layer - half], prompt_tokens=0, generate_tokens=1, tier=batch)
        made = executor(workload, workload.arena_bytes, is_limited=workload.is_limited)
        wanted = tuple(made.arena_bytes(0, gpu) for gpu in range(2))
        executor(workload, wanted, is_limited=True)
        with pytest.raises(_core.StreamError, match="the plan allows") as refused:
            executor(workload, (wanted[0], 1), is_limited=True)
        found = re.search(r"needs (\d+) bytes", str(refused.value))
        assert found is not None
        least = int(found[1])
        assert least <= wanted[1]
        executor(workload, (wanted[0], least), is_limited=True)
        with pytest.raises(_core.StreamError, match="the plan allows"):
            executor(workload, (wanted[0], least - 1), is_limited=True)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a model and a registry for it."""
    folder = tmp_path_factory.mktemp("planned")
    write_weights(folder / "tiny.gguf", 40)
    registry = folder / "tiny.pshard_registry"
    arguments = ["plan", str(folder / "tiny.gguf"), "--machine", "rtx-5090", "--vram", "24M", "-o", str(registry)]
    assert main(arguments) == 0
    return folder / "tiny.gguf", registry


def test_a_registry_of_another_model_or_file_is_refused(planned: tuple[Path, Path], tmp_path: Path) -> None:
    path, registry = planned
    work = {"prompt_tokens": 40, "generate_tokens": 4}
    assert workload_of_registry(read_model(str(path)), registry, **work).phases
    with pytest.raises(RegistryError, match=r"holds no plans for qwen3-0\.6b:Q8_0; plan again"):
        workload_of_registry(read_model("qwen3-0.6b:Q8_0"), registry, **work)
    changed = tmp_path / "tiny.gguf"
    changed.write_bytes(path.read_bytes() + bytes(32))
    with pytest.raises(RegistryError, match="does not take these plans for this file"):
        workload_of_registry(read_model(str(changed)), registry, **work)


def test_what_a_registry_has_no_tier_memory_or_context_for_is_refused(planned: tuple[Path, Path]) -> None:
    path, registry = planned
    m = read_model(str(path))
    work = {"prompt_tokens": 40, "generate_tokens": 4}
    with pytest.raises(SettingError, match=r"tier 3000: no tier that is loaded for 24 MiB covers it; there are 1, 16"):
        workload_of_registry(m, registry, **work, tier=3000)
    with pytest.raises(SettingError, match="4097 tokens do not fit in a context of 4096"):
        workload_of_registry(m, registry, prompt_tokens=4000, generate_tokens=97)
    # None is not the largest budget: there are tiers that take none.
    nothing = workload_of_registry(m, registry, **work, budget_mib=0)
    assert nothing.arena_bytes == (0,)
    assert {n_pinned(phase.placement) for phase in nothing.phases} == {0}


def test_a_long_prompt_runs_on_the_tier_of_its_whole_length(planned: tuple[Path, Path], tmp_path: Path) -> None:
    path, registry = planned
    m = read_model(str(path))
    # 512 tokens at a time are the quickest; the runtime switches to the tier that covers all of them all the same.
    text, n_lines = re.subn(r"tps=[0-9.]+ ", "tps=1.00 ", registry.read_text())
    assert n_lines > 3
    small = re.compile(r"(\[tier \d+ bs=512\]\n.*tps=)1\.00")
    slow = tmp_path / "slow"
    slow.write_text(small.sub(r"\g<1>1000.00", text))
    workload = workload_of_registry(m, slow, prompt_tokens=1100, generate_tokens=0)
    assert [(phase.n_tokens, phase.count) for phase in workload.phases] == [(512, 2), (76, 1)]
    tiers = {tier.batch_size: tier for tier in read_registry(slow).sections[-1].variants[-1].tiers}
    names = tensor_names(m)
    of_prompt, of_batch = (placement_of(m, places(tiers[n].overrides, names), op_offload=False) for n in (2048, 512))
    assert n_pinned(of_prompt) < n_pinned(of_batch)
    assert [n_pinned(phase.placement) for phase in workload.phases] == [n_pinned(of_prompt)] * 2


def n_pinned(placement: _core.Placement) -> int:
    group = _core.group_of("blk.0.attn_q.weight")
    return sum(_core.is_pinned(placement.patterns[pattern][group]) for pattern in placement.layer_pattern)


def test_files_that_would_be_written_over_or_cannot_be_are_refused_first(
    planned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object, **__: object) -> None:
        pytest.fail("it was run")

    monkeypatch.setattr(host_backend, "measure_devices", measure)
    path, registry = planned
    before = path.read_bytes()
    both = str(tmp_path / "both")
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    for options in (
        ("--trace", str(path)),
        ("--metrics", str(link)),
        ("--registry", str(registry), "--trace", str(registry)),
        ("--trace", both, "--metrics", both),
        ("--trace", both, "--metrics", f"{tmp_path}/./both"),
    ):
        run(capsys, str(path), *options, code=2)
    for option in ("--trace", "--metrics"):
        run(capsys, str(path), option, "/proc/none/file", code=1)
    assert path.read_bytes() == before


def test_seeds_are_of_64_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", *header()))
    common = (path, "--layers", "4", "--tier", "1", "--passes", "1", "--seed")
    assert run(capsys, *common, str(2**64 - 1))["phases"]
    run(capsys, *common, str(2**64), code=2)


def test_figures_are_printed_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", *header()))
    assert main(["run", path, "--layers", "4", "--tier", "1", "--passes", "1", "--backend", "host"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^decode: 1 token, LAYERS, \d+ splits?; 1 pass run, 1 needed$", out, re.MULTILINE)
    assert not re.search(r"\d[eE][+-]\d", out)
    assert "copied per pass: " in out
    assert "TPS  " in out


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
