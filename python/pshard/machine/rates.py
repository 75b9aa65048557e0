"""Rates for weight types that a profile does not hold.

Types form families whose kernels do the same kind of work. Inside a family, the logarithm of the rate is interpolated
over bits per weight. Outside its range, and where a family has no second member, the nearest member is scaled by bytes:
in full where it is limited by reading, and only downwards where it is limited by arithmetic, because fewer bits do not
make arithmetic faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pshard.machine.profile import Series

FAMILIES: tuple[tuple[str, ...], ...] = (
    ("F64", "F32", "F16", "BF16"),
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "MXFP4", "NVFP4", "Q1_0", "Q2_0"),
    ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"),
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL", "TQ1_0", "TQ2_0"),
)

# How much wider the range of a rate becomes that was not measured for its own type.
SPREAD_BETWEEN = 0.15
SPREAD_SCALED = 0.25
SPREAD_OTHER_FAMILY = 0.4
MAX_SPREAD = 0.9

# Below this share of the memory rate, a product is limited by arithmetic.
READING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Rates:
    """FLOP/s over the batch (rows), and the relative half-width of their range."""

    batch: tuple[float, ...]
    flop_per_second: tuple[float, ...]
    spread: float

    def at(self, rows: float) -> float:
        """Return FLOP/s at `rows` > 0 as the core does: in log space, with constant seconds below the first point."""
        if rows <= self.batch[0]:
            return self.flop_per_second[0] * rows / self.batch[0]
        for i in range(1, len(self.batch)):
            if rows <= self.batch[i]:
                t = math.log(rows / self.batch[i - 1]) / math.log(self.batch[i] / self.batch[i - 1])
                return float(self.flop_per_second[i - 1] ** (1.0 - t) * self.flop_per_second[i] ** t)
        return self.flop_per_second[-1]


@cache
def type_ids() -> Mapping[str, int]:
    """Names of the ggml types that weights may have, with their numbers."""
    from gguf import GGMLQuantizationType

    known = GGMLQuantizationType.__members__
    return {name: int(known[name]) for family in FAMILIES for name in family if name in known}


@cache
def bits_per_weight(name: str) -> float:
    """Bits that one weight of ggml type `name` takes in a file, scales included."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return 8.0 * n_bytes / elements


def weight_bytes_per_second(series: Series) -> float:
    """Bytes/s of weights that a product of one row reads; 0 for a series that has no such point."""
    return series.flop_per_second[0] / 2.0 * bits_per_weight(series.type) / 8.0 if series.batch[0] == 1.0 else 0.0


def estimate(name: str, known: Mapping[str, Rates], memory_bytes_per_second: float) -> Rates | None:
    """Estimate the rates of a type from those of others.

    Parameters
    ----------
    name : str
        ggml type that `known` lacks.
    known : mapping from type name to Rates
        What the profile holds for the same operation, layout and thread count.
    memory_bytes_per_second : float
        What kernels read at, to tell reading from arithmetic.

    Returns
    -------
    Rates or None
        None where `known` is empty. The spread is wider than that of every rate it was made from.
    """
    if not known:
        return None
    family = next(family for family in FAMILIES if name in family)
    relatives = [other for other in family if other in known]
    bits = bits_per_weight(name)
    if not relatives:
        nearest = _nearest(bits, list(known))
        return _scaled(known[nearest], bits_per_weight(nearest), bits, memory_bytes_per_second, SPREAD_OTHER_FAMILY)
    below = [other for other in relatives if bits_per_weight(other) <= bits]
    above = [other for other in relatives if bits_per_weight(other) >= bits]
    if below and above:
        low = max(below, key=bits_per_weight)
        high = min(above, key=bits_per_weight)
        return _between(known[low], bits_per_weight(low), known[high], bits_per_weight(high), bits)
    nearest = _nearest(bits, relatives)
    return _scaled(known[nearest], bits_per_weight(nearest), bits, memory_bytes_per_second, SPREAD_SCALED)


def _nearest(bits: float, names: Sequence[str]) -> str:
    return min(names, key=lambda other: (abs(math.log(bits_per_weight(other) / bits)), other))


def _widened(spread: float, by: float) -> float:
    return min(spread + by, max(MAX_SPREAD, spread))


def _between(low: Rates, low_bits: float, high: Rates, high_bits: float, bits: float) -> Rates:
    t = 0.0 if high_bits == low_bits else (bits - low_bits) / (high_bits - low_bits)
    batch = tuple(sorted({*low.batch, *high.batch}))
    rates = tuple(low.at(rows) ** (1.0 - t) * high.at(rows) ** t for rows in batch)
    return Rates(batch, rates, _widened(max(low.spread, high.spread), SPREAD_BETWEEN))


def _scaled(member: Rates, member_bits: float, bits: float, memory_bytes_per_second: float, widen_by: float) -> Rates:
    ratio = member_bits / bits
    most = max(member.flop_per_second)
    rates = []
    for rows, rate in zip(member.batch, member.flop_per_second, strict=True):
        bytes_per_second = rate / (2.0 * rows) * member_bits / 8.0
        reading = bytes_per_second >= READING_SHARE * memory_bytes_per_second
        rates.append(rate * ratio if ratio < 1.0 else min(rate * ratio, most) if reading else rate)
    # More rows are never slower per row than fewer: a point that was scaled must not rise above those that were not.
    for i in range(len(rates) - 1, 0, -1):
        rates[i - 1] = min(rates[i - 1], rates[i])
    return Rates(member.batch, tuple(rates), _widened(member.spread, widen_by))
