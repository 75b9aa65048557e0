"""What a sharding plan is asked for, and what it is: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster, Device
    from pshard.model.model import Model

StrategyKind = Literal[
    "none",
    "pipeline_parallel",
    "tensor_parallel",
    "tensor_and_pipeline_parallel",
    "data_parallel",
    "tpu_tensor_parallel",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardParameters:
    """What a plan makes room for.

    Attributes
    ----------
    max_seq_len : int
        Tokens of one user's context.
    users : int
        Users at once. Of one the speed of a single stream counts, of more the tokens of all together.
    micro_batches : int or None
        Groups that the users are split into, to fill a pipeline; None: the number that serves best.
    n_ubatch : int
        Tokens of a prompt's micro-batch.
    type_k, type_v : str
        ggml types of the cache.
    """

    max_seq_len: int = 4096
    users: int = 1
    micro_batches: int | None = None
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One device's part.

    Attributes
    ----------
    device : Device
    first_layer, last_layer : int
        Its layers, both inclusive.
    replica, stage, rank : int
        Which copy of the model, which stage of it, and which rank of the stage's tensor-parallel group.
    n_ranks : int
        Ranks of that group.
    weight_share : float
        Share of the layers' weights that the rank keeps.
    has_head : bool
    weights_bytes, cache_bytes, compute_bytes, capacity_bytes : int
    seconds : float or None
        Of its stage for one token of one stream, with all-reduces; None without speeds.
    transfer_seconds : float or None
        Until the stage's input has arrived.
    """

    device: Device
    first_layer: int
    last_layer: int
    replica: int
    stage: int
    rank: int
    n_ranks: int
    weight_share: float
    has_head: bool
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    capacity_bytes: int
    seconds: float | None
    transfer_seconds: float | None

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cache_bytes + self.compute_bytes

    @property
    def left_bytes(self) -> int:
        """What it leaves of the device's capacity."""
        return self.capacity_bytes - self.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One strategy with its price.

    Attributes
    ----------
    strategy : str
    description : str
        In words, with sizes.
    shards : tuple of Shard
    n_stages, n_ranks, n_replicas : int
        Pipeline stages, ranks of the largest tensor-parallel group, copies of the model.
    users_of_replicas : tuple of int
        Users of each copy.
    stream_tokens_per_second, users_tokens_per_second : float or None
        Of one user alone, and of all users together.
    prompt_seconds : float or None
        A prompt of half the context, in micro-batches through the pipeline.
    bubble : float or None
        Share of that time in which the pipeline is not full.
    all_reduce_seconds : float or None
        Of one token of one stream.
    micro_batches : int
        Groups that the users go through the pipeline in.
    exact : bool
        No other assignment of contiguous layers to these groups is better; False where buffers overflowed at first.
    """

    strategy: StrategyKind
    description: str
    shards: tuple[Shard, ...]
    n_stages: int
    n_ranks: int
    n_replicas: int
    users_of_replicas: tuple[int, ...]
    stream_tokens_per_second: float | None
    users_tokens_per_second: float | None
    prompt_seconds: float | None
    bubble: float | None
    all_reduce_seconds: float | None
    micro_batches: int
    exact: bool

    @property
    def total_memory_bytes(self) -> int:
        """All shards together."""
        return sum(shard.memory_bytes for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A strategy that was not possible, and why."""

    strategy: StrategyKind
    reason: str
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heuristic:
    """What ai-hwaccel's ``plan_sharding`` says: rules and constants, no measurement.

    Attributes
    ----------
    strategy : str
    n_devices : int
    total_memory_bytes : int
    tokens_per_second : float or None
    """

    strategy: str
    n_devices: int
    total_memory_bytes: int
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingPlan:
    """The result of `plan_sharding`.

    Attributes
    ----------
    model : Model
    cluster : Cluster
    parameters : ShardParameters
    chosen : Priced or None
        None: the empty plan, where there is no device at all.
    others : tuple of Priced
        The other strategies that are possible, best first.
    refused : tuple of Refused
    heuristic : Heuristic
    reason : str
        Why this one, with the runner-up.
    basis : str
        Where the seconds come from; empty without speeds.
    warnings, notes : tuple of str
    """

    model: Model
    cluster: Cluster
    parameters: ShardParameters
    chosen: Priced | None
    others: tuple[Priced, ...]
    refused: tuple[Refused, ...]
    heuristic: Heuristic
    reason: str
    basis: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the document that ``pshard shard --json`` prints: see docs/shard.md."""
        from pshard.sharding.document import describe

        return describe(self)
