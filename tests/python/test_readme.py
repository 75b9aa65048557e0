"""The README's example is what the command prints. Run as a program, this file brings it up to date."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
# Paths from the root, or of the package.
PATHS = re.compile(r"(?<![\w/.])((?:csrc|python|tests|bench|docs|cli|machine|model|launch|memory)/[\w./*-]*[\w*])")
TESTS = re.compile(r"\b(test_\w+\.py|\w+_test\.cpp|bench_\w+\.py)\b")
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


@cache
def tree() -> list[str]:
    """Paths of files and folders, from the root and of the package and the core."""
    below = [path for part in ("csrc", "python", "tests", "bench", "docs") for path in (ROOT / part).rglob("*")]
    roots = (ROOT, ROOT / "python" / "pshard", ROOT / "csrc")
    return [str(path.relative_to(root)) for root in roots for path in below if path.is_relative_to(root)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document: Path) -> None:
    text, paths = document.read_text(), tree()
    names = {Path(path).name for path in paths}
    assert not [name for name in PATHS.findall(text) if not fnmatch.filter(paths, name)]
    assert not [name for name in TESTS.findall(text) if name not in names]


if __name__ == "__main__":
    README.write_text(
        EXAMPLE.sub(
            lambda example: f"$ pshard {example['arguments']}\n{printed(example['arguments'])}", README.read_text()
        )
    )
