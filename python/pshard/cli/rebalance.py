"""``pshard rebalance``: measured latencies in, a better assignment out, where it is worth the move."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._cluster import read_devices, with_cluster
from pshard.cli._output import Output, with_output
from pshard.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pshard.audit import AuditLog
    from pshard.rebalance import Decision, RebalanceConfig, ShardMetrics
    from pshard.rebalance_targets import Target
    from pshard.sources import Source


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
    "-m", "--model", "model_name", metavar="MODEL", help="The model of a map or plan: a GGUF or a catalogue name."
)
@click.option("--mmproj", type=click.Path(dir_okay=False), metavar="FILE", help="The projector of a map that has one.")
@with_cluster
@click.option("--machine", metavar="NAME|FILE", help="The machine of a plan, as `pshard plan` takes it.")
@click.option("--gpu", metavar="NAME", help="The GPU of a plan, as `pshard plan` takes it.")
@click.option("--pcie", metavar="GENxLANES", help="The GPU's slot, as `pshard plan` takes it.")
@click.option("--cpu", metavar="CORES|HOST", help="The CPU of a plan, as `pshard plan` takes it.")
@click.option("--one-stream", is_flag=True, help="Layers by hand: least sum of all shards, not least slowest one.")
@click.option("--watch", is_flag=True, help="Go on until interrupted: follow a growing file, poll an engine.")
@click.option("--interval", type=click.FloatRange(0.01), default=5.0, show_default=True, metavar="S",
              help="Seconds between two looks, with --watch.")  # fmt: skip
@click.option(
    "--apply", "applies", is_flag=True, help="Write a proposal: map, plan, registry, flags. The former is kept."
)
@click.option("--undo", is_flag=True, help="Take back what --apply wrote last; twice is as before.")
@click.option("--flags", "flags_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="File of engine flags that --apply writes.")  # fmt: skip
@click.option("--registry", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Registry of a plan that --apply writes.  [default: beside the model]")  # fmt: skip
@click.option("--audit", "audit_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
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
    audit_file: Path | None,
    settings: dict[str, Any],
    **deployed: Any,
) -> None:
    """Move layers to where they are faster, by latencies measured while serving.

    \b
    pshard rebalance map.json metrics.jsonl -m model.gguf --cluster cluster.toml
    pshard rebalance --layers gpu0=20,gpu1=12 metrics.jsonl --watch
    pshard rebalance plan.json http://localhost:8080/metrics -m model.gguf --gpu rtx-3060-12g

    CURRENT is what is deployed: the document of `pshard map`, `pshard shard` or `pshard plan` (--json). METRICS is a
    file of JSON lines, as `pshard run` writes it, or llama-server's or vLLM's Prometheus counters (a URL or a file),
    which tell of the engine as a whole. Nothing is written without --apply.
    """
    from pshard.audit import AuditLog
    from pshard.rebalance import RebalanceConfig
    from pshard.sources import source_of

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
    target = _target(out, current, layers, metrics, config, flags_file, registry, **deployed)
    session = _Session(out, target, source_of(metrics), audit, applies=applies)
    audit.write("start", {"metrics": metrics, "current": current, "config": dataclasses.asdict(config)})
    if watch:
        session.watch(interval)
    else:
        session.once(metrics)


class _Session:
    """Reads, decides, tells and applies."""

    def __init__(self, out: Output, target: Target, source: Source, audit: AuditLog, *, applies: bool) -> None:
        self._out = out
        self._target = target
        self._source = source
        self._audit = audit
        self._applies = applies
        self._told: dict[str, int] = {}
        self._last: Decision | None = None
        self._watching = False
        self._failures = Tally()  # of a watch, which goes on
        self._is_unapplied = False

    def once(self, metrics: str) -> None:
        """Decide on what there is, and print it."""
        from pshard.errors import MetricsError

        balancer = self._target.balancer
        self._source.read(balancer)
        self._source.finish(balancer)
        self._tell_problems()
        if not any(shard.forwards for shard in balancer.metrics.values()):
            message = f"{metrics}: no latencies of the present assignment; see the warnings."
            raise MetricsError(message)
        self._decide()

    def watch(self, interval: float) -> None:
        """Go on until interrupted. Nothing that is read or written ends it."""
        from pshard.errors import PshardError

        self._watching = True
        self._out.note(f"watching every {interval:g} s; Ctrl-C ends it")
        try:
            while True:
                self._source.read(self._target.balancer)
                try:
                    self._decide(always=False)
                except PshardError as error:
                    self._failures.add(str(error))
                self._tell_problems()
                time.sleep(interval)
        except KeyboardInterrupt:
            self._audit.write("stop", {})

    def _decide(self, *, always: bool = True) -> None:
        decision = self._target.balancer.evaluate()
        changed = self._last is None or _said(decision) != _said(self._last)
        self._last = decision
        if changed:
            self._audit.decision(decision, self._target.balancer)
        # Of what was deployed until now; applying begins anew.
        metrics = list(self._target.balancer.metrics.values())
        flags, written = self._put_into_effect(decision, is_news=changed or always)
        if changed or always or written:
            self._show(decision, metrics, flags, written)

    def _put_into_effect(self, decision: Decision, *, is_news: bool) -> tuple[tuple[str, ...], list[Path]]:
        """Return a proposal's flags and what was written of it. What could not be written is tried at each look."""
        from pshard.errors import PshardError

        if decision.kind != "rebalance" or not (is_news or self._is_unapplied):
            return (), []
        flags: tuple[str, ...] = ()
        written: list[Path] = []
        self._is_unapplied = self._applies
        try:
            flags = self._target.proposed(decision).flags
            if self._applies:
                written = self._target.apply(decision)
                self._is_unapplied = False
                self._audit.write("applied", {"paths": [str(path) for path in written]})
        except PshardError as error:
            if not self._watching:
                self._audit.write("input", {"problem": str(error)})
                raise
            self._failures.add(str(error))
        return flags, written

    def _show(
        self, decision: Decision, metrics: list[ShardMetrics], flags: tuple[str, ...], written: list[Path]
    ) -> None:
        from pshard.audit import describe_shard
        from pshard.cli._rebalance_tables import print_decision

        self._out.json(
            {
                "schema_version": 1,
                "decision": decision.to_dict(),
                "shards": [describe_shard(shard) for shard in metrics],
                "problems": dict(self._source.problems),
                "flags": list(flags),
                "written": [str(path) for path in written],
            }
        )
        print_decision(self._out, decision, metrics, flags, written)

    def _tell_problems(self) -> None:
        """Say what is wrong with the input: each thing once, and again when it is ten times as often."""
        problems = {**self._source.problems, **self._target.balancer.problems, **self._failures}
        for problem, count in problems.items():
            if count >= 10 * self._told.get(problem, 0) or problem not in self._told:
                self._told[problem] = count
                often = f" ({count} times so far)" if count > 1 else ""
                self._out.warn(f"{problem}{often}")
                self._audit.write("input", {"problem": problem, "count": count})
        if self._audit.lost and "audit" not in self._told:
            self._told["audit"] = 1
            self._out.warn(f"{self._audit.path}: the audit log cannot be written.")


def _said(decision: Decision) -> tuple[object, ...]:
    """Return what of a decision is news to a person: another kind of it, or another reason, its figures aside."""
    proposed = decision.suggested if decision.kind == "rebalance" else None
    return decision.kind, proposed, re.sub(r"[\d.]+", "#", decision.reason)


def _target(
    out: Output,
    current: str | None,
    layers: str | None,
    metrics: str,
    config: RebalanceConfig,
    flags_file: Path | None,
    registry: Path | None,
    *,
    model_name: str | None,
    mmproj: str | None,
    device_list: str | None,
    cluster_file: Path | None,
    ram: str | None,
    one_stream: bool,
    **machine: str | None,
) -> Target:
    from pshard.model import read_model
    from pshard.rebalance import LoadBalancer
    from pshard.rebalance_targets import MapTarget, hand_target, parse_layers, read_document, shards_of
    from pshard.sources import is_engine

    document = {} if current is None else read_document(current)
    if is_engine(metrics) and "tiers" not in document:
        message = (
            f"{metrics} tells of an engine as a whole, not of shards, so it cannot say which of them is slow. Give a "
            "plan (`pshard plan --json`) to correct its machine with, or per-shard latencies (JSON lines)."
        )
        raise click.UsageError(message)
    if layers is not None or "shards" in document:
        shards = parse_layers(layers) if layers is not None else shards_of(document, current)
        return hand_target(shards, LoadBalancer(config), one_stream=one_stream, flags_file=flags_file)
    assert current is not None
    if model_name is None:
        message = "-m is missing: layers of a map or plan are moved by their sizes, which the model's file tells."
        raise click.UsageError(message)
    model = read_model(model_name)
    if "map" in document:
        from pshard.map_deployment import MapDeployment

        projector = None
        if mmproj is not None:
            from pshard.projector import read_projector

            projector = read_projector(mmproj)
        cluster = read_devices(out, device_list, cluster_file, ram)
        with _complete(current):
            mapped = MapDeployment(document, model, cluster, projector=projector)
        return MapTarget(Path(current), mapped, LoadBalancer(config, mapped.deployment), flags_file)
    with _complete(current):
        return _plan_target(out, current, document, model, metrics, config, flags_file, registry, ram=ram, **machine)


@contextmanager
def _complete(path: str) -> Iterator[None]:
    """Say of a document that lacks something which file it is."""
    from pshard.errors import SettingError

    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        message = f"{path}: lacks something ({error}); give what `pshard map --json` or `pshard plan --json` wrote."
        raise SettingError(message) from error


def _plan_target(
    out: Output,
    current: str,
    document: dict[str, Any],
    model: Any,
    metrics: str,
    config: RebalanceConfig,
    flags_file: Path | None,
    registry: Path | None,
    **machine: Any,
) -> Target:
    from pshard.machine import load_machine
    from pshard.plan_balancer import ENGINE, PlanBalancer
    from pshard.planner import DEFAULT_N_BATCH, plan
    from pshard.rebalance_targets import PlanTarget
    from pshard.registry import registry_path
    from pshard.sources import is_engine, shard_names

    workload = document["workload"]
    planned = plan(
        model,
        load_machine(machine.pop("machine"), **machine),
        vram_bytes=document["budget_bytes"],
        n_threads=document["machine"]["n_threads"],
        n_batch=None if workload["n_batch"] == DEFAULT_N_BATCH else workload["n_batch"],
        tier_max=document["tiers"][-1]["batch_size"],
        **{name: workload[name] for name in PLAN_SETTINGS},
    )
    if planned.to_dict()["llama_cpp"] != document["llama_cpp"]:
        out.warn(
            f"{current} was planned for another machine or with other settings; it is compared with what these give."
        )
    shards = [ENGINE] if is_engine(metrics) else shard_names(metrics) or ["gpu0", "host"]
    parts = model.header.parts
    if registry is None and parts and registry_path(parts[0]).exists():
        registry = registry_path(parts[0])
    return PlanTarget(Path(current), PlanBalancer(planned, shards, config=config), registry, flags_file)


PLAN_SETTINGS = (
    "n_ctx",
    "n_seq_max",
    "flash_attn",
    "type_k",
    "type_v",
    "prompt_tokens",
    "generate_tokens",
    "n_draft",
    "strategy",
)


def _first_written(current: str | None, flags_file: Path | None) -> Path:
    """Return the first file that --apply wrote, beside which it keeps what there was."""
    from pshard.errors import SettingError
    from pshard.kept_file import former_path
    from pshard.rebalance_targets import read_document

    if current is not None and (former_path(current).exists() or "shards" not in read_document(current)):
        return Path(current)
    if flags_file is None:
        message = "nothing to undo: of layers by hand --apply writes the flags alone; name their file (--flags FILE)."
        raise SettingError(message)
    return flags_file


def _undo(out: Output, audit: AuditLog, path: Path) -> None:
    from pshard.kept_file import restore

    restored = [str(file) for file in restore(path)]
    audit.write("undone", {"paths": restored})
    out.json({"schema_version": 1, "restored": restored})
    for file in restored:
        out.line(f"Restored: {file}")
