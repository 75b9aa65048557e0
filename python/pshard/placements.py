"""Placements as llama.cpp's own flags describe them: ``-ngl``, ``-ot``, ``-nkvo``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pshard.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard import _core


def placement_from_flags(
    model: _core.Model,
    n_gpu_layers: int = -1,
    overrides: Iterable[tuple[str, str]] = (),
    *,
    offload_kqv: bool = True,
    op_offload: bool = True,
) -> _core.Placement:
    """Where stock llama.cpp puts everything on one GPU.

    Parameters
    ----------
    model : _core.Model
    n_gpu_layers : int
        ``-ngl``: so many layers from the back are on the GPU, the head first; negative: all. Next-token-prediction
        layers count, although nothing of them is loaded.
    overrides : iterable of (str, str)
        ``-ot``: a regular expression that is searched in tensor names, and ``"CPU"`` or ``"CUDA0"``. The first that
        fits wins. The KV cache does not follow them.
    offload_kqv : bool
        False (``-nkvo``): all KV caches and recurrent states in host memory.
    op_offload : bool
        Batches of 32 tokens and more multiply host weights on the GPU.

    Returns
    -------
    _core.Placement

    Raises
    ------
    SettingError
        A pattern that is no regular expression, or a device that is neither ``CPU`` nor ``CUDA0``.
    """
    from pshard import _core

    rules = [_rule(pattern, device) for pattern, device in overrides]
    parameters = model.hyperparameters
    n_counted = parameters.n_layer + parameters.n_layer_nextn
    first_on_gpu = 0 if n_gpu_layers < 0 else max(n_counted + 1 - n_gpu_layers, 0)

    placement = _core.Placement()
    placement.op_offload = op_offload
    placement.head = _core.Where.cpu if n_gpu_layers == 0 else _core.Where.pinned
    if model.head:  # it lies with its largest tensor; encoders have none
        head = max(model.head, key=lambda tensor: tensor.n_bytes)
        placement.head = _place(head.name, rules, placement.head)
    patterns: list[_core.LayerPlacement] = []
    layer_pattern: list[int] = []
    exceptions: list[_core.TensorException] = []
    for index, layer in enumerate(model.layers):
        where = _core.Where.pinned if index >= first_on_gpu else _core.Where.cpu
        pattern = _core.LayerPlacement(where)
        if not offload_kqv:
            pattern[_core.Group.cache] = _core.Where.cpu
        if rules:
            exceptions += _apply(pattern, layer.tensors, rules, where)
        if pattern not in patterns:
            patterns.append(pattern)
        layer_pattern.append(patterns.index(pattern))
    placement.patterns = patterns
    placement.layer_pattern = layer_pattern
    placement.exceptions = exceptions
    return placement


def _rule(pattern: str, device: str) -> tuple[re.Pattern[str], _core.Where]:
    from pshard import _core

    devices = {"CPU": _core.Where.cpu, "CUDA_HOST": _core.Where.cpu, "CUDA0": _core.Where.pinned}
    where = devices.get(device.upper())
    if where is None:
        message = f"override {pattern}={device}: device {device!r} is none of CPU, CUDA_Host, CUDA0."
        raise SettingError(message)
    try:
        return re.compile(pattern), where
    except re.error as error:
        message = f"override {pattern}={device}: not a regular expression: {error}."
        raise SettingError(message) from None


def _place(name: str, rules: list[tuple[re.Pattern[str], _core.Where]], default: _core.Where) -> _core.Where:
    return next((where for regex, where in rules if regex.search(name)), default)


def _apply(
    pattern: _core.LayerPlacement,
    tensors: Sequence[_core.Tensor],
    rules: list[tuple[re.Pattern[str], _core.Where]],
    default: _core.Where,
) -> list[_core.TensorException]:
    """Place the groups of one layer by their largest tensor; return the tensors that differ from it."""
    from pshard import _core

    places = {tensor.name: _place(tensor.name, rules, default) for tensor in tensors}
    for tensor in sorted(tensors, key=lambda tensor: tensor.n_bytes):
        pattern[_core.group_of(tensor.name)] = places[tensor.name]
    return [
        _core.TensorException(name, where) for name, where in places.items() if pattern[_core.group_of(name)] != where
    ]
