"""The CPUs that measurements run on."""

from __future__ import annotations

import os
import re
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cpus(topology: Path = TOPOLOGY) -> list[int]:
    """CPUs that this process may use, one of each physical core before the other threads of any core.

    Parameters
    ----------
    topology : Path
        The kernel's description of CPUs.

    Returns
    -------
    list of int
        Numbers of the operating system. The first n are n cores, as long as there are so many. Where the topology is
        not described, every CPU counts as a core.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    seen: dict[int, int] = {}
    rank = {}
    for cpu in allowed:
        core = _first_sibling(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list", cpu)
        rank[cpu] = seen.setdefault(core, 0)
        seen[core] += 1
    return sorted(allowed, key=lambda cpu: (rank[cpu], cpu))


def _first_sibling(siblings: Path, cpu: int) -> int:
    """Lowest CPU of the same core; the list reads like "0,64" or "0-1"."""
    try:
        numbers = [int(number) for number in re.findall(r"\d+", siblings.read_text())]
    except OSError:
        return cpu
    return min(numbers, default=cpu)
