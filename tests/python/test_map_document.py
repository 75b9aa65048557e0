"""docs/map.md: its example and its tables of fields. Run as a program, it brings the example up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_readme import EXAMPLE, printed

from pshard.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "map.md"
IMAGES = ["max_image_shape", "max_num_images"]


def fields(section: str) -> list[str]:
    text = PAGE.read_text().split(f"### `{section}`\n", 1)[1].split("\n### ", 1)[0]
    return re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.MULTILINE)


def test_fields_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["map", "qwen3-30b-a3b:Q4_K_M", "--devices", "rtx-4060-8g,rtx-3060-12g", "--objective", "decode"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert fields("document") == list(document)
    assert [field for field in fields("parameters") if field not in IMAGES] == list(document["parameters"])
    for layers in (document["map"], document["greedy"], document["llama_cpp"]["map"]):
        assert fields("map") == list(layers)
        for device in layers["devices"]:
            assert fields("devices[]") == list(device)
            assert device["used_bytes"] + device["left_bytes"] == device["free_bytes"]


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
