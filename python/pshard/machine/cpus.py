"""The CPUs that measurements run on."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

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


class Core(NamedTuple):
    """What the kernel says of the core that a CPU belongs to.

    Attributes
    ----------
    first : int
        Its lowest CPU, which tells it from others.
    pace : tuple of str
        What tells fast cores from slow ones, in words of the kernel: equal for cores of one kind.
    """

    first: int
    pace: tuple[str, ...]


def core_of(cpu: int, topology: Path = TOPOLOGY) -> Core:
    """Return the core of a CPU.

    Parameters
    ----------
    cpu : int
        Number of the operating system.
    topology : Path
        As in `physical_cpus`; what is not described is taken to be alike.
    """
    here = topology / f"cpu{cpu}"
    pace = tuple(_word(here / name) for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"))
    return Core(_first_sibling(here / "topology" / "thread_siblings_list", cpu), pace)


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _first_sibling(siblings: Path, cpu: int) -> int:
    """Lowest CPU of the same core; the list reads like "0,64" or "0-1"."""
    try:
        numbers = [int(number) for number in re.findall(r"\d+", siblings.read_text())]
    except OSError:
        return cpu
    return min(numbers, default=cpu)
