"""GPU probes against what the same run can do with nothing of ours: plain copies, a copy on the device, cuBLAS.

- Copies: the rate of the probe as a fraction of plain `cudaMemcpyAsync` calls in a row, by the clock of the host. The
  probe's events leave launches out, so it should not be slower.
- Device memory: reading as a fraction of what a copy inside the device reads and writes.
- Products: as a fraction of cuBLAS with halves, that of the loader or of NVIDIA's Python packages (`PSHARD_CUBLAS`
  names another file; skipped where there is none).
- Overlap: the time of copies and products side by side if neither slowed the other, over what they take.

Every figure is a fraction within one run. Without a GPU all are skipped, with the reason.

    pytest bench/bench_gpu.py                        # gates
    python bench/bench_gpu.py [bench/results]        # all of it into a file with the GPU's name
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pshard import _core
from pshard.machine.nvidia import devices, state
from pshard.weight_types import gpu_types

MIB = 1 << 20
POLICY = _core.MeasurePolicy(budget_seconds=0.5)
MAX_HOST_BYTES = 2 << 30
COPIES = [("up", 1 * MIB), ("up", 64 * MIB), ("down", 1 * MIB), ("down", 64 * MIB)]
BATCHES = [1, 8, 16, 64, 512, 2048, 8192]
N_ROWS, N_COLUMNS = 4096, 4096
# Clocks differ, and so does what they leave out; a probe that is slower than this copies badly.
LEAST_COPY_SHARE = 0.95
LEAST_READ_SHARE = 0.9

FOUND, REASON = devices()
if FOUND and not _core.built_with_cuda:
    REASON = "built without CUDA"
pytestmark = pytest.mark.skipif(bool(REASON) or not FOUND, reason=f"no GPU: {REASON}")


def find_cublas() -> None:
    """Name cuBLAS of NVIDIA's Python packages, which PyTorch and others bring, where the loader may not find it."""
    packages = find_spec("nvidia")
    if "PSHARD_CUBLAS" in os.environ or packages is None:
        return
    for folder in packages.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("*/lib/libcublas.so.*"), reverse=True):
            os.environ["PSHARD_CUBLAS"] = str(path)
            return


def open_probe() -> _core.GpuProbe:
    find_cublas()
    return _core.GpuProbe(0, max_device_bytes=FOUND[0].free_bytes // 2, max_host_bytes=MAX_HOST_BYTES)


@pytest.fixture(scope="module")
def probe() -> _core.GpuProbe:
    return open_probe()


def best(result: _core.ProbeResult) -> float:
    return result.n_bytes / result.time.minimum_seconds


def copy_share(probe: _core.GpuProbe, direction: str, chunk_bytes: int) -> dict[str, float]:
    ours = best(probe.copy(direction, "locked", chunk_bytes=chunk_bytes, is_scattered=False, policy=POLICY))
    plain = chunk_bytes / probe.plain_copy_seconds(direction, chunk_bytes=chunk_bytes)
    return {"bytes/s": ours, "plain bytes/s": plain, "share": ours / plain}


def read_share(probe: _core.GpuProbe) -> dict[str, float]:
    read = best(probe.read(policy=POLICY))
    copied = 2.0 * best(probe.copy_on_device(policy=POLICY))
    return {"read bytes/s": read, "copy reads and writes bytes/s": copied, "share": read / copied}


def product_share(probe: _core.GpuProbe, kind: str, batch: int) -> dict[str, float]:
    shape = {"n_rows": N_ROWS, "n_columns": N_COLUMNS, "batch": batch}
    ours = probe.product(kind, **shape, policy=POLICY)
    library = probe.library_product(**shape, policy=POLICY)
    return {
        "FLOP/s": ours.flop_per_second,
        "cuBLAS F16 FLOP/s": library.flop_per_second,
        "share": ours.flop_per_second / library.flop_per_second,
    }


def overlap(probe: _core.GpuProbe, batch: int) -> dict[str, float]:
    shape = {"n_rows": N_ROWS, "n_columns": N_COLUMNS, "batch": batch, "chunk_bytes": 4 * MIB}
    sides = probe.copies_beside_product("Q4_K", **shape, policy=POLICY)
    copy = sides.first_beside.bytes_per_second / sides.first_alone.bytes_per_second
    product = sides.second_beside.flop_per_second / sides.second_alone.flop_per_second
    # What takes a second alone on each side takes 1 / (rate left) beside the other; both have ended with the slower.
    return {"copy rate left": copy, "product rate left": product, "overlap": min(copy, product, 1.0)}


@pytest.mark.parametrize(("direction", "chunk_bytes"), COPIES)
def test_copies_against_plain_calls(benchmark: Any, probe: _core.GpuProbe, direction: str, chunk_bytes: int) -> None:
    found = benchmark.pedantic(copy_share, (probe, direction, chunk_bytes), rounds=1)
    benchmark.extra_info |= found
    assert found["share"] >= LEAST_COPY_SHARE


def test_reading_against_a_device_copy(benchmark: Any, probe: _core.GpuProbe) -> None:
    found = benchmark.pedantic(read_share, (probe,), rounds=1)
    benchmark.extra_info |= found
    assert found["share"] >= LEAST_READ_SHARE


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", gpu_types())
def test_products_against_cublas(benchmark: Any, probe: _core.GpuProbe, kind: str, batch: int) -> None:
    try:
        found = benchmark.pedantic(product_share, (probe, kind, batch), rounds=1)
    except _core.GpuError as error:
        pytest.skip(str(error))
    benchmark.extra_info |= found
    assert found["share"] > 0.0


@pytest.mark.parametrize("batch", [1, 64])
def test_overlap_of_copies_and_products(benchmark: Any, probe: _core.GpuProbe, batch: int) -> None:
    found = benchmark.pedantic(overlap, (probe, batch), rounds=1)
    benchmark.extra_info |= found
    assert 0.0 < found["overlap"] <= 1.0


def measured(function: Any, *arguments: Any) -> dict[str, float] | dict[str, str]:
    """A result, or why there is none."""
    try:
        result: dict[str, float] = function(*arguments)
    except (_core.GpuError, _core.ProbeError) as error:
        return {"skipped": str(error)}
    return result


def results() -> dict[str, Any]:
    """All fractions, with the state of the machine that they hold for."""
    probe, device = open_probe(), FOUND[0]
    before = state(device.pci_bus_id)
    figures = {
        "copies": {f"{way} {size >> 20} MiB": measured(copy_share, probe, way, size) for way, size in COPIES},
        "read against a device copy": measured(read_share, probe),
        "products against cuBLAS": {
            kind: {str(batch): measured(product_share, probe, kind, batch) for batch in BATCHES} for kind in gpu_types()
        },
        "overlap of copies and Q4_K products": {str(batch): measured(overlap, probe, batch) for batch in (1, 64)},
    }
    after = state(device.pci_bus_id)
    return {
        "schema_version": 1,
        "gpu": device.name,
        "driver": after.driver,
        "kernel": f"{platform.system()} {platform.release()}",
        "pcie": [after.pcie_generation, after.pcie_lanes],
        "power_limit_watts": after.power_limit_watts,
        "sm_clock_hertz": [before.sm_clock_hertz, after.sm_clock_hertz],
        "memory_clock_hertz": [before.memory_clock_hertz, after.memory_clock_hertz],
        "figures": figures,
    }


def main(folder: Path) -> int:
    """Write the results into `folder`; the file has the machine's name."""
    if REASON or not FOUND:
        sys.stderr.write(f"nothing to measure: {REASON}\n")
        return 1
    found = results()
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", found["gpu"].lower()).strip("-")
    path = folder / f"gpu-{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench/results")))
