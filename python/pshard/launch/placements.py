"""Placements as llama.cpp's own flags describe them: ``-ngl``, ``-ot``, ``-ts``, ``-sm``, ``-nkvo``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pshard.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard import _core


ONE_GPU = (1.0,)


def placement_from_flags(
    model: _core.Model,
    n_gpu_layers: int = -1,
    overrides: Iterable[tuple[str, str]] = (),
    *,
    offload_kqv: bool = True,
    op_offload: bool = True,
    devices: Sequence[float] = ONE_GPU,
    tensor_split: Sequence[float] | None = None,
    split_mode: str = "layer",
    main_gpu: int = 0,
) -> _core.Placement:
    """Where stock llama.cpp puts everything.

    Parameters
    ----------
    model : _core.Model
    n_gpu_layers : int
        ``-ngl``: so many layers from the back are on GPUs, the head first; negative: all. Next-token-prediction
        layers count, although nothing of them is loaded.
    overrides : iterable of (str, str)
        ``-ot``: a regular expression that is searched in tensor names, and ``"CPU"`` or ``"CUDA0"``, ``"CUDA1"``, ....
        The first that fits wins. The KV cache does not follow them.
    offload_kqv : bool
        False (``-nkvo``): all KV caches and recurrent states in host memory.
    op_offload : bool
        Batches of 32 tokens and more multiply host weights on the first GPU.
    devices : sequence of float
        Free memory of each GPU, in any unit: layers are dealt out in these proportions. Empty: no GPU.
    tensor_split : sequence of float, optional
        ``-ts``: proportions to use instead; missing ones are 0. All 0 is as if not given.
    split_mode : str
        ``-sm``: ``"layer"``, or ``"none"`` to use ``main_gpu`` only.
    main_gpu : int
        ``-mg``: with ``split_mode="none"`` the placement has this GPU alone, as its GPU 0; negative: no GPU.

    Returns
    -------
    _core.Placement

    Raises
    ------
    SettingError
        A pattern that is no regular expression, a device that is not there, a negative share, or a split mode that
        cannot be placed.
    """
    from pshard import _core

    shares = _shares(devices, tensor_split, split_mode, main_gpu)
    rules = [_rule(pattern, device, len(shares)) for pattern, device in overrides]
    parameters = model.hyperparameters
    n_counted = parameters.n_layer + parameters.n_layer_nextn
    places = _core.layer_places(n_counted, n_gpu_layers, shares)

    placement = _core.Placement()
    placement.n_gpu = len(shares)
    placement.op_offload = op_offload and placement.n_gpu > 0
    placement.offload_kqv = offload_kqv
    placement.offloads_all = placement.n_gpu > 0 and _core.Where.cpu not in places
    whole = placement.n_gpu > 1 and placement.offloads_all
    placement.pipeline = whole and split_mode == "layer" and offload_kqv and not rules
    placement.head = places[-1]
    if model.head:  # it lies with its largest tensor; encoders have none
        head = max(model.head, key=lambda tensor: tensor.n_bytes)
        placement.head = _place(head.name, rules, placement.head)
    patterns: list[_core.LayerPlacement] = []
    layer_pattern: list[int] = []
    exceptions = _outside(model, rules, places[-1], placement.head)
    for layer, where in zip(model.layers, places, strict=False):
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


def _shares(
    devices: Sequence[float], tensor_split: Sequence[float] | None, split_mode: str, main_gpu: int
) -> list[float]:
    """Return what each GPU that is used gets of the layers."""
    if split_mode not in ("layer", "none"):
        message = (
            f"split mode {split_mode!r}: pshard places whole layers; use 'layer', or 'none' for one GPU (llama.cpp's "
            "'row' and 'tensor' cut the weights of every layer)."
        )
        raise SettingError(message)
    if split_mode == "none":
        if main_gpu >= len(devices) > 0:
            message = f"main GPU {main_gpu}, but there are {len(devices)}; count them from 0."
            raise SettingError(message)
        return [1.0] if main_gpu >= 0 and devices else []
    shares = [float(share) for share in tensor_split or ()]
    if len(shares) > len(devices) and any(shares[len(devices) :]):
        message = f"{len(shares)} shares for {len(devices)} GPUs; give one for each."
        raise SettingError(message)
    if any(share < 0 for share in (*shares, *devices)):
        message = f"shares {shares} for devices with {list(devices)}: none may be negative."
        raise SettingError(message)
    if not any(shares):
        return [float(device) for device in devices]
    return [shares[i] if i < len(shares) else 0.0 for i in range(len(devices))]


def _rule(pattern: str, device: str, n_gpu: int) -> tuple[re.Pattern[str], _core.Where]:
    from pshard import _core

    places = {"CPU": _core.Where.cpu, "CUDA_HOST": _core.Where.cpu}
    places |= {f"CUDA{gpu}": _core.pinned_on(gpu) for gpu in range(n_gpu)}
    where = places.get(device.upper())
    if where is None:
        names = ", ".join(["CPU", "CUDA_Host", *(f"CUDA{gpu}" for gpu in range(n_gpu))])
        message = f"override {pattern}={device}: device {device!r} is none of {names}."
        raise SettingError(message)
    try:
        return re.compile(pattern), where
    except re.error as error:
        message = f"override {pattern}={device}: not a regular expression: {error}."
        raise SettingError(message) from None


def _overridden(name: str) -> str:
    """Return the name that overrides are held against: an adapter's matrices lie with the tensor that they adapt."""
    return name.partition(".lora_")[0]


def _place(name: str, rules: list[tuple[re.Pattern[str], _core.Where]], default: _core.Where) -> _core.Where:
    if ".control_vector" in name:  # with the layer's device, whatever of the model is moved
        return default
    return next((where for regex, where in rules if regex.search(_overridden(name))), default)


def _outside(
    model: _core.Model, rules: list[tuple[re.Pattern[str], _core.Where]], output: _core.Where, head: _core.Where
) -> list[_core.TensorException]:
    """Return the tensors outside the layers that an override takes, or leaves behind, where their like is not."""
    from pshard import _core

    places = {tensor.name: _place(tensor.name, rules, output) for tensor in model.head}
    apart = {name: where for name, where in places.items() if where != head}
    for tensor in model.embedding:
        if any(regex.search(_overridden(tensor.name)) for regex, _ in rules):
            apart[tensor.name] = _place(tensor.name, rules, output)
    return [_core.TensorException(name, where) for name, where in apart.items()]


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
