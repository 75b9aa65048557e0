"""``pshard show``, ``check`` and ``tier`` on registries of the pull request's planner."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_cases
import pytest
import registry_cases as cases

from pshard.cli import main
from pshard.registry.format import Registry, Section, render

NAME = "qwen3-30b-a3b-q4km_8000_8192_auto"


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    path = tmp_path / "sample.pshard_registry"
    path.write_bytes(cases.sample(NAME))
    return path


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, object]:
    assert main([*arguments, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", cases.SAMPLES)
def test_every_sample_is_shown(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "registry"
    path.write_bytes(cases.sample(name))
    shown = document(capsys, "show", str(path))
    text = cases.sample(name).decode()
    assert len(shown["sections"]) == text.count("[fingerprint=")
    variants = [variant for section in shown["sections"] for variant in section["variants"]]
    assert len(variants) == text.count("[variant ")
    tiers = [tier for variant in variants for tier in variant["tiers"]]
    assert len(tiers) == text.count("[tier ")
    assert sum(tier["viable"] for tier in tiers) == text.count("strategy=") - text.count("# n_ctx")
    for tier in tiers:
        if tier["viable"] and "OVERLONG" not in name:
            layers = [layer for stretch in tier["layers"] for layer in range(stretch["count"])]
            assert len(layers) == text.count(r"\..*=") // sum(t["viable"] for t in tiers)
            whole = [s for s in tier["layers"] if s["attention"] == s["ffn"] == s["kv"] == "pinned"]
            assert sum(stretch["count"] for stretch in whole) == tier["n_pinned"]
    assert main(["show", str(path)]) == 0
    assert "fault" in capsys.readouterr().out


def test_what_a_tier_pins(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(registry)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if "_ATTN" in line or "_LAYER" in line}
    assert rows["1"].endswith("0-17 pinned; 18-47 attention pinned, FFN CPU; head pinned")
    assert rows["1024"].endswith("0-17 pinned; 18-47 lanes 1 and 2; head CPU")
    assert rows["8192"].endswith("0-12 pinned; 13-47 attention pinned, FFN lane 1; head CPU")


def test_a_boundary_layer_is_shown_as_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "registry"
    data = cases.sample("tiny-qwen3_60_2048").replace(
        b"CUDA_Host:0,blk\\.1\\.", b"C:0,blk\\.1\\.ffn_down.*=C:2,blk\\.1\\.", 1
    )
    path.write_bytes(data)
    shown = document(capsys, "show", str(path))
    layers = shown["sections"][0]["variants"][0]["tiers"][0]["layers"]
    assert layers[1] == {"first": 1, "count": 1, "attention": "pinned", "ffn": "partly lane 2", "kv": "pinned"}


def test_check_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gguf_cases.write_oracle_model("qwen3-30b-a3b-q4km", tmp_path / "model.gguf")
    registry = tmp_path / "model.gguf.tensor_overrides.pshard_registry"
    registry.write_bytes(cases.sample(NAME))
    found = document(capsys, "check", str(model), str(model), code=1)
    assert not found["is_sound"]
    assert {fault["kind"] for fault in found["faults"] if not fault["is_note"]} >= {"never_uploaded"}
    arguments = ["--gpu", "rtx-3060-12g", "--ram", "128G@51GB/s", "--cpu", "8c", "--pcie", "4x16"]
    registry.unlink()
    from pshard.machine.machine import load_machine
    from pshard.model.model import read_model
    from pshard.planning.planner import plan
    from pshard.registry.write import write_plan

    options = dict(zip([name.lstrip("-") for name in arguments[::2]], arguments[1::2], strict=True))
    machine = load_machine(**options)
    assert write_plan(plan(read_model(model), machine, vram_bytes=8 << 30)).path == registry
    assert document(capsys, "check", str(registry), str(model))["is_sound"]
    # the same plans are of no use for another model
    other = gguf_cases.write_oracle_model("llama3-8b-norf-q4km", tmp_path / "other.gguf")
    kinds = {fault["kind"] for fault in document(capsys, "check", str(registry), str(other), code=1)["faults"]}
    assert kinds >= {"fingerprint_differs", "no_such_layer"}


def test_tier_follows_the_runtimes_rules(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "tier", str(registry), "--n-tokens", "1")
    assert (found["tier"], found["strategy"], found["variant_budget_mib"]) == (1, "STATIC_ATTNPRIO_ALLMODELS", 8000)
    found = document(capsys, "tier", str(registry), "--n-tokens", "3000", "--budget", "9000")
    assert (found["tier"], found["n_ubatch"]) == (4096, 4096)
    assert found["prompt_seconds"] == pytest.approx(4096 / 3715.72)
    found = document(capsys, "tier", str(registry), "--n-tokens", "100", "--budget", "7850")
    assert (found["variant_budget_mib"], found["tiers"], found["tier"]) == (0, [16, 512, 4096, 8192], 512)
    assert main(["tier", str(registry), "--n-tokens", "100", "--budget", "100"]) == 1
    assert "stock llama.cpp" in capsys.readouterr().err
    assert main(["tier", str(registry), "--n-tokens", "100", "--fingerprint", "0x1"]) == 1
    assert main(["tier", str(registry), "--n-tokens", "0"]) == 2


def test_a_cache_for_no_tokens_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tier = cases.tier(0, 0)
    section = Section(fingerprint=7, settings=cases.SETTINGS, variants=(cases.variant(200, 0, tier),))
    path = tmp_path / "registry"
    path.write_bytes(render(Registry((section,))))
    model = ["--model", "qwen3-0.6b:Q8_0", "--machine", "rtx-3060-12g"]
    assert main(["tier", str(path), "--n-tokens", "1", *model]) == 2
    assert "holds none" in capsys.readouterr().err
    assert main(["check", str(path), "qwen3-0.6b:Q8_0"]) == 1
    assert "serves no batch" in capsys.readouterr().out


def test_tier_prices_the_change_to_decode(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--model", "qwen3-30b-a3b:Q4_K_M", "--machine", "rtx-3060-12g"]
    found = document(capsys, "tier", str(registry), "--n-tokens", "3000", *machine)
    # five more layers' experts and the head become resident
    assert 1 << 30 < found["switch_bytes"] < 2 << 30
    assert 0.0 < found["switch_seconds"] < 1.0
    assert document(capsys, "tier", str(registry), "--n-tokens", "1", *machine)["switch_bytes"] == 0


@pytest.mark.parametrize("arguments", [["show"], ["check", "qwen3-30b-a3b:Q4_K_M"], ["tier", "--n-tokens", "1"]])
def test_what_is_no_registry_is_an_error(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for path, reason in ((tmp_path / "none", "cannot be read"), (tmp_path, "cannot be read"), (empty, "is empty")):
        assert main([arguments[0], str(path), *arguments[1:]]) == 1
        printed = capsys.readouterr()
        assert not printed.out
        assert f"{path}" in printed.err and reason in printed.err
