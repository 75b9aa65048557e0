"""Whether a move is worth it: what it gains, for certain and at best, and when it has paid for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from pshard.fleet.solver import Objective
    from pshard.rebalance.deployment import Deployment, Move, Tables

    Array = npt.NDArray[np.float64]


def pass_seconds(tables: Tables, counts: Sequence[int], objective: Objective) -> float:
    """Seconds that count: of the slowest stage with its input, or of all."""
    seconds = tables.work_seconds(counts) + tables.way_seconds(counts)
    return float(seconds.max() if objective == "throughput" else seconds.sum())


def certain_gain(
    tables: Tables, low: Array, high: Array, before: Sequence[int], after: Sequence[int], objective: Objective
) -> float:
    """Return the least speed-up that a move brings, if every device's true factor lies in its interval.

    A factor that is wrong is wrong before and after the move: what a device keeps does not count as uncertain.

    Parameters
    ----------
    tables : Tables
        As predicted, not corrected.
    low, high : array of shape (D,)
        Bounds of the factors.
    before, after : sequence of int
        Layers of each shard.
    objective : {"throughput", "latency"}

    Returns
    -------
    float
        Seconds before over seconds after, at least.
    """
    old, new = tables.work_seconds(before), tables.work_seconds(after)
    old_input, new_input = tables.way_seconds(before), tables.way_seconds(after)
    if objective == "throughput":
        return _least_ratio_of_slowest(old, old_input, new, new_input, low, high)
    return _least_ratio_of_sums(old, float(old_input.sum()), new, float(new_input.sum()), low, high)


def _least_ratio_of_slowest(
    old: Array, old_input: Array, new: Array, new_input: Array, low: Array, high: Array
) -> float:
    """For each stage that may be the slowest after: all others as fast as may be, and it as slow.

    Or as slow as it can be without being the slowest before as well: beyond that, both times rise with it.
    """
    fastest = low * old + old_input
    slowest = int(fastest.argmax())
    others = np.full(len(old), fastest[slowest])
    others[slowest] = np.delete(fastest, slowest).max(initial=0.0)
    turn = np.divide(others - old_input, old, out=high.copy(), where=old > 0)
    factors = np.stack([high, np.clip(turn, low, high)])
    before = np.maximum(others, factors * old + old_input)[:, new > 0]
    after = (factors * new + new_input)[:, new > 0]
    return float((before / after).min())


def _least_ratio_of_sums(old: Array, old_input: float, new: Array, new_input: float, low: Array, high: Array) -> float:
    """Find the corner of the box where a ratio of linear functions is least, by Dinkelbach's iteration."""
    ratio = np.inf
    while True:
        factors = np.where(old - min(ratio, 1e300) * new > 0, low, high)
        better = float((factors @ old + old_input) / (factors @ new + new_input))
        if not better < ratio * (1 - 1e-12):
            return min(ratio, better)
        ratio = better


def least_ratio(
    terms: Callable[[Array], tuple[float, float]], low: Array, high: Array, tolerance: float, most_calls: int
) -> float:
    """Return what the ratio of two functions is at least over a box, if neither falls as an argument rises.

    In a box the ratio is at least the first function at its low corner over the second at its high corner. The box with
    the least such bound is divided in the middle of its widest side, until that bound is near a ratio that occurs.

    Parameters
    ----------
    terms : callable
        From a point, shape (n,), to both functions there.
    low, high : array of shape (n,)
        Positive; sides are divided by their ratio.
    tolerance : float
        How far below the least ratio the result may lie, relative to it.
    most_calls : int
        Of `terms`, after which the bound is what it is: never more than the least ratio.
    """
    n_calls = 0

    def bounded(low: Array, high: Array) -> tuple[float, float, Array, Array]:
        nonlocal n_calls
        n_calls += 2
        (lower_old, lower_new), (upper_old, upper_new) = terms(low), terms(high)
        return lower_old / upper_new, min(lower_old / lower_new, upper_old / upper_new), low, high

    boxes = [bounded(low, high)]
    occurs = boxes[0][1]
    while n_calls < most_calls:
        boxes.sort(key=lambda box: -box[0])
        bound, _, low, high = boxes[-1]
        if bound >= occurs * (1 - tolerance):
            break
        side = int(np.argmax(high / low))
        middle = np.sqrt(low[side] * high[side])
        below, above = high.copy(), low.copy()
        below[side] = above[side] = middle
        boxes[-1:] = [bounded(low, below), bounded(above, high)]
        occurs = min(occurs, boxes[-1][1], boxes[-2][1])
    return min(box[0] for box in boxes)


def break_even_seconds(move_seconds: float, gain: float) -> float:
    """Seconds of serving after which as much is done as without the move, in which nothing was served.

    Parameters
    ----------
    move_seconds : float
    gain : float
        Speed-up, above 1.
    """
    return move_seconds / (gain - 1)


@dataclass(frozen=True, slots=True)
class Proposal:
    """The best assignment under corrected tables, and what it is worth.

    Attributes
    ----------
    counts : tuple of int
        Layers of each shard.
    is_same : bool
        It is what there is.
    gain, certain_gain : float
        Seconds as it is over seconds after, by the deployment's objective: estimated, and at least.
    single_stream_gain : float
        The same for the sum of all stages.
    move : Move
    break_even_seconds : float or None
        None where the move's time is not known, or nothing is gained.
    """

    counts: tuple[int, ...]
    is_same: bool
    gain: float
    certain_gain: float
    single_stream_gain: float
    move: Move
    break_even_seconds: float | None


def best_proposal(deployment: Deployment, tables: Tables, factors: Array, low: Array, high: Array) -> Proposal | None:
    """Solve the assignment for measured factors, and weigh the move to it.

    Parameters
    ----------
    deployment : Deployment
    tables : Tables
        Its predictions for one phase.
    factors, low, high : array of shape (D,)
        Measured over predicted seconds of each device, and the bounds of that.

    Returns
    -------
    Proposal or None
        None where no assignment fits the memories.
    """
    corrected = tables.corrected(factors)
    counts = deployment.solve(corrected)
    if counts is None:
        return None

    def gain(objective: Objective) -> float:
        return pass_seconds(corrected, deployment.counts, objective) / pass_seconds(corrected, counts, objective)

    speedup = gain(deployment.objective)
    move = deployment.move_to(counts)
    pays = speedup > 1 and move.seconds is not None
    return Proposal(
        counts=counts,
        is_same=counts == deployment.counts,
        gain=speedup,
        certain_gain=certain_gain(tables, low, high, deployment.counts, counts, deployment.objective),
        single_stream_gain=gain("latency"),
        move=move,
        break_even_seconds=break_even_seconds(move.seconds, speedup) if pays and move.seconds is not None else None,
    )
