"""Contexts of llama.cpp that a section's settings describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pshard.errors import SettingError

if TYPE_CHECKING:
    from pshard import _core
    from pshard.model.model import Model
    from pshard.registry.format import Settings


def context_of(settings: Settings, cache_ubatch: int, model: Model) -> _core.ContextParameters:
    """Return the context that every tier of a variant shares: its cache is sized for the largest.

    Raises
    ------
    SettingError
        A cache type that does not exist, or a cache for no tokens.
    """
    from pshard import _core
    from pshard.model.model import data_type

    if cache_ubatch < 1:
        message = f"a cache for micro-batches of {cache_ubatch} tokens holds none; no planner writes such a registry."
        raise SettingError(message)
    context = _core.ContextParameters()
    context.pshard_runtime = True
    context.n_ctx = settings.n_ctx or model.hyperparameters.n_ctx_train
    context.n_batch = context.n_ubatch = cache_ubatch
    context.n_seq_max = max(settings.n_seq_max, 1)
    context.flash_attn = settings.flash_attn != 0
    context.type_k = data_type(settings.type_k)
    context.type_v = data_type(settings.type_v)
    return context
