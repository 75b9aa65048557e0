"""Devices, the hosts that they are in, and the links between them: found here (`detection`) or written by hand.

A device computes and has memory of its own, or shares its host's. The CPU of a host is a device like any other, and
comes last. A link joins two ends, or all that hang on one switch or network; an end is a device or a host.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import permutations
from typing import Literal, get_args

import msgspec

from pshard.errors import MachineError

Family = Literal["cpu", "gpu", "npu", "tpu", "asic"]
SpeedSource = Literal["profile", "reference", "none"]
LinkSource = Literal["measured", "given", "reference"]
LinkKind = Literal[
    "nvlink", "nvswitch", "xgmi", "ici", "neuronlink", "gaudi", "pcie", "thunderbolt", "infiniband", "ethernet"
]

LINK_KINDS: tuple[LinkKind, ...] = get_args(LinkKind)

# What a kind is for a planner: GPUs, TPUs and the ASICs made for language models are pooled; NPUs are listed only.
KINDS: dict[str, Family] = {
    "cpu": "cpu",
    "nvidia": "gpu",
    "amd": "gpu",
    "intel": "gpu",
    "apple": "gpu",
    "gpu": "gpu",
    "tpu": "tpu",
    "gaudi": "asic",
    "neuron": "asic",
    "qualcomm": "asic",
    "cerebras": "asic",
    "graphcore": "asic",
    "groq": "asic",
    "tenstorrent": "asic",
    "furiosa": "asic",
    "rebellions": "asic",
    "intel-npu": "npu",
    "amd-npu": "npu",
    "apple-npu": "npu",
    "qualcomm-npu": "npu",
    "rockchip-npu": "npu",
    "arm-npu": "npu",
    "mediatek-npu": "npu",
    "samsung-npu": "npu",
}


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Fact(_Record, frozen=True, kw_only=True):
    """One thing known of a device, its unit in its name, and who said so."""

    name: str
    value: str | int | float | bool
    origin: str


class Speed(_Record, frozen=True, kw_only=True):
    """Where the speed of a device comes from.

    Attributes
    ----------
    source : {"profile", "reference", "none"}
    name : str
        Path of the profile, or name of the reference GPU or host, as `load_machine` takes either; empty for none.
    """

    source: SpeedSource = "none"
    name: str = ""


NO_SPEED = Speed()


class Host(_Record, frozen=True, kw_only=True):
    """A computer. Its memory is that of its CPU, a `Device`.

    Attributes
    ----------
    name : str
    n_numa_nodes : int
        0 where unknown.
    address : str
        Where other hosts reach it, for launch lines; empty where not known.
    """

    name: str
    n_numa_nodes: int = 0
    address: str = ""


class Device(_Record, frozen=True, kw_only=True):
    """Something that computes.

    Attributes
    ----------
    name : str
        Unique in the cluster, hosts included; devices found here are named as llama.cpp does (``CUDA0``), where it can
        use them.
    kind : str
        One of `KINDS`.
    host : str
        Name of the host that it is in.
    product : str
        What its maker calls it.
    memory_total_bytes : int
        Of all its chips; of a CPU, the RAM. 0 where it could not be told.
    memory_free_bytes : int or None
        None where nobody was asked.
    numa_node : int or None
        The node of its host that it hangs on.
    speed : Speed
    unified_memory : bool
        Its memory is the host's RAM: what it takes, the CPU cannot have.
    chips : int
        Chips behind this one device.
    unavailable_reason : str
        Why it cannot be used now; empty where it can.
    facts : tuple of Fact
        All else that is known, and where each of the above is from.
    """

    name: str
    kind: str
    host: str
    product: str = ""
    memory_total_bytes: int
    memory_free_bytes: int | None = None
    numa_node: int | None = None
    speed: Speed = NO_SPEED
    unified_memory: bool = False
    chips: int = 1
    unavailable_reason: str = ""
    facts: tuple[Fact, ...] = ()

    @property
    def family(self) -> Family:
        """What its kind is for a planner."""
        return KINDS[self.kind]

    @property
    def available(self) -> bool:
        """Whether it can be used now."""
        return not self.unavailable_reason

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU of its host."""
        return self.kind == "cpu"

    def fact(self, name: str) -> str | int | float | bool | None:
        """Return the value of a fact; None where it is not known."""
        return next((fact.value for fact in self.facts if fact.name == name), None)


class Link(_Record, frozen=True, kw_only=True):
    """What joins devices or hosts, pairwise or through one switch.

    Attributes
    ----------
    kind : str
        One of `LINK_KINDS`.
    ends : tuple of str
        Names of two devices or hosts; more than two hang on one switch, and each reaches every other.
    bandwidth_bytes_per_second : float
        What an end can send, and at the same time receive.
    latency_seconds : float
        Of one small message.
    source : {"measured", "given", "reference"}
        Given: by the person who wrote the file. Reference: published, neither measured nor given.
    origin : str
        Document or tool.
    """

    kind: LinkKind
    ends: tuple[str, ...]
    bandwidth_bytes_per_second: float
    latency_seconds: float
    source: LinkSource
    origin: str = ""


class Path(_Record, frozen=True, kw_only=True):
    """The links that a message takes from one device to another; none inside one device or one shared memory."""

    links: tuple[Link, ...] = ()

    @property
    def bandwidth_bytes_per_second(self) -> float:
        """Bandwidth of the slowest link, infinite without one."""
        return min((link.bandwidth_bytes_per_second for link in self.links), default=float("inf"))

    @property
    def latency_seconds(self) -> float:
        """Latency of all links together."""
        return sum(link.latency_seconds for link in self.links)


class Cluster(_Record, frozen=True, kw_only=True, dict=True):
    """Hosts, their devices in order, and links; `check_cluster` holds for every one that this package makes.

    Attributes
    ----------
    hosts, devices, links
        Devices of a host are in the order in which engines number them, its CPU last.
    notes : tuple of str
        Sentences on where figures come from that nobody measured or gave; every output shows them.
    """

    hosts: tuple[Host, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    notes: tuple[str, ...] = ()

    def host(self, name: str) -> Host:
        """Return the host of a name. KeyError where there is none."""
        return self._hosts_by_name[name]

    @property
    def host_names(self) -> tuple[str, ...]:
        """Names of the hosts in order."""
        return tuple(host.name for host in self.hosts)

    def device(self, name: str) -> Device:
        """Return the device of a name. KeyError where there is none."""
        return self._devices_by_name[name]

    def devices_of(self, host: str) -> tuple[Device, ...]:
        """Return the devices of a host in order, its CPU last."""
        own = [device for device in self.devices if device.host == host]
        return (*(device for device in own if not device.is_cpu), *(device for device in own if device.is_cpu))

    def cpu_of(self, host: str) -> Device | None:
        """Return the CPU of a host; None where its memory was not told."""
        return next((device for device in self.devices if device.host == host and device.is_cpu), None)

    @property
    def accelerators(self) -> tuple[Device, ...]:
        """All devices that are available and no CPU, in order."""
        return tuple(device for device in self.devices if device.available and not device.is_cpu)

    def link(self, a: str, b: str) -> Link | None:
        """Return the direct link between two devices or hosts with the most bandwidth; None where there is none."""
        return self._links_by_end.get(a, {}).get(b)

    def path(self, a: str, b: str) -> Path | None:
        """Return the way from one device to another.

        Parameters
        ----------
        a, b : str
            Names of devices; that of a host stands for its memory.

        Returns
        -------
        Path or None
            Their direct link; else through their hosts: up one's slot, over the network where the hosts differ, down
            the other's. None where no link joins the hosts.
        """
        if a == b:
            return Path()
        direct = self.link(a, b)
        if direct is not None:
            return Path(links=(direct,))
        (first_host, up), (last_host, down) = self._to_host(a), self._to_host(b)
        between = self._ways[first_host].get(last_host)
        return None if between is None else Path(links=(*up, *between, *down))

    def _to_host(self, name: str) -> tuple[str, tuple[Link, ...]]:
        """Return a device's host, and the link to its memory: none of a CPU, or of a device that shares it."""
        if name in self._hosts_by_name:
            return name, ()
        device = self.device(name)
        link = self.link(name, device.host)
        return device.host, () if device.is_cpu or device.unified_memory or link is None else (link,)

    @cached_property
    def _hosts_by_name(self) -> dict[str, Host]:
        return {host.name: host for host in self.hosts}

    @cached_property
    def _devices_by_name(self) -> dict[str, Device]:
        return {device.name: device for device in self.devices}

    @cached_property
    def _links_by_end(self) -> dict[str, dict[str, Link]]:
        """For each end, the link with the most bandwidth to every other; of equals, the first."""
        found: dict[str, dict[str, Link]] = {}
        for link in self.links:
            for a, b in permutations(link.ends, 2):
                known = found.setdefault(a, {}).get(b)
                if a != b and (known is None or link.bandwidth_bytes_per_second > known.bandwidth_bytes_per_second):
                    found[a][b] = link
        return found

    @cached_property
    def _ways(self) -> dict[str, dict[str, tuple[Link, ...]]]:
        """From each host to all that it reaches: links over the fewest hops, of several those with most bandwidth."""
        return {host: self._ways_from(host) for host in self._hosts_by_name}

    def _ways_from(self, start: str) -> dict[str, tuple[Link, ...]]:
        reached: dict[str, tuple[Link, ...]] = {start: ()}
        frontier = [start]
        while frontier:
            found: dict[str, tuple[Link, ...]] = {}
            for here in frontier:
                for there, link in self._links_by_end.get(here, {}).items():
                    way = (*reached[here], link)
                    is_new_host = there in self._hosts_by_name and there not in reached
                    if is_new_host and _rate(way) > _rate(found.get(there)):
                        found[there] = way
            reached |= found
            frontier = list(found)
        return reached


def cpu_name(host: str, n_hosts: int) -> str:
    """Return the name of a host's CPU: llama.cpp's where there is one host."""
    return "CPU" if n_hosts == 1 else f"{host}-CPU"


def check_cluster(cluster: Cluster) -> Cluster:
    """Return the cluster if it can exist.

    Raises
    ------
    MachineError
        With the first thing that is wrong: no device, a name twice, an unknown kind or host, memory below 0, a link to
        nowhere or of no bandwidth.
    """
    for fault in faults(cluster):
        raise MachineError(fault.message)
    return cluster


class Fault(_Record, frozen=True, kw_only=True):
    """What is wrong with a cluster, and where: `entry` of `table` (empty for the whole) and its `key`."""

    message: str
    table: str = ""
    entry: int = 0
    key: str = ""


def faults(cluster: Cluster) -> Iterator[Fault]:
    """Yield all that is wrong with a cluster."""
    if not cluster.hosts:
        yield Fault(message="the cluster has no host")
    if not cluster.devices:
        yield Fault(message="the cluster has no device; give each host its memory, or a device")
    names: dict[str, str] = {}
    for what, all_names in (("host", cluster.host_names), ("device", [device.name for device in cluster.devices])):
        for i, name in enumerate(all_names):
            if not name:
                yield Fault(message=f"a {what} has no name", table=f"{what}s", entry=i, key="name")
            elif name in names:
                message = f"{what} {name!r}: a {names[name]} has this name; names are unique in a cluster"
                yield Fault(message=message, table=f"{what}s", entry=i, key="name")
            names[name] = what
    for i, device in enumerate(cluster.devices):
        for key, text in _device_faults(device, cluster):
            yield Fault(message=f"device {device.name!r}: {text}", table="devices", entry=i, key=key)
    for i, link in enumerate(cluster.links):
        for key, text in _link_faults(link, names):
            yield Fault(message=f"{link.kind} link: {text}", table="links", entry=i, key=key)


def _device_faults(device: Device, cluster: Cluster) -> Iterator[tuple[str, str]]:
    if device.kind not in KINDS:
        yield "kind", f"kind {device.kind!r} is none of {', '.join(KINDS)}"
    if device.host not in cluster.host_names:
        yield "host", f"host {device.host!r} is none of {', '.join(cluster.host_names)}"
    if device.memory_total_bytes < 0 or (device.available and device.memory_total_bytes == 0):
        yield "memory", f"memory of {device.memory_total_bytes} bytes; a device that is to be used has some"
    free = device.memory_free_bytes
    if free is not None and not 0 <= free <= device.memory_total_bytes:
        yield "free", f"{free} bytes free of {device.memory_total_bytes}"
    if device.chips < 1:
        yield "chips", f"{device.chips} chips; there is at least one"
    if device.is_cpu and cluster.cpu_of(device.host) is not device:
        yield "kind", f"host {device.host!r} has a CPU already; a host counts as one, with all its sockets"


def _link_faults(link: Link, names: Collection[str]) -> Iterator[tuple[str, str]]:
    if len(link.ends) < 2 or len(set(link.ends)) < len(link.ends):
        yield "ends", f"ends are {', '.join(link.ends) or 'none'}; a link has two or more, all different"
    for end in link.ends:
        if end not in names:
            yield "ends", f"it leads to {end!r}, which is neither a device nor a host{did_you_mean(end, names)}"
    if not 0 < link.bandwidth_bytes_per_second < float("inf"):
        yield "bandwidth", f"bandwidth of {link.bandwidth_bytes_per_second:g} bytes/s is not above 0"
    if not 0 <= link.latency_seconds < float("inf"):
        yield "latency", f"latency of {link.latency_seconds:g} s is below 0"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the end of an error message about a name: those that are near, else all."""
    near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; one of {', '.join(known)}" if known else ""


def _rate(links: tuple[Link, ...] | None) -> float:
    return 0.0 if links is None else Path(links=links).bandwidth_bytes_per_second
