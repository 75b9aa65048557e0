"""The bindings of the CPU and storage probes: what they count, say and refuse, not how long anything takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pshard import _core
from pshard.machine.cpus import physical_cpus

SHORTEST = _core.MeasurePolicy(budget_seconds=1e-6, min_count=2, max_count=2)


@pytest.fixture(scope="module")
def probe() -> _core.CpuProbe:
    return _core.CpuProbe(physical_cpus()[:1], max_bytes=32 << 20)


def test_product_counts_its_bytes_and_flop(probe: _core.CpuProbe) -> None:
    result = probe.product("Q6_K", "plain", n_rows=512, n_columns=512, batch=3, n_threads=1, policy=SHORTEST)
    assert result.n_flop == 2 * 512 * 512 * 3
    assert result.n_bytes == 512 * 512 // 256 * 210
    assert result.flop_per_second == pytest.approx(result.n_flop / result.time.median_seconds)
    assert result.bytes_per_second == pytest.approx(result.n_bytes / result.time.median_seconds)
    assert (result.time.count, result.n_threads) == (2, 1)


def test_experts_are_all_different(probe: _core.CpuProbe) -> None:
    one = probe.product("Q4_K", "plain", n_rows=256, n_columns=256, batch=2, n_threads=1, policy=SHORTEST)
    six = probe.experts("Q4_K", "plain", n_rows=256, n_columns=256, batch=2, n_used=6, n_threads=1, policy=SHORTEST)
    assert (six.n_bytes, six.n_flop) == (6 * one.n_bytes, 6 * one.n_flop)
    with pytest.raises(_core.ProbeError, match="5 times 16 MiB are needed, max_bytes allows 32 MiB"):
        probe.experts("F16", "plain", n_rows=2048, n_columns=4096, batch=1, n_used=5, n_threads=1, policy=SHORTEST)


def test_attention_reads_the_whole_cache(probe: _core.CpuProbe) -> None:
    shape = {"n_heads": 8, "n_kv_heads": 2, "head_size": 64, "depth": 1000, "batch": 4}
    result = probe.attention(**shape, n_threads=1, policy=SHORTEST)
    assert result.n_bytes == 2 * 2 * 2 * 64 * 1000
    assert result.n_flop == 4 * 8 * 64 * 1000 * 4


def test_attention_takes_caches_of_other_types(probe: _core.CpuProbe) -> None:
    shape = {"n_heads": 8, "n_kv_heads": 2, "head_size": 64, "depth": 1000, "batch": 4, "n_threads": 1}
    result = probe.attention(**shape, policy=SHORTEST, key_type="Q8_0", value_type="Q4_0")
    assert result.n_bytes == 1000 * 2 * 64 * (34 + 18) / 32
    with pytest.raises(ValueError, match="key_type is Q6_K, for which attention has no kernel"):
        probe.attention(**shape | {"head_size": 256}, policy=SHORTEST, key_type="Q6_K", value_type="Q6_K")


def test_a_probe_that_cannot_be_cold_says_so(probe: _core.CpuProbe) -> None:
    if _core.last_level_cache_bytes() <= 16 << 20:
        pytest.skip("32 MiB are cold here")
    result = probe.read(n_threads=1, policy=SHORTEST)
    assert not result.is_cold
    assert "MiB were read, the caches hold" in result.note


def test_operations_and_waking_cost_something(probe: _core.CpuProbe) -> None:
    cost = probe.op_cost(n_threads=1, policy=SHORTEST)
    assert cost.op.time.median_seconds > 0
    assert cost.wake.time.median_seconds > 0


@pytest.mark.parametrize("n_threads", [0, 2, -1])
def test_threads_are_those_of_the_probe(probe: _core.CpuProbe, n_threads: int) -> None:
    with pytest.raises(ValueError, match=f"n_threads is {n_threads}, the probe has 1 CPUs"):
        probe.read(n_threads=n_threads, policy=SHORTEST)
    with pytest.raises(ValueError, match=f"n_threads is {n_threads}"):
        probe.product("F16", "plain", n_rows=32, n_columns=32, batch=1, n_threads=n_threads, policy=SHORTEST)
    with pytest.raises(ValueError, match=f"n_threads is {n_threads}"):
        probe.op_cost(n_threads=n_threads, policy=SHORTEST)


def test_contention_takes_two_cpus(probe: _core.CpuProbe) -> None:
    with pytest.raises(_core.ProbeError, match="on two CPUs or more"):
        probe.contention("Q4_0", "plain", n_rows=256, n_columns=256, batch=1, chunk_bytes=1 << 20, policy=SHORTEST)


def test_storage_reads_a_file_and_says_how(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(3 << 20))
    result = _core.probe_storage(str(path), n_bytes=1 << 40, chunk_bytes=1 << 20, policy=SHORTEST)
    assert result.n_bytes == 1 << 20
    assert result.note.startswith(("read with O_DIRECT", "read after asking the operating system to drop"))
    with pytest.raises(_core.ProbeError, match="fewer than the 4194304 that one sample reads"):
        _core.probe_storage(str(path), n_bytes=1 << 40, chunk_bytes=4 << 20, policy=SHORTEST)
    with pytest.raises(_core.ProbeError, match="cannot be opened"):
        _core.probe_storage(str(tmp_path / "absent"), n_bytes=1 << 40, chunk_bytes=4 << 20, policy=SHORTEST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_spread": 0.0}, "max_spread must be positive"),
        ({"noisy_spread": 0.001}, "noisy_spread must be at least max_spread"),
        ({"budget_seconds": 0.0}, "budget_seconds must be positive"),
        ({"min_count": 1}, "min_count must be at least 2"),
        ({"max_count": 1}, "max_count must be at least min_count"),
    ],
)
def test_a_policy_must_be_possible(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.MeasurePolicy(**change)
