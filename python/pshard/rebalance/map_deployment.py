"""A map as the rebalancer sees it: its devices, its tables, and `pshard map`'s own way to another one."""

from __future__ import annotations

import dataclasses
from copy import copy
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pshard.errors import SettingError
from pshard.mapping.device_map import check_parameters
from pshard.mapping.llama_map import llama_launch
from pshard.mapping.problem import MapProblem
from pshard.mapping.search import find_map
from pshard.mapping.solvers import DoesNotFitError, fastest, repaired
from pshard.rebalance.deployment import PHASES, Deployment, Phase, Tables, ways_from

if TYPE_CHECKING:
    import numpy.typing as npt

    from pshard.cluster.cluster import Cluster
    from pshard.mapping.problem import Layout
    from pshard.mapping.types import DeviceMap
    from pshard.memory.projector import Projector
    from pshard.model.model import Model
    from pshard.rebalance.deployed_document import MapDocument


class MapDeployment:
    """A map that layers can be moved in.

    Attributes
    ----------
    deployment : Deployment
        Assignments in it are found as `pshard map` finds them: with the whole memory model, exactly. The head stays
        with the first or the last layers, as it is.

    Parameters
    ----------
    document : MapDocument
    model : Model
    cluster : Cluster
        The same devices as the map's.
    projector : Projector, optional
        Where the map has one.

    Raises
    ------
    SettingError
        Document, model and cluster are not of one map, a parameter is outside its range, or a device has no speed.
    """

    def __init__(
        self, document: MapDocument, model: Model, cluster: Cluster, *, projector: Projector | None = None
    ) -> None:
        load = document.load
        parameters = dataclasses.replace(document.parameters, paged_block=document.cache.block_tokens)
        check_parameters(parameters, "decode")
        self._head = document.map.head
        self._problems: dict[Phase, MapProblem] = {
            phase: MapProblem(model, cluster, parameters, phase, load, projector, allow_swap=parameters.allow_swap)
            for phase in PHASES
        }
        problem = self._problems["decode"]
        mapped = {device.name: device.n_layer for device in document.map.devices}
        names = tuple(device.name for device in problem.devices)
        if set(mapped) != set(names) or sum(mapped.values()) != model.n_layer:
            message = (
                f"the map gives {sum(mapped.values())} layers to {', '.join(mapped)}; {model.name} has {model.n_layer} "
                f"layers, and the devices are {', '.join(names)}: give the model and the devices of the map."
            )
            raise SettingError(message)
        at_first = self._head == "first"
        # The host that has the file; its CPU has the layers already.
        source = problem.cpu.name if problem.cpu is not None else problem.host
        self._tables = {phase: self._make_tables(phase) for phase in PHASES}
        self.deployment = Deployment(
            shards=names,
            counts=tuple(mapped[name] for name in names),
            tables=self._tables,
            objective="throughput" if load == "pipelined" else "latency",
            layer_bytes=problem.bytes.layers,
            capacity_bytes=np.array(problem.capacity, dtype=np.int64),
            first_bytes=problem.bytes.head if at_first else None,
            last_bytes=None if at_first else problem.bytes.head,
            ways=ways_from(cluster, source, names),
        )

    def rebalanced(self, phase: Phase, factors: npt.NDArray[np.float64]) -> DeviceMap:
        """Return the map for devices that take `factors` times as long, shape (D,); times in it are corrected ones.

        Raises
        ------
        NoFeasiblePlanError
            Nothing fits.
        """
        problem = self._corrected(phase, self._tables[phase].corrected(factors))
        found = find_map(problem)
        layout = self._layout(problem)
        return dataclasses.replace(
            found,
            layers=problem.layer_map(layout),
            llama_cpp=llama_launch(problem, layout),
            exact=not layout.repaired,
        )

    def _solve(self, phase: Phase, tables: Tables) -> tuple[int, ...] | None:
        try:
            layout = self._layout(self._corrected(phase, tables))
        except DoesNotFitError:
            return None
        counts = [0] * len(self.deployment.shards)
        for run in layout.runs:
            counts[run.device] = run.end - run.begin
        return tuple(counts)

    def _corrected(self, phase: Phase, tables: Tables) -> MapProblem:
        problem = copy(self._problems[phase])
        assert problem.times is not None
        head = tables.first_seconds if self._head == "first" else tables.last_seconds
        assert head is not None
        problem.times = dataclasses.replace(problem.times, layers=tables.layer_seconds, head=head)
        return problem

    def _layout(self, problem: MapProblem) -> Layout:
        return repaired(problem, fastest(problem, range(len(problem.devices)), [self._head]))

    def _make_tables(self, phase: Phase) -> Tables:
        times = self._problems[phase].times
        assert times is not None
        at_first = self._head == "first"
        arrival = times.embedding_seconds + times.arrival
        return Tables(
            n_tokens=times.n_tokens,
            layer_seconds=times.layers,
            first_seconds=times.head if at_first else None,
            last_seconds=None if at_first else times.head,
            transfer_seconds=times.transfer,
            arrival_seconds=arrival + times.result if at_first else arrival,
            result_seconds=None if at_first else times.result,
            solver=partial(self._solve, phase),
        )
