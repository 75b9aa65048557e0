"""What other programs take while something is measured: how it is counted, and what becomes of such a figure."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from fake_probes import FakeProber

from pshard.machine.cpus import physical_cpus
from pshard.probe.doubts import Doubt
from pshard.probe.load import OtherPrograms, share_of
from pshard.probe.running import run
from pshard.probe.works import Read, Start, Storage, Task

BURN_SECONDS = 0.5


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="processes cannot be put on a processor here")
def test_the_time_of_another_program_is_counted():
    cpu = physical_cpus()[0]
    others = OtherPrograms([cpu])
    code = (
        f"import psutil, time\npsutil.Process().cpu_affinity([{cpu}])\nwhile time.process_time() < {BURN_SECONDS}: pass"
    )
    before = others()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert others() - before > 0.8 * BURN_SECONDS  # counters step by a hundredth of a second


def test_shares_are_of_all_processors_and_short_spans_tell_nothing():
    assert share_of(0.5, 1.0, 1) == 0.5
    assert share_of(0.5, 1.0, 2) == 0.25
    assert share_of(0.01, 0.1, 1) == 0.0
    assert share_of(-0.1, 1.0, 1) == 0.0
    assert share_of(5.0, 1.0, 1) < 1.0  # a spread stays below 1


DISK = Storage("/m.gguf", 1 << 30)
TASKS = [Task(Start(2), 10.0), Task(Read(2), 10.0), Task(Read(1), 10.0), Task(DISK, 10.0)]


def drive(shares: dict):
    """Measure while others take these shares of two processors: of each work the next of its list, at last none."""
    prober = FakeProber()
    taken = 0.0

    def others() -> float:
        return taken

    def change(work, result):
        nonlocal taken
        left = shares.get(work, [])
        taken += 2 * 10.0 * (left.pop(0) if left else 0.0)
        return result

    prober.change = change
    done = run(TASKS, prober, limit_seconds=100.0, clock=prober.clock, others=others, n_cpus=2)
    return {result.work: result for result in done.results}, [work for work, _ in prober.asked]


def test_a_figure_under_load_is_measured_again_and_counts_when_the_load_is_gone():
    found, asked = drive({Read(2): [0.4]})
    assert asked == [Start(2), Read(2), Read(1), DISK, Read(2)]
    assert found[Read(2)].doubts == {}
    assert found[Read(2)].spread == found[Read(1)].spread


def test_a_load_that_stays_widens_the_range_although_runs_agree():
    found, asked = drive({Read(2): [0.4, 0.3]})
    assert asked.count(Read(2)) == 2
    assert found[Read(2)].disagreement < 0.1
    assert found[Read(2)].spread == found[Read(2)].doubts[Doubt.LOAD] == pytest.approx(0.3)


def test_a_little_load_is_kept_with_its_range():
    found, asked = drive({Read(2): [0.08]})
    assert asked.count(Read(2)) == 1
    assert found[Read(2)].spread == pytest.approx(0.08)


def test_what_waits_for_a_disk_is_not_widened():
    found, asked = drive({DISK: [0.4]})
    assert asked.count(DISK) == 1
    assert found[DISK].doubts == {}
