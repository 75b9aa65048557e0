"""From the data sheet of a GPU and a host to a machine profile: peaks times stated efficiencies.

Every factor, with its reason and its source, is in data_sheets/efficiency.json; the formulas are here and nowhere else.
Seconds are per weight of a product, so that FLOP/s = 2 rows / seconds.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from pshard.machine.profile import SCHEMA_VERSION, Capacities, Curve, Figure, Link, Memory, Processor, Profile, Series
from pshard.machine.rates import bits_per_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from pshard.machine.profile import Layout, Operation
    from pshard.machine.references import Gpu, Reference

GPU_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CPU_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192)
CHUNK_BYTES = (64 * 2**10, 256 * 2**10, 512 * 2**10, 2 * 2**20, 8 * 2**20, 32 * 2**20, 128 * 2**20)
PCIE_LANE_BYTES_PER_SECOND = {1: 0.25e9, 2: 0.5e9, 3: 0.9846e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


class _Factor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    spread: float
    reason: str
    source: str


class _Value(_Factor, frozen=True, kw_only=True):
    value: float


class _MatVec(_Factor, frozen=True, kw_only=True):
    flop_per_sm_clock: dict[str, float]
    max_rows: int


class _Mmq(_Factor, frozen=True, kw_only=True):
    flop_per_sm_clock: dict[str, float]
    min_rows: int


class _Gemm(_Factor, frozen=True, kw_only=True):
    share_of_fp16: dict[str, dict[str, float]]


class _Routed(_Value, frozen=True, kw_only=True):
    padding_rows: int


class _Attention(_Factor, frozen=True, kw_only=True):
    share_of_fp16: dict[str, float]
    ramp: dict[str, float]


class _Dram(_Value, frozen=True, kw_only=True):
    core_bytes_per_second: float


class _Cpu(_Factor, frozen=True, kw_only=True):
    flop_per_core: dict[str, dict[str, float]]
    peak_flop_per_core: float
    op_seconds: float
    routed: float
    attention_flop_per_core: dict[str, float]


class _Pcie(_Value, frozen=True, kw_only=True):
    ramp_seconds: float
    latency_seconds: float


class _Pageable(_Value, frozen=True, kw_only=True):
    share_of_link: float


class _Contention(_Factor, frozen=True, kw_only=True):
    cpu_rate_under_copy: float
    copy_rate_under_cpu: float


class Efficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """data_sheets/efficiency.json: every factor between a data sheet and a rate, with its reason and source."""

    gpu_memory: dict[str, _Value]
    gpu_op_seconds: _Value
    mat_vec: _MatVec
    mmq: _Mmq
    gemm: _Gemm
    routed: _Routed
    attention: _Attention
    dram: _Dram
    cpu: _Cpu
    pcie: _Pcie
    pageable: _Pageable
    page_lock_share: _Value
    hand_off_seconds: _Value
    contention: _Contention


@cache
def efficiency() -> Efficiency:
    """Factors that reference profiles are built with."""
    from importlib.resources import files

    text = files("pshard.machine").joinpath("data_sheets/efficiency.json").read_bytes()
    return msgspec.json.decode(text, type=Efficiency)


def build_profile(reference: Reference, n_threads: int) -> Profile:
    """Build the profile of a reference machine at one CPU thread count.

    Parameters
    ----------
    reference : Reference
        GPU (or none), host and the slot between them.
    n_threads : int
        CPU threads, at least 1. More than the host has cores add nothing.

    Returns
    -------
    Profile
        Every entry has source `reference`. No rate falls where a bandwidth, a clock or a core count rises.
    """
    host = reference.host
    share = efficiency().page_lock_share
    return Profile(
        schema_version=SCHEMA_VERSION,
        name=reference.name,
        capacities=Capacities(
            vram_bytes=reference.gpu.vram_bytes if reference.gpu else 0,
            ram_bytes=host.ram_bytes,
            page_lock_bytes=int(host.ram_bytes * share.value) if reference.gpu else 0,
            source="reference",
            spread=0.0,
            origin=host.source,
        ),
        gpu=_gpu_processor(reference.gpu) if reference.gpu else None,
        cpu=_cpu_processor(reference, n_threads),
        host_bytes_per_second=_figure(dram_bytes_per_second(reference), efficiency().dram),
        link=_link(reference, reference.gpu) if reference.gpu else None,
        notes=reference.notes,
    )


def dram_bytes_per_second(reference: Reference) -> float:
    """Bytes/s that CPU and copies together draw from the host's memory."""
    return efficiency().dram.value * reference.host.dram_bytes_per_second


def link_bytes_per_second(reference: Reference) -> float:
    """Bytes/s of a large copy from page-locked memory: what the slot reaches, or what DRAM gives."""
    raw = PCIE_LANE_BYTES_PER_SECOND[reference.pcie_generation] * reference.pcie_lanes
    return min(efficiency().pcie.value * raw, dram_bytes_per_second(reference))


def gpu_memory_bytes_per_second(gpu: Gpu) -> float:
    """Bytes/s that kernels read from the GPU's memory."""
    return _gpu_memory_factor(gpu).value * gpu.memory_bytes_per_second


def _gpu_memory_factor(gpu: Gpu) -> _Value:
    return efficiency().gpu_memory["HBM" if gpu.memory.startswith("HBM") else "GDDR"]


def _figure(value: float, factor: _Factor) -> Figure:
    return Figure(value=value, source="reference", spread=factor.spread, origin=factor.source)


def _series(
    operation: Operation,
    name: str,
    rows: tuple[int, ...],
    seconds_per_weight: Callable[[float], float],
    spread: float,
    origin: str,
    layout: Layout = "plain",
    n_threads: int | None = None,
) -> Series:
    return Series(
        operation=operation,
        type=name,
        layout=layout,
        n_threads=n_threads,
        batch=tuple(float(m) for m in rows),
        flop_per_second=tuple(2.0 * m / seconds_per_weight(float(m)) for m in rows),
        source="reference",
        spread=spread,
        origin=origin,
    )


def _quantised_products(gpu: Gpu, name: str) -> tuple[Series, Series]:
    """Return dense and routed products of a quantised type: a few rows by vectors, more in tiles of integers."""
    factors = efficiency()
    sm_clock = gpu.n_sm * gpu.boost_hertz
    read = bits_per_weight(name) / 8.0 / gpu_memory_bytes_per_second(gpu)
    mat_vec = 2.0 / (factors.mat_vec.flop_per_sm_clock[name] * sm_clock)
    multiply = 2.0 / (factors.mmq.flop_per_sm_clock[name] * sm_clock)

    def dense(m: float) -> float:
        by_tiles = read + max(m, factors.mmq.min_rows) * multiply
        return min(read + m * mat_vec, by_tiles) if m <= factors.mat_vec.max_rows else by_tiles

    def routed(m: float) -> float:
        row_by_row = m * (read + mat_vec)
        return min(row_by_row, read + (m + factors.routed.padding_rows) * multiply / factors.routed.value)

    spread = max(_gpu_memory_factor(gpu).spread, factors.mmq.spread)
    return (
        _series("mul_mat", name, GPU_ROWS, dense, spread, factors.mmq.source),
        _series("mul_mat_id", name, GPU_ROWS, routed, max(spread, factors.routed.spread), factors.routed.source),
    )


def _float_products(gpu: Gpu, name: str) -> tuple[Series, Series]:
    """Return dense and routed products of a type that is multiplied as it is."""
    factors = efficiency()
    read = bits_per_weight(name) / 8.0 / gpu_memory_bytes_per_second(gpu)
    multiply = 2.0 / (factors.gemm.share_of_fp16[name][gpu.kind] * gpu.fp16_flop_per_second)

    def dense(m: float) -> float:
        return math.hypot(read, m * multiply)

    def routed(m: float) -> float:
        padding = factors.routed.padding_rows if m > 1.0 else 0
        return math.hypot(read, (m + padding) * multiply / factors.routed.value)

    spread = max(_gpu_memory_factor(gpu).spread, factors.gemm.spread)
    return (
        _series("mul_mat", name, GPU_ROWS, dense, spread, factors.gemm.source),
        _series("mul_mat_id", name, GPU_ROWS, routed, max(spread, factors.routed.spread), factors.routed.source),
    )


def _gpu_attention(gpu: Gpu) -> Series:
    attention = efficiency().attention
    peak = attention.share_of_fp16[gpu.kind] * gpu.fp16_flop_per_second
    return Series(
        operation="attention",
        type="F16",
        batch=tuple(float(tokens) for tokens in attention.ramp),
        flop_per_second=tuple(peak * share for share in attention.ramp.values()),
        source="reference",
        spread=attention.spread,
        origin=attention.source,
    )


def _gpu_processor(gpu: Gpu) -> Processor:
    factors = efficiency()
    memory = _gpu_memory_factor(gpu)
    products = [_quantised_products(gpu, name) for name in factors.mmq.flop_per_sm_clock]
    products += [_float_products(gpu, name) for name in factors.gemm.share_of_fp16]
    return Processor(
        name=gpu.product,
        memory_peak_bytes_per_second=gpu.memory_bytes_per_second,
        peak_flop_per_second=gpu.int8_op_per_second,
        memory=(
            Memory(
                bytes_per_second=gpu_memory_bytes_per_second(gpu),
                op_seconds=factors.gpu_op_seconds.value,
                source="reference",
                spread=memory.spread,
                origin=f"{gpu.source}; {memory.source}",
            ),
        ),
        series=(*chain.from_iterable(products), _gpu_attention(gpu)),
    )


def _cpu_products(reference: Reference, n_threads: int, layout: Layout, name: str) -> tuple[Series, Series]:
    """Return dense and routed products of a type whose weights lie as `layout` says."""
    factors = efficiency().cpu
    read = bits_per_weight(name) / 8.0 / _cpu_bytes_per_second(reference, n_threads)
    multiply = 2.0 / (factors.flop_per_core[layout][name] * _n_cores_used(reference, n_threads))

    def dense(m: float) -> float:
        return math.hypot(read, m * multiply)

    def routed(m: float) -> float:
        return dense(m) / factors.routed

    return (
        _series("mul_mat", name, CPU_ROWS, dense, factors.spread, factors.source, layout, n_threads),
        _series("mul_mat_id", name, CPU_ROWS, routed, factors.spread, factors.source, layout, n_threads),
    )


def _cpu_attention(reference: Reference, n_threads: int) -> Series:
    factors = efficiency().cpu
    n_cores = _n_cores_used(reference, n_threads)
    return Series(
        operation="attention",
        type="F16",
        n_threads=n_threads,
        batch=tuple(float(tokens) for tokens in factors.attention_flop_per_core),
        flop_per_second=tuple(rate * n_cores for rate in factors.attention_flop_per_core.values()),
        source="reference",
        spread=factors.spread,
        origin=factors.source,
    )


def _n_cores_used(reference: Reference, n_threads: int) -> int:
    return min(n_threads, reference.host.n_cores)


def _cpu_bytes_per_second(reference: Reference, n_threads: int) -> float:
    """Bytes/s that so many threads read from the host's memory."""
    by_cores = efficiency().dram.core_bytes_per_second * _n_cores_used(reference, n_threads)
    return min(dram_bytes_per_second(reference), by_cores)


def _cpu_processor(reference: Reference, n_threads: int) -> Processor:
    factors = efficiency()
    host = reference.host
    layouts: tuple[Layout, ...] = ("plain", "interleaved")
    products = [
        _cpu_products(reference, n_threads, layout, name)
        for layout in layouts
        for name in factors.cpu.flop_per_core[layout]
    ]
    return Processor(
        name=host.product,
        n_cores=host.n_cores,
        memory_peak_bytes_per_second=host.dram_bytes_per_second,
        peak_flop_per_second=factors.cpu.peak_flop_per_core * host.n_cores,
        memory=(
            Memory(
                n_threads=n_threads,
                bytes_per_second=_cpu_bytes_per_second(reference, n_threads),
                op_seconds=factors.cpu.op_seconds,
                source="reference",
                spread=factors.dram.spread,
                origin=f"{host.source}; {factors.dram.source}",
            ),
        ),
        series=(*chain.from_iterable(products), _cpu_attention(reference, n_threads)),
    )


def _link(reference: Reference, gpu: Gpu) -> Link:
    factors = efficiency()
    achieved = link_bytes_per_second(reference)
    curve = Curve(
        chunk_bytes=tuple(float(chunk) for chunk in CHUNK_BYTES),
        bytes_per_second=tuple(chunk / (chunk / achieved + factors.pcie.ramp_seconds) for chunk in CHUNK_BYTES),
        latency_seconds=factors.pcie.latency_seconds,
        peak_bytes_per_second=PCIE_LANE_BYTES_PER_SECOND[reference.pcie_generation] * reference.pcie_lanes,
        source="reference",
        spread=factors.pcie.spread,
        origin=f"PCIe {reference.pcie_generation}.0 x{reference.pcie_lanes}; {factors.pcie.source}",
    )
    return Link(
        up=curve,
        down=curve,
        copy_engines=gpu.copy_engines,
        pageable_bytes_per_second=_figure(
            min(factors.pageable.value, factors.pageable.share_of_link * achieved), factors.pageable
        ),
        handoff_to_gpu_seconds=_figure(factors.hand_off_seconds.value, factors.hand_off_seconds),
        handoff_to_cpu_seconds=_figure(factors.hand_off_seconds.value, factors.hand_off_seconds),
        cpu_rate_under_copy=_figure(factors.contention.cpu_rate_under_copy, factors.contention),
        copy_rate_under_cpu=_figure(factors.contention.copy_rate_under_cpu, factors.contention),
    )
