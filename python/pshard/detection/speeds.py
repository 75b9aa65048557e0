"""Where the speeds of this machine's devices come from: its stored profile, else reference figures."""

from __future__ import annotations

from msgspec.structs import replace

from pshard.cluster.cluster import Cluster, Device, Speed
from pshard.errors import MachineError
from pshard.machine.detect import nearest_host, physical_cores
from pshard.machine.stored import Stored, any_stored, current_key, find_stored


def with_speeds(cluster: Cluster) -> Cluster:
    """Name the stored profile for the devices that it was measured on, and a reference host for any other CPU."""
    stored = _stored()
    if stored is None:
        speed = Speed(source="reference", name=nearest_host(physical_cores()).name)
        note = f"The CPU is not measured: its speeds are reference figures of {speed.name}, per core. 'pshard profile'."
        devices = tuple(replace(device, speed=speed) if device.is_cpu else device for device in cluster.devices)
        return replace(cluster, devices=devices, notes=(*cluster.notes, note))
    speed = Speed(source="profile", name=str(stored.path))
    devices = tuple(replace(device, speed=speed) if _is_of(device, stored) else device for device in cluster.devices)
    stale = (f"Profile {stored.path} may no longer hold: {'; '.join(stored.changes)}.",) if stored.changes else ()
    return replace(cluster, devices=devices, notes=(*cluster.notes, *stale))


def _stored() -> Stored | None:
    try:
        return find_stored(current_key()) if any_stored() else None
    except MachineError:
        return None


def _is_of(device: Device, stored: Stored) -> bool:
    gpu = stored.profile.gpu
    return device.is_cpu or (gpu is not None and device.kind == "nvidia" and device.product == gpu.name)
