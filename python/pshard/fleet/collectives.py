"""Seconds of messages among the ranks of a tensor-parallel group, from the links between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pshard.cluster.cluster import Device
    from pshard.cluster.routes import Routes


def all_reduce_seconds(routes: Routes, devices: Sequence[Device], n_bytes: int) -> float:
    """Sum a tensor over all ranks, so that each has it: by a ring or a tree, whichever is faster.

    Parameters
    ----------
    routes : Routes
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
    part = routes.seconds(names, names, -(-n_bytes // n))
    ring = 2 * (n - 1) * float(max(part[i, (i + 1) % n] for i in range(n)))
    tree = 2 * math.ceil(math.log2(n)) * float(routes.seconds(names, names, n_bytes).max())
    return min(ring, tree)


def gather_seconds(routes: Routes, devices: Sequence[Device], n_bytes: int) -> float:
    """Bring the ranks' parts of a tensor of `n_bytes` to the first rank, one after the other over its link."""
    names = [device.name for device in devices]
    return float(routes.seconds(names[1:], names[:1], -(-n_bytes // len(devices))).sum())
