"""The system that detection looks at: its files, its environment, its tools. A folder can stand in for the root."""

from __future__ import annotations

import os
import platform
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import IO

MAX_FILE_BYTES = 4 * 2**20
MAX_OUTPUT_BYTES = 4 * 2**20
TOOL_SECONDS = 5.0
KILL_SECONDS = 1.0
# More bytes than any memory has.
MAX_NUMBER = 2**60


class ToolError(Exception):
    """A tool gave no answer; the message says why in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What can be read and run.

    Attributes
    ----------
    root : Path
        Where ``sys``, ``proc`` and ``dev`` lie.
    environ : mapping
        Environment variables.
    os_name : str
        As `sys.platform`.
    host_name : str
    may_execute : bool
        False: tools are not run, and say so.
    has_libraries : bool
        False: NVML and the CUDA runtime, which know only the machine that they are on, are not asked.
    tool_seconds : float
        After which a tool is ended.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    os_name: str = sys.platform
    host_name: str = field(default_factory=platform.node)
    may_execute: bool = True
    has_libraries: bool = True
    tool_seconds: float = TOOL_SECONDS

    def path(self, absolute: str) -> Path:
        """Return where an absolute path lies under the root."""
        return self.root / absolute.lstrip("/")

    def text(self, path: str | Path) -> str:
        """Return what a file holds, without white space around it; empty where it cannot be read."""
        try:
            with self._place(path).open("rb") as file:
                return file.read(MAX_FILE_BYTES).decode("utf-8", errors="replace").strip("\0 \t\r\n")
        except (OSError, ValueError):
            return ""

    def number(self, path: str | Path) -> int | None:
        """Return the number that a file holds, decimal or like 0x1af4; None where it holds none."""
        return whole_number(self.text(path))

    def amount(self, path: str | Path) -> int | None:
        """Return the number of at least 0 that a file holds; None where it holds none."""
        return count(self.text(path))

    def entries(self, folder: str, pattern: str) -> list[Path]:
        """Return entries of a folder in the order in which people count them: card2 before card10."""
        try:
            found = list(self.path(folder).glob(pattern))
        except (OSError, ValueError):
            return []
        return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _split(path.name)])

    def target_name(self, link: Path) -> str:
        """Return the name of what a symbolic link leads to, as of ``driver``; empty where it is none."""
        try:
            return link.readlink().name
        except OSError:
            return ""

    def refusal(self, *files: str | Path) -> str:
        """Say why a device file cannot be opened by this user; empty where all can be, or do not exist."""
        for file in files:
            path = self._place(file)
            if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                return f"no permission for /{path.relative_to(self.root)}"
        return ""

    def find_tool(self, name: str, *others: str) -> str | None:
        """Return the path of a tool: on the PATH, or one of the places where its package installs it."""
        found = shutil.which(name, path=self.environ.get("PATH", os.defpath))
        if found is not None:
            return found
        return next((str(self.path(other)) for other in others if os.access(self.path(other), os.X_OK)), None)

    def run(self, name: str, *arguments: str, others: tuple[str, ...] = ()) -> str:
        """Run a tool and return what it prints.

        Parameters
        ----------
        name : str
        *arguments : str
        others : tuple of str
            Where it may be, if it is not on the PATH.

        Raises
        ------
        ToolError
            It may not be run, is absent, fails, or takes too long, and is then ended with all that it started.
        """
        tool = self.find_tool(name, *others)
        if tool is None:
            message = f"no {name}"
            raise ToolError(message)
        if not self.may_execute:
            message = f"{name} not run (--no-exec)"
            raise ToolError(message)
        try:
            process = subprocess.Popen(
                [tool, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**self.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            message = f"{name} cannot be run: {error}"
            raise ToolError(message) from None
        return _output(process, name, self.tool_seconds)

    def _place(self, path: str | Path) -> Path:
        return self.path(path) if isinstance(path, str) else path


def whole_number(text: str) -> int | None:
    """Return the number that a text is, decimal or like 0x1af4; None for what is none, or absurd."""
    try:
        number = int(text, 16 if text.strip().lower().startswith("0x") else 10)
    except ValueError:
        return None
    return number if abs(number) <= MAX_NUMBER else None


def mebibytes(text: str) -> int | None:
    """Return bytes of a number of MiB, with its unit or without; None for what is none."""
    number = whole_number(text.strip().partition(" ")[0])
    return number * 2**20 if number is not None and 0 <= number <= MAX_NUMBER >> 20 else None


def count(value: object) -> int | None:
    """Return a number of at least 0 that JSON holds as such or as text; None for all else."""
    number = whole_number(value) if isinstance(value, str) else value
    return number if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MAX_NUMBER else None


def _split(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def _output(process: subprocess.Popen[bytes], name: str, seconds: float) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    try:
        content = _read_until(process.stdout, deadline)
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        message = f"{name} gave no answer in {seconds:g} s"
        raise ToolError(message) from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, SIGKILL)
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):  # stuck in a driver, where no signal reaches it
            process.wait(KILL_SECONDS)
    if code != 0:
        message = f"{name} failed with code {code}"
        raise ToolError(message)
    return content.decode("utf-8", errors="replace")


def _read_until(stream: IO[bytes], deadline: float) -> bytes:
    """Read to the end, which a tool that hangs, or never stops to write, does not reach in time."""
    content = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(content) <= MAX_OUTPUT_BYTES and selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(stream.fileno(), 2**16)
            if not chunk:
                return bytes(content)
            content += chunk
    raise TimeoutError
