"""Rates that fall where they should not.

More rows of activations share the same reading of weights, so no kernel is slower per row with more of them. A figure
that says otherwise was disturbed throughout, so that its own runs agree with each other, or names something that a
person should know of.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pshard.probe.gpu_work import GpuAttention, GpuProduct
from pshard.probe.works import Attention, Product

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from pshard.probe.works import Result, Work

# Two figures of one machine differ by that much without a reason: repetitions end at this spread.
LEAST_SPREAD = 0.03
# Rows of activations that a GPU's products multiply one by one.
FEW_ON_GPU = 8


def falls(results: Mapping[Work, Result]) -> dict[Work, float]:
    """Find figures whose rate lies below that of fewer rows by more than both spreads.

    Parameters
    ----------
    results : mapping from Work to Result

    Returns
    -------
    dict from Work to float
        The share of the higher rate that is missing.
    """
    rows: dict[Hashable, list[tuple[float, float, float, Work]]] = defaultdict(list)
    for work, result in results.items():
        if isinstance(work, Product | Attention | GpuProduct | GpuAttention):
            rate = result.n_flop / result.sample.median_seconds
            rows[_kernel(work)].append((work.batch, rate, max(result.spread, LEAST_SPREAD), work))
    found = {}
    for of_kernel in rows.values():
        best, at_least = 0.0, 0.0
        for _, rate, spread, work in sorted(of_kernel, key=lambda row: row[0]):
            if rate * (1.0 + spread) < at_least:
                found[work] = 1.0 - rate / best
            if rate * (1.0 - spread) > at_least:
                best, at_least = rate, rate * (1.0 - spread)
    return found


def _kernel(work: Product | Attention | GpuProduct | GpuAttention) -> Hashable:
    """Return what figures have in common whose rates are compared: all but the batch, and the kind of kernel."""
    match work:
        case Product():
            return Product, work.type, work.layout, work.n_columns, work.n_threads, work.n_used
        case Attention():  # the cells of a single query are shared among threads, of several each has its own
            heads = work.n_heads, work.n_kv_heads, work.head_size
            return Attention, work.type, heads, work.depth, work.n_threads, work.batch == 1
        case GpuProduct():
            return GpuProduct, work.type, work.n_columns, work.n_experts, work.n_used, work.n_tokens <= FEW_ON_GPU
        case GpuAttention():
            heads = work.n_heads, work.n_kv_heads, work.head_size
            return GpuAttention, heads, work.depth, work.batch <= FEW_ON_GPU
