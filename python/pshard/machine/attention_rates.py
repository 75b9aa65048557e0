"""Rates of attention by the type of the cache.

Over a cache in F16 or F32 llama.cpp's CPU backend takes many queries at once, in tiles. Over a quantised one, or one of
two types, each query goes by itself, however many there are. A GPU has one set of rates for all caches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.machine.rates import FAMILIES, MAX_SPREAD, SPREAD_OTHER_FAMILY, SPREAD_SCALED, bits_per_weight, type_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pshard.machine.profile import Series

# From so many queries on tiles serve them, over caches of these types.
TILE, IN_TILES = 64, ("F16", "F32")


def series_of_any_cache(attention: Iterable[Series]) -> Sequence[Series]:
    """Return the series over a cache in F16, or the smallest type where there is none.

    Parameters
    ----------
    attention : iterable of Series
        At one thread count.

    Returns
    -------
    sequence of Series
        By ascending depth; empty where there are none.
    """
    by_type = _by_type(attention)
    return by_type[min(by_type, key=lambda name: (name != "F16", bits_per_weight(name), name))] if by_type else []


def series_by_query(attention: Iterable[Series]) -> Mapping[str, Sequence[Series]]:
    """Return what prices a CPU's attention where each query goes by itself.

    Parameters
    ----------
    attention : iterable of Series
        At one thread count.

    Returns
    -------
    mapping from str to sequence of Series
        For every type that keys or values may have, by ascending depth. What was not measured is estimated from the
        quantised type with the nearest number of bits, else from few queries over F16, and its range is wider.
    """
    by_type = _by_type(attention)
    few = [_of_few_queries(entry) for entry in by_type.get("F16", [])]
    quantised = {name: entries for name, entries in by_type.items() if name not in IN_TILES}
    found: dict[str, Sequence[Series]] = {}
    for name in type_ids():
        if name in quantised:
            found[name] = quantised[name]
        elif name == "F16":
            found[name] = few
        elif name in ("F32", "BF16") or not quantised:
            found[name] = [_estimated(entry, SPREAD_SCALED if name == "BF16" else SPREAD_OTHER_FAMILY) for entry in few]
        else:
            nearest = _nearest(name, quantised)
            alike = any(name in family and nearest in family for family in FAMILIES)
            by = SPREAD_SCALED if alike else SPREAD_OTHER_FAMILY
            found[name] = [_estimated(entry, by) for entry in quantised[nearest]]
    return {name: entries for name, entries in found.items() if entries}


def estimated_types(attention: Iterable[Series], types: Iterable[str]) -> list[str]:
    """Return those types of a cache whose rates are estimated although attention was measured.

    Parameters
    ----------
    attention : iterable of Series
        The CPU's, at one thread count.
    types : iterable of str
        Of keys and values.

    Returns
    -------
    list of str
        In their order, each once; empty where all of attention is a reference.
    """
    by_type = _by_type(entry for entry in attention if entry.source != "reference")
    return [name for name in dict.fromkeys(types) if name not in by_type and name not in IN_TILES] if by_type else []


def _by_type(attention: Iterable[Series]) -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = {}
    for entry in sorted(attention, key=lambda entry: entry.depth or 0):
        found.setdefault(entry.type, []).append(entry)
    return found


def _nearest(name: str, names: Iterable[str]) -> str:
    return min(names, key=lambda other: (abs(math.log(bits_per_weight(other) / bits_per_weight(name))), other))


def _of_few_queries(entry: Series) -> Series:
    """Leave out what tiles serve; all of it is a guess where nothing else was measured."""
    points = [point for point in zip(entry.batch, entry.flop_per_second, strict=True) if point[0] < TILE]
    if not points:
        return _estimated(entry, MAX_SPREAD)
    batch, rates = zip(*points, strict=True)
    return replace(entry, batch=batch, flop_per_second=rates)


def _estimated(entry: Series, widen_by: float) -> Series:
    spread = min(entry.spread + widen_by, max(MAX_SPREAD, entry.spread))
    return replace(entry, source="estimated", spread=spread)
