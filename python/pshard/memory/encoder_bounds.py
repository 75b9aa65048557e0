"""Bounds of an encoder's compute buffer, for kinds whose forward pass is not described.

From below: the results that are alive at once in the first convolution, in a layer's attention and FFN, and in the
projection. From above: twice that, which llama.cpp's own reservations stay below (``tests/python/test_projector.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

BOUND_FACTOR = 2
FLOAT_BYTES, HALF_BYTES = 4, 2
# Head sizes for which CUDA has flash attention (ggml/src/ggml-cuda/fattn.cu).
FLASH_HEAD_SIZES = frozenset({40, 64, 72, 80, 96, 112, 128, 256})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderBounds:
    """What the header says of an encoder's sizes.

    Attributes
    ----------
    n_embd, n_ff, n_head : int
    is_gated : bool
        The FFN multiplies two branches.
    has_windows : bool
        Attention is masked by a matrix over all pairs of positions.
    channels : int
        Of the raw input.
    merge : int
        Positions that become one row of the projection.
    column_bytes : int
        Of one position's part of the input, cut out for the first convolution.
    projection_width : int
        Input and output of the widest product behind the layers.
    """

    n_embd: int
    n_ff: int
    n_head: int
    is_gated: bool
    has_windows: bool
    channels: int
    merge: int
    column_bytes: int
    projection_width: int

    def raw_bytes(self, width: int, height: int) -> int:
        """Bytes of the input itself."""
        return width * height * self.channels * FLOAT_BYTES

    def input_bytes(self, n_positions: int, raw_bytes: int) -> int:
        """Bytes of all inputs, which stay in host memory."""
        return raw_bytes + (FLOAT_BYTES * n_positions**2 if self.has_windows else 0)

    def output_bytes(self, n_positions: int) -> int:
        """Bytes of the embeddings, at most."""
        return n_positions // self.merge * self.projection_width * FLOAT_BYTES

    def compute_bytes(self, n_positions: int, raw_bytes: int, *, flash_attn: bool) -> tuple[int, int]:
        """Return what the compute buffer takes at least and at most.

        Parameters
        ----------
        n_positions : int
            That the layers see.
        raw_bytes : int
            Of the input.
        flash_attn : bool
            As asked for; without it, or for head sizes that CUDA has no kernel for, all products of queries and keys
            are kept.
        """
        n, row = n_positions, self.n_embd * FLOAT_BYTES
        mask = HALF_BYTES * n**2 if self.has_windows else 0
        flash_attn = flash_attn and self.n_embd // max(self.n_head, 1) in FLASH_HEAD_SIZES
        products = 0 if flash_attn else FLOAT_BYTES * n**2 * self.n_head
        live = max(
            raw_bytes + n * (self.column_bytes + row),
            3 * mask,  # as it comes from the host, and as f16
            n * 5 * row + 2 * mask,  # the residual, its norm, and query, key and value of it
            n * 2 * row + mask + products,  # the residual, the values, and how much each position weighs
            n * (2 * row + (2 if self.is_gated else 1) * self.n_ff * FLOAT_BYTES) + mask,
            n // self.merge * self.projection_width * FLOAT_BYTES,
        )
        return live, BOUND_FACTOR * live
