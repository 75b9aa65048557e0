"""What the rebalancer is told, what it knows of each shard, and what it decides: plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pshard.errors import SettingError
from pshard.rebalance.deployment import Move, Phase

if TYPE_CHECKING:
    from pshard._core import LatencyEstimate, LatencyShift

# A level says nothing before this many latencies.
MIN_LEVEL = 8
# Of what is kept of every shard, and of what is counted.
MAX_WINDOW, MAX_SAMPLES = 1 << 16, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceConfig:
    """When to move, and when not to. The first three are the load balancer document's.

    Attributes
    ----------
    min_samples : int
        Valid passes of every shard before anything is decided.
    imbalance_threshold : float
        Slowest over fastest shard, per layer or against prediction: more is a reason to move without a shift.
    eval_interval_secs : float
        A decision stands for so long, unless a shift is found meanwhile.
    window : int
        Latencies that estimates are made from.
    warm_up : int
        First latencies of a shard that are set aside.
    half_life : float
        Latencies after which one counts half in the decayed average.
    false_alarms_per_window : float
        Proposals that noise alone may cause, per window of all shards.
    min_gain : float
        Speed-up less 1 below which nothing is moved.
    max_break_even_secs : float
        A move that takes longer to pay back is not proposed.
    hysteresis : float
        To go back to what was left, staying must first have cost this many times what the move costs.
    silent_passes : int
        A shard that is behind the others by more has stopped reporting.
    retry_secs : float
        A device that was left without layers is tried again after so long: twice as long where that failed before.
    """

    min_samples: int = 100
    imbalance_threshold: float = 2.0
    eval_interval_secs: float = 60.0
    window: int = 256
    warm_up: int = 10
    half_life: float = 32.0
    false_alarms_per_window: float = 1e-4
    min_gain: float = 0.1
    max_break_even_secs: float = 600.0
    hysteresis: float = 1.0
    silent_passes: int = 100
    retry_secs: float = 3600.0

    def __post_init__(self) -> None:
        ranges = {
            "min_samples": (MIN_LEVEL, MAX_SAMPLES),
            "imbalance_threshold": (1.0, math.inf),
            "eval_interval_secs": (0.0, math.inf),
            "window": (32, MAX_WINDOW),
            "warm_up": (0, MAX_SAMPLES),
            "half_life": (1.0, math.inf),
            "false_alarms_per_window": (1e-12, 0.1),
            "min_gain": (0.0, math.inf),
            "max_break_even_secs": (0.0, math.inf),
            "hysteresis": (0.0, math.inf),
            "silent_passes": (0, MAX_SAMPLES),
            "retry_secs": (0.0, math.inf),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and least <= value <= most):
                limit = "" if most == math.inf else f", and at most {most:g}"
                message = f"{name}={value!r} must be a number of at least {least:g}{limit}."
                raise SettingError(message)


@dataclass(frozen=True, slots=True)
class ShardMetrics:
    """What is known of one shard; microseconds, over both phases unless a phase is named.

    Attributes
    ----------
    shard : str
    layers : int
        0 also where shards are not of layers.
    forwards : int
        Valid passes since the last reset.
    total_latency_us, min_latency_us, max_latency_us, last_latency_us : float
    average_latency_us, average_latency_per_layer_us : float
        0 without passes; per layer 0 without layers.
    last_update_unix_s : float or None
    phases : mapping from phase to _core.LatencyEstimate
        Those with latencies. Medians and averages are factors: seconds over expected seconds.
    median_us : mapping from phase to float
        Of the window, in microseconds, at the tables' token count.
    shifts : mapping from phase to _core.LatencyShift
        The last one of each.
    invalid, warm_up, clock_backwards : int
        What was set aside, and how often the clock went back.
    """

    shard: str
    layers: int
    forwards: int
    total_latency_us: float
    min_latency_us: float
    max_latency_us: float
    last_latency_us: float
    last_update_unix_s: float | None
    phases: Mapping[Phase, LatencyEstimate]
    median_us: Mapping[Phase, float]
    shifts: Mapping[Phase, LatencyShift]
    invalid: int
    warm_up: int
    clock_backwards: int

    @property
    def average_latency_us(self) -> float:
        """Mean of all valid passes."""
        return self.total_latency_us / self.forwards if self.forwards else 0.0

    @property
    def average_latency_per_layer_us(self) -> float:
        """The same over the layers."""
        return self.average_latency_us / self.layers if self.layers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What `evaluate` found.

    Attributes
    ----------
    kind : {"balanced", "rebalance", "insufficient_data"}
    reason : str
        A sentence.
    current : tuple of (str, int)
        Layers of each shard.
    suggested : tuple of (str, int) or None
        Of the best assignment, proposed or not; None where none was looked for, and for a plan.
    phase : {"decode", "prefill"} or None
        Whose latencies decided.
    factors : mapping from shard to (float, float, float)
        Estimate, lower and upper bound of seconds over expected seconds.
    estimated_speedup : float
        Pass time as it is over that of `suggested`, by the objective; 1 where nothing is suggested.
    certain_speedup : float
        The same, at least, within the bounds.
    single_stream_speedup : float
        Of the sum of all stages.
    move : Move or None
        To `suggested`.
    break_even_seconds : float or None
        Of serving, until the move has paid back; None where its time is not known.
    notes : tuple of str
        What was wrong with the input, in sentences.
    """

    kind: Literal["balanced", "rebalance", "insufficient_data"]
    reason: str
    current: tuple[tuple[str, int], ...]
    suggested: tuple[tuple[str, int], ...] | None = None
    phase: Phase | None = None
    factors: Mapping[str, tuple[float, float, float]] | None = None
    estimated_speedup: float = 1.0
    certain_speedup: float = 1.0
    single_stream_speedup: float = 1.0
    move: Move | None = None
    break_even_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the audit log and ``--json`` have them."""
        document = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        document["current"] = [{"shard": name, "layers": count} for name, count in self.current]
        document["suggested"] = self.suggested and [{"shard": name, "layers": n} for name, n in self.suggested]
        document["factors"] = self.factors and {
            name: {"factor": value, "low": low, "high": high} for name, (value, low, high) in self.factors.items()
        }
        document["move"] = self.move and {
            "layers": self.move.layers,
            "bytes": self.move.n_bytes,
            "bytes_to": self.move.bytes_to,
            "over": {
                name: {
                    "link": way.link,
                    "bytes_per_second": way.bytes_per_second if math.isfinite(way.bytes_per_second) else None,
                }
                for name, way in self.move.ways.items()
            },
            "seconds": self.move.seconds,
        }
        return document
