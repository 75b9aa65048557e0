"""The machine's pace while it is measured: what the anchors show, and what becomes of figures of a slow stretch."""

from __future__ import annotations

import fake_probes as fake
import pytest
from fake_probes import FakeProber
from msgspec.structs import replace as with_fields
from test_measure import KEY, base

from pshard.machine.machine import Machine
from pshard.machine.profile import Anchor, encode_profile, parse_profile
from pshard.machine.profile import Pace as Record
from pshard.machine.profile_checks import problems
from pshard.model.model import read_model
from pshard.planning.planner import plan
from pshard.probe.doubts import Doubt
from pshard.probe.measure import profile_from
from pshard.probe.pace import EVERY_SECONDS, MOST_MOVED, Pace, anchors_of
from pshard.probe.probes import full_tasks, quick_tasks, tasks_for
from pshard.probe.running import run
from pshard.probe.works import Peak, ProbeFailed, Product, Read, Start, Storage, Task

DISK = Storage("/m.gguf", 1 << 30)
TASKS = [Task(Start(2), 10.0), Task(Read(2), 10.0), Task(Peak(2), 10.0), Task(Read(1), 10.0), Task(DISK, 10.0)]
ANCHORS = (Read(2), Peak(2))


def drive(rate_at, tasks=TASKS, anchors=ANCHORS, *, before=None, limit=100.0, refuse=lambda work: False):
    """Measure a machine that has this share of its rates at each second."""
    prober = FakeProber()
    start = prober.clock.now

    def change(work, result):
        if refuse(work):
            raise ProbeFailed("its sum is wrong")
        seconds = result.sample.median_seconds / rate_at(prober.clock.now - start)
        return fake.timed(work, seconds, result.n_bytes, result.n_flop)

    prober.change = change
    done = run(tasks, prober, limit_seconds=limit, clock=prober.clock, pace=Pace(anchors, before))
    return done, [work for work, _ in prober.asked]


def slow(first: float, last: float, rate: float = 0.6):
    return lambda seconds: rate if first <= seconds < last else 1.0


def test_anchors_are_read_first_last_and_between():
    done, asked = drive(lambda seconds: 1.0)
    # Of a step of 10 s every second one comes 12 s or more after the last reading of all; arithmetic is read always.
    assert asked == [*ANCHORS, Start(2), Peak(2), Read(1), *ANCHORS, DISK, *ANCHORS]
    assert done.left == []
    assert [result.work for result in done.results] == [task.work for task in TASKS]
    assert done.pace.moved == 0.0
    assert all(result.doubts == {} for result in done.results)
    first, _, third, _ = done.pace.at_seconds
    assert third - first >= EVERY_SECONDS


def test_what_was_measured_in_a_slow_stretch_is_measured_again():
    tasks = [*TASKS[:4], *(Task(Read(count), 10.0) for count in (3, 4, 5))]
    done, asked = drive(slow(19.0, 35.0), tasks)
    again = asked[asked.index(Read(5)) + 1 + len(ANCHORS) :]
    assert Read(1) in again
    assert Read(5) not in again
    found = {result.work: result for result in done.results}
    assert found[Read(1)].sample.median_seconds == fake.result(Read(1)).sample.median_seconds
    assert Doubt.PACE not in found[Read(1)].doubts or found[Read(1)].doubts[Doubt.PACE] < 0.1
    # It may be slow again: all ranges reach down to that.
    assert done.pace.moved == pytest.approx(0.4)
    assert all(result.spread == pytest.approx(0.4) for result in found.values())


def test_a_stretch_between_two_readings_of_memory_shows_in_arithmetic():
    tasks = [Task(work, 3.0) for work in (Start(2), *ANCHORS, Read(1), Read(3), Read(4), Read(5))]
    done, asked = drive(slow(6.0, 8.0), tasks)
    memory, arithmetic = done.pace.record().anchors
    assert memory.at_seconds[1] > EVERY_SECONDS
    assert arithmetic.at_seconds[1] < 6.0
    again = asked[asked.index(Read(5)) + 1 :]
    assert {Read(1), Read(3)} <= set(again)
    assert Read(4) not in again
    found = {result.work: result for result in done.results}
    assert found[Read(1)].sample.median_seconds == fake.result(Read(1)).sample.median_seconds
    assert done.pace.moved == pytest.approx(0.4)


def test_what_stays_of_a_slow_stretch_is_said():
    tasks = [*TASKS[:4], *(Task(Read(count), 10.0) for count in (3, 4, 5))]
    asked = []

    def stop_at_the_second(work):
        asked.append(work)
        if asked.count(Read(1)) == 2:
            raise KeyboardInterrupt
        return False

    done, _ = drive(slow(19.0, 35.0), tasks, refuse=stop_at_the_second)
    assert done.interrupted
    unusual = [result.work for result in done.results if result.doubts.get(Doubt.PACE, 0.0) > 0.1]
    assert Read(1) in unusual
    assert Read(5) not in unusual
    notes = profile_from(done, base(), KEY, created="2026-11-27").notes
    (said,) = [note for note in notes if note.startswith("Measured only while the machine was slower or faster than")]
    assert "memory, 1 thread" in said


def test_a_pace_that_changes_for_good_widens_all_ranges_and_is_said():
    done, _ = drive(slow(0.0, 30.0, 0.7))
    profile = profile_from(done, base(), KEY, created="2026-11-27")
    most = 1.0 / 0.7 - 1.0  # two of three readings are slow, which so is the usual
    assert profile.pace.moved == done.pace.moved == pytest.approx(most)
    assert [entry.spread for entry in profile.cpu.memory if entry.source == "measured"] == [pytest.approx(most)] * 2
    assert "memory, 2 threads: 1.00 to 1.43 of its usual rate" in profile.notes[0]
    assert list(problems(profile)) == []
    assert parse_profile(encode_profile(profile)) == profile


def test_a_blip_is_no_stretch():
    """Slow only while the second reading looks at memory for the first time."""
    done, asked = drive(slow(21.0, 21.3, 0.5))
    assert asked == [*ANCHORS, Start(2), Peak(2), Read(1), Read(2), *ANCHORS, DISK, *ANCHORS]
    assert done.pace.moved == 0.0
    assert all(result.spread == fake.SPREAD for result in done.results)


def test_other_programs_beside_an_anchor_are_not_its_pace():
    prober, taken = FakeProber(), 0.0

    def others() -> float:
        return taken

    def change(work, result):
        nonlocal taken
        if prober.clock.now > 120.0:
            return result
        taken += 0.5
        return fake.timed(work, 2.0 * result.sample.median_seconds, result.n_bytes, result.n_flop)

    prober.change = change
    done = run(TASKS, prober, limit_seconds=100.0, clock=prober.clock, others=others, pace=Pace(ANCHORS))
    assert [len(reading) for reading in done.pace.readings[:3]] == [0, 0, 2]
    assert done.pace.moved == 0.0
    found = {result.work: result for result in done.results}
    assert found[Read(2)].sample.median_seconds == fake.result(Read(2)).sample.median_seconds


def test_a_disk_has_no_pace_of_the_processors():
    done, _ = drive(slow(0.0, 30.0))
    (disk,) = [result for result in done.results if result.work == DISK]
    assert disk.spread == fake.SPREAD


def test_a_little_movement_is_a_range_and_no_sentence():
    done, asked = drive(slow(0.0, 1.0, 0.95))
    assert done.pace.moved == pytest.approx(0.05)
    assert len(asked) == 10
    assert profile_from(done, base(), KEY, created="2026-11-27").notes[0].startswith("Reference figures stand in")
    assert all(result.spread == pytest.approx(0.05) for result in done.results if result.work != DISK)


def test_a_slow_hour_shows_beside_the_profile_before():
    fast, _ = drive(lambda seconds: 1.0)
    done, _ = drive(lambda seconds: 0.8, before=fast.pace.record())
    assert done.pace.off(0, 99) == 0.0
    assert done.pace.moved == pytest.approx(0.25)
    assert "memory, 2 threads: 1.00 to 1.00 of its usual rate, 1.25 in the profile before" in done.pace.words()
    assert all(result.spread == pytest.approx(0.25) for result in done.results if result.work != DISK)


def test_other_anchors_are_not_compared():
    other = Record(moved=0.0, anchors=(Anchor(what="memory, 8 threads", at_seconds=(0.0,), bytes_per_second=(9e9,)),))
    done, _ = drive(lambda seconds: 1.0, before=other)
    assert done.pace.moved == 0.0


def test_an_anchor_that_fails_shows_nothing():
    done, _ = drive(slow(0.0, 30.0), refuse=lambda work: work == Read(2))
    assert [anchor.what for anchor in done.pace.record().anchors] == ["arithmetic, 2 threads"]
    assert (Read(2), "its sum is wrong") in done.refused
    done, _ = drive(slow(0.0, 30.0), refuse=lambda work: work in ANCHORS)
    assert (done.pace.record(), done.pace.moved) == (None, 0.0)


def test_a_range_stays_above_zero():
    done, _ = drive(slow(0.0, 1.0, 5.0))
    assert done.pace.moved == MOST_MOVED


def test_anchors_are_memory_arithmetic_and_decode():
    model = read_model("qwen3-30b-a3b:Q4_K_M")
    for tasks in (quick_tasks(4), full_tasks(4), tasks_for(model, 4, 55.0)[0]):
        memory, arithmetic, decode = anchors_of(tasks, 4)
        assert (memory, arithmetic) == (Read(4), Peak(4))
        assert isinstance(decode, Product)
        assert (decode.batch, decode.n_used, decode.n_threads) == (1, 0, 4)


def test_a_prediction_reaches_as_far_as_the_pace_moved():
    tasks, model = full_tasks(4), read_model("llama-3.2-1b:Q4_0")
    steady, moved = (
        drive(rate, tasks, anchors_of(tasks, 4), limit=335.0)[0] for rate in (lambda seconds: 1.0, slow(100.0, 150.0))
    )
    narrow, wide = (
        plan(model, Machine("here", profile_from(done, base(), KEY, created="2026-11-27"), ()), vram_bytes=0).to_dict()
        for done in (steady, moved)
    )
    tiers = list(zip(narrow["tiers"], wide["tiers"], strict=True))
    assert tiers
    for calm, wild in tiers:
        assert wild["seconds"] == pytest.approx(calm["seconds"], rel=0.02)  # what was slow was measured again
        assert wild["seconds_high"] > 1.3 * calm["seconds"] > calm["seconds_high"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"moved": 1.5}, "1.5 is not at least 0 and below 1"),
        (
            {"anchors": (Anchor(what="a", at_seconds=(0.0, 1.0), flop_per_second=(1e9,)),)},
            "1 rates for 2 of at_seconds",
        ),
        (
            {"anchors": (Anchor(what="a", at_seconds=(0.0,), flop_per_second=(-1.0,)),)},
            "a rate of -1.0 is not positive",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said(change, problem):
    done, _ = drive(lambda seconds: 1.0)
    profile = profile_from(done, base(), KEY, created="2026-11-27")
    broken = with_fields(profile, pace=with_fields(profile.pace, **change))
    (found,) = problems(broken)
    assert problem in found[1]
