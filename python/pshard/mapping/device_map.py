"""Whole layers on several devices: the map that ``pshard map`` prints.

It follows mistral.rs's automatic device map (whole layers in order, what is not mapped on the first device, the CPU
last), with the bytes of this project's memory model and, for a speed objective, the seconds of its cost model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.errors import SettingError
from pshard.launch.spellings import MAX_TOKENS
from pshard.mapping.types import DeviceMap, Goal, Load, MapParameters

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster
    from pshard.memory.projector import Projector
    from pshard.model.model import Model

__all__ = ["DeviceMap", "MapParameters", "check_parameters", "map_model"]


def map_model(
    model: Model,
    cluster: Cluster,
    *,
    parameters: MapParameters | None = None,
    goal: Goal = "memory",
    load: Load | None = None,
    projector: Projector | None = None,
    allow_swap: bool = False,
) -> DeviceMap:
    """Give whole layers to devices.

    Parameters
    ----------
    model : Model
    cluster : Cluster
        Devices in the order in which they get layers; CPUs last. Of several hosts the first one's CPU counts.
    parameters : MapParameters, optional
    goal : {"memory", "decode", "prefill"}
        ``"memory"``: devices are filled one after the other. Else the map of least predicted time, exactly: of a pass
        of one token for each sequence, or of a micro-batch of a prompt.
    load : {"stream", "pipelined"}, optional
        Least sum over devices, or least slowest device; ``"stream"`` for decode and ``"pipelined"`` for prefill by
        default.
    projector : Projector, optional
        A multimodal projector, on the first device: text parameters become vision parameters.
    allow_swap : bool
        The CPU may take more than RAM.

    Returns
    -------
    DeviceMap

    Raises
    ------
    SettingError
        A parameter outside its range; a speed objective with a device of unknown speed; more GPUs than llama.cpp takes.
    NoFeasiblePlanError
        It does not fit; with every capacity, the missing bytes and what would help.
    """
    from pshard.mapping.problem import MapProblem
    from pshard.mapping.search import find_map

    parameters = parameters or MapParameters()
    check_parameters(parameters, goal)
    load = load or ("pipelined" if goal == "prefill" else "stream")
    return find_map(MapProblem(model, cluster, parameters, goal, load, projector, allow_swap=allow_swap))


def check_parameters(parameters: MapParameters, goal: str) -> None:
    """Raise SettingError for a parameter outside its range."""
    numbers = {
        "max_seq_len": parameters.max_seq_len,
        "max_batch_size": parameters.max_batch_size,
        "max_num_images": parameters.max_num_images,
        "n_ubatch": parameters.n_ubatch,
        "the image's height": parameters.max_image_shape[0],
        "the image's width": parameters.max_image_shape[1],
        "the block of a paged cache": 1 if parameters.paged_block is None else parameters.paged_block,
    }
    for name, value in numbers.items():
        if not 1 <= value <= MAX_TOKENS:
            message = f"{name} is {value}; a whole number from 1 to {MAX_TOKENS} is wanted."
            raise SettingError(message)
    if goal not in ("memory", "decode", "prefill"):
        message = f"objective {goal!r} is none of memory, decode, prefill."
        raise SettingError(message)
