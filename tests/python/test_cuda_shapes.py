"""What a run on a GPU is predicted by: products of the model's own shapes, measured by a stand-in for the GPU here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import pshard
from pshard import _core
from pshard.run.cuda_backend import Timed, measure_shapes
from pshard.run.execution import ExecutionError

SECONDS_PER_ROW = 1e-5


class StandIn:
    """Every product takes the same for each row of activations, and its start."""

    def __init__(self, index: int, **limits: int) -> None:
        pass

    def product(self, kind: str, *, n_rows: int, n_columns: int, batch: int, policy: object) -> SimpleNamespace:
        return self.result(2.0 * n_rows * n_columns * batch, batch)

    def experts(
        self, kind: str, *, n_rows: int, n_columns: int, n_experts: int, n_used: int, n_tokens: int, policy: object
    ) -> SimpleNamespace:
        return self.result(2.0 * n_rows * n_columns * n_used * n_tokens, n_tokens)

    def result(self, n_flop: float, batch: int) -> SimpleNamespace:
        if batch > 8192:
            message = "batch: no kernel takes it"
            raise ValueError(message)
        return SimpleNamespace(
            n_flop=n_flop, time=SimpleNamespace(median_seconds=batch * SECONDS_PER_ROW + 2e-6, spread=0.01)
        )


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "GpuProbe", StandIn)
    monkeypatch.setattr(
        _core, "query_gpus", lambda: SimpleNamespace(devices=[SimpleNamespace(free_bytes=1 << 33)], reason="")
    )
    monkeypatch.setattr("pshard.run.cuda_backend._on_cpu", lambda *given: ((), 3e-6))


@pytest.mark.skipif(bool(_core.query_gpus().devices), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ExecutionError, match="there is no GPU 0"):
        measure_shapes(pshard.read_model("llama-3.2-1b:Q4_0"), [0], [1])


def test_a_product_takes_what_was_measured() -> None:
    op_seconds, seconds, flop = 2e-6, 1e-5, 1e6
    series = Timed(False, "Q4_0", (64, 64), ((1.0, flop, seconds),), 0.01).rates(op_seconds).series
    assert flop / series.rate(1.0) + op_seconds == pytest.approx(seconds)


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("name", ["llama-3.2-1b:Q4_K_M", "qwen3-30b-a3b:Q4_K_M"])
def test_every_shape_has_the_batches_of_the_run_and_one_token(name: str) -> None:
    model = pshard.read_model(name)
    found = measure_shapes(model, [0], [16384])
    machine = found.priced(pshard.load_machine("rtx-4070-12g").core())
    assert machine.cpu.op_seconds == 3e-6
    assert {shape.is_routed for shape in machine.gpu.shapes} == ({False, True} if "30b" in name else {False})
    layers = [timed for timed in found.gpu if timed.shape[0] < 65536 and not timed.is_routed]
    assert layers
    assert all([rows for rows, _, _ in timed.samples] == [1.0, 8192.0] for timed in layers)
    assert all([rows for rows, _, _ in timed.samples] == [1.0] for timed in found.gpu if timed.shape[0] > 65536)
