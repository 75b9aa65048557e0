"""``pshard rebalance`` again and again: as a watch, from a timer, beside another one, and killed half way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rebalance_cli_cases import DEVICES, HAND, json_of, write_metrics

from pshard.cli import main
from pshard.errors import NoFeasiblePlanError
from pshard.rebalance.balancer import Decision, LoadBalancer
from pshard.rebalance.targets import MapTarget


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_metrics(tmp_path / "metrics.jsonl", {"gpu0": 16, "gpu1": 16}, {"gpu0": 8000.0, "gpu1": 24_000.0})


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


def test_a_watch_that_is_deaf_to_ctrl_c_is_ended_by_sigterm(tmp_path: Path) -> None:
    audit, out = tmp_path / "audit.jsonl", tmp_path / "out.txt"
    command = [*HAND, str(tmp_path / "m.jsonl"), "--watch", "--interval", "0.05", "--audit", str(audit)]
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"from pshard.cli import main\nsys.exit(main({command!r}))"
    )
    with out.open("wb") as sink, subprocess.Popen([sys.executable, "-c", code], stdout=sink, stderr=sink) as process:
        try:
            wait_for(out, "cannot be opened")
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert [json.loads(row)["event"] for row in audit.read_text().splitlines()][-1] == "stop"


def watched(
    monkeypatch: pytest.MonkeyPatch,
    looks: list[Callable[[], object]],
    arguments: list[str | Path],
    command: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Watch in this process: each look is followed by one of these, then by Ctrl-C; return the audit log."""
    waits = iter(looks)

    def sleep(_: float) -> None:
        if (then := next(waits, None)) is None:
            raise KeyboardInterrupt
        then()

    monkeypatch.setattr("pshard.cli._rebalance_session.time.sleep", sleep)
    command = command or [*HAND, *map(str, arguments)]
    audit = Path(command[1] if command[1] not in HAND else arguments[0]).with_name("audit.jsonl")
    assert main([*command, "--watch", "--audit", str(audit)]) == 0
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
    assert [event["event"] for event in events if event["event"] != "input"] == ["start", "decision", "applied", "stop"]
    captured = capsys.readouterr()
    assert captured.err.count("flags.txt.former: cannot be written") == 1  # told once, tried three times
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


class MapOnDisk:
    """A map of a model on two GPUs, and passes of it in which the first is three times as slow as predicted."""

    model = "llama-3.1-8b:Q4_K_M"

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["map", self.model, *DEVICES, "--objective", "decode", "--load", "pipelined", "--json"]) == 0
        self.text = capsys.readouterr().out
        self.path, self.metrics = folder / "map.json", folder / "m.jsonl"
        self.path.write_text(self.text)
        self.write_passes()

    @property
    def layers(self) -> dict[str, int]:
        devices = json.loads(self.path.read_text())["map"]["devices"]
        return {device["name"]: device["n_layer"] for device in devices if device["n_layer"]}

    def write_passes(self, n: int = 200, slow: float = 3.0) -> None:
        """Passes of the map as it is: as long as predicted, but on CUDA0."""
        usual = {
            d["name"]: d["seconds"] / d["n_layer"] for d in json.loads(self.text)["map"]["devices"] if d["n_layer"]
        }
        latencies = {name: usual[name] * 1e6 * n_layer for name, n_layer in self.layers.items()}
        latencies["CUDA0"] *= slow
        write_metrics(self.metrics, self.layers, latencies, n)

    def arguments(self, *options: str) -> list[str]:
        return ["rebalance", str(self.path), str(self.metrics), "-m", self.model, *DEVICES, *options]


def test_calls_from_a_timer_remember_what_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployed = MapOnDisk(tmp_path, capsys)
    history = tmp_path / "map.json.history"
    assert main(deployed.arguments("--json")) == 0
    assert json_of(capsys)["decision"]["kind"] == "rebalance"
    assert not history.exists()  # nothing is written without --apply
    assert main(deployed.arguments("--apply")) == 0
    before, after = json.loads(deployed.text), json.loads(history.read_text())
    counts = [device["n_layer"] for device in before["map"]["devices"]]
    assert [entry["placement"] for entry in after["left"]] == [counts]
    assert after["current"] == [device["n_layer"] for device in json.loads(deployed.path.read_text())["map"]["devices"]]
    # CUDA0 is well again, and all goes back but for that it was only just left
    deployed.write_passes(n=300, slow=1.0)
    capsys.readouterr()
    for _ in range(2):
        assert main(deployed.arguments("--apply", "--json", "--imbalance-threshold", "1")) == 0
        document = json_of(capsys)
        assert document["decision"]["kind"] == "balanced"
        assert "This goes back to what was left 0 s ago" in document["decision"]["reason"]
        assert document["written"] == []
    forgotten = ["--history", str(tmp_path / "another"), "--imbalance-threshold", "1"]
    assert main(deployed.arguments("--json", *forgotten)) == 0
    assert json_of(capsys)["decision"]["kind"] == "rebalance"
    # what was taken back by hand was left as well
    assert main(deployed.arguments("--undo")) == 0
    deployed.write_passes()
    capsys.readouterr()
    assert main(deployed.arguments("--apply", "--json")) == 0
    assert "This goes back to what was left 0 s ago" in json_of(capsys)["decision"]["reason"]


def test_a_history_that_is_none_is_told_and_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployed = MapOnDisk(tmp_path, capsys)
    history = tmp_path / "map.json.history"
    history.write_text("{")
    assert main(deployed.arguments("--apply")) == 0
    assert "map.json.history: not what is remembered between calls" in capsys.readouterr().err
    assert json.loads(history.read_text())["left"]


def test_a_plan_that_was_applied_is_what_the_next_call_goes_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["qwen3-30b-a3b:Q4_K_M", "--gpu", "rtx-4060-8g"]
    assert main(["plan", *model, "--pshard-tier-max", "512", "--json"]) == 0
    path, metrics = tmp_path / "plan.json", tmp_path / "m.jsonl"
    text = capsys.readouterr().out
    path.write_text(text)
    busy = json.loads(text)["tiers"][0]["busy_seconds"]
    host_us = busy["cpu"] * 1e6
    write_metrics(metrics, {"gpu0": 48, "host": 48}, {"gpu0": busy["gpu"] * 60e6, "host": host_us})
    arguments = ["rebalance", str(path), str(metrics), "-m", *model]
    assert main([*arguments, "--apply"]) == 0
    applied = json.loads(path.read_text())
    assert applied["corrections"]["gpu"]["decode"] == pytest.approx(60.0, rel=0.02)
    # the host has all layers now, and takes what the applied plan says; the GPU is idle
    metrics.unlink()
    write_metrics(metrics, {"host": 48}, {"host": applied["tiers"][0]["busy_seconds"]["cpu"] * 1e6})
    capsys.readouterr()
    assert main([*arguments, "--apply", "--json"]) == 0
    captured = capsys.readouterr()
    decision = json.loads(captured.out)["decision"]
    assert captured.err == ""  # what is planned is what is deployed
    assert decision["kind"] == "balanced"
    assert decision["reason"] == "No other assignment is faster."
    assert decision["factors"]["host"]["factor"] == pytest.approx(1.0, rel=0.02)
    path.write_text(json.dumps(applied | {"corrections": {"gpu": 3}}))
    assert main(arguments) == 1
    assert "got `int` - at `$.corrections[...]`" in capsys.readouterr().err


def test_a_watch_follows_a_map_that_somebody_else_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed = MapOnDisk(tmp_path, capsys)

    def undo() -> None:
        assert main(deployed.arguments("--undo")) == 0
        assert deployed.path.read_text() == deployed.text

    def serve() -> None:
        deployed.write_passes(n=20, slow=1.0)

    def spoil() -> None:
        deployed.path.write_text("{")

    def mend() -> None:
        deployed.path.write_text(deployed.text)

    events = watched(monkeypatch, [undo, serve, spoil, mend, serve], [], deployed.arguments("--apply"))
    names = [event["event"] for event in events if event["event"] != "input"]
    assert names[:3] == ["start", "decision", "applied"]
    assert names.count("followed") == 1  # mended it is what it was
    assert names.count("applied") == 1  # 20 passes are not enough for anything
    assert deployed.path.read_text() == deployed.text
    assert [event["problem"] for event in events if "not JSON" in event.get("problem", "")]
    last = next(event for event in reversed(events) if event["event"] == "decision")
    assert last["current"] == json.loads(json.dumps(events[1]["current"]))


def test_two_watches_at_once_do_not_overwrite_what_the_other_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed = MapOnDisk(tmp_path, capsys)
    replaced: list[str] = []
    apply = MapTarget.apply

    def after_another(self: MapTarget, decision: Decision) -> list[Path]:
        """Between a watch's look at the map and its writing, another process replaces it."""
        if not replaced:
            replaced.append("")
            assert main(deployed.arguments("--apply")) == 0
            replaced[0] = deployed.path.read_text()
        return apply(self, decision)

    monkeypatch.setattr(MapTarget, "apply", after_another)
    events = watched(monkeypatch, [lambda: None, lambda: None], [], deployed.arguments("--apply"))
    assert deployed.path.read_text() == replaced[0]
    assert [event["event"] for event in events].count("followed") == 1
    assert any("somebody else has replaced it meanwhile" in event.get("problem", "") for event in events)
    assert main(deployed.arguments("--undo")) == 0
    assert deployed.path.read_text() == deployed.text  # and not what the other had written


@pytest.mark.parametrize("at", range(6))
def test_an_applying_that_is_killed_half_way_can_be_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    """The process ends at its nth replacing of a file: none of what was there is lost."""
    deployed = MapOnDisk(tmp_path, capsys)
    flags = tmp_path / "flags.txt"
    flags.write_text("-ts 1,1\n")
    arguments = deployed.arguments("--apply", "--flags", str(flags))
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom pshard.cli import main\n"
        "replace, done = Path.replace, []\n"
        "def dying(self, target):\n"
        f"    if len(done) == {at}: os._exit(9)\n"
        "    done.append(target)\n"
        "    return replace(self, target)\n"
        f"Path.replace = dying\nsys.exit(main({arguments!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
    assert ended == (9 if at < 4 else 0)  # what there was, the map, the flags, the history
    if at > 0:
        assert main(deployed.arguments("--undo", "--flags", str(flags))) == 0
    assert deployed.path.read_text() == deployed.text
    assert flags.read_text() == "-ts 1,1\n"
    # and a new call works as if nothing had been
    assert main(arguments) == 0
