"""The memory model against what the pull request's planner measured for its own choices: `vram=` of 926 tiers."""

from __future__ import annotations

from functools import cache
from statistics import median

import pull_request
import pytest

from pshard import _core

MIB = 1 << 20
PRINTED_MIB = 0.1


@cache
def errors_mib() -> tuple[tuple[pull_request.Run, pull_request.Tier, float], ...]:
    """pshard's bytes less theirs, for every choice."""
    return tuple(
        (run, tier, pull_request.vram_bytes(run, tier) / MIB - tier.vram) for run, tier in pull_request.viable()
    )


def has_rope_defect(run: pull_request.Run, tier: pull_request.Tier) -> bool:
    """Whether the runtime takes rope factors for the head, and ropes of layers that stream for work of the CPU."""
    return run.model.startswith("llama31") and tier.strategy == "GPUONLY_LAYERPIN_LAYERSTREAM"


def test_no_choice_is_too_small() -> None:
    """The runtime aborts on a plan that is larger than its arena."""
    assert len(errors_mib()) == 926
    assert [(run.name, tier) for run, tier, error in errors_mib() if error < -PRINTED_MIB] == []


def test_choices_are_close() -> None:
    far = [(run.name, tier) for run, tier, _ in errors_mib() if not pull_request.is_close(run, tier)]
    assert len(far) <= 0.05 * len(errors_mib())
    assert len(far) <= 2, far


@pytest.mark.parametrize("model", sorted({run.model for run in pull_request.runs()}))
def test_choices_are_exact(model: str) -> None:
    """To what is printed, whether layers stream or not: lanes, slots and copies are replayed one by one."""
    cells = [cell for cell in errors_mib() if cell[0].model == model and not has_rope_defect(*cell[:2])]
    assert len(cells) > 100
    for run, tier, error in cells:
        assert error == pytest.approx(0.0, abs=PRINTED_MIB), (run.name, tier)


def test_bytes_without_a_replay_are_never_too_many_and_mostly_near() -> None:
    shares = []
    for run, tier in pull_request.viable()[::7]:
        buffers = _core.ComputeBuffers(pull_request.model(run.model).core, pull_request.context(run), tier.bs)
        placement = pull_request.placement(run, tier)
        least, exact = buffers.gpu_at_least(placement), buffers(placement).gpu_bytes[0]
        assert least <= exact, (run.name, tier)
        shares.append(least / exact)
    assert median(shares) > 0.75
