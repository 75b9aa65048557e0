"""``pshard devices``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cluster_file import TWO_HOSTS

from pshard.cli import main
from pshard.cluster.link_references import link_sheets
from pshard.cluster.toml_reading import read_cluster

DOCS = Path(__file__).parents[2] / "docs" / "devices.md"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["devices", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_this_machine_is_listed_with_what_was_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = run(capsys, "--no-exec")
    assert code == 0
    assert text.splitlines()[0].split()[:3] == ["device", "kind", "product"]
    assert any(line.startswith("CPU ") and line.rstrip().endswith("yes") for line in text.splitlines())
    assert "not macOS" in text
    assert "hint" not in errors


def test_json_holds_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--json")
    document = json.loads(text)
    assert code == 0
    assert document["schema_version"] == 1
    assert list(document) == ["schema_version", "hosts", "devices", "links", "ports", "looked_for", "seconds", "notes"]
    cpu = document["devices"][-1]
    assert (cpu["kind"], cpu["family"], cpu["available"]) == ("cpu", "cpu", True)
    assert {fact["name"]: fact["origin"] for fact in cpu["facts"]}["memory_total_bytes"].startswith(("/proc", "/sys"))
    assert [entry["kind"] for entry in document["looked_for"]][-1] == "CPU"


def test_a_file_to_edit_is_written_and_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cluster.toml"
    code, text, errors = run(capsys, "--toml", "-o", str(path))
    assert code == 0
    assert f"note: written: {path}" in errors
    assert path.read_text().splitlines()[:2] == text.splitlines()[:2]
    code, again, _ = run(capsys, "--cluster", str(path), "--json")
    assert code == 0
    assert [device["kind"] for device in json.loads(again)["devices"]][-1] == "cpu"


def test_a_cluster_file_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(TWO_HOSTS)
    code, text, errors = run(capsys, "--cluster", str(path))
    assert code == 0
    assert text.splitlines()[0].split()[:2] == ["host", "device"]
    assert " ".join(next(line for line in text.splitlines() if line.startswith("nvlink")).split()) == (
        "nvlink gpu0 - gpu1 47.81 0.6 reference"
    )
    assert "note: slice: nothing tells the slot" in errors


def test_a_list_of_devices_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--devices", "rtx-4090-24g,12G", "--json")
    assert code == 0
    assert [device["name"] for device in json.loads(text)["devices"]] == ["CUDA0", "CUDA1", "CPU"]


def test_what_cannot_be_read_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('[[hosts]]\nname = "a"\nmemry = 1\n')
    code, text, errors = run(capsys, "--cluster", str(path))
    assert (code, text) == (1, "")
    assert errors == f"pshard: {path}:3: [[hosts]] has no key 'memry'; did you mean memory?\n"
    assert run(capsys, "--devices", "24Q")[0] == 2
    assert run(capsys, "--devices", "24G", "--cluster", str(path))[0] == 2


def test_the_documents_example_is_a_cluster(tmp_path: Path) -> None:
    example = DOCS.read_text().partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "cluster.toml"
    path.write_text(example)
    cluster = read_cluster(path)
    assert cluster.host_names == ("alpha", "beta")
    assert cluster.path("gpu0", "mac").links[1].kind == "ethernet"


def test_the_document_names_every_key_and_kind() -> None:
    from msgspec.structs import fields

    from pshard.cluster.cluster import KINDS, LINK_KINDS
    from pshard.cluster.toml_reading import DeviceEntry, HostEntry, LinkEntry

    text = DOCS.read_text()
    keys = {field.name for entry in (HostEntry, DeviceEntry, LinkEntry) for field in fields(entry)}
    for name in (*keys, *KINDS, *LINK_KINDS, *(sheet.generation for sheet in link_sheets() if sheet.kind != "pcie")):
        assert f"`{name}`" in text, name
