"""Seconds of messages among the ranks of a tensor-parallel group, from the links between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pshard.stage_tables import way_seconds

if TYPE_CHECKING:
    from pshard.cluster import Cluster, Device


def all_reduce_seconds(cluster: Cluster, devices: Sequence[Device], n_bytes: int) -> float:
    """Sum a tensor over all ranks, so that each has it: by a ring or a tree, whichever is faster.

    Parameters
    ----------
    cluster : Cluster
    devices : sequence of Device
    n_bytes : int
        Of the whole tensor.

    Returns
    -------
    float
        Ring: 2 (n - 1) steps of n_bytes / n each, along the neighbours' links. Tree: 2 ceil(log2 n) steps of all bytes
        over the slowest pair. (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
        MPICH", 2005.) Infinite where ranks are not joined.
    """
    n = len(devices)
    if n == 1:
        return 0.0
    names = [device.name for device in devices]
    part = -(-n_bytes // n)
    ring = (
        2 * (n - 1) * max(way_seconds(cluster, a, b, part) for a, b in zip(names, names[1:] + names[:1], strict=True))
    )
    pairs = (way_seconds(cluster, a, b, n_bytes) for i, a in enumerate(names) for b in names[i + 1 :])
    tree = 2 * math.ceil(math.log2(n)) * max(pairs)
    return min(ring, tree)


def gather_seconds(cluster: Cluster, devices: Sequence[Device], n_bytes: int) -> float:
    """Bring the ranks' parts of a tensor of `n_bytes` to the first rank, one after the other over its link."""
    n = len(devices)
    part = -(-n_bytes // n)
    return sum(way_seconds(cluster, device.name, devices[0].name, part) for device in devices[1:])
