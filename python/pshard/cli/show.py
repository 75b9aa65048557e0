"""``pshard show``: what a plan registry holds, and what is wrong with it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pshard.cli._output import Output, with_output

if TYPE_CHECKING:
    from pshard.registry.format import Fault, Registry, Section, Tier, Variant

PLACE_NAMES = {0: "pinned", 1: "lane 1", 2: "lane 2", 3: "CPU", None: "nowhere"}


@click.command("show")
@click.argument("registry", type=click.Path(path_type=Path))
@with_output
def command(out: Output, /, *, registry: Path) -> None:
    """Show the plans of a REGISTRY: sections, variants, tiers, what each tier pins, and every fault found.

    REGISTRY is a file, or the model that it lies beside.
    """
    from pshard.registry import find_registry
    from pshard.registry.faults import find_faults
    from pshard.registry.store import read_registry

    path = find_registry(registry)
    found = read_registry(path)
    faults = find_faults(found)
    out.json(
        {
            "schema_version": 1,
            "path": str(path),
            "sections": [_section(section) for section in found.sections],
            "faults": [fault_document(fault) for fault in faults],
        }
    )
    _print(out, found)
    print_faults(out, faults)


def fault_document(fault: Fault) -> dict[str, object]:
    """Return a fault as ``--json`` prints it."""
    return {"kind": fault.kind, "where": fault.where, "text": fault.text, "is_note": fault.is_note}


def print_faults(out: Output, faults: tuple[Fault, ...]) -> None:
    """Print faults and notes, for people."""
    for fault in faults:
        out.line(f"{'note' if fault.is_note else 'FAULT'}: {fault}")
    n_faults = sum(not fault.is_note for fault in faults)
    out.line("No fault found." if not n_faults else f"{n_faults} fault{'s' if n_faults > 1 else ''} found.")


def _section(section: Section) -> dict[str, object]:
    import msgspec

    return {
        "fingerprint": None if section.fingerprint is None else f"0x{section.fingerprint:016x}",
        "settings": None if section.settings is None else msgspec.to_builtins(section.settings),
        "variants": [_variant(variant) for variant in section.variants],
    }


def _variant(variant: Variant) -> dict[str, object]:
    return {
        "budget_mib": variant.budget_mib,
        "cache_ubatch": variant.cache_ubatch,
        "pshard_disabled": variant.disabled,
        "baseline_vram_mib": variant.baseline_vram_mib,
        "tiers": [_tier(tier) for tier in variant.tiers],
    }


def _tier(tier: Tier) -> dict[str, object]:
    return {
        "batch_size": tier.batch_size,
        "viable": tier.viable,
        "strategy": tier.strategy,
        "n_pinned": tier.n_pinned,
        "n_attn_pinned": tier.n_attn_pinned,
        "overflow": tier.overflow,
        "tokens_per_second": tier.tokens_per_second,
        "vram_mib": tier.vram_mib,
        "output_on_gpu": tier.output_on_gpu,
        "pin_from_back": tier.pin_from_back,
        "layers": stretches(tier),
    }


def stretches(tier: Tier) -> list[dict[str, object]]:
    """List stretches of layers that a tier places alike: where attention, FFN and KV are, as the runtime reads it."""
    from pshard.registry.faults import usual_names
    from pshard.registry.overrides import places

    layers = places(tier.overrides, ()).layers
    n_layer = min(max(layers, default=-1) + 1, 1000)
    at = places(tier.overrides, usual_names(n_layer))

    def where(index: int) -> tuple[str, str, str]:
        attention = at.tensors.get(f"blk.{index}.attn_output.weight")
        ffn = {
            at.tensors.get(f"blk.{index}.ffn_{part}{kind}.weight")
            for part in ("up", "gate", "down")
            for kind in ("", "_exps")
        }
        # A pattern for experts leaves the dense names with the layer, and the other way round.
        apart = ffn - {attention} or ffn
        names = sorted(PLACE_NAMES.get(place, f"backend {place}") for place in apart)
        is_part = len(ffn) > 1 and not _is_one_kind(at.tensors, index)
        kv = layers.get(index)
        return (
            PLACE_NAMES.get(attention, f"backend {attention}"),
            ("partly " if is_part else "") + " or ".join(names),
            PLACE_NAMES.get(kv, f"backend {kv}"),
        )

    found: list[dict[str, object]] = []
    first = 0
    for place, group in groupby(where(index) for index in range(n_layer)):
        count = len(list(group))
        found.append({"first": first, "count": count, "attention": place[0], "ffn": place[1], "kv": place[2]})
        first += count
    return found


def _is_one_kind(tensors: dict[str, int], index: int) -> bool:
    """Whether a layer's dense FFN, or its experts, lie all in one place apart from the rest."""
    rest = tensors.get(f"blk.{index}.attn_output.weight")
    kinds = [{tensors.get(f"blk.{index}.ffn_{part}{kind}.weight") for part in ("up", "gate", "down")}
             for kind in ("", "_exps")]  # fmt: skip
    return all(len(places) == 1 for places in kinds) and any(places != {rest} for places in kinds)


def _print(out: Output, registry: Registry) -> None:
    for section in registry.sections:
        key = "no fingerprint" if section.fingerprint is None else f"0x{section.fingerprint:016x}"
        out.line(f"{key}: {section.settings.comment()[2:] if section.settings else 'settings unknown'}")
        for variant in section.variants:
            out.line()
            heading = f"budget {variant.budget_mib} MiB, cache_ubatch {variant.cache_ubatch}"
            if variant.baseline_vram_mib is not None:
                out.line(f"{heading}: all of it fits in {variant.baseline_vram_mib:.1f} MiB; pshard stays off")
                continue
            rows = [
                [
                    tier.batch_size,
                    tier.strategy if tier.viable else "not viable",
                    f"{tier.tokens_per_second:.2f}" if tier.viable else None,
                    f"{tier.vram_mib:.1f}" if tier.viable else None,
                    _summary(tier) if tier.viable else None,
                ]
                for tier in variant.tiers
            ]
            out.table(["tokens", "strategy", "tokens/s", "VRAM MiB", "layers"], rows, title=heading)
        out.line()


def _summary(tier: Tier) -> str:
    """Say what a tier pins, in few words."""
    parts = []
    for stretch in stretches(tier):
        first, count = stretch["first"], stretch["count"]
        assert isinstance(first, int) and isinstance(count, int)
        span = str(first) if count == 1 else f"{first}-{first + count - 1}"
        same = stretch["attention"] == stretch["ffn"]
        where = stretch["attention"] if same else f"attention {stretch['attention']}, FFN {stretch['ffn']}"
        parts.append(f"{span} {where}")
    head = "head pinned" if tier.output_on_gpu else "head CPU"
    return "; ".join([*_without_alternation(parts), head])


def _without_alternation(parts: list[str]) -> list[str]:
    """Name layers that alternate between the lanes once."""
    lanes = [index for index, part in enumerate(parts) if part.endswith((" lane 1", " lane 2")) and "," not in part]
    if len(lanes) < 3:
        return parts
    first, last = parts[lanes[0]].split()[0].split("-")[0], parts[lanes[-1]].split()[0].split("-")[-1]
    return [*parts[: lanes[0]], f"{first}-{last} lanes 1 and 2", *parts[lanes[-1] + 1 :]]
