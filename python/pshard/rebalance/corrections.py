"""A machine as it was measured while it served: its figures, divided by how much longer its devices took."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.machine.reference_rates import build_profile

if TYPE_CHECKING:
    from pshard.machine.machine import Machine
    from pshard.machine.profile import Curve, Figure, Link, Processor, Series

# A decode factor is of products of one row, a prefill factor of so many; between them, the logarithm is interpolated.
PREFILL_ROWS = 512.0


@dataclass(frozen=True, slots=True)
class Factors:
    """Measured over predicted seconds of one device, by phase."""

    decode: float = 1.0
    prefill: float = 1.0

    def at(self, rows: float) -> float:
        """Return the factor of products of so many rows."""
        t = min(max(math.log(max(rows, 1.0)) / math.log(PREFILL_ROWS), 0.0), 1.0)
        return float(self.decode ** (1 - t) * self.prefill**t)


def corrected_machine(
    machine: Machine,
    *,
    gpu: Factors | None = None,
    cpu: Factors | None = None,
    link: Factors | None = None,
    n_threads: int | None = None,
) -> Machine:
    """Return a machine whose predictions take `factors` times as long.

    Parameters
    ----------
    machine : Machine
    gpu, cpu, link : Factors, optional
        Of each part; what is not given stays as it is. Reading and single rows take the decode factor, products of 512
        rows the prefill factor, copies the prefill factor. No rate rises above the part's peak.
    n_threads : int, optional
        CPU threads of the result.

    Returns
    -------
    Machine
        Its notes say that it was corrected.
    """
    profile = machine.profile
    if machine.reference is not None:
        profile = build_profile(machine.reference, n_threads or machine.n_threads)
    said = []
    if cpu is not None:
        profile = replace(profile, cpu=_processor(profile.cpu, cpu))
        profile = replace(profile, host_bytes_per_second=_figure(profile.host_bytes_per_second, 1 / cpu.decode))
        said.append(f"CPU {_phrase(cpu)}")
    if gpu is not None and profile.gpu is not None:
        profile = replace(profile, gpu=_processor(profile.gpu, gpu))
        said.append(f"GPU {_phrase(gpu)}")
    if link is not None and profile.link is not None:
        profile = replace(profile, link=_link(profile.link, link))
        said.append(f"link {link.prefill:.2f}")
    note = f"Corrected by measured latencies, seconds over predicted ones: {', '.join(said)}."
    return dataclasses.replace(machine, profile=profile, reference=None, notes=(*machine.notes, note))


def _phrase(factors: Factors) -> str:
    return f"{factors.decode:.2f} in decode and {factors.prefill:.2f} in prefill"


def _processor(processor: Processor, factors: Factors) -> Processor:
    def slower(series: Series) -> Series:
        rates = [
            min(rate / factors.at(rows), processor.peak_flop_per_second)
            for rows, rate in zip(series.batch, series.flop_per_second, strict=True)
        ]
        return replace(series, flop_per_second=tuple(rates))

    peak = processor.memory_peak_bytes_per_second
    memory = tuple(
        replace(
            entry,
            bytes_per_second=min(entry.bytes_per_second / factors.decode, peak),
            op_seconds=entry.op_seconds * factors.decode,
        )
        for entry in processor.memory
    )
    return replace(processor, memory=memory, series=tuple(slower(series) for series in processor.series))


def _link(link: Link, factors: Factors) -> Link:
    def slower(curve: Curve) -> Curve:
        rates = [min(rate / factors.prefill, curve.peak_bytes_per_second) for rate in curve.bytes_per_second]
        return replace(curve, bytes_per_second=tuple(rates), latency_seconds=curve.latency_seconds * factors.decode)

    return replace(
        link,
        up=slower(link.up),
        down=slower(link.down),
        pageable_bytes_per_second=_figure(link.pageable_bytes_per_second, 1 / factors.prefill),
        handoff_to_gpu_seconds=_figure(link.handoff_to_gpu_seconds, factors.decode),
        handoff_to_cpu_seconds=_figure(link.handoff_to_cpu_seconds, factors.decode),
    )


def _figure(figure: Figure, by: float) -> Figure:
    return replace(figure, value=figure.value * by)
