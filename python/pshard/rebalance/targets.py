"""What can be rebalanced: a map, a plan, or layers by hand; what is deployed, and how a proposal is put into effect."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pshard.atomic_file import read_if_there
from pshard.errors import FileError, SettingError
from pshard.mapping.llama_map import tensor_split
from pshard.rebalance.balancer import LoadBalancer
from pshard.rebalance.deployed_document import MapDocument, PlanDocument, ShardDocument, pipeline_of
from pshard.rebalance.deployment import by_hand
from pshard.rebalance.kept_file import replace_keeping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pshard.planning.planner import Plan
    from pshard.rebalance.balancer import Decision, RebalanceConfig
    from pshard.rebalance.deployed_document import DeployedDocument, Pipeline
    from pshard.rebalance.kept_file import Content
    from pshard.rebalance.map_deployment import MapDeployment
    from pshard.rebalance.plan_balancer import PlanBalancer


@dataclass(frozen=True, slots=True)
class Proposed:
    """What a decision's assignment is for an engine: the flags, and the files that say it, by path."""

    flags: tuple[str, ...]
    files: Mapping[Path, bytes]


class Target(Protocol):
    """Something that is deployed and watched."""

    @property
    def balancer(self) -> LoadBalancer:
        """Collects latencies of what is deployed."""
        ...

    @property
    def first_file(self) -> Path | None:
        """What `apply` writes first; beside it lies what was there before, and what is remembered."""
        ...

    def follow(self) -> bool:
        """Look whether somebody else has deployed something; take that up, and return whether it was so."""
        ...

    def proposed(self, decision: Decision) -> Proposed:
        """Return what the suggested assignment is for an engine."""
        ...

    def apply(self, decision: Decision) -> list[Path]:
        """Put the suggestion into effect; return the files that were written, all or none.

        Raises
        ------
        DocumentError
            Somebody else has replaced one since it was read: the suggestion is of what is no more.
        """
        ...


class FlagsFile:
    """A file of engine flags that one process writes; None stands for no file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._content: bytes | None = None
        if path is not None:
            with suppress(FileError):  # told when it is to be written
                self._content = read_if_there(path)

    def written(self, flags: Sequence[str]) -> dict[Path, bytes]:
        """Return what is to be written."""
        return {} if self.path is None or not flags else {self.path: shlex.join(flags).encode() + b"\n"}

    @property
    def expected(self) -> dict[Path, bytes | None]:
        """What is there unless somebody else has replaced it."""
        return {} if self.path is None else {self.path: self._content}

    def note(self, files: Mapping[Path, Content]) -> None:
        """Remember what was written."""
        content = None if self.path is None else files.get(self.path)
        if isinstance(content, bytes):
            self._content = content


class PipelineTarget:
    """Layers of which only names and counts are known: by hand, or of a shard document.

    Parameters
    ----------
    pipeline : Pipeline
    config : RebalanceConfig
    flags : FlagsFile
        Of llama.cpp, to write.
    document : DeployedDocument, optional
        Of which the pipeline is.
    n_not_loaded : int
        Next-token-prediction layers, which llama.cpp counts.
    more
        As arguments of `by_hand`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: RebalanceConfig,
        flags: FlagsFile,
        document: DeployedDocument | None = None,
        *,
        n_not_loaded: int = 0,
        **more: Any,
    ) -> None:
        self._pipeline = pipeline
        self._flags = flags
        self._document = document
        self._n_not_loaded = n_not_loaded
        self._more = more
        self.balancer = LoadBalancer(config, by_hand(pipeline.shards, **more))

    @property
    def first_file(self) -> Path | None:
        """The flags."""
        return self._flags.path

    def follow(self) -> bool:
        """Take up the document where it was replaced."""
        newer = None if self._document is None else self._document.newer()
        if newer is None:
            return False
        assert isinstance(newer.fields, ShardDocument)
        pipeline = pipeline_of(newer.fields, newer.path)
        self.balancer.deploy(by_hand(pipeline.shards, **self._more))
        self._pipeline, self._document = pipeline, newer
        return True

    def proposed(self, decision: Decision) -> Proposed:
        """Return llama.cpp's devices, where their names are known, and its split.

        Without ``-dev`` the split has a share for every device, those without layers too.
        """
        suggested = dict(decision.suggested or ())
        names = self._pipeline.llama_names
        used = [shard for shard, layers in suggested.items() if layers or shard not in names]
        shares = tensor_split([suggested[shard] for shard in used], self._n_not_loaded)
        flags: tuple[str, ...] = ("-dev", ",".join(names[shard] for shard in used)) if names else ()
        flags += ("-ts", ",".join(map(str, shares))) if len(used) > 1 else ()
        return Proposed(flags, self._flags.written(flags))

    def apply(self, decision: Decision) -> list[Path]:
        """Write the flags."""
        files = self.proposed(decision).files
        if not files:
            message = "--apply needs a file to write for layers by hand; name one (--flags FILE)."
            raise SettingError(message)
        written = replace_keeping(files, self._flags.expected)
        self._flags.note(files)
        _deploy_suggested(self.balancer, decision)
        return written


class MapTarget:
    """A map of this project, with its model and its devices.

    Parameters
    ----------
    document : DeployedDocument
    mapped : callable
        From the document to what can be moved.
    config : RebalanceConfig
    flags : FlagsFile
    """

    def __init__(
        self,
        document: DeployedDocument,
        mapped: Callable[[MapDocument], MapDeployment],
        config: RebalanceConfig,
        flags: FlagsFile,
    ) -> None:
        self._document = document
        self._make = mapped
        self._mapped = self._map_of(document)
        self._flags = flags
        self.balancer = LoadBalancer(config, self._mapped.deployment)

    @property
    def first_file(self) -> Path | None:
        """The map."""
        return self._document.path

    def follow(self) -> bool:
        """Take up the map where it was replaced."""
        newer = self._document.newer()
        if newer is None:
            return False
        mapped = self._map_of(newer)
        self.balancer.deploy(mapped.deployment)
        self._mapped, self._document = mapped, newer
        return True

    def _map_of(self, document: DeployedDocument) -> MapDeployment:
        assert isinstance(document.fields, MapDocument)
        return self._make(document.fields)

    def proposed(self, decision: Decision) -> Proposed:
        """Return the map that `pshard map` finds for the corrected machine."""
        import numpy as np

        assert decision.phase is not None
        assert decision.factors is not None
        factors = np.array([factor for factor, _, _ in decision.factors.values()])
        found = self._mapped.rebalanced(decision.phase, factors)
        flags = () if found.llama_cpp is None else tuple(found.llama_cpp.argv)
        return Proposed(flags, {self._document.path: _encoded(found.to_dict()), **self._flags.written(flags)})

    def apply(self, decision: Decision) -> list[Path]:
        """Replace the map, and the flags where a file is named."""
        files = self.proposed(decision).files
        written = replace_keeping(files, {self._document.path: self._document.content, **self._flags.expected})
        self._document = replace(self._document, content=files[self._document.path])
        self._flags.note(files)
        _deploy_suggested(self.balancer, decision)
        return written


class PlanTarget:
    """A plan for one GPU.

    Parameters
    ----------
    document : DeployedDocument
    planned : callable
        From the document to the plan.
    balancer : PlanBalancer
        Of that plan.
    registry : Path, optional
        To write, where the model has one.
    flags : FlagsFile
    """

    def __init__(
        self,
        document: DeployedDocument,
        planned: Callable[[PlanDocument], Plan],
        balancer: PlanBalancer,
        registry: Path | None,
        flags: FlagsFile,
    ) -> None:
        self.balancer: LoadBalancer = balancer
        self._plans = balancer
        self._document = document
        self._make = planned
        self._registry = registry
        self._flags = flags

    @property
    def first_file(self) -> Path | None:
        """The plan's document."""
        return self._document.path

    def follow(self) -> bool:
        """Take up the plan where it was replaced."""
        newer = self._document.newer()
        if newer is None:
            return False
        assert isinstance(newer.fields, PlanDocument)
        self._plans.redeploy(self._make(newer.fields), newer.fields.corrections)
        self._document = newer
        return True

    def proposed(self, decision: Decision) -> Proposed:
        """Return the plan for the corrected machine; its document says what that was corrected by."""
        assert self._plans.proposed is not None
        document = {
            **self._plans.proposed.to_dict(),
            "corrections": {part: asdict(factors) for part, factors in self._plans.proposed_corrections.items()},
        }
        llama_cpp: Any = document["llama_cpp"]
        flags = tuple(llama_cpp["argv"]) if llama_cpp else ()
        return Proposed(flags, {self._document.path: _encoded(document), **self._flags.written(flags)})

    def apply(self, decision: Decision) -> list[Path]:
        """Replace the plan's document and its registry, and the flags where a file is named."""
        assert self._plans.proposed is not None
        files: dict[Path, Content] = dict(self.proposed(decision).files)
        if self._registry is not None:
            files[self._registry] = partial(_with_plan, self._plans.proposed, self._registry)
        written = replace_keeping(files, {self._document.path: self._document.content, **self._flags.expected})
        content = files[self._document.path]
        assert isinstance(content, bytes)
        self._document = replace(self._document, content=content)
        self._flags.note(files)
        self._plans.adopt()
        return written


def _deploy_suggested(balancer: LoadBalancer, decision: Decision) -> None:
    assert balancer.deployment is not None
    balancer.deploy(balancer.deployment.with_counts([count for _, count in decision.suggested or ()]))


def _with_plan(plan: Plan, registry: Path, former: bytes | None) -> bytes:
    """Return a registry's bytes with a plan in it."""
    from pshard.registry.errors import RegistryError
    from pshard.registry.write import registry_with

    try:
        return registry_with(plan, former)
    except RegistryError as error:
        message = f"{registry}: not written: {error}"
        raise RegistryError(message) from error


def _encoded(document: object) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"
