"""Plans: what goes where, how fast it will be, and how to launch it."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.launch.spellings import CACHE_TYPES, MAX_TOKENS
from pshard.quantities import GIB, MAX_BYTES, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pshard import _core
    from pshard.machine.machine import Machine
    from pshard.model.model import Model


DEFAULT_N_CTX = 8192
DEFAULT_N_BATCH = 2048
DEFAULT_N_UBATCH = 512
DEFAULT_PROMPT_TOKENS = 2048
DEFAULT_GENERATE_TOKENS = 256
DEFAULT_FIT_TARGET_BYTES = 1024 * MIB
# Beyond this, nothing is meant.
MAX_THREADS = 4096
# Micro-batches that stock llama.cpp is tried with, where none is asked for.
MICRO_BATCHES = (512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a plan was asked for, checked and complete. Names are llama.cpp's."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    micro_batches: tuple[int, ...]
    n_seq_max: int
    flash_attn: bool
    type_k: str
    type_v: str
    n_threads: int
    prompt_tokens: int
    generate_tokens: int
    n_draft: int
    strategy: str | None
    tier_max: int
    budget_bytes: int

    def context(self, n_ubatch: int, *, runtime: bool) -> _core.ContextParameters:
        """Return the context of the pshard runtime, or of stock llama.cpp, at a micro-batch."""
        from pshard import _core
        from pshard.model.model import data_type

        context = _core.ContextParameters()
        context.pshard_runtime = runtime
        context.n_ctx = self.n_ctx
        context.n_batch = max(self.n_batch, n_ubatch)
        context.n_ubatch = n_ubatch
        context.n_seq_max = self.n_seq_max
        context.flash_attn = self.flash_attn
        context.type_k = data_type(self.type_k)
        context.type_v = data_type(self.type_v)
        return context


@dataclass(frozen=True)
class Plan:
    """The result of `plan`.

    Attributes
    ----------
    model : Model
    machine : Machine
    settings : Settings
    tiers : tuple of _core.TierPlan
        By rising batch; each with the best placement of every strategy.
    fit : _core.StockFit
        What stock llama.cpp's ``--fit`` decides for the same budget.
    fit_time : _core.WorkloadTime or None
        The workload under it; None, like the next two, on a machine without speeds.
    stock : _core.StockPlan or None
        The best placement that stock llama.cpp can be told.
    runtime : _core.RuntimePlan or None
        The workload on the pshard runtime, tier by tier.
    whole_vram_bytes : int or None
        Bytes of the whole model on the GPU, where that fits the budget with a prompt tier: then nothing needs a plan.
    warnings : tuple of str
    """

    model: Model
    machine: Machine
    settings: Settings
    tiers: tuple[_core.TierPlan, ...]
    fit: _core.StockFit
    fit_time: _core.WorkloadTime | None
    stock: _core.StockPlan | None
    runtime: _core.RuntimePlan | None
    whole_vram_bytes: int | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the document that ``pshard plan --json`` prints: see docs/plan.md."""
        return dict(self._document)

    @cached_property
    def _document(self) -> dict[str, object]:
        from pshard.planning.document import describe

        return describe(self)


def plan(
    model: Model,
    machine: Machine,
    *,
    n_ctx: int | None = None,
    vram_bytes: int | None = None,
    n_batch: int | None = None,
    n_ubatch: int | None = None,
    n_seq_max: int = 1,
    flash_attn: bool = True,
    type_k: str = "f16",
    type_v: str = "f16",
    n_threads: int | None = None,
    prompt_tokens: int | None = None,
    generate_tokens: int | None = None,
    n_draft: int = 0,
    strategy: str | None = None,
    tier_max: int | None = None,
    fit_target_bytes: int = DEFAULT_FIT_TARGET_BYTES,
) -> Plan:
    """Plan a model on a machine.

    Parameters
    ----------
    model : Model
    machine : Machine
    n_ctx : int, optional
        Context in tokens over all sequences; 8192 by default, or the training length where that is smaller.
    vram_bytes : int, optional
        Budget for weights, KV and compute buffers on the GPU (the CUDA context is not in it). By default what is free
        less `fit_target_bytes`. 0 plans for the CPU alone.
    n_batch, n_ubatch : int, optional
        llama.cpp's batch and micro-batch: 2048 and 512 by default. Stock fit takes them as they are; the stock line
        may choose a larger micro-batch where none is given, within `n_batch` where that is given.
    n_seq_max : int
        Parallel sequences.
    flash_attn : bool
    type_k, type_v : str
        ggml types of the KV cache.
    n_threads : int, optional
        CPU threads; the physical cores by default.
    prompt_tokens, generate_tokens : int, optional
        The workload that placements are compared for: one prompt, then that many tokens. 2048 and 256 by default, or
        what the context holds; an encoder generates none.
    n_draft : int
        Tokens that a draft proposes; adds a tier of `n_draft` + 1 tokens.
    strategy : str, optional
        Only this strategy, by its name in the pull request (`pshard._core.strategy_names`).
    tier_max : int, optional
        Largest tier; the larger of `n_batch` and 16384 by default, at most `n_ctx`.
    fit_target_bytes : int
        What stays free where no budget is given.

    Returns
    -------
    Plan

    Raises
    ------
    SettingError
        An argument outside its range.
    ModelError
        A weight type that the machine has no rate for, not even an estimated one.
    NoFeasiblePlanError
        No placement fits VRAM and RAM; it says what is missing and what would make it fit.
    """
    _check_range(1, MAX_TOKENS, n_seq_max=n_seq_max)
    n_ctx = _context_tokens(model, n_ctx, n_seq_max)
    micro_batches = _micro_batches(n_ctx, n_batch, n_ubatch)
    prompt_tokens, generate_tokens = _workload(model, n_ctx // n_seq_max, prompt_tokens, generate_tokens)
    _check_range(0, MAX_TOKENS, n_draft=n_draft)
    _check_range(1, MAX_THREADS, n_threads=1 if n_threads is None else n_threads)
    _check_range(1, MAX_TOKENS, tier_max=1 if tier_max is None else tier_max)
    _check_flag("flash_attn", flash_attn)
    _check_strategy(strategy)
    settings = Settings(
        n_ctx=n_ctx,
        n_batch=DEFAULT_N_BATCH if n_batch is None else n_batch,
        n_ubatch=micro_batches[0],
        micro_batches=micro_batches,
        n_seq_max=n_seq_max,
        flash_attn=flash_attn,
        type_k=_cache_type("type_k", type_k),
        type_v=_cache_type("type_v", type_v),
        n_threads=machine.n_threads if n_threads is None else n_threads,
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        n_draft=n_draft,
        strategy=strategy,
        tier_max=0 if tier_max is None else tier_max,
        budget_bytes=_budget_bytes(machine, vram_bytes, fit_target_bytes),
    )
    _check_cache_types(model, settings)
    return _search(model, machine, settings)


def _search(model: Model, machine: Machine, settings: Settings) -> Plan:
    """Plan what was asked for, once it is checked and complete."""
    from pshard import _core

    has_gpu = settings.budget_bytes > 0
    # Beside a GPU, host weights lie in a host buffer and are multiplied by the plain kernels.
    core_machine = None
    if machine.has_speeds:
        core_machine = copy(machine.core(settings.n_threads, "plain" if has_gpu else "interleaved"))
        core_machine.has_gpu = has_gpu

    workload = _core.Workload(settings.prompt_tokens, settings.generate_tokens)
    budget = _core.Budget(settings.budget_bytes, machine.ram_bytes)
    stock_context = settings.context(settings.n_ubatch, runtime=False)
    widest = settings.context(settings.n_batch, runtime=True)
    ladder = _core.tier_ladder(widest, settings.n_draft, settings.tier_max)
    cache_context = settings.context(ladder[-1], runtime=True)
    strategies = [settings.strategy] if settings.strategy else _core.strategy_names()

    gpus = [_core.FitDevice(settings.budget_bytes)] if has_gpu else []
    fit = _core.stock_fit(model.core, stock_context, gpus)
    tiers = tuple(
        _core.plan_tier(
            model.core, core_machine, cache_context, workload, budget, strategies, batch, fit, stock_context,
            allow_stock_fit=settings.strategy is None,
        )
        for batch in ladder
    )  # fmt: skip
    fit_time = stock = runtime = None
    if core_machine is not None:
        stock = _core.plan_stock(model.core, core_machine, stock_context, workload, budget, settings.micro_batches)
        fit_time = _core.price_workload(model.core, core_machine, stock_context, workload, fit.placement)
    if not any(tier.best >= 0 for tier in tiers) and (stock is None or not stock.viable):
        on_cpu = _core.stock_fit(model.core, stock_context, []).memory.host.total()
        raise _infeasible(settings, machine, tiers, stock, on_cpu)
    if core_machine is not None:
        runtime = _core.plan_runtime(model.core, core_machine, cache_context, workload, list(tiers))
    placements = [fit.placement, *(tier.candidates[tier.best].placement for tier in tiers if tier.best >= 0)]
    return Plan(
        model=model,
        machine=machine,
        settings=settings,
        tiers=tiers,
        fit=fit,
        fit_time=fit_time,
        stock=stock,
        runtime=runtime,
        whole_vram_bytes=_whole_vram_bytes(model, ladder, settings),
        warnings=(
            *model.warnings,
            *machine.warnings,
            *_warnings(model, machine, settings),
            *_cache_warnings(machine, settings, placements),
        ),
    )


def _context_tokens(model: Model, n_ctx: int | None, n_seq_max: int) -> int:
    """Return the context over all sequences: as asked, else the training length up to the default."""
    n_ctx_train = model.hyperparameters.n_ctx_train
    if n_ctx is None:
        n_ctx = min(DEFAULT_N_CTX, n_ctx_train) if n_ctx_train > 0 else DEFAULT_N_CTX
    _check_range(1, MAX_TOKENS, n_ctx=n_ctx)
    if n_seq_max > n_ctx:
        message = f"n_seq_max={n_seq_max} sequences do not fit n_ctx={n_ctx} tokens; each needs at least one."
        raise SettingError(message)
    return n_ctx


def _micro_batches(n_ctx: int, n_batch: int | None, n_ubatch: int | None) -> tuple[int, ...]:
    """Return the micro-batches that stock llama.cpp is tried with: first that of its fit, then larger ones if any."""
    is_open = n_batch is None
    n_batch = DEFAULT_N_BATCH if n_batch is None else n_batch
    _check_range(1, MAX_TOKENS, n_batch=n_batch)
    if n_ubatch is not None:
        _check_range(1, MAX_TOKENS, n_ubatch=n_ubatch)
        return (min(n_ubatch, n_batch),)
    of_fit = min(DEFAULT_N_UBATCH, n_batch)
    largest = n_ctx if is_open else min(n_ctx, n_batch)
    return (of_fit, *(size for size in MICRO_BATCHES if of_fit < size <= largest))


def _workload(
    model: Model, n_ctx_sequence: int, prompt_tokens: int | None, generate_tokens: int | None
) -> tuple[int, int]:
    """Return tokens of the prompt and generated ones, as asked, else the default as far as a sequence holds it."""
    if generate_tokens is None:
        reads_on = model.header.metadata.get(f"{model.architecture}.attention.causal", True)
        generates = model.hyperparameters.traits.causal and bool(reads_on)
        generate_tokens = min(DEFAULT_GENERATE_TOKENS, n_ctx_sequence // 2) if generates else 0
    _check_range(0, MAX_TOKENS, generate_tokens=generate_tokens)
    if prompt_tokens is None:
        prompt_tokens = max(0, min(DEFAULT_PROMPT_TOKENS, n_ctx_sequence - generate_tokens))
    _check_range(0, MAX_TOKENS, prompt_tokens=prompt_tokens)
    if prompt_tokens + generate_tokens == 0:
        message = "prompt_tokens and generate_tokens are both 0; a plan needs some work to compare placements by."
        raise SettingError(message)
    if prompt_tokens + generate_tokens > n_ctx_sequence:
        message = (
            f"prompt_tokens={prompt_tokens} and generate_tokens={generate_tokens} exceed the context of "
            f"{n_ctx_sequence} tokens per sequence; raise n_ctx or shorten the workload."
        )
        raise SettingError(message)
    return prompt_tokens, generate_tokens


def _warnings(model: Model, machine: Machine, settings: Settings) -> list[str]:
    warnings = []
    n_ctx_train = model.hyperparameters.n_ctx_train
    n_ctx_sequence = settings.n_ctx // settings.n_seq_max
    if 0 < n_ctx_train < n_ctx_sequence:
        warnings.append(
            f"The context of {n_ctx_sequence} tokens per sequence exceeds the {n_ctx_train} the model was trained on."
        )
    if settings.budget_bytes > machine.vram_bytes > 0:
        warnings.append(
            f"The budget of {settings.budget_bytes / GIB:.1f} GiB exceeds the {machine.vram_bytes / GIB:.1f} GiB "
            f"of {machine.name}."
        )
    return warnings


def _cache_warnings(machine: Machine, settings: Settings, placements: Iterable[_core.Placement]) -> list[str]:
    """Say where the CPU attends over a cache whose type was not measured there."""
    from pshard import _core

    if not settings.flash_attn or not machine.has_speeds:
        return []
    types = machine.estimated_caches(settings.n_threads, settings.type_k.upper(), settings.type_v.upper())
    on_cpu = any(
        layer[_core.Group.cache] == _core.Where.cpu for placement in placements for layer in placement.patterns
    )
    if not types or not on_cpu:
        return []
    return [
        f"Attention over a cache of {' and '.join(types)} was not measured on this CPU, so its rate is estimated and "
        "its range is wide; measure again (`pshard profile`), or import llama.cpp's own figures."
    ]


def _check_range(minimum: int, maximum: int, **arguments: object) -> None:
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            message = f"{name}={value!r} must be a whole number from {minimum} to {maximum}."
            raise SettingError(message)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        message = f"{name}={value!r} must be True or False."
        raise SettingError(message)


def _cache_type(name: str, value: object) -> str:
    if not isinstance(value, str) or value.lower() not in CACHE_TYPES:
        message = f"{name}={value!r} is none of the cache types of llama.cpp: {', '.join(CACHE_TYPES)}."
        raise SettingError(message)
    return value.lower()


def _check_strategy(strategy: str | None) -> None:
    from pshard import _core

    if strategy is not None and strategy not in _core.strategy_names():
        message = f"strategy {strategy!r} is none of {', '.join(_core.strategy_names())}."
        raise SettingError(message)


def _budget_bytes(machine: Machine, vram_bytes: int | None, fit_target_bytes: int) -> int:
    if vram_bytes is not None:
        _check_range(0, MAX_BYTES, vram_bytes=vram_bytes)
        if vram_bytes > 0 and not machine.has_gpu:
            message = f"vram_bytes={vram_bytes}, but {machine.name} has no GPU; name one (--gpu), or plan with 0."
            raise SettingError(message)
        return vram_bytes
    _check_range(0, MAX_BYTES, fit_target_bytes=fit_target_bytes)
    free = machine.vram_bytes if machine.free_vram_bytes is None else machine.free_vram_bytes
    return max(0, free - fit_target_bytes) if machine.has_gpu else 0


def _check_cache_types(model: Model, settings: Settings) -> None:
    from pshard.model.model import data_type

    if not settings.flash_attn and settings.type_v not in ("f16", "f32", "bf16"):
        message = f"type_v={settings.type_v!r} needs flash attention: llama.cpp keeps a quantised V cache only with it."
        raise SettingError(message)
    for name, field in (("type_k", "head_dim_k"), ("type_v", "head_dim_v")):
        block = data_type(getattr(settings, name)).block_elements
        widths = [getattr(layer, field) for layer in model.hyperparameters.layers]
        width = next((width for width in widths if width % block), 0)
        if width:
            message = f"{name}={getattr(settings, name)!r} has blocks of {block}, which do not divide heads of {width}."
            raise SettingError(message)


def _whole_vram_bytes(model: Model, ladder: list[int], settings: Settings) -> int | None:
    """Bytes of the whole model on the GPU, if it fits at some prompt tier: the pull request's rule to switch off."""
    from pshard import _core

    everything = _core.Knobs(n_pinned=model.n_layer, n_attn_pinned=model.n_layer, output_on_gpu=True)
    whole = _core.make_placement("STATIC_ATTNPRIO_ALLMODELS", everything, model.core)

    def used(batch: int) -> int:
        return _core.memory(model.core, whole, settings.context(batch, runtime=True), batch).gpu.total()

    prompt_tiers = [batch for batch in ladder if batch >= DEFAULT_N_UBATCH] or ladder[-1:]
    if not any(used(batch) <= settings.budget_bytes for batch in reversed(prompt_tiers)):
        return None
    return used(min(prompt_tiers[0], DEFAULT_N_UBATCH))


def _infeasible(
    settings: Settings,
    machine: Machine,
    tiers: tuple[_core.TierPlan, ...],
    stock: _core.StockPlan | None,
    cpu_bytes: int,
) -> NoFeasiblePlanError:
    """Say what is missing and what helps; `cpu_bytes` is what the CPU alone would need of RAM."""
    misses = [(c.missing_vram_bytes, c.missing_ram_bytes) for tier in tiers for c in tier.candidates]
    if stock is not None:
        misses.append((stock.missing_vram_bytes, stock.missing_ram_bytes))
    vram, ram = min(misses, key=sum)
    lacking = []
    if vram:
        budget = f"the budget of {settings.budget_bytes / GIB:.2f} GiB"
        lacking.append(f"{vram} bytes ({vram / GIB:.2f} GiB) of VRAM beyond {budget}")
    if ram:
        owned = f"the {machine.ram_bytes / GIB:.2f} GiB of {machine.name}"
        lacking.append(f"{ram} bytes ({ram / GIB:.2f} GiB) of RAM beyond {owned}")
    remedies = ["a smaller quantisation"]
    if settings.n_ctx > 1024:
        remedies.append(f"a context shorter than {settings.n_ctx} tokens (-c)")
    if settings.type_k == "f16":
        remedies.append("a quantised KV cache (-ctk q8_0 -ctv q8_0)")
    if vram and cpu_bytes <= machine.ram_bytes:
        remedies.append("--vram 0 (the CPU alone)")
    if 0 < vram <= machine.vram_bytes - settings.budget_bytes:
        remedies.append(f"--vram {math.ceil((settings.budget_bytes + vram) / GIB * 10) / 10:g}G")
    if ram:
        remedies.append(f"--ram {math.ceil(max(machine.ram_bytes + ram, cpu_bytes) / GIB)}G")
    needs, helps = " and ".join(lacking), ", ".join(remedies)
    message = f"nothing fits: the smallest placement needs {needs}. What would help: {helps}."
    return NoFeasiblePlanError(message, vram + ram)
