"""What a llama.cpp launch takes of every memory, from the model's header alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pshard.errors import SettingError
from pshard.launch.flags import LLAMA_CPP_VERSION
from pshard.memory.placed import HOST, Draft, Placed, place
from pshard.memory.settings import ContextSettings, PlacementSettings
from pshard.quantities import MIB

if TYPE_CHECKING:
    from os import PathLike

    from pshard import _core
    from pshard.gguf.file import TensorInfo
    from pshard.memory.adapters import Adapter, ControlVector
    from pshard.memory.projector import Projector
    from pshard.memory.report import Allowance, DeviceMemory, MemoryReport
    from pshard.model.model import Model

MAPPED_LOADS = ("auto", "mmap", "mmap+mlock")
# How far compute may be off where a graph is not replayed: so many times what is counted, and so many bytes. The
# first where it is counted as an ordinary decoder's, the second where it is guessed from tensors alone.
UNREPLAYED_BOUND = (2, 64 * MIB)
GUESSED_BOUND = (4, 256 * MIB)


def estimate_memory(
    model: Model,
    *,
    n_ctx: int,
    n_batch: int = 2048,
    n_ubatch: int = 512,
    flash_attn: str = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    n_seq_max: int = 1,
    n_gpu_layers: int = -1,
    kv_unified: bool = False,
    offload_kqv: bool = True,
    swa_full: bool = False,
    tensor_overrides: Iterable[tuple[str, str]] = (),
    devices: Sequence[int] = (),
    split_mode: str = "layer",
    tensor_split: Sequence[float] | None = None,
    draft: Draft | Model | None = None,
    projector: Projector | str | PathLike[str] | None = None,
    adapters: Iterable[Adapter | str | PathLike[str]] = (),
    control_vector: ControlVector | None = None,
    main_gpu: int = 0,
    op_offload: bool = True,
    n_outputs_max: int | None = None,
    load_mode: str = "auto",
    ram_bytes: int | None = None,
) -> MemoryReport:
    """Say what a launch takes of every memory. Names and defaults are llama.cpp's.

    Weights, caches and compute buffers are what llama.cpp's own allocator would ask for, replayed without it; see
    docs/memory.md for the rules and how far they have been checked.

    Parameters
    ----------
    model : Model
    n_ctx : int
        Context over all sequences; 0: the training length.
    n_batch, n_ubatch : int
        Tokens of a batch and of a micro-batch.
    flash_attn : {"auto", "on", "off"}
    type_k, type_v : str
        ggml types of the KV cache.
    n_seq_max : int
        Parallel sequences.
    n_gpu_layers : int
        ``-ngl``; negative: all.
    kv_unified : bool
        One cache that all sequences share, instead of equal parts.
    offload_kqv : bool
        False: caches in host memory.
    swa_full : bool
        Sliding-window layers keep the whole context.
    tensor_overrides : iterable of (str, str)
        ``-ot``: a regular expression that is searched in tensor names, and ``"CPU"``, ``"CUDA0"``, ``"CUDA1"``, ....
    devices : sequence of int
        Free bytes of each GPU, as ``nvidia-smi`` shows them before the launch; none: everything is in host memory.
        Without `tensor_split` layers are dealt out in these proportions.
    split_mode : {"layer", "none"}
        Layers over all devices, or `main_gpu` alone.
    tensor_split : sequence of float, optional
        ``-ts``: proportions of the layers on each device.
    draft : Draft or Model, optional
        A draft model beside it, whose context follows this one's.
    projector : Projector or path, optional
        A multimodal projector beside it: `read_projector`, or its GGUF.
    adapters : iterable of Adapter or path
        LoRA adapters of the model: `read_adapter`, or their GGUFs.
    control_vector : ControlVector, optional
        What ``--control-vector`` adds behind its layers: `read_control_vectors`.
    main_gpu : int
        For ``split_mode="none"``.
    op_offload : bool
        Large batches multiply host weights on the GPU.
    n_outputs_max : int, optional
        Tokens of a micro-batch that logits are wanted for at most; all by default, as in llama.cpp's library.
        ``llama-server`` asks for one per sequence.
    load_mode : str
        ``--load-mode``: whether host weights are a mapping of the file (``auto``, ``mmap``) or page-locked memory. No
        count of bytes depends on it.
    ram_bytes : int, optional
        Free host memory; without it the report does not say what is left.

    Returns
    -------
    MemoryReport

    Raises
    ------
    SettingError
        Settings that llama.cpp refuses, or a split that is not replayed.
    ModelError
        An adapter or a control vector was made for another model.
    """
    names = tuple(f"CUDA{i}" for i in range(len(devices)))
    return estimate(
        model,
        ContextSettings(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_seq_max=n_seq_max,
            n_outputs_max=n_outputs_max,
            kv_unified=kv_unified,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            swa_full=swa_full,
        ),
        PlacementSettings(
            devices=tuple(zip(names, devices, strict=True)),
            n_gpu_layers=n_gpu_layers,
            tensor_overrides=tuple((pattern, device) for pattern, device in tensor_overrides),
            offload_kqv=offload_kqv,
            op_offload=op_offload,
            split_mode=split_mode,
            tensor_split=None if tensor_split is None else tuple(tensor_split),
            main_gpu=main_gpu,
        ),
        draft=as_draft(draft),
        projector=as_projector(projector),
        adapters=as_adapters(adapters),
        control_vector=control_vector,
        load_mode=load_mode,
        ram_bytes=ram_bytes,
    )


def as_draft(draft: Draft | Model | None) -> Draft | None:
    """Give a draft model the default settings, unless it has its own."""
    return draft if draft is None or isinstance(draft, Draft) else Draft(model=draft)


def as_projector(projector: Projector | str | PathLike[str] | None) -> Projector | None:
    """Read a projector, unless it is read."""
    from pshard.memory.projector import Projector, read_projector

    return projector if projector is None or isinstance(projector, Projector) else read_projector(projector)


def as_adapters(adapters: Iterable[Adapter | str | PathLike[str]]) -> tuple[Adapter, ...]:
    """Read adapters that are not read yet."""
    from pshard.memory.adapters import Adapter, read_adapter

    return tuple(each if isinstance(each, Adapter) else read_adapter(each) for each in adapters)


# --- one model --------------------------------------------------------------------------------------------------------


def _mapped_bytes(placed: Placed) -> int:
    """Return how much of the file is mapped: from the first host tensor to the last, in each part."""
    spans: dict[int, tuple[int, int]] = {}
    for tensor in _host_tensors(placed):
        first, last = spans.get(tensor.part, (tensor.offset, 0))
        spans[tensor.part] = min(first, tensor.offset), max(last, tensor.offset + tensor.n_bytes)
    return sum(last - first for first, last in spans.values())


def _host_tensors(placed: Placed) -> Iterator[TensorInfo]:
    from pshard import _core

    model, placement = placed.model, placed.placement
    elsewhere = {exception.name: exception.where for exception in placement.exceptions}
    groups = [group for group in _core.Group if group < _core.Group.embedding]
    on_host = [{group.name for group in groups if not _core.is_pinned(where[group])} for where in placement.patterns]
    for layer, pattern in zip(model.layers, placement.layer_pattern, strict=True):
        for group, tensors in layer.groups.items():
            home = group in on_host[pattern]
            if not elsewhere:
                yield from tensors if home else ()
                continue
            for tensor in tensors:
                where = elsewhere.get(tensor.name)
                if home if where is None else not _core.is_pinned(where):
                    yield tensor
    outside = {tensor.name for tensor in model.core.embedding if not tensor.name.startswith("rope_f")}
    if not _core.is_pinned(placement.head):
        outside |= {tensor.name for tensor in model.core.head}
    yield from (tensor for tensor in model.tensors if tensor.name in outside)


# --- a launch ---------------------------------------------------------------------------------------------------------


def estimate(
    model: Model,
    context: ContextSettings,
    placement: PlacementSettings,
    *,
    devices: tuple[tuple[str, int], ...] | None = None,
    draft: Draft | None = None,
    projector: Projector | None = None,
    projector_device: str | None = None,
    adapters: tuple[Adapter, ...] = (),
    control_vector: ControlVector | None = None,
    drafts_itself: Draft | None = None,
    load_mode: str = "auto",
    host_buffer: bool = True,
    ram_bytes: int | None = None,
    allowances: Iterable[Allowance] = (),
) -> MemoryReport:
    """Say what a launch takes of every memory; `estimate_memory` describes the parts.

    Parameters
    ----------
    model : Model
    context : ContextSettings
    placement : PlacementSettings
    devices : tuple of (str, int), optional
        Name and free bytes of every device of the report; by default those of the placement.
    draft : Draft, optional
    projector : Projector, optional
    projector_device : str, optional
        By default the first device, else the host.
    adapters : tuple of Adapter
    control_vector : ControlVector, optional
    drafts_itself : Draft, optional
        The model's own layers draft (``--spec-type draft-mtp``), with a cache of these types; see `next_tokens`.
    load_mode : str
    host_buffer : bool
        False (``--no-host``): host weights are not page-locked.
    ram_bytes : int, optional
    allowances : iterable of Allowance
        Beyond those of driver and libraries.

    Returns
    -------
    MemoryReport
    """
    from pshard.launch.spellings import LOAD_MODES
    from pshard.memory.adapters import adapted, with_adapters
    from pshard.memory.allowances import device_allowances, process_allowances

    if load_mode not in LOAD_MODES:
        message = f"load_mode={load_mode!r}: it is none of {', '.join(LOAD_MODES)}."
        raise SettingError(message)
    devices = placement.devices if devices is None else devices
    plain, model = model, adapted(model, adapters, control_vector)
    main = place(model, context, placement)
    report = with_adapters(_report(main, devices, load_mode, host_buffer), plain, main, adapters, control_vector)
    extra = [*device_allowances(model, main.placement, main.context, main.n_tokens, main.names)]
    used = [*main.names]
    if draft is not None:
        beside = place_draft(draft, main, devices, report.n_ctx_actual)
        report = replace(report, draft=_report(beside, devices, load_mode, host_buffer))
        extra += device_allowances(draft.model, beside.placement, beside.context, beside.n_tokens, beside.names)
        used += beside.names
    if drafts_itself is not None:
        from pshard.memory.next_tokens import place_predictor, with_predictor

        everything, beside = place_predictor(plain, main, drafts_itself, report.n_ctx_actual)
        report = with_predictor(
            report, everything, _report(beside, devices, load_mode, host_buffer), mapped=load_mode in MAPPED_LOADS
        )
        extra += device_allowances(beside.model, beside.placement, beside.context, beside.n_tokens, beside.names)
    if projector is not None:
        device = projector_device or (devices[0][0] if devices else HOST)
        report = replace(report, projector=projector.memory(device, flash_attn=context.flash_attn))
        used += [] if device == HOST else [device]
    process = process_allowances(tuple(dict.fromkeys(used)))
    report = replace(
        report,
        allowances=(*process, *extra, *allowances),
        host=replace(report.host, free_bytes=ram_bytes),
    )
    return replace(report, warnings=(*report.warnings, *_shortages(report)))


def place_draft(draft: Draft, main: Placed, devices: tuple[tuple[str, int], ...], n_ctx: int) -> Placed:
    """Place a draft model: its context follows the main model's, as in ``common/speculative.cpp``.

    Parameters
    ----------
    draft : Draft
    main : Placed
    devices : tuple of (str, int)
        Those that ``-devd`` may name.
    n_ctx : int

    Returns
    -------
    Placed
    """
    from dataclasses import replace as with_settings

    if draft.device_names is None:
        devices = main.where.devices
    else:
        devices = tuple(device for device in devices if device[0] in draft.device_names)
    settings = with_settings(
        main.settings,
        n_ctx=n_ctx,
        n_batch=main.settings.n_batch,
        n_ubatch=main.settings.n_ubatch,
        n_outputs_max=None if main.settings.n_outputs_max is None else main.settings.n_seq_max,
        embeddings=False,
        type_k=draft.type_k,
        type_v=draft.type_v,
    )
    where = with_settings(
        main.where, devices=devices, n_gpu_layers=draft.n_gpu_layers, tensor_overrides=tuple(draft.tensor_overrides)
    )
    return place(draft.model, settings, where)


def device_memory(
    model: Model, name: str, free_bytes: int | None, part: _core.DeviceBytes | None, run_bytes: int = 0
) -> DeviceMemory:
    """Bytes of a model in one memory as a report has them; `part` None: it is not used.

    `run_bytes` are those of the compute buffer where a run may take more than is stated before it.
    """
    from pshard.memory.report import DeviceMemory

    if part is None:
        return DeviceMemory(name=name, free_bytes=free_bytes)
    return DeviceMemory(
        name=name,
        free_bytes=free_bytes,
        model_bytes=part.weights_bytes,
        context_bytes=part.cache_bytes,
        compute_bytes=part.compute_bytes,
        compute_bound_bytes=max(compute_bound_bytes(model, part.compute_bytes), run_bytes),
    )


def _bound(model: Model) -> tuple[int, int]:
    return GUESSED_BOUND if model.hyperparameters.traits.is_guessed else UNREPLAYED_BOUND


def compute_bound_bytes(model: Model, n_bytes: int) -> int:
    """Return what a compute buffer does not exceed that is counted as so many bytes."""
    if model.is_replayed:
        return n_bytes
    factor, more = _bound(model)
    return factor * n_bytes + more


def unreplayed_warnings(model: Model) -> list[str]:
    """Say what an architecture whose passes are not replayed means for the bytes."""
    if model.is_replayed:
        return []
    factor, n_bytes = _bound(model)
    return [
        f"Compute buffers of architecture {model.architecture!r} are not replayed to the byte; each may be up to "
        f"{factor} times what is counted, and {n_bytes // MIB} MiB."
    ]


def _report(placed: Placed, devices: tuple[tuple[str, int], ...], load_mode: str, host_buffer: bool) -> MemoryReport:
    from pshard.memory.report import MemoryReport

    found, run = placed.bytes(), placed.bytes_of_a_run()
    parts = dict(zip((*placed.names, HOST), (*found.gpus, found.host), strict=True))
    run_bytes = {} if run is None else dict(zip(parts, _compute_bytes(run), strict=True))
    cells = placed.cells()

    def memory_of(name: str, free_bytes: int | None) -> DeviceMemory:
        return device_memory(placed.model, name, free_bytes, parts.get(name), run_bytes.get(name, 0))

    host = memory_of(HOST, None)
    output = placed.output_bytes()
    mapped = load_mode in MAPPED_LOADS
    locked = 0
    if placed.names:
        locked += host.compute_bound_bytes + (output if placed.output_is_page_locked() else 0)
        locked += host.model_bytes if host_buffer and not mapped else 0
    return MemoryReport(
        model=placed.model.name,
        architecture=placed.model.architecture,
        engine=f"llama.cpp {LLAMA_CPP_VERSION}",
        n_ctx_actual=cells.full * cells.n_streams,
        n_ctx_sequence=cells.full,
        n_seq_max=placed.settings.n_seq_max,
        n_tokens=placed.n_tokens,
        flash_attn=placed.context.flash_attn,
        pipeline=placed.placement.pipeline,
        exact=placed.model.is_replayed,
        devices=tuple(memory_of(name, free_bytes) for name, free_bytes in devices),
        host=host,
        output_bytes=output,
        page_locked_bytes=locked,
        mapped_bytes=_mapped_bytes(placed) if mapped else 0,
        warnings=(
            *placed.model.warnings,
            *placed.warnings,
            *unreplayed_warnings(placed.model),
            *_run_warnings(parts, run_bytes),
        ),
    )


def _compute_bytes(found: _core.MemoryReport) -> list[int]:
    return [part.compute_bytes for part in (*found.gpus, found.host)]


def _run_warnings(parts: Mapping[str, _core.DeviceBytes], run_bytes: Mapping[str, int]) -> Iterator[str]:
    changes = [
        f"{run_bytes[name] / MIB:.1f} MiB instead of {parts[name].compute_bytes / MIB:.1f} in {name}"
        for name in run_bytes
        if run_bytes[name] != parts[name].compute_bytes
    ]
    if any(run_bytes[name] > parts[name].compute_bytes for name in run_bytes):
        yield (
            f"A run takes other compute buffers than llama.cpp states before it, by which --fit decides: "
            f"{', '.join(changes)}. The larger ones are counted."
        )


def _shortages(report: MemoryReport) -> list[str]:
    shortages = []
    for memory in (*report.devices, report.host):
        left = report.left_bytes(memory.name)
        if left is not None and left < 0:
            used, free = report.used_bytes(memory.name) / MIB, (memory.free_bytes or 0) / MIB
            shortages.append(
                f"{memory.name} lacks {-left / MIB:.0f} MiB: {used:.0f} MiB are needed, {free:.0f} are free."
            )
    return shortages
