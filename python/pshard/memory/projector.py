"""Multimodal projectors: an encoder of images or sound, and what maps its output to the model's embeddings.

Weights are counted from the projector's own header. Its compute buffer is what replaying the allocator gives: the pass
of every kind that llama.cpp encodes with is described (``csrc/model/encoder_*.cpp``). Sizes of the warm-up input, for
which llama.cpp reserves the buffer, and of the largest image are those of ``tools/mtmd/clip.cpp``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pshard.errors import ModelError
from pshard.gguf.file import GgufHeader, TensorInfo, read_header
from pshard.launch.flags import LLAMA_CPP_VERSION
from pshard.memory.report import ProjectorMemory

if TYPE_CHECKING:
    from os import PathLike

    from pshard import _core

AUDIO_FRAMES = 3000  # of the warm-up: 30 s of sound
# The most at once, where that is not the same: 60 s of frames, 30 s of a waveform.
AUDIO_CHUNKS = {"dots3note_a": 6000, "pockettts_spkenc": 720000}
FRAMES_OF_A_STEP = {"pockettts_spkenc": 120, "qwen3tts_spkenc": 1}  # that layers see; of other kinds of sound two
WAVEFORM_FRAME = 640  # samples of a frame, where sound is not given by frequency
BATCH_MAX_TOKENS = 1024  # of images that llama-server encodes together, where a kind can
LINE_BREAKS = {"gemma4v": 0, "internvl": 0, "deepseekocr": 1, "deepseekocr2": 0}  # by such kind, in each row of tokens
# What llama.cpp loads for each encoder, of images or not.
LOADED_TWICE = ("v.class_embd", "v.patch_embd.", "v.norm_embd.")
# What llama.cpp reads and does not keep as tensors: limits of weights (Gemma 4), filters of sound (Parakeet).
NOT_KEPT = (".input_max", ".input_min", ".output_max", ".output_min", "a.mel_filters", "a.window")


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How large images get, where a projector takes more than one size.

    Attributes
    ----------
    warmup_tokens, largest_tokens : int or None
        Tokens behind the merge; None: what the file's largest pixel count, or its one image size, gives.
    merge : int
        Patches that become one token, per side, where the file does not say.
    image, patch : int or None
        Pixels per side of the image and of a patch, whatever the file says.
    """

    warmup_tokens: int | None = None
    largest_tokens: int | None = None
    merge: int = 1
    image: int | None = None
    patch: int | None = None


# By the projector's type; one that is not here has one image size, which the file names.
IMAGE_RULES = {
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "ling3vl"), ImageRule(46**2, 4096, 2)),
    "glm4v": ImageRule(46**2, 4096, 2),
    "glm5v": ImageRule(46**2, None, 2),
    "pixtral": ImageRule(16**2, 1024),
    "lightonocr": ImageRule(16**2),
    "kimivl": ImageRule(16**2, 1024),
    "kimik25": ImageRule(None, 4096),
    "dots_ocr": ImageRule(46**2),
    "dots3note_v": ImageRule(46**2),
    **dict.fromkeys(("deepseekocr", "deepseekocr2"), ImageRule(merge=4, image=1024, patch=16)),
    "deepseek4v": ImageRule(16**2, 384),
    "gemma3": ImageRule(merge=4),
    "gemma4v": ImageRule(16**2, 1120, 3),
    "gemma4uv": ImageRule(16**2, 1120, 3),
    "phi4": ImageRule(16**2),
    "lfm2": ImageRule(None, 256),
    "minimax_m3": ImageRule(16**2, 576, 2),
    "mimovl": ImageRule(46**2, None, 2),
    "youtuvl": ImageRule(16**2, 62500, 2),
    "paddleocr": ImageRule(28**2, None, 2),
    "hunyuanvl": ImageRule(32**2, 16384, 2),
    "exaone4_5": ImageRule(46**2, None, 2),
    "muse-glimmer": ImageRule(32**2, 4096, 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What an encoder is given at once.

    Attributes
    ----------
    width, height : int
        Pixels; of sound, frames and frequency bands.
    n_images : int
    tile_columns : int
        Of an image in tiles, which lie one above the other, the whole image first; 0: no tiles.
    """

    width: int
    height: int
    n_images: int = 1
    tile_columns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """What one pass computes in.

    Attributes
    ----------
    compute_bytes : int
        In the memory that holds the weights.
    host_bytes : int
        Beside a GPU's buffer, in host memory: the inputs, and what the GPU has no kernel for.
    output_bytes : int
        The embeddings, which are handed out in host memory.
    """

    compute_bytes: int
    host_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One encoder of a projector.

    Attributes
    ----------
    kind : str
        The projector's type in the file.
    core : _core.Encoder
    step : int
        Pixels that images are a multiple of, per side: those of one token.
    patch : int
        Pixels of one patch, per side; of sound, frames of two positions.
    warmup, largest : Input
        What llama.cpp reserves its buffer for, and the largest that the encoder takes.
    batch_max_tokens : int
        Of images that are encoded together, where the kind can.
    """

    kind: str
    core: _core.Encoder
    step: int
    patch: int
    warmup: Input
    largest: Input
    batch_max_tokens: int = BATCH_MAX_TOKENS

    @cached_property
    def _replayed(self) -> dict[tuple[Input, bool, bool], _core.EncoderBuffers]:
        return {}

    def n_positions(self, given: Input) -> int:
        """Patches, or steps of sound, that the layers see."""
        if self.core.is_of_sound:
            return given.width // FRAMES_OF_A_STEP.get(self.kind, 2)
        return given.n_images * (given.width // self.patch) * (given.height // self.patch)

    def buffers(self, given: Input, *, on_gpu: bool, flash_attn: str = "auto") -> Buffers:
        """Say what one pass computes in.

        Parameters
        ----------
        given : Input
        on_gpu : bool
        flash_attn : {"auto", "on", "off"}
            ``auto`` is on, unless CUDA has no kernel for the head size: llama.cpp has then tried it already, and its
            buffers keep what either pass takes.

        Raises
        ------
        ModelError
            The file lacks a tensor or a number.
        """
        made = self._replay(given, on_gpu=on_gpu, flash_attn=flash_attn != "off")
        gpu_bytes, host_bytes = made.gpu_bytes, made.host_bytes
        if on_gpu and flash_attn == "auto" and not made.attends_on_gpu:
            unfused = self._replay(given, on_gpu=on_gpu, flash_attn=False)
            gpu_bytes, host_bytes = max(gpu_bytes, unfused.gpu_bytes), max(host_bytes, unfused.host_bytes)
        return Buffers(
            compute_bytes=gpu_bytes if on_gpu else host_bytes,
            host_bytes=host_bytes if on_gpu else 0,
            output_bytes=made.output_bytes,
        )

    def _replay(self, given: Input, *, on_gpu: bool, flash_attn: bool) -> _core.EncoderBuffers:
        from pshard import _core

        key = (given, on_gpu, flash_attn)
        if key not in self._replayed:
            try:
                self._replayed[key] = _core.encoder_buffers(
                    self.core, given.width, given.height, given.n_images, flash_attn, on_gpu, given.tile_columns
                )
            except ValueError as error:
                raise ModelError(str(error)) from error
        return self._replayed[key]

    def image(self, height: int, width: int) -> Input:
        """Return an image of so many pixels as the encoder takes it: within its sizes; sound has its one input.

        Of an image that is cut into tiles, the most tiles.
        """
        if self.largest == self.warmup or self.largest.tile_columns:
            return self.largest
        shrink = min(1.0, math.sqrt(self.largest.width * self.largest.height / (height * width)))
        whole = math.floor if shrink < 1 else math.ceil
        columns, rows = (max(whole(pixels * shrink / self.step), 1) for pixels in (width, height))
        return Input(width=columns * self.step, height=rows * self.step)

    def most(self, *, on_gpu: bool, flash_attn: str = "auto") -> Buffers:
        """Say what buffers grow to: for the largest image, or where a kind can, for as many as fit into one batch."""
        given = [self.largest]
        if self.kind in LINE_BREAKS:
            columns, rows = self.warmup.width // self.step, self.warmup.height // self.step
            n_images = self.batch_max_tokens // ((columns + LINE_BREAKS[self.kind]) * rows)
            given.append(replace(self.warmup, n_images=max(n_images, 1)))
        found = [self.buffers(each, on_gpu=on_gpu, flash_attn=flash_attn) for each in (self.warmup, *given)]
        return Buffers(
            compute_bytes=max(each.compute_bytes for each in found),
            host_bytes=max(each.host_bytes for each in found),
            output_bytes=max(each.output_bytes for each in found),
        )


@dataclass(frozen=True, slots=True)
class Projector:
    """A multimodal projector, from its header.

    Attributes
    ----------
    name : str
    header : GgufHeader
    encoders : tuple of Encoder
        Of images, of sound, or both.
    """

    name: str
    header: GgufHeader
    encoders: tuple[Encoder, ...]

    @property
    def tensors(self) -> list[TensorInfo]:
        """What llama.cpp loads of the file; some twice, where it encodes images and sound."""
        loaded = [tensor for tensor in self.header.tensors if not tensor.name.endswith(NOT_KEPT)]
        again = [tensor for tensor in loaded if tensor.name.startswith(LOADED_TWICE)]
        return loaded + again * (len(self.encoders) - 1)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the tensors, without a device's padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def memory(self, where: str, *, flash_attn: str = "auto") -> ProjectorMemory:
        """Return what it takes on a device.

        Parameters
        ----------
        where : str
            ``"CUDA0"``, ..., or ``"Host"``.
        flash_attn : {"auto", "on", "off"}

        Raises
        ------
        ModelError
            The file lacks a tensor or a number.
        """
        on_gpu = where != "Host"
        warmup = [encoder.buffers(encoder.warmup, on_gpu=on_gpu, flash_attn=flash_attn) for encoder in self.encoders]
        most = [encoder.most(on_gpu=on_gpu, flash_attn=flash_attn) for encoder in self.encoders]

        return ProjectorMemory(
            name=self.name,
            kind=", ".join(dict.fromkeys(encoder.kind for encoder in self.encoders)),
            where=where,
            model_bytes=self._model_bytes(on_gpu=on_gpu),
            compute_bytes=sum(each.compute_bytes for each in warmup),
            largest_compute_bytes=sum(each.compute_bytes for each in most),
            host_bytes=sum(each.host_bytes for each in warmup),
            largest_host_bytes=sum(each.host_bytes for each in most),
            output_bytes=max(each.output_bytes for each in most),
            n_positions=sum(encoder.n_positions(encoder.warmup) for encoder in self.encoders),
            largest_n_positions=sum(encoder.n_positions(encoder.largest) for encoder in self.encoders),
        )

    def _model_bytes(self, *, on_gpu: bool) -> int:
        from pshard import _core
        from pshard.model.model import core_tensors

        if not on_gpu:
            return self.weights_bytes
        return sum(_core.gpu_tensor_bytes(tensor) for tensor in core_tensors(self.tensors))

    def image_bytes(self, height: int, width: int, *, on_gpu: bool, flash_attn: str = "auto") -> tuple[int, int]:
        """Count what it takes once it has encoded an image of so many pixels.

        Returns
        -------
        device_bytes, host_bytes : int
            Weights and compute, where the weights are; on a GPU, what is in host memory besides.
        """
        device_bytes, host_bytes = self._model_bytes(on_gpu=on_gpu), 0
        for encoder in self.encoders:
            inputs = (encoder.warmup, encoder.image(height, width))
            buffers = [encoder.buffers(given, on_gpu=on_gpu, flash_attn=flash_attn) for given in inputs]
            device_bytes += max(each.compute_bytes for each in buffers)
            host_bytes += max(each.host_bytes for each in buffers)
        return device_bytes, host_bytes


def read_projector(
    path: str | PathLike[str], *, image_max_tokens: int = -1, batch_max_tokens: int = BATCH_MAX_TOKENS
) -> Projector:
    """Read a projector's header.

    Parameters
    ----------
    path : path-like
        The GGUF that llama.cpp takes with ``--mmproj``.
    image_max_tokens : int
        ``--image-max-tokens``; negative: the projector's own limit.
    batch_max_tokens : int
        ``--mtmd-batch-max-tokens``: of images that llama-server encodes together, where the kind can.

    Raises
    ------
    GgufError
        The file is missing or not a sound GGUF.
    ModelError
        The file is no projector, or lacks a size.
    """
    return projector_from_header(
        read_header(path), image_max_tokens=image_max_tokens, batch_max_tokens=batch_max_tokens
    )


def projector_from_header(
    header: GgufHeader, *, image_max_tokens: int = -1, batch_max_tokens: int = BATCH_MAX_TOKENS
) -> Projector:
    """Make a projector of a header; parameters and errors as `read_projector`."""
    architecture = header.metadata.get("general.architecture")
    if architecture != "clip":
        message = (
            f"{header.path or 'projector'}: architecture {architecture!r} is not a projector's ('clip'). Give the "
            "mmproj GGUF of the model with --mmproj, and the model itself with -m."
        )
        raise ModelError(message)
    encoders = []
    if header.metadata.get("clip.has_vision_encoder"):
        images = _EncoderReader(header, "vision").vision(image_max_tokens)
        encoders.append(replace(images, batch_max_tokens=batch_max_tokens))
    # llama.cpp does not encode sound with Gemma 3n, whose file has the tensors.
    if header.metadata.get("clip.has_audio_encoder") and not any(encoder.kind == "gemma3nv" for encoder in encoders):
        encoders.append(_EncoderReader(header, "audio").audio())
    if not encoders:
        message = f"{header.path or 'projector'}: it encodes neither images nor sound. Convert the projector again."
        raise ModelError(message)
    name = header.path.name if header.path is not None else str(header.metadata.get("general.name", "projector"))
    return Projector(name, header, tuple(encoders))


class _EncoderReader:
    """Reads one encoder of a projector's header."""

    def __init__(self, header: GgufHeader, modality: str) -> None:
        self._header = header
        self._modality = modality
        metadata = header.metadata
        kind = str(metadata.get("clip.projector_type") or metadata.get(f"clip.{modality}.projector_type"))
        if kind == "qwen2.5o":  # what older files of Qwen2.5-Omni say of both encoders
            kind = "qwen2.5vl_merger" if modality == "vision" else "qwen2a"
        self._kind = kind

    def _integer(self, key: str, default: int | None = None) -> int:
        name = f"clip.{self._modality}.{key}"
        value = self._header.metadata.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            where = self._header.path or "projector"
            message = f"{where}: {name} is {value!r}; a whole number is wanted. Convert the projector again."
            raise ModelError(message)
        return value

    def _numbers(self) -> dict[str, list[int]]:
        """All whole numbers of the file, by key without ``clip.`` and the modality."""
        found: dict[str, list[int]] = {}
        for prefix in (f"clip.{self._modality}.", "clip."):
            for key, value in self._header.metadata.items():
                values = value if isinstance(value, list) else [value]
                numbers = [int(each) for each in values if isinstance(each, int)]
                if key.startswith(prefix) and len(numbers) == len(values):
                    found.setdefault(key.removeprefix(prefix), numbers)
        return found

    def _encoder(self, step: int, patch: int, warmup: Input, largest: Input) -> Encoder:
        from pshard import _core
        from pshard.model.model import core_tensors

        core = _core.Encoder(self._kind, self._modality == "audio", self._numbers(), core_tensors(self._header.tensors))
        if not _core.is_described(core):
            message = (
                f"{self._header.path or 'projector'}: llama.cpp {LLAMA_CPP_VERSION} knows no projector type "
                f"{self._kind!r}, and would not load it. Leave --mmproj out, or take a file of a kind that it knows."
            )
            raise ModelError(message)
        return Encoder(kind=self._kind, core=core, step=step, patch=patch, warmup=warmup, largest=largest)

    def vision(self, image_max_tokens: int) -> Encoder:
        rule = IMAGE_RULES.get(self._kind, ImageRule())
        patch = rule.patch or max(self._integer("patch_size"), 1)
        merge = self._integer("spatial_merge_size", 0) or self._integer("projector.scale_factor", 0) or rule.merge
        image = rule.image or self._integer("image_size")
        has_one_size = rule.warmup_tokens is None and rule.largest_tokens is None
        if "clip.vision.image_max_pixels" in self._header.metadata:
            image = math.isqrt(self._integer("image_max_pixels"))
            has_one_size = False
        elif rule.largest_tokens is not None:
            image = math.isqrt(rule.largest_tokens) * patch * merge
        if image_max_tokens > 0 and not has_one_size:
            image = math.isqrt(image_max_tokens) * patch * merge
        step = patch * merge
        warmup = image if rule.warmup_tokens is None else math.isqrt(rule.warmup_tokens) * step
        largest = max(warmup, image)
        if not has_one_size:
            largest = max(largest // step, 1) * step
        most = self._tiles(image) if self._kind == "granite4_vision" else Input(width=largest, height=largest)
        return self._encoder(step, patch, Input(width=warmup, height=warmup), most)

    def _tiles(self, side: int) -> Input:
        """Return the image of most tiles: those of one of the grids that the file names, and one of all of it."""
        sizes = self._numbers().get("image_grid_pinpoints", [])
        grids = [(width // side, height // side) for width, height in zip(sizes[::2], sizes[1::2], strict=True)]
        columns, rows = max(grids, key=lambda grid: (grid[0] * grid[1], grid[1]), default=(0, 0))
        return Input(width=side, height=side * (1 + columns * rows), tile_columns=columns)

    def audio(self) -> Encoder:
        bands = WAVEFORM_FRAME if self._kind == "gemma4ua" else self._integer("num_mel_bins")
        warmup = Input(width=AUDIO_FRAMES, height=bands)
        largest = Input(width=AUDIO_CHUNKS.get(self._kind, AUDIO_FRAMES), height=bands)
        return self._encoder(1, 1, warmup, largest)
