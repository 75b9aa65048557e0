"""Latency and bandwidth between all devices and hosts of a cluster at once, as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pshard.cluster.cluster import Cluster


class Routes:
    """The ways of `Cluster.path`, of N ends: devices, and hosts for their memory.

    Parameters
    ----------
    cluster : Cluster

    Attributes
    ----------
    latency_seconds : (N, N) array of float
        Infinite where no link joins two ends, 0 from an end to itself.
    bytes_per_second : (N, N) array of float
        Infinite where nothing is in the way.
    """

    def __init__(self, cluster: Cluster) -> None:
        names = [*cluster.host_names, *(device.name for device in cluster.devices)]
        self._index = {name: i for i, name in enumerate(names)}
        n_hosts = len(cluster.hosts)
        host_of = np.array([*range(n_hosts), *(self._index[device.host] for device in cluster.devices)])
        up_latency, up_rate = np.zeros(len(names)), np.full(len(names), np.inf)
        for device in cluster.devices:
            if not (device.is_cpu or device.unified_memory):
                self._put(cluster, device.name, device.host, up_latency, up_rate, (self._index[device.name],))
        between_latency, between_rate = np.zeros((n_hosts, n_hosts)), np.full((n_hosts, n_hosts), np.inf)
        for a, b in combinations(range(n_hosts), 2):
            for i, j in ((a, b), (b, a)):
                self._put(cluster, names[i], names[j], between_latency, between_rate, (i, j))
        pairs = np.ix_(host_of, host_of)
        self.latency_seconds = up_latency[:, None] + between_latency[pairs] + up_latency[None, :]
        self.bytes_per_second = np.minimum(np.minimum(up_rate[:, None], up_rate[None, :]), between_rate[pairs])
        for start, goal in _linked(cluster):
            at = self._index[start], self._index[goal]
            self._put(cluster, start, goal, self.latency_seconds, self.bytes_per_second, at)
        np.fill_diagonal(self.latency_seconds, 0.0)
        np.fill_diagonal(self.bytes_per_second, np.inf)

    @staticmethod
    def _put(
        cluster: Cluster, a: str, b: str, latency: NDArray[np.float64], rate: NDArray[np.float64], at: tuple[int, ...]
    ) -> None:
        path = cluster.path(a, b)
        latency[at] = np.inf if path is None else path.latency_seconds
        rate[at] = np.inf if path is None else path.bandwidth_bytes_per_second

    def index(self, names: Sequence[str]) -> list[int]:
        """Return the rows of devices and hosts."""
        return [self._index[name] for name in names]

    def seconds(self, starts: Sequence[str], goals: Sequence[str], n_bytes: int) -> NDArray[np.float64]:
        """Seconds of one message from each start to each goal, shape (starts, goals).

        Latencies, and bytes at the slowest link's rate. Infinite where no link joins two, 0 for no bytes.
        """
        ways = np.ix_(self.index(starts), self.index(goals))
        if n_bytes == 0:
            return np.zeros((len(starts), len(goals)))
        found: NDArray[np.float64] = self.latency_seconds[ways] + n_bytes / self.bytes_per_second[ways]
        return found


def _linked(cluster: Cluster) -> set[tuple[str, str]]:
    """Pairs of ends with a link of their own."""
    pairs: set[tuple[str, str]] = set()
    for link in cluster.links:
        pairs.update((a, b) for a in link.ends for b in link.ends if a != b)
    return pairs
