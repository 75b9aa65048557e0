"""The devices that a model is sharded over, and the bytes and seconds of any stage on any group of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pshard import _core
from pshard.cluster.routes import Routes
from pshard.fleet.collectives import all_reduce_seconds, gather_seconds
from pshard.fleet.device_speeds import device_speeds
from pshard.fleet.run_buffers import run_buffers
from pshard.fleet.stage_tables import stage_bytes
from pshard.fleet.usable_devices import joined, rooms
from pshard.memory.settings import ContextSettings, check_context
from pshard.sharding.tensor_parallel import Division, divide, rank_models

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pshard.cluster.cluster import Cluster, Device
    from pshard.model.model import Model
    from pshard.sharding.types import ShardParameters


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
    kind : int
        Groups of one kind have the same parts, on devices of the same speed and memory, joined alike.
    """

    devices: tuple[Device, ...]
    division: Division | None
    ranks: tuple[_core.Model, ...]
    kind: int

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
        self.routes = Routes(cluster)
        hyper = model.hyperparameters
        self._n_embd, self._n_vocab = hyper.n_embd, hyper.n_vocab
        self._tensor_bytes = model.tensor_bytes
        self._has_latent_cache = hyper.kv_lora_rank > 0
        self._n_sums = 1 if hyper.traits.sum != _core.Sum.sequential else 2
        self._device_kinds: dict[str, tuple[object, ...]] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._groups: dict[tuple[tuple[str, ...], int], Group] = {}
        self._ranks: dict[Division, tuple[_core.Model, ...]] = {}
        self._times: dict[tuple[int, ...], GroupTimes] = {}
        self._rank_costs: dict[tuple[int, ...], RankTimes] = {}
        self._layer_bytes: dict[tuple[int, bool, int], tuple[NDArray[np.int64], int]] = {}
        self._allowed: set[int] = set()
        self._caches: dict[int, int] = {}
        self._weights_of: dict[int, NDArray[np.int64]] = {}
        self._measured: dict[tuple[object, ...], _core.DeviceBytes] = {}
        self._buffers: dict[tuple[int, bool, int], NDArray[np.int64]] = {}
        self._passes: dict[tuple[int, int], _core.Pass] = {}
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
        names = tuple(device.name for device in devices)
        if (names, users) not in self._groups:
            self._groups[names, users] = self._new_group(tuple(devices), names, users)
        return self._groups[names, users]

    def _new_group(self, devices: tuple[Device, ...], names: tuple[str, ...], users: int) -> Group:
        if len(devices) == 1:
            return Group(devices, None, (self.model.core,), self._kind(devices, None))
        apart = np.argwhere(np.isinf(self.routes.seconds(names, names, 1)))
        if len(apart):
            a, b = apart[0]
            message = f"no link joins {names[a]} and {names[b]}"
            raise NotJoinedError(message)
        by_speed = self._weights(devices)
        division = divide(self.model, self._within_capacity(devices, by_speed, users))
        if division not in self._ranks:
            self._ranks[division] = rank_models(self.model, division)
        return Group(devices, division, self._ranks[division], self._kind(devices, division))

    # --- what is alike ------------------------------------------------------------------------------------------------

    def alike(self, devices: Sequence[Device]) -> int:
        """Return a number that is the same for devices which stand to each other, and to the first host, alike.

        Whatever is planned on some of them, in their order, is as good on the others.
        """
        return self._kind(devices, None, self.host)

    def check_ranks(self, n: int) -> None:
        """Raise NotDivisibleError where the architecture does not allow so many ranks."""
        if n > 1 and n not in self._allowed:
            divide(self.model, [1.0] * n)
            self._allowed.add(n)

    def _kind(self, devices: Sequence[Device], division: Division | None, *hosts: str) -> int:
        ends = self.routes.index([*hosts, *(device.name for device in devices)])
        ways = np.ix_(ends, ends)
        key = (
            division,
            tuple(self._device_kind(device) for device in devices),
            self.routes.latency_seconds[ways].tobytes(),
            self.routes.bytes_per_second[ways].tobytes(),
        )
        return self._kinds.setdefault(key, len(self._kinds))

    def _device_kind(self, device: Device) -> tuple[object, ...]:
        if device.name not in self._device_kinds:
            speed = id(self.speeds.get(device.name))
            self._device_kinds[device.name] = speed, self.capacity[device.name], device.is_cpu
        return self._device_kinds[device.name]

    # --- shares -------------------------------------------------------------------------------------------------------

    def by_speed(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """Return devices with the fastest first, without speeds the largest; equal ones as they were."""
        weights = dict(zip(devices, self._weights(devices), strict=True))
        return tuple(sorted(devices, key=lambda device: -weights[device]))

    def _weights(self, devices: Sequence[Device]) -> list[float]:
        """Shares in proportion to speed: the inverse of what a token takes on each device alone."""
        if not self.has_speeds:
            return [max(1.0, self.capacity[device.name]) for device in devices]
        pass_ = self.pass_(1, 1)
        return [1.0 / float(self._rank_times(self.model.core, device, pass_).layers.sum()) for device in devices]

    def _within_capacity(self, devices: Sequence[Device], weights: list[float], users: int) -> list[float]:
        """Lower the shares of devices whose memory does not hold them, as far as the others have room."""
        caches = self._cache_bytes(users)
        # A latent cache is whole on every rank; others go with the heads.
        whole, cut = (caches, 0) if self._has_latent_cache else (0, caches)
        needed = self._tensor_bytes + cut
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

    def _cache_bytes(self, users: int) -> int:
        if users not in self._caches:
            core, context = self.model.core, self.context(users)
            self._caches[users] = sum(_core.cache_bytes(core, layer, context) for layer in core.layers)
        return self._caches[users]

    # --- seconds ------------------------------------------------------------------------------------------------------

    def pass_(self, n_tokens: int, users: int) -> _core.Pass:
        """Return the pass of one token for each of `n_tokens` users, their contexts half full."""
        if (n_tokens, users) not in self._passes:
            workload = _core.Workload(0, self.parameters.max_seq_len)
            context = self.context(max(users, n_tokens))
            self._passes[n_tokens, users] = _core.tier_pass(self.model.core, context, workload, n_tokens)
        return self._passes[n_tokens, users]

    @cached_property
    def prompt_pass(self) -> _core.Pass:
        """A micro-batch of one prompt of half the context."""
        length = max(self.parameters.max_seq_len // 2, 1)
        n_tokens = min(self.parameters.n_ubatch, length)
        pass_ = _core.tier_pass(self.model.core, self.context(1), _core.Workload(length, 0), n_tokens)
        pass_.n_outputs = 1
        return pass_

    @cached_property
    def least_seconds(self) -> float:
        """Of the layers for one token of one user, on the fastest device."""
        pass_ = self.pass_(1, 1)
        return min(float(self._rank_times(self.model.core, device, pass_).layers.sum()) for device in self.pool)

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
        key = (group.kind, *_size_of(pass_))
        if key not in self._times:
            self._times[key] = self._price(group, pass_)
        return self._times[key]

    def _price(self, group: Group, pass_: _core.Pass) -> GroupTimes:
        ranks = [self._rank_times(part, device, pass_) for part, device in zip(group.ranks, group.devices, strict=True)]
        hidden_bytes, logits_bytes = self.message_bytes(pass_)
        reduced = self._n_sums * all_reduce_seconds(self.routes, group.devices, hidden_bytes)
        layers = np.max([rank.layers for rank in ranks], axis=0) + reduced
        head = max(rank.head for rank in ranks) + gather_seconds(self.routes, group.devices, logits_bytes)
        return GroupTimes(layers, head, reduced * len(layers), max(rank.basis for rank in ranks))

    def message_bytes(self, pass_: _core.Pass) -> tuple[int, int]:
        """Bytes of the hidden state and of the logits of a pass, both f32 as llama.cpp keeps them."""
        return 4 * self._n_embd * pass_.n_tokens, 4 * self._n_vocab * pass_.n_outputs

    def transfers(self, groups: Sequence[Group], pass_: _core.Pass) -> NDArray[np.float64]:
        """Move the hidden state from each group to each other, over the best pair of their devices; shape (G, G)."""
        names = [device.name for group in groups for device in group.devices]
        starts = np.cumsum([0, *(group.n_ranks for group in groups[:-1])])
        n_bytes = self.message_bytes(pass_)[0] if self.has_speeds else 1
        ways = self.routes.seconds(names, names, n_bytes)
        best = np.minimum.reduceat(np.minimum.reduceat(ways, starts, axis=0), starts, axis=1)
        if self.has_speeds:
            speeds = [self.speeds[group.devices[0].name] for group in groups]
            best += [speed.core.handoff_to_gpu_seconds if speed.on_gpu else 0.0 for speed in speeds]
        np.fill_diagonal(best, 0.0)
        found: NDArray[np.float64] = best
        return found

    def host_seconds(self, groups: Sequence[Group], n_bytes: int) -> NDArray[np.float64]:
        """Move bytes between the first host's memory and each group's nearest device."""
        names = [device.name for group in groups for device in group.devices]
        starts = np.cumsum([0, *(group.n_ranks for group in groups[:-1])])
        found: NDArray[np.float64] = np.minimum.reduceat(self.routes.seconds([self.host], names, n_bytes)[0], starts)
        return found

    # --- bytes --------------------------------------------------------------------------------------------------------

    def layer_bytes(self, group: Group, users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes of each layer (L, ranks) and of the head (ranks) in each rank's memory."""
        found = [
            self._layer_bytes_of(part, users, on_gpu=not device.is_cpu)
            for part, device in zip(group.ranks, group.devices, strict=True)
        ]
        return np.array([layers for layers, _ in found]).T, np.array([head for _, head in found])

    def _layer_bytes_of(self, part: _core.Model, users: int, *, on_gpu: bool) -> tuple[NDArray[np.int64], int]:
        key = id(part), on_gpu, users
        if key not in self._layer_bytes:
            found = stage_bytes(part, self.context(users), [on_gpu])
            self._layer_bytes[key] = found.layers[:, 0], int(found.head[0])
        return self._layer_bytes[key]

    def weight_share(self, part: _core.Model, begin: int, end: int) -> float:
        """Return the share of the weights of layers `begin` to `end` - 1 that a rank keeps."""
        whole, own = (self._weights_before(model) for model in (self.model.core, part))
        return float((own[end] - own[begin]) / max(whole[end] - whole[begin], 1))

    def _weights_before(self, part: _core.Model) -> NDArray[np.int64]:
        if id(part) not in self._weights_of:
            layers = [sum(tensor.n_bytes for tensor in layer.tensors) for layer in part.layers]
            self._weights_of[id(part)] = np.cumsum([0, *layers])
        return self._weights_of[id(part)]

    def measure(self, part: _core.Model, begin: int, end: int, users: int, *, is_cpu: bool) -> _core.DeviceBytes:
        """Ask the memory model what layers `begin` to `end` - 1 take of one rank's memory, and the head behind them."""
        key = id(part), is_cpu, begin, end, users
        if key not in self._measured:
            self._measured[key] = self._measure(part, begin, end, users, is_cpu=is_cpu)
        return self._measured[key]

    def buffers(self, part: _core.Model, users: int, *, is_cpu: bool) -> NDArray[np.int64]:
        """Return what any run of layers needs on one rank besides them and the head: see `run_buffers`."""
        key = id(part), is_cpu, users
        if key not in self._buffers:
            layers, head = self._layer_bytes_of(part, users, on_gpu=not is_cpu)
            before, n_layer = np.cumsum([0, *layers]), self.model.n_layer

            def needed(begin: int, end: int) -> int:
                used = self.measure(part, begin, end, users, is_cpu=is_cpu)
                counted = int(before[end] - before[begin]) + (head if end == n_layer else 0)
                return max(0, used.weights_bytes + used.cache_bytes + used.compute_bytes - counted)

            self._buffers[key] = run_buffers([layer.layer_class for layer in part.layers], needed)
        return self._buffers[key]

    def _measure(self, part: _core.Model, begin: int, end: int, users: int, *, is_cpu: bool) -> _core.DeviceBytes:
        n_layer = self.model.n_layer
        context = self.context(users)
        cells = _core.cache_cells(part, context)
        n_tokens = min(context.n_ubatch, cells.full * cells.n_streams)
        # Stages before and behind it stand on GPUs of their own.
        before, behind = _core.pinned_on(1), _core.pinned_on(2)
        own = _core.Where.cpu if is_cpu else _core.Where.pinned
        placement = _core.Placement()
        placement.op_offload = False
        placement.n_gpu = 3
        placement.patterns = [_core.LayerPlacement(where) for where in (before, own, behind)]
        placement.layer_pattern = [0] * begin + [1] * (end - begin) + [2] * (n_layer - end)
        placement.head = own if end == n_layer else behind
        # Several stages work on several micro-batches at once, for which llama.cpp keeps inputs four times.
        placement.pipeline = not is_cpu and end - begin < n_layer
        report = _core.memory(part, placement, context, n_tokens)
        return report.host if is_cpu else report.gpus[0]
