"""``pshard inspect``: what is in a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pshard.cli._options import with_cache_types
from pshard.cli._output import Output, format_bytes, with_output

if TYPE_CHECKING:
    from pshard.model.model import Model

KV_TOKENS = 1024


@click.command()
@click.argument("model")
@with_cache_types
@with_output
def command(out: Output, model: str, type_k: str, type_v: str) -> None:
    """Show the layers, tensor groups, bytes by type and KV of MODEL.

    MODEL is the path of a GGUF, or a name that `pshard models` lists.
    """
    from pshard.model.model import read_model

    inspected = read_model(model)
    document = describe(inspected, type_k, type_v)
    out.json(document)
    for warning in inspected.warnings:
        out.warn(warning)
    _print_summary(out, inspected)
    _print_layers(out, inspected, type_k, type_v)
    _print_shares(out, "group", inspected.group_bytes())
    _print_shares(out, "type", inspected.bytes_by_type())
    _print_cache(out, inspected, type_k, type_v)


def describe(model: Model, type_k: str, type_v: str) -> dict[str, object]:
    """Everything that ``--json`` shows.

    Parameters
    ----------
    model : Model
    type_k, type_v : str
        ggml types of the KV cache.

    Returns
    -------
    dict
        Bytes as integers; groups and types by name.
    """
    parameters = model.hyperparameters
    return {
        "schema_version": 1,
        "model": model.name,
        "architecture": model.architecture,
        "file_bytes": model.file_bytes,
        "tensor_bytes": model.tensor_bytes,
        "n_parameters": model.n_parameters,
        "n_layer": model.n_layer,
        "n_layer_nextn": model.n_layer_nextn,
        "n_embd": parameters.n_embd,
        "n_vocab": parameters.n_vocab,
        "n_ctx_train": parameters.n_ctx_train,
        "n_expert": parameters.n_expert,
        "n_expert_used": parameters.n_expert_used,
        "tied_head": model.tied_head,
        "group_bytes": model.group_bytes(),
        "type_bytes": model.bytes_by_type(),
        "kv_type_k": type_k,
        "kv_type_v": type_v,
        "kv_bytes_per_1024_tokens": KV_TOKENS * sum(_kv_by_window(model, type_k, type_v).values()),
        "state_bytes_per_sequence": sum(model.state_bytes(layer.index) for layer in model.layers),
        "layers": [
            {
                "index": layer.index,
                "mixer": layer.parameters.mixer.name,
                "n_head": layer.parameters.n_head,
                "n_head_kv": layer.parameters.n_head_kv,
                "window_tokens": layer.parameters.window,
                "group_bytes": layer.group_bytes(),
                "kv_bytes_per_cell": model.kv_bytes_per_cell(layer.index, type_k, type_v),
                "state_bytes_per_sequence": model.state_bytes(layer.index),
            }
            for layer in model.layers
        ],
        "warnings": list(model.warnings),
    }


def _print_summary(out: Output, model: Model) -> None:
    parameters = model.hyperparameters
    size = f"{model.n_parameters / 1e9:.2f} B parameters, {format_bytes(model.file_bytes)}"
    out.line(f"{model.name}: {model.architecture}, {size}")
    facts = [f"{model.n_layer} layers", f"embedding {parameters.n_embd}", f"vocabulary {parameters.n_vocab}"]
    if model.n_layer_nextn:
        facts.insert(1, f"{model.n_layer_nextn} more for next-token prediction, not loaded")
    if parameters.n_expert:
        facts.append(f"{parameters.n_expert} experts, {parameters.n_expert_used} per token")
    facts.append(f"trained context {parameters.n_ctx_train}")
    facts.append("head shared with the embedding" if model.tied_head else "separate head")
    out.line(", ".join(facts))


def _print_layers(out: Output, model: Model, type_k: str, type_v: str) -> None:
    """One row per kind of layer: alike in all but the types of their tensors."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for layer in model.layers:
        parameters = layer.parameters
        heads = f"{parameters.n_head} / {parameters.n_head_kv}" if parameters.n_head_kv else None
        kv_bytes = model.kv_bytes_per_cell(layer.index, type_k, type_v)
        kind = (parameters.mixer.name, heads, parameters.window or None, kv_bytes or None, ", ".join(layer.groups))
        kinds.setdefault(kind, []).append(layer.index)
    rows: list[list[object]] = []
    for (*facts, groups), indices in kinds.items():
        sizes = [model.layers[index].n_bytes for index in indices]
        low, high = format_bytes(min(sizes)), format_bytes(max(sizes))
        rows.append([len(indices), spans(indices), *facts, low if low == high else f"{low} to {high}", groups])
    out.line()
    columns = ["layers", "which", "mixer", "heads / KV", "window", "KV bytes per token", "weights of each", "groups"]
    out.table(columns, rows)


def spans(indices: Sequence[int], *, at_most: int = 4) -> str:
    """Ascending layer numbers in short: ``"0-2, 5"``; a long list is cut in the middle.

    Parameters
    ----------
    indices : sequence of int
        Ascending.
    at_most : int
        Spans that are shown.
    """
    starts = [i for i, index in enumerate(indices) if i == 0 or index != indices[i - 1] + 1]
    runs = [indices[start:end] for start, end in zip(starts, [*starts[1:], len(indices)], strict=True)]
    texts = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(texts) > at_most:
        texts[at_most - 1 : -1] = ["..."]
    return ", ".join(texts)


def _print_shares(out: Output, what: str, n_bytes: dict[str, int]) -> None:
    total = sum(n_bytes.values())
    out.line()
    out.table(
        [what, "bytes", "share"],
        [[name, format_bytes(size), f"{100 * size / total:.1f} %"] for name, size in n_bytes.items() if size],
    )


def _print_cache(out: Output, model: Model, type_k: str, type_v: str) -> None:
    by_window = _kv_by_window(model, type_k, type_v)
    out.line()
    if by_window:
        total = format_bytes(KV_TOKENS * sum(by_window.values()))
        types = type_k if type_k == type_v else f"{type_k} / {type_v}"
        out.line(f"KV cache ({types}): {total} per {KV_TOKENS} tokens")
        for window, n_bytes in by_window.items():
            if window:
                share = format_bytes(KV_TOKENS * n_bytes)
                out.line(f"  {share} of it in layers that keep no more than a window of {window} tokens")
    else:
        out.line("No KV cache")
    state_bytes = sum(model.state_bytes(layer.index) for layer in model.layers)
    if state_bytes:
        out.line(f"Recurrent state: {format_bytes(state_bytes)} per sequence, at any length")


def _kv_by_window(model: Model, type_k: str, type_v: str) -> dict[int, int]:
    """KV bytes per token by window (0: whole context), summed over layers."""
    total: dict[int, int] = {}
    for layer in model.layers:
        n_bytes = model.kv_bytes_per_cell(layer.index, type_k, type_v)
        if n_bytes:
            total[layer.parameters.window] = total.get(layer.parameters.window, 0) + n_bytes
    return dict(sorted(total.items()))
