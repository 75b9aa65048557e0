"""Google TPUs: the PCI bus says which chips there are, the environment of a TPU VM the rest.

The chips of one host are one device, joined among themselves by ICI.
"""

from __future__ import annotations

from dataclasses import dataclass

from pshard.cluster.cluster import Device, Fact
from pshard.cluster.link_references import generations, reference_link
from pshard.detection.finding import Finding, facts
from pshard.detection.pci import DEVICES, pci_devices
from pshard.detection.system import System, whole_number
from pshard.quantities import GIB

VENDOR = 0x1AE0


@dataclass(frozen=True, slots=True)
class Chip:
    """A generation: HBM of a chip, and its ICI ports (Google Cloud, the page "TPU v..." of each)."""

    name: str
    hbm_bytes: int
    ici_ports: int


# By PCI device number (JAX, jax/_src/hardware_utils.py). v2 and v3 share one; v3 is the later.
CHIPS = {
    0x0027: Chip("v3", 32 * GIB, 4),
    0x005E: Chip("v4", 32 * GIB, 6),
    0x0062: Chip("v5p", 95 * GIB, 6),
    0x0063: Chip("v5e", 16 * GIB, 4),
    0x006F: Chip("v6e", 32 * GIB, 4),
    0x0076: Chip("v7", 192 * GIB, 6),
}
# What the environment of a TPU VM tells.
VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_WORKER_ID")


def probe(system: System) -> Finding:
    """Find the TPU chips of this host."""
    chips = [CHIPS[found.device] for found in pci_devices(system) if found.vendor == VENDOR and found.device in CHIPS]
    files = [*system.entries("/dev", "accel[0-9]*"), *system.entries("/dev/vfio", "[0-9]*")]
    told = {name: system.environ[name] for name in VARIABLES if system.environ.get(name)}
    if not chips:
        hint = f", though {' and '.join(told)} are set" if told else ""
        return Finding(reasons=(f"no TPU on the PCI bus{hint}",))
    chip = _named(told.get("TPU_ACCELERATOR_TYPE", "")) or chips[0]
    refusal = system.refusal(*files) if files else "neither /dev/accel* nor /dev/vfio/*"
    device = Device(
        name="TPU0",
        kind="tpu",
        host=system.host_name,
        product=f"TPU {chip.name}",
        memory_total_bytes=len(chips) * chip.hbm_bytes,
        chips=len(chips),
        unavailable_reason=refusal,
        facts=(
            *facts(f"published for TPU {chip.name}", memory_total_bytes=len(chips) * chip.hbm_bytes),
            *facts(DEVICES, n_chips=len(chips)),
            *facts("environment", **{name.lower(): value for name, value in told.items()}),
            *facts("environment", chips_by_bounds=_product_of(told.get("TPU_CHIPS_PER_HOST_BOUNDS", ""))),
            *_ici(chip),
        ),
    )
    return Finding(devices=(device,))


def _named(accelerator_type: str) -> Chip | None:
    """Return the chip of a type like ``v5litepod-8``, which tells v2 from v3 where the PCI number does not."""
    name = accelerator_type.lower().partition("-")[0].replace("litepod", "e")
    if name == "v2":
        return Chip("v2", 16 * GIB, 4)
    return next((chip for chip in CHIPS.values() if chip.name == name), None)


def _product_of(bounds: str) -> int | None:
    """Chips of bounds like ``2,2,1``; None where they are none."""
    numbers = [whole_number(part) for part in bounds.split(",")] if bounds else []
    total = 1
    for number in numbers:
        if number is None or not 0 < number < 2**16:
            return None
        total *= number
    return total if numbers else None


def _ici(chip: Chip) -> tuple[Fact, ...]:
    """Bandwidth of all ICI ports of a chip, each way, where it is published."""
    if chip.name not in generations("ici"):
        return ()
    link = reference_link("ici", chip.name, ("a", "b"), chip.ici_ports)
    return facts(
        link.origin, ici_bytes_per_second=link.bandwidth_bytes_per_second, ici_latency_seconds=link.latency_seconds
    )
