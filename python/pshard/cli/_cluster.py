"""What the commands that plan over several devices share: where devices and links come from, and image shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pshard.cli._options import FILE

if TYPE_CHECKING:
    from pshard.cli._output import Output
    from pshard.cluster.cluster import Cluster


def with_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--devices``, ``--cluster`` and ``--ram``."""
    options = (
        click.option(
            "--devices", "device_list", metavar="SIZE|GPU,...",
            help="Devices of one host: 24G,12G or rtx-4090-24g,rtx-3060-12g or 4xh100-sxm-80g; none.  [default: this "
            "machine's]",
        ),
        click.option(
            "--cluster", "cluster_file", type=FILE, metavar="FILE",
            help="Hosts, devices and links: a cluster.toml (docs/devices.md).",
        ),
        click.option("--ram", metavar="SIZE[@GB/s]", help="Memory of the host of --devices, like 64G@90GB/s."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def read_devices(out: Output, device_list: str | None, cluster_file: Path | None, ram: str | None) -> Cluster:
    """Return the cluster of a file, of a list, or of this machine."""
    if cluster_file is not None and (device_list is not None or ram is not None):
        message = "--cluster says what there is; leave out --devices and --ram."
        raise click.UsageError(message)
    if cluster_file is not None:
        from pshard.cluster.toml_reading import read_cluster

        return read_cluster(cluster_file)
    if device_list is not None:
        from pshard.cluster.device_list import parse_devices

        return parse_devices(device_list, ram=ram)
    if ram is not None:
        message = "--ram belongs to --devices; this machine's memory is measured."
        raise click.UsageError(message)
    from pshard.detection import System, detect_devices

    out.note("the devices are this machine's; others with --devices or --cluster")
    return detect_devices(System(may_execute=True)).cluster


def parse_image_shape(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:
    """Read ``1024x768``: height and width in pixels."""
    found = re.fullmatch(r"0*([1-9][0-9]{0,8})x0*([1-9][0-9]{0,8})", text.lower())
    if found is None:
        message = f"{text!r} is not HEIGHTxWIDTH in pixels, like 1024x1024."
        raise click.BadParameter(message)
    return int(found[1]), int(found[2])
