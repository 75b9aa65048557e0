"""docs/memory.md: its example, its tables of fields and errors. Run as a program, it brings the example up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gguf_cases import write_oracle_model, write_sparse
from memory_errors import FIRST, LAST, PAGE, error_table
from projector_cases import cases
from test_memory_check import fake
from test_readme import EXAMPLE, printed

from pshard.cli import main


def documented() -> dict[str, list[str]]:
    """Fields of each table of the page."""
    sections = re.split(r"^### `([^`]+)`$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {
        name: re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.MULTILINE)
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


@pytest.fixture
def document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A document with every part."""
    model = write_oracle_model("llama31-8b-q4km", tmp_path / "model.gguf")
    draft = write_oracle_model("qwen3-0.6b-q8_0", tmp_path / "draft.gguf")
    case = cases()["gemma3-4b"]
    keys = {k.removeprefix("clip."): v for k, v in case["metadata"].items() if k != "general.architecture"}
    tensors = [(name, tuple(shape), kind) for name, shape, kind in case["tensors"]]
    projector = write_sparse(tmp_path / "mmproj.gguf", "clip", keys, tensors)
    binary = fake(tmp_path, "echo 'Host 1 2 3 '")
    arguments = ["memory", str(model), "-c", "4096", "-md", str(draft), "--mmproj", str(projector), "--json"]
    assert main([*arguments, "--devices", "24G", "--check", binary]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_fields_are_those_of_the_page(document: dict[str, Any]) -> None:
    tables = documented()
    parts = {
        "document": document,
        "devices[]": document["devices"][0],
        "allowances[]": document["allowances"][0],
        "projector": document["projector"],
        "totals[]": document["totals"][0],
        "check": document["check"],
        "rows[]": document["check"]["rows"][0],
    }
    assert {name: sorted(fields) for name, fields in tables.items()} == {
        name: sorted(part) for name, part in parts.items()
    }
    assert set(document["host"]) == set(document["devices"][0])
    without = {"schema_version", "program", "ignored", "fits", "totals", "check"}
    assert set(document["draft"]) == set(document) - without


def test_the_example_is_what_the_command_prints() -> None:
    example = EXAMPLE.search(PAGE.read_text())
    assert example is not None
    assert example["output"] == printed(example["arguments"])


def test_the_worked_example_adds_up() -> None:
    """The page's layout of the compute buffer: each part begins where the one before it ends."""
    rows = [tuple(map(int, row)) for row in re.findall(r"^\| (\d+) \| (\d+) \|", PAGE.read_text(), flags=re.MULTILINE)]
    assert [at for at, _ in rows] == [sum(n_bytes for _, n_bytes in rows[:i]) for i in range(len(rows))]
    total = sum(n_bytes for _, n_bytes in rows)
    assert f"The end of it, {total} bytes" in PAGE.read_text()
    assert f"{total / 2**20:.1f}" in printed("memory llama-3.1-8b:Q4_K_M -c 16384 -np 1 -fa on --devices 8G")


def test_the_error_table_is_todays() -> None:
    table = PAGE.read_text().partition(FIRST)[2].partition(LAST)[0]
    assert table.splitlines() == error_table(), "run: python bench/bench_memory.py --write"


if __name__ == "__main__":
    Path(PAGE).write_text(
        EXAMPLE.sub(lambda found: f"$ pshard {found['arguments']}\n{printed(found['arguments'])}", PAGE.read_text())
    )
