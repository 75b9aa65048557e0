"""AMD GPUs: what the compute driver (KFD) tells of its nodes, and amdgpu of its cards; no tool is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pshard.cluster.cluster import Device, Link
from pshard.cluster.link_references import reference_link
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import DEVICES, DISPLAY, PciDevice, pci_devices, pci_name
from pshard.detection.system import MAX_NUMBER, System

VENDOR = 0x1002
NODES = "/sys/class/kfd/kfd/topology/nodes"

# Types of links and heaps in KFD's topology (Linux, drivers/gpu/drm/amd/amdkfd/kfd_crat.h and kfd_topology.h).
XGMI = 11
FRAME_BUFFER = (1, 2)

# Graphics targets whose memory is the host's (LLVM, "User Guide for AMDGPU Backend", the processors marked APU).
APU_TARGETS = {
    "gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1103", "gfx1150", "gfx1151",
    "gfx1152", "gfx1153",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A GPU as KFD lists it."""

    number: int
    address: str
    target: str
    path: Path


def probe(system: System) -> Finding:
    """Find AMD GPUs in the order in which ROCm numbers them, and the xGMI links between them."""
    on_bus = {found.address: found for found in pci_devices(system) if _is_gpu(found)}
    nodes = list(_nodes(system))
    devices = [_device(system, f"ROCm{i}", node, on_bus.get(node.address)) for i, node in enumerate(nodes)]
    seen = {node.address for node in nodes}
    without = [found for address, found in on_bus.items() if address not in seen]
    devices += [_without_kfd(system, f"AMD{i}", found) for i, found in enumerate(without)]
    names = {node.number: f"ROCm{i}" for i, node in enumerate(nodes)}
    reasons = () if devices else ("no AMD GPU on the PCI bus, and no KFD node",)
    return Finding(devices=tuple(devices), links=tuple(_xgmi(system, nodes, names)), reasons=reasons)


def _is_gpu(found: PciDevice) -> bool:
    return found.vendor == VENDOR and (found.base_class == DISPLAY or found.driver == "amdgpu")


def _nodes(system: System) -> Iterator[_Node]:
    for path in system.entries(NODES, "[0-9]*"):
        properties = parse_properties(system.text(path / "properties"))
        if properties.get("simd_count", 0) > 0 and path.name.isdigit():
            yield _Node(
                number=int(path.name),
                address=pci_address(properties.get("domain", 0), properties.get("location_id", 0)),
                target=graphics_target(properties.get("gfx_target_version", 0)),
                path=path,
            )


def parse_properties(text: str) -> dict[str, int]:
    """Read lines of a name and a number, as KFD writes them."""
    found = re.findall(r"^(\w+) (-?\d{1,20})$", text, re.MULTILINE)
    return {name: int(value) for name, value in found}


def pci_address(domain: int, location: int) -> str:
    """Bus address of a KFD node, whose location holds bus, device and function."""
    return f"{domain & 0xFFFFFFFF:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def graphics_target(version: int) -> str:
    """Name of a graphics target: of 90402, ``gfx942``; empty for 0."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version > 0 else ""


def _device(system: System, name: str, node: _Node, on_bus: PciDevice | None) -> Device:
    unified = node.target in APU_TARGETS
    total, used, origin = _memory(system, node, on_bus, with_shared=unified)
    refusal = system.refusal("/dev/kfd")
    product = _product(system, on_bus) or node.target
    return Device(
        name=name,
        kind="amd",
        host=system.host_name,
        product=product,
        memory_total_bytes=total,
        memory_free_bytes=None if used is None else total - used,
        numa_node=on_bus.numa_node if on_bus is not None else None,
        unified_memory=unified,
        unavailable_reason=refusal or untold(total),
        facts=(
            *facts(origin, memory_total_bytes=total or None),
            *facts(NODES, graphics_target=node.target),
            *(on_bus.facts() if on_bus is not None else facts(NODES, pci_bus_id=node.address)),
        ),
    )


def _memory(system: System, node: _Node, on_bus: PciDevice | None, *, with_shared: bool) -> tuple[int, int | None, str]:
    """Bytes in all and in use, and what told them: amdgpu's own account, else KFD's."""
    if on_bus is not None and (total := system.amount(on_bus.path / "mem_info_vram_total")):
        used = system.amount(on_bus.path / "mem_info_vram_used")
        if with_shared:  # an APU's graphics memory is its share of RAM and what it may map beside
            total += system.amount(on_bus.path / "mem_info_gtt_total") or 0
            used = None if used is None else used + (system.amount(on_bus.path / "mem_info_gtt_used") or 0)
        return total, used, DEVICES
    total, used_bytes, is_used_told = 0, 0, True
    for bank in sorted(node.path.glob("mem_banks/[0-9]*")):
        properties = parse_properties(system.text(bank / "properties"))
        if properties.get("heap_type") in FRAME_BUFFER:
            total += min(max(0, properties.get("size_in_bytes", 0)), MAX_NUMBER)
            used = system.amount(bank / "used_memory")
            used_bytes, is_used_told = used_bytes + (used or 0), is_used_told and used is not None
    return total, used_bytes if is_used_told else None, NODES


def _product(system: System, on_bus: PciDevice | None) -> str:
    if on_bus is None:
        return ""
    return system.text(on_bus.path / "product_name") or f"AMD {pci_name(system, on_bus.vendor, on_bus.device)}"


def _xgmi(system: System, nodes: list[_Node], names: dict[int, str]) -> Iterator[Link]:
    """Yield one link per pair of GPUs; the driver tells the rate, in MB/s of all lanes each way."""
    for node in nodes:
        for entry in sorted(node.path.glob("io_links/[0-9]*")):
            properties = parse_properties(system.text(entry / "properties"))
            other = properties.get("node_to", -1)
            rate = properties.get("max_bandwidth", 0) * 1e6
            if properties.get("type") == XGMI and other in names and node.number < other and rate > 0:
                link = reference_link("xgmi", "4", (names[node.number], names[other]))
                yield Link(
                    kind="xgmi",
                    ends=link.ends,
                    bandwidth_bytes_per_second=rate,
                    latency_seconds=link.latency_seconds,
                    source="reference",
                    origin=f"{NODES}: what the driver says that the lanes can carry",
                )


def _without_kfd(system: System, name: str, found: PciDevice) -> Device:
    """Describe a card that ROCm cannot use: no driver, or one without KFD."""
    total = system.amount(found.path / "mem_info_vram_total") or 0
    return Device(
        name=name,
        kind="amd",
        host=system.host_name,
        product=_product(system, found),
        memory_total_bytes=total,
        numa_node=found.numa_node,
        unavailable_reason="no KFD node: ROCm does not know it" if found.driver == "amdgpu" else "no amdgpu driver",
        facts=(*facts(DEVICES, memory_total_bytes=total or None), *found.facts()),
    )
