"""docs/models.md and docs/execution.md: their tables of fields are those of the documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf_cases
import pytest
from run_cases import header

from pshard.cli import main
from pshard.run.host_backend import measure_host_backend

DOCS = Path(__file__).parents[2] / "docs"


def documented(section: str, page: str = "models.md") -> list[str]:
    text = (DOCS / page).read_text().partition(f"### `{section}`\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_fields_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    document = printed(capsys, "inspect", "glm-4.5-air:Q4_K_M")
    assert documented("inspect") == list(document)
    assert documented("layers[]") == list(document["layers"][0])


def test_fields_of_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    document = printed(capsys, "models")
    assert list(document) == ["schema_version", "models"]
    assert documented("models[]") == list(document["models"][0])


def test_fields_of_reference_machines(capsys: pytest.CaptureFixture[str]) -> None:
    document = printed(capsys, "machines")
    assert list(document) == ["schema_version", "gpus", "hosts", "machines"]
    assert documented("gpus[]") == list(document["gpus"][0])
    assert documented("hosts[]") == list(document["hosts"][0])
    assert list(document["machines"][0]) == ["name", "gpu", "host"]


def test_fields_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure_host_backend.__kwdefaults__, "budget_seconds", 0.01)
    path = gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", *header())
    run = ("run", str(path), "--backend", "host", "--layers", "1,3", "--prompt", "4", "--generate", "2")
    document = printed(capsys, *run, "--passes", "1")
    assert documented("run", "execution.md") == list(document)
    assert documented("phases[]", "execution.md") == list(document["phases"][0])
