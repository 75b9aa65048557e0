"""The command ``pshard``: a thin user of the package, one module per command.

A command's module is imported when the command is named (or listed), and imports what it works with inside its
function: ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click

from pshard.cli._errors import run as run_group

# Name of the command: where its click.Command lies.
COMMANDS = {
    "plan": "pshard.cli.plan:command",
    "memory": "pshard.cli.memory:command",
    "fit": "pshard.cli.fit:command",
    "map": "pshard.cli.map:command",
    "run": "pshard.cli.run:command",
    "shard": "pshard.cli.shard:command",
    "rebalance": "pshard.cli.rebalance:command",
    "profile": "pshard.cli.profile:command",
    "models": "pshard.cli.models:command",
    "machines": "pshard.cli.machines:command",
    "devices": "pshard.cli.devices:command",
    "inspect": "pshard.cli.inspect:command",
    "skeleton": "pshard.cli.skeleton:command",
    "show": "pshard.cli.show:command",
    "check": "pshard.cli.check:command",
    "tier": "pshard.cli.tier:command",
}


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for, and lists the commands in the order of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pshard", message="pshard %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def group(debug: bool) -> None:
    """Where every byte of a model should live, and how fast it will be.

    \b
    pshard plan llama-3.3-70b:Q4_K_M --vram 12G     a published model, no download
    pshard plan model.gguf                          a file, on this machine

    Exit codes: 0 done, 1 known failure, 2 usage, 3 no feasible plan, 130 interrupted.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    args : sequence of str, optional
        Arguments without the program's name; those of the process by default.
    """
    return run_group(group, args)
