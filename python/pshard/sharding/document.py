"""The JSON document of ``pshard shard``; docs/shard.md is its manual.

``shards`` (``shard_id``, ``layer_range``, ``device``, ``memory_bytes``), ``strategy``, ``total_memory_bytes`` and
``estimated_tokens_per_sec`` are the fields of ai-hwaccel's sharding plan.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pshard.sharding.types import Priced, Shard, ShardingPlan

SCHEMA_VERSION = 1
EMPTY = {"kind": "data_parallel", "num_replicas": 0}


def describe(plan: ShardingPlan) -> dict[str, object]:
    """Return the document of a plan."""
    chosen, users = plan.chosen, plan.parameters.users
    return {
        "schema_version": SCHEMA_VERSION,
        "model": plan.model.name,
        "architecture": plan.model.architecture,
        "n_layer": plan.model.n_layer,
        "parameters": asdict(plan.parameters),
        "basis": plan.basis or None,
        **(_empty() if chosen is None else _plan(chosen, users)),
        "reason": plan.reason,
        "alternatives": [_plan(priced, users) for priced in plan.others],
        "refused": [asdict(entry) for entry in plan.refused],
        "heuristic": {
            "label": "heuristic: rules and constants of ai-hwaccel 1.2.0, nothing measured",
            "strategy": plan.heuristic.strategy,
            "num_devices": plan.heuristic.n_devices,
            "total_memory_bytes": plan.heuristic.total_memory_bytes,
            "estimated_tokens_per_sec": plan.heuristic.tokens_per_second,
        },
        "warnings": list(plan.warnings),
        "notes": list(plan.notes),
    }


def _empty() -> dict[str, object]:
    return {
        "shards": [],
        "strategy": EMPTY,
        "total_memory_bytes": 0,
        "estimated_tokens_per_sec": None,
        "fits_in_memory": False,
        "description": "no device",
        "exact": True,
        "tokens_per_sec_one_stream": None,
        "tokens_per_sec_all_users": None,
        "micro_batches": 0,
        "prompt_seconds": None,
        "pipeline_bubble": None,
        "all_reduce_seconds": None,
    }


def _plan(priced: Priced, users: int) -> dict[str, object]:
    stream, everyone = priced.stream_tokens_per_second, priced.users_tokens_per_second
    return {
        "shards": [_shard(i, shard) for i, shard in enumerate(priced.shards)],
        "strategy": _strategy(priced),
        "total_memory_bytes": priced.total_memory_bytes,
        "estimated_tokens_per_sec": stream if users == 1 else everyone,
        "fits_in_memory": all(shard.left_bytes >= 0 for shard in priced.shards),
        "description": priced.description,
        "exact": priced.exact,
        "tokens_per_sec_one_stream": stream,
        "tokens_per_sec_all_users": everyone,
        "micro_batches": priced.micro_batches,
        "prompt_seconds": priced.prompt_seconds,
        "pipeline_bubble": priced.bubble,
        "all_reduce_seconds": priced.all_reduce_seconds,
    }


def _strategy(priced: Priced) -> dict[str, object]:
    sizes = {
        "none": {},
        "pipeline_parallel": {"num_stages": priced.n_stages},
        "tensor_parallel": {"num_devices": priced.n_ranks},
        "tpu_tensor_parallel": {"num_devices": priced.n_ranks},
        "tensor_and_pipeline_parallel": {"num_stages": priced.n_stages, "num_devices": priced.n_ranks},
        "data_parallel": {
            "num_replicas": priced.n_replicas, "num_stages": priced.n_stages, "num_devices": priced.n_ranks,
        },
    }  # fmt: skip
    return {"kind": priced.strategy, **sizes[priced.strategy]}


def _shard(index: int, shard: Shard) -> dict[str, object]:
    return {
        "shard_id": index,
        "layer_range": [shard.first_layer, shard.last_layer],
        "device": shard.device.name,
        "memory_bytes": shard.memory_bytes,
        "host": shard.device.host,
        "replica": shard.replica,
        "stage": shard.stage,
        "rank": shard.rank,
        "weight_share": shard.weight_share,
        "has_head": shard.has_head,
        "weights_bytes": shard.weights_bytes,
        "cache_bytes": shard.cache_bytes,
        "compute_bytes": shard.compute_bytes,
        "capacity_bytes": shard.capacity_bytes,
        "left_bytes": shard.left_bytes,
        "seconds": shard.seconds,
        "transfer_seconds": shard.transfer_seconds,
    }
