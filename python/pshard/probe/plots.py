"""A profile as a picture: rooflines with what was measured, and the curves of copies or of memory over threads.

Needs matplotlib, the extra ``plot``. Drawn to be read in print as well: lines differ in shape and not only in colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pshard.errors import MachineError, SettingError
from pshard.machine.rates import bits_per_weight
from pshard.weight_types import common_first

if TYPE_CHECKING:
    import os

    from pshard.machine.profile import Curve, Link, Processor, Profile, Series

FORMATS = (".png", ".svg")
GIGA, TERA, MIB = 1e9, 1e12, 1 << 20
# Distinct in colour blindness and in grey: Okabe and Ito's palette, without its yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_TYPES = 5  # more make a cloud


def draw_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Draw a profile into a file.

    Parameters
    ----------
    profile : Profile
    path : path-like
        Ends in .png or .svg.

    Raises
    ------
    SettingError
        Another ending.
    MachineError
        matplotlib is not installed, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        msg = f"{path}: a plot is a {' or '.join(FORMATS)} file; choose one of these endings"
        raise SettingError(msg)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        msg = "plots need matplotlib, which is not installed; install it: pip install 'pshard[plot]'"
        raise MachineError(msg) from error
    processors = [("CPU", profile.cpu)] + ([("GPU", profile.gpu)] if profile.gpu is not None else [])
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.6,
        "svg.fonttype": "none",
    }
    with rc_context(style):
        figure = Figure(figsize=(5.2 * (len(processors) + 1), 5.0), layout="constrained")
        axes = figure.subplots(1, len(processors) + 1)
        for axis, (label, processor) in zip(axes[:-1], processors, strict=True):
            _draw_roofline(axis, label, processor)
        if profile.link is not None:
            _draw_link(axes[-1], profile.link)
        else:
            _draw_threads(axes[-1], profile.cpu)
        created = f", {profile.created}" if profile.created else ""
        figure.suptitle(f"{profile.name}{created}", fontsize=11, fontweight="bold")
        try:
            figure.savefig(path, dpi=200)
        except OSError as error:
            msg = f"{path}: cannot be written ({error.strerror or error}); choose another file"
            raise MachineError(msg) from error


def intensity(series: Series, batch: float) -> float:
    """FLOP for each byte of weights that a product of `batch` rows reads."""
    return 2.0 * batch * 8.0 / bits_per_weight(series.type)


def _draw_roofline(axis: Any, label: str, processor: Processor) -> None:
    n_threads = max((entry.n_threads or 0 for entry in processor.series), default=0) or None
    memory = next((entry for entry in processor.memory if entry.n_threads == n_threads), processor.memory[-1])
    series = [entry for entry in processor.series if entry.operation == "mul_mat" and entry.n_threads == n_threads]
    shown = common_first({entry.type for entry in series})[:MOST_TYPES]
    series = [entry for entry in series if entry.type in shown]
    bandwidth = memory.bytes_per_second
    roof = max((rate for entry in series for rate in entry.flop_per_second), default=processor.peak_flop_per_second)
    ridge = roof / bandwidth
    top = processor.peak_flop_per_second / processor.memory_peak_bytes_per_second
    low, high = 0.5, max(8.0 * ridge, 2.0 * top, *(intensity(entry, entry.batch[-1]) for entry in series), 64.0) * 1.5
    axis.plot([low, ridge, high], [low * bandwidth, roof, roof], color="black", linewidth=1.6, zorder=2)
    axis.plot([ridge, ridge], [low * bandwidth, roof], color="black", linewidth=0.8, linestyle=":", zorder=1)
    peak_bandwidth, peak = processor.memory_peak_bytes_per_second, processor.peak_flop_per_second
    bounds = [low * peak_bandwidth, peak, peak]
    origin = "measured in registers" if processor.peaks_measured else "as stated"
    axis.plot([low, peak / peak_bandwidth, high], bounds, color="grey", linewidth=1.0, zorder=1)
    axis.annotate(
        f"peak: {_flop(peak)} ({origin})",
        (high, peak),
        xytext=(-4, 5),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axis.annotate(
        f"ridge: {ridge:.3g} FLOP/byte",
        (ridge, roof),
        xytext=(-6, 2),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axis.annotate(
        f"reading: {bandwidth / GIGA:.3g} GB/s",
        (ridge / 4.0, ridge / 4.0 * bandwidth),
        xytext=(-6, 2),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axis.annotate(
        f"best product: {_flop(roof)}", (high, roof), xytext=(-4, 5), textcoords="offset points", ha="right", fontsize=8
    )
    for index, name in enumerate(shown):
        for entry in series:
            if entry.type != name:
                continue
            filled = entry.source in ("measured", "imported")
            colour = COLOURS[index]
            axis.plot(
                [intensity(entry, batch) for batch in entry.batch],
                entry.flop_per_second,
                color=colour,
                marker=MARKERS[index],
                markersize=5,
                linewidth=0.9,
                linestyle="-" if entry.layout == "plain" else "--",
                markerfacecolor=colour if filled else "white",
                label=f"{name}{' interleaved' if entry.layout != 'plain' else ''}",
                zorder=3,
            )
    sources = sorted({entry.source for entry in series})
    threads = f", {n_threads} thread{'s' if n_threads > 1 else ''}" if n_threads else ""
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(0.8 * low * bandwidth, 2.0 * peak))
    axis.set_title(f"{label}{threads}: products ({', '.join(sources)})", fontsize=10)
    axis.set_xlabel("FLOP per byte of weights (grows with the batch)")
    axis.set_ylabel("FLOP/s")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(lambda value, _: _flop(value))
    axis.legend(fontsize=8, loc="lower right", framealpha=0.9)


def _draw_link(axis: Any, link: Link) -> None:
    for label, curve, colour, marker in (("up", link.up, COLOURS[0], "o"), ("down", link.down, COLOURS[1], "s")):
        sizes = [chunk / MIB for chunk in curve.chunk_bytes]
        # The curve leaves out the set-up, which a copy by itself waits for.
        alone = [chunk / (curve.latency_seconds + chunk / rate) for chunk, rate in _points(curve)]
        line: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5 if label == "up" else 8}
        face = colour if label == "up" else "none"
        rates = [rate / GIGA for _, rate in _points(curve)]
        axis.plot(sizes, rates, markerfacecolor=face, label=f"{label} ({curve.source})", **line)
        dashed = {"color": colour, "linestyle": "--", "linewidth": 0.9}
        axis.plot(sizes, [rate / GIGA for rate in alone], label=f"{label}, with its set-up", **dashed)
    peak = max(link.up.peak_bytes_per_second, link.down.peak_bytes_per_second) / GIGA
    pageable = link.pageable_bytes_per_second.value / GIGA
    for rate, text, style in ((peak, "peak of the link", "-"), (pageable, "up, not page-locked", ":")):
        axis.axhline(rate, color="black", linewidth=1.0, linestyle=style)
        at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 8}
        axis.annotate(f"{text}: {rate:.3g} GB/s", (1.0, rate), xytext=(-4, 4), ha="right", **at)
    axis.set(xscale="log", ylim=(0.0, 1.12 * peak))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title(f"Copies between host and GPU, {link.copy_engines} copy engines", fontsize=10)
    axis.set_xlabel("MiB in one copy, page-locked")
    axis.set_ylabel("GB/s")
    axis.legend(fontsize=8, loc="center right", framealpha=0.9)


def _points(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.chunk_bytes, curve.bytes_per_second, strict=True))


def _draw_threads(axis: Any, cpu: Processor) -> None:
    memory = sorted(cpu.memory, key=lambda entry: entry.n_threads or 0)
    counts = [entry.n_threads or 1 for entry in memory]
    rates = [entry.bytes_per_second / GIGA for entry in memory]
    widths = [entry.bytes_per_second * entry.spread / GIGA for entry in memory]
    axis.errorbar(counts, rates, yerr=widths, color=COLOURS[0], marker="o", capsize=3, label=memory[-1].source)
    if len(counts) > 1:
        linear = [rates[0] * count / counts[0] for count in counts]
        axis.plot(counts, linear, color="grey", linewidth=0.9, linestyle=":", label="in proportion to threads")
    axis.set(ylim=(0.0, 1.3 * max(rates)), xticks=counts)
    axis.set_title("Host memory, sequential reads (no GPU, so no link)", fontsize=10)
    axis.set_xlabel("threads")
    axis.set_ylabel("GB/s")
    axis.legend(fontsize=8, loc="lower right")


def _flop(value: float) -> str:
    return f"{value / TERA:.3g} TFLOP/s" if value >= TERA else f"{value / GIGA:.3g} GFLOP/s"
