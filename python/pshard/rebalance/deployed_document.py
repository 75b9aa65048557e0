"""The document of what is deployed: of a map, a plan or a sharding plan, and what of it the rebalancer goes by."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pshard.errors import DocumentError, SettingError
from pshard.mapping.llama_map import LLAMA_CPP_NAMES
from pshard.mapping.types import HeadPlace, Load, MapParameters
from pshard.rebalance.corrections import Factors
from pshard.rebalance.plan_balancer import Part

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

REMEDY = "give what `pshard map`, `pshard shard` or `pshard plan` wrote with --json."


class ShardOfDocument(msgspec.Struct, frozen=True):
    """One shard; its layer range includes both ends."""

    device: str
    layer_range: tuple[int, int]
    host: str | None = None


class LaunchLine(msgspec.Struct, frozen=True):
    """One command of a launch."""

    argv: list[str]


class LaunchOfDocument(msgspec.Struct, frozen=True):
    """The lines that launch a sharding plan."""

    engine: str
    lines: list[LaunchLine]


class ShardDocument(msgspec.Struct, frozen=True):
    """What of a sharding plan counts."""

    shards: list[ShardOfDocument]
    launch: LaunchOfDocument | None = None


class CacheOfMap(msgspec.Struct, frozen=True):
    """How a map's caches are kept; None: contiguous."""

    block_tokens: int | None


class DeviceOfMap(msgspec.Struct, frozen=True):
    """How many layers a device has."""

    name: str
    n_layer: int


class LayersOfMap(msgspec.Struct, frozen=True):
    """Where the layers and the head lie."""

    head: HeadPlace
    devices: list[DeviceOfMap]


class MapDocument(msgspec.Struct, frozen=True):
    """What of a map counts."""

    load: Load
    parameters: MapParameters
    cache: CacheOfMap
    map: LayersOfMap


class MachineOfPlan(msgspec.Struct, frozen=True):
    """The machine that a plan is for."""

    n_threads: int


class TierOfPlan(msgspec.Struct, frozen=True):
    """A tier, by its size."""

    batch_size: int


class WorkloadOfPlan(msgspec.Struct, frozen=True):
    """What a plan was asked for; names are those of `planner.plan`."""

    n_ctx: int
    n_batch: int
    n_seq_max: int
    flash_attn: bool
    type_k: str
    type_v: str
    prompt_tokens: int
    generate_tokens: int
    n_draft: int
    strategy: str | None


class PlanDocument(msgspec.Struct, frozen=True):
    """What of a plan counts; `corrections` are those that --apply noted, by which its machine was corrected."""

    machine: MachineOfPlan
    workload: WorkloadOfPlan
    budget_bytes: int
    tiers: Annotated[list[TierOfPlan], msgspec.Meta(min_length=1)]
    llama_cpp: dict[str, Any] | None
    corrections: dict[Part, Factors] = {}


Fields = ShardDocument | MapDocument | PlanDocument
# By a field that only documents of the kind have.
KINDS: Mapping[str, type[Fields]] = {"shards": ShardDocument, "map": MapDocument, "tiers": PlanDocument}


@dataclass(frozen=True, slots=True)
class DeployedDocument:
    """A file that says what is deployed, and that others may replace meanwhile: its bytes, and what of them counts."""

    path: Path
    content: bytes
    fields: Fields

    def newer(self) -> DeployedDocument | None:
        """Read the file again; None where it is as it was.

        Raises
        ------
        DocumentError
            It cannot be read, or is no document of this kind any more.
        """
        content = _read(self.path)
        if content == self.content:
            return None
        fields = _parse(content, self.path)
        if type(fields) is not type(self.fields):
            message = f"{self.path}: another kind of document than before; end this, and begin anew with it."
            raise DocumentError(message)
        return DeployedDocument(self.path, content, fields)


def read_document(path: str | os.PathLike[str]) -> DeployedDocument:
    """Read what is deployed.

    Raises
    ------
    DocumentError
        The file cannot be read, or is no such document.
    """
    path = Path(path)
    content = _read(path)
    return DeployedDocument(path, content, _parse(content, path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}); {REMEDY}"
        raise DocumentError(message) from error


def _parse(content: bytes, path: Path) -> Fields:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{path}: not JSON ({error}); {REMEDY}"
        raise DocumentError(message) from error
    kind = next((kind for key, kind in KINDS.items() if isinstance(document, dict) and key in document), None)
    if kind is None:
        message = f"{path}: neither a map nor a shard plan nor a plan; {REMEDY}"
        raise DocumentError(message)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        message = f"{path}: not as pshard writes it ({error}); {REMEDY}"
        raise DocumentError(message) from error


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Layers by shard, in the order in which a token passes them, and what llama.cpp calls the shards' devices."""

    shards: tuple[tuple[str, int], ...]
    llama_names: Mapping[str, str] = field(default_factory=dict)


def pipeline_of(document: ShardDocument, path: object) -> Pipeline:
    """Return the pipeline of a shard document.

    Raises
    ------
    DocumentError
        Shards have layers in common: those are replicas or ranks.
    """
    shards = sorted(document.shards, key=lambda shard: shard.layer_range[0])
    if any(after.layer_range[0] <= before.layer_range[1] for before, after in pairwise(shards)):
        message = (
            f"{path}: shards have layers in common (replicas or tensor-parallel ranks); only pipelines are rebalanced."
        )
        raise DocumentError(message)
    devices = [shard.device for shard in shards]
    launched = _launched_names(document.launch)
    if len(launched) == len(devices):
        names = dict(zip(devices, launched, strict=True))
    else:
        names = _llama_names(devices) if len({shard.host for shard in shards}) == 1 else {}
    counts = [last - first + 1 for first, last in (shard.layer_range for shard in shards)]
    return Pipeline(tuple(zip(devices, counts, strict=True)), names)


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


def _launched_names(launch: LaunchOfDocument | None) -> list[str]:
    """Return the devices of a llama.cpp launch, in its order; none of another engine's."""
    if launch is None or launch.engine != "llama.cpp" or not launch.lines:
        return []
    argv = launch.lines[-1].argv
    return argv[argv.index("-dev") + 1].split(",") if "-dev" in argv[:-1] else []


def _llama_names(devices: Sequence[str]) -> dict[str, str]:
    """Return names of devices that are llama.cpp's already; none if one is not."""
    prefixes = "|".join(sorted(set(LLAMA_CPP_NAMES.values())))
    are_known = all(re.fullmatch(rf"({prefixes})\d+", device) for device in devices)
    return {device: device for device in devices} if are_known else {}
