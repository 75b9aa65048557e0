"""What the rebalancer moves: layers on shards as they lie, what they are predicted to take, and what they may take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from pshard.errors import SettingError
from pshard.fleet.solver import Objective, assign
from pshard.quantities import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from pshard.cluster.cluster import Cluster

    Array = npt.NDArray[np.float64]
    Bytes = npt.NDArray[np.int64]

Phase = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = get_args(Phase)
# Of all shards: more than any model has, and few enough for tables of them.
MAX_LAYERS = 1 << 16


@dataclass(frozen=True, eq=False)
class Tables:
    """Predicted seconds of a pass of `n_tokens`, in one phase.

    Attributes
    ----------
    n_tokens : int
    layer_seconds : array of shape (L, D)
        Of every layer on every shard's device.
    first_seconds, last_seconds : array of shape (D,), optional
        Of the device's work that goes with the first and with the last layer.
    transfer_seconds : array of shape (D, D), optional
        Of the activations from one device to the next.
    arrival_seconds, result_seconds : array of shape (D,), optional
        Of the inputs to the device with the first layer, and of the logits from that with the last.
    solver : callable, optional
        Another way to the exact assignment than `fleet.assign` on these tables, where more must fit than a deployment
        says: from corrected tables to the layers of each shard, or to None where nothing fits.
    """

    n_tokens: int
    layer_seconds: Array
    first_seconds: Array | None = None
    last_seconds: Array | None = None
    transfer_seconds: Array | None = None
    arrival_seconds: Array | None = None
    result_seconds: Array | None = None
    solver: Callable[[Tables], tuple[int, ...] | None] | None = field(default=None, repr=False)

    def corrected(self, factors: Array) -> Tables:
        """Return the tables of devices that take `factors` times as long for their work; transfers stay as they are."""

        def scaled(seconds: Array | None) -> Array | None:
            return None if seconds is None else seconds * factors

        return replace(
            self,
            layer_seconds=self.layer_seconds * factors,
            first_seconds=scaled(self.first_seconds),
            last_seconds=scaled(self.last_seconds),
        )

    def work_seconds(self, counts: Sequence[int]) -> Array:
        """Seconds that every shard computes; 0 for one without layers. Shape (D,). In O(L + D)."""
        owner = np.repeat(np.arange(len(counts)), counts)
        of_layers = self.layer_seconds[np.arange(len(owner)), owner]
        layers = np.bincount(owner, weights=of_layers, minlength=len(counts)).astype(np.float64)
        return layers + _at_ends(counts, self.first_seconds, self.last_seconds)

    def way_seconds(self, counts: Sequence[int]) -> Array:
        """Seconds that every shard waits for its input and, the last one, gives its result away. Shape (D,)."""
        seconds = _at_ends(counts, self.arrival_seconds, self.result_seconds)
        if self.transfer_seconds is not None:
            used = np.flatnonzero(counts)
            for before, after in pairwise(used):
                seconds[after] += self.transfer_seconds[before, after]
        return seconds


def _at_ends(counts: Sequence[int], first: Array | None, last: Array | None) -> Array:
    used = np.flatnonzero(counts)
    values = np.zeros(len(counts))
    for table, shard in ((first, used[0]), (last, used[-1])):
        if table is not None:
            values[shard] += table[shard]
    return values


@dataclass(frozen=True, slots=True)
class Way:
    """How layers reach a device: what it goes over, and how fast; infinite where they are there already."""

    link: str
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Move:
    """What changes its device: layers, bytes by destination, and how long that takes; None where that is not known.

    Attributes
    ----------
    ways : mapping from str to Way
        Of the destinations, where they are known.
    """

    layers: int
    bytes_to: Mapping[str, int] | None
    seconds: float | None
    ways: Mapping[str, Way] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int | None:
        """All bytes."""
        return None if self.bytes_to is None else sum(self.bytes_to.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class Deployment:
    """Layers on shards, in the order in which a token passes them.

    Attributes
    ----------
    shards : tuple of str
    counts : tuple of int
        Layers of each shard; 0 for a device that is there and unused.
    tables : mapping from phase to Tables
        At least one phase.
    is_predicted : bool
        False where the tables predict nothing, but say one second for each layer: then measured factors are seconds per
        layer, and devices without layers stay without.
    objective : {"throughput", "latency"}
        The slowest stage, for many streams; or the sum of all, for one.
    layer_bytes : array of shape (L, D), optional
        Weights and cache of each layer on each device; None where that is not known.
    capacity_bytes : array of shape (D,), optional
        For layers and what goes with the first and last; None: no caps are known.
    first_bytes, last_bytes : array of shape (D,), optional
        What goes with the first and with the last layer.
    ways : tuple of Way, optional
        On which a device's new layers reach it.
    """

    shards: tuple[str, ...]
    counts: tuple[int, ...]
    tables: Mapping[Phase, Tables]
    is_predicted: bool = True
    objective: Objective = "throughput"
    layer_bytes: Bytes | None = None
    capacity_bytes: Bytes | None = None
    first_bytes: Bytes | None = None
    last_bytes: Bytes | None = None
    ways: tuple[Way, ...] | None = None

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.shards if self.shards.count(name) > 1})
        if twice:
            message = f"shard name {twice[0]!r} occurs twice; every shard needs its own."
            raise SettingError(message)
        _check_counts(self.shards, self.counts)

    @property
    def n_layer(self) -> int:
        """Layers of all shards."""
        return sum(self.counts)

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """Which shards have layers. Shape (D,)."""
        return np.array(self.counts) > 0

    @property
    def used_names(self) -> set[str]:
        """The shards that have layers."""
        return {name for name, count in zip(self.shards, self.counts, strict=True) if count}

    def expected_seconds(self, phase: Phase) -> tuple[Array, Array]:
        """Token counts, shape (N,), and the seconds that every shard is predicted to take for so many, shape (D, N).

        Decode passes are taken to last equally long whatever their tokens, and prefill passes in proportion to them.
        """
        tables = self.tables[phase]
        stages = tables.work_seconds(self.counts)[:, None]
        if phase == "decode":
            return np.array([float(tables.n_tokens)]), stages
        tokens = np.array([1.0, max(2.0, tables.n_tokens)])
        return tokens, stages * tokens / tables.n_tokens

    def solve(self, tables: Tables) -> tuple[int, ...] | None:
        """Return the layers of each shard that take least time under `tables`; None where nothing fits.

        Exact: contiguous runs in the present order of the shards, caps kept, ties to the lowest index.
        """
        if tables.solver is not None:
            return tables.solver(tables)
        open_ = np.arange(len(self.shards)) if self.is_predicted else np.flatnonzero(self.used)
        n_layer, n_open = self.n_layer, len(open_)

        def chosen(values: Array | Bytes | None) -> Array | Bytes | None:
            return None if values is None else values[open_]

        def total(work: Array | None, way: Array | None) -> Array:
            return sum((values[open_] for values in (work, way) if values is not None), np.zeros(n_open))

        transfer = tables.transfer_seconds
        capacity = self.capacity_bytes
        found = assign(
            tables.layer_seconds[:, open_],
            np.zeros((n_layer, n_open), dtype=int) if self.layer_bytes is None else self.layer_bytes[:, open_],
            np.full(n_open, MAX_BYTES) if capacity is None else capacity[open_],
            transfer_seconds=None if transfer is None else transfer[np.ix_(open_, open_)],
            entry_seconds=total(tables.first_seconds, tables.arrival_seconds),
            exit_seconds=total(tables.last_seconds, tables.result_seconds),
            entry_bytes=chosen(self.first_bytes),
            exit_bytes=chosen(self.last_bytes),
            objective=self.objective,
        )
        if not found.feasible:
            return None
        counts = np.zeros(len(self.shards), dtype=int)
        counts[open_] = found.counts(n_open)
        return tuple(counts.tolist())

    def move_to(self, counts: Sequence[int]) -> Move:
        """Tell what changes its device on the way to other counts. Links to different devices work at the same time."""
        before = np.repeat(np.arange(len(self.counts)), self.counts)
        after = np.repeat(np.arange(len(counts)), counts)
        moved = np.flatnonzero(before != after)
        if self.layer_bytes is None:
            return Move(len(moved), None, None)
        bytes_to = np.zeros(len(counts), dtype=np.int64)
        np.add.at(bytes_to, after[moved], self.layer_bytes[moved, after[moved]])
        for extra, end in ((self.first_bytes, 0), (self.last_bytes, -1)):
            if extra is not None and before[end] != after[end]:
                bytes_to[after[end]] += extra[after[end]]
        named = {self.shards[i]: int(bytes_to[i]) for i in np.flatnonzero(bytes_to)}
        if self.ways is None:
            return Move(len(moved), named, None)
        ways = dict(zip(self.shards, self.ways, strict=True))
        seconds = max((n_bytes / ways[name].bytes_per_second for name, n_bytes in named.items()), default=0.0)
        return Move(len(moved), named, seconds, {name: ways[name] for name in named})

    def with_counts(self, counts: Sequence[int]) -> Deployment:
        """Return the deployment after a move."""
        return replace(self, counts=tuple(counts))


def ways_from(cluster: Cluster, source: str, devices: Sequence[str]) -> tuple[Way, ...]:
    """Return how layers reach each device from where the file is.

    Parameters
    ----------
    cluster : Cluster
    source : str
        A host, or its CPU.
    devices : sequence of str

    Raises
    ------
    SettingError
        A device is not in the cluster, or nothing joins it to the source.
    """
    known = {device.name for device in cluster.devices}
    unknown = [device for device in devices if device not in known]
    if unknown:
        message = f"{unknown[0]} is not among the devices ({', '.join(sorted(known))}); name shards as they are."
        raise SettingError(message)
    ways = []
    for device in devices:
        path = None if device == source else cluster.path(source, device)
        if path is None and device != source:
            message = f"no link joins {device} to {source}, where the model's file is; write it into the cluster file."
            raise SettingError(message)
        links = () if path is None else path.links
        rate = np.inf if path is None else path.bandwidth_bytes_per_second
        ways.append(Way(" and ".join(dict.fromkeys(link.kind for link in links)) or "memory", rate))
    return tuple(ways)


def by_hand(
    shards: Sequence[tuple[str, int]],
    *,
    objective: Objective = "throughput",
    layer_bytes: int | Sequence[int] | None = None,
    last_bytes: int = 0,
    ways: tuple[Way, ...] | None = None,
) -> Deployment:
    """Describe shards of which no speeds are predicted.

    Parameters
    ----------
    shards : sequence of (str, int)
        Names and layers, in the order in which a token passes them.
    objective : {"throughput", "latency"}
    layer_bytes : int or sequence of int, optional
        What moves with each layer, or with any.
    last_bytes : int
        What moves with the last.
    ways : tuple of Way, optional
        On which layers reach each shard.

    Raises
    ------
    SettingError
        No shards, no layers, a name twice, or bytes of another number of layers.
    """
    names, counts = tuple(str(name) for name, _ in shards), tuple(int(count) for _, count in shards)
    _check_counts(names, counts)
    ones = Tables(1, np.ones((sum(counts), len(counts))))
    return Deployment(
        shards=names,
        counts=counts,
        tables={"decode": ones, "prefill": ones},
        is_predicted=False,
        objective=objective,
        layer_bytes=_layer_bytes(layer_bytes, counts),
        last_bytes=None if layer_bytes is None else np.full(len(counts), last_bytes, dtype=np.int64),
        ways=ways,
    )


def _check_counts(shards: Sequence[str], counts: Sequence[int]) -> None:
    if len(counts) != len(shards) or min(counts, default=0) < 0 or not 1 <= sum(counts) <= MAX_LAYERS:
        message = (
            f"layers {tuple(counts)} of shards {tuple(shards)}: give each a count; one must have a layer, and all "
            f"together have at most {MAX_LAYERS}."
        )
        raise SettingError(message)


def _layer_bytes(given: int | Sequence[int] | None, counts: Sequence[int]) -> Bytes | None:
    if given is None:
        return None
    n_layer = sum(counts)
    if not isinstance(given, int) and len(given) != n_layer:
        message = f"the shards have {n_layer} layers, and the model {len(given)}; give the model that is deployed."
        raise SettingError(message)
    column: Bytes = np.broadcast_to(np.asarray(given, dtype=np.int64), n_layer)
    return np.tile(column[:, None], (1, len(counts)))
