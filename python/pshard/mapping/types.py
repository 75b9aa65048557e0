"""What a map of layers to devices is asked for, and what it is: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster, Device
    from pshard.model.model import Model

Goal = Literal["memory", "decode", "prefill"]
Load = Literal["stream", "pipelined"]
HeadPlace = Literal["first", "last"]

MAX_GPUS = 15
# Tensor types whose rows a CUDA kernel looks up (ggml 0.25.3, ggml-cuda.cu, GET_ROWS); others, and rows of these that
# are no multiple of so many values, are looked up in host memory.
GPU_LOOKUP_ROWS = {
    **dict.fromkeys(("F32", "F16", "BF16", "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), 1),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), 1),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ4_XS"), 1),
    **dict.fromkeys(("IQ4_NL", "MXFP4"), 256),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MapParameters:
    """What a map makes room for.

    Attributes
    ----------
    max_seq_len : int
        Tokens of one sequence.
    max_batch_size : int
        Sequences at once.
    max_image_shape : (int, int)
        Height and width in pixels; counts only beside a projector.
    max_num_images : int
        Images of one request.
    n_ubatch : int
        Tokens of a micro-batch: compute buffers and the prefill pass are sized for it.
    type_k, type_v : str
        ggml types of the cache.
    flash_attn : {"auto", "on", "off"}
    allow_swap : bool
        The CPU may page to disk.
    paged_block : int or None
        Cells of a block of a paged cache; None: contiguous caches, padded as llama.cpp pads them.
    """

    max_seq_len: int = 4096
    max_batch_size: int = 1
    max_image_shape: tuple[int, int] = (1024, 1024)
    max_num_images: int = 1
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = "auto"
    allow_swap: bool = False
    paged_block: int | None = None

    def describe(self, *, vision: bool) -> str:
        """Return them as one phrase, text or vision."""
        words = f"max_seq_len: {self.max_seq_len}, max_batch_size: {self.max_batch_size}"
        if not vision:
            return f"text[{words}]"
        height, width = self.max_image_shape
        return f"vision[{words}, max_image_shape: ({height}, {width}), max_num_images: {self.max_num_images}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedDevice:
    """What one device gets.

    Attributes
    ----------
    device : Device
    first_layer, n_layer : int
        The layers from `first_layer` on; `first_layer` is 0 where it has none.
    non_mapped : tuple of str
        Parts outside the layers that lie here: ``"embedding"``, ``"head"``, ``"projector"``.
    free_bytes, reserve_bytes, capacity_bytes : int
        Free before, what stays free of it, and what the model may use.
    weights_bytes, cache_bytes, compute_bytes, projector_bytes : int
    seconds : float or None
        Of its layers and parts in one pass; None without a speed.
    transfer_seconds : float or None
        Until its input has arrived.
    """

    device: Device
    first_layer: int
    n_layer: int
    non_mapped: tuple[str, ...]
    free_bytes: int
    reserve_bytes: int
    capacity_bytes: int
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    projector_bytes: int
    seconds: float | None = None
    transfer_seconds: float | None = None

    @property
    def used_bytes(self) -> int:
        """All of the model's bytes here."""
        return self.weights_bytes + self.cache_bytes + self.compute_bytes + self.projector_bytes

    @property
    def left_bytes(self) -> int:
        """What stays free, the reserve included."""
        return self.free_bytes - self.used_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMap:
    """One way to lay the layers out.

    Attributes
    ----------
    devices : tuple of MappedDevice
        All devices, the CPU last.
    order : tuple of str
        Names of the devices that have layers, in the order of the layers.
    head : {"first", "last"}
        Whether the output head is with the first device's layers or behind the last layer.
    pipeline : bool
        llama.cpp works on several micro-batches at once on it, with its inputs kept four times.
    seconds : float or None
        One pass from the tokens to the logits.
    spread_seconds : float or None
    slowest_seconds : float or None
        The slowest device with what it waits for its input.
    n_tokens : int
        Of that pass.
    """

    devices: tuple[MappedDevice, ...]
    order: tuple[str, ...]
    head: HeadPlace
    pipeline: bool
    seconds: float | None = None
    spread_seconds: float | None = None
    slowest_seconds: float | None = None
    n_tokens: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers of each device."""
        return tuple(device.n_layer for device in self.devices)

    def tokens_per_second(self, load: Load) -> float | None:
        """Tokens each second: of a full pipeline, or of one pass behind the other."""
        seconds = self.slowest_seconds if load == "pipelined" else self.seconds
        return None if not seconds else self.n_tokens / seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """The result of `device_map.map_model`.

    Attributes
    ----------
    model : Model
    cluster : Cluster
    parameters : MapParameters
    vision : bool
        There is a projector, so that the parameters are a vision model's.
    goal : {"memory", "decode", "prefill"}
    load : {"stream", "pipelined"}
        One pass behind the other, or as many as the devices can work on.
    layers : LayerMap
        The map.
    exact : bool
        No other map of this form is faster; False for the greedy map, and where buffers overflowed at first.
    greedy : LayerMap or None
        Devices filled one after the other; None where that does not fit.
    cache_policy : {"contiguous", "paged"}
    paged_fallback : bool
        A paged cache was asked for, but the CPU has layers.
    activation_bytes : tuple of (int, int)
        Compute buffers of a device with layers alone, and of the parts that are not mapped.
    basis : str
        Where the seconds come from; empty without any.
    llama_cpp : LlamaLaunch or None
        The same for stock llama.cpp; None where it cannot.
    warnings, notes : tuple of str
    """

    model: Model
    cluster: Cluster
    parameters: MapParameters
    vision: bool
    goal: Goal
    load: Load
    layers: LayerMap
    exact: bool
    greedy: LayerMap | None
    cache_policy: Literal["contiguous", "paged"]
    paged_fallback: bool
    activation_bytes: tuple[int, int]
    basis: str
    llama_cpp: LlamaLaunch | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the document that ``pshard map --json`` prints: see docs/map.md."""
        from pshard.mapping.document import describe

        return describe(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaLaunch:
    """The same map for stock llama.cpp.

    Attributes
    ----------
    argv : tuple of str
        Flags that say where layers and head go.
    layers : LayerMap
        What llama.cpp makes of them, by its own splitting rule; the CPU's layers come first there.
    """

    argv: tuple[str, ...]
    layers: LayerMap
