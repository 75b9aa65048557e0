"""``pshard profile``: measure this machine, and show, import and export profiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pshard.cli._errors import INTERRUPTED
from pshard.cli._options import FILE, read_size
from pshard.cli._output import Output, with_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pshard.cli._output import P
    from pshard.machine.machine import Machine
    from pshard.machine.profile import Profile
    from pshard.probe.works import Work


def _into(command: Callable[P, None]) -> Callable[P, None]:
    """Give a command that makes a profile the option that says where it goes."""
    return click.option(
        "-o", "--output", type=FILE, metavar="FILE",
        help="File to write.  [default: the stored profile of this machine]",
    )(command)  # fmt: skip


def _threads(command: Callable[P, None]) -> Callable[P, None]:
    return click.option(
        "-t", "--threads", "n_threads", type=click.IntRange(1), metavar="N",
        help="CPU threads.  [default: one per physical core]",
    )(command)  # fmt: skip


@click.group("profile", invoke_without_command=True)
@click.option("--quick", is_flag=True, help="Under a minute: what decides most (default).")
@click.option("--full", is_flag=True, help="Under six minutes: all types, batches and depths.")
@click.option("--for", "model_name", metavar="MODEL", help="Only the shapes and types of one model.")
@_threads
@click.option("--device", "index", type=click.IntRange(0), default=0, metavar="N", help="Which GPU.  [default: 0]")
@_into
@click.pass_context
@with_output
def command(
    out: Output,
    /,
    context: click.Context,
    *,
    quick: bool,
    full: bool,
    model_name: str | None,
    n_threads: int | None,
    index: int,
    output: Path | None,
) -> None:
    """Measure this machine, so that plans rest on what it does.

    Let nothing else run meanwhile. Ctrl-C keeps what was measured. The profile is stored for this machine and driver,
    and `pshard plan` uses it.
    """
    if context.invoked_subcommand is not None:
        return
    if quick and full:
        message = "--quick and --full exclude each other"
        raise click.UsageError(message)
    from pshard.probe.profiling import measure_machine

    with _progress() as on_task:
        outcome = measure_machine(
            full=full,
            model_name=model_name,
            n_threads=n_threads,
            index=index,
            output=output,
            on_task=on_task,
        )
    run, profile = outcome.run, outcome.profile
    out.json(
        {
            "schema_version": 1,
            "path": str(outcome.path) if outcome.path is not None else None,
            "seconds": run.seconds,
            "interrupted": run.interrupted,
            "measured": [str(result.work) for result in run.results],
            "refused": [{"what": str(work), "reason": reason} for work, reason in run.refused],
            "left": [str(work) for work in run.left],
            "profile": profile,
        }
    )
    if outcome.path is None:
        out.warn("interrupted before anything was measured; nothing is written.")
        context.exit(INTERRUPTED)
    if run.interrupted:
        out.warn(f"interrupted: {len(run.results)} figures were measured and are kept; the rest is as it was.")
    for note in profile.notes:
        out.warn(note)
    out.line(f"Measured {len(run.results)} figures in {run.seconds:.0f} s: {outcome.path}")
    out.line()
    _print(out, profile)
    if run.interrupted:
        context.exit(INTERRUPTED)


@command.command("show")
@click.argument("name", metavar="[FILE]", required=False)
@click.option(
    "--plot", type=FILE, metavar="FILE",
    help="Draw rooflines and copies into a .png or .svg.",
)  # fmt: skip
@with_output
def show(out: Output, /, *, name: str | None, plot: Path | None) -> None:
    """Show a profile: rates by type and batch, memory, links, contention.

    FILE is a profile, or a machine that `pshard machines` lists; without it, the stored profile of this machine.
    """
    machine = _machine(name)
    for warning in machine.warnings:
        out.warn(warning)
    if plot is not None:
        from pshard.probe.plots import draw_profile

        draw_profile(machine.profile, plot)
    out.json({"schema_version": 1, "plot": str(plot) if plot else None, "profile": machine.profile})
    _print(out, machine.profile)
    for note in machine.notes:
        out.line(f"note  {note}")
    if plot is not None:
        out.line(f"\nPlot: {plot}")


@command.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE...")
@click.option("--profile", "base", metavar="FILE", help="Profile to change.  [default: that of this machine]")
@click.option(
    "-t", "--threads", "n_threads", type=click.IntRange(1), metavar="N",
    help="CPU threads that llama.cpp ran with.  [default: half of the logical processors, as test-backend-ops does]",
)  # fmt: skip
@click.option(
    "--vram", "vram_bytes", callback=read_size, metavar="SIZE",
    help="The GPU's memory, where the pull request's files do not tell it.",
)  # fmt: skip
@_into
@with_output
def import_(
    out: Output,
    /,
    *,
    files: tuple[Path, ...],
    base: str | None,
    n_threads: int | None,
    vram_bytes: int | None,
    output: Path | None,
) -> None:
    """Take over what another tool measured on this machine.

    FILE is the output of llama.cpp's `test-backend-ops perf --output sql`, whose rates replace the profile's own for
    their operation, type and layout; or the planner pull request's cpu_profile.txt and gpu_profile.txt, both at once.
    """
    from pshard.probe.profiling import import_figures

    imported = import_figures(files, base=base, n_threads=n_threads, vram_bytes=vram_bytes, output=output)
    out.json(
        {
            "schema_version": 1,
            "path": str(imported.path),
            "changes": list(imported.sentences),
            "profile": imported.profile,
        }
    )
    for sentence in imported.sentences:
        out.line(sentence)
    out.line(f"Written: {imported.path}")


@command.command("export")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@click.argument("name", metavar="[FILE]", required=False)
@_threads
@with_output
def export(out: Output, /, *, folder: Path, name: str | None, n_threads: int | None) -> None:
    """Write a profile as the planner pull request's cpu_profile.txt and gpu_profile.txt into DIR.

    FILE is as in `pshard profile show`. The pull request's files describe a GPU, so the machine needs one.
    """
    from pshard.machine.imported import write_text_profiles

    machine = _machine(name)
    for warning in machine.warnings:
        out.warn(warning)
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_text_profiles(machine, folder, n_threads)
    out.json({"schema_version": 1, "paths": [str(path) for path in paths]})
    for path in paths:
        out.line(str(path))


def _machine(name: str | None) -> Machine:
    from pshard.errors import MachineError
    from pshard.machine.machine import load_machine, stored_machine

    if name is not None:
        return load_machine(name)
    machine = stored_machine()
    if machine is None:
        message = "no profile of this machine is stored; measure it (`pshard profile`), or name a file"
        raise MachineError(message)
    return machine


def _print(out: Output, profile: Profile) -> None:
    from pshard.cli._profile_tables import print_profile

    print_profile(out, profile)


@contextmanager
def _progress() -> Iterator[Callable[[Work, float, float], None]]:
    """Draw a bar on stderr, at a terminal only; between probes only, because drawing takes a core's time."""
    if not sys.stderr.isatty():
        yield lambda work, done, left: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.fields[left]}"), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=1.0, left="")

        def on_task(work: Work, done: float, left: float) -> None:
            progress.update(bar, completed=done, left=f"{left:3.0f} s left", description=str(work))
            progress.refresh()

        yield on_task
