"""Rates over the batch from what probes found, of either processor."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.machine.profile import SCANS, Figure, Series
from pshard.machine.rates import Rates, bits_per_weight, weight_bytes_per_second
from pshard.probe.gpu_work import GpuAttention, GpuProduct
from pshard.probe.works import Attention, Product, RecurrentScan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.machine.profile import Layout, Operation, Processor
    from pshard.probe.running import Run
    from pshard.probe.works import Result

    Rated = Product | Attention | RecurrentScan | GpuProduct | GpuAttention
    SeriesKey = tuple[Operation, str, Layout, int | None]
    # A series of attention is of one depth of the cache; of products the depth is None.
    PointsKey = tuple[SeriesKey, int | None]
    Point = tuple[Rated, Result]

_RATED = (Product, Attention, RecurrentScan, GpuProduct, GpuAttention)
# Starting an operation is never taken for more than this share of the seconds that it took, nor first reads of a cache.
MOST_OF_START, MOST_OF_FIRST_READS = 0.5, 0.9


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
    measured = _series(results, start_seconds)
    wanted = _wanted_batches(run)
    stands_in = {series_key(entry): entry for entry in base}
    for key, entry in measured.items():
        if (other := stands_in.get(key[0])) is not None:
            measured[key] = _completed(entry, other, wanted[key], bytes_per_second)
    # A scan of one token reads its state from memory, later ones from a cache: neither tells the other.
    measured = {
        key: entry for key, entry in measured.items() if entry.operation not in SCANS or wanted[key] <= set(entry.batch)
    }
    replaced = {key for key, _ in measured}
    done = {_estimable(entry) for entry in measured.values()}
    kept = [
        entry
        for entry in base
        if series_key(entry) not in replaced and (entry.source != "reference" or _estimable(entry) not in done)
    ]
    return (*kept, *measured.values())


def _estimable(entry: Series) -> tuple[Operation, Layout, bool]:
    """Return what series have in common that are estimated from each other; F16 caches are attended in tiles."""
    return entry.operation, entry.layout, entry.operation == "attention" and entry.type == "F16"


def series_key(entry: Series) -> SeriesKey:
    """Return what a profile holds one series for; of attention, one for each depth."""
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
                *((read_rate,) if found.operation.startswith("mul_mat") else ()),
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


def _wanted_batches(run: Run) -> dict[PointsKey, set[float]]:
    """Batches that each series was to have."""
    works = [*(result.work for result in run.results), *(work for work, _ in run.refused), *run.left]
    batches: dict[PointsKey, set[float]] = defaultdict(set)
    for work in works:
        if isinstance(work, _RATED):
            batches[_key_of(work)].add(float(work.batch))
    return batches


def _key_of(work: Rated) -> PointsKey:
    if isinstance(work, RecurrentScan):
        return (work.kind, "F32", "plain", work.n_threads), None
    if isinstance(work, Attention):
        return ("attention", work.type, "plain", work.n_threads), work.depth
    if isinstance(work, GpuAttention):
        return ("attention", "F16", "plain", work.n_threads), work.depth
    return ("mul_mat_id" if work.n_used else "mul_mat", work.type, work.layout, work.n_threads), None


def _series(results: Sequence[Result], start_seconds: float) -> dict[PointsKey, Series]:
    found: dict[PointsKey, list[Point]] = defaultdict(list)
    for result in results:
        if isinstance(result.work, _RATED):
            found[_key_of(result.work)].append((result.work, result))
    return {key: _one_series(key, points, start_seconds) for key, points in found.items()}


def _one_series(key: PointsKey, found: Sequence[Point], start_seconds: float) -> Series:
    (operation, kind, layout, n_threads), depth = key
    first_seconds_per_byte = _first_seconds_per_byte(found, start_seconds) if operation == "attention" else 0.0
    # Of one batch the result with most FLOP: of attention, that with most query heads per key head.
    points = {float(work.batch): result for work, result in sorted(found, key=lambda point: point[1].n_flop)}
    batches = sorted(points)
    results = [result for _, result in found]
    return Series(
        operation=operation,
        type=kind,
        layout=layout,
        n_threads=n_threads,
        depth=depth,
        first_bytes_per_second=1.0 / first_seconds_per_byte if first_seconds_per_byte else None,
        batch=tuple(batches),
        flop_per_second=tuple(_rate(points[batch], start_seconds, first_seconds_per_byte) for batch in batches),
        source="measured",
        spread=max(result.spread for result in results),
        origin="; ".join(sorted({result.note for result in results} - {""})),
        samples=tuple(points[batch].sample for batch in batches),
    )


def _first_seconds_per_byte(found: Sequence[Point], start_seconds: float) -> float:
    """Tell the first read of a cell from arithmetic: both are in seconds = FLOP x a + bytes x b of two groupings.

    Returns
    -------
    float
        b, of one query token; 0 where one grouping was measured, or the first read is not seen beside arithmetic.
    """
    alone = sorted((result for work, result in found if work.batch == 1), key=lambda result: result.n_flop)
    if len(alone) < 2:
        return 0.0
    few, many = alone[0], alone[-1]
    flop = [result.n_flop / result.n_bytes for result in (few, many)]
    seconds = [(result.sample.median_seconds - start_seconds) / result.n_bytes for result in (few, many)]
    arithmetic = (seconds[1] - seconds[0]) / (flop[1] - flop[0])
    return max(0.0, seconds[0] - arithmetic * flop[0]) if arithmetic > 0.0 else 0.0


def _rate(result: Result, start_seconds: float, first_seconds_per_byte: float) -> float:
    seconds = result.sample.median_seconds
    seconds -= min(first_seconds_per_byte * result.n_bytes, MOST_OF_FIRST_READS * seconds)
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
