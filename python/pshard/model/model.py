"""A model as planning sees it: layers, tensor groups, and the bytes of its weights and caches."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import ModelError, SettingError
from pshard.gguf.file import GgufHeader, TensorInfo, quant_sizes, read_header

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from pshard import _core


@lru_cache(maxsize=1)
def _sizes() -> dict[int, tuple[int, int]]:
    return quant_sizes()


@lru_cache
def data_type(name_or_id: str | int) -> _core.DataType:
    """Size of a ggml type.

    Parameters
    ----------
    name_or_id : str or int
        A type's name in either case (``"f16"``, ``"q8_0"``, ``"Q4_K"``) or its ggml number.

    Returns
    -------
    _core.DataType

    Raises
    ------
    SettingError
        No such type.
    """
    from gguf import GGMLQuantizationType

    from pshard import _core

    try:
        type_id = (
            GGMLQuantizationType[name_or_id.upper()]
            if isinstance(name_or_id, str)
            else GGMLQuantizationType(name_or_id)
        )
    except (KeyError, ValueError):
        names = ", ".join(member.name.lower() for member in GGMLQuantizationType)
        message = f"type {name_or_id!r} is not a ggml type; the types are {names}."
        raise SettingError(message) from None
    return _core.DataType(int(type_id), *_sizes()[int(type_id)])


def type_name(type_id: int) -> str:
    """Name of a ggml type by its number, as `gguf` spells it (``"Q4_K"``)."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(type_id).name


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """One layer that a forward pass computes.

    Attributes
    ----------
    index : int
    parameters : _core.LayerParameters
    groups : dict
        Group name (``"attention"``, ``"ffn_up"``, ...) -> its tensors, in file order; groups that the layer lacks are
        left out.
    """

    index: int
    parameters: _core.LayerParameters
    groups: dict[str, tuple[TensorInfo, ...]]

    def group_bytes(self) -> dict[str, int]:
        """Bytes of weights by group."""
        return {group: sum(tensor.n_bytes for tensor in tensors) for group, tensors in self.groups.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes of the layer's weights."""
        return sum(self.group_bytes().values())


@dataclass(frozen=True)
class Model:
    """A model, from its header.

    Attributes
    ----------
    name : str
    header : GgufHeader
    core : _core.Model
        What memory, cost and plan work on.
    layers : tuple of ModelLayer
        The layers that a forward pass computes; next-token-prediction layers are left out.
    warnings : tuple of str
        What had to be assumed about the model.
    """

    name: str
    header: GgufHeader
    core: _core.Model
    layers: tuple[ModelLayer, ...]
    warnings: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors, in file order."""
        return self.header.tensors

    @cached_property
    def hyperparameters(self) -> _core.Hyperparameters:
        """Sizes, traits and per-layer parameters."""
        return self.core.hyperparameters

    @property
    def architecture(self) -> str:
        """Name of the architecture, as the file has it."""
        return self.hyperparameters.architecture

    @property
    def is_replayed(self) -> bool:
        """The architecture is described, so that its compute buffers are replayed to the byte and not guessed."""
        from pshard.model.architectures import ARCHITECTURES

        described = ARCHITECTURES.get(self.architecture)
        return described is not None and described.replayed

    @property
    def n_layer(self) -> int:
        """Layers that a forward pass computes."""
        return len(self.layers)

    @property
    def n_layer_nextn(self) -> int:
        """Next-token-prediction layers behind them, which llama.cpp counts for ``-ngl`` and does not load."""
        return self.hyperparameters.n_layer_nextn

    @property
    def tied_head(self) -> bool:
        """The head computes with a copy of the token embedding."""
        return self.core.tied_head

    @property
    def file_bytes(self) -> int:
        """All parts of the file together."""
        return self.header.file_bytes

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, padding left out."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(_n_elements(tensor) for tensor in self.tensors)

    @property
    def embedding_bytes(self) -> int:
        """Bytes of the tensors before the first layer, and of the few that belong to no layer (rope factors)."""
        return sum(tensor.n_bytes for tensor in self.core.embedding)

    @property
    def head_bytes(self) -> int:
        """Bytes that the output head needs; with a tied head, its copy of the embedding is counted."""
        return sum(tensor.n_bytes for tensor in self.core.head)

    def group_bytes(self) -> dict[str, int]:
        """Bytes of weights by group over all layers, then embedding and head."""
        total: dict[str, int] = defaultdict(int)
        for layer in self.layers:
            for group, n_bytes in layer.group_bytes().items():
                total[group] += n_bytes
        return _in_group_order({**total, "embedding": self.embedding_bytes, "head": self.head_bytes})

    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of tensors by ggml type name, largest first."""
        total: dict[int, int] = defaultdict(int)
        for tensor in self.tensors:
            total[tensor.type] += tensor.n_bytes
        return {
            type_name(type_id): total[type_id]
            for type_id in sorted(total, key=lambda type_id: (-total[type_id], type_id))
        }

    def kv_bytes_per_cell(self, layer: int, type_k: str = "f16", type_v: str = "f16") -> int:
        """Bytes that one token adds to the KV cache of a layer.

        Parameters
        ----------
        layer : int
        type_k, type_v : str
            ggml types of the cache, llama.cpp's ``-ctk`` and ``-ctv``.

        Returns
        -------
        int
            0 for a layer without attention, and for every layer of an encoder.

        Raises
        ------
        SettingError
            No such type.
        """
        from pshard import _core

        k, v = data_type(type_k), data_type(type_v)
        return (
            _core.kv_bytes_per_cell(self.layers[layer].parameters, k, v)
            if self.hyperparameters.traits.keeps_cache
            else 0
        )

    def state_bytes(self, layer: int) -> int:
        """Bytes of recurrent state that a layer keeps for each sequence, whatever the context."""
        from pshard import _core

        return _core.state_bytes(self.layers[layer].parameters)


def _n_elements(tensor: TensorInfo) -> int:
    n = 1
    for size in tensor.shape:
        n *= size
    return n


def _in_group_order(by_group: dict[str, int]) -> dict[str, int]:
    from pshard import _core

    return {group.name: by_group[group.name] for group in _core.Group if group.name in by_group}


def core_tensors(tensors: Iterable[TensorInfo]) -> list[_core.Tensor]:
    """Tensors as the core takes them."""
    from pshard import _core

    types = {type_id: _core.DataType(type_id, *size) for type_id, size in _sizes().items()}
    return [_core.Tensor(t.name, types[t.type], [*t.shape, *[1] * (4 - len(t.shape))], t.n_bytes) for t in tensors]


def _layers(header: GgufHeader, core: _core.Model) -> tuple[ModelLayer, ...]:
    from pshard import _core

    layers = core.layers
    groups: list[dict[_core.Group, list[TensorInfo]]] = [defaultdict(list) for _ in layers]
    for tensor in header.tensors:
        layer = _core.layer_of(tensor.name)
        if 0 <= layer < len(layers):
            groups[layer][_core.group_of(tensor.name)].append(tensor)
    return tuple(
        ModelLayer(
            index=i, parameters=layer.parameters, groups={g.name: tuple(groups[i][g]) for g in sorted(groups[i])}
        )
        for i, layer in enumerate(layers)
    )


def _check_passes(where: object, core: _core.Model) -> None:
    """Describe one token's pass through each part once, so that a missing tensor is found here and not in a plan."""
    from pshard import _core

    one_token = _core.Pass()
    first_of_class = {layer.layer_class: index for index, layer in reversed(list(enumerate(core.layers)))}
    part = "embedding"
    try:
        _core.embedding_operations(core, one_token)
        for index in sorted(first_of_class.values()):
            part = f"layer {index}"
            _core.layer_operations(core, index, one_token)
        part = "head"
        _core.head_operations(core, one_token)
    except ValueError as error:
        message = f"{where}: {part}: {error}."
        raise ModelError(message) from error


def _guess_warning(architecture: str) -> str:
    return (
        f"The layers of architecture '{architecture}' are not described: what they compute is estimated from the "
        "shapes of their tensors, so that compute and speed are rough."
    )


def model_from_header(header: GgufHeader, name: str | None = None) -> Model:
    """Make a model of a header.

    Parameters
    ----------
    header : GgufHeader
    name : str, optional
        What to call it; by default the file's name without its ending, else ``general.name``.

    Returns
    -------
    Model

    Raises
    ------
    ModelError
        The header is sound, but its model cannot be planned; the message says why.
    """
    from pshard import _core
    from pshard.model.architectures import ARCHITECTURES
    from pshard.model.hyperparameters import describe

    hyperparameters, warnings = describe(header)
    try:
        core = _core.Model(hyperparameters, core_tensors(header.tensors))
        try:
            _check_passes(header.path or "model", core)
        except ModelError:
            if hyperparameters.architecture in ARCHITECTURES:
                raise
            hyperparameters.traits.is_guessed = True
            core = _core.Model(hyperparameters, core_tensors(header.tensors))
            _check_passes(header.path or "model", core)
    except ValueError as error:
        message = f"{header.path or 'model'}: {error}. The file is incomplete; give the GGUF of a whole model."
        raise ModelError(message) from error
    if hyperparameters.traits.is_guessed:
        warnings = (*warnings, _guess_warning(hyperparameters.architecture))
    if name is None:
        name = (
            header.path.stem
            if header.path is not None
            else str(header.metadata.get("general.name", hyperparameters.architecture))
        )
    return Model(name=name, header=header, core=core, layers=_layers(header, core), warnings=warnings)


def read_model(path_or_name: str | PathLike[str]) -> Model:
    """Read a model from a GGUF file, or take one from the built-in catalogue.

    Parameters
    ----------
    path_or_name : str or path-like
        A path (of a split model: of any part), or a catalogue name such as ``"qwen3-30b-a3b:Q4_K_M"``. What exists as a
        file, ends in ``.gguf`` or has a folder in it is a path.

    Returns
    -------
    Model

    Raises
    ------
    GgufError
        The file is missing or not a sound GGUF.
    ModelError
        The model cannot be planned, or the catalogue has no such name.
    SettingError
        The name is empty.
    """
    if not str(path_or_name):
        message = "the model's name is empty; give the path of a GGUF file, or a name that `pshard models` lists."
        raise SettingError(message)
    path = Path(path_or_name)
    if not isinstance(path_or_name, str) or path.suffix == ".gguf" or len(path.parts) > 1 or path.exists():
        return model_from_header(read_header(path))
    from pshard import catalogue

    return model_from_header(catalogue.header(path_or_name), name=":".join(catalogue.resolve(path_or_name)))
