"""The machine's own pace while it is measured.

Where processors, caches and memory are shared with other virtual machines, or heat limits clocks, a machine is slower
for seconds or minutes. Each figure is then as steady as ever, and only a second look shows it. So a few works, the
*anchors*, are measured again and again between the others, and compared with those of the profile before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median_high
from typing import TYPE_CHECKING

from pshard.machine.profile import Anchor
from pshard.machine.profile import Pace as Record
from pshard.probe.doubts import MOST
from pshard.probe.works import Peak, Product, Read, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard.probe.works import ProbeFailed, Task, Work

# Between two readings of all anchors, which take a second or two; and what the repetitions of one may take. Arithmetic
# takes a hundredth of a second, and is read beside every figure.
EVERY_SECONDS, ANCHOR_SECONDS = 12.0, 0.3
# A range stays above zero.
MOST_MOVED = 0.95


def anchors_of(tasks: Sequence[Task], n_threads: int) -> tuple[Work, ...]:
    """Choose what shows the pace of memory, of arithmetic, and of decode, which needs both.

    Parameters
    ----------
    tasks : sequence of Task
    n_threads : int

    Returns
    -------
    tuple of Work
        Of the tasks: reading memory, products in registers, and the first matrix product of one row.
    """
    works = [task.work for task in tasks]
    decode = next((w for w in works if isinstance(w, Product) and w.batch == 1 and not w.n_used), None)
    return tuple(work for work in works if work in (Read(n_threads), Peak(n_threads), decode))


@dataclass(slots=True)
class Pace:
    """Readings of the anchors in the order of time.

    Attributes
    ----------
    anchors : tuple of Work
    before : Pace of a profile, optional
        Of the same machine, from another day.
    at_seconds : list of float
        When each reading began, since the start of the run.
    readings : list of dict from Work to float
        Rate of each anchor: bytes per second of memory, FLOP per second of products. Those that failed, were noisy, or
        ran beside other programs are left out: such doubts are the figures' own.
    """

    anchors: tuple[Work, ...] = ()
    before: Record | None = None
    at_seconds: list[float] = field(default_factory=list)
    readings: list[dict[Work, float]] = field(default_factory=list)
    _of_all: list[bool] = field(default_factory=list)

    def begin(self, at_seconds: float, *, with_all: bool = False) -> tuple[Work, ...]:
        """Begin a reading, and choose its anchors: all, where the last reading of all is old or it is asked for."""
        last = max((at for at, is_all in zip(self.at_seconds, self._of_all, strict=True) if is_all), default=-math.inf)
        self._of_all.append(with_all or at_seconds - last >= EVERY_SECONDS)
        self.at_seconds.append(at_seconds)
        self.readings.append({})
        return self.anchors if self._of_all[-1] else tuple(work for work in self.anchors if isinstance(work, Peak))

    def add(self, found: Result) -> None:
        """Add an anchor to the reading that was begun; not one that is doubtful for another reason than the pace."""
        self.readings[-1][found.work] = _rate(found)

    def is_unusual(self, found: Result | ProbeFailed) -> bool:
        """Whether an anchor differs from its usual rate so far by more than a doubt may."""
        usual = self.usual().get(found.work) if isinstance(found, Result) else None
        return usual is not None and isinstance(found, Result) and abs(_rate(found) / usual - 1.0) > MOST

    def usual(self) -> dict[Work, float]:
        """Median rate of each anchor over all readings; of the two in the middle the higher."""
        columns = {work: [reading[work] for reading in self.readings if work in reading] for work in self.anchors}
        return {work: median_high(rates) for work, rates in columns.items() if rates}

    def off(self, first: int, last: int) -> float:
        """How far the pace lay from the usual one beside what was measured between two readings.

        Parameters
        ----------
        first, last : int
            Of the readings; the next ones before and behind count for anchors that were not read then.

        Returns
        -------
        float
            Relative: 0.3 where an anchor had 0.7 or 1.3 of its usual rate.
        """
        shares = []
        for work, usual in self.usual().items():
            at = [index for index, reading in enumerate(self.readings) if work in reading]
            beside = {*[index for index in at if index <= first][-1:], *[index for index in at if index >= last][:1]}
            shares += [self.readings[index][work] / usual for index in beside]
        return _furthest(shares)

    @property
    def moved(self) -> float:
        """How far the pace ever lay from the usual one, then or in the profile before."""
        usual = self.usual()
        here = _furthest(rate / usual[work] for reading in self.readings for work, rate in reading.items())
        return max(here, _furthest(self._before().values()))

    def words(self) -> str:
        """Say between which shares of its usual rate each anchor moved."""
        before = self._before()
        parts = []
        for work, usual in self.usual().items():
            shares = [reading[work] / usual for reading in self.readings if work in reading]
            then = f", {before[work]:.2f} in the profile before" if work in before else ""
            parts.append(f"{work}: {min(shares):.2f} to {max(shares):.2f} of its usual rate{then}")
        return "; ".join(parts)

    def record(self) -> Record | None:
        """Return what a profile keeps of it; None where nothing was read."""
        anchors = []
        for work in self.usual():
            readings = zip(self.at_seconds, self.readings, strict=True)
            found = [(at, reading[work]) for at, reading in readings if work in reading]
            at_seconds, rates = zip(*found, strict=True)
            unit = "bytes_per_second" if isinstance(work, Read) else "flop_per_second"
            anchors.append(Anchor(what=str(work), at_seconds=at_seconds, **{unit: rates}))
        return Record(moved=self.moved, anchors=tuple(anchors)) if anchors else None

    def _before(self) -> dict[Work, float]:
        """Usual rate of each anchor in the profile before, relative to that of now."""
        then = {anchor.what: median_high(anchor.rates) for anchor in (self.before.anchors if self.before else ())}
        return {work: then[str(work)] / usual for work, usual in self.usual().items() if str(work) in then}


def _rate(found: Result) -> float:
    amount = found.n_bytes if isinstance(found.work, Read) else found.n_flop
    return amount / found.sample.median_seconds


def _furthest(shares: Iterable[float]) -> float:
    return min(max((abs(share - 1.0) for share in shares), default=0.0), MOST_MOVED)
