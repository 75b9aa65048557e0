"""GPUs by optional packages, which are imitated here, and by the extension where those are absent or find nothing."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest

from pshard import _core
from pshard.machine import nvidia
from pshard.machine.nvidia import State, devices, state


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorUnknown = 999


ATTRIBUTES = {
    "cudaDevAttrComputeCapabilityMajor": 8,
    "cudaDevAttrComputeCapabilityMinor": 6,
    "cudaDevAttrMultiProcessorCount": 28,
    "cudaDevAttrAsyncEngineCount": 2,
    "cudaDevAttrGlobalMemoryBusWidth": 192,
    "cudaDevAttrMemoryClockRate": 7_501_000,
}


def cuda(error=Error.cudaSuccess, count=1, driver=13000):
    ok = Error.cudaSuccess
    return SimpleNamespace(
        cudaError_t=Error,
        cudaDeviceAttr=SimpleNamespace(**{name: name for name in ATTRIBUTES}),
        cudaGetDeviceCount=lambda: (error, count),
        cudaDriverGetVersion=lambda: (ok, driver),
        cudaRuntimeGetVersion=lambda: (ok, 13020),
        cudaGetDeviceProperties=lambda index: (
            ok,
            SimpleNamespace(name=b"NVIDIA GeForce RTX 3060", totalGlobalMem=12 << 30),
        ),
        cudaDeviceGetPCIBusId=lambda length, index: (ok, b"0000:01:00.0\0\0\0"),
        cudaSetDevice=lambda index: (ok,),
        cudaMemGetInfo=lambda: (ok, 11 << 30, 12 << 30),
        cudaDeviceGetAttribute=lambda name, index: (ok, ATTRIBUTES[name]),
    )


class NvmlError(Exception):
    pass


def nvml(**replaced):
    def unsupported(*arguments):
        raise NvmlError

    names = {
        "NVMLError": NvmlError,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlDeviceGetHandleByPciBusId": lambda bus_id: ("handle", bus_id),
        "nvmlDeviceGetPowerManagementLimit": lambda handle: 170_000,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1777, 2: 7501}[kind],
        "nvmlDeviceGetCurrPcieLinkGeneration": lambda handle: 4,
        "nvmlDeviceGetCurrPcieLinkWidth": lambda handle: 8,
    }
    return SimpleNamespace(**(names | {name: unsupported for name, value in replaced.items() if value is None}))


@pytest.fixture
def installed(monkeypatch):
    """Say which of the two packages is installed, and how it answers."""

    def use(**packages):
        known = {"cuda.bindings.runtime": packages.get("cuda"), "pynvml": packages.get("nvml")}
        monkeypatch.setattr(nvidia, "_optional", known.__getitem__)

    return use


def test_cuda_python_describes_a_gpu(installed):
    installed(cuda=cuda())
    (device,), reason = devices()
    assert reason == ""
    assert (device.name, device.pci_bus_id) == ("NVIDIA GeForce RTX 3060", "0000:01:00.0")
    assert (device.total_bytes, device.free_bytes) == (12 << 30, 11 << 30)
    assert (device.compute_major, device.compute_minor, device.multiprocessors, device.copy_engines) == (8, 6, 28, 2)
    assert (device.memory_bus_bits, device.memory_clock_hertz) == (192, 7_501_000_000)
    fields = {name for name in dir(_core.GpuDevice) if not name.startswith("_")}
    assert fields == set(type(device).__slots__)  # one may stand for the other


@pytest.mark.skipif(bool(_core.query_gpus().devices), reason="a GPU is here")
@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (cuda(Error.cudaErrorInsufficientDriver, 0, driver=0), "no driver"),
        (cuda(Error.cudaErrorInsufficientDriver, 0, driver=12040), "driver too old (12.4, needs 13.2)"),
        (cuda(Error.cudaErrorNoDevice, 0), "no device"),
        (cuda(count=0), "no device"),
        (cuda(Error.cudaErrorUnknown, 0), "the CUDA runtime says: cudaErrorUnknown"),
    ],
)
def test_why_there_is_no_gpu(package, reason, installed, monkeypatch):
    installed(cuda=package)
    monkeypatch.setattr(_core, "built_with_cuda", False)
    assert devices() == ([], reason)


@pytest.mark.skipif(bool(_core.query_gpus().devices), reason="a GPU is here")
def test_without_packages_the_extension_says_why(installed):
    installed()
    found, reason = devices()
    assert found == []
    assert reason == _core.query_gpus().reason != ""


def test_without_packages_the_extension_finds_gpus(installed, monkeypatch):
    installed()
    device = object()
    monkeypatch.setattr(_core, "query_gpus", lambda: SimpleNamespace(devices=[device], reason=""))
    assert devices() == ([device], "")


def test_nvml_tells_the_state(installed):
    installed(nvml=nvml())
    assert state("0000:01:00.0") == State(
        driver="580.95.05",
        power_limit_watts=170.0,
        pcie_generation=4,
        pcie_lanes=8,
        sm_clock_hertz=1.777e9,
        memory_clock_hertz=7.501e9,
    )


def test_questions_that_a_gpu_does_not_answer_are_left_open(installed, tmp_path):
    installed(nvml=nvml(nvmlDeviceGetPowerManagementLimit=None, nvmlSystemGetDriverVersion=None))
    found = state("0000:01:00.0", tmp_path / "absent")
    assert (found.power_limit_watts, found.driver, found.pcie_lanes) == (None, None, 8)
    installed(nvml=nvml(nvmlDeviceGetHandleByPciBusId=None))
    assert state("0000:01:00.0") == State(driver="580.95.05")


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.154.05  Thu Dec 28 2023\nGCC version: 12", "535.154.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", "570.86.15"),
        ("something else", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("package", [None, nvml(nvmlInit=None)])
def test_without_nvml_the_driver_states_its_version_in_a_file(text, driver, package, installed, tmp_path):
    installed(nvml=package)
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    assert state("0000:01:00.0", path) == State(driver=driver)


def test_a_package_that_is_not_installed_is_none_and_a_broken_one_is_an_error(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    def broken(name):
        raise ModuleNotFoundError(name="numpy")

    monkeypatch.setattr(nvidia, "import_module", lambda name: missing("cuda"))
    assert nvidia._optional("cuda.bindings.runtime") is None
    monkeypatch.setattr(nvidia, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        nvidia._optional("pynvml")


def test_nvml_has_all_that_is_asked_of_it() -> None:
    """The imitations here and in test_detection_kinds have the names of the real library, which knows no device."""
    pynvml = pytest.importorskip("pynvml")
    source = Path(nvidia.__file__).read_text()
    names = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", source))
    assert len(names) > 15
    assert names <= set(dir(pynvml))
    boards, reason = nvidia.boards()
    assert boards or reason.startswith("NVML: ")
