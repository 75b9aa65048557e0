"""Accelerators that are known by their device files and their maker on the PCI bus; by a tool where it tells more."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import msgspec

from pshard.cluster.cluster import KINDS, Device
from pshard.detection.cpu import memory_bytes
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import ACCELERATOR, DEVICES, PciDevice, pci_devices, pci_name
from pshard.detection.system import System, ToolError, count

# Bytes in all, and in use where that is told.
Memory = tuple[int, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One maker's devices.

    Attributes
    ----------
    kind, label : str
        One of `cluster.KINDS`, and what names begin with.
    folder, pattern : str
        Where its device files are.
    vendor : int
        Its number on the PCI bus; 0 for parts of a processor.
    """

    kind: str
    label: str
    folder: str
    pattern: str
    vendor: int = 0


# Vendors by the PCI ID list; Tenstorrent and Rebellions by their drivers.
FAMILIES = (
    Family(kind="tenstorrent", label="TT", folder="/dev/tenstorrent", pattern="[0-9]*", vendor=0x1E52),
    Family(kind="rebellions", label="RBLN", folder="/dev", pattern="rbln[0-9]*", vendor=0x1EFF),
    Family(kind="furiosa", label="Furiosa", folder="/dev/rngd", pattern="npu[0-9]*mgmt", vendor=0x1ED2),
    Family(kind="graphcore", label="IPU", folder="/dev", pattern="ipu[0-9]*", vendor=0x1D95),
    Family(kind="groq", label="Groq", folder="/dev", pattern="groqA[0-9]*", vendor=0x1DE0),
    Family(kind="qualcomm-npu", label="Hexagon", folder="/dev", pattern="fastrpc-cdsp"),
    Family(kind="mediatek-npu", label="APU", folder="/dev", pattern="apusys"),
    Family(kind="samsung-npu", label="ENPU", folder="/dev", pattern="vertex10"),
)


def probe(system: System) -> Finding:
    """Find devices of all families."""
    memory, reason = _rebellions_memory(system)
    on_bus = [found for found in pci_devices(system) if found.base_class == ACCELERATOR]
    devices = []
    for family in FAMILIES:
        files = [f"{family.folder}/{path.name}" for path in system.entries(family.folder, family.pattern)]
        cards = [found for found in on_bus if found.vendor == family.vendor]
        for i, (file, card) in enumerate(zip_longest(files, cards)):
            told = memory.get(i) if family.kind == "rebellions" else None
            devices.append(_device(system, family, i, file, card, told))
    if not devices:
        return Finding(reasons=("no device file of a known maker",))
    return Finding(devices=tuple(devices), reasons=(reason,) if reason else ())


def _device(
    system: System, family: Family, number: int, file: str | None, card: PciDevice | None, told: Memory | None
) -> Device:
    unified = KINDS[family.kind] == "npu"
    total, used = (memory_bytes(system)[0], None) if unified else told or (0, None)
    refusal = system.refusal(file) if file else "no device file: its driver is not loaded"
    return Device(
        name=f"{family.label}{number}",
        kind=family.kind,
        host=system.host_name,
        product=pci_name(system, card.vendor, card.device) if card else family.label,
        memory_total_bytes=total,
        memory_free_bytes=None if used is None else total - used,
        numa_node=card.numa_node if card else None,
        unified_memory=unified,
        unavailable_reason=refusal or untold(total),
        facts=(
            *facts("rbln-stat", memory_total_bytes=told[0] if told else None),
            *facts(family.folder, device_file=file),
            *facts(DEVICES, pci_bus_id=card.address if card else None),
        ),
    )


def _rebellions_memory(system: System) -> tuple[dict[int, Memory], str]:
    if not system.entries("/dev", "rbln[0-9]*"):
        return {}, ""
    try:
        return parse_rbln_stat(system.run("rbln-stat", "-j")), ""
    except ToolError as error:
        return {}, str(error)


def parse_rbln_stat(document: str) -> dict[int, Memory]:
    """Read the memory of each device, in all and in use, from ``rbln-stat -j``."""
    try:
        content = msgspec.json.decode(document)
    except msgspec.DecodeError:
        return {}
    found: dict[int, Memory] = {}
    listed = content.get("devices") if isinstance(content, dict) else None
    for entry in listed if isinstance(listed, list) else []:
        memory = entry.get("memory") if isinstance(entry, dict) else None
        if isinstance(memory, dict):
            number, total = count(entry.get("npu")), count(memory.get("total"))
            if number is not None and total:
                found[number] = (total, count(memory.get("used")))
    return found
