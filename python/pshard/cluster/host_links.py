"""The link between a device and its host: from a measured profile, the slot that is known, or the usual slot."""

from __future__ import annotations

from msgspec.structs import replace

from pshard.cluster.cluster import Cluster, Device, Fact, Link
from pshard.cluster.link_references import reference_link
from pshard.machine.profile import Profile, read_profile
from pshard.machine.references import gpus, hosts

# What a slot is taken to be where neither file, data sheet nor profile says.
USUAL_SLOT = (4, 16)


def with_host_links(cluster: Cluster) -> Cluster:
    """Give each device that needs one a link to its host.

    Parameters
    ----------
    cluster : Cluster

    Returns
    -------
    Cluster
        A link comes from the measured profile that gives the device's speed, else from its slot as given or found, else
        from the slot of its data sheet, else from the usual slot, which a note says.
    """
    links, assumed = list(cluster.links), []
    measured = {device.speed.name for device in cluster.devices if device.speed.source == "profile"}
    profiles = {path: read_profile(path) for path in measured}
    for device in cluster.devices:
        needs_none = device.is_cpu or device.unified_memory or not device.available
        if needs_none or cluster.link(device.name, device.host) is not None:
            continue
        link, is_known = _host_link(device, cluster.cpu_of(device.host), profiles.get(device.speed.name))
        links.append(link)
        assumed += [] if is_known else [device.name]
    notes = cluster.notes
    if assumed:
        slot = f"PCIe {USUAL_SLOT[0]}.0 x{USUAL_SLOT[1]}"
        notes = (*notes, f'{", ".join(assumed)}: nothing tells the slot; taken as {slot}. Give pcie = "4x16".')
    return replace(cluster, links=tuple(links), notes=notes)


def slot_facts(generation: int, lanes: int, origin: str) -> tuple[Fact, ...]:
    """Facts of the slot that a device sits in."""
    return (
        Fact(name="pcie_generation", value=generation, origin=origin),
        Fact(name="pcie_lanes", value=lanes, origin=origin),
    )


def _host_link(device: Device, cpu: Device | None, profile: Profile | None) -> tuple[Link, bool]:
    """Return the link between a device and its host, and whether anything told it."""
    ends = (device.name, device.host)
    if profile is not None and profile.link is not None:
        up, down = profile.link.up, profile.link.down
        return Link(
            kind="pcie",
            ends=ends,
            bandwidth_bytes_per_second=min(max(up.bytes_per_second), max(down.bytes_per_second)),
            latency_seconds=max(up.latency_seconds, down.latency_seconds),
            source="measured" if up.source == down.source == "measured" else "reference",
            origin=f"profile {device.speed.name}",
        ), True
    slot = _slot(device, cpu)
    generation, lanes = slot or USUAL_SLOT
    return reference_link("pcie", str(generation), ends, lanes), slot is not None


def _slot(device: Device, cpu: Device | None) -> tuple[int, int] | None:
    """PCIe generation and lanes: as given or found, else the lower of what the two data sheets say."""
    known = (device.fact("pcie_generation"), device.fact("pcie_lanes"))
    if isinstance(known[0], int) and isinstance(known[1], int):
        return known[0], known[1]
    gpu = gpus().get(device.speed.name)
    host = hosts().get(cpu.speed.name) if cpu is not None else None
    sheets = [(sheet.pcie_generation, sheet.pcie_lanes) for sheet in (gpu, host) if sheet is not None]
    return (min(sheet[0] for sheet in sheets), min(sheet[1] for sheet in sheets)) if gpu is not None else None
