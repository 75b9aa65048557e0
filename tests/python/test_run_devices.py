"""Devices of a run: which are alike, what is measured of each, and how they are priced."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import gguf_cases
import pytest
from run_cases import header, model, run

from pshard import _core
from pshard.machine import nvidia
from pshard.machine.cpus import physical_cpus
from pshard.machine.machine import load_machine, machines_of_gpus
from pshard.run import host_backend
from pshard.run.execution import (
    execute,
)
from pshard.run.host_backend import (
    HostCpus,
    measure_devices,
    share_cpus,
)
from pshard.run.sources import workload_of_layers

pytestmark = pytest.mark.usefixtures("measured_in_a_moment")


def test_devices_that_are_alike_are_priced() -> None:
    m = model()
    core = load_machine("rtx-5090").core()
    one, two = (
        execute(
            m, workload_of_layers(m, layers, prompt_tokens=0, generate_tokens=2), machines={1: [core]},
            cpus=share_cpus(physical_cpus(), len(layers)), passes=1,
        ).phases[0]
        for layers in ([4], [1, 3])
    )  # fmt: skip
    assert one.predicted is not None
    assert two.predicted is not None
    assert two.predicted.seconds > one.predicted.seconds  # by what crosses, and the hand-off
    assert len(two.predicted_splits) == len(two.schedule.splits) == len(one.schedule.splits) + 1


def test_devices_that_differ_are_priced_each_by_its_own() -> None:
    m = model()
    workload = workload_of_layers(m, [1, 3], prompt_tokens=0, generate_tokens=2)
    slow, fast = (load_machine(name).core() for name in ("rtx-3060-12g", "rtx-5090"))

    def splits(*machines: _core.Machine) -> tuple[_core.SplitTime, ...]:
        cpus = share_cpus(physical_cpus(), 2)
        return execute(m, workload, machines={1: machines}, cpus=cpus, passes=1).phases[0].predicted_splits

    both, of_slow, of_fast = splits(slow, fast), splits(slow), splits(fast)
    second = [split.backend == _core.pinned_on(1) for split in both]
    assert any(second)
    assert not all(second)
    for split, is_second, by_slow, by_fast in zip(both, second, of_slow, of_fast, strict=True):
        assert split.compute_seconds == (by_fast if is_second else by_slow).compute_seconds
        assert by_slow.compute_seconds > by_fast.compute_seconds or split.backend == _core.Where.cpu
    with pytest.raises(ValueError, match="3 GPUs, and machines for 2"):
        layers = workload_of_layers(m, [1, 2, 1], prompt_tokens=0, generate_tokens=1)
        execute(m, layers, machines={1: [slow, fast]}, cpus=share_cpus(physical_cpus(), 3), passes=1)


def test_each_kind_of_device_is_measured_once_and_the_host_beside_them() -> None:
    first, last = physical_cpus()[0], physical_cpus()[-1]
    both = tuple(dict.fromkeys((first, last)))
    # As many threads as there are CPUs, one, one again; the CPU's own splits on all.
    cpus = HostCpus(both, (both, (first,), (last,)), ((last,), (last,), (first,)))
    steps: list[str] = []
    measured = measure_devices(model(), cpus, (1,), on_step=steps.append)
    alike = cpus.kind(1) == cpus.kind(2)
    assert (measured.devices[1] is measured.devices[2]) is alike
    assert sum("queues" in step for step in steps) == len({*(cpus.kind(i) for i in range(3)), cpus.as_device().kind(0)})
    machines = measured.machines(1)
    assert len(machines) == 3
    for machine, device in zip(machines, measured.devices, strict=True):
        profile = device.profile
        assert profile.gpu is not None
        assert machine.gpu.memory_bytes_per_second == profile.gpu.memory[0].bytes_per_second
        assert profile.cpu.n_cores == len(cpus.compute[measured.devices.index(device)])
        assert machine.cpu.memory_bytes_per_second == measured.host.profile.cpu.memory[0].bytes_per_second
    assert measured.host.profile.cpu.n_cores == len(both)
    one = share_cpus(physical_cpus(), 1)
    alone = measure_devices(model(), one, (1,))
    assert alone.host is alone.devices[0]  # whose threads compute the CPU's splits


def test_devices_are_alike_by_their_cores(tmp_path: Path) -> None:
    # Cores 0-2 are fast, with two threads each; 6 and 7 are slow ones.
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "cpu_capacity").write_text("1024\n" if cpu < 6 else "640\n")
        (folder / "topology" / "thread_siblings_list").write_text(
            f"{cpu - cpu % 2}-{cpu - cpu % 2 + 1}\n" if cpu < 6 else f"{cpu}\n"
        )

    def kind(compute: tuple[int, ...], copy: int) -> object:
        return HostCpus((0,), (compute,), ((copy,),)).kind(0, tmp_path)

    assert kind((0,), 2) == kind((2,), 4) == kind((1,), 5)
    assert kind((0,), 2) != kind((0,), 1)  # copies on the core that computes
    assert kind((0,), 2) != kind((6,), 2)
    assert kind((0, 2), 4) != kind((0, 1), 4)
    assert kind((0, 2), 4) == kind((2, 0), 5)
    assert kind((0, 2), 4) != kind((0, 2), 6)


def test_several_devices_and_the_cpu_beside_them_have_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_cases.write_sparse(tmp_path / "tiny.gguf", "llama", *header())
    both = (physical_cpus()[0], physical_cpus()[-1])
    unlike = HostCpus(both, (both[:1], both), (both[1:], both[1:]))
    monkeypatch.setattr(host_backend, "share_cpus", lambda cpus, n: unlike)
    devices = [{"name": f"a/{i}", "kind": "cuda", "n_layer": n} for i, n in enumerate((1, 2))]
    devices.append({"name": "a/cpu", "kind": "cpu", "n_layer": 1})
    document = {
        "parameters": {"max_seq_len": 256, "n_ubatch": 16, "type_k": "f16", "type_v": "f16"},
        "map": {"head": "last", "devices": devices},
    }
    (tmp_path / "map.json").write_text(json.dumps(document))
    work = ("--prompt", "0", "--generate", "2", "--passes", "1")
    found = run(capsys, str(path), "--map", str(tmp_path / "map.json"), *work)
    assert found["phases"][0]["predicted_seconds"] > 0
    assert not any("No predictions" in note for note in found["notes"])


def test_gpus_that_differ_have_a_machine_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu(name: str, n_gib: int) -> SimpleNamespace:
        sizes = {"total_bytes": n_gib << 30, "free_bytes": n_gib << 30, "memory_bus_bits": 0, "memory_clock_hertz": 0}
        return SimpleNamespace(name=name, pci_bus_id="", copy_engines=2, multiprocessors=0, **sizes)

    found = [gpu("NVIDIA GeForce RTX 3060", 12), gpu("NVIDIA GeForce RTX 4090", 24), gpu("NVIDIA GeForce RTX 3060", 12)]
    monkeypatch.setattr(nvidia, "devices", lambda: (found, ""))
    monkeypatch.setattr(nvidia, "state", lambda _: None)
    machines = machines_of_gpus(3)
    assert [machine.profile.gpu.name for machine in machines if machine.profile.gpu] == [
        device.name for device in found
    ]
    assert machines[0] is machines[2]
    assert machines[1].core().gpu.memory_bytes_per_second > 2 * machines[0].core().gpu.memory_bytes_per_second
    assert machines_of_gpus(4) == []  # the executor says which is missing


def test_cpus_are_shared_out() -> None:
    one = share_cpus([0, 2, 4, 6], 1)
    assert (one.host, one.compute, one.copy) == ((0, 2, 4), ((0, 2, 4),), ((6,),))
    two = share_cpus([0, 1, 2, 3], 2)
    assert (two.compute, two.copy, two.host) == (((0,), (1,)), ((2,), (3,)), (0, 1, 2, 3))
    assert share_cpus([5], 2).compute == ((5,), (5,))
