"""What the runtime does with a registry: which variant it loads, which tier serves a batch, what a change costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.registry.overrides import placement_of, places, tensor_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard import _core
    from pshard.model.model import Model
    from pshard.registry.format import Section, Tier

# The runtime looks for a micro-batch only for prompts from this length on, among tiers from this size on.
MIN_PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the runtime takes from a section for one budget.

    Attributes
    ----------
    budget_mib : int
        Of the variant; 0 for single tiers salvaged from larger budgets, as the runtime reports it.
    cache_ubatch : int
        Both n_batch and n_ubatch of the run.
    disabled : bool
        Stock llama.cpp with everything on the GPU.
    tiers : tuple of Tier
        Viable ones, by rising batch size.
    salvaged : tuple of int
        Batch sizes of tiers that come from variants of larger budgets.
    refused : str
        Why the whole load fails; empty where it does not.
    """

    budget_mib: int
    cache_ubatch: int
    disabled: bool = False
    tiers: tuple[Tier, ...] = ()
    salvaged: tuple[int, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How a prompt is run: in micro-batches of `ubatch` tokens, predicted to take `seconds`.

    `tier` is the one that the runtime switches to, which it chooses by the whole prompt's length: not always the one
    that the micro-batch was chosen for.
    """

    ubatch: int
    seconds: float | None
    tier: Tier


def load(section: Section, budget_mib: int, cache_ubatch: int = 0) -> Loaded | None:
    """Choose what the runtime loads for a budget.

    Parameters
    ----------
    section : Section
    budget_mib : int
        ``-mva``.
    cache_ubatch : int
        Largest micro-batch that is allowed; 0 for any.

    Returns
    -------
    Loaded or None
        None where nothing can be loaded: the runtime switches pshard off and loads as stock llama.cpp.
    """
    for variant in section.variants:
        if variant.baseline_vram_mib is not None and variant.baseline_vram_mib <= budget_mib:
            return Loaded(budget_mib=variant.budget_mib, cache_ubatch=variant.cache_ubatch, disabled=True)
    planned = [variant for variant in section.variants if not variant.disabled]
    fitting = [
        variant
        for variant in planned
        if variant.budget_mib <= budget_mib and (not cache_ubatch or variant.cache_ubatch <= cache_ubatch)
    ]
    whole = max(fitting, key=lambda variant: (variant.cache_ubatch, variant.budget_mib), default=None)
    tiers = {tier.batch_size: tier for tier in (whole.tiers if whole else ()) if tier.viable}
    larger = [variant for variant in planned if variant.budget_mib > budget_mib]
    salvaged = []
    for variant in larger:
        for tier in variant.tiers:
            if tier.viable and tier.vram_mib <= budget_mib and tier.batch_size not in tiers:
                tiers[tier.batch_size] = tier
                salvaged.append(tier.batch_size)
    chosen = whole.cache_ubatch if whole else cache_ubatch or max((v.cache_ubatch for v in larger), default=0)
    if chosen:
        tiers = {size: tier for size, tier in tiers.items() if size <= chosen}
    if not tiers:
        return None
    empty = [size for size, tier in tiers.items() if not tier.overrides]
    return Loaded(
        budget_mib=whole.budget_mib if whole else 0,
        cache_ubatch=chosen,
        tiers=tuple(tiers[size] for size in sorted(tiers)),
        salvaged=tuple(sorted(size for size in salvaged if size in tiers)),
        refused=f"tier bs={min(empty)} is viable and has no ot= line" if empty else "",
    )


def tier_for(tiers: Sequence[Tier], n_tokens: int) -> Tier:
    """Return the tier that serves a batch: the smallest that covers it, else the largest.

    Parameters
    ----------
    tiers : sequence of Tier
        At least one.
    n_tokens : int
    """
    covering = [tier for tier in tiers if tier.batch_size >= n_tokens]
    if covering:
        return min(covering, key=lambda tier: tier.batch_size)
    return max(tiers, key=lambda tier: tier.batch_size)


def prompt_plan(loaded: Loaded, n_tokens: int) -> PromptPlan:
    """Choose the micro-batch for a prompt: from 512 tokens on, that which finishes it first by the predicted rates.

    Parameters
    ----------
    loaded : Loaded
        With tiers.
    n_tokens : int
    """
    tier = tier_for(loaded.tiers, n_tokens)
    seconds = {
        t.batch_size: math.ceil(n_tokens / t.batch_size) * t.batch_size / t.tokens_per_second
        for t in loaded.tiers
        if t.batch_size >= MIN_PROMPT_TOKENS and t.tokens_per_second > 0
    }
    if n_tokens < MIN_PROMPT_TOKENS or not seconds:
        return PromptPlan(loaded.cache_ubatch, None, tier)
    best = min(seconds, key=lambda size: (seconds[size], size))
    return PromptPlan(best, seconds[best], tier)


def switch_cost(
    model: Model,
    machine: _core.Machine,
    before: Tier,
    after: Tier,
    context: _core.ContextParameters,
    n_used: int,
) -> _core.SwitchCost:
    """Price the change from one tier to another: weights and KV that become resident, KV that loses its place.

    Parameters
    ----------
    model : Model
    machine : _core.Machine
    before, after : Tier
    context : _core.ContextParameters
        That the cache was made for.
    n_used : int
        Cells of the cache that hold tokens.

    Raises
    ------
    RegistryError
        A tier that leaves tensors without a place.
    """
    from pshard import _core

    names = tensor_names(model)
    placements = [placement_of(model, places(tier.overrides, names), op_offload=False) for tier in (before, after)]
    cells = _core.cache_cells(model.core, context)
    cache = []
    for layer in model.core.layers:
        n_bytes = _core.cache_bytes(model.core, layer, context)
        length = cells.window if layer.parameters.window > 0 else cells.full
        recurrent = layer.parameters.scan_state + layer.parameters.conv_state > 0
        cache.append(n_bytes if recurrent or length == 0 else n_bytes // length * min(length, n_used))
    return _core.switch_cost(model.core, machine, placements[0], placements[1], cache)
