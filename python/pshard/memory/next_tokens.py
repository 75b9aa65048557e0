"""The draft that a model brings itself: layers that predict the token after the next (``--spec-type draft-mtp``).

llama.cpp then loads these layers, which it leaves out otherwise, and keeps a second context for them on the model: a
cache of their own, and a pass of the first of them, from the embedding of a token and the hidden state of the one
before to logits (``src/models/*.cpp``, ``graph_mtp``). Embeddings and head are the model's, unless the layer has some.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pshard.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pshard.gguf.file import TensorInfo
    from pshard.memory.placed import Draft, Placed
    from pshard.memory.report import MemoryReport
    from pshard.model.model import Model

JOIN = "nextn.eh_proj.weight"
# What such a layer may bring of what lies outside the layers.
OWN = {
    "nextn.embed_tokens.": "token_embd.",
    "nextn.shared_head_norm.": "output_norm.",
    "nextn.shared_head_head.": "output.",
}
# Where rows that are not wanted are dropped; elsewhere behind the last norm.
LATE_ROWS = {"qwen3next": "no", "mimo2": "behind_layers", "step35": "behind_layers"}


def whole(model: Model) -> Model:
    """Return the model with the layers that predict further tokens among its layers, as it is then loaded.

    Raises
    ------
    SettingError
        It has none, or not of the kind that is described.
    """
    n_layer, n_nextn = model.n_layer, model.n_layer_nextn
    if not n_nextn or not any(tensor.name == f"blk.{n_layer}.{JOIN}" for tensor in model.tensors):
        message = (
            f"--spec-type draft-mtp: {model.name} has no layers that predict the token after the next; convert it with "
            "them, or take another kind of speculation."
        )
        raise SettingError(message)
    return _made_of(model, n_layer + n_nextn, 0, model.tensors)


def has_own_embedding(model: Model) -> bool:
    """Whether such a layer looks its tokens up in a table of its own, which lies where the layer does."""
    return any(tensor.name == f"blk.{model.n_layer}.nextn.embed_tokens.weight" for tensor in model.tensors)


def predictor(model: Model) -> Model:
    """Return what the second context computes: the first such layer, between embedding and head.

    Parameters
    ----------
    model : Model
        With such layers: see `whole`.
    """
    return _made_of(model, 1, model.n_layer, tuple(_of_predictor(model)))


def _of_predictor(model: Model) -> Iterator[TensorInfo]:
    prefix = f"blk.{model.n_layer}."
    own = {}
    for tensor in model.tensors:
        local = tensor.name.removeprefix(prefix)
        if local == tensor.name:
            continue
        for part, name in OWN.items():
            if local.startswith(part):
                own[name + local.removeprefix(part)] = tensor
                break
        else:
            yield replace(tensor, name=f"blk.0.{local}")
    outside = {tensor.name: tensor for tensor in model.tensors if not tensor.name.startswith("blk.")}
    for name, tensor in {**outside, **own}.items():
        yield replace(tensor, name=name)


def _made_of(model: Model, n_layer: int, first: int, tensors: tuple[TensorInfo, ...]) -> Model:
    """Return a model of so many of the layers, from `first` on."""
    from pshard import _core
    from pshard.model.hyperparameters import describe
    from pshard.model.model import ModelLayer, core_tensors

    parameters, _ = describe(model.header)
    layers = list(parameters.layers)[first : first + n_layer]
    parameters.n_layer, parameters.n_layer_nextn = n_layer, 0
    if first > 0:
        parameters.traits.late_rows = _core.LateRows[LATE_ROWS.get(model.architecture, "behind_norm")]
        for layer in layers:
            layer.indexer_dim, layer.is_selective = 0, False  # such a layer attends to everything
    parameters.layers = layers
    core = _core.Model(parameters, core_tensors(tensors))
    made = (ModelLayer(index=i, parameters=layer.parameters, groups={}) for i, layer in enumerate(core.layers))
    return replace(model, core=core, layers=tuple(made))


def place_predictor(plain: Model, main: Placed, draft: Draft, n_ctx: int) -> tuple[Placed, Placed]:
    """Place the layers with which a model drafts itself.

    Parameters
    ----------
    plain : Model
        Without adapters.
    main : Placed
    draft : Draft
        Types of the cache.
    n_ctx : int

    Returns
    -------
    everything : Placed
        The model with these layers, as it is loaded.
    predictor : Placed
        Their context, whose weights are the model's.
    """
    from pshard import _core
    from pshard.memory.placed import place

    everything = place(whole(plain), main.settings, main.where)
    settings = replace(
        main.settings, n_ctx=n_ctx, n_outputs_max=main.settings.n_seq_max, embeddings=False, type_k=draft.type_k,
        type_v=draft.type_v,
    )  # fmt: skip
    placement, model = _core.Placement(), predictor(plain)
    where = everything.placement
    placement.n_gpu, placement.op_offload, placement.head = where.n_gpu, where.op_offload, where.head
    placement.pipeline = where.pipeline
    placement.patterns, placement.layer_pattern = [where.patterns[where.layer_pattern[plain.n_layer]]], [0]
    if has_own_embedding(plain):
        placement.exceptions = [_core.TensorException("token_embd.weight", placement.patterns[0].device)]
    context = _core.resolve_flash_attention(model.core, placement, settings.core())
    return everything, replace(
        everything, model=model, settings=settings, placement=placement, context=context, warnings=()
    )


def with_predictor(report: MemoryReport, everything: Placed, beside: MemoryReport, *, mapped: bool) -> MemoryReport:
    """Add to a report the layers with which its model drafts itself: weights of the model, and a context beside it.

    Parameters
    ----------
    report : MemoryReport
        Without them.
    everything : Placed
        The model with them.
    beside : MemoryReport
        Of their context.
    mapped : bool
        Host weights are a mapping of the file.

    Returns
    -------
    MemoryReport
    """
    from msgspec.structs import replace as with_fields

    from pshard.memory.placed import HOST, weights_bytes

    weights = weights_bytes(everything.model, everything)
    grown = weights[HOST] - report.host.model_bytes
    memories = [with_fields(each, model_bytes=weights.get(each.name, 0)) for each in (*report.devices, report.host)]
    shared = [with_fields(each, model_bytes=0) for each in (*beside.devices, beside.host)]
    hidden_bytes = (
        4 * everything.model.hyperparameters.n_embd * everything.settings.n_batch
    )  # handed from one to the other
    return with_fields(
        report,
        devices=tuple(memories[:-1]),
        host=memories[-1],
        output_bytes=report.output_bytes + hidden_bytes,
        page_locked_bytes=report.page_locked_bytes + (0 if mapped or not everything.names else grown),
        mapped_bytes=report.mapped_bytes + (grown if mapped else 0),
        draft=with_fields(
            beside, devices=tuple(shared[:-1]), host=shared[-1], page_locked_bytes=0, mapped_bytes=0, warnings=()
        ),
    )
