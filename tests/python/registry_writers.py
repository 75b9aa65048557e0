"""What other processes do to a registry."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

from pshard.registry.fingerprint import fingerprint
from pshard.registry.format import Override, Settings, Tier, Variant
from pshard.registry.store import update

SETTINGS = Settings(n_ctx=1024, n_seq_max=1, n_threads=8, flash_attn=1, type_k=1, type_v=1)


def _variant(budget_mib: int) -> Variant:
    tier = Tier(
        index=0,
        batch_size=512,
        strategy="STATIC_ATTNPRIO_ALLMODELS",
        overrides=(Override("^output", 3), Override("^token_embd", 3), Override(r"blk\.0\..*", 3)),
        viable=True,
    )
    return Variant(budget_mib=budget_mib, cache_ubatch=512, tiers=(tier,))


def plan(path: Path, number: int) -> None:
    """Write one of many variants: eight in each section."""
    settings = replace(SETTINGS, n_ctx=number // 8)
    update(path, fingerprint(settings, 1000), settings, _variant(number + 1))


def die_before_replacing(path: Path) -> None:
    """Be killed where the new file is complete and the old one still in its place."""
    with mock.patch.object(Path, "replace", lambda *_: os._exit(9)):
        update(path, fingerprint(SETTINGS, 1000), SETTINGS, _variant(999))
