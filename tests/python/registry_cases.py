"""Registries for tests: those that the pull request's planner wrote, and made-up ones."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from pshard.registry.format import OVERFLOWS, STRATEGIES, Override, Settings, Tier, Variant

DATA = Path(__file__).parents[1] / "data" / "registries"
SAMPLES = tuple(sorted(path.stem for path in DATA.glob("*.gz")))
SETTINGS = Settings(n_ctx=1024, n_seq_max=1, n_threads=8, flash_attn=1, type_k=1, type_v=1)


@cache
def sample(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def overrides(n_layer: int = 2, n_pinned: int = 1) -> tuple[Override, ...]:
    """Whole layers in VRAM, the others on the CPU."""
    layers = [Override(rf"blk\.{i}\..*", 0 if i < n_pinned else 3) for i in range(n_layer)]
    return (Override("^output", 3), Override("^token_embd", 3), *layers)


def tier(index: int = 0, batch_size: int = 1, **fields: object) -> Tier:
    given: dict[str, object] = {
        "strategy": "STATIC_ATTNPRIO_ALLMODELS",
        "n_pinned": 1,
        "n_attn_pinned": 1,
        "tokens_per_second": 10.0,
        "vram_mib": 100.0,
        "overrides": overrides(),
        "viable": True,
    }
    return Tier(index=index, batch_size=batch_size, **{**given, **fields})


def variant(budget_mib: int = 200, cache_ubatch: int = 512, *tiers: Tier) -> Variant:
    return Variant(budget_mib=budget_mib, cache_ubatch=cache_ubatch, tiers=tiers or (tier(), tier(1, cache_ubatch)))


def settings() -> st.SearchStrategy[Settings]:
    return st.builds(
        Settings,
        n_ctx=st.integers(0, 1 << 20),
        n_seq_max=st.integers(1, 64),
        n_threads=st.integers(-1, 256),
        flash_attn=st.sampled_from([-1, 0, 1]),
        type_k=st.integers(0, 40),
        type_v=st.integers(0, 40),
        strategy=st.sampled_from(["auto", *STRATEGIES]),
    )


_PATTERN = st.from_regex(r"\A(blk\\\.[0-9]{1,3}\\\.|\^output|[a-z_|().*^$]{1,12})[a-z_|()]{0,9}\Z")


def tiers() -> st.SearchStrategy[Tier]:
    sizes = {"index": st.integers(0, 20), "batch_size": st.integers(1, 1 << 16)}
    planned = st.builds(
        Tier,
        **sizes,
        strategy=st.sampled_from(STRATEGIES),
        n_pinned=st.integers(0, 200),
        n_attn_pinned=st.integers(0, 200),
        overflow=st.sampled_from(OVERFLOWS),
        tokens_per_second=st.integers(0, 10**8).map(lambda n: n / 100),
        vram_mib=st.integers(0, 10**7).map(lambda n: n / 10),
        output_on_gpu=st.booleans(),
        pin_from_back=st.booleans(),
        overrides=st.lists(
            st.builds(Override, _PATTERN, st.integers(0, 9), st.sampled_from(["CUDA_Host", "C"])), min_size=1
        ).map(tuple),
        viable=st.just(True),
    )
    return planned | st.builds(Tier, **sizes)


def variants() -> st.SearchStrategy[Variant]:
    key = {"budget_mib": st.integers(0, 1 << 20), "cache_ubatch": st.integers(0, 1 << 16)}
    disabled = st.builds(Variant, **key, baseline_vram_mib=st.integers(0, 10**7).map(lambda n: n / 10))
    return disabled | st.builds(Variant, **key, tiers=st.lists(tiers(), max_size=4).map(tuple))
