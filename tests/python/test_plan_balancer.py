"""A plan whose machine is corrected by what was measured: nothing changes without a reason, and changes are priced."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pshard import Plan, load_machine, plan, read_model
from pshard.corrections import Factors, corrected_machine
from pshard.errors import SettingError
from pshard.plan_balancer import ENGINE, PlanBalancer, _corners, replan

GIB = 1 << 30


@cache
def planned() -> Plan:
    model = read_model("qwen3-30b-a3b:Q4_K_M")
    return plan(model, load_machine(gpu="rtx-4060-8g"), tier_max=512, prompt_tokens=512, generate_tokens=128)


def seconds(balanced: PlanBalancer, phase: str) -> float:
    assert balanced.deployment is not None
    return float(balanced.deployment.tables[phase].work_seconds(balanced.deployment.counts)[0])  # type: ignore[index]


def record(balancer: PlanBalancer, factors: dict[str, float], n: int = 200) -> None:
    for i in range(n):
        for phase, factor in factors.items():
            balancer.record(ENGINE, seconds(balancer, phase) * factor * 1e6, phase, 1, float(i))  # type: ignore[arg-type]


def test_factors_between_decode_and_prefill() -> None:
    factors = Factors(decode=2.0, prefill=8.0)
    assert (factors.at(1), factors.at(512), factors.at(1e6), factors.at(0.5)) == (2.0, 8.0, 8.0, 2.0)
    assert factors.at(np.sqrt(512)) == pytest.approx(4.0)


def test_a_machine_that_takes_twice_as_long_is_predicted_to() -> None:
    """Uniformly slower: every price is twice what it was, whatever it is made of."""
    twice = Factors(2.0, 2.0)
    machine = corrected_machine(planned().machine, gpu=twice, cpu=twice, link=twice)
    slow = replan(planned(), machine)
    assert planned().stock is not None
    # rates of the profile that are bounded by a peak, and copies' fixed times, leave a little
    assert slow.old_seconds == pytest.approx(2 * planned().stock.time.total_seconds, rel=0.05)  # type: ignore[union-attr]
    assert "2.00 in decode" in machine.notes[-1]


def test_a_slow_cpu_leaves_what_the_gpu_does() -> None:
    machine = corrected_machine(planned().machine, cpu=Factors(2.0, 2.0))
    assert machine.profile.gpu == planned().machine.profile.gpu
    slow = replan(planned(), machine)
    assert planned().stock is not None
    assert slow.old_seconds > 1.2 * planned().stock.time.total_seconds  # type: ignore[union-attr]
    assert slow.new_seconds <= slow.old_seconds * (1 + 1e-9)


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
    assert balancer.proposed is not None
    assert decision.estimated_speedup == balancer.proposed.old_seconds / balancer.proposed.new_seconds
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
    assert balancer.proposed.plan.machine.profile.gpu == planned().machine.profile.gpu
    with pytest.raises(SettingError, match="what the metrics name"):
        PlanBalancer(plan(planned().model, planned().machine, vram_bytes=0, tier_max=64), ["gpu"])


def test_several_shards_of_one_part_are_refused() -> None:
    for names in (["gpu0", "gpu1", "host"], ["gpu0", "host", "cpu1"]):
        with pytest.raises(SettingError, match="but a plan has one GPU and one CPU"):
            PlanBalancer(planned(), names)


def test_a_plan_that_was_left_is_not_taken_up_again_at_once() -> None:
    balancer = PlanBalancer(planned(), ["gpu0", "host"], clock=lambda: 1000.0)

    def record_parts(gpu_factor: float) -> None:
        assert balancer.deployment is not None
        gpu, cpu = balancer.deployment.tables["decode"].work_seconds((1, 1)).tolist()
        for i in range(200):
            balancer.record("gpu0", gpu * gpu_factor * 1e6, "decode", 1, float(i))
            balancer.record("host", cpu * 1e6, "decode", 1, float(i))

    record_parts(6.0)
    assert balancer.evaluate().kind == "rebalance"
    balancer.adopt()
    record_parts(1 / 6)
    assert "This assignment was left 0 s ago" in balancer.evaluate().reason


def test_corners_are_all_combinations_of_bounds() -> None:
    bounds = {"decode": np.array([[1.0, 0.9, 1.1], [2.0, 1.8, 2.2]]), "prefill": np.array([[1, 0.5, 2], [1, 0.5, 2]])}
    corners = list(_corners(["gpu0", "host"], bounds))  # type: ignore[arg-type]
    assert len(corners) == 16
    assert {"decode": {"gpu0": 0.9, "host": 2.2}, "prefill": {"gpu0": 2.0, "host": 0.5}} in corners
    assert len({repr(corner) for corner in corners}) == 16


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
    proposed = balancer.proposed.plan
    balancer.adopt()
    assert balancer.planned is proposed
    assert balancer.metrics[ENGINE].forwards == 0
