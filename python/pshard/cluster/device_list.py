"""Devices as they are listed on a command line: sizes, and reference GPUs by name."""

from __future__ import annotations

import re

from pshard.cluster.cluster import NO_SPEED, Cluster, Device, Fact, Host, Speed, check_cluster, cpu_name
from pshard.cluster.host_links import with_host_links
from pshard.errors import SettingError
from pshard.machine.references import Gpu, default_host, find_gpu, parse_ram
from pshard.machine.references import Host as HostSheet
from pshard.quantities import parse_bytes


def parse_devices(text: str, *, ram: str | None = None) -> Cluster:
    """Build a cluster of one host from a list of devices.

    Parameters
    ----------
    text : str
        Sizes and reference GPUs, with commas between: ``24G,12G``, ``rtx-4090-24g,rtx-3060-12g``, ``4xh100-sxm-80g``;
        ``none`` for no GPU.
    ram : str, optional
        Of the host, as `references.parse_ram`. By default that of the reference host which `load_machine` puts the
        first GPU into; of this machine, where no reference GPU is named.

    Returns
    -------
    Cluster
        The devices are named CUDA0, CUDA1 and so on, the host ``host``; its CPU is last.

    Raises
    ------
    SettingError
        For a device that is neither a size nor a reference GPU.
    MachineError
        For a device without memory.
    """
    devices: list[Device] = []
    sheets: list[Gpu] = []
    for part in [] if text.strip().lower() == "none" else text.split(","):
        found = re.fullmatch(r"(?:(\d{1,4})\s*[x*]\s*)?(.+)", part.strip())
        if found is None or (found[1] and int(found[1]) < 1):
            message = f"--devices {text!r}: {part!r} is no device; examples: 24G,12G or rtx-4090-24g,rtx-3060-12g"
            raise SettingError(message)
        sheet = None if re.fullmatch(r"[\d.]+\s*[a-zA-Z]*", found[2]) else find_gpu(found[2], "--devices")
        for _ in range(int(found[1] or 1)):
            devices.append(_listed(f"CUDA{len(devices)}", found[2], sheet))
        sheets += [sheet] if sheet is not None else []
    cpu = _listed_cpu(default_host(sheets[0]) if sheets else None, ram)
    return with_host_links(check_cluster(Cluster(hosts=(Host(name="host"),), devices=(*devices, cpu))))


def _listed(name: str, text: str, sheet: Gpu | None) -> Device:
    if sheet is None:
        memory_bytes = parse_bytes(text)
        return Device(
            name=name, kind="gpu", host="host", memory_total_bytes=memory_bytes, memory_free_bytes=memory_bytes
        )
    return Device(
        name=name,
        kind="nvidia",
        host="host",
        product=sheet.product,
        memory_total_bytes=sheet.vram_bytes,
        speed=Speed(source="reference", name=sheet.name),
    )


def _listed_cpu(sheet: HostSheet | None, ram: str | None) -> Device:
    from pshard.machine.detect import detect_host

    facts: tuple[Fact, ...] = ()
    speed = NO_SPEED if sheet is None else Speed(source="reference", name=sheet.name)
    if sheet is None:
        sheet = detect_host()[0]
    ram_bytes, rate = parse_ram(ram) if ram is not None else (sheet.ram_bytes, None)
    if rate is not None:
        facts = (Fact(name="memory_peak_bytes_per_second", value=rate, origin="--ram"),)
    return Device(
        name=cpu_name("host", 1),
        kind="cpu",
        host="host",
        product=sheet.product,
        memory_total_bytes=ram_bytes,
        speed=speed,
        facts=(Fact(name="n_cores", value=sheet.n_cores, origin=sheet.name), *facts),
    )
