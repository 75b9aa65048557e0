"""What the kernels of a GPU, and of the CPU beside it, reach with the shapes of a model.

A profile has one shape of each type, and of a small product most of the time is its start. A run is predicted by what
it executes, so each of the model's matrices is measured with the kernels that multiply it, at the batches of the run.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pshard import _core
    from pshard.model.model import Model
    from pshard.run.wanted_shapes import Shape

BUDGET_SECONDS = 0.05
# Of the memory that is free.
MEMORY_SHARE = 0.5
MAX_HOST_BYTES = 1 << 30
# A matrix of more rows is the head, which multiplies the last token alone.
MOST_ROWS = 1 << 16
# Rates of larger batches stay as they are.
LARGEST_CPU_BATCH, LARGEST_GPU_BATCH = 512, 8192
# A product takes at least this share of its time beside its start.
LEAST_WORK = 0.1


class Timed(NamedTuple):
    """A product of one shape: its FLOP and seconds at each number of rows, of experts for each that is used."""

    is_routed: bool
    type_name: str
    shape: Shape
    samples: tuple[tuple[float, float, float], ...]
    spread: float

    def rates(self, op_seconds: float) -> _core.ShapeRates:
        """Return its rates, so that with the start of an operation it takes the seconds that were measured."""
        from pshard import _core
        from pshard.machine.rates import type_ids

        rates = [flop / max(seconds - op_seconds, LEAST_WORK * seconds) for _, flop, seconds in self.samples]
        series = _core.RateSeries([rows for rows, _, _ in self.samples], rates, _core.Basis.measured, self.spread)
        return _core.ShapeRates(
            is_routed=self.is_routed, type=type_ids()[self.type_name],
            n_rows=self.shape[0], n_columns=self.shape[1], series=series,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShapesMeasured:
    """Products of a model's shapes on a GPU, and on the CPU beside it.

    Attributes
    ----------
    gpu : tuple of Timed
    cpu : tuple of _core.ShapeRates
    cpu_op_seconds : float
        From one operation to the next on the queue of the CPU's splits.
    """

    gpu: tuple[Timed, ...]
    cpu: tuple[_core.ShapeRates, ...]
    cpu_op_seconds: float

    def priced(self, machine: _core.Machine) -> _core.Machine:
        """Return a machine whose products are these; all else is the machine's."""
        found = copy(machine)
        found.gpu.shapes = [timed.rates(found.gpu.op_seconds) for timed in self.gpu]
        found.cpu.shapes = list(self.cpu)
        found.cpu.op_seconds = self.cpu_op_seconds
        for processor in (found.gpu, found.cpu):  # what was measured bounds itself
            rates = [rate for shape in processor.shapes for rate in shape.series.flop_per_second]
            processor.peak_flop_per_second = max(processor.peak_flop_per_second, *rates, 0.0)
        return found


def measure_shapes(
    model: Model,
    cpus: Sequence[int],
    batches: Sequence[int],
    *,
    index: int = 0,
    on_step: Callable[[str], None] = lambda what: None,
) -> ShapesMeasured:
    """Measure the products of a model on a GPU and on the CPU.

    Parameters
    ----------
    model : Model
    cpus : sequence of int
        That compute the CPU's splits.
    batches : sequence of int
        Tokens of the passes that are predicted. One token is measured, too: behind the last layer's cache no others
        are left.
    index : int
        Which GPU, in the CUDA runtime's order.
    on_step : callable
        Called with what is measured next.

    Returns
    -------
    ShapesMeasured

    Raises
    ------
    ExecutionError
        What could not be measured, and why.
    """
    from pshard import _core
    from pshard.run.execution import ExecutionError

    with_one = sorted({1, *batches})
    try:
        return ShapesMeasured(_on_gpu(model, with_one, index, on_step), *_on_cpu(model, cpus, with_one, on_step))
    except (_core.ProbeError, _core.GpuError, ValueError) as error:  # the last: a shape that no kernel takes
        message = f"this machine could not be measured: {error}"
        raise ExecutionError(message) from error


def _on_gpu(model: Model, batches: Sequence[int], index: int, on_step: Callable[[str], None]) -> tuple[Timed, ...]:
    from pshard import _core
    from pshard.run.expert_rows import rows_per_expert
    from pshard.run.wanted_shapes import wanted_of

    query = _core.query_gpus()
    if index >= len(query.devices):
        message = f"there is no GPU {index}: {query.reason or f'{len(query.devices)} are here'}"
        raise _core.GpuError(message)
    free_bytes = query.devices[index].free_bytes
    probe = _core.GpuProbe(index, max_device_bytes=int(free_bytes * MEMORY_SHARE), max_host_bytes=MAX_HOST_BYTES)
    policy = _core.MeasurePolicy(budget_seconds=BUDGET_SECONDS, min_count=3)
    products, experts = wanted_of(model)
    hyper, ordered = model.hyperparameters, sorted({min(batch, LARGEST_GPU_BATCH) for batch in batches})
    rows_of = rows_per_expert(model, ordered)
    found = []

    def add(is_routed: bool, type_name: str, shape: Shape, results: dict[float, _core.ProbeResult]) -> None:
        samples = tuple((rows, r.n_flop, r.time.median_seconds) for rows, r in results.items())
        found.append(Timed(is_routed, type_name, shape, samples, max(r.time.spread for r in results.values())))

    for type_name, shapes in products.items():
        for rows, columns in shapes:
            on_step(f"{type_name}, {rows} x {columns}")
            of_batches = ordered if rows <= MOST_ROWS else [1]
            add(False, type_name, (rows, columns), {
                float(batch): probe.product(type_name, n_rows=rows, n_columns=columns, batch=batch, policy=policy)
                for batch in of_batches
            })  # fmt: skip
    for type_name, shapes in experts.items():
        for rows, columns in shapes:
            on_step(f"experts of {type_name}, {rows} x {columns}")
            add(True, type_name, (rows, columns), {
                rows_of[batch].mean: probe.experts(
                    type_name, n_rows=rows, n_columns=columns, n_experts=hyper.n_expert, n_used=hyper.n_expert_used,
                    n_tokens=batch, policy=policy,
                )
                for batch in ordered
            })  # fmt: skip
    return tuple(found)


def _on_cpu(
    model: Model, cpus: Sequence[int], batches: Sequence[int], on_step: Callable[[str], None]
) -> tuple[tuple[_core.ShapeRates, ...], float]:
    import psutil

    from pshard import _core
    from pshard.run.expert_rows import rows_per_expert
    from pshard.run.host_backend import BUDGET_SECONDS as CPU_BUDGET_SECONDS
    from pshard.run.host_backend import Wanted, measure_products
    from pshard.run.wanted_shapes import wanted_of

    threads = list(cpus)
    on_step("queues")
    op_seconds, _ = _core.queue_costs(
        threads, _core.HostDevice(compute_cpus=threads, copy_cpus=threads[-1:], arena_bytes=4096)
    )
    rows = tuple(sorted({min(batch, LARGEST_CPU_BATCH) for batch in batches}))
    products, experts = wanted_of(model)
    probe = _core.CpuProbe(threads, max_bytes=int(psutil.virtual_memory().available * MEMORY_SHARE / 2))
    _, shapes = measure_products(
        probe, Wanted(products, experts, rows, rows_per_expert(model, rows), None, 0), len(threads),
        _core.MeasurePolicy(budget_seconds=CPU_BUDGET_SECONDS, min_count=3), on_step,
    )  # fmt: skip
    return tuple(shapes), op_seconds
