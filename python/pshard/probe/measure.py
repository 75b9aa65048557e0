"""From measurements to a machine profile.

The profile of a machine begins as the reference profile of what is detected, and what was measured takes the place of
reference figures, entry by entry. So a run that was interrupted, a probe that was refused and a GPU that cannot be
probed are all the same: their figures stay references, marked as such, and are said.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.machine.profile import Memory
from pshard.probe.doubts import sentences
from pshard.probe.gpu_measure import capacities_of, gpu_of, link_of
from pshard.probe.measured_series import (
    bytes_per_second_of,
    figure_of,
    flop_per_second_of,
    merged_series,
    series_key,
    with_peaks,
)
from pshard.probe.works import Attention, Peak, Product, Read, RecurrentScan, Result, Start, Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard.machine.profile import Figure, Key, Processor, Profile, Series
    from pshard.probe.running import Run

# Of a data sheet's peak: outside of it, something is wrong with the machine, the sheet or the measurement.
LOW_SHARE, HIGH_SHARE = 0.6, 1.0


def profile_from(run: Run, base: Profile, key: Key, *, created: str, notes: Sequence[str] = ()) -> Profile:
    """Put what was measured into a profile.

    Parameters
    ----------
    run : Run
        As `running.run` returns it.
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
        those of the deepest cache, because a shallow one takes little time at any rate.
    """
    results = run.results
    start = next((result for result in results if isinstance(result.work, Start)), None)
    profile = replace(
        base,
        name=key.gpu or key.cpu,
        capacities=capacities_of(run, base.capacities, key),
        cpu=_cpu(run, base.cpu, start, key),
        gpu=gpu_of(run, base.gpu) if base.gpu is not None else None,
        link=link_of(run, base.link) if base.link is not None else None,
        host_bytes_per_second=_best_reading(results) or base.host_bytes_per_second,
        storage_bytes_per_second=_storage(results) or base.storage_bytes_per_second,
        key=key,
        created=created,
        pace=run.pace.record() or base.pace,
    )
    return replace(profile, notes=(*notes, *_notes(run, profile, base)))


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
    new = tuple(series)
    keys = {series_key(entry) for entry in new}
    replaced = dict.fromkeys(_words(entry) for entry in processor.series if series_key(entry) in keys)
    kept = [entry for entry in processor.series if series_key(entry) not in keys]
    merged = with_peaks(replace(processor, series=(*kept, *new)))
    return (replace(profile, gpu=merged) if on_gpu else replace(profile, cpu=merged)), list(replaced)


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
    memories = _memories(results, base, start, key)
    reading = {entry.n_threads: entry.bytes_per_second for entry in memories}
    start_seconds = start.sample.median_seconds if start else 0.0
    peak = next((result for result in results if isinstance(result.work, Peak)), None)
    processor = replace(
        base,
        # What an earlier run measured holds for this one too; what a data sheet says of another CPU does not.
        peak_flop_per_second=flop_per_second_of(peak) if peak else base.peak_flop_per_second * base.peaks_measured,
        memory_peak_bytes_per_second=base.memory_peak_bytes_per_second * base.peaks_measured,
        name=key.cpu,
        n_cores=key.n_cores,
        memory=memories,
        series=merged_series(
            run, base.series, (Product, Attention, RecurrentScan), start_seconds, reading[key.n_threads]
        ),
        peaks_measured=True,
    )
    return with_peaks(processor)


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
                bytes_per_second=bytes_per_second_of(result),
                op_seconds=op_seconds,
                source="measured",
                spread=result.spread,
                origin=result.note,
                samples=(result.sample, *((start.sample,) if start else ())),
            )
    return tuple(sorted(entries.values(), key=lambda entry: entry.n_threads or 0))


def _best_reading(results: Sequence[Result]) -> Figure | None:
    readings = [result for result in results if isinstance(result.work, Read)]
    return figure_of(max(readings, key=bytes_per_second_of)) if readings else None


def _storage(results: Sequence[Result]) -> Figure | None:
    found = next((result for result in results if isinstance(result.work, Storage)), None)
    return figure_of(found) if found else None


def _words(entry: Series) -> str:
    layout = f" {entry.layout}" if entry.layout != "plain" else ""
    threads = f" at {entry.n_threads} threads" if entry.n_threads else ""
    return f"{entry.operation} {entry.type}{layout}{threads} ({entry.source})"


def _notes(run: Run, profile: Profile, base: Profile) -> list[str]:
    notes, results = [], run.results
    notes += sentences(run)
    warm = [str(result.work) for result in results if not result.is_cold]
    if warm:
        notes.append(f"Partly read from caches, for want of memory, so maybe too fast: {'; '.join(warm)}.")
    notes += _refusals(run)
    if run.left:
        why = "interrupted" if run.interrupted else "no time was left"
        notes.append(f"Not measured ({why}): {'; '.join(str(work) for work in run.left)}.")
    references = reference_parts(profile)
    if not any(isinstance(result.work, Start) for result in results):
        references.append("the start of an operation")
    if references:
        notes.append(f"Reference figures stand in for {', '.join(references)}.")
    for what, share in peak_shares(_with_peaks_of(profile, base)):
        if not LOW_SHARE <= share <= HIGH_SHARE:
            notes.append(f"{what} reaches {share:.0%} of the peak that its data sheet states.")
    return notes


def _refusals(run: Run) -> list[str]:
    """Say what was refused, works with the same reason together."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for work, reason in run.refused:
        by_reason[reason].append(str(work))
    return [f"Refused: {'; '.join(works)}: {reason}." for reason, works in by_reason.items()]


def _with_peaks_of(profile: Profile, base: Profile) -> Profile:
    """Undo that peaks were raised to what exceeded them."""
    gpu, link = profile.gpu, profile.link
    if gpu is not None and base.gpu is not None:
        memory, flop = base.gpu.memory_peak_bytes_per_second, base.gpu.peak_flop_per_second
        gpu = replace(gpu, memory_peak_bytes_per_second=memory, peak_flop_per_second=flop)
    if link is not None and base.link is not None:
        up = replace(link.up, peak_bytes_per_second=base.link.up.peak_bytes_per_second)
        down = replace(link.down, peak_bytes_per_second=base.link.down.peak_bytes_per_second)
        link = replace(link, up=up, down=down)
    return replace(profile, gpu=gpu, link=link)


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
