"""Gains: what is certain of them holds for every truth within the intervals, and for some it is no more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pshard.fleet.solver import Objective
from pshard.rebalance.deployment import Tables
from pshard.rebalance.worth import break_even_seconds, certain_gain, least_ratio, pass_seconds


def gain(
    tables: Tables, factors: Sequence[float], before: tuple[int, ...], after: tuple[int, ...], objective: Objective
) -> float:
    corrected = tables.corrected(np.array(factors))
    return pass_seconds(corrected, before, objective) / pass_seconds(corrected, after, objective)


def random_case(
    seed: int, n_devices: int | None = None
) -> tuple[Tables, np.ndarray, np.ndarray, tuple[int, ...], tuple[int, ...]]:
    random = np.random.default_rng(seed)
    n_devices = n_devices or int(random.integers(2, 5))
    n_layer = int(random.integers(4, 12))

    def counts() -> tuple[int, ...]:
        cuts = np.sort(random.integers(0, n_layer + 1, n_devices - 1))
        return tuple(np.diff([0, *cuts, n_layer]).tolist())

    tables = Tables(
        1,
        random.uniform(0.5, 2.0, (n_layer, n_devices)),
        first_seconds=random.uniform(0, 1, n_devices),
        last_seconds=random.uniform(0, 1, n_devices),
        transfer_seconds=random.uniform(0, 0.5, (n_devices, n_devices)),
        arrival_seconds=random.uniform(0, 0.5, n_devices),
        result_seconds=random.uniform(0, 0.5, n_devices),
    )
    low = random.uniform(0.5, 1.5, n_devices)
    return tables, low, low * random.uniform(1.0, 1.6, n_devices), counts(), counts()


@given(seed=st.integers(0, 1 << 32))
def test_the_certain_gain_of_one_stream_is_the_least_over_the_corners(seed: int) -> None:
    tables, low, high, before, after = random_case(seed)
    gains = [
        gain(tables, corner, before, after, "latency") for corner in itertools.product(*zip(low, high, strict=True))
    ]
    assert certain_gain(tables, low, high, before, after, "latency") == pytest.approx(min(gains))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_certain_gain_of_a_pipeline_is_reached(seed: int) -> None:
    tables, low, high, before, after = random_case(seed, n_devices=3)
    least = certain_gain(tables, low, high, before, after, "throughput")
    grid = np.array(list(itertools.product(*np.linspace(low, high, 9).T)))

    def slowest(counts: tuple[int, ...]) -> np.ndarray:
        return (grid * tables.work_seconds(counts) + tables.way_seconds(counts)).max(axis=1)

    found = float((slowest(before) / slowest(after)).min())
    assert found == pytest.approx(
        gain(tables, grid[np.argmin(slowest(before) / slowest(after))], before, after, "throughput")
    )
    assert least <= found * (1 + 1e-9)
    assert least >= found * 0.95


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_no_truth_within_the_intervals_gains_less(objective: Objective) -> None:
    random = np.random.default_rng(1)
    for seed in range(50):
        tables, low, high, before, after = random_case(seed)
        least = certain_gain(tables, low, high, before, after, objective)
        for _ in range(20):
            assert gain(tables, random.uniform(low, high), before, after, objective) >= least * (1 - 1e-12)


def test_a_move_has_paid_back_when_as_much_is_done_as_without_it() -> None:
    speedup, move_seconds = 1.25, 8.0
    served = break_even_seconds(move_seconds, speedup)
    assert served * speedup == pytest.approx(served + move_seconds)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_least_ratio_of_rising_functions_is_no_more_than_any_that_occurs(seed: int) -> None:
    """Sums of slowest lanes, as the cost model has them: inside a box their ratio may be less than at all corners."""
    random = np.random.default_rng(seed)
    weights = random.uniform(0, 1, (2, 3, 2, 3))  # of two functions: three sums of the slower of two lanes
    low = random.uniform(0.5, 1.5, 3)
    high = low * random.uniform(1.0, 1.3, 3)

    def terms(point: np.ndarray) -> tuple[float, float]:
        old, new = (weights @ point).max(axis=2).sum(axis=1).tolist()
        return old, new

    least = least_ratio(terms, low, high, 0.01, 4000)
    grid = np.array(list(itertools.product(*np.linspace(low, high, 7).T)))
    old, new = (np.einsum("slx,px->psl", lanes, grid).max(axis=2).sum(axis=1) for lanes in weights)
    found = float((old / new).min())
    # Every point is within 2.5 % of one of the grid in all coordinates; both functions rise at most in proportion.
    assert 0.99 * found / 1.025**2 <= least <= found * (1 + 1e-12)
    assert least_ratio(terms, low, high, 0.01, 8) <= least * (1 + 1e-12)


def test_a_ratio_that_is_least_inside_is_found() -> None:
    def terms(point: np.ndarray) -> tuple[float, float]:
        (x,) = point
        return max(1.0, 3 * x - 3), x  # falls until x = 4/3, rises from there

    corners = [old / new for old, new in (terms(np.array([x])) for x in (1.0, 2.0))]
    assert min(corners) == 1.0
    assert least_ratio(terms, np.array([1.0]), np.array([2.0]), 0.001, 1000) == pytest.approx(0.75, rel=0.002)
