"""Header reading against gguf.GGUFReader, on a file with a vocabulary of 128k tokens and 280k merges.

Both read the same file in one run; the tensor tables must be equal. Gates: at least 100 times faster, and under 30 ms.
GGUFReader needs seconds per round, so it runs once.

    pytest bench/bench_gguf.py
"""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path

import gguf
import pytest
from gguf_cases import Q4_K, llama_keys, llama_tensors, write_sparse
from pytest_benchmark.fixture import BenchmarkFixture

from pshard.gguf.file import read_header

N_LAYER = 80
N_TOKENS = 128_000
N_MERGES = 280_000
MIN_RATIO = 100.0
MAX_SECONDS = 0.030


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = [(name, shape, Q4_K if len(shape) == 2 else t) for name, shape, t in llama_tensors(N_LAYER)]
    folder = tmp_path_factory.mktemp("gguf")
    return write_sparse(folder / "m.gguf", "llama", llama_keys(N_LAYER), tensors, tokens=N_TOKENS, merges=N_MERGES)


def test_read_header(benchmark: BenchmarkFixture, path: Path) -> None:
    header = benchmark.pedantic(read_header, args=(path,), rounds=30, warmup_rounds=3)

    gc.collect()
    start = time.perf_counter()
    oracle = gguf.GGUFReader(path)
    oracle_seconds = time.perf_counter() - start

    assert len(header.tensors) == 3 + 9 * N_LAYER
    assert [(t.name, t.shape, t.type, t.n_bytes, t.offset) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), int(t.n_bytes), int(t.data_offset))
        for t in oracle.tensors
    ]
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = statistics.median(benchmark.stats.stats.data)
    ratio = oracle_seconds / seconds
    benchmark.extra_info |= {"seconds": seconds, "gguf_reader_seconds": oracle_seconds, "ratio": ratio}
    assert ratio >= MIN_RATIO
    assert seconds < MAX_SECONDS
