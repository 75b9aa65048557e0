"""Built-in reference machines: data sheets of GPUs and hosts, and how a command line puts them together.

The data sheets are references/gpus.json and references/hosts.json, each row with its source. reference_rates.py turns
them into rates.
"""

from __future__ import annotations

import difflib
import math
import re
from functools import cache
from typing import Literal

import msgspec

from pshard.errors import SettingError
from pshard.machine.reference_rates import PCIE_LANE_BYTES_PER_SECOND

GIB = 2**30


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data sheet of a GPU. Rates are dense; `fp16_flop_per_second` accumulates in FP32 (GeForce: at half rate)."""

    name: str
    product: str
    kind: Literal["geforce", "datacentre"]
    release_year: int
    vram_bytes: int
    memory: str
    memory_bytes_per_second: float
    n_sm: int
    boost_hertz: float
    fp16_flop_per_second: float
    int8_op_per_second: float
    pcie_generation: int
    pcie_lanes: int
    copy_engines: int
    source: str


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data sheet of a computer around a GPU: cores, memory and the best slot."""

    name: str
    product: str
    n_cores: int
    ram_bytes: int
    dram_bytes_per_second: float
    pcie_generation: int
    pcie_lanes: int
    source: str


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU (or none) in a host, and the slot that joins them."""

    name: str
    gpu: Gpu | None
    host: Host
    pcie_generation: int
    pcie_lanes: int
    notes: tuple[str, ...] = ()


# Named combinations. A GPU's name alone means that GPU in its default host.
MACHINES: dict[str, tuple[str, str]] = {
    "budget-desktop": ("rtx-3060-12g", "desktop-6c-ddr4"),
    "mainstream-desktop": ("rtx-5060ti-16g", "desktop-8c"),
    "pull-request-desktop": ("rtx-5070ti-16g", "ryzen-7800x3d"),
    "rtx-4090-desktop": ("rtx-4090-24g", "desktop-16c"),
    "rtx-5090-desktop": ("rtx-5090-32g", "desktop-16c"),
    "h100-server": ("h100-sxm-80g", "server-32c"),
    "h200-server": ("h200-sxm-141g", "server-32c"),
}


@cache
def gpus() -> dict[str, Gpu]:
    """Return the reference GPUs by name."""
    return {gpu.name: gpu for gpu in msgspec.json.decode(_read("gpus.json"), type=list[Gpu])}


@cache
def hosts() -> dict[str, Host]:
    """Return the reference hosts by name."""
    return {host.name: host for host in msgspec.json.decode(_read("hosts.json"), type=list[Host])}


def machine_names() -> list[str]:
    """Names that `load_machine` knows: combinations first, then GPUs in their default host."""
    return [*MACHINES, *gpus()]


def reference(name: str) -> Reference | None:
    """Return the reference machine called `name` (a combination, a GPU, or a prefix that only one GPU has), or None."""
    if name in MACHINES:
        gpu_name, host_name = MACHINES[name]
        return join(gpus()[gpu_name], hosts()[host_name], name=name)
    matches = _matching_gpus(name)
    return join(matches[0], default_host(matches[0])) if len(matches) == 1 else None


def join(
    gpu: Gpu | None, host: Host, *, pcie: tuple[int, int] | None = None, name: str = "", notes: tuple[str, ...] = ()
) -> Reference:
    """Put a GPU into a host.

    Parameters
    ----------
    gpu : Gpu or None
        None for a machine without one.
    host : Host
        Cores and memory.
    pcie : (int, int), optional
        Generation and lanes of the slot as wired. The lower of the GPU's and the host's by default.
    name : str, optional
        "GPU in HOST" by default.
    notes : tuple of str
        Sentences that every output of this machine shows.

    Returns
    -------
    Reference
    """
    if pcie is None and gpu is not None:
        pcie = (min(gpu.pcie_generation, host.pcie_generation), min(gpu.pcie_lanes, host.pcie_lanes))
    generation, lanes = pcie or (host.pcie_generation, host.pcie_lanes)
    name = name or (f"{gpu.name} in {host.name}" if gpu else host.name)
    return Reference(name=name, gpu=gpu, host=host, pcie_generation=generation, pcie_lanes=lanes, notes=notes)


def default_host(gpu: Gpu | None) -> Host:
    """Host that a reference GPU is put into where nothing is said."""
    return hosts()["server-32c" if gpu is not None and gpu.kind == "datacentre" else "desktop-8c"]


def find_gpu(name: str, option: str = "--gpu") -> Gpu:
    """Look up a GPU by name, or by a prefix that only one has; errors name the option that it was given with.

    Raises
    ------
    SettingError
        For an unknown or ambiguous name, with the names that are near.
    """
    matches = _matching_gpus(name)
    if len(matches) == 1:
        return matches[0]
    near = [gpu.name for gpu in matches] or difflib.get_close_matches(name.lower(), gpus(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "an example is rtx-3060-12g;"
    problem = "names several GPUs" if matches else "is not a reference GPU"
    message = f"{option} {name!r} {problem}; {hint} 'pshard machines' lists them"
    raise SettingError(message)


def nearest_gpu(vram_bytes: int) -> Gpu:
    """Return the reference GPU nearest in memory; of several, the one with the slowest memory, to promise nothing."""
    return min(
        gpus().values(),
        key=lambda gpu: (
            abs(math.log(max(vram_bytes, 1) / gpu.vram_bytes)),
            gpu.kind != "geforce",
            gpu.memory_bytes_per_second,
            gpu.name,
        ),
    )


def parse_ram(text: str) -> tuple[int, float | None]:
    """Parse `64G@51GB/s` or `64G`.

    Returns
    -------
    (int, float or None)
        Bytes of RAM (G is GiB), and bytes/s of its peak (GB/s is 1e9) where given.

    Raises
    ------
    SettingError
        With the grammar and an example.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:g|gb|gib)(?:\s*@\s*(\d+(?:\.\d+)?)\s*gb/s)?\s*", text, re.IGNORECASE)
    size = float(found[1]) * GIB if found else 0.0
    rate = float(found[2]) * 1e9 if found and found[2] else None
    if not GIB <= size <= 2**50 or (rate is not None and not 1e9 <= rate <= 1e13):
        message = f"--ram {text!r} is not SIZE[@BANDWIDTH]; examples: 64G@51GB/s (two channels of DDR4-3200), 32G"
        raise SettingError(message)
    return int(size), rate


def parse_pcie(text: str) -> tuple[int, int]:
    """Parse `3x8`, PCIe generation and lanes as wired.

    Raises
    ------
    SettingError
        With the grammar and an example.
    """
    found = re.fullmatch(r"\s*(?:gen\s*)?(\d)(?:\.0)?\s*x\s*(\d{1,2})\s*", text, re.IGNORECASE)
    generation, lanes = (int(found[1]), int(found[2])) if found else (0, 0)
    if generation not in PCIE_LANE_BYTES_PER_SECOND or lanes not in (1, 2, 4, 8, 16):
        message = f"--pcie {text!r} is not GENERATIONxLANES (1 to 6; 1, 2, 4, 8 or 16 lanes); examples: 3x8, 4x16"
        raise SettingError(message)
    return generation, lanes


def parse_cpu(text: str) -> Host | int:
    """Parse `8c` (that many cores) or the name of a reference host.

    Raises
    ------
    SettingError
        With the names and an example.
    """
    if text in hosts():
        return hosts()[text]
    found = re.fullmatch(r"\s*(\d{1,4})\s*c(?:ores?)?\s*", text, re.IGNORECASE)
    if not found or int(found[1]) < 1:
        message = f"--cpu {text!r} is neither a number of cores like 8c nor one of {', '.join(hosts())}"
        raise SettingError(message)
    return int(found[1])


def _matching_gpus(name: str) -> list[Gpu]:
    wanted = name.strip().lower()
    if wanted in gpus():
        return [gpus()[wanted]]
    return [gpu for key, gpu in gpus().items() if wanted and key.startswith(f"{wanted}-")]


def _read(name: str) -> bytes:
    from importlib.resources import files

    return files("pshard.machine").joinpath("data_sheets").joinpath(name).read_bytes()
