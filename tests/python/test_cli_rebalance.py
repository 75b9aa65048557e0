"""``pshard rebalance``, as a person runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pshard import _core, read_model
from pshard.cli import main
from pshard.errors import NoFeasiblePlanError
from pshard.placements import placement_from_flags
from pshard.rebalance import Decision, LoadBalancer

DATA = Path(__file__).parents[1] / "data" / "engine_metrics"
HAND = ["rebalance", "--layers", "gpu0=16,gpu1=16"]
DEVICES = ["--devices", "rtx-3060-12g,rtx-4060-8g", "--ram", "32G"]


def write_metrics(path: Path, layers: dict[str, int], latencies_us: dict[str, float], n: int = 200) -> Path:
    random = np.random.default_rng(1)
    with path.open("a") as file:
        for i in range(n):
            for shard, count in layers.items():
                latency = latencies_us[shard] * float(np.exp(0.05 * random.standard_normal()))
                file.write(
                    json.dumps(
                        {
                            "shard": shard,
                            "layers": count,
                            "phase": "decode",
                            "n_tokens": 1,
                            "latency_us": latency,
                            "time_unix_s": 1e9 + i,
                        }
                    )
                    + "\n"
                )
    return path


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_metrics(tmp_path / "metrics.jsonl", {"gpu0": 16, "gpu1": 16}, {"gpu0": 8000.0, "gpu1": 24_000.0})


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def layers_on_gpus(tensor_split: list[float]) -> list[int]:
    """Layers of a model of 32 that llama.cpp puts on each GPU."""
    model = read_model("llama-3.1-8b:Q4_K_M")
    n_gpu = len(tensor_split)
    placement = placement_from_flags(model.core, devices=[1.0] * n_gpu, tensor_split=tensor_split)
    places = [placement.patterns[i].device for i in placement.layer_pattern]
    return [places.count(_core.pinned_on(gpu)) for gpu in range(n_gpu)]


def test_layers_by_hand(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*HAND, str(metrics)]) == 0
    captured = capsys.readouterr()
    assert "Rebalance. The shards differ by more than the threshold" in captured.out
    assert "2.00 times as fast" in captured.out
    assert "-ts 24,9" in captured.out.splitlines()
    assert captured.err == ""


def test_the_document(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*HAND, str(metrics), "--json"]) == 0
    document = json_of(capsys)
    assert document["schema_version"] == 1
    assert document["decision"]["kind"] == "rebalance"
    assert document["decision"]["suggested"] == [{"shard": "gpu0", "layers": 24}, {"shard": "gpu1", "layers": 8}]
    flag, shares = document["flags"]
    assert flag == "-ts"
    # what llama.cpp makes of it is what was suggested
    assert layers_on_gpus([float(share) for share in shares.split(",")]) == [24, 8]
    assert document["written"] == []
    shard = document["shards"][1]
    assert shard["forwards"] == 200
    assert shard["phases"]["decode"]["median_us"] == pytest.approx(24_000, rel=0.02)


def test_apply_keeps_the_former_and_undo_restores_it(
    metrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, audit = tmp_path / "flags.txt", tmp_path / "audit.jsonl"
    flags.write_text("-ts 16,16\n")
    assert main([*HAND, str(metrics), "--apply", "--flags", str(flags), "--audit", str(audit)]) == 0
    assert flags.read_text() == "-ts 24,9\n"
    assert "--undo takes it back" in capsys.readouterr().out
    assert main([*HAND, "--undo", "--flags", str(flags), "--audit", str(audit)]) == 0
    assert flags.read_text() == "-ts 16,16\n"
    events = [json.loads(row) for row in audit.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "decision", "applied", "undone"]
    decision = events[1]
    assert decision["reason"].startswith("The shards differ")
    assert {shard["shard"] for shard in decision["shards"]} == {"gpu0", "gpu1"}
    assert decision["factors"]["gpu1"]["factor"] == pytest.approx(24_000e-6 / 16, rel=0.02)


def test_flags_that_were_not_there_are_not_there_after_undoing(metrics: Path, tmp_path: Path) -> None:
    flags = tmp_path / "flags.txt"
    assert main([*HAND, str(metrics), "--apply", "--flags", str(flags)]) == 0
    assert main([*HAND, "--undo", "--flags", str(flags)]) == 0
    assert not flags.exists()


def test_a_balanced_deployment_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    even = write_metrics(tmp_path / "m.jsonl", {"gpu0": 16, "gpu1": 16}, {"gpu0": 8000.0, "gpu1": 8000.0})
    flags = tmp_path / "flags.txt"
    assert main([*HAND, str(even), "--apply", "--flags", str(flags)]) == 0
    assert "Balanced. No other assignment is faster." in capsys.readouterr().out
    assert not flags.exists()


def test_a_map_is_replaced_by_the_map_of_the_measured_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "llama-3.1-8b:Q4_K_M"
    assert main(["map", model, *DEVICES, "--objective", "decode", "--load", "pipelined", "--json"]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "map.json"
    path.write_text(text)
    devices = json.loads(text)["map"]["devices"]
    layers = {device["name"]: device["n_layer"] for device in devices if device["n_layer"]}
    slow = {"CUDA0": 3.0}
    latencies = {d["name"]: d["seconds"] * 1e6 * slow.get(d["name"], 1.0) for d in devices if d["n_layer"]}
    metrics = write_metrics(tmp_path / "m.jsonl", layers, latencies)
    arguments = ["rebalance", str(path), str(metrics), "-m", model, *DEVICES]
    assert main([*arguments, "--apply", "--json"]) == 0
    document = json_of(capsys)
    assert document["written"] == [str(path)]
    replaced = json.loads(path.read_text())
    suggested = {entry["shard"]: entry["layers"] for entry in document["decision"]["suggested"]}
    assert {device["name"]: device["n_layer"] for device in replaced["map"]["devices"]} == suggested
    assert suggested["CUDA0"] < layers["CUDA0"]
    assert replaced["llama_cpp"]["argv"] == document["flags"]
    # the latencies in the file are of the former map, and say nothing of this one
    assert main(arguments) == 1
    assert "another assignment" in capsys.readouterr().err
    assert main([*arguments, "--undo"]) == 0
    assert path.read_text() == text


def test_an_engine_corrects_a_plan_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["qwen3-30b-a3b:Q4_K_M", "--gpu", "rtx-4060-8g"]
    assert main(["plan", *model, "--pshard-tier-max", "512", "--json"]) == 0
    path = tmp_path / "plan.json"
    path.write_text(capsys.readouterr().out)
    engine = str(DATA / "llama_server.txt")
    assert main(["rebalance", str(path), engine, "-m", *model, "--json"]) == 0
    document = json_of(capsys)
    (shard,) = document["shards"]
    assert shard["shard"] == "engine"
    assert shard["phases"]["decode"]["median_us"] == pytest.approx(1e6 * 3544.27 / 3469)
    assert shard["phases"]["prefill"]["median_us"] == pytest.approx(1e6 * 2903.63 / 6886)
    assert main([*HAND, engine]) == 2
    assert "tells of an engine as a whole" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rebalance"], 2, "say what is deployed"),
        (HAND, 2, "METRICS is missing"),
        ([*HAND, "none.jsonl"], 1, "no latencies"),
        (["rebalance", "--layers", "gpu0", "m"], 2, "is not NAME=LAYERS"),
        (["rebalance", "--layers", "a=1,a=2", "m"], 2, "occurs twice"),
        (["rebalance", "none.json", "m"], 2, "cannot be read"),
        ([*HAND, "m", "--min-gain", "-1"], 2, "min_gain"),
        ([*HAND, "--undo"], 2, "nothing to undo"),
    ],
)
def test_what_cannot_be_done_says_why(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("text", "message"), [("{}", "neither a map"), ("[1]", "neither a map"), ("{", "not JSON")])
def test_documents_that_are_none_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    assert main(["rebalance", str(path), "m"]) == 2
    assert message in capsys.readouterr().err


def test_a_map_needs_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"map": {}}')
    assert main(["rebalance", str(path), "m"]) == 2
    assert "-m is missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"map": {}}', '{"map": {"devices": 1}, "load": "stream"}', '{"tiers": []}'])
def test_documents_that_lack_something_say_which_file(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    assert main(["rebalance", str(path), "m", "-m", "llama-3.1-8b:Q4_K_M", *DEVICES]) == 2
    assert f"{path}: lacks something" in capsys.readouterr().err


def test_a_plan_is_corrected_by_what_its_gpu_and_cpu_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["qwen3-30b-a3b:Q4_K_M", "--gpu", "rtx-4060-8g"]
    assert main(["plan", *model, "--pshard-tier-max", "512", "--json"]) == 0
    path, flags = tmp_path / "plan.json", tmp_path / "flags.txt"
    text = capsys.readouterr().out
    path.write_text(text)
    busy = json.loads(text)["tiers"][0]["busy_seconds"]
    layers = {"gpu0": 48, "host": 48}
    # the GPU is twenty times as slow as its data sheet lets one expect: slower than the CPU
    metrics = write_metrics(tmp_path / "m.jsonl", layers, {"gpu0": busy["gpu"] * 20e6, "host": busy["cpu"] * 1e6})
    arguments = ["rebalance", str(path), str(metrics), "-m", *model, "--flags", str(flags)]
    assert main([*arguments, "--apply", "--json"]) == 0
    document = json_of(capsys)
    assert document["decision"]["factors"]["gpu0"]["factor"] == pytest.approx(20.0, rel=0.02)
    assert document["decision"]["current"] == []
    assert document["decision"]["kind"] == "rebalance"
    assert document["written"] == [str(path), str(flags)]
    assert json.loads(path.read_text())["llama_cpp"]["argv"] == document["flags"]
    assert "-ngl 0" in flags.read_text()
    assert main([*arguments, "--undo"]) == 0
    assert path.read_text() == text


def test_a_shard_document_names_devices_and_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shard.json"
    shards = [{"device": "gpu1", "layer_range": [16, 31]}, {"device": "gpu0", "layer_range": [0, 15]}]
    path.write_text(json.dumps({"shards": shards}))
    metrics = write_metrics(tmp_path / "m.jsonl", {"gpu0": 16, "gpu1": 16}, {"gpu0": 8000.0, "gpu1": 24_000.0})
    assert main(["rebalance", str(path), str(metrics)]) == 0
    assert "-ts 24,9" in capsys.readouterr().out
    path.write_text(json.dumps({"shards": [shards[1], shards[1] | {"device": "gpu1"}]}))
    assert main(["rebalance", str(path), str(metrics)]) == 2
    assert "layers in common" in capsys.readouterr().err
    path.write_text('{"shards": [{"device": "gpu0"}]}')
    assert main(["rebalance", str(path), str(metrics)]) == 2
    assert "lacks `device` or `layer_range`" in capsys.readouterr().err


def wait_for(path: Path, text: str) -> str:
    """Wait until a file has a text; the test's own limit ends a wait that is in vain."""
    while text not in (content := path.read_text() if path.exists() else ""):
        time.sleep(0.02)
    return content


def test_a_watch_follows_a_file_through_everything_until_interrupted(tmp_path: Path) -> None:
    path, audit, flags = (tmp_path / name for name in ("m.jsonl", "audit.jsonl", "flags.txt"))
    out = tmp_path / "out.txt"
    command = [
        *HAND,
        str(path),
        "--watch",
        "--interval",
        "0.05",
        "--audit",
        str(audit),
        "--apply",
        "--flags",
        str(flags),
    ]
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from pshard.cli import main\nsys.exit(main({command!r}))"
    )
    layers = {"gpu0": 16, "gpu1": 16}
    with out.open("wb") as sink, subprocess.Popen([sys.executable, "-c", code], stdout=sink, stderr=sink) as process:
        try:
            wait_for(out, "cannot be opened")
            write_metrics(path, layers, {"gpu0": 8000.0, "gpu1": 8000.0})
            wait_for(out, "Balanced. No other assignment is faster.")
            with path.open("a") as file:
                file.write('{"shard": "gpu0", "la\nnonsense\n')
            wait_for(out, "a line is not JSON")
            path.rename(tmp_path / "m.jsonl.1")
            write_metrics(path, layers, {"gpu0": 8000.0, "gpu1": 14_000.0}, n=40)
            wait_for(out, "Rebalance. gpu1 takes 1.7")
            assert wait_for(flags, "-ts").startswith("-ts 2")
            write_metrics(path, layers, {"gpu0": 8000.0, "gpu1": 14_000.0}, n=5)
            wait_for(out, "a latency is of another assignment")
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    events = [json.loads(row)["event"] for row in audit.read_text().splitlines()]
    assert events[0] == "start"
    assert events[-1] == "stop"
    assert {"decision", "input", "applied"} <= set(events)
    assert "Traceback" not in out.read_text()


def test_shards_that_are_all_unknown_are_no_latencies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = write_metrics(tmp_path / "m.jsonl", {"gpu7": 16}, {"gpu7": 8000.0})
    assert main([*HAND, str(metrics)]) == 1
    error = capsys.readouterr().err
    assert "latencies of gpu7 are left out: no such shard is deployed (200 times so far)" in error
    assert "no latencies of the present assignment" in error


def watched(
    monkeypatch: pytest.MonkeyPatch, looks: list[Callable[[], object]], arguments: list[str | Path]
) -> list[dict[str, Any]]:
    """Watch in this process: each look is followed by one of these, then by Ctrl-C; return the audit log."""
    waits = iter(looks)

    def sleep(_: float) -> None:
        if (then := next(waits, None)) is None:
            raise KeyboardInterrupt
        then()

    monkeypatch.setattr("pshard.cli.rebalance.time.sleep", sleep)
    audit = Path(arguments[0]).with_name("audit.jsonl")
    assert main([*HAND, *map(str, arguments), "--watch", "--audit", str(audit)]) == 0
    return [json.loads(row) for row in audit.read_text().splitlines()]


def test_a_watch_tries_again_what_it_could_not_write(
    metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "flags"
    folder.write_text("a file where a folder should be")

    def nothing() -> None:
        assert folder.read_text()

    flags = folder / "flags.txt"
    events = watched(monkeypatch, [nothing, nothing, folder.unlink], [metrics, "--apply", "--flags", flags])
    assert flags.read_text() == "-ts 24,9\n"
    assert [event["event"] for event in events[:4]] == ["start", "decision", "input", "applied"]
    captured = capsys.readouterr()
    assert captured.err.count("cannot be written") == 1  # told once, tried three times
    assert f"Written: {flags}" in captured.out


def test_a_watch_tells_bad_input_that_changes_no_decision(
    metrics: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ghost() -> None:
        write_metrics(metrics, {"ghost": 1}, {"ghost": 1.0}, n=1)

    events = watched(monkeypatch, [ghost], [metrics])
    assert [event["event"] for event in events] == ["start", "decision", "input", "stop"]
    assert "latencies of ghost" in events[2]["problem"]
    assert "latencies of ghost" in capsys.readouterr().err


def test_a_watch_survives_a_decision_that_fails(
    metrics: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decide = LoadBalancer.evaluate
    failures = iter([NoFeasiblePlanError("nothing fits", 1)])

    def evaluate(self: LoadBalancer) -> Decision:
        for failure in failures:
            raise failure
        return decide(self)

    monkeypatch.setattr(LoadBalancer, "evaluate", evaluate)
    events = watched(monkeypatch, [lambda: None], [metrics])
    assert [event["event"] for event in events] == ["start", "input", "decision", "stop"]
    assert "nothing fits" in capsys.readouterr().err


def test_the_registry_of_a_plan_is_replaced_and_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = tmp_path / "model.gguf", tmp_path / "plan.json"
    assert main(["skeleton", "qwen3-30b-a3b:Q4_K_M", "-o", str(model)]) == 0
    capsys.readouterr()
    gpu = ["--gpu", "rtx-4060-8g"]
    assert main(["plan", str(model), *gpu, "--pshard-tier-max", "512", "--json"]) == 0
    path.write_text(capsys.readouterr().out)
    document = json.loads(path.read_text())
    registry = Path(document["registry_path"])
    before = registry.read_bytes()
    busy = document["tiers"][0]["busy_seconds"]
    metrics = write_metrics(
        tmp_path / "m.jsonl", {"gpu0": 48, "host": 48}, {"gpu0": busy["gpu"] * 20e6, "host": busy["cpu"] * 1e6}
    )
    arguments = ["rebalance", str(path), str(metrics), "-m", str(model), *gpu]
    assert main([*arguments, "--apply", "--json"]) == 0
    assert json_of(capsys)["written"] == [str(path), str(registry)]
    assert registry.read_bytes() != before
    assert main(["show", str(registry)]) == 0
    # a map beside the same model: what a plan replaced is not its to take back
    other = tmp_path / "map.json"
    other.write_text('{"map": {}}')
    after = registry.read_bytes()
    assert main(["rebalance", str(other), "--undo", "-m", str(model)]) == 2
    assert "nothing to undo" in capsys.readouterr().err
    assert registry.read_bytes() == after
    assert main([*arguments, "--undo"]) == 0
    assert registry.read_bytes() == before


def test_a_registry_that_cannot_be_written_leaves_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = tmp_path / "model.gguf", tmp_path / "plan.json"
    assert main(["skeleton", "qwen3-30b-a3b:Q4_K_M", "-o", str(model)]) == 0
    capsys.readouterr()
    gpu = ["--gpu", "rtx-4060-8g"]
    assert main(["plan", str(model), *gpu, "--pshard-tier-max", "512", "--json"]) == 0
    text = capsys.readouterr().out
    path.write_text(text)
    busy = json.loads(text)["tiers"][0]["busy_seconds"]
    metrics = write_metrics(
        tmp_path / "m.jsonl", {"gpu0": 48, "host": 48}, {"gpu0": busy["gpu"] * 20e6, "host": busy["cpu"] * 1e6}
    )
    impossible = str(metrics / "registry")
    arguments = ["rebalance", str(path), str(metrics), "-m", str(model), *gpu, "--registry", impossible, "--apply"]
    assert main(arguments) != 0
    assert "registry: cannot be written" in capsys.readouterr().err
    assert path.read_text() == text
