"""``pshard tier``: what the runtime loads from a registry, and which tier serves a batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pshard.cli._output import Output, format_bytes, with_output

if TYPE_CHECKING:
    from pshard.registry.format import Registry, Section
    from pshard.registry.rules import Loaded, PromptPlan


@click.command("tier")
@click.argument("registry", type=click.Path(path_type=Path))
@click.option("--n-tokens", type=click.IntRange(1), required=True, metavar="N", help="Tokens of a batch or prompt.")
@click.option(
    "--budget", "-mva", "budget_mib", type=click.IntRange(1), metavar="MIB",
    help="What the runtime is started with.  [default: the largest budget in the section]",
)  # fmt: skip
@click.option("--cache-ubatch", type=click.IntRange(0), default=0, metavar="N", help="Largest micro-batch allowed.")
@click.option("--fingerprint", metavar="0xHEX", help="Section, where the registry has several.  [default: the last]")
@click.option("--model", metavar="MODEL", help="Its model, to price the change from decode to this tier.")
@click.option("--machine", metavar="NAME|FILE", help="Where; a name that `pshard machines` lists, or a profile.")
@with_output
def command(
    out: Output,
    /,
    *,
    registry: Path,
    n_tokens: int,
    budget_mib: int | None,
    cache_ubatch: int,
    fingerprint: str | None,
    model: str | None,
    machine: str | None,
) -> None:
    """Say which variant and tier of a REGISTRY the runtime takes."""
    from pshard.registry import find_registry
    from pshard.registry.errors import RegistryError
    from pshard.registry.rules import load, prompt_plan
    from pshard.registry.store import read_registry

    path = find_registry(registry)
    section = _section(path, read_registry(path), fingerprint)
    budget = budget_mib or max((variant.budget_mib for variant in section.variants), default=0)
    loaded = load(section, budget, cache_ubatch)
    if loaded is None:
        message = f"{path}: nothing fits {budget} MiB; the runtime switches pshard off and loads as stock llama.cpp."
        raise RegistryError(message)
    if loaded.refused:
        message = f"{path}: the runtime loads nothing: {loaded.refused}."
        raise RegistryError(message)
    prompt = None if loaded.disabled else prompt_plan(loaded, n_tokens)
    switch = _switch(section, loaded, n_tokens, model, machine) if model is not None and prompt else None
    out.json(
        {
            "schema_version": 1,
            "path": str(path),
            "fingerprint": f"0x{section.fingerprint:016x}",
            "budget_mib": budget,
            "n_tokens": n_tokens,
            "pshard_disabled": loaded.disabled,
            "variant_budget_mib": loaded.budget_mib,
            "cache_ubatch": loaded.cache_ubatch,
            "tiers": [tier.batch_size for tier in loaded.tiers],
            "salvaged": list(loaded.salvaged),
            "tier": prompt.tier.batch_size if prompt else None,
            "strategy": prompt.tier.strategy if prompt else None,
            "tokens_per_second": prompt.tier.tokens_per_second if prompt else None,
            "n_ubatch": prompt.ubatch if prompt else None,
            "prompt_seconds": prompt.seconds if prompt else None,
            "switch_bytes": switch[0] if switch else None,
            "switch_seconds": switch[1] if switch else None,
        }
    )
    if prompt is None:
        out.line(f"The whole model fits {budget} MiB: the runtime loads it as stock llama.cpp, all layers on the GPU.")
    else:
        _print_loaded(out, loaded, budget)
        _print_prompt(out, prompt, n_tokens, switch)


def _print_loaded(out: Output, loaded: Loaded, budget: int) -> None:
    source = f"the variant of {loaded.budget_mib} MiB" if loaded.budget_mib else "single tiers of larger budgets"
    out.line(f"Loaded for {budget} MiB: {source}, tiers {', '.join(str(t.batch_size) for t in loaded.tiers)}")
    if loaded.salvaged and loaded.budget_mib:
        out.line(f"  from larger budgets: {', '.join(map(str, loaded.salvaged))}")


def _print_prompt(out: Output, prompt: PromptPlan, n_tokens: int, switch: tuple[int, float | None] | None) -> None:
    out.line(f"{n_tokens} tokens: tier {prompt.tier.batch_size}, {prompt.tier.strategy}")
    if prompt.seconds is not None:
        out.line(f"  in micro-batches of {prompt.ubatch}: {prompt.seconds:.3g} s as the registry predicts")
    if switch is not None:
        n_bytes, seconds = switch
        time = "" if seconds is None else f", {seconds * 1e3:.3g} ms"
        out.line(f"  then to the tier that decodes: {format_bytes(n_bytes)} to move{time}")


def _switch(
    section: Section, loaded: Loaded, n_tokens: int, model_name: str, machine_name: str | None
) -> tuple[int, float | None]:
    """Bytes and seconds of the change from a prompt's tier to the one that decodes; None without a GPU to price."""
    from pshard.machine.machine import load_machine
    from pshard.model.model import read_model
    from pshard.registry.context import context_of
    from pshard.registry.errors import RegistryError
    from pshard.registry.rules import switch_cost, tier_for

    if section.settings is None:
        message = "the section does not say what it is for, so that its cache has no size; plan again."
        raise RegistryError(message)
    model = read_model(model_name)
    context = context_of(section.settings, loaded.cache_ubatch or loaded.tiers[-1].batch_size, model)
    machine = load_machine(machine_name, n_threads=section.settings.n_threads)
    before, after = tier_for(loaded.tiers, n_tokens), tier_for(loaded.tiers, 1)
    core = machine.core(section.settings.n_threads, "plain")
    cost = switch_cost(model, core, before, after, context, n_tokens)
    return cost.up_bytes + cost.down_bytes, cost.seconds if machine.has_gpu else None


def _section(path: Path, registry: Registry, fingerprint: str | None) -> Section:
    from pshard.registry.errors import RegistryError

    known = [section for section in registry.sections if section.fingerprint is not None]
    if fingerprint is not None:
        wanted = fingerprint.lower().removeprefix("0x")
        known = [section for section in known if f"{section.fingerprint:016x}" == wanted.rjust(16, "0")]
    if not known:
        what = "no section" if fingerprint is None else f"no section {fingerprint}"
        message = f"{path}: {what} that the runtime would find; `pshard show` lists what there is."
        raise RegistryError(message)
    return known[-1]
