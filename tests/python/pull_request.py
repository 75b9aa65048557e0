"""What the planner pull request decided for five models in 181 runs, in pshard's terms."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import msgspec
from gguf_cases import DATA, oracle_header

from pshard import _core
from pshard.model.model import Model, model_from_header

FOLDER = DATA / "pull_request"
MIB = 1 << 20


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of a variant. `vram` is in MiB, `tps` in tokens per second; an unviable tier says nothing else."""

    bs: int
    viable: bool
    strategy: str = ""
    n_pinned: int = 0
    n_attn_pinned: int = 0
    overflow: str = "NONE"
    tps: float = 0.0
    vram: float = 0.0
    output_on_gpu: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the planner: budget in MiB, forced strategy or "auto"."""

    model: str
    budget: int
    ctx: int
    strategy: str
    set: str
    planner_cpu_seconds: float
    variant: str
    tiers: tuple[Tier, ...]
    disabled_baseline_vram_mib: float | None = None

    @property
    def cache_ubatch(self) -> int:
        """Tokens that the cache is sized for: the largest tier."""
        return int(self.variant.split("cache_ubatch=")[1].split()[0])

    @property
    def name(self) -> str:
        """For test ids and tables."""
        return f"{self.model} {self.budget} MiB c{self.ctx} {self.set} {self.strategy}"


@cache
def runs() -> tuple[Run, ...]:
    """Every run, in the order of the file."""
    document = gzip.decompress((FOLDER / "plans.json.gz").read_bytes())
    return msgspec.convert(msgspec.json.decode(document)["runs"], tuple[Run, ...])


@cache
def model(name: str) -> Model:
    """One of the five models, by the name that the runs give it."""
    return model_from_header(oracle_header(name), name=name)


def context(run: Run) -> _core.ContextParameters:
    """The context that all tiers of a run share."""
    parameters = _core.ContextParameters()
    parameters.n_ctx = run.ctx
    parameters.n_batch = parameters.n_ubatch = run.cache_ubatch
    parameters.pshard_runtime = True
    return parameters


def placement(run: Run, tier: Tier) -> _core.Placement:
    """What a tier of a run puts where."""
    n_attn = tier.n_attn_pinned if tier.strategy.startswith("STATIC") else 0
    knobs = _core.Knobs(tier.n_pinned, n_attn, tier.overflow, bool(tier.output_on_gpu))
    return _core.make_placement(tier.strategy, knobs, model(run.model).core)


def vram_bytes(run: Run, tier: Tier) -> int:
    """What pshard's memory model says for a tier's choice."""
    return _core.memory(model(run.model).core, placement(run, tier), context(run), tier.bs).gpu.total()


def is_close(run: Run, tier: Tier) -> bool:
    """Whether that is within 2 % or 32 MiB of the recorded figure."""
    return abs(vram_bytes(run, tier) / MIB - tier.vram) <= max(32.0, 0.02 * tier.vram)


def viable(strategy: str | None = None, model: str | None = None) -> list[tuple[Run, Tier]]:
    """Every choice that was made, or those of one strategy or model."""
    return [
        (run, tier)
        for run in runs()
        for tier in run.tiers
        if tier.viable and strategy in (None, tier.strategy) and model in (None, run.model)
    ]


def profile_path(name: str) -> Path:
    """The planner's own profile files, "cpu_profile.txt" and "gpu_profile.txt", packed."""
    return FOLDER / f"{name}.gz"
