"""What a run leaves behind: the JSON document, the trace for Chrome or Perfetto, and lines for the rebalancer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pshard import _core
    from pshard.run.execution import Execution, Phase, PhaseResult

SCHEMA_VERSION = 1
MICRO = 1e6

MEASURED, PREDICTED = 1, 2


def describe(run: Execution) -> dict[str, object]:
    """Return the document that ``pshard run --json`` prints: see docs/execution.md."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": run.model.name,
        "backend": run.backend,
        "weights": run.weights,
        "checking": run.is_checking,
        "page_locked_bytes": run.locked_bytes,
        "staged_bytes": run.staged_bytes,
        "ttft_seconds": run.ttft_seconds,
        "tokens_per_second": run.tokens_per_second,
        "predicted_ttft_seconds": predicted_ttft(run),
        "predicted_tokens_per_second": predicted_rate(run),
        "phases": [_phase(result) for result in run.phases],
        "notes": list(run.notes),
    }


def predicted_ttft(run: Execution) -> float | None:
    """Predicted seconds of all passes of the prompt; None where none ran, or was priced."""
    seconds = [(r.phase.count, r.predicted) for r in run.phases if r.phase.name == "prefill"]
    if not seconds or any(time is None for _, time in seconds):
        return None
    return sum(count * time.seconds for count, time in seconds if time is not None)


def predicted_rate(run: Execution) -> float | None:
    """Predicted tokens per second of decode; None where none ran, or was priced."""
    decode = next((r for r in run.phases if r.phase.name == "decode"), None)
    return None if decode is None or decode.predicted is None else decode.phase.n_tokens / decode.predicted.seconds


def _phase(result: PhaseResult) -> dict[str, object]:
    record = result.typical
    return {
        "phase": result.phase.name,
        "n_tokens": result.phase.n_tokens,
        "strategy": result.phase.strategy,
        "passes_needed": result.phase.count,
        "passes_run": len(result.records),
        "seconds": result.seconds,
        "predicted_seconds": result.predicted.seconds if result.predicted else None,
        "predicted_spread_seconds": result.predicted.spread_seconds if result.predicted else None,
        "splits": len(record.splits),
        "kinds": [
            {"kind": kind, "splits": n, "predicted_compute_seconds": predicted, "compute_seconds": measured}
            for kind, (n, predicted, measured) in result.by_kind().items()
        ],
        "compute_seconds": result.compute_seconds,
        "copy_seconds": result.copy_seconds,
        "overlap": result.overlap,
        "up_bytes": record.up_bytes,
        "down_bytes": record.down_bytes,
        "activation_bytes": record.activation_bytes,
        "checked": sum(r.n_checked for r in result.records),
        "switch": {
            "seconds": result.switch.seconds,
            "up_bytes": result.switch.up_bytes,
            "down_bytes": result.switch.down_bytes,
        },
        "arena_peak_bytes": list(result.arena_bytes),
        "vram_bytes": list(result.phase.vram_bytes),
        "flop": result.schedule.flop,
        "left_out": [
            {"what": entry.what, "operations": entry.count, "weight_bytes": entry.weight_bytes}
            for entry in result.schedule.left_out
        ],
    }


def metrics_lines(
    phase: Phase, schedule: _core.Schedule, record: _core.PassRecord, time_unix_s: float, shards: Sequence[str]
) -> Iterator[str]:
    """Yield a line of JSON for each device that computes something of a layer in a pass, for ``pshard rebalance``.

    Latencies are of the device: what it waits for is not in them.
    """
    for device, n_layers in sorted(_layers_by_device(schedule).items()):
        busy = sum(
            times.end_seconds - times.begin_seconds
            for split, times in zip(schedule.splits, record.splits, strict=True)
            if split.device == device
        )
        yield json.dumps(
            {
                "shard": shards[device],
                "layers": n_layers,
                "phase": phase.name,
                "n_tokens": phase.n_tokens,
                "latency_us": busy * MICRO,
                "time_unix_s": time_unix_s,
            }
        )


def _layers_by_device(schedule: _core.Schedule) -> dict[int, int]:
    """Count each layer where it begins: one whose parts lie on two devices belongs to the first, and 0 may be left."""
    begun: dict[int, int] = {}
    for split in schedule.splits:
        for layer in range(split.first_layer, split.first_layer + split.n_layers):
            begun.setdefault(layer, split.device)
    counts = {split.device: 0 for split in schedule.splits if split.n_layers}
    for device in begun.values():
        counts[device] += 1
    return counts


def trace_of(run: Execution) -> dict[str, object]:
    """Return a trace for chrome://tracing or ui.perfetto.dev: the typical pass of each phase, one track per lane.

    What was measured and what was predicted are two processes; phases follow each other.
    """
    trace = _Trace()
    start = 0.0
    for result in run.phases:
        label = f"{result.phase.name} {result.phase.n_tokens}"
        record, splits = result.typical, result.schedule.splits
        for i, (split, times) in enumerate(zip(splits, record.splits, strict=True)):
            lane = f"{run.shards[split.device]} compute"
            length = times.end_seconds - times.begin_seconds
            trace.add(MEASURED, lane, _name(split, i), start + times.begin_seconds, length, phase=label)
        for copy in record.copies:
            device = run.shards[copy.device]
            length = copy.end_seconds - copy.begin_seconds
            name = _name(splits[copy.split], copy.split)
            trace.add(MEASURED, f"{device} {copy.stream}", name, start + copy.begin_seconds, length, bytes=copy.n_bytes)
        for i, (split, priced) in enumerate(zip(splits, result.predicted_splits, strict=False)):
            lane = f"{run.shards[split.device]} compute"
            begin = start + priced.compute_begin_seconds
            trace.add(PREDICTED, lane, _name(split, i), begin, priced.compute_seconds, phase=label)
            computed = priced.compute_begin_seconds + priced.compute_seconds
            for stream, at, length in (
                (_lane(split), priced.copy_begin_seconds, priced.copy_seconds),
                (_lane(split), priced.compute_begin_seconds - priced.exposed_seconds, priced.exposed_seconds),
                ("down", computed, priced.write_back_seconds),
            ):
                if length > 0.0:
                    lane = f"{run.shards[split.device]} {stream}"
                    trace.add(PREDICTED, lane, _name(split, i), start + at, length)
        predicted = result.predicted.seconds if result.predicted else 0.0
        start += max(record.seconds, predicted) * 1.05
    return {"displayTimeUnit": "ms", "traceEvents": [*trace.names(), *trace.events]}


class _Trace:
    """Events on tracks, which are numbered as they come up."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []
        self._tracks: dict[tuple[int, str], int] = {}

    def add(self, process: int, track: str, name: str, begin: float, seconds: float, **arguments: object) -> None:
        """Add an event that begins and lasts so many seconds."""
        self.events.append(
            {
                "name": name,
                "ph": "X",
                "pid": process,
                "tid": self._tracks.setdefault((process, track), len(self._tracks) + 1),
                "ts": begin * MICRO,
                "dur": max(seconds, 0.0) * MICRO,
                "args": arguments,
            }
        )

    def names(self) -> list[dict[str, object]]:
        """Return what names the processes and their tracks."""
        processes: list[dict[str, object]] = [
            {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}
            for process, name in ((MEASURED, "measured"), (PREDICTED, "predicted"))
        ]
        return processes + [
            {"name": "thread_name", "ph": "M", "pid": process, "tid": number, "args": {"name": name}}
            for (process, name), number in self._tracks.items()
        ]


def _lane(split: _core.Split) -> str:
    from pshard import _core

    return "lane b" if split.lane == _core.Where.stream_b else "lane a"


def _name(split: _core.Split, index: int) -> str:
    if split.n_layers == 0:
        return f"split {index}"
    last = split.first_layer + split.n_layers - 1
    return f"layer {split.first_layer}" if split.n_layers == 1 else f"layers {split.first_layer} to {last}"
