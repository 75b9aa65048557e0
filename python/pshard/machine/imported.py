"""A profile from the planner pull request's two profile files, and a profile written as those files.

Their rows are by shape, pshard's rates are over the batch; the seconds of one operation fall into a start, which the
small shapes show, and the work. What the files do not say is filled with reference figures, and said.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pshard.atomic_file import write_atomically
from pshard.errors import MachineError, SettingError
from pshard.machine.profile import (
    SCHEMA_VERSION,
    Capacities,
    Curve,
    Figure,
    Link,
    Memory,
    Processor,
    Profile,
    Series,
)
from pshard.machine.profile_checks import problems
from pshard.machine.rates import Rates, bits_per_weight, type_ids, weight_bytes_per_second
from pshard.machine.reference_rates import efficiency
from pshard.machine.text_profiles import (
    CPU_FILE,
    GPU_FILE,
    Bandwidths,
    CpuFile,
    GpuFile,
    Row,
    cpu_text,
    gpu_text,
    read_cpu_profile,
    read_gpu_profile,
)
from pshard.quantities import GIB, MIB

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from pshard.machine.machine import Machine
    from pshard.machine.profile import Operation

    _Key = tuple[Operation, str]

GIGA = 1e9

# K-quants that it does not measure, and the types with as many bits by which its predictor prices them.
SAME_BITS = {"Q3_K": ("Q2_K", "Q4_0"), "Q4_K": ("Q4_0",), "Q5_K": ("Q5_0",), "Q6_K": ("Q5_0", "Q8_0")}
# Between two runs of that profiler, and between a shape of a model and the shapes that it measures.
SPREAD = 0.15
SPREAD_SAME_BITS = 0.4
# Rows that read little show what a copy takes from the CPU besides the memory that both read.
LITTLE_READING = 0.1
# 256 MiB is the one size that it copies.
COPY_BYTES = 256.0 * MIB

# Written for every rate: two shapes that differ enough to tell the start of an operation from its work.
SHAPES = ((4096, 4096), (16384, 16384))
EXPERT_SHAPE = (2048, 2048)
N_EXPERT, N_EXPERT_USED = 128, 8
ATTENTION_HEADS, ATTENTION_KV_HEADS, ATTENTION_HEAD_DIM, ATTENTION_CELLS = 32, 1, 128, 16384


def profile_from_text_files(
    cpu_path: str | os.PathLike[str],
    gpu_path: str | os.PathLike[str],
    *,
    vram_bytes: int | None = None,
    ram_bytes: int | None = None,
    n_cores: int | None = None,
    budget_bytes: int | None = None,
) -> Profile:
    """Read the two files into a profile.

    Parameters
    ----------
    cpu_path, gpu_path : str or path-like
        ``cpu_profile.txt`` and ``gpu_profile.txt``.
    vram_bytes, ram_bytes : int, optional
        Capacities. By default the VRAM of the files' Machine line (schema 2), else of the GPU that is here; and the RAM
        of this machine.
    n_cores : int, optional
        Physical cores; by default the largest thread count measured.
    budget_bytes : int, optional
        VRAM that is planned for: taken as the GPU's where nothing tells that. 0: the CPU alone.

    Returns
    -------
    Profile
        Its figures are marked imported; its notes say what was left out and what was filled in.

    Raises
    ------
    MachineError
        A file that cannot be read or used.
    SettingError
        Nothing says how much VRAM there is.
    """
    cpu_file, gpu_file = read_cpu_profile(cpu_path), read_gpu_profile(gpu_path)
    notes = [*cpu_file.notes, *gpu_file.notes]
    if vram_bytes is None:
        vram_bytes, found = _vram_bytes(cpu_file, budget_bytes)
        notes += found
    if ram_bytes is None:
        import psutil

        ram_bytes = int(psutil.virtual_memory().total)
        notes.append(f"The profile files say nothing of RAM; taken from this machine: {ram_bytes / GIB:.1f} GiB.")
    gpu, gpu_notes = _processor(
        gpu_file.rows,
        name=cpu_file.machine.get("gpu", gpu_file.backend),
        memory={None: gpu_file.memory_bandwidth * GIGA},
        peak_flop_per_second=gpu_file.peak_gflops * GIGA,
        n_cores=0,
    )
    counts = [entry.n_threads for entry in cpu_file.bandwidths]
    cpu, cpu_notes = _processor(
        cpu_file.rows,
        name=cpu_file.machine.get("cpu", "CPU"),
        memory={entry.n_threads: entry.dram * GIGA for entry in cpu_file.bandwidths},
        peak_flop_per_second=0.0,
        n_cores=n_cores or max(counts),
    )
    link, link_notes = _link(cpu_file)
    dram = max(entry.dram for entry in cpu_file.bandwidths) * GIGA
    profile = Profile(
        schema_version=SCHEMA_VERSION,
        name=f"{gpu.name} (imported)",
        capacities=Capacities(
            ram_bytes=ram_bytes,
            vram_bytes=vram_bytes,
            page_lock_bytes=_page_lock_bytes(cpu_file, ram_bytes),
            source="imported",
        ),
        cpu=cpu,
        gpu=gpu if vram_bytes else None,
        link=link if vram_bytes else None,
        host_bytes_per_second=_imported(dram),
        notes=(*notes, *cpu_notes, *gpu_notes, *link_notes),
    )
    for json_path, problem in problems(profile):
        message = f"{cpu_path}, {gpu_path}: make no profile, {json_path}: {problem}"
        raise MachineError(message)
    return profile


def _vram_bytes(file: CpuFile, budget_bytes: int | None) -> tuple[int, list[str]]:
    """Return the VRAM that a file's machine line tells, else that of the GPU which is here, else what is planned for.

    And a sentence on where it is from, where the file does not tell it.
    """
    from pshard import _core

    if file.machine.get("vram_mib", "").isdigit():
        return int(file.machine["vram_mib"]) * MIB, []
    here = next(iter(_core.query_gpus().devices), None)
    found = here.total_bytes if here else budget_bytes
    if found is None:
        message = f"{file.path}: nothing says how much VRAM the machine has; give the VRAM to plan for (--vram 8G)"
        raise SettingError(message)
    origin = f"taken from {here.name}, which is here" if here else "taken to be what is planned for"
    return found, [f"The profile files say nothing of VRAM; {origin}: {found / GIB:.1f} GiB."]


def write_text_profiles(
    machine: Machine, folder: str | os.PathLike[str], n_threads: int | None = None
) -> tuple[Path, Path]:
    """Write a machine's figures as ``cpu_profile.txt`` and ``gpu_profile.txt``.

    Parameters
    ----------
    machine : Machine
        With a GPU.
    folder : str or path-like
        Where the two files go; they are replaced.
    n_threads : int, optional
        Their CPU threads; the pull request's planner wants those that it plans for. The machine's own by default.

    Returns
    -------
    tuple of Path
        CPU and GPU file. Read again, they give the same rates as far as their decimals go; spreads, origins and
        interleaved layouts have no place in them.

    Raises
    ------
    MachineError
        The machine has no GPU.
    FileError
        A file cannot be written.
    """
    n_threads = machine.threads_priced(machine.n_threads if n_threads is None else n_threads)
    profile = machine.profile
    if profile.gpu is None or profile.link is None:
        message = f"{machine.name} has no GPU; the pull request's files describe one"
        raise MachineError(message)
    memory = next(entry for entry in profile.cpu.memory if entry.n_threads == n_threads)
    link = profile.link
    pcie = max(link.up.bytes_per_second) / GIGA
    share, copy_share = link.cpu_rate_under_copy.value, link.copy_rate_under_cpu.value
    megabytes = [
        f"{size / MIB:g}MB={rate / GIGA:.4g}"
        for size, rate in zip(link.up.chunk_bytes, link.up.bytes_per_second, strict=True)
    ]
    headers = {
        "Machine": f'gpu="{profile.gpu.name}" vram_mib={machine.vram_bytes // MIB} cpu="{profile.cpu.name}"'
        f" threads={n_threads} schema=2",
        "PCIe_Sliced": f"{' '.join(megabytes)} GB/s",
        "PCIe_Staged": f"{link.pageable_bytes_per_second.value / GIGA:.4g} GB/s",
        "Engine_Switch_us": f"{link.handoff_to_gpu_seconds.value * 1e6:.4g}",
        "Copy_Setup_us": f"{link.up.latency_seconds * 1e6:.4g}",
        "Host_Pin_Ceiling": f"{profile.capacities.page_lock_bytes / GIGA:.6g} GB",
    }
    bandwidths = Bandwidths(
        n_threads=n_threads,
        dram=memory.bytes_per_second / GIGA,
        pcie=pcie,
        pcie_concurrent=pcie * copy_share,
        cpu_share=share,
    )
    folder = Path(folder)
    cpu_file = CpuFile(
        path=folder / CPU_FILE,
        bandwidths=(bandwidths,),
        rows=_rows(profile.cpu, memory, share, pcie * copy_share),
        headers=headers,
    )
    gpu_file = GpuFile(
        path=folder / GPU_FILE,
        backend="CUDA0",
        memory_bandwidth=profile.gpu.memory[0].bytes_per_second / GIGA,
        peak_gflops=profile.gpu.peak_flop_per_second / GIGA,
        rows=_rows(profile.gpu, profile.gpu.memory[0], 0.0, 0.0),
    )
    cpu_data, gpu_data = cpu_text(cpu_file).encode(), gpu_text(gpu_file).encode()
    return write_atomically(cpu_file.path, cpu_data), write_atomically(gpu_file.path, gpu_data)


def _imported(value: float, spread: float = SPREAD) -> Figure:
    return Figure(value=value, source="imported", spread=spread)


# --- rows to rates


def _flop(row: Row) -> float:
    """FLOP of one pass of a row, as the profiler counts them."""
    if row.operation == "MUL_MAT":
        return 2.0 * row.n * row.k * row.batch
    if row.operation == "MUL_MAT_ID":
        return 2.0 * row.n * row.k * row.batch * row.n_tokens
    return 0.0  # attention rows say how many KV heads there are, not how many query heads


def _rows_per_expert(row: Row) -> float:
    """Rows that each expert gets which gets any; the profiler hands out routes in turn."""
    routes = row.batch * row.n_tokens
    return routes / min(row.ctx_len, routes)


def _op_seconds(rows: Iterable[Row]) -> float:
    """Seconds that starting one operation takes: where the line through single-row products meets no weights at all."""
    by_type = defaultdict(list)
    for row in rows:
        if row.operation == "MUL_MAT" and row.batch == 1:
            by_type[row.type].append((float(row.n * row.k), _flop(row) / (row.gflops * GIGA)))
    starts = []
    for points in by_type.values():
        (small, small_seconds), (large, large_seconds) = min(points), max(points)
        if large > small:
            starts.append(max(0.0, (small_seconds * large - large_seconds * small) / (large - small)))
    return statistics.median(starts) if starts else 0.0


def _rate(points: Sequence[tuple[float, float]], op_seconds: float) -> float:
    """FLOP/s over (FLOP, seconds) of several shapes, without the start of each: at most half of the seconds."""
    work = sum(max(seconds - op_seconds, 0.5 * seconds) for _, seconds in points)
    return sum(flop for flop, _ in points) / work


def _type_name(name: str) -> str | None:
    upper = name.upper()
    return upper if upper in type_ids() else None


def _processor(
    rows: Sequence[Row],
    *,
    name: str,
    memory: dict[int | None, float],
    peak_flop_per_second: float,
    n_cores: int,
) -> tuple[Processor, tuple[str, ...]]:
    series: list[Series] = []
    memories: list[Memory] = []
    notes: list[str] = []
    unknown = sorted({row.type for row in rows if _type_name(row.type) is None})
    if unknown:
        notes.append(f"Rows of unknown types {', '.join(unknown)} are left out.")
    for n_threads, bytes_per_second in memory.items():
        mine = [row for row in rows if row.n_threads == (n_threads or 0) and _type_name(row.type)]
        if not mine:
            if n_threads is not None:
                notes.append(f"{name}: no rows for {n_threads} threads; left out.")
                continue
            message = f"{name}: the profile has no rows with figures; profile again"
            raise MachineError(message)
        op_seconds = _op_seconds(mine)
        memories.append(
            Memory(
                bytes_per_second=bytes_per_second,
                op_seconds=op_seconds,
                n_threads=n_threads,
                source="imported",
                spread=SPREAD,
            )
        )
        series += _series(mine, op_seconds, n_threads)
        borrowed = sorted({entry.type for entry in series if entry.source == "estimated"})
        if borrowed:
            notes.append(f"{name}: {', '.join(borrowed)} were not measured; types of as many bits per weight stand in.")
    if not memories:
        counts = sorted({row.n_threads for row in rows})
        message = f"{name}: bandwidths for threads {sorted(memory, key=str)}, rows for {counts}; profile again"
        raise MachineError(message)
    peak = max([peak_flop_per_second, *(rate for entry in series for rate in entry.flop_per_second)])
    products = [entry for entry in series if entry.operation == "mul_mat"]
    reading = max([*memory.values(), *map(weight_bytes_per_second, products)])
    processor = Processor(
        name=name,
        memory_peak_bytes_per_second=reading,
        peak_flop_per_second=peak,
        memory=tuple(memories),
        series=tuple(series),
        n_cores=n_cores,
    )
    return processor, tuple(notes)


def _series(rows: Sequence[Row], op_seconds: float, n_threads: int | None) -> list[Series]:
    products: dict[_Key, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    attention: dict[_Key, dict[float, float]] = defaultdict(dict)
    for row in rows:
        kind = _type_name(row.type) or ""
        rate = row.gflops * GIGA
        if row.operation.startswith("FLASH_ATTN") and row.n_tokens > 0:
            # Reading the cache is priced apart, so the arithmetic rate is the best that any grouping of heads reaches.
            points = attention["attention", kind]
            points[float(row.n_tokens)] = max(rate, points.get(float(row.n_tokens), 0.0))
        elif row.operation == "MUL_MAT" and row.n * row.k * row.batch > 0:
            products["mul_mat", kind][float(row.batch)].append((_flop(row), _flop(row) / rate))
        elif row.operation == "MUL_MAT_ID" and row.n * row.k * row.batch * row.n_tokens * row.ctx_len > 0:
            products["mul_mat_id", kind][_rows_per_expert(row)].append((_flop(row), _flop(row) / rate))
    rates = {key: {m: _rate(found, op_seconds) for m, found in points.items()} for key, points in products.items()}
    series = [
        Series(
            operation=operation,
            type=kind,
            n_threads=n_threads,
            batch=tuple(sorted(points)),
            flop_per_second=tuple(points[m] for m in sorted(points)),
            source="imported",
            spread=SPREAD,
        )
        for (operation, kind), points in (rates | attention).items()
    ]
    return series + _same_bits(series)


def _same_bits(series: Sequence[Series]) -> list[Series]:
    """K-quants without rows: from types of as many bits, as the pull request's predictor does, not from Q2_K alone."""
    found = {(entry.operation, entry.type): entry for entry in series}
    borrowed = []
    for operation in ("mul_mat", "mul_mat_id"):
        for kind, others in SAME_BITS.items():
            relatives = [found[operation, other] for other in others if (operation, other) in found]
            if (operation, kind) in found or len(relatives) < len(others):
                continue
            low, high = relatives[0], relatives[-1]
            bits = [bits_per_weight(entry.type) for entry in (low, high)]
            t = (bits_per_weight(kind) - bits[0]) / (bits[1] - bits[0]) if low is not high else 0.0
            upper = Rates(high.batch, high.flop_per_second, high.spread)
            rates = tuple(
                rate ** (1.0 - t) * upper.at(m) ** t for m, rate in zip(low.batch, low.flop_per_second, strict=True)
            )
            borrowed.append(
                msgspec.structs.replace(
                    low,
                    type=kind,
                    flop_per_second=rates,
                    source="estimated",
                    spread=SPREAD_SAME_BITS,
                    origin=f"not measured; {' and '.join(others)} by bits per weight",
                )
            )
    return borrowed


# --- headers to the link


def _link(file: CpuFile) -> tuple[Link, tuple[str, ...]]:
    best = max(file.bandwidths, key=lambda entry: entry.n_threads)
    if best.pcie is None:
        message = f"{file.path}: no PCIe figures (it was made without a GPU); profile the CPU with the GPU present"
        raise MachineError(message)
    factors = efficiency()
    notes = ["PCIe was measured as the mean of both directions; both are priced with it."]
    latency, switch = _micros(file, "Copy_Setup_us"), _micros(file, "Engine_Switch_us")
    filled = [text for text, found in (("the set-up of a copy", latency), ("hand-offs", switch)) if found is None]
    sizes, rates = _sliced(file) or ((COPY_BYTES,), (best.pcie * GIGA,))
    up = Curve(
        chunk_bytes=sizes,
        bytes_per_second=rates,
        latency_seconds=factors.pcie.latency_seconds if latency is None else latency,
        peak_bytes_per_second=max(*rates, best.pcie * GIGA),
        source="imported",
        spread=SPREAD,
    )
    staged = _first_number(file.headers.get("PCIe_Staged", ""))
    if staged is None:
        filled.append("copies from pageable memory")
        pageable = Figure(
            value=min(factors.pageable.value, factors.pageable.share_of_link * best.pcie * GIGA),
            source="reference",
            spread=factors.pageable.spread,
        )
    else:
        pageable = _imported(staged * GIGA)
    hand_off = (
        Figure(value=factors.hand_off_seconds.value, source="reference", spread=factors.hand_off_seconds.spread)
        if switch is None
        else _imported(switch)
    )
    cpu_share, copy_share = _contention(file.rows, best)
    if filled:
        notes.append(f"Reference figures fill in {', '.join(filled)}.")
    return (
        Link(
            up=up,
            down=up,
            copy_engines=1,
            pageable_bytes_per_second=pageable,
            handoff_to_gpu_seconds=hand_off,
            handoff_to_cpu_seconds=hand_off,
            cpu_rate_under_copy=_imported(cpu_share),
            copy_rate_under_cpu=_imported(copy_share),
        ),
        tuple(notes),
    )


def _contention(rows: Sequence[Row], best: Bandwidths) -> tuple[float, float]:
    """Fractions that CPU and copy keep beside each other, from rows that leave the memory to the copy.

    CPU_Eff itself also holds the memory that both read, which pshard prices apart.
    """
    calm = [
        row
        for row in rows
        if row.n_threads == best.n_threads
        and row.bandwidth < LITTLE_READING * best.dram
        and row.concurrent_gflops > 0.0
    ]
    if not calm or best.pcie is None:
        return best.cpu_share or 1.0, (best.pcie_concurrent or best.pcie or 1.0) / (best.pcie or 1.0)
    cpu = statistics.median(min(1.0, row.concurrent_gflops / row.gflops) for row in calm)
    copies = [min(1.0, row.concurrent_pcie / best.pcie) for row in calm if row.concurrent_pcie > 0.0]
    return cpu, statistics.median(copies) if copies else cpu


def _first_number(text: str) -> float | None:
    first = text.split()[0] if text.split() else ""
    try:
        value = float(first)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0.0 else None


def _micros(file: CpuFile, name: str) -> float | None:
    value = _first_number(file.headers.get(name, ""))
    return None if value is None else value * 1e-6


def _sliced(file: CpuFile) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the curve of a PCIe_Sliced line, like "0.5MB=23.3 2MB=29.6 GB/s"."""
    points: dict[float, float] = {}
    for part in file.headers.get("PCIe_Sliced", "").split():
        size, _, rate = part.partition("MB=")
        found = (_first_number(size), _first_number(rate))
        if found[0] is not None and found[1] is not None:
            points[found[0] * MIB] = found[1] * GIGA
    return (tuple(sorted(points)), tuple(points[size] for size in sorted(points))) if points else None


def _page_lock_bytes(file: CpuFile, ram_bytes: int) -> int:
    ceiling = _first_number(file.headers.get("Host_Pin_Ceiling", ""))
    locked = ram_bytes * efficiency().page_lock_share.value if ceiling is None else ceiling * GIGA
    return min(ram_bytes, round(locked))


# --- rates to rows


def _rows(processor: Processor, memory: Memory, cpu_share: float, pcie: float) -> tuple[Row, ...]:
    rows = []
    depths = [series.depth for series in processor.series if series.depth is not None]
    # The files hold attention over one cache; products are of none.
    nearest = {None, min(depths, key=lambda depth: abs(depth - ATTENTION_CELLS), default=None)}
    for series in processor.series:
        if series.n_threads != memory.n_threads or series.layout != "plain" or series.depth not in nearest:
            continue
        rates = Rates(series.batch, series.flop_per_second, 0.0)
        batches = sorted(
            {
                max(1, round(m * (N_EXPERT // N_EXPERT_USED if series.operation == "mul_mat_id" and m > 1.0 else 1)))
                for m in series.batch
            }
        )
        for batch in batches:
            rows += _rows_of(series, rates, batch, memory, cpu_share, pcie)
    return tuple(rows)


def _rows_of(series: Series, rates: Rates, batch: int, memory: Memory, cpu_share: float, pcie: float) -> list[Row]:
    """Rows of one point of a series: two shapes for products, one for experts and attention."""
    weight_bytes = bits_per_weight(series.type) / 8.0
    shapes = {"mul_mat": SHAPES, "mul_mat_id": (EXPERT_SHAPE,), "attention": ((0, 0),)}[series.operation]
    rows = []
    for n, k in shapes:
        if series.operation == "attention":
            flop = 4.0 * batch * ATTENTION_HEAD_DIM * ATTENTION_CELLS * ATTENTION_HEADS
            n_bytes = 4.0 * ATTENTION_HEAD_DIM * (ATTENTION_CELLS * ATTENTION_KV_HEADS + 4 * batch * ATTENTION_HEADS)
            seconds = flop / rates.at(batch)
            more = {
                "n_tokens": batch,
                "ctx_len": ATTENTION_CELLS,
                "n_heads": ATTENTION_KV_HEADS,
                "head_dim": ATTENTION_HEAD_DIM,
            }
        elif series.operation == "mul_mat":
            flop = 2.0 * n * k * batch
            n_bytes = n * k * weight_bytes + 4.0 * batch * (n + k)
            seconds = memory.op_seconds + flop / rates.at(batch)
            more = {"n": n, "k": k, "batch": batch}
        else:
            routes = batch * N_EXPERT_USED
            flop = 2.0 * n * k * routes
            n_bytes = n * k * weight_bytes * N_EXPERT_USED + 4.0 * batch * (N_EXPERT_USED * n + k)
            seconds = memory.op_seconds + flop / rates.at(routes / min(N_EXPERT, routes))
            more = {"n": n, "k": k, "batch": batch, "n_tokens": N_EXPERT_USED, "ctx_len": N_EXPERT}
        gflops = flop / seconds / GIGA
        rows.append(
            Row(
                operation={"mul_mat": "MUL_MAT", "mul_mat_id": "MUL_MAT_ID", "attention": "FLASH_ATTN_MQA"}[
                    series.operation
                ],
                type=_ggml_name(series.type),
                n_threads=memory.n_threads or 0,
                intensity=flop / n_bytes,
                bandwidth=n_bytes / seconds / GIGA,
                gflops=gflops,
                ridge=max(series.flop_per_second) / memory.bytes_per_second,
                concurrent_gflops=gflops * cpu_share,
                concurrent_pcie=pcie,
                **more,
            )
        )
    return rows


def _ggml_name(name: str) -> str:
    """Return ggml's own spelling: lower case, but for the K of K-quants."""
    return name.lower().removesuffix("_k") + ("_K" if name.endswith("_K") else "")
