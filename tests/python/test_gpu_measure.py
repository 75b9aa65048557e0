"""From measurements of a GPU to a profile, against the constants of a GPU that nobody built; none is a measurement."""

from __future__ import annotations

from dataclasses import replace as with_

import fake_probes as fake
import pytest
from fake_probes import FakeProber, noisy
from hypothesis import given
from hypothesis import strategies as st

from pshard.cli._output import Output
from pshard.cli._profile_tables import print_profile
from pshard.machine.machine import Machine
from pshard.machine.profile import Key, encode_profile, parse_profile
from pshard.machine.profile_checks import problems
from pshard.machine.rates import bits_per_weight
from pshard.machine.reference_rates import build_profile
from pshard.machine.references import find_gpu, hosts, join
from pshard.model.model import read_model
from pshard.planning.planner import plan
from pshard.probe.gpu_measure import set_up_and_seconds_per_byte
from pshard.probe.gpu_work import (
    FULL_CHUNKS,
    BesideCpu,
    BothWays,
    Copy,
    GpuAttention,
    GpuProduct,
    GpuRead,
    GpuStart,
    GpuWork,
    Handoff,
    PageLock,
    full_gpu_works,
    gpu_works_for,
    quick_gpu_works,
)
from pshard.probe.measure import profile_from, reference_parts
from pshard.probe.plots import draw_profile
from pshard.probe.probes import full_tasks, quick_tasks, tasks_for
from pshard.probe.running import run
from pshard.probe.works import ProbeFailed
from pshard.weight_types import COMMON, gpu_types

KEY = Key(cpu="Example CPU", n_cores=4, n_threads=4, ram_bytes=32 << 30, kernel="Linux 6.1", gpu="GeForce RTX 3060")
LIMIT = 24 << 30


def base():
    return build_profile(join(find_gpu("rtx-3060-12g"), hosts()["desktop-8c"], name="here"), KEY.n_threads)


def measured(change=lambda work, result: result, *, works=None, old=None):
    prober = FakeProber(change=change)
    tasks = full_tasks(4, gpu_works=full_gpu_works(LIMIT) if works is None else works)
    done = run(tasks, prober, limit_seconds=1000.0, clock=prober.clock)
    return profile_from(done, old or base(), KEY, created="2026-11-27")


def series_of(profile, operation, kind):
    found, *_ = [s for s in profile.gpu.series if (s.operation, s.type) == (operation, kind)]
    return found


def test_a_full_run_leaves_no_reference():
    profile = measured()
    assert reference_parts(profile) == []
    assert {s.source for s in profile.gpu.series} == {m.source for m in profile.gpu.memory} == {"measured"}
    assert profile.capacities.source == profile.link.up.source == profile.link.down.source == "measured"
    assert list(problems(profile)) == []
    assert parse_profile(encode_profile(profile)) == profile
    assert profile.notes == ()


def test_a_quick_run_measures_common_types_and_a_full_one_all_that_the_gpu_multiplies():
    def types(works, *, routed):
        return {work.type for work in works if isinstance(work, GpuProduct) and bool(work.n_used) == routed}

    assert types(quick_gpu_works(LIMIT), routed=False) == set(COMMON)
    assert types(quick_gpu_works(LIMIT), routed=True) == set(COMMON[:1])
    for routed in (False, True):
        assert types(full_gpu_works(LIMIT), routed=routed) == set(gpu_types())
    assert set(COMMON) < set(gpu_types())


def test_rates_are_those_of_the_gpu():
    profile = measured()
    gpu = profile.gpu
    assert gpu.memory[0].bytes_per_second == pytest.approx(fake.GPU_BYTES_PER_SECOND)
    assert gpu.memory[0].op_seconds == fake.GPU_START_SECONDS
    assert gpu.copy_bytes_per_second.value == pytest.approx(fake.GPU_BYTES_PER_SECOND / 2)
    assert gpu.event_wait_seconds.value == fake.HOP_SECONDS
    assert gpu.synchronise_seconds.value == fake.SYNCHRONISE_SECONDS
    for kind in COMMON:
        found = series_of(profile, "mul_mat", kind)
        assert found.batch == (1, 2, 4, 8, 16, 64, 512, 2048, 8192)
        # the start is taken off again, so a product reads at the memory's rate exactly
        assert found.flop_per_second[0] == pytest.approx(
            2 * fake.GPU_BYTES_PER_SECOND * 8 / bits_per_weight(kind), rel=1e-9
        )
        assert found.flop_per_second[-1] == pytest.approx(fake.GPU_FLOP_PER_SECOND)
        assert series_of(profile, "mul_mat_id", kind).batch == (1, 4, 32, 128)
    attention = [entry for entry in profile.gpu.series if entry.operation == "attention"]
    assert {entry.depth: entry.batch for entry in attention} == dict.fromkeys((4096, 1024, 16384), (1, 16, 512))


def test_curves_are_those_of_the_link():
    profile = measured()
    for curve, rate in ((profile.link.up, fake.UP_BYTES_PER_SECOND), (profile.link.down, fake.DOWN_BYTES_PER_SECOND)):
        assert curve.chunk_bytes == tuple(float(chunk) for chunk in FULL_CHUNKS)
        assert curve.latency_seconds == pytest.approx(fake.SET_UP_SECONDS)
        assert curve.bytes_per_second == pytest.approx([rate] * len(FULL_CHUNKS))
        assert len(curve.samples) == len(FULL_CHUNKS)
    link = profile.link
    assert link.pageable_bytes_per_second.value == pytest.approx(fake.PAGEABLE_BYTES_PER_SECOND)
    assert link.pageable_down_bytes_per_second.value == pytest.approx(fake.PAGEABLE_BYTES_PER_SECOND)
    assert link.scattered_bytes_per_second.value < fake.UP_BYTES_PER_SECOND  # its set-up included
    assert link.handoff_to_gpu_seconds.value == fake.TO_GPU_SECONDS
    assert link.handoff_to_cpu_seconds.value == fake.TO_CPU_SECONDS
    assert profile.capacities.page_lock_bytes == fake.PAGE_LOCK_BYTES


def test_contention_is_what_sharing_memory_does_not_explain():
    link = measured().link
    for share in (link.up_rate_under_down, link.gpu_rate_under_copy, link.copy_rate_under_gpu):
        assert share.value == pytest.approx(fake.BESIDE_SHARE)
    # alone they take 20 and 24 GB/s, of which memory gives 20 together: 45 % of each would remain
    explained = fake.DRAM_BYTES_PER_SECOND / (fake.DRAM_BYTES_PER_SECOND + fake.UP_BYTES_PER_SECOND)
    assert link.cpu_rate_under_copy.value == pytest.approx(fake.CPU_BESIDE_SHARE / explained)
    assert link.copy_rate_under_cpu.value == pytest.approx(fake.CPU_BESIDE_SHARE / explained)
    assert link.cpu_rate_under_copy.spread == pytest.approx(2 * fake.SPREAD)


@pytest.mark.parametrize(("share", "engines"), [(0.5, 1), (0.7, 2), (1.0, 2)])
def test_copies_that_take_turns_have_one_engine(share, engines):
    def beside(work, result):
        if not isinstance(work, BothWays):
            return result
        up, down = result.sample.median_seconds, result.parts["down"].sample.median_seconds
        parts = {"up_beside": fake.timed(work, up / share), "down_beside": fake.timed(work, down / share)}
        return with_(result, parts={**result.parts, **parts})

    assert measured(beside).link.copy_engines == engines


@given(
    set_up=st.floats(0.0, 1e-4),
    rate=st.floats(1e9, 1e11),
    chunks=st.lists(st.integers(1 << 12, 1 << 28), min_size=2, max_size=13, unique=True),
)
def test_the_fit_finds_a_straight_line(set_up, rate, chunks):
    seconds = [set_up + chunk / rate for chunk in chunks]
    found, per_byte = set_up_and_seconds_per_byte(chunks, seconds)
    assert found == pytest.approx(min(set_up, 0.9 * min(seconds)), rel=1e-3, abs=1e-9)
    assert per_byte == pytest.approx(1 / rate, rel=1e-3)


def test_the_fit_of_noise_stays_possible():
    assert set_up_and_seconds_per_byte([1e6], [1e-4]) == (0.0, pytest.approx(1e-10))
    assert set_up_and_seconds_per_byte([1e6, 2e6], [1e-4, 3e-4])[0] == 0.0
    set_up, per_byte = set_up_and_seconds_per_byte([1e4, 1e6], [5e-5, 5.0001e-5])
    assert 0.0 < set_up <= 0.9 * 5e-5
    assert per_byte > 0.0


def test_a_rate_above_its_sheet_is_said_and_raises_the_peak():
    def fast(work, result):
        if work == GpuRead():
            return with_(result, n_bytes=2.0 * result.n_bytes)
        if isinstance(work, Copy) and work.direction == "down":
            return fake.timed(work, work.chunk_bytes / 40e9, work.chunk_bytes)
        return result

    profile = measured(fast)
    assert list(problems(profile)) == []
    assert profile.gpu.memory_peak_bytes_per_second == pytest.approx(2 * fake.GPU_BYTES_PER_SECOND)
    assert "GPU memory reaches 167% of the peak that its data sheet states." in profile.notes
    assert any(note.startswith("PCIe down reaches") for note in profile.notes)


def test_a_rate_far_below_its_sheet_is_said():
    def slow(work, result):
        return with_(result, n_bytes=0.4 * result.n_bytes) if work == GpuRead() else result

    assert "GPU memory reaches 33% of the peak that its data sheet states." in measured(slow).notes


def test_what_is_refused_stays_a_reference_and_is_said():
    def broken(work, result):
        if isinstance(work, Copy | PageLock):
            raise ProbeFailed("copy 0 of 8 did not arrive whole")
        return noisy(result, 0.6) if isinstance(work, GpuAttention) else result

    profile, old = measured(broken), base()
    assert (profile.link.up, profile.link.down) == (old.link.up, old.link.down)
    assert profile.capacities.page_lock_bytes == old.capacities.page_lock_bytes
    assert series_of(profile, "attention", "F16").source == "reference"
    assert reference_parts(profile) == ["GPU attention", "PCIe"]
    (said,) = [note for note in profile.notes if note.endswith(": copy 0 of 8 did not arrive whole.")]
    assert said.startswith("Refused: copies up, 64 KiB; ")


def test_a_limit_of_page_locking_that_was_not_found_keeps_the_reference():
    def enough(work, result):
        return (
            with_(result, n_bytes=float(1 << 30), note="no more was asked for")
            if isinstance(work, PageLock)
            else result
        )

    capacities = measured(enough).capacities
    assert capacities.page_lock_bytes == base().capacities.page_lock_bytes
    assert capacities.origin == "as detected; 1.0 GiB were page-locked, and no more was asked for"


def test_a_plan_rests_on_it():
    model = read_model("llama-3.2-1b:Q4_0")
    tiers = plan(model, Machine("m", measured(), ()), vram_bytes=2 << 30).to_dict()["tiers"]
    assert {tier["basis"] for tier in tiers} == {"measured"}


def test_quick_works_are_a_part_of_all():
    quick, full = quick_gpu_works(LIMIT), full_gpu_works(LIMIT)
    assert set(quick) < set(full)
    assert len(set(full)) == len(full)
    for kind in (GpuStart, GpuRead, Handoff, GpuProduct, GpuAttention, Copy, BothWays, BesideCpu, PageLock):
        assert any(isinstance(work, kind) for work in quick)


def test_both_processors_take_turns():
    works = [task.work for task in quick_tasks(4, quick_gpu_works(LIMIT))]
    cpu = [work for work in works if not isinstance(work, GpuWork)]
    assert cpu == [task.work for task in quick_tasks(4)]
    assert [work for work in works if isinstance(work, GpuWork)] == quick_gpu_works(LIMIT)
    assert any(isinstance(work, Copy) for work in works[: len(works) // 3])


def test_works_of_one_model():
    model = read_model("qwen3-30b-a3b:Q4_K_M")
    tasks, _ = tasks_for(model, 4, 60.0, "", LIMIT)
    products = [task.work for task in tasks if isinstance(task.work, GpuProduct)]
    experts = [work for work in products if work.n_used]
    assert {(work.n_experts, work.n_used) for work in experts} == {(128, 8)}
    assert {work.batch for work in experts} == {1, 4, 32, 128}
    assert not any(isinstance(task.work, GpuWork) for task in tasks_for(model, 4, 60.0)[0])
    large = [
        work for work in gpu_works_for([("Q4_K", 2048, 7168, 256, 8)], None, LIMIT) if isinstance(work, GpuProduct)
    ]
    experts = [work for work in large if work.n_used]
    assert {work.n_experts for work in experts} == {36}, "more would be gigabytes"
    assert [work.batch for work in experts] == [1, 32, 4, 128]
    assert not any(isinstance(work, GpuAttention) for work in gpu_works_for([], None, LIMIT))


def test_it_is_shown_and_drawn(capsys, tmp_path):
    profile = measured()
    print_profile(Output(as_json=False), profile)
    text = capsys.readouterr().out
    for line in (
        "copy inside its memory",
        "wait for an event",
        "slices from all over memory",
        "copy up beside one down",
    ):
        assert line in text
    pytest.importorskip("matplotlib")
    draw_profile(profile, tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    for words in ("GPU: products (measured)", "Copies between host and GPU", "ridge:", "up, with its set-up"):
        assert words in drawn
