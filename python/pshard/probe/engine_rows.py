"""Rates that llama.cpp measured itself: the output of its ``test-backend-ops perf``.

With ``--output sql`` it prints a line of SQL for each operation; a table made of those, exported with a heading as CSV,
reads the same. (Its own ``--output csv`` leaves out the times.) Files are untrusted: nothing in them is executed, and
every field is checked before it is used. Names and meanings of the fields are those of llama.cpp's
``tests/test-backend-ops.cpp``.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import MachineError
from pshard.machine.profile import Series
from pshard.machine.rates import bits_per_weight, type_ids
from pshard.probe.measure import with_series
from pshard.probe.measured_series import MOST_OF_START

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pshard.machine.profile import Memory, Operation, Processor, Profile

    _Key = tuple[Operation, str, int | None]

MAX_FILE_BYTES = 64 * 2**20
TABLE = "test_backend_ops"
# The tool states a mean over a second or more and no spread; two runs of it, and two shapes, differ by as much.
SPREAD = 0.15

_INSERT = re.compile(rf"INSERT INTO {TABLE} \(([a-z_0-9, ]+)\) VALUES \('(.*)'\);")
_NEEDED = ("backend_name", "op_name", "op_params", "test_mode", "time_us")
# In these a product is one matrix times one; any other value is a batch of small ones, a view or a fusion.
_USUAL = {
    "bs": "[1,1]",
    "nr": "[1,1]",
    "per": "[0,1,2,3]",
    "k_v": "0",
    "o": "1",
    "src_overlap": "0",
    "m_v": "0",
    "pad": "0",
}
_OF_PARAMETERS = re.compile(r"(\w+)=(\[[^\]]*\]|[^,\[\]]*)(?:,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One operation as the engine measured it: on which backend, with how much work, in how many seconds.

    `batch` is that of a profile's series: rows, rows per expert in use, or query tokens; `depth` attention's cells.
    `weight_bytes` is what must be read at least once.
    """

    backend: str
    operation: Operation
    type: str
    batch: float
    flop: float
    weight_bytes: float
    seconds: float
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class EngineRows:
    """The rows of a file that a profile can use; `n_other` counts those of other operations, shapes and types."""

    path: Path
    rows: tuple[EngineRow, ...]
    n_other: int


def is_engine_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like the tool's output, by its first line that is not empty."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096).lstrip()
    except OSError:
        return False
    return head.startswith((b"CREATE TABLE", b"INSERT INTO")) or b"op_params" in head.partition(b"\n")[0]


def read_engine_rows(path: str | os.PathLike[str]) -> EngineRows:
    """Read the output of ``test-backend-ops perf --output sql``, or its table as CSV.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    EngineRows
        At least one row.

    Raises
    ------
    MachineError
        A file that cannot be read, has no times, or holds nothing of use; with the line and the value.
    """
    path = Path(path)
    rows, n_other = [], 0
    for number, fields in _records(path):
        missing = [name for name in _NEEDED if name not in fields]
        if missing:
            msg = (
                f"{path}:{number}: no {' and no '.join(missing)}; llama.cpp's own CSV leaves the times out, so run "
                "`test-backend-ops perf --output sql`"
            )
            raise MachineError(msg)
        if fields["test_mode"] != "perf" or fields.get("supported") == "0":
            continue
        row = _row(fields, f"{path}:{number}")
        if row is None:
            n_other += 1
        else:
            rows.append(row)
    if not rows:
        msg = (
            f"{path}: no product or attention that a profile can use among {n_other} rows of perf; run "
            "`test-backend-ops perf -o MUL_MAT --output sql`"
        )
        raise MachineError(msg)
    return EngineRows(path, tuple(rows), n_other)


def with_engine_rows(profile: Profile, found: EngineRows, n_threads: int) -> tuple[Profile, list[str]]:
    """Put the engine's rates in the place of a profile's own.

    Parameters
    ----------
    profile : Profile
    found : EngineRows
    n_threads : int
        CPU threads that the tool ran with, which it does not say: half of the logical processors unless it was changed.

    Returns
    -------
    Profile
        Series of an operation, type and layout that the engine measured are the engine's at its batches, and the
        profile's own outside of them. No product reads its weights faster than the profile's memory: the tool
        multiplies the same matrix again and again, and a large cache holds it.
    list of str
        What was replaced, held to the memory's rate and left out.

    Raises
    ------
    MachineError
        The profile has no figures for that thread count, or no row is of a processor that it describes.
    """
    sentences = []
    backends = sorted({row.backend for row in found.rows})
    used = [backend for backend in backends if backend == "CPU" or (profile.gpu and backend == _gpu_backend(backends))]
    if not used:
        has = "a CPU" if profile.gpu is None else "a CPU and a GPU"
        msg = f"{found.path}: rows of {', '.join(backends)}; the profile is of {has}, and takes CPU and CUDA0"
        raise MachineError(msg)
    for backend in used:
        on_gpu = backend != "CPU"
        processor = profile.gpu if on_gpu and profile.gpu is not None else profile.cpu
        memory = _memory(processor, None if on_gpu else n_threads, found.path)
        rows = [row for row in found.rows if row.backend == backend]
        series, held = _series(rows, processor, memory, str(found.path))
        profile, replaced = with_series(profile, series, on_gpu=on_gpu)
        new = ", ".join(dict.fromkeys(f"{entry.operation} {entry.type}" for entry in series))
        threads = "" if on_gpu else f" at {n_threads} thread{'s' if n_threads > 1 else ''}"
        sentences.append(f"Measured by llama.cpp on {backend}{threads}: {new}.")
        if replaced:
            sentences.append(f"They replace {'; '.join(replaced)}.")
        if held:
            sentences.append(
                f"{len(held)} products read their weights faster than memory gives them, from a cache: held to "
                f"{memory.bytes_per_second / 1e9:.1f} GB/s ({', '.join(sorted(held))})."
            )
    ignored = sorted(set(backends) - set(used))
    if ignored:
        sentences.append(f"Rows of {', '.join(ignored)} are left out.")
    if found.n_other:
        sentences.append(f"{found.n_other} rows of other operations, shapes and types are left out.")
    return profile, sentences


def _gpu_backend(backends: Sequence[str]) -> str:
    """Name of the first CUDA device among the backends; a plan is for one GPU."""
    return next((backend for backend in backends if backend.startswith("CUDA")), "CUDA0")


def _memory(processor: Processor, n_threads: int | None, path: Path) -> Memory:
    for entry in processor.memory:
        if entry.n_threads == n_threads:
            return entry
    known = ", ".join(str(entry.n_threads) for entry in processor.memory)
    msg = (
        f"{path}: the profile has no memory figures for {n_threads} threads, only for {known}; say what the tool ran "
        "with (--threads), or measure with as many (`pshard profile --threads`)"
    )
    raise MachineError(msg)


def _series(
    rows: Sequence[EngineRow], processor: Processor, memory: Memory, origin: str
) -> tuple[list[Series], set[str]]:
    points: dict[_Key, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    held = set()
    for row in rows:
        seconds = max(row.seconds - memory.op_seconds, (1.0 - MOST_OF_START) * row.seconds)
        reading = row.weight_bytes / memory.bytes_per_second
        if row.operation != "attention" and seconds < reading:
            seconds = reading
            held.add(f"{row.type} batch {row.batch:g}")
        points[row.operation, row.type, row.depth][row.batch].append((row.flop, seconds))
    own = [entry for entry in processor.series if entry.n_threads == memory.n_threads and entry.layout == "plain"]
    series = []
    for (operation, kind, depth), found in points.items():
        rates = {batch: _rate(operation, measured) for batch, measured in found.items()}
        spread = SPREAD
        alike = [entry for entry in own if (entry.operation, entry.type) == (operation, kind)]
        before = min(alike, key=lambda entry: abs(math.log((entry.depth or 1) / (depth or 1))), default=None)
        if before is not None:
            outside = {
                batch: rate
                for batch, rate in zip(before.batch, before.flop_per_second, strict=True)
                if not min(rates) <= batch <= max(rates)
            }
            rates |= outside
            spread = max(spread, before.spread) if outside else spread
        batches = tuple(sorted(rates))
        series.append(
            Series(
                operation=operation,
                type=kind,
                n_threads=memory.n_threads,
                depth=depth,
                batch=batches,
                flop_per_second=tuple(rates[batch] for batch in batches),
                source="imported",
                spread=spread,
                origin=f"llama.cpp's test-backend-ops, {origin}",
            )
        )
    return series, held


def _rate(operation: Operation, measured: Sequence[tuple[float, float]]) -> float:
    """FLOP/s over (FLOP, seconds) of several shapes; of attention the best: most query heads per key head."""
    if operation == "attention":
        return max(flop / seconds for flop, seconds in measured)
    return sum(flop for flop, _ in measured) / sum(seconds for _, seconds in measured)


# --- a file to rows ---------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the records of either form, with the numbers of their lines."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error})"
        raise MachineError(msg) from error
    if len(data) > MAX_FILE_BYTES:
        msg = f"{path}: more than {MAX_FILE_BYTES >> 20} MiB; this is no output of test-backend-ops"
        raise MachineError(msg)
    lines = data.decode("utf-8", errors="replace").splitlines()
    if any(line.startswith("INSERT INTO") for line in lines):
        # Other lines are the table's definition, and what the backends print among the rows.
        for number, line in enumerate(lines, start=1):
            if (found := _INSERT.fullmatch(line.strip())) is None:
                continue
            names, values = found[1].split(", "), found[2].split("', '")
            if len(names) != len(values):
                msg = f"{path}:{number}: {len(values)} values for {len(names)} columns; delete the line"
                raise MachineError(msg)
            yield number, dict(zip(names, values, strict=True))
        return
    head = next((index for index, line in enumerate(lines) if "op_params" in line), None)
    if head is None:
        msg = f"{path}: neither SQL nor CSV of test-backend-ops; run `test-backend-ops perf --output sql`"
        raise MachineError(msg)
    reader = csv.DictReader(lines[head:], restkey="", restval="")
    try:
        for fields in reader:
            yield head + reader.line_num, {name: value for name, value in fields.items() if isinstance(value, str)}
    except csv.Error as error:
        msg = f"{path}:{head + reader.line_num}: {error}; delete the line"
        raise MachineError(msg) from error


def _row(fields: Mapping[str, str], where: str) -> EngineRow | None:
    """Make a row of a record; None for an operation, a shape or a type that no profile holds."""
    parameters = dict(_OF_PARAMETERS.findall(fields["op_params"]))
    read = {"MUL_MAT": _product, "MUL_MAT_ID": _experts, "FLASH_ATTN_EXT": _attention}.get(fields["op_name"])
    try:
        seconds = float(fields["time_us"]) * 1e-6
        work = None if read is None else read(parameters)
    except (KeyError, ValueError, ArithmeticError) as error:
        msg = f"{where}: {fields['op_name']} cannot be read ({error}); delete the line: {fields['op_params'][:80]!r}"
        raise MachineError(msg) from error
    if work is None:
        return None
    operation, kind, batch, flop, weight_bytes, depth = work
    if not (math.isfinite(seconds) and seconds > 0.0 and flop > 0.0):
        msg = f"{where}: time_us = {fields['time_us']} for {flop:g} FLOP; delete the line"
        raise MachineError(msg)
    return EngineRow(
        backend=fields["backend_name"],
        operation=operation,
        type=kind,
        batch=batch,
        flop=flop,
        weight_bytes=weight_bytes,
        seconds=seconds,
        depth=depth,
    )


_Work = tuple["Operation", str, float, float, float, int | None]


def _type(name: str) -> str | None:
    upper = name.upper()
    return upper if upper in type_ids() else None


def _is_usual(parameters: Mapping[str, str]) -> bool:
    return all(parameters.get(name, value) == value for name, value in _USUAL.items())


def _product(parameters: Mapping[str, str]) -> _Work | None:
    kind = _type(parameters["type_a"])
    if kind is None or parameters["type_b"] != "f32" or not _is_usual(parameters):
        return None
    n_rows, batch, n_columns = (int(parameters[name]) for name in "mnk")
    n_bytes = n_rows * n_columns * bits_per_weight(kind) / 8.0
    return "mul_mat", kind, float(batch), 2.0 * n_rows * n_columns * batch, n_bytes, None


def _experts(parameters: Mapping[str, str]) -> _Work | None:
    kind = _type(parameters["type_a"])
    if kind is None or parameters["type_b"] != "f32" or not _is_usual(parameters):
        return None
    n_rows, n_tokens, n_columns = (int(parameters[name]) for name in "mnk")
    n_expert, n_used = int(parameters["n_mats"]), int(parameters["n_used"])
    routes = n_tokens * n_used
    # The tool draws the experts of each token at random, as the cost model takes them.
    in_use = n_expert * (1.0 - (1.0 - n_used / n_expert) ** n_tokens)
    n_bytes = in_use * n_rows * n_columns * bits_per_weight(kind) / 8.0
    return "mul_mat_id", kind, routes / in_use, 2.0 * n_rows * n_columns * routes, n_bytes, None


def _attention(parameters: Mapping[str, str]) -> _Work | None:
    of_keys = parameters.get("type_K", parameters.get("type_KV", ""))
    # Of keys and values of two types no profile holds a series: it prices them by those of both.
    kind = _type(of_keys) if parameters.get("type_V", of_keys) == of_keys else None
    n_groups, n_sequences = (int(part) for part in parameters["nr23"].strip("[]").split(","))
    if kind is None or n_sequences != 1 or parameters.get("n_kv_max", "0") != "0":
        return None
    n_tokens, n_cells = int(parameters["nb"]), int(parameters["kv"])
    dimensions = int(parameters["hsk"]) + int(parameters["hsv"])
    n_heads = int(parameters["nh"]) * n_groups
    return "attention", kind, float(n_tokens), 2.0 * dimensions * n_heads * n_tokens * n_cells, 0.0, n_cells
