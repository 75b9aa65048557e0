"""Detection, from files and drivers that are imitated here; one smoke test asks the machine that it runs on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pshard.errors import SettingError
from pshard.machine import detect as detection
from pshard.machine.detect import (
    Topology,
    cpu_model,
    detect,
    match_gpu,
    pcie_slot,
    physical_cores,
    topology,
    usable_ram_bytes,
)
from pshard.machine.machine import load_machine

GIB = 2**30


def device(name: str, total_bytes: int, **fields: object) -> SimpleNamespace:
    known = {
        "pci_bus_id": "0000:01:00.0",
        "free_bytes": total_bytes - GIB,
        "compute_major": 8,
        "compute_minor": 6,
        "multiprocessors": 0,
        "copy_engines": 0,
        "memory_bus_bits": 0,
        "memory_clock_hertz": 0,
    }
    return SimpleNamespace(name=name, total_bytes=total_bytes, **(known | fields))


@pytest.fixture
def with_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(detection, "pcie_slot", lambda bus_id: (3, 8))

    def use(*devices, reason=""):
        monkeypatch.setattr(detection, "_devices", lambda: (list(devices), reason))

    return use


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA GeForce RTX 3060", 11.6, "rtx-3060-12g"),
        ("NVIDIA GeForce RTX 3060", 7.8, "rtx-3060-8g"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "rtx-4060ti-16g"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.7, "rtx-4070tisuper-16g"),
        ("NVIDIA GeForce RTX 5090", 31.4, "rtx-5090-32g"),
        ("Tesla T4", 14.6, "t4-16g"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-sxm-80g"),
        ("NVIDIA H100 PCIe", 79.2, "h100-pcie-80g"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100-sxm-80g"),
        ("NVIDIA H200", 139.8, "h200-sxm-141g"),
    ],
)
def test_driver_names_find_their_data_sheet(name, gib, expected):
    found, notes = match_gpu(device(name, int(gib * GIB), copy_engines=1))
    assert notes == (f"{name} detected, not measured: speeds are reference figures of {expected}.",)
    assert (found.product, found.vram_bytes, found.copy_engines) == (name, int(gib * GIB), 1)


def test_an_unknown_gpu_is_scaled_to_what_its_driver_tells():
    laptop = device(
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        16 * GIB,
        multiprocessors=76,
        memory_bus_bits=256,
        memory_clock_hertz=9_001_000_000,
    )
    found, notes = match_gpu(laptop)
    assert "it is no reference GPU" in notes[0]
    assert found.n_sm == 76
    assert found.memory_bytes_per_second == pytest.approx(576e9, rel=0.001)
    assert found.fp16_flop_per_second / found.int8_op_per_second == pytest.approx(0.25, rel=0.01)


def test_gpu_of_this_machine(with_gpus):
    with_gpus(device("NVIDIA GeForce RTX 3060", 12 * GIB), device("NVIDIA GeForce RTX 3090", 24 * GIB))
    machine = load_machine(vram_bytes=24 * GIB)
    assert machine.vram_bytes == 12 * GIB
    assert machine.free_vram_bytes == 11 * GIB
    assert "2 GPUs found; this plans for GPU 0, NVIDIA GeForce RTX 3060." in machine.notes
    assert machine.core().up.peak_bytes_per_second == pytest.approx(8 * 0.9846e9)


def test_an_unreadable_link_is_said(with_gpus, monkeypatch):
    with_gpus(device("NVIDIA GeForce RTX 4060", 8 * GIB))
    monkeypatch.setattr(detection, "pcie_slot", lambda bus_id: None)
    found = detect()
    assert (found.reference.pcie_generation, found.reference.pcie_lanes) == (4, 8)
    assert "PCIe link not readable; taken as 4.0 x8." in found.reference.notes


def test_vram_chooses_a_reference_gpu_where_there_is_none(with_gpus):
    with_gpus(reason="no driver")
    found = detect(12 * GIB)
    assert found.reference.gpu.name == "rtx-3060-12g"
    assert found.free_vram_bytes is None
    taken = "No GPU here (no driver); taken: rtx-3060-12g, the reference GPU nearest to 12 GiB"
    assert found.reference.notes[0].startswith(taken)
    assert detect().reference.gpu is None


def test_memory_that_will_be_replaced_is_not_described(with_gpus):
    with_gpus(reason="no driver")
    assert any("--ram SIZE@BANDWIDTH" in note for note in load_machine().notes)
    assert not any("--ram" in note for note in load_machine(ram="64G@51GB/s").notes)


def write_device(folder, width: str, speed: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "current_link_width").write_text(width)
    (folder / "max_link_speed").write_text(speed)


def test_slot_is_the_slower_of_device_and_port(tmp_path):
    port = tmp_path / "pci0000:00" / "0000:00:01.0"
    write_device(port, "16\n", "8.0 GT/s PCIe\n")
    write_device(port / "0000:01:00.0", "8\n", "16.0 GT/s PCIe\n")
    devices = tmp_path / "devices"
    devices.mkdir()
    (devices / "0000:01:00.0").symlink_to(port / "0000:01:00.0")
    assert pcie_slot("0000:01:00.0", devices) == (3, 8)


def test_slot_where_the_system_says_little(tmp_path):
    assert pcie_slot("0000:01:00.0", tmp_path) is None
    write_device(tmp_path / "0000:0a:00.0", "16\n", "32.0 GT/s PCIe\n")
    assert pcie_slot("0000:0A:00.0", tmp_path) == (5, 16)
    write_device(tmp_path / "0000:0b:00.0", "0\n", "Unknown\n")
    assert pcie_slot("0000:0b:00.0", tmp_path) is None


def test_files_of_the_system(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Fine CPU @ 3 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    assert cpu_model(cpuinfo) == "A Fine CPU @ 3 GHz"
    assert cpu_model(tmp_path / "absent") == "CPU"
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    assert usable_ram_bytes(limit) == GIB
    limit.write_text("max\n")
    assert usable_ram_bytes(limit) == usable_ram_bytes(tmp_path / "absent") > GIB // 2


def test_cores_are_physical_and_allowed(monkeypatch):
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert physical_cores() == 8
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert physical_cores() == 3


def test_this_machine_can_be_described():
    assert physical_cores() >= 1
    assert detect(8 * GIB).reference.host.n_cores == physical_cores()


def system(folder, cpus, n_nodes):
    """A tree as Linux describes processors: (socket) by number, spread over NUMA nodes in turn."""
    for number, socket in enumerate(cpus):
        cpu = folder / "cpu" / f"cpu{number}"
        (cpu / "topology").mkdir(parents=True)
        (cpu / "topology" / "physical_package_id").write_text(f"{socket}\n")
        for index, (level, size) in enumerate([(1, "48K"), (1, "32K"), (2, "2048K"), (3, "33792K")]):
            (cpu / "cache" / f"index{index}").mkdir(parents=True)
            (cpu / "cache" / f"index{index}" / "level").write_text(f"{level}\n")
            (cpu / "cache" / f"index{index}" / "size").write_text(f"{size}\n")
        (folder / "node" / f"node{number * n_nodes // len(cpus)}" / cpu.name).mkdir(parents=True)
    return folder


def test_topology_of_two_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 8 if logical else 4)
    here = system(tmp_path, [0, 0, 0, 0, 1, 1, 1, 1], n_nodes=4)
    assert topology(here) == Topology(
        n_sockets=2, n_cores=4, n_logical=8, n_numa_nodes=4, last_level_cache_bytes=33792 * 1024
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert topology(here) == Topology(
        n_sockets=1, n_cores=2, n_logical=2, n_numa_nodes=1, last_level_cache_bytes=33792 * 1024
    )


def test_topology_that_nothing_tells_is_one_of_each(tmp_path):
    found = topology(tmp_path)
    assert (found.n_sockets, found.n_numa_nodes, found.last_level_cache_bytes) == (1, 1, 0)


def test_topology_of_this_machine_is_consistent():
    found = topology()
    assert 1 <= found.n_sockets <= found.n_cores <= found.n_logical
    assert found.n_cores == physical_cores()


def test_one_of_several_gpus_can_be_named(with_gpus):
    with_gpus(device("NVIDIA GeForce RTX 3060", 12 * GIB), device("NVIDIA GeForce RTX 4090", 24 * GIB))
    found = detect(index=1)
    assert found.reference.gpu.product == "NVIDIA GeForce RTX 4090"
    assert any("this plans for GPU 1, NVIDIA GeForce RTX 4090" in note for note in found.reference.notes)
    with pytest.raises(SettingError, match="no GPU 2; found: 0: NVIDIA GeForce RTX 3060, 1: NVIDIA GeForce RTX 4090"):
        detect(index=2)


def test_no_gpu_has_a_reason(with_gpus):
    with_gpus(reason="no driver")
    assert detect().no_gpu_reason == detect(8 * GIB).no_gpu_reason == "no driver"
