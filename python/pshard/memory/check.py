"""What a llama.cpp binary itself says that a launch takes: its print mode, run and read.

``llama-fit-params --fit-print on`` loads a model without allocating it, and prints a line per device and one for the
host: name, then MiB (rounded down) of weights, context and compute buffers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from pshard.errors import PshardError
from pshard.memory.placed import HOST
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard.launch.line import LaunchLine
    from pshard.memory.report import MemoryReport

PROGRAM = "llama-fit-params"
TIMEOUT_SECONDS = 120.0
# A device's name has no spaces; llama.cpp leaves one at the end of each line.
_ROW = re.compile(r"(?P<name>\S+) (?P<model>\d+) (?P<context>\d+) (?P<compute>\d+) ?")


class CheckError(PshardError):
    """A binary could not be asked."""


class CheckRow(Struct, frozen=True, kw_only=True):
    """One memory in both columns, in MiB rounded down as the binary prints them.

    Attributes
    ----------
    name : str
    model_mib, context_mib, compute_mib : int
        By pshard.
    engine_model_mib, engine_context_mib, engine_compute_mib : int
        By the binary.
    """

    name: str
    model_mib: int
    context_mib: int
    compute_mib: int
    engine_model_mib: int
    engine_context_mib: int
    engine_compute_mib: int

    @property
    def differences_mib(self) -> tuple[int, int, int]:
        """Pshard's figures less the binary's."""
        return (
            self.model_mib - self.engine_model_mib,
            self.context_mib - self.engine_context_mib,
            self.compute_mib - self.engine_compute_mib,
        )


def print_arguments(line: LaunchLine, *, has_gpu: bool = True) -> tuple[list[str], list[str]]:
    """Say a launch line in the flags of the print mode.

    Parameters
    ----------
    line : LaunchLine
    has_gpu : bool
        Without one, weights that the CPU can repack would lie in a buffer that the table does not list; ``--no-repack``
        leaves them as they are, at the same number of bytes.

    Returns
    -------
    arguments : list of str
        Without the binary.
    left_out : list of str
        What the print mode has no flags for.
    """
    arguments = ["-m", str(line.model), "-c", str(line.n_ctx), "-b", str(line.n_batch), "-ub", str(line.n_ubatch)]
    arguments += ["-np", str(line.n_seq_max), "-fa", line.flash_attn, "-ctk", line.type_k, "-ctv", line.type_v]
    arguments += ["-ngl", "all" if line.n_gpu_layers < 0 else str(line.n_gpu_layers)]
    arguments += (
        ["-ot", ",".join(f"{pattern}={buffer}" for pattern, buffer in line.overrides)] if line.overrides else []
    )
    arguments += ["-sm", line.split_mode, "-mg", str(line.main_gpu)]
    if line.tensor_split is not None:
        arguments += ["-ts", ",".join(f"{share:g}" for share in line.tensor_split)]
    if line.device_names is not None:
        arguments += ["-dev", ",".join(line.device_names) or "none"]
    for is_set, flag in (
        (line.swa_full, "--swa-full"),
        (not line.offload_kqv, "--no-kv-offload"),
        (not line.op_offload, "--no-op-offload"),
        (not line.host_buffer, "--no-host"),
        (not line.repack or not has_gpu or not line.host_buffer or line.device_names == (), "--no-repack"),
    ):
        arguments += [flag] if is_set else []
    left_out = [
        what
        for is_left_out, what in (
            (line.kv_unified, "a unified cache"),
            (line.n_outputs_max is not None, f"logits for {line.n_outputs_max} tokens only"),
            (line.draft_model is not None, "the draft model"),
            ("draft-mtp" in line.speculation and line.draft_model is None, "the draft that the model brings"),
            (line.projector is not None, "the projector"),
            (bool(line.adapters), "the adapters"),
            (bool(line.control_vectors), "the control vector"),
        )
        if is_left_out
    ]
    return [*arguments, "--fit-print", "on"], left_out


def comparable(line: LaunchLine) -> LaunchLine:
    """Return the line that the print mode answers for: what it has no flags for is left out."""
    return replace(
        line,
        program=PROGRAM,
        kv_unified=False,
        embeddings=False,
        draft_model=None,
        projector=None,
        adapters=(),
        control_vectors=(),
        prompt_cache_mib=0,
        speculation=(),
    )


def ask(binary: str, arguments: list[str], timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, tuple[int, int, int]]:
    """Run a binary's print mode.

    Parameters
    ----------
    binary : str
        Path or name of ``llama-fit-params``, or of the ``llama`` that has it as a command.
    arguments : list of str
        As `print_arguments` returns them.
    timeout_seconds : float

    Returns
    -------
    dict
        Name of a device, or ``"Host"``: MiB of weights, context and compute buffers.

    Raises
    ------
    CheckError
        The binary is missing, fails, does not end in time, or prints something else.
    """
    found = shutil.which(binary)
    if found is None:
        message = f"{binary}: no such program. Give the path of {PROGRAM}, which llama.cpp builds into build/bin."
        raise CheckError(message)
    command = [found, *(["fit-params"] if Path(found).stem == "llama" else []), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        message = (
            f"{binary} did not end within {timeout_seconds:g} s. Give it more time (--check-timeout), or look at it."
        )
        raise CheckError(message) from None
    except OSError as error:
        message = f"{binary} cannot be run: {error.strerror}. Give the path of a {PROGRAM} for this machine."
        raise CheckError(message) from None
    if done.returncode != 0:
        message = (
            f"{binary} ended with code {done.returncode}: {_last_line(done.stderr) or _last_line(done.stdout)!r}. "
            f"It must be a {PROGRAM} with the option --fit-print, and take this launch line."
        )
        raise CheckError(message)
    rows = read_print(done.stdout)
    if HOST not in rows:
        message = (
            f"{binary} printed no table of memory but {_last_line(done.stdout)!r}. It must be a {PROGRAM} with the "
            "option --fit-print."
        )
        raise CheckError(message)
    return rows


def read_print(text: str) -> dict[str, tuple[int, int, int]]:
    """Read the table of a print mode; lines that are no rows of it are passed over."""
    rows = {}
    for line in text.splitlines():
        if row := _ROW.fullmatch(line):
            rows[row["name"]] = int(row["model"]), int(row["context"]), int(row["compute"])
    return rows


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def compare(report: MemoryReport, engine: dict[str, tuple[int, int, int]]) -> tuple[CheckRow, ...]:
    """Put a report and a binary's table side by side, memory by memory; one that either lacks counts as empty there."""
    ours = {
        memory.name: (memory.model_bytes // MIB, memory.context_bytes // MIB, memory.compute_bytes // MIB)
        for memory in (*report.devices, report.host)
    }
    nothing = (0, 0, 0)
    rows = []
    for name in dict.fromkeys([*(name for name in (*ours, *engine) if name != HOST), HOST]):
        model, context, compute = ours.get(name, nothing)
        engine_model, engine_context, engine_compute = engine.get(name, nothing)
        rows.append(
            CheckRow(
                name=name,
                model_mib=model,
                context_mib=context,
                compute_mib=compute,
                engine_model_mib=engine_model,
                engine_context_mib=engine_context,
                engine_compute_mib=engine_compute,
            )
        )
    return tuple(rows)
