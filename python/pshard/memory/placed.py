"""One model with its placement and context: what a report, and what adapters and drafts add to it, are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.errors import SettingError
from pshard.memory.settings import ContextSettings, PlacementSettings, check_context, check_placement

if TYPE_CHECKING:
    from pshard import _core
    from pshard.model.model import Model

HOST = "Host"
FEW_TOKENS = 32  # below, llama.cpp ties norms to the device of their layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A draft model for speculative decoding, with the settings that it does not share with the model it drafts for.

    Attributes
    ----------
    model : Model
    n_gpu_layers : int
        ``-ngld``; negative: all.
    tensor_overrides : sequence of (str, str)
        ``-otd``.
    type_k, type_v : str
        ``-ctkd`` and ``-ctvd``.
    device_names : tuple of str or None
        ``-devd``: ``"CUDA1"``, ...; None: all.
    """

    model: Model
    n_gpu_layers: int = -1
    tensor_overrides: tuple[tuple[str, str], ...] = ()
    type_k: str = "f16"
    type_v: str = "f16"
    device_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """One model with its placement and context, as the core takes them."""

    model: Model
    settings: ContextSettings
    where: PlacementSettings
    placement: _core.Placement
    names: tuple[str, ...]  # of the placement's GPUs
    context: _core.ContextParameters  # flash attention decided
    n_tokens: int
    warnings: tuple[str, ...]

    def cells(self) -> _core.CacheCells:
        """Cells of its caches."""
        from pshard import _core

        return _core.cache_cells(self.model.core, self.context)

    def bytes(self) -> _core.MemoryReport:
        """Bytes in every memory."""
        from pshard import _core

        return _core.memory(self.model.core, self.placement, self.context, self.n_tokens)

    def bytes_of_a_run(self) -> _core.MemoryReport | None:
        """Bytes that llama.cpp allocates when it runs; None where that is not more than it states before.

        What it states forgets which device the scheduler has tied operations to: norms, with all layers on GPUs and
        below 32 tokens, and without flash attention what the attention of caches on the host comes to
        (``llama_context::graph_get_cb``, ``llm_graph_context::build_attn_mha``).
        """
        from pshard import _core

        splits_layers = len(self.names) > 1 and len(self.where.tensor_overrides) > 0
        if self.where.offload_kqv and self.n_tokens >= FEW_TOKENS and not splits_layers:
            return None
        return _core.memory(self.model.core, self.placement, self.context, self.n_tokens, _core.MemoryStage.running)

    def output_bytes(self) -> int:
        """Return the size of the buffer of logits, one row for each sequence (or for each token that may be wanted)."""
        from pshard.gguf.file import SkippedArray

        tokens = self.model.header.metadata.get("tokenizer.ggml.tokens")
        parameters = self.model.hyperparameters
        n_vocab = tokens.length if isinstance(tokens, SkippedArray) else parameters.n_vocab
        rows = max(self.settings.n_seq_max, self.settings.n_outputs_max or 0)
        return 4 * rows * (n_vocab + (parameters.n_embd if self.settings.embeddings else 0))

    def output_is_page_locked(self) -> bool:
        """Whether the output layer lies on a GPU, whose driver then locks the buffer that it is copied to."""
        return bool(self.names) and self.where.n_gpu_layers != 0


def place(model: Model, asked: ContextSettings, where: PlacementSettings) -> Placed:
    """Place a model by llama.cpp's flags, and hold the settings against its rules.

    Parameters
    ----------
    model : Model
    asked : ContextSettings
    where : PlacementSettings

    Returns
    -------
    Placed

    Raises
    ------
    SettingError
        llama.cpp would not start with them, or a split that is not replayed.
    """
    from pshard import _core
    from pshard.launch.placements import placement_from_flags

    settings, warnings = check_context(model, asked)
    warnings += check_placement(model, where)
    used = where.devices
    if where.split_mode == "none":
        used = used[where.main_gpu : where.main_gpu + 1] if where.main_gpu >= 0 else ()
    names = tuple(name for name, _ in used)
    placement = placement_from_flags(
        model.core,
        where.n_gpu_layers,
        [(pattern, _device_of(pattern, device, names)) for pattern, device in where.tensor_overrides],
        offload_kqv=where.offload_kqv,
        op_offload=where.op_offload,
        devices=[float(free_bytes) for _, free_bytes in used],
        tensor_split=where.tensor_split[: len(names)] if where.tensor_split and len(names) > 1 else None,
    )
    asked_context = settings.core()
    context = _core.resolve_flash_attention(model.core, placement, asked_context)
    if context.flash_attn != asked_context.flash_attn:
        warnings.append("flash_attn='auto' comes to 'off': not every layer's device can do it for this model.")
    cells = _core.cache_cells(model.core, context)
    return Placed(
        model=model,
        settings=settings,
        where=where,
        placement=placement,
        names=names,
        context=context,
        n_tokens=min(settings.n_ubatch, cells.full * cells.n_streams),
        warnings=tuple(warnings),
    )


def _device_of(pattern: str, device: str, names: tuple[str, ...]) -> str:
    """Return the name by which a placement knows a device: GPUs are numbered as they are used."""
    if device in names:
        return f"CUDA{names.index(device)}"
    if device == "CPU":
        return device
    message = f"tensor override {pattern}={device}: the devices are {', '.join(('CPU', *names))}."
    raise SettingError(message)


def weights_bytes(model: Model, placed: Placed) -> dict[str, int]:
    """Return the bytes of a model's weights in each memory, placed like another with the same layers."""
    from pshard import _core

    found = _core.resident_memory(model.core, placed.placement, placed.context)
    return {
        **{name: part.weights_bytes for name, part in zip(placed.names, found.gpus, strict=True)},
        HOST: found.host.weights_bytes,
    }
