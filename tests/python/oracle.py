"""What llama.cpp allocates for twenty models in 3,188 launches on one GPU, and the same launches in pshard's terms."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from gguf_cases import DATA, oracle_header

from pshard import _core
from pshard.model import Model, data_type, model_from_header
from pshard.placements import placement_from_flags


@dataclass(frozen=True, slots=True)
class Row:
    """One launch, with llama.cpp's names, and the bytes that it took."""

    set: str
    ngl: int
    n_ctx: int
    n_batch: int
    n_ubatch: int
    fa: int
    type_kv: int
    n_seq_max: int
    kv_unified: int
    offload_kqv: int
    swa_full: int
    ot: str
    n_ctx_actual: int
    gpu_model: int
    gpu_context: int
    gpu_compute: int
    host_model: int
    host_context: int
    host_compute: int

    def context(self) -> _core.ContextParameters:
        context = _core.ContextParameters()
        for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max"):
            setattr(context, name, getattr(self, name))
        for name in ("kv_unified", "swa_full"):
            setattr(context, name, bool(getattr(self, name)))
        context.flash_attn = self.fa != 0  # "auto" is on: every head size here is one that the device can do
        context.type_k = context.type_v = data_type(self.type_kv)
        return context

    def placement(self, model: Model) -> _core.Placement:
        overrides = [(self.ot, "CPU")] if self.ot else []
        return placement_from_flags(model.core, self.ngl, overrides, offload_kqv=bool(self.offload_kqv))

    def report(self, model: Model) -> _core.MemoryReport:
        n_tokens = min(self.n_ctx_actual, self.n_batch, self.n_ubatch)
        return _core.memory(model.core, self.placement(model), self.context(), n_tokens)


@cache
def _document() -> dict[str, Any]:
    with gzip.open(DATA / "memory_rows.json.gz") as file:
        document: dict[str, Any] = json.load(file)
    return document


def names() -> list[str]:
    return sorted(_document()["models"])


@cache
def model(name: str) -> Model:
    return model_from_header(oracle_header(name), name=name)


@cache
def rows(name: str) -> tuple[Row, ...]:
    document = _document()
    columns = dict(zip(document["columns"], document["models"][name], strict=True))
    columns["set"] = [document["sets"][i] for i in columns["set"]]
    columns["ot"] = [document["overrides"][i] for i in columns["ot"]]
    return tuple(Row(*values) for values in zip(*(columns[field] for field in Row.__slots__), strict=True))
