"""Every kind of device on samples of what its drivers and tools say, and on samples that are spoilt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest
from device_samples import (
    APPLE_M3,
    GAUDI_2,
    HL_SMI,
    HL_SMI_BOX,
    KFD_BANK_MI300X,
    KFD_BANK_RADEON_VII,
    KFD_CPU,
    KFD_LINK_PCIE,
    KFD_LINK_XGMI,
    KFD_MI300X,
    KFD_RADEON_VII,
    KFD_RX_6650,
    KFD_USED_MI300X,
    NEURON_TRN1,
    NEURON_TRN2,
    QUERY_4090_3060,
    QUERY_NOT_AVAILABLE,
    RBLN_STAT,
    STRIX_HALO_GTT_BYTES,
    STRIX_HALO_VRAM_BYTES,
    TOPOLOGY_2_RTX_3090,
    TOPOLOGY_8_H20,
    TOPOLOGY_8_V100,
    TPU_V3,
    TPU_V5E,
    TWO_RTX_2080,
    XPU_DEVICE,
    XPU_LIST,
    Machine,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pshard.cluster.cluster import Device
from pshard.detection import (
    PROBES,
    System,
    accel,
    amd,
    apple,
    detect_devices,
    gaudi,
    intel,
    neuron,
    nvidia,
    others,
    tpu,
)
from pshard.detection.pci import pci_name
from pshard.machine import nvidia as driver
from pshard.machine.nvidia import SWITCH

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def summary(device: Device) -> tuple[object, ...]:
    return device.name, device.kind, device.product, device.memory_total_bytes, device.memory_free_bytes


# --- NVIDIA ----------------------------------------------------------------------------------------------------------


def test_nvidia_smi_tells_boards_and_the_bus_their_slots(machine: Machine) -> None:
    slot = {"current_link_width": "16", "max_link_speed": "16.0 GT/s PCIe", "numa_node": "0"}
    machine.pci("0000:01:00.0", "0x10de", "0x2684", "0x030000", "nvidia", **slot)
    machine.pci("0000:04:00.0", "0x10de", "0x2504", "0x030000", "nvidia", numa_node="-1")
    machine.pci("0000:04:00.1", "0x10de", "0x228e", "0x040300", "snd_hda_intel")  # its sound
    machine.tool("nvidia-smi", query_gpu=QUERY_4090_3060, topo="GPU0 X PHB\nGPU1 PHB X\n")
    finding = nvidia.probe(machine.system())
    assert [summary(device) for device in finding.devices] == [
        ("CUDA0", "nvidia", "NVIDIA GeForce RTX 4090", 24564 << 20, 23000 << 20),
        ("CUDA1", "nvidia", "NVIDIA GeForce RTX 3060", 12288 << 20, 12011 << 20),
    ]
    first, second = finding.devices
    assert (first.numa_node, second.numa_node) == (0, None)
    assert (first.fact("pcie_generation"), first.fact("pcie_lanes")) == (4, 16)
    assert (second.fact("pcie_generation"), second.fact("pcie_lanes")) == (4, 8)  # what nvidia-smi says of it
    assert first.fact("compute_capability") == "8.9"
    assert (first.speed.name, second.speed.name) == ("rtx-4090-24g", "rtx-3060-12g")
    assert finding.links == ()
    assert any("CUDA_DEVICE_ORDER" in note for note in finding.notes)


def test_a_board_in_a_processor_has_the_hosts_memory(machine: Machine) -> None:
    machine.tool("nvidia-smi", else_=QUERY_NOT_AVAILABLE)
    (device,) = nvidia.probe(machine.system()).devices
    assert summary(device) == ("CUDA0", "nvidia", "NVIDIA GB10", 32604996 * 1024, 20000000 * 1024)
    assert (device.unified_memory, device.facts[0].origin) == (True, "/proc/meminfo")
    assert device.fact("pcie_generation") is None


def test_a_gpu_without_a_driver_is_listed(machine: Machine) -> None:
    machine.pci("0000:01:00.0", "0x10de", "0x2684", "0x030000")
    machine.write(
        "usr/share/misc/pci.ids", "10de  NVIDIA Corporation\n\t2684  AD102 [GeForce RTX 4090]\n\t\t10de 167c  x\n"
    )
    machine.pci("0000:02:00.0", "0x10de", "0x2684", "0x030000", "nouveau")
    finding = nvidia.probe(machine.system())
    assert [(d.name, d.product, d.available, d.unavailable_reason) for d in finding.devices] == [
        ("NVIDIA0", "GeForce RTX 4090", False, "no driver"),
        ("NVIDIA1", "GeForce RTX 4090", False, "no nvidia-smi"),
    ]
    assert nvidia.probe(empty(machine)).reasons == ("no NVIDIA device on the PCI bus",)
    machine.tool("nvidia-smi", else_="")
    assert nvidia.probe(machine.system()).devices[1].unavailable_reason == "nvidia-smi lists no GPU"


def empty(machine: Machine) -> System:
    return dataclasses.replace(machine.system(), root=machine.bin)


def addresses(n: int) -> list[str]:
    return [f"0000:{i:02x}:00.0" for i in range(n)]


def test_links_of_eight_v100_without_switches() -> None:
    peers = nvidia.parse_topology(TOPOLOGY_8_V100, addresses(8))
    at = addresses(8)
    assert all(len(peers[address]) == 6 for address in at)  # a V100 has six links, and this server uses all
    assert sorted(peers[at[0]]) == sorted([at[1], at[2], at[3], at[3], at[4], at[4]])
    assert all(peers[a].count(b) == peers[b].count(a) for a, b in combinations(at, 2))


def test_links_of_eight_h20_on_switches() -> None:
    peers = nvidia.parse_topology(TOPOLOGY_8_H20, addresses(8))
    assert peers == {address: (SWITCH,) * 18 for address in addresses(8)}


def test_a_bridge_becomes_a_link(machine: Machine) -> None:
    rows = "".join(f"NVIDIA GeForce RTX 3090, 00000000:{bus}:00.0, 24576, 24000, 8.6, 4, 16\n" for bus in ("01", "21"))
    machine.tool("nvidia-smi", query_gpu=rows, topo=TOPOLOGY_2_RTX_3090)
    finding = nvidia.probe(machine.system())
    (link,) = finding.links
    assert (link.kind, link.ends, link.source) == ("nvlink", ("CUDA0", "CUDA1"), "reference")
    assert link.bandwidth_bytes_per_second == pytest.approx(4 * 14.0625e9 * 0.85)
    assert [device.fact("nvlinks") for device in finding.devices] == [4, 4]


def test_switches_become_one_link_of_all(machine: Machine) -> None:
    rows = "".join(f"NVIDIA H20, 00000000:{i:02X}:00.0, 97871, 97000, 9.0, 5, 16\n" for i in range(8))
    machine.tool("nvidia-smi", query_gpu=rows, topo=TOPOLOGY_8_H20)
    (link,) = nvidia.probe(machine.system()).links
    assert (link.kind, link.ends) == ("nvswitch", tuple(f"CUDA{i}" for i in range(8)))
    assert link.bandwidth_bytes_per_second == pytest.approx(18 * 20.6e9)  # as NCCL reckons with 18 links of an H100


class NvmlError(Exception):
    pass


def nvml(peers: dict[str, list[str]], boards: dict[str, dict[str, Any]] | None = None) -> SimpleNamespace:
    """NVML of GPUs by bus address, each with what is at the other end of its links; A100, where no boards are given."""
    switch = 2
    a100 = {
        "Name": b"NVIDIA A100-SXM4-80GB", "total": 80 * GIB, "free": 79 * GIB, "CudaComputeCapability": (8, 0),
        "MaxPcieLinkGeneration": 4,
    }  # fmt: skip
    boards = boards or dict.fromkeys(peers, a100)

    def unknown(*arguments: object) -> None:
        raise NvmlError("Not Supported")

    def link(handle: str, index: int) -> str:
        if index >= len(peers[handle]):
            raise NvmlError("Invalid Argument")
        return peers[handle][index]

    return SimpleNamespace(
        NVMLError=NvmlError,
        NVML_NVLINK_MAX_LINKS=18,
        NVML_FEATURE_ENABLED=1,
        NVML_NVLINK_DEVICE_TYPE_SWITCH=switch,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(peers),
        nvmlDeviceGetHandleByIndex=lambda i: list(peers)[i],
        nvmlDeviceGetName=lambda handle: boards[handle]["Name"],
        nvmlDeviceGetPciInfo=lambda handle: SimpleNamespace(busId=handle.encode()),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(
            total=boards[handle]["total"], free=boards[handle]["free"]
        ),
        nvmlDeviceGetCudaComputeCapability=lambda handle: boards[handle]["CudaComputeCapability"],
        nvmlDeviceGetMaxPcieLinkGeneration=lambda handle: boards[handle]["MaxPcieLinkGeneration"],
        nvmlDeviceGetMaxPcieLinkWidth=lambda handle: boards[handle].get("MaxPcieLinkWidth") or unknown(),
        nvmlDeviceGetNvLinkState=lambda handle, i: int(link(handle, i) != "down"),
        nvmlDeviceGetNvLinkRemoteDeviceType=lambda handle, i: switch if link(handle, i) == SWITCH else 0,
        nvmlDeviceGetNvLinkRemotePciInfo=lambda handle, i: SimpleNamespace(busId=link(handle, i)),
    )


def test_two_recorded_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    library = nvml({bus: [] for bus in TWO_RTX_2080}, TWO_RTX_2080)
    monkeypatch.setattr(driver, "_optional", {"pynvml": library, "cuda.bindings.runtime": None}.get)
    found = [(b.name, b.pci_bus_id, b.total_bytes, b.free_bytes, b.pcie_lanes) for b in driver.boards()[0]]
    assert found == [
        ("NVIDIA GeForce RTX 2080", bus, 8 * GIB, 7786 << 20, 16) for bus in ("0000:01:00.0", "0000:02:00.0")
    ]
    assert {(b.compute_capability, b.pcie_generation, b.nvlink_peers) for b in driver.boards()[0]} == {("7.5", 3, ())}


def test_nvml_tells_boards_links_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = "00000000:07:00.0", "00000000:0F:00.0"
    library = nvml({a: [b, "down", b, SWITCH], b: [a, a, SWITCH]})
    monkeypatch.setattr(driver, "_optional", {"pynvml": library, "cuda.bindings.runtime": None}.get)
    first, second = driver.boards()[0]
    assert (first.name, first.pci_bus_id, first.total_bytes, first.free_bytes) == (
        "NVIDIA A100-SXM4-80GB", "0000:07:00.0", 80 * GIB, 79 * GIB,
    )  # fmt: skip
    assert (first.compute_capability, first.pcie_generation, first.pcie_lanes) == ("8.0", 4, None)
    assert first.nvlink_peers == ("0000:0f:00.0", "0000:0f:00.0", SWITCH)
    assert second.nvlink_peers == ("0000:07:00.0", "0000:07:00.0", SWITCH)


def test_cuda_numbers_the_boards_and_hides_some(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    buses = ["00000000:07:00.0", "00000000:0F:00.0", "00000000:17:00.0"]
    library = nvml({bus: [SWITCH] * 12 for bus in buses})
    monkeypatch.setattr(driver, "_optional", {"pynvml": library, "cuda.bindings.runtime": None}.get)
    seen = [SimpleNamespace(pci_bus_id="0000:17:00.0"), SimpleNamespace(pci_bus_id="0000:07:00.0")]
    monkeypatch.setattr(driver, "devices", lambda: (seen, ""))
    finding = nvidia.probe(machine.system(has_libraries=True))
    assert [(d.name, d.fact("pci_bus_id"), d.available) for d in finding.devices] == [
        ("CUDA0", "0000:17:00.0", True),
        ("CUDA1", "0000:07:00.0", True),
        ("CUDA-hidden0", "0000:0f:00.0", False),
    ]
    assert finding.devices[2].unavailable_reason == "hidden by CUDA_VISIBLE_DEVICES"
    (link,) = finding.links
    assert link.kind == "nvswitch"
    assert link.bandwidth_bytes_per_second == pytest.approx(12 * 20e9)


# --- AMD -------------------------------------------------------------------------------------------------------------


def test_two_radeons_of_a_desktop(machine: Machine) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    for number, properties in ((0, KFD_CPU), (1, KFD_RADEON_VII), (2, KFD_RX_6650)):
        machine.write(f"{nodes}/{number}/properties", properties)
    machine.write(f"{nodes}/1/mem_banks/0/properties", KFD_BANK_RADEON_VII)
    machine.write(f"{nodes}/1/io_links/0/properties", KFD_LINK_PCIE)
    memory = {"mem_info_vram_total": "8573157376", "mem_info_vram_used": "573157376"}
    machine.pci("0000:43:00.0", "0x1002", "0x73ef", "0x030000", "amdgpu", numa_node="1", **memory)
    finding = amd.probe(machine.system())
    assert [summary(device) for device in finding.devices] == [
        ("ROCm0", "amd", "gfx906", 17163091968, None),
        ("ROCm1", "amd", "AMD 1002:73ef", 8573157376, 8000000000),
    ]
    assert [device.fact("graphics_target") for device in finding.devices] == ["gfx906", "gfx1032"]
    assert finding.devices[0].fact("pci_bus_id") == "0000:63:00.0"  # location 25344
    assert finding.devices[1].numa_node == 1
    assert finding.links == ()


def test_a_hive_of_mi300x(machine: Machine) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    machine.write(f"{nodes}/0/properties", KFD_CPU)
    for node in (2, 3, 4):
        machine.write(f"{nodes}/{node}/properties", KFD_MI300X.format(location=node << 8))
        machine.write(f"{nodes}/{node}/mem_banks/0/properties", KFD_BANK_MI300X)
        machine.write(f"{nodes}/{node}/mem_banks/0/used_memory", KFD_USED_MI300X)
        for i, other in enumerate({2, 3, 4} - {node}):
            machine.write(f"{nodes}/{node}/io_links/{i + 1}/properties", KFD_LINK_XGMI.format(a=node, b=other))
    finding = amd.probe(machine.system())
    assert [summary(device) for device in finding.devices] == [
        (f"ROCm{i}", "amd", "gfx942", 206141652992, 206141652992 - 1043775488) for i in range(3)
    ]
    assert [(link.kind, link.ends, link.bandwidth_bytes_per_second) for link in finding.links] == [
        ("xgmi", ("ROCm0", "ROCm1"), 64e9),
        ("xgmi", ("ROCm0", "ROCm2"), 64e9),
        ("xgmi", ("ROCm1", "ROCm2"), 64e9),
    ]


def test_an_apu_has_its_share_of_ram(machine: Machine) -> None:
    properties = KFD_RX_6650.replace("gfx_target_version 100302", "gfx_target_version 110501").replace("17152", "50688")
    machine.write("sys/class/kfd/kfd/topology/nodes/1/properties", properties)
    memory = {
        "mem_info_vram_total": str(STRIX_HALO_VRAM_BYTES), "mem_info_vram_used": "0",
        "mem_info_gtt_total": str(STRIX_HALO_GTT_BYTES), "mem_info_gtt_used": str(GIB),
    }  # fmt: skip
    machine.pci("0000:c6:00.0", "0x1002", "0x1586", "0x038000", "amdgpu", **memory)
    (device,) = amd.probe(machine.system()).devices
    assert (device.fact("graphics_target"), device.unified_memory) == ("gfx1151", True)
    assert device.memory_total_bytes == STRIX_HALO_VRAM_BYTES + STRIX_HALO_GTT_BYTES
    assert device.memory_free_bytes == device.memory_total_bytes - GIB


def test_a_radeon_that_rocm_does_not_know(machine: Machine) -> None:
    machine.pci("0000:03:00.0", "0x1002", "0x67df", "0x030000", "amdgpu", mem_info_vram_total=str(8 * GIB))
    machine.pci("0000:04:00.0", "0x1002", "0x67df", "0x030000", "vfio-pci")
    machine.pci("0000:05:00.0", "0x1002", "0x1480", "0x060000")  # a bridge
    assert [(d.name, d.memory_total_bytes, d.unavailable_reason) for d in amd.probe(machine.system()).devices] == [
        ("AMD0", 8 * GIB, "no KFD node: ROCm does not know it"),
        ("AMD1", 0, "no amdgpu driver"),
    ]


# --- Intel, NPUs, Apple ----------------------------------------------------------------------------------------------


def test_intel_gpus_in_a_slot_and_in_the_processor(machine: Machine) -> None:
    machine.pci("0000:00:02.0", "0x8086", "0x4680", "0x030000", "i915")
    machine.pci("0000:4d:00.0", "0x8086", "0x020a", "0x038000", "i915", numa_node="0")
    machine.tool("xpu-smi", _d=XPU_DEVICE, else_=XPU_LIST)
    integrated, card = intel.probe(machine.system()).devices
    assert summary(integrated) == ("SYCL0", "intel", "Intel 8086:4680", 32604996 * 1024, 20000000 * 1024)
    assert integrated.unified_memory
    assert summary(card) == ("SYCL1", "intel", "Intel(R) Graphics [0x020a]", 34359738368, 34090999808)
    assert (card.unified_memory, card.numa_node, card.fact("xpu_smi_pcie_generation")) == (False, 0, 4)


def test_an_arc_without_xpu_smi_shows_its_memory_bar(machine: Machine) -> None:
    # As `resource` is written (Linux, Documentation/PCI/sysfs-pci.rst): a 16 GiB BAR 2, as a resized one of an A770 is.
    bars = "0x0000000083000000 0x0000000083ffffff 0x0000000000140204\n" + "0x0 0x0 0x0\n".replace(
        "0x0", "0x" + "0" * 16
    )
    bars += "0x0000004000000000 0x00000043ffffffff 0x000000000014220c\n"
    machine.pci("0000:03:00.0", "0x8086", "0x56a0", "0x030000", "xe", resource=bars)
    finding = intel.probe(machine.system())
    (device,) = finding.devices
    assert (device.memory_total_bytes, device.memory_free_bytes, device.available) == (16 * GIB, None, True)
    assert finding.reasons == ("no xpu-smi",)
    assert device.facts[0].origin == "/sys/bus/pci/devices (size of the memory BAR)"


def test_an_intel_gpu_that_is_given_to_a_guest(machine: Machine) -> None:
    machine.pci("0000:03:00.0", "0x8086", "0x56a0", "0x030000", "vfio-pci", resource="")
    (device,) = intel.probe(machine.system()).devices
    assert device.unavailable_reason == "driver vfio-pci, which computes nothing"


def test_npus_work_in_the_hosts_memory(machine: Machine) -> None:
    machine.accel(0, "intel_vpu", vendor="0x8086", device="0x643e")
    machine.accel(1, "amdxdna", vendor="0x1022", device="0x17f0", vbnv="RyzenAI-npu4")
    machine.accel(2, "qaic", vendor="0x17cb", device="0xa100")
    machine.accel(3, "habanalabs", vendor="0x1da3")
    assert [
        (d.name, d.kind, d.product, d.unified_memory, d.available) for d in accel.probe(machine.system()).devices
    ] == [
        ("NPU0", "intel-npu", "8086:643e", True, True),
        ("NPU1", "amd-npu", "RyzenAI-npu4", True, True),
        ("QAIC0", "qualcomm", "17cb:a100", False, False),
    ]


def test_a_mac(machine: Machine) -> None:
    machine.tool("system_profiler", else_=APPLE_M3)
    machine.tool("sysctl", hw=str(36 * GIB), iogpu="0")
    gpu, engine = apple.probe(machine.system(os_name="darwin")).devices
    assert summary(gpu) == ("MTL0", "apple", "Apple M3 Pro", int(36 * GIB * 2 / 3), None)
    assert (gpu.unified_memory, gpu.fact("n_cores"), gpu.fact("metal")) == (True, 14, "metal3")
    assert (engine.kind, engine.product, engine.family) == ("apple-npu", "Neural Engine of Apple M3 Max", "npu")
    machine.tool("sysctl", hw=str(64 * GIB), iogpu="57344")
    assert apple.probe(machine.system(os_name="darwin")).devices[0].memory_total_bytes == 56 * GIB
    assert apple.probe(machine.system()).reasons == ("not macOS",)


# --- TPU, Gaudi, Neuron, other ASICs ---------------------------------------------------------------------------------


def test_the_chips_of_a_tpu_vm_are_one_device(machine: Machine) -> None:
    for i in range(8):
        machine.pci(f"0000:00:0{i}.0", "0x1ae0", TPU_V5E, "0xff0000")
        machine.write(f"dev/vfio/{i}", "")
    told = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_CHIPS_PER_HOST_BOUNDS": "2,4,1"}
    (device,) = tpu.probe(dataclasses.replace(machine.system(), environ=told)).devices
    assert (device.product, device.chips, device.memory_total_bytes, device.available) == (
        "TPU v5e",
        8,
        128 * GIB,
        True,
    )
    assert device.fact("chips_by_bounds") == 8
    assert device.fact("ici_bytes_per_second") == 200e9  # 400 GB/s both ways together


def test_a_tpu_of_two_generations_is_told_apart_by_the_environment(machine: Machine) -> None:
    machine.pci("0000:00:04.0", "0x1ae0", TPU_V3, "0xff0000")
    system = machine.system()
    (v3,) = tpu.probe(system).devices
    (v2,) = tpu.probe(dataclasses.replace(system, environ={"TPU_ACCELERATOR_TYPE": "v2-8"})).devices
    assert (v3.product, v3.memory_total_bytes, v2.product, v2.memory_total_bytes) == (
        "TPU v3",
        32 * GIB,
        "TPU v2",
        16 * GIB,
    )
    assert v3.unavailable_reason == "neither /dev/accel* nor /dev/vfio/*"
    assert tpu.probe(empty(machine)).devices == ()


def test_gaudi_2_by_its_tool(machine: Machine) -> None:
    machine.tool("hl-smi", else_=HL_SMI)
    machine.write("sys/bus/pci/devices/0000:33:00.0/numa_node", "0\n")
    finding = gaudi.probe(machine.system())
    assert [summary(d) for d in finding.devices] == [
        (f"Gaudi{i}", "gaudi", "HL-225", total << 20, free << 20) for i, (_, total, free) in enumerate(GAUDI_2)
    ]
    first = finding.devices[0]
    assert (first.numa_node, first.fact("generation"), first.fact("pci_bus_id")) == (0, "2", GAUDI_2[0][0])
    assert finding.links == ()  # not a whole box


def test_the_eight_of_a_box_are_joined_pairwise(machine: Machine) -> None:
    machine.tool("hl-smi", else_=HL_SMI_BOX)
    links = gaudi.probe(machine.system()).links
    assert len(links) == 28
    assert {link.bandwidth_bytes_per_second for link in links} == {37.5e9}  # three ports of 100 Gbit/s
    assert all(len(link.ends) == 2 for link in links)


def test_gaudi_without_its_tool(machine: Machine) -> None:
    for i in range(2):
        machine.accel(i, "habanalabs", device_type="GAUDI2", numa_node="1")
    finding = gaudi.probe(machine.system())
    assert [(d.product, d.memory_total_bytes, d.numa_node) for d in finding.devices] == [("GAUDI2", 96 * GIB, 1)] * 2
    assert finding.devices[0].facts[0].origin == "published for GAUDI2"
    assert (finding.links, finding.reasons) == ((), ("no hl-smi",))


def test_a_trainium_of_a_small_instance(machine: Machine) -> None:
    machine.write("sys/devices/virtual/neuron_device/neuron0/info/architecture/device_name", "Trainium1\n")
    machine.tool("neuron-ls", else_=NEURON_TRN1)
    finding = neuron.probe(machine.system())
    (device,) = finding.devices
    assert summary(device) == ("Neuron0", "neuron", "Trainium1", 32 * GIB, None)
    assert (device.numa_node, device.fact("n_cores"), finding.links) == (None, 2, ())


def test_links_between_trainium2(machine: Machine) -> None:
    for i in range(3):
        machine.write(f"sys/devices/virtual/neuron_device/neuron{i}/info/architecture/device_name", "Trainium2")
    machine.tool("neuron-ls", else_={"instance_type": "trn2n.48xlarge", "neuron_devices": NEURON_TRN2})
    finding = neuron.probe(machine.system())
    assert [device.memory_total_bytes for device in finding.devices] == [96 * GIB] * 3
    assert [link.ends for link in finding.links] == [("Neuron0", "Neuron1"), ("Neuron1", "Neuron2")]


def test_neuron_without_its_tool(machine: Machine) -> None:
    machine.write("dev/neuron3", "")
    (device,) = neuron.probe(machine.system()).devices
    assert (device.name, device.available) == ("Neuron3", False)
    assert device.unavailable_reason == "its memory could not be told: no neuron-ls"


def test_asics_by_their_device_files(machine: Machine) -> None:
    for path in ("dev/tenstorrent/0", "dev/tenstorrent/1", "dev/rbln0", "dev/rngd/npu0mgmt", "dev/ipu0", "dev/groqA0"):
        machine.write(path, "")
    machine.write("dev/apusys", "")
    machine.pci("0000:01:00.0", "0x1e52", "0x401e", "0x120000", "tenstorrent", numa_node="1")
    machine.pci("0000:09:00.0", "0x1ed2", "0x0000", "0x120000")
    machine.pci("0000:0a:00.0", "0x1ed2", "0x0000", "0x120000")
    machine.tool("rbln-stat", _j=RBLN_STAT)
    devices = {device.name: device for device in others.probe(machine.system()).devices}
    assert list(devices) == ["TT0", "TT1", "RBLN0", "Furiosa0", "Furiosa1", "IPU0", "Groq0", "APU0"]
    assert (devices["RBLN0"].memory_total_bytes, devices["RBLN0"].available) == (16 * GIB, True)
    assert (devices["TT0"].numa_node, devices["TT0"].unavailable_reason) == (1, "its memory could not be told")
    assert devices["Furiosa1"].unavailable_reason == "no device file: its driver is not loaded"
    assert (devices["APU0"].unified_memory, devices["APU0"].family) == (True, "npu")


def test_products_are_named_by_the_pci_id_list(machine: Machine) -> None:
    machine.write(
        "usr/share/hwdata/pci.ids", "# a\n1de0  Groq\n10de  NVIDIA Corporation\n\t0020  NV4 [Riva TNT]\n\t0028  NV5\n"
    )
    system = machine.system()
    assert [pci_name(system, 0x10DE, device) for device in (0x20, 0x28, 0x29)] == ["Riva TNT", "NV5", "10de:0029"]
    assert pci_name(system, 0x1DE0, 0x20) == "1de0:0020"


# --- spoilt samples --------------------------------------------------------------------------------------------------

FIELDS = [
    "device_list", "device_id", "pci_bdf_address", "memory_physical_size_byte", "neuron_devices", "neuron_device",
    "connected_to", "memory_size", "numa_node", "devices", "npu", "memory", "total", "used", "chip_type",
    "SPDisplaysDataType", "SPHardwareDataType", "sppci_model", "sppci_cores", "spdisplays_vendor",
]  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)
OUTPUT = ANY_JSON.map(json.dumps) | st.text(max_size=80)
NUMBERS = st.sampled_from(["0", "-1", "1", "8", "0x10de", "x", "9" * 25, str(2**64), "", "\x00", "12 12"])


@given(OUTPUT)
def test_parsers_take_anything(text: str) -> None:
    assert isinstance(nvidia.parse_query(text), list)
    assert isinstance(nvidia.parse_topology(text, addresses(3)), dict)
    assert isinstance(intel.parse_discovery(text), list)
    assert isinstance(gaudi.parse_table(text), list)
    assert isinstance(neuron.parse_list(text), dict)
    assert isinstance(others.parse_rbln_stat(text), dict)
    assert isinstance(apple.parse_report(text), tuple)
    assert isinstance(amd.parse_properties(text), dict)
    assert intel.bar_bytes(text, 2) >= 0


@given(
    st.text(alphabet="GPU012 NVSX\t\n#19", max_size=200),
    st.lists(st.lists(st.text(alphabet="0123456789.:-[]NAxHL ", max_size=14), max_size=8), max_size=4),
)
def test_parsers_take_what_looks_like_a_table(matrix: str, rows: list[list[str]]) -> None:
    peers = nvidia.parse_topology(matrix, addresses(3))
    assert all(len(ends) <= 99 and set(ends) <= {*addresses(3), SWITCH} for ends in peers.values())
    table = "\n".join(", ".join(row) for row in rows)
    for board in nvidia.parse_query(table):
        assert board.total_bytes is None or 0 <= board.total_bytes <= 2**60
    gaudi.parse_table("index, name\n" + table)


class SpoiltSystem(System):
    """A system whose files and tools say anything."""

    draw: Callable[[st.SearchStrategy[str]], str]
    outputs: ClassVar[dict[tuple[str, ...], str]] = {}  # tools need not run again for each example

    def text(self, path: str | Path) -> str:
        real = super().text(path)
        return self.draw(st.just(real) | NUMBERS | st.just(real[: len(real) // 2])) if real else real

    def run(self, name: str, *arguments: str, others: tuple[str, ...] = ()) -> str:
        call = (name, *arguments)
        if call not in self.outputs:
            self.outputs[call] = super().run(name, *arguments, others=others)
        real = self.outputs[call]
        cuts = st.integers(0, len(real)).map(lambda cut: real[:cut] + real[cut + 1 :])
        return self.draw(st.just(real) | cuts | OUTPUT)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Something of everything."""
    machine = Machine(tmp_path_factory.mktemp("zoo"))
    machine.pci("0000:01:00.0", "0x10de", "0x2684", "0x030000", "nvidia", numa_node="0")
    machine.pci("0000:04:00.0", "0x10de", "0x2504", "0x030000", "nvidia")
    machine.pci("0000:43:00.0", "0x1002", "0x73ef", "0x030000", "amdgpu", mem_info_vram_total="8573157376")
    machine.pci("0000:4d:00.0", "0x8086", "0x020a", "0x038000", "i915", resource="0x0 0x1 0x0\n" * 3)
    machine.pci("0000:00:04.0", "0x1ae0", TPU_V5E, "0xff0000")
    nodes = "sys/class/kfd/kfd/topology/nodes"
    for node in (1, 2):
        machine.write(f"{nodes}/{node}/properties", KFD_MI300X.format(location=17152 if node == 1 else 512))
        machine.write(f"{nodes}/{node}/mem_banks/0/properties", KFD_BANK_MI300X)
        machine.write(f"{nodes}/{node}/mem_banks/0/used_memory", KFD_USED_MI300X)
        machine.write(f"{nodes}/{node}/io_links/1/properties", KFD_LINK_XGMI.format(a=node, b=3 - node))
    machine.accel(0, "intel_vpu", vendor="0x8086", device="0x643e")
    machine.accel(1, "habanalabs", device_type="GAUDI2")
    for path in ("dev/neuron0", "dev/rbln0", "dev/vfio/0", "dev/tenstorrent/0"):
        machine.write(path, "")
    machine.tool("nvidia-smi", query_gpu=QUERY_4090_3060, topo=TOPOLOGY_2_RTX_3090)
    machine.tool("xpu-smi", _d=XPU_DEVICE, else_=XPU_LIST)
    machine.tool("hl-smi", else_=HL_SMI_BOX)
    machine.tool("neuron-ls", else_=NEURON_TRN1)
    machine.tool("rbln-stat", else_=RBLN_STAT)
    machine.tool("system_profiler", else_=APPLE_M3)
    machine.tool("sysctl", hw=str(16 * GIB), iogpu="0")
    return machine


def test_something_of_everything_is_one_cluster(zoo: Machine) -> None:
    cluster = detect_devices(zoo.system(os_name="darwin")).cluster
    kinds = [device.kind for device in cluster.devices]
    assert set(kinds) == {
        "nvidia", "amd", "intel", "apple", "apple-npu", "tpu", "gaudi", "neuron", "intel-npu", "tenstorrent",
        "rebellions", "cpu",
    }  # fmt: skip
    assert {link.kind for link in cluster.links} >= {"nvlink", "xgmi", "gaudi", "pcie"}


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_whatever_is_said_there_is_a_cluster_that_json_can_hold(zoo: Machine, data: st.DataObject) -> None:
    real = zoo.system(os_name="darwin")
    system = SpoiltSystem(**{field.name: getattr(real, field.name) for field in dataclasses.fields(System)})
    object.__setattr__(system, "draw", data.draw)
    # One kind after the other, and not in threads, so that what is drawn can be replayed.
    findings = {kind: probe(system) for kind, probe in PROBES.items()}
    probes = {kind: (lambda system, found=found: found) for kind, found in findings.items()}
    msgspec.json.encode(detect_devices(real, probes=probes).cluster)
