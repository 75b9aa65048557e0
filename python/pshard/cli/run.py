"""``pshard run``: run a plan on this machine, predicted beside measured."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pshard.cli._options import COUNT, FILE, read_size, with_cache_types
from pshard.cli._output import Output, with_output
from pshard.launch.spellings import MAX_TOKENS

if TYPE_CHECKING:
    from pshard.model.model import Model
    from pshard.run.execution import Execution, Workload
    from pshard.run.host_backend import DevicesMeasured, HostCpus

DEFAULT_PROMPT, DEFAULT_GENERATE = 2048, 256
STEEPEST_ROUTING = 10.0
LARGEST_SEED = 2**64 - 1
# Options of a plan, and which of them something that is run instead of a plan takes too.
PLAN_ONLY = ("vram_bytes", "n_ctx", "type_k", "type_v", "strategy", "tier_max", "machine")
APPLY_TO = {"--registry": ("vram_bytes",), "--layers": ("n_ctx",)}
Progress = Callable[[str, int, int], None]


@click.command("run")
@click.argument("model")
@click.option(
    "--registry", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Tiers of a registry, as the runtime takes them for --vram, instead of a plan made now.",
)  # fmt: skip
@click.option(
    "--map", "map_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Layers on the devices of a map (`pshard map --json`).",
)  # fmt: skip
@click.option("--layers", metavar="N,N,...", help="Whole layers on so many devices, by hand.")
@click.option("--tier", type=COUNT, metavar="N", help="Only a batch of N tokens, on the smallest tier that covers it.")
@click.option(
    "--prompt", "prompt_tokens", type=click.IntRange(0, MAX_TOKENS), metavar="N",
    help="Tokens of the prompt.  [default: 2048; of a plan made now, what its context holds]",
)  # fmt: skip
@click.option(
    "--generate", "generate_tokens", type=click.IntRange(0, MAX_TOKENS), metavar="N",
    help="Tokens generated.  [default: 256; of a plan made now, what its context holds]",
)  # fmt: skip
@click.option(
    "--passes", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="Passes of each kind that are run, beside one that warms up.",
)  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(0, LARGEST_SEED),
    default=1,
    show_default=True,
    metavar="N",
    help="Of routes and weights.",
)
@click.option(
    "--routing", default="uniform", show_default=True, metavar="uniform|zipf:S",
    help="What experts are drawn from: all alike, or Zipf's law with exponent S.",
)  # fmt: skip
@click.option(
    "--check", is_flag=True,
    help="Compare what arrives by checksum, every product with a reference; seconds mean nothing then.",
)  # fmt: skip
@click.option(
    "--trace", type=FILE, metavar="FILE",
    help="Write a track for each lane, measured and predicted, for ui.perfetto.dev or chrome://tracing.",
)  # fmt: skip
@click.option(
    "--metrics", type=FILE, metavar="FILE",
    help="Append a line of JSON for each device after each pass, for `pshard rebalance`.",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(["host", "cuda"]),
    help="A real GPU, or threads of this machine in its place.  [default: cuda where there is a GPU]",
)  # fmt: skip
@click.option(
    "--page-lock",
    "page_lock_bytes",
    callback=read_size,
    metavar="SIZE",
    help="Most that is page-locked.  [default: half of the free memory]",
)
@click.option(
    "-c", "--ctx-size", "n_ctx", type=COUNT, metavar="N",
    help="Context.  [default: as `pshard plan`; with --layers, what the work needs]",
)  # fmt: skip
@with_cache_types
@click.option(
    "--vram", "vram_bytes", callback=read_size, metavar="SIZE",
    help="Budget: 12G (GiB), 12288M.  [default: what the GPU has free, half of the model without one; with --registry "
    "its largest]",
)  # fmt: skip
@click.option("--pshard-tier-max", "tier_max", type=COUNT, metavar="N", help="Largest token tier.")
@click.option("--strategy", metavar="NAME", help="Only this strategy, by its name in the pull request (docs/plan.md).")
@click.option("--machine", metavar="NAME|FILE", help="What to plan for.  [default: what is run on]")
@with_output
def command(
    out: Output,
    /,
    *,
    model: str,
    registry: Path | None,
    map_file: Path | None,
    layers: str | None,
    tier: int | None,
    prompt_tokens: int | None,
    generate_tokens: int | None,
    passes: int,
    seed: int,
    routing: str,
    check: bool,
    trace: Path | None,
    metrics: Path | None,
    backend: str | None,
    page_lock_bytes: int | None,
    vram_bytes: int | None,
    **plan_options: Any,
) -> None:
    """Run MODEL as it is planned: predicted beside measured.

    \b
    pshard run model.gguf --vram 8G                  a plan made now
    pshard run model.gguf --registry FILE --tier 16  one tier of what the runtime loads
    pshard run model.gguf --map map.json --metrics passes.jsonl
    pshard run llama-3.2-1b:Q4_K_M --check           random weights, all compared

    MODEL is the path of a GGUF, or a name that `pshard models` lists; without a file, random weights of the same types
    and shapes are run. Without a GPU, threads of this machine stand in for one, and predictions are made of what they
    reach. Products, attention and copies are executed; norms and other small work are not, and are not priced.
    """
    from pshard import _core
    from pshard.model.model import read_model
    from pshard.run.document import describe, trace_of
    from pshard.run.execution import ExecutionError, execute, shard_names
    from pshard.run.host_backend import share_cpus

    if sum(value is not None for value in (registry, map_file, layers)) > 1:
        message = "--registry, --map and --layers each say what to run; give one."
        raise click.UsageError(message)
    _refuse_ignored(registry, map_file, layers)
    if check and metrics is not None:
        message = "--metrics are timings of passes, which --check slows down; give one of both."
        raise click.UsageError(message)
    exponent = _exponent(routing)
    loaded = read_model(model)
    _check_outputs(trace, metrics, [*map(Path, loaded.header.parts), *(path for path in (registry, map_file) if path)])
    chosen = backend or ("cuda" if _core.built_with_cuda and _core.query_gpus().devices else "host")
    counts = _counts(layers)
    work = {
        "prompt_tokens": DEFAULT_PROMPT if prompt_tokens is None else prompt_tokens,
        "generate_tokens": DEFAULT_GENERATE if generate_tokens is None else generate_tokens,
        "tier": tier,
    }
    shards: tuple[str, ...] = ()
    notes = []
    with _progress() as on_pass, _metrics(metrics) as write_metrics:
        if registry is not None:
            workload = _of_registry(loaded, registry, vram_bytes, work)
            cpus, measured = _host(chosen, loaded, work, on_pass)
        elif map_file is not None or counts is not None:
            workload, shards = _on_devices(loaded, map_file, counts, plan_options["n_ctx"], work)
            try:
                cpus, measured = _host(chosen, loaded, work, on_pass, workload)
            except ExecutionError as error:  # without predictions it runs all the same
                cpus, measured = share_cpus(_all_cpus(), max(1, len(workload.arena_bytes))), None
                notes.append(f"No predictions: {error}")
        else:
            cpus, measured = _host(chosen, loaded, work, on_pass)
            workload = _planned(loaded, vram_bytes, prompt_tokens, generate_tokens, tier, measured, plan_options)
        try:
            machines = _machines(loaded, workload, measured, plan_options["machine"], chosen, on_pass)
        except ExecutionError as error:
            machines = {}
            notes.append(f"No predictions: {error}")
        shards = shards or shard_names(len(workload.arena_bytes))
        run = execute(
            loaded,
            workload,
            machines=machines,
            cpus=cpus,
            host_cpus=_all_cpus(),
            page_lock_bytes=_lockable_bytes() if page_lock_bytes is None else page_lock_bytes,
            passes=passes,
            routing_exponent=exponent,
            seed=seed,
            check=check,
            shards=shards,
            on_pass=on_pass,
            on_record=lambda *ran: write_metrics(*ran, shards),
        )
    if trace is not None:
        from pshard.atomic_file import write_atomically

        write_atomically(trace, json.dumps(trace_of(run)).encode())
    for note in (*notes, *run.notes):
        out.note(note)
    out.json(describe(run))
    _print(out, run)


def _refuse_ignored(registry: Path | None, map_file: Path | None, layers: str | None) -> None:
    """Refuse options of a plan where something else than a plan says what is run."""
    given = {"--registry": registry, "--map": map_file, "--layers": layers}
    source = next((option for option, value in given.items() if value is not None), None)
    if source is None:
        return
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in PLAN_ONLY or name in APPLY_TO.get(source, ()):
            continue
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            message = f"{parameter.opts[-1]} is for plans that are made now; it changes nothing beside {source}."
            raise click.UsageError(message)


def _check_outputs(trace: Path | None, metrics: Path | None, inputs: Sequence[Path]) -> None:
    """Refuse files to write that are others of this run, or cannot be written, before anything takes its time."""
    from pshard.atomic_file import require_writable

    def is_same(one: Path, other: Path) -> bool:
        both = one.exists() and other.exists()
        return one.samefile(other) if both else one.resolve() == other.resolve()

    for option, output in (("--trace", trace), ("--metrics", metrics)):
        if output is not None and any(is_same(output, path) for path in inputs):
            message = f"{option} {output} is what is run, and would be written over; give another file."
            raise click.UsageError(message)
    if trace is not None and metrics is not None and is_same(trace, metrics):
        message = f"--trace and --metrics are both {trace}; give each a file of its own."
        raise click.UsageError(message)
    if trace is not None:
        require_writable(trace)


def _counts(layers: str | None) -> list[int] | None:
    if layers is None:
        return None
    try:
        return [int(part) for part in layers.split(",")]
    except ValueError:
        message = f"--layers {layers!r} is no list of numbers, like 10,14."
        raise click.UsageError(message) from None


def _exponent(routing: str) -> float:
    name, _, given = routing.partition(":")
    if name == "uniform" and not given:
        return 0.0
    try:
        exponent = float(given or 1.0) if name == "zipf" else math.nan
    except ValueError:
        exponent = math.nan
    if 0.0 <= exponent <= STEEPEST_ROUTING:  # false of NaN
        return exponent
    message = (
        f"--routing {routing!r} is neither uniform nor zipf:S with S from 0 to {STEEPEST_ROUTING:g}, like zipf:0.95."
    )
    raise click.UsageError(message)


def _all_cpus() -> list[int]:
    from pshard.machine.cpus import physical_cpus

    return physical_cpus()


def _lockable_bytes() -> int:
    """Half of the memory that is free: pages of a file that are locked never leave it again."""
    import psutil

    return int(psutil.virtual_memory().available) // 2


def _on_devices(
    model: Model, map_file: Path | None, counts: list[int] | None, n_ctx: int | None, work: dict[str, Any]
) -> tuple[Workload, tuple[str, ...]]:
    from pshard.errors import SettingError
    from pshard.run.sources import workload_of_layers, workload_of_map

    if map_file is None:
        assert counts is not None
        return workload_of_layers(model, counts, n_ctx=n_ctx, **work), ()
    try:
        document = json.loads(map_file.read_bytes())
    except (OSError, ValueError) as error:
        message = f"{map_file}: no JSON document ({error}); give what `pshard map --json` prints."
        raise SettingError(message) from error
    return workload_of_map(model, document, **work)


def _host(
    backend: str, model: Model, work: dict[str, Any], on_pass: Progress, workload: Workload | None = None
) -> tuple[HostCpus | None, DevicesMeasured | None]:
    """CPUs that stand in for the GPUs of a workload, or for one, and what they reach; neither for a real GPU."""
    from pshard.run.execution import schedules_of
    from pshard.run.host_backend import measure_devices, share_cpus

    if backend == "cuda":
        return None, None
    cpus = share_cpus(_all_cpus(), max(1, len(workload.arena_bytes)) if workload is not None else 1)
    largest = work["tier"] or work["prompt_tokens"] or 1
    cells = max(largest, (work["prompt_tokens"] or 0) + (work["generate_tokens"] or 0))
    splits = [split for schedule in schedules_of(model, workload) for split in schedule.splits] if workload else []
    return cpus, measure_devices(
        model, cpus, (1, 16, largest), depth=cells, host_computes=any(split.device == 0 for split in splits),
        on_step=lambda what: on_pass(f"measuring {what}", 0, 1),
    )  # fmt: skip


def _of_registry(model: Model, registry: Path, vram_bytes: int | None, work: dict[str, Any]) -> Workload:
    from pshard.quantities import MIB
    from pshard.run.sources import workload_of_registry

    budget_mib = None if vram_bytes is None else vram_bytes // MIB
    return workload_of_registry(model, registry, budget_mib=budget_mib, **work)


def _planned(
    model: Model,
    vram_bytes: int | None,
    prompt_tokens: int | None,
    generate_tokens: int | None,
    tier: int | None,
    measured: DevicesMeasured | None,
    options: dict[str, Any],
) -> Workload:
    from pshard.machine.machine import Machine, load_machine
    from pshard.planning.planner import plan
    from pshard.run.execution import workload_of

    name = options["machine"]
    if name is None and measured is not None:
        machine = Machine("threads of this machine", measured.devices[0].profile)
        # A device that is part of the host has no size of its own: half of the model makes a plan worth running.
        vram_bytes = model.tensor_bytes // 2 if vram_bytes is None else vram_bytes
    else:
        machine = load_machine(name, vram_bytes=vram_bytes)
    rest = {key: value for key, value in options.items() if key != "machine"}
    rest["strategy"] = rest["strategy"].upper() if rest["strategy"] else None
    made = plan(
        model, machine, vram_bytes=vram_bytes, prompt_tokens=prompt_tokens, generate_tokens=generate_tokens, **rest
    )
    return workload_of(made, tier=tier)


def _machines(
    model: Model,
    workload: Workload,
    measured: DevicesMeasured | None,
    name: str | None,
    backend: str,
    on_pass: Progress,
) -> dict[int, Any]:
    """Return what each phase is priced with: threads as they were measured, or GPUs with the model's own shapes."""
    from pshard.machine.machine import load_machine, machines_of_gpus
    from pshard.run.cuda_backend import measure_shapes

    if measured is not None:
        return {phase.n_tokens: measured.machines(phase.n_tokens) for phase in workload.phases}
    n_gpu = len(workload.arena_bytes)
    machines = [load_machine(name)] if name is not None or n_gpu == 1 else machines_of_gpus(n_gpu)
    if backend != "cuda" or not machines or not all(machine.has_gpu for machine in machines):
        return {}
    batches = [phase.n_tokens for phase in workload.phases]
    first = {id(machine): i for i, machine in reversed(list(enumerate(machines)))}  # of GPUs that are alike
    shapes = {
        alike: measure_shapes(
            model, _all_cpus(), batches, index=i, on_step=lambda what: on_pass(f"measuring {what}", 0, 1)
        )
        for alike, i in first.items()
    }
    return {n: [shapes[id(machine)].priced(machine.core()) for machine in machines] for n in batches}


@contextmanager
def _metrics(path: Path | None) -> Iterator[Callable[..., None]]:
    """Append the lines of each pass to a file, which `pshard rebalance --watch` may be reading.

    Those of a pass are one write, so that runs side by side do not mix theirs.
    """
    if path is None:
        yield lambda *_: None
        return
    from pshard.atomic_file import explained
    from pshard.run.document import metrics_lines

    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    with file:

        def write(*ran: Any) -> None:
            with explained(path):
                file.write("".join(f"{line}\n" for line in metrics_lines(*ran)).encode())

        yield write


def _print(out: Output, run: Execution) -> None:
    from pshard.cli._run_tables import print_run

    print_run(out, run)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Draw a bar on stderr, at a terminal only; between passes only, because drawing takes a core's time."""
    if not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("")

        def on_pass(what: str, done: int, of: int) -> None:
            progress.update(bar, completed=done, total=of, description=what)
            progress.refresh()

        yield on_pass
