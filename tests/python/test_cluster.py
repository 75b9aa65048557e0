"""Hosts, devices and links: what is near what, and what cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pshard.cluster.cluster import KINDS, Cluster, Device, Host, Link, Path, check_cluster, did_you_mean, faults
from pshard.errors import MachineError

GIB = 2**30


def device(name: str, host: str = "alpha", kind: str = "nvidia", **given: object) -> Device:
    return Device(name=name, kind=kind, host=host, memory_total_bytes=24 * GIB, **given)


def link(kind: str, *ends: str, rate: float = 1e9, seconds: float = 1e-6) -> Link:
    return Link(kind=kind, ends=ends, bandwidth_bytes_per_second=rate, latency_seconds=seconds, source="given")


CLUSTER = Cluster(
    hosts=(Host(name="alpha"), Host(name="beta"), Host(name="gamma")),
    devices=(
        device("CPU-a", kind="cpu"),
        device("a0"),
        device("a1"),
        device("b0", "beta", kind="amd"),
        device("c0", "gamma", kind="apple", unified_memory=True),
        device("broken", unavailable_reason="no driver"),
    ),
    links=(
        link("nvlink", "a0", "a1", rate=80e9),
        link("pcie", "a0", "alpha", rate=26e9, seconds=5e-6),
        link("pcie", "a1", "alpha", rate=13e9, seconds=5e-6),
        link("pcie", "b0", "beta", rate=26e9, seconds=5e-6),
        link("ethernet", "alpha", "beta", "gamma", rate=1.25e9, seconds=30e-6),
        link("infiniband", "alpha", "beta", rate=24e9, seconds=3e-6),
    ),
)


def test_devices_of_a_host_are_in_order_with_the_cpu_last() -> None:
    assert [d.name for d in CLUSTER.devices_of("alpha")] == ["a0", "a1", "broken", "CPU-a"]
    assert CLUSTER.cpu_of("alpha").name == "CPU-a"
    assert CLUSTER.cpu_of("beta") is None
    assert [d.name for d in CLUSTER.accelerators] == ["a0", "a1", "b0", "c0"]


@pytest.mark.parametrize(
    ("a", "b", "kinds", "rate", "seconds"),
    [
        ("a0", "a0", [], float("inf"), 0.0),
        ("a0", "a1", ["nvlink"], 80e9, 1e-6),
        ("a1", "CPU-a", ["pcie"], 13e9, 5e-6),
        ("a1", "beta", ["pcie", "infiniband"], 13e9, 8e-6),  # a host stands for its memory
        ("a0", "b0", ["pcie", "infiniband", "pcie"], 24e9, 13e-6),  # of two links between hosts, the faster
        ("a0", "c0", ["pcie", "ethernet"], 1.25e9, 35e-6),  # unified memory: nothing between device and host
    ],
)
def test_the_way_between_two_devices(a: str, b: str, kinds: list[str], rate: float, seconds: float) -> None:
    path = CLUSTER.path(a, b)
    assert [step.kind for step in path.links] == kinds
    assert path.bandwidth_bytes_per_second == rate
    assert path.latency_seconds == pytest.approx(seconds)
    back = CLUSTER.path(b, a)
    assert (back.bandwidth_bytes_per_second, back.latency_seconds) == (rate, pytest.approx(seconds))


def test_hosts_may_be_reached_through_others_or_not_at_all() -> None:
    chain = replace(CLUSTER, links=(link("ethernet", "alpha", "beta"), link("ethernet", "beta", "gamma", rate=2e9)))
    assert [step.ends for step in chain.path("a0", "c0").links] == [("alpha", "beta"), ("beta", "gamma")]
    apart = replace(CLUSTER, links=(link("ethernet", "alpha", "beta"),))
    assert apart.path("a0", "c0") is None
    assert apart.path("a0", "a1") == Path()  # same host, and no link told: nothing is known to be in the way


def test_a_device_is_found_by_its_name_and_a_link_by_its_ends() -> None:
    assert CLUSTER.device("b0").kind == "amd"
    assert CLUSTER.host("beta") == Host(name="beta")
    with pytest.raises(KeyError):
        CLUSTER.device("nowhere")
    assert CLUSTER.link("alpha", "gamma").kind == "ethernet"
    assert CLUSTER.link("alpha", "alpha") is None
    assert CLUSTER.device("b0").fact("compute_capability") is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hosts": ()}, "the cluster has no host"),
        ({"devices": (), "links": ()}, "the cluster has no device; give each host its memory, or a device"),
        ({"devices": (device("a0"), device("a0")), "links": ()}, "device 'a0': a device has this name"),
        ({"devices": (device("alpha"),), "links": ()}, "device 'alpha': a host has this name"),
        ({"devices": (device(""),), "links": ()}, "a device has no name"),
        ({"devices": (device("x", "delta"),), "links": ()}, "host 'delta' is none of alpha, beta, gamma"),
        ({"devices": (device("x", kind="abacus"),), "links": ()}, "kind 'abacus' is none of cpu"),
        ({"devices": (replace(device("x"), memory_total_bytes=0),), "links": ()}, "memory of 0 bytes"),
        ({"devices": (device("x", memory_free_bytes=25 * GIB),), "links": ()}, "bytes free of"),
        ({"devices": (device("x", chips=0),), "links": ()}, "0 chips"),
        ({"devices": (device("x", kind="cpu"), device("y", kind="cpu")), "links": ()}, "has a CPU already"),
        (
            {"links": (link("nvlink", "a0", "a9"),)},
            "it leads to 'a9', which is neither a device nor a host; did you mean a",
        ),
        ({"links": (link("nvlink", "a0"),)}, "a link has two or more, all different"),
        ({"links": (link("nvlink", "a0", "a0"),)}, "a link has two or more, all different"),
        ({"links": (link("nvlink", "a0", "a1", rate=0.0),)}, "bandwidth of 0 bytes/s is not above 0"),
        ({"links": (link("nvlink", "a0", "a1", rate=float("nan")),)}, "bandwidth of nan bytes/s"),
        ({"links": (link("nvlink", "a0", "a1", seconds=-1.0),)}, "latency of -1 s is below 0"),
    ],
)
def test_what_cannot_be_is_said(changed: dict[str, object], message: str) -> None:
    assert message in " / ".join(fault.message for fault in faults(replace(CLUSTER, **changed)))
    with pytest.raises(MachineError):
        check_cluster(replace(CLUSTER, **changed))


def test_a_sound_cluster_is_returned() -> None:
    assert check_cluster(CLUSTER) is CLUSTER
    assert device("x").family == "gpu"
    assert set(KINDS.values()) == {"cpu", "gpu", "tpu", "asic", "npu"}


def test_near_names_are_offered_else_all() -> None:
    assert did_you_mean("nvlnk", ["nvlink", "pcie"]) == "; did you mean nvlink?"
    assert did_you_mean("zzz", ["nvlink", "pcie"]) == "; one of nvlink, pcie"
    assert did_you_mean("zzz", []) == ""


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(1, 1e12)), max_size=15))
def test_a_way_is_as_short_as_any_and_the_same_both_ways(edges: list[tuple[int, int, float]]) -> None:
    names = [f"h{i}" for i in range(6)]
    links = tuple(link("ethernet", names[a], names[b], rate=rate) for a, b, rate in edges if a != b)
    devices = tuple(device(f"d{i}", name) for i, name in enumerate(names))
    cluster = Cluster(hosts=tuple(Host(name=name) for name in names), devices=devices, links=links)
    hops = {(i, j): 0 if i == j else 99 for i in range(6) for j in range(6)}
    hops |= {(i, j): 1 for a, b, _ in edges for i, j in ((a, b), (b, a)) if i != j}
    for k in range(6):  # Floyd and Warshall
        hops = {(i, j): min(d, hops[i, k] + hops[k, j]) for (i, j), d in hops.items()}
    for (i, j), expected in hops.items():
        path = cluster.path(f"d{i}", f"d{j}")
        assert (99 if path is None else len(path.links)) == expected or i == j
        back = cluster.path(f"d{j}", f"d{i}")
        assert (path is None) == (back is None)
