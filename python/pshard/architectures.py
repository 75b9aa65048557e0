"""What an architecture does that its tensors do not say: one small description each.

Which layers are recurrent, have experts, biases or fused projections is read from the tensors; sizes are read from the
metadata. What is left (which layers slide, how experts are gated, what is scaled) is in `ARCHITECTURES`, after
llama.cpp's own rules. A new architecture is one line there. An architecture that is not listed is taken for an ordinary
decoder, with a warning, unless its cache cannot be sized.
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
    tokens : int
        Window where the file names none; 0 means that there is none then.
    fixed : bool
        `tokens` holds whatever the file says, unless the file says 0.
    """

    period: int
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
        ``"always"``, ``"never"``, ``"windows"`` (only in layers with a window), ``"switch"`` (unless the file says
        otherwise).
    no_rope_period : int
        The last of so many layers has no rotary embedding; 0: all have.
    parallel : bool or None
        Attention and FFN read the same residual; None: as the file says.
    scaled_embedding : bool
    scales_in_file : bool
        Factors on embedding, residual and logits count where the file has them.
    softcaps : (float, float) or None
        Defaults of the caps on attention and output logits; None where the architecture has no caps.
    gated_attention : bool
    gating : str
        Of experts: ``"softmax"``, ``"sigmoid"``, ``"softmax_of_selected"``.
    gating_in_file : bool
        `gating` is only the default.
    normalised : bool or None
        Expert weights are divided by their sum; None: as the file says.
    weight_before_ffn : bool
        Expert weights multiply the experts' input.
    residual_first : bool
        The residual is the first operand of the sum behind the FFN.
    late_rows : bool
        Rows that are not wanted are dropped before the head, not inside the last layer.
    unweighted_qk_norm : bool
        Rotated queries and keys are normed without a weight tensor (not in its 128-expert model).
    attention_temperature : bool
        Queries that are not rotated are scaled by position.
    """

    causal: bool = True
    window: Window | None = None
    rope: Literal["always", "never", "windows", "switch"] = "always"
    no_rope_period: int = 0
    parallel: bool | None = False
    scaled_embedding: bool = False
    scales_in_file: bool = False
    softcaps: tuple[float, float] | None = None
    gated_attention: bool = False
    gating: Literal["softmax", "sigmoid", "softmax_of_selected"] = "softmax"
    gating_in_file: bool = False
    normalised: bool | None = True
    weight_before_ffn: bool = False
    residual_first: bool = False
    late_rows: bool = False
    unweighted_qk_norm: bool = False
    attention_temperature: bool = False


PLAIN = Architecture()
_UNNORMALISED = Architecture(normalised=False)
_ROUTER_IN_FILE = Architecture(gating_in_file=True, normalised=None)
_PARALLEL = Architecture(parallel=True)
_GATED_DELTA = Architecture(gated_attention=True, late_rows=True)
_ENCODER = Architecture(causal=False, normalised=False)
_GRANITE = Architecture(scales_in_file=True, rope="switch")
_NEMOTRON_H = Architecture(rope="never", gating="sigmoid", normalised=None, late_rows=True)

ARCHITECTURES: dict[str, Architecture] = {
    # Plain decoders, dense or with softmax-gated, normalised experts. phi3 and starcoder2 files may name a sliding
    # window; llama.cpp does not apply it.
    **dict.fromkeys(
        (
            "arcee", "baichuan", "dbrx", "ernie4_5", "ernie4_5-moe", "exaone", "falcon-h1", "glm4", "hunyuan-dense",
            "hunyuan-moe", "internlm2", "llama", "mamba", "mamba2", "mistral3", "nemotron", "olmo", "orion", "qwen",
            "qwen2", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "seed_oss", "starcoder2", "xverse",
        ),
        PLAIN,
    ),
    **dict.fromkeys(("deepseek", "olmoe", "qwen2moe"), _UNNORMALISED),
    **dict.fromkeys(("bailingmoe2", "deepseek2", "dots1"), _ROUTER_IN_FILE),
    **dict.fromkeys(("falcon", "phi2"), _PARALLEL),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), _GATED_DELTA),
    **dict.fromkeys(("bert", "jina-bert-v2"), replace(_ENCODER, rope="never")),
    **dict.fromkeys(("nomic-bert", "nomic-bert-moe"), _ENCODER),
    **dict.fromkeys(("phi3", "phimoe"), Architecture(residual_first=True)),
    **dict.fromkeys(("granite", "granitemoe", "granitehybrid"), _GRANITE),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _NEMOTRON_H),
    "cohere2": Architecture(parallel=True, scales_in_file=True, window=Window(period=4), rope="windows"),
    "command-r": Architecture(parallel=True, scales_in_file=True),
    "gemma": Architecture(scaled_embedding=True),
    "gemma2": Architecture(scaled_embedding=True, window=Window(period=2, tokens=4096), softcaps=(50.0, 30.0)),
    "gemma3": Architecture(scaled_embedding=True, window=Window(period=6), softcaps=(0.0, 0.0)),
    "glm4moe": Architecture(gating="sigmoid", gating_in_file=True, normalised=None),
    "gpt-oss": Architecture(
        gating="softmax_of_selected", normalised=False, window=Window(period=2), late_rows=True
    ),
    "gptneox": Architecture(parallel=None),
    "jamba": Architecture(rope="never", normalised=False),
    "lfm2": Architecture(window=Window(period=0), residual_first=True),
    "lfm2moe": Architecture(gating="sigmoid", gating_in_file=True, residual_first=True),
    "llama4": Architecture(
        gating="sigmoid",
        normalised=False,
        weight_before_ffn=True,
        window=Window(period=4, tokens=8192, fixed=True),
        no_rope_period=4,
        unweighted_qk_norm=True,
        attention_temperature=True,
    ),
    "minimax-m2": Architecture(gating="sigmoid", gating_in_file=True),
    "olmo2": Architecture(window=Window(period=4)),
    "smollm3": Architecture(no_rope_period=4),
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
