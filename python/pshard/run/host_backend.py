"""Threads in place of a GPU: which CPUs they take, and what they reach.

The executor runs a schedule without a GPU by letting pinned threads stand in for its compute stream and its copy lanes.
Their rates are measured here with the probes and with the executor's own queues, so that a prediction for them is made
of the same figures as one for a real GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pshard.machine.cpus import TOPOLOGY, core_of
from pshard.machine.profile import Capacities, Curve, Figure, Link, Memory, Processor, Profile, Series
from pshard.run.expert_rows import ExpertRows, rows_per_expert

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pshard import _core
    from pshard.machine.profile import Operation
    from pshard.model.model import Model
    from pshard.run.wanted_shapes import Shape

CHUNKS_BYTES = (64 << 10, 1 << 20, 16 << 20)
BUDGET_SECONDS = 0.2
# Of the memory that is free.
MEMORY_SHARE = 0.25
# A product of large batches is measured with fewer rows: its rate hardly depends on them, its time does.
MOST_FLOP = 4e9
LEAST_ROWS = 256
# More than a CPU's own caches hold.
LEAST_ROOM_BYTES = 16 << 20
# Larger batches and caches hardly change rates, and take long; no cache is attended to that has fewer cells.
LARGEST_BATCH, MOST_CELLS, LEAST_CELLS = 512, 4096, 256
# Whose rows of activations a probe multiplies in turn.
EXPERTS_AT_ONCE = 4
# Above every rate that was measured: no document tells the peaks of threads.
HEADROOM = 1.05


@dataclass(frozen=True, slots=True)
class HostCpus:
    """Which CPUs stand in for what, by the numbers of the operating system.

    Attributes
    ----------
    host : tuple of int
        Of the splits that the CPU computes.
    compute, copy : tuple of tuple of int
        By device.
    """

    host: tuple[int, ...]
    compute: tuple[tuple[int, ...], ...]
    copy: tuple[tuple[int, ...], ...]

    def devices(self, arena_bytes: Sequence[int]) -> list[_core.HostDevice]:
        """Return the devices, with so much memory each."""
        from pshard import _core

        return [
            _core.HostDevice(compute_cpus=list(compute), copy_cpus=list(copy), arena_bytes=n_bytes)
            for compute, copy, n_bytes in zip(self.compute, self.copy, arena_bytes, strict=True)
        ]

    def alone(self, device: int) -> HostCpus:
        """Return one of the devices, beside the same host."""
        return HostCpus(self.host, self.compute[device : device + 1], self.copy[device : device + 1])

    def as_device(self) -> HostCpus:
        """Return the CPUs of the host as those of a device."""
        return HostCpus(self.host, (self.host,), self.copy[:1])

    def kind(self, device: int, topology: Path = TOPOLOGY) -> Hashable:
        """Return what tells how fast a device is: equal where its threads run on as many cores of the same kinds."""
        compute = [core_of(cpu, topology) for cpu in self.compute[device]]
        copier = core_of(self.copy[device][0], topology)
        cores = {core.first for core in compute}
        return len(cores), tuple(sorted(core.pace for core in compute)), copier.pace, copier.first in cores


def share_cpus(cpus: Sequence[int], n_devices: int) -> HostCpus:
    """Give each device its own CPUs, the last of which copies.

    Parameters
    ----------
    cpus : sequence of int
        At least one; with fewer CPUs than devices, devices share them.
    n_devices : int
        At least 1. With one device the CPU's splits run where its own do: they never run at the same time.
    """
    shares = [tuple(cpus[i::n_devices]) or (cpus[i % len(cpus)],) for i in range(n_devices)]
    compute = tuple(share[:-1] or share for share in shares)
    copy = tuple(share[-1:] for share in shares)
    return HostCpus(compute[0] if n_devices == 1 else tuple(cpus), compute, copy)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a prediction needs of the host backend.

    Attributes
    ----------
    products, experts : mapping from str to tuple of (int, int)
        Type of the weights -> rows and columns of its matrices. The first stands for its type in the profile.
    batches : tuple of int
        Rows of activations, ascending.
    expert_rows : mapping from int to ExpertRows
        By batch.
    attention : tuple of (int, int, int) or None
        Heads, heads of keys, size of a head.
    depth : int
        Cells of the cache.
    slot_bytes : int
        Of the weights that stream at a time; 0 where none do.
    """

    products: Mapping[str, Sequence[Shape]]
    experts: Mapping[str, Sequence[Shape]]
    batches: tuple[int, ...]
    expert_rows: Mapping[int, ExpertRows]
    attention: tuple[int, int, int] | None
    depth: int
    slot_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HostMeasured:
    """What the host backend reaches.

    Attributes
    ----------
    profile : Profile
    shares : mapping from int to (float, float)
        Batch -> of their rates, what computing keeps under a copy, and a copy under computing.
    shapes : tuple of _core.ShapeRates
        Rates of each shape of matrix.
    copied_shapes : tuple of _core.ShapeRates
        The same of weights that were copied a moment ago: a slot that fits in the last-level cache is read from there.
    """

    profile: Profile
    shares: Mapping[int, tuple[float, float]]
    shapes: tuple[_core.ShapeRates, ...]
    copied_shapes: tuple[_core.ShapeRates, ...]

    def machine(self, n_tokens: int) -> _core.Machine:
        """Return the machine that prices passes of so many tokens."""
        from copy import copy

        from pshard.machine.machine import Machine

        core = copy(Machine(self.profile.name, self.profile).core())
        nearest = min(self.shares, key=lambda batch: abs(math.log(batch / n_tokens)))
        core.cpu_rate_under_copy, core.copy_rate_under_cpu = self.shares[nearest]
        core.gpu_rate_under_copy, core.copy_rate_under_gpu = self.shares[nearest]
        for processor in (core.cpu, core.gpu):
            processor.shapes = list(self.shapes)
            # What was measured at one shape, or in a cache, may be above the peaks of the profile: no bound but itself.
            rates = [rate for s in (*self.shapes, *self.copied_shapes) for rate in s.series.flop_per_second]
            processor.peak_flop_per_second = max(processor.peak_flop_per_second, *rates)
        core.gpu.copied_shapes = list(self.copied_shapes)
        return core


@dataclass(frozen=True, slots=True)
class DevicesMeasured:
    """What each device of the host backend reaches, and the CPUs that compute beside them.

    Attributes
    ----------
    devices : tuple of HostMeasured
        The same object for devices that are alike.
    host : HostMeasured
        Of the CPU's own splits.
    """

    devices: tuple[HostMeasured, ...]
    host: HostMeasured

    def machines(self, n_tokens: int) -> list[_core.Machine]:
        """Return what prices passes of so many tokens: a machine for each device, all with the same host."""
        host = self.host.machine(n_tokens)
        machines = [device.machine(n_tokens) for device in self.devices]
        for machine in machines:
            machine.cpu = host.cpu
            machine.cpu_rate_under_copy, machine.copy_rate_under_cpu = (
                host.cpu_rate_under_copy,
                host.copy_rate_under_cpu,
            )
        return machines


def measure_host_backend(
    cpus: HostCpus,
    wanted: Wanted,
    *,
    max_bytes: int,
    ram_bytes: int,
    budget_seconds: float = BUDGET_SECONDS,
    on_step: Callable[[str], None] = lambda what: None,
) -> HostMeasured:
    """Measure the threads of device 0 and the queues between them.

    Parameters
    ----------
    cpus : HostCpus
    wanted : Wanted
    max_bytes : int
        Bound of the memory that the probes take.
    ram_bytes : int
        Of the machine.
    budget_seconds : float
        For each figure.
    on_step : callable
        Called with what is measured next.

    Returns
    -------
    HostMeasured

    Raises
    ------
    ProbeError
        A wrong result, or memory or a CPU that is not there.
    """
    from pshard import _core

    policy = _core.MeasurePolicy(budget_seconds=budget_seconds, min_count=3)
    compute, copier = cpus.compute[0], cpus.copy[0][0]
    n_threads = len(compute)
    probe = _core.CpuProbe(list(compute), max_bytes=max_bytes)
    on_step("queues")
    op_seconds, handoff_seconds = _core.queue_costs(
        list(cpus.host), _core.HostDevice(compute_cpus=list(compute), copy_cpus=[copier], arena_bytes=4096)
    )
    on_step("reading")
    read = probe.read(n_threads=n_threads, policy=policy)
    both = [copier, *(cpu for cpu in compute if cpu != copier)]
    read_all = _core.CpuProbe(both, max_bytes=max_bytes).read(n_threads=len(both), policy=policy)

    series, shapes = measure_products(probe, wanted, n_threads, policy, on_step)
    copied = shapes
    room_bytes = max(2 * wanted.slot_bytes, LEAST_ROOM_BYTES, *(_sample_bytes(wanted)))
    if wanted.slot_bytes and room_bytes < _core.last_level_cache_bytes():
        on_step("products of weights that were just copied")
        _, copied = measure_products(
            _core.CpuProbe(list(compute), max_bytes=room_bytes), wanted, n_threads, policy, on_step
        )
    if wanted.attention is not None:
        on_step("attention")
        heads, kv_heads, size = wanted.attention
        results = [
            probe.attention(n_heads=heads, n_kv_heads=kv_heads, head_size=size, depth=max(wanted.depth, batch),
                            batch=batch, n_threads=n_threads, policy=policy)
            for batch in wanted.batches
        ]  # fmt: skip
        rows = [ExpertRows(float(batch), (batch,)) for batch in wanted.batches]
        series.append(_series("attention", "F16", rows, dict(zip(wanted.batches, results, strict=True)), n_threads))

    on_step("copies")
    contender = _core.CpuProbe(both, max_bytes=max_bytes) if len(both) > 1 else None
    room = room_bytes if wanted.slot_bytes else None
    shares = {batch: _shares(contender, wanted, batch, room, policy) for batch in wanted.batches}
    curve = _curve(contender, room, policy, op_seconds, read.bytes_per_second)
    return HostMeasured(
        _profile(
            series, curve, shares[wanted.batches[0]],
            n_threads=n_threads, op_seconds=op_seconds, handoff_seconds=handoff_seconds,
            read=read.bytes_per_second, read_all=read_all.bytes_per_second, ram_bytes=ram_bytes,
        ),
        shares,
        tuple(shapes),
        tuple(copied),
    )  # fmt: skip


def _sample_bytes(wanted: Wanted) -> Iterator[int]:
    """Bytes that one sample of each product reads."""
    from pshard.machine.rates import bits_per_weight

    for of_types, n_matrices in ((wanted.products, 1), (wanted.experts, EXPERTS_AT_ONCE)):
        for name, of_type in of_types.items():
            for rows, columns in of_type:
                yield math.ceil(n_matrices * rows * columns * bits_per_weight(name) / 8)


def measure_products(
    probe: _core.CpuProbe,
    wanted: Wanted,
    n_threads: int,
    policy: _core.MeasurePolicy,
    on_step: Callable[[str], None],
) -> tuple[list[Series], list[_core.ShapeRates]]:
    """Measure all shapes on the CPU; return the series of each type, and those of each shape.

    Raises
    ------
    ProbeError
        A wrong result, or memory that is not there.
    """
    series, shapes = [], []
    kinds: tuple[tuple[Operation, Any, Sequence[ExpertRows], Any], ...] = (
        ("mul_mat", wanted.products, [ExpertRows(float(batch), (batch,)) for batch in wanted.batches], probe.product),
        ("mul_mat_id", wanted.experts, sorted(set(wanted.expert_rows.values())),
         partial(probe.experts, n_used=EXPERTS_AT_ONCE, in_tiles=True)),
    )  # fmt: skip
    for operation, of_types, batches, sample in kinds:
        each = sorted({rows for batch in batches for rows in batch.likely})
        for type_name, of_type in of_types.items():
            for i, shape in enumerate(of_type):
                on_step(f"{operation} of {type_name}, {shape[0]} x {shape[1]}")
                results = {
                    rows: sample(type_name, "plain", n_rows=_rows(shape, rows), n_columns=shape[1], batch=rows,
                                 n_threads=n_threads, policy=policy)
                    for rows in each
                }  # fmt: skip
                entry = _series(operation, type_name, batches, results, n_threads)
                if i == 0:
                    series.append(entry)
                shapes.append(_shape_rates(entry, shape))
    return series, shapes


def _shares(
    contender: _core.CpuProbe | None, wanted: Wanted, batch: int, room_bytes: int | None, policy: _core.MeasurePolicy
) -> tuple[float, float]:
    """Measure what products of the first type, the experts' where there are any, and copies leave each other."""
    if contender is None:
        return 0.5, 0.5  # one CPU does both in turns
    type_name, shapes = next(iter((wanted.experts or wanted.products or {"F16": ((1024, 1024),)}).items()))
    rows = max(1, round(wanted.expert_rows[batch].mean)) if wanted.experts else batch
    found = contender.contention(
        type_name, "plain", n_rows=_rows(shapes[0], rows), n_columns=shapes[0][1], batch=rows,
        n_used=EXPERTS_AT_ONCE if wanted.experts else 1, chunk_bytes=CHUNKS_BYTES[1], room_bytes=room_bytes,
        policy=policy,
    )  # fmt: skip
    return (
        min(1.0, found.product_under_copy.flop_per_second / found.product_alone.flop_per_second),
        min(1.0, found.copy_under_product.bytes_per_second / found.copy_alone.bytes_per_second),
    )


def _rows(shape: Shape, batch: int) -> int:
    rows, columns = shape
    most = int(MOST_FLOP / (2 * columns * batch)) // LEAST_ROWS * LEAST_ROWS
    return max(LEAST_ROWS, min(rows, most))  # one of fewer is over before a clock can tell


def _series(
    operation: Operation,
    type_name: str,
    batches: Sequence[ExpertRows],
    results: Mapping[int, _core.ProbeResult],
    n_threads: int,
) -> Series:
    def rate(batch: ExpertRows) -> float:
        return sum(batch.likely) / sum(rows / results[rows].flop_per_second for rows in batch.likely)

    return Series(
        operation=operation,
        type=type_name,
        batch=tuple(batch.mean for batch in batches),
        flop_per_second=tuple(rate(batch) for batch in batches),
        n_threads=n_threads,
        source="measured",
        spread=max(result.time.spread for result in results.values()),
    )


def _shape_rates(series: Series, shape: Shape) -> _core.ShapeRates:
    from pshard import _core
    from pshard.machine.rates import type_ids

    return _core.ShapeRates(
        is_routed=series.operation == "mul_mat_id", type=type_ids()[series.type], n_rows=shape[0], n_columns=shape[1],
        series=_core.RateSeries(
            list(series.batch), list(series.flop_per_second), _core.Basis.measured, series.spread
        ),
    )  # fmt: skip


def _curve(
    contender: _core.CpuProbe | None,
    room_bytes: int | None,
    policy: _core.MeasurePolicy,
    op_seconds: float,
    read_bytes_per_second: float,
) -> Curve:
    rates = [read_bytes_per_second / 2.0 for _ in CHUNKS_BYTES]  # a copy reads and writes
    spread = 0.5
    if contender is not None:
        shape = {"n_rows": LEAST_ROWS, "n_columns": 1024, "batch": 1}
        results = [
            contender.contention(
                "F16", "plain", **shape, chunk_bytes=chunk, room_bytes=room_bytes, policy=policy
            ).copy_alone
            for chunk in CHUNKS_BYTES
        ]
        rates = [result.bytes_per_second for result in results]
        spread = max(result.time.spread for result in results)
    return Curve(
        source="measured",
        spread=spread,
        chunk_bytes=tuple(float(chunk) for chunk in CHUNKS_BYTES),
        bytes_per_second=tuple(rates),
        latency_seconds=op_seconds,
        peak_bytes_per_second=max(rates) * HEADROOM,
    )


def _profile(
    series: list[Series],
    curve: Curve,
    shares: tuple[float, float],
    *,
    n_threads: int,
    op_seconds: float,
    handoff_seconds: float,
    read: float,
    read_all: float,
    ram_bytes: int,
) -> Profile:
    def figure(value: float) -> Figure:
        return Figure(source="measured", value=value)

    peak_flop = max(rate for entry in series for rate in entry.flop_per_second) * HEADROOM

    def processor(name: str, threads: int | None) -> Processor:
        return Processor(
            name=name,
            n_cores=n_threads if threads else 0,
            memory_peak_bytes_per_second=max(read, read_all) * HEADROOM,
            peak_flop_per_second=peak_flop,
            peaks_measured=True,
            memory=(Memory(source="measured", bytes_per_second=read, op_seconds=op_seconds, n_threads=threads),),
            series=tuple(
                Series(
                    operation=entry.operation, type=entry.type, batch=entry.batch, n_threads=threads,
                    flop_per_second=entry.flop_per_second, source=entry.source, spread=entry.spread,
                )
                for entry in series
            ),
        )  # fmt: skip

    compute_share, copy_share = (figure(value) for value in shares)
    return Profile(
        schema_version=1,
        name="host backend",
        capacities=Capacities(source="measured", ram_bytes=ram_bytes, vram_bytes=ram_bytes, page_lock_bytes=ram_bytes),
        cpu=processor("threads of this machine", n_threads),
        gpu=processor("threads in place of a GPU", None),
        host_bytes_per_second=figure(max(read, read_all)),
        link=Link(
            up=curve,
            down=curve,
            copy_engines=2,
            pageable_bytes_per_second=figure(max(curve.bytes_per_second) / 2.0),  # staged: copied twice
            handoff_to_gpu_seconds=figure(handoff_seconds),
            handoff_to_cpu_seconds=figure(handoff_seconds),
            cpu_rate_under_copy=compute_share,
            copy_rate_under_cpu=copy_share,
            gpu_rate_under_copy=compute_share,
            copy_rate_under_gpu=copy_share,
        ),
    )


def measure_here(
    model: Model,
    cpus: HostCpus,
    batches: Sequence[int],
    *,
    depth: int = 512,
    on_step: Callable[[str], None] = lambda what: None,
) -> HostMeasured:
    """Measure what predictions for a model need, with the memory that is free.

    Parameters
    ----------
    model : Model
    cpus : HostCpus
    batches : sequence of int
        Tokens of the passes that are predicted; beyond 512 rates stay as they are.
    depth : int
        Cells of the cache that attention reads; from 256 to 4096 are measured.
    on_step : callable
        As in `measure_host_backend`.

    Returns
    -------
    HostMeasured

    Raises
    ------
    ExecutionError
        What could not be measured, and why.
    """
    import psutil

    from pshard import _core
    from pshard.run.execution import ExecutionError
    from pshard.run.wanted_shapes import wanted_of

    products, experts = wanted_of(model)
    slot_bytes = max(layer.n_bytes for layer in model.layers)
    measured = tuple(sorted({min(batch, LARGEST_BATCH) for batch in batches}))
    parameters = next((p for p in model.hyperparameters.layers if p.n_head_kv and p.head_dim_k), None)
    has_kernel = parameters is not None and parameters.head_dim_k % 16 == 0
    attention = (parameters.n_head, parameters.n_head_kv, parameters.head_dim_k) if parameters and has_kernel else None
    memory = psutil.virtual_memory()
    try:
        return measure_host_backend(
            cpus,
            Wanted(
                products,
                experts,
                measured,
                rows_per_expert(model, measured),
                attention,
                max(LEAST_CELLS, min(depth, MOST_CELLS)),
                slot_bytes,
            ),
            max_bytes=max(int(memory.available * MEMORY_SHARE), 1 << 28),
            ram_bytes=int(memory.total),
            on_step=on_step,
        )
    except _core.ProbeError as error:
        message = f"this machine could not be measured: {error}"
        raise ExecutionError(message) from error


def measure_devices(
    model: Model,
    cpus: HostCpus,
    batches: Sequence[int],
    *,
    host_computes: bool = True,
    depth: int = 512,
    on_step: Callable[[str], None] = lambda what: None,
) -> DevicesMeasured:
    """Measure each kind of device once, and the host where its threads are others than those of a device.

    Parameters
    ----------
    model, cpus, batches, depth, on_step
        As in `measure_here`.
    host_computes : bool
        The CPU has splits of its own; if not, it is not measured.

    Returns
    -------
    DevicesMeasured

    Raises
    ------
    ExecutionError
        What could not be measured, and why.
    """
    known: dict[Hashable, HostMeasured] = {}

    def measured(kind: Hashable, alone: HostCpus, what: str) -> HostMeasured:
        if kind not in known:
            known[kind] = measure_here(
                model, alone, batches, depth=depth, on_step=lambda step: on_step(f"{what}, {step}" if what else step)
            )
        return known[kind]

    several = len(cpus.compute) > 1
    devices = tuple(
        measured(cpus.kind(i), cpus.alone(i), f"device {i}" if several else "") for i in range(len(cpus.compute))
    )
    if not host_computes or cpus.host == cpus.compute[0]:
        return DevicesMeasured(devices, devices[0])
    host = cpus.as_device()
    return DevicesMeasured(devices, measured(host.kind(0), host, "host"))
