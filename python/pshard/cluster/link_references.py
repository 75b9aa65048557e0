"""Published bandwidth and latency of links by kind and generation: what stands in where nobody measured or gave them.

The table is references/links.json, each row with its source. PCIe is not in it: its rates are those that machines are
priced with (`reference_rates`).
"""

from __future__ import annotations

from functools import cache

import msgspec

from pshard.cluster.cluster import Link, LinkKind
from pshard.errors import SettingError
from pshard.machine.reference_rates import PCIE_LANE_BYTES_PER_SECOND, efficiency


class LinkSheet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One generation of a link.

    Attributes
    ----------
    kind, generation : str
    unit : str
        What the rate is of: a link, lane or port, of which several run side by side; or all of a GPU's.
    bytes_per_second : float
        Raw rate of one unit, each way.
    reached : float
        Share of it that large transfers reach; 1 where no figure is published.
    latency_seconds : float
        Of one small message.
    source : str
    """

    kind: LinkKind
    generation: str
    unit: str
    bytes_per_second: float
    reached: float
    latency_seconds: float
    source: str


@cache
def link_sheets() -> tuple[LinkSheet, ...]:
    """Return all rows: those of references/links.json, and PCIe by lane."""
    from importlib.resources import files

    content = files("pshard.machine").joinpath("data_sheets").joinpath("links.json").read_bytes()
    pcie = efficiency().pcie
    slots = (
        LinkSheet(
            kind="pcie",
            generation=str(generation),
            unit="lane",
            bytes_per_second=rate,
            reached=pcie.value,
            latency_seconds=pcie.latency_seconds,
            source=pcie.source,
        )
        for generation, rate in PCIE_LANE_BYTES_PER_SECOND.items()
    )
    return (*slots, *msgspec.json.decode(content, type=list[LinkSheet]))


def generations(kind: LinkKind) -> tuple[str, ...]:
    """Return the generations of a kind of link for which there are figures."""
    return tuple(sheet.generation for sheet in link_sheets() if sheet.kind == kind)


def reference_link(kind: LinkKind, generation: str, ends: tuple[str, ...], count: int = 1) -> Link:
    """Build a link from published figures.

    Parameters
    ----------
    kind : str
        One of `cluster.LINK_KINDS`.
    generation : str
        As in `generations(kind)`.
    ends : tuple of str
        Names of the devices or hosts that it joins.
    count : int
        Units side by side: links of a bridge, lanes of a slot, ports.

    Returns
    -------
    Link
        With the bandwidth that large transfers reach; its source is "reference".

    Raises
    ------
    SettingError
        There are no figures for this generation.
    """
    for sheet in link_sheets():
        if (sheet.kind, sheet.generation) == (kind, generation.lower()):
            side_by_side = f"{count} x " if count > 1 else ""
            return Link(
                kind=kind,
                ends=ends,
                bandwidth_bytes_per_second=count * sheet.bytes_per_second * sheet.reached,
                latency_seconds=sheet.latency_seconds,
                source="reference",
                origin=f"{side_by_side}{kind} {sheet.generation} {sheet.unit}; {sheet.source}",
            )
    known = ", ".join(generations(kind)) or "none"
    message = f"no published figures for {kind} generation {generation!r} (known: {known}); give bandwidth and latency"
    raise SettingError(message)
