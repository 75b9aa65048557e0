"""``pshard rebalance``, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rebalance_cli_cases import DEVICES, HAND, json_of, write_metrics

from pshard import _core, read_model
from pshard.cli import main
from pshard.launch.placements import placement_from_flags

DATA = Path(__file__).parents[1] / "data" / "engine_metrics"


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_metrics(tmp_path / "metrics.jsonl", {"gpu0": 16, "gpu1": 16}, {"gpu0": 8000.0, "gpu1": 24_000.0})


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
        (["rebalance", "--layers", "a=999999999999,b=1", "m"], 2, "have at most 65536"),
        (["rebalance", "none.json", "m"], 1, "none.json: cannot be read (No such file or directory)"),
        ([*HAND, "m", "--min-gain", "-1"], 2, "min_gain"),
        ([*HAND, "m", "--min-gain", "nan"], 2, "min_gain"),
        ([*HAND, "m", "--window", "9223372036854775808"], 2, "window=9223372036854775808 must be"),
        ([*HAND, "m", "--warm-up", "9223372036854775808"], 2, "warm_up"),
        ([*HAND, "m", "--false-alarms-per-window", "1e-320"], 2, "false_alarms_per_window"),
        ([*HAND, "m", "--flags", ""], 2, "'--flags': a file has a name"),
        ([*HAND, "m", "--layer-bytes", "much"], 2, "is not a size"),
        ([*HAND, "m", "--layer-bytes", "999999999999999T"], 2, "more than any memory has"),
        ([*HAND, "m", "--link", "12"], 2, "is not a rate"),
        ([*HAND, "m", "--link", "0GB/s"], 2, "moves nothing"),
        ([*HAND, "m", "--apply"], 2, "name one (--flags FILE)"),
        ([*HAND, "m", "-m", "llama-3.3-70b:Q4_K_M"], 2, "the shards have 32 layers, and the model 80"),
        ([*HAND, "m", "-m", "none.gguf"], 1, "none.gguf"),
        ([*HAND, "m", "--devices", "24G,12G"], 2, "gpu0 is not among the devices"),
        ([*HAND, "m", "--cluster", "none.toml"], 1, "none.toml"),
        ([*HAND, "."], 1, "no latencies"),
        (["rebalance", ".", "m"], 1, "cannot be read (Is a directory)"),
        (["rebalance", "none.json", "m", "--undo"], 1, "none.json: cannot be read"),
        ([*HAND, "--undo"], 2, "name their file (--flags FILE)"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "neither a map"), ("[1]", "neither a map"), ("{", "not JSON"), ("[" * 100_000, "not JSON")],
)
def test_documents_that_are_none_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    assert main(["rebalance", str(path), "m"]) == 1
    assert message in capsys.readouterr().err


def test_a_map_needs_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "map.json"
    assert main(["map", "llama-3.1-8b:Q4_K_M", *DEVICES, "--json"]) == 0
    path.write_text(capsys.readouterr().out)
    assert main(["rebalance", str(path), "m"]) == 2
    assert "-m is missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"map": {}}', '{"map": {"devices": 1}, "load": "stream"}', '{"tiers": []}'])
def test_documents_that_lack_something_say_which_file(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    assert main(["rebalance", str(path), "m", "-m", "llama-3.1-8b:Q4_K_M", *DEVICES]) == 1
    assert f"{path}: not as pshard writes it" in capsys.readouterr().err


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
    assert main(["rebalance", str(path), str(metrics)]) == 1
    assert "layers in common" in capsys.readouterr().err
    path.write_text('{"shards": [{"device": "gpu0"}]}')
    assert main(["rebalance", str(path), str(metrics)]) == 1
    assert "missing required field `layer_range` - at `$.shards[0]`" in capsys.readouterr().err


def test_a_shard_document_with_llama_cpps_names_gives_devices_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shard.json"
    shards = [
        {"device": "CUDA1", "host": "here", "layer_range": [16, 31]},
        {"device": "CUDA0", "host": "here", "layer_range": [0, 15]},
    ]
    path.write_text(json.dumps({"shards": shards}))
    latencies = {"CUDA0": 8000.0, "CUDA1": 24_000.0}
    metrics = write_metrics(tmp_path / "m.jsonl", {"CUDA0": 16, "CUDA1": 16}, latencies)
    assert main(["rebalance", str(path), str(metrics)]) == 0
    assert "-dev CUDA0,CUDA1 -ts 24,9" in capsys.readouterr().out
    # in the order in which a token passes them, which is not that of their numbers
    shards[0]["layer_range"], shards[1]["layer_range"] = shards[1]["layer_range"], shards[0]["layer_range"]
    path.write_text(json.dumps({"shards": shards}))
    assert main(["rebalance", str(path), str(metrics)]) == 0
    assert "-dev CUDA1,CUDA0 -ts 8,25" in capsys.readouterr().out
    # on another host it is another device, whose name the launch line tells
    shards[0]["host"] = "there"
    path.write_text(json.dumps({"shards": shards}))
    assert main(["rebalance", str(path), str(metrics)]) == 0
    assert "-dev" not in capsys.readouterr().out
    line = {"argv": ["llama-server", "-dev", "RPC0,CUDA0", "-ts", "16,17"]}
    path.write_text(json.dumps({"shards": shards, "launch": {"engine": "llama.cpp", "lines": [{"argv": []}, line]}}))
    assert main(["rebalance", str(path), str(metrics)]) == 0
    assert "-dev RPC0,CUDA0 -ts 8,25" in capsys.readouterr().out


def test_a_device_without_layers_is_left_out_where_it_has_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = write_metrics(tmp_path / "m.jsonl", {"CUDA0": 8, "CUDA1": 8}, {"CUDA0": 80.0, "CUDA1": 80_000.0})
    assert main(["rebalance", "--layers", "CUDA0=8,CUDA1=8", str(metrics), "--json"]) == 0
    assert json_of(capsys)["flags"] == ["-dev", "CUDA0"]


@pytest.mark.parametrize(
    ("options", "layers", "seconds"),
    [
        (["--layer-bytes", "256M"], 8, None),
        (["--layer-bytes", "256M", "--link", "1GB/s"], 8, 8 * 2**28 / 1e9),
        (["-m", "llama-3.1-8b:Q4_K_M", "--link", "1GB/s"], 8, ...),
        (["-m", "llama-3.1-8b:Q4_K_M", "--devices", "rtx-3060-12g,rtx-4060-8g"], 8, ...),
    ],
)
def test_layers_by_hand_whose_bytes_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], layers: int, seconds: object
) -> None:
    latencies = {"CUDA0": 8000.0, "CUDA1": 24_000.0}
    metrics = write_metrics(tmp_path / "m.jsonl", {"CUDA0": 16, "CUDA1": 16}, latencies)
    arguments = ["rebalance", "--layers", "CUDA0=16,CUDA1=16", str(metrics), *options]
    assert main([*arguments, "--json"]) == 0
    decision = json_of(capsys)["decision"]
    move = decision["move"]
    assert move["layers"] == layers
    if "-m" in options:
        model = read_model("llama-3.1-8b:Q4_K_M")
        assert move["bytes_to"] == {"CUDA0": sum(layer.n_bytes for layer in model.layers[16:24])}
    else:
        assert move["bytes_to"] == {"CUDA0": 8 << 28}
    if seconds is None:
        assert move["seconds"] is None
        assert decision["break_even_seconds"] is None
        assert main(arguments) == 0
        assert "give --link" in capsys.readouterr().out
        return
    rate = 1e9 if "--link" in options else move["bytes"] / move["seconds"]
    assert move["seconds"] == pytest.approx(move["bytes"] / rate)
    assert 1e9 <= rate < 32e9
    assert decision["break_even_seconds"] == pytest.approx(move["seconds"] / (decision["estimated_speedup"] - 1))
    assert main(arguments) == 0
    assert "paid back after" in capsys.readouterr().out


def test_a_move_by_hand_that_pays_back_too_late_is_not_made(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*HAND, str(metrics), "--layer-bytes", "2G", "--link", "10MB/s"]) == 0
    assert "Balanced. The move would take" in capsys.readouterr().out


def test_shards_that_are_all_unknown_are_no_latencies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = write_metrics(tmp_path / "m.jsonl", {"gpu7": 16}, {"gpu7": 8000.0})
    assert main([*HAND, str(metrics)]) == 1
    error = capsys.readouterr().err
    assert "latencies of gpu7 are left out: no such shard is deployed (200 times so far)" in error
    assert "no latencies of the present assignment" in error


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
    # another plan beside the same model: what a plan replaced is not its to take back
    other = tmp_path / "other.json"
    other.write_text(path.read_text())
    after = registry.read_bytes()
    assert main(["rebalance", str(other), "--undo", "-m", str(model)]) == 1
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
