"""The memory model against what the pull request's planner measured for its own choices: `vram=` of 926 tiers."""

from __future__ import annotations

import pull_request
import pytest

MIB = 1 << 20


def test_most_choices_are_close() -> None:
    cells = pull_request.viable()
    assert len(cells) == 926
    assert sum(pull_request.is_close(*cell) for cell in cells) >= 0.95 * len(cells)


@pytest.mark.parametrize("model", ["llama3-8b-norf-q4km", "qwen3-32b-q4km"])
def test_dense_placements_without_streaming_are_exact(model: str) -> None:
    """To the 0.1 MiB that is printed: masks cast on the GPU, the head left where it lies."""
    cells = pull_request.viable("STATIC_ATTNPRIO_ALLMODELS", model)
    assert len(cells) > 25
    for run, tier in cells:
        assert pull_request.vram_bytes(run, tier) / MIB == pytest.approx(tier.vram, abs=0.11), (run.name, tier.bs)


def test_few_choices_are_too_small() -> None:
    """A registry needs a margin for these: what streams may be fragmented in ways that are not replayed."""
    low = [cell for cell in pull_request.viable() if pull_request.vram_bytes(*cell) / MIB < cell[1].vram - 16]
    assert len(low) <= 65
    assert all(tier.vram - pull_request.vram_bytes(run, tier) / MIB <= 240 for run, tier in low)
