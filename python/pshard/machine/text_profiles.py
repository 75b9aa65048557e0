"""The planner pull request's profile files, ``cpu_profile.txt`` and ``gpu_profile.txt``, read and written.

Lines of figures, one per measured operation and shape, below comment lines that carry bandwidths. `imported.py` makes a
machine of them. Files are untrusted: every field is checked before it is used, and what cannot be is said.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CPU_VARIABLE, GPU_VARIABLE = "PSHARD_CPU_PROFILE", "PSHARD_GPU_PROFILE"
CPU_FILE, GPU_FILE = "cpu_profile.txt", "gpu_profile.txt"

MAX_FILE_BYTES = 16 * 2**20
MAX_LINE_CHARACTERS = 511  # of the pull request's own reader

_INTEGERS = ("N", "K", "B", "n_tokens", "ctx_len", "n_heads", "head_dim", "n_elements")
_CPU_FIELDS = 9 + len(_INTEGERS)
_CPU_FIELDS_LEAST = 9
_GPU_FIELDS = 6 + len(_INTEGERS)
_NUMBER = r"([0-9]+(?:\.[0-9]*)?)"
_THREADS = re.compile(
    rf"#\s+Threads=([0-9]+): DRAM_BW={_NUMBER} GB/s"
    rf"(?:, PCIe_Standalone={_NUMBER} GB/s, PCIe_Concurrent={_NUMBER} GB/s \(CPU_Eff={_NUMBER}%\))?"
)
_GPU_HEAD = re.compile(rf"# GPU Profiling \(backend=([^,]*),.*GPU_Memory_BW={_NUMBER} GB/s, GPU_Peak_Compute={_NUMBER}")
_MACHINE_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
_HEADER = re.compile(r"#\s+(\w+): (.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured operation, in the units of the file: GB/s, GFLOP/s, FLOP per byte. `n_threads` is 0 on a GPU.

    MUL_MAT_ID keeps the experts used in `n_tokens` and all experts in `ctx_len`; FLASH_ATTN, KV heads in `n_heads`.
    """

    operation: str
    type: str
    n_threads: int = 0
    intensity: float
    bandwidth: float
    gflops: float
    ridge: float = 0.0
    concurrent_gflops: float = 0.0
    concurrent_pcie: float = 0.0
    n: int = 0
    k: int = 0
    batch: int = 0
    n_tokens: int = 0
    ctx_len: int = 0
    n_heads: int = 0
    head_dim: int = 0
    n_elements: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidths:
    """What one thread count reads, in GB/s, and PCIe alone and beside it; None without a GPU. `cpu_share` is 0 to 1."""

    n_threads: int
    dram: float
    pcie: float | None = None
    pcie_concurrent: float | None = None
    cpu_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFile:
    """``cpu_profile.txt``. `headers` are the later comment lines by their names, untouched."""

    path: Path
    bandwidths: tuple[Bandwidths, ...]
    rows: tuple[Row, ...]
    headers: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def machine(self) -> dict[str, str]:
        """Fields of the Machine line of schema 2; empty where there is none."""
        found = _MACHINE_FIELD.findall(self.headers.get("Machine", ""))
        return {name: quoted or plain for name, quoted, plain in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFile:
    """``gpu_profile.txt``; bandwidth in GB/s, peak in GFLOP/s."""

    path: Path
    backend: str
    memory_bandwidth: float
    peak_gflops: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def find_text_profiles(folder: str | os.PathLike[str] = ".") -> tuple[Path | None, Path | None]:
    """Find the two files as the pull request does.

    Parameters
    ----------
    folder : str or path-like
        Looked in for a file that its variable does not name; the working directory by default.

    Returns
    -------
    tuple of (Path or None)
        CPU and GPU file, None for one that is missing. Only both together price anything.

    Raises
    ------
    MachineError
        A variable names a file that does not exist.
    """

    def find(variable: str, name: str) -> Path | None:
        named = os.environ.get(variable)
        path = Path(named) if named else Path(folder) / name
        if path.is_file():
            return path
        if named:
            message = f"{variable}={named}: no such file; correct the variable, or unset it"
            raise MachineError(message)
        return None

    return find(CPU_VARIABLE, CPU_FILE), find(GPU_VARIABLE, GPU_FILE)


def read_cpu_profile(path: str | os.PathLike[str]) -> CpuFile:
    """Read ``cpu_profile.txt``.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    CpuFile
        Without the rows that are all zero, which its notes count.

    Raises
    ------
    MachineError
        Not such a file: no bandwidths, a row that cannot be read; with line number and value.
    """
    path = Path(path)
    bandwidths: dict[int, Bandwidths] = {}
    headers: dict[str, str] = {}
    rows: list[Row] = []
    for number, line in _lines(path):
        if not line.startswith("#"):
            rows.append(_row(path, number, line, on_cpu=True))
        elif found := _THREADS.match(line):
            dram, pcie, concurrent, share = (None if text is None else float(text) for text in found.groups()[1:])
            bandwidths[int(found[1])] = Bandwidths(
                n_threads=int(found[1]),
                dram=dram or 0.0,
                pcie=pcie or None,
                pcie_concurrent=concurrent or None,
                cpu_share=share / 100.0 if share else None,
            )
        elif (found := _HEADER.match(line)) and found[1] not in headers:
            headers[found[1]] = found[2]
    if not bandwidths:
        message = (
            f"{path}: no line '#   Threads=N: DRAM_BW=.. GB/s'; this is no cpu_profile.txt of the planner pull request"
        )
        raise MachineError(message)
    for entry in bandwidths.values():
        if entry.dram <= 0.0 or entry.n_threads <= 0:
            message = f"{path}: Threads={entry.n_threads} with DRAM_BW={entry.dram} GB/s; profile the CPU again"
            raise MachineError(message)
    kept, notes = _without_zeros(path, rows)
    return CpuFile(path=path, bandwidths=tuple(bandwidths.values()), rows=kept, headers=headers, notes=notes)


def read_gpu_profile(path: str | os.PathLike[str]) -> GpuFile:
    """Read ``gpu_profile.txt``.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    GpuFile
        Without the rows that are all zero, which its notes count.

    Raises
    ------
    MachineError
        Not such a file: no header, a row that cannot be read; with line number and value.
    """
    path = Path(path)
    head: re.Match[str] | None = None
    rows: list[Row] = []
    for number, line in _lines(path):
        if not line.startswith("#"):
            rows.append(_row(path, number, line, on_cpu=False))
        else:
            head = head or _GPU_HEAD.match(line)
    if head is None or float(head[2]) <= 0.0 or float(head[3]) <= 0.0:
        missing = "no line '# GPU Profiling (.. GPU_Memory_BW=.. GB/s, GPU_Peak_Compute=.. GFLOP/s)' with figures"
        message = f"{path}: {missing}; this is no gpu_profile.txt of the planner pull request"
        raise MachineError(message)
    kept, notes = _without_zeros(path, rows)
    return GpuFile(
        path=path,
        backend=head[1],
        memory_bandwidth=float(head[2]),
        peak_gflops=float(head[3]),
        rows=kept,
        notes=notes,
    )


def cpu_text(file: CpuFile) -> str:
    """Return the text of ``cpu_profile.txt``, in the layout of the pull request's profiler."""
    counts = {entry.n_threads for entry in file.bandwidths}
    lines = [
        f"# Concurrent Profiling (threads={max(counts)}, batch_sizes=[{_batches(file.rows)}])",
        *(f"#   {name}: {value}" for name, value in file.headers.items()),
        "# Measured Bandwidths Per Thread Count:",
    ]
    for entry in file.bandwidths:
        line = f"#   Threads={entry.n_threads}: DRAM_BW={entry.dram:.1f} GB/s"
        if entry.pcie is not None and entry.pcie_concurrent is not None and entry.cpu_share is not None:
            line += f", PCIe_Standalone={entry.pcie:.1f} GB/s, PCIe_Concurrent={entry.pcie_concurrent:.1f} GB/s"
            line += f" (CPU_Eff={100.0 * entry.cpu_share:.1f}%)"
        lines.append(line)
    lines.append(
        "# op_name quant threads AI(FLOP/byte) BW(GB/s) GFLOP/s Ridge(FLOP/byte) Concurrent_GFLOP/s"
        f" PCIe_Concurrent_BW {' '.join(_INTEGERS)}"
    )
    for row in file.rows:
        lines.append(
            f"{row.operation} {row.type} {row.n_threads} {row.intensity:.4f} {row.bandwidth:.2f} {row.gflops:.2f}"
            f" {row.ridge:.4f} {row.concurrent_gflops:.2f} {row.concurrent_pcie:.2f} {_integers(row)}"
        )
    return "\n".join(lines) + "\n"


def gpu_text(file: GpuFile) -> str:
    """Return the text of ``gpu_profile.txt``, in the layout of the pull request's profiler."""
    lines = [
        f"# GPU Profiling (backend={file.backend}, batch_sizes=[{_batches(file.rows)}],"
        f" GPU_Memory_BW={file.memory_bandwidth:.1f} GB/s, GPU_Peak_Compute={file.peak_gflops:.1f} GFLOP/s)",
        f"# op_name quant AI(FLOP/byte) BW(GB/s) GFLOP/s Ridge(FLOP/byte) {' '.join(_INTEGERS)}",
    ]
    for row in file.rows:
        lines.append(
            f"{row.operation} {row.type} {row.intensity:.4f} {row.bandwidth:.2f} {row.gflops:.2f} {row.ridge:.4f}"
            f" {_integers(row)}"
        )
    return "\n".join(lines) + "\n"


def _integers(row: Row) -> str:
    return f"{row.n} {row.k} {row.batch} {row.n_tokens} {row.ctx_len} {row.n_heads} {row.head_dim} {row.n_elements}"


def _batches(rows: tuple[Row, ...]) -> str:
    return ",".join(str(batch) for batch in sorted({row.batch for row in rows if row.batch > 0}))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error})"
        raise MachineError(message) from error
    if len(data) > MAX_FILE_BYTES:
        message = f"{path}: more than {MAX_FILE_BYTES >> 20} MiB; this is no profile"
        raise MachineError(message)
    for number, raw in enumerate(data.decode("utf-8", errors="replace").split("\n"), start=1):
        line = raw.rstrip()
        if len(line) > MAX_LINE_CHARACTERS:
            message = (
                f"{path}:{number}: {len(line)} characters, at most {MAX_LINE_CHARACTERS} are read; shorten the line"
            )
            raise MachineError(message)
        if line:
            yield number, line


def _row(path: Path, number: int, line: str, *, on_cpu: bool) -> Row:
    fields = line.split()
    least, most = (_CPU_FIELDS_LEAST, _CPU_FIELDS) if on_cpu else (_GPU_FIELDS, _GPU_FIELDS)
    if not least <= len(fields) <= most:
        message = (
            f"{path}:{number}: {len(fields)} fields, a row has {most}; delete the row, or profile again: {line[:80]!r}"
        )
        raise MachineError(message)
    try:
        n_threads = int(fields[2]) if on_cpu else 0
        figures = [float(field) for field in fields[3 if on_cpu else 2 : most - len(_INTEGERS)]]
        integers = [int(field) for field in fields[most - len(_INTEGERS) :]]
    except ValueError as error:
        message = f"{path}:{number}: {error}; delete the row, or profile again: {line[:80]!r}"
        raise MachineError(message) from None
    if n_threads < 0 or any(not math.isfinite(x) or x < 0.0 for x in figures) or any(x < 0 for x in integers):
        message = f"{path}:{number}: a negative or infinite figure; delete the row, or profile again: {line[:80]!r}"
        raise MachineError(message)
    figures += [0.0] * (6 - len(figures))
    integers += [0] * (len(_INTEGERS) - len(integers))
    n, k, batch, n_tokens, ctx_len, n_heads, head_dim, n_elements = integers
    return Row(
        operation=fields[0],
        type=fields[1],
        n_threads=n_threads,
        intensity=figures[0],
        bandwidth=figures[1],
        gflops=figures[2],
        ridge=figures[3],
        concurrent_gflops=figures[4],
        concurrent_pcie=figures[5],
        n=n,
        k=k,
        batch=batch,
        n_tokens=n_tokens,
        ctx_len=ctx_len,
        n_heads=n_heads,
        head_dim=head_dim,
        n_elements=n_elements,
    )


def _without_zeros(path: Path, rows: list[Row]) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Leave out what the profiler skipped: it writes such shapes with zeros, which would price them at nothing."""
    kept = tuple(row for row in rows if row.gflops > 0.0)
    if len(kept) == len(rows):
        return kept, ()
    return kept, (f"{path.name}: {len(rows) - len(kept)} rows of zeros, for shapes that were skipped, are left out.",)
