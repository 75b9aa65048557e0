"""``pshard show``: what a plan registry holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pshard.cli._output import Output, with_output

if TYPE_CHECKING:
    from pshard.registry.format import Fault, Registry, Section, Tier, Variant


@click.command("show")
@click.argument("registry", type=click.Path(path_type=Path))
@with_output
def command(out: Output, /, *, registry: Path) -> None:
    """Show the plans of a REGISTRY, and every fault found.

    REGISTRY is a file, or the model that it lies beside. Its sections have variants, these have tiers, and each tier is
    shown with what it pins.
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
            "faults": faults,
        }
    )
    _print(out, found)
    print_faults(out, faults)


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
    from pshard.registry.stretches import stretches

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


def _print(out: Output, registry: Registry) -> None:
    from pshard.registry.stretches import summary

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
                    summary(tier) if tier.viable else None,
                ]
                for tier in variant.tiers
            ]
            out.table(["tokens", "strategy", "tokens/s", "VRAM MiB", "layers"], rows, title=heading)
        out.line()
