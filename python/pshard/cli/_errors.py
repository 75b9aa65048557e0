"""How a command that fails says so: one sentence on stderr and an exit code; a traceback only with ``--debug``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from pshard.errors import PshardError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def run(command: click.Command, args: Sequence[str] | None) -> int:
    """Run a click command; return its exit code, whatever happens in it.

    Only a reader that has gone (``pshard models | head -1``) leaves otherwise: click and rich end the process quietly.

    Parameters
    ----------
    command : click.Command
        The group, with an option ``--debug`` of its own.
    args : sequence of str or None
        Arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        # Not standalone: click's own ending would print "Aborted!" and give 1 for an interrupt.
        code = command.main(arguments, prog_name="pshard", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if _debug(command, arguments):
            traceback.print_exc()
        else:
            click.echo(f"pshard: {_sentence(error)}", err=True)
        if isinstance(error, OSError):
            _drop_unwritable_output()
        return error.exit_code if isinstance(error, PshardError) else 1


def _sentence(error: Exception) -> str:
    if isinstance(error, PshardError):
        return str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return (
        f"unexpected {type(error).__name__}: {error}. This is a defect of pshard; "
        "please report it with the traceback that `pshard --debug ...` shows."
    )


def _drop_unwritable_output() -> None:
    """Discard what stdout cannot take: Python would try once more at its end, complain, and give 120."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _debug(command: click.Command, arguments: list[str]) -> bool:
    """Whether ``--debug`` stands before the subcommand; the context that knew is gone when an error arrives here."""
    context = command.make_context("pshard", arguments, resilient_parsing=True)
    return bool(context.params.get("debug"))
