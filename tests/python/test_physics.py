"""Predictions obey physics, for random machines, models, placements and batches."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from planning_cases import (
    ALL_STRATEGIES,
    MODEL_NAMES,
    Rates,
    batches,
    context,
    core_machine,
    cut_model,
    link,
    models,
    n_kernels,
    processor,
    rates,
    whole_model_bytes,
)

from pshard import _core
from pshard.model.model import Model

Lane, Where = _core.Lane, _core.Where
WORKLOAD = _core.Workload(1024, 256)
ROUNDING = 1e-9
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def placed_models(draw: st.DrawFn) -> tuple[Model, _core.Placement]:
    model = draw(models())
    strategy = draw(st.sampled_from(ALL_STRATEGIES))
    knobs = draw(st.sampled_from(_core.all_knobs(strategy, model.core)))
    return model, _core.make_placement(strategy, knobs, model.core)


def price(model: Model, machine: _core.Machine, batch: int, placement: _core.Placement) -> _core.PassTime:
    tier = _core.tier_pass(model.core, context(n_ubatch=max(batch, 512)), WORKLOAD, batch)
    return _core.price_pass(model.core, machine, tier, placement)


@dataclass
class Work:
    """What certainly runs on one processor, because weights decide where."""

    flop: float = 0.0
    bytes: float = 0.0


def work(model: Model, tier: _core.Pass, placement: _core.Placement) -> tuple[Work, Work]:
    """FLOP and weight bytes on the GPU and on the CPU, from the list of operations alone."""
    on_gpu, on_cpu = Work(), Work()
    parameters = model.hyperparameters
    blocks = [
        (_core.layer_operations(model.core, i, tier, i + 1 == model.n_layer), placement.patterns[pattern])
        for i, pattern in enumerate(placement.layer_pattern)
    ]
    blocks.append((_core.head_operations(model.core, tier), None))
    sizes = {t.name: t.n_bytes for layer in model.core.layers for t in layer.tensors}
    sizes |= {t.name: t.n_bytes for t in model.core.head}
    for operations, layer in blocks:
        for operation in operations:
            if operation["kind"] not in (_core.OpKind.mul_mat, _core.OpKind.mul_mat_id):
                continue
            where = placement.head if layer is None else layer[operation["group"]]
            share, rows = 1.0, operation["m"]
            if operation["kind"] == _core.OpKind.mul_mat_id:
                rows //= parameters.n_expert_used
                share = 1.0 - (1.0 - parameters.n_expert_used / parameters.n_expert) ** rows
            offloaded = placement.op_offload and rows >= 32
            side = on_cpu if where == Where.cpu and not offloaded else on_gpu
            side.flop += operation["flop"]
            side.bytes += share * sizes[operation["weight"]]
    return on_gpu, on_cpu


@EXAMPLES
@given(placed=placed_models(), machine=rates().map(core_machine), batch=batches())
def test_nothing_is_faster_than_its_lane(
    placed: tuple[Model, _core.Placement], machine: _core.Machine, batch: int
) -> None:
    model, placement = placed
    time = price(model, machine, batch, placement)
    tier = _core.tier_pass(model.core, context(n_ubatch=max(batch, 512)), WORKLOAD, batch)
    gpu, cpu = work(model, tier, placement)
    least = {
        "GPU memory": gpu.bytes / machine.gpu.memory_peak_bytes_per_second,
        "GPU compute": gpu.flop / machine.gpu.peak_flop_per_second,
        "CPU memory": cpu.bytes / machine.cpu.memory_peak_bytes_per_second,
        "CPU compute": cpu.flop / machine.cpu.peak_flop_per_second,
        "host memory": (cpu.bytes + time.weights_up_bytes) / machine.host_bytes_per_second,
        "link up": time.weights_up_bytes / machine.up.peak_bytes_per_second,
        "link down": time.write_back_bytes / machine.down.peak_bytes_per_second,
    }
    least |= {f"busy {lane.name}": time.busy_seconds[lane] for lane in Lane}
    for name, seconds in least.items():
        assert time.seconds >= seconds * (1 - ROUNDING), name


@EXAMPLES
@given(placed=placed_models(), machine=rates().map(core_machine), batch=batches())
def test_the_lanes_share_the_seconds_among_them(
    placed: tuple[Model, _core.Placement], machine: _core.Machine, batch: int
) -> None:
    model, placement = placed
    time = price(model, machine, batch, placement)
    assert sum(time.critical_seconds) == pytest.approx(time.seconds, rel=1e-12)
    assert min(time.critical_seconds) >= -1e-15
    assert time.critical_seconds[time.bottleneck] == max(time.critical_seconds)
    assert time.n_splits >= 1


def faster(rates: Rates, machine: _core.Machine, lane: _core.Lane) -> _core.Machine:
    """The machine with one lane at twice its rate."""
    machine = copy(machine)
    twice = replace(rates, link=2 * rates.link, link_latency_seconds=rates.link_latency_seconds / 2)
    match lane:
        case Lane.gpu:
            machine.gpu = processor(
                2 * rates.gpu_memory, 2 * rates.gpu_flop, rates.gpu_op_seconds / 2, rates.read_share
            )
        case Lane.cpu:
            machine.cpu = processor(2 * rates.cpu_memory, 2 * rates.cpu_flop, rates.cpu_op_seconds / 2)
        case Lane.up:
            machine.up = link(twice)
            machine.pageable_bytes_per_second *= 2
        case Lane.down:
            machine.down = link(twice)
        case Lane.host_memory:
            machine.host_bytes_per_second *= 2
        case Lane.handoff:
            machine.handoff_to_gpu_seconds /= 2
            machine.handoff_to_cpu_seconds /= 2
    return machine


@EXAMPLES
@given(placed=placed_models(), rates=rates(), batch=batches())
def test_only_lanes_that_work_matter_and_the_bottleneck_does(
    placed: tuple[Model, _core.Placement], rates: Rates, batch: int
) -> None:
    model, placement = placed
    machine = core_machine(rates)
    time = price(model, machine, batch, placement)
    for lane in Lane:
        seconds = price(model, faster(rates, machine, lane), batch, placement).seconds
        if time.busy_seconds[lane] == 0.0:
            assert seconds == time.seconds, lane.name
        else:
            assert seconds <= time.seconds * (1 + ROUNDING), lane.name
        if lane == time.bottleneck:
            assert seconds < time.seconds * (1 - ROUNDING), lane.name


def best_seconds(model: Model, machine: _core.Machine, vram_bytes: int, batch: int) -> float | None:
    fit = _core.stock_fit(model.core, context(), [_core.FitDevice(vram_bytes)])
    tier = _core.plan_tier(
        model.core, machine, context(n_ubatch=max(batch, 512)), WORKLOAD, _core.Budget(vram_bytes, 1 << 50),
        _core.strategy_names(), batch, fit, context(),
    )  # fmt: skip
    return None if tier.best < 0 else float(tier.candidates[tier.best].time.seconds)


SPEEDS = ("gpu_memory", "gpu_flop", "cpu_memory", "cpu_flop", "host", "link", "pageable")


@EXAMPLES
@given(
    model=models(),
    rates=rates(),
    batch=batches(),
    share=st.floats(0.0, 1.1),
    what=st.sampled_from(SPEEDS),
    factor=st.floats(1.0, 4.0),
)
def test_a_faster_machine_never_slows_the_best_plan(
    model: Model, rates: Rates, batch: int, share: float, what: str, factor: float
) -> None:
    vram_bytes = int(share * whole_model_bytes(model)) + 1
    before = best_seconds(model, core_machine(rates), vram_bytes, batch)
    assume(before is not None)
    better = replace(rates, **{what: getattr(rates, what) * factor})
    after = best_seconds(model, core_machine(better), vram_bytes, batch)
    assert after is not None
    assert after <= before * (1 + ROUNDING)


@EXAMPLES
@given(
    model=models(),
    rates=rates(),
    batch=batches(),
    shares=st.tuples(st.floats(0.0, 1.2), st.floats(0.0, 1.2)).map(sorted),
)
def test_more_vram_never_slows_the_best_plan(model: Model, rates: Rates, batch: int, shares: list[float]) -> None:
    machine = core_machine(rates)
    small, large = (int(share * whole_model_bytes(model)) + 1 for share in shares)
    before = best_seconds(model, machine, small, batch)
    assume(before is not None)
    after = best_seconds(model, machine, large, batch)
    assert after is not None
    assert after <= before * (1 + ROUNDING)


@pytest.mark.parametrize("name", MODEL_NAMES)
@settings(max_examples=15, deadline=None)
@given(gpu_memory=st.floats(1e11, 1.2e12), gpu_op_seconds=st.floats(1e-6, 1e-5))
def test_resident_decode_is_reading_and_launching(name: str, gpu_memory: float, gpu_op_seconds: float) -> None:
    model = cut_model(name, 20)
    # Arithmetic far above what a single row needs; experts read as well as dense weights.
    rates = Rates(gpu_memory=gpu_memory, gpu_flop=1e15, gpu_op_seconds=gpu_op_seconds, read_share=0.95)
    machine = core_machine(rates)
    machine.gpu.mul_mat_id = machine.gpu.mul_mat
    n = model.n_layer
    knobs = _core.Knobs(n, n, "NONE", output_on_gpu=True)
    placement = _core.make_placement("STATIC_ATTNPRIO_ALLMODELS", knobs, model.core)
    tier = _core.tier_pass(model.core, context(), WORKLOAD, 1)
    gpu, _ = work(model, tier, placement)
    operations = [o for i in range(n) for o in _core.layer_operations(model.core, i, tier, i + 1 == n)]
    operations += _core.head_operations(model.core, tier)
    launches = n_kernels(model, tier)
    moved = gpu.bytes + sum(o["cache_bytes"] + o["activation_bytes"] - o["inner_bytes"] for o in operations)
    expected = moved / gpu_memory + launches * gpu_op_seconds
    time = _core.price_pass(model.core, machine, tier, placement)
    assert time.busy_seconds[_core.Lane.gpu] == pytest.approx(expected, rel=0.2)


@EXAMPLES
@given(
    placed=placed_models(), machine=rates().map(core_machine), fills=st.tuples(st.integers(1, 16), st.integers(1, 16))
)
def test_a_fuller_cache_is_never_faster(
    placed: tuple[Model, _core.Placement], machine: _core.Machine, fills: tuple[int, int]
) -> None:
    model, placement = placed

    def seconds(cells: int) -> float:
        tier = _core.tier_pass(model.core, context(), WORKLOAD, 1)
        tier.n_kv = cells
        tier.n_kv_window = min(tier.n_kv_window, cells)
        return float(_core.price_pass(model.core, machine, tier, placement).seconds)

    low, high = sorted(256 * fill for fill in fills)
    assert seconds(low) <= seconds(high) * (1 + ROUNDING)


@settings(max_examples=25, deadline=None)
@given(model=models(), rates=rates(), batch=batches(), share=st.floats(0.1, 1.1))
def test_the_same_question_has_the_same_answer(model: Model, rates: Rates, batch: int, share: float) -> None:
    vram_bytes = int(share * whole_model_bytes(model))
    fit = _core.stock_fit(model.core, context(), [_core.FitDevice(vram_bytes)])

    def answer() -> list[object]:
        tier = _core.plan_tier(
            model.core, core_machine(rates), context(n_ubatch=max(batch, 512)), WORKLOAD,
            _core.Budget(vram_bytes, 1 << 50), _core.strategy_names(), batch, fit, context(),
        )  # fmt: skip
        chosen = [
            (c.time.seconds, c.knobs.n_pinned, c.knobs.n_attn_pinned, c.knobs.overflow, c.knobs.pin_from_back)
            for c in tier.candidates
        ]
        return [tier.best, tier.n_priced, chosen]

    assert answer() == answer()
