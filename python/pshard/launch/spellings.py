"""llama.cpp's flags: their spellings, what each sets of a launch line, and how its value is read.

All is that of llama.cpp's ``common/arg.cpp`` at the version that `pshard.launch.flags` names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from pshard.errors import SettingError

# llama.cpp counts tokens and layers in 32 bits.
MAX_TOKENS = (1 << 31) - 1
# llama.cpp's LLAMA_MAX_DEVICES: no more of them can be named.
MAX_DEVICES = 16
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


# --- values -----------------------------------------------------------------------------------------------------------


def _fail(flag: str, text: str, rule: str) -> SettingError:
    return SettingError(f"{flag} {text}: {rule}.")


def _integer(flag: str, text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d+", text):
        raise _fail(flag, text, "a whole number is wanted, without unit or point")
    number = int(text)
    if not -MAX_TOKENS - 1 <= number <= MAX_TOKENS:
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

# Of a flag and its text; a value of the type that the attribute of `LaunchLine` has.
Read = Callable[[str, str], Any]
# Spellings, attribute, and how to read the value; a flag without a value has what it sets instead.
VALUED: tuple[tuple[str, str, Read], ...] = (
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
SWITCHES: tuple[tuple[str, str, Any], ...] = (
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
UNCOUNTED: dict[str, tuple[bool, str]] = {
    "--rpc": (True, "devices of other machines are not counted; list their free memory with --devices, first"),
    "--override-kv": (True, "the metadata of the file is counted as it stands"),
    "-bs": (False, "samplers on the GPU need buffers of their own, which are not counted"),
    "--backend-sampling": (False, "samplers on the GPU need buffers of their own, which are not counted"),
}
# Models by a download's name: there is no file to read.
DOWNLOADS = frozenset(
    ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo", "-mmu",
     "--mmproj-url", "-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf")
)  # fmt: skip
# Flags of earlier versions that this one refuses: whether they took a value, and what holds instead.
GONE: dict[str, tuple[bool, str]] = {
    "-cd": (True, "the draft's context follows -c"),
    "--ctx-size-draft": (True, "the draft's context follows -c"),
    "--draft": (True, "use --spec-draft-n-max"),
    "--draft-max": (True, "use --spec-draft-n-max"),
    "--draft-n": (True, "use --spec-draft-n-max"),
    "--defrag-thold": (True, "the cache is no longer defragmented"),
    "-dt": (True, "the cache is no longer defragmented"),
}
ACCUMULATE = frozenset({"overrides", "draft_overrides", "speculation", "adapters", "control_vectors"})
TWO_VALUES = frozenset({"--control-vector-layer-range"})

READERS: dict[str, tuple[str, Read]] = {name: (field, read) for names, field, read in VALUED for name in names.split()}
SETTERS: dict[str, tuple[str, Any]] = {
    name: (field, value) for names, field, value in SWITCHES for name in names.split()
}
KNOWN_FLAGS = frozenset({*READERS, *SETTERS})
