"""Devices on the PCI bus, as Linux lists them: what is there even where no driver or tool is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pshard.cluster.cluster import Fact
from pshard.cluster.host_links import slot_facts
from pshard.detection.finding import facts
from pshard.detection.system import System
from pshard.machine.detect import pcie_slot

DEVICES = "/sys/bus/pci/devices"
NAMES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")

# PCI classes: displays, and processing accelerators (PCI Code and ID Assignment Specification).
DISPLAY, ACCELERATOR = 0x03, 0x12


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """One function on the bus; `address` is like ``0000:01:00.0``, `driver` is empty without one."""

    address: str
    vendor: int
    device: int
    base_class: int
    driver: str
    numa_node: int | None
    path: Path

    def slot(self) -> tuple[int, int] | None:
        """PCIe generation and lanes; None where the system does not tell."""
        return pcie_slot(self.address, self.path.parent)

    def facts(self) -> tuple[Fact, ...]:
        """Address, driver and slot."""
        slot = self.slot()
        told = slot_facts(*slot, DEVICES) if slot is not None else ()
        return (*facts(DEVICES, pci_bus_id=self.address, driver=self.driver), *told)


def pci_devices(system: System) -> list[PciDevice]:
    """List displays and processing accelerators, and whatever else has a vendor and a device number."""
    found = []
    for path in system.entries(DEVICES, "*"):
        vendor, device = system.number(path / "vendor"), system.number(path / "device")
        if vendor is not None and device is not None:
            found.append(
                PciDevice(
                    address=path.name.lower(),
                    vendor=vendor,
                    device=device,
                    base_class=(system.number(path / "class") or 0) >> 16,
                    driver=system.target_name(path / "driver"),
                    numa_node=numa_node(system.number(path / "numa_node")),
                    path=path,
                )
            )
    return found


def numa_node(number: int | None) -> int | None:
    """Node as Linux numbers it; it writes -1 where there is none to tell."""
    return number if number is not None and number >= 0 else None


def pci_name(system: System, vendor: int, device: int) -> str:
    """Return a product's name from the PCI ID list, else its numbers."""
    for file in NAMES:
        of_vendor = re.search(rf"^{vendor:04x}  .*\n((?:[\t#].*\n|\n)*)", system.text(file) + "\n", re.MULTILINE)
        named = re.search(rf"^\t{device:04x}  (.+)$", of_vendor[1], re.MULTILINE) if of_vendor else None
        if named:
            marketed = re.search(r"\[(.+)\]", named[1])
            return marketed[1] if marketed else named[1]
    return f"{vendor:04x}:{device:04x}"
