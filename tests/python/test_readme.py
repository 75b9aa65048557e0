"""The README's example is what the command prints. Run as a program, this file brings it up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
EXAMPLE = re.compile(r"(?<=<!-- example -->\n```\n)\$ pshard (?P<arguments>.+)\n(?P<output>(?:.*\n)*?)(?=```)")


def printed(arguments: str) -> str:
    """What the command prints on a terminal of 100 columns, without trailing spaces."""
    result = subprocess.run(
        [sys.executable, "-m", "pshard", *arguments.split()],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def test_the_example_is_what_the_command_prints() -> None:
    example = EXAMPLE.search(README.read_text())
    assert example is not None
    assert example["output"] == printed(example["arguments"])


if __name__ == "__main__":
    README.write_text(
        EXAMPLE.sub(
            lambda example: f"$ pshard {example['arguments']}\n{printed(example['arguments'])}", README.read_text()
        )
    )
