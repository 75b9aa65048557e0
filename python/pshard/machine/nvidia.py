"""NVIDIA GPUs: what they are, and the state that they are in, from whatever is there to tell.

What a GPU is: cuda-python, else the CUDA runtime inside pshard's own extension. Its state: NVML (nvidia-ml-py), else
the file in which the driver states its version. NVML also lists the boards, with their links, without touching them.
Both packages are the extra ``cuda`` and neither is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pshard._core import GpuDevice

DRIVER_VERSION = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as its driver describes it, as `_core.GpuDevice`; a field that the driver does not tell is 0."""

    name: str
    pci_bus_id: str
    total_bytes: int
    free_bytes: int
    compute_major: int
    compute_minor: int
    multiprocessors: int
    copy_engines: int
    memory_bus_bits: int
    memory_clock_hertz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What changes while a machine runs, or with its driver; None is what could not be told.

    The PCIe link is as it is at this moment: an idle GPU lowers it to save power. Clocks are the current ones.
    """

    driver: str | None = None
    power_limit_watts: float | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A GPU as NVML describes it, without touching it; None is what could not be told.

    `pcie_generation` and `pcie_lanes` are the most that GPU and slot can do. `nvlink_peers` holds one entry for each
    NVLink that is up: the bus address of the GPU at its other end, or SWITCH.
    """

    name: str
    pci_bus_id: str
    total_bytes: int | None
    free_bytes: int | None
    compute_capability: str | None
    pcie_generation: int | None
    pcie_lanes: int | None
    nvlink_peers: tuple[str, ...]


SWITCH = "switch"


def boards() -> tuple[list[Board], str]:
    """List the GPUs that the driver knows, in the order of their bus addresses; or none, and why.

    Unlike `devices`, it opens no context, and lists those that CUDA_VISIBLE_DEVICES hides.
    """
    nvml = _optional("pynvml")
    if nvml is None:
        return [], "no nvidia-ml-py"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"NVML: {error}"
    try:
        handles = [
            _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, i) for i in range(_ask(nvml, nvml.nvmlDeviceGetCount) or 0)
        ]
        found = [_board(nvml, handle) for handle in handles if handle is not None]
    finally:
        _ask(nvml, nvml.nvmlShutdown)
    return found, "" if found else "NVML: no device"


def bus_address(bus_id: str) -> str:
    """Return a bus address as Linux writes it: of ``00000000:C1:00.0``, ``0000:c1:00.0``."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else bus_id.lower()


def _board(nvml: Any, handle: Any) -> Board:
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    pci = _ask(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Board(
        name=_text(_ask(nvml, nvml.nvmlDeviceGetName, handle) or ""),
        pci_bus_id=bus_address(_text(pci.busId)) if pci is not None else "",
        total_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        pcie_generation=_ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        pcie_lanes=_ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        nvlink_peers=tuple(
            peer for link in range(nvml.NVML_NVLINK_MAX_LINKS) if (peer := _nvlink_peer(nvml, handle, link)) is not None
        ),
    )


def _nvlink_peer(nvml: Any, handle: Any, link: int) -> str | None:
    """Return what is at the other end of an NVLink; None where the link is down or there is no such link."""
    if _ask(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link) != nvml.NVML_FEATURE_ENABLED:
        return None
    if _ask(nvml, nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
        return SWITCH
    remote = _ask(nvml, nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
    return None if remote is None else bus_address(_text(remote.busId))


def devices() -> tuple[list[Device | GpuDevice], str]:
    """List the GPUs here, in the CUDA runtime's order; or none, and why.

    Returns
    -------
    list of Device or GpuDevice
        From cuda-python where it is installed and finds any, else from the extension.
    str
        Empty where there is a GPU; else the reason in a few words: built without CUDA, no driver, driver too old.
    """
    from pshard import _core

    found, reason = _from_cuda_python()
    if found:
        return found, ""
    query = _core.query_gpus()
    if query.devices:
        return list(query.devices), ""
    # Where the extension cannot ask, what cuda-python was told is the better reason.
    return [], reason if reason and not _core.built_with_cuda else query.reason


def state(pci_bus_id: str, version_file: Path = DRIVER_VERSION) -> State:
    """Ask NVML for the state of one GPU.

    Parameters
    ----------
    pci_bus_id : str
        As in `Device`.
    version_file : Path
        What tells the driver's version where NVML does not.

    Returns
    -------
    State
        Without NVML, its package or a driver: what the file tells.
    """
    nvml = _optional("pynvml")
    if nvml is None:
        return State(driver=_driver_of(version_file))
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return State(driver=_driver_of(version_file))
    try:
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByPciBusId, pci_bus_id)
        milliwatts = _ask(nvml, nvml.nvmlDeviceGetPowerManagementLimit, handle)
        sm_megahertz = _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        memory_megahertz = _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)
        return State(
            driver=_ask(nvml, nvml.nvmlSystemGetDriverVersion) or _driver_of(version_file),
            power_limit_watts=None if milliwatts is None else milliwatts / 1e3,
            pcie_generation=_ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            pcie_lanes=_ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            sm_clock_hertz=None if sm_megahertz is None else sm_megahertz * 1e6,
            memory_clock_hertz=None if memory_megahertz is None else memory_megahertz * 1e6,
        )
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def _ask(nvml: Any, function: Any, *arguments: object) -> Any:
    """Return what NVML answers; None where this GPU, or its driver, has no answer to the question."""
    if None in arguments:
        return None
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _driver_of(version_file: Path) -> str | None:
    try:
        found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", version_file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _from_cuda_python() -> tuple[list[Device | GpuDevice], str]:
    cuda = _optional("cuda.bindings.runtime")
    if cuda is None:
        return [], ""
    success = cuda.cudaError_t.cudaSuccess
    error, count = cuda.cudaGetDeviceCount()
    if error != success:
        return [], _reason(cuda, error)
    return [_describe(cuda, index, success) for index in range(count)], "" if count else "no device"


def _reason(cuda: Any, error: Any) -> str:
    """Say why the runtime finds nothing: no driver and an old one give the same code, the driver's version differs."""
    if error == cuda.cudaError_t.cudaErrorNoDevice:
        return "no device"
    if error == cuda.cudaError_t.cudaErrorInsufficientDriver:
        driver, needed = cuda.cudaDriverGetVersion()[1], cuda.cudaRuntimeGetVersion()[1]
        if not driver:
            return "no driver"
        return f"driver too old ({_version(driver)}, needs {_version(needed)})"
    return f"the CUDA runtime says: {error.name}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _describe(cuda: Any, index: int, success: Any) -> Device:
    def attribute(name: str) -> int:
        error, value = cuda.cudaDeviceGetAttribute(getattr(cuda.cudaDeviceAttr, name), index)
        return int(value) if error == success else 0

    error, properties = cuda.cudaGetDeviceProperties(index)
    known = error == success
    error, bus_id = cuda.cudaDeviceGetPCIBusId(32, index)
    free_bytes = 0
    if cuda.cudaSetDevice(index)[0] == success:
        memory_error, free, _ = cuda.cudaMemGetInfo()
        free_bytes = int(free) if memory_error == success else 0
    return Device(
        name=_text(properties.name) if known else "",
        pci_bus_id=_text(bus_id) if error == success else "",
        total_bytes=int(properties.totalGlobalMem) if known else 0,
        free_bytes=free_bytes,
        compute_major=attribute("cudaDevAttrComputeCapabilityMajor"),
        compute_minor=attribute("cudaDevAttrComputeCapabilityMinor"),
        multiprocessors=attribute("cudaDevAttrMultiProcessorCount"),
        copy_engines=attribute("cudaDevAttrAsyncEngineCount"),
        memory_bus_bits=attribute("cudaDevAttrGlobalMemoryBusWidth"),
        memory_clock_hertz=1000 * attribute("cudaDevAttrMemoryClockRate"),
    )


def _text(value: bytes | str) -> str:
    """Text of a C string, which may come with what lies behind its end."""
    text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    return text.partition("\0")[0]


def _optional(name: str) -> Any:
    """Import a package of the extra ``cuda``; None where it is not installed. A broken one is said to be broken."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise
