"""Make a profile of this machine: measure it, or take over what other tools measured, and store it."""

from __future__ import annotations

import datetime
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.atomic_file import locked
from pshard.errors import MachineError, SettingError
from pshard.machine.profile import read_profile, write_profile
from pshard.machine.reference_rates import build_profile
from pshard.machine.stored import current_key, find_stored, profile_folder, store, stored_path
from pshard.probe.gpu_probes import GpuProber
from pshard.probe.gpu_work import LOCK_SHARE, full_gpu_works, quick_gpu_works
from pshard.probe.load import OtherPrograms
from pshard.probe.measure import profile_from
from pshard.probe.pace import Pace, anchors_of
from pshard.probe.probes import FULL_SECONDS, QUICK_SECONDS, CpuProber, full_tasks, quick_tasks, tasks_for
from pshard.probe.running import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pshard.machine.detect import Detected
    from pshard.machine.nvidia import State
    from pshard.machine.profile import Key, Profile
    from pshard.probe.probes import Prober
    from pshard.probe.running import Run
    from pshard.probe.works import Work

# Of the memory that is free: the probes take what their caches make them take, and leave the rest alone.
MEMORY_SHARE = 0.5
# A file with more holes than this reads zeros that no disk gives.
LEAST_STORED = 0.9


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile that was measured; `path` is None where nothing was, because a person ended it at once."""

    path: Path | None
    profile: Profile
    run: Run


@dataclass(frozen=True, slots=True)
class Imported:
    """A profile with figures of another tool, and sentences on what changed in it."""

    path: Path
    profile: Profile
    sentences: tuple[str, ...]


def measure_machine(
    *,
    full: bool = False,
    model_name: str | None = None,
    n_threads: int | None = None,
    index: int = 0,
    output: Path | None = None,
    on_task: Callable[[Work, float, float], None] = lambda work, done, left: None,
    prober: Prober | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Measure this machine and store its profile.

    Parameters
    ----------
    full : bool
        All types, batches and depths, in `probes.FULL_SECONDS`; otherwise what decides most, in `QUICK_SECONDS`.
    model_name : str, optional
        A GGUF file or a model of the catalogue: only its shapes and types. Figures of other types stay as they are in
        the profile that holds, if one does.
    n_threads : int, optional
        CPU threads; one per physical core by default.
    index : int
        Which GPU, in the CUDA runtime's order.
    output : Path, optional
        File to write; the stored profile of this machine by default.
    on_task : callable
        As in `running.run`.
    prober : Prober, optional
        What measures; the probes of the core by default.
    clock : callable
        Seconds from any moment.

    Returns
    -------
    Measured

    Raises
    ------
    SettingError
        More threads than logical processors, a GPU that is not there, a model whose types have no native kernel.
    MachineError
        Another run is measuring this machine.
    FileError
        The profile cannot be written where it is to be.
    """
    from pshard.machine.cpus import physical_cpus
    from pshard.machine.detect import detect, topology

    cpus = physical_cpus()
    detected = detect(index=index)
    key = current_key(n_threads, index)
    if key.n_threads > len(cpus):
        msg = f"{key.n_threads} threads, but this process may use {len(cpus)} processors; ask for fewer (--threads)"
        raise SettingError(msg)
    gpu_reason = ""
    if prober is None:
        prober, gpu_reason = _prober(cpus[: key.n_threads], index, has_gpu=key.gpu is not None)
    has_gpu = key.gpu is not None and not gpu_reason
    base, notes = build_profile(detected.reference, key.n_threads), _notes(detected, gpu_reason)
    here = topology()
    base = replace(base, cpu=replace(base.cpu, n_sockets=here.n_sockets, n_numa_nodes=here.n_numa_nodes))
    seconds = FULL_SECONDS if full else QUICK_SECONDS
    holds = _profile_that_holds(key)
    lock_limit_bytes = int(LOCK_SHARE * _available_bytes())
    if model_name is None and full:
        tasks = full_tasks(key.n_threads, gpu_works=full_gpu_works(lock_limit_bytes) if has_gpu else ())
    elif model_name is None:
        tasks = quick_tasks(key.n_threads, quick_gpu_works(lock_limit_bytes) if has_gpu else ())
    else:
        from pshard.model.model import read_model

        path = _stored_file(model_name)
        limit = lock_limit_bytes if has_gpu else None
        tasks, missing = tasks_for(read_model(model_name), key.n_threads, seconds, path, limit)
        base = holds or base
        if missing:
            notes.append(
                f"{', '.join(missing)} have no native kernel here: estimated, until llama.cpp's own figures are "
                "imported (`pshard profile import`)."
            )
    target = output or stored_path(key)
    with locked([target]):  # a file that cannot be written is said before minutes go into it
        pass
    with _alone():
        measured_on = cpus[: key.n_threads]
        done = run(
            tasks,
            prober,
            limit_seconds=seconds,
            clock=clock,
            on_task=on_task,
            others=OtherPrograms(measured_on),
            n_cpus=len(measured_on),
            pace=Pace(anchors_of(tasks, key.n_threads), holds.pace if holds is not None else None),
        )
    key = _under_load(key, prober)
    if done.interrupted and holds is not None:  # what a person ends early must not cost what was known before
        base = holds
    profile = profile_from(done, base, key, created=_today(), notes=notes)
    if not done.results:
        if done.interrupted:
            return Measured(None, profile, done)
        reasons = "; ".join(f"{work}: {reason}" for work, reason in done.refused)
        msg = f"nothing could be measured: {reasons or 'no time was left'}; end what else runs here, and try again"
        raise MachineError(msg)
    return Measured(write_profile(profile, target), profile, done)


def import_figures(
    files: Sequence[Path],
    *,
    base: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    vram_bytes: int | None = None,
    output: Path | None = None,
) -> Imported:
    """Take over figures that another tool measured on this machine.

    Parameters
    ----------
    files : sequence of Path
        One output of llama.cpp's ``test-backend-ops perf``, or the planner pull request's two text files.
    base : path-like, optional
        The profile that engine rows are put into; by default the one of this machine that holds, else its references.
    n_threads : int, optional
        CPU threads that ``test-backend-ops`` ran with; by default what it takes, half of the logical processors.
    vram_bytes : int, optional
        The GPU's memory, where the pull request's files do not tell it.
    output : Path, optional
        File to write; by default `base`, else the stored profile of this machine.

    Returns
    -------
    Imported

    Raises
    ------
    SettingError
        Files that do not go together.
    MachineError
        A file that cannot be used.
    FileError
        The profile cannot be written.
    """
    from pshard.probe.engine_rows import is_engine_file, read_engine_rows, with_engine_rows

    if len(files) == 1 and is_engine_file(files[0]):
        count = n_threads or max(1, (os.cpu_count() or 1) // 2)
        key = current_key()
        profile = read_profile(base) if base is not None else _profile_that_holds(key)
        sentences: list[str] = []
        if profile is None:
            from pshard.machine.detect import detect

            sentences.append(
                "This machine has no profile yet: reference figures stand in for all that is not imported."
            )
            profile = replace(build_profile(detect().reference, count), key=replace(key, n_threads=count))
            profile = replace(profile, created=_today(), notes=tuple(sentences))
        profile, changed = with_engine_rows(profile, read_engine_rows(files[0]), count)
        profile = replace(profile, notes=(*profile.notes, *changed))
        sentences += changed
    elif len(files) == 2 and base is None:
        profile, sentences = _from_text(files, vram_bytes)
    elif len(files) == 1 and files[0].stat().st_size == 0:
        msg = f"{files[0]}: empty, so what was to write it failed or has not ended; run it again"
        raise MachineError(msg)
    else:
        msg = (
            f"{', '.join(map(str, files))}: give one output of `test-backend-ops perf --output sql`, or the pull "
            "request's cpu_profile.txt and gpu_profile.txt together (without --profile)"
        )
        raise SettingError(msg)
    target = output or (Path(base) if base is not None else None)
    return Imported(write_profile(profile, target) if target else store(profile), profile, tuple(sentences))


def _from_text(files: Sequence[Path], vram_bytes: int | None) -> tuple[Profile, list[str]]:
    from pshard.machine.imported import profile_from_text_files

    cpu, gpu = sorted(files, key=lambda path: path.read_bytes()[:6] == b"# GPU ")
    profile = profile_from_text_files(cpu, gpu, vram_bytes=vram_bytes)
    counts = [entry.n_threads or 1 for entry in profile.cpu.memory]
    profile = replace(profile, key=current_key(max(counts)), created=_today())
    return profile, list(profile.notes)


def _profile_that_holds(key: Key) -> Profile | None:
    stored = find_stored(key)
    return stored.profile if stored is not None and not stored.changes else None


def _notes(detected: Detected, gpu_reason: str) -> list[str]:
    """Say why there is no GPU to measure."""
    gpu = detected.reference.gpu
    if gpu is None:
        return [f"The CPU alone: {detected.no_gpu_reason}."]
    return [f"{gpu.product} and its link are not measured: {gpu_reason}."] if gpu_reason else []


def _prober(cpus: Sequence[int], index: int, *, has_gpu: bool) -> tuple[Prober, str]:
    """Return the probes of the core, and why those of a GPU that is here are not among them; empty where they are."""
    cpu = CpuProber(cpus, max_bytes=_free_bytes())
    if not has_gpu:
        return cpu, ""
    from pshard import _core
    from pshard.machine.nvidia import devices

    if not _core.built_with_cuda:
        return cpu, "this pshard was built without CUDA; build it with PSHARD_CUDA=ON"
    device = devices()[0][index]
    limits = {"max_device_bytes": int(MEMORY_SHARE * device.free_bytes), "max_host_bytes": _free_bytes() // 2}
    try:
        return GpuProber(cpu, index, device.pci_bus_id, **limits), ""
    except (_core.GpuError, ValueError) as error:
        return cpu, f"{error}; end what else uses it, or choose another (--device)"


def _under_load(key: Key, prober: Prober) -> Key:
    """Put in the PCIe link as it was seen right after copies."""
    seen: State | None = getattr(prober, "under_load", None)
    if seen is None or seen.pcie_generation is None:
        return key
    return replace(key, pcie_generation=seen.pcie_generation, pcie_lanes=seen.pcie_lanes)


def _stored_file(model_name: str) -> str:
    """Path of a model's file, if its bytes are really on a disk; empty for a catalogue name or a file of holes."""
    try:
        status = Path(model_name).stat()
    except OSError:
        return ""
    return model_name if status.st_blocks * 512 >= LEAST_STORED * status.st_size else ""


def _free_bytes() -> int:
    return int(MEMORY_SHARE * _available_bytes())


def _available_bytes() -> int:
    import psutil

    from pshard.machine.detect import usable_ram_bytes

    return min(int(psutil.virtual_memory().available), usable_ram_bytes())


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the machine: two runs at once would measure each other."""
    from filelock import FileLock, Timeout

    folder = profile_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "measuring.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        msg = f"another `pshard profile` is measuring this machine ({folder / 'measuring.lock'}); wait for its end"
        raise MachineError(msg) from error
    except OSError as error:
        msg = f"{folder}: cannot be written ({error.strerror or error}); set XDG_DATA_HOME to a folder that can"
        raise MachineError(msg) from error
    try:
        yield
    finally:
        lock.release()
