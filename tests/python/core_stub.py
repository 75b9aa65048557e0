"""Write ``python/pshard/_core.pyi`` from the installed extension: ``python tests/python/core_stub.py``.

pybind11-stubgen reads the signatures; what it writes is then made fit for mypy and for readers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from enum import Enum
from pathlib import Path

from pshard import _core

STUB = Path(__file__).parents[2] / "python" / "pshard" / "_core.pyi"


def generate() -> str:
    """Text of the stub.

    Raises
    ------
    RuntimeError
        A signature shows a C++ type: its class is bound later than the function that names it.
    """
    command = [sys.executable, "-m", "pybind11_stubgen", "pshard._core", "--exit-code"]
    with tempfile.TemporaryDirectory() as folder:
        # enumerations occur in defaults, written as "<Basis.measured: 0>"
        options = ["--enum-class-locations", r"\w+:pshard._core", "--output-dir", folder]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        text = (Path(folder) / "pshard" / "_core.pyi").read_text()
    return tidy(text)


def tidy(text: str) -> str:
    """Types as a caller thinks of them, and enumerations as type checkers want them."""
    text = text.replace("typing.SupportsInt | typing.SupportsIndex", "int")
    text = text.replace("typing.SupportsFloat | typing.SupportsIndex", "float")
    # equality is defined between any two objects
    text = re.sub(r"(def __(?:eq|ne)__\(self, \w+): [^)]+\)", r"\1: object)", text)
    text = re.sub(r"(-> |: )(list|dict|tuple)(?=[:,)=])", _any_of, text)
    text = re.sub(r"^class (\w+)\(enum\.\w+\):\n(?:    .*\n)+", _enumeration, text, flags=re.MULTILINE)
    # the one value that differs between builds
    return re.sub(r"^(built_with_cuda: bool) .*", r"\1", text, flags=re.MULTILINE)


def _any_of(match: re.Match[str]) -> str:
    arguments = {"list": "typing.Any", "dict": "typing.Any, typing.Any", "tuple": "typing.Any, ..."}[match[2]]
    return f"{match[1]}{match[2]}[{arguments}]"


def _enumeration(match: re.Match[str]) -> str:
    kind = getattr(_core, match[1])
    assert issubclass(kind, Enum)
    members = "".join(f"    {member.name} = {member.value}\n" for member in kind)
    return match[0].partition("\n")[0] + "\n" + members


if __name__ == "__main__":
    STUB.write_text(generate())
