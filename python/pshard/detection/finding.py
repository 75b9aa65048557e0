"""What looking for one kind of device has found."""

from __future__ import annotations

from dataclasses import dataclass

from pshard.cluster.cluster import Device, Fact, Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Devices and links of a kind, on the host ``host``.

    Attributes
    ----------
    devices, links : tuple
    reasons : tuple of str
        Why there is no device, or why less is known of them: a tool that is absent or gave no answer.
    notes : tuple of str
        Sentences on where figures come from that nobody measured.
    """

    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def facts(origin: str, **values: str | int | float | bool | None) -> tuple[Fact, ...]:
    """Make facts of one origin from those values that are known."""
    known = {name: value for name, value in values.items() if value is not None and value != ""}
    return tuple(Fact(name=name, value=value, origin=origin) for name, value in known.items())


def untold(total_bytes: int, remedy: str = "") -> str:
    """Say why a device without known memory cannot be used; nothing of one whose memory is known."""
    return "" if total_bytes > 0 else f"its memory could not be told{remedy}"
