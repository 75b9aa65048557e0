r"""Placements as ``ot=`` items, and back: the one generator of registry lines, and the reader's rules on them.

What the runtime does with the items of a tier: a tensor runs where the first item says whose pattern is found in its
name; the KV or state of a layer goes where the *last* item says that names the layer as ``blk\.N\.``. So every layer
has an item of its own, behind those of its parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pshard.registry.errors import RegistryError
from pshard.registry.format import HOST_BUFFER, LINE_BYTES, Override

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard import _core
    from pshard.model.model import Model
    from pshard.registry.format import Tier

PINNED, LANE_A, LANE_B, CPU = range(4)
SHORT_BUFFER = "C"

# Parts of a layer as the planner there writes them: its FFN, and what of a boundary layer streams at each overflow.
FFN = r"ffn_((up|gate|down)\.|(up|down|gate|gate_up)_(ch|)exps).*"
OVERFLOW = {
    "ATTN": r"ffn_(up|gate|down).*",
    "UP": r"ffn_(gate|down).*",
    "GATE": r"ffn_down.*",
    "MOE": r"ffn_(up|down|gate)_(ch|)exps",
}
_TERSE = (r"ffn_[dgu]", r"ffn_.*exps", r"ffn_d", r"ffn_[dg]", r"ffn_(d|g).*exps", r"ffn_d.*exps")

_LAYER = re.compile(r"blk\\\.([0-9]{1,6})\\\.")
# Patterns that planners write: letters, digits, escaped dots, classes, groups and `.*`. Nothing that repeats a group.
_SIMPLE = re.compile(r"(?:[\w^$|()?.]|\\[.\w-]|\.\*|\[[\w-]+\])*")
_MAX_STARS = 3
_MAX_PATTERN = 1000


@dataclass(frozen=True, slots=True)
class Places:
    """Backend of each tensor by name, and of each layer's KV by number; what no item names is not in them."""

    tensors: dict[str, int]
    layers: dict[int, int]


# --- from a placement -------------------------------------------------------------------------------------------------


def overrides_of(model: Model, placement: _core.Placement) -> tuple[Override, ...]:
    """Return the items of a placement, in the form of the planner there where the line is short enough for it.

    Raises
    ------
    RegistryError
        No list within the reader's line places every tensor so.
    """
    for terse, buffer in ((False, HOST_BUFFER), (False, SHORT_BUFFER), (True, SHORT_BUFFER)):
        overrides = tuple(_items(model, placement, terse=terse, buffer=buffer))
        if line_bytes(overrides) <= LINE_BYTES:
            return overrides
    message = (
        f"{model.name}: the placement of {model.n_layer} layers takes a line of {line_bytes(overrides)} bytes, the "
        f"runtime reads {LINE_BYTES}; it cannot be given to it."
    )
    raise RegistryError(message)


def line_bytes(overrides: Sequence[Override]) -> int:
    """Bytes of the ``ot=`` line, newline included."""
    return len("ot=") + sum(len(str(item)) + 1 for item in overrides)


def _items(model: Model, placement: _core.Placement, *, terse: bool, buffer: str) -> Iterable[Override]:
    yield Override("^output", int(placement.head), buffer)
    others = {t.name for t in model.core.head if not t.name.startswith("output")} - {"token_embd.weight"}
    for stem in sorted({name.split(".")[0] for name in others}):
        yield Override(f"^{stem}", int(placement.head), buffer)
    yield Override("^token_embd", CPU, buffer)
    exceptions = {exception.name: int(exception.where) for exception in placement.exceptions}
    places = [{group.name: int(pattern[group]) for group in _layer_groups()} for pattern in placement.patterns]
    for layer, pattern_index in zip(model.layers, placement.layer_pattern, strict=True):
        by_group = places[pattern_index]
        here = by_group["cache"]
        prefix = rf"blk\.{layer.index}\."
        n_prefix = len(f"blk.{layer.index}.")
        where = {
            tensor.name[n_prefix:]: exceptions.get(tensor.name, by_group[group])
            for group, tensors in layer.groups.items()
            for tensor in tensors
        }
        names = tuple(sorted(where))
        for backend in range(4):
            moved = frozenset(name for name in names if where[name] == backend)
            if moved and backend != here:
                yield Override(prefix + _pattern(names, moved, terse), backend, buffer)
        yield Override(prefix if terse else f"{prefix}.*", here, buffer)
    for index in range(model.n_layer, model.n_layer + model.n_layer_nextn):
        # Counted by the runtime and never loaded.
        yield Override(rf"blk\.{index}\." if terse else rf"blk\.{index}\..*", CPU, buffer)


@lru_cache(maxsize=1)
def _layer_groups() -> tuple[_core.Group, ...]:
    from pshard import _core

    return tuple(group for group in _core.Group if group.name not in ("embedding", "head"))


@lru_cache(maxsize=1024)
def _pattern(names: tuple[str, ...], moved: frozenset[str], terse: bool) -> str:
    r"""Return a pattern for just these of a layer's tensors, after ``blk\.N\.``."""
    known = (*_TERSE, FFN) if terse else (FFN, *(OVERFLOW[name] for name in ("ATTN", "UP", "GATE")))
    for pattern in known:
        if {name for name in names if re.match(pattern, name)} == moved:
            return pattern
    return f"({'|'.join(re.escape(name) for name in sorted(moved))})$"


# --- from the fields of a strategy line -------------------------------------------------------------------------------


def regenerate(tier: Tier, n_layer: int, n_layer_nextn: int = 0) -> tuple[Override, ...]:
    """Return the items that the runtime makes of a tier's fields when it loads the model.

    Parameters
    ----------
    tier : Tier
        With a strategy of the four.
    n_layer : int
        Layers that are computed.
    n_layer_nextn : int
        Next-token-prediction layers behind them.

    Returns
    -------
    tuple of Override
    """
    items = [Override("^output", PINNED if tier.output_on_gpu else CPU), Override("^token_embd", CPU)]
    for index in range(n_layer):
        order = n_layer - 1 - index if tier.pin_from_back else index
        part, rest = _regenerated_layer(tier, order, index)
        if part is not None:
            items.append(Override(rf"blk\.{index}\.{part[0]}", part[1]))
        items.append(Override(rf"blk\.{index}\..*", rest))
    items += [Override(rf"blk\.{n_layer + index}\..*", CPU) for index in range(n_layer_nextn)]
    return tuple(items)


def _regenerated_layer(tier: Tier, order: int, index: int) -> tuple[tuple[str, int] | None, int]:
    """Return what lies elsewhere than the rest of the layer that comes `order`-th, and where the rest lies."""
    lane = LANE_B if index % 2 else LANE_A
    if order < tier.n_pinned:
        return None, PINNED
    if tier.strategy == "STATIC_ATTNPRIO_ALLMODELS":
        return ((FFN, CPU), PINNED) if order < tier.n_attn_pinned else (None, CPU)
    if order == tier.n_pinned and tier.overflow in OVERFLOW:
        return (OVERFLOW[tier.overflow], lane), PINNED
    if tier.strategy == "GPUONLY_ATTNPIN_FFNSTREAM":
        return (FFN, LANE_A), PINNED
    if tier.strategy == "DYNAMIC_FFNCPU_ATTNSTREAM":
        return (FFN, CPU), LANE_A
    return None, lane


# --- as the reader takes them -----------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def compile_pattern(pattern: str) -> re.Pattern[str] | str:
    """Compile a pattern of an item, or return why it cannot be used."""
    if len(pattern) > _MAX_PATTERN or pattern.count("*") > _MAX_STARS or not _SIMPLE.fullmatch(pattern):
        return "has more to it than a planner writes, so pshard does not try it"
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression ({error}); the runtime aborts"


def places(overrides: Sequence[Override], names: Iterable[str]) -> Places:
    """Return where the runtime puts these tensors and the KV of each layer. Patterns that fail match nothing."""
    everywhere: list[tuple[int, re.Pattern[str], int]] = []
    of_layer: dict[str, list[tuple[int, re.Pattern[str], int]]] = {}
    layers: dict[int, int] = {}
    for order, item in enumerate(overrides):
        for found in _LAYER.findall(item.pattern):
            layers[int(found)] = item.backend
        pattern = compile_pattern(item.pattern)
        if isinstance(pattern, str):
            continue
        own = _LAYER.match(item.pattern)
        # Most items name one layer first thing, so that no name of another layer can match.
        is_own = own is not None and not _offers_alternatives(item.pattern)
        target = of_layer.setdefault(own[1], []) if own is not None and is_own else everywhere
        target.append((order, pattern, item.backend))
    in_order = {layer: sorted([*everywhere, *own]) for layer, own in of_layer.items()}
    tensors = {}
    for name in names:
        parts = name.split(".", 2)
        items = in_order.get(parts[1], everywhere) if len(parts) == 3 and parts[0] == "blk" else everywhere
        backend = next((backend for _, pattern, backend in items if pattern.search(name)), None)
        if backend is not None:
            tensors[name] = backend
    return Places(tensors, layers)


@lru_cache(maxsize=8192)
def _offers_alternatives(pattern: str) -> bool:
    """Whether the whole pattern is a choice, outside of any group."""
    depth = 0
    for character in pattern:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            return True
    return False


def tensor_names(model: Model) -> tuple[str, ...]:
    """Names of the tensors that a registry must place: those of computed layers, head and token embedding."""
    names = [t.name for layer in model.layers for tensors in layer.groups.values() for t in tensors]
    names += [t.name for t in model.core.head if t.name != "token_embd.weight"]
    if model.tied_head:  # the runtime loads the embedding a second time under the head's name
        names.append("output.weight")
    return (*names, "token_embd.weight")


def placement_places(model: Model, placement: _core.Placement) -> Places:
    """Return where a placement itself says that tensors and KV go, by the same names."""
    exceptions = {exception.name: int(exception.where) for exception in placement.exceptions}
    by_pattern = [{group.name: int(pattern[group]) for group in _layer_groups()} for pattern in placement.patterns]
    tensors, layers = {}, {}
    for layer, pattern_index in zip(model.layers, placement.layer_pattern, strict=True):
        by_group = by_pattern[pattern_index]
        layers[layer.index] = by_group["cache"]
        for group, members in layer.groups.items():
            for tensor in members:
                tensors[tensor.name] = exceptions.get(tensor.name, by_group[group])
    for name in tensor_names(model)[len(tensors) :]:
        tensors[name] = CPU if name == "token_embd.weight" else int(placement.head)
    return Places(tensors, layers)


def is_at(meant: Places, found: Places) -> bool:
    """Whether every tensor and every layer's KV that is meant lies where it is meant to."""
    return all(found.tensors.get(name) == backend for name, backend in meant.tensors.items()) and all(
        found.layers.get(index) == backend for index, backend in meant.layers.items()
    )


def placement_of(model: Model, found: Places, *, op_offload: bool) -> _core.Placement:
    """Make the placement that items say, for prices and bytes.

    Raises
    ------
    RegistryError
        A layer's KV, or a tensor, has no place, or one that there is no backend for.
    """
    from pshard import _core

    placement = _core.Placement()
    placement.op_offload = op_offload
    placement.head_op_offload = _core.offloads_head("STATIC_ATTNPRIO_ALLMODELS", model.core)
    patterns: list[_core.LayerPlacement] = []
    layer_pattern: list[int] = []
    exceptions: list[_core.TensorException] = []

    def where(number: int | None, what: str) -> _core.Where:
        if number is None or not PINNED <= number <= CPU:
            message = f"{what} has no place (backend {number}); the plan cannot be priced."
            raise RegistryError(message)
        return _core.Where(number)

    for layer in model.layers:
        pattern = _core.LayerPlacement(where(found.layers.get(layer.index), f"the KV of layer {layer.index}"))
        for group, tensors in layer.groups.items():
            at = {t.name: where(found.tensors.get(t.name), t.name) for t in tensors}
            pattern[_core.Group[group]] = at[max(tensors, key=lambda tensor: tensor.n_bytes).name]
            exceptions += [
                _core.TensorException(name, place) for name, place in at.items() if place != pattern[_core.Group[group]]
            ]
        if pattern not in patterns:
            patterns.append(pattern)
        layer_pattern.append(patterns.index(pattern))
    head = next((name for name in tensor_names(model) if name.startswith("output.")), None)
    placement.head = _core.Where.cpu if head is None else where(found.tensors.get(head), head)
    placement.patterns = patterns
    placement.layer_pattern = layer_pattern
    placement.exceptions = exceptions
    return placement
