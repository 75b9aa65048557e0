"""Write a plan into the registry beside its model."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pshard.errors import FileError
from pshard.quantities import MIB
from pshard.registry import registry_path
from pshard.registry.choice import Option, choose, resident_bits, worth_loading
from pshard.registry.context import context_of
from pshard.registry.errors import RegistryError
from pshard.registry.faults import ROPE_FREQS, find_faults
from pshard.registry.fingerprint import fingerprint
from pshard.registry.format import LINE_BYTES, STRATEGIES, Registry, Settings, Tier, Variant
from pshard.registry.overrides import (
    is_at,
    line_bytes,
    overrides_of,
    placement_of,
    placement_places,
    places,
    regenerate,
    tensor_names,
)
from pshard.registry.store import update, with_variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    from pshard import _core
    from pshard.model.model import Model
    from pshard.planning.planner import Plan

DISABLED_UBATCH = 512
STATIC = "STATIC_ATTNPRIO_ALLMODELS"
STOCK_FIT = "STOCK_FIT"
# The largest tier may take one of these with fewer layers: what it keeps resident, every other strategy can hold too.
YIELDING = ("GPUONLY_LAYERPIN_LAYERSTREAM", "DYNAMIC_FFNCPU_ATTNSTREAM")
# A tier slower than its best placement by less than this is not worth a warning.
WORTH_SAYING = 0.01


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a registry: `path` is None where none was written, `warnings` say why and what was given up."""

    path: Path | None
    warnings: tuple[str, ...]


def write_plan(plan: Plan, path: str | PathLike[str] | None = None) -> WriteResult:
    """Write a plan into the registry that the pull request's runtime reads.

    Never raises for want of a place to write: a plan without its registry is still a plan.

    Parameters
    ----------
    plan : Plan
    path : path-like, optional
        The registry; beside the model's file by default, of a split model beside its first part.

    Returns
    -------
    WriteResult
        No path and no warning for a model of the catalogue and for plans without a GPU: there is nothing to write.
    """
    reason = _why_none(plan)
    if reason:
        return WriteResult(None, () if path is None else (f"{path}: not written: {reason}.",))
    warnings: tuple[str, ...] = ()
    try:
        entry, warnings = _entry(plan)
        if entry is None:
            return WriteResult(None, warnings)
        written = update(registry_path(plan.model.header.parts[0]) if path is None else path, *entry)
    except (FileError, RegistryError) as error:
        return WriteResult(None, (*warnings, f"Registry: {error}"))
    if written.kept is not None:
        kept = f"{written.path}: was damaged or of another kind; it is kept as {written.kept.name}."
        warnings = (*warnings, kept)
    return WriteResult(written.path, warnings)


def registry_with(plan: Plan, former: bytes | None) -> bytes:
    """Return what a registry becomes when a plan is written into it.

    Parameters
    ----------
    plan : Plan
    former : bytes or None
        The registry as it is; None where there is none.

    Returns
    -------
    bytes

    Raises
    ------
    RegistryError
        There is nothing to write, or no registry can hold the plan.
    """
    reason = _why_none(plan)
    entry, warnings = (None, (f"{reason}.",)) if reason else _entry(plan)
    if entry is None:
        raise RegistryError(" ".join(warnings))
    return with_variant(former, *entry)


class _Entry(NamedTuple):
    """A plan as `update` and `with_variant` take it."""

    fingerprint: int
    settings: Settings
    variant: Variant
    check: Callable[[Registry], None]


def _why_none(plan: Plan) -> str:
    """Say why there is nothing to write of a plan; nothing where there is."""
    if not plan.model.header.parts:
        return "the fingerprint needs the model's file"
    return "" if plan.settings.budget_bytes else "without a GPU there is nothing to place"


def _entry(plan: Plan) -> tuple[_Entry | None, tuple[str, ...]]:
    variant, warnings = variant_of(plan)
    if variant is None:
        return None, warnings
    settings = settings_of(plan)
    key = fingerprint(settings, plan.model.header.parts[0].stat().st_size)
    return _Entry(key, settings, variant, partial(check_written, plan, key, variant)), warnings


def settings_of(plan: Plan) -> Settings:
    """Return what a plan's section is for. The first version's strategy cannot be forced in the second's runtime."""
    from pshard.model.model import data_type

    settings = plan.settings
    return Settings(
        n_ctx=settings.n_ctx,
        n_seq_max=settings.n_seq_max,
        n_threads=settings.n_threads,
        flash_attn=int(settings.flash_attn),
        type_k=data_type(settings.type_k).id,
        type_v=data_type(settings.type_v).id,
        strategy=settings.strategy if settings.strategy in STRATEGIES else "auto",
    )


def variant_of(plan: Plan) -> tuple[Variant | None, tuple[str, ...]]:
    """Make the variant of a plan, and say what it gives up against the plan.

    Returns
    -------
    variant : Variant or None
        None where no tier can be written.
    warnings : tuple of str
    """
    settings = plan.settings
    budget_mib = settings.budget_bytes // MIB
    cache_ubatch = plan.tiers[-1].batch_size
    if plan.whole_vram_bytes is not None:
        baseline = round(plan.whole_vram_bytes / MIB, 1)
        ubatch = min(cache_ubatch, DISABLED_UBATCH)
        return Variant(budget_mib=budget_mib, cache_ubatch=ubatch, baseline_vram_mib=baseline), ()
    warnings = []
    if any(tensor.name == "rope_freqs.weight" for tensor in plan.model.core.embedding):
        warnings.append(f"Registry: {ROPE_FREQS}")
    if settings.strategy in STRATEGIES:
        warnings.append(f"Registry: the runtime finds it only with PSHARD_STRATEGY={settings.strategy} set.")
    source = _Options(plan, budget_mib * MIB)
    fitting = {tier.batch_size: found for tier in plan.tiers if (found := source.of(tier))}
    options = worth_loading(fitting) if plan.machine.has_speeds else fitting
    chosen = choose(options)
    if len(chosen) < len(options) or _slow_down(plan, chosen) > WORTH_SAYING:
        last = max(options)
        chosen = choose(options | {last: [*options[last], *source.smaller(last, options[last])]})
    if not chosen:
        warnings.append(f"Registry: not written: no tier fits the budget of {budget_mib} MiB.")
        return None, tuple(warnings)
    warnings += _given_up(plan, chosen, set(fitting) - set(options))
    tiers = tuple(
        _tier(plan, index, tier.batch_size, chosen.get(tier.batch_size)) for index, tier in enumerate(plan.tiers)
    )
    return Variant(budget_mib=budget_mib, cache_ubatch=cache_ubatch, tiers=tiers), tuple(warnings)


def check_written(plan: Plan, key: int, variant: Variant, registry: Registry) -> None:
    """Check what was read again: the variant that was meant, without a fault, every tensor at its place.

    Raises
    ------
    RegistryError
        It is not.
    """
    found = [old for section in registry.sections if section.fingerprint == key for old in section.variants]
    if not found or found[-1] != variant:
        message = f"{plan.model.name}: what the runtime would read is not the plan; the old file stays."
        raise RegistryError(message)
    section = replace(registry.sections[-1], variants=(variant,))
    faults = [fault for fault in find_faults(Registry((section,)), plan.model) if not fault.is_note]
    if faults:
        message = f"{plan.model.name}: the plan would fail in the runtime ({faults[0]}); the old file stays."
        raise RegistryError(message)


class _Options:
    """Placements for the tiers of a plan within a limit, at the cache that all tiers share."""

    def __init__(self, plan: Plan, limit_bytes: int) -> None:
        from pshard import _core

        self.plan = plan
        self.limit_bytes = limit_bytes
        self.context = context_of(settings_of(plan), plan.tiers[-1].batch_size, plan.model)
        self.workload = _core.Workload(plan.settings.prompt_tokens, plan.settings.generate_tokens)
        self.machine: _core.Machine | None = None
        if plan.machine.has_speeds:
            self.machine = copy(plan.machine.core(plan.settings.n_threads, "plain"))
            self.machine.has_gpu = True

    def of(self, tier: _core.TierPlan) -> list[Option]:
        """Return what fits at a tier: each strategy's best, searched again where it needs part of a MiB."""
        from pshard import _core

        options = []
        budget = _core.Budget(max(self.limit_bytes, 0), self.plan.machine.ram_bytes)
        forced = self.plan.settings.strategy is not None
        for candidate in tier.candidates:
            is_fit = candidate.strategy == STOCK_FIT
            if not candidate.viable or (is_fit and forced):
                continue
            if is_fit:
                # Only where the runtime's batch is the micro-batch that it was priced at.
                if candidate.micro_batch == tier.batch_size:
                    # Priced as the runtime takes it: unlike stock llama.cpp, it computes a head on the CPU there.
                    meant = placement_places(self.plan.model, candidate.placement)
                    placement = placement_of(self.plan.model, meant, op_offload=True)
                    option = self.option(candidate.strategy, candidate.knobs, placement, tier.batch_size)
                    options += [option] if option else []
            elif candidate.memory.gpu.total() <= self.limit_bytes:
                resident = resident_bits(self.plan.model, candidate.placement)
                cost = candidate.time.seconds if self.machine is not None else _cost_by_bytes(candidate.memory)
                vram_bytes = candidate.memory.gpu.total()
                options.append(
                    Option(candidate.strategy, candidate.knobs, candidate.placement, cost, vram_bytes, resident)
                )
            else:
                found = _core.search(
                    candidate.strategy, self.plan.model.core, self.machine, self.context, self.workload, budget,
                    tier.batch_size,
                )  # fmt: skip
                if found.viable:
                    placement = _core.make_placement(candidate.strategy, found.knobs, self.plan.model.core)
                    option = self.option(candidate.strategy, found.knobs, placement, tier.batch_size)
                    options += [option] if option else []
        return options

    def smaller(self, batch_size: int, options: Iterable[Option]) -> list[Option]:
        """Return the options of a tier with fewer layers resident."""
        from pshard import _core

        most = max(option.knobs.n_pinned for option in options)
        found = []
        for strategy in YIELDING if self.plan.settings.strategy is None else (self.plan.settings.strategy,):
            for n_pinned in range(most + 1):
                knobs = _core.Knobs(n_pinned=n_pinned)
                placement = _core.make_placement(strategy, knobs, self.plan.model.core)
                option = self.option(strategy, knobs, placement, batch_size)
                found += [option] if option else []
        return found

    def option(self, strategy: str, knobs: _core.Knobs, placement: _core.Placement, batch_size: int) -> Option | None:
        """Price a placement; None where it exceeds the limit or the RAM."""
        from pshard import _core

        model = self.plan.model
        memory = _core.memory(model.core, placement, self.context, batch_size)
        if memory.gpu.total() > self.limit_bytes or memory.host.total() > self.plan.machine.ram_bytes:
            return None
        cost = _cost_by_bytes(memory)
        if self.machine is not None:
            pass_ = _core.tier_pass(model.core, self.context, self.workload, batch_size)
            cost = _core.price_pass(model.core, self.machine, pass_, placement).seconds
        return Option(strategy, knobs, placement, cost, memory.gpu.total(), resident_bits(model, placement))


def _cost_by_bytes(memory: _core.MemoryReport) -> float:
    return float(max(memory.host.total(), 1))


def _slow_down(plan: Plan, chosen: dict[int, Option]) -> float:
    """How much slower the slowest tier became."""
    return max((slower for _, slower in _slower_tiers(plan, chosen)), default=0.0)


def _slower_tiers(plan: Plan, chosen: dict[int, Option]) -> Iterable[tuple[int, float]]:
    for tier in plan.tiers if plan.machine.has_speeds else ():
        if tier.batch_size in chosen and tier.best >= 0:
            yield tier.batch_size, chosen[tier.batch_size].cost / tier.candidates[tier.best].time.seconds - 1.0


def _given_up(plan: Plan, chosen: dict[int, Option], slow: set[int]) -> list[str]:
    """Say what the registry gives up against the plan, tier by tier, and why."""
    best = {tier.batch_size: tier.candidates[tier.best].strategy for tier in plan.tiers if tier.best >= 0}
    slower = [(size, by) for size, by in _slower_tiers(plan, chosen) if by > WORTH_SAYING]
    stock = [f"bs={size} by {by:.0%}" for size, by in slower if best[size] == STOCK_FIT]
    others = [f"bs={size} by {by:.0%}" for size, by in slower if best[size] != STOCK_FIT]
    missing = [str(size) for size in best if size not in chosen and size not in slow]
    said = {
        f"the plan's tier {', '.join(stock)}: stock fit is faster there with a cache and micro-batches of its own, and "
        "the runtime has those of the largest tier": stock,
        f"the plan's tier {', '.join(others)}: it steers around tensors that the runtime would never upload": others,
    }
    warnings = [f"Registry: slower than {text}." for text, tiers in said.items() if tiers]
    if slow:
        names = ", ".join(map(str, sorted(slow)))
        warnings.append(f"Registry: tier {names} is left out: a smaller one serves its prompts at least twice as fast.")
    if missing:
        warnings.append(
            f"Registry: tier {', '.join(missing)} is left out: nothing fits the budget together with the other tiers."
        )
    return warnings


def _tier(plan: Plan, index: int, batch_size: int, option: Option | None) -> Tier:
    if option is None:
        return Tier(index=index, batch_size=batch_size)
    # The second version knows four names. Under STATIC the runtime leaves host weights to op-offload, as stock does.
    strategy = option.strategy if option.strategy in STRATEGIES else STATIC
    knobs = option.knobs
    is_static = strategy == STATIC
    tier = Tier(
        index=index,
        batch_size=batch_size,
        strategy=strategy,
        n_pinned=knobs.n_pinned,
        n_attn_pinned=max(knobs.n_attn_pinned, knobs.n_pinned) if is_static else 0,
        overflow="NONE" if is_static else knobs.overflow,
        tokens_per_second=round(batch_size / option.cost, 2) if plan.machine.has_speeds else 0.0,
        vram_mib=round(option.vram_bytes / MIB, 1),
        output_on_gpu=knobs.output_on_gpu,
        pin_from_back=knobs.pin_from_back,
        viable=True,
    )
    return _with_overrides(plan.model, tier, option.placement)


def _with_overrides(model: Model, tier: Tier, placement: _core.Placement) -> Tier:
    """Give a tier its items: those that its fields stand for, where they say the placement, else the placement's own.

    Of a boundary layer with experts, the overflow of the planner there takes router and shared experts along; `MOE`
    does not.
    """
    names = tensor_names(model)
    meant = placement_places(model, placement)
    overflows = [tier.overflow, "MOE"] if tier.overflow != "NONE" else ["NONE"]
    for overflow in overflows:
        same = replace(tier, overflow=overflow)
        overrides = regenerate(same, model.n_layer, model.n_layer_nextn)
        if line_bytes(overrides) <= LINE_BYTES and is_at(meant, places(overrides, names)):
            return replace(same, overrides=overrides)
    overrides = overrides_of(model, placement)
    if not is_at(meant, places(overrides, names)):
        message = f"{model.name}: tier bs={tier.batch_size} cannot be said in a registry's line; it would be misplaced."
        raise RegistryError(message)
    return replace(tier, overrides=overrides)
