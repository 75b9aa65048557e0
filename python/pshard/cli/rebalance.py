"""``pshard rebalance``: measured latencies in, a better assignment out, where it is worth the move."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._cluster import with_cluster
from pshard.cli._options import FILE, read_rate, read_size
from pshard.cli._output import Output, with_output

if TYPE_CHECKING:
    from pshard.rebalance.audit import AuditLog


# Options of `RebalanceConfig`, whose names and defaults they have; a test holds them together.
SETTINGS: tuple[tuple[str, int | float, str], ...] = (
    ("min_samples", 100, "Passes of every shard before anything is decided."),
    ("imbalance_threshold", 2.0, "Slowest over fastest shard that is a reason to move without a shift."),
    ("eval_interval_secs", 60.0, "A decision stands for so long, unless a shift is found."),
    ("window", 256, "Latencies that estimates are made from."),
    ("warm_up", 10, "First latencies of a shard that are set aside."),
    ("half_life", 32.0, "Latencies after which one counts half in the decayed average."),
    ("false_alarms_per_window", 1e-4, "Proposals that noise alone may cause."),
    ("min_gain", 0.1, "Speed-up less 1 below which nothing is moved."),
    ("max_break_even_secs", 600.0, "A move must have paid back by then."),
    ("hysteresis", 1.0, "Times the price of a move that staying must cost before going back."),
    ("silent_passes", 100, "A shard that is behind the others by more has stopped reporting."),
    ("retry_secs", 3600.0, "A device left without layers is tried again after so long."),
)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `SETTINGS`, and their values as one argument `settings`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:
        command(*args, settings={name: options.pop(name) for name, _, _ in SETTINGS}, **options)

    wrapped: Callable[..., None] = wrapper
    for name, default, text in reversed(SETTINGS):
        option = f"--{name.replace('_', '-')}"
        wrapped = click.option(
            option, type=type(default), default=default, show_default=True, metavar="N", help=text
        )(wrapped)  # fmt: skip
    return wrapped


@click.command("rebalance")
@click.argument("current", required=False, metavar="[CURRENT]")
@click.argument("metrics", required=False, metavar="[METRICS]")
@click.option("--layers", metavar="NAME=N,...", help="Layers of each shard, instead of CURRENT: gpu0=20,gpu1=12.")
@click.option(
    "-m", "--model", "model_name", metavar="MODEL", help="The model that is deployed: a GGUF or a catalogue name."
)
@click.option("--mmproj", type=click.Path(dir_okay=False), metavar="FILE", help="The projector of a map that has one.")
@with_cluster
@click.option("--machine", metavar="NAME|FILE", help="The machine of a plan, as `pshard plan` takes it.")
@click.option("--gpu", metavar="NAME", help="The GPU of a plan, as `pshard plan` takes it.")
@click.option("--pcie", metavar="GENxLANES", help="The GPU's slot, as `pshard plan` takes it.")
@click.option("--cpu", metavar="CORES|HOST", help="The CPU of a plan, as `pshard plan` takes it.")
@click.option("--one-stream", is_flag=True, help="Layers by hand: least sum of all shards, not least slowest one.")
@click.option("--layer-bytes", callback=read_size, metavar="SIZE",
              help="Layers by hand: weights of each, 220M.  [default: those of -m]")  # fmt: skip
@click.option("--link", "link_rate", callback=read_rate, metavar="RATE",
              help="Layers by hand: at which they move, 12GB/s.  [default: of --cluster or --devices]")  # fmt: skip
@click.option("--watch", is_flag=True, help="Go on until interrupted: follow a growing file, poll an engine.")
@click.option("--interval", type=click.FloatRange(0.01), default=5.0, show_default=True, metavar="S",
              help="Seconds between two looks, with --watch.")  # fmt: skip
@click.option(
    "--apply", "applies", is_flag=True, help="Write a proposal: map, plan, registry, flags. The former is kept."
)
@click.option("--undo", is_flag=True, help="Take back what --apply wrote last; twice is as before.")
@click.option("--flags", "flags_file", type=FILE, metavar="FILE",
              help="File of engine flags that --apply writes.")  # fmt: skip
@click.option("--registry", type=FILE, metavar="FILE",
              help="Registry of a plan that --apply writes.  [default: beside the model]")  # fmt: skip
@click.option("--history", "history_file", type=FILE, metavar="FILE",
              help="What is remembered between calls.  [default: with --apply, beside what it writes]")  # fmt: skip
@click.option("--audit", "audit_file", type=FILE, metavar="FILE",
              help="Append every decision with its reasons: JSON lines.")  # fmt: skip
@with_settings
@with_output
def command(
    out: Output,
    /,
    *,
    current: str | None,
    metrics: str | None,
    layers: str | None,
    watch: bool,
    interval: float,
    applies: bool,
    undo: bool,
    flags_file: Path | None,
    registry: Path | None,
    history_file: Path | None,
    audit_file: Path | None,
    settings: dict[str, Any],
    **deployed: Any,
) -> None:
    """Move layers to where latencies measured while serving are less.

    \b
    pshard rebalance map.json metrics.jsonl -m model.gguf --cluster cluster.toml
    pshard rebalance --layers gpu0=20,gpu1=12 metrics.jsonl --watch
    pshard rebalance plan.json http://localhost:8080/metrics -m model.gguf --gpu rtx-3060-12g

    CURRENT is what is deployed: the document of `pshard map`, `pshard shard` or `pshard plan` (--json). METRICS is a
    file of JSON lines, as `pshard run` writes it, or llama-server's or vLLM's Prometheus counters (a URL or a file),
    which tell of the engine as a whole. Nothing is written without --apply.
    """
    from pshard.cli._rebalance_session import KeptHistory, Session
    from pshard.cli._rebalance_target import read_target
    from pshard.rebalance.audit import AuditLog
    from pshard.rebalance.balancer import RebalanceConfig
    from pshard.rebalance.sources import source_of

    if layers is not None and metrics is None:
        current, metrics = None, current  # the one argument is then the metrics
    if (current is None) == (layers is None):
        message = "say what is deployed: CURRENT or --layers." if layers is None else "CURRENT and --layers; give one."
        raise click.UsageError(message)
    audit = AuditLog(audit_file)
    if undo:
        _undo(out, audit, _first_written(current, flags_file))
        return
    if metrics is None:
        message = "METRICS is missing: a file of JSON lines, or the address of an engine's counters."
        raise click.UsageError(message)
    config = RebalanceConfig(**settings)
    target = read_target(out, current, layers, metrics, config, flags_file, registry, **deployed)
    if applies and target.first_file is None:
        message = "--apply needs a file to write for layers by hand; name one (--flags FILE)."
        raise click.UsageError(message)
    history = KeptHistory(target, history_file, applies=applies)
    session = Session(out, target, source_of(metrics), history, audit, applies=applies)
    audit.write("start", {"metrics": metrics, "current": current, "config": dataclasses.asdict(config)})
    if watch:
        session.watch(interval)
    else:
        session.once(metrics)


def _first_written(current: str | None, flags_file: Path | None) -> Path:
    """Return the first file that --apply wrote, beside which it keeps what there was."""
    from pshard.rebalance.deployed_document import ShardDocument, read_document
    from pshard.rebalance.kept_file import former_path

    if current is not None and (
        former_path(current).exists() or not isinstance(read_document(current).fields, ShardDocument)
    ):
        return Path(current)
    if flags_file is None:
        message = "of layers by hand --apply writes the flags alone; name their file (--flags FILE)."
        raise click.UsageError(message)
    return flags_file


def _undo(out: Output, audit: AuditLog, path: Path) -> None:
    from pshard.rebalance.kept_file import restore

    restored = [str(file) for file in restore(path)]
    audit.write("undone", {"paths": restored})
    out.json({"schema_version": 1, "restored": restored})
    for file in restored:
        out.line(f"Restored: {file}")
