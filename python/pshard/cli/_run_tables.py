"""The tables of ``pshard run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.cli._output import Output, format_bytes
from pshard.run.document import predicted_rate, predicted_ttft

if TYPE_CHECKING:
    from collections.abc import Callable

    from pshard.run.execution import Execution, PhaseResult

WHERE = {"host": "threads of this machine in place of a GPU", "cuda": "the GPU"}


def print_run(out: Output, run: Execution) -> None:
    """Print a run: each phase with predicted beside measured, then what the workload takes."""
    out.line(f"model     {run.model.name}, weights {'of the file' if run.weights == 'file' else 'random'}")
    out.line(f"on        {WHERE[run.backend]}")
    if run.locked_bytes or run.staged_bytes:
        staged = f", {format_bytes(run.staged_bytes)} staged through a ring" if run.staged_bytes else ""
        out.line(f"copied    from {format_bytes(run.locked_bytes)} of page-locked memory{staged}")
    for result in run.phases:
        out.line()
        _print_phase(out, run, result)
    out.line()
    if run.ttft_seconds is not None:
        out.line(f"TTFT  {_time(run.ttft_seconds)}{_beside(predicted_ttft(run), run.ttft_seconds, _time)}")
    if run.tokens_per_second is not None:
        rate = predicted_rate(run)
        out.line(f"TPS   {_rounded(run.tokens_per_second)}{_beside(rate, run.tokens_per_second, _rounded)}")


def _print_phase(out: Output, run: Execution, result: PhaseResult) -> None:
    record, phase = result.typical, result.phase
    predicted = result.predicted.seconds if result.predicted else None
    title = (
        f"{phase.name}: {_count(phase.n_tokens, 'token')}, {phase.strategy}, {_count(len(record.splits), 'split')}; "
        f"{_count(len(result.records), 'pass', 'passes')} run, {phase.count} needed"
    )
    rows: list[tuple[str, object, object, object, object]] = [
        (f"{kind} splits", n, _milliseconds(of_plan), _milliseconds(measured), _error(of_plan, measured))
        for kind, (n, of_plan, measured) in result.by_kind().items()
    ]
    # What copies that nothing hides, activations on their way, and hand-offs add to computing.
    computing = sum(split.compute_seconds for split in result.predicted_splits)
    waiting = _milliseconds(None if predicted is None else max(predicted - computing, 0.0))
    rows.append(("waiting", None, waiting, _milliseconds(max(result.seconds - result.compute_seconds, 0.0)), None))
    rows.append(
        ("pass", None, _milliseconds(predicted), _milliseconds(result.seconds), _error(predicted, result.seconds))
    )
    out.table(("", "splits", "predicted ms", "measured ms", "error"), rows, title=title)
    moved = (("up", record.up_bytes), ("down", record.down_bytes), ("of activations", record.activation_bytes))
    copied = ", ".join(f"{format_bytes(n_bytes)} {way}" for way, n_bytes in moved if n_bytes)
    out.line(f"copied per pass: {copied or 'nothing'}")
    if result.overlap is not None:
        shorter = "copying" if result.copy_seconds <= result.compute_seconds else "computing"
        out.line(f"overlap: {result.overlap:.0%} of {shorter}, the shorter, went on beside the other")
    for gpu, (peak, allowed) in enumerate(zip(result.arena_bytes, phase.vram_bytes, strict=True)):
        if peak or allowed:
            out.line(f"arena of {run.shards[gpu + 1]}: {format_bytes(peak)} at most, {format_bytes(allowed)} planned")
    if result.switch.up_bytes or result.switch.down_bytes:
        down = f", {format_bytes(result.switch.down_bytes)} down" if result.switch.down_bytes else ""
        took = _time(result.switch.seconds)
        out.line(f"switched to it before: {format_bytes(result.switch.up_bytes)} up{down}, in {took}")
    n_checked = sum(r.n_checked for r in result.records)
    if n_checked:
        out.line(f"checked: {n_checked} shards and results, all right")


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or f'{one}s'}"


def _beside(predicted: float | None, measured: float, text: Callable[[float], str]) -> str:
    return "" if predicted is None else f", predicted {text(predicted)} ({_error(predicted, measured)})"


def _rounded(value: float) -> str:
    """Return three digits or more, and no exponent."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"


def _time(seconds: float) -> str:
    return f"{_rounded(seconds)} s" if seconds >= 1.0 else f"{_rounded(seconds * 1e3)} ms"


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else _rounded(seconds * 1e3)


def _error(predicted: float | None, measured: float) -> str | None:
    # A split in which nothing computes takes the time of reading a clock.
    return None if not predicted or measured <= 0.0 else f"{predicted / measured - 1.0:+.0%}"
