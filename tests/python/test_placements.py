"""llama.cpp's flags as placements."""

from __future__ import annotations

import random
from typing import Any

import oracle
import pytest

from pshard import _core
from pshard.errors import SettingError
from pshard.launch.placements import placement_from_flags

GROUPS = [group for group in _core.Group if group < _core.Group.embedding]


def where(placement: _core.Placement, layer: int, group: _core.Group) -> _core.Where:
    found: _core.Where = placement.patterns[placement.layer_pattern[layer]][group]
    return found


def test_layers_go_to_the_gpu_from_the_back_behind_the_head() -> None:
    model = oracle.model("llama31-8b-f16").core
    for n_gpu_layers, first in ((0, 32), (1, 32), (2, 31), (33, 0), (99, 0), (-1, 0)):
        placement = placement_from_flags(model, n_gpu_layers)
        assert placement.head == (_core.Where.cpu if n_gpu_layers == 0 else _core.Where.pinned)
        on_gpu = [where(placement, i, _core.Group.norms) == _core.Where.pinned for i in range(32)]
        assert on_gpu == [i >= first for i in range(32)]


def test_prediction_layers_count_although_they_are_not_loaded() -> None:
    model = oracle.model("glm45-air-q4km").core  # 46 layers and one that predicts
    placement = placement_from_flags(model, 47)
    assert where(placement, 0, _core.Group.norms) == _core.Where.cpu
    assert where(placement, 1, _core.Group.norms) == _core.Where.pinned


def test_overrides_move_groups_and_leave_the_cache() -> None:
    model = oracle.model("gpt-oss-20b-mxfp4").core
    rules = [(r"blk\.1\.ffn_down_exps", "CUDA0"), ("exps", "CPU")]
    placement = placement_from_flags(model, 99, rules)
    assert where(placement, 0, _core.Group.experts_down) == _core.Where.cpu
    assert where(placement, 1, _core.Group.experts_down) == _core.Where.pinned
    assert where(placement, 1, _core.Group.experts_up) == _core.Where.cpu
    assert where(placement, 0, _core.Group.cache) == where(placement, 0, _core.Group.attention) == _core.Where.pinned
    assert not placement.exceptions


def test_an_override_may_split_a_group() -> None:
    model = oracle.model("starcoder2-15b-q4km").core
    placement = placement_from_flags(model, 99, [(r"blk\.0\.ffn_up\.weight", "CPU")])
    assert where(placement, 0, _core.Group.ffn_up) == _core.Where.cpu
    assert [(e.name, e.where) for e in placement.exceptions] == [("blk.0.ffn_up.bias", _core.Where.pinned)]


def test_the_cache_stays_on_the_host_where_it_is_told_to() -> None:
    placement = placement_from_flags(oracle.model("llama31-8b-f16").core, 99, offload_kqv=False)
    assert where(placement, 3, _core.Group.cache) == _core.Where.cpu
    assert where(placement, 3, _core.Group.attention) == _core.Where.pinned


@pytest.mark.parametrize(("rule", "part"), [(("blk(", "CPU"), "regular expression"), (("exps", "CUDA9"), "CUDA9")])
def test_bad_overrides_are_named(rule: tuple[str, str], part: str) -> None:
    with pytest.raises(SettingError, match=part):
        placement_from_flags(oracle.model("llama31-8b-f16").core, 99, [rule])


@pytest.mark.parametrize("name", ["qwen3-30b-a3b-q4km", "gemma3-27b-q4km", "qwen3-next-80b-a3b-q4km"])
def test_compute_buffers_do_not_depend_on_what_was_asked_before(name: str) -> None:
    model = oracle.model(name).core
    context = _core.ContextParameters()
    generator = random.Random(7)
    used = _core.ComputeBuffers(model, context, 64)
    for _ in range(40):
        placement = _core.Placement()
        placement.patterns = [_core.LayerPlacement(_core.Where.pinned) for _ in range(4)]
        for pattern in placement.patterns:
            for group in GROUPS:
                pattern[group] = generator.choice(list(_core.Where)[:4])
        placement.layer_pattern = [generator.randrange(4) for _ in model.layers]
        placement.head = generator.choice([_core.Where.pinned, _core.Where.cpu])
        placement.op_offload = generator.random() < 0.5
        report = _core.memory(model, placement, context, 64)
        found = used(placement)
        assert found.gpu_bytes[0] == report.gpu.compute_bytes
        assert found.gpu_stream_bytes == report.gpu.stream_bytes <= report.gpu.compute_bytes
        assert found.host_bytes == report.host.compute_bytes


def gpus_of(placement: _core.Placement) -> list[int]:
    places = [pattern.device for pattern in placement.patterns]
    return [_core.gpu_of(places[i]) for i in placement.layer_pattern if _core.is_pinned(places[i])]


def test_layers_are_shared_out_by_memory_or_by_tensor_split() -> None:
    model = oracle.model("llama31-8b-f16").core
    placement = placement_from_flags(model, devices=[24576, 12288])
    assert (placement.n_gpu, placement.head) == (2, _core.pinned_on(1))
    assert gpus_of(placement) == [0] * 22 + [1] * 10
    placement = placement_from_flags(model, devices=[24576, 12288], tensor_split=[1, 2])
    assert gpus_of(placement) == [0] * 11 + [1] * 21
    assert gpus_of(placement_from_flags(model, 3, devices=[8, 8, 8], tensor_split=[0, 1])) == [1, 1]
    assert gpus_of(placement_from_flags(model, devices=())) == []


def test_one_gpu_of_several() -> None:
    model = oracle.model("llama31-8b-f16").core
    placement = placement_from_flags(model, devices=[8, 8], split_mode="none", main_gpu=1)
    assert (placement.n_gpu, placement.pipeline, placement.head) == (1, False, _core.Where.pinned)
    placement = placement_from_flags(model, devices=[8, 8], split_mode="none", main_gpu=-1)
    assert (placement.n_gpu, placement.op_offload, placement.head) == (0, False, _core.Where.cpu)


def test_when_llama_cpp_works_in_a_pipeline() -> None:
    model = oracle.model("glm45-air-q4km").core  # 46 layers and one that predicts: 48 with the output

    def pipeline(n_gpu_layers: int, **flags: Any) -> bool:
        return placement_from_flags(model, n_gpu_layers, **{"devices": [8, 8], **flags}).pipeline

    assert pipeline(-1)
    assert pipeline(48)
    assert not pipeline(47)
    assert not pipeline(-1, devices=[8])
    assert not pipeline(-1, offload_kqv=False)
    assert not pipeline(-1, overrides=[("no_such_tensor", "CPU")])


def test_overrides_name_any_gpu_and_any_tensor() -> None:
    model = oracle.model("llama31-8b-f16").core
    rules = [(r"blk\.0\.ffn", "CUDA2"), ("token_embd", "CUDA1"), ("output_norm", "CPU")]
    placement = placement_from_flags(model, overrides=rules, devices=[8, 8, 8])
    assert where(placement, 0, _core.Group.ffn_down) == _core.pinned_on(2)
    assert where(placement, 0, _core.Group.cache) == _core.Where.pinned
    outside = {e.name: e.where for e in placement.exceptions if not e.name.startswith("blk.")}
    assert outside == {"token_embd.weight": _core.pinned_on(1), "output_norm.weight": _core.Where.cpu}


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"split_mode": "row"}, "row"),
        ({"split_mode": "none", "main_gpu": 2}, "main GPU 2"),
        ({"tensor_split": [1, -1]}, "negative"),
        ({"tensor_split": [1, 1, 1]}, "3 shares for 2"),
        ({"overrides": [("exps", "CUDA2")]}, "CUDA0, CUDA1"),
    ],
)
def test_flags_that_fit_no_device_are_named(flags: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingError, match=part):
        placement_from_flags(oracle.model("llama31-8b-f16").core, **{"devices": [8, 8], **flags})
