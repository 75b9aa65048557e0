"""How a layout is found: relax, solve, measure, repair.

Weights and caches add up by layer, compute buffers do not. So the solver is first given none, its layout is measured
with the whole memory model, and a device that overflows gets what it was measured to need besides its layers; until
nothing overflows. A first layout that fits is the best there is, and so is one after repairs that is as fast as the
first, which counted less; another need not be, since buffers differ from layout to layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pshard.fleet.solver import Assignment, assign
from pshard.mapping.problem import Layout, Run
from pshard.quantities import MAX_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pshard.mapping.problem import MapProblem
    from pshard.mapping.types import HeadPlace

# A repair raises one device's bytes each time; as many as devices and a few suffice.
MAX_REPAIRS = 64

Solved = tuple[list[Run], "HeadPlace", bool]  # runs, where the head is, whether the solver's own bytes fit
Solve = Callable[[Sequence[int]], Solved]  # of what each device needs besides its layers
Measure = Callable[[Sequence[Run], "HeadPlace"], Layout]


class DoesNotFitError(Exception):
    """The best layout, and the bytes that it lacks on each device."""

    def __init__(self, layout: Layout, lacking: Sequence[int]) -> None:
        super().__init__()
        self.layout = layout
        self.lacking = tuple(lacking)


def repaired(problem: MapProblem, solve: Solve, measure: Measure | None = None) -> Layout:
    """Solve, measure, and give overflowing devices what they were measured to need, until none overflows.

    Raises
    ------
    DoesNotFitError
        The solver finds nothing with what is measured by then.
    """
    extra = [0] * len(problem.devices)
    bound: tuple[float, float] | None = None  # of layouts that need not fit
    for _ in range(MAX_REPAIRS):
        runs, head, fits = solve(extra)
        layout = (measure or problem.measure)(runs, head)
        if fits and not any(extra):
            bound = layout_value(problem, layout)
        lacking = [max(0, problem.used(layout, d) - problem.capacity[d]) for d in range(len(problem.devices))]
        if fits and not any(lacking):
            return replace(layout, repaired=bound is None or layout_value(problem, layout) > bound)
        before = list(extra)
        for d in {run.device for run in runs}:
            if lacking[d]:
                extra[d] = problem.used(layout, d) - problem.by_layers(layout, d)
        if extra == before:
            raise DoesNotFitError(layout, lacking)
    raise DoesNotFitError(layout, lacking)


def layout_value(problem: MapProblem, layout: Layout) -> tuple[float, float]:
    """Return what a layout is to have least of; (0, 0) without times."""
    timed = problem.seconds_of(layout)
    if timed is None:
        return 0.0, 0.0
    return (timed[4], timed[2]) if problem.load == "pipelined" else (timed[2], 0.0)


def fill(problem: MapProblem, order: Sequence[int]) -> Solve:
    """Solver that fills devices one after the other, as the automatic device map does."""

    def solve(extra: Sequence[int]) -> Solved:
        runs: list[Run] = []
        done, n_layer = 0, problem.model.n_layer
        for d in order:
            room = problem.capacity[d] - extra[d]
            if not runs:
                room -= int(problem.bytes.head[d]) + problem.projector_bytes[d]
            end = done + int(np.searchsorted(np.cumsum(problem.bytes.layers[done:, d]), room, side="right"))
            if end > done:
                runs.append(Run(d, done, end))
                done = end
        fits = done == n_layer
        if not fits:  # the rest, for its bytes, on the last device that took any
            last = runs.pop() if runs else Run(order[-1], 0, 0)
            runs.append(Run(last.device, last.begin, n_layer))
        return runs, "first", fits

    return solve


def fastest(problem: MapProblem, order: Sequence[int], heads: Iterable[HeadPlace]) -> Solve:
    """Solver of the least time, or without times of the least missing bytes."""

    def solve(extra: Sequence[int]) -> Solved:
        found = [(candidate, head) for head in heads for candidate in _candidates(problem, order, extra, head)]
        best, head = min(found, key=lambda pair: (pair[0].missing_bytes, _value(problem, pair[0])))
        runs = [Run(order[stage.device], stage.begin, stage.end) for stage in best.stages]
        return runs, head, best.feasible

    return solve


def _value(problem: MapProblem, found: Assignment) -> tuple[float, float]:
    return (found.slowest_seconds, found.seconds) if problem.load == "pipelined" else (found.seconds, 0.0)


def _candidates(
    problem: MapProblem, order: Sequence[int], extra: Sequence[int], head: HeadPlace
) -> Iterable[Assignment]:
    """Solve for each first device where the head is with it, since the way back to it counts."""
    index = list(order)
    n = len(index)
    fixed = np.array([extra[d] for d in index])
    capacity = np.array([problem.capacity[d] for d in index])
    projector = np.array([problem.projector_bytes[d] for d in index])
    head_bytes = problem.bytes.head[index]
    times = problem.times
    zeros = np.zeros(n)
    solve = partial(
        assign,
        np.zeros((problem.model.n_layer, n)) if times is None else times.layers[:, index],
        problem.bytes.layers[:, index],
        capacity,
        fixed_bytes=fixed,
        transfer_seconds=None if times is None else times.transfer[np.ix_(index, index)],
        objective="throughput" if problem.load == "pipelined" else "latency",
    )
    entry = zeros if times is None else times.embedding_seconds + times.arrival[index]
    result = zeros if times is None else (times.head + times.result)[index]
    # What no link leads to can neither begin nor end the chain.
    if head == "last":
        yield solve(
            entry_seconds=_finite(entry),
            exit_seconds=_finite(result),
            entry_bytes=projector + _blocked(entry),
            exit_bytes=head_bytes + _blocked(result),
        )
        return
    for first in np.flatnonzero(np.isfinite(entry + result)):
        only = np.where(np.arange(n) == first, head_bytes + projector, MAX_BYTES)
        back = zeros if times is None else times.transfer[np.ix_(index, index)][:, first]
        yield solve(
            entry_seconds=_finite(entry + result),
            exit_seconds=_finite(back),
            entry_bytes=only,
            exit_bytes=_blocked(back),
        )


def _finite(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(seconds), seconds, 0.0)


def _blocked(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return bytes that no memory has, where the seconds are infinite."""
    return np.where(np.isfinite(seconds), 0, MAX_BYTES)


def fill_behind_cpu(problem: MapProblem) -> Solve:
    """Solver that fills GPUs one after the other and leaves as few layers as it must, the first, to the CPU."""
    gpus, cpu = range(len(problem.gpus)), len(problem.gpus)

    def solve(extra: Sequence[int]) -> Solved:
        n_layer = problem.model.n_layer
        for n_cpu in range(n_layer + 1):
            runs = [Run(cpu, 0, n_cpu)] if n_cpu else []
            done = n_cpu
            for d in gpus:
                room = problem.capacity[d] - extra[d] - (0 if runs else problem.projector_bytes[d])
                sizes = np.cumsum(problem.bytes.layers[done:, d])
                end = done + int(np.searchsorted(sizes, room, side="right"))
                # The head follows the last layer.
                while end == n_layer and end > done and sizes[-1] + problem.bytes.head[d] > room:
                    end -= 1
                if end > done:
                    runs.append(Run(d, done, end))
                    done = end
            if done == n_layer and runs:
                return runs, "last", True
        return [Run(cpu, 0, n_layer)], "last", False

    return solve
