"""What a balancer remembers beyond the present assignment, so that it neither alternates nor forgets a device.

It is kept in the balancer, and between calls in a JSON document beside what ``--apply`` writes. The document says what
was deployed when it was written: who finds something else deployed knows that it was left since, whoever did that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from pshard.errors import DocumentError
from pshard.rebalance.deployment import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

# Layers of each shard, or what a runtime sees of a plan.
Placement = tuple[int, ...] | str
# Factor of a device, and the bounds of that.
Bounds = tuple[float, float, float]
# Placements that are remembered to have been left; older ones are no news to anybody.
MOST_LEFT = 16


@dataclass(slots=True)
class Aside:
    """A device that was left without layers because it had become slow.

    Attributes
    ----------
    since : float
        When, by the balancer's clock.
    wait : float
        Seconds after which it is taken to be as predicted again.
    bounds : mapping from phase to Bounds
        As it was measured last.
    back_at : float or None
        When it was given layers again; None where it still has none.
    """

    since: float
    wait: float
    bounds: Mapping[Phase, Bounds]
    back_at: float | None = None

    def is_due(self, now: float) -> bool:
        """Whether it has had no layers for so long that it is tried again."""
        return self.back_at is None and now - self.since >= self.wait

    def is_on_trial(self, now: float) -> bool:
        """Whether it has had layers again for less long than it was left without."""
        return self.back_at is not None and now - self.back_at < self.wait


@dataclass(slots=True)
class Wanted:
    """A return that is held back: to what, and since when it would be made."""

    placement: Placement
    since: float


@dataclass(slots=True)
class History:
    """What was left and when, which return is wanted since when, and which devices were set aside."""

    left: dict[Placement, float] = field(default_factory=dict)
    wanted: Wanted | None = None
    aside: dict[str, Aside] = field(default_factory=dict)

    def leave(self, placement: Placement, for_: Placement, now: float) -> None:
        """Something else is deployed now."""
        if placement == for_:
            return
        self.left.pop(placement, None)  # the latest is last
        self.left[placement] = now
        self.left.pop(for_, None)
        while len(self.left) > MOST_LEFT:
            del self.left[next(iter(self.left))]
        self.wanted = None

    def set_aside(self, device: str, bounds: Mapping[Phase, Bounds], now: float, retry_seconds: float) -> None:
        """Take layers from a device: for twice as long where it was being tried, and failed."""
        before = self.aside.get(device)
        failed = before is not None and before.is_on_trial(now)
        wait = 2 * before.wait if before is not None and failed else retry_seconds
        self.aside[device] = Aside(now, wait, bounds)

    def take_back(self, device: str, now: float) -> None:
        """Give a device layers again."""
        entry = self.aside.get(device)
        if entry is not None and entry.back_at is None:
            entry.back_at = now

    def returned_to(self, present: Placement, proposed: Placement) -> Placement | None:
        """Return the latest placement that a proposal goes back to: itself, or most layers that move lay there so."""
        for placement in reversed(self.left):
            if placement == proposed or _goes_back(placement, present, proposed):
                return placement
        return None

    def want(self, placement: Placement, now: float) -> float:
        """Note that a return would be made but for its price; return since when that is so."""
        if self.wanted is None or self.wanted.placement != placement:
            self.wanted = Wanted(placement, now)
        return self.wanted.since


def _goes_back(former: Placement, present: Placement, proposed: Placement) -> bool:
    if isinstance(former, str) or isinstance(present, str) or isinstance(proposed, str):
        return False
    then, now, next_ = (np.repeat(np.arange(len(counts)), counts) for counts in (former, present, proposed))
    if not len(then) == len(now) == len(next_):
        return False
    moved = now != next_
    return bool(2 * (moved & (then == next_)).sum() > moved.sum())


class _Left(msgspec.Struct):
    placement: list[int] | str
    at_unix_s: float


class _Wanted(msgspec.Struct):
    placement: list[int] | str
    since_unix_s: float


class _Aside(msgspec.Struct):
    device: str
    since_unix_s: float
    wait_s: float
    back_unix_s: float | None
    bounds: dict[Phase, Bounds]


class _Document(msgspec.Struct):
    schema_version: int
    shards: list[str]
    current: list[int] | str
    left: list[_Left]
    wanted: _Wanted | None
    aside: list[_Aside]


def history_path(path: Path) -> Path:
    """Where it is remembered what was done to a file."""
    return path.with_name(f"{path.name}.history")


class HistoryFile:
    """A history between calls.

    Parameters
    ----------
    path : Path
        It need not exist.
    clock : callable
        The balancer's.
    unix_time : callable
        Seconds; for tests, as the clock.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, unix_time: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._clock = clock
        # What makes Unix time of the balancer's, which never goes back.
        self._ahead = unix_time() - clock()
        self._data: bytes | None = None

    def read(self, shards: Iterable[str], placement: Placement) -> History:
        """Return what is remembered; an empty history where there is no file, or one of other shards.

        Parameters
        ----------
        shards : iterable of str
        placement : Placement
            What is deployed: if that is not what was, then what was has been left since.

        Returns
        -------
        History
            By the balancer's clock. What is said to come later than now has happened now: the clock has gone back.

        Raises
        ------
        DocumentError
            It cannot be read, or is no such document.
        """
        try:
            self._data = self.path.read_bytes()
            document = msgspec.json.decode(self._data, type=_Document)
        except FileNotFoundError:
            return History()
        except OSError as error:
            message = f"{self.path}: cannot be read ({error.strerror or error}); what was left before is not known."
            raise DocumentError(message) from error
        except msgspec.DecodeError as error:
            message = f"{self.path}: not what is remembered between calls ({error}); it is begun anew."
            raise DocumentError(message) from error
        if document.shards != list(shards):
            return History()

        now = self._clock()

        def at(unix_s: float) -> float:
            return min(unix_s - self._ahead, now)

        wanted = None
        if document.wanted is not None:
            wanted = Wanted(_placement(document.wanted.placement), at(document.wanted.since_unix_s))
        history = History(
            left={_placement(entry.placement): at(entry.at_unix_s) for entry in document.left},
            wanted=wanted,
            aside={
                entry.device: Aside(
                    at(entry.since_unix_s),
                    entry.wait_s,
                    entry.bounds,
                    None if entry.back_unix_s is None else at(entry.back_unix_s),
                )
                for entry in document.aside
            },
        )
        history.leave(_placement(document.current), placement, now)
        return history

    def write(self, history: History, shards: Iterable[str], placement: Placement) -> None:
        """Write what is remembered, where that has changed.

        Raises
        ------
        FileError
            It cannot be written.
        """
        from pshard.atomic_file import write_atomically

        def unix(at: float) -> float:
            return round(at + self._ahead, 3)

        wanted = history.wanted
        document = _Document(
            schema_version=1,
            shards=list(shards),
            current=_plain(placement),
            left=[_Left(_plain(left), unix(at)) for left, at in history.left.items()],
            wanted=None if wanted is None else _Wanted(_plain(wanted.placement), unix(wanted.since)),
            aside=[
                _Aside(
                    device,
                    unix(entry.since),
                    entry.wait,
                    None if entry.back_at is None else unix(entry.back_at),
                    dict(entry.bounds),
                )
                for device, entry in history.aside.items()
            ],
        )
        data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
        if data != self._data:
            write_atomically(self.path, data)
            self._data = data


def _placement(value: list[int] | str) -> Placement:
    return value if isinstance(value, str) else tuple(value)


def _plain(placement: Placement) -> list[int] | str:
    return placement if isinstance(placement, str) else list(placement)
