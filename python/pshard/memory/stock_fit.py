"""What llama.cpp's ``--fit`` decides, and what it then takes of every memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgspec import Struct, to_builtins
from msgspec.structs import replace as with_warnings

from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.launch.flags import LLAMA_CPP_VERSION, fit_overrides
from pshard.launch.line import FULL_CONTEXT
from pshard.memory.memory import as_draft, device_memory, place_draft, unreplayed_warnings
from pshard.memory.placed import HOST, Draft, Placed, place
from pshard.memory.report import DeviceMemory
from pshard.memory.settings import ContextSettings, PlacementSettings
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard import _core
    from pshard.launch.line import LaunchLine
    from pshard.model.model import Model

SCHEMA_VERSION = 1
DEFAULT_TARGET_BYTES = 1024 * MIB
DEFAULT_FIT_CTX = 4096
# How llama.cpp writes `-ngl all`; its -1 means that --fit may choose.
ALL_LAYERS = -2


class Fit(Struct, frozen=True, kw_only=True):
    """What ``--fit`` decides.

    Attributes
    ----------
    model, architecture : str
    engine : str
        The llama.cpp whose rules these are.
    outcome : str
        ``"unchanged"``: what was asked for leaves the targets free. ``"shorter_context"``: so does a shorter context.
        ``"distributed"``: layers were given to devices one by one, which is done also where not even one fits.
    n_ctx : int
        ``-c``.
    n_gpu_layers : int
        ``-ngl``; -1: all.
    tensor_split : tuple of float
        ``-ts``, one for each device; empty: by free memory.
    tensor_overrides : tuple of (str, str)
        ``-ot``.
    devices : tuple of DeviceMemory
        The devices that the model may use, and its bytes on them.
    fit_target_bytes : tuple of int
        What should stay free, by device.
    host : DeviceMemory
    exact : bool
        All bytes are replayed; False: those of compute buffers are an estimate.
    n_measured : int
        Placements whose memory was asked for.
    warnings : tuple of str
    """

    model: str
    architecture: str
    engine: str
    outcome: str
    n_ctx: int
    n_gpu_layers: int
    tensor_split: tuple[float, ...]
    tensor_overrides: tuple[tuple[str, str], ...]
    devices: tuple[DeviceMemory, ...]
    fit_target_bytes: tuple[int, ...]
    host: DeviceMemory
    exact: bool
    n_measured: int
    warnings: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The line that ``llama-fit-params`` prints.

        It leaves out zeros at the end of ``-ts``, and all of it where one device is left; ``llama-server --fit on``
        itself keeps them.
        """
        words = ["-c", str(self.n_ctx), "-ngl", str(self.n_gpu_layers)]
        shares = list(self.tensor_split)
        while len(shares) > 1 and shares[-1] == 0:
            shares.pop()
        if len(shares) > 1:
            words += ["-ts", ",".join(str(int(share)) for share in shares)]
        if self.tensor_overrides:
            overrides = ",".join(f"{pattern}={buffer}" for pattern, buffer in self.tensor_overrides)
            words += ["-ot", f'"{overrides}"']
        return " ".join(words)

    def to_dict(self) -> dict[str, object]:
        """Return the document that ``pshard fit --json`` prints: see docs/fit.md."""
        document: dict[str, object] = to_builtins(self)
        return {"schema_version": SCHEMA_VERSION, "line": self.line, **document}


def fit(
    model: Model,
    devices: Sequence[int],
    *,
    n_ctx: int | None = None,
    fit_target_bytes: int | Sequence[int] = DEFAULT_TARGET_BYTES,
    fit_ctx: int = DEFAULT_FIT_CTX,
    n_batch: int = 2048,
    n_ubatch: int = 512,
    flash_attn: str = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    n_seq_max: int = 1,
    kv_unified: bool = False,
    offload_kqv: bool = True,
    op_offload: bool = True,
    swa_full: bool = False,
    n_outputs_max: int | None = None,
    n_gpu_layers: int | None = None,
    tensor_split: Sequence[float] | None = None,
    tensor_overrides: Iterable[tuple[str, str]] = (),
    split_mode: str = "layer",
    main_gpu: int = 0,
    draft: Draft | Model | None = None,
    ram_bytes: int | None = None,
) -> Fit:
    """Say what llama.cpp's ``--fit`` decides. Names and defaults are llama.cpp's; docs/fit.md has its rules.

    Parameters
    ----------
    model : Model
    devices : sequence of int
        Free bytes of each GPU; none: the model is in host memory, and only its context can be made to fit.
    n_ctx : int, optional
        Context over all sequences. Left out, ``--fit`` may shorten it from the training length; 0: that length as it
        is.
    fit_target_bytes : int or sequence of int
        Bytes that should stay free on every device, or by device; those beyond the sequence keep the default of 1 GiB.
    fit_ctx : int
        The shortest context that it may choose, for each sequence that has a cache of its own.
    n_batch, n_ubatch : int
        Tokens of a batch and of a micro-batch.
    flash_attn : {"auto", "on", "off"}
    type_k, type_v : str
        ggml types of the KV cache.
    n_seq_max : int
        Parallel sequences.
    kv_unified : bool
        One cache that all sequences share.
    offload_kqv : bool
        False: caches in host memory.
    op_offload : bool
        Large batches multiply host weights on the first GPU.
    swa_full : bool
        Sliding-window layers keep the whole context.
    n_outputs_max : int, optional
        Tokens of a micro-batch that logits are wanted for at most; all by default, as ``llama-fit-params`` has it.
    n_gpu_layers, tensor_split, tensor_overrides
        ``-ngl`` (negative: all), ``-ts`` and ``-ot``: ``--fit`` changes nothing of a placement of which any is given.
    split_mode : {"layer", "none"}
    main_gpu : int
        The device of ``split_mode="none"``.
    draft : Draft or Model, optional
        A draft model that shares the devices; its context follows.
    ram_bytes : int, optional
        Host memory, all of it: it counts where there is no GPU, and without it everything fits there.

    Returns
    -------
    Fit

    Raises
    ------
    SettingError
        Settings that llama.cpp refuses.
    NoFeasiblePlanError
        ``--fit`` gives up: the placement is given, or there is no GPU, and no context is short enough.
    """
    return fit_settings(
        model,
        ContextSettings(
            n_ctx=n_ctx or 0,
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
            devices=tuple((f"CUDA{i}", free_bytes) for i, free_bytes in enumerate(devices)),
            n_gpu_layers=-1 if n_gpu_layers is None else n_gpu_layers,
            tensor_overrides=tuple((pattern, buffer) for pattern, buffer in tensor_overrides),
            offload_kqv=offload_kqv,
            op_offload=op_offload,
            split_mode=split_mode,
            tensor_split=None if tensor_split is None else tuple(tensor_split),
            main_gpu=main_gpu,
        ),
        layers_given=n_gpu_layers is not None,
        target_bytes=fit_target_bytes,
        fit_ctx=FULL_CONTEXT if n_ctx == 0 else fit_ctx,
        draft=as_draft(draft),
        ram_bytes=ram_bytes,
    )


def fit_settings(
    model: Model,
    context: ContextSettings,
    where: PlacementSettings,
    *,
    layers_given: bool = False,
    target_bytes: int | Sequence[int] = DEFAULT_TARGET_BYTES,
    fit_ctx: int = DEFAULT_FIT_CTX,
    draft: Draft | None = None,
    devices: tuple[tuple[str, int], ...] | None = None,
    ram_bytes: int | None = None,
) -> Fit:
    """Say what ``--fit`` decides; `fit` describes the parts.

    Parameters
    ----------
    model : Model
    context : ContextSettings
        `n_ctx` 0 leaves the context to ``--fit``.
    where : PlacementSettings
    layers_given : bool
        ``-ngl`` was given: then ``--fit`` leaves all layers where they are.
    target_bytes : int or sequence of int
    fit_ctx : int
    draft : Draft, optional
    devices : tuple of (str, int), optional
        Those that the draft may name; by default the model's.
    ram_bytes : int, optional

    Returns
    -------
    Fit
    """
    from pshard import _core

    if not 0 <= fit_ctx <= FULL_CONTEXT:
        message = f"fit_ctx={fit_ctx!r}: a number of tokens from 0 to {FULL_CONTEXT} is wanted."
        raise SettingError(message)
    asked = place(model, context, where)
    names = asked.names
    free = [dict(where.devices)[name] for name in names]
    targets = _each(target_bytes, len(names))
    given = _given(where, len(names), layers_given=layers_given)
    found = _core.stock_fit(
        model.core,
        replace(context, n_ubatch=context.n_ubatch or context.n_batch).core(),
        [_core.FitDevice(free_bytes, target) for free_bytes, target in zip(free, targets, strict=True)],
        host=None if ram_bytes is None else _core.FitDevice(ram_bytes, *_each(target_bytes, 1)),
        n_ctx_min=fit_ctx,
        offload_kqv=where.offload_kqv,
        op_offload=where.op_offload,
        given=asked.placement if given else None,
        n_gpu_layers=where.n_gpu_layers,
        draft=None if draft is None else _core_draft(draft, asked, where.devices if devices is None else devices),
    )
    memories = tuple(
        device_memory(model, name, free_bytes, part)
        for name, free_bytes, part in zip(names, free, found.memory.gpus, strict=True)
    )
    host = device_memory(model, HOST, ram_bytes, found.memory.host)
    if found.outcome == _core.FitOutcome.refused:
        raise _given_up(given, memories or (host,), targets or _each(target_bytes, 1))
    decided = where
    if found.outcome == _core.FitOutcome.distributed:
        decided = _distributed(model, where, found.layers, names)
    elif layers_given and where.n_gpu_layers < 0:
        decided = replace(where, n_gpu_layers=ALL_LAYERS)
    shares = tuple(decided.tensor_split or ())
    result = Fit(
        model=model.name,
        architecture=model.architecture,
        engine=f"llama.cpp {LLAMA_CPP_VERSION}",
        outcome=found.outcome.name,
        n_ctx=found.n_ctx,
        n_gpu_layers=decided.n_gpu_layers,
        tensor_split=shares if any(shares) else (),
        tensor_overrides=decided.tensor_overrides,
        devices=memories,
        fit_target_bytes=targets,
        host=host,
        exact=model.is_replayed and (draft is None or draft.model.is_replayed),
        n_measured=found.n_measured,
    )
    warnings = place(model, replace(context, n_ctx=found.n_ctx), where).warnings
    return with_warnings(
        result,
        warnings=(*model.warnings, *unreplayed_warnings(model), *warnings, *_own_warnings(result, ends=found.ends)),
    )


def _given(where: PlacementSettings, n_devices: int, *, layers_given: bool) -> list[str]:
    """Name what the line says of the placement: ``--fit`` changes nothing then."""
    shares = where.tensor_split or ()
    said = {
        "n_gpu_layers": layers_given,
        "tensor_split": n_devices > 1 and any(shares[:n_devices]),
        "tensor_overrides": bool(where.tensor_overrides),
    }
    return [name for name, is_given in said.items() if is_given]


def _distributed(
    model: Model, where: PlacementSettings, layers: Sequence[_core.GpuLayers], names: tuple[str, ...]
) -> PlacementSettings:
    """Return the flags for layers that ``--fit`` gave to devices."""
    shares = where.tensor_split
    if len(names) > 1:
        shares = (*(float(of_device.n_layer) for of_device in layers), *(shares or ())[len(names) :])
    return replace(
        where,
        n_gpu_layers=sum(of_device.n_layer for of_device in layers),
        tensor_split=shares,
        tensor_overrides=fit_overrides(model, layers, names),
    )


def _core_draft(draft: Draft, main: Placed, devices: tuple[tuple[str, int], ...]) -> _core.FitDraft:
    from pshard import _core

    beside = place_draft(draft, main, devices, main.context.n_ctx)
    elsewhere = len(main.names)
    gpus = [main.names.index(name) if name in main.names else elsewhere for name in beside.names]
    return _core.FitDraft(draft.model.core, beside.settings.core(), beside.placement, gpus)


def fit_line(line: LaunchLine, model: Model, devices: Sequence[int], ram_bytes: int | None = None) -> Fit:
    """Say what ``--fit`` decides for a launch line; `fit` describes the parts.

    Parameters
    ----------
    line : LaunchLine
    model : Model
        The one that the line names.
    devices : sequence of int
        Free bytes of each GPU, ``CUDA0`` first.
    ram_bytes : int, optional

    Returns
    -------
    Fit
    """
    from pshard.memory.launch_memory import (
        context_settings,
        line_draft,
        line_projector,
        placement_settings,
        projector_device,
    )

    all_devices = tuple((f"CUDA{i}", free_bytes) for i, free_bytes in enumerate(devices))
    target_bytes = [target * MIB for target in line.fit_target_mib]
    projector = line_projector(line) if line.is_server else None
    if projector is not None and (where := projector_device(line, all_devices)) != HOST:
        taken = projector.memory(where, flash_attn=line.flash_attn)
        target_bytes = [*_each(target_bytes[0] if len(target_bytes) == 1 else target_bytes, len(devices))]
        device = [name for name, _ in all_devices].index(where)
        target_bytes[device] += projector.weights_bytes + taken.compute_bytes
    result = fit_settings(
        model,
        replace(context_settings(line, model), n_ctx=line.n_ctx),
        placement_settings(line, all_devices),
        layers_given="n_gpu_layers" in line.given,
        target_bytes=target_bytes[0] if len(target_bytes) == 1 else target_bytes,
        fit_ctx=line.fit_ctx,
        draft=line_draft(line) if line.is_server else None,
        devices=all_devices,
        ram_bytes=ram_bytes,
    )
    warnings = [*result.warnings, *_line_warnings(line)]
    return with_warnings(result, warnings=tuple(warnings))


def _line_warnings(line: LaunchLine) -> Iterator[str]:
    if not line.fit:
        yield "The line says --fit off; this is what --fit would decide."
    beside = [flag for flag, path in (("-md", line.draft_model), ("--mmproj", line.projector)) if path is not None]
    if beside and not line.is_server:
        yield f"{' and '.join(beside)}: {line.program} does not look at it; llama-server's --fit leaves room for it."


def _each(target_bytes: int | Sequence[int], n_devices: int) -> tuple[int, ...]:
    """Return one target for each device."""
    targets: list[Any] = [target_bytes] * n_devices if isinstance(target_bytes, int) else list(target_bytes)[:n_devices]
    if any(isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < 1 << 63 for target in targets):
        message = f"fit_target_bytes={target_bytes!r}: bytes are wanted, not below 0."
        raise SettingError(message)
    return (*targets, *[DEFAULT_TARGET_BYTES] * (n_devices - len(targets)))


def _given_up(given: list[str], memories: Sequence[DeviceMemory], targets: Sequence[int]) -> NoFeasiblePlanError:
    missing = 0
    lacking = []
    for memory, target in zip(memories, targets, strict=True):
        beyond = memory.total_bytes - ((memory.free_bytes or 0) - target)
        if beyond > 0:
            missing += beyond
            lacking.append(f"{memory.name} is {beyond / MIB:.0f} MiB short of leaving {target / MIB:.0f} MiB free")
    if given:
        why = f"{' and '.join(given)} given, of which it changes nothing"
        remedy = f"leave {'it' if len(given) == 1 else 'them'} out, or shorten the context"
    else:
        why = "without a GPU there is only the context to shorten"
        remedy = "shorten it further (n_ctx, fit_ctx), or take a smaller quantisation"
    message = f"--fit gives up ({why}): {', '.join(lacking)}. What would help: {remedy}."
    return NoFeasiblePlanError(message, missing)


def _own_warnings(result: Fit, *, ends: bool) -> Iterator[str]:
    if not ends:
        yield (
            "llama.cpp's own --fit fails with these devices, or does not come to an end: a count of layers falls below "
            "0. This is what it had found by then; use the flags with --fit off, or leave the smaller devices out."
        )
    for memory, target in zip(result.devices, result.fit_target_bytes, strict=True):
        left = (memory.free_bytes or 0) - memory.total_bytes
        if left < target:
            state = f"keeps {left / MIB:.0f} MiB free" if left >= 0 else f"lacks {-left / MIB:.0f} MiB"
            if result.outcome == "shorter_context":
                why = "--fit takes bytes for linear in the context, and does not look again"
            elif result.n_gpu_layers == 0:
                why = "not even one layer fits"
            else:
                why = "--fit fills one device after the other, and does not see what that changes on those before"
            yield f"{memory.name} {state}, where {target / MIB:.0f} MiB were wanted: {why}."
    is_split = result.outcome == "distributed" and len(result.devices) > 1
    if is_split and result.n_gpu_layers > 0 and not any(result.tensor_split[1:]):
        split = ",".join(str(int(share)) for share in result.tensor_split)
        yield (
            f"Only {result.devices[0].name} has layers, and then the printed line says nothing of devices, as that of "
            f"llama-fit-params; add -ts {split}."
        )
