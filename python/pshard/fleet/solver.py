"""Layers to devices: the one solver that ``pshard map``, ``pshard shard`` and the rebalancer share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pshard.errors import SettingError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from pshard import _core

Objective = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers ``begin`` to ``end - 1`` on one device.

    Attributes
    ----------
    device : int
        Index of the device.
    begin, end : int
    seconds : float
        Of its layers, entry and exit included.
    transfer_seconds : float
        From the stage before it; 0 for the first.
    """

    device: int
    begin: int
    end: int
    seconds: float
    transfer_seconds: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """The result of `assign`.

    Attributes
    ----------
    feasible : bool
    exact : bool
        No other assignment is better, whatever the order of the devices where that was open.
    stages : tuple of Stage
        In the order of the layers. Where nothing fits, those that lack the fewest bytes in all.
    seconds : float
        Of all stages and transfers: one token, or one micro-batch, through the chain.
    slowest_seconds : float
        Of the slowest stage with the transfer to it: the interval at which a full pipeline delivers.
    missing_bytes : int
        What the stages lack over all memories; 0 where feasible.
    n_orders : int
        Orders of the devices that were solved one by one.
    """

    feasible: bool
    exact: bool
    stages: tuple[Stage, ...]
    seconds: float
    slowest_seconds: float
    missing_bytes: int
    n_orders: int

    def counts(self, n_device: int) -> list[int]:
        """Layers of each device."""
        counts = [0] * n_device
        for stage in self.stages:
            counts[stage.device] = stage.end - stage.begin
        return counts


def assign(
    layer_seconds: ArrayLike,
    layer_bytes: ArrayLike,
    capacity_bytes: ArrayLike,
    *,
    fixed_bytes: ArrayLike | None = None,
    transfer_seconds: ArrayLike | None = None,
    entry_seconds: ArrayLike | None = None,
    exit_seconds: ArrayLike | None = None,
    entry_bytes: ArrayLike | None = None,
    exit_bytes: ArrayLike | None = None,
    memory_device: ArrayLike | None = None,
    run_table: ArrayLike | None = None,
    run_bytes: ArrayLike | None = None,
    objective: Objective = "latency",
    search_order: bool = False,
    allow_empty: bool = True,
    max_exact_order: int | None = None,
) -> Assignment:
    """Give every device one contiguous run of layers, or none, so that nothing overflows and time is least.

    Exact in a given order of devices at any size, and over all orders up to 8 devices (a dynamic program), or of more
    where some are alike; beyond, the order is searched, each order tried is solved exactly, and the search ends where
    it reaches a bound of all orders. The same input always gives the same result: ties go to the device, then to the
    first layer, of the lowest index.

    Parameters
    ----------
    layer_seconds : (L, D) array of float
        Seconds of each layer on each device.
    layer_bytes : (L, M) array of int
        Bytes of each layer in each memory (M is D where `memory_device` is not given); or (L,), the same in all.
    capacity_bytes : (M,) array of int
    fixed_bytes : (M,) array of int, optional
        What a device that has any layer needs besides them, such as compute buffers.
    transfer_seconds : (D, D) array of float, optional
        From the device of one stage (row) to that of the next (column).
    entry_seconds, exit_seconds : (D,) array of float, optional
        Added to the stage that has the first layer (input, embedding) and to the one with the last (head, logits).
    entry_bytes, exit_bytes : (M,) array of int, optional
        The same for memory.
    memory_device : (M,) array of int, optional
        The device of each memory, where devices have several: a tensor-parallel group is one device, and all its
        members' memories bound it.
    run_table : (M,) array of int, optional
        The table of each memory in `run_bytes`.
    run_bytes : (T, L + 1, L + 1) array of int, optional
        What a memory needs besides for layers `begin` to `end` - 1, by table, begin and end: buffers, which do not add
        up by layers. Never less for more layers, the last layer apart.
    objective : {"latency", "throughput"}
        ``"latency"``: the least sum of stages and transfers, for one stream. ``"throughput"``: the least slowest stage
        (with the transfer to it), for a full pipeline; among those, the least sum.
    search_order : bool
        The devices may follow each other in any order; else by index.
    allow_empty : bool
        Devices may stay without layers.
    max_exact_order : int, optional
        Devices up to which all orders are solved, if all are different; 8 by default, at most 12.

    Returns
    -------
    Assignment

    Raises
    ------
    SettingError
        Shapes that do not fit each other, a figure that is negative or not finite, no layer, no device, or more devices
        than layers where none may be empty.
    """
    import numpy as np

    from pshard import _core

    seconds = np.asarray(layer_seconds, dtype=float)
    capacity = np.asarray(capacity_bytes)
    n_layer, n_device = seconds.shape if seconds.ndim == 2 else (0, 0)
    bytes_ = np.asarray(layer_bytes)
    if bytes_.ndim == 1:
        bytes_ = np.broadcast_to(bytes_[:, None], (len(bytes_), capacity.size))
    chain = _core.Chain()
    chain.n_layer, chain.n_device = n_layer, n_device
    chain.layer_seconds, chain.transfer_seconds = _seconds(seconds), _seconds(transfer_seconds)
    chain.entry_seconds, chain.exit_seconds = _seconds(entry_seconds), _seconds(exit_seconds)
    chain.memory_device, chain.run_table = _bytes(memory_device), _bytes(run_table)
    chain.run_bytes = _bytes(run_bytes)
    chain.capacity_bytes, chain.layer_bytes = _bytes(capacity), _bytes(bytes_)
    chain.fixed_bytes, chain.entry_bytes, chain.exit_bytes = map(_bytes, (fixed_bytes, entry_bytes, exit_bytes))
    keywords = {} if max_exact_order is None else {"max_exact_order": max_exact_order}
    try:
        found = _core.assign(
            chain,
            objective=_core.Objective[objective],
            search_order=search_order,
            allow_empty=allow_empty,
            **keywords,
        )
    except ValueError as error:
        raise SettingError(str(error)) from None
    return _assignment(found)


def _seconds(values: ArrayLike | None) -> list[float]:
    import numpy as np

    flat: list[float] = np.asarray([] if values is None else values, dtype=np.float64).ravel().tolist()
    return flat


def _bytes(values: ArrayLike | None) -> list[int]:
    import numpy as np

    flat: list[int] = np.asarray([] if values is None else values).astype(np.int64).ravel().tolist()
    return flat


def _assignment(found: _core.Assignment) -> Assignment:
    return Assignment(
        feasible=found.feasible,
        exact=found.exact,
        stages=tuple(
            Stage(stage.device, stage.begin, stage.end, stage.seconds, stage.transfer_seconds) for stage in found.stages
        ),
        seconds=found.seconds,
        slowest_seconds=found.slowest_seconds,
        missing_bytes=found.missing_bytes,
        n_orders=found.n_orders,
    )
