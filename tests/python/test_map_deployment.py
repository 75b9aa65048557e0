"""A map that is rebalanced: the assignment that `pshard map` itself finds for the machine as it was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from pshard import Cluster, Model, map_model, read_model
from pshard.cluster.device_list import parse_devices
from pshard.errors import SettingError
from pshard.mapping.device_map import DeviceMap
from pshard.mapping.types import Load, MapParameters
from pshard.rebalance.balancer import LoadBalancer
from pshard.rebalance.deployed_document import MapDocument
from pshard.rebalance.map_deployment import MapDeployment
from pshard.rebalance.worth import pass_seconds


@cache
def model() -> Model:
    return read_model("llama-3.1-8b:Q4_K_M")


@cache
def cluster() -> Cluster:
    return parse_devices("rtx-3060-12g,rtx-4060-8g", ram="32G")


@cache
def mapped(load: Load) -> DeviceMap:
    return map_model(model(), cluster(), goal="decode", load=load)


def as_read(found: DeviceMap) -> MapDocument:
    return msgspec.convert(json.loads(json.dumps(found.to_dict())), MapDocument)


def deployment_of(load: Load) -> MapDeployment:
    return MapDeployment(as_read(mapped(load)), model(), cluster())


@pytest.mark.parametrize("load", ["stream", "pipelined"])
def test_tables_add_up_to_the_maps_own_seconds(load: Load) -> None:
    deployment = deployment_of(load).deployment
    layers = mapped(load).layers
    assert deployment.counts == layers.counts
    seconds = pass_seconds(deployment.tables["decode"], deployment.counts, deployment.objective)
    expected = layers.slowest_seconds if load == "pipelined" else layers.seconds
    # the way back to a first device with the head is not in the tables: a hidden state over PCIe
    assert seconds == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("load", ["stream", "pipelined"])
def test_a_machine_as_predicted_keeps_its_map(load: Load) -> None:
    target = deployment_of(load)
    deployment = target.deployment
    assert deployment.solve(deployment.tables["decode"]) == deployment.counts
    again = target.rebalanced("decode", np.ones(len(deployment.shards)))
    assert again.layers.counts == deployment.counts
    assert again.layers.seconds == pytest.approx(mapped(load).layers.seconds)


@pytest.mark.parametrize("settings", [{"flash_attn": "off"}, {"allow_swap": True}, {"flash_attn": "on"}])
def test_a_map_is_solved_again_with_its_own_settings(settings: dict[str, Any]) -> None:
    asked = map_model(model(), cluster(), parameters=MapParameters(**settings), goal="decode", load="pipelined")
    again = MapDeployment(as_read(asked), model(), cluster()).rebalanced("decode", np.ones(3))
    assert again.parameters == asked.parameters
    assert [d.compute_bytes for d in again.layers.devices] == [d.compute_bytes for d in asked.layers.devices]
    assert [d.capacity_bytes for d in again.layers.devices] == [d.capacity_bytes for d in asked.layers.devices]
    assert again.llama_cpp is not None
    assert asked.llama_cpp is not None
    assert again.llama_cpp.argv == asked.llama_cpp.argv


def test_a_slow_device_gets_fewer_layers_and_nothing_overflows() -> None:
    target = deployment_of("pipelined")
    factors = np.array([3.0, 1.0, 1.0])
    found = target.rebalanced("decode", factors)
    before, after = target.deployment.counts, found.layers.counts
    assert after[0] < before[0]
    assert sum(after) == model().n_layer
    assert all(device.used_bytes <= device.capacity_bytes for device in found.layers.devices)
    assert found.layers.head == mapped("pipelined").layers.head
    # no other division of these layers is faster, the CPU's included
    corrected = target.deployment.tables["decode"].corrected(factors)
    slowest = pass_seconds(corrected, after, "throughput")
    n = model().n_layer
    for first in range(n + 1):
        for second in range(n + 1 - first):
            other = (first, second, n - first - second)
            fits = all(
                layers * int(target.deployment.layer_bytes[0, d]) < target.deployment.capacity_bytes[d]
                for d, layers in enumerate(other)
            )
            if fits:
                assert slowest <= pass_seconds(corrected, other, "throughput") * 1.001


def test_a_balancer_on_a_map_proposes_the_same() -> None:
    target = deployment_of("pipelined")
    deployment = target.deployment
    balancer = LoadBalancer(deployment=deployment)
    usual = deployment.tables["decode"].work_seconds(deployment.counts) * 1e6
    for i in range(200):
        for name, latency in zip(deployment.shards, (usual * [3.0, 1.0, 1.0]).tolist(), strict=True):
            if latency:
                balancer.record(name, latency, time_unix_s=float(i))
    decision = balancer.evaluate()
    assert decision.kind == "rebalance"
    assert decision.factors is not None
    assert decision.factors["CUDA0"][0] == pytest.approx(3.0)
    factors = np.array([factor for factor, _, _ in decision.factors.values()])
    assert tuple(n for _, n in decision.suggested or ()) == target.rebalanced("decode", factors).layers.counts
    assert decision.move is not None
    assert decision.move.n_bytes is not None
    assert decision.move.n_bytes > 0
    assert decision.move.seconds is not None
    assert 0 < decision.move.seconds < 10


def test_other_models_and_devices_are_refused() -> None:
    document = as_read(mapped("stream"))
    with pytest.raises(SettingError, match="give the model and the devices of the map"):
        MapDeployment(document, read_model("llama-3.3-70b:Q4_K_M"), cluster())
    with pytest.raises(SettingError, match="give the model and the devices of the map"):
        MapDeployment(document, model(), parse_devices("rtx-3060-12g", ram="32G"))


def test_parameters_that_no_map_has_are_refused() -> None:
    document = as_read(mapped("stream"))
    for parameters in (replace(document.parameters, n_ubatch=0), replace(document.parameters, max_seq_len=1 << 40)):
        with pytest.raises(SettingError, match="a whole number from 1 to"):
            MapDeployment(msgspec.structs.replace(document, parameters=parameters), model(), cluster())
