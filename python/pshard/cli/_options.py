"""Options that several commands take, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pshard.errors import SettingError
from pshard.launch.spellings import CACHE_TYPES, MAX_TOKENS

T = TypeVar("T")

# Tokens, sequences, images.
COUNT = click.IntRange(1, MAX_TOKENS)


class _File(click.Path):
    """The path of a file, which an empty text is not: that is what a script's unset variable leaves."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a path."""
        if value == "":
            self.fail("a file has a name; this one is empty.", param, ctx)
        return super().convert(value, param, ctx)


FILE = _File(dir_okay=False, path_type=Path)


def with_cache_types(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``-ctk`` and ``-ctv``, the types of the KV cache."""
    types = click.Choice(CACHE_TYPES, case_sensitive=False)
    for cache in ("v", "k"):
        names = (f"-ct{cache}", f"--cache-type-{cache}", f"type_{cache}")
        text = f"Type of the {cache.upper()} cache."
        command = click.option(*names, type=types, default="f16", show_default=True, metavar="TYPE", help=text)(command)
    return command


def read_size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Read one size, like 12G, 12288M or 12, which is GiB as well; None where it was not given."""
    from pshard.quantities import parse_bytes

    return None if text is None else _read(parse_bytes, text)


def read_sizes(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read a list of sizes (``24G,12G``, or ``none``); None where it was not given."""
    from pshard.quantities import parse_bytes

    if text is None:
        return None
    return () if text.strip().lower() == "none" else tuple(_read(parse_bytes, part) for part in text.split(","))


def read_rate(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Read one rate, like 12GB/s; None where it was not given."""
    from pshard.quantities import parse_rate

    if text is None:
        return None
    rate = _read(parse_rate, text)
    if rate <= 0:
        message = f"{text!r} moves nothing."
        raise click.BadParameter(message)
    return rate


def _read(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except SettingError as error:
        message = f"{error}."
        raise click.BadParameter(message) from None
