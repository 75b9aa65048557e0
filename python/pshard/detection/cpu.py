"""The CPU: always there."""

from __future__ import annotations

import re

from pshard.cluster.cluster import Device, cpu_name
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.system import System
from pshard.machine.detect import cpu_model, physical_cores, usable_ram_bytes

MEMINFO = "/proc/meminfo"
NODES = "/sys/devices/system/node"


def probe(system: System) -> Finding:
    """Describe the CPU with all its sockets, and the host's memory, which is its own."""
    total, free, origin = memory_bytes(system)
    nodes = system.entries(NODES, "node[0-9]*")
    per_node = {f"{node.name}_memory_bytes": _kibibytes(system.text(node / "meminfo"), "MemTotal") for node in nodes}
    cores = physical_cores() if system.has_libraries else None
    device = Device(
        name=cpu_name(system.host_name, 1),
        kind="cpu",
        host=system.host_name,
        product=cpu_model(system.path("/proc/cpuinfo")),
        memory_total_bytes=total,
        memory_free_bytes=free,
        unavailable_reason=untold(total),
        facts=(
            *facts(origin, memory_total_bytes=total or None),
            *facts("psutil", n_cores=cores),
            *facts(NODES, n_numa_nodes=len(nodes) or None, **(per_node if len(nodes) > 1 else {})),
        ),
    )
    return Finding(devices=(device,))


def memory_bytes(system: System) -> tuple[int, int | None, str]:
    """Return RAM in all and free, or a container's limit and what of it is left; and what told them."""
    text = system.text(MEMINFO)
    total, free = _kibibytes(text, "MemTotal"), _kibibytes(text, "MemAvailable")
    origin = MEMINFO
    if total is None and system.has_libraries:
        import psutil

        total, free, origin = usable_ram_bytes(), int(psutil.virtual_memory().available), "psutil"
    total = total or 0
    limit = system.amount("/sys/fs/cgroup/memory.max")
    if limit is not None and limit < total:
        used = system.amount("/sys/fs/cgroup/memory.current") or 0
        free = min(total if free is None else free, max(0, limit - used))
        return limit, free, "/sys/fs/cgroup/memory.max"
    return total, free if free is None else min(free, total), origin


def _kibibytes(text: str, name: str) -> int | None:
    """Bytes of a line like ``MemTotal:  32604996 kB``, also behind ``Node 0``."""
    found = re.search(rf"\b{name}:\s+(\d{{1,15}}) kB", text)
    return int(found[1]) * 1024 if found else None
