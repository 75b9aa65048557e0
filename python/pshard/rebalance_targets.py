"""What can be rebalanced: a map, a plan, or layers by hand; what is deployed, and how a proposal is put into effect."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from pshard.deployment import by_hand
from pshard.errors import SettingError
from pshard.kept_file import replace_keeping
from pshard.llama_map import tensor_split
from pshard.rebalance import LoadBalancer

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from pshard.kept_file import Content
    from pshard.map_deployment import MapDeployment
    from pshard.plan_balancer import PlanBalancer
    from pshard.planner import Plan
    from pshard.rebalance import Decision


@dataclass(frozen=True, slots=True)
class Proposed:
    """What a decision's assignment is for an engine: the flags, and the files that say it, by path."""

    flags: tuple[str, ...]
    files: Mapping[Path, bytes]


class Target(Protocol):
    """Something that is deployed and watched."""

    balancer: LoadBalancer

    def proposed(self, decision: Decision) -> Proposed:
        """Return what the suggested assignment is for an engine."""
        ...

    def apply(self, decision: Decision) -> list[Path]:
        """Put the suggestion into effect; return the files that were written, all or none."""
        ...


class HandTarget:
    """Layers of which nothing else is known, or of a shard document.

    Parameters
    ----------
    balancer : LoadBalancer
        With shards registered.
    flags_file : Path, optional
        File of llama.cpp flags to write.
    """

    def __init__(self, balancer: LoadBalancer, flags_file: Path | None = None) -> None:
        self.balancer = balancer
        self._flags_file = flags_file

    def proposed(self, decision: Decision) -> Proposed:
        """Return llama.cpp's split; it has a share for every device, those without layers too."""
        shares = tensor_split([layers for _, layers in decision.suggested or ()])
        flags = ("-ts", ",".join(map(str, shares)))
        return Proposed(flags, {self._flags_file: _flags_line(flags)} if self._flags_file else {})

    def apply(self, decision: Decision) -> list[Path]:
        """Write the flags."""
        files = self.proposed(decision).files
        if not files:
            message = "--apply needs a file to write for layers by hand; name one (--flags FILE)."
            raise SettingError(message)
        return _write_and_deploy(files, self.balancer, decision)


class MapTarget:
    """A map of this project, with its model and its devices.

    Parameters
    ----------
    path : Path
    mapped : MapDeployment
    balancer : LoadBalancer
        Of the map's deployment.
    flags_file : Path, optional
    """

    def __init__(
        self, path: Path, mapped: MapDeployment, balancer: LoadBalancer, flags_file: Path | None = None
    ) -> None:
        self.balancer = balancer
        self._path = path
        self._mapped = mapped
        self._flags_file = flags_file

    def proposed(self, decision: Decision) -> Proposed:
        """Return the map that `pshard map` finds for the corrected machine."""
        import numpy as np

        assert decision.phase is not None
        assert decision.factors is not None
        factors = np.array([factor for factor, _, _ in decision.factors.values()])
        found = self._mapped.rebalanced(decision.phase, factors)
        flags = () if found.llama_cpp is None else tuple(found.llama_cpp.argv)
        files = {self._path: _document(found.to_dict())}
        if self._flags_file is not None and flags:
            files[self._flags_file] = _flags_line(flags)
        return Proposed(flags, files)

    def apply(self, decision: Decision) -> list[Path]:
        """Replace the map, and the flags where a file is named."""
        return _write_and_deploy(self.proposed(decision).files, self.balancer, decision)


class PlanTarget:
    """A plan for one GPU.

    Parameters
    ----------
    path : Path or None
        The plan's document; None where the plan was made for this call.
    balancer : PlanBalancer
    registry : Path, optional
        To write, where the model has one.
    flags_file : Path, optional
    """

    def __init__(
        self, path: Path | None, balancer: PlanBalancer, registry: Path | None = None, flags_file: Path | None = None
    ) -> None:
        self.balancer: LoadBalancer = balancer
        self._plans = balancer
        self._path = path
        self._registry = registry
        self._flags_file = flags_file

    def proposed(self, decision: Decision) -> Proposed:
        """Return the plan for the corrected machine."""
        assert self._plans.proposed is not None
        document = self._plans.proposed.plan.to_dict()
        llama_cpp: Any = document["llama_cpp"]
        flags = tuple(llama_cpp["argv"]) if llama_cpp else ()
        files = {self._path: _document(document)} if self._path is not None else {}
        if self._flags_file is not None and flags:
            files[self._flags_file] = _flags_line(flags)
        return Proposed(flags, files)

    def apply(self, decision: Decision) -> list[Path]:
        """Replace the plan's document and its registry, and the flags where a file is named."""
        assert self._plans.proposed is not None
        files: dict[Path, Content] = dict(self.proposed(decision).files)
        if self._registry is not None:
            files[self._registry] = partial(_with_plan, self._plans.proposed.plan, self._registry)
        if not files:
            message = "nothing to write: the model has no registry; name a file for the flags (--flags FILE)."
            raise SettingError(message)
        written = replace_keeping(files)
        self._plans.adopt()
        return written


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what is deployed: the JSON document of a map, a shard plan or a plan.

    Raises
    ------
    SettingError
        The file cannot be read, or is none of them.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}); give what `pshard map --json` wrote."
        raise SettingError(message) from error
    except ValueError as error:
        message = f"{path}: not JSON ({error}); give what `pshard map --json` or `pshard plan --json` wrote."
        raise SettingError(message) from error
    if not isinstance(document, dict) or not document.keys() & {"map", "shards", "tiers"}:
        message = f"{path}: neither a map nor a shard plan nor a plan; give what their commands wrote with --json."
        raise SettingError(message)
    return document


def shards_of(document: Mapping[str, Any], path: object) -> list[tuple[str, int]]:
    """Return the shards of a shard document: devices, and layers by their ranges, both ends of which count.

    Raises
    ------
    SettingError
        A shard lacks its device or its layers, or shards have layers in common: those are replicas or ranks.
    """
    try:
        shards = [
            (str(shard["device"]), int(shard["layer_range"][0]), int(shard["layer_range"][1]))
            for shard in document["shards"]
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"{path}: a shard lacks `device` or `layer_range` ({error}); give what `pshard shard --json` wrote."
        raise SettingError(message) from error
    shards.sort(key=lambda shard: shard[1])
    if any(after[1] <= before[2] for before, after in pairwise(shards)):
        message = (
            f"{path}: shards have layers in common (replicas or tensor-parallel ranks); only pipelines are rebalanced."
        )
        raise SettingError(message)
    return [(device, last - first + 1) for device, first, last in shards]


def parse_layers(text: str) -> list[tuple[str, int]]:
    """Read ``gpu0=20,gpu1=12``.

    Raises
    ------
    SettingError
        A part is not NAME=LAYERS.
    """
    shards = []
    for part in text.split(","):
        name, separator, count = part.rpartition("=")
        if not separator or not name.strip() or not count.strip().isdigit():
            message = f"--layers {text!r}: {part!r} is not NAME=LAYERS, like gpu0=20."
            raise SettingError(message)
        shards.append((name.strip(), int(count)))
    return shards


def hand_target(
    shards: Sequence[tuple[str, int]], balancer: LoadBalancer, *, one_stream: bool, flags_file: Path | None
) -> HandTarget:
    """Register shards by hand."""
    balancer.deploy(by_hand(shards, objective="latency" if one_stream else "throughput"))
    return HandTarget(balancer, flags_file)


def _write_and_deploy(files: Mapping[Path, bytes], balancer: LoadBalancer, decision: Decision) -> list[Path]:
    written = replace_keeping(files)
    assert balancer.deployment is not None
    balancer.deploy(balancer.deployment.with_counts([count for _, count in decision.suggested or ()]))
    return written


def _with_plan(plan: Plan, registry: Path, former: bytes | None) -> bytes:
    """Return a registry's bytes with a plan in it."""
    from pshard.registry.write import write_plan

    with TemporaryDirectory() as folder:
        draft = Path(folder) / registry.name
        if former is not None:
            draft.write_bytes(former)
        result = write_plan(plan, draft)
        if result.path is None:
            message = f"{registry}: not written: {' '.join(result.warnings)}"
            raise SettingError(message)
        return result.path.read_bytes()


def _document(document: object) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _flags_line(flags: Sequence[str]) -> bytes:
    return shlex.join(flags).encode() + b"\n"
