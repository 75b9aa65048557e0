"""Stock llama.cpp's --fit, against what its own tool printed on one GPU."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf_cases import oracle_header

from pshard import _core
from pshard.model import Model, data_type, model_from_header

ROWS = Path(__file__).parents[1] / "data" / "stock_fit.json.gz"
MIB = 1 << 20


@lru_cache(maxsize=1)
def rows() -> list[dict[str, Any]]:
    with gzip.open(ROWS) as file:
        loaded: list[dict[str, Any]] = json.load(file)["rows"]
    return loaded


@lru_cache
def oracle_model(name: str) -> Model:
    return model_from_header(oracle_header(name), name)


def fit(row: dict[str, Any]) -> _core.StockFit:
    context = _core.ContextParameters()
    context.n_ctx, context.n_batch, context.n_ubatch = row["n_ctx"], row["n_batch"], row["n_ubatch"]
    context.n_seq_max = row["n_seq_max"]
    context.type_k = context.type_v = data_type(row["type_kv"])
    return _core.stock_fit(oracle_model(row["model"]).core, context, (row["free_mib"] - row["margin_mib"]) * MIB)


def test_layer_counts_agree_where_something_is_offloaded() -> None:
    changed = [row for row in rows() if row["n_gpu_layers"] >= 0]
    assert len(changed) > 150
    near = 0
    for row in changed:
        result = fit(row)
        near += (
            not result.fits_whole
            and abs(result.n_gpu_layers - row["n_gpu_layers"]) <= 1
            and abs(result.n_partial - row["n_overrides"]) <= 1
        )
    assert near >= 0.95 * len(changed), f"{near} of {len(changed)}"


def test_whole_models_are_told_from_the_others() -> None:
    disagreeing = [row for row in rows() if fit(row).fits_whole != (row["n_gpu_layers"] < 0)]
    assert len(disagreeing) <= 0.01 * len(rows()), disagreeing


def test_a_fit_stays_within_its_target() -> None:
    for row in rows():
        result = fit(row)
        if result.n_gpu_layers > 0:
            assert result.memory.gpu.total() <= (row["free_mib"] - row["margin_mib"]) * MIB, row


def test_memory_is_asked_for_a_few_times_only() -> None:
    assert max(fit(row).n_probes for row in rows()) <= 16


def test_without_a_gpu_everything_is_on_the_cpu() -> None:
    model = oracle_model("qwen3-30b-a3b-q4km")
    result = _core.stock_fit(model.core, _core.ContextParameters(), 0, has_gpu=False)
    assert result.n_gpu_layers == 0
    assert result.memory.gpu.total() == 0
    assert result.placement.head == _core.Where.cpu
