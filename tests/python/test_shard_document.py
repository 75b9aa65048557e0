"""docs/shard.md: its example and its tables of fields. Run as a program, it brings the example up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_readme import EXAMPLE, printed

from pshard.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "shard.md"


def fields(section: str) -> list[str]:
    text = PAGE.read_text().split(f"### `{section}`\n", 1)[1].split("\n### ", 1)[0]
    return re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.MULTILINE)


def test_fields_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["shard", "qwen3-30b-a3b:Q4_K_M", "--devices", "4xrtx-4060-8g", "--users", "4", "--emit", "llama-rpc"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert fields("document") == list(document)
    for shard in document["shards"]:
        assert fields("shards[]") == list(shard)
        assert shard["memory_bytes"] + shard["left_bytes"] == shard["capacity_bytes"]
    names = fields("document")
    common = names[names.index("shards") : names.index("all_reduce_seconds") + 1]
    for other in document["alternatives"]:
        assert list(other) == common
    assert document["fits_in_memory"]


def test_the_example_is_what_the_command_prints() -> None:
    example = EXAMPLE.search(PAGE.read_text())
    assert example is not None
    assert example["output"] == printed(example["arguments"])


if __name__ == "__main__":
    PAGE.write_text(
        EXAMPLE.sub(
            lambda example: f"$ pshard {example['arguments']}\n{printed(example['arguments'])}", PAGE.read_text()
        )
    )
