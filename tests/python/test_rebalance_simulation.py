"""The rebalancer against the document's algorithm on the same latencies; the whole table is in bench_rebalance.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rebalance_simulation import SCENARIOS, simulate

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("name", ["throttled 3x for good", "slow link: 12 ms more per pass", "drift to 1.8x"])
def test_it_ends_where_it_is_best_and_moves_less(name: str) -> None:
    scenario = BY_NAME[name]
    ours, document = simulate(scenario, 3, ours=True), simulate(scenario, 3, ours=False)
    assert ours.last_us <= document.last_us
    assert ours.last_us <= 1.02 * ours.best_us
    assert ours.mean_us < document.mean_us
    assert ours.useless_moves == 0


def test_memory_is_kept_where_the_document_overflows() -> None:
    scenario = replace(BY_NAME["eight uneven devices, tight memory"], passes=600)
    ours, document = simulate(scenario, 3, ours=True), simulate(scenario, 3, ours=False)
    assert ours.moves > 0
    assert ours.overflows == 0
    assert document.overflows == document.moves > 0
    assert ours.last_us <= 1.05 * ours.best_us


def test_noise_of_a_half_moves_nothing() -> None:
    assert simulate(replace(BY_NAME["noise of 50 %"], passes=2000), 3, ours=True).moves == 0
