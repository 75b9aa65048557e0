"""Which type each tensor of a quantised model is stored in.

A published file called ``Q4_K_M`` is a mixture: most matrices have the base type, a few that matter more have a wider
one, and some stay as they were converted. The rules here are those of llama.cpp's quantiser (ggml 0.25.3, without an
importance matrix) for the mixtures that the catalogue offers. They go by tensor name and shape:

1. A tensor of one dimension, a norm, a router, a short convolution, a table of positions or token types, and whatever
   is not called ``*weight`` is not quantised (`is_quantised`); it keeps its type of conversion (`converted_type`).
2. The output head, or the embedding where it doubles as the head, has the mixture's head type.
3. Attention values and FFN down projections have the mixture's boosted type in the sensitive layers (`is_sensitive`).
   A fused query-key-value projection has a type of its own in every layer. (Quantisers of 2026 boost it like values
   instead: about the same bytes, spread otherwise. The files that the catalogue stands for are older.)
4. In the 80-layer models with grouped heads, values are never below Q5_K. With exactly eight experts, keys and values
   are Q8_0, and Q4_K_M stores the attention output as Q5_K.
5. MXFP4 goes by shape: stacked experts are MXFP4, every other matrix is Q8_0.
6. A row that the type's block does not divide falls back to a type of smaller blocks (`fitting_type`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Mix:
    """One mixture: its number in ``general.file_type`` and the types that its rules hand out (ggml type names)."""

    file_type: int
    base: str
    head: str
    boosted: str | None = None
    fused: str | None = None
    eight_expert_output: str | None = None


MIXES = {
    "Q4_0": Mix(file_type=2, base="Q4_0", head="Q6_K"),
    "Q4_K_M": Mix(file_type=15, base="Q4_K", head="Q6_K", boosted="Q6_K", fused="Q5_K", eight_expert_output="Q5_K"),
    "Q5_K_M": Mix(file_type=17, base="Q5_K", head="Q6_K", boosted="Q6_K", fused="Q6_K"),
    "Q6_K": Mix(file_type=18, base="Q6_K", head="Q6_K"),
    "Q8_0": Mix(file_type=7, base="Q8_0", head="Q8_0"),
    "F16": Mix(file_type=1, base="F16", head="F16"),
    "MXFP4": Mix(file_type=38, base="MXFP4", head="Q8_0"),
}

_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

_NEVER_QUANTISED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ssm_conv1d|shortconv\.conv\.weight|^position_embd\.weight$|^token_types\.weight$"
)
_CONVERTED_TO_F32 = re.compile(
    r"_norm\.weight$|ffn_gate_inp(_shexp)?\.weight$|ssm_conv1d|shortconv\.conv|^position_embd|^token_types"
)
_LAYER = re.compile(r"blk\.(\d+)\.")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MixContext:
    """What the rules need to know of the model beyond its tensors.

    ``n_layer`` counts every stored layer, next-token-prediction layers included.
    """

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0

    @property
    def has_small_values(self) -> bool:
        """Whether this is one of the 80-layer models whose values are small beside their queries."""
        if self.n_layer != 80:
            return False
        return self.architecture == "qwen2" or (self.architecture == "llama" and self.n_head != self.n_head_kv)


@cache
def block_of(type_name: str) -> tuple[int, int]:
    """Elements and bytes of one block of a ggml type; a row must be a whole number of blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    return int(elements), int(n_bytes)


def n_dimensions(shape: Shape) -> int:
    """Count the dimensions of `shape` up to the last one that is not 1; at least 1."""
    n = len(shape)
    while n > 1 and shape[n - 1] == 1:
        n -= 1
    return n


def is_quantised(name: str, shape: Shape) -> bool:
    """Whether a quantiser may touch this tensor."""
    return n_dimensions(shape) >= 2 and name.endswith("weight") and not _NEVER_QUANTISED.search(name)


def converted_type(name: str, shape: Shape) -> str:
    """Type of a tensor in a file converted to half precision: what a quantiser starts from."""
    if len(shape) <= 1 or not name.endswith(".weight") or _CONVERTED_TO_F32.search(name):
        return "F32"
    return "F16"


def is_sensitive(index: int, count: int) -> bool:
    """Whether the `index`-th of `count` layers gets more bits: the outer eighths, and every third in between."""
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def fitting_type(wanted: str, row: int) -> str:
    """`wanted`, or the nearest type whose block divides a row of `row` elements."""
    for kind in (wanted, _FALLBACK.get(wanted, wanted)):
        if row % block_of(kind)[0] == 0:
            return kind
    return "F16"


def layer_order(name: str) -> tuple[int, str]:
    """Sort key of a quantised file: tensors outside the layers, then layer by layer, by name."""
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name)


def choose_types(shapes: Iterable[tuple[str, Shape]], mix_name: str, context: MixContext) -> dict[str, str]:
    """Give every tensor its type.

    Parameters
    ----------
    shapes : iterable of (name, shape)
        All tensors of the model, in any order; the first dimension is the row.
    mix_name : str
        A key of `MIXES`.
    context : MixContext
        The model around them.

    Returns
    -------
    dict
        Type name of each tensor, in the order of a quantised file (`layer_order`).
    """
    mix = MIXES[mix_name]
    shape_of = dict(sorted(shapes, key=lambda item: layer_order(item[0])))
    head = "output.weight" if "output.weight" in shape_of else "token_embd.weight"
    n_values = sum(1 for name in shape_of if name.endswith(("attn_v.weight", "attn_qkv.weight")))
    i_value = i_down = 0
    types = {}
    for name, shape in shape_of.items():
        if not is_quantised(name, shape) or mix_name == "F16":
            types[name] = converted_type(name, shape)
            continue
        kind = mix.base
        if name == head:
            # where the base type does not fit the row, the head is Q8_0, not the fallback of its own type
            kind = mix.head if shape[0] % block_of(mix.base)[0] == 0 else "Q8_0"
        elif mix_name == "MXFP4":
            kind = "MXFP4" if n_dimensions(shape) > 2 else "Q8_0"
        elif name.endswith("attn_qkv.weight"):
            kind = mix.fused or kind
        elif name.endswith("attn_v.weight"):
            kind = _value_type(mix, is_sensitive(i_value, n_values), context)
            i_value += 1
        elif name.endswith("attn_k.weight") and context.n_expert == 8:
            kind = "Q8_0"
        elif name.endswith("attn_output.weight") and context.n_expert == 8:
            kind = mix.eight_expert_output or kind
        elif "ffn_down" in name:
            # with experts the layer's own number counts, for a layer may have several down projections
            index = layer_order(name)[0] if context.n_expert > 1 else i_down
            if is_sensitive(index, context.n_layer):
                kind = mix.boosted or kind
            i_down += 1
        types[name] = fitting_type(kind, shape[0])
    return types


def _value_type(mix: Mix, sensitive: bool, context: MixContext) -> str:
    """Type of an attention value projection."""
    if context.n_expert == 8:
        return "Q8_0"
    kind = mix.boosted if sensitive and mix.boosted else mix.base
    if kind == "Q4_K" and context.has_small_values:
        return "Q5_K"
    return kind
