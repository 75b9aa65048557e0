"""The probes of a GPU and its link, run by the C++ core (`_core.GpuProbe`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pshard.machine.nvidia import state
from pshard.machine.profile import Sample
from pshard.probe.gpu_work import (
    MIB,
    BesideCpu,
    BesideGpu,
    BothWays,
    Copy,
    GpuAttention,
    GpuProduct,
    GpuRead,
    GpuStart,
    GpuWork,
    Handoff,
    PageLock,
)
from pshard.probe.probes import result_of
from pshard.probe.works import ProbeFailed, Result

if TYPE_CHECKING:
    from pshard import _core
    from pshard.machine.nvidia import State
    from pshard.probe.probes import CpuProber
    from pshard.probe.works import Work

LOCK_STEP_BYTES = 1 << 30


class GpuProber:
    """The probes of the C++ core, on one GPU of this machine, and on its CPU.

    Parameters
    ----------
    cpu : CpuProber
        Measures what is the CPU's.
    index : int
        Which GPU, in the CUDA runtime's order.
    pci_bus_id : str
        Under which NVML knows it.
    max_device_bytes, max_host_bytes : int
        Memory that one probe may take.

    Attributes
    ----------
    under_load : State or None
        The GPU's state right after copies: an idle GPU lowers its link to save power.

    Raises
    ------
    pshard._core.GpuError
        There is no such GPU, or pshard was built without CUDA.
    """

    def __init__(
        self, cpu: CpuProber, index: int, pci_bus_id: str, *, max_device_bytes: int, max_host_bytes: int
    ) -> None:
        from pshard import _core

        self._cpu = cpu
        self._probe = _core.GpuProbe(index, max_device_bytes=max_device_bytes, max_host_bytes=max_host_bytes)
        self._pci_bus_id = pci_bus_id
        self.under_load: State | None = None

    def measure(self, work: Work, budget_seconds: float) -> Result:
        """As `Prober.measure`."""
        from pshard import _core

        if not isinstance(work, GpuWork):
            return self._cpu.measure(work, budget_seconds)
        try:
            if isinstance(work, PageLock):
                return self._lock(work, budget_seconds)
            found = self._found(work, budget_seconds)
        except (_core.ProbeError, _core.GpuError, ValueError) as error:
            raise ProbeFailed(str(error)) from error
        if isinstance(work, Copy):
            self._look_at_the_link()
        first, *others = ((name, result_of(work, part)) for name, part in found.items())
        result = first[1]
        return Result(
            work, result.sample, result.n_bytes, result.n_flop, result.is_cold, result.note, parts=dict(others)
        )

    def _found(self, work: GpuWork, budget_seconds: float) -> dict[str, _core.ProbeResult]:
        """Run a probe and return its parts, the main one first."""
        from pshard import _core

        probe = self._probe
        whole = _core.MeasurePolicy(budget_seconds=budget_seconds)
        third = _core.MeasurePolicy(budget_seconds=budget_seconds / 3)
        quarter = _core.MeasurePolicy(budget_seconds=budget_seconds / 4)
        match work:
            case GpuRead():
                return {"": (probe.copy_on_device if work.copies else probe.read)(policy=whole)}
            case GpuStart():
                start = probe.start(policy=third)
                return {"": start.launch, "hop": start.hop, "synchronise": start.synchronise}
            case Handoff():
                handoff = probe.handoff(policy=third)
                return {"": handoff.to_gpu, "to_cpu": handoff.to_cpu}
            case GpuProduct() if work.n_used:
                return {
                    "": probe.experts(
                        work.type,
                        n_rows=work.n_rows,
                        n_columns=work.n_columns,
                        n_experts=work.n_experts,
                        n_used=work.n_used,
                        n_tokens=work.n_tokens,
                        policy=whole,
                    )
                }
            case GpuProduct():
                return {
                    "": probe.product(
                        work.type, n_rows=work.n_rows, n_columns=work.n_columns, batch=work.n_tokens, policy=whole
                    )
                }
            case GpuAttention():
                return {
                    "": probe.attention(
                        n_heads=work.n_heads,
                        n_kv_heads=work.n_kv_heads,
                        head_size=work.head_size,
                        depth=work.depth,
                        batch=work.batch,
                        policy=whole,
                    )
                }
            case Copy():
                return {
                    "": probe.copy(
                        work.direction,
                        work.memory,
                        chunk_bytes=work.chunk_bytes,
                        is_scattered=work.is_scattered,
                        policy=whole,
                    )
                }
            case BothWays():
                both = probe.copies_both_ways(chunk_bytes=work.chunk_bytes, policy=quarter)
                return {
                    "": both.first_alone,
                    "down": both.second_alone,
                    "up_beside": both.first_beside,
                    "down_beside": both.second_beside,
                }
            case BesideGpu():
                product = work.product
                sides = probe.copies_beside_product(
                    product.type,
                    n_rows=product.n_rows,
                    n_columns=product.n_columns,
                    batch=product.n_tokens,
                    chunk_bytes=work.chunk_bytes,
                    policy=quarter,
                )
                return {
                    "": sides.first_alone,
                    "product": sides.second_alone,
                    "copy_beside": sides.first_beside,
                    "product_beside": sides.second_beside,
                }
            case BesideCpu():
                contention = probe.copies_beside_cpu(
                    self._cpu.probe,
                    work.type,
                    n_rows=work.n_rows,
                    n_columns=work.n_columns,
                    batch=work.batch,
                    chunk_bytes=work.chunk_bytes,
                    policy=quarter,
                )
                return {
                    "": contention.copy_alone,
                    "product": contention.product_alone,
                    "copy_beside": contention.copy_under_product,
                    "product_beside": contention.product_under_copy,
                }
            case _:
                raise AssertionError(work)

    def _lock(self, work: PageLock, budget_seconds: float) -> Result:
        start = time.monotonic()
        step = min(LOCK_STEP_BYTES, max(MIB, work.limit_bytes // 4))
        locked = self._probe.lockable(
            step_bytes=step, limit_bytes=work.limit_bytes, budget_seconds=max(1.0, budget_seconds)
        )
        seconds = time.monotonic() - start
        if not locked.n_bytes:
            msg = f"the driver page-locks no {step >> 20} MiB"
            raise ProbeFailed(msg)
        note = "" if locked.was_refused else "no more was asked for"
        sample = Sample(median_seconds=seconds, minimum_seconds=seconds, spread=0.0, count=1)
        return Result(work, sample, float(locked.n_bytes), note=note)

    def _look_at_the_link(self) -> None:
        now = state(self._pci_bus_id)
        if (now.pcie_generation or 0) >= ((self.under_load.pcie_generation if self.under_load else None) or 0):
            self.under_load = now
