"""What happens where the system refuses, a file goes away, or someone interrupts: an error, all given back, and on."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from run_cases import model, write_weights

from pshard import _core
from pshard.machine.cpus import physical_cpus
from pshard.model.model import Model, read_model
from pshard.run.execution import ExecutionError, Workload, execute, schedules_of
from pshard.run.host_backend import share_cpus
from pshard.run.sources import workload_of_layers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as Linux has them")
MIB = 1 << 20


def streaming(m: Model, batch: int = 1, arena_bytes: int | None = None) -> Workload:
    """Stream every layer, with an arena that suffices, or of so many bytes."""
    placement = _core.Placement()
    placement.patterns = [_core.LayerPlacement(_core.Where.stream_a), _core.LayerPlacement(_core.Where.stream_b)]
    placement.layer_pattern = [i % 2 for i in range(m.n_layer)]
    placement.head = _core.Where.cpu
    whole = workload_of_layers(m, [m.n_layer], prompt_tokens=0, generate_tokens=1, tier=batch)
    (phase,) = whole.phases
    if arena_bytes is None:
        return replace(whole, phases=(replace(phase, placement=placement),))
    limited = replace(phase, placement=placement, vram_bytes=(arena_bytes,))
    return replace(whole, phases=(limited,), arena_bytes=(arena_bytes,), is_limited=True)


def is_run(m: Model) -> bool:
    result = execute(m, streaming(m), cpus=share_cpus(physical_cpus(), 1), passes=1, check=True)
    return all(record.n_checked > 0 for phase in result.phases for record in phase.records)


def in_a_child(scenario: str) -> None:
    """Run a scenario of this file in a process of its own, whose limits are its own."""
    code = f"import test_run_faults; test_run_faults.{scenario}()"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=here)
    assert done.returncode == 0, done.stderr


def memory_is_refused() -> None:
    m = model()
    assert is_run(m)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (here + 400 * MIB, resource.RLIM_INFINITY))
    cpus = share_cpus(physical_cpus(), 1)
    large = model(400)  # 184 MiB
    for _ in range(5):  # if one kept what it got, there would be none for the next
        with pytest.raises(ExecutionError, match=r"the arena of \d+ bytes for GPU 0 was refused by the system"):
            execute(m, streaming(m, arena_bytes=1 << 30), cpus=cpus, passes=1)
        with pytest.raises(ExecutionError, match=r"weights of \d+ bytes do not fit in memory"):
            execute(large, streaming(large, arena_bytes=256 * MIB), cpus=cpus, passes=1)
    assert is_run(m)


def locking_is_refused() -> None:
    _give_up_locking()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * MIB, 2 * MIB))
    m = model(12)  # of 5 MiB
    cpus = share_cpus(physical_cpus(), 1)
    result = execute(m, streaming(m, 4), cpus=cpus, passes=2, check=True)
    assert 0 < result.locked_bytes <= 2 * MIB
    assert result.staged_bytes > 0
    assert f"{result.staged_bytes} bytes could not be page-locked: copied through a page-locked ring." in result.notes
    assert all(record.n_checked > 0 for record in result.phases[0].records)
    locked = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck")]
    assert locked[0].split()[1] == "0"


def _give_up_locking() -> None:
    """Give up CAP_IPC_LOCK, which lets root lock whatever it wants."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for i in range(3):  # effective, permitted, inheritable
        sets[i] &= ~(1 << 14)
    assert libc.capset(header, sets) == 0


@pytest.mark.parametrize("scenario", ["memory_is_refused", "locking_is_refused"])
def test_what_the_system_refuses(scenario: str) -> None:
    in_a_child(scenario)


@pytest.mark.parametrize("check", [False, True])
def test_a_file_that_becomes_shorter_in_mid_run_is_named(tmp_path: Path, check: bool) -> None:
    path = tmp_path / "tiny.gguf"
    write_weights(path)
    m = read_model(str(path))
    whole = path.read_bytes()

    def cut(what: str, done: int, of: int) -> None:
        if done == 2:
            os.truncate(path, 4096)

    cpus = share_cpus(physical_cpus(), 1)
    with pytest.raises(ExecutionError, match=r"tiny\.gguf: became shorter while it was in use; restore it"):
        execute(m, streaming(m), cpus=cpus, passes=5, page_lock_bytes=0, on_pass=cut, check=check)
    path.write_bytes(whole)
    assert is_run(m)


def test_interrupted_passes_leave_an_executor_that_runs() -> None:
    m = model(12)
    workload = streaming(m, 64)
    cpus = share_cpus(physical_cpus(), 1)
    executor = _core.Executor(
        schedules_of(m, workload), host_cpus=list(cpus.host), devices=cpus.devices(workload.arena_bytes),
        vram_bytes=[list(workload.arena_bytes)], page_lock_bytes=0, check=True, is_limited=False,
    )  # fmt: skip
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for wait in (0.001, 0.01, 0.02, 0.05, 0.1):
            with pytest.raises(KeyboardInterrupt):
                threading.Timer(wait, lambda: signal.raise_signal(signal.SIGINT)).start()
                while True:
                    executor.run(0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert executor.run(0).n_checked > 0
