"""The CPU kernels that are measured, against gguf's reference dequantisation."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pshard import _core
from pshard.machine.cpus import physical_cpus

KERNELS = [
    (type, layout)
    for type in ("F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")
    for layout in ("plain", "interleaved")
    if layout == "plain" or type in {"Q4_0", "Q4_K"}
]
# Offsets of the F16 scales in a block, and how many bytes they are
SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
N_ROWS, N_COLUMNS = 16, 512


def blocks(type: str, rng: np.random.Generator, scale: float | None = None, fill: int | None = None) -> np.ndarray:
    """Rows of blocks: random or constant codes, and F16 scales that are random or given."""
    columns, size = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    if type == "F16":
        values = rng.standard_normal((N_ROWS, N_COLUMNS)) if fill is None else np.full((N_ROWS, N_COLUMNS), fill / 16.0)
        return (values * (1.0 if scale is None else scale)).astype(np.float16).view(np.uint8)
    shape = (N_ROWS, N_COLUMNS // columns, size)
    data = rng.integers(0, 256, shape, dtype=np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    for offset in SCALES[type]:
        scales = rng.uniform(-2.0, 2.0, shape[:2]) if scale is None else np.full(shape[:2], scale)
        data[..., offset : offset + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    return data.reshape(N_ROWS, -1)


def weights_of(type: str, data: np.ndarray) -> np.ndarray:
    """What gguf makes of the rows, in double precision."""
    return dequantize(data, GGMLQuantizationType[type]).reshape(N_ROWS, N_COLUMNS).astype(np.float64)


def magnitude(type: str, data: np.ndarray) -> float:
    """Largest term that a weight is a sum of: K types subtract a min, and both may be larger than the weight."""
    if type != "Q4_K":
        return float(np.abs(weights_of(type, data)).max())
    scales = data.reshape(-1, 144)[:, :4].copy().view(np.float16).astype(np.float64)
    return float(np.abs(scales).max() * 63 * 15)


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


@pytest.mark.parametrize("path", _core.cpu_paths())
@pytest.mark.parametrize(("type", "layout"), KERNELS)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("batch", [1, 2, N_COLUMNS])
def test_every_weight_is_what_gguf_says(type: str, layout: str, path: str, edge: str, batch: int) -> None:
    scale, fill = EDGES[edge]
    if type == "F16" and scale is not None and abs(scale) > 1e4:
        scale = np.sign(scale) * 1e4  # times normal numbers
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
    group = {"F16": 1, "Q8_0": 32, "Q4_0": 32}.get(type, 256)
    step = np.abs(activations).reshape(batch, -1, group).max(2).repeat(group, 1) / (2048 if type == "F16" else 127)
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
    if type != "F16":
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
        ({"type": "Q5_K"}, "type is 'Q5_K', there are kernels for F16, Q8_0, Q4_0, Q4_K, Q6_K"),
        ({"layout": "interleaved"}, "only Q4_0 and Q4_K have an interleaved layout"),
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
