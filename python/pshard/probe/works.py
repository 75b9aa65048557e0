"""What a probe may be asked to do, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pshard.probe.gpu_work import GpuWork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pshard.machine.profile import Layout, Sample


@dataclass(frozen=True, slots=True)
class Read:
    """Sequential reads of an array far larger than the caches."""

    n_threads: int

    def __str__(self) -> str:
        return f"memory, {_threads(self.n_threads)}"


@dataclass(frozen=True, slots=True)
class Start:
    """What starting an operation costs."""

    n_threads: int

    def __str__(self) -> str:
        return f"start of an operation, {_threads(self.n_threads)}"


@dataclass(frozen=True, slots=True)
class Peak:
    """Products of 8-bit numbers in registers, which no kernel exceeds."""

    n_threads: int

    def __str__(self) -> str:
        return f"arithmetic, {_threads(self.n_threads)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product: `n_rows` × `n_columns` weights with `batch` rows of activations.

    `n_used` 0: one matrix. Else `n_used` different experts, each with `batch` rows.
    """

    type: str
    n_rows: int
    n_columns: int
    batch: int
    n_threads: int
    layout: Layout = "plain"
    n_used: int = 0

    def __str__(self) -> str:
        what = "experts, " if self.n_used else ""
        layout = " interleaved" if self.layout == "interleaved" else ""
        return f"{what}{self.type}{layout}, batch {self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Fused attention of `batch` query tokens over an F16 cache of `depth` tokens."""

    n_heads: int
    n_kv_heads: int
    head_size: int
    depth: int
    batch: int
    n_threads: int

    def __str__(self) -> str:
        heads = "" if self.n_heads > self.n_kv_heads else ", heads alone"
        return f"attention, batch {self.batch}, {self.depth} tokens{heads}"


@dataclass(frozen=True, slots=True)
class Storage:
    """Sequential, cold reads of the first bytes of a file."""

    path: str
    n_bytes: int

    def __str__(self) -> str:
        return f"storage, {self.path}"


Work = Read | Start | Peak | Product | Attention | Storage | GpuWork


@dataclass(frozen=True, slots=True)
class Task:
    """One probe and the seconds that its repetitions may take."""

    work: Work
    budget_seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a probe found: of each repetition the bytes read and FLOP done.

    `is_cold`: no repetition found what it read in a cache. `note` is the probe's own remark. `falls_by`: the share that
    its rate lies below that of fewer rows, which it should not (`falls`). `taken`: the share of the processors that
    other programs had meanwhile. `parts` are further figures of the same probe, by name.
    """

    work: Work
    sample: Sample
    n_bytes: float = 0.0
    n_flop: float = 0.0
    is_cold: bool = True
    note: str = ""
    falls_by: float = 0.0
    taken: float = 0.0
    parts: Mapping[str, Result] = field(default_factory=dict)

    @property
    def disagreement(self) -> float:
        """How far its runs differ: a drift counts, since nobody knows which half was right."""
        return max(self.sample.spread, self.sample.drift if self.sample.is_noisy else 0.0)

    @property
    def spread(self) -> float:
        """Relative half-width of the figure's range."""
        return max(self.disagreement, self.falls_by, self.taken)


@dataclass(slots=True)
class Run:
    """What a run through the tasks gave.

    Attributes
    ----------
    results : list of Result
    refused : list of (Work, str)
        Probes without a figure, with the reason.
    left : list of Work
        Probes that were not reached.
    interrupted : bool
        A person ended it.
    seconds : float
        What it took.
    """

    results: list[Result] = field(default_factory=list)
    refused: list[tuple[Work, str]] = field(default_factory=list)
    left: list[Work] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0


class ProbeFailed(Exception):
    """A probe has no figure: its result was wrong, the clock too coarse, the machine lacks something."""


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
