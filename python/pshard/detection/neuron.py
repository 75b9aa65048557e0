"""AWS Neuron (Trainium, Inferentia): neuron-ls, else the device files."""

from __future__ import annotations

from typing import Any

import msgspec

from pshard.cluster.cluster import Device, Link
from pshard.cluster.link_references import reference_link
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import numa_node
from pshard.detection.system import System, ToolError, count, whole_number

TOOL = "/opt/aws/neuron/bin/neuron-ls"
SYSFS = "/sys/devices/virtual/neuron_device"

# NeuronLink generation by chip (AWS Neuron documentation, architecture of each); v2 has no published figure.
LINK_GENERATION = {"Trainium2": "3", "Trainium3": "4"}


def probe(system: System) -> Finding:
    """Find Neuron devices and the NeuronLinks between them."""
    files = system.entries("/dev", "neuron[0-9]*")
    if not files and system.find_tool("neuron-ls", TOOL) is None:
        return Finding(reasons=("no /dev/neuron*",))
    try:
        entries = parse_list(system.run("neuron-ls", "--json-output", others=(TOOL,)))
    except ToolError as error:
        devices = tuple(_from_file(system, file.name, str(error)) for file in files)
        return Finding(devices=devices, reasons=(str(error),))
    devices = tuple(_from_entry(system, number, entry) for number, entry in sorted(entries.items()))
    return Finding(
        devices=devices,
        links=tuple(_links(entries, devices)),
        reasons=() if devices else ("neuron-ls lists no device",),
    )


def parse_list(document: str) -> dict[int, dict[str, Any]]:
    """Read ``neuron-ls --json-output``, a list of devices or an object that holds it, by number of the device."""
    try:
        content = msgspec.json.decode(document)
    except msgspec.DecodeError:
        return {}
    listed = content.get("neuron_devices") if isinstance(content, dict) else content
    found = {}
    for entry in listed if isinstance(listed, list) else []:
        number = count(entry.get("neuron_device")) if isinstance(entry, dict) else None
        if number is not None:
            found[number] = entry
    return found


def _product(system: System, number: int) -> str:
    return system.text(f"{SYSFS}/neuron{number}/info/architecture/device_name") or "Neuron device"


def _from_entry(system: System, number: int, entry: dict[str, Any]) -> Device:
    total = count(entry.get("memory_size")) or 0
    refusal = system.refusal(f"/dev/neuron{number}")
    address = entry.get("bdf")
    return Device(
        name=f"Neuron{number}",
        kind="neuron",
        host=system.host_name,
        product=_product(system, number),
        memory_total_bytes=total,
        numa_node=numa_node(count(entry.get("numa_node"))),
        unavailable_reason=refusal or untold(total),
        facts=facts(
            "neuron-ls", memory_total_bytes=total or None, n_cores=count(entry.get("nc_count")),
            pci_bus_id=address if isinstance(address, str) else None,
        ),
    )  # fmt: skip


def _from_file(system: System, file: str, reason: str) -> Device:
    number = whole_number(file.removeprefix("neuron")) or 0
    return Device(
        name=f"Neuron{number}",
        kind="neuron",
        host=system.host_name,
        product=_product(system, number),
        memory_total_bytes=0,
        unavailable_reason=f"{untold(0)}: {reason}",
        facts=facts("/dev", device_file=f"/dev/{file}"),
    )


def _links(entries: dict[int, dict[str, Any]], devices: tuple[Device, ...]) -> list[Link]:
    """Return one link per pair that says it is connected; none for chips whose link has no published rate."""
    generation = LINK_GENERATION.get(devices[0].product) if devices else None
    if generation is None:
        return []
    pairs = set()
    for number, entry in entries.items():
        peers = entry.get("connected_to")
        numbers = [count(peer) for peer in peers] if isinstance(peers, list) else []
        pairs |= {(number, peer) for peer in numbers if peer is not None and peer in entries and number < peer}
    return [reference_link("neuronlink", generation, (f"Neuron{a}", f"Neuron{b}")) for a, b in sorted(pairs)]
