"""NVIDIA GPUs: NVML, else the CUDA runtime, else nvidia-smi; without any, what the PCI bus shows."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from pshard.cluster.cluster import NO_SPEED, Device, Link, Speed
from pshard.cluster.host_links import slot_facts
from pshard.cluster.link_references import reference_link
from pshard.detection.cpu import memory_bytes
from pshard.detection.finding import Finding, facts, untold
from pshard.detection.pci import DISPLAY, PciDevice, pci_devices, pci_name
from pshard.detection.system import System, ToolError, mebibytes, whole_number
from pshard.machine import nvidia
from pshard.machine.nvidia import SWITCH, Board, bus_address

VENDOR = 0x10DE
QUERY = "name,pci.bus_id,memory.total,memory.free,compute_cap,pcie.link.gen.max,pcie.link.width.max"

# Generation of NVLink by compute capability, as NCCL chooses its rates (src/graph/topo.h).
NVLINK_GENERATION = {6: "1", 7: "2", 8: "3", 9: "4", 10: "5"}
GEFORCE_NVLINK = {"8.6": "3-geforce"}
MAX_NVLINKS = 18


@dataclass(frozen=True, slots=True)
class _Told:
    """All boards as one source tells them, their links, and what kept a better source from telling."""

    boards: list[Board]
    origin: str
    reasons: tuple[str, ...]


def probe(system: System) -> Finding:
    """Find NVIDIA GPUs in the order in which CUDA numbers them, as far as CUDA can be asked."""
    on_bus = {found.address: found for found in pci_devices(system) if _is_gpu(found)}
    told = _ask(system, on_bus)
    if not told.boards:
        return Finding(devices=tuple(_undriven(system, on_bus.values(), told.reasons)), reasons=told.reasons)
    order, hidden, note = _cuda_order(system, told)
    names = {board.pci_bus_id: f"CUDA{i}" for i, board in enumerate(order)}
    names |= {board.pci_bus_id: f"CUDA-hidden{i}" for i, board in enumerate(hidden)}
    devices, notes = [], [note] if note else []
    for board in [*order, *hidden]:
        device, speed_note = _device(system, board, names[board.pci_bus_id], on_bus.get(board.pci_bus_id), told.origin)
        if board in hidden:
            device = replace(device, unavailable_reason="hidden by CUDA_VISIBLE_DEVICES")
        devices.append(device)
        notes.append(speed_note)
    return Finding(
        devices=tuple(devices),
        links=tuple(_nvlinks(told.boards, names)),
        reasons=told.reasons,
        notes=tuple(dict.fromkeys(note for note in notes if note)),
    )


def _is_gpu(found: PciDevice) -> bool:
    return found.vendor == VENDOR and found.base_class == DISPLAY


def _ask(system: System, on_bus: dict[str, PciDevice]) -> _Told:
    reasons: list[str] = []
    if system.has_libraries:
        boards, reason = nvidia.boards()
        if boards:
            return _Told(boards, "NVML", ())
        found, runtime_reason = nvidia.devices()
        reasons += [reason, f"CUDA runtime: {runtime_reason}"]
        if found:
            runtime = [
                Board(
                    name=device.name,
                    pci_bus_id=bus_address(device.pci_bus_id),
                    total_bytes=device.total_bytes or None,
                    free_bytes=device.free_bytes or None,
                    compute_capability=f"{device.compute_major}.{device.compute_minor}",
                    pcie_generation=None,
                    pcie_lanes=None,
                    nvlink_peers=(),
                )
                for device in found
            ]
            return _Told(_with_smi_links(system, runtime), "CUDA runtime", (reason,))
    if not on_bus and not system.entries("/dev", "nvidia[0-9]*") and system.find_tool("nvidia-smi") is None:
        return _Told([], "", (*reasons, "no NVIDIA device on the PCI bus"))
    try:
        table = system.run("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
    except ToolError as error:
        return _Told([], "", (*reasons, str(error)))
    boards = parse_query(table)
    silence = () if boards else ("nvidia-smi lists no GPU",)
    return _Told(_with_smi_links(system, boards), "nvidia-smi", (*reasons, *silence))


def _with_smi_links(system: System, boards: list[Board]) -> list[Board]:
    """Add what the topology matrix of nvidia-smi tells; nothing, where it tells nothing."""
    if len(boards) < 2:
        return boards
    by_address = sorted(boards, key=lambda board: board.pci_bus_id)  # as nvidia-smi numbers them
    try:
        peers = parse_topology(system.run("nvidia-smi", "topo", "-m"), [board.pci_bus_id for board in by_address])
    except ToolError:
        return boards
    return [dataclasses.replace(board, nvlink_peers=peers.get(board.pci_bus_id, ())) for board in boards]


def parse_query(table: str) -> list[Board]:
    """Read the rows of ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``; what is not a row is left out."""
    found = []
    for row in (line.split(",") for line in table.splitlines()):
        if len(row) != QUERY.count(",") + 1 or ":" not in row[1]:
            continue
        found.append(
            Board(
                name=row[0].strip(),
                pci_bus_id=bus_address(row[1].strip()),
                total_bytes=mebibytes(row[2]),
                free_bytes=mebibytes(row[3]),
                compute_capability=row[4].strip() if re.fullmatch(r"\d+\.\d+", row[4].strip()) else None,
                pcie_generation=whole_number(row[5]),
                pcie_lanes=whole_number(row[6]),
                nvlink_peers=(),
            )
        )
    return found


def parse_topology(matrix: str, addresses: list[str]) -> dict[str, tuple[str, ...]]:
    """Read the NVLinks of each GPU from ``nvidia-smi topo -m``.

    Parameters
    ----------
    matrix : str
        Rows ``GPU0``, ``GPU1`` and so on, with ``NV12`` where twelve links join two GPUs.
    addresses : list of str
        Bus addresses of the GPUs in the order of the rows.

    Returns
    -------
    dict
        From an address to one entry per link, as `Board.nvlink_peers`. The matrix does not name switches: a GPU that
        seems to have more links than any GPU has reaches the others through one.
    """
    peers: dict[str, tuple[str, ...]] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", matrix).splitlines():
        words = line.split()
        row = re.fullmatch(r"GPU(\d{1,4})", words[0]) if words else None
        cells = words[1 : 1 + len(addresses)]
        if row is None or int(row[1]) >= len(addresses) or len(cells) < len(addresses) or "GPU" in cells[0]:
            continue
        counts = [int(cell[2:]) if re.fullmatch(r"NV\d{1,2}", cell) else 0 for cell in cells]
        if sum(counts) > MAX_NVLINKS:
            peers[addresses[int(row[1])]] = (SWITCH,) * max(counts)
        else:
            peers[addresses[int(row[1])]] = tuple(
                address for address, count in zip(addresses, counts, strict=True) for _ in range(count)
            )
    return peers


def _cuda_order(system: System, told: _Told) -> tuple[list[Board], list[Board], str]:
    """Return the boards in CUDA's order, those that CUDA does not show, and a note where the order is not certain."""
    if told.origin == "CUDA runtime":
        return told.boards, [], ""
    visible = nvidia.devices()[0] if system.has_libraries else []
    position = {bus_address(device.pci_bus_id): i for i, device in enumerate(visible)}
    if position:
        order = sorted((b for b in told.boards if b.pci_bus_id in position), key=lambda b: position[b.pci_bus_id])
        return order, [board for board in told.boards if board.pci_bus_id not in position], ""
    order = sorted(told.boards, key=lambda board: board.pci_bus_id)
    mixed = len({board.name for board in order}) > 1
    note = "GPUs are numbered by bus address; CUDA puts faster ones first unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set."
    return order, [], note if mixed else ""


def _device(system: System, board: Board, name: str, on_bus: PciDevice | None, origin: str) -> tuple[Device, str]:
    generation, lanes = board.pcie_generation, board.pcie_lanes
    slot = on_bus.slot() if on_bus is not None else None
    if slot is not None:
        slot_known = slot_facts(*slot, "/sys/bus/pci/devices")
    else:
        slot_known = slot_facts(generation, lanes, origin) if generation and lanes else ()
    # Boards whose memory the driver does not tell are those in a processor (GB10, Jetson): it is the host's.
    unified = board.total_bytes is None
    total, free, told_by = memory_bytes(system) if unified else (board.total_bytes or 0, board.free_bytes, origin)
    refusal = system.refusal("/dev/nvidiactl")
    speed, note = _speed(board)
    device = Device(
        name=name,
        kind="nvidia",
        host=system.host_name,
        product=board.name,
        memory_total_bytes=total,
        memory_free_bytes=free,
        numa_node=on_bus.numa_node if on_bus is not None else None,
        speed=speed,
        unified_memory=unified,
        unavailable_reason=refusal or untold(total),
        facts=(
            *facts(told_by, memory_total_bytes=total or None),
            *facts(
                origin,
                pci_bus_id=board.pci_bus_id,
                compute_capability=board.compute_capability,
                nvlinks=len(board.nvlink_peers) or None,
            ),
            *slot_known,
        ),
    )
    return device, note


def _speed(board: Board) -> tuple[Speed, str]:
    """Name the reference GPU that stands in for the board's speed until it is measured, and say so."""
    from pshard.machine.detect import match_gpu

    if not board.total_bytes:
        return NO_SPEED, ""
    major, _, minor = (board.compute_capability or "0.0").partition(".")
    described = nvidia.Device(
        name=board.name, pci_bus_id=board.pci_bus_id, total_bytes=board.total_bytes, free_bytes=board.free_bytes or 0,
        compute_major=int(major), compute_minor=int(minor), multiprocessors=0, copy_engines=0, memory_bus_bits=0,
        memory_clock_hertz=0,
    )  # fmt: skip
    gpu, notes = match_gpu(described)
    return Speed(source="reference", name=gpu.name), notes[0]


def _nvlinks(boards: list[Board], names: dict[str, str]) -> Iterable[Link]:
    """Yield one link per pair of GPUs, and one for all that hang on switches."""
    switched = [board for board in boards if SWITCH in board.nvlink_peers]
    if len(switched) > 1:
        slowest = min(switched, key=lambda board: board.nvlink_peers.count(SWITCH))
        count = slowest.nvlink_peers.count(SWITCH)
        link = _nvlink(slowest, tuple(names[board.pci_bus_id] for board in switched), count)
        yield replace(link, kind="nvswitch")
    for board in boards:
        for address, count in sorted(Counter(board.nvlink_peers).items()):
            if address in names and board.pci_bus_id < address:
                yield _nvlink(board, (names[board.pci_bus_id], names[address]), count)


def _nvlink(board: Board, ends: tuple[str, ...], count: int) -> Link:
    capability = board.compute_capability or ""
    newest = max(NVLINK_GENERATION)
    major = min(int(capability.partition(".")[0] or 8), newest)
    generation = GEFORCE_NVLINK.get(capability) or NVLINK_GENERATION.get(major, "1")
    return reference_link("nvlink", generation, ends, count)


def _undriven(system: System, on_bus: Iterable[PciDevice], reasons: tuple[str, ...]) -> Iterable[Device]:
    """List GPUs that only the bus shows: there, but not to be used."""
    for i, found in enumerate(on_bus):
        yield Device(
            name=f"NVIDIA{i}",
            kind="nvidia",
            host=system.host_name,
            product=pci_name(system, found.vendor, found.device),
            memory_total_bytes=0,
            numa_node=found.numa_node,
            unavailable_reason="; ".join(reasons) if found.driver else "no driver",
            facts=found.facts(),
        )
