"""A model of a given size: the nearest published shape with more or fewer of its layers. All of it is an estimate."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from pshard.errors import SettingError
from pshard.model.model import model_from_header, read_model

if TYPE_CHECKING:
    from pshard.catalogue import Entry
    from pshard.gguf.file import GgufHeader, TensorInfo
    from pshard.model.model import Model

# Quantisations by the short names that people use; any that a published file has may be named as well.
QUANTISATIONS = {
    "f16": "F16", "fp16": "F16", "bf16": "F16", "q8": "Q8_0", "int8": "Q8_0", "q6": "Q6_K", "q5": "Q5_K_M",
    "q4": "Q4_K_M", "int4": "Q4_K_M", "q3": "Q3_K_M", "q2": "Q2_K",
}  # fmt: skip
# A mixture of experts is taken only where no dense shape is within this factor.
DENSE_FACTOR = 1.5


def parse_parameters(text: str) -> float:
    """Read a number of parameters: ``70B``, ``1.5b``, ``350M``.

    Raises
    ------
    SettingError
        With the grammar.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bmt])\s*", text, re.IGNORECASE)
    n = float(found[1]) * {"m": 1e6, "b": 1e9, "t": 1e12}[found[2].lower()] if found else 0.0
    if not 1e7 <= n <= 1e14:
        message = f"--params {text!r} is no number of parameters; examples: 70B, 350M"
        raise SettingError(message)
    return n


def model_of_size(parameters: str, quantisation: str) -> Model:
    """Make a model of so many parameters.

    Parameters
    ----------
    parameters : str
        As `parse_parameters`.
    quantisation : str
        ``q4``, ``q8``, ``f16``, ..., or a name that published files have.

    Returns
    -------
    Model
        Named after both, with a warning that says which shape it comes from.

    Raises
    ------
    SettingError
        Neither a size nor a quantisation.
    """
    from pshard.catalogue import entries

    wanted = parse_parameters(parameters)
    short = QUANTISATIONS.get(quantisation.lower(), quantisation.upper())
    offered = [entry for entry in entries() if short in entry.file_bytes]
    if not offered:
        known = ", ".join(sorted({*QUANTISATIONS, *(name for entry in entries() for name in entry.file_bytes)}))
        message = f"--quant {quantisation!r} is no quantisation; one of {known}"
        raise SettingError(message)
    shapes = {entry.name: read_model(f"{entry.name}:{short}") for entry in _near(offered, wanted)}

    def distance(name: str) -> tuple[bool, float, str]:
        off = abs(math.log(shapes[name].n_parameters / wanted))
        is_sparse = shapes[name].hyperparameters.n_expert > 0
        return is_sparse or off > math.log(DENSE_FACTOR), off, name

    nearest = min(shapes, key=distance)
    return _of_size(shapes[nearest], wanted, f"{parameters.upper()}:{short}", f"{nearest}:{short}")


def _near(entries: list[Entry], wanted: float) -> list[Entry]:
    return sorted(entries, key=lambda entry: (abs(math.log(entry.n_parameters / wanted)), entry.name))[:6]


def _of_size(model: Model, wanted: float, name: str, source: str) -> Model:
    per_layer = (
        sum(math.prod(t.shape) for layer in model.layers for g in layer.groups.values() for t in g) / model.n_layer
    )
    outside = model.n_parameters - per_layer * model.n_layer
    n_layer = max(1, round((wanted - outside) / per_layer))
    scaled = model_from_header(_with_layers(model, n_layer), name)
    words = f"{model.n_layer} layers" if n_layer == model.n_layer else f"{n_layer} instead of {model.n_layer} layers"
    warning = f"{name} is estimated: the shape of {source} with {words}, {scaled.n_parameters / 1e9:.1f} B parameters."
    return replace(scaled, warnings=(*scaled.warnings, warning))


def _with_layers(model: Model, n_layer: int) -> GgufHeader:
    """Repeat or leave out layers, evenly over the depth."""
    header, old = model.header, model.n_layer
    of_layer: dict[int, list[tuple[str, TensorInfo]]] = {}
    outside = []
    for tensor in header.tensors:
        found = re.match(r"blk\.(\d+)\.(.*)", tensor.name)
        if found is None:
            outside.append(tensor)
        else:
            of_layer.setdefault(int(found[1]), []).append((found[2], tensor))
    source = [i * old // n_layer for i in range(n_layer)]
    tensors = [
        replace(tensor, name=f"blk.{i}.{local}") for i, layer in enumerate(source) for local, tensor in of_layer[layer]
    ]
    metadata = {
        key: [value[layer] for layer in source] if isinstance(value, list) and len(value) == old else value
        for key, value in header.metadata.items()
    }
    prefix = model.architecture
    metadata[f"{prefix}.block_count"] = n_layer
    metadata.pop(f"{prefix}.nextn_predict_layers", None)
    return replace(header, metadata=metadata, tensors=(*outside, *tensors))
