"""The pull request's 181 planner runs again: its choices and pshard's under one cost model and one machine.

    python bench/bench_same_ground.py           writes docs/same-ground.md
    pytest bench/bench_same_ground.py           a viable plan wherever one fits; never slower than the pull request

The machine is made of the profile files that its planner read. Like its predictor, prices here read the whole cache.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))

sys.path.insert(0, str(Path(__file__).parent))

import pull_request
from pull_request import MIB, Run, Tier
from pull_request_terms import FACTOR, N_THREADS, TERMS, case, explanation, profiles, workload

from pshard import _core
from pshard.machine.machine import Machine

PRINTED = 0.1  # MiB, of `vram=`
DOCUMENT = Path(__file__).parents[1] / "docs" / "same-ground.md"
SHORT = {
    "GPUONLY_LAYERPIN_LAYERSTREAM": "layerstream",
    "GPUONLY_ATTNPIN_FFNSTREAM": "ffnstream",
    "DYNAMIC_FFNCPU_ATTNSTREAM": "ffncpu",
    "STATIC_ATTNPRIO_ALLMODELS": "static",
    "STATIC_FITPARAMS_DENSEPRIO_MOEONLY": "fitparams",
    "STOCK_FIT": "stock fit",
}


@dataclass(frozen=True)
class Cell:
    """One tier of one run: the pull request's choice and pshard's, in seconds of the same cost model."""

    run: Run
    tier: Tier
    theirs: _core.PassTime | None
    vram_bytes: int
    ours: _core.Candidate | None

    @property
    def their_tps(self) -> float | None:
        """Tokens per second that pshard predicts for the pull request's choice."""
        return None if self.theirs is None else self.tier.bs / self.theirs.seconds


@cache
def machine() -> Machine:
    """The machine of the pull request's profile files."""
    return Machine("profile files of the pull request", profiles()[0])


def price(run: Run, tier: Tier) -> _core.PassTime:
    """Price the pull request's choice."""
    priced = case(run, tier)
    return _core.price_pass(priced.model.core, machine().core(N_THREADS), priced.pass_, priced.placement)


@cache
def cells() -> tuple[Cell, ...]:
    """Every tier of every run of free strategy."""
    return tuple(_cells())


def _cells() -> Iterator[Cell]:
    core = machine().core(N_THREADS)
    strategies = _core.strategy_names()
    for run in pull_request.runs():
        if run.strategy != "auto":
            continue
        model, context = pull_request.model(run.model).core, pull_request.context(run)
        stock_context = pull_request.context(run)
        stock_context.n_batch, stock_context.n_ubatch, stock_context.pshard_runtime = 2048, 512, False
        fit = _core.stock_fit(model, stock_context, [_core.FitDevice(run.budget * MIB)])
        budget = _core.Budget(run.budget * MIB, machine().ram_bytes)
        for tier in run.tiers:
            plan = _core.plan_tier(
                model, core, context, workload(run), budget, strategies, tier.bs, fit, stock_context,
                allow_stock_fit=True,
            )  # fmt: skip
            theirs = price(run, tier) if tier.viable else None
            placed = pull_request.placement(run, tier) if tier.viable else None
            vram = 0 if placed is None else _core.memory(model, placed, context, tier.bs).gpu.total()
            yield Cell(run, tier, theirs, vram, plan.candidates[plan.best] if plan.best >= 0 else None)


def unfair(cell: Cell) -> bool:
    """Whether pshard's memory model has the pull request's choice above the budget, so that it must not be chosen."""
    return cell.vram_bytes > cell.run.budget * MIB


def reason(cell: Cell) -> str:
    """Name what makes pshard's choice another one than the pull request's."""
    assert cell.ours is not None
    ours, tier = cell.ours, cell.tier
    if cell.theirs is None:
        return "pruned there"
    knobs = ours.knobs
    same = (ours.strategy, knobs.n_pinned, knobs.n_attn_pinned, knobs.output_on_gpu) == (
        tier.strategy, tier.n_pinned, tier.n_attn_pinned, bool(tier.output_on_gpu),
    )  # fmt: skip
    if same:
        return "same"
    if ours.strategy != tier.strategy:
        return "other strategy"
    if knobs.output_on_gpu and not tier.output_on_gpu:
        return "head on the GPU"
    if knobs.pin_from_back or knobs.overflow != tier.overflow:
        return "other layers"
    return "more layers" if knobs.n_pinned > tier.n_pinned else "fewer layers"


@dataclass(frozen=True)
class Difference:
    """Both predictions for a choice of the pull request, in tokens per second, and the terms that make them differ."""

    run: Run
    tier: Tier
    ours: float
    terms: tuple[str, ...] | None

    @property
    def ratio(self) -> float:
        """pshard's prediction over the pull request's."""
        return self.ours / self.tier.tps


@cache
def differences() -> tuple[Difference, ...]:
    """Every viable choice of the pull request; `terms` is empty where the predictions are within `FACTOR`."""
    return tuple(
        Difference(run, tier, tier.bs / price(run, tier).seconds, explanation(run, tier))
        for run, tier in pull_request.viable()
    )


def test_a_viable_plan_wherever_one_fits() -> None:
    assert machine().profile.gpu is not None
    lacking = [cell.run.name for cell in cells() if cell.theirs is not None and cell.ours is None]
    assert not lacking


def test_never_slower_than_the_pull_request() -> None:
    slower = [
        (cell.run.name, cell.tier.bs)
        for cell in cells()
        if cell.theirs is not None
        and cell.ours is not None
        and not unfair(cell)
        and cell.ours.time.seconds > cell.theirs.seconds * (1 + 1e-9)
    ]
    assert not slower


def test_every_large_difference_is_explained_by_its_terms() -> None:
    assert not [(found.run.name, found.tier.bs) for found in differences() if found.terms is None]
    assert statistics.median(found.ratio for found in differences() if found.run.ctx < 32768) < 1.1


def memory_errors() -> dict[tuple[str, str], list[float]]:
    """MiB that pshard's figure is above the recorded ``vram=``, by strategy and model."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in pull_request.runs():
        for tier in run.tiers:
            if tier.viable:
                found = pull_request.vram_bytes(run, tier) / MIB
                errors[SHORT[tier.strategy], run.model].append(found - tier.vram)
    return errors


def _choice(strategy: str, n_pinned: int, n_attn: int, overflow: str, head: bool) -> str:
    attention = f"+{n_attn - n_pinned}a" if strategy.startswith("STATIC") and n_attn > n_pinned else ""
    part = f"+{overflow.lower()}" if overflow != "NONE" else ""
    return f"{SHORT[strategy]} {n_pinned}{attention}{part}{' head' if head else ''}"


def _row(cell: Cell) -> str:
    run, tier = cell.run, cell.tier
    theirs = tps = ours = ours_tps = "-"
    if cell.theirs is not None:
        theirs = _choice(tier.strategy, tier.n_pinned, tier.n_attn_pinned, tier.overflow, bool(tier.output_on_gpu))
        tps = f"{tier.bs / cell.theirs.seconds:.4g}"
    if cell.ours is not None:
        k = cell.ours.knobs
        ours = _choice(cell.ours.strategy, k.n_pinned, k.n_attn_pinned, k.overflow, k.output_on_gpu)
        ours_tps = f"{tier.bs / cell.ours.time.seconds:.4g}"
    why = "their choice exceeds the budget here" if cell.theirs is not None and unfair(cell) else reason(cell)
    return f"| {run.budget} | {tier.bs} | {theirs} | {tps} | {ours} | {ours_tps} | {why} |"


def document() -> str:
    """Return docs/same-ground.md."""
    found = cells()
    both = [cell for cell in found if cell.theirs is not None and cell.ours is not None]
    fair = [cell for cell in both if not unfair(cell)]
    gains = [cell.theirs.seconds / cell.ours.time.seconds for cell in fair if cell.theirs and cell.ours]
    compared = differences()
    lines = [
        "# On the same ground",
        "",
        f"The planner pull request decided {len(found)} tiers in its {len({id(c.run) for c in found})} runs of free "
        "strategy. Here its choices and pshard's are priced with pshard's cost model on the machine of the profile "
        "files that it read, over the whole cache as its predictor has it. Written by "
        "`python bench/bench_same_ground.py`; `pytest bench/bench_same_ground.py` holds the first table. Nothing here "
        "was measured: the profiles are synthetic.",
        "",
        "| | tiers |",
        "|---|---|",
        f"| with a choice of the pull request | {sum(c.theirs is not None for c in found)} |",
        f"| with a choice of pshard | {sum(c.ours is not None for c in found)} |",
        f"| compared: its choice is within the budget by pshard's memory model too | {len(fair)} |",
        f"| of these pshard's is slower | {sum(gain < 1 - 1e-9 for gain in gains)} |",
        f"| pshard's is more than 1.1 times faster | {sum(gain > 1.1 for gain in gains)} |",
        f"| more than twice | {sum(gain > 2 for gain in gains)} |",
        "",
        f"Median gain {statistics.median(gains):.2f}, largest {max(gains):.1f}.",
        "",
        "## Its predictions and pshard's, for its choices",
        "",
        f"Of {len(compared)} predictions {sum(found.terms == () for found in compared)} are within a factor "
        f"{FACTOR:g}. Of each other one pshard's price was changed, term by term, to what its predictor counts, until "
        "it was; these changes closed the gap:",
        "",
        "| terms | tiers | ratio of pshard's to its |",
        "|---|---|---|",
    ]
    for terms, count in Counter(found.terms for found in compared if found.terms).most_common():
        ratios = [found.ratio for found in compared if found.terms == terms]
        lines.append(f"| {' and '.join(terms or ())} | {count} | {min(ratios):.2f} to {max(ratios):.1f} |")
    used = {name for found in compared for name in found.terms or ()}
    lines += ["", *(f"- {name}: {' '.join((TERMS[name].__doc__ or '').split())}" for name in TERMS if name in used)]
    near = [found.ratio for found in compared if found.run.ctx < 32768]
    lines += ["", f"Below 32768 cells the median ratio is {statistics.median(near):.2f}.", ""]
    lines += ["## Memory, for its choices", ""]
    lines += [
        "pshard's bytes less the recorded `vram=`, in MiB; the same means within the 0.1 that is printed. Where layers "
        "of Llama 3.1 stream, the runtime takes rope factors for the head and computes rope on the CPU "
        "([registry.md](registry.md)), which pshard does not follow.",
        "",
    ]
    columns = (
        "strategy | model | tiers | the same | within 2 % or 32 MiB | below by more than 16 | least | median | most"
    )
    lines += [f"| {columns} |", "|---|---|---|---|---|---|---|---|---|"]
    for (strategy, model), errors in sorted(memory_errors().items()):
        members = pull_request.viable(strategy_named(strategy), model)
        inside = sum(pull_request.is_close(run, tier) for run, tier in members)
        lines.append(
            f"| {strategy} | {model} | {len(errors)} | {sum(abs(error) <= PRINTED for error in errors)} | {inside} "
            f"| {sum(error < -16 for error in errors)} "
            f"| {' | '.join(f'{round(of(errors), 1) + 0.0:.1f}' for of in (min, statistics.median, max))} |"
        )
    lines += ["", "## Every choice", ""]
    lines += ["Numbers are whole layers on the GPU, `+Na` layers with attention only; tokens per second.", ""]
    groups: dict[tuple[str, int, str], list[Cell]] = defaultdict(list)
    for cell in found:
        groups[cell.run.model, cell.run.ctx, cell.run.set].append(cell)
    for (model, ctx, set_name), group in groups.items():
        lines += [f"### {model}, {ctx} cells ({set_name})", ""]
        lines += ["| budget | tokens | pull request | t/s | pshard | t/s | reason |", "|---|---|---|---|---|---|---|"]
        lines += [_row(cell) for cell in group]
        lines.append("")
    return "\n".join(lines)


def strategy_named(short: str) -> str:
    """Full name of a strategy of the tables."""
    return next(name for name, other in SHORT.items() if other == short)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
