"""Measured profiles of this machine: where they are stored, and which of them still holds.

One file per machine, driver and thread count, so that a home directory which several machines share holds a profile for
each, and a new driver does not overwrite what the old one did. A profile carries a key (`profile.Key`); where the
machine has changed since, the profile is stale: used, if there is none better, and said to be stale.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import MachineError
from pshard.machine.profile import Key, Profile, read_profile, write_profile

if TYPE_CHECKING:
    from collections.abc import Iterator

# Kernels reserve a little more or less of the same memory.
RAM_TOLERANCE = 0.02
# NVML and a person's setting may differ in the decimals.
WATTS_TOLERANCE = 1.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored profile of this machine. `changes` are sentences on what makes it stale; empty where it holds."""

    path: Path
    profile: Profile
    changes: tuple[str, ...] = ()


def profile_folder() -> Path:
    """Folder under the user's data directory; it need not exist."""
    import platformdirs

    return Path(platformdirs.user_data_dir("pshard", appauthor=False)) / "profiles"


def stored_path(key: Key) -> Path:
    """File of a machine, its driver and a thread count; it need not exist."""
    identity = "\n".join([*_machine(key), key.driver or "", str(key.n_threads)])
    return profile_folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"


def store(profile: Profile) -> Path:
    """Write a profile where `find_stored` finds it.

    Parameters
    ----------
    profile : Profile
        With a key.

    Returns
    -------
    Path
        The file that was written, or replaced.

    Raises
    ------
    MachineError, FileError
        As `profile.write_profile`, and for a profile without a key.
    """
    if profile.key is None:
        message = f"profile {profile.name!r} does not say which machine it is of; write it to a file (-o)"
        raise MachineError(message)
    return write_profile(profile, stored_path(profile.key))


def any_stored() -> bool:
    """Whether any profile is stored: if none is, nobody needs to ask what this machine is."""
    return any(profile_folder().glob("*.json"))


def find_stored(key: Key) -> Stored | None:
    """Find the profile that holds for a machine, else the one of which least has changed since.

    Parameters
    ----------
    key : Key
        Of the machine as it is now. Another thread count does not make a profile stale; of several, the nearest counts.

    Returns
    -------
    Stored or None
        None where there is none of this machine.

    Raises
    ------
    MachineError
        The only profiles of this machine cannot be read.
    """
    here = stored_path(key)
    candidates = []
    for path in sorted(profile_folder().glob("*.json")):
        try:
            profile = read_profile(path)
        except MachineError:
            if path == here:
                raise
            continue
        if profile.key is not None and _machine(profile.key) == _machine(key):
            candidates.append(Stored(path, profile, tuple(changes(profile.key, key))))
    if not candidates:
        return None

    def rank(found: Stored) -> tuple[int, int, str, Path]:
        distance = abs(found.profile.key.n_threads - key.n_threads) if found.profile.key is not None else 0
        return -len(found.changes), -distance, found.profile.created, found.path

    return max(candidates, key=rank)


def current_key(n_threads: int | None = None, index: int = 0) -> Key:
    """Describe the machine as it is now, without loading it.

    Parameters
    ----------
    n_threads : int, optional
        CPU threads to measure or plan with; one per physical core by default.
    index : int
        Which GPU, in the CUDA runtime's order.

    Returns
    -------
    Key
        Its PCIe link is what device and slot can do: only a copy shows what they do.
    """
    from pshard.machine.detect import cpu_model, pcie_slot, physical_cores, usable_ram_bytes
    from pshard.machine.nvidia import devices, state

    n_cores = physical_cores()
    found, _ = devices()
    device = found[index] if 0 <= index < len(found) else None
    now = state(device.pci_bus_id) if device is not None else None
    slot = pcie_slot(device.pci_bus_id) if device is not None else None
    return Key(
        cpu=cpu_model(),
        n_cores=n_cores,
        n_threads=n_threads or n_cores,
        ram_bytes=usable_ram_bytes(),
        kernel=f"{platform.system()} {platform.release()}",
        gpu=device.name if device is not None else None,
        driver=now.driver if now is not None else None,
        pcie_generation=slot[0] if slot is not None else None,
        pcie_lanes=slot[1] if slot is not None else None,
        power_limit_watts=now.power_limit_watts if now is not None else None,
    )


def changes(old: Key, new: Key) -> Iterator[str]:
    """Yield what has changed in a machine since it was measured, in words.

    Parameters
    ----------
    old, new : Key
        Of the same CPU, cores and GPU. What either cannot tell is not compared.

    Yields
    ------
    str
        Like ``"driver 570.86 is now 580.95"``.
    """
    for name in ("driver", "kernel"):
        before, now = getattr(old, name), getattr(new, name)
        if before is not None and now is not None and before != now:
            yield f"{name} {before} is now {now}"
    if abs(new.ram_bytes - old.ram_bytes) > RAM_TOLERANCE * old.ram_bytes:
        yield f"RAM {old.ram_bytes / 2**30:.1f} GiB is now {new.ram_bytes / 2**30:.1f} GiB"
    lanes = {old.pcie_lanes, new.pcie_lanes} - {None}
    generations = (old.pcie_generation, new.pcie_generation)
    # A link that was seen to do less than it could has not changed for that: only one that can do less now has.
    if len(lanes) > 1 or (generations[0] and generations[1] and generations[1] < generations[0]):
        yield f"PCIe {_link(old)} is now {_link(new)}"
    watts = (old.power_limit_watts, new.power_limit_watts)
    if watts[0] and watts[1] and abs(watts[1] - watts[0]) > WATTS_TOLERANCE:
        yield f"power limit {watts[0]:.0f} W is now {watts[1]:.0f} W"


def _machine(key: Key) -> tuple[str, str, str]:
    """Return what makes it this machine and no other; all else is its state."""
    return key.cpu, str(key.n_cores), key.gpu or ""


def _link(key: Key) -> str:
    generation = "?" if key.pcie_generation is None else f"{key.pcie_generation}.0"
    return f"{generation} x{key.pcie_lanes or '?'}"
