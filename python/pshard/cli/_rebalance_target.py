"""What ``pshard rebalance`` is given: a map, a plan or layers, made into what can be rebalanced."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._cluster import read_devices

if TYPE_CHECKING:
    from pshard.cli._output import Output
    from pshard.cluster.cluster import Cluster
    from pshard.model.model import Model
    from pshard.planning.planner import Plan
    from pshard.rebalance.balancer import RebalanceConfig
    from pshard.rebalance.deployed_document import DeployedDocument, Pipeline, PlanDocument
    from pshard.rebalance.targets import FlagsFile, Target


def read_target(
    out: Output,
    current: str | None,
    layers: str | None,
    metrics: str,
    config: RebalanceConfig,
    flags_file: Path | None,
    registry: Path | None,
    *,
    model_name: str | None,
    mmproj: str | None,
    device_list: str | None,
    cluster_file: Path | None,
    ram: str | None,
    one_stream: bool,
    layer_bytes: int | None,
    link_rate: float | None,
    **machine: str | None,
) -> Target:
    """Return what is deployed as something to rebalance: `layers`, or the document `current`.

    Parameters
    ----------
    out : Output
    current, layers : str or None
        Path of a document, or layers by hand; one of them.
    metrics : str
        Where latencies come from: an engine's counters only tell of a plan.
    config : RebalanceConfig
    flags_file, registry : Path or None
        That a proposal is written to.
    model_name, mmproj, device_list, cluster_file, ram, one_stream, layer_bytes, link_rate, machine
        Options of the command.
    """
    from pshard.model.model import read_model
    from pshard.rebalance.deployed_document import (
        PlanDocument,
        ShardDocument,
        parse_layers,
        pipeline_of,
        read_document,
    )
    from pshard.rebalance.sources import is_engine
    from pshard.rebalance.targets import FlagsFile, MapTarget, PipelineTarget

    document = None if current is None else read_document(current)
    fields = None if document is None else document.fields
    if is_engine(metrics) and not isinstance(fields, PlanDocument):
        message = (
            f"{metrics} tells of an engine as a whole, not of shards, so it cannot say which of them is slow. Give a "
            "plan (`pshard plan --json`) to correct its machine with, or per-shard latencies (JSON lines)."
        )
        raise click.UsageError(message)
    flags = FlagsFile(flags_file)
    if fields is None or isinstance(fields, ShardDocument):
        pipeline = parse_layers(layers or "") if fields is None else pipeline_of(fields, current)
        model = None if model_name is None else read_model(model_name)
        has_cluster = device_list is not None or cluster_file is not None
        cluster = read_devices(out, device_list, cluster_file, ram) if has_cluster else None
        return PipelineTarget(
            pipeline,
            config,
            flags,
            document,
            objective="latency" if one_stream else "throughput",
            n_not_loaded=0 if model is None else model.n_layer_nextn,
            **_moving(pipeline, model, cluster, layer_bytes, link_rate),
        )
    if model_name is None:
        message = "-m is missing: layers of a map or plan are moved by their sizes, which the model's file tells."
        raise click.UsageError(message)
    assert document is not None
    model = read_model(model_name)
    if isinstance(fields, PlanDocument):
        return _plan_target(out, document, fields, model, metrics, config, flags, registry, ram=ram, **machine)
    from pshard.memory.projector import read_projector
    from pshard.rebalance.map_deployment import MapDeployment

    mapped = partial(
        MapDeployment,
        model=model,
        cluster=read_devices(out, device_list, cluster_file, ram),
        projector=None if mmproj is None else read_projector(mmproj),
    )
    return MapTarget(document, mapped, config, flags)


def _moving(
    pipeline: Pipeline, model: Model | None, cluster: Cluster | None, layer_bytes: int | None, link_rate: float | None
) -> dict[str, Any]:
    """Return what is known of moving layers by hand: bytes by size or from the model, links by rate or of a cluster."""
    from pshard.rebalance.deployment import Way, ways_from

    known: dict[str, Any] = {"layer_bytes": layer_bytes}
    if layer_bytes is None and model is not None:
        known["layer_bytes"] = [layer.n_bytes for layer in model.layers]
        known["last_bytes"] = model.head_bytes
    names = [name for name, _ in pipeline.shards]
    if link_rate is not None:
        known["ways"] = (Way("the link", link_rate),) * len(names)
    elif cluster is not None:
        known["ways"] = ways_from(cluster, cluster.hosts[0].name, names)
    return known


def _plan_target(
    out: Output,
    document: DeployedDocument,
    fields: PlanDocument,
    model: Model,
    metrics: str,
    config: RebalanceConfig,
    flags: FlagsFile,
    registry: Path | None,
    **machine: Any,
) -> Target:
    import msgspec

    from pshard.machine.machine import load_machine
    from pshard.planning.planner import DEFAULT_N_BATCH, plan
    from pshard.rebalance.plan_balancer import ENGINE, PlanBalancer, corrected
    from pshard.rebalance.sources import is_engine, shard_names
    from pshard.rebalance.targets import PlanTarget
    from pshard.registry import registry_path

    profiled = load_machine(machine.pop("machine"), **machine)

    def planned(given: PlanDocument) -> Plan:
        """Plan again what was planned, for the machine as it was corrected then."""
        settings = msgspec.structs.asdict(given.workload)
        if given.workload.n_batch == DEFAULT_N_BATCH:
            settings["n_batch"] = None  # it was left open
        made = plan(
            model,
            corrected(profiled, given.corrections, given.machine.n_threads),
            vram_bytes=given.budget_bytes,
            n_threads=given.machine.n_threads,
            tier_max=given.tiers[-1].batch_size,
            **settings,
        )
        if made.to_dict()["llama_cpp"] != given.llama_cpp:
            out.warn(
                f"{document.path} was planned for another machine or with other settings; it is compared with what "
                "these give."
            )
        return made

    shards = [ENGINE] if is_engine(metrics) else shard_names(metrics) or ["gpu0", "host"]
    parts = model.header.parts
    if registry is None and parts and registry_path(parts[0]).exists():
        registry = registry_path(parts[0])
    balancer = PlanBalancer(planned(fields), shards, profiled=profiled, corrections=fields.corrections, config=config)
    return PlanTarget(document, planned, balancer, registry, flags)
