"""Reference machines: data sheets against published figures, and rates that follow physics."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pshard.errors import SettingError
from pshard.machine.machine import load_machine
from pshard.machine.rates import (
    FAMILIES,
    SPREAD_BETWEEN,
    SPREAD_OTHER_FAMILY,
    Rates,
    bits_per_weight,
    estimate,
    type_ids,
)
from pshard.machine.reference_rates import build_profile, efficiency, gpu_memory_bytes_per_second
from pshard.machine.references import (
    MACHINES,
    default_host,
    find_gpu,
    gpus,
    hosts,
    join,
    machine_names,
    nearest_gpu,
    parse_cpu,
    parse_pcie,
    parse_ram,
    reference,
)

GIB = 2**30

# TFLOP/s with FP32 accumulation, TOP/s and GB/s, dense, of NVIDIA's architecture whitepapers.
PUBLISHED = {
    "rtx-3070-8g": (40.6, 162.6, 448),
    "rtx-3080-10g": (59.5, 238, 760),
    "rtx-3090-24g": (71, 284, 936),
    "rtx-4080-16g": (97.5, 389.9, 716.8),
    "rtx-4090-24g": (165.2, 660.6, 1008),
    "rtx-5070-12g": (61.7, 246.9, 672),
    "rtx-5080-16g": (112.6, 450.2, 960),
    "rtx-5090-32g": (209.5, 838, 1792),
    "h100-sxm-80g": (989.4, 1978.9, 3350),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_sheets(name):
    gpu = gpus()[name]
    tensor, integer, memory = PUBLISHED[name]
    assert gpu.fp16_flop_per_second == pytest.approx(tensor * 1e12, rel=0.005)
    assert gpu.int8_op_per_second == pytest.approx(integer * 1e12, rel=0.005)
    assert gpu.memory_bytes_per_second == pytest.approx(memory * 1e9)


def test_geforce_rates_follow_cores_and_clock():
    for gpu in gpus().values():
        if gpu.kind == "geforce":
            assert gpu.fp16_flop_per_second == pytest.approx(gpu.n_sm * gpu.boost_hertz * 512, rel=0.005), gpu.name
            assert gpu.int8_op_per_second == pytest.approx(4 * gpu.fp16_flop_per_second, rel=0.005), gpu.name


def test_the_sizes_that_people_have():
    """8, 12, 16, 24 and 32 GB of the last three generations where they were made, and the two data-centre parts."""
    assert {round(gpu.vram_bytes / GIB) for gpu in gpus().values()} >= {8, 12, 16, 24, 32}
    for generation, sizes in (("rtx-30", {8, 10, 12, 24}), ("rtx-40", {8, 12, 16, 24}), ("rtx-50", {8, 12, 16, 32})):
        assert {round(g.vram_bytes / GIB) for g in gpus().values() if g.name.startswith(generation)} == sizes
    assert {"h100-pcie-80g", "h100-sxm-80g", "h200-sxm-141g"} <= set(gpus())


def test_everything_states_its_source():
    for sheet in (*gpus().values(), *hosts().values()):
        assert len(sheet.source) > 10, sheet.name
    for name in efficiency().__struct_fields__:
        factors = getattr(efficiency(), name)
        for factor in factors.values() if isinstance(factors, dict) else [factors]:
            assert factor.source and factor.reason and 0.0 < factor.spread < 1.0, name
    profile = load_machine("rtx-4090").profile
    entries = [*profile.gpu.memory, *profile.gpu.series, *profile.cpu.memory, *profile.cpu.series, profile.link.up]
    assert all(entry.source == "reference" and entry.origin for entry in entries)


def test_named_machines_join_known_parts():
    for gpu, host in MACHINES.values():
        assert gpu in gpus() and host in hosts()
    assert len(machine_names()) == len(set(machine_names()))


def test_the_slower_side_decides_the_slot():
    narrow = reference("rtx-4060-8g")
    assert (narrow.pcie_generation, narrow.pcie_lanes) == (4, 8)
    old = join(gpus()["rtx-5090-32g"], hosts()["desktop-6c-ddr4"])
    assert (old.pcie_generation, old.pcie_lanes) == (4, 16)


def test_copies_are_no_faster_than_dram():
    core = load_machine("pull-request-desktop").core()
    assert max(core.up.bytes_per_second) == pytest.approx(45.7e9, rel=0.005)  # the machine's published figure
    assert 512 * 1024 / core.up.seconds(512 * 1024, 512 * 1024) == pytest.approx(26.9e9, rel=0.02)  # 23.3 under load


# Tokens per second of Llama 3 8B Q4_K_M, tg 512 and pp 512, published in May 2024 (GPU-Benchmarks-on-LLM-Inference).
LLAMA_3_8B = {
    "rtx-3070-8g": (72.79, 2402.51),
    "rtx-3080-10g": (109.57, 3728.86),
    "rtx-4070ti-12g": (83.50, 3936.29),
    "rtx-4080-16g": (108.15, 5389.74),
    "rtx-3090-24g": (115.42, 4030.40),
    "rtx-4090-24g": (130.58, 7138.99),
}


@pytest.mark.parametrize("name", LLAMA_3_8B)
def test_llama_bench_figures_are_met(name):
    core = load_machine(name).core()
    series, weights = core.gpu.mul_mat[12], 7.504e9
    decode = 2 * weights / series.rate(1) * 4.62e9 / (weights * 0.5625) + 544 * core.gpu.op_seconds
    prefill = 2 * 512 * weights / series.rate(512) + 544 * core.gpu.op_seconds
    tg, pp = LLAMA_3_8B[name]
    assert 0.95 * tg < 1 / decode < 1.25 * tg
    assert 0.90 * pp < 512 / prefill < 1.35 * pp


@pytest.mark.parametrize("name", machine_names())
def test_rates_are_sound(name):
    """Seconds grow with the batch, rates do not fall with it, and nothing beats a peak."""
    core = load_machine(name).core()
    for processor in (core.gpu, core.cpu):
        for table in (processor.mul_mat, processor.mul_mat_id):
            for number, series in table.items():
                points = list(zip(series.batch, series.flop_per_second, strict=True))
                for (m0, r0), (m1, r1) in pairwise(points):
                    assert r1 >= r0 * (1 - 1e-12), (number, m1)
                    assert m1 / r1 >= m0 / r0 * (1 - 1e-12), (number, m1)
                assert points[-1][1] <= processor.peak_flop_per_second, number
                bits = next(bits_per_weight(t) for t, i in type_ids().items() if i == number)
                assert points[0][1] / 2 * bits / 8 <= processor.memory_peak_bytes_per_second * 1.0001, number


def series_of(profile):
    processors = {"gpu": profile.gpu, "cpu": profile.cpu}
    rates = {
        (where, s.operation, s.type, s.layout): s.flop_per_second for where, p in processors.items() for s in p.series
    }
    for where, processor in processors.items():
        rates[where, "memory"] = (processor.memory[0].bytes_per_second,)
    rates["up"], rates["down"] = profile.link.up.bytes_per_second, profile.link.down.bytes_per_second
    rates["pageable"] = (profile.link.pageable_bytes_per_second.value,)
    rates["dram"] = (profile.host_bytes_per_second.value,)
    return rates


@given(
    gpu=st.sampled_from(sorted(gpus())),
    host=st.sampled_from(sorted(hosts())),
    what=st.sampled_from(["vram speed", "sms", "clock", "tensor", "dram", "cores", "generation", "threads"]),
    factor=st.floats(1.0, 4.0),
    n_threads=st.integers(1, 32),
)
def test_better_hardware_never_lowers_a_rate(gpu, host, what, factor, n_threads):
    gpu, host = gpus()[gpu], hosts()[host]
    pcie, threads = (3, 8), n_threads
    better_gpu, better_host, better_pcie = gpu, host, pcie
    match what:
        case "vram speed":
            better_gpu = replace(gpu, memory_bytes_per_second=gpu.memory_bytes_per_second * factor)
        case "sms":
            better_gpu = replace(gpu, n_sm=math.ceil(gpu.n_sm * factor))
        case "clock":
            better_gpu = replace(gpu, boost_hertz=gpu.boost_hertz * factor)
        case "tensor":
            better_gpu = replace(gpu, fp16_flop_per_second=gpu.fp16_flop_per_second * factor)
        case "dram":
            better_host = replace(host, dram_bytes_per_second=host.dram_bytes_per_second * factor)
        case "cores":
            better_host = replace(host, n_cores=math.ceil(host.n_cores * factor))
        case "generation":
            better_pcie = (5, 16)
        case "threads":
            threads = math.ceil(n_threads * factor)
    before = series_of(build_profile(join(gpu, host, pcie=pcie), n_threads))
    after = series_of(build_profile(join(better_gpu, better_host, pcie=better_pcie), threads))
    for key, rates in before.items():
        for old, new in zip(rates, after[key], strict=True):
            assert new >= old * (1 - 1e-12), (what, key)


@given(st.sampled_from(sorted(gpus())))
def test_kernels_read_less_than_the_peak(name):
    gpu = gpus()[name]
    assert 0.3 * gpu.memory_bytes_per_second < gpu_memory_bytes_per_second(gpu) < gpu.memory_bytes_per_second


# Estimates


def flat(rate: float, spread: float = 0.1) -> Rates:
    return Rates((1.0, 64.0), (rate, rate * 8), spread)


def test_between_neighbours_by_hand():
    """Q5_K has 5.5 bits; Q4_K 4.5 and Q6_K 6.5625: the rate is 100^(1-t) 50^t with t = 1/2.0625."""
    known = {"Q4_K": flat(100e9), "Q6_K": flat(50e9, 0.2), "Q2_K": flat(300e9), "F16": flat(1e9)}
    found = estimate("Q5_K", known, 1e9)
    assert found.flop_per_second[0] == pytest.approx(100e9 ** (1 - 1 / 2.0625) * 50e9 ** (1 / 2.0625))
    assert found.spread == pytest.approx(0.2 + SPREAD_BETWEEN)


@given(
    st.sampled_from([name for family in FAMILIES for name in family if name in type_ids()]),
    st.dictionaries(st.sampled_from(sorted(type_ids())), st.floats(1e9, 1e14), min_size=1),
    st.floats(1e9, 1e12),
)
def test_estimates_stay_among_their_relatives(name, rates, memory):
    known = {other: flat(rate) for other, rate in rates.items() if other != name}
    found = estimate(name, known, memory)
    if not known:
        assert found is None
        return
    assert found.spread > 0.1
    assert all(math.isfinite(rate) and rate > 0.0 for rate in found.flop_per_second)
    family = next(family for family in FAMILIES if name in family)
    relatives = [other for other in family if other in known]
    bits = [bits_per_weight(other) for other in relatives]
    at_64 = [known[other].at(64.0) for other in relatives or known]
    assert found.at(64.0) <= max(at_64) * (1 + 1e-9)
    if bits and min(bits) <= bits_per_weight(name) <= max(bits):
        assert found.at(64.0) >= min(at_64) * (1 - 1e-9)


def test_scaling_by_bytes_tells_reading_from_arithmetic():
    """IQ4_NL (4.5 bits) reads 0.28 bytes per FLOP at one row, 1/64 of that at 64; IQ2_XXS has 2.0625 bits."""
    known = {"IQ4_NL": Rates((1.0, 64.0), (100e9, 1000e9), 0.1)}
    reading_rate = 100e9 / 2 * 4.5 / 8
    found = estimate("IQ2_XXS", known, reading_rate)
    assert found.flop_per_second == pytest.approx((100e9 * 4.5 / 2.0625, 1000e9))  # reading scales, arithmetic does not
    slow = estimate("IQ2_XXS", known, reading_rate * 100)
    assert slow.flop_per_second == pytest.approx((100e9, 1000e9))  # never limited by reading
    other = estimate("F32", known, reading_rate)
    assert other.flop_per_second == pytest.approx((100e9 * 4.5 / 32, 1000e9 * 4.5 / 32))
    assert other.spread == pytest.approx(0.1 + SPREAD_OTHER_FAMILY)


# Grammar


def test_grammar():
    assert parse_ram("64G@51GB/s") == (64 * GIB, 51e9)
    assert parse_ram(" 32 GiB @ 51.2 gb/s ") == (32 * GIB, 51.2e9)
    assert parse_ram("1.5g") == (1536 * 2**20, None)
    assert parse_pcie("3x8") == (3, 8)
    assert parse_pcie("Gen5.0 x16") == (5, 16)
    assert parse_cpu("8c") == 8
    assert parse_cpu("server-32c").n_cores == 32
    assert find_gpu("RTX-4090").name == "rtx-4090-24g"


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_ram, t) for t in ("", "64", "64M", "0G", "64G@", "64G@51", "64G@0GB/s", "-4G", "9999999999G", "64G@5GB/s!")]
    + [(parse_pcie, t) for t in ("", "x8", "3x", "0x8", "9x8", "3x3", "3x32", "33x8", "3*8")]
    + [(parse_cpu, t) for t in ("", "c", "0c", "8", "-8c", "8d")],
)
def test_grammar_errors_show_an_example(parse, text):
    with pytest.raises(SettingError, match=r"64G@51GB/s|3x8|8c"):
        parse(text)


@given(st.text(max_size=20))
def test_grammar_never_fails_otherwise(text):
    for parse in (parse_ram, parse_pcie, parse_cpu, find_gpu):
        try:
            parse(text)
        except SettingError as error:
            assert "'" in str(error) or '"' in str(error)


def test_nearest_gpu_in_memory():
    sizes = {8: 8, 11: 12, 12: 12, 16: 16, 24: 24, 32: 32, 80: 80, 140: 140, 2: 8}
    for wanted, found in sizes.items():
        assert round(nearest_gpu(wanted * GIB).vram_bytes / GIB) == found
    assert nearest_gpu(24 * GIB).kind == "geforce"
    same = [gpu for gpu in gpus().values() if gpu.vram_bytes == 12 * GIB]
    assert nearest_gpu(12 * GIB).memory_bytes_per_second == min(gpu.memory_bytes_per_second for gpu in same)


def test_default_hosts_exist():
    assert {default_host(gpu).name for gpu in gpus().values()} == {"desktop-8c", "server-32c"}
