"""Bytes that runs of layers need besides themselves: compute buffers, which do not add up by layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def run_buffers(layer_classes: Sequence[int], measure: Callable[[int, int], int]) -> NDArray[np.int64]:
    """Measure every run of layers, as far as one does not follow from others.

    Runs of equal layers in a row need the same, apart from those with the first or the last layer; and a longer run
    needs no less than a shorter one within it, so that of two that need the same all between do.

    Parameters
    ----------
    layer_classes : sequence of int
        Of each of L layers; equal ones are of one class.
    measure : callable
        Bytes of layers `begin` to `end` - 1.

    Returns
    -------
    (L + 1, L + 1) array of int
        By begin and end; 0 where a run would be empty.
    """
    n_layer = len(layer_classes)
    known: dict[tuple[object, ...], int] = {}

    def needed(begin: int, end: int) -> int:
        key = tuple(layer_classes[begin:end]), begin == 0, end == n_layer
        if key not in known:
            known[key] = measure(begin, end)
        return known[key]

    found = np.zeros((n_layer + 1, n_layer + 1), dtype=np.int64)
    found[0, n_layer] = needed(0, n_layer)
    _fill(found[:, n_layer], 1, n_layer - 1, lambda begin: needed(begin, n_layer))
    for begin in range(n_layer):
        _fill(found[begin], begin + 1, n_layer - 1, partial(needed, begin))
    return found


def _fill(values: NDArray[np.int64], first: int, last: int, value: Callable[[int], int]) -> None:
    """Set values `first` to `last` of a monotone sequence: those between two equal ones are equal."""
    parts = [(first, last)] if first <= last else []
    while parts:
        a, b = parts.pop()
        values[a], values[b] = value(a), value(b)
        if values[a] == values[b]:
            values[a:b] = values[a]
        elif b - a > 1:
            middle = (a + b) // 2
            parts += [(a, middle), (middle, b)]
