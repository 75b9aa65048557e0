"""What is said of a phase: figures of one pass, which add up, and how much of it overlapped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from run_cases import model

from pshard.machine.cpus import physical_cpus
from pshard.run.execution import (
    PhaseResult,
    execute,
)
from pshard.run.host_backend import (
    share_cpus,
)
from pshard.run.sources import workload_of_layers

Copied = tuple[int, str, float, float]


def phase_result(splits: list[tuple[float, float]], *copies: Copied) -> PhaseResult:
    """Make a pass of splits that begin and end, and compute all the while but for their own copies; then 1 s more."""
    own = [sum(e - b for i, _, b, e in copies if i == at and begin <= b) for at, (begin, _) in enumerate(splits)]
    record = SimpleNamespace(
        seconds=splits[-1][1] + 1.0,
        splits=[
            SimpleNamespace(begin_seconds=begin, end_seconds=end, compute_seconds=end - begin - within)
            for (begin, end), within in zip(splits, own, strict=True)
        ],
        copies=[SimpleNamespace(split=i, device=1, stream=s, begin_seconds=b, end_seconds=e) for i, s, b, e in copies],
    )
    schedule = SimpleNamespace(splits=[SimpleNamespace(device=1, offloads=False, streams=True) for _ in splits])
    unused: Any = None
    return PhaseResult(unused, cast("Any", schedule), (cast("Any", record),), (0.0,), None, (), unused, (0,))


def test_lanes_that_wait_for_one_engine_do_not_count_twice() -> None:
    # Lane b is told at 1 to copy, and waits until 3 for lane a; 4 s of copies and 4 s of computing, 1 s of both.
    both = phase_result([(3.0, 4.0), (4.0, 7.0)], (0, "lane a", 0.0, 3.0), (1, "lane b", 1.0, 4.0))
    assert both.copy_seconds == 4.0
    assert both.overlap == pytest.approx(1 / 4)
    # Each direction has an engine.
    assert phase_result([(3.0, 5.0)], (0, "lane a", 0.0, 3.0), (0, "down", 1.0, 4.0)).copy_seconds == 6.0
    assert phase_result([(4.0, 7.0)], (0, "lane a", 0.0, 4.0)).overlap == 0.0
    assert phase_result([(0.0, 3.0)]).overlap is None


def test_time_in_which_nothing_goes_on_hides_nothing_and_takes_nothing_from_what_is_hidden() -> None:
    # Between the splits activations pass, for 2 s; all of the copy lies under the first.
    assert phase_result([(0.0, 4.0), (6.0, 8.0)], (1, "lane a", 0.0, 3.0)).overlap == 1.0
    # A copy between two operations of its own split is hidden by nothing.
    within = phase_result([(0.0, 4.0), (4.0, 8.0)], (1, "lane a", 5.0, 6.0))
    assert within.compute_seconds == 7.0
    assert within.overlap == 0.0


def test_figures_of_a_phase_add_up_to_its_pass() -> None:
    m = model(6)
    workload = workload_of_layers(m, [2, 4], prompt_tokens=0, generate_tokens=2)
    (phase,) = execute(m, workload, cpus=share_cpus(physical_cpus(), 2), passes=4).phases
    assert phase.seconds == phase.typical.seconds
    assert sum(measured for _, _, measured in phase.by_kind().values()) == pytest.approx(phase.compute_seconds)
    assert phase.compute_seconds <= phase.seconds
