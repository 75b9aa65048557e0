"""The operation list of real models: what is multiplied, how often, and that nothing is forgotten."""

from __future__ import annotations

import math
from typing import Any

import oracle
import pytest
from gguf_cases import oracle_models

from pshard import _core, catalogue
from pshard.model.model import Model, model_from_header

PRODUCTS = (_core.OpKind.mul_mat, _core.OpKind.mul_mat_id)
TOKENS = 8


def make_pass(n_tokens: int = TOKENS, n_kv: int = 256, flash_attn: bool = True) -> _core.Pass:
    result = _core.Pass()
    result.n_tokens = result.n_outputs = n_tokens
    result.n_kv = result.n_kv_window = n_kv
    result.flash_attn = flash_attn
    return result


def operations(model: Model, layer: int, **settings: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _core.layer_operations(model.core, layer, make_pass(**settings))
    return found


def matrices(layer: _core.Layer) -> dict[str, _core.Tensor]:
    """What a forward pass multiplies with: not norms, biases, convolution kernels and per-head vectors."""
    element_wise = ("norm", "conv1d", ".bias", "ssm_a", "ssm_d")
    found = {t.name: t for t in layer.tensors if t.shape[1] > 1 and not any(part in t.name for part in element_wise)}
    return found | {t.name: t for t in layer.tensors if "ffn_gate_inp_shexp" in t.name}


@pytest.mark.parametrize("name", oracle.names())
def test_every_matrix_of_a_layer_is_multiplied_once(name: str) -> None:
    model = oracle.model(name)
    for index, layer in enumerate(model.core.layers):
        used = [o["weight"] for o in operations(model, index) if o["kind"] in PRODUCTS]
        assert sorted(used) == sorted(matrices(layer))


@pytest.mark.parametrize("name", oracle.names())
def test_every_tensor_of_a_layer_is_read(name: str) -> None:
    model = oracle.model(name)
    for index, layer in enumerate(model.core.layers):
        read = {o["weight"] for o in operations(model, index, flash_attn=False)}
        assert {tensor.name for tensor in layer.tensors} <= read


@pytest.mark.parametrize("name", oracle.names())
def test_products_cost_two_flop_per_active_parameter_and_token(name: str) -> None:
    model = oracle.model(name)
    parameters = model.hyperparameters
    for index, layer in enumerate(model.core.layers):
        active = 0
        for tensor in matrices(layer).values():
            routed = tensor.name.endswith("_exps.weight")
            used, of = (parameters.n_expert_used, parameters.n_expert) if routed else (1, 1)
            active += math.prod(tensor.shape) * used // of
        assert sum(o["flop"] for o in operations(model, index) if o["kind"] in PRODUCTS) == 2 * active * TOKENS


def test_a_dense_model_costs_two_flop_per_parameter_and_token() -> None:
    model = oracle.model("llama31-8b-f16")
    blocks = [operations(model, i) for i in range(model.n_layer)]
    blocks.append(_core.head_operations(model.core, make_pass()))
    flop = sum(o["flop"] for block in blocks for o in block if o["kind"] in PRODUCTS)
    embedding = model.hyperparameters.n_embd * model.hyperparameters.n_vocab
    assert flop == pytest.approx(2 * (model.n_parameters - embedding) * TOKENS, rel=1e-4)


def attention_of(listed: list[dict[str, Any]]) -> dict[str, Any]:
    return next(o for o in listed if o["kind"] == _core.OpKind.attention)


def test_attention_of_llama_8b_by_hand() -> None:
    attention = attention_of(operations(oracle.model("llama31-8b-f16"), 0, n_kv=4096))
    assert attention["cache_bytes"] == 4096 * 2 * 8 * 128 * 2  # K and V of 8 heads of 128 in f16
    assert attention["flop"] == 2 * 2 * 32 * 128 * TOKENS * 4096
    assert attention["group"] == _core.Group.cache


def test_mla_reads_its_latent_once_and_windows_read_their_window() -> None:
    latent = attention_of(operations(oracle.model("deepseek-v2-lite-q4km"), 1))
    assert latent["cache_bytes"] == 256 * 576 * 2
    model = oracle.model("gpt-oss-20b-mxfp4")
    settings = make_pass(n_kv=4096)
    settings.n_kv_window = 640
    cells = [attention_of(_core.layer_operations(model.core, i, settings))["k"] for i in range(4)]
    assert cells == [640, 4096, 640, 4096]


def test_experts_pass_only_the_chosen_routes() -> None:
    model = oracle.model("qwen3-30b-a3b-q4km")
    products = [o for o in operations(model, 0) if o["kind"] == _core.OpKind.mul_mat_id]
    assert [o["group"].name for o in products] == ["experts_gate", "experts_up", "experts_down"]
    assert [(o["n"], o["k"], o["m"]) for o in products] == [(768, 2048, 64), (768, 2048, 64), (2048, 768, 64)]


@pytest.mark.parametrize("name", [name for name, model in oracle_models().items() if model["states"]])
def test_recurrent_layers_read_and_write_their_state(name: str) -> None:
    model = oracle.model(name)
    attention = (_core.Mixer.attention, _core.Mixer.none)
    index = next(i for i, layer in enumerate(model.core.layers) if layer.parameters.mixer not in attention)
    moved = sum(o["cache_bytes"] for o in operations(model, index))
    assert moved == 2 * model.state_bytes(index)  # once in, once out, whatever the number of tokens


@pytest.mark.parametrize("name", sorted({name.split(":")[0] for name in catalogue.names()}))
def test_every_catalogue_model_is_described_completely(name: str) -> None:
    quantised = next(full for full in catalogue.names() if full.split(":")[0] == name)
    model = model_from_header(catalogue.header(quantised))
    classes = {layer.layer_class: index for index, layer in enumerate(model.core.layers)}
    for index in classes.values():
        read = {o["weight"] for o in operations(model, index, flash_attn=False)}
        assert {tensor.name for tensor in model.core.layers[index].tensors} <= read
