"""How far replayed compute buffers are from what llama.cpp reserves: the table of docs/memory.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import oracle

MIB = 1 << 20
PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
FIRST, LAST = "<!-- errors -->\n", "<!-- end of errors -->\n"


def line(model: str, set_name: str, rows: list[oracle.Compute]) -> str:
    """One line of the table; a row is as good as its worst device."""
    shares = [
        sum(row.is_exact for row in rows), sum(row.is_close for row in rows), sum(not row.is_enough for row in rows)
    ]  # fmt: skip
    worst = f"{max(row.worst_share for row in rows):.1%}", f"{max(row.worst_bytes for row in rows) / MIB:.1f}"
    cells = [model, set_name, str(len(rows)), *(f"{count / len(rows):.1%}" for count in shares), *worst]
    return f"| {' | '.join(cells)} |"


def error_table() -> list[str]:
    """Lines of a Markdown table: each model and set, then each set, then all."""
    heads = ["model", "set", "rows", "exact", "within 2 % or 4 MiB", "low", "worst", "worst, MiB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    by_set: dict[str, list[oracle.Compute]] = defaultdict(list)
    for name in oracle.names():
        model = oracle.model(name)
        own: dict[str, list[oracle.Compute]] = defaultdict(list)
        for row in oracle.rows(name):
            found = row.compute(model)
            own[row.set].append(found)
            by_set[row.set].append(found)
        lines += [line(name, set_name, rows) for set_name, rows in own.items()]
    lines += [line("all", set_name, rows) for set_name, rows in by_set.items()]
    return [*lines, line("**all**", "**all**", [found for rows in by_set.values() for found in rows])]


def write_table() -> None:
    """Bring the table of the page up to date."""
    before, _, rest = PAGE.read_text().partition(FIRST)
    after = rest.partition(LAST)[2]
    PAGE.write_text(before + FIRST + "".join(f"{text}\n" for text in error_table()) + LAST + after)
