"""The document of what is deployed: of a map, a plan or a sharding plan, and what of it the rebalancer goes by."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pshard.errors import DocumentError, SettingError
from pshard.mapping.llama_map import LLAMA_CPP_NAMES

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

KINDS = ("map", "shards", "tiers")


class DeployedDocument:
    """A file that says what is deployed, and that others may replace meanwhile.

    Attributes
    ----------
    path : Path
    content : bytes
        As it was read or written last.
    fields : dict

    Raises
    ------
    DocumentError
        The file cannot be read, or is no such document.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.content = self._read()
        self.fields = _parse(self.content, self.path)

    def changed(self) -> bool:
        """Read the file again; whether somebody has replaced it since it was read or written last.

        Raises
        ------
        DocumentError
            It cannot be read, or is no such document any more; the fields are then as before.
        """
        content = self._read()
        if content == self.content:
            return False
        self.fields = _parse(content, self.path)
        self.content = content
        return True

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            message = f"{self.path}: cannot be read ({error.strerror or error}); give what `pshard map --json` wrote."
            raise DocumentError(message) from error


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        message = f"{path}: not JSON ({error}); give what `pshard map --json` or `pshard plan --json` wrote."
        raise DocumentError(message) from error
    if not isinstance(fields, dict) or not fields.keys() & set(KINDS):
        message = f"{path}: neither a map nor a shard plan nor a plan; give what their commands wrote with --json."
        raise DocumentError(message)
    return fields


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Layers by shard, in the order in which a token passes them, and what llama.cpp calls the shards' devices."""

    shards: tuple[tuple[str, int], ...]
    llama_names: Mapping[str, str] = field(default_factory=dict)


def pipeline_of(fields: Mapping[str, Any], path: object) -> Pipeline:
    """Return the pipeline of a shard document, whose layer ranges include both ends.

    Raises
    ------
    DocumentError
        A shard lacks its device or its layers, or shards have layers in common: those are replicas or ranks.
    """
    try:
        shards = [
            (str(shard["device"]), int(shard["layer_range"][0]), int(shard["layer_range"][1]), shard.get("host"))
            for shard in fields["shards"]
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"{path}: a shard lacks `device` or `layer_range` ({error}); give what `pshard shard --json` wrote."
        raise DocumentError(message) from error
    shards.sort(key=lambda shard: shard[1])
    if any(after[1] <= before[2] for before, after in pairwise(shards)):
        message = (
            f"{path}: shards have layers in common (replicas or tensor-parallel ranks); only pipelines are rebalanced."
        )
        raise DocumentError(message)
    devices = [device for device, *_ in shards]
    launched = _launched_names(fields)
    if len(launched) == len(devices):
        names = dict(zip(devices, launched, strict=True))
    else:
        names = _llama_names(devices) if len({host for *_, host in shards}) == 1 else {}
    return Pipeline(tuple((device, last - first + 1) for device, first, last, _ in shards), names)


def parse_layers(text: str) -> Pipeline:
    """Read ``gpu0=20,gpu1=12``.

    Raises
    ------
    SettingError
        A part is not NAME=LAYERS.
    """
    shards = []
    for part in text.split(","):
        name, separator, count = part.rpartition("=")
        if not separator or not name.strip() or not count.strip().isdecimal():
            message = f"--layers {text!r}: {part!r} is not NAME=LAYERS, like gpu0=20."
            raise SettingError(message)
        shards.append((name.strip(), int(count)))
    return Pipeline(tuple(shards), _llama_names([name for name, _ in shards]))


def _launched_names(fields: Mapping[str, Any]) -> list[str]:
    """Return the devices of the llama.cpp line that a shard document may have, in its order; else none."""
    launch = fields.get("launch")
    if not isinstance(launch, dict) or launch.get("engine") != "llama.cpp":
        return []
    try:
        argv = launch["lines"][-1]["argv"]
        return str(argv[argv.index("-dev") + 1]).split(",")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []


def _llama_names(devices: list[str]) -> dict[str, str]:
    """Return names of devices that are llama.cpp's already; none if one is not."""
    prefixes = "|".join(sorted(set(LLAMA_CPP_NAMES.values())))
    are_known = all(re.fullmatch(rf"({prefixes})\d+", device) for device in devices)
    return {device: device for device in devices} if are_known else {}
