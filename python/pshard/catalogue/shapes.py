"""Published shapes: one JSON record per model in ``models/``, expanded into a tensor list on demand.

A record holds what a published header says, once per kind of layer instead of once per layer. ``layers[].in`` names the
layers that a group of tensors occurs in, as comma-separated numbers and ``start:stop[:step]`` ranges (stop exclusive).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from pshard.catalogue.mixes import MIXES, MixContext, Shape


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tokenizer of a published file.

    Attributes
    ----------
    model : str
        Its ``tokenizer.ggml.model``.
    n_tokens : int
    n_bytes : int
        About what all metadata of the file take, of which the vocabulary's arrays are nearly everything.
    """

    model: str
    n_tokens: int
    n_bytes: int


class LayerTensors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"layers": "in"}):
    """Tensors that every layer of a selection has; names are without ``blk.N.``."""

    layers: str
    tensors: dict[str, Shape]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model as published. ``hyperparameters`` are GGUF keys without the architecture's prefix."""

    title: str
    architecture: str
    quantisations: tuple[str, ...]
    vocabulary: Vocabulary
    hyperparameters: dict[str, Any]
    tensors: dict[str, Shape]
    layers: tuple[LayerTensors, ...]

    @property
    def n_layer(self) -> int:
        """Stored layers, next-token-prediction layers included."""
        return int(self.hyperparameters["block_count"])

    def shapes(self) -> list[tuple[str, Shape]]:
        """Every tensor's full name and shape."""
        found = list(self.tensors.items())
        for group in self.layers:
            for index in select_layers(group.layers, self.n_layer):
                found += [(f"blk.{index}.{name}", shape) for name, shape in group.tensors.items()]
        return found

    def mix_context(self) -> MixContext:
        """Gather what the quantisation rules ask of this model."""

        def largest(key: str) -> int:
            value = self.hyperparameters.get(key, 0)
            return int(max(value) if isinstance(value, list) else value)

        n_head = largest("attention.head_count")
        return MixContext(
            architecture=self.architecture,
            n_layer=self.n_layer,
            n_head=n_head,
            n_head_kv=largest("attention.head_count_kv") or n_head,
            n_expert=largest("expert_count"),
        )


def select_layers(text: str, n_layer: int) -> list[int]:
    """Layer numbers that a selection such as ``"0:4,7,8::2"`` names, in its order; an open end is `n_layer`."""
    indices: list[int] = []
    for part in text.split(","):
        if ":" not in part:
            indices.append(int(part))
            continue
        start, stop, step = (*part.split(":"), "")[:3]
        indices += range(int(start or 0), int(stop or n_layer), int(step or 1))
    return indices


@cache
def model_names() -> tuple[str, ...]:
    """Names of all models of the catalogue, sorted, without quantisations."""
    folder = files(__package__) / "models"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


@cache
def load_record(model_name: str) -> Record:
    """Read one record; `model_name` is one of `model_names`."""
    record = msgspec.json.decode((files(__package__) / "models" / f"{model_name}.json").read_bytes(), type=Record)
    unknown = [q for q in record.quantisations if q not in MIXES]
    if unknown:
        message = (
            f"record {model_name!r} offers {unknown[0]!r}, which is none of {', '.join(MIXES)}; correct the record"
        )
        raise ValueError(message)
    return record
