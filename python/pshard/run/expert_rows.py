"""How many rows of activations each expert multiplies, which its pace depends on."""

from __future__ import annotations

import math
from bisect import bisect
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.model.model import Model


class ExpertRows(NamedTuple):
    """Rows of activations that an expert multiplies which is used: on average, and three that are equally likely.

    Kernels take rows in groups, so that a group that is begun costs as much as a full one: what the average takes is
    less than what is taken on average.
    """

    mean: float
    likely: tuple[int, ...]


def rows_per_expert(model: Model, batches: Sequence[int]) -> dict[int, ExpertRows]:
    """Return for each batch how many of its rows an expert multiplies that is used at all, all being drawn alike."""
    from pshard import _core

    n_expert, n_used = model.hyperparameters.n_expert, model.hyperparameters.n_expert_used
    if n_expert == 0:
        return dict.fromkeys(batches, ExpertRows(1.0, (1,)))

    def rows_of(batch: int) -> ExpertRows:
        used = n_expert * _core.distinct_expert_share(n_expert, n_used, batch)
        return ExpertRows(batch * n_used / max(1.0, used), _likely_rows(batch, n_used / n_expert))

    return {batch: rows_of(batch) for batch in batches}


def _likely_rows(batch: int, share: float) -> tuple[int, ...]:
    """Return the middles of the three thirds of a binomial distribution, without its zeros."""
    if share >= 1.0:
        return (batch,)
    log_of = [
        math.lgamma(batch + 1) - math.lgamma(rows + 1) - math.lgamma(batch - rows + 1)
        + rows * math.log(share) + (batch - rows) * math.log1p(-share)
        for rows in range(1, batch + 1)
    ]  # fmt: skip
    sums = list(accumulate(math.exp(value) for value in log_of))
    return tuple(bisect(sums, part / 6 * sums[-1]) + 1 for part in (1, 3, 5))
