"""Sharding: nothing overflows, every strategy costs what its parts cost, and the best one is chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from operator import truediv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sharding_cases import accelerators, check, cluster, hosts_with, strategies, two_hosts

from pshard import _core, read_model
from pshard.cluster.cluster import Cluster, Device, Host, Link
from pshard.cluster.routes import Routes
from pshard.cluster.toml_reading import read_cluster
from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.fleet.collectives import all_reduce_seconds, gather_seconds
from pshard.sharding.heuristic import heuristic
from pshard.sharding.problem import NotJoinedError, ShardProblem
from pshard.sharding.replica import DoesNotFitError, StageOf, flow, plan_replica
from pshard.sharding.scaled_model import model_of_size
from pshard.sharding.sharding import plan_sharding
from pshard.sharding.tensor_parallel import NotDivisibleError, apportion, apportion_within, divide, rank_models
from pshard.sharding.types import ShardParameters

MIB = 1 << 20
GIB = 1 << 30
GPU = _core.LayerPlacement(_core.Where.pinned)


CASES = [
    ("llama-3.1-8b:Q4_K_M", "rtx-4090-24g,rtx-3090-24g"),
    ("llama-3.3-70b:Q4_K_M", "rtx-4090-24g,rtx-3090-24g,rtx-3060-12g"),
    ("qwen3-30b-a3b:Q4_K_M", "4xrtx-4060-8g"),
    ("llama-3.3-70b:Q4_K_M", "8xh100-sxm-80g"),
    ("deepseek-v3:Q4_K_M", "8xh100-sxm-80g"),
    ("llama-3.3-70b:Q4_K_M", "24G,24G,12G"),
    ("llama-3.3-70b:Q4_K_M", "rtx-4090-24g"),
]


@pytest.mark.parametrize(("name", "devices"), CASES)
@pytest.mark.parametrize("users", [1, 6])
def test_no_device_overflows_and_the_fastest_strategy_is_chosen(name: str, devices: str, users: int) -> None:
    plan = plan_sharding(read_model(name), cluster(devices), ShardParameters(users=users))
    check(plan)
    assert plan.chosen is not None
    if plan.basis:
        field = "stream_tokens_per_second" if users == 1 else "users_tokens_per_second"
        best = max(getattr(priced, field) for priced in strategies(plan).values())
        assert getattr(plan.chosen, field) == best
        assert plan.chosen.description in plan.reason
        assert not plan.others or plan.others[0].description in plan.reason


def test_a_pipeline_is_the_best_of_all_orders_and_cuts() -> None:
    model = read_model("qwen3-0.6b:Q8_0")
    here = cluster("rtx-4090-24g,rtx-3060-12g,rtx-4060-8g")
    # So little memory that two devices do not hold it.
    devices = tuple(d if d.is_cpu else replace(d, memory_free_bytes=970 * MIB) for d in here.devices)
    here = replace(here, devices=devices)
    plan = plan_sharding(model, here)
    check(plan)
    found = strategies(plan)["pipeline_parallel"]
    assert found.exact
    roomy = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), cluster("4xrtx-4090-24g"))
    assert strategies(roomy)["pipeline_parallel"].exact
    problem = ShardProblem(model, here, ShardParameters())
    groups = [problem.group([device]) for device in problem.pool]
    best, n = 0.0, model.n_layer
    for order in itertools.permutations(groups):
        for first, second in itertools.combinations_with_replacement(range(n + 1), 2):
            cuts = [(group, a, b) for group, a, b in zip(order, (0, first, second), (first, second, n), strict=True)]
            runs = [(group, a, b) for group, a, b in cuts if b > a]
            used = [problem.measure(model.core, a, b, 1, is_cpu=False) for _, a, b in runs]
            fits = all(
                u.weights_bytes + u.cache_bytes + u.compute_bytes <= problem.capacity[group.devices[0].name]
                for u, (group, _, _) in zip(used, runs, strict=True)
            )
            if fits:
                stages = [StageOf(group, a, b, (u,)) for u, (group, a, b) in zip(used, runs, strict=True)]
                best = max(best, 1.0 / sum(flow(problem, stages, problem.pass_(1, 1)).busy))
    assert found.stream_tokens_per_second == pytest.approx(best, rel=1e-9)


# --- tensor parallel ------------------------------------------------------------------------------------------------


def weights(model: _core.Model) -> int:
    return sum(_core.gpu_weight_bytes(layer, GPU) for layer in model.layers) + _core.gpu_head_bytes(model)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("llama-3.3-70b:Q4_K_M", 2),
        ("llama-3.3-70b:Q4_K_M", 3),  # 8 heads: 3, 3, 2
        ("llama-3.3-70b:Q4_K_M", 8),
        ("gemma-3-27b:Q4_K_M", 4),
        ("qwen3-235b-a22b:Q4_K_M", 4),
        ("deepseek-v3:Q4_K_M", 8),  # one latent cache on every rank
        ("gpt-oss-120b:MXFP4", 4),  # sinks and biases
        ("glm-4.5-air:Q4_K_M", 4),
    ],
)
def test_ranks_add_up_to_the_model(name: str, n: int) -> None:
    model = read_model(name)
    division = divide(model, [1.0] * n)
    ranks = rank_models(model, division)
    whole = weights(model.core)
    assert whole <= sum(map(weights, ranks)) <= 1.03 * whole
    context = _core.ContextParameters()
    cache = [sum(_core.cache_bytes(rank, layer, context) for layer in rank.layers) for rank in ranks]
    whole_cache = sum(_core.cache_bytes(model.core, layer, context) for layer in model.core.layers)
    if model.hyperparameters.kv_lora_rank:
        assert cache == [whole_cache] * n
    else:
        assert sum(cache) == whole_cache
    flop = [sum(op["flop"] for op in _core.layer_operations(rank, 1, _core.Pass())) for rank in ranks]
    of_whole = sum(op["flop"] for op in _core.layer_operations(model.core, 1, _core.Pass()))
    assert of_whole * 0.99 <= sum(flop) <= of_whole * 1.25  # experts in use are rounded up


def test_shares_follow_the_weights_in_whole_heads() -> None:
    assert apportion(8, [1.0, 1.0, 1.0]) == (3, 3, 2)
    assert apportion(8, [3.0, 1.0]) == (6, 2)
    assert apportion(3, [100.0, 1.0, 1.0]) == (1, 1, 1)
    assert apportion(8, [10.0, 1.0]) == (7, 1)
    assert apportion(8, [1.0, 10.0, 1.0]) == (1, 6, 1)
    division = divide(read_model("llama-3.3-70b:Q4_K_M"), [3.0, 1.0])
    assert division.kv_heads == (6, 2)


@given(n=st.integers(0, 9), weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=4), data=st.data())
def test_no_other_shares_are_done_sooner(n: int, weights: list[float], data: st.DataObject) -> None:
    n_units, n_ranks = n + len(weights), len(weights)
    most = data.draw(st.lists(st.integers(1, n_units), min_size=n_ranks, max_size=n_ranks))

    def best(limits: Sequence[int]) -> float:
        ways = itertools.product(*(range(1, limit + 1) for limit in limits))
        return min(max(map(truediv, way, weights)) for way in ways if sum(way) == n_units)

    shares = apportion(n_units, weights)
    assert sum(shares) == n_units
    assert min(shares) >= 1
    assert max(map(truediv, shares, weights)) == pytest.approx(best([n_units] * n_ranks))
    if sum(most) >= n_units:
        within = apportion_within(n_units, weights, most)
        assert sum(within) == n_units
        assert all(1 <= share <= limit for share, limit in zip(within, most, strict=True))
        assert max(map(truediv, within, weights)) == pytest.approx(best(most))


def test_key_value_heads_are_repeated_where_query_heads_allow() -> None:
    model = read_model("llama-3.3-70b:Q4_K_M")
    division = divide(model, [1.0] * 16)
    rank = rank_models(model, division)[3]
    assert (rank.layers[0].parameters.n_head, rank.layers[0].parameters.n_head_kv) == (4, 1)


@pytest.mark.parametrize(
    ("name", "n", "reason"),
    [
        ("llama-3.3-70b:Q4_K_M", 12, "8 key-value heads cannot be divided among 12"),
        ("falcon-h1-7b:Q4_K_M", 2, "mamba2 are not divided"),
        ("qwen3-next-80b-a3b:Q4_K_M", 2, "gated_delta are not divided"),
    ],
)
def test_what_an_architecture_does_not_allow_is_refused(name: str, n: int, reason: str) -> None:
    with pytest.raises(NotDivisibleError, match=reason):
        divide(read_model(name), [1.0] * n)


def test_the_refusal_is_in_the_plan() -> None:
    plan = plan_sharding(read_model("falcon-h1-7b:Q4_K_M"), cluster("rtx-4090-24g,rtx-4090-24g"))
    assert any(entry.strategy == "tensor_parallel" and "mamba2" in entry.reason for entry in plan.refused)


def linked(n: int, bandwidth: float, latency: float) -> Cluster:
    devices = tuple(Device(name=f"d{i}", kind="nvidia", host="h", memory_total_bytes=GIB) for i in range(n))
    link = Link(
        kind="nvswitch", ends=tuple(d.name for d in devices), bandwidth_bytes_per_second=bandwidth,
        latency_seconds=latency, source="given",
    )  # fmt: skip
    return Cluster(hosts=(Host(name="h"),), devices=devices, links=(link,))


def test_all_reduce_takes_the_ring_for_bytes_and_the_tree_for_latency() -> None:
    here = linked(8, 1e9, 1e-6)
    # Ring: 14 steps of an eighth. Tree: 6 steps of everything.
    assert all_reduce_seconds(Routes(here), here.devices, 8_000_000) == pytest.approx(14 * (1e-6 + 1e-3))
    assert all_reduce_seconds(Routes(here), here.devices, 80) == pytest.approx(6 * (1e-6 + 80e-9))
    assert all_reduce_seconds(Routes(here), here.devices[:1], 80) == 0.0
    assert gather_seconds(Routes(here), here.devices, 8000) == pytest.approx(7 * (1e-6 + 1e-6))
    apart = (here.devices[0], replace(here.devices[1], host="g"))
    unlinked = Cluster(hosts=(*here.hosts, Host(name="g")), devices=apart)
    assert math.isinf(all_reduce_seconds(Routes(unlinked), apart, 8))


@pytest.mark.parametrize("name", ["llama-3.1-8b:Q4_K_M", "llama-3.3-70b:Q4_K_M"])
@pytest.mark.parametrize("users", [1, 6])
def test_one_more_equal_device_is_never_slower(name: str, users: int) -> None:
    model, speeds = read_model(name), []
    for n in range(1, 7):
        plan = plan_sharding(model, cluster(f"{n}xrtx-3090-24g"), ShardParameters(users=users))
        check(plan)
        assert plan.chosen is not None
        speed = plan.chosen.stream_tokens_per_second if users == 1 else plan.chosen.users_tokens_per_second
        assert speed is not None
        speeds.append(speed)
    assert speeds == sorted(speeds)


BOX = ("rtx-4090-24g", "rtx-3090-24g", "rtx-3060-12g")


def speeds_with_one_more(hosts: list[list[str]], more: str, at: int, users: int, network: str) -> list[float]:
    """The speed of a plan on some hosts, and with one more GPU in one of them."""
    model, speeds = read_model("llama-3.1-8b:Q4_K_M"), []
    at %= len(hosts)
    for gpus in (hosts, [*hosts[:at], [*hosts[at], more], *hosts[at + 1 :]]):
        chosen = plan_sharding(model, hosts_with(gpus, network), ShardParameters(users=users)).chosen
        assert chosen is not None
        speed = chosen.stream_tokens_per_second if users == 1 else chosen.users_tokens_per_second
        assert speed is not None
        speeds.append(speed)
    return speeds


NETWORKS = st.sampled_from(["1g", "100g"])


@given(
    hosts=st.lists(st.lists(st.sampled_from(BOX), min_size=1, max_size=3), min_size=2, max_size=3),
    more=st.sampled_from(BOX), at=st.integers(0, 2), network=NETWORKS,
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_one_more_device_on_some_host_is_never_slower_for_one_user(
    hosts: list[list[str]], more: str, at: int, network: str
) -> None:
    before, after = speeds_with_one_more(hosts, more, at, 1, network)
    assert after >= before * (1 - 1e-9)


@given(
    hosts=st.lists(st.lists(st.sampled_from(BOX), min_size=1, max_size=2), min_size=2, max_size=2),
    more=st.sampled_from(BOX), at=st.integers(0, 1), network=NETWORKS,
)  # fmt: skip
@settings(max_examples=5, deadline=None)
def test_one_more_device_on_some_host_is_never_slower_for_several(
    hosts: list[list[str]], more: str, at: int, network: str
) -> None:
    before, after = speeds_with_one_more(hosts, more, at, 3, network)
    assert after >= before * (1 - 1e-9)


def test_ranks_are_the_fastest_devices() -> None:
    plan = plan_sharding(read_model("llama-3.1-8b:Q4_K_M"), cluster("rtx-3060-12g,4xrtx-4090-24g"))
    ranks = [shard.device.name for shard in strategies(plan)["tensor_parallel"].shards]
    assert ranks == ["CUDA1", "CUDA2", "CUDA3", "CUDA4"][: len(ranks)]


def test_a_faster_link_is_never_slower_and_decides_the_strategy() -> None:
    model = read_model("llama-3.3-70b:Q4_K_M")
    speeds = []
    here = cluster("4xrtx-4090-24g")
    names = tuple(device.name for device in here.accelerators)
    for bandwidth in (1e9, 10e9, 100e9, 900e9):
        link = Link(
            kind="nvlink", ends=names, bandwidth_bytes_per_second=bandwidth, latency_seconds=2e-6, source="given"
        )
        plan = plan_sharding(model, replace(here, links=(*here.links, link)))
        check(plan)
        speeds.append(strategies(plan)["tensor_parallel"].stream_tokens_per_second)
    assert speeds == sorted(speeds)
    slow = Link(kind="ethernet", ends=names, bandwidth_bytes_per_second=1e8, latency_seconds=1e-3, source="given")
    plan = plan_sharding(model, replace(here, links=(slow, *here.links)))
    assert plan.chosen is not None
    assert plan.chosen.strategy == "pipeline_parallel"


# --- hosts, TPUs, ASICs, CPUs ---------------------------------------------------------------------------------------


def test_over_a_network_ranks_stay_within_a_host(tmp_path: Path) -> None:
    here = two_hosts(tmp_path, "rtx-3060-12g", "rtx-3060-12g", link="1g")
    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), here)
    check(plan)
    assert plan.chosen is not None
    assert plan.chosen.strategy == "tensor_and_pipeline_parallel"
    for _, stage in itertools.groupby(plan.chosen.shards, key=lambda shard: shard.stage):
        assert len({shard.device.host for shard in stage}) == 1


def test_of_equal_orders_the_one_by_numa_node_is_kept() -> None:
    here = cluster("4xrtx-3060-12g")
    nodes = (1, 0, 1, 0)
    gpus = [replace(device, numa_node=node) for device, node in zip(here.accelerators, nodes, strict=True)]
    here = replace(here, devices=(*gpus, here.devices[-1]))
    pipeline = strategies(plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), here))["pipeline_parallel"]
    assert [shard.device.numa_node for shard in pipeline.shards] == [0, 0, 1, 1]


def apart(path: Path, memory: str) -> Cluster:
    file = path / "cluster.toml"
    hosts = "".join(f'[[hosts]]\nname = "{host}"\nmemory = "{memory}"\nspeed = "desktop-16c"\n' for host in "ab")
    gpus = "".join(f'[[devices]]\nname = "{host}-gpu"\nhost = "{host}"\nspeed = "rtx-3090-24g"\n' for host in "ab")
    file.write_text(hosts + gpus)
    return read_cluster(file)


def test_what_no_link_leads_to_is_left_out(tmp_path: Path) -> None:
    plan = plan_sharding(read_model("llama-3.1-8b:Q4_K_M"), apart(tmp_path, "64G"), ShardParameters(users=4))
    assert plan.chosen is not None
    assert (plan.chosen.strategy, plan.chosen.shards[0].device.name) == ("none", "a-gpu")
    assert "b-gpu is left out: no link joins its host to a." in plan.notes
    with pytest.raises(NoFeasiblePlanError, match="no link joins its host to a"):
        plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), apart(tmp_path, "8G"))


def test_ranks_that_no_link_joins_are_refused(tmp_path: Path) -> None:
    here = apart(tmp_path, "64G")
    problem = ShardProblem(read_model("llama-3.1-8b:Q4_K_M"), here, ShardParameters())
    with pytest.raises(NotJoinedError, match="no link joins a-gpu and b-gpu"):
        problem.group(here.accelerators)


def test_unified_memory_is_counted_once() -> None:
    mac = Device(name="mac", kind="apple", host="h", memory_total_bytes=48 * GIB, unified_memory=True)
    cpu = Device(name="h-cpu", kind="cpu", host="h", memory_total_bytes=48 * GIB)
    here = Cluster(hosts=(Host(name="h"),), devices=(mac, cpu))
    with pytest.raises(NoFeasiblePlanError):
        plan_sharding(read_model("llama-3.3-70b:Q8_0"), here)
    problem = ShardProblem(read_model("llama-3.3-70b:Q8_0"), here, ShardParameters())
    assert sum(problem.capacity.values()) == 48 * GIB


def test_users_are_shared_out_among_copies(tmp_path: Path) -> None:
    plan = plan_sharding(read_model("llama-3.1-8b:Q4_K_M"), two_hosts(tmp_path), ShardParameters(users=32))
    check(plan)
    copies = strategies(plan)["data_parallel"]
    assert copies.n_replicas > 1
    assert copies.users_tokens_per_second is not None
    alone = strategies(plan)["none"].users_tokens_per_second
    assert alone is not None
    assert copies.users_tokens_per_second > alone


def test_copies_get_no_more_users_than_they_hold() -> None:
    model, here = read_model("llama-3.1-8b:Q4_K_M"), cluster("rtx-4090-24g,rtx-3090-24g", ram="32G")
    # The faster device has room for a few users, the slower one for many.
    small = replace(here.devices[0], memory_free_bytes=7 * GIB)
    here = replace(here, devices=(small, *here.devices[1:]))
    parameters = ShardParameters(users=20, max_seq_len=4096)
    plan = plan_sharding(model, here, parameters)
    check(plan)
    copies = strategies(plan)["data_parallel"]
    users = {shard.device.name: shard.cache_bytes // (512 * MIB) for shard in copies.shards}
    assert sum(users.values()) == 20
    assert 1 <= users["CUDA0"] < users["CUDA1"]
    with pytest.raises(NoFeasiblePlanError, match=r"2 copies have room for \d+ users together; for 100, CUDA"):
        plan_sharding(model, here, ShardParameters(users=100, max_seq_len=8192))


def test_tpus_share_every_layer_chip_by_chip() -> None:
    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), accelerators("tpu", chips=4, n=1, gib=64))
    assert plan.chosen is not None
    found = strategies(plan)["tpu_tensor_parallel"]
    assert [shard.device.name for shard in found.shards] == ["tpu0.0", "tpu0.1", "tpu0.2", "tpu0.3"]
    assert {shard.capacity_bytes for shard in found.shards} == {16 * GIB - 512 * MIB}
    check(plan)


def test_asics_are_pooled_with_gpus() -> None:
    here = accelerators("gaudi", chips=1, n=1, gib=32)
    gpu = Device(name="gpu", kind="nvidia", host="h", memory_total_bytes=24 * GIB)
    slot = replace(here.links[0], ends=("gpu", "h"))
    here = replace(here, devices=(gpu, *here.devices), links=(*here.links, slot))
    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), here)
    check(plan)
    pipeline = strategies(plan)["pipeline_parallel"]
    assert {shard.device.kind for shard in pipeline.shards} == {"gaudi", "nvidia"}
    # Cut by memory, as no speed is known.
    layers = {s.device.kind: s.last_layer - s.first_layer + 1 for s in pipeline.shards}
    assert layers["gaudi"] > layers["nvidia"]
    assert pipeline.stream_tokens_per_second is None
    assert any("No speed is known" in note for note in plan.notes)


def test_the_cpu_is_the_last_resort() -> None:
    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), cluster("rtx-4060-8g"))
    check(plan)
    assert plan.chosen is not None
    assert any(shard.device.is_cpu for shard in plan.chosen.shards)
    enough = plan_sharding(read_model("llama-3.1-8b:Q4_K_M"), cluster("rtx-4060-8g,rtx-4060-8g"))
    assert not any(shard.device.is_cpu for priced in strategies(enough).values() for shard in priced.shards)


def test_no_device_gives_the_empty_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pshard.cli import main

    here = accelerators("nvidia", chips=1, n=1, gib=24)
    gone = tuple(replace(d, unavailable_reason="it is busy") for d in here.devices)
    document = plan_sharding(read_model("qwen3-0.6b:Q8_0"), replace(here, devices=gone)).to_dict()
    assert document["shards"] == []
    assert document["strategy"] == {"kind": "data_parallel", "num_replicas": 0}
    assert document["total_memory_bytes"] == 0
    assert document["estimated_tokens_per_sec"] is None
    assert main(["shard", "llama-3.3-70b:Q4_K_M", "--devices", "8G", "--ram", "8G"]) == 3
    assert "are missing" in capsys.readouterr().err


def test_missing_bytes_are_what_would_make_it_fit() -> None:
    model, here = read_model("llama-3.3-70b:Q4_K_M"), cluster("16G,12G", ram="8G")
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_sharding(model, here)
    missing = caught.value.missing_bytes
    assert f"{missing} bytes" in str(caught.value)
    assert "CUDA0 may hold 15.50 GiB" in str(caught.value)
    problem = ShardProblem(model, here, ShardParameters())
    groups = [problem.group([device]) for device in (*problem.pool, *problem.cpus)]
    with pytest.raises(DoesNotFitError) as replica:
        plan_replica(problem, groups, 1, search_order=True)
    lacking = replica.value.lacking
    assert sum(lacking.values()) == missing
    grown = tuple(
        replace(
            device,
            memory_total_bytes=device.memory_total_bytes + lacking.get(device.name, 0) * 103 // 100,
            memory_free_bytes=None,
        )
        for device in here.devices
    )
    check(plan_sharding(model, replace(here, devices=grown)))


# --- the rest -------------------------------------------------------------------------------------------------------


def test_the_heuristic_is_the_documents() -> None:
    model = read_model("llama-3.3-70b:Q4_K_M")
    needed = math.ceil(model.n_parameters * 4 / 8 * 1.2)
    alone = heuristic(model, cluster("h100-sxm-80g"))
    assert (alone.strategy, alone.total_memory_bytes) == ("none", needed)
    assert alone.tokens_per_second == pytest.approx(1e9 / model.n_parameters * 20 * 8)
    pipeline = heuristic(model, cluster("rtx-4090-24g,rtx-3090-24g"))
    assert (pipeline.strategy, pipeline.tokens_per_second) == ("pipeline_parallel", pytest.approx(20 * 2 * 8 * 0.65))
    here = linked(4, 450e9, 1e-6)
    here = replace(here, devices=tuple(replace(d, memory_total_bytes=24 * GIB) for d in here.devices))
    switched = heuristic(model, here)
    assert (switched.strategy, switched.tokens_per_second) == ("tensor_parallel", pytest.approx(20 * 4 * 8 * 1.8))
    nvlink = replace(here, links=(replace(here.links[0], kind="nvlink", bandwidth_bytes_per_second=120e9),))
    assert heuristic(model, nvlink).tokens_per_second == pytest.approx(20 * 4 * 8 * 1.6)
    tpu = heuristic(model, accelerators("tpu", chips=4, n=1, gib=64))
    # One TPU device holds it, so it stays alone: its chips are not looked at.
    assert (tpu.strategy, tpu.n_devices) == ("none", 1)
    two = heuristic(model, accelerators("tpu", chips=4, n=2, gib=32))
    assert (two.strategy, two.n_devices, two.tokens_per_second) == ("tensor_parallel", 8, pytest.approx(25 * 8 * 8 * 2))


@pytest.mark.parametrize(
    ("parameters", "quantisation", "source"),
    [("70B", "q4", "llama-3.3-70b:Q4_K_M"), ("7b", "f16", "mistral-7b-v0.3:F16"), ("671B", "q4", "deepseek")],
)
def test_a_number_of_parameters_stands_for_the_nearest_shape(parameters: str, quantisation: str, source: str) -> None:
    model = model_of_size(parameters, quantisation)
    wanted = float(parameters[:-1]) * 1e9
    assert model.n_parameters == pytest.approx(wanted, rel=0.03)
    assert "estimated" in model.warnings[-1]
    assert source in model.warnings[-1]


@pytest.mark.parametrize(("parameters", "quantisation"), [("70", "q4"), ("x", "q4"), ("70B", "q77"), ("0.001B", "q4")])
def test_sizes_that_are_none_are_refused(parameters: str, quantisation: str) -> None:
    with pytest.raises(SettingError, match=r"--params|--quant"):
        model_of_size(parameters, quantisation)


def test_micro_batches_fill_a_pipeline() -> None:
    model, here = read_model("llama-3.3-70b:Q4_K_M"), cluster("4xrtx-3090-24g")
    speeds = {
        n: strategies(plan_sharding(model, here, ShardParameters(users=8, micro_batches=n)))["pipeline_parallel"]
        for n in (1, 2, 4)
    }
    found = [priced.users_tokens_per_second for priced in speeds.values()]
    assert found == sorted(found)
    best = strategies(plan_sharding(model, here, ShardParameters(users=8)))["pipeline_parallel"]
    assert best.users_tokens_per_second == max(found)


def test_more_users_make_more_tokens_in_all() -> None:
    model, here = read_model("llama-3.1-8b:Q4_K_M"), cluster("rtx-4090-24g,rtx-4090-24g")
    found = []
    for users in (1, 4, 16):
        plan = plan_sharding(model, here, ShardParameters(users=users, max_seq_len=1024))
        assert plan.chosen is not None
        found.append(plan.chosen.users_tokens_per_second)
    assert found == sorted(found)


def test_the_last_resort_has_the_last_word() -> None:
    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), cluster("rtx-4060-8g", ram="48G"))
    assert plan.chosen is not None
    refused = [entry.strategy for entry in plan.refused]
    assert len(refused) == len(set(refused))
    assert not set(refused) & set(strategies(plan))
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), cluster("rtx-4060-8g", ram="8G"))
    assert str(caught.value).count("none: ") == 1
    assert "--users" not in str(caught.value)


def test_parameters_have_ranges() -> None:
    with pytest.raises(SettingError, match="make a context of 8589934592"):
        plan_sharding(
            read_model("qwen3-0.6b:Q8_0"), cluster("24G"), ShardParameters(users=1 << 20, max_seq_len=1 << 13)
        )
    with pytest.raises(SettingError, match="2000 devices; plans are made for up to"):
        plan_sharding(read_model("qwen3-0.6b:Q8_0"), cluster("2000x24G"))
    with pytest.raises(SettingError, match="users is 0"):
        plan_sharding(read_model("qwen3-0.6b:Q8_0"), cluster("24G"), ShardParameters(users=0))


def test_ranks_have_room_for_the_caches_of_all_users() -> None:
    model, here = read_model("llama-3.1-8b:Q4_K_M"), cluster("2xrtx-4090-24g")
    here = replace(here, devices=(replace(here.devices[0], memory_free_bytes=7 * GIB), *here.devices[1:]))
    problem = ShardProblem(model, here, ShardParameters(users=24))
    kv_heads = {users: problem.group(problem.pool, users).division for users in (1, 24)}
    assert [division and division.kv_heads for division in kv_heads.values()] == [(4, 4), (3, 5)]
    plan = plan_sharding(model, here, ShardParameters(users=24))
    check(plan)
    assert "tensor_parallel" in strategies(plan)
