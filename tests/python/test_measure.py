"""From measurements to a profile, against the constants of a machine whose every rate is known."""

from __future__ import annotations

import fake_probes as fake
import pytest
from fake_probes import FakeProber, noisy
from msgspec.structs import replace

from pshard.machine.machine import Machine
from pshard.machine.profile import SCANS, Key, Series, encode_profile, parse_profile
from pshard.machine.profile_checks import problems
from pshard.machine.rates import Rates, bits_per_weight
from pshard.machine.reference_rates import build_profile
from pshard.machine.references import find_gpu, hosts, join
from pshard.model.model import read_model
from pshard.planning.planner import plan
from pshard.probe.doubts import Doubt
from pshard.probe.measure import peak_shares, profile_from, reference_parts, with_series
from pshard.probe.probes import full_tasks, quick_tasks
from pshard.probe.running import run
from pshard.probe.works import Attention, Product, Read, RecurrentScan, Start, Storage
from pshard.weight_types import COMMON

KEY = Key(cpu="Example CPU", n_cores=4, n_threads=4, ram_bytes=32 << 30, kernel="Linux 6.1")
GPU_KEY = replace(KEY, gpu="GeForce RTX 3060")


def base(gpu: str | None = None):
    host = hosts()["desktop-8c"]
    return build_profile(join(find_gpu(gpu) if gpu else None, host, name="here"), KEY.n_threads)


def measured(
    change=lambda work, result: result, *, tasks=None, limit=1000.0, set_up_seconds=0.0, key=KEY, gpu=None, old=None
):
    prober = FakeProber(change=change, set_up_seconds=set_up_seconds)
    done = run(tasks or full_tasks(4, "/m.gguf"), prober, limit_seconds=limit, clock=prober.clock)
    return profile_from(done, old or base(gpu), key, created="2026-11-27")


def series_of(profile, operation, kind, layout="plain") -> Series:
    (found,) = [s for s in profile.cpu.series if (s.operation, s.type, s.layout) == (operation, kind, layout)]
    return found


def test_a_full_run_leaves_no_reference():
    profile = measured()
    assert {s.source for s in profile.cpu.series} == {m.source for m in profile.cpu.memory} == {"measured"}
    assert reference_parts(profile) == []
    assert list(problems(profile)) == []
    assert parse_profile(encode_profile(profile)) == profile
    assert profile.notes == ()
    assert (profile.key, profile.created, profile.cpu.name) == (KEY, "2026-11-27", "Example CPU")
    assert profile.gpu is None and profile.link is None


def test_rates_are_those_of_the_machine():
    profile = measured()
    assert profile.host_bytes_per_second.value == pytest.approx(20e9)
    assert profile.storage_bytes_per_second.value == pytest.approx(2e9)
    assert [(m.n_threads, m.bytes_per_second) for m in profile.cpu.memory] == [
        (1, pytest.approx(12e9)),
        (2, pytest.approx(20e9)),
        (4, pytest.approx(20e9)),
    ]
    assert {m.op_seconds for m in profile.cpu.memory} == {5e-6}
    for kind in COMMON:
        found = series_of(profile, "mul_mat", kind)
        assert found.batch == (1, 4, 16, 64, 512)
        # the start of the operation is taken off again, so batch 1 reads at the memory's rate exactly
        assert found.flop_per_second[0] == pytest.approx(2 * 20e9 * 8 / bits_per_weight(kind), rel=1e-9)
        assert found.flop_per_second[-1] == pytest.approx(4 * 40e9, rel=1e-9)
    assert profile.cpu.peak_flop_per_second == pytest.approx(4 * 100e9)  # in registers
    assert profile.cpu.memory_peak_bytes_per_second == pytest.approx(20e9)
    assert profile.cpu.peaks_measured


def test_each_value_keeps_what_was_measured_for_it():
    profile = measured()
    for found in profile.cpu.series:
        assert len(found.samples) == len(found.batch)
        assert found.spread == fake.SPREAD
        assert all(s.minimum_seconds < s.median_seconds and s.count == 20 and s.is_settled for s in found.samples)
    assert [sample.median_seconds for sample in profile.cpu.memory[0].samples] == [1e9 / 12e9, 5e-6]


def attention_of(profile):
    return {s.depth: s for s in profile.cpu.series if s.operation == "attention" and s.type == "F16"}


def test_attention_is_kept_for_each_depth_of_the_cache():
    def shallow_is_fast(work, result):
        if isinstance(work, Attention) and work.depth < 4096:
            return noisy_free(result, 0.5)
        return result

    found = attention_of(measured(shallow_is_fast))
    assert {depth: s.batch for depth, s in found.items()} == dict.fromkeys((1024, 4096, 16384), (1, 32, 64, 512))
    assert found[16384].flop_per_second[-1] == pytest.approx(4 * 40e9)
    assert found[1024].flop_per_second[-1] == pytest.approx(2 * 4 * 40e9, rel=1e-3)
    assert found[4096].first_bytes_per_second is None  # as fast as memory reads, whatever the grouping


def test_first_reads_of_a_cache_are_told_from_arithmetic():
    def slow_first_reads(work, result):
        if not isinstance(work, Attention):
            return result
        return fake.timed(work, result.n_flop / 80e9 + result.n_bytes / 5e9 + 5e-6, result.n_bytes, result.n_flop)

    profile = measured(slow_first_reads)
    for found in attention_of(profile).values():
        assert found.first_bytes_per_second == pytest.approx(5e9)
        assert found.flop_per_second == pytest.approx([80e9] * 4)
    assert list(problems(profile)) == []
    assert parse_profile(encode_profile(profile)) == profile
    (at_depth, *_) = Machine("here", profile).core(4).cpu.attention
    assert (at_depth.depth, at_depth.first_bytes_per_second) == (1024, pytest.approx(5e9))


def test_attention_over_quantised_caches_is_kept_by_type():
    profile = measured()
    found = {(s.type, s.depth): s.batch for s in profile.cpu.series if s.operation == "attention" and s.type != "F16"}
    assert found == {(kind, depth): (1, 8) for kind in ("Q8_0", "Q4_0") for depth in (1024, 4096, 16384)}


# Those of F16 are of another kind of kernel: a reference for them stays where they alone were not measured.
def test_quantised_caches_do_not_stand_in_for_f16():
    tasks = [task for task in full_tasks(4) if not isinstance(task.work, Attention) or task.work.type != "F16"]
    found = {s.type: s.source for s in measured(tasks=tasks).cpu.series if s.operation == "attention"}
    assert found == {"F16": "reference", "Q8_0": "measured", "Q4_0": "measured"}


def slow_scans(work, result):
    """Sixteen GFLOP/s of a scan, of one token half."""
    if not isinstance(work, RecurrentScan):
        return result
    return fake.timed(work, result.n_flop / (8e9 if work.batch == 1 else 16e9) + 5e-6, result.n_bytes, result.n_flop)


def test_scans_have_rates_of_their_own():
    profile = measured(slow_scans)
    found = {s.operation: s for s in profile.cpu.series if s.operation in SCANS}
    assert set(found) == set(SCANS)
    for entry in found.values():
        assert (entry.type, entry.batch) == ("F32", (1, 64))
        assert entry.flop_per_second == pytest.approx((8e9, 16e9))
    assert parse_profile(encode_profile(profile)) == profile


@pytest.mark.parametrize(
    ("name", "kind", "n_layers", "n_elements"),
    [
        ("granite-4.0-h-tiny:Q4_K_M", "mamba2", 36, 48 * 64 * 128),
        ("qwen3-next-80b-a3b:Q4_K_M", "delta_net", 36, 32 * 128 * 128),
    ],
)
def test_a_model_takes_as_much_longer_as_its_scans(name, kind, n_layers, n_elements):
    profile = measured(slow_scans, key=replace(KEY, ram_bytes=128 << 30))
    model, n_tokens = read_model(name), 512

    def seconds(left_out: tuple[str, ...]) -> float:
        series = tuple(entry for entry in profile.cpu.series if entry.operation not in left_out)
        machine = Machine("m", replace(profile, cpu=replace(profile.cpu, series=series)), ())
        tiers = plan(model, machine, vram_bytes=0).to_dict()["tiers"]
        return next(tier["seconds"] for tier in tiers if tier["batch_size"] == n_tokens)

    # Six FLOP for each element; reading and writing it was priced before.
    more = n_layers * 6.0 * n_elements * n_tokens / 16e9
    assert 0.8 * more < seconds(()) - seconds((kind,)) < more
    assert seconds((kind,)) == seconds(SCANS)


def test_a_scan_of_which_an_end_is_missing_is_priced_by_its_bytes():
    def refused(work, result):
        return noisy(result, 0.6) if isinstance(work, RecurrentScan) and work.batch == 1 else result

    profile = measured(refused)
    assert not any(s.operation in SCANS for s in profile.cpu.series)
    assert profile.notes[0].startswith("Refused: scan, ")


def test_what_replaces_attention_replaces_it_at_every_depth():
    profile = measured()
    own = attention_of(profile)[4096]
    changed, replaced = with_series(profile, [replace(own, depth=None, source="imported")])
    assert attention_of(changed) == {None: replace(own, depth=None, source="imported")}
    assert replaced == ["attention F16 at 4 threads (measured)"]


def noisy_free(result, factor):
    from dataclasses import replace as with_

    sample = replace(
        result.sample,
        median_seconds=factor * result.sample.median_seconds,
        minimum_seconds=factor * result.sample.minimum_seconds,
    )
    return with_(result, sample=sample)


def test_a_tiny_product_is_not_all_start():
    def slow_start(work, result):
        return noisy_free(result, 1e6) if isinstance(work, Start) else result

    found = series_of(measured(slow_start), "mul_mat", "Q4_0")
    assert all(0 < rate < float("inf") for rate in found.flop_per_second)
    half = 2 * (2 * 20e9 * 8 / bits_per_weight("Q4_0"))
    assert found.flop_per_second[0] == pytest.approx(half, rel=0.02)


def test_noise_widens_a_range_and_is_said():
    wide = measured(lambda work, result: noisy(result, 0.2, 0.3) if is_q4_0(work, 512) else result)
    assert series_of(wide, "mul_mat", "Q4_0").spread == 0.3
    assert series_of(wide, "mul_mat", "Q8_0").spread == fake.SPREAD
    assert wide.notes == ("Noisy, so their ranges are wider: Q4_0, batch 512.",)


def test_a_rate_that_falls_widens_a_range_and_is_said():
    fallen = measured(lambda work, result: noisy_free(result, 1.5) if is_q4_0(work, 512) else result)
    assert series_of(fallen, "mul_mat", "Q4_0").spread == pytest.approx(1.0 / 3.0, abs=1e-3)
    assert series_of(fallen, "mul_mat", "Q8_0").spread == fake.SPREAD
    assert fallen.notes == (
        "Slower per row than fewer rows, which nothing explains, so their ranges are wider: Q4_0, batch 512 (by 33%).",
    )


def is_q4_0(work, batch):
    return isinstance(work, Product) and (work.type, work.layout, work.batch, work.n_used) == (
        "Q4_0",
        "plain",
        batch,
        0,
    )


def test_what_was_read_from_a_cache_is_said():
    from dataclasses import replace as with_

    warm = measured(lambda work, result: with_(result, is_cold=False) if is_q4_0(work, 1) else result)
    assert warm.notes == ("Partly read from caches, for want of memory, so maybe too fast: Q4_0, batch 1.",)


def test_a_range_widens_the_prediction():
    model = read_model("llama-3.2-1b:Q4_0")
    calm, wild = measured(), measured(lambda work, result: noisy(result, 0.3) if isinstance(work, Product) else result)
    narrow, wide = (
        plan(model, Machine("m", profile, ()), vram_bytes=0).to_dict()["tiers"][0] for profile in (calm, wild)
    )
    assert wide["seconds"] == pytest.approx(narrow["seconds"])
    assert narrow["basis"] == wide["basis"] == "measured"
    assert wide["seconds_high"] - wide["seconds_low"] > 5 * (narrow["seconds_high"] - narrow["seconds_low"])


def test_chaos_is_refused():
    profile = measured(lambda work, result: noisy(result, 0.6) if is_q4_0(work, 16) else result)
    found = series_of(profile, "mul_mat", "Q4_0")
    assert (found.batch, found.source) == ((1, 4, 64, 512), "measured")
    assert profile.notes == ("Refused: Q4_0, batch 16: runs differ by more than 50%; something else runs here.",)


def test_what_is_refused_for_one_reason_is_said_in_one_sentence():
    profile = measured(lambda work, result: noisy(result, 0.6) if is_q4_0(work, 16) or is_q4_0(work, 4) else result)
    (said,) = profile.notes
    assert said == ("Refused: Q4_0, batch 16; Q4_0, batch 4: runs differ by more than 50%; something else runs here.")


def test_what_other_programs_took_widens_ranges_and_is_said():
    from dataclasses import replace as with_

    prober = FakeProber()
    done = run(full_tasks(4), prober, limit_seconds=335.0, clock=prober.clock)
    shares = [0.4 if is_q4_0(r.work, 1) else 0.2 if is_q4_0(r.work, 4) else 0.05 for r in done.results]
    taken = [with_(r, doubts={Doubt.LOAD: share}) for r, share in zip(done.results, shares, strict=True)]
    profile = profile_from(with_(done, results=taken), base(), KEY, created="2026-11-21")
    assert series_of(profile, "mul_mat", "Q4_0").spread == 0.4
    assert series_of(profile, "mul_mat", "Q8_0").spread == 0.05
    assert profile.notes == (
        f"Other programs had up to 40% of the processors during 2 of {len(taken)} figures, whose ranges are wider: end "
        "them and measure again.",
    )


def test_a_series_without_its_ends_is_completed_with_references():
    def ends_are_wild(work, result):
        return noisy(result, 0.6) if is_q4_0(work, 1) or is_q4_0(work, 512) else result

    found, calm = (series_of(profile, "mul_mat", "Q4_0") for profile in (measured(ends_are_wild), measured()))
    reference = Rates(
        *rates_of(next(s for s in base().cpu.series if (s.operation, s.type) == ("mul_mat", "Q4_0"))), 0.0
    )
    assert found.batch == calm.batch
    assert found.flop_per_second[1:4] == calm.flop_per_second[1:4]
    # the reference reads faster than the memory that was measured
    assert reference.at(1) > 2 * 20e9 * 8 / bits_per_weight("Q4_0")
    assert found.flop_per_second[0] == pytest.approx(2 * 20e9 * 8 / bits_per_weight("Q4_0"))
    assert found.flop_per_second[-1] == pytest.approx(max(reference.at(512), calm.flop_per_second[3]))
    assert (found.source, found.spread) == ("reference", 0.3)


def rates_of(entry):
    return entry.batch, entry.flop_per_second


def test_an_interrupted_run_is_completed_with_references():
    def stop_at_attention(work, result):
        if isinstance(work, Attention):
            raise KeyboardInterrupt
        return result

    profile = measured(stop_at_attention, tasks=quick_tasks(4))
    plain = [s for s in profile.cpu.series if s.operation == "mul_mat" and s.layout == "plain"]
    assert {s.source for s in plain} == {"measured"}
    assert {s.source for s in profile.cpu.series if s.operation == "attention"} == {"reference"}
    assert {s.source for s in profile.cpu.series if s.layout == "interleaved"} == {"reference"}
    left, stand_in = profile.notes
    assert left.startswith("Not measured (interrupted): attention, batch 1, 4096 tokens; ")
    assert stand_in == (
        "Reference figures stand in for CPU mul_mat_id, CPU mul_mat interleaved, CPU mul_mat_id interleaved, "
        "CPU attention."
    )
    assert list(problems(profile)) == []
    machine = Machine("m", profile, ())
    tiers = plan(read_model("llama-3.2-1b:Q4_0"), machine, vram_bytes=0).to_dict()["tiers"]
    assert {tier["basis"] for tier in tiers} == {"reference"}


def test_a_run_without_time_says_so():
    profile = measured(limit=60.0, set_up_seconds=5.0)
    assert profile.notes[0].startswith("Not measured (no time was left): ")


def test_nothing_measured_is_the_reference_profile():
    def stop(work, result):
        raise KeyboardInterrupt

    profile = measured(stop)
    assert "the CPU" in reference_parts(profile)
    assert list(problems(profile)) == []


def test_a_gpu_that_was_not_probed_stays_a_reference():
    profile = measured(key=GPU_KEY, gpu="rtx-3060-12g")
    assert profile.name == "GeForce RTX 3060"
    assert {s.source for s in profile.gpu.series} == {"reference"}
    assert profile.notes == ("Reference figures stand in for the GPU, PCIe.",)


def test_one_models_figures_leave_the_others_as_they_were():
    old = measured()
    tasks = [task for task in full_tasks(4) if isinstance(task.work, Read | Start) or is_q4_0(task.work, 1)]
    new = measured(lambda work, result: noisy_free(result, 2.0), tasks=tasks, old=old)
    assert series_of(new, "mul_mat", "Q8_0") == series_of(old, "mul_mat", "Q8_0")
    assert series_of(new, "mul_mat", "Q4_0").batch == (1,)
    assert series_of(new, "mul_mat", "Q4_0").flop_per_second[0] < series_of(old, "mul_mat", "Q4_0").flop_per_second[0]
    assert series_of(new, "mul_mat", "Q4_0").source == "measured"
    assert new.storage_bytes_per_second == old.storage_bytes_per_second
    assert reference_parts(new) == []


def test_storage_is_kept_apart():
    profile = measured(tasks=[task for task in full_tasks(4, "/m.gguf") if not isinstance(task.work, Storage)])
    assert profile.storage_bytes_per_second is None


def test_series_replace_their_own_kind_only():
    profile = measured()
    own = series_of(profile, "mul_mat", "Q4_0")
    faster = replace(own, flop_per_second=tuple(9 * rate for rate in own.flop_per_second), source="imported")
    changed, replaced = with_series(profile, [faster])
    assert replaced == ["mul_mat Q4_0 at 4 threads (measured)"]
    assert series_of(changed, "mul_mat", "Q4_0") == faster
    assert series_of(changed, "mul_mat", "Q4_0", "interleaved") == series_of(profile, "mul_mat", "Q4_0", "interleaved")
    assert len(changed.cpu.series) == len(profile.cpu.series)
    assert list(problems(changed)) == []  # the peaks that nothing tells are raised with it


@pytest.mark.parametrize(
    ("reached", "note"),
    [
        (0.5, "GPU memory reaches 50% of the peak that its data sheet states."),
        (0.9, None),
        (1.02, "GPU memory reaches 102%"),
    ],
)
def test_shares_of_a_known_peak(reached, note):
    old = base("rtx-3060-12g")
    peak = old.gpu.memory_peak_bytes_per_second
    memory = replace(old.gpu.memory[0], bytes_per_second=reached * peak, source="measured")
    old = replace(old, gpu=replace(old.gpu, memory=(memory,)))
    profile = measured(key=GPU_KEY, old=old)
    assert peak_shares(profile) == [("GPU memory", pytest.approx(reached))]
    said = [text for text in profile.notes if "data sheet" in text]
    assert len(said) == (note is not None)
    assert all(text.startswith(note) for text in said)
