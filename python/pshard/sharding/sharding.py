"""Sharding a model over many devices: every strategy that is possible, priced, and the best of them.

The strategies are those of ai-hwaccel's sharding planner; what it decides by rules is here decided by the bytes of the
memory model, the seconds of the cost model and the links, for whole layers of real models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.fleet.usable_devices import unavailable
from pshard.launch.spellings import MAX_TOKENS
from pshard.quantities import GIB
from pshard.sharding.problem import ShardProblem
from pshard.sharding.search import ShardSearch
from pshard.sharding.types import Priced, Refused, ShardingPlan, ShardParameters, StrategyKind

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster
    from pshard.model.model import Model

MAX_DEVICES = 1024
# What the document prefers, where nothing is known of speed: ranks share layers only over fast links.
PREFERENCE: tuple[StrategyKind, ...] = (
    "none", "tpu_tensor_parallel", "tensor_parallel", "tensor_and_pipeline_parallel", "pipeline_parallel",
    "data_parallel",
)  # fmt: skip
SLOW_LINKS_PREFERENCE: tuple[StrategyKind, ...] = (
    "none", "tpu_tensor_parallel", "pipeline_parallel", "tensor_and_pipeline_parallel", "tensor_parallel",
    "data_parallel",
)  # fmt: skip


def plan_sharding(model: Model, cluster: Cluster, parameters: ShardParameters | None = None) -> ShardingPlan:
    """Price every strategy and choose.

    Parameters
    ----------
    model : Model
    cluster : Cluster
    parameters : ShardParameters, optional

    Returns
    -------
    ShardingPlan
        With `chosen` None, the empty plan, where no device is available at all.

    Raises
    ------
    SettingError
        A parameter outside its range, or too many devices.
    NoFeasiblePlanError
        No strategy fits; with what each lacks and what would help.
    """
    from pshard.sharding.heuristic import heuristic, prefers_ranks

    parameters = parameters or ShardParameters()
    _check(parameters)
    _check_size(cluster)
    rule = heuristic(model, cluster)
    notes = [*cluster.notes, *unavailable(cluster)]
    if not any(device.available for device in cluster.devices):
        return ShardingPlan(
            model=model, cluster=cluster, parameters=parameters, chosen=None, others=(), refused=(), heuristic=rule,
            reason="There is no device.", basis="", warnings=model.warnings, notes=tuple(notes),
        )  # fmt: skip
    problem = ShardProblem(model, cluster, parameters)
    notes += problem.notes
    search = ShardSearch(problem)
    found, refused = search.run()
    if not found:
        raise _does_not_fit(problem, refused)
    if problem.without_speed:
        notes.append(
            f"No speed is known of {', '.join(problem.without_speed)}: strategies are taken in a fixed order, layers "
            "are cut by memory, and nothing is priced. Give speed = ... in the cluster file."
        )
    order = PREFERENCE if prefers_ranks(cluster, len(problem.pool)) else SLOW_LINKS_PREFERENCE
    ranked = sorted(found, key=lambda priced: _rank(priced, parameters.users, order))
    chosen, *others = ranked
    return ShardingPlan(
        model=model,
        cluster=cluster,
        parameters=parameters,
        chosen=chosen,
        others=tuple(others),
        refused=tuple(refused),
        heuristic=rule,
        reason=_reason(chosen, others, parameters.users),
        basis="" if problem.without_speed else search.basis.name,
        warnings=tuple(model.warnings),
        notes=tuple(notes),
    )


def _check(parameters: ShardParameters) -> None:
    numbers = {
        "max_seq_len": parameters.max_seq_len,
        "users": parameters.users,
        "micro_batches": 1 if parameters.micro_batches is None else parameters.micro_batches,
        "n_ubatch": parameters.n_ubatch,
    }
    for name, value in numbers.items():
        if not 1 <= value <= MAX_TOKENS:
            message = f"{name} is {value}; a whole number from 1 to {MAX_TOKENS} is wanted."
            raise SettingError(message)
    n_ctx = parameters.users * parameters.max_seq_len
    if n_ctx > MAX_TOKENS:
        message = (
            f"{parameters.users} users of {parameters.max_seq_len} tokens make a context of {n_ctx}; engines count to "
            f"{MAX_TOKENS}: fewer users, or shorter contexts."
        )
        raise SettingError(message)


def _check_size(cluster: Cluster) -> None:
    n_devices = len(cluster.accelerators)
    if n_devices > MAX_DEVICES:
        message = f"{n_devices} devices; plans are made for up to {MAX_DEVICES}. Plan a part of them, and repeat it."
        raise SettingError(message)


def _rank(priced: Priced, users: int, order: Sequence[StrategyKind] = PREFERENCE) -> tuple[float, int]:
    speed = priced.stream_tokens_per_second if users == 1 else priced.users_tokens_per_second
    return (-(speed or 0.0), order.index(priced.strategy))


def _reason(chosen: Priced, others: Sequence[Priced], users: int) -> str:
    load = "one stream" if users == 1 else f"{users} users"
    if not others:
        return f"{chosen.description} is the only strategy that is possible."
    second = others[0]
    ours, theirs = (-_rank(priced, users)[0] for priced in (chosen, second))
    if ours == 0.0:
        return f"{chosen.description} comes first in the fixed order, before {second.description}."
    gain = "as fast as" if ours == theirs else f"{ours / theirs:.2f} times"
    runner_up = f"{second.description}, {theirs:.3g}"
    return f"{chosen.description}: {ours:.3g} tokens/s for {load}, {gain} the runner-up ({runner_up})."


def _does_not_fit(problem: ShardProblem, refused: Sequence[Refused]) -> NoFeasiblePlanError:
    lacking = [entry for entry in refused if entry.missing_bytes > 0]
    least = min(lacking, key=lambda entry: entry.missing_bytes, default=None)
    capacities = _capacities(problem)
    why = " ".join([*(f"{entry.strategy}: {entry.reason}." for entry in refused if entry is not least), *problem.notes])
    helps = "a smaller quantisation or a shorter --max-seq-len"
    if problem.parameters.users > 1:
        helps = "a smaller quantisation, a shorter --max-seq-len or fewer --users"
    if least is None:
        message = f"{problem.model.name} cannot be sharded on these devices. {capacities}. {why}"
        return NoFeasiblePlanError(message, 0)
    missing = least.missing_bytes
    message = (
        f"{problem.model.name} does not fit: {missing / GIB:.2f} GiB are missing ({missing} bytes) at the least, for "
        f"{least.strategy}: {least.reason}. {capacities}. {why} It fits with that much more there, or with {helps}."
    )
    return NoFeasiblePlanError(message, missing)


def _capacities(problem: ShardProblem) -> str:
    """Say what each device may hold, runs of equal ones at once."""
    runs = [(n_bytes, [name for name, _ in run]) for n_bytes, run in groupby(problem.capacity.items(), lambda d: d[1])]
    each = (
        f"{names[0]} may hold {n_bytes / GIB:.2f} GiB"
        if len(names) == 1
        else f"{names[0]} to {names[-1]} may hold {n_bytes / GIB:.2f} GiB each"
        for n_bytes, names in runs
    )
    return "; ".join(each)
