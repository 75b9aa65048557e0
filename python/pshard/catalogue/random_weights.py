"""Random weights that an engine can run: blocks of random bits under finite scales.

What a kernel takes does not depend on the weights, as long as no number is infinite, undefined or denormal. So the
quants of a block are random bits, and its scales give the weights a root mean square of about one over the root of the
row: then a layer neither blows up what goes through it nor lets it fade.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

# Where the half-precision scales of a block lie (ggml-common.h of llama.cpp).
SCALE_OFFSETS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
# The exponent of a block's scale is its first byte: 2 to the power of its value less 127, halved for MXFP4's table.
_EXPONENT_TYPE, _EXPONENT_BIAS = "MXFP4", 128
_CHUNK_BYTES = 16 << 20


def random_tensor(
    name: str, shape: tuple[int, ...], type_name: str, seed: int, index: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a tensor in parts.

    Parameters
    ----------
    name : str
        As in GGUF. Norms are near one, biases near zero, and the decay of a recurrent state is below zero.
    shape : tuple of int
        The row first.
    type_name : str
        ggml type: F32, F16, or a key of `SCALE_OFFSETS`, or MXFP4.
    seed, index : int
        The same pair gives the same bytes.

    Yields
    ------
    ndarray of uint8

    Raises
    ------
    KeyError
        For another type.
    """
    import numpy as np

    from pshard.catalogue.mixes import block_of

    draws = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, index])))
    elements, block_bytes = block_of(type_name)
    n_blocks = math.prod(shape) // elements
    most = _CHUNK_BYTES // block_bytes
    low, high = _range(name, shape)
    for start in range(0, n_blocks, most):
        count = min(most, n_blocks - start)
        if type_name in ("F32", "F16"):
            values = draws.random(count, dtype=np.float32) * np.float32(high - low) + np.float32(low)
            yield values.astype(np.float32 if type_name == "F32" else np.float16).view(np.uint8)
        else:
            yield random_blocks(draws, type_name, count, rms=high / math.sqrt(3.0)).reshape(-1)


def random_blocks(draws: np.random.Generator, type_name: str, n_blocks: int, rms: float) -> NDArray[np.uint8]:
    """Draw blocks of a quantised type.

    Parameters
    ----------
    draws : numpy.random.Generator
    type_name : str
        A key of `SCALE_OFFSETS`, or MXFP4.
    n_blocks : int
    rms : float
        Root mean square of the weights, about.

    Returns
    -------
    ndarray of uint8, shape (n_blocks, bytes of a block)
    """
    import numpy as np

    from pshard.catalogue.mixes import block_of

    blocks = _bits(draws, n_blocks, block_of(type_name)[1])
    if type_name == _EXPONENT_TYPE:
        blocks[:, 0] = _EXPONENT_BIAS + round(math.log2(rms / _unit_rms(type_name)))
        return blocks
    for offset in SCALE_OFFSETS[type_name]:
        scales = draws.uniform(0.75, 1.25, n_blocks) * (rms / _unit_rms(type_name))
        blocks[:, offset : offset + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks


@cache
def _unit_rms(type_name: str) -> float:
    """Root mean square of random blocks whose scales are one."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    from pshard.catalogue.mixes import block_of

    blocks = _bits(np.random.Generator(np.random.SFC64(0)), 256, block_of(type_name)[1])
    one = np.ones(1, np.float16).view(np.uint8)
    if type_name == _EXPONENT_TYPE:
        blocks[:, 0] = _EXPONENT_BIAS
    for offset in SCALE_OFFSETS.get(type_name, ()):
        blocks[:, offset : offset + 2] = one
    return float(np.sqrt(np.mean(np.square(dequantize(blocks, GGMLQuantizationType[type_name])))))


def _bits(draws: np.random.Generator, n_blocks: int, block_bytes: int) -> NDArray[np.uint8]:
    import numpy as np

    n_bytes = n_blocks * block_bytes
    words = draws.integers(0, 1 << 64, (n_bytes + 7) // 8, dtype=np.uint64)
    return words.view(np.uint8)[:n_bytes].reshape(n_blocks, block_bytes)


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Least and greatest value of a tensor."""
    if name.endswith("ssm_a"):
        return -1.5, -0.5  # the logarithm of how much of the state a step keeps
    if name.endswith("bias"):
        return -0.1, 0.1
    if math.prod(shape) == max(shape):
        return 0.5, 1.5
    most = math.sqrt(3.0 / shape[0])
    return -most, most
