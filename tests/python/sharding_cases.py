"""Clusters to shard over, and what holds of every plan: nothing overflows, and sums are of their parts."""

from __future__ import annotations

import itertools
from pathlib import Path

from msgspec.structs import replace

from pshard import _core
from pshard.cluster.cluster import Cluster, Device, Host, Link
from pshard.cluster.device_list import parse_devices
from pshard.cluster.host_links import with_host_links
from pshard.cluster.link_references import reference_link
from pshard.cluster.toml_reading import read_cluster
from pshard.sharding.types import Priced, ShardingPlan

MIB = 1 << 20
GIB = 1 << 30
GPU = _core.LayerPlacement(_core.Where.pinned)


def cluster(text: str, ram: str = "128G") -> Cluster:
    return parse_devices(text, ram=ram)


def two_hosts(path: Path, first: str = "rtx-4090-24g", second: str = "rtx-3090-24g", link: str = "10g") -> Cluster:
    file = path / "cluster.toml"
    file.write_text(
        f"""
        [[hosts]]
        name = "a"
        memory = "64G"
        speed = "desktop-16c"
        address = "10.0.0.1"
        [[hosts]]
        name = "b"
        memory = "64G"
        speed = "desktop-16c"
        address = "10.0.0.2"
        [[devices]]
        name = "a-gpu"
        host = "a"
        speed = "{first}"
        count = 2
        [[devices]]
        name = "b-gpu"
        host = "b"
        speed = "{second}"
        count = 2
        [[links]]
        kind = "ethernet"
        ends = ["a", "b"]
        generation = "{link}"
        """
    )
    return read_cluster(file)


def hosts_with(gpus: list[list[str]], network: str) -> Cluster:
    """Hosts of reference GPUs on one Ethernet."""
    hosts = tuple(Host(name=f"h{h}") for h in range(len(gpus)))
    devices = tuple(
        replace(device, name=f"h{h}g{i}", host=f"h{h}")
        for h, names in enumerate(gpus)
        for i, device in enumerate(parse_devices(",".join(names), ram="64G").accelerators)
    )
    ethernet = reference_link("ethernet", network, tuple(host.name for host in hosts), 1)
    return with_host_links(Cluster(hosts=hosts, devices=devices, links=(ethernet,)))


def strategies(plan: ShardingPlan) -> dict[str, Priced]:
    assert plan.chosen is not None
    return {priced.strategy: priced for priced in (plan.chosen, *plan.others)}


def check(plan: ShardingPlan) -> None:
    """Each copy has every layer once, ranks make up whole layers, and no device holds more than it may."""
    for priced in strategies(plan).values():
        names = [shard.device.name for shard in priced.shards]
        assert len(set(names)) == len(names)
        for shard in priced.shards:
            assert shard.memory_bytes <= shard.capacity_bytes
        for _, group in itertools.groupby(priced.shards, key=lambda shard: shard.replica):
            shards = list(group)
            done = 0
            for _, ranks in itertools.groupby(shards, key=lambda shard: shard.stage):
                stage = list(ranks)
                assert {(s.first_layer, s.n_ranks) for s in stage} == {(done, len(stage))}
                # Norms and routers are on every rank.
                assert 0.999 <= sum(shard.weight_share for shard in stage) <= 1.1
                done = stage[0].last_layer + 1
            assert done == plan.model.n_layer


def accelerators(kind: str, chips: int, n: int, gib: int) -> Cluster:
    devices = tuple(
        Device(name=f"{kind}{i}", kind=kind, host="h", memory_total_bytes=gib * GIB, chips=chips) for i in range(n)
    )
    cpu = Device(name="h-cpu", kind="cpu", host="h", memory_total_bytes=64 * GIB)
    links = tuple(
        Link(
            kind="pcie", ends=(device.name, "h"), bandwidth_bytes_per_second=12e9, latency_seconds=5e-6,
            source="reference",
        )
        for device in devices
    )  # fmt: skip
    return Cluster(hosts=(Host(name="h"),), devices=(*devices, cpu), links=links)
