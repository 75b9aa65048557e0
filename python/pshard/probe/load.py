"""What other programs take of the processors while something is measured.

A load that is there all the time slows every run alike, so that runs agree with each other and nothing looks noisy.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Counters of the operating system step by a hundredth of a second: shorter spans tell nothing.
LEAST_SECONDS = 0.2
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


class OtherPrograms:
    """Seconds of processor time that other programs, or other virtual machines, have taken.

    Parameters
    ----------
    cpus : sequence of int
        Processors that are measured, by the numbers of the operating system.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = tuple(cpus)

    def __call__(self) -> float:
        """Return the seconds so far, of all these processors together; only differences mean something."""
        import psutil

        times = psutil.cpu_times(percpu=True)
        counted = [times[cpu] for cpu in self._cpus if cpu < len(times)]
        busy = sum(getattr(of_cpu, kind, 0.0) for of_cpu in counted for kind in _BUSY)
        return float(busy - time.process_time())


def share_of(seconds: float, elapsed_seconds: float, n_cpus: int) -> float:
    """Share of the processors that so many seconds are; 0 for a span that is too short to tell."""
    if elapsed_seconds < LEAST_SECONDS:
        return 0.0
    return min(max(seconds / (elapsed_seconds * n_cpus), 0.0), 0.99)
