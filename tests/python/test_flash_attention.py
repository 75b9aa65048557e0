"""What llama.cpp makes of automatic flash attention, in 48 launches of each of twenty models."""

from __future__ import annotations

from itertools import product

import oracle
import pytest

from pshard import _core
from pshard.launch.placements import placement_from_flags

# llama.cpp turned it off in launches with layers on a GPU, their caches in host memory (-nkvo), and these tensors
# overridden to the CPU: then nothing between the cache and the next product with a weight on a GPU draws the attention
# there. In a parallel block that product is the FFN's; a pure recurrent model has no attention; an encoder's has no
# cache, so it only follows its neighbours.
TURNED_OFF = {"command-r7b-cohere2-q4km": "ffn", "mamba2-2.7b-f16": "", "bge-large-en-f16": "attn"}


@pytest.mark.parametrize("name", oracle.names())
def test_it_is_on_where_every_layer_attends_on_its_own_device(name: str) -> None:
    model = oracle.model(name).core
    context = _core.ContextParameters()
    context.n_ctx = 4096
    context.flash_attn_auto = True
    for n_gpu_layers, offload_kqv, pattern, devices in product(
        (99, 20, 0), (True, False), ("", "exps", "ffn", "attn"), ([1], [24576, 12288])
    ):
        overrides = [(pattern, "CPU")] if pattern else []
        placement = placement_from_flags(model, n_gpu_layers, overrides, offload_kqv=offload_kqv, devices=devices)
        has_cache = model.hyperparameters.traits.causal
        off = n_gpu_layers > 0 and pattern == TURNED_OFF.get(name, "attn") != "" and not (offload_kqv and has_cache)
        found = _core.resolve_flash_attention(model, placement, context)
        assert found.flash_attn == (not off), (n_gpu_layers, offload_kqv, pattern, devices)


def test_a_quantised_v_cache_turns_it_on_whatever_it_costs() -> None:
    model = oracle.model("llama31-8b-q4km").core
    placement = placement_from_flags(model, overrides=[("attn", "CPU")], offload_kqv=False)
    context = _core.ContextParameters()
    context.flash_attn_auto = True
    assert not _core.resolve_flash_attention(model, placement, context).flash_attn
    context.type_v = _core.DataType(8, 32, 34)
    assert _core.resolve_flash_attention(model, placement, context).flash_attn


def test_found_impossible_is_not_off() -> None:
    """The V cache was already laid out for it: untransposed, so that attention needs a transposed copy."""
    model = oracle.model("llama31-8b-q4km").core
    placement = placement_from_flags(model)
    off, found_off = _core.ContextParameters(), _core.ContextParameters()
    off.flash_attn = found_off.flash_attn = False
    found_off.flash_attn_auto = True
    plain = _core.memory(model, placement, off, 512).gpu.compute_bytes
    assert _core.memory(model, placement, found_off, 512).gpu.compute_bytes > plain
