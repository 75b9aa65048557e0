"""The GPU's kernels and probes on a real device, against gguf's dequantisation; and how a machine without one says so.

Kernels run on the CPU too, thread by thread, in tests/cpp/gpu_kernels_test.cpp.
"""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest

from pshard import _core
from pshard.machine.cpus import physical_cpus
from pshard.probe.gpu_probes import GpuProber
from pshard.probe.gpu_work import BesideCpu, GpuWork, full_gpu_works
from pshard.probe.probes import CpuProber
from pshard.weight_types import gpu_types

DEVICES = _core.query_gpus()
SHORT = _core.MeasurePolicy(budget_seconds=0.05)
MAX_BYTES = 1 << 30

on_gpu = pytest.mark.skipif(not DEVICES.devices, reason=f"no GPU: {DEVICES.reason}")


@pytest.fixture(scope="module")
def probe() -> _core.GpuProbe:
    return _core.GpuProbe(0, max_device_bytes=MAX_BYTES, max_host_bytes=MAX_BYTES)


def random_weights(kind: str, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks as in a file, and what gguf says they stand for."""
    type_ = gguf.GGMLQuantizationType[kind]
    raw = _core.random_rows(kind, n_rows=math.prod(shape[:-1]), n_columns=shape[-1], seed=seed)
    raw = raw.reshape(*shape[:-1], -1)
    return raw, gguf.quants.dequantize(raw, type_).reshape(shape).astype(np.float64)


def close(got: np.ndarray, weights: np.ndarray, x: np.ndarray) -> None:
    """Hold a product against one in double precision.

    Rounding activations to 8 bits moves a sum by less than a 150th of its terms' root mean square, times the root of
    their number: relative to the sum of magnitudes, eight of its deviations are 0.05 over that root.
    """
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(weights).swapaxes(-1, -2)
    expected = x.astype(np.float64) @ weights.swapaxes(-1, -2)
    assert np.isfinite(got).all()
    assert (np.abs(got - expected) <= 0.05 / np.sqrt(x.shape[-1]) * magnitude).all()


@on_gpu
@pytest.mark.parametrize("kind", gpu_types())
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 9, 32, 33, 64, 65, 200])
def test_products(probe: _core.GpuProbe, kind: str, batch: int) -> None:
    for rows, columns in ((4096, 4096), (131, 512)):
        raw, weights = random_weights(kind, (rows, columns), batch)
        x = np.random.default_rng(1).uniform(-1, 1, (batch, columns)).astype(np.float32)
        close(probe.multiply(kind, raw, x), weights, x)


@on_gpu
@pytest.mark.parametrize("kind", gpu_types())
@pytest.mark.parametrize("tokens", [1, 8, 9, 100, 2000])
@pytest.mark.parametrize("has_own_rows", [False, True])
def test_experts(probe: _core.GpuProbe, kind: str, tokens: int, has_own_rows: bool) -> None:
    rng = np.random.default_rng(tokens)
    raw, weights = random_weights(kind, (16, 200, 512), 3)
    ids = np.stack([rng.permutation(16)[:4] for _ in range(tokens)]).astype(np.int32)
    x = rng.uniform(-1, 1, (tokens, 4, 512) if has_own_rows else (tokens, 512)).astype(np.float32)
    got = probe.multiply_experts(kind, raw, ids, x)
    for used in range(4):
        rows = x[:, used] if has_own_rows else x
        for expert in range(16):
            chosen = ids[:, used] == expert
            if chosen.any():
                close(got[chosen, used], weights[expert], rows[chosen])


@on_gpu
@pytest.mark.parametrize("size", [64, 96, 128, 192, 256])
@pytest.mark.parametrize(("batch", "depth"), [(1, 1), (1, 5000), (4, 300), (9, 9), (65, 1000), (512, 600)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 2), (3, 3)])
def test_attention(probe: _core.GpuProbe, size: int, batch: int, depth: int, heads: int, kv_heads: int) -> None:
    rng = np.random.default_rng(size)
    depth = max(depth, batch)
    queries = rng.standard_normal((batch, heads, size)).astype(np.float32)
    keys, values = (rng.standard_normal((depth, kv_heads, size)).astype(np.float16) for _ in range(2))
    got = probe.attend(queries, keys.view(np.uint8), values.view(np.uint8), n_kv_heads=kv_heads)
    k, v = (np.repeat(array.astype(np.float64), heads // kv_heads, axis=1) for array in (keys, values))
    scores = np.einsum("bhd,chd->bhc", queries.astype(np.float64), k) / np.sqrt(size)
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bhc,chd->bhd", shares, v), atol=5e-3)


@pytest.fixture(scope="module")
def prober() -> GpuProber:
    cpu = CpuProber(physical_cpus()[:4], max_bytes=256 << 20)
    limits = {"max_device_bytes": MAX_BYTES << 2, "max_host_bytes": MAX_BYTES}
    return GpuProber(cpu, 0, DEVICES.devices[0].pci_bus_id, **limits)


@on_gpu
@pytest.mark.parametrize("work", full_gpu_works(2 << 30), ids=str)
def test_every_probe_verifies_itself(prober: GpuProber, work: GpuWork) -> None:
    if isinstance(work, BesideCpu) and len(physical_cpus()) < 2:
        pytest.skip("copies and products of the CPU need two CPUs")
    found = prober.measure(work, 0.05)  # refuses wrong results
    assert found.sample.median_seconds > 0
    assert all(part.sample.median_seconds > 0 for part in found.parts.values())


@on_gpu
def test_work_behind_the_gate_is_longer_by_kernels_and_not_by_launches(probe: _core.GpuProbe) -> None:
    """A kernel of nothing takes less in a row than a launch from the host that is waited for."""
    start, handoff = probe.start(policy=SHORT), probe.handoff(policy=SHORT)
    assert start.launch.time.median_seconds < handoff.to_gpu.time.median_seconds + handoff.to_cpu.time.median_seconds


@on_gpu
def test_shapes_that_do_not_go_together_are_refused(probe: _core.GpuProbe) -> None:
    raw, _ = random_weights("Q8_0", (4, 64), 0)
    with pytest.raises(ValueError, match="weights has 272 bytes, this shape has 408"):
        probe.multiply("Q8_0", raw, np.zeros((1, 96), np.float32))
    with pytest.raises(ValueError, match="n_columns is 48"):
        probe.product("F16", n_rows=4, n_columns=48, batch=1, policy=SHORT)
    with pytest.raises(ValueError, match="head_size is 80"):
        probe.attention(n_heads=1, n_kv_heads=1, head_size=80, depth=4, batch=1, policy=SHORT)


@pytest.mark.skipif(bool(DEVICES.devices), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_said() -> None:
    reason = "cudaGetDeviceCount" if _core.built_with_cuda else "built without CUDA"
    with pytest.raises(_core.GpuError, match=reason):
        _core.GpuProbe(0, max_device_bytes=1, max_host_bytes=1)


@on_gpu
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(_core.GpuError, match=f"there is no GPU 99, the CUDA runtime finds {len(DEVICES.devices)}"):
        _core.GpuProbe(99, max_device_bytes=1, max_host_bytes=1)
