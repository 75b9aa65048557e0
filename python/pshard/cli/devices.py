"""``pshard devices``: what computes on this machine, or in a cluster that is written by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._options import FILE
from pshard.cli._output import Output, format_bytes, with_output

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster, Device, Link
    from pshard.detection import Detection


@click.command("devices")
@click.option(
    "--cluster", "cluster_file", type=FILE, metavar="FILE",
    help="Check and show a cluster.toml, instead of looking at this machine.",
)  # fmt: skip
@click.option(
    "--devices", "device_list", metavar="SIZE|GPU,...",
    help="Show a list like 24G,12G, rtx-4090-24g,rtx-3060-12g or 4xh100-sxm-80g.",
)  # fmt: skip
@click.option("--no-exec", is_flag=True, help="Run no tool: only files and libraries are asked.")
@click.option("--toml", "as_toml", is_flag=True, help="Print a cluster.toml of what was found, to edit.")
@click.option(
    "-o", "--output", type=FILE, metavar="FILE",
    help="Write that cluster.toml to a file.",
)  # fmt: skip
@with_output
def command(
    out: Output,
    /,
    *,
    cluster_file: Path | None,
    device_list: str | None,
    no_exec: bool,
    as_toml: bool,
    output: Path | None,
) -> None:
    """List the devices of this machine and the links between them.

    GPUs, TPUs, NPUs and AI ASICs are found by their drivers' files, libraries and tools; a tool that is absent or does
    not answer is told, and stops nothing. The CPU is always listed.
    """
    from pshard.cluster.toml_writing import cluster_toml

    if cluster_file is not None and device_list is not None:
        message = "--cluster and --devices both say what there is; give one of them."
        raise click.UsageError(message)
    detection = None
    if cluster_file is not None:
        from pshard.cluster.toml_reading import read_cluster

        cluster = read_cluster(cluster_file)
    elif device_list is not None:
        from pshard.cluster.device_list import parse_devices

        cluster = parse_devices(device_list)
    else:
        from pshard.detection import System, detect_devices

        detection = detect_devices(System(may_execute=not no_exec))
        cluster = detection.cluster
    text = cluster_toml(cluster, detection.ports if detection is not None else ())
    if output is not None:
        from pshard.atomic_file import write_atomically

        out.note(f"written: {write_atomically(output, text.encode())}")
    out.json(_document(cluster, detection))
    if as_toml:
        out.line(text.rstrip("\n"))
    else:
        _print(out, cluster, detection)


def _document(cluster: Cluster, detection: Detection | None) -> dict[str, Any]:
    from msgspec import to_builtins

    hosts = [to_builtins(host) for host in cluster.hosts]
    devices = [
        {**to_builtins(device), "family": device.family, "available": device.available} for device in cluster.devices
    ]
    document = {"schema_version": 1, "hosts": hosts, "devices": devices, "links": to_builtins(cluster.links)}
    if detection is not None:
        looked_for = [{"kind": kind, "reasons": list(reasons)} for kind, reasons in detection.looked_for.items()]
        ports = [dataclasses.asdict(port) for port in detection.ports]
        document |= {"ports": ports, "looked_for": looked_for}
        document["seconds"] = detection.seconds
    return document | {"notes": list(cluster.notes)}


def _print(out: Output, cluster: Cluster, detection: Detection | None) -> None:
    _print_devices(out, cluster)
    between = [link for link in cluster.links if not _is_to_host(link, cluster)]
    if between:
        out.line()
        out.table(["link", "between", "GB/s each way", "us", "figures"], [_link_cells(link) for link in between])
    if detection is not None and detection.ports:
        out.line()
        rows = [[port.name, port.kind, _gigabytes(port.bandwidth_bytes_per_second)] for port in detection.ports]
        out.table(["port", "kind", "GB/s each way"], rows)
    missing = detection.looked_for.items() if detection is not None else ()
    if any(reasons for _, reasons in missing):
        out.line()
        out.table(["looked for", "in the way"], [[kind, "; ".join(reasons)] for kind, reasons in missing if reasons])
    for note in cluster.notes:
        out.note(note)
    out.hint("pshard devices -o cluster.toml writes this as a file to edit")


def _print_devices(out: Output, cluster: Cluster) -> None:
    several = len(cluster.hosts) > 1
    columns = ["device", "kind", "product", "memory", "free", "NUMA", "to host", "speed from", "told by", "available"]
    out.table(
        ["host", *columns] if several else columns,
        [
            [device.host, *_device_cells(cluster, device)] if several else _device_cells(cluster, device)
            for device in cluster.devices
        ],
    )


def _device_cells(cluster: Cluster, device: Device) -> list[str | int | None]:
    link = cluster.link(device.name, device.host)
    to_host = f"{_gigabytes(link.bandwidth_bytes_per_second)} GB/s" if link else None
    free = device.memory_free_bytes
    return [
        device.name,
        device.kind,
        f"{device.product}, {device.chips} chips" if device.chips > 1 else device.product,
        format_bytes(device.memory_total_bytes) if device.memory_total_bytes else None,
        None if free is None else format_bytes(free),
        device.numa_node,
        "shares RAM" if device.unified_memory else to_host,
        Path(device.speed.name).name if device.speed.source == "profile" else device.speed.name,
        ", ".join(dict.fromkeys(fact.origin for fact in device.facts)),
        device.unavailable_reason or "yes",
    ]


def _link_cells(link: Link) -> list[str]:
    rate, microseconds = _gigabytes(link.bandwidth_bytes_per_second), f"{link.latency_seconds * 1e6:.3g}"
    return [link.kind, " - ".join(link.ends), rate, microseconds, link.source]


def _gigabytes(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.4g}"


def _is_to_host(link: Link, cluster: Cluster) -> bool:
    """Whether a link joins a device to its own host, which the table of devices shows."""
    return len(link.ends) == 2 and sum(end in cluster.host_names for end in link.ends) == 1
