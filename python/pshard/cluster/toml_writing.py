"""A cluster as the text of a ``cluster.toml``, to be read again and edited by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pshard.cluster.cluster import Cluster, Device, Link
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard.detection.network import Port


def cluster_toml(cluster: Cluster, ports: Sequence[Port] = ()) -> str:
    """Write a cluster as TOML.

    Parameters
    ----------
    cluster : Cluster
        Devices that cannot be used are written as comments, with the reason.
    ports : sequence of Port
        Ports of this host, for a comment on how to link another.

    Returns
    -------
    str
        What `read_cluster` reads as the same cluster: its links between devices and their hosts are left out where they
        follow from the slot or the data sheet.
    """
    return "\n".join([*_lines(cluster, ports), ""])


def _lines(cluster: Cluster, ports: Sequence[Port]) -> Iterator[str]:
    yield "# A cluster for pshard. docs/devices.md describes every key."
    yield "schema_version = 1"
    for host in cluster.hosts:
        cpu = cluster.cpu_of(host.name)
        yield from ("", "[[hosts]]", f"name = {_quoted(host.name)}")
        if cpu is not None:
            yield from _text("product", cpu.product)
            yield f"memory = {_quoted(_size(cpu.memory_total_bytes))}"
            yield from _free(cpu)
            yield from _number("cores", cpu.fact("n_cores"))
            yield from _text("speed", cpu.speed.name)
        yield from _number("numa_nodes", host.n_numa_nodes)
        yield from _text("address", host.address)
    for device in cluster.devices:
        if device.available and not device.is_cpu:
            yield from _device(device)
        elif not device.available:
            yield from ("", _comment(f"{device.name}, {device.product}: {device.unavailable_reason}"))
    for link in cluster.links:
        if not _follows(link, cluster):
            yield from _link(link)
    if ports:
        yield from ("", "# This host reaches others through:")
        yield from (_comment(f"  {port.name}: {port.kind}, {_rate(port.bandwidth_bytes_per_second)}") for port in ports)
        yield from ("# so that a link to a second [[hosts]] is, with its name:", "# [[links]]")
        yield from (f'# kind = "{ports[0].kind}"', f'# ends = [{_quoted(cluster.hosts[0].name)}, "other"]')
        yield f'# bandwidth = "{_rate(ports[0].bandwidth_bytes_per_second)}"'


def _device(device: Device) -> Iterator[str]:
    yield from ("", "[[devices]]", f"name = {_quoted(device.name)}", f"host = {_quoted(device.host)}")
    yield f"kind = {_quoted(device.kind)}"
    yield from _text("product", device.product)
    yield f"memory = {_quoted(_size(device.memory_total_bytes))}"
    yield from _free(device)
    if device.numa_node is not None:
        yield f"numa_node = {device.numa_node}"
    if device.unified_memory:
        yield "unified_memory = true"
    if device.chips > 1:
        yield f"chips = {device.chips}"
    generation, lanes = device.fact("pcie_generation"), device.fact("pcie_lanes")
    if generation and lanes:
        yield f'pcie = "{generation}x{lanes}"'
    yield from _text("speed", device.speed.name)


def _follows(link: Link, cluster: Cluster) -> bool:
    """Whether reading makes the link again by itself: it is that of a device and its host, and nobody gave it."""
    return link.kind == "pcie" and link.source != "given" and any(end in cluster.host_names for end in link.ends)


def _link(link: Link) -> Iterator[str]:
    yield from ("", "[[links]]", f'kind = "{link.kind}"', f"ends = [{', '.join(map(_quoted, link.ends))}]")
    yield f'bandwidth = "{_rate(link.bandwidth_bytes_per_second)}"  {_comment(f"{link.source}: {link.origin}")}'
    yield f'latency = "{_plain(link.latency_seconds * 1e6)}us"'


def _free(device: Device) -> Iterator[str]:
    """Say what is free as a comment: what was free when a file was written is not what will be."""
    if device.memory_free_bytes is not None:
        yield f"# free = {_quoted(_size(device.memory_free_bytes))}"


def _text(key: str, value: str) -> Iterator[str]:
    if value:
        yield f"{key} = {_quoted(value)}"


def _number(key: str, value: object) -> Iterator[str]:
    if value:
        yield f"{key} = {value}"


def _quoted(text: str) -> str:
    import tomli_w

    return tomli_w.dumps({"": text}).removeprefix('"" = ').rstrip("\n")


def _comment(text: str) -> str:
    return f"# {' '.join(text.split())}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes}B" if n_bytes % MIB else f"{n_bytes // MIB}M"


def _rate(bytes_per_second: float) -> str:
    return f"{_plain(bytes_per_second / 1e9)}GB/s"


def _plain(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")
