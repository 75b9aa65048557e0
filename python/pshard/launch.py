"""Command lines for the engines: a placement in, llama.cpp's flags out.

One generator: whatever names a tensor for an engine comes from the placement object through this module.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pshard import _core
    from pshard.model import Model

# The llama.cpp whose flags and rules these are.
LLAMA_CPP_VERSION = "0c1e57098 (ggml 0.25.3)"
# Host weights in page-locked memory: what prices of stock placements assume.
LOAD_MODE = "none"

_EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch|)exps\b")
_DENSE_FFN = re.compile(r"ffn_(up|down|gate)\.")


def number_pattern(numbers: Iterable[int]) -> str:
    """Regular expression that matches just these numbers, written as ranges of a last digit.

    >>> number_pattern([3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19])
    '3|[8-9]|1[0-9]'
    """
    parts = []
    for tens, group in groupby(sorted(set(numbers)), key=lambda number: number // 10):
        prefix = str(tens) if tens else ""
        digits = [number % 10 for number in group]
        # Consecutive digits differ from their position by the same amount.
        for _, run in groupby(enumerate(digits), key=lambda pair: pair[1] - pair[0]):
            span = [digit for _, digit in run]
            parts.append(f"{prefix}{span[0]}" if len(span) == 1 else f"{prefix}[{span[0]}-{span[-1]}]")
    return "|".join(parts)


def stock_arguments(model: Model, placement: _core.Placement) -> list[str]:
    """Placement flags for stock llama.cpp, the shortest that are exact.

    Parameters
    ----------
    model : Model
    placement : _core.Placement
        No streamed groups; layers wholly on the CPU come first.

    Returns
    -------
    list of str
        ``-ngl`` and, where tensors of GPU layers stay in host memory, ``--n-cpu-moe``, ``--n-cpu-ffn`` or ``-ot``.

    Raises
    ------
    ValueError
        The placement cannot be said with stock flags.
    """
    from pshard import _core

    layers = model.core.layers
    patterns = [placement.patterns[index] for index in placement.layer_pattern]
    on_cpu = _core.LayerPlacement(_core.Where.cpu)
    n_cpu_layers = next((i for i, pattern in enumerate(patterns) if pattern != on_cpu), len(patterns))
    head_on_gpu = placement.head == _core.Where.pinned
    if n_cpu_layers == len(patterns) and not head_on_gpu:
        return ["-ngl", "0"]

    moved: dict[int, tuple[str, ...]] = {}
    for index in range(n_cpu_layers, len(patterns)):
        names = _host_tensors(layers[index].tensors, patterns[index], index)
        if names:
            moved[index] = names
    n_counted = model.n_layer + model.n_layer_nextn
    arguments = ["-ngl", "all" if n_cpu_layers == 0 else str(n_counted + 1 - n_cpu_layers)]
    overrides = []
    if not head_on_gpu:
        overrides.append(r"^token_embd\.weight" if model.tied_head else r"^output\.weight")
    short = _short_flag(model, moved) if n_cpu_layers == 0 else []
    if not short:
        by_names: dict[tuple[str, ...], list[int]] = {}
        for index, names in moved.items():
            by_names.setdefault(names, []).append(index)
        overrides += [rf"blk\.({number_pattern(group)})\.{_name_pattern(names)}" for names, group in by_names.items()]
    arguments += short
    if overrides:
        arguments += ["-ot", ",".join(f"{override}=CPU" for override in overrides)]
    return arguments


def _host_tensors(tensors: Sequence[_core.Tensor], pattern: _core.LayerPlacement, index: int) -> tuple[str, ...]:
    """Local names of the tensors of one layer that stay in host memory."""
    from pshard import _core

    if pattern[_core.Group.cache] != _core.Where.pinned:
        message = f"layer {index} lies behind a GPU layer, but its KV is not on the GPU; stock flags cannot say that"
        raise ValueError(message)
    names = []
    for tensor in tensors:
        where = pattern[_core.group_of(tensor.name)]
        if where == _core.Where.cpu:
            names.append(_core.local_name(tensor.name))
        elif where != _core.Where.pinned:
            message = f"{tensor.name} is streamed at every batch; stock llama.cpp cannot do that"
            raise ValueError(message)
    return tuple(sorted(names))


def _short_flag(model: Model, moved: dict[int, tuple[str, ...]]) -> list[str]:
    """`--n-cpu-moe N` or `--n-cpu-ffn N` where that moves exactly these tensors."""
    for flag, regex in (("--n-cpu-moe", _EXPERTS), ("--n-cpu-ffn", _DENSE_FFN)):
        count = max(moved, default=-1) + 1
        exact = count > 0 and all(
            moved.get(index, ()) == tuple(sorted(name for name in _local_names(model, index) if regex.search(name)))
            for index in range(count)
        )
        if exact:
            return [flag, str(count)]
    return []


def _local_names(model: Model, index: int) -> list[str]:
    from pshard import _core

    return [_core.local_name(tensor.name) for tensor in model.core.layers[index].tensors]


def _name_pattern(names: Sequence[str]) -> str:
    """Regular expression for tensors of a layer: names that differ in one part are merged, `ffn_(down|up)_exps`."""
    stems = sorted({name.rsplit(".", 1)[0] for name in names})
    families: dict[tuple[str, str], list[str]] = {}
    for stem in stems:
        found = re.fullmatch(r"ffn_(up|down|gate|gate_up)(|_exps|_chexps|_shexp)", stem)
        prefix, part, suffix = ("ffn_", found[1], found[2]) if found else ("", stem, "")
        families.setdefault((prefix, suffix), []).append(part)
    parts = [
        f"{prefix}{merged[0] if len(merged) == 1 else '(' + '|'.join(merged) + ')'}{suffix}"
        for (prefix, suffix), merged in families.items()
    ]
    whole = parts[0] if len(parts) == 1 else "(" + "|".join(parts) + ")"
    return whole + r"\."


def common_arguments(
    *,
    file: str,
    n_ctx: int,
    n_seq_max: int,
    flash_attn: bool,
    type_k: str,
    type_v: str,
    n_threads: int,
) -> list[str]:
    """Flags that every launch line of a plan carries, whatever the placement."""
    arguments = ["-m", file, "-c", str(n_ctx), "-fa", "on" if flash_attn else "off", "-t", str(n_threads)]
    if n_seq_max > 1:
        arguments += ["-np", str(n_seq_max)]
    if type_k != "f16":
        arguments += ["-ctk", type_k]
    if type_v != "f16":
        arguments += ["-ctv", type_v]
    return arguments
