"""Plans fill the budget: nothing is kept back, and what is left over has a reason."""

from __future__ import annotations

from functools import cache
from itertools import product

from pshard import Plan, _core, load_machine, plan, read_model

GIB = 1 << 30
MODELS = ("llama-3.1-8b:Q4_K_M", "llama-3.3-70b:Q4_K_M", "qwen3-30b-a3b:Q4_K_M")
BUDGETS_GIB = (4, 12)
OVERFLOWS = ("NONE", "ATTN", "UP", "GATE")


@cache
def planned(name: str, budget_gib: int) -> Plan:
    machine = load_machine(gpu="rtx-4090-24g", ram="256G")
    return plan(read_model(name), machine, vram_bytes=budget_gib * GIB, tier_max=2048)


def sizes(knobs: _core.Knobs) -> tuple[int, int, int, bool]:
    return knobs.n_pinned, knobs.n_attn_pinned, OVERFLOWS.index(knobs.overflow), knobs.output_on_gpu


def holds_more(more: _core.Knobs, knobs: _core.Knobs) -> bool:
    """Everything that the other holds, and something else."""
    larger = [a >= b for a, b in zip(sizes(more), sizes(knobs), strict=True)]
    return more.pin_from_back == knobs.pin_from_back and all(larger) and sizes(more) != sizes(knobs)


def runtime_context(result: Plan) -> _core.ContextParameters:
    context = _core.ContextParameters()
    context.pshard_runtime = True
    context.n_ctx = result.settings.n_ctx
    context.n_ubatch = context.n_batch = result.tiers[-1].batch_size
    return context


def layer_bytes(model: _core.Model, context: _core.ContextParameters) -> int:
    """The largest layer with its cache: what pinning one more takes."""
    pinned = _core.LayerPlacement(_core.Where.pinned)
    return max(
        _core.gpu_weight_bytes(layer, pinned) + _core.cache_bytes(model, layer, context) for layer in model.layers
    )


def test_what_would_still_fit_would_be_slower() -> None:
    """Per tier, the chosen strategy with more on the GPU takes longer, or exceeds the budget."""
    left_over = []
    for name, budget in product(MODELS, BUDGETS_GIB):
        result = planned(name, budget)
        model = result.model.core
        machine = result.machine.core(result.settings.n_threads, "plain")
        context = runtime_context(result)
        workload = _core.Workload(result.settings.prompt_tokens, result.settings.generate_tokens)
        for tier in result.tiers:
            best = tier.candidates[tier.best]
            if best.strategy == "STOCK_FIT" or best.knobs.n_pinned == len(model.layers):
                continue
            left_over.append((budget * GIB - best.memory.gpu.total()) / layer_bytes(model, context))
            pass_ = _core.tier_pass(model, context, workload, tier.batch_size)
            for knobs in _core.all_knobs(best.strategy, model):
                if not holds_more(knobs, best.knobs):
                    continue
                placement = _core.make_placement(best.strategy, knobs, model)
                if _core.price_pass(model, machine, pass_, placement).seconds > best.time.seconds:
                    continue
                used = _core.memory(model, placement, context, tier.batch_size).gpu.total()
                assert used > budget * GIB, (name, budget, tier.batch_size, best.strategy, sizes(knobs))
    assert len(left_over) > 20
    assert sum(share > 1.0 for share in left_over) <= 0.1 * len(left_over)
