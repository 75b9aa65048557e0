"""What a map is wanted of: devices with their capacities, and the bytes and seconds of any layout of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pshard import _core
from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.fleet.device_speeds import device_speeds, require_speeds
from pshard.fleet.stage_tables import StageTimes, stage_bytes, stage_times
from pshard.fleet.usable_devices import joined, rooms, unavailable
from pshard.mapping.types import (
    GPU_LOOKUP_ROWS,
    MAX_GPUS,
    Goal,
    HeadPlace,
    LayerMap,
    Load,
    MapParameters,
    MappedDevice,
)
from pshard.memory.settings import ContextSettings, check_context
from pshard.model.model import type_name
from pshard.quantities import MAX_BYTES

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster, Device
    from pshard.memory.projector import Projector
    from pshard.model.model import Model

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Run:
    """Layers ``begin`` to ``end - 1`` on the device of an index."""

    device: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Runs in the order of the layers, and where the head is; with what the memory model says of it.

    `repaired`: the first one that the solver found overflowed and was faster, so that this one need not be the best.
    """

    runs: tuple[Run, ...]
    head: HeadPlace
    pipeline: bool
    weights_bytes: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    compute_bytes: tuple[int, ...]
    embedding: int  # index of the device
    repaired: bool = False

    @property
    def used_bytes(self) -> tuple[int, ...]:
        """Weights, caches and compute buffers by device."""
        parts = (self.weights_bytes, self.cache_bytes, self.compute_bytes)
        return tuple(sum(values) for values in zip(*parts, strict=True))

    @property
    def head_device(self) -> int:
        """Index of the device that computes the logits."""
        return self.runs[0 if self.head == "first" else -1].device


def is_looked_up_on_gpu(type_name: str, n_embd: int) -> bool:
    """Return whether CUDA looks rows of `n_embd` values of a tensor type up; else they stay in host memory."""
    multiple = GPU_LOOKUP_ROWS.get(type_name)
    return multiple is not None and n_embd % multiple == 0


class MapProblem:
    """What a map is wanted of, with the bytes and seconds of any layout. Parameters as those of `map_model`."""

    def __init__(
        self,
        model: Model,
        cluster: Cluster,
        parameters: MapParameters,
        goal: Goal,
        load: Load,
        projector: Projector | None,
        *,
        allow_swap: bool,
    ) -> None:
        self.model = model
        self.cluster = cluster
        self.parameters = replace(parameters, allow_swap=allow_swap or parameters.allow_swap)
        self.goal: Goal = goal
        self.load: Load = load
        self.projector = projector
        self.allow_swap = self.parameters.allow_swap
        self.warnings: list[str] = []
        self.notes: list[str] = list(cluster.notes)
        self.gpus = self._accelerators()
        cpu = cluster.cpu_of(cluster.hosts[0].name)
        self.cpu = cpu if cpu is not None and cpu.available else None
        self.devices = (*self.gpus, *([self.cpu] if self.cpu is not None else []))
        if not self.devices:
            message = f"there is no device that can be used. {' '.join(self.notes)}"
            raise NoFeasiblePlanError(message.strip(), model.tensor_bytes)
        self.host = cluster.hosts[0].name
        self.context, self.n_tokens = self._context()
        self._set_capacities()
        self._set_bytes()
        self.times = self._times()

    def changed(self, **parameters: Any) -> MapProblem:
        """Return the same problem with some parameters changed."""
        changed = replace(self.parameters, **parameters)
        return MapProblem(
            self.model, self.cluster, changed, self.goal, self.load, self.projector, allow_swap=self.allow_swap
        )

    # --- what is given ------------------------------------------------------------------------------------------------

    def _accelerators(self) -> tuple[Device, ...]:
        usable = [device for device in self.cluster.accelerators if device.family != "npu"]
        found, notes = joined(self.cluster, usable)
        self.notes += [*unavailable(self.cluster), *notes]
        if len(found) > MAX_GPUS:
            message = f"{len(found)} devices; llama.cpp takes at most {MAX_GPUS}. `pshard shard` plans for more."
            raise SettingError(message)
        return found

    def _context(self) -> tuple[_core.ContextParameters, int]:
        asked = self.parameters
        settings, warnings = check_context(
            self.model,
            ContextSettings(
                n_ctx=asked.max_seq_len * asked.max_batch_size,
                n_batch=max(2048, asked.n_ubatch),
                n_ubatch=asked.n_ubatch,
                n_seq_max=asked.max_batch_size,
                n_outputs_max=asked.max_batch_size,
                flash_attn=asked.flash_attn,
                type_k=asked.type_k,
                type_v=asked.type_v,
            ),
        )
        self.warnings += warnings
        context = settings.core()
        if asked.paged_block is not None:
            context.cell_padding = asked.paged_block
        placement = _core.Placement()
        placement.patterns = [_core.LayerPlacement(_core.Where.pinned if self.gpus else _core.Where.cpu)]
        placement.layer_pattern = [0] * self.model.n_layer
        placement.n_gpu = 1 if self.gpus else 0
        context = _core.resolve_flash_attention(self.model.core, placement, context)
        cells = _core.cache_cells(self.model.core, context)
        return context, min(settings.n_ubatch, cells.full * cells.n_streams)

    def _set_capacities(self) -> None:
        found = rooms(self.devices)
        self.free = [room.free for room in found]
        self.reserve = [room.reserve for room in found]
        self.capacity = [room.capacity for room in found]
        if self.cpu is not None and self.allow_swap:
            self.capacity[-1] = MAX_BYTES

    def _set_bytes(self) -> None:
        self.bytes = stage_bytes(self.model.core, self.context, [not device.is_cpu for device in self.devices])
        embedding = next((tensor for tensor in self.model.core.embedding if tensor.name == EMBEDDING), None)
        self.looks_up_on_gpu = embedding is not None and is_looked_up_on_gpu(
            type_name(embedding.type.id), embedding.shape[0]
        )
        self.output_bytes = 4 * self.parameters.max_batch_size * self.model.hyperparameters.n_vocab
        self.projector_bytes = [0] * len(self.devices)
        self.projector_host_bytes = 0
        if self.projector is not None:
            image = self.parameters.max_image_shape
            taken = [
                self.projector.image_bytes(*image, on_gpu=not device.is_cpu, flash_attn=self.parameters.flash_attn)
                for device in self.devices
            ]
            self.projector_bytes = [device_bytes for device_bytes, _ in taken]
            self.projector_host_bytes = max(host_bytes for _, host_bytes in taken) * self.parameters.max_num_images

    def _times(self) -> StageTimes | None:
        if self.goal == "memory" and any(device.speed.source == "none" for device in self.devices):
            self.notes.append("No predicted times: nothing says how fast every device is.")
            return None
        require_speeds(self.devices, f"--objective {self.goal}")
        asked = self.parameters
        prompt, generated = (asked.max_seq_len, 0) if self.goal == "prefill" else (0, asked.max_seq_len)
        n_tokens = min(self.n_tokens, asked.max_seq_len) if self.goal == "prefill" else asked.max_batch_size
        workload = _core.Workload(prompt, generated)
        pass_ = _core.tier_pass(self.model.core, self.context, workload, n_tokens)
        if self.goal == "prefill":
            pass_.n_outputs = pass_.n_seqs = pass_.n_streams = 1
        speeds = device_speeds(self.cluster, self.devices)
        return stage_times(self.model.core, pass_, self.cluster, self.devices, speeds, host=self.host)

    # --- layouts ------------------------------------------------------------------------------------------------------

    def placement(self, runs: Sequence[Run], head: HeadPlace) -> tuple[_core.Placement, int]:
        """Return runs as the memory model takes them, and the device of the embedding."""
        where = [_core.Where.cpu if d.is_cpu else _core.pinned_on(i) for i, d in enumerate(self.devices)]
        placement = _core.Placement()
        placement.n_gpu = len(self.gpus)
        placement.op_offload = False
        placement.patterns = [_core.LayerPlacement(where[run.device]) for run in runs]
        placement.layer_pattern = [i for i, run in enumerate(runs) for _ in range(run.begin, run.end)]
        first, last = runs[0].device, runs[-1].device
        placement.head = where[first if head == "first" else last]
        embedding = first if head == "first" and self.looks_up_on_gpu and not self.devices[first].is_cpu else -1
        if embedding >= 0:
            placement.exceptions = [_core.TensorException(EMBEDDING, where[embedding])]
        # As llama.cpp decides: everything on GPUs, and no overrides.
        overridden = embedding >= 0 or placement.head != where[last]
        on_gpus = all(not self.devices[run.device].is_cpu for run in runs)
        placement.pipeline = len(self.gpus) > 1 and on_gpus and not overridden
        return placement, embedding

    def measure(self, runs: Sequence[Run], head: HeadPlace) -> Layout:
        """Ask the memory model what a layout takes of every memory; a projector is with the first device's layers."""
        placement, embedding = self.placement(runs, head)
        return self.layout(placement, runs, head, embedding)

    def layout(self, placement: _core.Placement, runs: Sequence[Run], head: HeadPlace, embedding: int) -> Layout:
        """Return runs with the bytes of a placement that has them."""
        report = _core.memory(self.model.core, placement, self.context, self.n_tokens)
        parts = [report.host if device.is_cpu else report.gpus[i] for i, device in enumerate(self.devices)]
        return Layout(
            runs=tuple(runs),
            head=head,
            pipeline=placement.pipeline,
            weights_bytes=tuple(part.weights_bytes for part in parts),
            cache_bytes=tuple(part.cache_bytes for part in parts),
            compute_bytes=tuple(part.compute_bytes for part in parts),
            embedding=embedding if embedding >= 0 else len(self.devices) - 1,
        )

    def used(self, layout: Layout, device: int) -> int:
        """Bytes of one device, projector, logits and inputs in host memory included."""
        n_bytes = layout.used_bytes[device]
        if layout.runs[0].device == device:
            n_bytes += self.projector_bytes[device]
        if self.devices[device].is_cpu:
            n_bytes += self.output_bytes + self.projector_host_bytes
        return n_bytes

    def by_layers(self, layout: Layout, device: int) -> int:
        """Bytes of one device that the solver counts itself: layers, head and projector."""
        run = next(run for run in layout.runs if run.device == device)
        n_bytes = int(self.bytes.layers[run.begin : run.end, device].sum())
        if layout.head_device == device:
            n_bytes += int(self.bytes.head[device])
        if layout.runs[0].device == device:
            n_bytes += self.projector_bytes[device]
        return n_bytes

    # --- results ------------------------------------------------------------------------------------------------------

    def seconds_of(self, layout: Layout) -> tuple[list[float], list[float], float, float, float] | None:
        """Seconds of each run and of the way to it, their sum, its half-width, and the slowest."""
        times = self.times
        if times is None:
            return None
        first, last = layout.runs[0].device, layout.runs[-1].device
        seconds = [float(times.layers[run.begin : run.end, run.device].sum()) for run in layout.runs]
        spread = sum(float(times.layer_spread[run.begin : run.end, run.device].sum()) for run in layout.runs)
        ways = [0.0] + [
            float(times.transfer[a.device, b.device]) for a, b in zip(layout.runs, layout.runs[1:], strict=False)
        ]
        seconds[0] += times.embedding_seconds + float(times.arrival[first])
        place = layout.head_device
        seconds[0 if layout.head == "first" else -1] += float(times.head[place] + times.result[place])
        if layout.head == "first":
            seconds[-1] += float(times.transfer[last, first])
        busy = [a + b for a, b in zip(seconds, ways, strict=True)]
        return seconds, ways, sum(busy), min(spread + float(times.head_spread[place]), sum(busy)), max(busy)

    def layer_map(self, layout: Layout) -> LayerMap:
        """Return a layout as a result."""
        timed = self.seconds_of(layout)
        runs = {run.device: (i, run) for i, run in enumerate(layout.runs)}
        devices = []
        for d, device in enumerate(self.devices):
            i, run = runs.get(d, (-1, Run(d, 0, 0)))
            parts = {
                "embedding": layout.embedding == d,
                "head": layout.head_device == d,
                "projector": self.projector is not None and layout.runs[0].device == d,
            }
            on_host = self.output_bytes + self.projector_host_bytes if device.is_cpu else 0
            devices.append(
                MappedDevice(
                    device=device,
                    first_layer=run.begin,
                    n_layer=run.end - run.begin,
                    non_mapped=tuple(part for part, here in parts.items() if here),
                    free_bytes=self.free[d],
                    reserve_bytes=self.reserve[d],
                    capacity_bytes=self.capacity[d],
                    weights_bytes=layout.weights_bytes[d],
                    cache_bytes=layout.cache_bytes[d],
                    compute_bytes=layout.compute_bytes[d] + on_host,
                    projector_bytes=self.projector_bytes[d] if parts["projector"] else 0,
                    seconds=None if timed is None or i < 0 else timed[0][i],
                    transfer_seconds=None if timed is None or i < 0 else timed[1][i],
                )
            )
        return LayerMap(
            devices=tuple(devices),
            order=tuple(self.devices[run.device].name for run in layout.runs),
            head=layout.head,
            pipeline=layout.pipeline,
            seconds=None if timed is None else timed[2],
            spread_seconds=None if timed is None else timed[3],
            slowest_seconds=None if timed is None else timed[4],
            n_tokens=0 if self.times is None else self.times.n_tokens,
        )

    def activation_bytes(self) -> tuple[int, int]:
        """Compute buffers of a device that has layers alone, and of what is not mapped: head and projector."""
        placement = _core.Placement()
        placement.n_gpu = 2 if self.gpus else 0
        layers = _core.pinned_on(1) if self.gpus else _core.Where.cpu
        placement.patterns = [_core.LayerPlacement(layers)]
        placement.layer_pattern = [0] * self.model.n_layer
        placement.head = _core.Where.pinned if self.gpus else _core.Where.cpu
        placement.op_offload = False
        report = _core.memory(self.model.core, placement, self.context, self.n_tokens)
        encoder = 0
        if self.projector is not None:
            encoder = max(0, self.projector_bytes[0] - self.projector.memory(self._kind(0)).model_bytes)
        if not self.gpus:
            return report.host.compute_bytes, max(report.host.compute_bytes, encoder)
        return report.gpus[1].compute_bytes, max(report.gpus[0].compute_bytes, encoder)

    def _kind(self, device: int) -> str:
        return "Host" if self.devices[device].is_cpu else "CUDA0"
