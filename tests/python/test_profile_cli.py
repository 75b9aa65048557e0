"""``pshard profile`` and its subcommands, on probes that take no time; one run asks the real ones for very little."""

from __future__ import annotations

import json

import fake_probes
import gguf_cases
import pytest
from fake_probes import FakeProber, noisy
from msgspec.structs import replace
from run_cases import header
from test_engine_rows import PRODUCT, record, sql, unpacked

from pshard import _core
from pshard.cli import main
from pshard.errors import MachineError, SettingError
from pshard.machine import nvidia
from pshard.machine.machine import load_machine, stored_machine
from pshard.machine.nvidia import Device, State
from pshard.machine.profile import SCANS, read_profile, write_profile
from pshard.machine.rates import type_ids
from pshard.machine.stored import current_key, store, stored_path
from pshard.probe import profiling
from pshard.probe.probes import CpuProber, quick_tasks
from pshard.probe.profiling import import_figures, measure_machine
from pshard.probe.works import Attention, Peak, ProbeFailed, Product, Read, RecurrentScan, Start


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def probes(monkeypatch):
    """Put fake probes in the place of the real ones; call to change what they answer."""
    fake = FakeProber()

    def use(change):
        fake.change = change

    monkeypatch.setattr(profiling, "CpuProber", lambda cpus, max_bytes: fake)
    use.fake = fake
    return use


def printed(capsys, *arguments, code=0):
    assert main(["profile", *arguments]) == code
    return capsys.readouterr()


def document(capsys, *arguments, code=0):
    return json.loads(printed(capsys, *arguments, "--json", code=code).out)


def test_a_run_is_stored_and_used(probes, capsys):
    found = document(capsys)
    assert found["schema_version"] == 1
    assert found["path"] == str(stored_path(current_key()))
    assert (found["refused"], found["left"], found["interrupted"]) == ([], [], False)
    assert len(found["measured"]) == len(quick_tasks(current_key().n_threads))
    machine = load_machine()
    assert machine.profile == read_profile(found["path"])
    assert machine.warnings == ()
    assert {entry.source for entry in machine.profile.cpu.series} == {"measured"}


def test_what_is_printed(probes, capsys):
    captured = printed(capsys)
    first = captured.out.splitlines()[0]
    assert first.startswith("Measured ")
    assert first.endswith(str(stored_path(current_key())))
    assert "CPU product: GFLOP/s by rows" in captured.out
    assert "measured" in captured.out
    assert "\x1b" not in captured.err  # no bar: nobody sits at a terminal


def test_extents_exclude_each_other(probes, capsys):
    assert "--quick and --full exclude each other" in printed(capsys, "--quick", "--full", code=2).err
    assert probes.fake.asked == []


def test_extents(probes, capsys):
    quick, full = (document(capsys, extent)["measured"] for extent in ("--quick", "--full"))
    assert set(quick) < set(full)


def test_one_model_and_then_nothing_else_is_lost(probes, capsys, folder):
    document(capsys)
    found = document(capsys, "--for", "qwen3-30b-a3b:Q4_K_M")
    assert any("experts, Q4_K" in text for text in found["measured"])
    assert not any(text.startswith(("Q8_0", "experts, Q8_0", "storage")) for text in found["measured"])
    assert any("tokens of Q8_0" in text for text in found["measured"])  # what its cache may be
    kept = {entry["type"] for entry in found["profile"]["cpu"]["series"] if entry["operation"] == "mul_mat"}
    assert {"Q8_0", "F16"} <= kept
    iq2_s = 22
    keys, tensors = header(kind=iq2_s)
    path = gguf_cases.write_sparse(folder / "m.gguf", "llama", keys, tensors)
    assert main(["profile", "--for", str(path)]) == 0
    assert "IQ2_S have no native kernel here: estimated, until" in capsys.readouterr().err


def test_a_types_own_rate_is_used_and_others_stay_wider(probes, capsys):
    document(capsys)
    estimated = stored_machine().core().cpu
    document(capsys, "--for", "llama-3.1-8b:Q5_K_M")
    measured = stored_machine().core().cpu
    q5_k, q3_k = type_ids()["Q5_K"], type_ids()["Q3_K"]
    assert estimated.mul_mat[q5_k].basis == _core.Basis.estimated
    assert measured.mul_mat[q5_k].basis == _core.Basis.measured
    assert measured.mul_mat[q5_k].spread < estimated.mul_mat[q5_k].spread
    assert measured.mul_mat[q3_k].basis == _core.Basis.estimated


def test_the_disk_of_a_model_is_measured_unless_the_file_is_all_holes(probes, folder, monkeypatch):
    from pshard.catalogue import write_skeleton

    path = folder / "m.gguf"
    write_skeleton("llama-3.2-1b:Q4_0", path)
    assert profiling._stored_file(str(path)) == ""
    assert profiling._stored_file("llama-3.2-1b:Q4_0") == ""
    real = folder / "real.gguf"
    real.write_bytes(bytes(range(256)) * 64)
    assert profiling._stored_file(str(real)) == str(real)


def test_threads_and_file(probes, capsys, folder, monkeypatch):
    found = document(capsys, "--threads", "1", "-o", str(folder / "one.json"))
    assert found["profile"]["key"]["n_threads"] == 1
    assert found["path"] == str(folder / "one.json")
    assert stored_machine() is None
    assert all(work.n_threads == 1 for work, _ in probes.fake.asked)
    assert main(["profile", "--threads", "4096"]) == 2
    assert "4096 threads, but this process may use" in capsys.readouterr().err


def stop_at_attention(work, result):
    if isinstance(work, Attention):
        raise KeyboardInterrupt
    return result


# A GPU that nobody has: what its driver would tell.
PRETENDED = Device(
    name="NVIDIA GeForce RTX 3060",
    pci_bus_id="0000:01:00.0",
    total_bytes=12 << 30,
    free_bytes=11 << 30,
    compute_major=8,
    compute_minor=6,
    multiprocessors=28,
    copy_engines=2,
    memory_bus_bits=192,
    memory_clock_hertz=7_501_000_000,
)


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(nvidia, "devices", lambda: ([PRETENDED], ""))


def test_a_gpu_is_measured_with_the_cpu(probes, pretended_gpu, capsys, monkeypatch):
    opened = []

    def open_gpu(cpu, index, pci_bus_id, **limits):
        opened.append((cpu, index, pci_bus_id, limits["max_device_bytes"]))
        probes.fake.under_load = State(pcie_generation=4, pcie_lanes=16)
        return probes.fake

    monkeypatch.setattr(_core, "built_with_cuda", True)
    monkeypatch.setattr(profiling, "GpuProber", open_gpu)
    found = document(capsys, "--device", "0")
    assert opened == [(probes.fake, 0, "0000:01:00.0", 11 << 29)]
    assert {entry["source"] for entry in found["profile"]["gpu"]["series"]} == {"measured"}
    assert found["profile"]["link"]["up"]["source"] == "measured"
    assert (found["profile"]["key"]["pcie_generation"], found["profile"]["key"]["pcie_lanes"]) == (4, 16)
    assert "notes" not in found["profile"]  # nothing is noisy, refused, or stands in
    assert stored_machine().profile == read_profile(found["path"])
    assert main(["profile", "--device", "3"]) == 2
    assert "no GPU 3; found: 0: NVIDIA GeForce RTX 3060" in capsys.readouterr().err


@pytest.mark.parametrize("is_built", [False, True])
def test_a_gpu_that_cannot_be_measured_is_a_reference_and_the_reason_is_said(
    probes, pretended_gpu, capsys, monkeypatch, is_built
):
    def refuse(cpu, index, pci_bus_id, **limits):
        raise _core.GpuError("cudaSetDevice: out of memory (cudaErrorMemoryAllocation)")

    monkeypatch.setattr(_core, "built_with_cuda", is_built)
    monkeypatch.setattr(profiling, "GpuProber", refuse)
    found = document(capsys)
    reason = "cudaSetDevice: out of memory" if is_built else "this pshard was built without CUDA"
    assert found["profile"]["notes"][0].startswith(f"NVIDIA GeForce RTX 3060 and its link are not measured: {reason}")
    assert {entry["source"] for entry in found["profile"]["gpu"]["series"]} == {"reference"}
    assert {entry["source"] for entry in found["profile"]["cpu"]["series"]} == {"measured"}


def test_an_interrupt_keeps_what_was_measured_and_says_so(probes, capsys):
    probes(stop_at_attention)
    found = document(capsys, code=130)
    assert found["interrupted"]
    assert found["left"][0] == "attention, batch 1, 4096 tokens"
    machine = load_machine()
    assert {entry.source for entry in machine.profile.cpu.series} == {"measured", "reference"}
    assert any(note.startswith("Not measured (interrupted): attention") for note in machine.notes)
    captured = printed(capsys, code=130)
    assert (
        f"interrupted: {len(found['measured'])} figures were measured and are kept; the rest is as it was"
        in captured.err
    )


def test_an_interrupt_does_not_cost_what_was_known_before(probes, capsys):
    before = document(capsys, "--full")["profile"]
    probes(stop_at_attention)
    after = document(capsys, "--full", code=130)["profile"]
    assert {entry["source"] for entry in after["cpu"]["series"]} == {"measured"}
    assert [entry for entry in after["cpu"]["series"] if entry["operation"] == "attention"] == [
        entry for entry in before["cpu"]["series"] if entry["operation"] == "attention"
    ]


def test_an_interrupt_at_once_writes_nothing(probes, capsys):
    def stop(work, result):
        raise KeyboardInterrupt

    document(capsys)
    before = stored_path(current_key()).read_bytes()
    probes(stop)
    captured = printed(capsys, code=130)
    assert "interrupted before anything was measured; nothing is written" in captured.err
    assert stored_path(current_key()).read_bytes() == before


def test_failing_probes_are_said_and_a_machine_that_measures_nothing_is_an_error(probes, capsys):
    def wrong(work, result):
        if isinstance(work, Product) and work.type == "Q6_K":
            message = "product is wrong: 3.5 instead of 7"
            raise ProbeFailed(message)
        return result

    probes(wrong)
    found = document(capsys)
    assert {entry["reason"] for entry in found["refused"]} == {"product is wrong: 3.5 instead of 7"}
    assert not any(entry["type"] == "Q6_K" for entry in found["profile"]["cpu"]["series"])

    def all_wrong(work, result):
        raise ProbeFailed("the clock is too coarse")

    probes(all_wrong)
    captured = printed(capsys, code=1)
    assert "nothing could be measured: start of an operation" in captured.err
    assert captured.out == ""


def test_noise_is_said(probes, capsys):
    probes(lambda work, result: noisy(result, 0.2) if isinstance(work, Read) else result)
    captured = printed(capsys)
    assert "warning: Noisy, so their ranges are wider: memory, " in captured.err
    assert "measured, noisy" in captured.out


def test_two_runs_do_not_measure_at_once(probes, capsys):
    def second(work, result):
        if isinstance(work, Start):
            with pytest.raises(MachineError, match="another `pshard profile` is measuring this machine"):
                measure_machine(prober=FakeProber())
        return result

    probes(second)
    document(capsys)
    probes(lambda work, result: result)
    document(capsys)  # the lock is free again


def test_a_gpu_that_is_not_there_is_a_usage_error(probes, capsys):
    from pshard.machine.nvidia import devices

    if devices()[0]:
        assert main(["profile", "--device", "99"]) == 2
        assert "no GPU 99" in capsys.readouterr().err
    else:
        found = document(capsys)
        assert found["profile"]["notes"][0] == f"The CPU alone: {devices()[1]}."


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_without_a_profile_says_how_to_get_one(capsys):
    assert "measure it (`pshard profile`)" in printed(capsys, "show", code=1).err


def test_show_a_machine_with_a_gpu(capsys):
    text = printed(capsys, "show", "rtx-3060-12g").out
    for words in ("GPU product: GFLOP/s by rows", "Copies from page-locked memory, GB/s by chunk; 2 copy engines",
                  "hand-off to the GPU", "copy under the CPU", "of peak"):  # fmt: skip
        assert words in text
    found = document(capsys, "show", "rtx-3060-12g")
    assert found["profile"]["gpu"]["name"] == "GeForce RTX 3060"


def test_show_says_that_a_profile_is_stale(probes, capsys):
    document(capsys)
    profile = stored_machine().profile
    store(replace(profile, key=replace(profile.key, kernel="Linux 2.6.0")))
    assert "warning: the profile of this machine is stale (kernel Linux 2.6.0 is now " in printed(capsys, "show").err


def test_show_says_how_far_the_pace_moved(probes, capsys):
    def slower_and_slower(work, result):
        share = 1.0 + 0.01 * (probes.fake.clock.now - 100.0)
        return fake_probes.timed(work, share * result.sample.median_seconds, result.n_bytes, result.n_flop)

    probes(slower_and_slower)
    pace = document(capsys)["profile"]["pace"]
    assert pace["moved"] > 0.1
    assert pace["anchors"][0]["what"].startswith("memory, ")
    assert "warning: The machine's own pace moved (memory, " in printed(capsys).err
    shown = printed(capsys, "show").out
    assert "CPU's pace" in shown
    assert "Moved by " in shown
    assert any(line.startswith("note  The machine's own pace moved") for line in shown.splitlines())


def test_a_plan_from_a_stale_profile_says_so_until_the_machine_is_measured_again(probes, capsys):
    document(capsys)
    asked = ["plan", "llama-3.2-1b:Q4_0", "--vram", "0"]
    assert main(asked) == 0
    assert " is stale (" not in capsys.readouterr().err
    profile = stored_machine().profile
    store(replace(profile, key=replace(profile.key, kernel="Linux 2.6.0", ram_bytes=profile.key.ram_bytes // 2)))
    assert main(asked) == 0
    captured = capsys.readouterr()
    assert "warning: the profile of this machine is stale (" in captured.err
    for words in ("kernel Linux 2.6.0 is now ", "RAM", "; measure again: `pshard profile`."):
        assert words in captured.err
    assert main([*asked, "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("the profile of this machine is stale (")
    document(capsys)
    assert main(asked) == 0
    assert " is stale (" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots(probes, capsys, folder, ending):
    document(capsys)
    for name in ([], ["rtx-3060-12g"]):
        path = folder / f"plot.{ending}"
        assert document(capsys, "show", *name, "--plot", str(path))["plot"] == str(path)
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
        if ending == "svg":
            text = data.decode()
            assert "ridge: " in text
            assert ("peak of the link" in text) == bool(name)
            assert ("Host memory, sequential reads" in text) != bool(name)
        path.unlink()


def test_a_plot_needs_a_known_ending_and_matplotlib(capsys, folder, monkeypatch):
    import sys

    assert "a plot is a .png or .svg file" in printed(capsys, "show", "rtx-3060-12g", "--plot", "p.jpg", code=2).err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = printed(capsys, "show", "rtx-3060-12g", "--plot", "p.png", code=1).err
    assert "pip install 'pshard[plot]'" in error


# --- import and export ------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(folder):
    path = folder / "rows.sql"
    path.write_text(sql([record("MUL_MAT", PRODUCT.format("q4_0", 1), 5e-3)]))
    return path


def test_engine_rows_go_into_the_stored_profile(probes, capsys, rows):
    document(capsys)
    n_threads = current_key().n_threads
    found = document(capsys, "import", str(rows), "--threads", str(n_threads))
    assert found["path"] == str(stored_path(current_key()))
    assert found["changes"][0].startswith("Measured by llama.cpp on CPU")
    assert found["changes"][1] == f"They replace mul_mat Q4_0 at {n_threads} thread{'s' * (n_threads > 1)} (measured)."
    machine = load_machine()
    assert {entry.source for entry in machine.profile.cpu.series} == {"measured", "imported"}
    assert set(found["changes"]) <= set(machine.notes)


def test_engine_rows_without_a_profile_go_into_references(capsys, rows, folder):
    found = document(capsys, "import", str(rows), "--threads", "1", "-o", str(folder / "out.json"))
    assert found["changes"][0].startswith("This machine has no profile yet")
    profile = read_profile(folder / "out.json")
    assert {entry.source for entry in profile.cpu.series} == {"imported", "reference"}


def test_a_named_profile_is_changed_in_place(capsys, rows, folder):
    path = write_profile(load_machine("rtx-3060-12g").profile, folder / "p.json")
    assert document(capsys, "import", str(rows), "--profile", str(path), "--threads", "8")["path"] == str(path)
    assert any(entry.source == "imported" for entry in read_profile(path).cpu.series)


def test_the_engines_own_csv_is_refused_and_changes_nothing(probes, capsys, folder):
    document(capsys)
    before = stored_path(current_key()).read_bytes()
    path = unpacked("test_backend_ops.csv", folder)
    captured = printed(capsys, "import", str(path), code=1)
    assert "test_backend_ops.csv:2: no time_us; llama.cpp's own CSV leaves the times out, so run " in captured.err
    assert captured.out == ""
    assert stored_path(current_key()).read_bytes() == before


def test_recorded_attention_is_imported(probes, capsys, folder):
    document(capsys)
    n_threads = current_key().n_threads
    path = unpacked("test_backend_ops_attention.sql", folder)
    found = document(capsys, "import", str(path), "--threads", str(n_threads))
    assert found["changes"][0].endswith(": attention F16, attention Q4_0, attention Q8_0.")
    attention = [entry for entry in found["profile"]["cpu"]["series"] if entry["operation"] == "attention"]
    assert {entry["source"] for entry in attention} == {"imported"}
    assert main(["plan", "llama-3.2-1b:Q4_0", "--vram", "0"]) == 0


def test_an_empty_file_is_said_to_be_empty(folder, capsys):
    (folder / "rows.sql").write_bytes(b"")
    assert "rows.sql: empty, so what was to write it failed" in printed(capsys, "import", "rows.sql", code=1).err


def test_files_that_do_not_go_together(folder, rows):
    with pytest.raises(SettingError, match="give one output of"):
        import_figures([rows, rows, rows])


def test_text_profiles_out_and_in(capsys, folder):
    paths = document(capsys, "export", str(folder / "text"), "rtx-3060-12g")["paths"]
    found = document(capsys, "import", *paths, "-o", str(folder / "back.json"))
    before, after = load_machine("rtx-3060-12g").profile, read_profile(found["path"])
    assert after.gpu.memory[0].bytes_per_second == pytest.approx(before.gpu.memory[0].bytes_per_second, rel=1e-3)
    assert "imported" in {entry.source for entry in after.gpu.series}
    assert after.key.n_threads == 8
    assert document(capsys, "import", *reversed(paths), "-o", str(folder / "back.json"))["profile"] == found["profile"]


def test_the_memory_of_a_gpu_can_be_given(capsys, folder):
    paths = document(capsys, "export", str(folder / "text"), "rtx-3060-12g")["paths"]
    found = document(capsys, "import", *paths, "--vram", "8G", "-o", str(folder / "back.json"))
    assert found["profile"]["capacities"]["vram_bytes"] == 8 << 30


def test_a_machine_without_a_gpu_has_no_text_profiles(probes, capsys, folder):
    from pshard.machine.nvidia import devices

    if devices()[0]:
        pytest.skip("a GPU is here")
    document(capsys)
    assert "has no GPU; the pull request's files describe one" in printed(capsys, "export", str(folder), code=1).err


# --- the real probes --------------------------------------------------------------------------------------------------


def test_the_real_probes_answer_in_the_same_form():
    from pshard.machine.cpus import physical_cpus

    works = [Start(1), Read(1), Peak(1), Product(type="Q4_0", n_rows=1024, n_columns=1024, batch=1, n_threads=1),
             Product(type="Q4_K", layout="interleaved", n_rows=1024, n_columns=1024, batch=4, n_threads=1),
             Product(type="Q8_0", n_rows=1024, n_columns=1024, batch=2, n_threads=1, n_used=2),
             Attention(n_heads=4, n_kv_heads=2, head_size=64, depth=64, batch=1, n_threads=1),
             *(RecurrentScan(kind=kind, n_heads=32, n_rows=16, n_columns=32, batch=8, n_threads=1) for kind in SCANS),
    ]  # fmt: skip
    prober = CpuProber(physical_cpus()[:1], max_bytes=256 << 20)
    for work in works:
        found = prober.measure(work, 0.01)
        assert found.work == work
        assert 0.0 < found.sample.minimum_seconds <= found.sample.median_seconds
        assert found.sample.count >= 1
        n_bytes, n_flop = fake_probes.amounts(work)
        if isinstance(work, Product | Attention | RecurrentScan):
            assert found.n_flop == n_flop
        if isinstance(work, Product):
            assert found.n_bytes >= n_bytes
    with pytest.raises(ProbeFailed):
        prober.measure(Product(type="Q4_0", n_rows=1024, n_columns=1024, batch=1, n_threads=64), 0.01)
