"""Kernels that a GPU computes a pass in, against what llama.cpp's CUDA backend launched for whole models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planning_cases import n_kernels

from pshard import _core
from pshard.model.model import read_model

ROWS = json.loads((Path(__file__).parents[1] / "data" / "kernel_counts.json").read_text())["rows"]
# One layer, or two, of dense models in front of experts: whether gate and up are fused there depends on where the
# allocator lays their result, which is judged by its size alone.
NOT_EXACT = {("deepseek-r1:Q4_K_M", 1): 2, ("deepseek-v2-lite:Q4_K_M", 1): 2}


@pytest.mark.parametrize(("name", "n_tokens", "launched"), ROWS)
def test_as_many_kernels_as_llama_cpp_launched(name: str, n_tokens: int, launched: int) -> None:
    pass_ = _core.Pass()
    pass_.n_tokens, pass_.n_outputs = n_tokens, 1
    pass_.n_kv = pass_.n_kv_window = max(256, n_tokens)
    # Rows of the embedding are looked up on the host.
    assert abs(n_kernels(read_model(name), pass_) - launched) <= NOT_EXACT.get((name, n_tokens), 0)


@pytest.mark.parametrize("n_tokens", [1, 512])
def test_a_kernel_is_a_run_of_operations(n_tokens: int) -> None:
    model = read_model("qwen3-30b-a3b:Q4_K_M")
    pass_ = _core.Pass()
    pass_.n_tokens, pass_.n_outputs, pass_.n_kv = n_tokens, 1, 512
    operations = _core.layer_operations(model.core, 3, pass_)
    for i, operation in enumerate(operations):
        assert operation["kernel"] == i or operations[i - 1]["kernel"] == operation["kernel"] < i
