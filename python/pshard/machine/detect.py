"""What this machine is, as far as can be told without measuring, with the nearest reference figures.

Every choice is a sentence in the notes of the result, so that no reference figure passes for a measured one.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.errors import SettingError
from pshard.machine.references import GIB, Gpu, Host, Reference, gpus, hosts, join, nearest_gpu

if TYPE_CHECKING:
    from pshard._core import GpuDevice
    from pshard.machine.nvidia import Device

SYSTEM_DEVICES = Path("/sys/devices/system")
PCI_DEVICES = Path("/sys/bus/pci/devices")
GENERATION_OF_GT_PER_SECOND = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}


@dataclass(frozen=True, slots=True)
class Detected:
    """A machine with the nearest reference figures.

    `free_vram_bytes` is None where no GPU was asked, and `no_gpu_reason` says why.
    """

    reference: Reference
    free_vram_bytes: int | None
    no_gpu_reason: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """How a CPU is built, of what this process may use of it. Unknown counts are 1, an unknown cache is 0."""

    n_sockets: int
    n_cores: int
    n_logical: int
    n_numa_nodes: int
    last_level_cache_bytes: int


def detect(vram_bytes: int | None = None, *, ram_given: bool = False, index: int = 0) -> Detected:
    """Describe this machine without measuring anything.

    Parameters
    ----------
    vram_bytes : int, optional
        VRAM to plan for. On a machine without a GPU, the reference GPU nearest to it is taken.
    ram_given : bool
        The caller knows the memory and will replace it, so nothing needs to be said about it.
    index : int
        Which GPU, in the CUDA runtime's order.

    Returns
    -------
    Detected
        One GPU where there are several, which the notes say.

    Raises
    ------
    SettingError
        No GPU of that index; 0 may be absent.
    """
    host, cpu_note, ram_note = detect_host()
    host_notes = (cpu_note,) if ram_given else (cpu_note, ram_note)
    devices, reason = _devices()
    if devices:
        if not 0 <= index < len(devices):
            message = f"no GPU {index}; found: {', '.join(f'{i}: {device.name}' for i, device in enumerate(devices))}"
            raise SettingError(message)
        device = devices[index]
        gpu, gpu_notes = match_gpu(device)
        if len(devices) > 1:
            gpu_notes = (*gpu_notes, f"{len(devices)} GPUs found; this plans for GPU {index}, {device.name}.")
        slot = pcie_slot(device.pci_bus_id)
        if slot is None:
            gpu_notes = (*gpu_notes, f"PCIe link not readable; taken as {gpu.pcie_generation}.0 x{gpu.pcie_lanes}.")
        reference = join(gpu, host, pcie=slot, name="this machine", notes=(*gpu_notes, *host_notes))
        return Detected(reference, device.free_bytes)
    if index != 0:
        message = f"no GPU {index}: {reason}"
        raise SettingError(message)
    if vram_bytes:
        gpu = nearest_gpu(vram_bytes)
        note = (
            f"No GPU here ({reason}); taken: {gpu.name}, the reference GPU nearest to {vram_bytes / GIB:.3g} GiB "
            "(of several, the one with the slowest memory). Choose another with --gpu."
        )
        return Detected(join(gpu, host, name=f"this machine with {gpu.name}", notes=(note, *host_notes)), None, reason)
    note = f"No GPU here ({reason}); everything runs on the CPU. Name a GPU with --gpu, or give --vram."
    return Detected(join(None, host, name="this machine", notes=(note, *host_notes)), None, reason)


def detect_host() -> tuple[Host, str, str]:
    """Return cores and RAM of this machine with the speeds of the nearest reference host, and a note on each."""
    n_cores = physical_cores()
    ram_bytes = usable_ram_bytes()
    nearest = nearest_host(n_cores)
    model = cpu_model()
    host = replace(nearest, name="this host", product=model, n_cores=n_cores, ram_bytes=ram_bytes)
    cpu_note = f"{model}, {n_cores} cores detected; speeds are reference figures per core."
    ram_note = (
        f"{ram_bytes / GIB:.1f} GiB of RAM detected; its bandwidth is that of the reference host {nearest.name}, "
        f"{nearest.dram_bytes_per_second / 1e9:g} GB/s peak. Correct it with --ram SIZE@BANDWIDTH."
    )
    return host, cpu_note, ram_note


def nearest_host(n_cores: int) -> Host:
    """Return the reference host nearest in cores."""
    return min(hosts().values(), key=lambda host: (abs(math.log(host.n_cores / n_cores)), host.name))


def topology(devices: Path = SYSTEM_DEVICES) -> Topology:
    """Read sockets, cores, NUMA nodes and the last cache from the system.

    Parameters
    ----------
    devices : Path
        Where Linux describes its processors; elsewhere psutil counts the cores and the rest is unknown.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    mine = [devices / "cpu" / f"cpu{number}" for number in sorted(allowed)]
    sockets = {_line(cpu / "topology" / "physical_package_id") for cpu in mine} - {None}
    nodes = [node for node in devices.glob("node/node[0-9]*") if any((node / cpu.name).exists() for cpu in mine)]
    caches = [
        (int(_line(cache / "level") or 0), _kibibytes(_line(cache / "size")))
        for cpu in mine[:1]
        for cache in cpu.glob("cache/index[0-9]*")
    ]
    return Topology(
        n_sockets=max(1, len(sockets)),
        n_cores=physical_cores(),
        n_logical=len(allowed),
        n_numa_nodes=max(1, len(nodes)),
        last_level_cache_bytes=max(caches, default=(0, 0))[1],
    )


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _kibibytes(text: str | None) -> int:
    """Bytes of a cache size as Linux writes it, like 266240K."""
    found = re.fullmatch(r"(\d+)K", text or "")
    return int(found[1]) * 1024 if found else 0


def physical_cores() -> int:
    """Physical cores that this process may run on, at least 1."""
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, allowed))


def usable_ram_bytes(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of RAM, or the container's limit where that is lower."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name that the CPU gives itself, or "CPU"."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else "CPU"


def pcie_slot(bus_id: str, devices: Path = PCI_DEVICES) -> tuple[int, int] | None:
    """PCIe generation and lanes of a device, None where the system does not tell.

    The width is what is wired now. The speed is what device and slot can do: an idle GPU lowers its link to save power.
    """
    device = devices / bus_id.lower()
    try:
        lanes = int((device / "current_link_width").read_text())
        speeds = [_gt_per_second(device / "max_link_speed")]
    except (OSError, ValueError):
        return None
    with suppress(OSError, ValueError):  # behind a hypervisor there is no port above the device
        speeds.append(_gt_per_second(device.resolve().parent / "max_link_speed"))
    generation = GENERATION_OF_GT_PER_SECOND.get(min(speeds))
    return (generation, lanes) if generation and lanes > 0 else None


def match_gpu(device: Device | GpuDevice) -> tuple[Gpu, tuple[str, ...]]:
    """Find the reference figures for a GPU that is here.

    Parameters
    ----------
    device : Device or GpuDevice
        As its driver describes it.

    Returns
    -------
    Gpu
        The data sheet of the same product, or of the nearest one scaled to the multiprocessors and the memory clock of
        the device; with the device's own memory size and copy engines.
    tuple of str
        The sentence that says so.
    """
    same = [gpu for gpu in gpus().values() if _product_key(gpu.product) == _product_key(device.name)]
    own = {
        "product": device.name,
        "vram_bytes": device.total_bytes,
        **({"copy_engines": device.copy_engines} if device.copy_engines > 0 else {}),
    }
    if same:
        gpu = min(same, key=lambda gpu: abs(gpu.vram_bytes - device.total_bytes))
        note = f"{device.name} detected, not measured: speeds are reference figures of {gpu.name}."
        return replace(gpu, **own), (note,)
    gpu = nearest_gpu(device.total_bytes)
    if device.multiprocessors > 0:
        ratio = device.multiprocessors / gpu.n_sm
        own |= {
            "n_sm": device.multiprocessors,
            "fp16_flop_per_second": gpu.fp16_flop_per_second * ratio,
            "int8_op_per_second": gpu.int8_op_per_second * ratio,
        }
    if device.memory_bus_bits > 0 and device.memory_clock_hertz > 0:
        own["memory_bytes_per_second"] = device.memory_bus_bits / 8 * 2.0 * device.memory_clock_hertz
    note = (
        f"{device.name} detected, but it is no reference GPU: speeds are those of {gpu.name}, scaled to what the "
        "driver tells of this one."
    )
    return replace(gpu, **own), (note,)


def _devices() -> tuple[list[Device | GpuDevice], str]:
    from pshard.machine.nvidia import devices

    return devices()


def _gt_per_second(path: Path) -> float:
    return float(path.read_text().split()[0])


def _product_key(product: str) -> str:
    """Marketing name without maker, series and memory size, which data sheets and drivers spell differently."""
    words = re.sub(r"[\s-]*\b\d+\s*gb\b", "", product.lower())
    return " ".join(re.sub(r"\b(nvidia|geforce|tesla)\b", "", words).split())
