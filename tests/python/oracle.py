"""What llama.cpp allocates, and the launches in pshard's terms.

`names()` are twenty models in 4,189 launches on none to four GPUs, `more_names()` over a hundred more in nine to
fifteen each.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from gguf_cases import DATA, header_of, oracle_header

from pshard import _core
from pshard.launch.placements import placement_from_flags
from pshard.model.model import Model, data_type, model_from_header

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute bytes of every GPU, then of the host: what llama.cpp takes, and what pshard says."""

    taken: tuple[int, ...]
    found: tuple[int, ...]

    @property
    def is_exact(self) -> bool:
        return self.taken == self.found

    @property
    def is_close(self) -> bool:
        """Within 2 % or 4 MiB, on every device."""
        return all(abs(f - t) <= max(0.02 * t, 4 * MIB) for t, f in zip(self.taken, self.found, strict=True))

    @property
    def is_enough(self) -> bool:
        """Not more than 1 % or 1 MiB below, on any device."""
        return all(t - f <= max(0.01 * t, MIB) for t, f in zip(self.taken, self.found, strict=True))

    @property
    def worst_bytes(self) -> int:
        return max(abs(f - t) for t, f in zip(self.taken, self.found, strict=True))

    @property
    def worst_share(self) -> float:
        return max(abs(f - t) / max(t, 1) for t, f in zip(self.taken, self.found, strict=True))


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
    devices: list[int]  # free memory of each GPU, in one unit
    n_ctx_actual: int
    gpu_model: list[int]  # one entry per GPU
    gpu_context: list[int]
    gpu_compute: list[int]
    host_model: int
    host_context: int
    host_compute: int

    def context(self) -> _core.ContextParameters:
        context = _core.ContextParameters()
        context.n_ctx = self.n_ctx or self.n_ctx_actual
        for name in ("n_batch", "n_ubatch", "n_seq_max"):
            setattr(context, name, getattr(self, name))
        for name in ("kv_unified", "swa_full"):
            setattr(context, name, bool(getattr(self, name)))
        context.flash_attn = self.fa != 0
        context.flash_attn_auto = self.fa < 0
        context.type_k = context.type_v = data_type(self.type_kv)
        return context

    def placement(self, model: Model) -> _core.Placement:
        overrides = [(self.ot, "CPU")] if self.ot else []
        return placement_from_flags(
            model.core, self.ngl, overrides, offload_kqv=bool(self.offload_kqv), devices=self.devices
        )

    def report(self, model: Model) -> _core.MemoryReport:
        n_tokens = min(self.n_ctx_actual, self.n_batch, self.n_ubatch)
        return _core.memory(model.core, self.placement(model), self.context(), n_tokens)

    def compute(self, model: Model) -> Compute:
        report = self.report(model)
        found = [*(gpu.compute_bytes for gpu in report.gpus), report.host.compute_bytes]
        return Compute((*self.gpu_compute, self.host_compute), tuple(found))


@cache
def _document(file: str) -> dict[str, Any]:
    with gzip.open(DATA / file) as stream:
        document: dict[str, Any] = json.load(stream)
    return document


def _twenty() -> dict[str, Any]:
    return _document("memory_rows.json.gz")


def _more() -> dict[str, Any]:
    return _document("memory_more.json.gz")


def names() -> list[str]:
    return sorted(_twenty()["models"])


def more_names() -> list[str]:
    return sorted(set(_more()["models"]) - set(estimated_names()))


def estimated_names() -> list[str]:
    """Models of architectures that are not described, in nine launches each."""
    names: list[str] = _more()["estimated"]
    return names


@cache
def model(name: str) -> Model:
    if name in _twenty()["models"]:
        return model_from_header(oracle_header(name), name=name)
    found = _more()["headers"][name]
    return model_from_header(header_of(found["metadata"], found["tensors"], found["file_bytes"]), name=name)


@cache
def rows(name: str) -> tuple[Row, ...]:
    document = _twenty() if name in _twenty()["models"] else _more()
    columns = dict(zip(document["columns"], document["models"][name], strict=True))
    columns["set"] = [document["sets"][i] for i in columns["set"]]
    columns["ot"] = [document["overrides"][i] for i in columns["ot"]]
    columns["devices"] = [document["devices"][i] for i in columns["devices"]]
    return tuple(Row(*values) for values in zip(*(columns[field] for field in Row.__slots__), strict=True))
