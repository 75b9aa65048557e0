"""Which devices a model can be spread over, and what each of them may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster, Device

RESERVE_FRACTION = 0.02
MIN_RESERVE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of one device: free before, what stays free of it, and what the model may use."""

    free: int
    reserve: int
    capacity: int


def unavailable(cluster: Cluster) -> list[str]:
    """Return sentences about the devices that cannot be used now."""
    return [f"{d.name} is left out: {d.unavailable_reason}." for d in cluster.devices if not d.available]


def joined(cluster: Cluster, devices: Sequence[Device]) -> tuple[tuple[Device, ...], list[str]]:
    """Return the devices that links join to the first host's memory, and sentences about the others."""
    main = cluster.hosts[0].name
    apart = {device.name for device in devices if cluster.path(main, device.name) is None}
    notes = [f"{name} is left out: no link joins its host to {main}." for name in sorted(apart)]
    return tuple(device for device in devices if device.name not in apart), notes


def rooms(devices: Sequence[Device]) -> list[Room]:
    """Return what each device may hold: what one with unified memory may use is RAM that its CPU cannot have."""
    free = [d.memory_total_bytes if d.memory_free_bytes is None else d.memory_free_bytes for d in devices]
    reserve = [reserve_bytes(device, n_bytes) for device, n_bytes in zip(devices, free, strict=True)]
    capacity = [a - b for a, b in zip(free, reserve, strict=True)]
    shared: dict[str, int] = {}
    for device, n_bytes in zip(devices, capacity, strict=True):
        if device.unified_memory and not device.is_cpu:
            shared[device.host] = shared.get(device.host, 0) + n_bytes
    for i, device in enumerate(devices):
        if device.is_cpu:
            capacity[i] = max(0, capacity[i] - shared.get(device.host, 0))
    return [Room(*values) for values in zip(free, reserve, capacity, strict=True)]


def reserve_bytes(device: Device, free_bytes: int) -> int:
    """Return what stays free on a device: the larger of 2 % and 512 MiB, at most all; nothing of a CPU's RAM."""
    if device.is_cpu:
        return 0
    return min(free_bytes, max(int(free_bytes * RESERVE_FRACTION), MIN_RESERVE_BYTES))
