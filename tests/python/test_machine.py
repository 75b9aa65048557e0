"""What a plan prices with: choice of the machine, thread counts, layouts, and the core's view of it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from pshard import _core
from pshard.cli.machines import command
from pshard.errors import MachineError, SettingError
from pshard.machine.machine import load_machine
from pshard.machine.profile import SCHEMA_VERSION, write_profile
from pshard.machine.reference_rates import build_profile
from pshard.machine.references import default_host, find_gpu, join
from pshard.machine.stored import current_key, store

GIB = 2**30
Q4_K, F16 = 12, 1


@pytest.fixture(autouse=True)
def no_stored_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def profile():
    """A GPU machine with CPU rows for 4 and 8 threads."""
    base = join(find_gpu("rtx-3060-12g"), default_host(None))
    four, eight = (build_profile(base, n) for n in (4, 8))
    cpu = replace(eight.cpu, memory=four.cpu.memory + eight.cpu.memory, series=four.cpu.series + eight.cpu.series)
    return replace(eight, name="workshop", cpu=cpu)


def test_capacities_and_link_of_a_composed_machine():
    machine = load_machine(gpu="rtx-3060-12g", ram="64G@51GB/s", pcie="3x8")
    core = machine.core()
    assert (machine.vram_bytes, machine.ram_bytes) == (12 * GIB, 64 * GIB)
    assert core.has_gpu and (core.vram_bytes, core.ram_bytes) == (12 * GIB, 64 * GIB)
    assert core.host_bytes_per_second == pytest.approx(0.75 * 51e9)
    assert core.cpu.memory_bytes_per_second == pytest.approx(0.75 * 51e9)
    assert core.cpu.memory_peak_bytes_per_second == 51e9
    assert core.gpu.memory_bytes_per_second == pytest.approx(0.88 * 360e9)
    assert core.gpu.memory_peak_bytes_per_second == 360e9
    assert core.up.peak_bytes_per_second == pytest.approx(8 * 0.9846e9)
    # 32 MiB at 0.83 of the raw rate, 3 us of ramp, 5 us of set-up
    assert core.up.seconds(32 * 2**20, 32 * 2**20) == pytest.approx(32 * 2**20 / (0.83 * 8 * 0.9846e9) + 8e-6)


def test_notes_say_what_was_not_given():
    machine = load_machine(gpu="rtx-3060-12g", ram="64G@51GB/s")
    assert "Not given, so taken: 8 cores (--cpu), PCIe 4.0 x16 (--pcie)." in machine.notes
    assert machine.notes[-1].startswith("All speeds are reference figures, not measurements")
    complete = load_machine(gpu="rtx-3060-12g", ram="64G@51GB/s", cpu="6c", pcie="4x16")
    assert len(complete.notes) == 1


def test_named_machines_take_parts():
    assert load_machine("rtx-4090-desktop").n_threads == 16
    machine = load_machine("rtx-4090-desktop", cpu="12c", pcie="4x8")
    assert machine.n_threads == 12
    assert machine.core().up.peak_bytes_per_second == pytest.approx(8 * 1.969e9)
    assert load_machine("rtx-4090").vram_bytes == 24 * GIB  # a prefix that only one GPU has


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_path": "rtx-4091-24g"}, "did you mean rtx-4090-24g"),
        ({"name_or_path": "rtx-4090", "gpu": "rtx-3090"}, "both name a GPU"),
        ({"gpu": "rtx-3060"}, "names several GPUs; did you mean rtx-3060-8g or rtx-3060-12g"),
        ({"gpu": "voodoo"}, "an example is rtx-3060-12g"),
        ({"gpu": "rtx-3090", "ram": "lots"}, "examples: 64G@51GB/s"),
        ({"gpu": "rtx-3090", "pcie": "4x3"}, "examples: 3x8"),
        ({"gpu": "rtx-3090", "cpu": "fast"}, "8c"),
    ],
)
def test_what_cannot_be_read_is_a_setting_error(arguments, message):
    with pytest.raises(SettingError, match=message):
        load_machine(**arguments)


def test_profile_file(tmp_path, profile):
    path = write_profile(profile, tmp_path / "workshop.json")
    machine = load_machine(path)
    assert machine.name == "workshop"
    assert machine.notes == (f"Profile: {path}.",)
    with pytest.raises(SettingError, match="--ram cannot change the profile"):
        load_machine(path, ram="64G")
    with pytest.raises(MachineError, match="cannot be read"):
        load_machine(tmp_path / "absent.json")


def test_stored_profile_comes_before_detection(profile):
    path = store(replace(profile, key=current_key()))
    machine = load_machine()
    assert machine.name == "workshop"
    assert machine.notes == (f"Profile of this machine: {path}.",)
    assert machine.warnings == ()
    assert load_machine("rtx-3090").name != "workshop"


def test_threads_of_a_profile_are_the_nearest_that_it_holds(tmp_path, profile):
    machine = load_machine(write_profile(profile, tmp_path / "workshop.json"))
    assert [machine.threads_priced(n) for n in (1, 4, 5, 6, 7, 64)] == [4, 4, 4, 4, 8, 8]
    assert machine.core(5).cpu.mul_mat[Q4_K].flop_per_second == machine.core(4).cpu.mul_mat[Q4_K].flop_per_second
    assert machine.notes_for(8) == machine.notes
    assert machine.notes_for(5)[-1] == "The profile has no CPU figures for 5 threads; those for 4 are used."
    with pytest.raises(SettingError, match="n_threads = 0"):
        machine.core(0)


def test_reference_threads_scale_arithmetic_and_saturate_reading():
    machine = load_machine("rtx-3060-12g", ram="64G@51GB/s")
    reading = [machine.core(n).cpu.memory_bytes_per_second for n in (1, 2, 8)]
    assert reading == pytest.approx([20e9, 38.25e9, 38.25e9])
    one, eight = (machine.core(n).cpu.mul_mat[Q4_K] for n in (1, 8))
    assert eight.rate(512) / one.rate(512) == pytest.approx(8.0, rel=1e-3)  # arithmetic only
    assert eight.rate(1) / one.rate(1) < 5.0  # reading, mostly
    assert machine.core(8).cpu.mul_mat[Q4_K].flop_per_second == machine.core(16).cpu.mul_mat[Q4_K].flop_per_second
    assert machine.notes_for(3) == machine.notes


def test_cpu_rate_by_hand():
    """Q4_K on 8 cores: 0.5625 bytes a weight at 67.2 GB/s beside 2 FLOP at 8 x 85 GFLOP/s."""
    read, multiply = 0.5625 / 67.2e9, 2.0 / (8 * 85e9)
    series = load_machine("rtx-4090").core(8).cpu.mul_mat[Q4_K]
    assert series.rate(1) == pytest.approx(2.0 / (read**2 + multiply**2) ** 0.5)
    assert series.rate(64) == pytest.approx(128.0 / (read**2 + (64 * multiply) ** 2) ** 0.5)
    assert series.basis == _core.Basis.reference


def test_gpu_rate_by_hand():
    """Q4_K on an RTX 3090: 0.5625 bytes at 0.88 x 936 GB/s; 150 FLOP per SM and clock, then 492 on at least 32 rows."""
    read, clock = 0.5625 / (0.88 * 936e9), 82 * 1.695e9
    series = load_machine("rtx-3090").core().gpu.mul_mat[Q4_K]
    assert series.rate(1) == pytest.approx(2.0 / (read + 2.0 / (150 * clock)))
    assert series.rate(16) == pytest.approx(32.0 / (read + 64.0 / (492 * clock)))
    assert series.rate(512) == pytest.approx(1024.0 / (read + 1024.0 / (492 * clock)))


def test_routed_rate_by_hand():
    """Each expert pays for 24 rows more at 0.75 of the rate, but never more than its rows one by one."""
    read, clock = 0.5625 / (0.88 * 936e9), 82 * 1.695e9
    one, tile = read + 2.0 / (150 * clock), 2.0 / (492 * clock) / 0.75
    series = load_machine("rtx-3090").core().gpu.mul_mat_id[Q4_K]
    assert series.rate(1) == pytest.approx(2.0 / one)
    assert series.rate(2) == pytest.approx(4.0 / min(2 * one, read + 26 * tile))
    assert series.rate(64) == pytest.approx(128.0 / (read + 88 * tile))


def test_interleaved_layout_replaces_only_what_has_kernels():
    plain, interleaved = (load_machine("rtx-3090").core(8, layout).cpu for layout in ("plain", "interleaved"))
    assert interleaved.mul_mat[Q4_K].rate(512) > 1.5 * plain.mul_mat[Q4_K].rate(512)
    assert interleaved.mul_mat[F16].flop_per_second == plain.mul_mat[F16].flop_per_second
    assert plain.mul_mat[F16].basis == interleaved.mul_mat[F16].basis == _core.Basis.reference
    with pytest.raises(SettingError, match="none of plain, interleaved"):
        load_machine("rtx-3090").core(8, "diagonal")


def test_absent_types_are_estimated_with_a_wider_spread():
    iq2_xs, iq2_xxs = 17, 16
    core = load_machine("rtx-3090").core()
    for table in (core.gpu.mul_mat, core.gpu.mul_mat_id, core.cpu.mul_mat, core.cpu.mul_mat_id):
        assert table[iq2_xs].basis == _core.Basis.estimated
        assert table[iq2_xs].spread > table[iq2_xxs].spread
        assert set(range(2)) <= set(table)


def test_core_is_cached_and_checked():
    machine = load_machine("rtx-3090")
    assert machine.core(8) is machine.core(8)
    assert machine.core(8) is not machine.core(4)
    broken = _core.Machine()
    with pytest.raises(ValueError, match=r"cpu\.memory_bytes_per_second"):
        broken.check()


def test_core_refuses_what_it_cannot_price():
    with pytest.raises(ValueError, match="without points"):
        _core.RateSeries().rate(1.0)
    with pytest.raises(ValueError, match="positive batch"):
        _core.RateSeries([1.0], [1e9]).rate(0.0)
    with pytest.raises(ValueError, match="without points"):
        _core.LinkCurve().seconds(1.0, 1.0)
    with pytest.raises(ValueError, match="ggml type 64"):
        _core.Processor().mul_mat = {64: _core.RateSeries([1.0], [1e9])}


def test_machine_without_gpu(monkeypatch):
    monkeypatch.setattr("pshard.machine.detect._devices", lambda: ([], "no driver"))
    machine = load_machine()
    assert not machine.has_gpu and machine.vram_bytes == 0 and machine.core().up.chunk_bytes == []
    with pytest.raises(SettingError, match="there is no GPU"):
        load_machine(pcie="3x8")
    assert load_machine(ram="64G@51GB/s").core().cpu.memory_peak_bytes_per_second == 51e9


def test_document_of_a_machine():
    document = load_machine("rtx-3060-12g", ram="64G@51GB/s", pcie="3x8").to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["gpu"] == "GeForce RTX 3060"
    assert document["gpu_memory_bytes_per_second"] == pytest.approx(316.8e9)
    assert document["link_bytes_per_second"] == pytest.approx(6.54e9, rel=0.001)
    assert document["free_vram_bytes"] is None


def test_schema_version_is_written(tmp_path, profile):
    assert f'"schema_version": {SCHEMA_VERSION}' in write_profile(profile, tmp_path / "p.json").read_text()


def test_command_lists_every_machine_with_its_source():
    text = CliRunner().invoke(command, [])
    document = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert text.exit_code == 0
    for gpu in document["gpus"]:
        assert gpu["name"] in text.stdout
        assert gpu["source"] in text.stdout
        assert 0 < gpu["reached_memory_bytes_per_second"] < gpu["memory_bytes_per_second"]
    hosts = {host["name"] for host in document["hosts"]}
    assert {gpu["default_host"] for gpu in document["gpus"]} <= hosts
    for machine in document["machines"]:
        assert load_machine(machine["name"]).reference.host.name in hosts
