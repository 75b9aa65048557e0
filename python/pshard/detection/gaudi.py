"""Intel Gaudi: hl-smi, else what the habanalabs driver tells."""

from __future__ import annotations

import re
from itertools import combinations

from pshard.cluster.cluster import Device, Link
from pshard.cluster.link_references import reference_link
from pshard.detection.accel import CLASS, accels
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import DEVICES, numa_node
from pshard.detection.system import System, ToolError, mebibytes, whole_number

QUERY = "index,name,bus_id,driver_version,module_id,memory.total,memory.free"

# HBM by generation (Hugging Face, "Intel Gaudi": 32, 96 and 128 GB), for where hl-smi is not at hand.
GENERATION_BYTES = {"1": 32 * 2**30, "2": 96 * 2**30, "3": 128 * 2**30}
# Generation by product: HL-2xx cards are Gaudi and Gaudi 2, HL-3xx Gaudi 3 (Intel Gaudi, "Support Matrix").
GENERATION_OF_CARD = {"HL-205": "1", "HL-225": "2", "HL-288": "2", "HL-325": "3", "HL-328": "3", "HL-338": "3"}
# In a box of eight, three ports join each pair (Intel Gaudi, "Network Configuration").
CARDS_PER_BOX, PORTS_PER_PAIR = 8, 3


def probe(system: System) -> Finding:
    """Find Gaudi cards, and the Ethernet between the eight of a box."""
    driven = [accel for accel in accels(system) if accel.driver == "habanalabs"]
    present = driven or system.entries("/dev/accel", "accel_controlD*") or system.entries("/dev", "hl[0-9]*")
    if not present and system.find_tool("hl-smi") is None:
        return Finding(reasons=("no habanalabs device",))
    try:
        table = system.run("hl-smi", "-Q", QUERY, "-f", "csv")
    except ToolError as error:
        devices = tuple(_from_driver(system, f"Gaudi{i}", accel.path.parent.name) for i, accel in enumerate(driven))
        return Finding(devices=devices, links=tuple(_links(devices)), reasons=(str(error),))
    devices = tuple(_from_row(system, row) for row in parse_table(table))
    return Finding(devices=devices, links=tuple(_links(devices)), reasons=() if devices else ("hl-smi lists no card",))


def parse_table(table: str) -> list[dict[str, str]]:
    """Read ``hl-smi -Q ... -f csv``: a heading, and one row per card; rows of another length are left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    if not rows:
        return []
    heading = [cell.partition(" [")[0] for cell in rows[0]]
    found = [dict(zip(heading, row, strict=True)) for row in rows[1:] if len(row) == len(heading)]
    return [row for row in found if re.fullmatch(r"[0-9]{1,4}", row.get("index", ""))]


def _from_row(system: System, row: dict[str, str]) -> Device:
    name, address = row.get("name", ""), row.get("bus_id", "").lower()
    total, free = mebibytes(row.get("memory.total", "")) or 0, mebibytes(row.get("memory.free", ""))
    return Device(
        name=f"Gaudi{int(row['index'])}",
        kind="gaudi",
        host=system.host_name,
        product=name,
        memory_total_bytes=total,
        memory_free_bytes=free,
        numa_node=numa_node(system.number(f"{DEVICES}/{address}/numa_node")) if address else None,
        unavailable_reason=untold(total),
        facts=facts(
            "hl-smi", memory_total_bytes=total or None, pci_bus_id=address, driver=row.get("driver_version"),
            module=whole_number(row.get("module_id", "")), generation=GENERATION_OF_CARD.get(name[:6]),
        ),
    )  # fmt: skip


def _from_driver(system: System, name: str, accel: str) -> Device:
    """Describe a card by the driver's name for it, like GAUDI2, and the memory that this generation has."""
    folder = f"{CLASS}/{accel}/device"
    called = system.text(f"{folder}/device_type") or "Gaudi"
    generation = next((digit for digit in reversed(called) if digit in GENERATION_BYTES), "1")
    refusal = system.refusal(f"/dev/accel/{accel}")
    return Device(
        name=name,
        kind="gaudi",
        host=system.host_name,
        product=called,
        memory_total_bytes=GENERATION_BYTES[generation],
        numa_node=numa_node(system.number(f"{folder}/numa_node")),
        unavailable_reason=refusal,
        facts=(
            *facts(f"published for {called}", memory_total_bytes=GENERATION_BYTES[generation]),
            *facts(folder, generation=generation),
        ),
    )


def _links(devices: tuple[Device, ...]) -> list[Link]:
    generations = {device.fact("generation") for device in devices}
    if len(devices) != CARDS_PER_BOX or not generations <= {"2", "3"} or len(generations) != 1:
        return []
    generation = str(generations.pop())
    pairs = combinations((device.name for device in devices), 2)
    return [reference_link("gaudi", generation, pair, PORTS_PER_PAIR) for pair in pairs]
