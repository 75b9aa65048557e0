"""Workloads to run that do not come from a fresh plan: a registry, a map of layers to devices, layers by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pshard.errors import SettingError
from pshard.launch.spellings import CACHE_TYPES
from pshard.planning.planner import DEFAULT_N_UBATCH
from pshard.quantities import MIB
from pshard.run.execution import LARGEST_DECODE, Phase, PhaseName, Workload, pass_of, prompt_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pshard import _core
    from pshard.model.model import Model
    from pshard.registry.format import Section

# Faults of a section that say so.
OF_ANOTHER_MODEL = {"fingerprint_differs", "no_place", "no_kv_place", "no_such_layer"}


def workload_of_registry(
    model: Model,
    path: Path,
    *,
    prompt_tokens: int,
    generate_tokens: int,
    tier: int | None = None,
    budget_mib: int | None = None,
) -> Workload:
    """Take the phases that the pshard runtime would run from a registry.

    Parameters
    ----------
    model : Model
    path : Path
    prompt_tokens, generate_tokens : int
        The prompt takes the micro-batch that the registry's rates finish it first in, as the runtime does.
    tier : int, optional
        Only a batch of so many tokens, on the smallest tier that covers it.
    budget_mib : int, optional
        What the runtime is started with; the largest budget of the section by default.

    Returns
    -------
    Workload

    Raises
    ------
    RegistryError
        The runtime would load nothing, or not for this model.
    SettingError
        The work does not fit in the context, or no tier covers `tier`.
    """
    from pshard import _core
    from pshard.registry.context import context_of
    from pshard.registry.errors import RegistryError
    from pshard.registry.overrides import placement_of, places, tensor_names
    from pshard.registry.rules import load, prompt_plan, tier_for

    section = _section_for(model, path)
    largest = max((variant.budget_mib for variant in section.variants), default=0)
    budget = largest if budget_mib is None else budget_mib
    loaded = load(section, budget)
    if loaded is None or loaded.refused or loaded.disabled:
        reason = (
            "nothing fits" if loaded is None else loaded.refused or "the whole model fits, so that pshard stays off"
        )
        message = f"{path}: for {budget} MiB the runtime loads no tiers ({reason}); plan again, or give another budget."
        raise RegistryError(message)
    assert section.settings is not None
    context = context_of(section.settings, loaded.cache_ubatch, model)
    _check_context(context.n_ctx // context.n_seq_max, prompt_tokens, generate_tokens, tier)
    work = _core.Workload(prompt_tokens, generate_tokens)
    names = tensor_names(model)
    prompt = prompt_plan(loaded, max(prompt_tokens, 1))

    def phase(name: PhaseName, n_tokens: int, count: int, fill: int | None = None) -> Phase:
        # The runtime takes the tier of a prompt by its whole length, whatever micro-batch it then runs it in.
        chosen = prompt.tier if name == "prefill" and tier is None else tier_for(loaded.tiers, n_tokens)
        placement = placement_of(model, places(chosen.overrides, names), op_offload=False)
        pass_ = pass_of(model.core, context, work, name, n_tokens, fill)
        return Phase(name, n_tokens, count, chosen.strategy or "", placement, pass_, (budget * MIB,))

    sizes = [t.batch_size for t in loaded.tiers]
    if tier is not None:
        if tier > max(sizes):
            covered = ", ".join(map(str, sizes))
            message = f"tier {tier}: no tier that is loaded for {budget} MiB covers it; there are {covered}."
            raise SettingError(message)
        phases = [phase("decode" if tier <= LARGEST_DECODE else "prefill", tier, 1)]
    else:
        ubatch = min(prompt.ubatch, max(sizes))
        phases = _prompt_and_decode(prompt_tokens, generate_tokens, ubatch, phase)
    caches = tuple(_core.cache_bytes(model.core, layer, context) for layer in model.core.layers)
    return Workload(tuple(phases), caches, (budget * MIB,))


def _section_for(model: Model, path: Path) -> Section:
    """Return the section of a registry that the runtime would find for a model, the last of several.

    Raises
    ------
    RegistryError
        There is none: all are of another model, or of another file of it.
    """
    from pshard.registry.errors import RegistryError
    from pshard.registry.faults import find_faults
    from pshard.registry.format import Registry
    from pshard.registry.store import read_registry

    sections = [section for section in read_registry(path).sections if section.fingerprint is not None]
    if not sections or sections[-1].settings is None:
        message = f"{path}: no section that says what it is for; plan again (`pshard plan`)."
        raise RegistryError(message)
    reasons = []
    for section in reversed(sections):
        faults = [fault for fault in find_faults(Registry((section,)), model) if fault.kind in OF_ANOTHER_MODEL]
        if section.settings is not None and not faults:
            return section
        reasons += [f"{fault.where}: {fault.text}" for fault in faults]
    message = f"{path}: holds no plans for {model.name}; plan again (`pshard plan`). The last section: {reasons[0]}"
    raise RegistryError(message)


def _check_context(n_ctx: int, prompt_tokens: int, generate_tokens: int, tier: int | None) -> None:
    needed = prompt_tokens + generate_tokens if tier is None else tier
    if n_ctx < needed:
        message = f"{needed} tokens do not fit in a context of {n_ctx}; give a smaller --prompt, --generate or --tier."
        raise SettingError(message)


def workload_of_layers(
    model: Model,
    layers: Sequence[int],
    *,
    prompt_tokens: int,
    generate_tokens: int,
    n_ctx: int | None = None,
    tier: int | None = None,
    n_ubatch: int = DEFAULT_N_UBATCH,
    on_cpu: Sequence[bool] = (),
    head: int | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
) -> Workload:
    """Put whole layers on devices that follow each other.

    Parameters
    ----------
    model : Model
    layers : sequence of int
        Layers of each device, first layer first; they add up to the model's.
    prompt_tokens, generate_tokens : int
    n_ctx : int, optional
        Context; what the workload needs by default.
    tier : int, optional
        Only a batch of so many tokens.
    n_ubatch : int
        Micro-batch of the prompt.
    on_cpu : sequence of bool
        Devices that are the CPU; none by default.
    head : int, optional
        Device of the output head; the last by default.
    type_k, type_v : str
        Of the cache.

    Returns
    -------
    Workload

    Raises
    ------
    SettingError
        The layers do not add up, there are more devices than llama.cpp takes, or the context is too short for the work.
    """
    from pshard import _core
    from pshard.model.model import data_type

    if sum(layers) != model.n_layer or any(n < 0 for n in layers) or not layers:
        given = ", ".join(map(str, layers))
        message = f"layers {given} add up to {sum(layers)}; {model.name} has {model.n_layer}, each on one device."
        raise SettingError(message)
    if n_ctx is not None:
        _check_context(n_ctx, prompt_tokens, generate_tokens, tier)
    placement = _whole_layers(layers, on_cpu, len(layers) - 1 if head is None else head)
    context = _core.ContextParameters()
    context.n_ctx = n_ctx or max(256, math.ceil((prompt_tokens + generate_tokens) / 256) * 256, tier or 0)
    context.n_batch = context.n_ubatch = max(min(n_ubatch, max(prompt_tokens, 1)), tier or 1)
    context.n_seq_max = 1
    context.flash_attn = True
    context.type_k, context.type_v = data_type(type_k), data_type(type_v)
    work = _core.Workload(prompt_tokens, generate_tokens)

    def phase(name: PhaseName, n_tokens: int, count: int, fill: int | None = None) -> Phase:
        report = _core.memory(model.core, placement, context, n_tokens)
        pass_ = pass_of(model.core, context, work, name, n_tokens, fill)
        used = tuple(gpu.total() for gpu in report.gpus)
        return Phase(name, n_tokens, count, "LAYERS", placement, pass_, used)

    if tier is not None:
        phases = [phase("decode" if tier <= LARGEST_DECODE else "prefill", tier, 1)]
    else:
        phases = _prompt_and_decode(prompt_tokens, generate_tokens, n_ubatch, phase)
    arenas = tuple(max(phase.vram_bytes[gpu] for phase in phases) for gpu in range(placement.n_gpu))
    caches = tuple(_core.cache_bytes(model.core, layer, context) for layer in model.core.layers)
    return Workload(tuple(phases), caches, arenas, is_limited=False)


def _whole_layers(layers: Sequence[int], on_cpu: Sequence[bool], head: int) -> _core.Placement:
    """Place so many layers on each device, and the head on one of them."""
    from pshard import _core

    is_cpu = list(on_cpu) or [False] * len(layers)
    placement = _core.Placement()
    try:
        # GPUs are counted without the CPU among them.
        places = [_core.Where.cpu if cpu else _core.pinned_on(i - sum(is_cpu[:i])) for i, cpu in enumerate(is_cpu)]
    except ValueError as error:
        raise SettingError(str(error)) from error
    placement.patterns = [_core.LayerPlacement(place) for place in places]
    placement.layer_pattern = [device for device, n in enumerate(layers) for _ in range(n)]
    placement.n_gpu = is_cpu.count(False)
    placement.head = places[head]
    return placement


def workload_of_map(
    model: Model,
    document: Mapping[str, Any],
    *,
    prompt_tokens: int,
    generate_tokens: int,
    tier: int | None = None,
) -> tuple[Workload, tuple[str, ...]]:
    """Take the devices of a map that ``pshard map --json`` printed.

    Returns
    -------
    Workload
    tuple of str
        Names of the host and of the devices, in the order of the map.

    Raises
    ------
    SettingError
        The document is none, or of another model, or its context is too short for the work.
    """
    try:
        found = document["map"]
        # A GPU without layers stays: which one another is does not depend on it.
        devices = [device for device in found["devices"] if device["n_layer"] > 0 or device["kind"] != "cpu"]
        layers = [int(device["n_layer"]) for device in devices]
        names = [str(device["name"]) for device in devices]
        on_cpu = [device["kind"] == "cpu" for device in devices]
        used = [index for index, n_layer in enumerate(layers) if n_layer]
        head = used[0 if found["head"] == "first" else -1]
        n_ctx = int(document["parameters"]["max_seq_len"])
        n_ubatch = int(document["parameters"]["n_ubatch"])
        type_k, type_v = (document["parameters"][key] for key in ("type_k", "type_v"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"the map has no {error}; give the document that `pshard map --json` prints."
        raise SettingError(message) from error
    workload = workload_of_layers(
        model, layers, prompt_tokens=prompt_tokens, generate_tokens=generate_tokens, n_ctx=n_ctx, tier=tier,
        n_ubatch=n_ubatch, on_cpu=on_cpu, head=head, type_k=_cache_type(type_k), type_v=_cache_type(type_v),
    )  # fmt: skip
    host = next((name for name, cpu in zip(names, on_cpu, strict=True) if cpu), "host")
    return workload, (host, *(name for name, cpu in zip(names, on_cpu, strict=True) if not cpu))


def _cache_type(name: object) -> str:
    if name not in CACHE_TYPES:
        message = f"the map has a cache of type {name!r}, which is none of {', '.join(CACHE_TYPES)}; make it again."
        raise SettingError(message)
    return str(name)


def _prompt_and_decode(prompt_tokens: int, generate_tokens: int, n_ubatch: int, phase: Any) -> list[Phase]:
    phases = []
    if prompt_tokens:
        phases += [phase("prefill", *batch) for batch in prompt_batches(prompt_tokens, n_ubatch)]
    if generate_tokens:
        phases.append(phase("decode", 1, generate_tokens))
    if not phases:
        message = "there is neither a prompt nor anything to generate; give --prompt, --generate or --tier."
        raise SettingError(message)
    return phases
