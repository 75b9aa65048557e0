"""From measurements to a machine profile.

The profile of a machine begins as the reference profile of what is detected, and what was measured takes the place of
reference figures, entry by entry. So a run that was interrupted, a probe that was refused and a GPU that cannot be
probed are all the same: their figures stay references, marked as such, and are said.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.probes import Attention, Peak, Product, Read, Result, Start, Storage
from pshard.profile import Figure, Memory, Series
from pshard.rates import Rates, bits_per_weight, weight_bytes_per_second

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard.probes import Run
    from pshard.profile import Key, Layout, Operation, Processor, Profile

    _SeriesKey = tuple[Operation, str, Layout, int | None]

# Starting an operation is never taken for more than this share of the seconds that a product took.
MOST_OF_START = 0.5
# Of a data sheet's peak: outside of it, something is wrong with the machine, the sheet or the measurement.
LOW_SHARE, HIGH_SHARE = 0.6, 1.0


def profile_from(run: Run, base: Profile, key: Key, *, created: str, notes: Sequence[str] = ()) -> Profile:
    """Put what was measured into a profile.

    Parameters
    ----------
    run : Run
        As `probes.run` returns it.
    base : Profile
        What stands in for what was not measured: the reference profile of this machine, at the thread count of `key`,
        or an older profile of the same machine.
    key : Key
        Of the machine.
    created : str
        Date.
    notes : sequence of str
        Sentences that come before its own notes, which say what is noisy, refused or left, and what stands in.

    Returns
    -------
    Profile
        FLOP/s of a product are its FLOP over its median seconds without the start of the operation; attention takes
        the best of its depths, because reading the cache is priced apart.
    """
    results = run.results
    start = next((result for result in results if isinstance(result.work, Start)), None)
    profile = replace(
        base,
        name=key.gpu or key.cpu,
        capacities=replace(
            base.capacities,
            ram_bytes=key.ram_bytes,
            # What the driver page-locks is a reference until copies are measured.
            source="measured" if key.gpu is None else base.capacities.source,
            origin="as detected",
        ),
        cpu=_cpu(run, base.cpu, start, key),
        host_bytes_per_second=_best_reading(results) or base.host_bytes_per_second,
        storage_bytes_per_second=_storage(results) or base.storage_bytes_per_second,
        key=key,
        created=created,
    )
    return replace(profile, notes=(*notes, *_notes(run, profile)))


def with_series(profile: Profile, series: Iterable[Series], *, on_gpu: bool = False) -> tuple[Profile, list[str]]:
    """Put series in the place of those for the same operation, type, layout and thread count.

    Parameters
    ----------
    profile : Profile
    series : iterable of Series
    on_gpu : bool
        They are the GPU's; otherwise the CPU's.

    Returns
    -------
    Profile
        Its peaks are raised where a document does not tell them.
    list of str
        What was replaced, in words.
    """
    processor = profile.gpu if on_gpu else profile.cpu
    assert processor is not None
    new = {_key(entry): entry for entry in series}
    replaced = [_words(entry) for entry in processor.series if _key(entry) in new]
    kept = [entry for entry in processor.series if _key(entry) not in new]
    merged = _with_peaks(replace(processor, series=(*kept, *new.values())))
    return (replace(profile, gpu=merged) if on_gpu else replace(profile, cpu=merged)), replaced


def peak_shares(profile: Profile) -> list[tuple[str, float]]:
    """List how near measured rates come to the peaks that documents tell.

    Returns
    -------
    list of (str, float)
        What, and its share of the peak. A share below `LOW_SHARE` or above `HIGH_SHARE` deserves a warning.
    """
    shares = []
    for label, processor in (("CPU", profile.cpu), ("GPU", profile.gpu)):
        if processor is not None and not processor.peaks_measured:
            measured = [entry.bytes_per_second for entry in processor.memory if entry.source == "measured"]
            if measured:
                shares.append((f"{label} memory", max(measured) / processor.memory_peak_bytes_per_second))
    curves = {"up": profile.link.up, "down": profile.link.down} if profile.link is not None else {}
    for label, curve in curves.items():
        if curve.source == "measured":
            shares.append((f"PCIe {label}", max(curve.bytes_per_second) / curve.peak_bytes_per_second))
    return shares


def _cpu(run: Run, base: Processor, start: Result | None, key: Key) -> Processor:
    results = run.results
    measured = {_key(entry): entry for entry in _series(results, start.sample.median_seconds if start else 0.0)}
    memories = _memories(results, base, start, key)
    reading = {entry.n_threads: entry.bytes_per_second for entry in memories}
    wanted = _wanted(run)
    for entry in base.series:
        if (found := measured.get(_key(entry))) is not None:
            measured[_key(entry)] = _completed(found, entry, wanted[_key(entry)], reading[key.n_threads])
    done = {(entry.operation, entry.layout) for entry in measured.values()}
    # A type that was not measured is estimated from those that were; an operation without any keeps its references.
    kept = [
        entry
        for entry in base.series
        if _key(entry) not in measured and (entry.source != "reference" or (entry.operation, entry.layout) not in done)
    ]
    peak = next((result for result in results if isinstance(result.work, Peak)), None)
    processor = replace(
        base,
        # What an earlier run measured holds for this one too; what a data sheet says of another CPU does not.
        peak_flop_per_second=_flop_per_second(peak) if peak else base.peak_flop_per_second * base.peaks_measured,
        memory_peak_bytes_per_second=base.memory_peak_bytes_per_second * base.peaks_measured,
        name=key.cpu,
        n_cores=key.n_cores,
        memory=memories,
        series=(*kept, *measured.values()),
        peaks_measured=True,
    )
    return _with_peaks(processor)


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


def _wanted(run: Run) -> dict[_SeriesKey, set[float]]:
    """Batches that each series was to have."""
    works = [*(result.work for result in run.results), *(work for work, _ in run.refused), *run.left]
    batches: dict[_SeriesKey, set[float]] = defaultdict(set)
    for work in works:
        if isinstance(work, Product | Attention):
            batches[_key_of(work)].add(float(work.batch))
    return batches


def _key_of(work: Product | Attention) -> _SeriesKey:
    if isinstance(work, Attention):
        return "attention", "F16", "plain", work.n_threads
    return "mul_mat_id" if work.n_used else "mul_mat", work.type, work.layout, work.n_threads


def _memories(results: Sequence[Result], base: Processor, start: Result | None, key: Key) -> tuple[Memory, ...]:
    """One entry for each thread count that reading was measured at, and for those of the profile that it replaces."""
    entries = {entry.n_threads: entry for entry in base.memory}
    near = entries.get(key.n_threads, base.memory[0])
    op_seconds = start.sample.median_seconds if start else near.op_seconds
    entries[key.n_threads] = replace(near, n_threads=key.n_threads, op_seconds=op_seconds)
    for result in results:
        if isinstance(result.work, Read):
            entries[result.work.n_threads] = Memory(
                n_threads=result.work.n_threads,
                bytes_per_second=_bytes_per_second(result),
                op_seconds=op_seconds,
                source="measured",
                spread=result.spread,
                origin=result.note,
                samples=(result.sample, *((start.sample,) if start else ())),
            )
    return tuple(sorted(entries.values(), key=lambda entry: entry.n_threads or 0))


def _series(results: Sequence[Result], start_seconds: float) -> list[Series]:
    points: dict[_SeriesKey, dict[float, Result]] = defaultdict(dict)
    for result in results:
        work = result.work
        if isinstance(work, Product | Attention):
            at = points[_key_of(work)]
            before = at.get(float(work.batch))
            if before is None or _rate(result, start_seconds) > _rate(before, start_seconds):
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


def _rate(result: Result, start_seconds: float) -> float:
    seconds = result.sample.median_seconds
    return result.n_flop / max(seconds - start_seconds, (1.0 - MOST_OF_START) * seconds)


def _best_reading(results: Sequence[Result]) -> Figure | None:
    readings = [result for result in results if isinstance(result.work, Read)]
    return _figure(max(readings, key=_bytes_per_second)) if readings else None


def _storage(results: Sequence[Result]) -> Figure | None:
    found = next((result for result in results if isinstance(result.work, Storage)), None)
    return _figure(found) if found else None


def _bytes_per_second(result: Result) -> float:
    return result.n_bytes / result.sample.median_seconds


def _flop_per_second(result: Result) -> float:
    return result.n_flop / result.sample.median_seconds


def _figure(result: Result) -> Figure:
    return Figure(
        value=_bytes_per_second(result),
        source="measured",
        spread=result.spread,
        origin=result.note,
        samples=(result.sample,),
    )


def _with_peaks(processor: Processor) -> Processor:
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


def _key(entry: Series) -> _SeriesKey:
    return entry.operation, entry.type, entry.layout, entry.n_threads


def _words(entry: Series) -> str:
    layout = f" {entry.layout}" if entry.layout != "plain" else ""
    threads = f" at {entry.n_threads} threads" if entry.n_threads else ""
    return f"{entry.operation} {entry.type}{layout}{threads} ({entry.source})"


def _notes(run: Run, profile: Profile) -> list[str]:
    notes, results = [], run.results
    noisy = [str(result.work) for result in results if result.sample.is_noisy]
    if noisy:
        notes.append(f"Noisy, so their ranges are wider: {'; '.join(noisy)}.")
    warm = [str(result.work) for result in results if not result.is_cold]
    if warm:
        notes.append(f"Partly read from caches, for want of memory, so maybe too fast: {'; '.join(warm)}.")
    notes += [f"Refused: {work}: {reason}." for work, reason in run.refused]
    if run.left:
        why = "interrupted" if run.interrupted else "no time was left"
        notes.append(f"Not measured ({why}): {'; '.join(str(work) for work in run.left)}.")
    references = reference_parts(profile)
    if not any(isinstance(result.work, Start) for result in results):
        references.append("the start of an operation")
    if references:
        notes.append(f"Reference figures stand in for {', '.join(references)}.")
    for what, share in peak_shares(profile):
        if not LOW_SHARE <= share <= HIGH_SHARE:
            notes.append(f"{what} reaches {share:.0%} of the peak that its data sheet states.")
    return notes


def reference_parts(profile: Profile) -> list[str]:
    """List the parts of a profile that rest on reference figures, in words."""
    parts = []
    for label, processor in (("CPU", profile.cpu), ("GPU", profile.gpu)):
        if processor is None:
            continue
        references = [entry for entry in processor.series if entry.source == "reference"]
        operations = dict.fromkeys(
            f"{entry.operation}{'' if entry.layout == 'plain' else f' {entry.layout}'}" for entry in references
        )
        all_of_it = all(entry.source == "reference" for entry in (*processor.memory, *processor.series))
        if all_of_it:
            parts.append(f"the {label}")
            continue
        parts += [f"{label} {operation}" for operation in operations]
        if any(entry.source == "reference" for entry in processor.memory):
            parts.append(f"{label} memory")
    if profile.link is not None and profile.link.up.source == "reference":
        parts.append("PCIe")
    return parts
