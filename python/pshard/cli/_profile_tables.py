"""A machine profile as people read it."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from pshard.cli._output import Output, format_bytes
from pshard.machine.profile import SCANS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.machine.profile import Curve, Entry, Figure, Link, Pace, Processor, Profile, Series

GIGA = 1e9
# Columns that fit beside the names; of more batches, those of this list are shown.
MOST_COLUMNS = 6
USUAL_BATCHES = (1.0, 4.0, 32.0, 128.0, 512.0, 2048.0)
USUAL_CHUNKS = (64 << 10, 512 << 10, 2 << 20, 8 << 20, 32 << 20, 128 << 20)
OPERATIONS = {"mul_mat": "product", "mul_mat_id": "experts", "attention": "attention"}


def print_profile(out: Output, profile: Profile) -> None:
    """Print capacities, memory, rates, links and contention.

    Parameters
    ----------
    out : Output
    profile : Profile
    """
    _print_head(out, profile)
    for label, processor in (("CPU", profile.cpu), ("GPU", profile.gpu)):
        if processor is not None:
            out.line()
            _print_memory(out, label, processor)
            _print_rates(out, label, processor)
            _print_scans(out, label, processor)
    if profile.gpu is not None:
        _print_gpu(out, profile.gpu)
    out.line()
    if profile.link is None:
        out.line("No link: the machine has no GPU.")
    else:
        _print_link(out, profile.link)
    figures = {"DRAM, shared by CPU and copies": profile.host_bytes_per_second}
    if profile.storage_bytes_per_second is not None:
        figures["storage, sequential and cold"] = profile.storage_bytes_per_second
    if profile.pace is not None:
        out.line()
        _print_pace(out, profile.pace)
    out.line()
    out.table(
        ["host", "GB/s", "±", "runs", "source"],
        [[name, f"{figure.value / GIGA:.3g}", *_marks(figure)] for name, figure in figures.items()],
    )


def _print_head(out: Output, profile: Profile) -> None:
    capacities, key = profile.capacities, profile.key
    out.line(f"{profile.name}{f', {profile.created}' if profile.created else ''}")
    counts = {"core": profile.cpu.n_cores, "socket": profile.cpu.n_sockets, "NUMA node": profile.cpu.n_numa_nodes}
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    out.line(f"CPU: {', '.join([profile.cpu.name, *parts, f'{format_bytes(capacities.ram_bytes)} of RAM'])}")
    if profile.gpu is not None:
        locked = f"up to {format_bytes(capacities.page_lock_bytes)} page-locked"
        out.line(f"GPU: {profile.gpu.name}, {format_bytes(capacities.vram_bytes)}, {locked}")
    if key is not None:
        state = [f"{key.n_threads} thread{'s' if key.n_threads > 1 else ''}", key.kernel]
        state += [f"driver {key.driver}"] if key.driver else []
        state += [f"PCIe {key.pcie_generation}.0 x{key.pcie_lanes}"] if key.pcie_generation else []
        state += [f"power limit {key.power_limit_watts:.0f} W"] if key.power_limit_watts else []
        out.line(f"Holds for: {', '.join(state)}")


def _print_memory(out: Output, label: str, processor: Processor) -> None:
    rows = []
    for entry in processor.memory:
        share = entry.bytes_per_second / processor.memory_peak_bytes_per_second
        rows.append(
            [
                entry.n_threads,
                f"{entry.bytes_per_second / GIGA:.3g}",
                None if processor.peaks_measured else f"{share:.0%}",
                f"{entry.op_seconds * 1e6:.3g}",
                *_marks(entry),
            ]
        )
    columns = ["threads", "GB/s", "of peak", "start µs", "±", "runs", "source"]
    _print_filled(out, columns, rows, title=f"{label} memory")
    out.line()


def _print_rates(out: Output, label: str, processor: Processor) -> None:
    for operation, words in OPERATIONS.items():
        series = [entry for entry in processor.series if entry.operation == operation]
        if not series:
            continue
        batches = _columns([batch for entry in series for batch in entry.batch], USUAL_BATCHES)
        rows = [
            [
                entry.type,
                entry.layout,
                entry.n_threads,
                entry.depth,
                *(_rate(entry, batch) for batch in batches),
                f"{entry.first_bytes_per_second / GIGA:.3g}" if entry.first_bytes_per_second else None,
                *_marks(entry),
            ]
            for entry in sorted(
                series,
                key=lambda entry: (entry.n_threads or 0, entry.layout != "plain", entry.type, entry.depth or 0),
            )
        ]
        columns = ["type", "layout", "threads", "depth", *(f"{batch:g}" for batch in batches), "first GB/s"]
        columns += ["±", "runs", "source"]
        unit = {"mul_mat": "rows", "mul_mat_id": "rows per expert", "attention": "query tokens"}[operation]
        _print_filled(out, columns, rows, title=f"{label} {words}: GFLOP/s by {unit}")
        out.line()


def _print_scans(out: Output, label: str, processor: Processor) -> None:
    rows = [
        [
            entry.operation,
            entry.n_threads,
            *(_rate(entry, batch) for batch in (entry.batch[0], entry.batch[-1])),
            *_marks(entry),
        ]
        for entry in processor.series
        if entry.operation in SCANS
    ]
    if rows:
        columns = ["kind", "threads", "one token", "a prompt", "±", "runs", "source"]
        _print_filled(out, columns, rows, title=f"{label} scans of recurrent layers: GFLOP/s")
        out.line()


def _rate(entry: Series, batch: float) -> str | None:
    from pshard.machine.rates import Rates

    if not entry.batch[0] <= batch <= entry.batch[-1]:
        return None
    rate = Rates(entry.batch, entry.flop_per_second, entry.spread).at(batch) / GIGA
    text = _three_digits(rate)
    return text if batch in entry.batch else f"~{text}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _print_link(out: Output, link: Link) -> None:
    curves = {"up": link.up, "down": link.down}
    chunks = _columns([chunk for curve in curves.values() for chunk in curve.chunk_bytes], USUAL_CHUNKS)
    rows = [
        [
            name,
            *(_at(curve, chunk) for chunk in chunks),
            f"{max(curve.bytes_per_second) / curve.peak_bytes_per_second:.0%}",
            f"{curve.latency_seconds * 1e6:.3g}",
            *_marks(curve),
        ]
        for name, curve in curves.items()
    ]
    columns = ["link", *(format_bytes(int(chunk)) for chunk in chunks), "of peak", "set-up µs", "±", "runs", "source"]
    engines = f"{link.copy_engines} copy engine{'s' if link.copy_engines > 1 else ''}"
    _print_filled(out, columns, rows, title=f"Copies from page-locked memory, GB/s by chunk; {engines}")
    out.line()
    figures: list[tuple[str, str, Figure]] = [
        ("pageable copy up", f"{link.pageable_bytes_per_second.value / GIGA:.3g} GB/s", link.pageable_bytes_per_second),
        ("hand-off to the GPU", f"{link.handoff_to_gpu_seconds.value * 1e6:.3g} µs", link.handoff_to_gpu_seconds),
        ("hand-off to the CPU", f"{link.handoff_to_cpu_seconds.value * 1e6:.3g} µs", link.handoff_to_cpu_seconds),
        ("CPU under a copy", f"{link.cpu_rate_under_copy.value:.0%} of its rate", link.cpu_rate_under_copy),
        ("copy under the CPU", f"{link.copy_rate_under_cpu.value:.0%} of its rate", link.copy_rate_under_cpu),
    ]
    rates = {
        "slices from all over memory": link.scattered_bytes_per_second,
        "pageable copy down": link.pageable_down_bytes_per_second,
    }
    figures += [(name, f"{entry.value / GIGA:.3g} GB/s", entry) for name, entry in rates.items() if entry is not None]
    shares = {
        "copy up beside one down": link.up_rate_under_down,
        "copy down beside one up": link.down_rate_under_up,
        "GPU under a copy": link.gpu_rate_under_copy,
        "copy under the GPU": link.copy_rate_under_gpu,
    }
    figures += [(name, f"{entry.value:.0%} of its rate", entry) for name, entry in shares.items() if entry is not None]
    out.table(
        ["contention", "value", "±", "runs", "source"], [[name, text, *_marks(entry)] for name, text, entry in figures]
    )


def _print_gpu(out: Output, gpu: Processor) -> None:
    """Print what a GPU's profile has beside rates, if it has any of it."""
    rows: list[list[object]] = []
    if (copies := gpu.copy_bytes_per_second) is not None:
        rows.append(["copy inside its memory", f"{copies.value / GIGA:.3g} GB/s", *_marks(copies)])
    for name, entry in (("wait for an event", gpu.event_wait_seconds), ("synchronise", gpu.synchronise_seconds)):
        if entry is not None:
            rows.append([name, f"{entry.value * 1e6:.3g} µs", *_marks(entry)])
    if rows:
        out.table(["GPU", "value", "±", "runs", "source"], rows)


def _print_pace(out: Output, pace: Pace) -> None:
    """Print between which rates each anchor moved."""
    rows = []
    for anchor in pace.anchors:
        rates = [rate / GIGA for rate in anchor.rates]
        unit = "GB/s" if anchor.bytes_per_second else "GFLOP/s"
        spans = [_three_digits(rate) for rate in (min(rates), median(rates), max(rates))]
        rows.append([anchor.what, unit, *spans, len(rates), f"{max(anchor.at_seconds):.0f}"])
    columns = ["CPU's pace", "", "slowest", "usual", "fastest", "readings", "last after s"]
    out.table(columns, rows, title=f"Moved by {pace.moved:.0%}: ranges of the CPU's figures are no narrower")


def _at(curve: Curve, chunk: float) -> str | None:
    from pshard.machine.rates import Rates

    if not curve.chunk_bytes[0] <= chunk <= curve.chunk_bytes[-1]:
        return None
    return f"{Rates(curve.chunk_bytes, curve.bytes_per_second, 0.0).at(chunk) / GIGA:.3g}"


def _marks(entry: Entry) -> list[object]:
    """How far an entry can be trusted: its half-width, the fewest runs behind it, and where it comes from."""
    runs = min((sample.count for sample in entry.samples), default=None)
    noisy = ", noisy" if any(sample.is_noisy for sample in entry.samples) else ""
    return [f"{entry.spread:.0%}", runs, f"{entry.source}{noisy}"]


def _columns(points: Sequence[float], usual: Sequence[float]) -> list[float]:
    distinct = sorted(set(points))
    return (
        distinct
        if len(distinct) <= MOST_COLUMNS
        else [point for point in usual if distinct[0] <= point <= distinct[-1]]
    )


def _print_filled(out: Output, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str) -> None:
    """Print a table without the columns in which nothing stands."""
    kept = [index for index in range(len(columns)) if any(row[index] not in (None, "") for row in rows)]
    out.table([columns[index] for index in kept], [[row[index] for index in kept] for row in rows], title=title)
