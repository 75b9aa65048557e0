"""What computes on this machine, and what joins it: one module for each kind of device.

Each module has one function `probe`, which looks at a `System` and returns a `Finding`. Nothing that a file or a tool
says can stop detection: kinds are asked at the same time, each in a thread of its own, and one that fails or does not
answer is told with its reason.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from pshard.cluster.cluster import Cluster, Device, Host, check_cluster
from pshard.cluster.host_links import with_host_links
from pshard.detection import accel, amd, apple, cpu, gaudi, intel, neuron, nvidia, others, tpu
from pshard.detection.finding import Finding
from pshard.detection.network import Port, ports
from pshard.detection.speeds import with_speeds
from pshard.detection.system import TOOL_SECONDS, System

__all__ = ["Detection", "Finding", "Port", "System", "detect_devices"]

Probe = Callable[[System], Finding]

# In the order in which devices are listed; the CPU comes last.
PROBES: Mapping[str, Probe] = {
    "NVIDIA": nvidia.probe,
    "AMD": amd.probe,
    "Intel": intel.probe,
    "Apple": apple.probe,
    "TPU": tpu.probe,
    "Gaudi": gaudi.probe,
    "Neuron": neuron.probe,
    "NPUs and Cloud AI": accel.probe,
    "other ASICs": others.probe,
    "CPU": cpu.probe,
}

# A probe may run two tools after each other and wait for the driver.
PROBE_SECONDS = 3 * TOOL_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What was found.

    Attributes
    ----------
    cluster : Cluster
        One host; devices that cannot be used are in it, with the reason.
    ports : tuple of Port
        What joins this host to others.
    looked_for : mapping from str to tuple of str
        For each kind that was looked for, why nothing was found of it, or less than there is to know.
    seconds : float
    """

    cluster: Cluster
    ports: tuple[Port, ...]
    looked_for: Mapping[str, tuple[str, ...]]
    seconds: float


def detect_devices(
    system: System | None = None, *, probes: Mapping[str, Probe] = PROBES, seconds: float = PROBE_SECONDS
) -> Detection:
    """Find the devices of this machine and the links between them.

    Parameters
    ----------
    system : System, optional
        This machine by default.
    probes : mapping from str to callable
        What to look for.
    seconds : float
        After which a kind that has not answered is left out.

    Returns
    -------
    Detection
        The CPU is always there.
    """
    system = System() if system is None else system
    start = time.monotonic()
    findings = _ask_all(system, probes, seconds)
    devices = _sound([device for finding in findings.values() for device in finding.devices], system.host_name)
    names = {device.name for device in devices}
    cluster = Cluster(
        hosts=(Host(name=system.host_name, n_numa_nodes=_numa_nodes(devices)),),
        devices=tuple(devices),
        links=tuple(link for finding in findings.values() for link in finding.links if names.issuperset(link.ends)),
        notes=tuple(note for finding in findings.values() for note in finding.notes),
    )
    if system.has_libraries:
        cluster = with_speeds(cluster)
    return Detection(
        cluster=check_cluster(with_host_links(cluster)),
        ports=tuple(ports(system)),
        looked_for={kind: finding.reasons for kind, finding in findings.items()},
        seconds=time.monotonic() - start,
    )


def _ask_all(system: System, probes: Mapping[str, Probe], seconds: float) -> dict[str, Finding]:
    answers: queue.SimpleQueue[tuple[str, Finding]] = queue.SimpleQueue()

    def ask(kind: str, probe: Probe) -> None:
        try:
            answers.put((kind, probe(system)))
        except Exception as error:  # a fault of ours, which costs this kind alone
            answers.put((kind, Finding(reasons=(f"pshard could not look for it: {type(error).__name__}: {error}",))))

    for kind, probe in probes.items():
        threading.Thread(target=ask, args=(kind, probe), name=f"detect {kind}", daemon=True).start()
    found: dict[str, Finding] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(probes):
        try:
            kind, finding = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[kind] = finding
    late = Finding(reasons=(f"no answer in {seconds:g} s",))
    return {kind: found.get(kind, late) for kind in probes}


def _sound(devices: list[Device], host_name: str) -> list[Device]:
    """Keep what tools say within what can be: a name for each, should one list a device twice, and free memory."""
    taken = {host_name}
    sound = []
    for device in devices:
        name, n = device.name, 1
        while name in taken:
            n += 1
            name = f"{device.name}-{n}"
        taken.add(name)
        free = device.memory_free_bytes
        free = None if free is None else max(0, min(free, device.memory_total_bytes))
        sound.append(replace(device, name=name, memory_free_bytes=free))
    return sound


def _numa_nodes(devices: list[Device]) -> int:
    count = next((device.fact("n_numa_nodes") for device in devices if device.is_cpu), None)
    return count if isinstance(count, int) else 0
