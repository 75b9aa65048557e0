"""What the solver is given: bytes and seconds of each layer on each device, by the memory model and the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pshard import _core
from pshard.cluster.routes import Routes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pshard.cluster.cluster import Cluster, Device
    from pshard.fleet.device_speeds import DeviceSpeed


@dataclass(frozen=True, slots=True)
class StageBytes:
    """Bytes by device, D of them, in their order.

    Attributes
    ----------
    layers : (L, D) array of int
        Weights and cache of each layer.
    head : (D,) array of int
        Weights of the output head.
    """

    layers: NDArray[np.int64]
    head: NDArray[np.int64]


def stage_bytes(model: _core.Model, context: _core.ContextParameters, on_gpu: Sequence[bool]) -> StageBytes:
    """Count the bytes of each layer on each device.

    Parameters
    ----------
    model : _core.Model
    context : _core.ContextParameters
        With flash attention decided.
    on_gpu : sequence of bool
        For each device whether its buffers are a GPU's, or host memory.

    Returns
    -------
    StageBytes
    """
    gpu, cpu = _core.LayerPlacement(_core.Where.pinned), _core.LayerPlacement(_core.Where.cpu)
    by_kind = {
        True: [
            _core.gpu_weight_bytes(layer, gpu) + _core.cache_bytes(model, layer, context, _core.Where.pinned)
            for layer in model.layers
        ],
        False: [
            _core.host_weight_bytes(layer, cpu) + _core.cache_bytes(model, layer, context, _core.Where.cpu)
            for layer in model.layers
        ],
    }
    head = {True: _core.gpu_head_bytes(model), False: _core.host_head_bytes(model)}
    return StageBytes(
        np.array([by_kind[kind] for kind in on_gpu], dtype=np.int64).T.reshape(len(by_kind[True]), len(on_gpu)),
        np.array([head[kind] for kind in on_gpu], dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one pass by device, D of them, in their order.

    Attributes
    ----------
    layers, layer_spread : (L, D) array of float
        Seconds of each layer, and the half-width of their range.
    head, head_spread : (D,) array of float
    embedding_seconds : float
        By the host's CPU.
    arrival : (D,) array of float
        The embedded tokens and the pass's inputs, from the host's memory to the device.
    transfer : (D, D) array of float
        The hidden state from the device of one stage to that of the next, and the inputs that the next one needs;
        infinite where no link joins them.
    result : (D,) array of float
        The logits, from the device to the host's memory.
    basis : _core.Basis
        Of the least trustworthy figure.
    n_tokens : int
        Of the pass.
    """

    layers: NDArray[np.float64]
    layer_spread: NDArray[np.float64]
    head: NDArray[np.float64]
    head_spread: NDArray[np.float64]
    embedding_seconds: float
    arrival: NDArray[np.float64]
    transfer: NDArray[np.float64]
    result: NDArray[np.float64]
    basis: _core.Basis
    n_tokens: int


def stage_times(
    model: _core.Model,
    pass_: _core.Pass,
    cluster: Cluster,
    devices: Sequence[Device],
    speeds: dict[str, DeviceSpeed],
    *,
    host: str,
) -> StageTimes:
    """Price each layer on each device, and the ways between them.

    Parameters
    ----------
    model : _core.Model
    pass_ : _core.Pass
        One token of each sequence, or a micro-batch of a prompt.
    cluster : Cluster
    devices : sequence of Device
    speeds : dict
        Of these devices, by name.
    host : str
        The host that embeds the tokens and takes the logits.

    Returns
    -------
    StageTimes
    """
    by_speed = {id(speed): _core.device_costs(model, speed.core, pass_, speed.on_gpu) for speed in speeds.values()}
    costs = [by_speed[id(speeds[device.name])] for device in devices]
    hidden_bytes, input_bytes, logits_bytes = costs[0].hidden_bytes, costs[0].input_bytes, costs[0].logits_bytes
    routes, names = Routes(cluster), [device.name for device in devices]
    inputs = routes.seconds([host], names, input_bytes)[0]
    # A GPU waits for the launch behind whatever came before it, and the CPU for a GPU to end: as the profile says.
    on_gpu = np.array([speeds[name].on_gpu for name in names])
    handoff = np.where(on_gpu, [speeds[name].core.handoff_to_gpu_seconds for name in names], 0.0)
    release = np.where(on_gpu, [speeds[name].core.handoff_to_cpu_seconds for name in names], 0.0)
    wait = np.where(on_gpu[None, :], handoff[None, :], release[:, None])
    transfer = routes.seconds(names, names, hidden_bytes) + inputs[None, :] + wait
    np.fill_diagonal(transfer, 0.0)
    return StageTimes(
        layers=np.array([[cost.seconds for cost in device.layers] for device in costs]).T,
        layer_spread=np.array([[cost.spread_seconds for cost in device.layers] for device in costs]).T,
        head=np.array([device.head.seconds for device in costs]),
        head_spread=np.array([device.head.spread_seconds for device in costs]),
        embedding_seconds=costs[0].embedding.seconds,
        arrival=routes.seconds([host], names, hidden_bytes)[0] + inputs + handoff,
        transfer=transfer,
        result=routes.seconds(names, [host], logits_bytes)[:, 0],
        basis=max(
            (cost.basis for device in costs for cost in (*device.layers, device.head)),
            default=_core.Basis.estimated,
        ),
        n_tokens=pass_.n_tokens,
    )
