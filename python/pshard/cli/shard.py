"""``pshard shard``: a model over many devices or machines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._cluster import read_devices, with_cluster
from pshard.cli._options import COUNT, with_cache_types
from pshard.cli._output import Output, format_bytes, with_output
from pshard.errors import EngineError, NoFeasiblePlanError

if TYPE_CHECKING:
    from pshard.sharding.engine_launch import Launch
    from pshard.sharding.types import Priced, ShardingPlan


@click.command("shard")
@click.argument("model", required=False)
@click.option("--params", metavar="N", help="Instead of a model: its number of parameters, like 70B.")
@click.option(
    "--quant", default="q4", show_default=True, metavar="TYPE", help="Quantisation for --params: q4, q8, f16."
)
@with_cluster
@click.option("--users", type=COUNT, default=1, show_default=True, metavar="N", help="Users at once.")
@click.option("--max-seq-len", type=COUNT, default=4096, show_default=True, metavar="N", help="Tokens of a user.")
@click.option(
    "--micro-batches", type=COUNT, metavar="N",
    help="Groups that the users go through a pipeline in.  [default: the number that serves best]",
)  # fmt: skip
@click.option("-ub", "--ubatch-size", "n_ubatch", type=COUNT, default=512, show_default=True, metavar="N",
              help="Tokens of a prompt's micro-batch.")  # fmt: skip
@with_cache_types
@click.option("--emit", type=click.Choice(["llama-rpc", "vllm"]), help="Also print the lines to launch an engine with.")
@with_output
def command(
    out: Output,
    /,
    *,
    model: str | None,
    params: str | None,
    quant: str,
    device_list: str | None,
    cluster_file: Path | None,
    ram: str | None,
    emit: str | None,
    **parameters: Any,
) -> None:
    """Shard a model over devices: every strategy, and the best.

    \b
    pshard shard llama-3.3-70b:Q4_K_M --cluster cluster.toml --users 16
    pshard shard --params 70B --quant q4 --devices 4xrtx-4090-24g

    Every pipeline, tensor and data parallel strategy that is possible is priced with the memory of each device, its
    speed and the links. For one user the speed of a single stream decides, for more the tokens of all together. Exit
    code 3 where nothing fits.
    """
    from pshard.model.model import read_model
    from pshard.sharding.engine_launch import launch
    from pshard.sharding.scaled_model import model_of_size
    from pshard.sharding.sharding import plan_sharding
    from pshard.sharding.types import ShardParameters

    if (model is None) == (params is None):
        message = "give a model, or --params with --quant."
        raise click.UsageError(message)
    subject = read_model(model) if model is not None else model_of_size(str(params), quant)
    plan = plan_sharding(
        subject,
        read_devices(out, device_list, cluster_file, ram),
        ShardParameters(**parameters),
    )
    for warning in plan.warnings:
        out.warn(warning)
    lines, refusal = None, None
    if emit is not None and plan.chosen is not None:
        try:
            lines = launch(plan, emit, _file(model, subject.name, emit))
        except EngineError as error:
            refusal = error  # of the engine; the plan stands
    out.json(plan.to_dict() | ({} if lines is None else {"launch": _launch_document(lines)}))
    _print(out, plan)
    if lines is not None:
        _print_launch(out, lines)
    if refusal is not None:
        raise refusal
    if plan.chosen is None:
        message = "there is no device that can be used; the plan is empty (data parallel, 0 replicas)"
        raise NoFeasiblePlanError(message, subject.tensor_bytes)


def _file(model: str | None, name: str, engine: str) -> str:
    """Name what an engine is to load: the file as it was given, else a published one's usual name."""
    if model is not None and model.endswith(".gguf"):
        return model
    return f"{name.replace(':', '-')}.gguf" if engine == "llama-rpc" else name.partition(":")[0]


def _launch_document(lines: Launch) -> dict[str, object]:
    return {
        "engine": lines.engine,
        "lines": [
            {"host": line.host, "environment": dict(line.environment), "argv": list(line.argv)} for line in lines.lines
        ],
        "notes": list(lines.notes),
    }


def _print_launch(out: Output, lines: Launch) -> None:
    out.line()
    for note in lines.notes:
        out.line(note)
    for line in lines.lines:
        environment = "".join(f"{name}={value} " for name, value in line.environment)
        out.line(f"{line.host}$ {environment}{shlex.join(line.argv)}")


def _print(out: Output, plan: ShardingPlan) -> None:
    model, parameters = plan.model, plan.parameters
    users = "one user" if parameters.users == 1 else f"{parameters.users} users"
    out.line(f"model     {model.name} ({model.architecture}), {model.n_layer} layers, {model.n_parameters / 1e9:.1f} B")
    out.line(f"load      {users} of {parameters.max_seq_len} tokens; KV {parameters.type_k}")
    for note in plan.notes:
        out.line(f"note      {note}")
    out.line(f"strategy  {plan.reason}")
    if plan.chosen is None:
        return
    out.line()
    _print_shards(out, plan.chosen)
    out.line()
    _print_strategies(out, plan)


def _print_shards(out: Output, priced: Priced) -> None:
    total = sum((s.seconds or 0.0) + (s.transfer_seconds or 0.0) for s in priced.shards if s.rank == s.replica == 0)
    rows: list[list[object]] = []
    for index, shard in enumerate(priced.shards):
        share = None
        if shard.seconds is not None and shard.transfer_seconds is not None and total:
            share = f"{100 * (shard.seconds + shard.transfer_seconds) / total:.0f} %"
        part = "" if shard.n_ranks == 1 else f"{100 * shard.weight_share:.0f} % of each"
        rows.append(
            [
                index,
                shard.device.name,
                shard.device.product or shard.device.kind,
                *([shard.replica] if priced.n_replicas > 1 else []),
                f"{shard.first_layer}-{shard.last_layer}",
                part,
                format_bytes(shard.weights_bytes),
                format_bytes(shard.cache_bytes),
                format_bytes(shard.compute_bytes),
                share,
                format_bytes(shard.left_bytes),
            ]
        )
    copies = ["copy"] if priced.n_replicas > 1 else []
    columns = [
        "shard",
        "device",
        "what",
        *copies,
        "layers",
        "part",
        "weights",
        "KV",
        "compute",
        "share of time",
        "left",
    ]
    out.table(columns, rows)


def _print_strategies(out: Output, plan: ShardingPlan) -> None:
    rows: list[list[object]] = []
    for priced in [] if plan.chosen is None else [plan.chosen, *plan.others]:
        rows.append(
            [
                priced.description,
                format_bytes(priced.total_memory_bytes),
                _number(priced.stream_tokens_per_second),
                _number(priced.users_tokens_per_second),
                None if priced.prompt_seconds is None else f"{priced.prompt_seconds:.3g} s",
                None if priced.bubble is None else f"{100 * priced.bubble:.0f} %",
            ]
        )
    rule = plan.heuristic
    what = f"heuristic *: {rule.strategy.replace('_', ' ')}, {rule.n_devices} devices"
    rows.append([what, format_bytes(rule.total_memory_bytes), _number(rule.tokens_per_second), None, None, None])
    out.table(["strategy", "memory", "tokens/s: one user", "all users", "prompt", "stages idle"], rows)
    out.line("* by ai-hwaccel's rules and constants; nothing of it is priced.")
    if plan.basis:
        out.line(f"Speeds rest on {plan.basis} figures.")
    for entry in plan.refused:
        out.line(f"not {entry.strategy}: {entry.reason}")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
