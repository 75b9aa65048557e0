"""A llama.cpp launch line: what it says about memory, and what a binary takes where it is silent.

Defaults and rules are those of llama.cpp's ``common/common.h`` and ``tools/server/server.cpp`` at the version that
`pshard.launch.flags` names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from pshard.errors import SettingError
from pshard.launch.spellings import (
    ACCUMULATE,
    DOWNLOADS,
    GONE,
    KNOWN_FLAGS,
    READERS,
    SETTERS,
    SPECULATION,
    TWO_VALUES,
    UNCOUNTED,
    Override,
    Scaled,
)

# What a line may begin with, and what each does with its flags.
SERVERS = ("llama-server", "llama-cli")
PROGRAMS = (*SERVERS, "llama-fit-params")
DEFAULT_PROGRAM = "llama-server"

SLOTS_OF_A_SERVER = 4
# The shortest context that --fit may choose after `-c 0`: llama.cpp's largest number.
FULL_CONTEXT = (1 << 32) - 1


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
    read = _Read(rest)
    while read.rest:
        read.next()
    line = LaunchLine(
        **({"n_seq_max": -1 if program == "llama-server" else 1} | read.values),
        program=program,
        given=frozenset(read.values),
        warnings=tuple(read.warnings),
        ignored=tuple(read.ignored),
    )
    return _settle(line)


@dataclass
class _Read:
    """The words of a line that are still to be read, and what those before them said."""

    rest: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def next(self) -> None:
        """Read a flag with its values, or the model."""
        word = self.rest.pop(0)
        if word in READERS:
            self._valued(word)
        elif word in SETTERS:
            self._set(*SETTERS[word])
        elif word in DOWNLOADS:
            message = f"{word}: the model is still to be downloaded; give the GGUF file, or a name of the catalogue."
            raise SettingError(message)
        elif word in UNCOUNTED:
            takes_value, sentence = UNCOUNTED[word]
            self.warnings.append(f"{word}{self._value_of_unread(takes_value)}: {sentence}.")
        elif word in GONE:
            takes_value, sentence = GONE[word]
            value = self._value_of_unread(takes_value)
            self.warnings.append(f"{word}{value}: this llama.cpp has no such flag; {sentence}.")
        elif _is_flag(word):
            self._unknown(word)
        elif "model" not in self.values:
            self.values["model"] = word
        else:
            message = (
                f"{word!r} is neither a flag nor the value of one, and the model is {self.values['model']!r} already. "
                "Put the model first, and quote values with spaces."
            )
            raise SettingError(message)

    def _valued(self, flag: str) -> None:
        attribute, read = READERS[flag]
        n_values = 2 if flag in TWO_VALUES else 1
        if len(self.rest) < n_values:
            message = f"{flag} is the end of the line; it takes {'a value' if n_values == 1 else 'two values'}."
            raise SettingError(message)
        text = " ".join(self.rest[:n_values])
        del self.rest[:n_values]
        value = read(flag, text)
        self._set(attribute, value)
        if attribute.endswith("n_gpu_layers") and text in ("auto", "-1"):
            del self.values[attribute]
        if attribute == "n_ctx" and value == 0:
            self.values["fit_ctx"] = FULL_CONTEXT  # until -fitc says otherwise

    def _set(self, attribute: str, value: Any) -> None:
        self.values[attribute] = (*self.values.get(attribute, ()), *value) if attribute in ACCUMULATE else value

    def _value_of_unread(self, takes_value: bool) -> str:
        return f" {self.rest.pop(0)}" if takes_value and self.rest else ""

    def _unknown(self, flag: str) -> None:
        _refuse_equals(flag)
        text = flag + self._value_of_unread(bool(self.rest) and not _is_flag(self.rest[0]))
        near = get_close_matches(flag, [name for name in KNOWN_FLAGS if len(name) > 6], n=1, cutoff=0.9)
        if near:
            self.warnings.append(f"{text} is not known to pshard and has been ignored; did you mean {near[0]}?")
        else:
            self.ignored.append(text)


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
