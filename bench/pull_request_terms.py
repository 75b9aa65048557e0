"""The pull request's predictor, term by term: pshard's price of a choice with some of its terms counted as there.

Its rules are those of ../docs/same-ground.md; each is a change of the machine, of the pass, of the placement, or of the
seconds. What closes the gap between the two predictions is the reason for it.
"""

from __future__ import annotations

import gzip
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pull_request
from msgspec.structs import replace
from pull_request import Run, Tier

from pshard import _core
from pshard.machine.machine import Machine, machine_from_text_profiles
from pshard.machine.profile import Processor, Profile, Series
from pshard.machine.rates import Rates, bits_per_weight
from pshard.machine.text_profiles import CPU_FILE, GPU_FILE, Row, read_cpu_profile, read_gpu_profile
from pshard.model.model import Model

GIB = 1 << 30
N_THREADS = 8
FACTOR = 1.5
# Batches that its profiler measures, on either processor; of experts, in rows for each.
GPU_BATCHES = (1, 64, 512, 1024, 2048, 4096, 8192, 16384)
CPU_BATCHES = (1, 64, 512)
N_EXPERT, N_EXPERT_USED = 128, 8
# Of the experts that op-offload copies, its planner counts this share in every pass of several tokens.
OFFLOADED_SHARE = 0.25
OFFLOAD_TOKENS = 32


@cache
def profiles() -> tuple[Profile, tuple[Row, ...], tuple[Row, ...]]:
    """The profile made of the files that its planner read, with room for every model, and its CPU and GPU rows."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in (CPU_FILE, GPU_FILE)]
        for path in paths:
            path.write_bytes(gzip.decompress(pull_request.profile_path(path.name).read_bytes()))
        machine = machine_from_text_profiles(*paths, vram_bytes=32 * GIB, ram_bytes=256 * GIB)
        return machine.profile, read_cpu_profile(paths[0]).rows, read_gpu_profile(paths[1]).rows


@dataclass
class Case:
    """One choice of the pull request and how it is priced; terms change it."""

    run: Run
    tier: Tier
    model: Model
    profile: Profile
    pass_: _core.Pass
    placement: _core.Placement
    more_seconds: float = 0.0

    def seconds(self) -> float:
        """Price the case."""
        core = Machine("", self.profile).core(N_THREADS)
        return _core.price_pass(self.model.core, core, self.pass_, self.placement).seconds + self.more_seconds

    def bytes_in(self, groups: str, where: Iterable[_core.Where]) -> float:
        """Bytes of the tensors with `groups` in their names whose group lies at one of the places."""
        n_bytes = 0
        for layer, pattern in zip(self.model.core.layers, self.placement.layer_pattern, strict=True):
            place = self.placement.patterns[pattern]
            n_bytes += sum(
                tensor.n_bytes
                for tensor in layer.tensors
                if groups in tensor.name and place[_core.group_of(tensor.name)] in where
            )
        return float(n_bytes)


def workload(run: Run) -> _core.Workload:
    """Long enough that every tier reads the whole cache, as its predictor has it."""
    return _core.Workload(2 * run.ctx, 0)


def case(run: Run, tier: Tier) -> Case:
    """Return a choice as pshard prices it."""
    model = pull_request.model(run.model)
    pass_ = _core.tier_pass(model.core, pull_request.context(run), workload(run), tier.bs)
    return Case(run, tier, model, profiles()[0], pass_, pull_request.placement(run, tier))


def _with_processors(profile: Profile, change: Callable[[Processor, bool], Processor]) -> Profile:
    assert profile.gpu is not None
    return replace(profile, gpu=change(profile.gpu, True), cpu=change(profile.cpu, False))


def _with_series(processor: Processor, change: Callable[[Series], Series]) -> Processor:
    series = tuple(change(entry) for entry in processor.series)
    peak = max(processor.peak_flop_per_second, *(rate for entry in series for rate in entry.flop_per_second))
    return replace(processor, series=series, peak_flop_per_second=peak)


def _one_rate(entry: Series, batch: float, flop_per_second: float) -> Series:
    return replace(entry, batch=(batch,), flop_per_second=(flop_per_second,))


def attention(case: Case) -> None:
    """Attention without a row of its own takes the nearest by cache length and KV heads, which is one of one token."""
    n_head_kv = max(layer.n_head_kv for layer in case.model.hyperparameters.layers)
    ctx, batch = case.run.ctx, case.tier.bs

    def change(processor: Processor, on_gpu: bool) -> Processor:
        _, cpu_rows, gpu_rows = profiles()
        rows = [row for row in (gpu_rows if on_gpu else cpu_rows) if row.operation.startswith("FLASH_ATTN")]
        if any((row.ctx_len, row.n_heads, row.n_tokens) == (ctx, n_head_kv, batch) for row in rows):
            return processor
        nearest = min(
            rows, key=lambda row: abs(row.ctx_len - ctx) / ctx + 0.5 * abs(row.n_heads - n_head_kv) / n_head_kv
        )
        return _with_series(
            processor,
            lambda entry: _one_rate(entry, 1.0, nearest.gflops * 1e9) if entry.operation == "attention" else entry,
        )

    case.profile = _with_processors(case.profile, change)


def masked_cells(case: Case) -> None:
    """Attention on the CPU is counted over the cells that are masked, too."""
    case.pass_.n_filled = 0


def logits(case: Case) -> None:
    """Logits are counted for one token of each sequence in every tier."""
    case.pass_.n_outputs = case.pass_.n_seqs


def rows(case: Case) -> None:
    """Products take the row of the nearest batch: its bandwidth below the ridge, else its arithmetic."""
    batch = case.tier.bs

    def change(processor: Processor, on_gpu: bool) -> Processor:
        nearest = min(GPU_BATCHES if on_gpu else CPU_BATCHES, key=lambda other: abs(other - batch) / batch)
        routes = nearest * N_EXPERT_USED

        def at_nearest(entry: Series) -> Series:
            rates = Rates(entry.batch, entry.flop_per_second, 0.0)
            if nearest == batch or entry.operation == "attention":
                return entry
            if entry.operation == "mul_mat_id":  # counted as if the experts' bytes did not grow: beyond any ridge
                per_expert = routes / min(N_EXPERT, routes)
                return _one_rate(entry, per_expert, rates.at(per_expert))
            ridge = max(entry.flop_per_second) / processor.memory[0].bytes_per_second
            reading = 2.0 * batch / (bits_per_weight(entry.type) / 8.0) < ridge and nearest < batch
            if reading:
                return _one_rate(entry, float(batch), rates.at(nearest) * batch / nearest)
            return _one_rate(entry, 1.0, rates.at(nearest))

        return _with_series(processor, at_nearest)

    case.profile = _with_processors(case.profile, change)


def slices(case: Case) -> None:
    """Experts that stream are copied whole; of those that op-offload copies, a quarter is counted."""
    h = case.model.hyperparameters
    offloads = case.placement.op_offload
    if h.n_expert == 0 or (offloads and case.tier.bs < OFFLOAD_TOKENS):
        return
    share = 1.0 - (1.0 - h.n_expert_used / h.n_expert) ** case.tier.bs
    where = [_core.Where.cpu] if offloads else [_core.Where.stream_a, _core.Where.stream_b]
    assert case.profile.link is not None
    difference = (OFFLOADED_SHARE if offloads else 1.0) - share
    case.more_seconds += difference * case.bytes_in("_exps", where) / max(case.profile.link.up.bytes_per_second)


def experts(case: Case) -> None:
    """Products of experts read the share of one token's experts, whatever the batch."""
    h = case.model.hyperparameters
    if h.n_expert == 0 or case.profile.gpu is None:
        return
    one = h.n_expert_used / h.n_expert
    share = 1.0 - (1.0 - one) ** case.tier.bs
    on_gpu = case.bytes_in("_exps", [_core.Where.pinned, _core.Where.stream_a, _core.Where.stream_b])
    case.more_seconds += (one - share) * on_gpu / case.profile.gpu.memory[0].bytes_per_second


def last_layer(case: Case) -> None:
    """The last layer's FFN is counted for every token of a prompt batch, not for those whose logits are wanted."""
    place = case.placement.patterns[case.placement.layer_pattern[-1]]
    if place[_core.Group.ffn_up] != _core.Where.cpu or case.placement.op_offload:
        return
    rates = next(s for s in case.profile.cpu.series if (s.operation, s.type) == ("mul_mat", "Q4_K"))
    elements = sum(
        math.prod(tensor.shape)
        for tensor in case.model.core.layers[-1].tensors
        if _core.group_of(tensor.name) in (_core.Group.ffn_up, _core.Group.ffn_gate, _core.Group.ffn_down)
    )
    rate = Rates(rates.batch, rates.flop_per_second, 0.0).at(case.tier.bs)
    case.more_seconds += 2.0 * elements * (case.tier.bs - case.pass_.n_outputs) / rate


def rope_factors(case: Case) -> None:
    """`rope_freqs` counts as the output head, so attention of all layers but the first runs on the CPU."""
    if not case.run.model.startswith("llama31"):
        return
    placement = case.placement
    patterns, numbers = list(placement.patterns), list(placement.layer_pattern)
    moved: dict[int, int] = {}
    for layer, number in enumerate(numbers[1:], start=1):
        if number not in moved:
            pattern = _core.LayerPlacement(_core.Where.cpu)
            for group in _core.Group:
                if group.name not in ("embedding", "head", "attention", "cache"):
                    pattern[group] = patterns[number][group]
            moved[number] = len(patterns)
            patterns.append(pattern)
        numbers[layer] = moved[number]
    placement.patterns, placement.layer_pattern = patterns, numbers


def starts(case: Case) -> None:
    """Starting an operation and handing over between CPU and GPU cost nothing."""

    def change(processor: Processor, _: bool) -> Processor:
        return replace(processor, memory=tuple(replace(entry, op_seconds=0.0) for entry in processor.memory))

    case.profile = _with_processors(case.profile, change)
    assert case.profile.link is not None
    nothing = replace(case.profile.link.handoff_to_gpu_seconds, value=1e-12)
    link = replace(case.profile.link, handoff_to_gpu_seconds=nothing, handoff_to_cpu_seconds=nothing)
    case.profile = replace(case.profile, link=link)


# By name as the table has it, the likeliest first.
TERMS = {
    "attention": attention,
    "masked cells": masked_cells,
    "logits": logits,
    "rows": rows,
    "slices": slices,
    "experts": experts,
    "last layer": last_layer,
    "rope factors": rope_factors,
    "starts": starts,
}


def explanation(run: Run, tier: Tier, most_terms: int = 3) -> tuple[str, ...] | None:
    """Find the fewest terms that bring pshard's prediction within `FACTOR` of the recorded one.

    Returns
    -------
    tuple of str or None
        Empty where they are as close without a change; None where no `most_terms` terms do it.
    """
    for count in range(most_terms + 1):
        for names in itertools.combinations(TERMS, count):
            changed = case(run, tier)
            for name in names:
                TERMS[name](changed)
            seconds = changed.seconds()
            if seconds > 0.0 and 1.0 / FACTOR <= tier.bs / seconds / tier.tps <= FACTOR:
                return names
    return None
