"""The memory of a launch line: its flags, a binary's defaults and the models that it names, put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pshard.errors import SettingError
from pshard.memory.adapters import read_adapter, read_control_vectors
from pshard.memory.allowances import server_allowances
from pshard.memory.memory import estimate
from pshard.memory.placed import HOST, Draft
from pshard.memory.settings import ContextSettings, PlacementSettings, check_context
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard.launch.line import LaunchLine
    from pshard.memory.projector import Projector
    from pshard.memory.report import MemoryReport
    from pshard.model.model import Model

# Kinds of speculation whose draft is a head that is trained with the model, in a file of its own.
_UNCOUNTED_SPECULATION = ("draft-eagle3", "draft-dflash", "draft-dspark")
# Architectures whose own drafts have been held against llama.cpp's allocator.
_CHECKED_PREDICTORS = ("glm4moe",)


def line_memory(line: LaunchLine, devices: Sequence[int], ram_bytes: int | None = None) -> MemoryReport:
    """Say what a launch line takes of every memory.

    Parameters
    ----------
    line : LaunchLine
        With a model.
    devices : sequence of int
        Free bytes of each GPU, ``CUDA0`` first.
    ram_bytes : int, optional
        Free host memory.

    Returns
    -------
    MemoryReport
        Its warnings are those of the settings; those of the line are in `line`.

    Raises
    ------
    SettingError
        The line names no model, or llama.cpp would refuse it.
    GgufError, ModelError
        A file cannot be used.
    """
    from msgspec.structs import replace

    model = line_model(line)
    all_devices = tuple((f"CUDA{i}", n_bytes) for i, n_bytes in enumerate(devices))
    context = context_settings(line, model)
    report = estimate(
        model,
        context,
        placement_settings(line, all_devices),
        devices=all_devices,
        draft=line_draft(line),
        drafts_itself=own_draft(line, model),
        projector=line_projector(line),
        projector_device=projector_device(line, all_devices),
        adapters=tuple(read_adapter(path, scale=scale) for path, scale in line.adapters),
        control_vector=read_control_vectors([path for path, _ in line.control_vectors], *line.control_layers),
        load_mode=line.load_mode,
        host_buffer=line.host_buffer,
        ram_bytes=ram_bytes,
        allowances=server_allowances(line, model, check_context(model, context)[0].core()),
    )
    return replace(report, warnings=(*report.warnings, *_warnings(line, report)))


def line_draft(line: LaunchLine) -> Draft | None:
    """Read the draft model that a line names, with its settings."""
    from pshard.model.model import read_model

    if line.draft_model is None:
        return None
    return Draft(
        model=read_model(line.draft_model),
        n_gpu_layers=line.draft_n_gpu_layers,
        tensor_overrides=line.draft_overrides,
        type_k=line.draft_type_k,
        type_v=line.draft_type_v,
        device_names=line.draft_device_names,
    )


def own_draft(line: LaunchLine, model: Model) -> Draft | None:
    """Return what a line says of the draft that the model brings itself; None where it asks for none."""
    if "draft-mtp" not in line.speculation or line.draft_model is not None:
        return None
    return Draft(model=model, type_k=line.draft_type_k, type_v=line.draft_type_v)


def line_projector(line: LaunchLine) -> Projector | None:
    """Read the projector that a line names."""
    from pshard.memory.projector import read_projector

    if line.projector is None:
        return None
    return read_projector(
        line.projector, image_max_tokens=line.image_max_tokens, batch_max_tokens=line.batch_max_tokens
    )


def line_model(line: LaunchLine) -> Model:
    """Read the model that a line names; SettingError where it names none."""
    from pshard.model.model import read_model

    if line.model is None:
        message = "the line names no model; put the GGUF (or a name of the catalogue) first, or give it with -m."
        raise SettingError(message)
    return read_model(line.model)


def context_settings(line: LaunchLine, model: Model) -> ContextSettings:
    """Context settings of a line's main model, as they reach llama.cpp's library."""
    n_ctx = line.n_ctx
    if n_ctx == 0 and line.fit and line.is_server and not line.kv_unified:
        n_ctx = model.hyperparameters.n_ctx_train * line.n_seq_max  # --fit gives every sequence the whole length
    return ContextSettings(
        n_ctx=n_ctx,
        n_batch=line.n_batch,
        n_ubatch=line.n_ubatch,
        n_seq_max=line.n_seq_max,
        n_outputs_max=line.n_outputs_max,
        kv_unified=line.kv_unified,
        flash_attn=line.flash_attn,
        type_k=line.type_k,
        type_v=line.type_v,
        swa_full=line.swa_full,
        embeddings=line.embeddings,
    )


def placement_settings(line: LaunchLine, devices: tuple[tuple[str, int], ...]) -> PlacementSettings:
    """Placement settings of a line's main model; ``-dev`` chooses among the devices and orders them."""
    return PlacementSettings(
        devices=_chosen(line.device_names, devices),
        n_gpu_layers=line.n_gpu_layers,
        tensor_overrides=line.overrides,
        offload_kqv=line.offload_kqv,
        op_offload=line.op_offload,
        split_mode=line.split_mode,
        tensor_split=line.tensor_split,
        main_gpu=line.main_gpu,
    )


def _chosen(names: tuple[str, ...] | None, devices: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    if names is None:
        return devices
    known = dict(devices)
    missing = [name for name in names if name not in known]
    if missing:
        there = ", ".join(known) or "none"
        message = f"-dev names {missing[0]}, but the devices are: {there}. Name their free memory with --devices."
        raise SettingError(message)
    return tuple((name, known[name]) for name in names)


def projector_device(line: LaunchLine, devices: tuple[tuple[str, int], ...]) -> str:
    """Name the memory that a line's projector goes to: by default the first device's."""
    if not line.projector_offload or line.projector_device == "none" or line.device_names == ():
        return HOST
    if line.projector_device is not None:
        return _chosen((line.projector_device,), devices)[0][0]
    if line.device_names:
        return line.device_names[0]
    return devices[0][0] if devices else HOST


def _warnings(line: LaunchLine, report: MemoryReport) -> Iterator[str]:
    uncounted = [kind for kind in line.speculation if kind in _UNCOUNTED_SPECULATION]
    if uncounted:
        yield f"--spec-type {uncounted[0]} keeps a context of its own, which is not counted."
    if "draft-mtp" in line.speculation and line.draft_model is not None:
        yield "--spec-type draft-mtp with -md: the draft is counted as an ordinary model, which it is not."
    elif "draft-mtp" in line.speculation and report.architecture not in _CHECKED_PREDICTORS:
        yield (
            f"--spec-type draft-mtp: weights and cache of the layers that draft are counted; their compute buffer is "
            f"described like those of {', '.join(_CHECKED_PREDICTORS)}, and has not been checked for "
            f"{report.architecture!r}."
        )
    if line.draft_model is not None and line.is_server and not line.speculation:
        yield "-md without --spec-type draft-simple: llama.cpp loads the draft and never asks it."
    if not line.host_buffer and line.repack and report.devices:
        yield "--no-host: the GPU does not multiply weights that the CPU repacks; compute is counted as if it did."
    if line.fit and line.is_server:
        yield from _fit_warning(line, report)


def _fit_warning(line: LaunchLine, report: MemoryReport) -> Iterator[str]:
    """Say where ``--fit`` would not leave the line as it stands."""
    targets = line.fit_target_mib if len(line.fit_target_mib) > 1 else line.fit_target_mib * len(report.devices)
    for memory, target_mib in zip(report.devices, targets, strict=False):
        buffers = sum(part.total_bytes for part in report.parts_in(memory.name))
        if memory.free_bytes is not None and memory.free_bytes - buffers < target_mib * MIB:
            yield (
                f"--fit is on and wants {target_mib} MiB free on {memory.name}: {line.program} would lower what the "
                "line leaves open. This is the line as it stands; `pshard fit` shows what it becomes."
            )
            return
