"""Buffers of every run of layers from a few measured ones: as the memory model has them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sharding_cases import cluster

from pshard import read_model
from pshard.fleet.run_buffers import run_buffers
from pshard.sharding.problem import ShardProblem
from pshard.sharding.types import ShardParameters


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-8b:Q4_K_M",
        "gemma-3-27b:Q4_K_M",  # windows on five layers of six
        "deepseek-v2-lite:Q4_K_M",  # a dense layer first
        "qwen3-next-80b-a3b:Q4_K_M",  # recurrent layers
        "llama-4-scout:Q4_K_M",
    ],
)
@pytest.mark.parametrize("users", [1, 6])
def test_runs_take_what_the_memory_model_says(name: str, users: int) -> None:
    model = read_model(name)
    problem = ShardProblem(model, cluster("2xh100-sxm-80g"), ShardParameters(users=users))
    core, choose = model.core, random.Random(1)
    layers, head = problem.layer_bytes(problem.group(problem.pool[:1]), users)
    buffers = problem.buffers(core, users, is_cpu=False)
    for _ in range(40):
        begin = choose.randrange(model.n_layer)
        end = choose.randrange(begin + 1, model.n_layer + 1)
        used = problem.measure(core, begin, end, users, is_cpu=False)
        counted = layers[begin:end, 0].sum() + (head[0] if end == model.n_layer else 0) + buffers[begin, end]
        assert counted == used.weights_bytes + used.cache_bytes + used.compute_bytes


def test_few_runs_are_measured_of_equal_layers() -> None:
    asked = []

    def measure(begin: int, end: int) -> int:
        asked.append((begin, end))
        return min(end - begin, 3) * 10 + (7 if end == 100 else 0)

    found = run_buffers([0] * 100, measure)
    assert len(asked) < 300
    for begin in range(100):
        for end in range(begin + 1, 101):
            assert found[begin, end] == min(end - begin, 3) * 10 + (7 if end == 100 else 0)
    assert not found[np.tril_indices(101)].any()
