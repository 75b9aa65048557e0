"""What a machine profile must satisfy beyond the types of its fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.machine.rates import type_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pshard.machine.profile import Entry, Figure, Link, Pace, Processor, Profile

# A measurement may come out a little above the peak that a data sheet states.
PEAK_TOLERANCE = 1.05


def problems(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield (JSON path, problem and remedy) for what is wrong in a decoded profile and types cannot say."""
    if (profile.gpu is None) != (profile.link is None):
        yield (
            "$",
            "'gpu' and 'link' go together; add the one that is missing, or leave out both for a machine without a GPU",
        )
    capacities = profile.capacities
    if capacities.ram_bytes <= 0:
        yield "$.capacities.ram_bytes", f"{capacities.ram_bytes} is not positive; give the bytes of RAM"
    if (capacities.vram_bytes > 0) != (profile.gpu is not None):
        yield (
            "$.capacities.vram_bytes",
            f"{capacities.vram_bytes} with gpu {'absent' if profile.gpu is None else 'present'}",
        )
    if not 0 <= capacities.page_lock_bytes <= capacities.ram_bytes:
        yield "$.capacities.page_lock_bytes", f"{capacities.page_lock_bytes} is not within 0 and ram_bytes"
    yield from _entry_problems("$.capacities", capacities)
    yield from _figure_problems("$.host_bytes_per_second", profile.host_bytes_per_second)
    if profile.storage_bytes_per_second is not None:
        yield from _figure_problems("$.storage_bytes_per_second", profile.storage_bytes_per_second)
    yield from _processor_problems("$.cpu", profile.cpu, threaded=True)
    if profile.gpu is not None:
        yield from _processor_problems("$.gpu", profile.gpu, threaded=False)
    if profile.link is not None:
        yield from _link_problems(profile.link)
    if profile.pace is not None:
        yield from _pace_problems(profile.pace)


def _entry_problems(path: str, entry: Entry) -> Iterator[tuple[str, str]]:
    if not 0.0 <= entry.spread < 1.0:
        yield f"{path}.spread", f"{entry.spread} is not at least 0 and below 1; it is relative: 0.1 for 10 %"
    for i, sample in enumerate(entry.samples):
        if not 0.0 < sample.minimum_seconds <= sample.median_seconds:
            yield (
                f"{path}.samples[{i}].minimum_seconds",
                f"{sample.minimum_seconds} is not positive and at most the median, {sample.median_seconds}",
            )
        if min(sample.spread, sample.drift) < 0.0 or sample.count < 1:
            yield f"{path}.samples[{i}]", "spread or drift is negative, or nothing was repeated; give what was measured"


def _figure_problems(path: str, figure: Figure, most: float = float("inf")) -> Iterator[tuple[str, str]]:
    yield from _entry_problems(path, figure)
    if not 0.0 < figure.value <= most:
        bound = "" if most == float("inf") else f" and at most {most:g}"
        yield f"{path}.value", f"{figure.value} is not positive{bound}"


def _optional_problems(path: str, figure: Figure | None, most: float = float("inf")) -> Iterator[tuple[str, str]]:
    if figure is not None:
        yield from _figure_problems(path, figure, most)


def _pace_problems(pace: Pace) -> Iterator[tuple[str, str]]:
    if not 0.0 <= pace.moved < 1.0:
        yield "$.pace.moved", f"{pace.moved} is not at least 0 and below 1; it is relative: 0.1 for 10 %"
    for i, anchor in enumerate(pace.anchors):
        at = f"$.pace.anchors[{i}]"
        if not anchor.at_seconds or len(anchor.at_seconds) != len(anchor.rates):
            yield at, f"{len(anchor.rates)} rates for {len(anchor.at_seconds)} of at_seconds; give one for each"
        elif min(anchor.rates) <= 0.0:
            yield at, f"a rate of {min(anchor.rates)} is not positive; leave out what was not measured"


def _curve_problems(path: str, xs: Sequence[float], ys: Sequence[float], x: str, y: str) -> Iterator[tuple[str, str]]:
    if not xs or len(xs) != len(ys):
        yield f"{path}.{y}", f"{len(ys)} values for {len(xs)} of {x}; give one for each, at least one"
        return
    for i, value in enumerate(xs):
        if value <= (xs[i - 1] if i else 0.0):
            yield (
                f"{path}.{x}[{i}]",
                f"{value} does not ascend from a positive number; sort the points and drop doubles",
            )
    for i, value in enumerate(ys):
        if value <= 0.0:
            yield f"{path}.{y}[{i}]", f"{value} is not positive; leave out what was not measured"


def _peak_problems(path: str, value: float, peak: float, peak_name: str) -> Iterator[tuple[str, str]]:
    if value > peak * PEAK_TOLERANCE:
        yield path, f"{value:.4g} exceeds {peak_name} = {peak:.4g}; correct the peak, or measure again"


def _processor_problems(path: str, processor: Processor, threaded: bool) -> Iterator[tuple[str, str]]:
    for name in ("memory_peak_bytes_per_second", "peak_flop_per_second"):
        if getattr(processor, name) <= 0.0:
            yield f"{path}.{name}", f"{getattr(processor, name)} is not positive; give the peak of the data sheet"
    if not processor.memory:
        yield f"{path}.memory", "is empty; at least one entry is needed"
    counts = [entry.n_threads for entry in processor.memory]
    for i, entry in enumerate(processor.memory):
        at = f"{path}.memory[{i}]"
        yield from _entry_problems(at, entry)
        yield from _thread_problems(at, entry.n_threads, threaded)
        if entry.n_threads in counts[:i]:
            yield f"{at}.n_threads", f"{entry.n_threads} has an entry already; keep one"
        if entry.bytes_per_second <= 0.0:
            yield f"{at}.bytes_per_second", f"{entry.bytes_per_second} is not positive"
        peak = processor.memory_peak_bytes_per_second
        yield from _peak_problems(
            f"{at}.bytes_per_second", entry.bytes_per_second, peak, "memory_peak_bytes_per_second"
        )
        if entry.op_seconds < 0.0:
            yield f"{at}.op_seconds", f"{entry.op_seconds} is negative"
    for name in ("copy_bytes_per_second", "event_wait_seconds", "synchronise_seconds"):
        yield from _optional_problems(f"{path}.{name}", getattr(processor, name))
        if threaded and getattr(processor, name) is not None:
            yield f"{path}.{name}", "is a GPU's; leave it out"
    seen: dict[tuple[object, ...], set[int | None]] = {}
    for i, series in enumerate(processor.series):
        at = f"{path}.series[{i}]"
        yield from _entry_problems(at, series)
        yield from _thread_problems(at, series.n_threads, threaded)
        yield from _curve_problems(at, series.batch, series.flop_per_second, "batch", "flop_per_second")
        if series.type not in type_ids():
            yield f"{at}.type", f"{series.type!r} is no ggml type; write it as in GGUF, like 'Q4_K'"
        if not threaded and series.layout != "plain":
            yield f"{at}.layout", f"{series.layout!r} on a GPU; weights lie there as in the file, leave it out"
        if threaded and series.n_threads not in counts:
            yield f"{at}.n_threads", f"{series.n_threads} has no entry in {path}.memory; add one"
        key = (series.operation, series.type, series.layout, series.n_threads)
        depths = seen.setdefault(key, set())
        if series.depth in depths:
            yield at, f"a second series for {key}; keep one"
        elif depths and None in (series.depth, *depths):
            yield f"{at}.depth", f"of the series for {key} some hold for one depth and one for any; give each a depth"
        depths.add(series.depth)
        for name in ("depth", "first_bytes_per_second"):
            if (value := getattr(series, name)) is not None and (series.operation != "attention" or value <= 0):
                yield f"{at}.{name}", f"{value} of {series.operation}; it is attention's, and positive"
        if series.flop_per_second:
            most, peak = max(series.flop_per_second), processor.peak_flop_per_second
            yield from _peak_problems(f"{at}.flop_per_second", most, peak, "peak_flop_per_second")


def _thread_problems(path: str, n_threads: int | None, threaded: bool) -> Iterator[tuple[str, str]]:
    if threaded and (n_threads is None or n_threads <= 0):
        yield f"{path}.n_threads", f"{n_threads} is not positive; a CPU entry needs its thread count"
    if not threaded and n_threads is not None:
        yield f"{path}.n_threads", f"{n_threads} on a GPU; leave it out"


def _link_problems(link: Link) -> Iterator[tuple[str, str]]:
    for name, curve in (("up", link.up), ("down", link.down)):
        at = f"$.link.{name}"
        yield from _entry_problems(at, curve)
        yield from _curve_problems(at, curve.chunk_bytes, curve.bytes_per_second, "chunk_bytes", "bytes_per_second")
        if curve.latency_seconds < 0.0:
            yield f"{at}.latency_seconds", f"{curve.latency_seconds} is negative"
        most = max(curve.bytes_per_second, default=0.0)
        yield from _peak_problems(f"{at}.bytes_per_second", most, curve.peak_bytes_per_second, "peak_bytes_per_second")
    if link.copy_engines < 1:
        yield "$.link.copy_engines", f"{link.copy_engines} is not at least 1"
    yield from _figure_problems("$.link.pageable_bytes_per_second", link.pageable_bytes_per_second)
    yield from _figure_problems("$.link.handoff_to_gpu_seconds", link.handoff_to_gpu_seconds)
    yield from _figure_problems("$.link.handoff_to_cpu_seconds", link.handoff_to_cpu_seconds)
    yield from _figure_problems("$.link.cpu_rate_under_copy", link.cpu_rate_under_copy, most=1.0)
    yield from _figure_problems("$.link.copy_rate_under_cpu", link.copy_rate_under_cpu, most=1.0)
    for name in ("scattered_bytes_per_second", "pageable_down_bytes_per_second"):
        yield from _optional_problems(f"$.link.{name}", getattr(link, name))
    for name in ("up_rate_under_down", "down_rate_under_up", "gpu_rate_under_copy", "copy_rate_under_gpu"):
        yield from _optional_problems(f"$.link.{name}", getattr(link, name), most=1.0)
