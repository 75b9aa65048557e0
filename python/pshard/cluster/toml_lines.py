"""On which line of a TOML document a key stands, which tomllib does not tell."""

from __future__ import annotations

import tomllib

Place = tuple[str | int, ...]

# A statement is read anew with each of its lines.
MAX_STATEMENT_LINES = 300


def toml_lines(text: str) -> dict[Place, int]:
    """Find the lines of the tables and keys of a document.

    Parameters
    ----------
    text : str
        What tomllib has read.

    Returns
    -------
    dict
        From places like ``("devices", 2)`` and ``("devices", 2, "memory")`` to lines, counted from 1. What lies deeper
        is on the line of the key that holds it.
    """
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    statement, first = "", 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        statement, first = (f"{statement}\n{line}", first) if statement else (line, number)
        if number - first > MAX_STATEMENT_LINES:  # what follows is told with the line of the last key that is known
            break
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:  # a string or list goes on
            continue
        names, innermost = _names(parsed)
        if statement.lstrip().startswith("["):
            table = tuple(names)
            if isinstance(innermost, list):
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table, first)
        elif names:
            lines.setdefault((*table, names[0]), first)
        statement = ""
    return lines


def _names(parsed: dict[str, object]) -> tuple[list[str], object]:
    """Follow the one chain of names in a document of one statement, down to its value or list of tables."""
    names: list[str] = []
    value: object = parsed
    while isinstance(value, dict) and len(value) == 1:
        name, value = next(iter(value.items()))
        names.append(name)
    return names, value
