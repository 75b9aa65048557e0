"""What a probe may be asked to do, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pshard.probe.gpu_work import GpuWork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pshard.machine.profile import Layout, Sample, Scan
    from pshard.probe.doubts import Doubt


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
    """Fused attention of `batch` query tokens over a cache of `depth` tokens, keys and values of one `type`."""

    n_heads: int
    n_kv_heads: int
    head_size: int
    depth: int
    batch: int
    n_threads: int
    type: str = "F16"

    def __str__(self) -> str:
        heads = "" if self.n_heads > self.n_kv_heads else ", heads alone"
        cache = "" if self.type == "F16" else f" of {self.type}"
        return f"attention, batch {self.batch}, {self.depth} tokens{cache}{heads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentScan:
    """Scan of a recurrent layer over `batch` tokens; its state has `n_rows` × `n_columns` elements for each head."""

    kind: Scan
    n_heads: int
    n_rows: int
    n_columns: int
    batch: int
    n_threads: int

    def __str__(self) -> str:
        return f"scan, {self.kind}, {self.batch} token{'s' if self.batch > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Storage:
    """Sequential, cold reads of the first bytes of a file."""

    path: str
    n_bytes: int

    def __str__(self) -> str:
        return f"storage, {self.path}"


Work = Read | Start | Peak | Product | Attention | RecurrentScan | Storage | GpuWork


@dataclass(frozen=True, slots=True)
class Task:
    """One probe and the seconds that its repetitions may take."""

    work: Work
    budget_seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a probe found: of each repetition the bytes read and FLOP done.

    `is_cold`: no repetition found what it read in a cache. `note` is the probe's own remark. `doubts`: shares by which
    it may be wrong although its runs agree. `parts` are further figures of the same probe, by name.
    """

    work: Work
    sample: Sample
    n_bytes: float = 0.0
    n_flop: float = 0.0
    is_cold: bool = True
    note: str = ""
    doubts: Mapping[Doubt, float] = field(default_factory=dict)
    parts: Mapping[str, Result] = field(default_factory=dict)

    @property
    def disagreement(self) -> float:
        """How far its runs differ: a drift counts, since nobody knows which half was right."""
        return max(self.sample.spread, self.sample.drift if self.sample.is_noisy else 0.0)

    @property
    def spread(self) -> float:
        """Relative half-width of the figure's range."""
        return max(self.disagreement, *self.doubts.values(), 0.0)


class ProbeFailed(Exception):
    """A probe has no figure: its result was wrong, the clock too coarse, the machine lacks something."""


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
