"""llama.cpp's launch lines: which flags concern memory, and what a binary takes where a line is silent.

Spellings, defaults and rules are those of llama.cpp's ``common/arg.cpp``, ``common/common.h`` and
``tools/server/server.cpp`` at the version that `pshard.launch.flags` names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import PurePath

from pshard.errors import SettingError

# What a line may begin with, and what each does with its flags.
SERVERS = ("llama-server", "llama-cli")
PROGRAMS = (*SERVERS, "llama-fit-params")
DEFAULT_PROGRAM = "llama-server"

# llama.cpp's LLAMA_MAX_DEVICES: no more of them can be named.
MAX_DEVICES = 16
SLOTS_OF_A_SERVER = 4
# The shortest context that --fit may choose after `-c 0`: llama.cpp's largest number.
FULL_CONTEXT = (1 << 32) - 1

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
SPLIT_MODES = ("none", "layer", "row", "tensor")
LOAD_MODES = ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")
# Tokens that a kind of speculation proposes at most where no flag says so; None: what --spec-draft-n-max says.
SPECULATION: dict[str, int | None] = {
    "none": 0,
    "draft-simple": None,
    "draft-eagle3": None,
    "draft-mtp": None,
    "draft-dflash": None,
    "draft-dspark": None,
    "ngram-simple": 48,
    "ngram-map-k": 48,
    "ngram-map-k4v": 48,
    "ngram-mod": 64,
    "ngram-cache": 8,
}
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_DENSE_FFN = r"\.ffn_(up|down|gate)\."

Override = tuple[str, str]
Scaled = tuple[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLine:
    """What a launch line says about memory, with llama.cpp's defaults where it is silent.

    Attributes
    ----------
    program : str
        The binary whose defaults hold.
    given : frozenset of str
        Attributes that the line sets; ``--fit`` changes none of them. ``-ngl auto`` sets nothing.
    model, draft_model, projector : str or None
        Paths (or catalogue names).
    n_ctx : int
        0: the training length.
    n_gpu_layers, draft_n_gpu_layers : int
        -1: all.
    overrides, draft_overrides : tuple of (str, str)
        Pattern and buffer type of ``-ot``, ``-cmoe``, ``-ncmoe`` and ``-ncffn``, in the order of the line.
    pooling : str
        ``--pooling``; ``"model"``: as the file says.
    device_names, draft_device_names : tuple of str or None
        ``-dev``: names of the devices to use, none of them for ``none``; None: all there are.
    adapters, control_vectors : tuple of (str, float)
        Paths and scales of ``--lora`` and ``--control-vector``.
    control_layers : tuple of int
        First and last layer of ``--control-vector-layer-range``; below 1: the second, and the last.
    fit_target_mib : tuple of int
        One for all devices, or one each.
    speculation : tuple of str
        Kinds of ``--spec-type``.
    warnings : tuple of str
        What the line asks for and no figure contains.
    ignored : tuple of str
        Flags (with their values) that have no bearing on memory.
    """

    program: str = DEFAULT_PROGRAM
    given: frozenset[str] = frozenset()
    model: str | None = None
    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = False
    kv_unified_per_slot: int = 0
    flash_attn: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    offload_kqv: bool = True
    op_offload: bool = True
    swa_full: bool = False
    embeddings: bool = False
    pooling: str = "model"
    n_gpu_layers: int = -1
    overrides: tuple[Override, ...] = ()
    device_names: tuple[str, ...] | None = None
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] | None = None
    main_gpu: int = 0
    load_mode: str = "auto"
    host_buffer: bool = True
    repack: bool = True
    fit: bool = True
    fit_target_mib: tuple[int, ...] = (1024,)
    fit_ctx: int = 4096
    draft_model: str | None = None
    draft_n_gpu_layers: int = -1
    draft_overrides: tuple[Override, ...] = ()
    draft_type_k: str = "f16"
    draft_type_v: str = "f16"
    draft_device_names: tuple[str, ...] | None = None
    n_draft: int = 3
    speculation: tuple[str, ...] = ()
    projector: str | None = None
    projector_offload: bool = True
    projector_device: str | None = None
    adapters: tuple[Scaled, ...] = ()
    control_vectors: tuple[Scaled, ...] = ()
    control_layers: tuple[int, int] = (0, 0)
    warmup: bool = True
    image_max_tokens: int = -1
    batch_max_tokens: int = 1024
    prompt_cache_mib: int = 8192
    n_context_checkpoints: int = 32
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def is_server(self) -> bool:
        """The program is the server or runs it inside (``llama-cli``)."""
        return self.program in SERVERS

    @property
    def n_outputs_max(self) -> int | None:
        """Tokens of one batch that logits are computed for at most; None: all of them.

        A server asks for one per sequence, and one more for each token that speculation proposes.
        """
        if not self.is_server or self.embeddings or self.pooling not in ("model", "none"):
            return None
        proposed = [SPECULATION[kind] for kind in self.speculation]
        n_draft = max((self.n_draft if n is None else n for n in proposed), default=0)
        return min(self.n_batch, self.n_seq_max * (1 + n_draft))


# --- values -----------------------------------------------------------------------------------------------------------


def _fail(flag: str, text: str, rule: str) -> SettingError:
    return SettingError(f"{flag} {text}: {rule}.")


def _integer(flag: str, text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d+", text):
        raise _fail(flag, text, "a whole number is wanted, without unit or point")
    number = int(text)
    if not -(1 << 31) <= number < 1 << 31:
        raise _fail(flag, text, "llama.cpp reads 32-bit numbers")
    return number


def _at_least(minimum: int) -> Callable[[str, str], int]:
    def read(flag: str, text: str) -> int:
        number = _integer(flag, text)
        if number < minimum:
            raise _fail(flag, text, f"it must be at least {minimum}")
        return number

    return read


def _slots(flag: str, text: str) -> int:
    number = _integer(flag, text)
    if number == 0:
        raise _fail(flag, text, "there must be at least one sequence (-1: the server decides)")
    return number


def _layers(flag: str, text: str) -> int:
    if text in ("auto", "all"):
        return -1
    if not re.fullmatch(r"[+-]?\d+", text):
        raise _fail(flag, text, "a number of layers, 'auto' or 'all' is wanted")
    return max(-1, _integer(flag, text))


def _truth(flag: str, text: str) -> bool:
    words = {"on": True, "enabled": True, "true": True, "1": True}
    words |= {"off": False, "disabled": False, "false": False, "0": False}
    if text not in words:
        raise _fail(flag, text, "'on' or 'off' is wanted")
    return words[text]


def _flash_attention(flag: str, text: str) -> str:
    if text in ("auto", "-1"):
        return "auto"
    try:
        return "on" if _truth(flag, text) else "off"
    except SettingError:
        raise _fail(flag, text, "'on', 'off' or 'auto' is wanted") from None


def _one_of(words: Sequence[str]) -> Callable[[str, str], str]:
    def read(flag: str, text: str) -> str:
        if text not in words:
            near = get_close_matches(text.lower(), words, n=1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise _fail(flag, text, f"it is none of {', '.join(words)}{hint}")
        return text

    return read


def _names(flag: str, text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split(","))


def _split(flag: str, text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(share) for share in re.split("[,/]+", text))
    except ValueError:
        raise _fail(flag, text, "proportions are wanted, such as 3,1") from None
    if len(shares) >= MAX_DEVICES:
        raise _fail(flag, text, f"llama.cpp takes fewer than {MAX_DEVICES} proportions")
    return shares


def _targets(flag: str, text: str) -> tuple[int, ...]:
    return tuple(_at_least(0)(flag, target) for target in re.split("[,/]+", text))


def _overrides(flag: str, text: str) -> tuple[Override, ...]:
    rules = []
    for rule in text.split(","):
        pattern, equals, buffer = rule.partition("=")
        if not equals or not pattern:
            raise _fail(flag, text, f"{rule!r} is no PATTERN=BUFFER; rules are separated by commas")
        rules.append((pattern, buffer))
    return tuple(rules)


def _first_layers(pattern: str) -> Callable[[str, str], tuple[Override, ...]]:
    def read(flag: str, text: str) -> tuple[Override, ...]:
        return tuple((rf"blk\.{layer}{pattern}", "CPU") for layer in range(_at_least(0)(flag, text)))

    return read


def _speculation(flag: str, text: str) -> tuple[str, ...]:
    return tuple(_one_of(tuple(SPECULATION))(flag, kind) for kind in text.split(","))


def _text(flag: str, text: str) -> str:
    return text


def _files(flag: str, text: str) -> tuple[Scaled, ...]:
    return tuple((path, 1.0) for path in text.split(","))


def _scaled_files(flag: str, text: str) -> tuple[Scaled, ...]:
    files = []
    for item in text.split(","):
        path, *scale = item.split(":")
        try:
            files.append((path, float(*scale)) if scale else ("", 0.0))
        except (TypeError, ValueError):
            path = ""
        if not path or not scale:
            raise _fail(flag, text, f"{item!r} is no FILE:SCALE; files are separated by commas")
    return tuple(files)


def _layer_range(flag: str, text: str) -> tuple[int, int]:
    first, last = text.split()
    return _integer(flag, first), _integer(flag, last)


# --- flags ------------------------------------------------------------------------------------------------------------

Read = Callable[[str, str], object]
# Spellings, attribute, and how to read the value; a flag without a value has what it sets instead.
_VALUED: tuple[tuple[str, str, Read], ...] = (
    ("-m --model", "model", _text),
    ("-c --ctx-size", "n_ctx", _at_least(0)),
    ("-b --batch-size", "n_batch", _at_least(1)),
    ("-ub --ubatch-size", "n_ubatch", _at_least(0)),
    ("-np --parallel", "n_seq_max", _slots),
    ("--kv-unified-per-slot", "kv_unified_per_slot", _at_least(0)),
    ("--pooling", "pooling", _one_of(("none", "mean", "cls", "last", "rank"))),
    ("-fa --flash-attn", "flash_attn", _flash_attention),
    ("-ctk --cache-type-k", "type_k", _one_of(CACHE_TYPES)),
    ("-ctv --cache-type-v", "type_v", _one_of(CACHE_TYPES)),
    ("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", _layers),
    ("-ot --override-tensor", "overrides", _overrides),
    ("-ncmoe --n-cpu-moe", "overrides", _first_layers(_EXPERTS)),
    ("-ncffn --n-cpu-ffn", "overrides", _first_layers(_DENSE_FFN)),
    ("-dev --device", "device_names", _names),
    ("-sm --split-mode", "split_mode", _one_of(SPLIT_MODES)),
    ("-ts --tensor-split", "tensor_split", _split),
    ("-mg --main-gpu", "main_gpu", _integer),
    ("-lm --load-mode", "load_mode", _one_of(LOAD_MODES)),
    ("-fit --fit", "fit", _truth),
    ("-fitt --fit-target", "fit_target_mib", _targets),
    ("-fitc --fit-ctx", "fit_ctx", _at_least(0)),
    ("-md --model-draft --spec-draft-model", "draft_model", _text),
    ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", "draft_n_gpu_layers", _layers),
    ("-otd --override-tensor-draft --spec-draft-override-tensor", "draft_overrides", _overrides),
    ("-ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe", "draft_overrides", _first_layers(_EXPERTS)),
    ("-ctkd --cache-type-k-draft --spec-draft-type-k", "draft_type_k", _one_of(CACHE_TYPES)),
    ("-ctvd --cache-type-v-draft --spec-draft-type-v", "draft_type_v", _one_of(CACHE_TYPES)),
    ("-devd --device-draft --spec-draft-device", "draft_device_names", _names),
    ("--spec-draft-n-max", "n_draft", _at_least(0)),
    ("--spec-type", "speculation", _speculation),
    ("-mm --mmproj", "projector", _text),
    ("-mmdev --mmproj-device", "projector_device", _text),
    ("--image-max-tokens", "image_max_tokens", _integer),
    ("--mtmd-batch-max-tokens", "batch_max_tokens", _integer),
    ("--lora", "adapters", _files),
    ("--lora-scaled", "adapters", _scaled_files),
    ("--control-vector", "control_vectors", _files),
    ("--control-vector-scaled", "control_vectors", _scaled_files),
    ("--control-vector-layer-range", "control_layers", _layer_range),
    ("-cram --cache-ram", "prompt_cache_mib", _integer),
    ("-ctxcp --ctx-checkpoints --swa-checkpoints", "n_context_checkpoints", _integer),
)
_SWITCHES: tuple[tuple[str, str, object], ...] = (
    ("-kvu --kv-unified", "kv_unified", True),
    ("-no-kvu --no-kv-unified", "kv_unified", False),
    ("-kvo --kv-offload", "offload_kqv", True),
    ("-nkvo --no-kv-offload", "offload_kqv", False),
    ("--op-offload", "op_offload", True),
    ("--no-op-offload", "op_offload", False),
    ("--swa-full", "swa_full", True),
    ("-cmoe --cpu-moe", "overrides", ((_EXPERTS, "CPU"),)),
    ("--no-host", "host_buffer", False),
    ("--repack", "repack", True),
    ("-nr --no-repack", "repack", False),
    ("-cmoed --cpu-moe-draft --spec-draft-cpu-moe", "draft_overrides", ((_EXPERTS, "CPU"),)),
    ("--mmproj-offload", "projector_offload", True),
    ("--no-mmproj-offload", "projector_offload", False),
    ("--warmup", "warmup", True),
    ("--no-warmup", "warmup", False),
    ("--embedding --embeddings", "embeddings", True),
    ("--rerank --reranking", "embeddings", True),
    ("--mtp", "speculation", ("draft-mtp",)),
    ("--eagle3", "speculation", ("draft-eagle3",)),
    ("--dflash", "speculation", ("draft-dflash",)),
    ("--spec-default", "speculation", ("ngram-mod",)),
    # What earlier versions called load modes.
    ("--mmap", "load_mode", "mmap"),
    ("--no-mmap", "load_mode", "none"),
    ("--mlock", "load_mode", "mlock"),
    ("-dio --direct-io", "load_mode", "dio"),
)
# Flags that cost memory which no figure contains: whether they take a value, and what to say.
_UNCOUNTED: dict[str, tuple[bool, str]] = {
    "--rpc": (True, "devices of other machines are not counted; list their free memory with --devices, first"),
    "--override-kv": (True, "the metadata of the file is counted as it stands"),
    "-bs": (False, "samplers on the GPU need buffers of their own, which are not counted"),
    "--backend-sampling": (False, "samplers on the GPU need buffers of their own, which are not counted"),
}
# Models by a download's name: there is no file to read.
_DOWNLOADS = frozenset(
    ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo", "-mmu",
     "--mmproj-url", "-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf")
)  # fmt: skip
# Flags of earlier versions that this one refuses: whether they took a value, and what holds instead.
_GONE: dict[str, tuple[bool, str]] = {
    "-cd": (True, "the draft's context follows -c"),
    "--ctx-size-draft": (True, "the draft's context follows -c"),
    "--draft": (True, "use --spec-draft-n-max"),
    "--draft-max": (True, "use --spec-draft-n-max"),
    "--draft-n": (True, "use --spec-draft-n-max"),
    "--defrag-thold": (True, "the cache is no longer defragmented"),
    "-dt": (True, "the cache is no longer defragmented"),
}
_ACCUMULATE = frozenset({"overrides", "draft_overrides", "speculation", "adapters", "control_vectors"})
_TWO_VALUES = frozenset({"--control-vector-layer-range"})

_READERS: dict[str, tuple[str, Read]] = {
    name: (field, read) for names, field, read in _VALUED for name in names.split()
}
_SETTERS: dict[str, tuple[str, object]] = {
    name: (field, value) for names, field, value in _SWITCHES for name in names.split()
}
KNOWN_FLAGS = frozenset({*_READERS, *_SETTERS})


def parse_launch_line(tokens: Sequence[str], program: str = DEFAULT_PROGRAM) -> LaunchLine:
    """Read a launch line.

    Parameters
    ----------
    tokens : sequence of str
        As a shell would pass them: the program's name, then, in any order, llama.cpp's flags and the model without
        ``-m``. Whatever follows an unknown flag and is no flag itself is taken for its value, so that a model without
        ``-m`` comes first.
    program : str
        Whose defaults hold where the line names no program.

    Returns
    -------
    LaunchLine

    Raises
    ------
    SettingError
        A value that llama.cpp would not take, a flag without its value, two models, or a model that is still to be
        downloaded.
    """
    rest = [_dashed(token) for token in tokens]
    if rest and PurePath(rest[0]).name in PROGRAMS:
        program = PurePath(rest.pop(0)).name
    line = LaunchLine(program=program, n_seq_max=-1 if program == "llama-server" else 1)
    values: dict[str, object] = {}
    ignored: list[str] = []
    warnings: list[str] = []
    while rest:
        flag = rest.pop(0)
        if flag in _READERS:
            field, read = _READERS[flag]
            n_values = 2 if flag in _TWO_VALUES else 1
            if len(rest) < n_values:
                message = f"{flag} is the end of the line; it takes {'a value' if n_values == 1 else 'two values'}."
                raise SettingError(message)
            text = " ".join(rest[:n_values])
            del rest[:n_values]
            value = read(flag, text)
            _set(values, field, value)
            if field.endswith("n_gpu_layers") and text in ("auto", "-1"):
                values.pop(field)
            if field == "n_ctx" and value == 0:
                values["fit_ctx"] = FULL_CONTEXT  # until -fitc says otherwise
        elif flag in _SETTERS:
            _set(values, *_SETTERS[flag])
        elif flag in _DOWNLOADS:
            message = f"{flag}: the model is still to be downloaded; give the GGUF file, or a name of the catalogue."
            raise SettingError(message)
        elif flag in _UNCOUNTED or flag in _GONE:
            takes_value, sentence = (_UNCOUNTED if flag in _UNCOUNTED else _GONE)[flag]
            text = f" {rest.pop(0)}" if takes_value and rest else ""
            gone = "" if flag in _UNCOUNTED else "this llama.cpp has no such flag; "
            warnings.append(f"{flag}{text}: {gone}{sentence}.")
        elif _is_flag(flag):
            _refuse_equals(flag)
            text = f" {rest.pop(0)}" if rest and not _is_flag(rest[0]) else ""
            near = get_close_matches(flag, [name for name in KNOWN_FLAGS if len(name) > 6], n=1, cutoff=0.9)
            if near:
                warnings.append(f"{flag}{text} is not known to pshard and has been ignored; did you mean {near[0]}?")
            else:
                ignored.append(flag + text)
        elif "model" not in values:
            values["model"] = flag
        else:
            message = (
                f"{flag!r} is neither a flag nor the value of one, and the model is {values['model']!r} already. "
                "Put the model first, and quote values with spaces."
            )
            raise SettingError(message)
    line = replace(line, **values, given=frozenset(values), warnings=tuple(warnings), ignored=tuple(ignored))  # type: ignore[arg-type]
    return _settle(line)


def _dashed(token: str) -> str:
    """Long flags may be written with underscores."""
    return token.replace("_", "-") if token.startswith("--") else token


def _is_flag(token: str) -> bool:
    return token.startswith("-") and not re.fullmatch(r"-?\d+(\.\d*)?([,/:-].*)?|-", token)


def _refuse_equals(flag: str) -> None:
    name, equals, value = flag.partition("=")
    if equals and name in KNOWN_FLAGS:
        message = f"{flag}: llama.cpp takes a value as the next word; write {name} {value}."
        raise SettingError(message)


def _set(values: dict[str, object], field: str, value: object) -> None:
    if field in _ACCUMULATE:
        assert isinstance(value, tuple)
        before = values.get(field, ())
        assert isinstance(before, tuple)
        value = (*before, *value)
    values[field] = value


def _settle(line: LaunchLine) -> LaunchLine:
    """Apply what a server decides before it loads anything (``tools/server/server.cpp``)."""
    if line.program == "llama-server":
        if line.embeddings and line.n_batch > line.n_ubatch:
            line = replace(line, n_batch=line.n_ubatch)
        if line.n_seq_max < 0:
            line = replace(line, n_seq_max=SLOTS_OF_A_SERVER, kv_unified=True)
        if line.kv_unified_per_slot and "n_ctx" not in line.given:
            line = replace(line, n_ctx=line.n_seq_max * line.kv_unified_per_slot, given=line.given | {"n_ctx"})
    elif line.n_seq_max < 0:
        message = f"-np {line.n_seq_max}: only llama-server chooses the number of sequences itself; give one."
        raise SettingError(message)
    return line
