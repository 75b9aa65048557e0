"""The load balancer: the document's behaviour, and what it decides on noise, shifts and bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from rebalance_cases import GIB, Clock, DocumentBalancer, Shards, deployment, run_passes

from pshard.errors import SettingError
from pshard.rebalance.balancer import LoadBalancer, RebalanceConfig

EVEN = np.array([500.0, 500.0])


def balancer_of(layers: dict[str, int], **config: float) -> LoadBalancer:
    balancer = LoadBalancer(RebalanceConfig(**config))
    balancer.register_shards(list(layers.items()))
    return balancer


def feed(balancer: LoadBalancer, n: int, **latencies_us: float) -> None:
    for i in range(n):
        for name, latency in latencies_us.items():
            balancer.record(name, latency, time_unix_s=float(i))


# --- what the document's own tests ask for ---------------------------------------------------------------------------


def test_the_documents_defaults_are_kept() -> None:
    config = RebalanceConfig()
    assert (config.min_samples, config.imbalance_threshold, config.eval_interval_secs) == (100, 2.0, 60.0)


def test_metrics_of_a_shard() -> None:
    balancer = balancer_of({"s1": 8})
    feed(balancer, 1, s1=100.0)
    feed(balancer, 1, s1=200.0)
    feed(balancer, 1, s1=150.0)
    metrics = balancer.metrics["s1"]
    assert metrics.layers == 8
    assert metrics.forwards == 3
    assert metrics.total_latency_us == 450.0
    assert (metrics.min_latency_us, metrics.max_latency_us, metrics.last_latency_us) == (100.0, 200.0, 150.0)
    assert metrics.average_latency_us == 150.0
    assert metrics.average_latency_per_layer_us == 150.0 / 8
    assert metrics.last_update_unix_s == 0.0


def test_less_than_a_microsecond_per_layer_is_not_hidden() -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=10)
    feed(balancer, 40, a=2.0, b=7.0)
    assert balancer.metrics["a"].average_latency_per_layer_us == 0.25
    assert balancer.evaluate().kind == "rebalance"


def test_no_shards_or_no_passes_are_insufficient_data() -> None:
    assert LoadBalancer().evaluate().kind == "insufficient_data"
    balancer = balancer_of({"a": 8, "b": 8})
    assert balancer.metrics["a"].average_latency_us == 0.0
    assert balancer.evaluate().reason == "No latencies were recorded."
    feed(balancer, 10, a=800.0, b=8000.0)
    decision = balancer.evaluate()
    assert decision.kind == "insufficient_data"
    assert "a has 10 of 100 passes" in decision.reason


def test_a_deployment_of_one_phase_is_decided_on_by_that_phase() -> None:
    only = deployment(EVEN, (8, 8))
    balancer = LoadBalancer(deployment=replace(only, tables={"decode": only.tables["decode"]}))
    assert balancer.evaluate().reason == "No latencies were recorded."
    feed(balancer, 150, gpu0=4000.0, gpu1=12_000.0)
    balancer.record("gpu0", 4000.0, "prefill", 512)
    assert balancer.evaluate().phase == "decode"
    assert balancer.evaluate().suggested == (("gpu0", 12), ("gpu1", 4))


def test_even_shards_are_balanced() -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=10)
    feed(balancer, 20, a=800.0, b=900.0)
    assert balancer.evaluate().kind == "balanced"


def test_a_slow_shard_gets_fewer_layers() -> None:
    balancer = balancer_of({"fast": 8, "slow": 8}, min_samples=50)
    feed(balancer, 100, fast=80.0, slow=800.0)
    decision = balancer.evaluate()
    assert decision.kind == "rebalance"
    assert decision.current == (("fast", 8), ("slow", 8))
    # 15 layers of 10 us and one of 100 us; 16 of 10 us would take longer than 150 us
    assert decision.suggested == (("fast", 15), ("slow", 1))
    assert decision.estimated_speedup == pytest.approx(800 / 150)
    assert decision.single_stream_speedup == pytest.approx(880 / 250)


def test_a_hopeless_shard_is_left_without_layers() -> None:
    balancer = balancer_of({"fast": 8, "slow": 8}, min_samples=10)
    feed(balancer, 20, fast=80.0, slow=8000.0)
    assert balancer.evaluate().suggested == (("fast", 16), ("slow", 0))


def test_reset_forgets_latencies_and_the_interval() -> None:
    balancer = balancer_of({"fast": 8, "slow": 8}, min_samples=10)
    feed(balancer, 20, fast=80.0, slow=8000.0)
    assert balancer.evaluate().kind == "rebalance"
    balancer.reset()
    assert balancer.metrics["fast"].forwards == 0
    assert balancer.evaluate().kind == "insufficient_data"


# --- when it decides -------------------------------------------------------------------------------------------------


def test_a_decision_stands_for_the_interval_and_insufficient_data_is_none() -> None:
    clock = Clock()
    balancer = LoadBalancer(RebalanceConfig(min_samples=20), clock=clock)
    balancer.register_shards([("a", 8), ("b", 8)])
    assert balancer.evaluate().kind == "insufficient_data"
    feed(balancer, 40, a=100.0, b=100.0)
    first = balancer.evaluate()  # at once: the clock was not stamped before
    assert first.kind == "balanced"
    feed(balancer, 3, a=100.0, b=101.0)
    clock.now += 59
    assert balancer.evaluate() is first
    clock.now += 2
    assert balancer.evaluate() is not first


def test_a_shift_is_not_kept_waiting() -> None:
    clock = Clock()
    balancer = LoadBalancer(clock=clock)
    balancer.register_shards([("a", 16), ("b", 16)])
    shards = Shards(EVEN, 0.1, seed=1)
    run_passes(balancer, shards, 300, clock, seconds=0.0)
    assert balancer.evaluate().kind == "balanced"
    shards.slowdown = np.array([1.0, 1.6])
    run_passes(balancer, shards, 20, clock, seconds=0.0)
    decision = balancer.evaluate()
    assert decision.kind == "rebalance"
    assert "b takes" in decision.reason


def passes_until_proposal(n_shards: int, spread: float, slowdown: float, seed: int, limit: int = 400) -> int:
    clock = Clock()
    balancer = LoadBalancer(clock=clock)
    balancer.register_shards([(f"gpu{i}", 16) for i in range(n_shards)])
    shards = Shards(np.full(n_shards, 500.0), spread, seed)
    run_passes(balancer, shards, 300, clock)
    assert balancer.evaluate().kind == "balanced"
    shards.slowdown = np.array([1.0] * (n_shards - 1) + [slowdown])
    for n in range(1, limit + 1):
        run_passes(balancer, shards, 1, clock)
        if balancer.evaluate().kind == "rebalance":
            return n
    return limit + 1


@pytest.mark.parametrize("n_shards", [2, 8])
def test_a_slowdown_of_a_half_under_noise_of_a_fifth_is_proposed_within_30_passes(n_shards: int) -> None:
    needed = [passes_until_proposal(n_shards, 0.2, 1.5, seed) for seed in range(41)]
    assert np.median(needed) <= 30


def test_a_clear_slowdown_is_proposed_within_10_passes() -> None:
    assert max(passes_until_proposal(2, 0.05, 1.5, seed) for seed in range(11)) <= 10


@pytest.mark.parametrize(("spread", "alike", "outliers"), [(0.05, 0, 0), (0.2, 0, 0), (0.5, 0, 0), (0.2, 0.8, 0.02)])
def test_noise_alone_proposes_nothing(spread: float, alike: float, outliers: float) -> None:
    clock = Clock()
    balancer = LoadBalancer(RebalanceConfig(eval_interval_secs=0), clock=clock)
    balancer.register_shards([("a", 16), ("b", 16), ("c", 16), ("d", 16)])
    shards = Shards(np.full(4, 500.0), spread, 7, alike=alike, outliers=outliers)
    for _ in range(400):
        run_passes(balancer, shards, 64, clock)
        assert balancer.evaluate().kind != "rebalance"


def test_what_differs_by_less_than_the_threshold_is_left_alone_until_it_shifts() -> None:
    balancer = balancer_of({"a": 16, "b": 16})
    feed(balancer, 300, a=8000.0, b=14000.0)
    decision = balancer.evaluate()
    assert decision.kind == "balanced"
    assert "within the threshold of 2" in decision.reason
    assert decision.estimated_speedup > 1.3  # it is told all the same
    balancer = balancer_of({"a": 16, "b": 16}, imbalance_threshold=1.5)
    feed(balancer, 300, a=8000.0, b=14000.0)
    assert balancer.evaluate().kind == "rebalance"


def test_a_slow_drift_is_proposed_in_the_end() -> None:
    clock = Clock()
    balancer = LoadBalancer(RebalanceConfig(eval_interval_secs=0), clock=clock)
    balancer.register_shards([("a", 16), ("b", 16)])
    shards = Shards(EVEN, 0.1, 5)
    kinds = []
    for step in range(150):
        shards.slowdown = np.array([1.0, min(1.6, 1 + step * 0.005)])
        run_passes(balancer, shards, 20, clock)
        kinds.append(balancer.evaluate().kind)
    assert "rebalance" in kinds
    assert "rebalance" not in kinds[:15]


def test_prefill_and_decode_are_kept_apart() -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=20)
    for i in range(60):
        for name, decode, prefill in (("a", 100.0, 40_000.0), ("b", 100.0, 160_000.0)):
            balancer.record(name, decode, "decode", 1, float(i))
            balancer.record(name, prefill * (1 + i % 2), "prefill", 512 * (1 + i % 2), float(i))
    decision = balancer.evaluate()
    assert decision.phase == "prefill"  # where the time goes
    assert decision.suggested == (("a", 13), ("b", 3))
    metrics = balancer.metrics["b"]
    assert set(metrics.phases) == {"decode", "prefill"}
    assert metrics.phases["prefill"].scale <= 0.02  # twice the tokens in twice the time is no noise
    assert metrics.forwards == 120


# --- whether it is worth it ------------------------------------------------------------------------------------------


def test_memory_caps_are_kept_where_the_document_overflows() -> None:
    balancer = LoadBalancer(deployment=deployment(EVEN, (8, 8), capacity_layers=(10, 16)))
    document = DocumentBalancer([("gpu0", 8), ("gpu1", 8)])
    for i in range(200):
        for name, latency in (("gpu0", 4000.0), ("gpu1", 16_000.0)):
            balancer.record(name, latency, time_unix_s=float(i))
            document.record(name, latency)
    suggested = document.evaluate()
    assert suggested is not None
    assert suggested["gpu0"] == 13  # of the 10 that fit
    assert balancer.evaluate().suggested == (("gpu0", 10), ("gpu1", 6))


def test_a_move_says_what_it_takes_and_when_it_pays_back() -> None:
    links = np.array([10e9, 5e9])
    balancer = LoadBalancer(deployment=deployment(EVEN, (8, 8), link_bytes_per_second=links))
    feed(balancer, 200, gpu0=4000.0, gpu1=12_000.0)
    decision = balancer.evaluate()
    assert decision.kind == "rebalance"
    assert decision.suggested == (("gpu0", 12), ("gpu1", 4))
    assert decision.move is not None
    assert decision.move.bytes_to == {"gpu0": 4 * GIB}
    assert decision.move.seconds == pytest.approx(4 * GIB / 10e9)
    assert decision.estimated_speedup == pytest.approx(2.0)
    assert decision.break_even_seconds == pytest.approx(4 * GIB / 10e9)


def test_a_move_that_takes_too_long_is_not_proposed() -> None:
    links = np.array([1e6, 1e6])
    balancer = LoadBalancer(deployment=deployment(EVEN, (8, 8), link_bytes_per_second=links))
    feed(balancer, 200, gpu0=4000.0, gpu1=12_000.0)
    decision = balancer.evaluate()
    assert decision.kind == "balanced"
    assert "to pay back" in decision.reason


def test_too_small_a_gain_is_not_proposed() -> None:
    # three layers cannot be divided better
    balancer = balancer_of({"a": 2, "b": 1}, min_samples=20)
    feed(balancer, 60, a=200.0, b=210.0)
    assert balancer.evaluate().reason == "No other assignment is faster."
    balancer = balancer_of({"a": 40, "b": 20}, min_samples=20, imbalance_threshold=1.0)
    feed(balancer, 60, a=4000.0, b=4400.0 / 1.02)
    decision = balancer.evaluate()
    assert decision.kind == "balanced"
    assert "less than 1.1 is not worth it" in decision.reason


def test_a_device_that_flips_is_not_followed_to_and_fro() -> None:
    clock = Clock()
    links = np.array([0.2e9, 0.2e9])  # a layer takes 5 seconds

    def present(counts: tuple[int, int]) -> object:
        return deployment(EVEN, counts, link_bytes_per_second=links)

    balancer = LoadBalancer(RebalanceConfig(), present((16, 16)), clock=clock)
    shards = Shards(EVEN, 0.05, 3)
    run_passes(balancer, shards, 200, clock)
    shards.slowdown = np.array([1.0, 1.5])
    run_passes(balancer, shards, 20, clock)
    decision = balancer.evaluate()
    assert decision.kind == "rebalance"
    moved = tuple(count for _, count in decision.suggested or ())
    clock.now += 100
    balancer.deploy(present(moved))
    run_passes(balancer, shards, 200, clock, seconds=0.5)
    assert balancer.evaluate().kind == "balanced"
    shards.slowdown = np.ones(2)
    run_passes(balancer, shards, 20, clock)
    held = balancer.evaluate()
    assert held.suggested == (("gpu0", 16), ("gpu1", 16))
    assert held.kind == "balanced"
    assert "staying has cost" in held.reason
    run_passes(balancer, shards, 250, clock, seconds=1.0)
    assert balancer.evaluate().kind == "rebalance"


def test_one_stream_goes_where_it_is_fastest() -> None:
    balancer = LoadBalancer(deployment=deployment(EVEN, (8, 8), objective="latency"))
    feed(balancer, 200, gpu0=4000.0, gpu1=12_000.0)
    decision = balancer.evaluate()
    assert decision.suggested == (("gpu0", 16), ("gpu1", 0))
    assert decision.estimated_speedup == decision.single_stream_speedup == pytest.approx(2.0)


def test_the_same_latencies_give_the_same_decision() -> None:
    def decide() -> object:
        clock = Clock()
        balancer = LoadBalancer(clock=clock)
        balancer.register_shards([(f"gpu{i}", 8) for i in range(5)])
        run_passes(balancer, Shards(np.array([100.0, 900, 300, 300, 50]), 0.2, 9), 150, clock)
        return balancer.evaluate()

    assert decide() == decide()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_unknown_names_and_impossible_latencies_are_told() -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=20)
    feed(balancer, 60, a=100.0, b=100.0)
    before = balancer.metrics["a"].phases["decode"]
    for bad in (-5.0, 0.0, math.nan, math.inf, 1e12, None, "12"):
        balancer.record("a", bad)
    for _ in range(3):
        balancer.record("ghost", 100.0)
    balancer.record("a", 100.0, "training")
    balancer.record(["a"], 100.0)
    after = balancer.metrics["a"]
    assert after.invalid == 7
    assert after.phases["decode"].median == before.median
    notes = " ".join(balancer.evaluate().notes)
    assert "latencies of ghost are left out: no such shard is deployed (3 times)" in notes
    assert "training" in notes
    assert "values of a in decode are left out: not between 0 and one hour (7 times)" in notes


def test_unknown_names_do_not_grow_without_end() -> None:
    balancer = balancer_of({"a": 8, "b": 8})
    for i in range(10_000):
        balancer.record(f"ghost{i}", 1.0)
    feed(balancer, 120, a=100.0, b=100.0)
    assert len(balancer.evaluate().notes) <= 65


def test_a_clock_that_goes_back_is_told_and_does_no_harm() -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=20)
    feed(balancer, 60, a=100.0, b=100.0)
    balancer.record("a", 100.0, time_unix_s=-1e6)
    balancer.record("a", 100.0, time_unix_s=math.nan)
    assert balancer.metrics["a"].last_update_unix_s == 59.0
    assert any(
        "clock of a went back in decode; the order of arrival counts (1 times)" in note
        for note in balancer.evaluate().notes
    )


def test_a_shard_that_stops_reporting_is_told_and_nothing_is_decided() -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=20)
    feed(balancer, 60, a=100.0, b=900.0)
    for i in range(60, 260):
        balancer.record("a", 100.0, time_unix_s=float(i))
    decision = balancer.evaluate()
    assert decision.kind == "insufficient_data"
    assert "b has not reported in decode for 200 passes" in decision.reason
    assert balancer.problems == {"b has stopped reporting in decode, and the others go on": 200}
    balancer.record("b", 900.0, time_unix_s=260.0)
    assert balancer.problems == {}
    assert balancer.evaluate().kind == "rebalance"


@pytest.mark.parametrize("ahead", [86_400.0, -86_400.0])
def test_stamps_that_are_a_day_off_do_no_harm(ahead: float) -> None:
    balancer = balancer_of({"a": 8, "b": 8}, min_samples=20)
    balancer.record("a", 100.0, time_unix_s=ahead)
    for i in range(60):
        balancer.record("a", 100.0, time_unix_s=float(i))
        balancer.record("b", 900.0, time_unix_s=i + ahead)
    assert balancer.evaluate().kind == "rebalance"


def test_passes_of_one_shard_after_those_of_another_are_no_silence() -> None:
    balancer = balancer_of({"a": 8, "b": 8})
    feed(balancer, 200, a=100.0)
    feed(balancer, 200, b=900.0)
    assert balancer.evaluate().kind == "rebalance"


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "must have a layer"),
        ([("a", 0)], "must have a layer"),
        ([("a", -1), ("b", 3)], "must have a layer"),
        ([("a", 3), ("a", 3)], "occurs twice"),
    ],
)
def test_impossible_shards_are_refused(shards: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoadBalancer().register_shards(shards)


@pytest.mark.parametrize(
    "field",
    ["min_samples", "imbalance_threshold", "eval_interval_secs", "window", "warm_up", "half_life", "min_gain",
     "max_break_even_secs", "hysteresis", "silent_passes", "false_alarms_per_window"],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field: str) -> None:
    for value in (-1, math.nan, math.inf):
        with pytest.raises(SettingError, match=field):
            RebalanceConfig(**{field: value})


def test_a_decision_is_plain_values() -> None:
    import json

    balancer = LoadBalancer(deployment=deployment(EVEN, (8, 8), link_bytes_per_second=np.array([1e9, 1e9])))
    feed(balancer, 200, gpu0=4000.0, gpu1=12_000.0)
    document = json.loads(json.dumps(balancer.evaluate().to_dict()))
    assert document["kind"] == "rebalance"
    assert document["suggested"] == [{"shard": "gpu0", "layers": 12}, {"shard": "gpu1", "layers": 4}]
    assert document["move"]["bytes"] == 4 * GIB
    assert document["factors"]["gpu1"]["low"] < 3.0 < document["factors"]["gpu1"]["high"]
    json.dumps(replace(balancer.evaluate(), suggested=None, factors=None, move=None).to_dict())
