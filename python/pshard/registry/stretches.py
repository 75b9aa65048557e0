"""Layers that a tier places alike, as the runtime reads its items, and a tier in few words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from pshard.registry.faults import MAX_LAYERS, usual_names
from pshard.registry.overrides import places

if TYPE_CHECKING:
    from pshard.registry.format import Tier

PLACE_NAMES = {0: "pinned", 1: "lane 1", 2: "lane 2", 3: "CPU", None: "nowhere"}
LANES = ("lane 1", "lane 2")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Layers from `first` on, `count` of them, and where attention, FFN and KV of each are."""

    first: int
    count: int
    attention: str
    ffn: str
    kv: str

    @property
    def last(self) -> int:
        """The last of them."""
        return self.first + self.count - 1

    @property
    def place(self) -> str:
        """Where attention and FFN are."""
        return self.ffn if self.attention == self.ffn else f"attention {self.attention}, FFN {self.ffn}"


def stretches(tier: Tier) -> list[Stretch]:
    """List stretches of layers that a tier places alike, front to back."""
    kv = places(tier.overrides, ()).layers
    n_layer = min(max(kv, default=-1) + 1, MAX_LAYERS)
    tensors = places(tier.overrides, usual_names(n_layer)).tensors

    def where(index: int) -> tuple[str, str, str]:
        attention = tensors.get(f"blk.{index}.attn_output.weight")
        return _place_name(attention), _ffn_place(tensors, index, attention), _place_name(kv.get(index))

    found: list[Stretch] = []
    first = 0
    for place, group in groupby(where(index) for index in range(n_layer)):
        found.append(Stretch(first, len(list(group)), *place))
        first += found[-1].count
    return found


def summary(tier: Tier) -> str:
    """Say what a tier pins, in few words; layers that alternate between the lanes are named once."""
    parts = []
    for alternates, group in groupby(stretches(tier), lambda stretch: stretch.place in LANES):
        run = list(group)
        if alternates and len(run) > 2:
            parts.append(f"{run[0].first}-{run[-1].last} lanes 1 and 2")
        else:
            parts += [f"{s.first if s.count == 1 else f'{s.first}-{s.last}'} {s.place}" for s in run]
    return "; ".join([*parts, "head pinned" if tier.output_on_gpu else "head CPU"])


def _place_name(backend: int | None) -> str:
    return PLACE_NAMES.get(backend, f"backend {backend}")


def _ffn_place(tensors: Mapping[str, int], index: int, attention: int | None) -> str:
    dense, experts = (
        {tensors.get(f"blk.{index}.ffn_{part}{kind}.weight") for part in ("up", "gate", "down")}
        for kind in ("", "_exps")
    )
    # A pattern for experts leaves the dense names with the layer, and the other way round.
    apart = (dense | experts) - {attention} or {attention}
    is_whole = len(dense) == len(experts) == 1
    names = sorted(map(_place_name, apart))
    return ("" if is_whole else "partly ") + " or ".join(names)
