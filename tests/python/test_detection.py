"""Detection as a whole: nothing that a tool, a file or a probe does may stop it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import msgspec
import pytest
from device_samples import Machine
from msgspec.structs import replace

from pshard.cluster.cluster import Device, Link, Speed
from pshard.cluster.toml_reading import read_cluster
from pshard.cluster.toml_writing import cluster_toml
from pshard.detection import PROBES, Finding, System, cpu, detect_devices
from pshard.detection.network import Port, ports
from pshard.detection.system import ToolError, count, mebibytes, whole_number
from pshard.machine.reference_rates import build_profile
from pshard.machine.references import hosts, join
from pshard.machine.stored import current_key, store


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- tools -----------------------------------------------------------------------------------------------------------


def test_a_tool_answers(machine: Machine) -> None:
    machine.script("tool", 'echo "$LC_ALL: $*"')
    assert machine.system().run("tool", "-a", "b") == "C: -a b\n"


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(machine: Machine) -> None:
    machine.script("tool", f"/bin/sleep 60 & echo $! > {machine.bin}/child; wait")
    with pytest.raises(ToolError, match=r"tool gave no answer in 0.3 s"):
        machine.system(tool_seconds=0.3).run("tool")
    child = int((machine.bin / "child").read_text())
    for _ in range(200):  # init reaps it
        if not is_running(child):
            break
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_tool_that_closes_its_output_and_stays_is_ended(machine: Machine) -> None:
    machine.script("tool", "echo done; exec >&-; exec /bin/sleep 60")
    with pytest.raises(ToolError, match="no answer"):
        machine.system(tool_seconds=0.3).run("tool")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done", "no answer"),
        ("echo half; exit 3", "tool failed with code 3"),
        ("kill -9 $$", "tool failed with code -9"),
    ],
)
def test_a_tool_that_fails_is_told(machine: Machine, script: str, reason: str) -> None:
    machine.script("tool", script)
    with pytest.raises(ToolError, match=reason):
        machine.system(tool_seconds=1.0).run("tool")


def test_a_tool_that_is_absent_or_no_program(machine: Machine) -> None:
    with pytest.raises(ToolError, match=r"^no tool$"):
        machine.system().run("tool")
    (machine.bin / "tool").write_text("no program")
    (machine.bin / "tool").chmod(0o755)
    with pytest.raises(ToolError, match=r"tool cannot be run: .*Exec format error"):
        machine.system().run("tool")


def test_nothing_is_executed_where_it_is_forbidden(machine: Machine) -> None:
    machine.write("dev/neuron0", "")
    for tool in ("tool", "nvidia-smi", "neuron-ls", "hl-smi", "xpu-smi", "rbln-stat", "system_profiler", "sysctl"):
        machine.script(tool, f"echo ran >> {machine.bin}/ran")
    system = machine.system(may_execute=False)
    with pytest.raises(ToolError, match=r"tool not run \(--no-exec\)"):
        system.run("tool")
    detection = detect_devices(system)
    assert not (machine.bin / "ran").exists()
    assert detection.looked_for["NVIDIA"] == ("nvidia-smi not run (--no-exec)",)
    assert detection.looked_for["Neuron"] == ("neuron-ls not run (--no-exec)",)
    assert detection.cluster.device("Neuron0").unavailable_reason == (
        "its memory could not be told: neuron-ls not run (--no-exec)"
    )


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_read_or_empty(machine: Machine) -> None:
    machine.write("sys/number", "0x1af4\n")
    machine.write("sys/text", " \0GAUDI2\n\0")
    machine.write("sys/card10", "")
    machine.write("sys/card2", "")
    system = machine.system()
    assert system.number("/sys/number") == 0x1AF4
    assert system.text("/sys/text") == "GAUDI2"
    assert (system.text("/sys/none"), system.number("/sys/none"), system.text("/sys")) == ("", None, "")
    assert [path.name for path in system.entries("/sys", "card*")] == ["card2", "card10"]
    assert system.entries("/none", "*") == []
    assert system.target_name(machine.root / "sys/text") == ""


def test_a_device_file_that_may_not_be_opened_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("dev/kfd", "")
    assert machine.system().refusal("/dev/kfd", "/dev/none") == ""
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as it is for a user outside the group; root may all
    assert machine.system().refusal("/dev/none", "/dev/kfd") == "no permission for /dev/kfd"


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("0x10", 16), (" -1\n", -1), ("", None), ("a", None), ("9" * 30, None), ("9" * 5000, None)],
)
def test_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number


def test_numbers_of_tools() -> None:
    assert [count(value) for value in (3, "3", True, -1, "-1", 1.5, None, 2**70, [])] == [3, 3, *[None] * 7]
    assert [mebibytes(text) for text in ("24564", "672 MiB", " 1 ", "[N/A]", "-1", "9" * 20)] == [
        24564 << 20, 672 << 20, 1 << 20, None, None, None,
    ]  # fmt: skip


# --- the CPU and the frame --------------------------------------------------------------------------------------------


def test_the_cpu_of_a_machine(machine: Machine) -> None:
    for node in (0, 1):
        machine.write(f"sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:       16302498 kB\n")
    (device,) = cpu.probe(machine.system()).devices
    assert (device.name, device.kind, device.host, device.product) == (
        "CPU", "cpu", "box", "AMD Ryzen 7 7800X3D 8-Core Processor",
    )  # fmt: skip
    assert device.memory_total_bytes == 32604996 * 1024
    assert device.memory_free_bytes == 20000000 * 1024
    assert device.fact("n_numa_nodes") == 2
    assert device.fact("node1_memory_bytes") == 16302498 * 1024


def test_a_container_has_what_its_limit_leaves(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/memory.max", str(8 << 30))
    machine.write("sys/fs/cgroup/memory.current", str(3 << 30))
    (device,) = cpu.probe(machine.system()).devices
    assert (device.memory_total_bytes, device.memory_free_bytes) == (8 << 30, 5 << 30)
    machine.write("sys/fs/cgroup/memory.max", "max")
    assert cpu.probe(machine.system()).devices[0].memory_total_bytes == 32604996 * 1024


def test_an_empty_root_still_has_a_cpu(tmp_path: Path) -> None:
    detection = detect_devices(System(root=tmp_path, environ={}, has_libraries=False, host_name="box", os_name="linux"))
    (device,) = detection.cluster.devices
    assert (device.name, device.available, device.unavailable_reason) == ("CPU", False, "its memory could not be told")
    assert all(reasons for kind, reasons in detection.looked_for.items() if kind != "CPU")


def test_this_machine_has_a_cpu_with_the_memory_that_the_kernel_tells() -> None:
    detection = detect_devices()
    cpu_here = detection.cluster.device("CPU")
    told = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line))
    assert 0 < cpu_here.memory_total_bytes <= told * 1024
    assert cpu_here.speed.source in ("reference", "profile")
    assert set(detection.looked_for) == set(PROBES)


def test_a_stored_profile_of_this_machine_gives_the_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    reference = detect_devices().cluster.device("CPU").speed
    assert (reference.source, reference.name in hosts()) == ("reference", True)
    path = store(replace(build_profile(join(None, hosts()["desktop-8c"]), 8), key=current_key()))
    cluster = detect_devices().cluster
    assert cluster.device("CPU").speed == Speed(source="profile", name=str(path))
    assert not any("reference figures" in note for note in cluster.notes)
    store(replace(build_profile(join(None, hosts()["desktop-8c"]), 8), key=replace(current_key(), kernel="Linux 2.0")))
    assert any("may no longer hold: kernel Linux 2.0 is now" in note for note in detect_devices().cluster.notes)


def test_a_probe_that_fails_or_does_not_answer_costs_its_own_kind_alone(machine: Machine) -> None:
    released = threading.Event()

    def broken(system: System) -> Finding:
        raise IndexError("list index out of range")

    def late(system: System) -> Finding:
        released.wait(60)
        return Finding()

    probes = {"broken": broken, "late": late, "CPU": cpu.probe}
    try:
        detection = detect_devices(machine.system(), probes=probes, seconds=0.3)
    finally:
        released.set()
    assert detection.looked_for["broken"] == ("pshard could not look for it: IndexError: list index out of range",)
    assert detection.looked_for["late"] == ("no answer in 0.3 s",)
    assert [device.name for device in detection.cluster.devices] == ["CPU"]


def test_names_are_kept_apart_and_links_to_nowhere_left_out(machine: Machine) -> None:
    def twins(system: System) -> Finding:
        twin = Device(name="box", kind="nvidia", host="box", memory_total_bytes=1 << 30)
        link = Link(
            kind="nvlink", ends=("box-2", "gone"), bandwidth_bytes_per_second=1e9, latency_seconds=0.0, source="given"
        )
        return Finding(devices=(twin, twin), links=(link,))

    cluster = detect_devices(machine.system(), probes={"twins": twins, "CPU": cpu.probe}).cluster
    assert [device.name for device in cluster.devices] == ["box-2", "box-3", "CPU"]
    assert [link.kind for link in cluster.links] == ["pcie", "pcie"]


def test_what_was_found_can_be_written_read_and_told_as_json(machine: Machine, tmp_path: Path) -> None:
    machine.pci("0000:03:00.0", "0x10de", "0x2684", "0x030000")
    cluster = detect_devices(machine.system()).cluster
    path = tmp_path / "cluster.toml"
    path.write_text(cluster_toml(cluster, [Port(name="eth0", kind="ethernet", bandwidth_bytes_per_second=1.25e9)]))
    again = read_cluster(path)
    assert [device.name for device in again.devices] == ["CPU"]
    assert "# NVIDIA0, 10de:2684: no driver\n" in path.read_text()
    assert '# bandwidth = "1.25GB/s"\n' in path.read_text()
    assert msgspec.json.decode(msgspec.json.encode(cluster), type=type(cluster)) == cluster


def test_ports_that_are_up_are_listed(machine: Machine) -> None:
    """As Linux documents the files (Documentation/ABI/testing/sysfs-class-net, stable/sysfs-class-infiniband)."""
    for name, state, speed in (("eth0", "up", "10000"), ("eth1", "down", "-1"), ("wlan0", "up", "")):
        machine.write(f"sys/class/net/{name}/device/vendor", "0x8086")
        machine.write(f"sys/class/net/{name}/type", "1")
        machine.write(f"sys/class/net/{name}/operstate", state)
        machine.write(f"sys/class/net/{name}/speed", speed)
    machine.write("sys/class/net/lo/type", "772")
    for port, layer, state in (
        ("1", "InfiniBand", "4: ACTIVE"),
        ("2", "Ethernet", "4: ACTIVE"),
        ("3", "InfiniBand", "1: DOWN"),
    ):
        folder = f"sys/class/infiniband/mlx5_0/ports/{port}"
        machine.write(f"{folder}/rate", "200 Gb/sec (4X HDR)")
        machine.write(f"{folder}/link_layer", layer)
        machine.write(f"{folder}/state", state)
    assert ports(machine.system()) == [
        Port(name="eth0", kind="ethernet", bandwidth_bytes_per_second=1.25e9),
        Port(name="mlx5_0/1", kind="infiniband", bandwidth_bytes_per_second=25e9),
    ]
