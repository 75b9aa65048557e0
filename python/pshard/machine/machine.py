"""A machine to plan for: where its figures come from, and the form in which the core prices with them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard import _core
from pshard.errors import SettingError
from pshard.machine.attention_rates import estimated_types, series_by_query, series_of_any_cache
from pshard.machine.profile import LAYOUTS, SCANS, Curve, Entry, Layout, Profile, Series, read_profile
from pshard.machine.rates import Rates, estimate, type_ids
from pshard.machine.reference_rates import build_profile
from pshard.machine.references import (
    GIB,
    Host,
    Reference,
    default_host,
    find_gpu,
    join,
    machine_names,
    parse_cpu,
    parse_pcie,
    parse_ram,
    reference,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.machine.profile import Operation, Processor

__all__ = ["Machine", "load_machine", "machine_from_text_profiles", "machines_of_gpus", "stored_machine"]

WITHOUT_SPEEDS = "none"
REFERENCE_NOTE = (
    "All speeds are reference figures, not measurements: published specifications times stated efficiencies."
)


@dataclass(frozen=True, eq=False)
class Machine:
    """A machine as a plan sees it.

    Attributes
    ----------
    name : str
    profile : Profile
        All figures; of a reference machine, at its own core count.
    notes : tuple of str
        Sentences on where the figures come from; every output shows them.
    reference : Reference or None
        The data sheets behind a machine that was not measured.
    free_vram_bytes : int or None
        VRAM that was free when the GPU was asked; None where none was.
    has_speeds : bool
        False for a machine of which only the capacities count: plans go by bytes alone.
    warnings : tuple of str
        What weakens every prediction for it: a profile that no longer holds.
    """

    name: str
    profile: Profile
    notes: tuple[str, ...] = ()
    reference: Reference | None = None
    free_vram_bytes: int | None = None
    has_speeds: bool = True
    warnings: tuple[str, ...] = ()
    _cores: dict[tuple[int, Layout], _core.Machine] = field(default_factory=dict, init=False, repr=False)

    @property
    def has_gpu(self) -> bool:
        """Whether there is a GPU to plan for."""
        return self.profile.gpu is not None

    @property
    def vram_bytes(self) -> int:
        """Bytes of the GPU's memory, 0 without a GPU."""
        return self.profile.capacities.vram_bytes

    @property
    def ram_bytes(self) -> int:
        """Bytes of the host's memory."""
        return self.profile.capacities.ram_bytes

    @property
    def n_threads(self) -> int:
        """CPU threads that a plan uses by default: one per physical core, or the most that the profile holds."""
        return self.profile.cpu.n_cores or max(entry.n_threads or 1 for entry in self.profile.cpu.memory)

    def to_dict(self) -> dict[str, object]:
        """Return what every JSON document says about the machine."""
        profile = self.profile
        speeds = {
            "gpu_memory_bytes_per_second": profile.gpu.memory[0].bytes_per_second if profile.gpu else None,
            "host_bytes_per_second": profile.host_bytes_per_second.value,
            "link_bytes_per_second": max(profile.link.up.bytes_per_second) if profile.link else None,
        }
        return {
            "name": self.name,
            "gpu": profile.gpu.name if profile.gpu else None,
            "cpu": profile.cpu.name,
            "n_cores": profile.cpu.n_cores,
            "vram_bytes": self.vram_bytes,
            "free_vram_bytes": self.free_vram_bytes,
            "ram_bytes": self.ram_bytes,
            **(speeds if self.has_speeds else dict.fromkeys(speeds)),
            "notes": list(self.notes),
        }

    def threads_priced(self, n_threads: int) -> int:
        """Return the thread count whose figures price `n_threads`: itself, or the nearest that a profile holds."""
        _check_threads(n_threads)
        if self.reference is not None or not self.has_speeds:
            return n_threads
        cpu = self.profile.cpu
        # Reading may have been measured at more thread counts than the products.
        counts = {series.n_threads or 1 for series in cpu.series} or {entry.n_threads or 1 for entry in cpu.memory}
        return min(counts, key=lambda count: (abs(count - n_threads), count))

    def notes_for(self, n_threads: int) -> tuple[str, ...]:
        """Return `notes`, and one more where `n_threads` is priced with the figures of another thread count."""
        priced = self.threads_priced(n_threads)
        if priced == n_threads:
            return self.notes
        return (*self.notes, f"The profile has no CPU figures for {n_threads} threads; those for {priced} are used.")

    def estimated_caches(self, n_threads: int, *types: str) -> list[str]:
        """Return those types of a KV cache, as GGUF writes them, whose attention on the CPU was not measured.

        Those of a machine of which no attention was measured are references like all else, and left out.
        """
        priced = self.threads_priced(n_threads)
        series = [entry for entry in self.profile.cpu.series if entry.operation == "attention"]
        return estimated_types((entry for entry in series if entry.n_threads == priced), types)

    def core(self, n_threads: int | None = None, layout: Layout = "plain") -> _core.Machine:
        """Build the form in which the core prices.

        Parameters
        ----------
        n_threads : int, optional
            CPU threads, at least 1; `self.n_threads` by default.
        layout : {"plain", "interleaved"}
            How weights lie in host memory. Types without interleaved kernels are priced as plain.

        Returns
        -------
        pshard._core.Machine
            Cached. Types that the profile lacks are estimated from their family, marked so, with a wider spread.

        Raises
        ------
        SettingError
            For a thread count below 1, an unknown layout, or a machine without speeds.
        """
        if not self.has_speeds:
            message = f"{self.name} prices nothing; name a machine with speeds (--machine, --gpu)"
            raise SettingError(message)
        n_threads = self.n_threads if n_threads is None else n_threads
        _check_threads(n_threads)
        if layout not in LAYOUTS:
            message = f"layout {layout!r} is none of {', '.join(LAYOUTS)}"
            raise SettingError(message)
        if (n_threads, layout) not in self._cores:
            profile = self.profile if self.reference is None else build_profile(self.reference, n_threads)
            self._cores[n_threads, layout] = _core_machine(self.name, profile, self.threads_priced(n_threads), layout)
        return self._cores[n_threads, layout]


def load_machine(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    gpu: str | None = None,
    ram: str | None = None,
    pcie: str | None = None,
    cpu: str | None = None,
    vram_bytes: int | None = None,
    n_threads: int | None = None,
) -> Machine:
    """Find the machine to plan for.

    Parameters
    ----------
    name_or_path : str or path-like, optional
        A reference machine or GPU (`pshard machines`), or a profile file; "none" for this machine without any speeds,
        for plans that go by bytes alone. Without it, and without `gpu`: the profile files of the planner pull request
        (named by PSHARD_CPU_PROFILE and PSHARD_GPU_PROFILE, or in the working directory), else this machine's stored
        profile, else what can be detected here with the nearest reference figures.
    gpu : str, optional
        A reference GPU, like "rtx-3060-12g".
    ram : str, optional
        Size and peak bandwidth of the host's memory, like "64G@51GB/s" or "64G".
    pcie : str, optional
        Generation and lanes of the GPU's slot, like "3x8".
    cpu : str, optional
        Cores, like "8c", or a reference host, like "server-32c".
    vram_bytes : int, optional
        VRAM to plan for; chooses the reference GPU nearest to it where this machine has none.
    n_threads : int, optional
        CPU threads to plan for; of several stored profiles of this machine, the one for as many counts.

    Returns
    -------
    Machine
        Its `notes` say what was chosen and why.

    Raises
    ------
    SettingError
        For a name, size or slot that cannot be read, with an example.
    MachineError
        For a profile that cannot be used.
    """
    from pshard.machine.detect import detect

    parts = {"--gpu": gpu, "--ram": ram, "--pcie": pcie, "--cpu": cpu}
    given = [option for option, value in parts.items() if value is not None]
    free_vram_bytes = None
    if name_or_path is not None:
        if gpu is not None:
            message = f"--machine {os.fspath(name_or_path)!r} and --gpu {gpu!r} both name a GPU; give one of them"
            raise SettingError(message)
        if name_or_path == WITHOUT_SPEEDS:
            return _without_speeds(vram_bytes, ram=ram, pcie=pcie, cpu=cpu)
        base = reference(os.fspath(name_or_path))
        if base is None:
            return _from_file(os.fspath(name_or_path), given)
    elif gpu is not None:
        sheet = find_gpu(gpu)
        base = join(sheet, default_host(sheet))
    else:
        measured, notes = (None, ()) if given else _measured_here(vram_bytes, n_threads)
        if measured is not None:
            return measured
        detected = detect(vram_bytes, ram_given=ram is not None)
        base, free_vram_bytes = detected.reference, detected.free_vram_bytes
        base = replace(base, notes=(*notes, *base.notes))
    in_default_host = base.gpu is not None and base.name == join(base.gpu, base.host).name
    base = _with_parts(base, ram=ram, pcie=pcie, cpu=cpu)
    if in_default_host and (assumed := _assumed(base, given)):
        base = replace(base, notes=(*base.notes, assumed))
    profile = build_profile(base, base.host.n_cores)
    return Machine(base.name, profile, (*base.notes, REFERENCE_NOTE), base, free_vram_bytes)


def machine_from_text_profiles(
    cpu_path: str | os.PathLike[str],
    gpu_path: str | os.PathLike[str],
    *,
    vram_bytes: int | None = None,
    ram_bytes: int | None = None,
    n_cores: int | None = None,
    budget_bytes: int | None = None,
) -> Machine:
    """Read the planner pull request's two profile files into a machine that plans can be made for.

    Parameters
    ----------
    cpu_path, gpu_path, vram_bytes, ram_bytes, n_cores, budget_bytes
        As those of `imported.profile_from_text_files`.

    Returns
    -------
    Machine

    Raises
    ------
    MachineError, SettingError
        As `imported.profile_from_text_files`.
    """
    from pshard.machine.imported import profile_from_text_files

    profile = profile_from_text_files(
        cpu_path, gpu_path, vram_bytes=vram_bytes, ram_bytes=ram_bytes, n_cores=n_cores, budget_bytes=budget_bytes
    )
    source = f"Profiles of the planner pull request: {cpu_path}, {gpu_path}."
    gpu_here = next(iter(_core.query_gpus().devices), None)
    free_bytes = gpu_here.free_bytes if gpu_here else None
    return Machine(profile.name, profile, (*profile.notes, source), free_vram_bytes=free_bytes)


def machines_of_gpus(n_gpu: int) -> list[Machine]:
    """Find what prices each of the first GPUs that are here: its stored profile, else the nearest reference figures.

    Parameters
    ----------
    n_gpu : int

    Returns
    -------
    list of Machine
        In the CUDA runtime's order; the same object for GPUs of one name. Empty where there are fewer GPUs.

    Raises
    ------
    MachineError
        As `load_machine`.
    """
    from pshard.machine.nvidia import devices

    names = [device.name for device in devices()[0][:n_gpu]]
    if len(names) < n_gpu:
        return []
    found = {name: _machine_of_gpu(names.index(name)) for name in dict.fromkeys(names)}
    return [found[name] for name in names]


def _machine_of_gpu(index: int) -> Machine:
    from pshard.machine.detect import detect

    if index == 0:
        return load_machine()
    stored = stored_machine(index=index)
    if stored is not None and stored.has_gpu:
        return stored
    base = detect(index=index).reference
    return Machine(base.name, build_profile(base, base.host.n_cores), (*base.notes, REFERENCE_NOTE), base)


def stored_machine(n_threads: int | None = None, index: int = 0) -> Machine | None:
    """Find the stored profile of this machine, as `pshard profile` leaves it.

    Parameters
    ----------
    n_threads : int, optional
        CPU threads: of several profiles, the one for as many counts.
    index : int
        Which GPU, in the CUDA runtime's order.

    Returns
    -------
    Machine or None
        Where it no longer holds, its `warnings` say so. None where none is stored for this machine.

    Raises
    ------
    MachineError
        The stored file cannot be used.
    """
    from pshard.machine.stored import any_stored, current_key, find_stored

    stored = find_stored(current_key(n_threads, index)) if any_stored() else None
    if stored is None:
        return None
    profile = stored.profile
    stale = f"the profile of this machine is stale ({'; '.join(stored.changes)}); measure again: `pshard profile`."
    return Machine(
        profile.name,
        profile,
        (*profile.notes, f"Profile of this machine: {stored.path}."),
        warnings=(stale,) if stored.changes else (),
    )


def _without_speeds(vram_bytes: int | None, *, ram: str | None, pcie: str | None, cpu: str | None) -> Machine:
    """Describe this machine's capacities; VRAM that nothing tells is what is planned for."""
    from pshard.machine.detect import detect

    if pcie is not None:
        message = f"--pcie {pcie!r} is a speed, and --machine none has none; leave one of them out"
        raise SettingError(message)
    detected = detect(vram_bytes, ram_given=ram is not None)
    base = _with_parts(detected.reference, ram=ram, pcie=None, cpu=cpu)
    profile = build_profile(base, base.host.n_cores)
    if vram_bytes and detected.free_vram_bytes is None and profile.gpu is not None:
        capacities = replace(profile.capacities, vram_bytes=vram_bytes)
        profile = replace(profile, capacities=capacities, gpu=replace(profile.gpu, name="GPU"))
    note = (
        "No speeds, so nothing is priced: of the placements that fit, the one with most whole layers on the GPU is "
        "taken, then the one with least VRAM."
    )
    return Machine("this machine, unmeasured", profile, (note,), None, detected.free_vram_bytes, has_speeds=False)


def _measured_here(vram_bytes: int | None, n_threads: int | None) -> tuple[Machine | None, tuple[str, ...]]:
    """Find measured figures of this machine, and notes: the planner pull request's files, else the stored profile.

    What lies in the working directory, or is named by a variable, was put there for this call.
    """
    from pshard.machine.text_profiles import CPU_FILE, GPU_FILE, find_text_profiles

    cpu_path, gpu_path = find_text_profiles()
    if cpu_path is not None and gpu_path is not None:
        return machine_from_text_profiles(cpu_path, gpu_path, budget_bytes=vram_bytes), ()
    notes: tuple[str, ...] = ()
    if cpu_path or gpu_path:
        missing = GPU_FILE if cpu_path else CPU_FILE
        notes = (f"{cpu_path or gpu_path} is not used: {missing} is missing, and only both together tell speeds.",)
    stored = stored_machine(n_threads)
    if stored is not None and (stored.has_gpu or not vram_bytes):
        return dataclasses.replace(stored, notes=(*notes, *stored.notes)), ()
    return None, notes


def _from_file(name: str, given: list[str]) -> Machine:
    if not (os.sep in name or name.endswith(".json") or Path(name).exists()):
        import difflib

        near = difflib.get_close_matches(name.lower(), machine_names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "'pshard machines' lists the names"
        message = f"machine {name!r} is neither a reference machine nor a file; {hint}"
        raise SettingError(message)
    if given:
        message = (
            f"{' and '.join(given)} cannot change the profile {name}; edit the file, or compose a machine with --gpu"
        )
        raise SettingError(message)
    profile = read_profile(name)
    return Machine(profile.name, profile, (*profile.notes, f"Profile: {name}."))


def _assumed(base: Reference, given: list[str]) -> str:
    """Say what was taken for the host of a GPU that was named alone; empty where everything was given."""
    host = base.host
    parts = {
        "--cpu": f"{host.n_cores} cores",
        "--ram": f"{host.ram_bytes / GIB:g} GiB at {host.dram_bytes_per_second / 1e9:g} GB/s",
        "--pcie": f"PCIe {base.pcie_generation}.0 x{base.pcie_lanes}",
    }
    missing = [f"{text} ({option})" for option, text in parts.items() if option not in given]
    return f"Not given, so taken: {', '.join(missing)}." if missing else ""


def _with_parts(base: Reference, *, ram: str | None, pcie: str | None, cpu: str | None) -> Reference:
    """Replace what was given; cores first, because a named host brings its own memory, which `ram` then overrides."""
    host, said = base.host, []
    if cpu is not None:
        chosen = parse_cpu(cpu)
        host = chosen if isinstance(chosen, Host) else replace(host, n_cores=chosen, product=f"{chosen} cores")
        said.append(host.product)
    if ram is not None:
        ram_bytes, rate = parse_ram(ram)
        host = replace(host, ram_bytes=ram_bytes, dram_bytes_per_second=rate or host.dram_bytes_per_second)
        said.append(f"{ram_bytes / GIB:g} GiB at {host.dram_bytes_per_second / 1e9:g} GB/s")
    slot = (base.pcie_generation, base.pcie_lanes)
    if pcie is not None:
        if base.gpu is None:
            message = f"--pcie {pcie!r}: there is no GPU in this machine; name one with --gpu"
            raise SettingError(message)
        slot = parse_pcie(pcie)
        said.append(f"PCIe {slot[0]}.0 x{slot[1]}")
    return replace(base, name=", ".join([base.name, *said]), host=host, pcie_generation=slot[0], pcie_lanes=slot[1])


def _check_threads(n_threads: int) -> None:
    if n_threads < 1:
        message = f"n_threads = {n_threads} is not at least 1"
        raise SettingError(message)


def _core_machine(name: str, profile: Profile, n_threads: int, layout: Layout) -> _core.Machine:
    core = _core.Machine()
    core.name = name
    core.vram_bytes = profile.capacities.vram_bytes
    core.ram_bytes = profile.capacities.ram_bytes
    core.page_lock_bytes = profile.capacities.page_lock_bytes
    core.host_bytes_per_second = profile.host_bytes_per_second.value
    core.cpu = _core_processor(profile.cpu, n_threads, layout)
    core.cpu.skips_masked = True
    core.cpu.n_threads = n_threads
    if profile.gpu is not None and profile.link is not None:
        link = profile.link
        core.has_gpu = True
        core.gpu = _core_processor(profile.gpu, None, "plain")
        core.up = _core_curve(link.up)
        core.down = _core_curve(link.down)
        core.copy_engines = link.copy_engines
        core.pageable_bytes_per_second = link.pageable_bytes_per_second.value
        core.handoff_to_gpu_seconds = link.handoff_to_gpu_seconds.value
        core.handoff_to_cpu_seconds = link.handoff_to_cpu_seconds.value
        core.cpu_rate_under_copy = link.cpu_rate_under_copy.value
        core.copy_rate_under_cpu = link.copy_rate_under_cpu.value
        if link.gpu_rate_under_copy is not None and link.copy_rate_under_gpu is not None:
            core.gpu_rate_under_copy = link.gpu_rate_under_copy.value
            core.copy_rate_under_gpu = link.copy_rate_under_gpu.value
    core.check()
    return core


def _core_processor(processor: Processor, n_threads: int | None, layout: Layout) -> _core.Processor:
    core = _core.Processor()
    memory = next(entry for entry in processor.memory if entry.n_threads == n_threads)
    core.memory_bytes_per_second = memory.bytes_per_second
    core.memory_peak_bytes_per_second = max(processor.memory_peak_bytes_per_second, memory.bytes_per_second)
    core.peak_flop_per_second = processor.peak_flop_per_second
    core.op_seconds = memory.op_seconds
    core.basis = _basis(memory)
    core.spread = memory.spread
    at_threads = [series for series in processor.series if series.n_threads == n_threads]
    core.mul_mat = _all_types("mul_mat", at_threads, layout, memory.bytes_per_second)
    core.mul_mat_id = _all_types("mul_mat_id", at_threads, layout, memory.bytes_per_second)
    for scan in (series for series in at_threads if series.operation in SCANS):
        setattr(core, scan.operation, _core_series(_rates(scan), _basis(scan)))
    attention = [series for series in at_threads if series.operation == "attention"]
    core.attention = _attention_table(series_of_any_cache(attention))
    if n_threads is not None:
        ids = type_ids()
        core.attention_by_query = {
            ids[name]: _attention_table(found) for name, found in series_by_query(attention).items()
        }
    return core


def _attention_table(series: Sequence[Series]) -> list[_core.AttentionRates]:
    return [
        _core.AttentionRates(
            depth=entry.depth or 1.0,
            rates=_core_series(_rates(entry), _basis(entry)),
            first_bytes_per_second=entry.first_bytes_per_second or 0.0,
        )
        for entry in series
    ]


def _all_types(
    operation: Operation, series: list[Series], layout: Layout, memory_bytes_per_second: float
) -> dict[int, _core.RateSeries]:
    """Rates of every weight type: those of the profile (interleaved before plain, where asked), the rest estimated."""
    chosen = {entry.type: entry for entry in series if entry.operation == operation and entry.layout == "plain"}
    if layout == "interleaved":
        chosen |= {entry.type: entry for entry in series if entry.operation == operation and entry.layout == layout}
    # Estimates come from kernels for plain weights: a type without interleaved kernels stays as it is in the file.
    known = {entry.type: _rates(entry) for entry in series if entry.operation == operation and entry.layout == "plain"}
    known = known or {name: _rates(entry) for name, entry in chosen.items()}
    table = {}
    for name, number in type_ids().items():
        if name in chosen:
            table[number] = _core_series(_rates(chosen[name]), _basis(chosen[name]))
        elif (rates := estimate(name, known, memory_bytes_per_second)) is not None:
            table[number] = _core_series(rates, _core.Basis.estimated)
    return table


def _rates(series: Series) -> Rates:
    return Rates(series.batch, series.flop_per_second, series.spread)


def _core_series(rates: Rates, basis: _core.Basis) -> _core.RateSeries:
    return _core.RateSeries(
        batch=list(rates.batch), flop_per_second=list(rates.flop_per_second), basis=basis, spread=rates.spread
    )


def _core_curve(curve: Curve) -> _core.LinkCurve:
    return _core.LinkCurve(
        chunk_bytes=list(curve.chunk_bytes),
        bytes_per_second=list(curve.bytes_per_second),
        latency_seconds=curve.latency_seconds,
        peak_bytes_per_second=max(curve.peak_bytes_per_second, *curve.bytes_per_second),
        basis=_basis(curve),
        spread=curve.spread,
    )


def _basis(entry: Entry) -> _core.Basis:
    return _core.Basis[entry.source]
