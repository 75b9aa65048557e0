"""Accelerators of Linux's class ``accel``: NPUs in processors, and cards whose driver is in the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pshard.cluster.cluster import KINDS, Device
from pshard.detection.cpu import memory_bytes
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import numa_node, pci_name
from pshard.detection.system import System

CLASS = "/sys/class/accel"

# Kind by driver (Linux, drivers/accel); those of `gaudi` and `tpu` have modules of their own.
KIND_OF_DRIVER = {
    "intel_vpu": ("intel-npu", "NPU"),
    "amdxdna": ("amd-npu", "NPU"),
    "rocket": ("rockchip-npu", "NPU"),
    "ethosu": ("arm-npu", "NPU"),
    "qaic": ("qualcomm", "QAIC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accel:
    """One entry of the class; vendor and device are 0 off the PCI bus."""

    name: str
    driver: str
    vendor: int
    device: int
    path: Path


def accels(system: System) -> list[Accel]:
    """List the class, in order of number."""
    return [
        Accel(
            name=entry.name,
            driver=system.target_name(entry / "device" / "driver"),
            vendor=system.number(entry / "device" / "vendor") or 0,
            device=system.number(entry / "device" / "device") or 0,
            path=entry / "device",
        )
        for entry in system.entries(CLASS, "accel[0-9]*")
    ]


def probe(system: System) -> Finding:
    """Find NPUs, which work in the host's memory, and Cloud AI cards, whose memory no file tells."""
    counts: dict[str, int] = {}
    devices = []
    for accel in accels(system):
        if accel.driver in KIND_OF_DRIVER:
            kind, prefix = KIND_OF_DRIVER[accel.driver]
            devices.append(_device(system, f"{prefix}{counts.setdefault(prefix, 0)}", kind, accel))
            counts[prefix] += 1
    return Finding(devices=tuple(devices), reasons=() if devices else (f"nothing of the kind in {CLASS}",))


def _device(system: System, name: str, kind: str, accel: Accel) -> Device:
    unified = KINDS[kind] == "npu"
    total, free, origin = memory_bytes(system) if unified else (0, None, "")
    refusal = system.refusal(f"/dev/accel/{accel.name}")
    product = system.text(accel.path / "vbnv") or (
        pci_name(system, accel.vendor, accel.device) if accel.vendor else accel.driver
    )
    return Device(
        name=name,
        kind=kind,
        host=system.host_name,
        product=product,
        memory_total_bytes=total,
        memory_free_bytes=free,
        numa_node=numa_node(system.number(accel.path / "numa_node")),
        unified_memory=unified,
        unavailable_reason=refusal or untold(total),
        facts=(
            *facts(origin, memory_total_bytes=total or None),
            *facts(CLASS, device_file=f"/dev/accel/{accel.name}", driver=accel.driver),
        ),
    )
