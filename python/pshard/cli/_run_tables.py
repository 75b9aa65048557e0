"""The tables of ``pshard run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.cli._output import Output, format_bytes
from pshard.run.document import predicted_rate, predicted_ttft

if TYPE_CHECKING:
    from pshard.run.execution import Execution, PhaseResult

WHERE = {"host": "threads of this machine in place of a GPU", "cuda": "the GPU"}


def print_run(out: Output, run: Execution) -> None:
    """Print a run: each phase with predicted beside measured, then what the workload takes."""
    out.line(f"model     {run.model.name}, weights {'of the file' if run.weights == 'file' else 'random'}")
    out.line(f"on        {WHERE[run.backend]}")
    for result in run.phases:
        out.line()
        _print_phase(out, run, result)
    out.line()
    if run.ttft_seconds is not None:
        predicted = predicted_ttft(run)
        out.line(f"TTFT {_seconds(run.ttft_seconds)}{_beside(predicted, run.ttft_seconds, _seconds)}")
    if run.tokens_per_second is not None:
        rate = predicted_rate(run)
        out.line(f"TPS  {run.tokens_per_second:.3g}{_beside(rate, run.tokens_per_second, lambda v: f'{v:.3g}')}")


def _print_phase(out: Output, run: Execution, result: PhaseResult) -> None:
    record, phase = result.typical, result.phase
    title = (
        f"{phase.name}: {phase.n_tokens} tokens, {phase.strategy}, {len(record.splits)} splits; "
        f"{_passes(len(result.records))} run, {phase.count} needed"
    )
    rows: list[tuple[str, object, object, object, object]] = []
    waiting_predicted = result.predicted.seconds if result.predicted else None
    waiting = record.seconds
    for kind, (n, predicted, measured) in result.by_kind().items():
        rows.append(
            (f"{kind} splits", n, _milliseconds(predicted), _milliseconds(measured), _error(predicted, measured))
        )
        waiting -= measured
        waiting_predicted = None if waiting_predicted is None or predicted is None else waiting_predicted - predicted
    # What the lanes and the borders add to computing.
    rows.append(("waiting for copies", None, _milliseconds(waiting_predicted), _milliseconds(max(waiting, 0.0)), None))
    total = result.predicted.seconds if result.predicted else None
    rows.append(("pass", None, _milliseconds(total), _milliseconds(result.seconds), _error(total, result.seconds)))
    out.table(("", "splits", "predicted ms", "measured ms", "error"), rows, title=title)
    moved = [f"{format_bytes(record.up_bytes)} up", f"{format_bytes(record.down_bytes)} down"]
    moved.append(f"{format_bytes(record.activation_bytes)} of activations")
    out.line(f"copied per pass: {', '.join(moved)}")
    if result.overlap is not None:
        out.line(f"overlap: {result.overlap:.0%} of what copies and computing can hide of each other")
    for gpu, (peak, allowed) in enumerate(zip(result.arena_bytes, phase.vram_bytes, strict=True)):
        name = run.shards[gpu + 1] if len(run.shards) > gpu + 1 else f"gpu{gpu}"
        out.line(f"arena of {name}: {format_bytes(peak)}, {format_bytes(allowed)} planned")
    if result.switch.up_bytes:
        up = format_bytes(result.switch.up_bytes)
        out.line(f"became resident before: {up} in {_milliseconds(result.switch.seconds)} ms")
    n_checked = sum(r.n_checked for r in result.records)
    if n_checked:
        out.line(f"checked: {n_checked} shards and results, all right")


def _passes(n: int) -> str:
    return "1 pass" if n == 1 else f"{n} passes"


def _beside(predicted: float | None, measured: float, text: object) -> str:
    if predicted is None or not callable(text):
        return ""
    return f", predicted {text(predicted)} ({_error(predicted, measured)})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1e3:.4g}"


def _error(predicted: float | None, measured: float) -> str | None:
    return None if predicted is None or measured <= 0.0 else f"{predicted / measured - 1.0:+.0%}"
