"""A plan whose machine is corrected by what was measured: nothing changes without a reason, and changes are priced."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from rebalance_cases import Clock

from pshard import Plan, _core, load_machine, plan, read_model
from pshard.errors import SettingError
from pshard.rebalance.balancer import RebalanceConfig
from pshard.rebalance.corrections import Factors, corrected_machine
from pshard.rebalance.plan_balancer import ENGINE, Part, PlanBalancer, corrected, replan, stock_seconds

GIB = 1 << 30


@cache
def planned() -> Plan:
    model = read_model("qwen3-30b-a3b:Q4_K_M")
    return plan(model, load_machine(gpu="rtx-4060-8g"), tier_max=512, prompt_tokens=512, generate_tokens=128)


def seconds(balanced: PlanBalancer, phase: str) -> float:
    assert balanced.deployment is not None
    return float(balanced.deployment.tables[phase].work_seconds(balanced.deployment.counts)[0])


def record(balancer: PlanBalancer, factors: dict[str, float], n: int = 200) -> None:
    for i in range(n):
        for phase, factor in factors.items():
            balancer.record(ENGINE, seconds(balancer, phase) * factor * 1e6, phase, 1, float(i))


def test_factors_between_decode_and_prefill() -> None:
    factors = Factors(decode=2.0, prefill=8.0)
    assert (factors.at(1), factors.at(512), factors.at(1e6), factors.at(0.5)) == (2.0, 8.0, 8.0, 2.0)
    assert factors.at(np.sqrt(512)) == pytest.approx(4.0)


def test_a_machine_that_takes_twice_as_long_is_predicted_to() -> None:
    """Uniformly slower: every price is twice what it was, whatever it is made of."""
    twice = Factors(2.0, 2.0)
    machine = corrected_machine(planned().machine, gpu=twice, cpu=twice, link=twice)
    assert planned().stock is not None
    # rates of the profile that are bounded by a peak, and copies' fixed times, leave a little
    assert stock_seconds(planned(), machine) == pytest.approx(2 * planned().stock.time.total_seconds, rel=0.05)
    assert "2.00 in decode" in machine.notes[-1]


def test_a_slow_cpu_leaves_what_the_gpu_does() -> None:
    machine = corrected_machine(planned().machine, cpu=Factors(2.0, 2.0))
    assert machine.profile.gpu == planned().machine.profile.gpu
    old, new = (stock_seconds(plan, machine) for plan in (planned(), replan(planned(), machine)))
    assert planned().stock is not None
    assert old > 1.2 * planned().stock.time.total_seconds
    assert new <= old * (1 + 1e-9)


def test_no_rate_rises_above_its_peak() -> None:
    fast = Factors(0.01, 0.01)
    profile = corrected_machine(planned().machine, gpu=fast, cpu=fast, link=fast).profile
    for processor in (profile.cpu, profile.gpu):
        assert processor is not None
        assert all(max(series.flop_per_second) <= processor.peak_flop_per_second for series in processor.series)
        assert all(m.bytes_per_second <= processor.memory_peak_bytes_per_second for m in processor.memory)
    assert profile.link is not None
    assert max(profile.link.up.bytes_per_second) <= profile.link.up.peak_bytes_per_second


def test_an_engine_as_predicted_keeps_its_plan() -> None:
    balancer = PlanBalancer(planned())
    record(balancer, {"decode": 1.0, "prefill": 1.0})
    decision = balancer.evaluate()
    assert decision.kind == "balanced"
    assert decision.estimated_speedup == pytest.approx(1.0, abs=0.02)
    assert balancer.metrics[ENGINE].phases["decode"].median == pytest.approx(1.0)


def test_prompts_that_take_five_times_as_long_are_planned_for() -> None:
    balancer = PlanBalancer(planned())
    record(balancer, {"decode": 1.0, "prefill": 5.0})
    decision = balancer.evaluate()
    assert decision.estimated_speedup >= 1 - 1e-9
    assert (decision.kind == "rebalance") == (decision.estimated_speedup >= 1.1)


def test_shards_of_a_plan_are_its_gpu_and_its_cpu() -> None:
    balancer = PlanBalancer(planned(), ["gpu0", "host"])
    assert balancer.deployment is not None
    gpu, cpu = balancer.deployment.tables["decode"].work_seconds((1, 1)).tolist()
    busy = planned().tiers[0].candidates[planned().tiers[0].best].time.busy_seconds
    assert (gpu, cpu) == (busy[0], busy[1])
    for i in range(200):
        balancer.record("gpu0", gpu * 1e6, "decode", 1, float(i))
        balancer.record("host", cpu * 4e6, "decode", 1, float(i))
    decision = balancer.evaluate()
    assert decision.factors is not None
    assert decision.factors["host"][0] == pytest.approx(4.0)
    assert balancer.proposed is not None
    assert balancer.proposed.machine.profile.gpu == planned().machine.profile.gpu
    with pytest.raises(SettingError, match="what the metrics name"):
        PlanBalancer(plan(planned().model, planned().machine, vram_bytes=0, tier_max=64), ["gpu"])


def test_several_shards_of_one_part_are_refused() -> None:
    for names in (["gpu0", "gpu1", "host"], ["gpu0", "host", "cpu1"]):
        with pytest.raises(SettingError, match="but a plan has one GPU and one CPU"):
            PlanBalancer(planned(), names)


def test_a_plan_of_prompts_alone_is_judged_by_them() -> None:
    prompts = plan(planned().model, planned().machine, tier_max=512, prompt_tokens=512, generate_tokens=0)
    balancer = PlanBalancer(prompts)
    assert balancer.evaluate().kind == "insufficient_data"
    record(balancer, {"prefill": 1.0})
    assert balancer.evaluate().phase == "prefill"


def test_a_plan_without_speeds_cannot_be_corrected() -> None:
    model = read_model("qwen3-30b-a3b:Q4_K_M")
    bare = plan(model, load_machine("none", vram_bytes=8 * GIB, ram="64G"), vram_bytes=8 * GIB, tier_max=64)
    with pytest.raises(SettingError, match="no speeds"):
        PlanBalancer(bare)


def test_adopting_a_proposal_begins_anew() -> None:
    balancer = PlanBalancer(planned())
    record(balancer, {"decode": 1.0, "prefill": 5.0})
    balancer.evaluate()
    assert balancer.proposed is not None
    proposed = balancer.proposed
    balancer.adopt()
    assert balancer.planned is proposed
    assert balancer.metrics[ENGINE].forwards == 0


def record_parts(balancer: PlanBalancer, factors: dict[str, float], n: int = 200) -> None:
    """Record passes that take so many times what the machine as profiled was predicted to take."""
    deployment = balancer.deployment
    assert deployment is not None
    for i in range(n):
        for name, seconds in zip(
            deployment.shards, deployment.tables["decode"].work_seconds(deployment.counts).tolist(), strict=True
        ):
            if seconds > 0:
                part = "cpu" if name == "host" else "gpu"
                so_far = balancer.corrections.get(part, Factors()).decode
                balancer.record(name, seconds * factors[name] / so_far * 1e6, "decode", 1, float(i))


def gpu_layers(balancer: PlanBalancer) -> str:
    argv = balancer.planned.to_dict()["llama_cpp"]["argv"]
    return str(argv[argv.index("-ngl") + 1])


def test_a_gpu_that_a_plan_has_left_is_tried_again_when_it_is_due() -> None:
    clock = Clock()
    config = RebalanceConfig(retry_secs=600.0)
    balancer = PlanBalancer(planned(), ["gpu0", "host"], config=config, clock=clock)
    record_parts(balancer, {"gpu0": 60.0, "host": 1.0})
    assert balancer.evaluate().kind == "rebalance"
    balancer.adopt()
    assert balancer.corrections["gpu"].decode == pytest.approx(60.0)
    assert gpu_layers(balancer) == "0"
    assert balancer.deployment is not None
    assert balancer.deployment.used_names == {"host"}

    def look(seconds: float, factors: dict[str, float]) -> str:
        clock.now += seconds
        record_parts(balancer, factors)
        return balancer.evaluate().kind

    assert look(300.0, {"host": 1.0}) == "balanced"
    assert look(299.0, {"host": 1.0}) == "balanced"
    assert look(62.0, {"host": 1.0}) == "balanced"
    assert "staying has cost 0.0 s so far, and going back costs 0." in balancer.evaluate().reason
    assert look(60.0, {"host": 1.0}) == "rebalance"
    assert "gpu0 had become slow, and may be as predicted again" in balancer.evaluate().reason
    balancer.adopt()
    assert balancer.corrections["gpu"] == Factors()
    assert gpu_layers(balancer) != "0"
    # still slow: it is left again after the pause, and then for twice as long
    assert look(1.0, {"gpu0": 60.0, "host": 1.0}) == "balanced"
    assert "goes back to what was left 1 s ago" in balancer.evaluate().reason
    assert look(61.0, {"gpu0": 60.0, "host": 1.0}) == "rebalance"
    balancer.adopt()
    assert look(700.0, {"host": 1.0}) == "balanced"
    assert look(600.0, {"host": 1.0}) == "balanced"
    assert "going back costs" in balancer.evaluate().reason
    assert look(60.0, {"host": 1.0}) == "rebalance"


def test_a_move_of_a_plan_is_the_weights_that_the_gpu_gets() -> None:
    balancer = PlanBalancer(planned(), ["gpu0", "host"], config=RebalanceConfig(retry_secs=0.0, eval_interval_secs=0.0))
    record_parts(balancer, {"gpu0": 60.0, "host": 1.0})
    dropped = balancer.evaluate()
    assert dropped.kind == "rebalance"
    assert dropped.move is not None
    assert (dropped.move.n_bytes, dropped.move.seconds) == (0, 0.0)  # all weights are in RAM
    assert dropped.move.layers == 48
    balancer.adopt()
    record_parts(balancer, {"host": 1.0})
    back = balancer.evaluate()
    assert back.move is not None
    # what was there before: the weights that the memory model counts on the GPU
    stock = planned().stock
    assert stock is not None
    memory = _core.memory(planned().model.core, stock.placement, _core.ContextParameters(), 1)
    weights = memory.gpus[0].weights_bytes
    assert back.move.n_bytes is not None
    assert weights - 65536 < back.move.n_bytes <= weights  # tensors begin at multiples of 128 bytes there
    link = planned().machine.profile.link
    assert link is not None
    assert back.move.seconds == pytest.approx(weights / max(link.up.bytes_per_second))
    assert back.move.ways["gpu"].link == "pcie"


def test_corrections_add_up() -> None:
    balancer = PlanBalancer(planned(), ["gpu0", "host"])
    record_parts(balancer, {"gpu0": 9.0, "host": 1.0})
    assert balancer.evaluate().kind == "rebalance"
    balancer.adopt()
    again = PlanBalancer(
        balancer.planned, ["gpu0", "host"], profiled=planned().machine, corrections=balancer.corrections
    )
    for one in (balancer, again):
        record_parts(one, {"gpu0": 9.0, "host": 1.0})
        decision = one.evaluate()
        assert decision.kind == "balanced"
        assert decision.factors is not None
        assert decision.factors["gpu0"][0] == pytest.approx(1.0)
        assert one.proposed_corrections["gpu"].decode == pytest.approx(9.0)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_slower_parts_never_make_a_pass_faster(n_parts: int) -> None:
    """What a certain gain of plans rests on."""
    random = np.random.default_rng(n_parts)
    one = planned()
    for _ in range(25):
        factors = np.exp(random.uniform(-1, 2, (2, 3)))
        slower = factors.copy()
        slower[:, random.choice(3, n_parts, replace=False)] *= np.exp(random.uniform(0, 0.3, (2, n_parts)))
        before, after = (
            stock_seconds(one, corrected(one.machine, parts_of(values), None)) for values in (factors, slower)
        )
        assert after >= before * (1 - 1e-12)


def parts_of(factors: np.ndarray) -> dict[Part, Factors]:
    """Of shape (phases, parts)."""
    parts: tuple[Part, ...] = ("gpu", "cpu", "link")
    return {part: Factors(*factors[:, i].tolist()) for i, part in enumerate(parts)}


def test_no_truth_within_the_intervals_gains_less_than_what_is_certain() -> None:
    balancer = PlanBalancer(planned(), ["gpu0", "host"])
    assert balancer.deployment is not None
    random = np.random.default_rng(1)
    usual = balancer.deployment.tables["decode"].work_seconds((1, 1)) * [6.0, 1.0]
    for i, noise in enumerate(np.exp(0.2 * random.standard_normal((250, 2)))):
        for name, seconds in zip(("gpu0", "host"), (usual * noise).tolist(), strict=True):
            balancer.record(name, seconds * 1e6, "decode", 1, float(i))
    decision = balancer.evaluate()
    assert balancer.proposed is not None
    assert decision.factors is not None
    bounds = np.array([decision.factors[name] for name in ("gpu0", "host")])
    for _ in range(60):
        gpu, cpu = np.exp(random.uniform(*np.log(bounds[:, 1:]).T, (2, 2))).T
        truth = corrected(planned().machine, {"gpu": Factors(*gpu), "cpu": Factors(*cpu)}, None)
        gain = stock_seconds(planned(), truth) / stock_seconds(balancer.proposed, truth)
        assert gain >= decision.certain_speedup


def test_a_gpu_that_nothing_is_told_of_may_come_back_under_its_usual_name() -> None:
    on_cpu = plan(planned().model, planned().machine, vram_bytes=0, tier_max=64)
    assert PlanBalancer(on_cpu, ["host"]).shards == ("host", "gpu0")
    assert PlanBalancer(planned(), ["host"]).shards == ("host",)  # it serves, and its latencies are not to be had
