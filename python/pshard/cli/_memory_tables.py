"""A budget sheet as people read it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pshard.cli._output import Output, format_bytes
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard.launch.line import LaunchLine
    from pshard.memory.check import CheckRow
    from pshard.memory.report import DeviceMemory, MemoryReport, ProjectorMemory


def _mib(n_bytes: int | None) -> str | None:
    """Bytes as a cell: MiB with one digit, nothing for nothing."""
    return None if not n_bytes else f"{n_bytes / MIB:.1f}"


def print_report(out: Output, report: MemoryReport, line: LaunchLine) -> None:
    """Print what a launch takes: a column per memory, a row per kind of buffer.

    Parameters
    ----------
    out : Output
    report : MemoryReport
    line : LaunchLine
        Whose program's defaults are named.
    """
    _print_head(out, report, line)
    names = [memory.name for memory in (*report.devices, report.host)]
    out.line()
    out.table(["MiB", *names], [[what, *(_mib(cells.get(name)) for name in names)] for what, cells in _rows(report)])
    out.line()
    sums: list[list[object]] = [["used", *(f"{report.used_bytes(name) / MIB:.1f}" for name in names)]]
    free = {memory.name: memory.free_bytes for memory in (*report.devices, report.host)}
    sums.append(["free before", *(_mib(free[name]) for name in names)])
    left = {name: report.left_bytes(name) for name in names}
    sums.append(["stays free", *(None if (n := left[name]) is None else f"{n / MIB:.1f}" for name in names)])
    out.table(["MiB", *names], sums)
    out.line()
    for sentence in _sentences(report):
        out.line(sentence)


def _print_head(out: Output, report: MemoryReport, line: LaunchLine) -> None:
    types = line.type_k if line.type_k == line.type_v else f"{line.type_k} / {line.type_v}"
    context = f"{report.n_ctx_actual} tokens"
    if report.n_seq_max > 1:
        each = "shared by" if report.n_ctx_sequence == report.n_ctx_actual else f"{report.n_ctx_sequence} for each of"
        context += f", {each} {report.n_seq_max} sequences"
    batch = f"micro-batch {report.n_tokens}, flash attention {'on' if report.flash_attn else 'off'}, KV {types}"
    out.line(f"model    {report.model} ({report.architecture}), defaults of {line.program}, {report.engine}")
    out.line(f"context  {context}; {batch}")
    if report.draft is not None:
        out.line(f"draft    {report.draft.model} ({report.draft.architecture}), {report.draft.n_ctx_actual} tokens")
    if report.projector is not None:
        projector = report.projector
        out.line(f"mmproj   {projector.name} ({projector.kind}), warm-up of {projector.n_positions} positions")


def _rows(report: MemoryReport) -> list[tuple[str, dict[str, int]]]:
    """Rows of the sheet: what it is, and bytes by memory."""
    rows = _model_rows(report, "")
    rows += [(f"{adapter.kind}: {adapter.name}", adapter.model_bytes) for adapter in report.adapters]
    if report.draft is not None:
        rows += _model_rows(report.draft, "draft: ")
    if report.projector is not None:
        projector = report.projector
        rows.append(("mmproj: weights", {projector.where: projector.model_bytes}))
        rows.append(("mmproj: compute", {projector.where: projector.compute_bytes}))
        rows.append(("mmproj: inputs", {report.host.name: projector.host_bytes}))
    allowances: dict[str, dict[str, int]] = {}
    for allowance in report.allowances:
        if not allowance.on_demand:
            cells = allowances.setdefault(f"{allowance.what} *", {})
            cells[allowance.where] = cells.get(allowance.where, 0) + allowance.n_bytes
    return [*rows, *allowances.items()]


def _model_rows(report: MemoryReport, prefix: str) -> list[tuple[str, dict[str, int]]]:
    memories: Sequence[DeviceMemory] = (*report.devices, report.host)
    compute = "compute buffers" if report.exact else "compute buffers, at most"
    return [
        (f"{prefix}weights", {memory.name: memory.model_bytes for memory in memories}),
        (f"{prefix}KV cache, state", {memory.name: memory.context_bytes for memory in memories}),
        (f"{prefix}{compute}", {memory.name: memory.compute_bound_bytes for memory in memories}),
        (f"{prefix}output buffer", {report.host.name: report.output_bytes}),
    ]


def _sentences(report: MemoryReport) -> list[str]:
    """Say what no cell says: kinds of host memory, what comes on demand, and where allowances are from."""
    sentences = []
    parts = [report, *([report.draft] if report.draft is not None else [])]
    locked, mapped = sum(part.page_locked_bytes for part in parts), sum(part.mapped_bytes for part in parts)
    if locked:
        sentences.append(f"Of the host memory, {format_bytes(locked)} are page-locked.")
    if mapped:
        span = format_bytes(mapped)
        sentences.append(f"Host weights are a mapping of {span} of the file (--load-mode none reads them into memory).")
    if report.projector is not None:
        sentences += _projector_sentences(report.projector)
    for allowance in report.allowances:
        if allowance.on_demand:
            sentences.append(f"On demand: {allowance.what}, {format_bytes(allowance.n_bytes)} ({allowance.source}).")
    sources = dict.fromkeys((a.what, a.source) for a in report.allowances if not a.on_demand)
    sentences += [f"* {what}: an allowance; {source}." for what, source in sources]
    return sentences


def _projector_sentences(projector: ProjectorMemory) -> list[str]:
    """Say what a projector takes when images come."""
    output = format_bytes(projector.output_bytes)
    if projector.largest_compute_bytes == projector.compute_bytes:
        return [f"On demand: embeddings of an image or of sound, {output} of host memory."]
    largest = format_bytes(projector.largest_compute_bytes)
    positions = projector.largest_n_positions
    return [
        f"The largest image ({positions} positions), or a batch of images where llama-server makes one, may take "
        f"{largest} for compute on {projector.where}, and its embeddings {output} of host memory; the buffer grows to "
        "it (--image-max-tokens and --mtmd-batch-max-tokens limit it)."
    ]


def print_check(out: Output, rows: Sequence[CheckRow], asked: Sequence[str], left_out: Sequence[str]) -> None:
    """Print both columns of a check and their differences.

    Parameters
    ----------
    out : Output
    rows : sequence of CheckRow
    asked : sequence of str
        The command that was run.
    left_out : sequence of str
        What it could not be asked about.
    """
    out.line()
    cells: list[list[object]] = []
    for row in rows:
        engine = (row.engine_model_mib, row.engine_context_mib, row.engine_compute_mib)
        ours = (row.model_mib, row.context_mib, row.compute_mib)
        for kind, mine, theirs in zip(("weights", "context", "compute"), ours, engine, strict=True):
            cells.append([row.name, kind, mine, theirs, f"{mine - theirs:+d}" if mine != theirs else "0"])
    out.table(["memory", "MiB, rounded down", "pshard", "llama.cpp", "difference"], cells)
    out.line()
    out.line(f"llama.cpp was asked: {shlex.join(asked)}")
    if left_out:
        out.line(f"It has no flags for {', '.join(left_out)}; both columns are without.")
