"""A decision of the rebalancer as text."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from pshard.cli._output import Output, format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pshard.rebalance.balancer import Decision, ShardMetrics
    from pshard.rebalance.deployment import Way


def print_decision(
    out: Output, decision: Decision, metrics: Sequence[ShardMetrics], flags: Sequence[str], written: Sequence[Path]
) -> None:
    """Print shards and decision, and what a proposal takes."""
    out.table(
        ["shard", "layers", "then", "phase", "passes", "median ms", "+-", "average ms", "against expected", "shift"],
        [row for shard in metrics for row in _rows(shard, decision)],
    )
    out.line()
    heading = {"balanced": "Balanced", "rebalance": "Rebalance", "insufficient_data": "Insufficient data"}
    out.line(f"{heading[decision.kind]}. {decision.reason}")
    if decision.kind == "rebalance":
        out.line(_move(decision))
        if flags:
            out.line()
            out.line(shlex.join(flags))
    for path in written:
        out.line(f"Written: {path} (--undo takes it back)")


def _rows(shard: ShardMetrics, decision: Decision) -> list[list[object]]:
    then = dict(decision.suggested or ()).get(shard.shard)
    after = "" if then is None or then == shard.layers else str(then)
    rows: list[list[object]] = []
    for phase, estimate in shard.phases.items():
        median = shard.median_us[phase]
        shift = shard.shifts.get(phase)
        rows.append(
            [
                shard.shard,
                shard.layers or None,
                after,
                phase,
                estimate.samples,
                f"{median / 1e3:.3f}",
                f"{200 * estimate.error:.1f} %",
                f"{median * estimate.average / estimate.median / 1e3:.3f}",
                f"{estimate.median:.3g}",
                f"x {shift.factor:.2f}" if shift is not None else None,
            ]
        )
    return rows or [[shard.shard, shard.layers or None, after, *[None] * 7]]


def _way(way: Way | None) -> str:
    if way is None or not math.isfinite(way.bytes_per_second):
        return ""
    return f" over {way.link} at {way.bytes_per_second / 1e9:.3g} GB/s"


def _move(decision: Decision) -> str:
    parts = [f"{decision.estimated_speedup:.2f} times as fast"]
    if decision.single_stream_speedup != decision.estimated_speedup:
        parts.append(f"{decision.single_stream_speedup:.2f} times for one stream")
    move = decision.move
    if move is None or not move.layers:
        return f"{', '.join(parts)}."
    if move.bytes_to is None:
        parts.append(
            f"{move.layers} layers move; their bytes are not known, so neither is when that pays back: give -m or "
            "--layer-bytes, and --link"
        )
    else:
        by_device = ", ".join(
            f"{format_bytes(n)} to {name}{_way(move.ways.get(name))}" for name, n in move.bytes_to.items()
        )
        parts.append(f"{move.layers} layers move: {by_device}")
        if move.seconds is None:
            parts.append("over which link is not known, so neither is when that pays back: give --link")
    if move.seconds is not None and decision.break_even_seconds is not None:
        parts.append(f"{move.seconds:.2g} s, paid back after {decision.break_even_seconds:.2g} s of serving")
    return f"{'; '.join(parts)}."
