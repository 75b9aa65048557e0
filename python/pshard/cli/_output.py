"""How every command speaks: results on stdout, as text for people or one JSON document; all else on stderr."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")


class Output:
    """The one way to print. A command calls all methods that apply; the mode decides which of them are heard.

    Parameters
    ----------
    as_json : bool
        True: `json` prints its document and `line` and `table` are silent. False: the other way round.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line of the result, for people. It is never wrapped, so that a command in it can be copied."""
        if not self._as_json:
            click.echo(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        """Print a table, for people.

        Parameters
        ----------
        columns : sequence of str
            Headings. A column whose cells all start like a number, and list nothing, is set flush right.
        rows : sequence of sequences
            As many cells as columns in each; None is an empty cell.
        title : str, optional
            A line above the table.
        """
        if self._as_json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for index, column in enumerate(columns):
            is_numeric = _are_numbers([row[index] for row in cells])
            # Text objects, because rich would read square brackets in plain strings as markup.
            table.add_column(Text(column), justify="right" if is_numeric else "left", no_wrap=is_numeric)
        for row in cells:
            table.add_row(*map(Text, row))
        if title is not None:
            self.line(title)
        console = _console()
        with console.capture() as printed:
            console.print(table)
        for line in printed.get().splitlines():
            self.line(line.rstrip())

    def json(self, document: object) -> None:
        """Print the whole result as one JSON document: dicts, lists, scalars or msgspec structs; NaN becomes null."""
        if not self._as_json:
            return
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))

    def warn(self, text: str) -> None:
        """Say on stderr what weakens the result."""
        click.echo(f"warning: {text}", err=True)

    def note(self, text: str) -> None:
        """Say on stderr how a request was taken."""
        click.echo(f"note: {text}", err=True)

    def hint(self, text: str) -> None:
        """Say on stderr what to try next: to a person at a terminal only."""
        if not self._as_json and sys.stderr.isatty():
            click.echo(f"hint: {text}", err=True)


def with_output(command: Callable[Concatenate[Output, P], None]) -> Callable[P, None]:
    """Give a click command the option ``--json`` and, as its first argument, the `Output` that follows from it."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        command(Output(as_json=bool(kwargs.pop("as_json"))), *args, **kwargs)

    return wrapper


def _console() -> Console:
    """Stdout as rich sees it: NO_COLOR, FORCE_COLOR and COLUMNS count, and a file or pipe gets lines of any length."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=10_000)


def _are_numbers(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(cell.lstrip("+-−~≈<>≤≥ ")[:1].isdigit() and ", " not in cell for cell in filled)


def format_bytes(n_bytes: int) -> str:
    """Bytes as people read them: three digits and a binary unit, as in ``"17.3 GiB"``."""
    value = float(n_bytes)
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while abs(value) >= 999.5 and unit != "TiB":
        value /= 1024
        unit = next(units)
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"
