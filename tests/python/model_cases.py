"""Models for tests, made of a few metadata keys and tensors; keys are without their architecture."""

from __future__ import annotations

from typing import Any

from gguf_cases import F16, F32, Tensors, header_of, llama_keys, llama_tensors

from pshard.model.model import Model, model_from_header


def make(architecture: str, keys: dict[str, Any], tensors: Tensors) -> Model:
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()} | {"general.architecture": architecture}
    return model_from_header(header_of(metadata, tensors))


def decoder(architecture: str, n_layer: int = 8, **keys: Any) -> Model:
    """A small model with ordinary attention and dense FFN in each layer."""
    return make(
        architecture, llama_keys(n_layer, **{k.replace("__", "."): v for k, v in keys.items()}), llama_tensors(n_layer)
    )


def windows(model: Model) -> list[int]:
    return [layer.parameters.window for layer in model.layers]


def with_layers(*layers: dict[str, tuple[tuple[int, ...], int]]) -> Tensors:
    tensors: Tensors = [("token_embd.weight", (256, 100), F16), ("output_norm.weight", (256,), F32)]
    return tensors + [(f"blk.{i}.{name}", *what) for i, layer in enumerate(layers) for name, what in layer.items()]
