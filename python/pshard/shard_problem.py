"""The devices that a model is sharded over, and the bytes and seconds of any stage on any group of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from pshard import _core
from pshard.collectives import all_reduce_seconds, gather_seconds
from pshard.device_speeds import device_speeds
from pshard.memory_settings import ContextSettings, check_context
from pshard.stage_tables import stage_bytes, way_seconds
from pshard.tensor_parallel import Division, divide, rank_model
from pshard.usable_devices import joined, rooms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pshard.cluster import Cluster, Device
    from pshard.model import Model
    from pshard.shard_types import ShardParameters


class NotJoinedError(Exception):
    """No link joins two devices that are to share layers; the message says which, in half a sentence."""


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that compute the same layers together: one, or the ranks of a tensor-parallel group.

    Attributes
    ----------
    devices : tuple of Device
    division : Division or None
        What each rank keeps; None for one device.
    ranks : tuple of _core.Model
        Each rank's part as a model; equal parts are one object.
    """

    devices: tuple[Device, ...]
    division: Division | None
    ranks: tuple[_core.Model, ...]

    @property
    def n_ranks(self) -> int:
        """Devices."""
        return len(self.devices)


@dataclass(frozen=True, slots=True)
class RankTimes:
    """Seconds of one pass on one rank: of each layer (L,), and of the head."""

    layers: NDArray[np.float64]
    head: float
    basis: _core.Basis


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """Seconds of one pass on one group.

    Attributes
    ----------
    layers : (L,) array of float
        Of the slowest rank, with all-reduces.
    head : float
        With the logits gathered on the first rank.
    all_reduce : float
        Of all layers together.
    basis : _core.Basis
    """

    layers: NDArray[np.float64]
    head: float
    all_reduce: float
    basis: _core.Basis


def _node(device: Device) -> int:
    """Return the NUMA node of a device; those of unknown node come last, as in ai-hwaccel."""
    return 1 << 30 if device.numa_node is None else device.numa_node


def _size_of(pass_: _core.Pass) -> tuple[int, ...]:
    """Return what tells the passes of one problem apart."""
    return pass_.n_tokens, pass_.n_seqs, pass_.n_kv, pass_.n_outputs


class ShardProblem:
    """One model on one cluster for so many users of one copy of it.

    Parameters
    ----------
    model : Model
    cluster : Cluster
    parameters : ShardParameters
    """

    def __init__(self, model: Model, cluster: Cluster, parameters: ShardParameters) -> None:
        self.model = model
        self.cluster = cluster
        self.parameters = parameters
        self.host = cluster.hosts[0].name
        # GPUs, TPUs and AI ASICs are pooled; NPUs are not made for this.
        pooled, apart = joined(cluster, [device for device in cluster.accelerators if device.family != "npu"])
        # By host and node, so that of equal orders neighbours in the pipeline are neighbours in the machine.
        self.pool = tuple(sorted(pooled, key=lambda d: (cluster.host_names.index(d.host), _node(d))))
        self.cpus, cpus_apart = joined(cluster, [d for d in cluster.devices if d.available and d.is_cpu])
        self.notes = (*apart, *cpus_apart)
        usable = (*self.pool, *self.cpus)
        self.capacity = {d.name: room.capacity for d, room in zip(usable, rooms(usable), strict=True)}
        without = [d.name for d in (self.pool or self.cpus) if d.speed.source == "none"]
        self.without_speed = tuple(without)
        priced = [d for d in usable if d.speed.source != "none"]
        self.speeds = {} if without else device_speeds(cluster, priced)
        self._groups: dict[tuple[tuple[str, ...], int], Group] = {}
        self._ranks: dict[Division, tuple[_core.Model, ...]] = {}
        self._times: dict[tuple[object, ...], GroupTimes] = {}
        self._rank_costs: dict[tuple[int, ...], RankTimes] = {}
        self._contexts: dict[int, _core.ContextParameters] = {}

    @property
    def has_speeds(self) -> bool:
        """Whether everything in the pool can be priced."""
        return not self.without_speed

    def context(self, users: int) -> _core.ContextParameters:
        """Return the context that one copy keeps for so many users."""
        if users not in self._contexts:
            asked = self.parameters
            settings, _ = check_context(
                self.model,
                ContextSettings(
                    n_ctx=asked.max_seq_len * users,
                    n_batch=max(2048, asked.n_ubatch, users),
                    n_ubatch=asked.n_ubatch,
                    n_seq_max=users,
                    n_outputs_max=users,
                    flash_attn="on",
                    type_k=asked.type_k,
                    type_v=asked.type_v,
                ),
            )
            self._contexts[users] = settings.core()
        return self._contexts[users]

    # --- groups -------------------------------------------------------------------------------------------------------

    def group(self, devices: Sequence[Device], users: int = 1) -> Group:
        """Return devices as one group, each rank with what its speed and memory are good for with so many users.

        Raises
        ------
        NotDivisibleError
            The architecture does not allow so many ranks.
        NotJoinedError
            No link joins two of them.
        """
        key = tuple(device.name for device in devices), users
        if key not in self._groups:
            self._groups[key] = self._new_group(tuple(devices), users)
        return self._groups[key]

    def _new_group(self, devices: tuple[Device, ...], users: int) -> Group:
        if len(devices) == 1:
            return Group(devices, None, (self.model.core,))
        for a, b in combinations(devices, 2):
            if self.cluster.path(a.name, b.name) is None:
                message = f"no link joins {a.name} and {b.name}"
                raise NotJoinedError(message)
        by_speed = self._weights(devices)
        division = divide(self.model, self._within_capacity(devices, by_speed, users))
        if division not in self._ranks:
            known: dict[tuple[int, int], _core.Model] = {}
            ranks = []
            for rank in range(len(devices)):
                part = rank_model(self.model, division, rank)
                size = (division.kv_heads[rank], sum(t.n_bytes for layer in part.layers for t in layer.tensors))
                ranks.append(known.setdefault(size, part))
            self._ranks[division] = tuple(ranks)
        return Group(devices, division, self._ranks[division])

    def by_speed(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """Return devices with the fastest first, without speeds the largest; equal ones as they were."""
        weights = dict(zip(devices, self._weights(devices), strict=True))
        return tuple(sorted(devices, key=lambda device: -weights[device]))

    def _weights(self, devices: Sequence[Device]) -> list[float]:
        """Shares in proportion to speed: the inverse of what a token takes on each device alone."""
        if not self.has_speeds:
            return [float(self.capacity[device.name]) for device in devices]
        pass_ = self.pass_(1, 1)
        return [1.0 / float(self._rank_times(self.model.core, device, pass_).layers.sum()) for device in devices]

    def _within_capacity(self, devices: Sequence[Device], weights: list[float], users: int) -> list[float]:
        """Lower the shares of devices whose memory does not hold them, as far as the others have room."""
        context = self.context(users)
        caches = sum(_core.cache_bytes(self.model.core, layer, context) for layer in self.model.core.layers)
        # A latent cache is whole on every rank; others go with the heads.
        whole, cut = (caches, 0) if self.model.hyperparameters.kv_lora_rank else (0, caches)
        needed = self.model.tensor_bytes + cut
        caps = [max(0, self.capacity[device.name] - whole) / needed for device in devices]
        total = sum(weights)
        shares = [weight / total for weight in weights]
        for _ in devices:
            over = sum(max(0.0, share - cap) for share, cap in zip(shares, caps, strict=True))
            free = [i for i, (share, cap) in enumerate(zip(shares, caps, strict=True)) if share < cap]
            if over <= 1e-9 or not free:
                break
            room = sum(shares[i] for i in free)
            shares = [
                min(share, cap) + (over * share / room if i in free and room else 0.0)
                for i, (share, cap) in enumerate(zip(shares, caps, strict=True))
            ]
        return [max(share, 1e-6) for share in shares]

    # --- seconds ------------------------------------------------------------------------------------------------------

    def pass_(self, n_tokens: int, users: int) -> _core.Pass:
        """Return the pass of one token for each of `n_tokens` users, their contexts half full."""
        workload = _core.Workload(0, self.parameters.max_seq_len)
        return _core.tier_pass(self.model.core, self.context(max(users, n_tokens)), workload, n_tokens)

    def prompt_pass(self) -> _core.Pass:
        """Return a micro-batch of one prompt of half the context."""
        length = max(self.parameters.max_seq_len // 2, 1)
        n_tokens = min(self.parameters.n_ubatch, length)
        pass_ = _core.tier_pass(self.model.core, self.context(1), _core.Workload(length, 0), n_tokens)
        pass_.n_outputs = 1
        return pass_

    def _rank_times(self, part: _core.Model, device: Device, pass_: _core.Pass) -> RankTimes:
        """Price one rank's layers and head; equal ranks on equal devices are priced once."""
        speed = self.speeds[device.name]
        key = (id(part), id(speed), *_size_of(pass_))
        if key not in self._rank_costs:
            costs = _core.device_costs(part, speed.core, pass_, speed.on_gpu)
            basis = max((cost.basis for cost in (*costs.layers, costs.head)), default=_core.Basis.estimated)
            seconds = np.array([cost.seconds for cost in costs.layers])
            self._rank_costs[key] = RankTimes(seconds, costs.head.seconds, basis)
        return self._rank_costs[key]

    def times(self, group: Group, pass_: _core.Pass) -> GroupTimes:
        """Price all layers and the head on a group."""
        key = (tuple(d.name for d in group.devices), group.division, *_size_of(pass_))
        if key not in self._times:
            self._times[key] = self._price(group, pass_)
        return self._times[key]

    def _price(self, group: Group, pass_: _core.Pass) -> GroupTimes:
        ranks = [self._rank_times(part, device, pass_) for part, device in zip(group.ranks, group.devices, strict=True)]
        hidden_bytes, logits_bytes = self.message_bytes(pass_)
        traits = self.model.hyperparameters.traits
        n_sums = 1 if traits.sum != _core.Sum.sequential else 2
        reduced = n_sums * all_reduce_seconds(self.cluster, group.devices, hidden_bytes)
        layers = np.max([rank.layers for rank in ranks], axis=0) + reduced
        head = max(rank.head for rank in ranks) + gather_seconds(self.cluster, group.devices, logits_bytes)
        return GroupTimes(layers, head, reduced * len(layers), max(rank.basis for rank in ranks))

    def message_bytes(self, pass_: _core.Pass) -> tuple[int, int]:
        """Bytes of the hidden state and of the logits of a pass, both f32 as llama.cpp keeps them."""
        hyper = self.model.hyperparameters
        return 4 * hyper.n_embd * pass_.n_tokens, 4 * hyper.n_vocab * pass_.n_outputs

    def transfer_seconds(self, first: Group, second: Group, pass_: _core.Pass) -> float:
        """Move the hidden state from one group to the next, over the best pair of their devices."""
        n_bytes = self.message_bytes(pass_)[0]
        if not self.has_speeds:
            return min(way_seconds(self.cluster, a.name, b.name, 1) for a in first.devices for b in second.devices)
        way = min(way_seconds(self.cluster, a.name, b.name, n_bytes) for a in first.devices for b in second.devices)
        speed = self.speeds[second.devices[0].name]
        return way + (speed.core.handoff_to_gpu_seconds if speed.on_gpu else 0.0)

    def host_seconds(self, group: Group, n_bytes: int) -> float:
        """Move bytes between the first host's memory and a group's nearest device."""
        return min(way_seconds(self.cluster, self.host, device.name, n_bytes) for device in group.devices)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def layer_bytes(self, group: Group, users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes of each layer (L, ranks) and of the head (ranks) in each rank's memory."""
        context = self.context(users)
        known: dict[tuple[int, bool], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        columns, heads = [], []
        for part, device in zip(group.ranks, group.devices, strict=True):
            key = (id(part), device.is_cpu)
            if key not in known:
                found = stage_bytes(part, context, [not device.is_cpu])
                known[key] = found.layers[:, 0], found.head
            columns.append(known[key][0])
            heads.append(int(known[key][1][0]))
        return np.array(columns).T, np.array(heads)

    def measure(self, group: Group, rank: int, begin: int, end: int, users: int) -> _core.DeviceBytes:
        """Ask the memory model what layers `begin` to `end` - 1 take on one rank, and the head behind the last."""
        part, device = group.ranks[rank], group.devices[rank]
        n_layer = len(part.layers)
        context = self.context(users)
        cells = _core.cache_cells(part, context)
        n_tokens = min(context.n_ubatch, cells.full * cells.n_streams)
        # Stages before and behind it stand on GPUs of their own.
        before, behind = _core.pinned_on(1), _core.pinned_on(2)
        own = _core.Where.cpu if device.is_cpu else _core.Where.pinned
        placement = _core.Placement()
        placement.op_offload = False
        placement.n_gpu = 3
        placement.patterns = [_core.LayerPlacement(where) for where in (before, own, behind)]
        placement.layer_pattern = [0] * begin + [1] * (end - begin) + [2] * (n_layer - end)
        placement.head = own if end == n_layer else behind
        # Several stages work on several micro-batches at once, for which llama.cpp keeps inputs four times.
        placement.pipeline = not device.is_cpu and end - begin < n_layer
        report = _core.memory(part, placement, context, n_tokens)
        return report.host if device.is_cpu else report.gpus[0]
