"""How every command speaks: results on stdout, as text for people or one JSON document; all else on stderr."""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

P = ParamSpec("P")
# Columns of a terminal that cuts no table, and those between two cells.
UNLIMITED, SEPARATOR = 10_000, 3


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
        """Print a table, for people; where the terminal is too narrow for it, the cells of a row one below the other.

        Parameters
        ----------
        columns : sequence of str
            Headings. A column whose cells all start like a number, and list nothing, is set flush right. Cells of lines
            are not wrapped again.
        rows : sequence of sequences
            As many cells as columns in each; None is an empty cell.
        title : str, optional
            A line above the table.
        """
        if self._as_json:
            return
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        console = _console()
        for line in textwrap.wrap(title or "", console.width):
            self.line(line)
        widths = _column_widths(columns, cells, console.width)
        if widths is None:
            for line in _one_below_the_other(columns, cells, console.width):
                self.line(line)
            return
        table = _rich_table(columns, cells, widths)
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

    return Console() if sys.stdout.isatty() else Console(width=UNLIMITED)


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        is_numeric = _are_numbers([row[index] for row in cells])
        # Text objects, because rich would read square brackets in plain strings as markup.
        table.add_column(Text(column), justify="right" if is_numeric else "left", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _column_widths(columns: Sequence[str], cells: Sequence[Sequence[str]], limit: int) -> list[int] | None:
    """Return widths with which a table needs no more than `limit` columns; None where it would break words or numbers.

    Rich takes from the widest columns even where they have no more to give.
    """
    least, widths = [], []
    for index, column in enumerate(columns):
        below = [row[index] for row in cells]
        lines = [line for cell in below for line in cell.split("\n")]
        keeps_lines = _are_numbers(below) or len(lines) > len(below)
        unbroken = lines if keeps_lines else [word for line in lines for word in line.split()]
        widths.append(max(map(len, (column, *lines))))
        least.append(max(map(len, (*column.split(), *unbroken)), default=1))
    excess = sum(widths) + SEPARATOR * (len(columns) - 1) - limit
    if excess > sum(widths) - sum(least):
        return None
    for _ in range(excess):
        index = max(range(len(columns)), key=lambda i: widths[i] - least[i])
        widths[index] -= 1
    return widths


def _one_below_the_other(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Lines of a table that is too wide: each cell behind its heading, an empty line between rows."""
    indent = max(map(len, columns)) + 2
    for number, row in enumerate(cells):
        if number:
            yield ""
        for column, cell in zip(columns, row, strict=True):
            label = column.ljust(indent)
            for text in cell.splitlines():
                for line in textwrap.wrap(text, max(width - indent, 1), break_on_hyphens=False):
                    yield label + line
                    label = " " * indent


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
