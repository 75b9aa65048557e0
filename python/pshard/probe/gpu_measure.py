"""From measurements of a GPU and its link to their parts of a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.machine.profile import Curve, Figure, Memory
from pshard.machine.profile_checks import PEAK_TOLERANCE
from pshard.probe.gpu_work import (
    BesideCpu,
    BesideGpu,
    BothWays,
    Copy,
    GpuAttention,
    GpuProduct,
    GpuRead,
    GpuStart,
    Handoff,
    PageLock,
)
from pshard.probe.measured_series import bytes_per_second_of, figure_of, merged_series, with_peaks
from pshard.probe.works import Read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from pshard.machine.profile import Capacities, Key, Link, Processor
    from pshard.probe.running import Run
    from pshard.probe.works import Result

# Setting a copy up is never taken for more than this share of what the smallest one takes.
MOST_OF_SET_UP = 0.9
# Of the sum of both directions alone: below, they take turns on one engine.
SHARE_OF_TWO_ENGINES = 0.6


def gpu_of(run: Run, base: Processor) -> Processor:
    """Put what was measured of a GPU into its part of a profile.

    Parameters
    ----------
    run : Run
    base : Processor
        What stands in for what was not measured.

    Returns
    -------
    Processor
        Peaks that measurements exceed are raised to them.
    """
    start = _first(run, GpuStart())
    reading = _first(run, GpuRead())
    copying = _first(run, GpuRead(copies=True))
    memory = base.memory[0]
    op_seconds = start.sample.median_seconds if start else memory.op_seconds
    if reading is not None:
        memory = Memory(
            bytes_per_second=bytes_per_second_of(reading),
            op_seconds=op_seconds,
            source="measured",
            spread=reading.spread,
            origin=reading.note,
            samples=(reading.sample, *((start.sample,) if start else ())),
        )
    memory = replace(memory, op_seconds=op_seconds)
    series = merged_series(
        run,
        base.series,
        (GpuProduct, GpuAttention),
        start.sample.median_seconds if start else 0.0,
        memory.bytes_per_second,
    )
    hop = start.parts.get("hop") if start else None
    idle = start.parts.get("synchronise") if start else None
    processor = replace(
        base,
        memory=(memory,),
        series=series,
        copy_bytes_per_second=figure_of(copying) if copying else base.copy_bytes_per_second,
        event_wait_seconds=_seconds(hop) if hop else base.event_wait_seconds,
        synchronise_seconds=_seconds(idle) if idle else base.synchronise_seconds,
    )
    return _with_room(processor)


def link_of(run: Run, base: Link) -> Link:
    """Put what was measured of the link between host and GPU into its part of a profile.

    Parameters
    ----------
    run : Run
    base : Link
        What stands in for what was not measured.

    Returns
    -------
    Link
        The two fractions of the CPU and the copies that remain beside each other are without what sharing the host's
        memory explains, because that is priced apart.
    """
    handoff = _first(run, Handoff())
    both = _first_of(run, BothWays)
    beside_gpu = _first_of(run, BesideGpu)
    link = replace(base, up=_curve(run, "up", base.up), down=_curve(run, "down", base.down))
    for field, work in (
        ("pageable_bytes_per_second", _copy_of(run, "up", "pageable")),
        ("pageable_down_bytes_per_second", _copy_of(run, "down", "pageable")),
        ("scattered_bytes_per_second", _copy_of(run, "up", "locked", is_scattered=True)),
    ):
        if work is not None:
            link = replace(link, **{field: figure_of(work)})
    if handoff is not None:
        link = replace(link, handoff_to_gpu_seconds=_seconds(handoff))
        if "to_cpu" in handoff.parts:
            link = replace(link, handoff_to_cpu_seconds=_seconds(handoff.parts["to_cpu"]))
    if both is not None:
        up = _share(both, both.parts["up_beside"], both.parts["down"])
        down = _share(both.parts["down"], both.parts["down_beside"], both)
        overlap = (up.value + down.value) / 2.0
        link = replace(
            link,
            up_rate_under_down=up,
            down_rate_under_up=down,
            copy_engines=1 if overlap < SHARE_OF_TWO_ENGINES else max(2, base.copy_engines),
        )
    if beside_gpu is not None:
        product = beside_gpu.parts["product"]
        link = replace(
            link,
            copy_rate_under_gpu=_share(beside_gpu, beside_gpu.parts["copy_beside"], product),
            gpu_rate_under_copy=_share(product, beside_gpu.parts["product_beside"], beside_gpu),
        )
    return _beside_cpu(run, link)


def capacities_of(run: Run, base: Capacities, key: Key) -> Capacities:
    """Put sizes of memory into their part of a profile.

    Returns
    -------
    Capacities
        `page_lock_bytes` is what the driver gave, if it refused more; otherwise the reference stands, or what was
        given where that is more.
    """
    found = _first_of(run, PageLock)
    if found is None:
        # Without a GPU nothing is page-locked, so nothing is left to measure.
        source = "measured" if key.gpu is None else base.source
        return replace(base, ram_bytes=key.ram_bytes, source=source, origin="as detected")
    locked = min(int(found.n_bytes), key.ram_bytes)
    if found.note:
        origin = f"as detected; {locked / 2**30:.1f} GiB were page-locked, and {found.note}"
        most = max(locked, min(base.page_lock_bytes, key.ram_bytes))
        source = "measured" if locked >= base.page_lock_bytes else base.source
        return replace(base, ram_bytes=key.ram_bytes, page_lock_bytes=most, source=source, origin=origin)
    return replace(
        base, ram_bytes=key.ram_bytes, page_lock_bytes=locked, source="measured", origin="the driver gave no more"
    )


def set_up_and_seconds_per_byte(chunks: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit the straight line seconds = set-up + chunk × seconds per byte, each point by its relative error.

    Parameters
    ----------
    chunks, seconds : sequence of float
        Bytes of one copy, and what it takes; the same number of each, at least one.

    Returns
    -------
    (float, float)
        Set-up, at least 0 and at most `MOST_OF_SET_UP` of the shortest copy, and seconds per byte.
    """
    weights = [second**-2 for second in seconds]
    total = sum(weights)
    x_mean = sum(w * x for w, x in zip(weights, chunks, strict=True)) / total
    y_mean = sum(w * y for w, y in zip(weights, seconds, strict=True)) / total
    spread = sum(w * (x - x_mean) ** 2 for w, x in zip(weights, chunks, strict=True))
    if spread <= 0.0:  # one size: nothing tells the set-up from the rest
        return 0.0, y_mean / x_mean
    points = zip(weights, chunks, seconds, strict=True)
    slope = sum(w * (x - x_mean) * (y - y_mean) for w, x, y in points) / spread
    return min(max(0.0, y_mean - slope * x_mean), MOST_OF_SET_UP * min(seconds)), slope


def _curve(run: Run, direction: Literal["up", "down"], base: Curve) -> Curve:
    found = {}
    for result in run.results:
        work = result.work
        if isinstance(work, Copy) and work.direction == direction and work.memory == "locked" and not work.is_scattered:
            found[float(work.chunk_bytes)] = result
    if not found:
        return base
    chunks = sorted(found)
    seconds = [found[chunk].sample.median_seconds for chunk in chunks]
    set_up, _ = set_up_and_seconds_per_byte(chunks, seconds)
    rates = [chunk / (second - set_up) for chunk, second in zip(chunks, seconds, strict=True)]
    return Curve(
        chunk_bytes=tuple(chunks),
        bytes_per_second=tuple(rates),
        latency_seconds=set_up,
        peak_bytes_per_second=_bound(base.peak_bytes_per_second, max(rates)),
        source="measured",
        spread=max(result.spread for result in found.values()),
        origin="; ".join(sorted({result.note for result in found.values()} - {""})),
        samples=tuple(found[chunk].sample for chunk in chunks),
    )


def _beside_cpu(run: Run, link: Link) -> Link:
    found = _first_of(run, BesideCpu)
    if found is None:
        return link
    product = found.parts["product"]
    readings = [bytes_per_second_of(result) for result in run.results if isinstance(result.work, Read)]
    wanted = bytes_per_second_of(found) + bytes_per_second_of(product)
    shared = min(1.0, max(readings, default=wanted) / wanted)
    cpu = _share(product, found.parts["product_beside"], found)
    copy = _share(found, found.parts["copy_beside"], product)
    return replace(
        link,
        cpu_rate_under_copy=replace(cpu, value=min(1.0, cpu.value / shared)),
        copy_rate_under_cpu=replace(copy, value=min(1.0, copy.value / shared)),
    )


def _share(alone: Result, beside: Result, other: Result) -> Figure:
    """Fraction of a rate that remains; it cannot be known better than what it was made from."""
    value = min(1.0, alone.sample.median_seconds / beside.sample.median_seconds)
    spread = min(0.99, alone.spread + beside.spread)
    samples = (alone.sample, beside.sample)
    return Figure(value=value, source="measured", spread=spread, origin=other.note, samples=samples)


def _seconds(result: Result) -> Figure:
    return replace(figure_of(result, result.sample.median_seconds), spread=min(0.99, result.spread))


def _with_room(processor: Processor) -> Processor:
    """Raise peaks that were exceeded by more than a sheet may be off: what was verified is the better bound."""
    if processor.peaks_measured:
        return with_peaks(processor)
    reading = max(entry.bytes_per_second for entry in processor.memory)
    best = max((rate for entry in processor.series for rate in entry.flop_per_second), default=0.0)
    return replace(
        processor,
        memory_peak_bytes_per_second=_bound(processor.memory_peak_bytes_per_second, reading),
        peak_flop_per_second=_bound(processor.peak_flop_per_second, best),
    )


def _bound(peak: float, reached: float) -> float:
    return reached if reached > PEAK_TOLERANCE * peak else peak


def _first(run: Run, work: object) -> Result | None:
    return next((result for result in run.results if result.work == work), None)


def _first_of(run: Run, kind: type) -> Result | None:
    return next((result for result in run.results if isinstance(result.work, kind)), None)


def _copy_of(run: Run, direction: str, memory: str, *, is_scattered: bool = False) -> Result | None:
    wanted = (direction, memory, is_scattered)
    for result in run.results:
        work = result.work
        if isinstance(work, Copy) and (work.direction, work.memory, work.is_scattered) == wanted:
            return result
    return None
