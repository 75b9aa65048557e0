"""What an architecture does that its tensors do not say: one small description each.

Which layers are recurrent, have experts, biases or fused projections is read from the tensors; sizes are read from
the metadata. What is left (which layers slide, how experts are gated, what is scaled, in which order things are added)
is in `ARCHITECTURES`, after llama.cpp's own rules. A new architecture is one line there. An architecture that is not
listed is taken for an ordinary decoder, with a warning, unless its cache cannot be sized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Sliding-window (or chunked) attention.

    Attributes
    ----------
    period : int
        The last of so many layers attends to the whole context; 0: none does. A pattern in the file goes before it.
    full_first : bool
        It is the first of them instead.
    tokens : int
        Window where the file names none; 0 means that there is none then.
    fixed : bool
        `tokens` holds whatever the file says, unless the file says 0.
    """

    period: int
    full_first: bool = False
    tokens: int = 0
    fixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one architecture differs from a plain pre-norm decoder.

    Attributes
    ----------
    causal : bool
        False for encoders, which keep no cache.
    window : Window or None
    rope : str
        ``"always"``, ``"never"``, ``"windows"`` (only in layers with a window), ``"windows_if_any"`` (so in models that
        have windows), ``"switch"`` (unless the file says otherwise).
    no_rope_period : int
        The last of so many layers has no rotary embedding; 0: all have.
    rope_sections : bool or None
        Positions have four sections (text and images); None: where the file has sections.
    layer_norm : bool
        Norms subtract the mean; else RMS norms.
    sum : str or None
        How attention, FFN and residual are summed: ``"sequential"``, or side by side in the order of the additions:
        ``"ffn_residual_attention"``, ``"ffn_attention_residual"``, ``"attention_ffn_residual"``. None: the first of
        these, if the file says that they are parallel.
    residual_first_in_attention, residual_first : bool
        The residual is the first operand of the sum behind the attention, and of the one behind the FFN.
    late_rows : str
        Where rows that are not wanted are dropped, if not inside the last layer: ``"before_norm"`` or
        ``"behind_norm"``.
    scales : tuple of str
        What is always scaled: ``"embedding"``, ``"residual"``, ``"head_input"``, ``"logits"``.
    scales_in_file : bool
        Factors on embedding, residual and logits count where the file has them.
    softcaps : (float, float) or None
        Defaults of the caps on attention and output logits; None where the architecture has no caps.
    gated_attention : bool
        The query projection carries an output gate.
    joined_heads : bool
        Fused projections are taken apart before they are heads.
    norm_behind_rope : bool
        Queries and keys are normed after they are rotated.
    unweighted_qk_norm : bool
        Rotated queries and keys are normed without a weight tensor (not in its 128-expert model).
    temperature : str
        Queries that are scaled by position: ``"none"``, ``"unrotated"``, ``"in_file"`` (all, where the file has a
        scale).
    ffn_reads_attention_norm : bool
        Where the FFN has no norm of its own.
    squared_activation : bool
        Of FFNs without gate: ReLU squared.
    gating : str
        Of experts: ``"softmax"``, ``"sigmoid"``, ``"softmax_of_selected"``.
    gating_in_file : bool
        `gating` is only the default.
    normalised : bool or None
        Expert weights are divided by their sum; None: as the file says.
    weight_before_ffn : bool
        Expert weights multiply the experts' input.
    shared_gate_by_ratio : bool
        The gate of the shared experts is silu(x) / x.
    repeats_key_heads : bool
        Of linear attention: keys and queries are repeated to the number of value heads.
    """

    causal: bool = True
    window: Window | None = None
    rope: Literal["always", "never", "windows", "windows_if_any", "switch"] = "always"
    no_rope_period: int = 0
    rope_sections: bool | None = False
    layer_norm: bool = False
    sum: Literal["sequential", "ffn_residual_attention", "ffn_attention_residual", "attention_ffn_residual"] | None = (
        "sequential"
    )
    residual_first_in_attention: bool = False
    residual_first: bool = False
    late_rows: Literal["no", "before_norm", "behind_norm"] = "no"
    scales: tuple[Literal["embedding", "residual", "head_input", "logits"], ...] = ()
    scales_in_file: bool = False
    softcaps: tuple[float, float] | None = None
    gated_attention: bool = False
    joined_heads: bool = False
    norm_behind_rope: bool = False
    unweighted_qk_norm: bool = False
    temperature: Literal["none", "unrotated", "in_file"] = "none"
    ffn_reads_attention_norm: bool = False
    squared_activation: bool = False
    gating: Literal["softmax", "sigmoid", "softmax_of_selected"] = "softmax"
    gating_in_file: bool = False
    normalised: bool | None = True
    weight_before_ffn: bool = False
    shared_gate_by_ratio: bool = False
    repeats_key_heads: bool = False


PLAIN = Architecture()
_UNNORMALISED = Architecture(normalised=False)
_ROUTER_IN_FILE = Architecture(gating_in_file=True, normalised=None)
_LAYER_NORM = Architecture(layer_norm=True)
_GATED_DELTA = Architecture(gated_attention=True, joined_heads=True, late_rows="behind_norm")
_ENCODER = Architecture(causal=False, layer_norm=True, normalised=False)
_GRANITE = Architecture(scales_in_file=True, rope="switch")
_NEMOTRON_H = Architecture(
    rope="never", gating="sigmoid", normalised=None, squared_activation=True, late_rows="behind_norm"
)
_COHERE = Architecture(layer_norm=True, sum="ffn_residual_attention", scales_in_file=True)

ARCHITECTURES: dict[str, Architecture] = {
    # Plain decoders, dense or with softmax-gated, normalised experts. phi3 and starcoder2 files may name a sliding
    # window; llama.cpp does not apply it.
    **dict.fromkeys(
        (
            "apertus", "baichuan", "chatglm", "ernie4_5", "ernie4_5-moe", "exaone", "falcon-h1", "internlm2", "llama",
            "mamba", "mamba2", "qwen", "qwen2", "qwen3", "qwen3moe", "seed_oss", "xverse",
        ),
        PLAIN,
    ),
    **dict.fromkeys(("qwen2vl", "qwen3vl", "qwen3vlmoe"), Architecture(rope_sections=True)),
    **dict.fromkeys(("bert", "jina-bert-v2"), replace(_ENCODER, rope="never")),
    **dict.fromkeys(("bloom", "gpt2", "mpt", "starcoder"), replace(_LAYER_NORM, rope="never")),
    **dict.fromkeys(("codeshell", "dbrx", "olmo", "orion", "starcoder2"), _LAYER_NORM),
    **dict.fromkeys(("bailingmoe2", "deepseek2", "dots1"), replace(_ROUTER_IN_FILE, temperature="in_file")),
    **dict.fromkeys(("granite", "granitehybrid", "granitemoe"), _GRANITE),
    **dict.fromkeys(("hunyuan-dense", "hunyuan-moe"), Architecture(norm_behind_rope=True)),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _NEMOTRON_H),
    **dict.fromkeys(("nomic-bert", "nomic-bert-moe"), _ENCODER),
    **dict.fromkeys(("phi3", "phimoe"), Architecture(residual_first=True)),
    **dict.fromkeys(("qwen35", "qwen35moe"), replace(_GATED_DELTA, rope_sections=True)),
    "arcee": Architecture(squared_activation=True),
    "bailingmoe": Architecture(normalised=None),
    "cohere2": replace(_COHERE, window=Window(period=4), rope="windows"),
    "command-r": _COHERE,
    "deepseek": _UNNORMALISED,
    "exaone4": Architecture(window=Window(period=4), rope="windows_if_any"),
    "falcon": Architecture(layer_norm=True, sum="ffn_attention_residual"),
    "gemma": Architecture(scales=("embedding",)),
    "gemma2": Architecture(scales=("embedding",), window=Window(period=2, tokens=4096), softcaps=(50.0, 30.0)),
    "gemma3": Architecture(scales=("embedding",), window=Window(period=6), softcaps=(0.0, 0.0)),
    "glm4": Architecture(rope_sections=None),
    "glm4moe": Architecture(gating="sigmoid", gating_in_file=True, normalised=None, rope_sections=None),
    "gpt-oss": Architecture(
        gating="softmax_of_selected", normalised=False, window=Window(period=2), late_rows="before_norm"
    ),
    "gptneox": Architecture(layer_norm=True, sum=None),
    "jamba": Architecture(
        rope="never", normalised=False, residual_first=True, residual_first_in_attention=True
    ),
    "lfm2": Architecture(window=Window(period=0), residual_first=True, residual_first_in_attention=True),
    "lfm2moe": Architecture(
        gating="sigmoid", gating_in_file=True, residual_first=True, residual_first_in_attention=True
    ),
    "llama4": Architecture(
        gating="sigmoid",
        normalised=False,
        weight_before_ffn=True,
        window=Window(period=4, tokens=8192, fixed=True),
        no_rope_period=4,
        unweighted_qk_norm=True,
        temperature="unrotated",
    ),
    "minicpm": Architecture(scales=("embedding", "residual", "logits")),
    "minicpm3": Architecture(scales=("embedding", "residual", "head_input")),
    "minimax-m2": Architecture(gating="sigmoid", gating_in_file=True, joined_heads=True),
    "mistral3": Architecture(temperature="in_file"),
    "modern-bert": replace(_ENCODER, window=Window(period=3, full_first=True)),
    "nemotron": Architecture(layer_norm=True, squared_activation=True),
    "olmo2": Architecture(window=Window(period=4), joined_heads=True),
    "olmoe": Architecture(normalised=False, joined_heads=True),
    "phi2": Architecture(layer_norm=True, sum="attention_ffn_residual"),
    "plm": Architecture(squared_activation=True),
    "qwen2moe": Architecture(normalised=False, shared_gate_by_ratio=True),
    "qwen3next": replace(_GATED_DELTA, repeats_key_heads=True),
    "smollm3": Architecture(no_rope_period=4),
    "stablelm": Architecture(layer_norm=True, ffn_reads_attention_norm=True),
}  # fmt: skip

# Why these cannot be planned: by architecture, and by the metadata keys of architectures that are not listed.
REFUSED_ARCHITECTURES = {
    "clip": "it is a vision or audio projector, not a language model; give the model's own GGUF",
    "t5": "encoder and decoder keep caches of two kinds",
    "t5encoder": "encoder-decoder models are not described",
    "gemma3n": "its upper layers share the KV cache of lower ones",
    "gemma4": "its upper layers may share the KV cache of lower ones",
    "wavtokenizer-dec": "it is an audio decoder, not a language model",
}
REFUSED_KEYS = {
    "attention.shared_kv_layers": "layers share a KV cache",
    "attention.indexer.head_count": "sparse attention keeps an indexer cache of its own",
    "attention.compress_ratios": "it keeps a compressed KV cache",
    "kda.head_dim": "its linear attention keeps a state of unknown size",
    "wkv.head_size": "RWKV layers keep a state of unknown size",
}
