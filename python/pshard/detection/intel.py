"""Intel GPUs: the PCI bus says which there are, xpu-smi how much memory they have."""

from __future__ import annotations

from typing import Any

import msgspec

from pshard.cluster.cluster import Device
from pshard.detection.cpu import memory_bytes
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import DEVICES, DISPLAY, PciDevice, pci_devices, pci_name
from pshard.detection.system import System, ToolError, count, whole_number

VENDOR = 0x8086
# Where the GPU of an Intel processor always is (Linux, arch/x86/kernel/early-quirks.c looks for it there).
INTEGRATED = "0000:00:02.0"
MEMORY_BAR = 2


def probe(system: System) -> Finding:
    """Find Intel GPUs in the order of their bus addresses, as SYCL numbers them."""
    on_bus = [found for found in pci_devices(system) if found.vendor == VENDOR and found.base_class == DISPLAY]
    if not on_bus:
        return Finding(reasons=("no Intel GPU on the PCI bus",))
    told: dict[str, dict[str, Any]] = {}
    reasons: tuple[str, ...] = ()
    if any(found.address != INTEGRATED for found in on_bus):
        try:
            told = _ask_tool(system)
        except ToolError as error:
            reasons = (str(error),)
    devices = tuple(_device(system, f"SYCL{i}", found, told.get(found.address, {})) for i, found in enumerate(on_bus))
    return Finding(devices=devices, reasons=reasons)


def _ask_tool(system: System) -> dict[str, dict[str, Any]]:
    """Ask xpu-smi for each device; the list of them does not tell the memory."""
    told = {}
    for listed in parse_discovery(system.run("xpu-smi", "discovery", "-j")):
        number = str(listed.get("device_id", ""))
        if number.isdigit():
            for device in parse_discovery(system.run("xpu-smi", "discovery", "-d", number, "-j")):
                told[str(device.get("pci_bdf_address", "")).lower()] = device
    return told


def parse_discovery(document: str) -> list[dict[str, Any]]:
    """Read what ``xpu-smi discovery -j`` prints: a list of devices, or one device."""
    try:
        content = msgspec.json.decode(document)
    except msgspec.DecodeError:
        return []
    listed = content.get("device_list", [content]) if isinstance(content, dict) else content
    return [device for device in listed if isinstance(device, dict)] if isinstance(listed, list) else []


def _device(system: System, name: str, found: PciDevice, told: dict[str, Any]) -> Device:
    unified = found.address == INTEGRATED
    refusal = _refusal(system, found)
    if unified:
        total, free, origin = memory_bytes(system)
    else:
        total, free, origin = _own_memory(system, found, told)
    generation, lanes = count(told.get("pcie_generation")), count(told.get("pcie_max_link_width"))
    return Device(
        name=name,
        kind="intel",
        host=system.host_name,
        product=str(told.get("device_name") or f"Intel {pci_name(system, found.vendor, found.device)}"),
        memory_total_bytes=total,
        memory_free_bytes=free,
        numa_node=found.numa_node,
        unified_memory=unified,
        unavailable_reason=refusal or untold(total, "; xpu-smi tells it"),
        facts=(
            *facts(origin, memory_total_bytes=total or None),
            *found.facts(),
            *facts("xpu-smi", xpu_smi_pcie_generation=generation, xpu_smi_pcie_lanes=lanes),
        ),
    )


def _own_memory(system: System, found: PciDevice, told: dict[str, Any]) -> tuple[int, int | None, str]:
    """Bytes as xpu-smi tells them, else those that the memory BAR shows, which is all only where it was resized."""
    total, free = count(told.get("memory_physical_size_byte")), count(told.get("memory_free_size_byte"))
    if total:
        return total, free, "xpu-smi"
    return bar_bytes(system.text(found.path / "resource"), MEMORY_BAR), None, f"{DEVICES} (size of the memory BAR)"


def bar_bytes(resource: str, index: int) -> int:
    """Size of a base address register, from the lines of start and end that Linux writes; 0 where there is none."""
    lines = resource.splitlines()
    words = lines[index].split() if index < len(lines) else []
    start, end = (whole_number(word) for word in words[:2]) if len(words) >= 2 else (None, None)
    return max(0, end - start + 1) if start is not None and end is not None and end > 0 else 0


def _refusal(system: System, found: PciDevice) -> str:
    if found.driver not in ("i915", "xe"):
        return f"driver {found.driver}, which computes nothing" if found.driver else "no driver"
    return system.refusal(*(f"/dev/dri/{node.name}" for node in sorted(found.path.glob("drm/renderD*"))))
