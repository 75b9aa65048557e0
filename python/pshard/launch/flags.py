"""Command lines for the engines: a placement in, llama.cpp's flags out.

One generator: whatever names a tensor for an engine comes from the placement object through this module.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pshard import _core
    from pshard.model.model import Model

# The llama.cpp whose flags and rules these are.
LLAMA_CPP_VERSION = "0c1e57098 (ggml 0.25.3)"
# Host weights in page-locked memory: what prices of stock placements assume.
LOAD_MODE = "none"

# Tensors of one layer that `--n-cpu-moe` and `--n-cpu-ffn` keep in host memory.
_SHORT_FLAGS = {
    "--n-cpu-moe": re.compile(r"^ffn_(up|down|gate|gate_up)_(ch|)exps"),
    "--n-cpu-ffn": re.compile(r"^ffn_(up|down|gate)\."),
}


def number_pattern(numbers: Iterable[int]) -> str:
    """Regular expression that matches just these numbers, written as ranges of digits.

    >>> number_pattern([3, *range(8, 40), 41])
    '3|[8-9]|[1-3][0-9]|41'
    """
    digits: dict[int, list[int]] = {}
    for number in sorted(set(numbers)):
        digits.setdefault(number // 10, []).append(number % 10)
    parts = []
    # Neighbouring tens with the same last digits share a part; consecutive numbers differ from their position alike.
    same = groupby(enumerate(digits), key=lambda pair: (pair[1] - pair[0], pair[1] == 0, digits[pair[1]]))
    for (_, is_zero, last_digits), group in same:
        prefix = "" if is_zero else alternatives(number_pattern(tens for _, tens in group))
        for _, run in groupby(enumerate(last_digits), key=lambda pair: pair[1] - pair[0]):
            span = [digit for _, digit in run]
            parts.append(f"{prefix}{span[0]}" if len(span) == 1 else f"{prefix}[{span[0]}-{span[-1]}]")
    return "|".join(parts)


def alternatives(pattern: str) -> str:
    """Return the pattern in brackets where something before or after it would otherwise bind to one alternative."""
    return f"({pattern})" if "|" in pattern else pattern


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
        ``-ngl`` and, where tensors of GPU layers stay in host memory, ``--n-cpu-moe``, ``--n-cpu-ffn`` or ``-ot``;
        ``-dev none`` where no GPU is used at all.

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
    if placement.head not in (_core.Where.pinned, _core.Where.cpu):
        message = "the output head is streamed at every batch; stock llama.cpp cannot do that"
        raise ValueError(message)
    head_on_gpu = placement.head == _core.Where.pinned
    if n_cpu_layers == len(patterns) and not head_on_gpu:
        return ["-ngl", "0"] if placement.op_offload else ["-dev", "none"]

    # Local names of what stays in host memory, of the layers that otherwise lie on the GPU.
    exceptions = {exception.name: exception.where for exception in placement.exceptions}
    moved = {
        index: _host_tensors(layers[index].tensors, patterns[index], exceptions)
        for index in range(n_cpu_layers, len(patterns))
    }
    n_counted = model.n_layer + model.n_layer_nextn
    arguments = ["-ngl", "all" if n_cpu_layers == 0 else str(n_counted + 1 - n_cpu_layers)]
    short = _short_flag(model, moved)
    arguments += short
    overrides = [] if head_on_gpu else [rf"^{_name_pattern([tensor.name for tensor in model.core.head])}"]
    if not short:
        by_names: dict[tuple[str, ...], list[int]] = {}
        for index, names in moved.items():
            if names:
                by_names.setdefault(names, []).append(index)
        overrides += [
            rf"blk\.{alternatives(number_pattern(group))}\.{_name_pattern(names)}" for names, group in by_names.items()
        ]
    if overrides:
        arguments += ["-ot", ",".join(f"{override}=CPU" for override in overrides)]
    return arguments if placement.op_offload else [*arguments, "--no-op-offload"]


def _host_tensors(
    tensors: Sequence[_core.Tensor], pattern: _core.LayerPlacement, exceptions: Mapping[str, _core.Where]
) -> tuple[str, ...]:
    """Local names of the tensors of one GPU layer that stay in host memory."""
    from pshard import _core

    names = []
    for tensor in tensors:
        where = exceptions.get(tensor.name, pattern[_core.group_of(tensor.name)])
        if where == _core.Where.cpu:
            names.append(_core.local_name(tensor.name))
        elif where != _core.Where.pinned:
            message = f"{tensor.name} is streamed at every batch; stock llama.cpp cannot do that"
            raise ValueError(message)
    if pattern[_core.Group.cache] != _core.Where.pinned:
        message = f"{tensors[0].name} lies in a GPU layer whose KV is not on the GPU; stock flags cannot say that"
        raise ValueError(message)
    stems = {_stem(name) for name in names}
    stays = next((t for t in tensors if (name := _core.local_name(t.name)) not in names and _stem(name) in stems), None)
    if stays is not None:
        message = f"{stays.name} stays on the GPU, others of its name do not; overrides here take all of one name"
        raise ValueError(message)
    return tuple(sorted(names))


def _stem(local_name: str) -> str:
    return local_name.rsplit(".", 1)[0]


def _short_flag(model: Model, moved: Mapping[int, tuple[str, ...]]) -> list[str]:
    """`--n-cpu-moe N` or `--n-cpu-ffn N` where that moves exactly these tensors."""
    count = max((index for index, names in moved.items() if names), default=-1) + 1
    for flag, regex in _SHORT_FLAGS.items():
        # Layers before the first of `moved` are in host memory anyhow.
        exact = count > 0 and all(
            names == tuple(sorted(name for name in _local_names(model, index) if regex.search(name)))
            for index, names in moved.items()
            if index < count
        )
        if exact:
            return [flag, str(count)]
    return []


def _local_names(model: Model, index: int) -> list[str]:
    from pshard import _core

    return [_core.local_name(tensor.name) for tensor in model.core.layers[index].tensors]


def _name_pattern(names: Sequence[str]) -> str:
    """Regular expression for the beginnings of these tensor names; those that differ in one part are merged."""
    families: dict[tuple[str, str], list[str]] = {}
    for stem in sorted({_stem(name) for name in names}):
        found = re.fullmatch(r"ffn_(up|down|gate|gate_up)(|_exps|_chexps|_shexp)", stem)
        prefix, part, suffix = ("ffn_", found[1], found[2]) if found else ("", stem.replace(".", r"\."), "")
        families.setdefault((prefix, suffix), []).append(part)
    parts = [f"{prefix}{alternatives('|'.join(merged))}{suffix}" for (prefix, suffix), merged in families.items()]
    end = r"\." if all("." in name for name in names) else r"(\.|$)"
    return (parts[0] if len(parts) == 1 else alternatives("|".join(parts))) + end


# What llama.cpp's --fit matches of a partial layer, by what the layer keeps of its experts.
_FIT_PATTERNS = {
    "NONE": "ffn_(up|down|gate_up|gate)_(ch|)exps",
    "ATTN": "ffn_(gate|up|gate_up|down).*",
    "UP": "ffn_(gate|gate_up|down).*",
    "GATE": "ffn_down.*",
}


def fit_overrides(
    model: Model, devices: Sequence[_core.GpuLayers], names: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Write overrides as ``--fit`` does, one for each partial layer.

    Parameters
    ----------
    model : Model
    devices : sequence of _core.GpuLayers
        Layers of each device.
    names : sequence of str
        Their names.

    Returns
    -------
    tuple of (str, str)
        Pattern and buffer. The first partial layer of a device may keep a part of its experts, and hands the others to
        the next device; all else goes to ``"CPU"``.
    """
    overrides = []
    index = model.n_layer + 1 - sum(layers.n_layer for layers in devices)
    for layers, next_name in zip(devices, (*names[1:], "CPU"), strict=True):
        index += layers.n_layer - layers.n_partial
        for order in range(layers.n_partial):
            kept = layers.overflow if order == 0 else "NONE"
            buffer = "CPU" if kept == "NONE" else next_name
            overrides.append((rf"blk\.{index + order}\.{_FIT_PATTERNS[kept]}", buffer))
        index += layers.n_partial
    return tuple(overrides)


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
    """Return the flags that every launch line of a plan carries, whatever the placement."""
    arguments = ["-m", file, "-c", str(n_ctx), "-fa", "on" if flash_attn else "off", "-t", str(n_threads)]
    if n_seq_max > 1:
        arguments += ["-np", str(n_seq_max)]
    if type_k != "f16":
        arguments += ["-ctk", type_k]
    if type_v != "f16":
        arguments += ["-ctv", type_v]
    return arguments
