"""The solver of contiguous assignments, against an integer program and brute force."""

from __future__ import annotations

import itertools

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pshard.errors import SettingError
from pshard.fleet.solver import Assignment, Objective, assign


class Case:
    """Random devices of different speed, memory and links."""

    def __init__(self, seed: int, n_layer: int, n_device: int) -> None:
        random = np.random.default_rng(seed)
        speed = random.choice([1.0, 2.0, 5.0, 9.0], size=n_device)
        self.layer_seconds = random.uniform(0.5, 1.5, size=(n_layer, 1)) / speed
        self.layer_bytes = random.integers(50, 150, size=n_layer)
        self.fixed_bytes = random.integers(0, 40, size=n_device)
        self.capacity_bytes = random.integers(60, 110, size=n_device) * 2 * n_layer // n_device + 100
        self.transfer_seconds = random.uniform(0.0, 0.3, size=(n_device, n_device))
        self.exit_seconds = random.uniform(0.0, 0.5, size=n_device)
        self.entry_bytes = random.integers(0, 100, size=n_device)

    def solve(self, objective: Objective, *, search_order: bool) -> Assignment:
        return assign(
            self.layer_seconds,
            self.layer_bytes,
            self.capacity_bytes,
            fixed_bytes=self.fixed_bytes,
            transfer_seconds=self.transfer_seconds,
            exit_seconds=self.exit_seconds,
            entry_bytes=self.entry_bytes,
            objective=objective,
            search_order=search_order,
        )


def integer_program(case: Case, objective: Objective, *, ordered: bool) -> float | None:
    """Return the optimum by HiGHS: one binary for each run of layers on each device, one for each pair of neighbours.

    The runs form a path from layer 0 to the last; order is free unless `ordered`.
    """
    n_layer, n_device = case.layer_seconds.shape
    model = highspy.Highs()
    model.silent()
    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", 1e-9)
    runs, seconds = {}, {}
    for d, begin in itertools.product(range(n_device), range(n_layer)):
        for end in range(begin + 1, n_layer + 1):
            used = case.layer_bytes[begin:end].sum() + case.fixed_bytes[d] + (case.entry_bytes[d] if begin == 0 else 0)
            if used <= case.capacity_bytes[d]:
                runs[d, begin, end] = model.addBinary()
                seconds[d, begin, end] = case.layer_seconds[begin:end, d].sum() + (
                    case.exit_seconds[d] if end == n_layer else 0
                )
    pairs = {
        (d, e, border): model.addBinary()
        for d, e in itertools.permutations(range(n_device), 2)
        for border in range(1, n_layer)
        if not ordered or d < e
    }

    def total(terms: list) -> object:
        return model.qsum(terms) if terms else 0 * next(iter(runs.values()))

    if not runs:
        return None
    for layer in range(n_layer):
        model.addConstr(total([x for (_, begin, end), x in runs.items() if begin <= layer < end]) == 1)
    for d in range(n_device):
        model.addConstr(total([x for (device, _, _), x in runs.items() if device == d]) <= 1)
        for border in range(1, n_layer):
            # A run that ends (begins) at a border inside the chain has a neighbour behind (before) it.
            ends = total([x for (device, _, end), x in runs.items() if device == d and end == border])
            begins = total([x for (device, begin, _), x in runs.items() if device == d and begin == border])
            model.addConstr(ends - total([x for (a, _, at), x in pairs.items() if a == d and at == border]) == 0)
            model.addConstr(begins - total([x for (_, b, at), x in pairs.items() if b == d and at == border]) == 0)
    if objective == "latency":
        model.minimize(
            total([seconds[key] * x for key, x in runs.items()])
            + total([case.transfer_seconds[d, e] * x for (d, e, _), x in pairs.items()])
        )
    else:
        slowest = model.addVariable(lb=0)
        for d in range(n_device):
            busy = [seconds[key] * x for key, x in runs.items() if key[0] == d]
            arriving = [case.transfer_seconds[a, b] * x for (a, b, _), x in pairs.items() if b == d]
            model.addConstr(total(busy + arriving) - slowest <= 0)
        model.minimize(slowest + 0 * next(iter(runs.values())))
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return float(model.getInfo().objective_function_value)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("search_order", [False, True], ids=["given order", "all orders"])
@pytest.mark.parametrize(("seed", "n_layer", "n_device"), [(1, 12, 3), (2, 9, 4), (3, 10, 5)])
def test_finds_the_optimum_of_an_integer_program(
    objective: Objective, search_order: bool, seed: int, n_layer: int, n_device: int
) -> None:
    case = Case(seed, n_layer, n_device)
    found = case.solve(objective, search_order=search_order)
    wanted = integer_program(case, objective, ordered=not search_order)
    assert found.feasible == (wanted is not None)
    if wanted is not None:
        value = found.seconds if objective == "latency" else found.slowest_seconds
        assert value == pytest.approx(wanted, rel=1e-6)


@given(seed=st.integers(0, 10_000), objective=st.sampled_from(["latency", "throughput"]), search_order=st.booleans())
@settings(max_examples=60, deadline=None)
def test_stages_cover_the_layers_once_and_fit(seed: int, objective: Objective, search_order: bool) -> None:
    case = Case(seed, n_layer=20, n_device=6)
    found = case.solve(objective, search_order=search_order)
    assert [(stage.begin, stage.end) for stage in found.stages] == list(
        itertools.pairwise([0, *(stage.end for stage in found.stages)])
    )
    assert found.stages[-1].end == 20
    assert len({stage.device for stage in found.stages}) == len(found.stages)
    lacking = 0
    for stage in found.stages:
        used = case.layer_bytes[stage.begin : stage.end].sum() + case.fixed_bytes[stage.device]
        used += case.entry_bytes[stage.device] if stage.begin == 0 else 0
        lacking += max(0, used - case.capacity_bytes[stage.device])
    assert found.missing_bytes == lacking
    assert found.feasible == (lacking == 0)
    assert case.solve(objective, search_order=search_order) == found


@given(seed=st.integers(0, 10_000), objective=st.sampled_from(["latency", "throughput"]))
@settings(max_examples=30, deadline=None)
def test_more_memory_or_a_free_order_is_never_slower(seed: int, objective: Objective) -> None:
    case = Case(seed, n_layer=16, n_device=5)

    def value(found: Assignment) -> float:
        if not found.feasible:
            return float("inf")
        return found.seconds if objective == "latency" else found.slowest_seconds

    given_order = value(case.solve(objective, search_order=False))
    assert value(case.solve(objective, search_order=True)) <= given_order * (1 + 1e-12)
    case.capacity_bytes = case.capacity_bytes * 2
    assert value(case.solve(objective, search_order=False)) <= given_order * (1 + 1e-12)


def test_missing_bytes_are_what_added_memory_makes_good() -> None:
    layer_bytes = [100] * 10
    short = assign([[1.0, 1.0]] * 10, layer_bytes, [430, 430])
    assert not short.feasible
    assert short.missing_bytes == 140
    first, second = (stage.end - stage.begin for stage in short.stages)
    grown = [max(430, 100 * first), max(430, 100 * second)]
    assert sum(grown) == 430 * 2 + 140
    assert assign([[1.0, 1.0]] * 10, layer_bytes, grown).feasible


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_seconds": np.ones((0, 2))}, "a chain of 0 layers"),
        ({"layer_seconds": np.ones((4, 0)), "capacity_bytes": []}, "and 0 devices"),
        ({"capacity_bytes": [1, 2, 3]}, "layer_seconds has|capacity_bytes has 3 entries"),
        ({"layer_seconds": np.full((4, 2), np.inf)}, "seconds are finite"),
        ({"layer_bytes": np.full((4, 2), -1)}, "bytes are between 0"),
        ({"transfer_seconds": [[0.0]]}, "transfer_seconds has 1 entries"),
        ({"memory_device": [0, 2]}, "memory_device names device 2 of 2"),
        ({"max_exact_order": 20, "search_order": True}, "between 0 and 12"),
    ],
)
def test_says_what_is_wrong_with_a_table(change: dict, message: str) -> None:
    tables = {"layer_seconds": np.ones((4, 2)), "layer_bytes": np.ones((4, 2), dtype=int), "capacity_bytes": [9, 9]}
    with pytest.raises(SettingError, match=message):
        assign(**(tables | change))


def alike(n_host: int, per_host: int, n_layer: int) -> dict[str, np.ndarray]:
    """Equal devices, nearer to each other within a host."""
    n = n_host * per_host
    hosts = np.arange(n) // per_host
    return {
        "layer_seconds": np.ones((n_layer, n)),
        "layer_bytes": np.ones((n_layer, n), dtype=int),
        "capacity_bytes": np.full(n, -(-n_layer // n) + 1),
        "transfer_seconds": np.where(hosts[:, None] != hosts[None, :], 0.5, 0.25),
    }


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize(("n_host", "per_host"), [(1, 6), (2, 3), (3, 2)])
def test_alike_devices_are_taken_as_one_kind(objective: Objective, n_host: int, per_host: int) -> None:
    case = alike(n_host, per_host, 13)
    found = assign(**case, objective=objective, search_order=True)
    # The same, with devices that differ by less than anything else does, so that none are alike.
    different = case | {"exit_seconds": np.arange(n_host * per_host) * 1e-9}
    other = assign(**different, objective=objective, search_order=True)
    assert found.exact
    assert found.seconds == pytest.approx(other.seconds, abs=1e-7)
    assert found.slowest_seconds == pytest.approx(other.slowest_seconds, abs=1e-7)
    assert len({stage.device for stage in found.stages}) == len(found.stages)


def test_many_alike_devices_are_solved_exactly() -> None:
    found = assign(**alike(1, 64, 80), objective="throughput", search_order=True)
    assert (found.exact, found.slowest_seconds) == (True, 2.25)
    searched = assign(**alike(16, 8, 64), search_order=True)  # too many states, but the bound is reached
    assert searched.exact == (searched.seconds <= 64 + 0.25 * (len(searched.stages) - 1) + 1e-9)


@given(seed=st.integers(0, 10_000), objective=st.sampled_from(["latency", "throughput"]))
@settings(max_examples=30, deadline=None)
def test_bytes_of_runs_bind_like_any_others(seed: int, objective: Objective) -> None:
    random = np.random.default_rng(seed)
    n_layer, n_device = 7, 3
    seconds = random.uniform(0.5, 1.5, size=(n_layer, n_device))
    layer_bytes = random.integers(5, 15, size=n_layer)
    capacity = random.integers(20, 60, size=n_device)
    length = np.maximum(np.arange(n_layer + 1)[None, :] - np.arange(n_layer + 1)[:, None], 0)
    run_bytes = np.stack([length * 2, np.minimum(length, 2) * 9])
    run_table = random.integers(0, 2, size=n_device)
    found = assign(
        seconds, layer_bytes, capacity, run_table=run_table, run_bytes=run_bytes, objective=objective, search_order=True
    )
    best = float("inf")
    for order in itertools.permutations(range(n_device)):
        for cuts in itertools.combinations_with_replacement(range(n_layer + 1), n_device - 1):
            runs = [(d, a, b) for d, a, b in zip(order, (0, *cuts), (*cuts, n_layer), strict=True) if b > a]
            if all(layer_bytes[a:b].sum() + run_bytes[run_table[d], a, b] <= capacity[d] for d, a, b in runs):
                stages = [seconds[a:b, d].sum() for d, a, b in runs]
                best = min(best, sum(stages) if objective == "latency" else max(stages))
    assert found.feasible == np.isfinite(best)
    if found.feasible:
        assert (found.seconds if objective == "latency" else found.slowest_seconds) == pytest.approx(best)
