"""The audit log of the rebalancer: JSON lines that let a person see why each decision was made."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pshard.rebalance.balancer import Decision, LoadBalancer, ShardMetrics

SCHEMA_VERSION = 1


class AuditLog:
    """A file that is only ever appended to, a line at a time. A line that cannot be written is counted, not raised.

    Parameters
    ----------
    path : path-like or None
        None: nothing is written.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self.lost = 0

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one line.

        Parameters
        ----------
        event : {"start", "decision", "input", "applied", "followed", "undone", "stop"}
        fields : mapping
            Plain values.
        """
        if self.path is None:
            return
        line = {"schema_version": SCHEMA_VERSION, "time_unix_s": time.time(), "event": event, **fields}
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # One write of one line: several writers do not mix theirs.
                os.write(descriptor, msgspec.json.encode(line) + b"\n")
            finally:
                os.close(descriptor)
        except OSError:
            self.lost += 1

    def decision(self, decision: Decision, balancer: LoadBalancer) -> None:
        """Append a decision with what is known of every shard."""
        shards = [describe_shard(metrics) for metrics in balancer.metrics.values()]
        self.write("decision", {**decision.to_dict(), "shards": shards})


def describe_shard(metrics: ShardMetrics) -> dict[str, Any]:
    """Return what is known of a shard as plain values: docs/rebalancing.md has the fields."""
    return {
        "shard": metrics.shard,
        "layers": metrics.layers,
        "forwards": metrics.forwards,
        "total_latency_us": metrics.total_latency_us,
        "min_latency_us": metrics.min_latency_us,
        "max_latency_us": metrics.max_latency_us,
        "last_latency_us": metrics.last_latency_us,
        "average_latency_us": metrics.average_latency_us,
        "average_latency_per_layer_us": metrics.average_latency_per_layer_us,
        "last_update_unix_s": metrics.last_update_unix_s,
        "invalid": metrics.invalid,
        "warm_up": metrics.warm_up,
        "clock_backwards": metrics.clock_backwards,
        "phases": {
            phase: {
                "samples": estimate.samples,
                "median_us": metrics.median_us[phase],
                "average_us": metrics.median_us[phase] * estimate.average / estimate.median,
                "factor": estimate.median,
                "relative_error": estimate.error,
                "relative_spread": estimate.scale,
                "correlation": estimate.correlation,
                "outliers": estimate.outliers,
            }
            for phase, estimate in metrics.phases.items()
        },
        "shifts": {
            phase: {"factor": shift.factor, "began_unix_s": shift.began_unix_s, "found_unix_s": shift.found_unix_s}
            for phase, shift in metrics.shifts.items()
        },
    }
