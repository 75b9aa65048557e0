"""Every fault of a registry: what its reader passes over, and what its runtime then trips over.

Without a model, tensors of a usual layer stand in for its own; with one, every tensor is checked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.quantities import MIB
from pshard.registry.fingerprint import fingerprint
from pshard.registry.format import Fault
from pshard.registry.overrides import (
    CPU,
    Places,
    compile_pattern,
    placement_of,
    places,
    regenerate,
    tensor_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard.model.model import Model
    from pshard.registry.format import Registry, Section, Tier, Variant

MAX_LAYERS = 1000  # the planner there takes no more
MAX_SECTIONS, MAX_VARIANTS = 10, 8
# What the memory model may differ by from a line's vram= before it is called false.
VRAM_SHARE, VRAM_MIB = 0.05, 64.0

# Stand-ins for the tensors of a layer whose model is not at hand.
USUAL = (
    "attn_norm.weight",
    "attn_output.weight",
    "ffn_up.weight",
    "ffn_gate.weight",
    "ffn_down.weight",
    "ffn_gate_inp.weight",
    "ffn_up_exps.weight",
    "ffn_gate_exps.weight",
    "ffn_down_exps.weight",
)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What plans are checked against: a model, or as many usual layers as the plans name."""

    names: tuple[str, ...]
    n_layer: int
    n_layer_nextn: int
    model: Model | None


def find_faults(registry: Registry, model: Model | None = None) -> tuple[Fault, ...]:
    """Return every fault of a registry, and of its plans for a model where one is given.

    Parameters
    ----------
    registry : Registry
    model : Model, optional

    Returns
    -------
    tuple of Fault
        In the order of the file, those of its text first.
    """
    faults = list(registry.faults)
    if len(registry.sections) > MAX_SECTIONS:
        faults.append(
            Fault("too_many", "file", f"{len(registry.sections)} sections; a writer keeps {MAX_SECTIONS}.", True)
        )
    seen = Counter(section.fingerprint for section in registry.sections if section.fingerprint is not None)
    for number, count in seen.items():
        if count > 1:
            faults.append(Fault("section_twice", f"0x{number:016x}", f"{count} sections of this fingerprint."))
    for section in registry.sections:
        faults += _section_faults(section, model)
    if model is not None and any(t.name == "rope_freqs.weight" for t in model.core.embedding):
        faults.append(Fault("rope_freqs", model.name, ROPE_FREQS, True))
    return tuple(faults)


ROPE_FREQS = (
    "the model has rope_freqs.weight, which this version of the runtime reads wrongly for all layers but the first: "
    "it computes wrong tokens."
)


def label(section: Section, variant: Variant | None = None, tier: Tier | None = None) -> str:
    """Name a block of a registry for messages."""
    parts = ["no fingerprint" if section.fingerprint is None else f"0x{section.fingerprint:016x}"]
    if variant is not None:
        parts.append(f"budget={variant.budget_mib}")
    if tier is not None:
        parts.append(f"bs={tier.batch_size}")
    return " ".join(parts)


def _section_faults(section: Section, model: Model | None) -> Iterable[Fault]:
    where = label(section)
    if section.settings is None:
        yield Fault("no_comment", where, "no comment that says what it is for; the runtime accepts it.", True)
    elif model is not None and model.header.parts and section.fingerprint is not None:
        expected = fingerprint(section.settings, model.header.parts[0].stat().st_size)
        if section.fingerprint != expected:
            yield Fault(
                "fingerprint_differs",
                where,
                f"its settings and this model's file give 0x{expected:016x}; the runtime does not take these plans "
                "for this file.",
            )
    if len(section.variants) > MAX_VARIANTS:
        yield Fault("too_many", where, f"{len(section.variants)} variants; a writer keeps {MAX_VARIANTS}.", True)
    keys = Counter((variant.budget_mib, variant.cache_ubatch) for variant in section.variants)
    for (budget, cache_ubatch), count in keys.items():
        if count > 1:
            yield Fault("variant_twice", where, f"{count} variants of budget={budget} cache_ubatch={cache_ubatch}.")
    subject = _subject(section, model)
    for variant in section.variants:
        yield from _variant_faults(section, variant, subject)


def _subject(section: Section, model: Model | None) -> _Subject:
    if model is not None:
        return _Subject(tensor_names(model), model.n_layer, model.n_layer_nextn, model)
    tiers = [tier for variant in section.variants for tier in variant.tiers]
    counts = [index + 1 for tier in tiers for index in places(tier.overrides, ()).layers]
    counts += [count for tier in tiers for count in (tier.n_pinned, tier.n_attn_pinned)]
    n_layer = max((count for count in counts if count <= MAX_LAYERS), default=0)
    return _Subject((*usual_names(n_layer), "output.weight", "token_embd.weight"), n_layer, 0, None)


def usual_names(n_layer: int) -> tuple[str, ...]:
    """Names of the tensors of so many usual layers."""
    return tuple(f"blk.{index}.{name}" for index in range(n_layer) for name in USUAL)


def _variant_faults(section: Section, variant: Variant, subject: _Subject) -> Iterable[Fault]:
    where = label(section, variant)
    if variant.disabled:
        if variant.tiers:
            yield Fault("disabled_tiers", where, "switched off, and has tiers; the runtime uses none of them.", True)
        return
    if not variant.tiers:
        yield Fault("no_tiers", where, "no tiers; the runtime finds nothing to load in it.")
    sizes = [tier.batch_size for tier in variant.tiers]
    for size, count in Counter(sizes).items():
        if count > 1:
            yield Fault("tier_twice", where, f"{count} tiers of bs={size}.")
    if sizes != sorted(sizes):
        yield Fault("tier_order", where, "tiers do not rise in batch size.")
    if variant.cache_ubatch and sizes and max(sizes) > variant.cache_ubatch:
        yield Fault("tier_dropped", where, f"tiers above cache_ubatch={variant.cache_ubatch} are dropped.")
    found = {}
    for tier in variant.tiers:
        if tier.batch_size < 1:
            yield Fault("tier_empty", label(section, variant, tier), "a tier for no tokens, which serves no batch.")
        elif tier.viable and tier.overrides:
            found[tier.batch_size] = places(tier.overrides, subject.names)
            yield from _tier_faults(section, variant, tier, subject, found[tier.batch_size])
    resident = {
        size: frozenset(name for name, backend in at.tensors.items() if backend == 0) for size, at in found.items()
    }
    lost = never_uploaded(resident)
    if lost:
        yield Fault(
            "never_uploaded",
            where,
            f"{_some(sorted(lost))} may never be uploaded: resident in the largest tier and in the one that the "
            "runtime starts with, but not in all tiers. Where its place in VRAM is the same in both, the runtime "
            "computes wrong tokens.",
        )


def never_uploaded(resident: dict[int, frozenset[str]]) -> frozenset[str]:
    """Tensors that the runtime may never upload.

    It starts with the tier for 16 tokens; what lies at the same address there and in the largest tier, but is not
    resident in every tier, is taken for uploaded when it is not.

    Parameters
    ----------
    resident : dict
        Batch size of each viable tier -> names of its tensors in VRAM.
    """
    if len(resident) < 2:
        return frozenset()
    first, last = resident[initial_tier(resident)], resident[max(resident)]
    return (first & last) - frozenset.intersection(*resident.values())


def initial_tier(batch_sizes: Iterable[int]) -> int:
    """Batch size of the tier that the runtime starts with: the smallest of 16 tokens or more, else the smallest."""
    sizes = sorted(batch_sizes)
    return next((size for size in sizes if size >= 16), sizes[0])


def _tier_faults(section: Section, variant: Variant, tier: Tier, subject: _Subject, found: Places) -> Iterable[Fault]:
    where = label(section, variant, tier)
    n_counted = subject.n_layer + subject.n_layer_nextn
    for item in tier.overrides:
        if isinstance(reason := compile_pattern(item.pattern), str):
            yield Fault("pattern", where, f"pattern {item.pattern[:60]!r} {reason}.")
    unknown = sorted({item.backend for item in tier.overrides if item.backend > CPU})
    if unknown:
        yield Fault("backend", where, f"backend {_some(map(str, unknown))} does not exist; there are 0 to 3.")
    if tier.n_pinned > n_counted or tier.n_attn_pinned > n_counted:
        text = f"n_pinned={tier.n_pinned} n_attn_pinned={tier.n_attn_pinned} of {n_counted} layers"
        yield Fault("stale", where, f"{text}; the runtime calls the plan stale.")
    if tier.vram_mib > variant.budget_mib:
        yield Fault(
            "over_budget",
            where,
            f"vram={tier.vram_mib:.1f} is more than the budget of {variant.budget_mib} MiB; the runtime aborts.",
        )
    without = [name for name in subject.names if name not in found.tensors]
    if without:
        yield Fault("no_place", where, f"no item places {_some(without)}.")
    no_kv = [index for index in range(subject.n_layer) if index not in found.layers]
    if no_kv:
        yield Fault(
            "no_kv_place",
            where,
            f"no item names layer {_some(map(str, no_kv))} by itself; its KV has no place and tokens are wrong.",
        )
    beyond = [index for index in found.layers if index >= n_counted]
    if beyond:
        yield Fault("no_such_layer", where, f"items name layer {_some(map(str, beyond))} of {n_counted}.")
    yield from _kv_faults(where, subject, found)
    fields = places(regenerate(tier, subject.n_layer, subject.n_layer_nextn), subject.names)
    different = [name for name, backend in found.tensors.items() if fields.tensors.get(name) != backend]
    if different:
        yield Fault(
            "fields_differ",
            where,
            f"the strategy's fields place {_some(different)} elsewhere than ot=, which the runtime goes by.",
            True,
        )
    if subject.model is not None and section.settings is not None and not (without or no_kv or unknown):
        yield from _vram_faults(section, variant, tier, subject.model, found)


def _kv_faults(where: str, subject: _Subject, found: Places) -> Iterable[Fault]:
    """Layers whose KV lies elsewhere than their norms run: another item than the layer's own is the last."""
    apart = [
        index
        for index, backend in found.layers.items()
        if found.tensors.get(f"blk.{index}.attn_norm.weight", backend) != backend
    ]
    if apart:
        yield Fault(
            "kv_apart",
            where,
            f"the last item that names layer {_some(map(str, apart))} is not that of the layer, so its KV lies "
            "elsewhere than its attention.",
        )


def _vram_faults(section: Section, variant: Variant, tier: Tier, model: Model, found: Places) -> Iterable[Fault]:
    from pshard import _core
    from pshard.errors import SettingError
    from pshard.registry.context import context_of

    assert section.settings is not None
    try:
        context = context_of(section.settings, variant.cache_ubatch or tier.batch_size, model)
    except SettingError:
        return
    placement = placement_of(model, found, op_offload=tier.strategy == "STATIC_ATTNPRIO_ALLMODELS")
    vram_mib = _core.memory(model.core, placement, context, tier.batch_size).gpu.total() / MIB
    if abs(vram_mib - tier.vram_mib) > max(VRAM_SHARE * vram_mib, VRAM_MIB):
        yield Fault(
            "vram",
            label(section, variant, tier),
            f"vram={tier.vram_mib:.1f}, but these places take {vram_mib:.1f} MiB; where that is more than the budget, "
            "the runtime aborts.",
        )


def _some(names: Iterable[str]) -> str:
    """Name a few of many."""
    listed: Sequence[str] = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
