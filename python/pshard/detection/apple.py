"""Apple silicon: its GPU and its neural engine, which work in the host's memory."""

from __future__ import annotations

from typing import Any

import msgspec

from pshard.cluster.cluster import Device
from pshard.detection.finding import Finding, facts
from pshard.detection.system import System, ToolError, whole_number
from pshard.quantities import GIB

# What Metal lets a GPU wire down of RAM, unless iogpu.wired_limit_mb says else: two thirds, above 36 GiB three quarters
# (llama.cpp discussion #2182, recommendedMaxWorkingSetSize as its Metal backend printed it on machines of each size).
SMALL_RAM_BYTES, SMALL_SHARE, LARGE_SHARE = 36 * GIB, 2 / 3, 3 / 4


def probe(system: System) -> Finding:
    """Find the GPU and the neural engine of a Mac."""
    if system.os_name != "darwin":
        return Finding(reasons=("not macOS",))
    try:
        report = system.run("system_profiler", "-json", "SPHardwareDataType", "SPDisplaysDataType")
        ram_bytes = whole_number(system.run("sysctl", "-n", "hw.memsize"))
    except ToolError as error:
        return Finding(reasons=(str(error),))
    hardware, displays = parse_report(report)
    gpus = [display for display in displays if display.get("spdisplays_vendor") == "sppci_vendor_Apple"]
    if not gpus or not ram_bytes or ram_bytes < 0:
        return Finding(reasons=("no Apple GPU: an Intel Mac, or a virtual machine",))
    return Finding(devices=(_gpu(system, gpus[0], ram_bytes), _neural_engine(system, hardware, gpus[0], ram_bytes)))


def parse_report(report: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the JSON of system_profiler: the entry of the hardware, and those of the displays' GPUs."""
    try:
        content = msgspec.json.decode(report)
    except msgspec.DecodeError:
        return {}, []
    hardware, displays = (_entries(content, name) for name in ("SPHardwareDataType", "SPDisplaysDataType"))
    return next(iter(hardware), {}), displays


def _entries(content: object, name: str) -> list[dict[str, Any]]:
    listed = content.get(name) if isinstance(content, dict) else None
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _gpu(system: System, display: dict[str, Any], ram_bytes: int) -> Device:
    limit_mib = _wired_limit(system)
    if limit_mib:
        total, origin = min(limit_mib * 2**20, ram_bytes), "sysctl iogpu.wired_limit_mb"
    else:
        share = SMALL_SHARE if ram_bytes <= SMALL_RAM_BYTES else LARGE_SHARE
        total, origin = int(ram_bytes * share), f"Metal's usual share of {ram_bytes / GIB:.0f} GiB of RAM"
    cores = display.get("sppci_cores")
    metal = display.get("spdisplays_mtlgpufamilysupport")
    return Device(
        name="MTL0",
        kind="apple",
        host=system.host_name,
        product=_product(display),
        memory_total_bytes=total,
        unified_memory=True,
        facts=(
            *facts(origin, memory_total_bytes=total),
            *facts(
                "system_profiler",
                n_cores=whole_number(cores) if isinstance(cores, str) else None,
                metal=metal.removeprefix("spdisplays_") if isinstance(metal, str) else None,
            ),
        ),
    )


def _wired_limit(system: System) -> int:
    """Return the limit in MiB that a person has set; 0 where there is none."""
    try:
        return max(0, whole_number(system.run("sysctl", "-n", "iogpu.wired_limit_mb")) or 0)
    except ToolError:
        return 0


def _neural_engine(system: System, hardware: dict[str, Any], display: dict[str, Any], ram_bytes: int) -> Device:
    chip = hardware.get("chip_type")
    return Device(
        name="ANE0",
        kind="apple-npu",
        host=system.host_name,
        product=f"Neural Engine of {chip if isinstance(chip, str) and chip else _product(display)}",
        memory_total_bytes=ram_bytes,
        unified_memory=True,
        facts=facts("sysctl hw.memsize", memory_total_bytes=ram_bytes),
    )


def _product(display: dict[str, Any]) -> str:
    name = display.get("sppci_model") or display.get("_name")
    return name if isinstance(name, str) else "Apple GPU"
