"""Ports to other hosts: what a person needs to write the links of a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pshard.detection.system import System

ETHERNET = "/sys/class/net"
INFINIBAND = "/sys/class/infiniband"
ARPHRD_ETHER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port that is up; its rate is the nominal one, each way."""

    name: str
    kind: Literal["ethernet", "infiniband"]
    bandwidth_bytes_per_second: float


def ports(system: System) -> list[Port]:
    """List the ports that are up and tell their rate: real Ethernet ports, and RDMA ports of either kind."""
    found = []
    for path in system.entries(ETHERNET, "*"):
        megabits = system.number(path / "speed")
        is_real = (path / "device").exists() and system.number(path / "type") == ARPHRD_ETHER
        if is_real and megabits is not None and megabits > 0 and system.text(path / "operstate") == "up":
            found.append(Port(name=path.name, kind="ethernet", bandwidth_bytes_per_second=megabits * 1e6 / 8))
    for adapter in system.entries(INFINIBAND, "*"):
        for path in sorted(adapter.glob("ports/[0-9]*")):
            rate = re.match(r"(\d+(?:\.\d+)?) Gb/sec", system.text(path / "rate"))
            is_infiniband = system.text(path / "link_layer") == "InfiniBand"
            if rate and is_infiniband and "ACTIVE" in system.text(path / "state"):
                name = f"{adapter.name}/{path.name}"
                found.append(Port(name=name, kind="infiniband", bandwidth_bytes_per_second=float(rate[1]) * 1e9 / 8))
    return found
