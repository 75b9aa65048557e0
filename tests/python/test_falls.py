"""Rates that fall where they should not: which figures are suspected, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import fake_probes as fake
import pytest
from fake_probes import FakeProber
from msgspec.structs import replace as with_fields

from pshard.probe.doubts import Doubt
from pshard.probe.falls import falls
from pshard.probe.gpu_work import GpuAttention, GpuProduct
from pshard.probe.running import run
from pshard.probe.works import Attention, Product, Result, Task

ROWS = 4096


def product(batch: int, **more) -> Product:
    return Product(**{"type": "Q4_K", "n_rows": ROWS, "n_columns": ROWS, "batch": batch, "n_threads": 2} | more)


def at_rate(work, gflop_per_second: float, spread: float = 0.01) -> Result:
    flop = 2.0 * ROWS * ROWS * work.batch
    found = fake.timed(work, flop / (gflop_per_second * 1e9), 1.0, flop)
    return replace(found, sample=with_fields(found.sample, spread=spread))


def fallen(*results: Result) -> dict:
    return falls({result.work: result for result in results})


def test_a_rate_that_falls_beyond_both_spreads_is_found():
    low = at_rate(product(512), 200.0)
    assert fallen(at_rate(product(64), 262.0), low) == {low.work: pytest.approx(1.0 - 200.0 / 262.0)}
    assert fallen(low, at_rate(product(64), 262.0)) == {low.work: pytest.approx(1.0 - 200.0 / 262.0)}


def test_all_that_lie_below_an_earlier_rate_are_found():
    results = [at_rate(product(batch), rate) for batch, rate in ((1, 40), (4, 140), (16, 90), (64, 110), (512, 150))]
    assert list(fallen(*results)) == [product(16), product(64)]


@pytest.mark.parametrize(("low", "spread"), [(255.0, 0.0), (247.0, 0.01), (200.0, 0.15), (270.0, 0.0)])
def test_rates_within_their_spreads_are_not(low: float, spread: float):
    assert fallen(at_rate(product(64), 262.0, spread), at_rate(product(512), low, spread)) == {}


@pytest.mark.parametrize(
    "other", [{"type": "Q6_K"}, {"layout": "interleaved"}, {"n_used": 8}, {"n_columns": 2048}, {"n_threads": 1}]
)
def test_other_kernels_are_not_compared(other: dict):
    assert fallen(at_rate(product(64), 262.0), at_rate(product(512, **other), 100.0)) == {}


def test_fewer_rows_of_weights_are_the_same_kernel():
    assert fallen(at_rate(product(64), 262.0), at_rate(product(512, n_rows=2048), 100.0))


def attention(batch: int, depth: int = 1024) -> Attention:
    return Attention(n_heads=32, n_kv_heads=8, head_size=128, depth=depth, batch=batch, n_threads=2)


def test_a_single_query_is_another_kernel():
    assert fallen(at_rate(attention(1), 27.0), at_rate(attention(32), 14.0), at_rate(attention(64), 100.0)) == {}
    assert fallen(at_rate(attention(64), 100.0), at_rate(attention(512), 80.0))
    assert fallen(at_rate(attention(64), 100.0), at_rate(attention(512, 4096), 80.0)) == {}


def test_a_gpu_changes_kernels_behind_eight_rows():
    few, many, most = (GpuProduct(type="Q4_K", n_rows=ROWS, n_columns=ROWS, n_tokens=n) for n in (8, 16, 512))
    assert fallen(at_rate(few, 900.0), at_rate(many, 700.0)) == {}
    assert list(fallen(at_rate(many, 9000.0), at_rate(most, 7000.0))) == [most]
    queries = [GpuAttention(n_heads=8, n_kv_heads=8, head_size=64, depth=512, batch=n) for n in (8, 64, 512)]
    assert list(fallen(*(at_rate(work, rate) for work, rate in zip(queries, (9, 8, 7), strict=True)))) == [queries[2]]


# --- in a run ---------------------------------------------------------------------------------------------------------

TASKS = [Task(product(1), 10.0), Task(product(512), 10.0), Task(product(64), 10.0)]


def slowed(batch: int, factors: list[float]):
    """Multiply the seconds of one batch by the next of these each time that it is measured."""
    left = list(factors)

    def change(work, result):
        if work.batch != batch:
            return result
        return fake.timed(work, left.pop(0) * result.sample.median_seconds, result.n_bytes, result.n_flop)

    return change


def falls_by(result: Result) -> float:
    return result.doubts.get(Doubt.FALL, 0.0)


def drive(change, limit: float = 100.0):
    prober = FakeProber(change=change)
    done = run(TASKS, prober, limit_seconds=limit, clock=prober.clock)
    return done, [work.batch for work, _ in prober.asked]


def test_what_falls_is_measured_again_and_the_faster_counts():
    done, asked = drive(slowed(512, [1.3, 1.0]))
    assert asked == [1, 512, 64, 512]
    assert not any(falls_by(result) for result in done.results)
    assert len(done.results) == 3
    assert {result.spread for result in done.results} == {fake.SPREAD}


def test_what_stays_below_is_kept_with_a_range_that_reaches_up():
    done, asked = drive(slowed(512, [1.3, 1.4]))
    assert asked == [1, 512, 64, 512]
    (low,) = [result for result in done.results if falls_by(result)]
    assert low.work == product(512)
    assert low.spread == falls_by(low) == pytest.approx(1.0 - 1.0 / 1.3, rel=1e-3)


def test_without_time_it_is_still_said():
    done, asked = drive(slowed(512, [1.3]), limit=30.0)
    assert asked == [1, 512, 64]
    assert [result.work for result in done.results if falls_by(result)] == [product(512)]


def test_what_is_refused_for_noise_makes_nothing_suspect():
    def chaos(work, result):
        return fake.noisy(fake.timed(work, 1e-9, 1.0, result.n_flop), 0.9) if work.batch == 1 else result

    done, _ = drive(chaos)
    assert [work for work, _ in done.refused] == [product(1)]
    assert [falls_by(result) for result in done.results] == [0.0, 0.0]


def test_a_rate_that_is_too_good_makes_larger_batches_suspect():
    done, asked = drive(slowed(64, [0.5]))
    assert asked == [1, 512, 64, 512]
    assert [result.work for result in done.results if falls_by(result)] == [product(512)]
