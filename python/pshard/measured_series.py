"""Rates over the batch from what probes found, of either processor."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.gpu_work import GpuAttention, GpuProduct
from pshard.probes import Attention, Product
from pshard.profile import Figure, Series
from pshard.rates import Rates, bits_per_weight, weight_bytes_per_second

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.probes import Result, Run
    from pshard.profile import Layout, Operation, Processor

    SeriesKey = tuple[Operation, str, Layout, int | None]

# Starting an operation is never taken for more than this share of the seconds that a product took.
MOST_OF_START = 0.5


def merged_series(
    run: Run,
    base: Sequence[Series],
    works: tuple[type, ...],
    start_seconds: float,
    bytes_per_second: float,
) -> tuple[Series, ...]:
    """Put measured series in the place of those of a profile.

    Parameters
    ----------
    run : Run
    base : sequence of Series
        What stands in for what was not measured.
    works : tuple of type
        Kinds of work that are this processor's.
    start_seconds : float
        What starting an operation takes, which is priced apart.
    bytes_per_second : float
        What its memory gives, which no product exceeds.

    Returns
    -------
    tuple of Series
        A type that was not measured is estimated from those that were, so its reference is left out; an operation of
        which none was measured keeps its references.
    """
    results = [result for result in run.results if isinstance(result.work, works)]
    measured = {series_key(entry): entry for entry in _series(results, start_seconds)}
    wanted = _wanted_batches(run)
    for entry in base:
        key = series_key(entry)
        if key in measured:
            measured[key] = _completed(measured[key], entry, wanted[key], bytes_per_second)
    done = {(entry.operation, entry.layout) for entry in measured.values()}
    kept = [
        entry
        for entry in base
        if series_key(entry) not in measured
        and (entry.source != "reference" or (entry.operation, entry.layout) not in done)
    ]
    return (*kept, *measured.values())


def series_key(entry: Series) -> SeriesKey:
    """Return what a profile holds one series for."""
    return entry.operation, entry.type, entry.layout, entry.n_threads


def _completed(found: Series, base: Series, wanted: set[float], bytes_per_second: float) -> Series:
    """Add the ends that were not measured: decode priced by a prompt's rate, or a prompt by decode's, says nothing."""
    rates = Rates(base.batch, base.flop_per_second, base.spread)
    points = dict(zip(found.batch, found.flop_per_second, strict=True))
    low, high = min(points), max(points)
    for batch in wanted:
        # More rows are never slower per row than fewer, and no row reads its weights faster than memory gives them.
        if batch < low:
            read_rate = 2.0 * batch * 8.0 / bits_per_weight(found.type) * bytes_per_second
            bounds = (
                rates.at(batch),
                found.flop_per_second[0],
                *((read_rate,) if found.operation != "attention" else ()),
            )
            points[batch] = min(bounds)
        elif batch > high:
            points[batch] = max(rates.at(batch), found.flop_per_second[-1])
    if len(points) == len(found.batch):
        return found
    return replace(
        found,
        batch=tuple(sorted(points)),
        flop_per_second=tuple(points[batch] for batch in sorted(points)),
        source=base.source,
        spread=max(found.spread, base.spread),
        origin=f"measured from batch {low:g} to {high:g}",
    )


def _wanted_batches(run: Run) -> dict[SeriesKey, set[float]]:
    """Batches that each series was to have."""
    works = [*(result.work for result in run.results), *(work for work, _ in run.refused), *run.left]
    batches: dict[SeriesKey, set[float]] = defaultdict(set)
    for work in works:
        if isinstance(work, Product | Attention | GpuProduct | GpuAttention):
            batches[_key_of(work)].add(float(work.batch))
    return batches


def _key_of(work: Product | Attention | GpuProduct | GpuAttention) -> SeriesKey:
    if isinstance(work, Attention | GpuAttention):
        return "attention", "F16", "plain", work.n_threads
    return "mul_mat_id" if work.n_used else "mul_mat", work.type, work.layout, work.n_threads


def _series(results: Sequence[Result], start_seconds: float) -> list[Series]:
    points: dict[SeriesKey, dict[float, Result]] = defaultdict(dict)
    for result in results:
        work = result.work
        if isinstance(work, Product | Attention | GpuProduct | GpuAttention):
            at = points[_key_of(work)]
            before = at.get(float(work.batch))
            if before is None or _depth(result) > _depth(before):
                at[float(work.batch)] = result
    series = []
    for (operation, kind, layout, n_threads), found in points.items():
        batches = sorted(found)
        series.append(
            Series(
                operation=operation,
                type=kind,
                layout=layout,
                n_threads=n_threads,
                batch=tuple(batches),
                flop_per_second=tuple(_rate(found[batch], start_seconds) for batch in batches),
                source="measured",
                spread=max(found[batch].spread for batch in batches),
                origin="; ".join(sorted({found[batch].note for batch in batches} - {""})),
                samples=tuple(found[batch].sample for batch in batches),
            )
        )
    return series


def _depth(result: Result) -> int:
    return result.work.depth if isinstance(result.work, Attention | GpuAttention) else 0


def _rate(result: Result, start_seconds: float) -> float:
    seconds = result.sample.median_seconds
    return result.n_flop / max(seconds - start_seconds, (1.0 - MOST_OF_START) * seconds)


def bytes_per_second_of(result: Result) -> float:
    """Bytes per second by the median."""
    return result.n_bytes / result.sample.median_seconds


def flop_per_second_of(result: Result) -> float:
    """FLOP per second by the median."""
    return result.n_flop / result.sample.median_seconds


def figure_of(result: Result, value: float | None = None) -> Figure:
    """Figure of a result: its bytes per second, or `value`."""
    return Figure(
        value=bytes_per_second_of(result) if value is None else value,
        source="measured",
        spread=result.spread,
        origin=result.note,
        samples=(result.sample,),
    )


def with_peaks(processor: Processor) -> Processor:
    """Raise peaks that no document tells to the best rates."""
    if not processor.peaks_measured:
        return processor
    return replace(
        processor,
        memory_peak_bytes_per_second=max(
            processor.memory_peak_bytes_per_second,
            *(entry.bytes_per_second for entry in processor.memory),
            *(weight_bytes_per_second(entry) for entry in processor.series if entry.operation == "mul_mat"),
        ),
        peak_flop_per_second=max(
            processor.peak_flop_per_second, *(rate for entry in processor.series for rate in entry.flop_per_second)
        ),
    )
