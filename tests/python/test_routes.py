"""Ways between all ends at once: the same as one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pshard.cluster.cluster import Cluster, Device, Host, Link
from pshard.cluster.routes import Routes

HOSTS = ("a", "b", "c")
DEVICES = tuple(
    Device(name=f"{host}{i}", kind="nvidia", host=host, memory_total_bytes=1 << 30, unified_memory=i == 2)
    for host in HOSTS
    for i in range(3)
)
ENDS = (*HOSTS, *(device.name for device in DEVICES))


@st.composite
def links(draw: st.DrawFn) -> Link:
    ends = draw(st.lists(st.sampled_from(ENDS), min_size=2, max_size=4, unique=True))
    return Link(
        kind="pcie", ends=tuple(ends), bandwidth_bytes_per_second=draw(st.sampled_from([1e9, 5e9, 25e9])),
        latency_seconds=draw(st.sampled_from([0.0, 1e-6, 20e-6])), source="given",
    )  # fmt: skip


@given(st.lists(links(), max_size=8), st.integers(1, 1 << 30))
def test_every_way_is_that_of_the_cluster(joined: list[Link], n_bytes: int) -> None:
    cluster = Cluster(hosts=tuple(Host(name=host) for host in HOSTS), devices=DEVICES, links=tuple(joined))
    routes = Routes(cluster)
    found = routes.seconds(ENDS, ENDS, n_bytes)
    for i, a in enumerate(ENDS):
        for j, b in enumerate(ENDS):
            path = cluster.path(a, b)
            expected = np.inf if path is None else path.latency_seconds + n_bytes / path.bandwidth_bytes_per_second
            assert found[i, j] == pytest.approx(expected, rel=1e-12)


def test_no_bytes_take_no_time_even_where_no_way_is() -> None:
    cluster = Cluster(hosts=(Host(name="a"), Host(name="b")), devices=DEVICES[:4])
    assert not Routes(replace(cluster)).seconds(["a0"], ["b0"], 0).any()
    assert np.isinf(Routes(cluster).seconds(["a0"], ["b0"], 1)).all()
