"""Hyperparameters of the model behind a GGUF header.

Mixers and what a layer has come from tensor names, sizes from the metadata, and the rest from the table in
`architectures`. Nothing is believed unchecked: sizes are bounded, and head counts must agree with the projections,
since the KV cache is sized by them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pshard.errors import ModelError
from pshard.gguf.file import GgufHeader, SkippedArray, TensorInfo
from pshard.model.architectures import ARCHITECTURES, REFUSED_ARCHITECTURES, UNKNOWN, Architecture

if TYPE_CHECKING:
    from pshard import _core

_MAX_SIZE = 1 << 24  # of one dimension: products of two, times a block's bytes, stay far inside int64
# Of what is looped over: llama.cpp's own LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS, above which it loads no model.
_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_GATING_IDS = {1: "softmax", 2: "sigmoid", 3: "softmax_of_selected"}
_KEY_TENSORS = frozenset({"attn_k", "attn_kv", "attn_qkv", "attn_kv_a_mqa"})


class _Keys:
    """The metadata below an architecture's prefix, checked on the way out."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self._header = header
        self._prefix = architecture + "."

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._header.metadata

    def _get(self, key: str) -> object:
        return self._header.metadata.get(self._prefix + key)

    def _fail(self, key: str, value: object, rule: str) -> ModelError:
        return ModelError(
            f"{self._header.path or 'model'}: {self._prefix}{key} is {value!r}; it must be {rule}. The file cannot be "
            "planned; convert it again."
        )

    def _check(self, key: str, value: object, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise self._fail(key, value, f"a whole number from 0 to {limit}")
        return value

    def integer(self, key: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
        value = self._get(key)
        if value is None:
            if default is None:
                raise self._fail(key, None, "present")
            value = default
        if isinstance(value, list):  # a per-layer list where one number is asked for: the largest
            return max((self._check(key, item, limit) for item in value), default=0)
        return self._check(key, value, limit)

    def number(self, key: str, default: float) -> float:
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise self._fail(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        return default if value is None else bool(value)

    def any(self, key: str) -> bool:
        """Whether a list in the file has anything but zeros."""
        value = self._get(key)
        return isinstance(value, list) and any(bool(item) for item in value)

    def per_layer(self, key: str, n_layer: int, default: list[int]) -> list[int]:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            return [self._check(key, value, _MAX_SIZE)] * n_layer
        if len(value) < n_layer:
            raise self._fail(key, f"a list of {len(value)}", f"one number, or one for each of the {n_layer} layers")
        return [self._check(key, item, _MAX_SIZE) for item in value[:n_layer]]

    def flags(self, key: str, n_layer: int) -> list[bool] | None:
        """One for each layer, or nothing."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            return [bool(value)] * n_layer
        if len(value) < n_layer:
            raise self._fail(key, f"a list of {len(value)}", f"one flag for each of the {n_layer} layers")
        return [bool(item) for item in value[:n_layer]]

    def window_pattern(self, n_layer: int) -> list[bool] | int | None:
        """Which layers slide, as the file has it: a list of flags, a period, or nothing."""
        key = "attention.sliding_window_pattern"
        value = self._get(key)
        if value is None or isinstance(value, list):
            return self.flags(key, n_layer)
        return self._check(key, value, _MAX_SIZE)


def describe(header: GgufHeader) -> tuple[_core.Hyperparameters, tuple[str, ...]]:
    """Hyperparameters and graph traits of the model behind a header.

    Parameters
    ----------
    header : GgufHeader

    Returns
    -------
    hyperparameters : _core.Hyperparameters
    warnings : tuple of str
        What had to be assumed.

    Raises
    ------
    ModelError
        Not a language model, contradictory metadata, or a cache whose size cannot be told.
    """
    name = _architecture_name(header)
    keys = _Keys(header, name)
    warnings: tuple[str, ...] = ()
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        architecture = UNKNOWN
        warnings = (
            f"architecture '{name}' is not known: planned from its tensor names as an ordinary decoder. Compute is a "
            "rough estimate, and KV is counted for the whole context unless the file says which layers slide.",
        )
    return _hyperparameters(header, name, keys, architecture), warnings


def _architecture_name(header: GgufHeader) -> str:
    where = header.path or "model"
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        message = f"{where}: general.type is {kind!r}, not 'model'. Give the GGUF of the model itself."
        raise ModelError(message)
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or not name:
        message = f"{where}: general.architecture is {name!r}; without it no size can be read. Convert the model again."
        raise ModelError(message)
    if name in REFUSED_ARCHITECTURES:
        message = f"{where}: architecture '{name}' cannot be planned: {REFUSED_ARCHITECTURES[name]}."
        raise ModelError(message)
    return name


def _hyperparameters(header: GgufHeader, name: str, keys: _Keys, architecture: Architecture) -> _core.Hyperparameters:
    from pshard import _core

    layers = _tensors_by_layer(header)
    h = _core.Hyperparameters()
    h.architecture = name
    n_stored = keys.integer("block_count", default=max(layers, default=-1) + 1, limit=_MAX_LAYERS)
    h.n_layer_nextn = keys.integer("nextn_predict_layers", default=0, limit=_MAX_LAYERS)
    h.n_layer = n_stored - h.n_layer_nextn
    if h.n_layer <= 0 or n_stored > len(header.tensors):
        message = (
            f"{header.path or 'model'}: {n_stored} layers of which {h.n_layer_nextn} predict next tokens, in "
            f"{len(header.tensors)} tensors: not a complete model. Give the GGUF of a whole model."
        )
        raise ModelError(message)
    h.n_embd = keys.integer("embedding_length")
    if architecture.deepstack:
        h.n_deepstack = keys.integer("n_deepstack_layers", default=0, limit=_MAX_LAYERS)
    h.n_states = max(keys.integer("altup.num_inputs", default=1, limit=_MAX_LAYERS), 1)
    h.n_vocab = _vocabulary_size(header, keys)
    h.n_ctx_train = keys.integer("context_length", default=0, limit=(1 << 32) - 1)
    h.n_expert = keys.integer("expert_count", default=0, limit=_MAX_EXPERTS)
    h.n_expert_used = keys.integer("expert_used_count", default=0, limit=_MAX_EXPERTS)
    if not min(h.n_expert, 1) <= h.n_expert_used <= h.n_expert:
        message = f"{header.path or 'model'}: {h.n_expert_used} experts used of {h.n_expert}. Convert the model again."
        raise ModelError(message)
    _check_experts(header, h.n_expert, layers)
    h.kv_lora_rank = keys.integer("attention.kv_lora_rank", default=0)
    if h.kv_lora_rank:
        h.rope_dim = keys.integer("rope.dimension_count")
        h.head_dim_k_mla = keys.integer("attention.key_length_mla", default=0)
        h.head_dim_v_mla = keys.integer("attention.value_length_mla", default=0)
    h.indexer_n_head = keys.integer("attention.indexer.head_count", default=0)
    h.indexer_top_k = keys.integer("attention.indexer.top_k", default=0)
    h.ssm_conv_kernel = keys.integer("ssm.conv_kernel", default=0)
    h.ssm_inner_size = keys.integer("ssm.inner_size", default=0)
    h.ssm_state_size = keys.integer("ssm.state_size", default=0)
    h.ssm_group_count = keys.integer("ssm.group_count", default=0)
    h.ssm_time_step_rank = keys.integer("ssm.time_step_rank", default=0)
    h.traits = _traits(keys, architecture)
    h.layers = _LayerDescriber(header, keys, architecture, h, layers).describe_all()
    return h


def _tensors_by_layer(header: GgufHeader) -> dict[int, dict[str, TensorInfo]]:
    """Layer -> what precedes the first dot of a local name -> tensor (the weight, where there is also a bias)."""
    from pshard import _core

    layers: dict[int, dict[str, TensorInfo]] = defaultdict(dict)
    for tensor in header.tensors:
        layer = _core.layer_of(tensor.name)
        if layer >= 0:
            stem, _, suffix = _core.local_name(tensor.name).partition(".")
            if suffix == "weight" or stem not in layers[layer]:
                layers[layer][stem] = tensor
    return layers


def _check_experts(header: GgufHeader, n_expert: int, layers: dict[int, dict[str, TensorInfo]]) -> None:
    """Hold the expert count against the stacked weights; time and slices of a weight are counted by it."""
    for tensors in layers.values():
        for stem, tensor in tensors.items():
            if not (stem.endswith("_exps") and tensor.name.endswith(".weight")) or stem == "ffn_norm_exps":
                continue
            stacked = tensor.shape[2] if len(tensor.shape) > 2 else 1
            if stacked != n_expert:
                message = (
                    f"{header.path or 'model'}: tensor '{tensor.name}' holds {stacked} experts, but expert_count is "
                    f"{n_expert}. Convert the model again."
                )
                raise ModelError(message)


def _vocabulary_size(header: GgufHeader, keys: _Keys) -> int:
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) == 2:
            return tensor.shape[1]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, SkippedArray) else keys.integer("vocab_size", default=0)


def _traits(keys: _Keys, architecture: Architecture) -> _core.GraphTraits:
    from pshard import _core

    traits = _core.GraphTraits()
    traits.is_guessed = architecture.guessed
    traits.n_side_by_side = max(keys.integer("hyper_connection.count", default=1, limit=_MAX_LAYERS), 1)
    _set_ends(traits, keys, architecture)
    _set_residuals(traits, keys, architecture)
    _set_attention(traits, keys, architecture)
    _set_experts(traits, keys, architecture)
    traits.squared_activation = architecture.squared_activation
    traits.norms_time_step = keys.flag("ssm.dt_b_c_rms", default=False)
    traits.repeats_key_heads = architecture.repeats_key_heads
    traits.head_ignores_adapters = "head" in architecture.ignores_adapters
    traits.attention_ignores_adapters = "attention" in architecture.ignores_adapters
    return traits


def _set_ends(traits: _core.GraphTraits, keys: _Keys, architecture: Architecture) -> None:
    """Say what comes before the first layer and after the last, and whether anything is kept between passes."""
    from pshard import _core

    # A decoder keeps its cache also where the file says that it attends to what follows.
    traits.causal = architecture.causal
    traits.has_encoder = architecture.has_encoder
    traits.keeps_cache = traits.causal if architecture.keeps_cache is None else architecture.keeps_cache
    traits.caches_by_sequence = architecture.compressed_cache
    traits.reads_embedding = architecture.reads_embedding
    traits.normed_embedding = architecture.normed_embedding
    traits.predicts = traits.causal if architecture.predicts is None else architecture.predicts
    traits.loads_head = traits.predicts or architecture.loads_head
    traits.repeats_tied_head = architecture.repeats_tied_head
    traits.scaled_head_input = "head_input" in architecture.scales
    traits.scaled_query = "query" in architecture.scales
    traits.late_rows = _core.LateRows[architecture.late_rows]
    traits.norms_before_dropping_rows = architecture.norms_before_dropping_rows
    traits.norms_results_alone = architecture.norms_results_alone
    for scaled in ("embedding", "residual", "logits"):
        in_file = architecture.scales_in_file and keys.number(f"{scaled.removesuffix('s')}_scale", 0.0) != 0.0
        setattr(traits, f"scaled_{scaled}", in_file or scaled in architecture.scales)


def _set_residuals(traits: _core.GraphTraits, keys: _Keys, architecture: Architecture) -> None:
    """Say how a layer is normed, and how its parts are added up."""
    from pshard import _core

    has_rms = keys.number("attention.layer_norm_rms_epsilon", 0.0) != 0.0
    traits.layer_norm = not has_rms if architecture.layer_norm is None else architecture.layer_norm
    traits.unweighted_norms = architecture.unweighted_norms
    traits.scales_normed_input = architecture.scales_normed_input
    parallel = architecture.sum is None and keys.flag("use_parallel_residual", default=False)
    traits.sum = _core.Sum[architecture.sum or ("ffn_residual_attention" if parallel else "sequential")]
    traits.residual_first_in_attention = architecture.residual_first_in_attention
    traits.residual_first = architecture.residual_first
    traits.ffn_reads_attention_norm = architecture.ffn_reads_attention_norm


def _set_attention(traits: _core.GraphTraits, keys: _Keys, architecture: Architecture) -> None:
    from pshard import _core

    if architecture.softcaps is not None:
        traits.attention_softcap = keys.number("attn_logit_softcapping", architecture.softcaps[0])
        traits.logits_softcap = keys.number("final_logit_softcapping", architecture.softcaps[1])
    has_sections = architecture.rope_sections
    if has_sections is None:
        has_sections = keys.any("rope.dimension_sections")
    traits.positions_per_token = 4 if has_sections else 1
    traits.fuses_attention = architecture.fuses_attention
    traits.gated_attention = architecture.gated_attention
    traits.joined_heads = architecture.joined_heads
    traits.clamped_qkv = keys.number("attention.clamp_kqv", 0.0) > 0.0
    traits.norm_behind_rope = architecture.norm_behind_rope
    traits.norms_values = architecture.norms_values
    traits.full_layers_scale_rope = architecture.full_layers_scale_rope
    traits.windows_scale_rope = architecture.windows_scale_rope
    traits.norm_without_weight = architecture.unweighted_qk_norm and keys.integer("expert_count", default=0) != 128
    temperature: str = architecture.temperature
    if temperature == "in_file":
        temperature = "all" if keys.number("attention.temperature_scale", 0.0) != 0.0 else "none"
    traits.temperature = _core.Temperature[temperature]


def _set_experts(traits: _core.GraphTraits, keys: _Keys, architecture: Architecture) -> None:
    """Say how experts are chosen and weighed, and what runs beside them."""
    from pshard import _core

    gating: str = architecture.gating
    if architecture.gating_in_file:
        gating = _GATING_IDS.get(keys.integer("expert_gating_func", default=0), gating)
    traits.gating = _core.Gating[gating]
    traits.n_expert_groups = max(keys.integer("expert_group_count", default=0, limit=_MAX_EXPERTS), 1)
    traits.n_expert_groups_used = max(keys.integer("expert_group_used_count", default=0, limit=_MAX_EXPERTS), 1)
    normalised = architecture.normalised
    traits.normalised_expert_weights = (
        keys.flag("expert_weights_norm", default=False) if normalised is None else normalised
    )
    traits.scaled_expert_weights = keys.number("expert_weights_scale", 0.0) not in (0.0, 1.0)
    traits.experts_down_on_host = architecture.experts_down_on_host
    traits.routes_layer_input = architecture.routes_layer_input
    traits.weight_before_ffn = architecture.weight_before_ffn
    traits.halves_experts = architecture.halves_experts
    traits.shared_gate_by_ratio = architecture.shared_gate_by_ratio


class _LayerDescriber:
    """Per-layer parameters: mixers from tensor names, sizes from metadata, each checked against the other."""

    def __init__(
        self,
        header: GgufHeader,
        keys: _Keys,
        architecture: Architecture,
        h: _core.Hyperparameters,
        layers: dict[int, dict[str, TensorInfo]],
    ) -> None:
        self._where = header.path or "model"
        self._keys = keys
        self._architecture = architecture
        self._h = h
        self._tensors = layers
        self._n_stored = h.n_layer + h.n_layer_nextn
        self._heads = keys.per_layer("attention.head_count", self._n_stored, [0] * self._n_stored)
        self._heads_kv = keys.per_layer("attention.head_count_kv", self._n_stored, self._heads)
        self._windows = self._window_per_layer()
        self._indexes = self._indexer_per_layer()
        shared = keys.integer("attention.shared_kv_layers", default=0, limit=_MAX_LAYERS)
        self._n_with_cache = architecture.layers_with_cache or self._n_stored - shared

    def describe_all(self) -> list[_core.LayerParameters]:
        return [self._describe(index) for index in range(self._n_stored)]

    def _window_per_layer(self) -> list[int]:
        none = [0] * self._n_stored
        window = self._architecture.window
        if window is None:
            return none
        default = 0 if window.asked else window.tokens
        tokens = self._keys.integer("attention.sliding_window", default=default)
        if window.fixed and tokens:
            tokens = window.tokens
        pattern = self._keys.window_pattern(self._h.n_layer)
        if isinstance(pattern, list):
            slides = pattern
        else:
            period = window.period if pattern is None else pattern
            full = 0 if window.full_first else period - 1
            slides = [period == 0 or i % period != full for i in range(self._h.n_layer)]
        return [tokens if slide else 0 for slide in slides] + none[: self._h.n_layer_nextn]

    def _indexer_per_layer(self) -> list[bool]:
        """Which layers choose cells; the others attend to those of the one before."""
        types = self._keys.flags("attention.indexer.types", self._h.n_layer)
        sharing = self._architecture.indexer_sharing
        if types is None and sharing is not None and self._h.n_ctx_train >= sharing.from_context:
            types = [i < sharing.first or (i - sharing.first) % sharing.period == 0 for i in range(self._h.n_layer)]
        return (types or [True] * self._h.n_layer) + [True] * self._h.n_layer_nextn

    def _describe(self, index: int) -> _core.LayerParameters:
        from pshard import _core

        tensors = self._tensors.get(index, {})
        layer = _core.LayerParameters()
        layer.mixer = self._mixer(index, tensors)
        if layer.mixer not in (_core.Mixer.attention, _core.Mixer.none):
            self._fill_state(index, layer)
        attends = layer.mixer == _core.Mixer.attention or "attn_output" in tensors
        replaces = layer.mixer in (_core.Mixer.channel_delta, _core.Mixer.lightning)  # and is named like attention
        if attends and not replaces and not _KEY_TENSORS.isdisjoint(tensors):
            self._fill_attention(index, layer, tensors)
        self._check_ffn(index, tensors)
        layer.is_sparse = index < self._architecture.sparse_layers
        return layer

    def _mixer(self, index: int, tensors: dict[str, TensorInfo]) -> _core.Mixer:
        from pshard import _core

        if "shortconv" in tensors:
            return _core.Mixer.short_convolution
        if "ssm_f_a" in tensors:
            return _core.Mixer.channel_delta
        if "ssm_ba" in tensors or "ssm_alpha" in tensors:
            return _core.Mixer.gated_delta
        if "ssm_x" in tensors:
            by_head = "ssm_a" in tensors and len(tensors["ssm_a"].shape) == 1
            return _core.Mixer.mamba_heads if by_head else _core.Mixer.mamba
        if "ssm_in" in tensors:
            return _core.Mixer.mamba2
        if "time_mix_w1" in tensors:
            return _core.Mixer.token_shift
        if {"attn_norm_2", "attn_qkv", "attn_gate"} <= tensors.keys():
            return _core.Mixer.lightning
        if any(stem.startswith(("ssm_", "time_mix")) for stem in tensors):
            message = (
                f"{self._where}: layer {index} has a recurrent mixer of unknown kind, so its state cannot be sized."
            )
            raise ModelError(message)
        attends = "attn_output" in tensors or not _KEY_TENSORS.isdisjoint(tensors)
        return _core.Mixer.attention if attends else _core.Mixer.none

    def _check_ffn(self, index: int, tensors: dict[str, TensorInfo]) -> None:
        """Refuse an FFN without its end, since such a layer would be planned as if it had none."""
        for kind in ("", "_exps", "_shexp"):
            if f"ffn_up{kind}" in tensors and f"ffn_down{kind}" not in tensors:
                message = (
                    f"{self._where}: layer {index} has ffn_up{kind} but tensor 'blk.{index}.ffn_down{kind}.weight' is "
                    "missing. The file is incomplete; give the GGUF of a whole model."
                )
                raise ModelError(message)

    def _fill_state(self, index: int, layer: _core.LayerParameters) -> None:
        from pshard import _core

        h = self._h
        if layer.mixer == _core.Mixer.short_convolution:
            layer.conv_state = h.n_embd * max(self._keys.integer("shortconv.l_cache") - 1, 0)
            return
        if layer.mixer == _core.Mixer.token_shift:
            layer.conv_state = self._keys.integer("token_shift_count", default=2, limit=_MAX_LAYERS) * h.n_embd
            layer.scan_state = self._keys.integer("wkv.head_size") * h.n_embd
            layer.gives_value = index == 0 and "time_mix_v1" in self._tensors.get(index, {})
            return
        if layer.mixer == _core.Mixer.lightning:
            head_dim = self._keys.integer("attention.key_length")
            layer.scan_state = self._heads[index] * head_dim * head_dim
            return
        if layer.mixer == _core.Mixer.channel_delta:
            head_dim = self._keys.integer("kda.head_dim")
            inner = self._heads[index] * head_dim
            layer.conv_state = 3 * max(h.ssm_conv_kernel - 1, 0) * inner
            layer.scan_state = head_dim * inner
            layer.norms_before_state = "ssm_f_b" in self._tensors.get(index, {})
            return
        if not (h.ssm_conv_kernel and h.ssm_inner_size and h.ssm_state_size):
            message = (
                f"{self._where}: layer {index} is recurrent, but the ssm.* sizes of its state are missing. "
                "Convert the model again."
            )
            raise ModelError(message)
        groups = 0 if layer.mixer in (_core.Mixer.mamba, _core.Mixer.mamba_heads) else h.ssm_group_count
        layer.conv_state = (h.ssm_conv_kernel - 1) * (h.ssm_inner_size + 2 * groups * h.ssm_state_size)
        layer.scan_state = h.ssm_state_size * h.ssm_inner_size

    def _fill_attention(self, index: int, layer: _core.LayerParameters, tensors: dict[str, TensorInfo]) -> None:
        keys, architecture = self._keys, self._architecture
        layer.n_head, layer.n_head_kv = self._heads[index], self._heads_kv[index]
        if not layer.n_head or not layer.n_head_kv:
            message = (
                f"{self._where}: layer {index} has attention tensors but {layer.n_head} heads and {layer.n_head_kv} KV "
                "heads, so its KV cache cannot be sized. Convert the model again."
            )
            raise ModelError(message)
        layer.window = self._windows[index]
        default = self._h.n_embd // next(n for n in self._heads if n)
        layer.head_dim_k = keys.integer("attention.key_length", default=default)
        layer.head_dim_v = keys.integer("attention.value_length", default=default)
        if layer.window:
            layer.head_dim_k = keys.integer("attention.key_length_swa", default=layer.head_dim_k)
            layer.head_dim_v = keys.integer("attention.value_length_swa", default=layer.head_dim_v)
        has_indexer = self._h.indexer_n_head > 0 and "indexer" in tensors and self._indexes[index]
        layer.is_selective = self._h.indexer_n_head > 0 and self._h.kv_lora_rank > 0
        if has_indexer:
            layer.indexer_dim = keys.integer("attention.indexer.key_length")
        if has_indexer and architecture.indexer_keeps_values:
            layer.indexer_dim_v = layer.head_dim_v
        if "attn_kv" in tensors:  # values are keys
            layer.head_dim_v = 0
        if architecture.compressed_cache:
            self._fill_compression(index, layer)
        if self._h.head_dim_k_mla and self._h.head_dim_v_mla:
            layer.head_dim_v = 0  # the cache holds the latent, of which V is a part
            if layer.head_dim_k != self._h.kv_lora_rank + self._h.rope_dim:
                message = (
                    f"{self._where}: key_length is {layer.head_dim_k}, but the latent of layer {index} has "
                    f"{self._h.kv_lora_rank} + {self._h.rope_dim} dimensions. Convert the model again."
                )
                raise ModelError(message)
        elif architecture is not UNKNOWN:
            self._check_widths(index, layer, tensors)
        layer.uses_rope = {
            "always": True,
            "never": False,
            "windows": layer.window > 0,
            "windows_and_first": layer.window > 0 or index < keys.integer("leading_dense_block_count", default=0),
            "windows_if_any": layer.window > 0 or not any(self._windows),
            "switch": keys.flag("rope.scaling.finetuned", default=True),
        }[architecture.rope] and not (architecture.no_rope_period and (index + 1) % architecture.no_rope_period == 0)
        if self._h.n_layer == architecture.no_rope_layers:
            layer.uses_rope = False

        if index >= self._n_with_cache:
            layer.shared_cache = self._cache_to_share(index, layer)

    def _fill_compression(self, index: int, layer: _core.LayerParameters) -> None:
        """Keys and scores of the tokens that are being compressed; twice as many where an indexer's overlap."""
        ratios = self._keys.per_layer("attention.compress_ratios", self._n_stored, [0] * self._n_stored)
        layer.compression = ratios[index]
        overlap = 2 if layer.indexer_dim else 1
        layer.conv_state = 2 * overlap * layer.head_dim_k * overlap * layer.compression
        layer.scan_state = 2 * overlap * layer.indexer_dim * overlap * layer.compression

    def _cache_to_share(self, index: int, layer: _core.LayerParameters) -> int:
        """Of the last two layers that keep a cache, the first slides and the second does not."""
        shared = self._n_with_cache - (2 if layer.window else 1)
        if shared < 0 or bool(self._windows[shared]) != bool(layer.window):
            message = (
                f"{self._where}: layer {index} would read the cache of layer {shared}, which "
                f"{'does not slide' if layer.window else 'slides'} like it. Convert the model again."
            )
            raise ModelError(message)
        return shared

    def _check_widths(self, index: int, layer: _core.LayerParameters, tensors: dict[str, TensorInfo]) -> None:
        """Hold the head counts against the projections; the KV cache is only as true as they are."""
        k, v = layer.n_head_kv * layer.head_dim_k, layer.n_head_kv * layer.head_dim_v
        q = layer.n_head * layer.head_dim_k * (2 if self._architecture.gated_attention else 1)
        expected = {"attn_k": k, "attn_v": v, "attn_qkv": q + k + v}
        for stem, width in expected.items():
            tensor = tensors.get(stem)
            if tensor is not None and len(tensor.shape) == 2 and tensor.shape[1] != width:
                message = (
                    f"{self._where}: tensor '{tensor.name}' is {tensor.shape[1]} wide, but {layer.n_head_kv} KV heads "
                    f"of {layer.head_dim_k} and {layer.head_dim_v} make {width}, so the KV cache of layer {index} "
                    "cannot be sized. Convert the model again."
                )
                raise ModelError(message)
