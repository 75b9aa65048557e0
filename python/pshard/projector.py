"""Multimodal projectors: an encoder of images or sound, and what maps its output to the model's embeddings.

Weights are counted from the projector's own header. Its compute buffer is not replayed but bounded: from below by the
results that are alive at once in the first convolution, in a layer's attention and FFN, and in the projection; from
above by twice that. Sizes of the warm-up input, for which llama.cpp reserves the buffer, and of the largest image are
those of ``tools/mtmd/clip.cpp``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.errors import ModelError
from pshard.gguf_file import GgufHeader, read_header
from pshard.memory_report import ProjectorMemory

if TYPE_CHECKING:
    from os import PathLike

# What the upper bound is, in lower bounds: held against llama.cpp's own reservations, see docs/memory.md.
BOUND_FACTOR = 2
CHANNELS = 3
FLOAT_BYTES, HALF_BYTES = 4, 2
AUDIO_FRAMES = 3000  # of the warm-up: 30 s of sound
UNKNOWN_IMAGE_SIZE = 1024  # where a file says that its images have no one size, and its kind is not known
# Head sizes for which CUDA has flash attention (ggml/src/ggml-cuda/fattn.cu).
FLASH_HEAD_SIZES = frozenset({40, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576})


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How large images get, where a projector takes more than one size.

    Attributes
    ----------
    warmup_tokens, largest_tokens : int or None
        Tokens behind the merge; None: what the file's largest pixel count, or its one image size, gives.
    merge : int
        Patches that become one token, per side, where the file does not say.
    """

    warmup_tokens: int | None = None
    largest_tokens: int | None = None
    merge: int = 1


# By the projector's type; one that is not here has one image size, which the file names.
IMAGE_RULES = {
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "ling3vl"), ImageRule(46**2, 4096, 2)),
    "qwen2.5o": ImageRule(46**2, 4096, 2),
    "glm4v": ImageRule(46**2, 4096, 2),
    "glm5v": ImageRule(46**2, None, 2),
    "pixtral": ImageRule(16**2, 1024),
    "lightonocr": ImageRule(16**2),
    "kimivl": ImageRule(16**2, 1024),
    "kimik25": ImageRule(None, 4096),
    "dots_ocr": ImageRule(46**2),
    "gemma3": ImageRule(merge=4),
    "gemma4v": ImageRule(16**2, 1120, 3),
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
    """What an encoder is given: positions of its layers, and bytes of the raw input."""

    n_positions: int
    raw_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One encoder of a projector.

    Attributes
    ----------
    kind : str
        The projector's type in the file.
    n_embd, n_ff, n_head : int
    is_gated : bool
        The FFN multiplies two branches.
    has_windows : bool
        Attention is masked by a matrix over all pairs of positions.
    merge : int
        Positions that become one row of the projection.
    column_bytes : int
        Of one position's part of the input, cut out for the first convolution.
    projection_width : int
        Input and output of the widest product behind the layers.
    warmup, largest : Input
    """

    kind: str
    n_embd: int
    n_ff: int
    n_head: int
    is_gated: bool
    has_windows: bool
    merge: int
    column_bytes: int
    projection_width: int
    warmup: Input
    largest: Input

    def live_bytes(self, given: Input, *, flash_attn: bool) -> int:
        """Bytes of the results that are alive at once, at the worst of the stages that every encoder has.

        Parameters
        ----------
        given : Input
        flash_attn : bool
            As asked for; without it, or for head sizes that CUDA has no kernel for, all products of queries and keys
            are kept.
        """
        n, row = given.n_positions, self.n_embd * FLOAT_BYTES
        mask = HALF_BYTES * n**2 if self.has_windows else 0
        flash_attn = flash_attn and self.n_embd // max(self.n_head, 1) in FLASH_HEAD_SIZES
        products = 0 if flash_attn else FLOAT_BYTES * n**2 * self.n_head
        return max(
            given.raw_bytes + n * (self.column_bytes + row),
            3 * mask,  # as it comes from the host, and as f16
            n * 5 * row + 2 * mask,  # the residual, its norm, and query, key and value of it
            n * 2 * row + mask + products,  # the residual, the values, and how much each position weighs
            n * (2 * row + (2 if self.is_gated else 1) * self.n_ff * FLOAT_BYTES) + mask,
            n // self.merge * self.projection_width * FLOAT_BYTES,
        )

    def image(self, height: int, width: int) -> Input:
        """Return an image of so many pixels as the encoder takes it: within its sizes; sound has its one input."""
        if self.largest == self.warmup:
            return self.largest
        pixels = self.largest.raw_bytes // (CHANNELS * FLOAT_BYTES)
        per_position = max(pixels // max(self.largest.n_positions, 1), 1)
        n_positions = min(max(-(-height * width // per_position), self.warmup.n_positions), self.largest.n_positions)
        return Input(n_positions=n_positions, raw_bytes=n_positions * per_position * CHANNELS * FLOAT_BYTES)

    def host_bytes(self, given: Input) -> int:
        """Bytes of the inputs, which stay in host memory."""
        return given.raw_bytes + (FLOAT_BYTES * given.n_positions**2 if self.has_windows else 0)


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

    def memory(self, where: str, *, flash_attn: bool = True) -> ProjectorMemory:
        """Return what it takes on a device.

        Parameters
        ----------
        where : str
            ``"CUDA0"``, ..., or ``"Host"``.
        flash_attn : bool
            False for ``-fa off``.
        """
        from pshard import _core
        from pshard.model import core_tensors

        tensors = core_tensors(self.header.tensors)
        warmup = sum(encoder.live_bytes(encoder.warmup, flash_attn=flash_attn) for encoder in self.encoders)
        largest = sum(encoder.live_bytes(encoder.largest, flash_attn=flash_attn) for encoder in self.encoders)
        return ProjectorMemory(
            name=self.name,
            kind=", ".join(dict.fromkeys(encoder.kind for encoder in self.encoders)),
            where=where,
            model_bytes=sum(t.n_bytes if where == "Host" else _core.gpu_tensor_bytes(t) for t in tensors),
            compute_bytes=warmup,
            compute_bound_bytes=BOUND_FACTOR * warmup,
            largest_bound_bytes=BOUND_FACTOR * largest,
            host_bytes=sum(encoder.host_bytes(encoder.warmup) for encoder in self.encoders),
            n_positions=sum(encoder.warmup.n_positions for encoder in self.encoders),
            largest_n_positions=sum(encoder.largest.n_positions for encoder in self.encoders),
        )

    def image_bytes(self, height: int, width: int, *, on_gpu: bool, flash_attn: bool = True) -> int:
        """Bytes of weights, and of compute at its bound, for an image of so many pixels."""
        memory = self.memory("CUDA0" if on_gpu else "Host", flash_attn=flash_attn)
        live = sum(e.live_bytes(e.image(height, width), flash_attn=flash_attn) for e in self.encoders)
        return memory.model_bytes + max(BOUND_FACTOR * live, memory.compute_bound_bytes)


def read_projector(path: str | PathLike[str], *, image_max_tokens: int = -1) -> Projector:
    """Read a projector's header.

    Parameters
    ----------
    path : path-like
        The GGUF that llama.cpp takes with ``--mmproj``.
    image_max_tokens : int
        ``--image-max-tokens``; negative: the projector's own limit.

    Raises
    ------
    GgufError
        The file is missing or not a sound GGUF.
    ModelError
        The file is no projector, or lacks a size.
    """
    return projector_from_header(read_header(path), image_max_tokens=image_max_tokens)


def projector_from_header(header: GgufHeader, *, image_max_tokens: int = -1) -> Projector:
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
        encoders.append(_EncoderReader(header, "vision").vision(image_max_tokens))
    if header.metadata.get("clip.has_audio_encoder"):
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
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        metadata = header.metadata
        self._kind = str(metadata.get("clip.projector_type") or metadata.get(f"clip.{modality}.projector_type"))

    def _integer(self, key: str, default: int | None = None) -> int:
        name = f"clip.{self._modality}.{key}"
        value = self._header.metadata.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            where = self._header.path or "projector"
            message = f"{where}: {name} is {value!r}; a whole number is wanted. Convert the projector again."
            raise ModelError(message)
        return value

    def _encoder(self, merge: int, column_bytes: int, warmup: Input, largest: Input) -> Encoder:
        layers = self._modality[0] + ".blk."
        return Encoder(
            kind=self._kind,
            n_embd=self._integer("embedding_length"),
            n_ff=self._integer("feed_forward_length"),
            n_head=self._integer("attention.head_count"),
            is_gated=any(name.startswith(layers) and ".ffn_gate." in name for name in self._tensors),
            has_windows=self._integer("n_wa_pattern", 0) > 0,
            merge=merge,
            column_bytes=column_bytes,
            projection_width=self._projection_width(),
            warmup=warmup,
            largest=largest,
        )

    def _projection_width(self) -> int:
        """Input and output of the widest product; a file with both encoders names those of sound apart."""
        is_of_sound = {name: name.startswith("mm.a.") for name in self._tensors if name.startswith("mm.")}
        both = len(set(is_of_sound.values())) > 1
        own = [name for name, sound in is_of_sound.items() if not both or sound == (self._modality == "audio")]
        shapes = [self._tensors[name].shape for name in own]
        return max((sum(shape) for shape in shapes if len(shape) == 2), default=0)

    def vision(self, image_max_tokens: int) -> Encoder:
        rule = IMAGE_RULES.get(self._kind, ImageRule())
        patch = max(self._integer("patch_size"), 1)
        merge = self._integer("spatial_merge_size", 0) or self._integer("projector.scale_factor", 0) or rule.merge
        image = self._integer("image_size") or UNKNOWN_IMAGE_SIZE
        has_one_size = rule.warmup_tokens is None and rule.largest_tokens is None
        if "clip.vision.image_max_pixels" in self._header.metadata:
            image = math.isqrt(self._integer("image_max_pixels"))
            has_one_size = False
        if rule.largest_tokens is not None:
            image = math.isqrt(rule.largest_tokens) * patch * merge
        if image_max_tokens > 0 and not has_one_size:
            image = math.isqrt(image_max_tokens) * patch * merge
        warmup = image if rule.warmup_tokens is None else math.isqrt(rule.warmup_tokens) * patch * merge

        def square(side: int) -> Input:
            return Input(n_positions=(side // patch) ** 2, raw_bytes=side**2 * CHANNELS * FLOAT_BYTES)

        return self._encoder(merge**2, self._column_bytes(patch), square(warmup), square(max(warmup, image)))

    def _column_bytes(self, patch: int) -> int:
        """Bytes of one patch, in the type of the convolution's kernel."""
        kernel = self._tensors.get("v.patch_embd.weight")
        is_float = kernel is not None and kernel.type == 0
        return patch**2 * CHANNELS * (FLOAT_BYTES if is_float else HALF_BYTES)

    def audio(self) -> Encoder:
        raw_bytes = AUDIO_FRAMES * self._integer("num_mel_bins") * FLOAT_BYTES
        sound = Input(n_positions=AUDIO_FRAMES // 2, raw_bytes=raw_bytes)
        return self._encoder(max(self._integer("projector.stack_factor", 1), 1), 0, sound, sound)
