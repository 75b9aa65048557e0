"""What a launch line adds to a model's weights: LoRA adapters (``--lora``) and control vectors (``--control-vector``).

An adapter's matrices lie where the tensor lies that they adapt, and each pair adds two products and a sum to the pass.
So a model with adapters is the same model with a few more tensors, and everything else follows from them. What
llama.cpp refuses is refused here: the rules are those of ``src/llama-adapter.cpp`` and ``common/common.cpp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import ModelError
from pshard.gguf.file import GgufHeader, TensorInfo, read_header

if TYPE_CHECKING:
    from os import PathLike

    from pshard.memory.placed import Placed
    from pshard.memory.report import MemoryReport
    from pshard.model.model import Model

DOWN, UP = ".lora_a", ".lora_b"
NOT_LOADED = "_norm.weight"  # llama.cpp skips an adapter's norms
EMBEDDING = "token_embd.weight"
F32 = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, from its header.

    Attributes
    ----------
    name : str
    header : GgufHeader
    scale : float
        0: it is loaded, but the passes do without it.
    """

    name: str
    header: GgufHeader
    scale: float = 1.0

    def pairs(self) -> dict[str, tuple[TensorInfo, TensorInfo]]:
        """Return the two matrices that adapt each tensor, by its name.

        Raises
        ------
        ModelError
            A tensor is no adapter's, or lacks its other half.
        """
        halves: dict[str, dict[str, TensorInfo]] = {}
        for tensor in self.header.tensors:
            stem, half = tensor.name[: -len(DOWN)], tensor.name[-len(DOWN) :]
            if half in (DOWN, UP):
                halves.setdefault(stem, {})[half] = tensor
            elif not tensor.name.endswith(NOT_LOADED):
                message = (
                    f"{self.name}: tensor {tensor.name!r} ends in neither {DOWN} nor {UP}. Convert the adapter again."
                )
                raise ModelError(message)
        for name, found in halves.items():
            if len(found) < 2:
                missing = UP if DOWN in found else DOWN
                message = f"{self.name}: {name}{missing} is missing. Convert the adapter again."
                raise ModelError(message)
        return {name: (found[DOWN], found[UP]) for name, found in halves.items()}


@dataclass(frozen=True, slots=True)
class ControlVector:
    """A control vector: a direction that is added behind each layer of a range.

    Attributes
    ----------
    name : str
    n_embd : int
    first, last : int
        Layers that it is added behind; below 1: from the second one, and to the last.
    """

    name: str
    n_embd: int
    first: int = 0
    last: int = 0


def read_adapter(path: str | PathLike[str], *, scale: float = 1.0) -> Adapter:
    """Read a LoRA adapter's header.

    Parameters
    ----------
    path : path-like
        The GGUF that llama.cpp takes with ``--lora``.
    scale : float
        Of ``--lora-scaled``.

    Returns
    -------
    Adapter

    Raises
    ------
    GgufError
        The file is missing or not a sound GGUF.
    ModelError
        The file is no LoRA adapter.
    """
    header = read_header(path)
    name = header.path.name if header.path is not None else "adapter"
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        found = header.metadata.get(key)
        if found != wanted:
            message = (
                f"{name}: {key} is {found!r}, not {wanted!r}: it is no LoRA adapter. Give a GGUF that llama.cpp's "
                "convert_lora_to_gguf.py wrote."
            )
            raise ModelError(message)
    return Adapter(name, header, scale)


def read_control_vectors(paths: Sequence[str], first: int = 0, last: int = 0) -> ControlVector | None:
    """Read the control vectors of a line, which llama.cpp adds up to one.

    Parameters
    ----------
    paths : sequence of str
        ``--control-vector``.
    first, last : int
        ``--control-vector-layer-range``.

    Returns
    -------
    ControlVector or None
        None without files.

    Raises
    ------
    GgufError
        A file is missing or not a sound GGUF.
    ModelError
        A file is no control vector, or they have different widths.
    """
    sizes: dict[int, str] = {}
    for path in paths:
        header = read_header(path)
        directions = [tensor for tensor in header.tensors if _is_direction(tensor)]
        if not directions or len(directions) < len(header.tensors):
            message = (
                f"{path}: it is no control vector: its tensors must be direction.1, direction.2, ..., each a vector of "
                "f32. Give a GGUF that llama.cpp's cvector-generator wrote."
            )
            raise ModelError(message)
        sizes |= {tensor.shape[0]: path for tensor in directions}
    if len(sizes) > 1:
        message = f"control vectors of {' and '.join(map(str, sizes))} values: all must be as wide as the model."
        raise ModelError(message)
    return next(
        (ControlVector(", ".join(Path(path).name for path in paths), n_embd, first, last) for n_embd in sizes), None
    )


def _is_direction(tensor: TensorInfo) -> bool:
    kind, _, layer = tensor.name.partition(".")
    return (
        kind == "direction" and layer.isdecimal() and int(layer) > 0 and tensor.type == F32 and len(tensor.shape) == 1
    )


def adapted(model: Model, adapters: Iterable[Adapter], control: ControlVector | None = None) -> Model:
    """Return the model with adapters: the same, with more tensors in its layers.

    Parameters
    ----------
    model : Model
    adapters : iterable of Adapter
    control : ControlVector, optional

    Returns
    -------
    Model

    Raises
    ------
    ModelError
        An adapter is another model's: llama.cpp would not load it.
    """
    from pshard import _core
    from pshard.model.model import core_tensors

    added: list[TensorInfo] = []
    for number, adapter in enumerate(adapters):
        added += _adapter_tensors(model, adapter, number)
    if control is not None:
        added += _directions(model, control)
    if not added:
        return model
    tensors = core_tensors([*model.tensors, *added])
    return replace(model, core=_core.Model(model.hyperparameters, tensors))


def _adapter_tensors(model: Model, adapter: Adapter, number: int) -> list[TensorInfo]:
    """Return an adapter's matrices under names that say what they adapt; idle ones where it is not applied."""
    from pshard import _core

    architecture = adapter.header.metadata.get("general.architecture")
    if architecture != model.architecture:
        message = (
            f"{adapter.name}: an adapter of a {architecture!r} model; the model is {model.architecture!r}. Give one "
            "that was made for it."
        )
        raise ModelError(message)
    known = {tensor.name: tensor for tensor in model.tensors if _core.layer_of(tensor.name) < model.n_layer}
    added = []
    for name, (down, up) in adapter.pairs().items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            message = (
                f"{adapter.name}: it adapts {name!r}, which the model does not have{hint}. Give an adapter that was "
                "made for it."
            )
            raise ModelError(message)
        _check_shapes(model, adapter, known[name], down, up)
        kind = "lora_" if adapter.scale else "lora_idle_"
        added += [replace(half, name=f"{name}.{kind}{half.name[-1]}.{number}") for half in (down, up)]
    return added


def _check_shapes(model: Model, adapter: Adapter, tensor: TensorInfo, down: TensorInfo, up: TensorInfo) -> None:
    a, b, adapted_shape = ((*part.shape, 1)[:2] for part in (down, up, tensor))
    fits = (a[0], b[1], a[1]) == (*adapted_shape, b[0])
    if tensor.name == EMBEDDING:
        fits = (b[1], a[1]) == adapted_shape
    if not fits:
        shapes = ", ".join("x".join(map(str, part.shape)) for part in (down, up, tensor))
        message = (
            f"{adapter.name}: matrices of {shapes} do not fit together for {tensor.name!r}. Give an adapter that was "
            "made for this model."
        )
        raise ModelError(message)
    if tensor.name == EMBEDDING and model.tied_head:
        message = (
            f"{adapter.name}: it adapts {EMBEDDING}, which is the head of this model too, and llama.cpp cannot "
            "multiply by both. Make an adapter without it."
        )
        raise ModelError(message)


def _directions(model: Model, control: ControlVector) -> list[TensorInfo]:
    """Return a vector for every layer but the first; those outside the range are there, and nothing is added."""
    n_embd = model.hyperparameters.n_embd
    if control.n_embd != n_embd:
        message = (
            f"{control.name}: a control vector of {control.n_embd} values; the model has {n_embd}. Give one that was "
            "made for it."
        )
        raise ModelError(message)
    first, last = max(control.first, 1), control.last if control.last > 0 else model.n_layer
    return [
        TensorInfo(
            name=f"blk.{layer}.control_vector{'' if first <= layer <= last else '.idle'}",
            shape=(n_embd,), type=F32, n_bytes=4 * n_embd, offset=0, part=0,
        )
        for layer in range(1, model.n_layer)
    ]  # fmt: skip


def with_adapters(
    report: MemoryReport,
    plain: Model,
    placed: Placed,
    adapters: tuple[Adapter, ...],
    control_vector: ControlVector | None,
) -> MemoryReport:
    """Say apart what adapters take of the weights that a report has.

    Parameters
    ----------
    report : MemoryReport
        Of the model with its adapters.
    plain : Model
        Without them.
    placed : Placed
    adapters : tuple of Adapter
    control_vector : ControlVector or None

    Returns
    -------
    MemoryReport
    """
    from msgspec.structs import replace as with_fields

    from pshard.memory.placed import weights_bytes
    from pshard.memory.report import AdapterMemory

    before = weights_bytes(plain, placed)
    first = before
    parts = []
    for n in range(1, len(adapters) + (2 if control_vector is not None else 1)):
        control = control_vector if n > len(adapters) else None
        now = weights_bytes(adapted(plain, adapters[:n], control), placed)
        name = adapters[n - 1].name if control is None else control.name
        grown = {where: n_bytes - before[where] for where, n_bytes in now.items() if n_bytes > before[where]}
        parts.append(AdapterMemory(name=name, kind="lora" if control is None else "control vector", model_bytes=grown))
        before = now
    if not parts:
        return report
    memories = [with_fields(each, model_bytes=first.get(each.name, 0)) for each in (*report.devices, report.host)]
    return with_fields(report, devices=tuple(memories[:-1]), host=memories[-1], adapters=tuple(parts))
