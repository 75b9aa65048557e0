"""One rank's part of a model under tensor parallelism, as a model of its own.

The division is Megatron's (Shoeybi et al., arXiv 1909.08053): projections into heads and into the FFN are cut by
output, those back to the hidden state by input, and both sums of a layer are all-reduced. Heads are not cut, so that
key-value heads bound the number of ranks, or are repeated; experts are cut inside where their blocks allow, else handed
out whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import gcd, prod
from typing import TYPE_CHECKING

from pshard import _core

if TYPE_CHECKING:
    from pshard.model.model import Model

_EXPERTS = ("_exps", "_chexps")
# Fields of hyperparameters that a copy takes over.
_FIELDS = tuple(name for name in vars(_core.Hyperparameters) if not name.startswith("_"))


class NotDivisibleError(Exception):
    """The architecture does not allow it; the message says why, in half a sentence."""


@dataclass(frozen=True, slots=True)
class Division:
    """What each rank gets of the heads; FFNs, experts and the vocabulary follow in the same proportions.

    Attributes
    ----------
    kv_heads : tuple of int
        Key-value heads of each rank (query heads, where the cache is one latent vector that every rank keeps).
    n_kv_heads : int
        How many there are; where ranks are more, each head is on several, which share its query heads.
    """

    kv_heads: tuple[int, ...]
    n_kv_heads: int

    @property
    def n_ranks(self) -> int:
        """Ranks."""
        return len(self.kv_heads)

    def share(self, n_units: int, rank: int) -> int:
        """Units of one rank, of `n_units` that are handed out in the proportions of the heads."""
        return _shares(n_units, self.kv_heads)[rank]


@cache
def _shares(n_units: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """Remember shares: every rank and every layer asks for the same ones."""
    return apportion(n_units, weights)


def apportion(n_units: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Hand out whole units so that the largest share / weight is least, at least one to each.

    Units go one by one to who is then done first (divisors of Jefferson and D'Hondt), ties to the lowest index. Whoever
    is due a whole unit gets at least the whole part of what is due, so that only the last few are handed out so.
    """
    shares = [1] * len(weights)
    due = set(range(len(weights)))
    while due:
        spare = n_units - (len(weights) - len(due))
        total = sum(weights[i] for i in due)
        small = {i for i in due if spare * weights[i] < total}
        if not small:
            for i in due:
                shares[i] = int(spare * weights[i] / total)
            break
        due -= small
    for _ in range(n_units - sum(shares)):
        first = min(range(len(weights)), key=lambda i: ((shares[i] + 1) / weights[i], i))
        shares[first] += 1
    return tuple(shares)


def apportion_within(n_units: int, weights: Sequence[float], most: Sequence[int]) -> tuple[int, ...]:
    """Hand out as `apportion` does, to nobody more than the most that he takes; together they take all units."""
    shares = list(most)
    free = list(range(len(weights)))
    while free:
        left = n_units - sum(shares[i] for i in range(len(weights)) if i not in free)
        found = apportion(left, [weights[i] for i in free])
        within = [i for i, share in zip(free, found, strict=True) if share <= most[i]]
        if len(within) == len(free):
            for i, share in zip(free, found, strict=True):
                shares[i] = share
            break
        free = within
    return tuple(shares)


def divide(model: Model, weights: Sequence[float]) -> Division:
    """Divide a model among ranks.

    Parameters
    ----------
    model : Model
    weights : sequence of float
        How much each rank should get, in any unit, all positive.

    Returns
    -------
    Division
        As near to the weights as whole heads allow.

    Raises
    ------
    NotDivisibleError
        Fewer heads than ranks, or a mixer that is not attention.
    """
    n_head, n_kv, n = *_heads(model.core), len(weights)
    if n <= n_kv:
        return Division(apportion(n_kv, weights), n_kv)
    if n % n_kv == 0 and n_head % n == 0:
        return Division((1,) * n, n_kv)
    message = f"{n_kv} key-value heads cannot be divided among {n} ranks"
    raise NotDivisibleError(message)


@lru_cache(maxsize=8)
def _heads(core: _core.Model) -> tuple[int, int]:
    """Return how many heads, and key-value heads, every layer can be divided by.

    Raises
    ------
    NotDivisibleError
        A mixer that is not attention.
    """
    layers = [layer.parameters for layer in core.layers]
    mixers = {layer.mixer for layer in layers} - {_core.Mixer.attention, _core.Mixer.none}
    if mixers:
        message = f"layers of kind {', '.join(sorted(mixer.name for mixer in mixers))} are not divided"
        raise NotDivisibleError(message)
    n_head = gcd(*(layer.n_head for layer in layers if layer.n_head))
    if core.hyperparameters.kv_lora_rank:
        return n_head, n_head
    return n_head, gcd(*(layer.n_head_kv for layer in layers if layer.n_head_kv))


def rank_models(model: Model, division: Division) -> tuple[_core.Model, ...]:
    """Return the part of each rank as a model: what it keeps and computes; all-reduces are not in it.

    Equal parts are one object.

    Raises
    ------
    NotDivisibleError
        A tensor whose blocks the cut would split.
    """
    known: dict[tuple[int, ...], _core.Model] = {}
    parts = []
    for rank in range(division.n_ranks):
        size = division.kv_heads[rank], *(division.share(n, rank) for n in _units(model.core))
        if size not in known:
            known[size] = _Cut(model.core, division, rank).model()
        parts.append(known[size])
    return tuple(parts)


@lru_cache(maxsize=8)
def _units(core: _core.Model) -> tuple[int, ...]:
    """Return all numbers of units that are handed out: rows of the head, blocks of columns, experts."""
    found = {tensor.shape[1] for tensor in core.head if len(tensor.shape) > 1}
    for layer in core.layers:
        for tensor in layer.tensors:
            if _stem(tensor.name).startswith("ffn_down") and not tensor.name.endswith(".bias"):
                found.add(tensor.shape[0] // tensor.type.block_elements)
                found.add(tensor.shape[2] if len(tensor.shape) > 2 else 1)
    return tuple(sorted(found - {1}))


class _Cut:
    """Cuts one rank's tensors."""

    def __init__(self, core: _core.Model, division: Division, rank: int) -> None:
        self._core = core
        self._division = division
        self._rank = rank
        kv, of_kv, n = division.kv_heads[rank], division.n_kv_heads, division.n_ranks
        self._kv = (kv, of_kv)
        self._q = (kv, of_kv) if n <= of_kv else (1, n)
        self._experts_kept = 0

    def model(self) -> _core.Model:
        hyper = _copy(self._core.hyperparameters)
        latent = hyper.kv_lora_rank > 0
        layers = hyper.layers
        for layer in layers:
            layer.n_head = _part(layer.n_head, self._q)
            if not latent:
                layer.n_head_kv = _part(layer.n_head_kv, self._kv)
        hyper.layers = layers
        tensors: dict[str, _core.Tensor] = {}
        cut: dict[int, list[_core.Tensor]] = {}  # one layer of each class
        for index, whole in enumerate(self._core.layers):
            if whole.layer_class not in cut:
                down = {_suffix(t.name): t for t in whole.tensors if _stem(t.name).startswith("ffn_down")}
                cut[whole.layer_class] = [self._in_layer(t, whole.parameters, down) for t in whole.tensors]
            for tensor in cut[whole.layer_class]:
                name = f"blk.{index}.{_core.local_name(tensor.name)}"
                tensors[name] = _core.Tensor(name, tensor.type, tensor.shape, tensor.n_bytes)
        for tensor in (*self._core.embedding, *self._core.head):
            tensors.setdefault(tensor.name, tensor)
        head = max(self._core.head, key=lambda tensor: tensor.n_bytes, default=None)
        if head is not None:
            hyper.n_vocab = self._division.share(head.shape[1], self._rank)
            tensors[head.name] = _resized(head, 1, hyper.n_vocab)
        if self._experts_kept:
            used = -(-hyper.n_expert_used * self._experts_kept // hyper.n_expert)
            hyper.n_expert, hyper.n_expert_used = self._experts_kept, used
            hyper.traits.n_expert_groups = hyper.traits.n_expert_groups_used = 1
        hyper.n_layer_nextn, hyper.layers = 0, layers[: hyper.n_layer]
        return _core.Model(hyper, list(tensors.values()))

    def _in_layer(
        self, tensor: _core.Tensor, layer: _core.LayerParameters, down: dict[str, _core.Tensor]
    ) -> _core.Tensor:
        stem, is_bias = _stem(tensor.name), tensor.name.endswith(".bias")
        out = 0 if is_bias else 1
        if stem in ("attn_q", "attn_q_b", "attn_gate", "attn_kv_b"):
            return _resized(tensor, out, _part(tensor.shape[out], self._q))
        if stem == "attn_sinks":
            return _resized(tensor, 0, _part(tensor.shape[0], self._q))
        if stem in ("attn_k", "attn_v"):
            return _resized(tensor, out, _part(tensor.shape[out], self._kv))
        if stem == "attn_qkv":
            values = layer.n_head_kv * (layer.head_dim_k + layer.head_dim_v)
            queries = tensor.shape[out] - values
            return _resized(tensor, out, _part(queries, self._q) + _part(values, self._kv))
        if stem in ("attn_k_b", "attn_v_b"):
            return _resized(tensor, 2, _part(tensor.shape[2], self._q))
        if stem == "attn_output" and not is_bias:
            return _resized(tensor, 0, _part(tensor.shape[0], self._q))
        if stem.startswith(("ffn_gate", "ffn_up", "ffn_down", "exp_probs")):
            return self._in_ffn(tensor, stem, down, is_bias=is_bias)
        return tensor

    def _in_ffn(self, tensor: _core.Tensor, stem: str, down: dict[str, _core.Tensor], *, is_bias: bool) -> _core.Tensor:
        routed = next((down[suffix] for suffix in _EXPERTS if suffix in down), None)
        is_router = stem in ("ffn_gate_inp", "exp_probs_b")
        model = routed if is_router else down.get(_suffix(tensor.name))
        if model is None:
            return tensor
        n_units, block = model.shape[0] // model.type.block_elements, model.type.block_elements
        n = self._division.n_ranks
        by_expert = model is routed and n_units % n != 0 and model.shape[2] % n == 0
        if n_units >= n and not by_expert:  # columns
            columns = self._division.share(n_units, self._rank) * block
            if is_router or (stem.startswith("ffn_down") and is_bias):
                return tensor
            axis = 0 if is_bias or stem.startswith("ffn_down") else 1
            fused = tensor.shape[axis] // model.shape[0]  # gate and up in one
            return _resized(tensor, axis, columns * fused)
        if model is not routed:
            if _suffix(tensor.name):
                return tensor  # shared experts too narrow to cut: every rank has them
            message = f"an FFN of {n_units} blocks of columns cannot be divided among {n} ranks"
            raise NotDivisibleError(message)
        n_expert = model.shape[2]
        if n_expert < n:
            message = f"{n_expert} experts of {n_units} blocks of columns cannot be divided among {n} ranks"
            raise NotDivisibleError(message)
        self._experts_kept = self._division.share(n_expert, self._rank)
        axis = tensor.shape.index(n_expert) if is_router else 1 if is_bias else 2
        return _resized(tensor, axis, self._experts_kept)


def _copy(hyper: _core.Hyperparameters) -> _core.Hyperparameters:
    copy = _core.Hyperparameters()
    for name in _FIELDS:
        setattr(copy, name, getattr(hyper, name))
    return copy


def _part(n: int, share: tuple[int, int]) -> int:
    """Return the share of n as a whole number, at least 1 of what there is any."""
    part, of = share
    return max(1, n * part // of) if n else 0


def _resized(tensor: _core.Tensor, axis: int, size: int) -> _core.Tensor:
    shape = list(tensor.shape)
    shape[axis] = size
    block = tensor.type.block_elements
    if shape[0] % block:
        message = f"{tensor.name} would be cut within a block of {block} values"
        raise NotDivisibleError(message)
    n_bytes = shape[0] // block * tensor.type.block_bytes * prod(shape[1:])
    return _core.Tensor(tensor.name, tensor.type, shape, n_bytes)


def _stem(name: str) -> str:
    return _core.local_name(name).rsplit(".", 1)[0]


def _suffix(name: str) -> str:
    """Return what follows the part of an FFN in its tensors' names: ``_exps``, ``_shexp``, or nothing."""
    stem = _stem(name)
    for part in ("ffn_gate_up", "ffn_gate", "ffn_up", "ffn_down"):
        if stem.startswith(part):
            return stem.removeprefix(part)
    return stem
