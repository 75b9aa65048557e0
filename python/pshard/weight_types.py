"""The types of weights that pshard has kernels for, by name, as the core tells them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# That most files consist of, the most frequent first: what is measured where time is short, and drawn.
COMMON = ("Q4_K", "Q6_K", "Q8_0", "F16", "Q4_0")


@cache
def cpu_types() -> tuple[str, ...]:
    """Types that the CPU's kernels multiply, common ones first."""
    from pshard import _core

    return common_first(kind.name for kind in _core.weight_types() if kind.on_cpu)


@cache
def gpu_types() -> tuple[str, ...]:
    """Types that the GPU's kernels multiply, common ones first."""
    from pshard import _core

    return common_first(kind.name for kind in _core.weight_types() if kind.on_gpu)


@cache
def executed_types() -> tuple[str, ...]:
    """Types that both multiply, common ones first: a run may put any weight on either."""
    return tuple(name for name in cpu_types() if name in gpu_types())


@cache
def interleaved_types() -> tuple[str, ...]:
    """Types that the CPU's kernels also multiply interleaved by rows, common ones first."""
    from pshard import _core

    return common_first(kind.name for kind in _core.weight_types() if kind.is_interleaved)


def common_first(names: Iterable[str]) -> tuple[str, ...]:
    """Put common types before others, which go by name."""
    return tuple(sorted(names, key=lambda name: (COMMON.index(name) if name in COMMON else len(COMMON), name)))
