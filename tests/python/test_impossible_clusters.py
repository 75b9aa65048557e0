"""Clusters that cannot be: each ends with its exit code and says what is wrong and what would help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pshard.cli import main
from pshard.cluster.cluster import Cluster, Device, Host

HOST = '[[hosts]]\nname = "box"\nmemory = "16G"\n'
GPU = '[[devices]]\nname = "gpu"\nkind = "nvidia"\nmemory = "8G"\n'


@pytest.mark.parametrize("command", ["map", "shard"])
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 1, "no host"),
        ('[[hosts]]\nname = "box"\n', 1, "no device"),
        (HOST + GPU.replace("8G", "0"), 1, "memory"),
        (HOST + GPU + GPU, 1, "gpu"),
        (HOST + GPU + '[[links]]\nkind = "pcie"\nends = ["gpu", "moon"]\ngeneration = 4\n', 1, "moon"),
        (HOST + GPU + 'colour = "red"\n', 1, "colour"),
        (HOST.replace("16G", "1G") + GPU, 3, "missing"),
    ],
    ids=["nothing", "no device", "no memory", "a name twice", "a link to nowhere", "an unknown key", "too small"],
)
def test_each_says_what_is_wrong(
    command: str, text: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    assert main([command, "llama-3.3-70b:Q4_K_M", "--cluster", str(path)]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err


@pytest.mark.parametrize("command", ["map", "shard"])
def test_a_listed_gpu_without_memory_is_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "qwen3-0.6b:Q8_0", "--devices", "24G,0G"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "device 'CUDA1': memory of 0 bytes" in shown.err


def test_what_a_device_lacks_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", "llama-3.3-70b:Q4_K_M", "--devices", "8G", "--ram", "8G"]) == 3
    assert capsys.readouterr().err.count("CUDA0 lacks") == 1


@pytest.mark.parametrize("command", ["map", "shard"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--devices", "24G", "--cluster", "x.toml"],
        ["--devices", "a lot"],
        ["--devices", "24G", "--max-seq-len", "0"],
        ["--devices", "24G", "-ctk", "q9"],
        ["--devices", "999999999999999T"],
        ["--devices", "24G", "--cluster", ""],
        ["--ram", "64G"],
    ],
)
def test_usage_errors(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "qwen3-0.6b:Q8_0", *arguments]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("devices", "ram", "code", "message"),
    [("none", "64G", 0, ""), ("none", "1G", 3, "does not fit"), ("1M,1M", "64G", 0, ""), ("1M,1M", "1G", 3, "CUDA0")],
)
@pytest.mark.parametrize("command", ["map", "shard"])
def test_no_gpu_and_gpus_of_no_use_leave_the_cpu(
    command: str, devices: str, ram: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "qwen3-0.6b:Q8_0", "--devices", devices, "--ram", ram]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert ("CPU" in shown.out) == (code == 0)


def test_a_shard_needs_a_model_or_parameters() -> None:
    assert main(["shard", "--devices", "24G"]) == 2
    assert main(["shard", "qwen3-0.6b:Q8_0", "--params", "70B", "--devices", "24G"]) == 2


def test_parameters_alone_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", "--params", "8B", "--quant", "q4", "--devices", "2xrtx-4090-24g"]) == 0
    shown = capsys.readouterr()
    assert "estimated" in shown.err
    assert "tokens/s" in shown.out


@pytest.fixture
def nothing_available(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device(name="c", kind="cpu", host="h", memory_total_bytes=1 << 34, unavailable_reason="it is busy")
    empty = Cluster(hosts=(Host(name="h"),), devices=(cpu,))
    for command in ("map", "shard"):
        monkeypatch.setattr(f"pshard.cli.{command}.read_devices", lambda *_: empty)


@pytest.mark.usefixtures("nothing_available")
def test_the_empty_plan_is_printed_and_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", "qwen3-0.6b:Q8_0", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["strategy"] == {"kind": "data_parallel", "num_replicas": 0}
    assert document["shards"] == []
    assert main(["map", "qwen3-0.6b:Q8_0", "--json"]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "c is left out: it is busy" in shown.err
