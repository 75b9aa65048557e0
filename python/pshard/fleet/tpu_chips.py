"""TPU chips as devices of their own: a TPU device stands for all chips behind it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pshard.cluster.cluster import Cluster, Device, Link
from pshard.cluster.link_references import generations, reference_link


def with_chips(cluster: Cluster, tpus: Sequence[Device]) -> tuple[Cluster, list[Device]]:
    """Replace TPU devices by their chips, on one interconnect.

    Parameters
    ----------
    cluster : Cluster
    tpus : sequence of Device

    Returns
    -------
    cluster : Cluster
        Chips are named after their device, each with an equal part of its memory. Their interconnect is the cluster's
        ICI link, else that of the oldest published generation.
    chips : list of Device
    """
    names = {tpu.name for tpu in tpus}
    chips = [
        replace(
            tpu,
            name=f"{tpu.name}.{i}",
            chips=1,
            memory_total_bytes=tpu.memory_total_bytes // tpu.chips,
            memory_free_bytes=None if tpu.memory_free_bytes is None else tpu.memory_free_bytes // tpu.chips,
        )
        for tpu in tpus
        for i in range(tpu.chips)
    ]
    ends = tuple(chip.name for chip in chips)
    given = next((link for link in cluster.links if link.kind == "ici"), None)
    links: list[Link] = []
    for link in cluster.links:
        tpu = next((end for end in link.ends if end in names), None)
        if tpu is None:
            links.append(link)
        elif link.kind != "ici":  # the slot, which the chips behind it share
            links += [
                replace(link, ends=tuple(chip.name if end == tpu else end for end in link.ends))
                for chip in chips
                if chip.name.startswith(f"{tpu}.")
            ]
    if len(ends) > 1:
        links.append(
            replace(given, ends=ends) if given is not None else reference_link("ici", generations("ici")[0], ends, 1)
        )
    others = [device for device in cluster.devices if device.name not in names]
    return replace(cluster, devices=(*chips, *others), links=tuple(links)), chips
