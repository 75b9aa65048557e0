"""What an architecture does that its tensors do not say: one small description each.

Which layers are recurrent, have experts, biases or fused projections is read from the tensors; sizes are read from
the metadata. What is left (which layers slide, how experts are gated, what is scaled, in which order things are added)
is in `ARCHITECTURES`, after llama.cpp's own rules. A new architecture is one line there. An architecture that is not
listed is taken for an ordinary decoder, or, where its tensors are none's, estimated from these alone, with a warning.
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
    asked : bool
        There is none where the file names none; `tokens` is what it is then if `fixed`.
    """

    period: int
    full_first: bool = False
    tokens: int = 0
    fixed: bool = False
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerSharing:
    """Layers that attend to the cells which one before has chosen, where the file does not say which do.

    Attributes
    ----------
    from_context : int
        Only in models of at least this training length.
    first, period : int
        The first so many layers choose for themselves; from there on the first of so many does.
    """

    from_context: int
    first: int
    period: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one architecture differs from a plain pre-norm decoder.

    Attributes
    ----------
    replayed : bool
        False: buffers of some launches are not llama.cpp's to the byte, so that what is said of them is a bound.
    guessed : bool
        Its layers are estimated from their tensors alone.
    compressed_cache : bool
        Besides its window a layer keeps one cell for so many tokens as the file says, and the state of those that it
        is compressing; every sequence has caches of its own.
    indexer_keeps_values : bool
        An indexer's cache has values besides its keys.
    causal : bool
        False for encoders and diffusion models, which attend to what follows.
    has_encoder : bool
        It is a decoder that also attends to what an encoder has made.
    keeps_cache : bool or None
        It has a KV cache, used or not; None: where it is causal.
    predicts : bool or None
        It computes logits; None: where it is causal.
    reads_embedding : bool
        The head multiplies by the embedding itself, which is in host memory.
    repeats_tied_head : bool
        The embedding is loaded once more as the head, even where both lie in one memory.
    loads_head : bool
        Weights for logits are loaded though it computes none.
    window : Window or None
    indexer_sharing : IndexerSharing or None
    layers_with_cache : int
        The layers behind so many read the caches of the last of these; 0: as the file says.
    rope : str
        ``"always"``, ``"never"``, ``"windows"`` (only in layers with a window), ``"windows_and_first"`` (and in
        the layers before those with experts), ``"windows_if_any"`` (so in models that have windows), ``"switch"``
        (unless the file says otherwise).
    no_rope_period : int
        The last of so many layers has no rotary embedding; 0: all have.
    no_rope_layers : int
        A model of so many layers has none at all.
    rope_sections : bool or None
        Positions have four sections (text and images); None: where the file has sections.
    deepstack : bool
        Embeddings of images bring a part of their own for each of the first layers; the file says for how many.
    layer_norm : bool or None
        Norms subtract the mean; else RMS norms. None: where the file has no epsilon for RMS norms.
    normed_embedding : bool
        The token embedding is normed, without a tensor.
    unweighted_norms : bool
        Norms have no tensors.
    sum : str or None
        How attention, FFN and residual are summed: ``"sequential"``, or side by side in the order of the additions:
        ``"ffn_residual_attention"``, ``"ffn_attention_residual"``, ``"attention_ffn_residual"``. None: the first of
        these, if the file says that they are parallel.
    residual_first_in_attention, residual_first : bool
        The residual is the first operand of the sum behind the attention, and of the one behind the FFN.
    late_rows : str
        Where rows that are not wanted are dropped, if not inside the last layer: ``"before_norm"`` or
        ``"behind_norm"``, both handed out as they were, or ``"behind_layers"``; ``"never"``.
    norms_results_alone : bool
        Norms that elsewhere follow the sum with the residual come before it.
    fuses_attention : bool
        False: llama.cpp forces flash attention off.
    sparse_layers : int
        The first so many layers cut off most activations of their FFN.
    norms_before_dropping_rows : bool
        In the last layer, rows that are not wanted are dropped behind the norm of the attention's output.
    scales : tuple of str
        What is always scaled: ``"embedding"``, ``"residual"``, ``"head_input"``, ``"logits"``.
    scales_normed_input : bool
        Attention and FFN are added to their own normed input, scaled, instead of to the residual.
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
    norms_values : bool
        Values are normed, without a weight tensor; where they have no projection, they are the keys.
    full_layers_scale_rope : bool
        Frequency factors are those of layers without a window.
    windows_scale_rope : bool
        False: layers with a window do not read the frequency factors that all layers have.
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
        Of experts: ``"softmax"``, ``"sigmoid"``, ``"softmax_of_selected"``, ``"softmax_chosen_by_sigmoid"``.
    gating_in_file : bool
        `gating` is only the default.
    normalised : bool or None
        Expert weights are divided by their sum; None: as the file says.
    experts_down_on_host : bool
        The host multiplies by the experts' down projections, whatever holds them.
    ignores_adapters : tuple of str
        What llama.cpp multiplies by without adapters (LoRA): ``"head"``, ``"attention"`` (its output).
    routes_layer_input : bool
        Experts are chosen by what the layer starts from, before its attention.
    weight_before_ffn : bool
        Expert weights multiply the experts' input.
    halves_experts : bool
        The sum of routed and shared experts is halved.
    shared_gate_by_ratio : bool
        The gate of the shared experts is silu(x) / x.
    repeats_key_heads : bool
        Of linear attention: keys and queries are repeated to the number of value heads.
    """

    replayed: bool = True
    guessed: bool = False
    compressed_cache: bool = False
    indexer_keeps_values: bool = False
    causal: bool = True
    has_encoder: bool = False
    keeps_cache: bool | None = None
    predicts: bool | None = None
    reads_embedding: bool = False
    repeats_tied_head: bool = False
    loads_head: bool = False
    window: Window | None = None
    indexer_sharing: IndexerSharing | None = None
    layers_with_cache: int = 0
    rope: Literal["always", "never", "windows", "windows_and_first", "windows_if_any", "switch"] = "always"
    no_rope_period: int = 0
    no_rope_layers: int = 0
    rope_sections: bool | None = False
    deepstack: bool = False
    layer_norm: bool | None = False
    normed_embedding: bool = False
    unweighted_norms: bool = False
    sum: Literal["sequential", "ffn_residual_attention", "ffn_attention_residual", "attention_ffn_residual"] | None = (
        "sequential"
    )
    residual_first_in_attention: bool = False
    residual_first: bool = False
    late_rows: Literal["no", "behind_layers", "before_norm", "behind_norm", "never"] = "no"
    norms_before_dropping_rows: bool = False
    norms_results_alone: bool = False
    fuses_attention: bool = True
    sparse_layers: int = 0
    scales: tuple[Literal["embedding", "query", "residual", "head_input", "logits"], ...] = ()
    scales_normed_input: bool = False
    scales_in_file: bool = False
    softcaps: tuple[float, float] | None = None
    gated_attention: bool = False
    joined_heads: bool = False
    norm_behind_rope: bool = False
    norms_values: bool = False
    full_layers_scale_rope: bool = False
    windows_scale_rope: bool = True
    unweighted_qk_norm: bool = False
    temperature: Literal["none", "unrotated", "in_file"] = "none"
    ffn_reads_attention_norm: bool = False
    squared_activation: bool = False
    gating: Literal["softmax", "sigmoid", "softmax_of_selected", "softmax_chosen_by_sigmoid"] = "softmax"
    gating_in_file: bool = False
    normalised: bool | None = True
    experts_down_on_host: bool = False
    ignores_adapters: tuple[str, ...] = ()
    routes_layer_input: bool = False
    weight_before_ffn: bool = False
    halves_experts: bool = False
    shared_gate_by_ratio: bool = False
    repeats_key_heads: bool = False


PLAIN = Architecture()
_UNNORMALISED = Architecture(normalised=False)
_ROUTER_IN_FILE = Architecture(gating_in_file=True, normalised=None)
_LAYER_NORM = Architecture(layer_norm=True)
_GATED_DELTA = Architecture(gated_attention=True, joined_heads=True, late_rows="behind_norm")
_ENCODER = Architecture(causal=False, layer_norm=True, normalised=False)
_DIFFUSION = Architecture(causal=False, predicts=True)
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
            "apertus", "arctic", "arwkv7", "chatglm", "deci", "ernie4_5", "ernie4_5-moe", "exaone", "falcon-h1",
            "internlm2", "llama", "mamba", "mamba2", "nanbeige", "pangu-embedded", "qwen", "qwen2", "qwen3",
            "qwen3moe", "rwkv6qwen2", "seed_oss", "xverse",
        ),
        PLAIN,
    ),
    **dict.fromkeys(("paddleocr", "qwen2vl"), Architecture(rope_sections=True)),
    **dict.fromkeys(("qwen3vl", "qwen3vlmoe"), Architecture(rope_sections=True, deepstack=True)),
    **dict.fromkeys(("bert", "jina-bert-v2"), replace(_ENCODER, rope="never")),
    **dict.fromkeys(("bloom", "gpt2", "jais", "mpt", "starcoder"), replace(_LAYER_NORM, rope="never")),
    **dict.fromkeys(("codeshell", "dbrx", "orion", "pockettts", "rwkv6", "rwkv7", "starcoder2"), _LAYER_NORM),
    **dict.fromkeys(("dream", "llada", "rnd1"), _DIFFUSION),
    **dict.fromkeys(("eurobert", "neo-bert"), Architecture(causal=False)),
    **dict.fromkeys(("jais2", "nemotron"), Architecture(layer_norm=True, squared_activation=True)),
    **dict.fromkeys(("bailingmoe2", "dots1"), replace(_ROUTER_IN_FILE, temperature="in_file")),
    **dict.fromkeys(("granite", "granitehybrid", "granitemoe"), _GRANITE),
    **dict.fromkeys(("hunyuan-dense", "hunyuan-moe", "maincoder"), Architecture(norm_behind_rope=True)),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _NEMOTRON_H),
    **dict.fromkeys(("jina-bert-v3", "nomic-bert", "nomic-bert-moe"), _ENCODER),
    **dict.fromkeys(("phi3", "phimoe"), Architecture(residual_first=True, scales=("query",))),
    **dict.fromkeys(("qwen35", "qwen35moe"), replace(_GATED_DELTA, rope_sections=True)),
    "afmoe": Architecture(
        scales=("embedding",),
        window=Window(period=4),
        norms_before_dropping_rows=True,
        no_rope_period=4,
        gating="sigmoid",
        gating_in_file=True,
        normalised=None,
    ),
    "arcee": Architecture(squared_activation=True),
    "baichuan": Architecture(no_rope_layers=40),
    "bailingmoe": Architecture(normalised=None),
    "bailingmoe3": replace(
        _ROUTER_IN_FILE, rope_sections=None, late_rows="behind_norm", ignores_adapters=("head", "attention")
    ),
    "bitnet": Architecture(reads_embedding=True),
    "cogvlm": Architecture(late_rows="never"),
    "cohere2": replace(_COHERE, window=Window(period=4), rope="windows"),
    "cohere2moe": replace(
        _COHERE,
        layer_norm=None,
        window=Window(period=4, full_first=True),
        rope="windows_and_first",
        gating="sigmoid",
        gating_in_file=True,
        normalised=None,
        halves_experts=True,
        late_rows="behind_norm",
    ),
    "command-r": _COHERE,
    "deepseek": _UNNORMALISED,
    "deepseek2": replace(_ROUTER_IN_FILE, temperature="in_file", ignores_adapters=("head",)),
    "deepseek2-ocr": replace(_ROUTER_IN_FILE, ignores_adapters=("head",)),
    "deepseek32": replace(_ROUTER_IN_FILE, ignores_adapters=("head",)),
    "deepseek4": Architecture(replayed=False, guessed=True, compressed_cache=True, window=Window(period=0)),
    "exaone4": Architecture(window=Window(period=4), rope="windows_if_any"),
    "exaone-moe": Architecture(
        window=Window(period=4, tokens=128), rope="windows", gating_in_file=True, normalised=None
    ),
    "falcon": Architecture(layer_norm=True, sum="ffn_attention_residual"),
    "gemma": Architecture(scales=("embedding", "query")),
    "gemma2": Architecture(scales=("embedding", "query"), window=Window(period=2, tokens=4096), softcaps=(50.0, 30.0)),
    "gemma3": Architecture(scales=("embedding", "query"), window=Window(period=6), softcaps=(0.0, 0.0)),
    "gemma4": Architecture(
        scales=("embedding",),
        window=Window(period=6),
        softcaps=(0.0, 0.0),
        repeats_tied_head=True,
        norms_values=True,
        full_layers_scale_rope=True,
        late_rows="behind_norm",
    ),
    "gemma3n": Architecture(
        scales=("embedding",),
        window=Window(period=5),
        softcaps=(0.0, 30.0),
        layers_with_cache=20,
        repeats_tied_head=True,
        norms_values=True,
        sparse_layers=10,
        late_rows="behind_layers",
    ),
    "gemma-embedding": Architecture(
        causal=False, loads_head=True, scales=("embedding", "query"), window=Window(period=6)
    ),
    "glm-dsa": replace(  # from GLM 5.2 on
        _ROUTER_IN_FILE,
        gating="sigmoid",
        indexer_sharing=IndexerSharing(from_context=1 << 20, first=2, period=4),
        ignores_adapters=("head",),
    ),
    "glm4": Architecture(rope_sections=None),
    "glm4moe": Architecture(gating="sigmoid", gating_in_file=True, normalised=None, rope_sections=None),
    "gpt-oss": Architecture(
        gating="softmax_of_selected", normalised=False, window=Window(period=2), late_rows="before_norm"
    ),
    "granite_swa": Architecture(scales_in_file=True, window=Window(period=4)),
    "gptneox": Architecture(layer_norm=True, sum=None),
    "grok": Architecture(
        scales=("embedding", "logits"), softcaps=(30.0, 0.0), fuses_attention=False, norms_results_alone=True
    ),
    "grovemoe": Architecture(gating="softmax_chosen_by_sigmoid"),
    "hy_v3": Architecture(gating="sigmoid", gating_in_file=True, normalised=None, late_rows="behind_norm"),
    "hunyuan_vl": Architecture(rope_sections=True, norm_behind_rope=True),
    "jamba": Architecture(
        rope="never", normalised=False, residual_first=True, residual_first_in_attention=True
    ),
    "lfm2": Architecture(window=Window(period=0), residual_first=True, residual_first_in_attention=True),
    "lfm2moe": Architecture(
        gating="sigmoid", gating_in_file=True, residual_first=True, residual_first_in_attention=True
    ),
    "kimi-linear": Architecture(gating_in_file=True, rope="never", ignores_adapters=("head",)),
    "laguna": Architecture(
        window=Window(period=4, full_first=True), gating="sigmoid", gating_in_file=True, normalised=None
    ),
    "llama-embed": Architecture(causal=False, keeps_cache=True, loads_head=True),
    "llada-moe": replace(_DIFFUSION, normalised=False),
    "llama4": Architecture(
        gating="sigmoid",
        normalised=False,
        weight_before_ffn=True,
        window=Window(period=4, tokens=8192, fixed=True),
        no_rope_period=4,
        unweighted_qk_norm=True,
        temperature="unrotated",
    ),
    "maple": Architecture(window=Window(period=4), rope="windows"),
    "mellum": Architecture(window=Window(period=4)),
    "mimo2": Architecture(gating="sigmoid", window=Window(period=6)),
    "minicpm": Architecture(scales=("embedding", "residual", "logits")),
    "minicpm3": Architecture(scales=("embedding", "residual", "head_input")),
    "minimax-01": Architecture(scales_normed_input=True),
    "minimax-m3": Architecture(replayed=False, guessed=True, indexer_keeps_values=True),
    "minimax-m2": Architecture(gating="sigmoid", gating_in_file=True, joined_heads=True),
    "muse-glimmer": Architecture(
        normed_embedding=True,
        window=Window(period=4),
        rope="windows",
        norms_before_dropping_rows=True,
        scales=("logits",),
        softcaps=(0.0, 0.0),
    ),
    "mistral4": replace(
        _ROUTER_IN_FILE, temperature="in_file", experts_down_on_host=True, ignores_adapters=("head",)
    ),
    "mistral3": Architecture(temperature="in_file"),
    "modern-bert": replace(_ENCODER, window=Window(period=3, full_first=True)),
    "olmo": replace(_LAYER_NORM, unweighted_norms=True),
    "olmo2": Architecture(window=Window(period=4), joined_heads=True),
    "olmoe": Architecture(normalised=False, joined_heads=True),
    "openelm": Architecture(residual_first_in_attention=True),
    "phi2": Architecture(layer_norm=True, sum="attention_ffn_residual", scales=("query",)),
    "plamo": Architecture(sum="ffn_attention_residual"),
    "plamo2": PLAIN,
    "plamo3": Architecture(window=Window(period=8)),
    "plm": Architecture(squared_activation=True),
    "qwen2moe": Architecture(normalised=False, shared_gate_by_ratio=True),
    "qwen3next": replace(_GATED_DELTA, repeats_key_heads=True),
    "qwen3tts": Architecture(replayed=False, rope_sections=True, deepstack=True),
    "refact": Architecture(rope="never"),
    "smallthinker": Architecture(
        window=Window(period=4, full_first=True, tokens=4096, fixed=True, asked=True),
        rope="windows_if_any",
        routes_layer_input=True,
        gating_in_file=True,
    ),
    "smollm3": Architecture(no_rope_period=4),
    "t5": Architecture(has_encoder=True, rope="never"),
    "t5encoder": Architecture(causal=False, keeps_cache=True, loads_head=True, rope="never"),
    "step35": Architecture(
        window=Window(period=4),
        windows_scale_rope=False,
        gating="sigmoid",
        gating_in_file=True,
        normalised=None,
        late_rows="before_norm",
    ),
    "spark2_5": Architecture(window=Window(period=4)),
    "stablelm": Architecture(layer_norm=True, ffn_reads_attention_norm=True),
}  # fmt: skip

# Why these cannot be planned.
REFUSED_ARCHITECTURES = {
    "clip": "it is a vision or audio projector, not a language model; give the model's own GGUF",
    "wavtokenizer-dec": "it is an audio decoder, not a language model",
}

# What an architecture is taken for that is not listed. Windows count where the file says which layers slide.
UNKNOWN = Architecture(replayed=False, window=Window(period=1))
