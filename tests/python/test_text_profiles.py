"""The pull request's two profile files: read, written, made into a machine, and the machine written as them."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec
import pull_request
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pshard import _core, load_machine
from pshard.errors import MachineError, SettingError
from pshard.machine.imported import write_text_profiles
from pshard.machine.machine import Machine, machine_from_text_profiles
from pshard.machine.profile import Profile, Series
from pshard.machine.stored import current_key, store
from pshard.machine.text_profiles import (
    CPU_FILE,
    CPU_VARIABLE,
    GPU_FILE,
    GPU_VARIABLE,
    cpu_text,
    find_text_profiles,
    gpu_text,
    read_cpu_profile,
    read_gpu_profile,
)

GIB = 1 << 30

SCHEMA_2 = """\
# Concurrent Profiling (threads=8, batch_sizes=[1,64,512])
#   Machine: gpu="NVIDIA GeForce RTX 5070 Ti" vram_mib=16302 cpu="AMD Ryzen 7 7800X3D" threads=8 schema=2
#   PCIe_Sliced: 0.5MB=23.3 2MB=29.6 8MB=30.0 32MB=29.4 GB/s
#   PCIe_Sliced_Kernel: 0.5MB=.. 2MB=.. GB/s
#   PCIe_Staged: 16.1 GB/s
#   Engine_Switch_us: 24.0
#   Copy_Setup_us: ..
#   Host_Pin_Ceiling: 66.6 GB
# Measured Bandwidths Per Thread Count:
#   Threads=8: DRAM_BW=45.7 GB/s, PCIe_Standalone=45.0 GB/s, PCIe_Concurrent=29.5 GB/s (CPU_Eff=72.8%)
# op_name quant threads AI(FLOP/byte) ...
MUL_MAT q4_0 8 3.5510 38.20 135.65 11.2031 101.20 30.21 4096 4096 1 0 0 0 0 0
MUL_MAT q4_0 8 0.0000 0.00 0.00 0.0000 0.00 0.00 128256 4096 1 0 0 0 0 0
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name in (CPU_FILE, GPU_FILE):
        (tmp_path / name).write_bytes(gzip.decompress(pull_request.profile_path(name).read_bytes()))
    return tmp_path / CPU_FILE, tmp_path / GPU_FILE


def machine(files: tuple[Path, Path]) -> Machine:
    return machine_from_text_profiles(*files, vram_bytes=16 * GIB, ram_bytes=64 * GIB)


def series(profile: Profile, operation: str, kind: str, *, on_gpu: bool) -> Series:
    processor = profile.gpu if on_gpu else profile.cpu
    assert processor is not None
    return next(entry for entry in processor.series if (entry.operation, entry.type) == (operation, kind))


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_files_are_rewritten_byte_for_byte(files: tuple[Path, Path]) -> None:
    assert cpu_text(read_cpu_profile(files[0])) == files[0].read_text()
    assert gpu_text(read_gpu_profile(files[1])) == files[1].read_text()


def test_rates_are_those_of_the_rows(files: tuple[Path, Path]) -> None:
    profile = machine(files).profile
    gpu = profile.gpu
    assert gpu is not None
    assert gpu.memory[0].bytes_per_second == 812.4e9
    assert profile.host_bytes_per_second.value == 45.7e9
    assert [entry.n_threads for entry in profile.cpu.memory] == [8]
    # 8192 x 8192 Q4_0 at 8192 rows: 69.2 TFLOP/s in the file, in which one start of an operation is nothing.
    products = series(profile, "mul_mat", "Q4_0", on_gpu=True)
    row = next(r for r in read_gpu_profile(files[1]).rows if (r.type, r.n, r.batch) == ("q4_0", 8192, 8192))
    assert products.flop_per_second[products.batch.index(8192.0)] == pytest.approx(row.gflops * 1e9, rel=0.01)
    # One row reads at no more than the memory gives: 4.5 bits per weight.
    assert products.flop_per_second[0] * 4.5 / 16 <= 812.4e9 * 1.01
    # Experts: 64 tokens x 8 of 128 are 4 rows each.
    assert 4.0 in series(profile, "mul_mat_id", "Q4_0", on_gpu=False).batch
    assert {entry.source for entry in (*gpu.series, *profile.cpu.series)} == {"imported", "estimated"}
    assert gpu.memory[0].op_seconds == pytest.approx(2.5e-6, rel=0.2)


def test_contention_leaves_out_the_memory_that_both_read(files: tuple[Path, Path]) -> None:
    """CPU_Eff is 72.8 %, most of it DRAM, which is priced apart; products that hardly read keep 94 %."""
    link = machine(files).profile.link
    assert link is not None
    assert link.cpu_rate_under_copy.value == pytest.approx(0.94, abs=0.01)
    assert link.copy_rate_under_cpu.value == pytest.approx(0.846, abs=0.01)
    assert link.up.bytes_per_second == (45.0e9,)


def test_the_machine_prices_every_weight_type(files: tuple[Path, Path]) -> None:
    core = machine(files).core()
    assert len(core.gpu.mul_mat) == len(load_machine(gpu="rtx-3060-12g").core().gpu.mul_mat)


def test_rows_of_zeros_are_left_out_and_said(files: tuple[Path, Path]) -> None:
    row = "MUL_MAT q4_0 3.5510 0.00 0.00 0.0000 4096 4096 1 0 0 0 0 0\n"
    files[1].write_text(files[1].read_text() + row)
    found = read_gpu_profile(files[1])
    assert len(found.rows) == 896
    assert found.notes == ("gpu_profile.txt: 1 rows of zeros, for shapes that were skipped, are left out.",)
    assert any("rows of zeros" in note for note in machine(files).notes)


def test_a_thread_count_without_rows_takes_the_nearest(files: tuple[Path, Path]) -> None:
    found = machine(files)
    assert found.threads_priced(6) == 8
    assert "no CPU figures for 6 threads; those for 8 are used" in found.notes_for(6)[-1]
    extra = "#   Threads=4: DRAM_BW=30.0 GB/s\n# op_name"
    edited(files[0], "# op_name", extra)
    found = machine(files)
    assert found.threads_priced(4) == 8
    assert any("no rows for 4 threads" in note for note in found.notes)


def test_schema_2_headers(tmp_path: Path, files: tuple[Path, Path]) -> None:
    path = tmp_path / "cpu2.txt"
    path.write_text(SCHEMA_2)
    assert read_cpu_profile(path).machine["gpu"] == "NVIDIA GeForce RTX 5070 Ti"
    found = machine_from_text_profiles(path, files[1], ram_bytes=128 * GIB)
    assert found.vram_bytes == 16302 << 20
    profile = found.profile
    assert profile.gpu is not None
    assert profile.link is not None
    assert profile.gpu.name == "NVIDIA GeForce RTX 5070 Ti"
    assert profile.cpu.name == "AMD Ryzen 7 7800X3D"
    assert profile.link.up.chunk_bytes == (2.0**19, 2.0**21, 2.0**23, 2.0**25)
    assert profile.link.up.bytes_per_second == (23.3e9, 29.6e9, 30.0e9, 29.4e9)
    assert profile.link.handoff_to_gpu_seconds.value == pytest.approx(24e-6)
    assert profile.link.handoff_to_gpu_seconds.source == "imported"
    assert profile.link.pageable_bytes_per_second.value == pytest.approx(16.1e9)
    assert profile.capacities.page_lock_bytes == 66_600_000_000
    assert any("the set-up of a copy" in note for note in found.notes)  # its header says ".."


@pytest.mark.parametrize("name", ["rtx-3060-12g", "rtx-4090-24g", "rtx-5070ti-16g", "h100-sxm-80g"])
def test_a_profile_written_and_read_again_is_the_same(tmp_path: Path, name: str) -> None:
    before = load_machine(gpu=name)
    paths = write_text_profiles(before, tmp_path)
    after = machine_from_text_profiles(*paths, ram_bytes=before.ram_bytes)
    old, new = before.profile, after.profile
    assert old.gpu and old.link and new.gpu and new.link
    assert new.gpu.name == old.gpu.name
    assert after.vram_bytes == before.vram_bytes
    for processor, other in ((old.gpu, new.gpu), (old.cpu, new.cpu)):
        # Bandwidths have one decimal in GB/s, the start of an operation comes back out of %.2f GFLOP/s.
        assert other.memory[0].bytes_per_second == pytest.approx(processor.memory[0].bytes_per_second, abs=0.06e9)
        assert other.memory[0].op_seconds == pytest.approx(processor.memory[0].op_seconds, rel=0.02)
        plain = [entry for entry in processor.series if entry.layout == "plain"]
        assert len(plain) == len(other.series)
        for entry in plain:
            again = next(s for s in other.series if (s.operation, s.type) == (entry.operation, entry.type))
            assert again.batch == entry.batch
            assert again.flop_per_second == pytest.approx(entry.flop_per_second, rel=0.01)
    assert new.link.up.chunk_bytes == old.link.up.chunk_bytes
    assert new.link.up.bytes_per_second == pytest.approx(old.link.up.bytes_per_second, rel=1e-3)
    assert new.link.up.latency_seconds == pytest.approx(old.link.up.latency_seconds, rel=1e-3)
    assert new.link.handoff_to_gpu_seconds.value == pytest.approx(old.link.handoff_to_gpu_seconds.value, rel=1e-3)
    assert new.link.cpu_rate_under_copy.value == pytest.approx(old.link.cpu_rate_under_copy.value, rel=0.01)
    assert new.link.copy_rate_under_cpu.value == pytest.approx(old.link.copy_rate_under_cpu.value, rel=0.01)
    assert new.capacities.page_lock_bytes == pytest.approx(old.capacities.page_lock_bytes, rel=1e-4)


def test_every_written_line_is_one_that_the_pull_request_reads(tmp_path: Path) -> None:
    cpu, gpu = write_text_profiles(load_machine(gpu="rtx-4070ti-12g"), tmp_path)
    for path, n_fields in ((cpu, 17), (gpu, 14)):
        lines = path.read_text().splitlines()
        assert max(map(len, lines)) <= 511
        rows = [line.split() for line in lines if not line.startswith("#")]
        assert {len(row) for row in rows} == {n_fields}
        assert {row[1] for row in rows} >= {"f16", "q4_0", "q8_0", "q4_K", "mxfp4"}


def test_no_gpu_has_no_such_files(tmp_path: Path) -> None:
    machine = load_machine(gpu="rtx-4070-12g")
    profile = msgspec.structs.replace(machine.profile, gpu=None, link=None)
    with pytest.raises(MachineError, match="has no GPU"):
        write_text_profiles(Machine(machine.name, profile), tmp_path)


def test_files_are_found_by_variable_or_in_the_folder(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CPU_VARIABLE, raising=False)
    monkeypatch.delenv(GPU_VARIABLE, raising=False)
    assert find_text_profiles(files[0].parent) == files
    assert find_text_profiles(tmp_path / "elsewhere") == (None, None)
    monkeypatch.setenv(GPU_VARIABLE, str(files[1].rename(tmp_path / "other.txt")))
    assert find_text_profiles(files[0].parent) == (files[0], tmp_path / "other.txt")
    monkeypatch.setenv(CPU_VARIABLE, str(tmp_path / "nowhere.txt"))
    with pytest.raises(MachineError, match="PSHARD_CPU_PROFILE"):
        find_text_profiles(files[0].parent)


@pytest.fixture
def here(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two files in the working directory, nothing else stored or named."""
    monkeypatch.delenv(CPU_VARIABLE, raising=False)
    monkeypatch.delenv(GPU_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(files[0].parent)
    return files[0].parent


def test_files_that_are_here_are_this_machine(here: Path) -> None:
    found = load_machine(vram_bytes=6 * GIB)
    assert found.profile.cpu.memory[0].source == "imported"
    assert found.notes[-1] == f"Profiles of the planner pull request: {CPU_FILE}, {GPU_FILE}."
    assert load_machine(gpu="rtx-3060-12g").reference is not None  # who names a machine gets it
    assert load_machine(vram_bytes=6 * GIB, ram="32G").reference is not None


@pytest.mark.skipif(bool(_core.query_gpus().devices), reason="a GPU tells its own VRAM")
def test_vram_that_nothing_tells_is_what_is_planned_for(here: Path) -> None:
    found = load_machine(vram_bytes=6 * GIB)
    assert found.vram_bytes == 6 * GIB
    assert any("taken to be what is planned for: 6.0 GiB" in note for note in found.notes)
    assert not load_machine(vram_bytes=0).has_gpu
    with pytest.raises(SettingError, match="how much VRAM"):
        load_machine()


def test_files_that_are_here_come_before_the_stored_profile(here: Path) -> None:
    stored = load_machine(gpu="rtx-4070-12g").profile
    path = store(msgspec.structs.replace(stored, key=current_key()))
    assert load_machine(vram_bytes=6 * GIB).name != stored.name
    (here / GPU_FILE).unlink()
    found = load_machine(vram_bytes=6 * GIB)
    assert found.name == stored.name
    assert f"{CPU_FILE} is not used: {GPU_FILE} is missing" in found.notes[0]
    path.unlink()
    assert f"{CPU_FILE} is not used: {GPU_FILE} is missing" in load_machine(vram_bytes=6 * GIB).notes[0]


def test_types_that_were_not_measured_are_estimates(files: tuple[Path, Path]) -> None:
    found = machine(files)
    series = {(entry.operation, entry.type): entry for entry in found.profile.cpu.series}
    assert series["mul_mat", "Q4_0"].source == "imported"
    assert series["mul_mat", "Q4_K"].source == "estimated"
    assert series["mul_mat", "Q4_K"].spread > series["mul_mat", "Q4_0"].spread
    assert any("Q4_K" in note and "were not measured" in note for note in found.notes)


def test_capacities_that_nothing_says_are_asked_for(files: tuple[Path, Path]) -> None:
    with pytest.raises(SettingError, match="how much VRAM"):
        machine_from_text_profiles(*files)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Threads=8: DRAM_BW=45.7", "Threads=8: DRAM_BW=0.0", "DRAM_BW=0.0"),
        ("#   Threads=8:", "#   Thread=8:", "no line '#   Threads=N"),
        ("MUL_MAT f16 8 0.9961", "MUL_MAT f16 8 x", r":5: could not convert"),
        ("MUL_MAT f16 8 0.9961", "MUL_MAT f16 8 nan", r":5: a negative or infinite"),
        ("MUL_MAT f16 8 0.9961", "MUL_MAT f16 8 1 2 3 0.9961", r":5: 20 fields"),
        (" 1024 1024 1 0 0 0 0 0\n", " 1024 1024 -1 0 0 0 0 0\n", r":5: a negative"),
        ("# op_name", "# op_name" + "x" * 600, r"characters, at most 511"),
        ("PCIe_Standalone=45.0", "PCIe_Standalone=0.0", "no PCIe figures"),
    ],
)
def test_broken_cpu_files_are_refused(files: tuple[Path, Path], old: str, new: str, message: str) -> None:
    edited(files[0], old, new)
    with pytest.raises(MachineError, match=message):
        machine(files)


def test_broken_gpu_files_are_refused(files: tuple[Path, Path]) -> None:
    edited(files[1], "GPU_Memory_BW=812.4", "GPU_Memory_BW=0.0")
    with pytest.raises(MachineError, match="no line '# GPU Profiling"):
        read_gpu_profile(files[1])
    with pytest.raises(MachineError, match="cannot be read"):
        read_gpu_profile(files[1].with_name("none"))


@given(st.binary(max_size=400))
def test_bytes_never_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    head = SCHEMA_2.encode()
    for text in (data, head + data, head[: len(data)] + data):
        path.write_bytes(text)
        for read in (read_cpu_profile, read_gpu_profile):
            try:
                read(path)
            except MachineError as error:
                assert str(path) in str(error)
