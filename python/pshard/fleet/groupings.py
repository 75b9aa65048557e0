"""Ways to divide devices into groups: all of few devices, likely ones of many, and changes to one that is good."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pshard.cluster.cluster import Device

# Up to so many devices every grouping of one copy is tried, and every division into copies; up to so many of a part of
# the pool; and up to so many are groupings improved step by step.
ALL_GROUPINGS, ALL_COPIES, SMALL_PART, IMPROVED_GROUPINGS = 6, 5, 5, 10
# Beyond so many, not every size of runs is tried.
MANY_DEVICES = 32

Part = tuple["Device", ...]
Way = Sequence[Part]


def grouped(devices: Sequence[Device], key: Callable[[Device], object]) -> list[Part]:
    """Return devices by what they have in common, in their order."""
    groups: dict[object, list[Device]] = {}
    for device in devices:
        groups.setdefault(key(device), []).append(device)
    return [tuple(group) for group in groups.values()]


def partitions(pool: Sequence[Device]) -> list[list[Part]]:
    """Return ways to divide a pool into parts: of few devices all, else runs of neighbours, also within each host."""
    if len(pool) <= ALL_COPIES:
        return [parts for parts in groupings(pool) if len(parts) > 1]
    n, by_host = len(pool), grouped(pool, lambda device: device.host)
    # Of many devices only the largest parts that make so many.
    sizes = range(1, n // 2 + 1) if n <= MANY_DEVICES else sorted({n // n_parts for n_parts in range(2, n + 1)})
    largest = max(map(len, by_host))
    found = [runs(pool, size) for size in sizes]
    if len(by_host) > 1:
        found += [by_host, grouped(pool, lambda device: device.product)]
        found += [[run for host in by_host for run in runs(host, size)] for size in range(2, largest)]
    different = {tuple(tuple(device.name for device in part) for part in parts): parts for parts in found}
    return list(different.values())


def groupings(devices: Sequence[Device]) -> list[list[Part]]:
    """Return every way to divide devices into groups, whose devices are in the order given."""
    if not devices:
        return [[]]
    first, found = devices[0], []
    for groups in groupings(devices[1:]):
        found.append([(first,), *groups])
        found += [[*groups[:i], (first, *group), *groups[i + 1 :]] for i, group in enumerate(groups)]
    return found


def of_some(devices: Sequence[Device]) -> list[list[Part]]:
    """Return every way to divide all or some of the devices into groups: those of all, and each without one group."""
    different = {}
    for groups in groupings(devices):
        for way in (groups, *([*groups[:i], *groups[i + 1 :]] for i in range(len(groups)))):
            different[tuple(tuple(device.name for device in group) for group in way)] = way
    return list(different.values())


def runs(devices: Sequence[Device], size: int) -> list[Part]:
    """Return runs of neighbours of one size; what is left over is in none."""
    return [tuple(devices[i : i + size]) for i in range(0, len(devices) - size + 1, size)]


def narrowed(groups: Sequence[Part]) -> list[list[Part]]:
    """Return groups of at most 2, 3, ... devices each, the first of each group."""
    largest = max(map(len, groups), default=0)
    return [[group[:n_ranks] for group in groups] for n_ranks in range(2, largest + 1)]


def with_others(way: Way, pool: Sequence[Device]) -> list[Part]:
    """Add the devices that a way leaves out, each on its own."""
    taken = {device.name for group in way for device in group}
    return [*way, *((device,) for device in pool if device.name not in taken)]


def near(way: Way) -> list[list[Part]]:
    """Return what a way becomes if two groups are merged, or one device goes to another group or one of its own."""
    groups = list(way)
    merged = [
        [*groups[:i], (*groups[i], *groups[j]), *groups[i + 1 : j], *groups[j + 1 :]]
        for i in range(len(groups))
        for j in range(i + 1, len(groups))
    ]
    moved = []
    for i, group in enumerate(groups):
        for device in group if len(group) > 1 else ():
            rest = [*groups[:i], tuple(d for d in group if d is not device), *groups[i + 1 :]]
            moved.append([*rest, (device,)])
            moved += [[*rest[:j], (*rest[j], device), *rest[j + 1 :]] for j in range(len(rest)) if j != i]
    return merged + moved


def with_idle_ones(parts: Way, used: Collection[str]) -> list[list[Part]]:
    """Return the parts that have a copy, with all other devices in each of them in turn."""
    busy = [part for part in parts if any(device.name in used for device in part)]
    idle = tuple(device for part in parts if part not in busy for device in part)
    return [[*busy[:i], (*part, *idle), *busy[i + 1 :]] for i, part in enumerate(busy)] if idle else []
