"""Why a figure may be wrong, and by how much.

There are several reasons, and one treatment. Each is a share of the figure; the largest is the half-width of its range.
Above `MOST` the figure is measured again when all others are done, and the less doubtful of both counts. What is left
is said.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.probe.running import Run
    from pshard.probe.works import Result

MOST = 0.1


class Doubt(Enum):
    """A reason beside that its own runs differ, which they say themselves."""

    LOAD = "other programs had the processors (`load`)"
    PACE = "the machine was slower or faster then than usual (`pace`)"
    MOVED = "its pace moved at any time, so it may do so again (`pace`)"
    FALL = "the rate lies below that of fewer rows (`falls`)"


def is_doubtful(result: Result) -> bool:
    """Whether a figure should be measured again; a rate that falls should, by however little it does.

    That the pace moved at another time is no reason.
    """
    return Doubt.FALL in result.doubts or excess(result) > 0.0


def excess(result: Result) -> float:
    """Largest doubt of a figure by itself, if it is more than `MOST`; two figures without are equally good."""
    own = max(result.disagreement, *(result.doubts.get(reason, 0.0) for reason in (Doubt.LOAD, Doubt.PACE)))
    return own if own > MOST else 0.0


def sentences(run: Run) -> list[str]:
    """Say which figures of a run are doubtful, reason by reason."""
    results, notes = run.results, []
    noisy = [str(result.work) for result in results if result.sample.is_noisy]
    if noisy:
        notes.append(f"Noisy, so their ranges are wider: {'; '.join(noisy)}.")
    fallen = [
        f"{result.work} (by {result.doubts[Doubt.FALL]:.0%})" for result in results if Doubt.FALL in result.doubts
    ]
    if fallen:
        what = "; ".join(fallen)
        notes.append(f"Slower per row than fewer rows, which nothing explains, so their ranges are wider: {what}.")
    loaded = _above(results, Doubt.LOAD)
    if loaded:
        most = max(result.doubts[Doubt.LOAD] for result in loaded)
        notes.append(
            f"Other programs had up to {most:.0%} of the processors during {len(loaded)} of {len(results)} figures, "
            "whose ranges are wider: end them and measure again."
        )
    if run.pace.moved > MOST:
        notes.append(
            f"The machine's own pace moved ({run.pace.words()}), so the ranges of the CPU's figures are wider: measure "
            "again when it is steadier."
        )
    unusual = _above(results, Doubt.PACE)
    if unusual:
        what = "; ".join(str(result.work) for result in unusual)
        notes.append(f"Measured only while the machine was slower or faster than usual: {what}.")
    return notes


def _above(results: Sequence[Result], reason: Doubt) -> list[Result]:
    return [result for result in results if result.doubts.get(reason, 0.0) > MOST]
