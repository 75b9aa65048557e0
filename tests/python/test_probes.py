"""Which probes are run, with how much time, and what a run keeps of them. The clock is a counter."""

from __future__ import annotations

import pytest
from fake_probes import FakeProber, noisy

from pshard.errors import SettingError
from pshard.machine.profile import SCANS
from pshard.model.model import read_model
from pshard.probe.gpu_work import GpuProduct
from pshard.probe.probes import FULL_SECONDS, QUICK_SECONDS, full_tasks, quick_tasks, tasks_for, thread_counts
from pshard.probe.running import run
from pshard.probe.works import Attention, Peak, ProbeFailed, Product, Read, RecurrentScan, Start, Storage, Task
from pshard.weight_types import COMMON, cpu_types, gpu_types, interleaved_types


def test_thread_counts_double_up_to_all():
    assert [thread_counts(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


@pytest.mark.parametrize("n_threads", [1, 2, 16, 128])
def test_budgets_leave_a_third_for_setting_up(n_threads):
    for tasks, seconds in ((quick_tasks(n_threads), QUICK_SECONDS), (full_tasks(n_threads, "/m.gguf"), FULL_SECONDS)):
        assert sum(task.budget_seconds for task in tasks) == pytest.approx(2.0 / 3.0 * seconds)
        assert len({task.work for task in tasks}) == len(tasks)
    assert QUICK_SECONDS < 60.0
    assert FULL_SECONDS < 360.0


def test_full_measures_all_that_quick_does():
    quick, full = ({task.work for task in tasks} for tasks in (quick_tasks(8), full_tasks(8)))
    assert quick < full


def test_what_a_profile_must_hold_is_measured():
    works = [task.work for task in full_tasks(8, "/m.gguf")]
    dense = {(w.type, w.layout, w.batch) for w in works if isinstance(w, Product) and not w.n_used}
    for layout, names in (("plain", cpu_types()), ("interleaved", interleaved_types())):
        for name in names:
            batches = {1, 4, 16, 64, 512} if name in COMMON else {1, 16, 512}
            assert {batch for kind, of, batch in dense if (kind, of) == (name, layout)} == batches
    assert {w.type for w in works if isinstance(w, Product) and w.n_used} == set(cpu_types())
    attention = [w for w in works if isinstance(w, Attention)]
    assert {w.batch for w in attention if w.type == "F16"} == {1, 32, 64, 512}
    assert {(w.type, w.batch) for w in attention if w.type != "F16"} == {
        (kind, batch) for kind in ("Q8_0", "Q4_0") for batch in (1, 8)
    }
    assert len({w.depth for w in attention}) == 3
    assert {w.n_threads for w in works if isinstance(w, Read)} == {1, 2, 4, 8}
    assert {(w.kind, w.batch) for w in works if isinstance(w, RecurrentScan)} == {
        (kind, batch) for kind in SCANS for batch in (1, 64)
    }
    assert {type(w) for w in works} == {Read, Start, Peak, Product, Attention, RecurrentScan, Storage}


def test_decode_and_prefill_of_the_commonest_type_come_first():
    first = [str(task.work) for task in quick_tasks(2)][:9]
    assert first[:4] == [
        "start of an operation, 2 threads",
        "memory, 2 threads",
        "arithmetic, 2 threads",
        "Q4_K, batch 1",
    ]
    assert "Q4_K, batch 512" in first


def test_a_model_is_measured_by_its_own_shapes():
    model = read_model("llama-3.1-8b:Q4_K_M")
    tasks, missing = tasks_for(model, 8, 55.0, "/models/m.gguf")
    products = [task.work for task in tasks if isinstance(task.work, Product)]
    assert {(w.type, w.n_rows, w.n_columns) for w in products if w.batch == 1} == {
        ("Q4_K", 14336, 4096),  # gate and up projections, most of the bytes
        ("Q6_K", 4096, 14336),  # down projections; the head has fewer bytes than all of them
    }
    assert {w.layout for w in products if w.type == "Q4_K"} == {"plain", "interleaved"}
    assert max(w.n_rows for w in products if w.batch == 512) == 2048
    heads = {(w.n_heads, w.n_kv_heads, w.head_size) for w in (t.work for t in tasks) if isinstance(w, Attention)}
    assert heads == {(32, 8, 128), (8, 8, 128)}  # all query heads, and one per key head
    assert tasks[-1].work == Storage("/models/m.gguf", 1 << 30)
    assert missing == []
    assert sum(task.budget_seconds for task in tasks) == pytest.approx(2.0 / 3.0 * 55.0)


def test_experts_of_a_model_are_measured_as_experts():
    tasks, missing = tasks_for(read_model("qwen3-30b-a3b:Q4_K_M"), 8, 55.0)
    routed = {
        (w.type, w.n_rows, w.n_columns, w.n_used)
        for w in (t.work for t in tasks)
        if isinstance(w, Product) and w.n_used
    }
    assert ("Q4_K", 768, 2048, 8) in routed
    assert missing == []


# Heads, outputs of a head and columns as the models' cards state them.
@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("granite-4.0-h-tiny:Q4_K_M", "mamba2", (48, 64, 128)),
        ("qwen3-next-80b-a3b:Q4_K_M", "delta_net", (32, 128, 128)),
    ],
)
def test_scans_of_a_model_are_measured_by_its_own_shape(name, kind, shape):
    works = [task.work for task in tasks_for(read_model(name), 2, 55.0)[0]]
    scans = [work for work in works if isinstance(work, RecurrentScan)]
    assert [(w.kind, (w.n_heads, w.n_rows, w.n_columns), w.batch) for w in scans] == [
        (kind, shape, 1),
        (kind, shape, 64),
    ]


def test_models_without_a_scan_have_none():
    for name in ("llama-3.1-8b:Q4_K_M", "lfm2-8b-a1b:Q4_0"):
        assert not any(isinstance(task.work, RecurrentScan) for task in tasks_for(read_model(name), 2, 55.0)[0])


def test_types_without_a_kernel_are_said():
    model = read_model("llama-3.1-8b:Q5_K_M")
    assert tasks_for(model, 8, 55.0)[1] == []
    assert tasks_for(retyped(model, "Q5_K", "IQ2_S"), 8, 55.0)[1] == ["IQ2_S"]
    none = retyped(retyped(model, "Q5_K", "IQ2_S"), "Q6_K", "IQ1_M")
    with pytest.raises(SettingError, match=r"no native kernel for its types \(IQ1_M, IQ2_S\).*pshard profile import"):
        tasks_for(none, 8, 55.0)


def test_types_that_only_the_cpu_multiplies_are_said_where_there_is_a_gpu():
    for name in cpu_types():
        if name not in COMMON:
            tasks, missing = tasks_for(retyped(read_model("llama-3.1-8b:Q5_K_M"), "Q5_K", name), 8, 55.0, "", 1 << 30)
            assert missing == ([] if name in gpu_types() else [f"{name} on a GPU"])
            assert any(isinstance(task.work, Product) and task.work.type == name for task in tasks)
            on_gpu = any(isinstance(task.work, GpuProduct) and task.work.type == name for task in tasks)
            assert on_gpu == (name in gpu_types())


def retyped(model, old, new):
    from dataclasses import replace

    from gguf import GGMLQuantizationType

    kinds = {GGMLQuantizationType[old]: GGMLQuantizationType[new].value}
    tensors = tuple(replace(tensor, type=kinds.get(tensor.type, tensor.type)) for tensor in model.tensors)
    return replace(model, header=replace(model.header, tensors=tensors))


@pytest.mark.parametrize("name", ["gpt-oss-20b:MXFP4", "qwen3-30b-a3b:Q4_K_M"])
def test_experts_and_routers_are_measured_by_their_own_types(name):
    works = [task.work for task in tasks_for(read_model(name), 8, 55.0)[0]]
    routed = {work.type for work in works if isinstance(work, Product) and work.n_used}
    assert routed == ({"MXFP4"} if "MXFP4" in name else {"Q4_K", "Q6_K"})
    (router,) = {(w.n_rows, w.n_columns) for w in works if isinstance(w, Product) and w.type == "F32"}
    assert router == ((32, 2880) if "MXFP4" in name else (128, 2048))


# --- the run ----------------------------------------------------------------------------------------------------------


def drive(tasks, prober, limit=100.0, **more):
    return run(tasks, prober, limit_seconds=limit, clock=prober.clock, **more)


TASKS = [Task(Start(2), 10.0), Task(Read(2), 10.0), Task(Read(1), 10.0)]


def test_every_task_gets_its_budget():
    prober = FakeProber()
    done = drive(TASKS, prober)
    assert [result.work for result in done.results] == [Start(2), Read(2), Read(1)]
    assert [budget for _, budget in prober.asked] == [10.0, 10.0, 10.0]
    assert (done.left, done.refused, done.interrupted, done.seconds) == ([], [], False, 30.0)


def test_slow_setting_up_shortens_what_follows_and_the_limit_holds():
    prober = FakeProber(set_up_seconds=12.0)
    done = drive(TASKS, prober, limit=45.0)
    budgets = [budget for _, budget in prober.asked]
    assert budgets == pytest.approx([10.0, 10.0, 1.0])
    assert done.seconds == pytest.approx(57.0)  # the last one's setting up is all that can overrun
    assert drive([*TASKS, Task(Read(4), 10.0)], FakeProber(set_up_seconds=12.0), limit=40.0).left == [Read(1), Read(4)]


def test_what_fails_is_refused_with_its_reason():
    def fail(work, result):
        if work == Read(2):
            raise ProbeFailed("sum of the array is wrong")
        return result

    done = drive(TASKS, FakeProber(change=fail))
    assert done.refused == [(Read(2), "sum of the array is wrong")]
    assert [result.work for result in done.results] == [Start(2), Read(1)]


def test_an_interrupt_keeps_what_was_measured():
    def interrupt(work, result):
        if work == Read(2):
            raise KeyboardInterrupt
        return result

    done = drive(TASKS, FakeProber(change=interrupt))
    assert done.interrupted
    assert [result.work for result in done.results] == [Start(2)]
    assert done.left == [Read(2), Read(1)]


def test_the_bar_hears_the_share_that_is_done_and_the_seconds_left():
    heard = []
    drive(TASKS, FakeProber(set_up_seconds=5.0), on_task=lambda work, done, left: heard.append((work, done, left)))
    assert [work for work, _, _ in heard] == [Start(2), Read(2), Read(1)]
    assert [done for _, done, _ in heard] == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert [left for _, _, left in heard[1:]] == pytest.approx([30.0, 15.0])  # at the pace of 15 s each


def test_other_errors_are_not_swallowed():
    def break_(work, result):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drive(TASKS, FakeProber(change=break_))


def test_a_noisy_result_is_a_result_and_chaos_is_none():
    done = drive(TASKS, FakeProber(change=lambda work, result: noisy(result, 0.2, 0.3)))
    assert [result.spread for result in done.results] == [0.3, 0.3, 0.3]
    done = drive(TASKS, FakeProber(change=lambda work, result: noisy(result, 0.1, 0.6)))
    assert done.results == []
    assert done.refused[0] == (Start(2), "runs differ by more than 50%; something else runs here")


def disturbed_once(spreads):
    """Give the next of these spreads to each measurement of `Read(2)`."""
    left = list(spreads)
    return lambda work, result: noisy(result, left.pop(0)) if work == Read(2) else result


def test_what_was_disturbed_is_measured_once_more_at_the_end():
    prober = FakeProber(change=disturbed_once([0.9, 0.12]))
    done = drive(TASKS, prober)
    assert [work for work, _ in prober.asked] == [Start(2), Read(2), Read(1), Read(2)]
    assert [(result.work, result.spread) for result in done.results][1] == (Read(2), 0.12)
    assert done.refused == []


def test_the_steadier_of_both_counts():
    done = drive(TASKS, FakeProber(change=disturbed_once([0.2, 0.4])))
    assert [result.spread for result in done.results if result.work == Read(2)] == [0.2]
    done = drive(TASKS, FakeProber(change=disturbed_once([0.9, 0.7])))
    assert done.refused == [(Read(2), "runs differ by more than 50%; something else runs here")]


def test_nothing_is_measured_again_when_the_time_is_over():
    prober = FakeProber(change=disturbed_once([0.9]))
    assert drive(TASKS, prober, limit=30.0).refused[0][0] == Read(2)
    assert len(prober.asked) == 3


def test_an_interrupt_of_the_second_round_keeps_the_first():
    asked = []

    def interrupt(work, result):
        asked.append(work)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return noisy(result, 0.2) if work == Read(2) else result

    done = drive(TASKS, FakeProber(change=interrupt))
    assert done.interrupted
    assert done.left == []
    assert [result.spread for result in done.results if result.work == Read(2)] == [0.2]
