"""What drivers and tools of hardware that is not here say, each with the public place where it was seen.

Values are facts of formats and machines; files that no test needs are left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pshard.detection import System

# --- NVIDIA ---

# OneFlow's benchmark report of ResNet50 V1.5 prints `nvidia-smi topo -m` of a server of eight V100-SXM2, NVLink without
# switches. Two to a column are escape codes, which a terminal shows as underlining.
TOPOLOGY_8_V100 = """\
\x1b[4mGPU0    GPU1    GPU2    GPU3    GPU4    GPU5    GPU6    GPU7    mlx5_0  CPU Affinity\x1b[0m
GPU0     X      NV1     NV1     NV2     NV2     SYS     SYS     SYS     NODE    0-11,24-35
GPU1    NV1      X      NV2     NV1     SYS     NV2     SYS     SYS     NODE    0-11,24-35
GPU2    NV1     NV2      X      NV2     SYS     SYS     NV1     SYS     PIX     0-11,24-35
GPU3    NV2     NV1     NV2      X      SYS     SYS     SYS     NV1     PIX     0-11,24-35
GPU4    NV2     SYS     SYS     SYS      X      NV1     NV1     NV2     SYS     12-23,36-47
GPU5    SYS     NV2     SYS     SYS     NV1      X      NV2     NV1     SYS     12-23,36-47
GPU6    SYS     SYS     NV1     SYS     NV1     NV2      X      NV2     SYS     12-23,36-47
GPU7    SYS     SYS     SYS     NV1     NV2     NV1     NV2      X      SYS     12-23,36-47
mlx5_0  NODE    NODE    PIX     PIX     SYS     SYS     SYS     SYS      X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""

# SGLang issue reports print it for eight H20, all of whose 18 links go to NVSwitches.
TOPOLOGY_8_H20 = "\n".join(
    [
        "\t" + "\t".join(f"GPU{i}" for i in range(8)) + "\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID",
        *(
            f"GPU{i}\t" + "\t".join(" X " if i == j else "NV18" for j in range(8)) + "\tPIX\t0-47,96-143\t0\t\tN/A"
            for i in range(8)
        ),
    ]
)

# A pair of cards with an NVLink bridge: four links (NVIDIA, GA102 whitepaper).
TOPOLOGY_2_RTX_3090 = """\
        GPU0    GPU1    CPU Affinity    NUMA Affinity   GPU NUMA ID
GPU0     X      NV4     0-31    0               N/A
GPU1    NV4      X      0-31    0               N/A
"""

# Fields and their form: `nvidia-smi --help-query-gpu`. Memory as these boards report it: 24564 MiB and 12288 MiB.
QUERY_4090_3060 = """\
NVIDIA GeForce RTX 4090, 00000000:01:00.0, 24564, 23000, 8.9, 4, 16
NVIDIA GeForce RTX 3060, 00000000:04:00.0, 12288, 12011, 8.6, 4, 8
"""
QUERY_NOT_AVAILABLE = "NVIDIA GB10, 0000000F:01:00.0, [N/A], [Not Supported], 12.1, [N/A], [N/A]\n"

# `nvidia-smi -q -x` of two RTX 2080 without a bridge, driver 590.44.01, as telegraf keeps it for its tests
# (https://github.com/influxdata/telegraf/blob/58ff61d01be05ec0d4c2f57c8c89031e026fa0b9/plugins/inputs/nvidia_smi/
# testdata/dual_2080-v13.xml). By NVML's functions, which nvidia-smi prints; Turing is compute capability 7.5.
TWO_RTX_2080 = {
    bus: {
        "Name": b"NVIDIA GeForce RTX 2080", "total": 8192 << 20, "free": 7786 << 20, "MaxPcieLinkGeneration": 3,
        "MaxPcieLinkWidth": 16, "CudaComputeCapability": (7, 5),
    }
    for bus in ("00000000:01:00.0", "00000000:02:00.0")
}  # fmt: skip

# --- AMD ---

# rocprofiler-sdk keeps KFD topologies for its tests (ROCm/rocm-systems, projects/rocprofiler-sdk/source/lib/
# rocprofiler-sdk/tests/data/topology/nodes). There a Radeon VII and an RX 6650 XT:
KFD_CPU = "cpu_cores_count 24\nsimd_count 0\nmem_banks_count 1\nio_links_count 3\ngfx_target_version 0\nlocation_id 0\n"
KFD_RADEON_VII = (
    "cpu_cores_count 0\nsimd_count 240\nmem_banks_count 1\nio_links_count 1\np2p_links_count 2\narray_count 4\n"
    "gfx_target_version 90006\nvendor_id 4098\ndevice_id 26287\nlocation_id 25344\ndomain 0\ndrm_render_minor 0\n"
    "hive_id 0\nunique_id 985321441578344217\nnum_xcc 1\nmax_engine_clk_ccompute 4000\n"
)
KFD_RX_6650 = (
    "cpu_cores_count 0\nsimd_count 64\nmem_banks_count 1\nio_links_count 1\np2p_links_count 2\narray_count 4\n"
    "gfx_target_version 100302\nvendor_id 4098\ndevice_id 29679\nlocation_id 17152\ndomain 0\nhive_id 0\n"
    "unique_id 0\nnum_xcc 1\nmax_engine_clk_ccompute 4000\n"
)
KFD_BANK_RADEON_VII = "heap_type 1\nsize_in_bytes 17163091968\nflags 0\nwidth 4096\nmem_clk_max 1000\n"
KFD_LINK_PCIE = (
    "type 2\nversion_major 0\nversion_minor 0\nnode_from 1\nnode_to 0\nweight 20\nmin_latency 0\nmax_latency 0\n"
    "min_bandwidth 0\nmax_bandwidth 32000\nrecommended_transfer_size 0\nrecommended_sdma_engine_id_mask 3\nflags 1\n"
)
# and one of eight MI300X in a hive:
KFD_MI300X = (
    "cpu_cores_count 0\nsimd_count 1216\nmem_banks_count 1\nio_links_count 8\np2p_links_count 1\narray_count 32\n"
    "gfx_target_version 90402\nvendor_id 4098\ndevice_id 29857\nlocation_id {location}\ndomain 0\n"
    "hive_id 7773567030725891371\nnum_sdma_xgmi_engines 14\nnum_xcc 8\nmax_engine_clk_ccompute 2400\n"
)
KFD_BANK_MI300X = "heap_type 1\nsize_in_bytes 206141652992\nflags 0\nwidth 8192\nmem_clk_max 1300\n"
KFD_USED_MI300X = "1043775488\n"
KFD_LINK_XGMI = (
    "type 11\nversion_major 0\nversion_minor 0\nnode_from {a}\nnode_to {b}\nweight 15\nmin_latency 0\nmax_latency 0\n"
    "min_bandwidth 64000\nmax_bandwidth 64000\nrecommended_transfer_size 0\n"
    "recommended_sdma_engine_id_mask 16384\nflags 1\n"
)
# A Strix Halo of 128 GB (Radeon 8060S, gfx1151, ttm.pages_limit=25165824), /sys/class/drm/card1/device
# (https://github.com/noamsto/nix-amd-ai/issues/42, comment of 2026-08-27); its PCI number 1002:1586 as rocminfo tells
# it (https://github.com/antirez/ds4/issues/475). The KFD node is not shown there: the test has the RX 6650 XT's with
# gfx1151's version.
STRIX_HALO_VRAM_BYTES, STRIX_HALO_GTT_BYTES = 4294967296, 103079215104

# --- Intel ---

# intel/xpumanager describes its devices' properties with this example (REST service; xpu-smi -j has the same names).
XPU_LIST = {
    "device_list": [{"device_id": 0, "device_name": "Intel(R) Graphics [0x020a]", "pci_bdf_address": "0000:4d:00.0"}]
}
XPU_DEVICE = {
    "device_id": 0,
    "device_name": "Intel(R) Graphics [0x020a]",
    "device_type": "GPU",
    "memory_free_size_byte": "34090999808",
    "memory_physical_size_byte": "34359738368",
    "pci_bdf_address": "0000:4d:00.0",
    "pcie_generation": "4",
    "pcie_max_link_width": "16",
    "vendor_name": "Intel(R) Corporation",
}

# --- Apple ---

# `system_profiler SPDisplaysDataType -json` of an M3 Pro with two displays, of which the names are left
# (https://github.com/timmo001/system-bridge/pull/3408: chip, Metal family, displays), and the fields of
# `SPHardwareDataType` of an M3 Max (https://github.com/mondoohq/mql/pull/6231). No public recording with an address was
# found of what stands behind the displays: vendor, cores and model are as other readers' tests have them.
APPLE_M3 = {
    "SPDisplaysDataType": [
        {
            "_name": "Apple M3 Pro",
            "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
            "spdisplays_ndrvs": [{"_name": "DELL U2722DE"}, {"_name": "Color LCD"}],
            "spdisplays_vendor": "sppci_vendor_Apple",
            "sppci_cores": "14",
            "sppci_model": "Apple M3 Pro",
        }
    ],
    "SPHardwareDataType": [{"machine_name": "MacBook Pro", "chip_type": "Apple M3 Max", "physical_memory": "64 GB"}],
}

# --- Gaudi ---

# The form is that of the Intel Gaudi documentation (https://docs.habana.ai/en/latest/Management_and_Monitoring/
# Embedded_System_Tools_Guide/System_Management_Interface_Tool.html, -Q and -f csv); the values are of the first three
# of eight Gaudi 2, as hl-smi's table shows them (https://github.com/HabanaAI/vllm-fork/issues/484).
GAUDI_2 = [("0000:33:00.0", 98304, 97536), ("0000:9a:00.0", 98304, 97536), ("0000:34:00.0", 98304, 97536)]
HL_SMI = "index, name, bus_id, driver_version, module_id, memory.total [MiB], memory.free [MiB]\n" + "".join(
    f"{i}, HL-225, {bus}, 1.18.0-ee698fb, {i}, {total} MiB, {free} MiB\n"
    for i, (bus, total, free) in enumerate(GAUDI_2)
)

# The first card eight times over: a whole box, whose links go by the number of cards.
HL_SMI_BOX = "\n".join([HL_SMI.splitlines()[0], *(HL_SMI.splitlines()[1].replace("0,", f"{i},", 1) for i in range(8))])

# --- Neuron ---

# lablup/backend.ai captured `neuron-ls --json-output` on a trn1.2xlarge: numbers as numbers and as text, null for none.
NEURON_TRN1 = [
    {
        "neuron_device": 0, "bdf": "0000:00:1e.0", "cpu_affinity": "0-7", "numa_node": "-1", "connected_to": None,
        "nc_count": 2, "memory_size": 34359738368, "neuroncore_ids": [0, 1], "neuron_processes": [],
    }
]  # fmt: skip
# The AWS Neuron documentation shows devices, memory and links of a trn2n.48xlarge in a table (neuron-ls user guide).
NEURON_TRN2 = [
    {"neuron_device": i, "bdf": bdf, "connected_to": to, "nc_count": 8, "memory_size": 96 << 30, "numa_node": "0"}
    for i, bdf, to in [
        (0, "cc:00.0", [12, 3, 4, 1]),
        (1, "b5:00.0", [13, 0, 5, 2]),
        (2, "b6:00.0", [14, 1, 6, 3]),
    ]
]

# --- Rebellions ---

# lablup/backend.ai reads `rbln-stat -j` with these fields; numbers are text.
RBLN_STAT = {
    "KMD_version": "3.2.2",
    "devices": [{"npu": 0, "name": "RBLN-CA22", "status": "normal", "memory": {"used": "0", "total": "17179869184"}}],
    "contexts": [],
}

# --- TPU ---

# PCI numbers by generation: JAX, jax/_src/hardware_utils.py. Variables of a TPU VM: torch_xla/_internal/tpu.py.
TPU_V5E, TPU_V3 = "0x0063", "0x0027"

# --- CPU ---

MEMINFO = "MemTotal:       32604996 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"
CPUINFO = "processor\t: 0\nmodel name\t: AMD Ryzen 7 7800X3D 8-Core Processor\n"


class Machine:
    """A folder that stands in for the root, and tools that print what is in the samples."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.root.mkdir()
        self.bin.mkdir()
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/cpuinfo", CPUINFO)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def pci(self, address: str, vendor: str, device: str, class_code: str, driver: str = "", **files: str) -> None:
        """A function on the PCI bus, with its driver and files."""
        folder = f"sys/bus/pci/devices/{address}"
        contents = {"vendor": vendor, "device": device, "class": class_code, **files}
        for name, text in contents.items():
            self.write(f"{folder}/{name}", text + "\n")
        if driver:
            (self.root / folder / "driver").symlink_to(f"../../drivers/{driver}")

    def accel(self, number: int, driver: str, **files: str) -> None:
        """An entry of Linux's class accel, with its device file."""
        folder = f"sys/class/accel/accel{number}/device"
        self.write(f"dev/accel/accel{number}", "")
        for name, text in files.items():
            self.write(f"{folder}/{name}", text + "\n")
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / folder / "driver").symlink_to(f"../../drivers/{driver}")

    def script(self, name: str, text: str) -> None:
        """A tool that runs a shell script."""
        tool = self.bin / name
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)

    def tool(self, name: str, **answers: object) -> None:
        """A tool that prints a text, or JSON, by the argument that tells its calls apart; `else_` is any other."""
        cases = []
        for i, (argument, answer) in enumerate(answers.items()):
            file = self.bin / f"{name}.{i}"
            file.write_text(answer if isinstance(answer, str) else json.dumps(answer))
            pattern = "*" if argument == "else_" else f"*{argument.replace('_', '-')}*"
            cases.append(f"{pattern}) exec /bin/cat '{file}';;")
        self.script(name, f'case "$*" in {" ".join(cases)} esac')

    def system(self, **given: object) -> System:
        settings = {"os_name": "linux", "host_name": "box", "has_libraries": False, "tool_seconds": 10.0}
        return System(root=self.root, environ={"PATH": str(self.bin), **os_environ()}, **(settings | given))


def os_environ() -> dict[str, str]:
    """Nothing of this process's own environment: what the machine says of itself would be in it."""
    return {"HOME": os.devnull}
