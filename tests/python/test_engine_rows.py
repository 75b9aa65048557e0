"""llama.cpp's own rates, from lines as its tool prints them (and, below, as it printed them) into a profile."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_measure import measured

from pshard.errors import MachineError
from pshard.machine.machine import load_machine
from pshard.machine.profile import encode_profile, parse_profile
from pshard.machine.profile_checks import problems
from pshard.probe.engine_rows import EngineRows, is_engine_file, read_engine_rows, with_engine_rows

DATA = Path(__file__).parents[1] / "data"
FIELDS = (
    "test_time", "build_commit", "backend_name", "op_name", "op_params", "test_mode", "supported", "passed",
    "error_message", "time_us", "flops", "bandwidth_gb_s", "memory_kb", "n_runs", "device_description",
    "backend_reg_name",
)  # fmt: skip
PRODUCT = "type_a={},type_b=f32,m=4096,n={},k=14336,bs=[1,1],nr=[1,1],per=[0,1,2,3],k_v=0,o=1"
EXPERTS = "type_a=q4_K,type_b=f32,n_mats=128,n_used=8,b=0,m=768,n={},k=2048,o=1"
ATTENTION = (
    "hsk=64,hsv=64,nh=8,nr23=[{},1],kv=7680,nb={},mask=1,sinks=0,max_bias=0.000000,logit_softcap=0.000000,prec=f32,"
    "type_K=f16,type_V=f16,permute=[0,1,2,3]"
)
WEIGHTS = 4096 * 14336


def record(op: str, params: str, seconds: float, backend: str = "CPU", **more: str) -> dict[str, str]:
    known = dict.fromkeys(FIELDS, "")
    known |= {"backend_name": backend, "op_name": op, "op_params": params, "test_mode": "perf", "supported": "1"}
    return known | {"passed": "1", "time_us": f"{seconds * 1e6:.6f}"} | more


def sql(records: list[dict[str, str]]) -> str:
    lines = ["CREATE TABLE IF NOT EXISTS test_backend_ops (", "  test_time TEXT,", ");", ""]
    for entry in records:
        values = ", ".join(f"'{value}'" for value in entry.values())
        lines.append(f"INSERT INTO test_backend_ops ({', '.join(entry)}) VALUES ({values});")
    return "\n".join(lines) + "\n"


def table(records: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


@pytest.fixture
def read(tmp_path):
    def read(text: str) -> EngineRows:
        path = tmp_path / "rows"
        path.write_text(text)
        return read_engine_rows(path)

    return read


RECORDS = [
    record("MUL_MAT", PRODUCT.format("q4_0", 1), 4e-3),
    record("MUL_MAT", PRODUCT.format("q4_0", 512), 0.5),
    record("MUL_MAT_ID", EXPERTS.format(1), 2e-3),
    record("MUL_MAT_ID", EXPERTS.format(64), 30e-3),
    record("FLASH_ATTN_EXT", ATTENTION.format(8, 1), 1e-3),
    record("FLASH_ATTN_EXT", ATTENTION.format(1, 1), 9e-3),
]


@pytest.mark.parametrize("form", [sql, table])
def test_rows_by_hand(form, read):
    found = read(form(RECORDS))
    assert found.n_other == 0
    one, many, expert, experts, grouped, _ = found.rows
    assert (one.operation, one.type, one.batch, one.seconds) == ("mul_mat", "Q4_0", 1.0, pytest.approx(4e-3))
    assert one.flop == 2 * WEIGHTS
    assert one.weight_bytes == WEIGHTS * 18 / 32
    assert (many.batch, many.flop) == (512.0, 2 * WEIGHTS * 512)
    assert (expert.type, expert.batch, expert.flop) == ("Q4_K", 1.0, 2 * 768 * 2048 * 8)
    in_use = 128 * (1 - (120 / 128) ** 64)
    assert experts.batch == pytest.approx(64 * 8 / in_use)
    assert experts.weight_bytes == pytest.approx(in_use * 768 * 2048 * 144 / 256)
    assert (grouped.operation, grouped.type, grouped.batch, grouped.depth) == ("attention", "F16", 1.0, 7680)
    assert grouped.flop == 4 * 64 * 64 * 7680


@pytest.mark.parametrize(
    "other",
    [
        record("FLASH_ATTN_EXT", ATTENTION.format(1, 1).replace("type_V=f16", "type_V=q8_0"), 1e-3),
        record("RMS_NORM", "type=f32,ne=[64,5,4,3],v=0,eps=0.000001", 1e-6),
        record("MUL_MAT", PRODUCT.format("q4_0", 1).replace("bs=[1,1]", "bs=[8,1]"), 1e-3),
        record("MUL_MAT", PRODUCT.format("q4_0", 1).replace("o=1", "o=2"), 1e-3),
        record("MUL_MAT", PRODUCT.format("q4_0", 1).replace("type_b=f32", "type_b=f16"), 1e-3),
        record("MUL_MAT", PRODUCT.format("q9_9", 1), 1e-3),
        record("FLASH_ATTN_EXT", ATTENTION.format(8, 1) + ",kv_view=1,v_is_view_of_k=0,n_kv_max=512", 1e-3),
        record("FLASH_ATTN_EXT", ATTENTION.format(8, 1).replace("[8,1]", "[8,4]"), 1e-3),
    ],
)
def test_what_no_profile_holds_is_counted(other, read):
    assert read(sql([*RECORDS, other])).n_other == 1


def test_unsupported_rows_and_other_modes_are_no_rows(read):
    extra = [
        record("MUL_MAT", PRODUCT.format("q4_0", 1), 0.0, supported="0"),
        record("MUL_MAT", "", 0.0, test_mode="test"),
    ]
    found = read(sql([*RECORDS, *extra]))
    assert (len(found.rows), found.n_other) == (len(RECORDS), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither SQL nor CSV of test-backend-ops"),
        ('"op_name","op_params","supported","error_message","test_mode","backend_reg_name","backend_name",\n'
         '"MUL_MAT","type_a=q4_0","1","","perf","","CPU",\n', "no time_us; llama.cpp's own CSV leaves the times out"),
        (sql([record("ADD", "type=f32", 1e-6)]), "no product or attention that a profile can use among 1 rows"),
        (sql([record("MUL_MAT", "type_a=q4_0,type_b=f32,m=4096", 1e-3)]), "MUL_MAT cannot be read"),
        (sql([record("MUL_MAT", PRODUCT.format("q4_0", "x"), 1e-3)]), "MUL_MAT cannot be read"),
        (sql([record("MUL_MAT_ID", EXPERTS.format(0), 1e-3)]), "MUL_MAT_ID cannot be read"),
        (sql([record("MUL_MAT", PRODUCT.format("q4_0", 1), 0.0)]), "time_us = 0.000000"),
        (sql([record("MUL_MAT", PRODUCT.format("q4_0", 1), 1.0, time_us="nan")]), "time_us = nan"),
        (sql(RECORDS).replace("'perf', ", ""), "15 values for 16 columns"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(text, message, read):
    with pytest.raises(MachineError) as error:
        read(text)
    assert message in str(error.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_way(data):
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(b"op_params\n" + data)
        with pytest.raises(MachineError):
            read_engine_rows(file.name)


def test_files_are_told_apart(tmp_path):
    for text, expected in ((sql(RECORDS), True), (table(RECORDS), True), ("# Concurrent Profiling (threads=8)", False)):
        path = tmp_path / "file"
        path.write_text(text)
        assert is_engine_file(path) is expected
    assert not is_engine_file(tmp_path / "absent")


# --- into a profile ---------------------------------------------------------------------------------------------------


def series_of(processor, operation, kind, n_threads):
    (found,) = [
        s
        for s in processor.series
        if (s.operation, s.type, s.layout, s.n_threads) == (operation, kind, "plain", n_threads)
    ]
    return found


def test_engine_rows_replace_native_ones(read):
    profile = measured()  # 20 GB/s, 5 us to start an operation
    changed, sentences = with_engine_rows(profile, read(sql(RECORDS)), 4)
    found = series_of(changed.cpu, "mul_mat", "Q4_0", 4)
    assert (found.source, found.batch) == ("imported", (1, 512))
    assert found.flop_per_second == pytest.approx((2 * WEIGHTS / (4e-3 - 5e-6), 2 * WEIGHTS * 512 / (0.5 - 5e-6)))
    assert series_of(changed.cpu, "mul_mat", "Q8_0", 4) == series_of(profile.cpu, "mul_mat", "Q8_0", 4)
    attention = series_of(changed.cpu, "attention", "F16", 4)
    assert attention.flop_per_second[0] == pytest.approx(4 * 64 * 64 * 7680 / (1e-3 - 5e-6))  # the better grouping
    assert sentences[0] == "Measured by llama.cpp on CPU at 4 threads: mul_mat Q4_0, mul_mat_id Q4_K, attention F16."
    assert sentences[1].startswith("They replace mul_mat Q4_0 at 4 threads (measured); ")
    assert list(problems(changed)) == []
    assert parse_profile(encode_profile(changed)) == changed
    layouts = {s.layout: s.source for s in changed.cpu.series if (s.operation, s.type) == ("mul_mat", "Q4_0")}
    assert layouts == {"plain": "imported", "interleaved": "measured"}


def test_points_outside_of_the_engines_batches_stay(read):
    profile = measured()
    own = series_of(profile.cpu, "mul_mat", "Q4_0", 4)
    changed, _ = with_engine_rows(profile, read(sql([record("MUL_MAT", PRODUCT.format("q4_0", 64), 0.2)])), 4)
    found = series_of(changed.cpu, "mul_mat", "Q4_0", 4)
    assert found.batch == (1, 4, 16, 64, 512)
    assert found.flop_per_second[:3] == own.flop_per_second[:3]
    assert found.flop_per_second[3] == pytest.approx(2 * WEIGHTS * 64 / (0.2 - 5e-6))


def test_weights_are_not_read_faster_than_memory(read):
    rows = read(sql([record("MUL_MAT", PRODUCT.format("q4_0", 1), 1e-3)]))  # 33 MB in 1 ms, of a memory with 20 GB/s
    changed, sentences = with_engine_rows(measured(), rows, 4)
    found = series_of(changed.cpu, "mul_mat", "Q4_0", 4)
    assert found.flop_per_second[0] == pytest.approx(2 * 20e9 * 32 / 18)
    assert any("from a cache: held to 20.0 GB/s (Q4_0 batch 1)" in sentence for sentence in sentences)


def test_a_type_that_nothing_measured_is_added(read):
    changed, sentences = with_engine_rows(
        measured(), read(sql([record("MUL_MAT", PRODUCT.format("iq3_s", 1), 4e-3)])), 4
    )
    assert series_of(changed.cpu, "mul_mat", "IQ3_S", 4).source == "imported"
    assert not any("replace" in sentence for sentence in sentences)


def test_thread_counts_are_those_of_the_profile(read):
    profile, rows = measured(), read(sql(RECORDS))
    changed, _ = with_engine_rows(profile, rows, 2)
    assert series_of(changed.cpu, "mul_mat", "Q4_0", 2).source == "imported"
    assert series_of(changed.cpu, "mul_mat", "Q4_0", 4).source == "measured"
    with pytest.raises(MachineError, match=r"no memory figures for 16 threads, only for 1, 2, 4; say .* \(--threads\)"):
        with_engine_rows(profile, rows, 16)


def test_gpu_rows_go_to_the_gpu(read):
    rows = read(sql([*RECORDS, record("MUL_MAT", PRODUCT.format("q4_0", 1), 2e-4, backend="CUDA0"),
                     record("MUL_MAT", PRODUCT.format("q4_0", 1), 2e-4, backend="Vulkan0")]))  # fmt: skip
    profile = load_machine("rtx-3060-12g").profile
    changed, sentences = with_engine_rows(profile, rows, 8)
    assert series_of(changed.gpu, "mul_mat", "Q4_0", None).source == "imported"
    assert series_of(changed.gpu, "mul_mat", "Q8_0", None).source == "reference"
    assert series_of(changed.cpu, "mul_mat", "Q4_0", 8).source == "imported"
    assert "Rows of Vulkan0 are left out." in sentences
    assert list(problems(changed)) == []
    cpu_only = replace(profile, gpu=None, link=None)
    gpu_rows = EngineRows(rows.path, tuple(row for row in rows.rows if row.backend != "CPU"), 0)
    with pytest.raises(MachineError, match="rows of CUDA0, Vulkan0; the profile is of a CPU"):
        with_engine_rows(cpu_only, gpu_rows, 8)


# --- as the tool printed it (llama.cpp 0c1e570, CPU) ------------------------------------------------------------------


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return path


@pytest.fixture
def recorded(tmp_path):
    return unpacked("test_backend_ops.sql", tmp_path)


@pytest.mark.parametrize("name", ["test_backend_ops.sql", "test_backend_ops_attention.sql"])
def test_recorded_rows_have_the_rates_that_the_tool_states(name, tmp_path):
    path, stated = unpacked(name, tmp_path), []
    for line in path.read_text().splitlines():
        if "FLASH_ATTN" in line or "MUL_MAT" in line:
            values = line.partition(" VALUES ('")[2].split("', '")
            stated.append(float(values[FIELDS.index("flops")]))
    found = read_engine_rows(path)
    assert [row.flop / row.seconds for row in found.rows] == pytest.approx(stated, rel=1e-6)
    assert {row.backend for row in found.rows} == {"CPU"}


def test_recorded_rows_are_of_every_kind(recorded):
    found = read_engine_rows(recorded)
    assert {row.operation for row in found.rows} == {"mul_mat", "mul_mat_id", "attention"}
    assert {row.type for row in found.rows} == {"Q4_0", "Q4_K", "Q5_K", "F16", "Q8_0"}
    assert found.n_other == 2


def test_recorded_attention_goes_into_a_profile_by_type_and_depth(tmp_path):
    found = read_engine_rows(unpacked("test_backend_ops_attention.sql", tmp_path))
    changed, sentences = with_engine_rows(measured(), found, 4)
    attention = {
        (s.type, s.depth): s.batch for s in changed.cpu.series if s.operation == "attention" and s.n_threads == 4
    }
    assert attention == {
        ("F16", 7680): (1, 4, 32, 64, 512),  # the tool has 1 and 4, the rest is the profile's own
        ("Q4_0", 7680): (1, 512),
        ("Q8_0", 512): (1, 8),
        ("Q8_0", 2048): (1, 8),
        ("Q8_0", 7680): (1, 512),
    }
    assert sentences[0] == "Measured by llama.cpp on CPU at 4 threads: attention F16, attention Q4_0, attention Q8_0."
    before = [f"attention {kind} at 4 threads (measured)" for kind in ("F16", "Q8_0", "Q4_0")]
    assert sentences[1] == f"They replace {'; '.join(before)}."
    assert list(problems(changed)) == []


def test_recorded_rows_make_a_sound_profile(recorded):
    profile, _ = with_engine_rows(measured(), read_engine_rows(recorded), 1)
    assert list(problems(profile)) == []
    assert series_of(profile.cpu, "mul_mat", "Q4_K", 1).batch == (1, 2, 512)


def test_the_tools_own_csv_has_no_times(read):
    own = gzip.decompress((DATA / "test_backend_ops.csv.gz").read_bytes()).decode()
    with pytest.raises(MachineError, match=r"no time_us; llama\.cpp's own CSV leaves the times out"):
        read(own)
