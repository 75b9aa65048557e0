"""docs/fit.md: its example and its table of fields. Run as a program, it brings the example up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_readme import EXAMPLE, printed

from pshard.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "fit.md"


def test_fields_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "qwen3-30b-a3b:Q4_K_M", "--devices", "8G", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert re.findall(r"^\| `([a-z_]+)` \|", PAGE.read_text(), flags=re.MULTILINE) == list(document)


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
