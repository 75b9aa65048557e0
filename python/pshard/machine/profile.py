"""Machine profile files: their schema, reading and writing.

A profile is JSON. docs/profile.md describes it for people; the structs below are the schema. Every entry says where it
comes from, and every rate is what a kernel or a copy reaches, beside the peaks that nothing may exceed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from pshard.atomic_file import write_atomically
from pshard.errors import MachineError
from pshard.machine.profile_checks import problems

SCHEMA_VERSION = 1

Source = Literal["measured", "imported", "reference", "estimated"]
Layout = Literal["plain", "interleaved"]
# The kinds of scans of recurrent layers that have rates of their own.
Scan = Literal["mamba", "mamba2", "delta_net"]
Operation = Literal["mul_mat", "mul_mat_id", "attention", Scan]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
SCANS: tuple[Scan, ...] = get_args(Scan)

MAX_PROFILE_BYTES = 64 * 2**20


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Sample(_Record, frozen=True, kw_only=True):
    """Seconds of one piece of work, repeated.

    Attributes
    ----------
    median_seconds, minimum_seconds : float
        Of one repetition.
    spread : float
        Half the distance between the 16th and the 84th percentile, relative to the median.
    drift : float
        Distance between the medians of the first and the second half, relative to the median.
    count : int
        Repetitions, without those that warmed up.
    is_settled : bool
        True: they went on until the spread was small enough. False: until their time was up.
    is_noisy : bool
        Spread or drift say that something else ran, or that clocks changed.
    """

    median_seconds: float
    minimum_seconds: float
    spread: float
    count: int
    drift: float = 0.0
    is_settled: bool = False
    is_noisy: bool = False


class Entry(_Record, frozen=True, kw_only=True):
    """What every entry of a profile carries.

    Attributes
    ----------
    source : {"measured", "imported", "reference", "estimated"}
        Where the figure comes from; estimated: from those of other types.
    spread : float
        Relative half-width of its range, at least 0 and below 1.
    origin : str
        Tool, document or reason, for a person.
    samples : tuple of Sample
        What was measured for it, in the order of its values: one each, or several for a value that was made from
        several. The values are made from the medians.
    """

    source: Source
    spread: float = 0.0
    origin: str = ""
    samples: tuple[Sample, ...] = ()


class Figure(Entry, frozen=True, kw_only=True):
    """One number; its unit is in the name of the field that holds it."""

    value: float


class Capacities(Entry, frozen=True, kw_only=True):
    """Bytes of memory; `vram_bytes` is 0 without a GPU, `page_lock_bytes` is what the driver will page-lock."""

    ram_bytes: int
    vram_bytes: int = 0
    page_lock_bytes: int = 0


class Memory(Entry, frozen=True, kw_only=True):
    """Streaming reads and the cost of starting an operation; on the CPU at one thread count."""

    bytes_per_second: float
    op_seconds: float
    n_threads: int | None = None


class Series(Entry, frozen=True, kw_only=True):
    """FLOP/s of one operation over the batch.

    `batch` counts rows of activations (`mul_mat`), rows per expert (`mul_mat_id`), query tokens (`attention`) or tokens
    of a sequence (scans). `type` is the type of the weights, of the cache for attention, of the state for scans.
    `layout` is how the weights lie in memory: as in the file, or interleaved by rows at load.

    Of attention alone: `depth` is the cells of the cache that was measured, None where the rates hold for any; and
    `first_bytes_per_second` is what cells that no query has read yet arrive at, which comes on top of the rates.
    """

    operation: Operation
    type: str
    batch: tuple[float, ...]
    flop_per_second: tuple[float, ...]
    layout: Layout = "plain"
    n_threads: int | None = None
    depth: int | None = None
    first_bytes_per_second: float | None = None


class Processor(_Record, frozen=True, kw_only=True):
    """A GPU, or the CPU with all its cores. The two peaks are bounds.

    `peaks_measured`: no document tells the peaks; what was reached in registers and the best rates of this profile
    stand in. Counts that are not known are 0. The last three are a GPU's: bytes that a copy inside its memory moves, a
    kernel that waits for one on another stream, and a call that waits for an idle stream.
    """

    name: str
    memory_peak_bytes_per_second: float
    peak_flop_per_second: float
    memory: tuple[Memory, ...]
    series: tuple[Series, ...]
    n_cores: int = 0
    n_sockets: int = 0
    n_numa_nodes: int = 0
    peaks_measured: bool = False
    copy_bytes_per_second: Figure | None = None
    event_wait_seconds: Figure | None = None
    synchronise_seconds: Figure | None = None


class Curve(Entry, frozen=True, kw_only=True):
    """Copies from or to page-locked memory: bytes/s over the size of one copy, besides the set-up of each copy."""

    chunk_bytes: tuple[float, ...]
    bytes_per_second: tuple[float, ...]
    latency_seconds: float
    peak_bytes_per_second: float


class Link(_Record, frozen=True, kw_only=True):
    """Between host and GPU. Contention figures are the fraction of a rate that remains while the other side works.

    Those that may be None are slices of experts from all over the host's memory, copies down to pageable memory, both
    directions at once, and copies while the GPU computes.
    """

    up: Curve
    down: Curve
    copy_engines: int
    pageable_bytes_per_second: Figure
    handoff_to_gpu_seconds: Figure
    handoff_to_cpu_seconds: Figure
    cpu_rate_under_copy: Figure
    copy_rate_under_cpu: Figure
    scattered_bytes_per_second: Figure | None = None
    pageable_down_bytes_per_second: Figure | None = None
    up_rate_under_down: Figure | None = None
    down_rate_under_up: Figure | None = None
    gpu_rate_under_copy: Figure | None = None
    copy_rate_under_gpu: Figure | None = None


class Anchor(_Record, frozen=True, kw_only=True):
    """Work that was measured again and again while a profile was: when, since its start, and at which rates.

    Of the two kinds of rate one is there: bytes of memory, or FLOP of products.
    """

    what: str
    at_seconds: tuple[float, ...]
    bytes_per_second: tuple[float, ...] = ()
    flop_per_second: tuple[float, ...] = ()

    @property
    def rates(self) -> tuple[float, ...]:
        """Whichever is there."""
        return self.bytes_per_second or self.flop_per_second


class Pace(_Record, frozen=True, kw_only=True):
    """The CPU's pace while a profile was measured.

    `moved` is how far an anchor's rate lay from the middle one, at most, then or in the profile of this machine before:
    0.3 for 0.7 or 1.3 of it. The ranges of the CPU's figures are no narrower.
    """

    moved: float
    anchors: tuple[Anchor, ...]


class Key(_Record, frozen=True, kw_only=True):
    """The machine and the state of it that a profile was measured in; None is what could not be told.

    The PCIe link is that under load; `power_limit_watts` is the GPU's.
    """

    cpu: str
    n_cores: int
    n_threads: int
    ram_bytes: int
    kernel: str
    gpu: str | None = None
    driver: str | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    power_limit_watts: float | None = None


class Profile(_Record, frozen=True, kw_only=True):
    """A machine. `gpu` and `link` are both there or both absent."""

    schema_version: int
    name: str
    capacities: Capacities
    cpu: Processor
    host_bytes_per_second: Figure
    gpu: Processor | None = None
    link: Link | None = None
    storage_bytes_per_second: Figure | None = None
    pace: Pace | None = None
    key: Key | None = None
    created: str = ""
    notes: tuple[str, ...] = ()


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read and check a profile file.

    Parameters
    ----------
    path : path-like
        A JSON file as docs/profile.md describes it.

    Returns
    -------
    Profile
        Complete and consistent: series ascend, are positive and have equal lengths, type names are known.

    Raises
    ------
    MachineError
        With the file, the line or the JSON path, the value and the remedy.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            message = f"{path}: {path.stat().st_size} bytes, at most {MAX_PROFILE_BYTES} are read; this is no profile"
            raise MachineError(message)
        data = path.read_bytes()
    except OSError as error:
        message = (
            f"{path}: cannot be read ({error.strerror or error}); give a profile file or a name from 'pshard machines'"
        )
        raise MachineError(message) from error
    return parse_profile(data, str(path))


def parse_profile(data: bytes, where: str = "profile") -> Profile:
    """Check and decode the text of a profile.

    Parameters
    ----------
    data : bytes
        UTF-8 JSON.
    where : str
        Name of the file for messages.

    Returns
    -------
    Profile

    Raises
    ------
    MachineError
        As `read_profile`.
    """
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{where}{_line_of(data, error)}: not JSON ({error}); correct it, or measure the machine again"
        raise MachineError(message) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        remedy = "update pshard" if isinstance(version, int) and version > SCHEMA_VERSION else "see docs/profile.md"
        message = f"{where}: $.schema_version is {version!r}, this pshard reads {SCHEMA_VERSION}; {remedy}"
        raise MachineError(message)
    try:
        profile = msgspec.convert(raw, Profile, strict=True)
    except msgspec.ValidationError as error:
        text, _, json_path = str(error).partition(" - at `")
        json_path = json_path.rstrip("`") or "$"
        value = _value_at(raw, json_path)
        message = f"{where}: {json_path}{value}: {text}; see docs/profile.md for this field"
        raise MachineError(message) from error
    for json_path, problem in problems(profile):
        message = f"{where}: {json_path}: {problem}"
        raise MachineError(message)
    return profile


def encode_profile(profile: Profile) -> bytes:
    """Encode a profile as the JSON text of its file, indented, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def write_profile(profile: Profile, path: str | os.PathLike[str]) -> Path:
    """Write a profile, as `atomic_file.write_atomically` does.

    Parameters
    ----------
    profile : Profile
        Checked as in `read_profile`.
    path : path-like
        Missing directories are made.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    MachineError
        The profile is inconsistent.
    FileError
        It cannot be written.
    """
    path = Path(path)
    for json_path, problem in problems(profile):
        message = f"{path}: not written, {json_path}: {problem}"
        raise MachineError(message)
    return write_atomically(path, encode_profile(profile))


def _line_of(data: bytes, error: Exception) -> str:
    found = re.search(r"\(byte (\d+)\)", str(error))
    if not found:
        return ""
    before = data[: int(found[1])]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    return f":{line}:{column}"


def _value_at(raw: Any, json_path: str) -> str:
    """' = value' for messages; empty where the path leads nowhere or to something long."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", json_path):
        try:
            raw = raw[name] if name else raw[int(index)]
        except (KeyError, IndexError, TypeError):
            return ""
    return "" if isinstance(raw, dict | list) else f" = {raw!r:.60}"
