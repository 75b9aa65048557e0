"""Which placement of each tier goes into a registry: the fastest ones that the runtime can be trusted with together.

The runtime never uploads a tensor that lies at one address in its first and its largest tier and is not resident in
every tier. So what those two tiers both keep resident, every tier must. Of all choices that hold this, the one with the
least product of slow-downs is taken; each tier counts the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from pshard.registry.faults import initial_tier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pshard import _core
    from pshard.model.model import Model

N_GROUP_BITS = 16
MIN_RATE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Option:
    """One placement for one tier, with the fields that its strategy line gets.

    `cost` is what is to be small: seconds of one pass, or on a machine without speeds the bytes that are left to the
    host. `resident` has a bit for each group of each layer, and one for the head, that is pinned.
    """

    strategy: str
    knobs: _core.Knobs
    placement: _core.Placement
    cost: float
    vram_bytes: int
    resident: int


def resident_bits(model: Model, placement: _core.Placement) -> int:
    """Bits of what a placement keeps in VRAM: 16 for each layer by group number, then one for the head."""
    from pshard import _core

    groups = tuple(group for group in _core.Group if group.name not in ("embedding", "head", "cache"))
    masks = [
        sum(1 << int(group) for group in groups if pattern[group] == _core.Where.pinned)
        for pattern in placement.patterns
    ]
    bits = 0
    for layer, pattern_index in zip(model.layers, placement.layer_pattern, strict=True):
        own = sum(1 << int(_core.Group[name]) for name in layer.groups)
        bits |= (masks[pattern_index] & own) << (layer.index * N_GROUP_BITS)
    if placement.head == _core.Where.pinned:
        bits |= 1 << (model.n_layer * N_GROUP_BITS)
    return bits


def worth_loading(options: Mapping[int, Sequence[Option]]) -> dict[int, Sequence[Option]]:
    """Leave out tiers that run at less than half the rate of a smaller one.

    The runtime puts a long prompt on the tier of its length even where it cuts it into smaller batches, so that such a
    tier only takes prompts away from a faster one. Without it, the largest tier that is left serves them.
    """
    kept: dict[int, Sequence[Option]] = {}
    fastest = 0.0
    for size in sorted(options):
        rate = size / min(option.cost for option in options[size])
        if rate >= MIN_RATE_SHARE * fastest:
            kept[size] = options[size]
            fastest = max(fastest, rate)
    return kept


def choose(options: Mapping[int, Sequence[Option]]) -> dict[int, Option]:
    """Choose one option for each tier.

    Parameters
    ----------
    options : mapping
        Batch size -> what fits there, at least one; a tier where nothing fits is left out.

    Returns
    -------
    dict
        Batch size -> option; a tier is missing where none of its options goes with any choice for the others.
    """
    if not options:
        return {}
    sizes = sorted(options)
    first, last = initial_tier(sizes), sizes[-1]
    fastest = {size: min(option.cost for option in options[size]) for size in sizes}
    best: tuple[tuple[int, float], dict[int, Option]] | None = None
    for at_first, at_last in product(options[first], options[last]):
        if first == last and at_first is not at_last:
            continue
        shared = at_first.resident & at_last.resident
        chosen = {first: at_first, last: at_last}
        for size in sizes:
            if size not in chosen:
                holding = [option for option in options[size] if option.resident & shared == shared]
                if holding:
                    chosen[size] = min(holding, key=lambda option: option.cost)
        slow_down = sum(math.log(option.cost / fastest[size]) for size, option in chosen.items())
        cost = (len(sizes) - len(chosen), slow_down)
        if best is None or cost < best[0]:
            best = (cost, chosen)
    assert best is not None
    return best[1]
