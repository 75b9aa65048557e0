"""Settings of a launch, held against llama.cpp's rules: what it refuses, what it changes, what is hardly meant.

The rules are those of ``src/llama-context.cpp``, ``src/llama-model.cpp`` and ``src/llama.cpp`` at the version that
`pshard.launch.flags` names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

from pshard.errors import SettingError
from pshard.launch.spellings import CACHE_TYPES, MAX_DEVICES, MAX_TOKENS, SPLIT_MODES, Override

if TYPE_CHECKING:
    from pshard import _core
    from pshard.model.model import Model

MAX_SEQUENCES = 256  # llama.cpp's LLAMA_MAX_SEQ
PLAIN_TYPES = frozenset({"f32", "f16", "bf16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """What sizes caches and compute buffers. Names are llama.cpp's; `n_outputs_max` None: logits for every token."""

    n_ctx: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_outputs_max: int | None = None
    kv_unified: bool = False
    flash_attn: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    embeddings: bool = False

    def core(self) -> _core.ContextParameters:
        """Return them as the core takes them; they must have been checked."""
        from pshard import _core
        from pshard.model.model import data_type

        context = _core.ContextParameters()
        context.n_ctx = self.n_ctx
        context.n_batch = self.n_batch
        context.n_ubatch = self.n_ubatch
        context.n_seq_max = self.n_seq_max
        context.n_outputs_max = self.n_outputs_max or 0
        context.flash_attn = self.flash_attn != "off"
        context.flash_attn_auto = self.flash_attn == "auto"
        context.kv_unified = self.kv_unified
        context.swa_full = self.swa_full
        context.type_k = data_type(self.type_k)
        context.type_v = data_type(self.type_v)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """What says where weights and caches lie. `devices`: name and free bytes of those that the model may use."""

    devices: tuple[tuple[str, int], ...]
    n_gpu_layers: int = -1
    tensor_overrides: tuple[Override, ...] = ()
    offload_kqv: bool = True
    op_offload: bool = True
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] | None = None
    main_gpu: int = 0


def _refuse(setting: str, value: object, reason: str) -> NoReturn:
    message = f"{setting}={value!r}: {reason}."
    raise SettingError(message)


def _check_range(setting: str, value: object, minimum: int, maximum: int = MAX_TOKENS) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        _refuse(setting, value, f"a whole number from {minimum} to {maximum} is wanted")


# --- context ----------------------------------------------------------------------------------------------------------


def check_context(model: Model, asked: ContextSettings) -> tuple[ContextSettings, list[str]]:
    """Hold context settings against the model, and fill in what llama.cpp does.

    Parameters
    ----------
    model : Model
    asked : ContextSettings

    Returns
    -------
    settings : ContextSettings
        Batches as llama.cpp cuts them; context and sequences as they were asked for (the core pads them).
    warnings : list of str

    Raises
    ------
    SettingError
        llama.cpp would not start with them.
    """
    _check_range("n_ctx", asked.n_ctx, 0)
    _check_range("n_batch", asked.n_batch, 1)
    _check_range("n_ubatch", asked.n_ubatch, 0)
    _check_range("n_seq_max", asked.n_seq_max, 1)
    if asked.n_outputs_max is not None:
        _check_range("n_outputs_max", asked.n_outputs_max, 1)
    if asked.n_seq_max > MAX_SEQUENCES:
        _refuse("n_seq_max", asked.n_seq_max, f"llama.cpp keeps at most {MAX_SEQUENCES} sequences; ask for fewer")
    settings = _resolved(model, asked)
    _check_cache_types(model, settings)
    return settings, _context_warnings(model, asked, settings)


def _resolved(model: Model, asked: ContextSettings) -> ContextSettings:
    n_ctx = asked.n_ctx or model.hyperparameters.n_ctx_train
    if n_ctx == 0:
        _refuse("n_ctx", 0, "0 means the training length, which this file does not tell; give a context")
    traits = model.hyperparameters.traits
    causal = traits.causal
    if not traits.fuses_attention:
        asked = replace(asked, flash_attn="off")
    n_batch = min(asked.n_batch, n_ctx) if causal else asked.n_batch
    if asked.n_seq_max > n_batch:
        what = f"n_ctx={n_ctx}" if n_batch < asked.n_batch else f"n_batch={n_batch}"
        reason = f"more sequences than {what} has tokens; raise that, or ask for fewer sequences"
        _refuse("n_seq_max", asked.n_seq_max, reason)
    if traits.has_encoder and asked.n_seq_max > 1 and not asked.kv_unified:
        reason = "llama.cpp aborts where sequences of an encoder and decoder have caches of their own; add --kv-unified"
        _refuse("n_seq_max", asked.n_seq_max, reason)
    if asked.n_outputs_max is not None and asked.n_outputs_max < asked.n_seq_max:
        reason = f"each of the {asked.n_seq_max} sequences needs one output; raise it"
        _refuse("n_outputs_max", asked.n_outputs_max, reason)
    return replace(asked, n_ctx=n_ctx, n_batch=n_batch, n_ubatch=min(n_batch, asked.n_ubatch or n_batch))


def _check_cache_types(model: Model, settings: ContextSettings) -> None:
    if settings.flash_attn not in ("auto", "on", "off"):
        _refuse("flash_attn", settings.flash_attn, "'auto', 'on' or 'off' is wanted")
    for setting in ("type_k", "type_v"):
        name = getattr(settings, setting)
        if name not in CACHE_TYPES:
            _refuse(setting, name, f"llama.cpp keeps a cache in {', '.join(CACHE_TYPES)}")
    if settings.flash_attn == "off" and settings.type_v not in PLAIN_TYPES:
        reason = "a quantised V cache needs flash attention; leave flash_attn at 'auto', or take f16"
        _refuse("type_v", settings.type_v, reason)
    if model.hyperparameters.kv_lora_rank and settings.type_k != settings.type_v:
        reason = (
            f"this model keeps one latent cache for K and V; take one type for both (type_k is {settings.type_k!r})"
        )
        _refuse("type_v", settings.type_v, reason)
    _check_blocks(model, "type_k", settings.type_k, "head_dim_k")
    _check_blocks(model, "type_v", settings.type_v, "head_dim_v")


def _check_blocks(model: Model, setting: str, name: str, field: str) -> None:
    from pshard.model.model import data_type

    block = data_type(name).block_elements
    widths = {getattr(layer, field) for layer in model.hyperparameters.layers if layer.n_head_kv}
    odd = sorted(width for width in widths if width % block)
    if odd:
        reason = f"its blocks of {block} values do not divide heads of {odd[0]}; take f16, or another type"
        _refuse(setting, name, reason)


def _context_warnings(model: Model, asked: ContextSettings, settings: ContextSettings) -> list[str]:
    from pshard import _core

    warnings = []
    if settings.flash_attn != asked.flash_attn:
        warnings.append(f"flash attention is off: llama.cpp does not compute '{model.architecture}' with it.")
    causal = model.hyperparameters.traits.causal
    cells = _core.cache_cells(model.core, settings.core())
    n_ctx, n_ctx_train = cells.full * cells.n_streams, model.hyperparameters.n_ctx_train
    if n_ctx != settings.n_ctx and causal:
        each = f", {cells.full} for each of {cells.n_streams} sequences" if cells.n_streams > 1 else ""
        warnings.append(f"n_ctx={settings.n_ctx} becomes {n_ctx}{each}: llama.cpp counts cells in multiples of 256.")
    if 0 < n_ctx_train < cells.full:
        warnings.append(
            f"The context of {cells.full} tokens per sequence exceeds the {n_ctx_train} that the model was trained on; "
            "expect worse text beyond them."
        )
    if settings.n_ubatch < asked.n_ubatch:
        limit = f"n_batch={asked.n_batch}" if asked.n_batch < asked.n_ubatch else f"n_ctx={settings.n_ctx}"
        warnings.append(f"n_ubatch={asked.n_ubatch} is cut to {settings.n_ubatch} by {limit}.")
    if settings.swa_full and not any(layer.parameters.window for layer in model.layers):
        warnings.append("swa_full has no effect: this model has no sliding-window layers.")
    if not causal and settings.n_ubatch < settings.n_ctx:
        warnings.append(
            f"An encoder reads a whole text in one micro-batch: texts longer than n_ubatch={settings.n_ubatch} tokens "
            "are refused at run time."
        )
    return warnings


# --- placement --------------------------------------------------------------------------------------------------------


def check_placement(model: Model, settings: PlacementSettings) -> list[str]:
    """Hold placement settings against the model.

    Parameters
    ----------
    model : Model
    settings : PlacementSettings

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    SettingError
        llama.cpp would not start with them, or a split that is not replayed.
    """
    _check_devices(settings)
    warnings = _check_split(settings)
    if not settings.devices and (settings.n_gpu_layers > 0 or settings.tensor_split):
        warnings.append("There is no GPU, so that n_gpu_layers and tensor_split have no effect: all is in host memory.")
    return warnings + override_warnings(model, settings.tensor_overrides)


def _check_devices(settings: PlacementSettings) -> None:
    if len(settings.devices) > MAX_DEVICES:
        _refuse("devices", len(settings.devices), f"llama.cpp takes at most {MAX_DEVICES} devices")
    for name, free_bytes in settings.devices:
        if free_bytes <= 0:
            reason = f"{name} has no memory; leave it out, or say what is free on it"
            _refuse("devices", free_bytes, reason)
    _check_range("n_gpu_layers", settings.n_gpu_layers, -MAX_TOKENS)


# llama.cpp's src/llama.cpp, llama_prepare_model_devices, and src/llama-context.cpp, llama_init_from_model.
_TENSOR_SPLIT = {
    0: "llama.cpp does not load with it without a GPU; take 'layer'",
    1: (
        "llama.cpp then wraps the GPU in a device of another kind, which it advises against itself and whose buffers "
        "are not counted here; take 'layer', which puts the same on one GPU"
    ),
}
_TENSOR_SPLIT_OF_SEVERAL = (
    "llama.cpp then makes one device of all, with a part of every layer on each, and only whole layers are counted "
    "here; take 'layer', or 'none' for one device"
)


def _check_split(settings: PlacementSettings) -> list[str]:
    n_devices = len(settings.devices)
    if settings.split_mode not in SPLIT_MODES:
        _refuse("split_mode", settings.split_mode, f"it is none of {', '.join(SPLIT_MODES)}")
    if settings.split_mode == "row" and n_devices > 0:
        reason = "CUDA has no split buffers in this llama.cpp, which does not load with it; take 'layer', or 'none'"
        _refuse("split_mode", settings.split_mode, reason)
    if settings.split_mode == "tensor":
        _refuse("split_mode", settings.split_mode, _TENSOR_SPLIT.get(n_devices, _TENSOR_SPLIT_OF_SEVERAL))
    if settings.split_mode == "none" and settings.main_gpu >= max(n_devices, 1):
        reason = f"there are {n_devices} devices, numbered from 0"
        _refuse("main_gpu", settings.main_gpu, reason)
    shares = settings.tensor_split
    if not shares:
        return []
    if len(shares) >= MAX_DEVICES:
        _refuse("tensor_split", shares, f"llama.cpp takes fewer than {MAX_DEVICES} proportions")
    if any(not 0 <= share < float("inf") for share in shares):
        _refuse("tensor_split", shares, "proportions must not be negative")
    warnings = []
    if not any(shares[:n_devices]):
        warnings.append("tensor_split is all zeros, so that layers are split by free memory.")
    elif len(shares) < n_devices or 0 in shares[:n_devices]:
        idle = [name for i, (name, _) in enumerate(settings.devices) if not sum(shares[i : i + 1])]
        warnings.append(f"tensor_split leaves {', '.join(idle)} without layers.")
    if len(shares) > n_devices > 0:
        warnings.append(f"tensor_split has {len(shares)} proportions for {n_devices} devices; the rest is ignored.")
    return warnings


def override_warnings(model: Model, overrides: Sequence[Override]) -> list[str]:
    """Say which overrides change nothing: they match no tensor, or only tensors that an earlier one has taken.

    Parameters
    ----------
    model : Model
    overrides : sequence of (str, str)
        Patterns that are regular expressions, and devices.
    """
    if not overrides:
        return []
    names = [tensor.name for tensor in model.tensors]
    free = set(names)
    unmatched, shadowed = [], []
    for pattern, _ in dict.fromkeys(overrides):
        try:
            found = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            message = f"tensor override {pattern!r} is not a regular expression: {error}."
            raise SettingError(message) from None
        if not found:
            unmatched.append(pattern)
        elif not found & free:
            shadowed.append(pattern)
        free -= found
    warnings = []
    if unmatched:
        near = ", ".join(_nearest(unmatched[0], names))
        warnings.append(f"{_listed('The override', unmatched)} no tensor; the nearest names are {near}.")
    if shadowed:
        warnings.append(f"{_listed('The override', shadowed)} only tensors that earlier ones take; the first wins.")
    embedding = next((device for pattern, device in overrides if re.search(pattern, "token_embd.weight")), "CPU")
    if embedding != "CPU" and model.hyperparameters.traits.reads_embedding:
        warnings.append(
            f"The head of this model is its embedding, and is counted in host memory; moved to {embedding}, it takes "
            "bytes and logits there."
        )
    return warnings


def _listed(what: str, patterns: Sequence[str]) -> str:
    if len(patterns) == 1:
        return f"{what} {patterns[0]!r} matches"
    more = f" and {len(patterns) - 2} more" if len(patterns) > 2 else ""
    return f"{what}s {patterns[0]!r}, {patterns[1]!r}{more} match"


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """Tensor names that look most like a pattern, one of each kind of tensor."""
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "", name), name)
    literal = re.sub(r"^\^?blk\\?\..*?\\?\.(?=[a-z(])", "", pattern)
    letters = re.sub(r"\\.|[^a-z0-9_.]", "", literal.replace(r"\.", "."))
    near = get_close_matches(letters, kinds, n=3, cutoff=0.4) or list(kinds)[:1]
    return [kinds[kind] for kind in near]
