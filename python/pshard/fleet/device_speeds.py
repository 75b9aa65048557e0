"""The speed of each device of a cluster, in the form in which the core prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.errors import SettingError

if TYPE_CHECKING:
    from pshard import _core
    from pshard.cluster.cluster import Cluster, Device
    from pshard.machine.machine import Machine


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """One device as a machine that prices: its GPU, or its CPU.

    Attributes
    ----------
    machine : Machine
    on_gpu : bool
    core : _core.Machine
    """

    machine: Machine
    on_gpu: bool
    core: _core.Machine


def require_speeds(devices: Sequence[Device], what_for: str) -> None:
    """Raise where a device has no speed.

    Raises
    ------
    SettingError
        Naming the devices and what to do.
    """
    without = [device.name for device in devices if device.speed.source == "none"]
    if without:
        message = (
            f"{', '.join(without)}: no speed is known, and {what_for} goes by time. Name reference GPUs "
            "(--devices rtx-4090-24g,...), give speed = ... in the cluster file (a reference, or a profile that "
            "`pshard profile` measured), or ask for bytes alone."
        )
        raise SettingError(message)


def device_speeds(cluster: Cluster, devices: Sequence[Device]) -> dict[str, DeviceSpeed]:
    """Build what prices each device.

    Parameters
    ----------
    cluster : Cluster
    devices : sequence of Device
        All with a speed: see `require_speeds`.

    Returns
    -------
    dict
        By name. Equal devices share one object. Host weights are priced in the layout that llama.cpp keeps them in:
        plain beside a GPU, else interleaved.

    Raises
    ------
    MachineError
        A profile that cannot be used.
    """
    known: dict[tuple[object, ...], DeviceSpeed] = {}
    has_gpus = bool(cluster.accelerators)
    speeds = {}
    for device in devices:
        key = (device.speed, device.is_cpu, *((device.fact("n_cores"), _peak(device)) if device.is_cpu else ()))
        if key not in known:
            known[key] = _cpu_speed(device, beside_gpu=has_gpus) if device.is_cpu else _gpu_speed(device)
        speeds[device.name] = known[key]
    return speeds


def _gpu_speed(device: Device) -> DeviceSpeed:
    from pshard.machine.machine import load_machine

    given = device.speed
    machine = load_machine(given.name) if given.source == "profile" else load_machine(gpu=given.name)
    return DeviceSpeed(machine, on_gpu=True, core=machine.core())


def _cpu_speed(device: Device, *, beside_gpu: bool) -> DeviceSpeed:
    from msgspec.structs import replace

    from pshard.machine.machine import Machine, load_machine
    from pshard.machine.reference_rates import build_profile
    from pshard.machine.references import hosts, join

    if device.speed.source == "profile":
        machine = load_machine(device.speed.name)
    else:
        host = hosts()[device.speed.name]
        n_cores, peak = device.fact("n_cores"), _peak(device)
        host = replace(
            host, n_cores=int(n_cores or host.n_cores), dram_bytes_per_second=peak or host.dram_bytes_per_second
        )
        base = join(None, host)
        machine = Machine(base.name, build_profile(base, host.n_cores), reference=base)
    return DeviceSpeed(machine, on_gpu=False, core=machine.core(layout="plain" if beside_gpu else "interleaved"))


def _peak(device: Device) -> float | None:
    value = device.fact("memory_peak_bytes_per_second")
    return float(value) if isinstance(value, int | float) else None
