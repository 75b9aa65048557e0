"""Types of weights and the CPU kernels that are measured, against gguf's reference dequantisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from pshard import _core
from pshard.machine.cpus import physical_cpus
from pshard.weight_types import cpu_types, interleaved_types

TYPES = [kind.name for kind in _core.weight_types()]
KERNELS = [(type, "plain") for type in cpu_types()] + [(type, "interleaved") for type in interleaved_types()]
# Offsets of the F16 scales in a block
SCALES = {type: (0,) for type in ("Q8_0", "Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS")}
SCALES |= {type: (0, 2) for type in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")}
SCALES |= {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}
N_ROWS, N_COLUMNS = 16, 512


def blocks(type: str, rng: np.random.Generator, scale: float | None = None, fill: int | None = None) -> np.ndarray:
    """Rows of blocks: random or constant codes, and F16 scales that are random or given."""
    columns, size = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    if columns == 1:
        scale = None if scale is None else np.clip(scale, -1e4, 1e4)  # times normal numbers
        values = rng.standard_normal((N_ROWS, N_COLUMNS)) if fill is None else np.full((N_ROWS, N_COLUMNS), fill / 16.0)
        values = (values * (1.0 if scale is None else scale)).astype(np.float32)
        return quantize(values, GGMLQuantizationType[type]).view(np.uint8)
    shape = (N_ROWS, N_COLUMNS // columns, size)
    data = rng.integers(0, 256, shape, dtype=np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    for offset in SCALES[type]:
        scales = rng.uniform(-2.0, 2.0, shape[:2]) if scale is None else np.full(shape[:2], scale)
        data[..., offset : offset + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    if type == "MXFP4":  # a power of two instead
        exponent = 0 if not scale else 128 + round(math.log2(abs(scale)))
        data[..., 0] = rng.integers(121, 126, shape[:2]) if scale is None else exponent
    return data.reshape(N_ROWS, -1)


def weights_of(type: str, data: np.ndarray) -> np.ndarray:
    """What gguf makes of the rows, in double precision."""
    return dequantize(data, GGMLQuantizationType[type]).reshape(N_ROWS, N_COLUMNS).astype(np.float64)


def magnitude(type: str, data: np.ndarray) -> float:
    """Largest term that a weight is a sum of: types with mins subtract one, and both may be larger than the weight."""
    if len(SCALES.get(type, ())) < 2:
        return float(np.abs(weights_of(type, data)).max())
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    first = SCALES[type][0]
    scales = data.reshape(-1, size)[:, first : first + 4].copy().view(np.float16).astype(np.float64)
    return float(np.abs(scales).max() * 63 * 31)


EDGES = {
    "random": (None, None),
    "zero scale": (0.0, None),
    "negative zero scale": (-0.0, None),
    "all bits clear": (1.0, 0x00),
    "all bits set": (1.0, 0xFF),
    "high bits": (1.0, 0x80),
    "low nibbles": (1.0, 0x0F),
    "high nibbles": (1.0, 0xF0),
    "smallest subnormal": (2.0**-24, None),
    "subnormal": (-3.0 * 2.0**-16, None),
    "smallest normal": (2.0**-14, None),
    "largest": (65504.0, None),
    "most negative": (-65504.0, None),
}


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("edge", EDGES)
def test_numbers_are_what_gguf_says(type: str, edge: str) -> None:
    data = blocks(type, np.random.default_rng(4), *EDGES[edge])
    np.testing.assert_allclose(
        _core.dequantise(type, data), weights_of(type, data), rtol=1e-6, atol=1e-6 * magnitude(type, data)
    )


def test_blocks_and_numbers_of_types_are_those_of_gguf() -> None:
    for kind in _core.weight_types():
        known = GGMLQuantizationType[kind.name]
        assert (kind.block_columns, kind.block_bytes) == GGML_QUANT_SIZES[known]
        assert kind.number == known


@pytest.mark.parametrize("type", TYPES)
def test_random_rows_are_small_numbers_of_every_kind(type: str) -> None:
    rows = _core.random_rows(type, n_rows=8, n_columns=512, seed=3)
    weights = dequantize(rows, GGMLQuantizationType[type])
    assert np.isfinite(weights).all()
    assert 1e-3 < np.abs(weights).mean() < 64.0
    assert len(np.unique(rows, axis=0)) == 8


@pytest.mark.parametrize("path", _core.cpu_paths())
@pytest.mark.parametrize(("type", "layout"), KERNELS)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("batch", [1, N_COLUMNS])  # both kinds of kernel that a type has
def test_every_weight_is_what_gguf_says(type: str, layout: str, path: str, edge: str, batch: int) -> None:
    scale, fill = EDGES[edge]
    data = blocks(type, np.random.default_rng(1), scale, fill)
    expected = weights_of(type, data)
    # A row with a single 127 is rounded to itself, so a product with it is one column of the weights.
    ones = 127.0 * np.eye(N_COLUMNS, dtype=np.float32)
    got = np.concatenate(
        [
            _core.multiply(type, layout, weights=data, activations=ones[at : at + batch], path=path)
            for at in range(0, N_COLUMNS, batch if batch > 1 else 37)
        ]
    )
    columns = np.concatenate([np.arange(at, at + batch) for at in range(0, N_COLUMNS, batch if batch > 1 else 37)])
    np.testing.assert_allclose(got.T / 127.0, expected[:, columns], rtol=1e-6, atol=1e-6 * magnitude(type, data))


@pytest.mark.parametrize("path", _core.cpu_paths())
@pytest.mark.parametrize(("type", "layout"), KERNELS)
@pytest.mark.parametrize("batch", [1, 3, 8, 21])
def test_products_differ_by_no_more_than_the_activations_are_rounded(
    type: str, layout: str, path: str, batch: int
) -> None:
    rng = np.random.default_rng(2)
    data = blocks(type, rng)
    weights = weights_of(type, data)
    activations = rng.standard_normal((batch, N_COLUMNS)).astype(np.float32)
    group = GGML_QUANT_SIZES[GGMLQuantizationType[type]][0]  # of activations that share a scale
    levels = {"F32": 2.0**24, "F16": 2048, "BF16": 256}.get(type, 127)
    step = np.abs(activations).reshape(batch, -1, group).max(2).repeat(group, 1) / levels
    got = _core.multiply(type, layout, weights=data, activations=activations, path=path)
    bound = 0.51 * step @ np.abs(weights).T + 1e-4
    assert (np.abs(got - activations @ weights.T) <= bound).all()


@pytest.mark.parametrize("path", _core.cpu_paths())
@pytest.mark.parametrize(("type", "layout"), KERNELS)
def test_activations_of_any_size(type: str, layout: str, path: str) -> None:
    rng = np.random.default_rng(3)
    data = blocks(type, rng)
    activations = rng.standard_normal((3, N_COLUMNS)).astype(np.float32)
    activations[0] = 0.0
    activations[1] *= 1e-42  # subnormal; nothing is left of it
    got = _core.multiply(type, layout, weights=data, activations=activations, path=path)
    assert (np.abs(got[:2]) <= 1e-30).all()
    assert np.isfinite(got).all()
    if type not in {"F16", "MXFP4"}:  # the latter's weights are larger already
        large = _core.multiply(type, layout, weights=data, activations=activations * np.float32(2.0**60), path=path)
        np.testing.assert_allclose(large[2], got[2].astype(np.float64) * 2.0**60, rtol=1e-6)


def test_every_path_is_named_and_the_fastest_is_the_default() -> None:
    paths = _core.cpu_paths()
    assert paths[0] == "scalar"
    assert _core.CpuProbe(physical_cpus()[:1], max_bytes=1 << 20).path == paths[-1]
    with pytest.raises(ValueError, match=r"path is 'avx1024', this CPU and build run scalar"):
        _core.CpuProbe(physical_cpus()[:1], max_bytes=1 << 20, path="avx1024")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "IQ2_S"}, "type is 'IQ2_S', known are F32, F16, BF16, Q8_0"),
        ({"layout": "interleaved"}, "Q8_0 has no interleaved layout, only Q4_0"),
        ({"activations": np.zeros((1, 256), np.float32)}, "weights have 8704 bytes, Q8_0 of this shape has 4352"),
        ({"activations": np.zeros(512, np.float32)}, "must have two dimensions"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(change: dict, message: str) -> None:
    arguments = {
        "type": "Q8_0",
        "layout": "plain",
        "weights": blocks("Q8_0", np.random.default_rng(0)),
        "activations": np.zeros((1, N_COLUMNS), np.float32),
    } | change
    with pytest.raises(ValueError, match=message):
        _core.multiply(arguments.pop("type"), arguments.pop("layout"), **arguments)
