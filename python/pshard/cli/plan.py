"""``pshard plan``: what goes where, how fast it will be, and the line to launch it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._options import FILE, read_size, with_cache_types
from pshard.cli._output import Output, with_output
from pshard.quantities import MIB

if TYPE_CHECKING:
    from pshard.machine.machine import Machine
    from pshard.model.model import Model

CHOOSES_LAYERS = "pshard chooses what lies on the GPU, and prints the flags for it"
# llama.cpp's options that would decide what a plan decides: names, takes a value, why not.
REFUSED = (
    (("-ngl", "--gpu-layers", "--n-gpu-layers"), True, f"{CHOOSES_LAYERS}; leave it out, or limit the memory (--vram)"),
    (("-ot", "--override-tensor"), True, f"{CHOOSES_LAYERS}; leave it out, or force a --strategy"),
    (("-ncmoe", "--n-cpu-moe"), True, f"{CHOOSES_LAYERS}; leave it out, or force a --strategy"),
    (("-cmoe", "--cpu-moe"), False, f"{CHOOSES_LAYERS}; leave it out, or force a --strategy"),
    (("-ncffn", "--n-cpu-ffn"), True, f"{CHOOSES_LAYERS}; leave it out, or force a --strategy"),
    (("-ts", "--tensor-split"), True, "a plan is for one GPU, so there is nothing to split; leave it out"),
    (("-sm", "--split-mode"), True, "a plan is for one GPU, so there is nothing to split; leave it out"),
    (("-nkvo", "--no-kv-offload"), False, "the KV cache follows its layers, which pshard places; leave it out"),
)


def refused(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `REFUSED`, hidden: each ends in a usage error that says why."""

    def refuse(context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is not None and value is not False:
            reason = next(reason for names, _, reason in REFUSED if parameter.opts == list(names))
            message = f"{parameter.opts[0]}: {reason}."
            raise click.UsageError(message, context)

    for names, takes_value, _ in REFUSED:
        kind: dict[str, Any] = {"metavar": "N"} if takes_value else {"is_flag": True}
        command = click.option(*names, hidden=True, expose_value=False, callback=refuse, **kind)(command)
    return command


@click.command("plan")
@click.argument("model", required=False)
@click.option("-m", "--model", "model_option", metavar="MODEL", help="The same as the argument.")
@click.option(
    "-c", "--ctx-size", "n_ctx", type=click.IntRange(0), metavar="N",
    help="Context over all sequences; 0: the training length.  [default: 8192, or the training length if smaller]",
)  # fmt: skip
@click.option(
    "-b", "--batch-size", "n_batch", type=click.IntRange(1), metavar="N",
    help="n_batch.  [default: 2048, or more where a larger micro-batch pays]",
)  # fmt: skip
@click.option(
    "-ub", "--ubatch-size", "n_ubatch", type=click.IntRange(1), metavar="N",
    help="n_ubatch for stock llama.cpp.  [default: 512 for --fit, chosen for the stock launch line]",
)  # fmt: skip
@click.option(
    "-np", "--parallel", "n_seq_max", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Parallel sequences.",
)  # fmt: skip
@click.option(
    "-fa", "--flash-attn", "flash_attn", type=click.Choice(["on", "off", "auto"]), default="on", show_default=True,
    help="Flash attention; auto is planned as on.",
)  # fmt: skip
@with_cache_types
@click.option(
    "-t", "--threads", "n_threads", type=click.IntRange(1), metavar="N",
    help="CPU threads.  [default: one per physical core]",
)  # fmt: skip
@click.option(
    "--vram", "vram_bytes", callback=read_size, metavar="SIZE",
    help="VRAM to use: 12G (GiB), 12288M; 0 plans for the CPU alone.  [default: what is free less --fit-target]",
)  # fmt: skip
@click.option(
    "-mva", "--max-vram-alloc", "vram_mib", type=click.IntRange(0), metavar="MIB",
    help="The same in MiB, as the pshard runtime takes it; 0: what is free less --fit-target.",
)  # fmt: skip
@click.option(
    "-fitt", "--fit-target", "fit_target_mib", type=click.IntRange(0), default=1024, show_default=True, metavar="MIB",
    help="VRAM that stays free where no budget is given.",
)  # fmt: skip
@click.option(
    "--pshard-tier-max", "tier_max", type=click.IntRange(1), metavar="N",
    help="Largest token tier.  [default: the larger of -b and 16384, at most -c]",
)  # fmt: skip
@click.option(
    "--prompt", "prompt_tokens", type=click.IntRange(0), metavar="N",
    help="Workload: tokens of the prompt; 2048, or what the context holds.",
)  # fmt: skip
@click.option(
    "--generate", "generate_tokens", type=click.IntRange(0), metavar="N",
    help="Workload: tokens generated; 256, or half the context if that is less.",
)  # fmt: skip
@click.option(
    "--draft", "n_draft", type=click.IntRange(0), default=0, metavar="N",
    help="Tokens that a draft proposes: adds a tier of N + 1.",
)  # fmt: skip
@click.option(
    "--machine", metavar="NAME|FILE",
    help="A reference machine (`pshard machines`) or a profile; none: no speeds, bytes alone decide.",
)  # fmt: skip
@click.option("--gpu", metavar="NAME", help="A reference GPU, like rtx-3060-12g.")
@click.option("--ram", metavar="SIZE@BANDWIDTH", help="Host memory, like 64G@51GB/s.")
@click.option("--pcie", metavar="GENxLANES", help="The GPU's slot, like 3x8.")
@click.option("--cpu", metavar="CORES|HOST", help="Like 8c, or a reference host.")
@click.option(
    "--strategy", envvar="PSHARD_STRATEGY", show_envvar=True, metavar="NAME",
    help="Only this strategy, by its name in the pull request.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=FILE, metavar="FILE",
    help="Registry to write.  [default: beside the model; a catalogue model has none]",
)  # fmt: skip
@click.option("--no-registry", is_flag=True, help="Write no registry.")
@refused
@with_output
def command(
    out: Output,
    /,
    *,
    model: str | None,
    model_option: str | None,
    n_ctx: int | None,
    flash_attn: str,
    vram_bytes: int | None,
    vram_mib: int | None,
    fit_target_mib: int,
    machine: str | None,
    gpu: str | None,
    ram: str | None,
    pcie: str | None,
    cpu: str | None,
    strategy: str | None,
    output: Path | None,
    no_registry: bool,
    **settings: Any,
) -> None:
    """Plan where every byte of MODEL lives, and how fast it will be.

    MODEL is the path of a GGUF, or a name that `pshard models` lists. Without --machine and --gpu, this machine is
    planned for. Exit code 3 means that nothing fits. The plan of a file is written to the registry beside it, which the
    pshard runtime reads.
    """
    from pshard.cli._plan_tables import print_plan
    from pshard.machine.machine import load_machine
    from pshard.model.model import read_model
    from pshard.planning.planner import plan
    from pshard.registry.write import write_plan

    if (model is None) == (model_option is None):
        message = "give one model: MODEL or -m MODEL." if model is None else "MODEL and -m both name a model; give one."
        raise click.UsageError(message)
    if vram_mib is not None and vram_bytes is not None:
        message = "--vram and -mva both give the budget; give one."
        raise click.UsageError(message)
    if no_registry and output is not None:
        message = "-o names a registry, --no-registry forbids one; give one of them."
        raise click.UsageError(message)
    if vram_mib:
        vram_bytes = vram_mib * MIB

    loaded = read_model(model or model_option or "")
    chosen = load_machine(
        machine, gpu=gpu, ram=ram, pcie=pcie, cpu=cpu, vram_bytes=vram_bytes, n_threads=settings["n_threads"]
    )
    result = plan(
        loaded,
        chosen,
        n_ctx=_trained_context(loaded) if n_ctx == 0 else n_ctx,
        vram_bytes=vram_bytes,
        flash_attn=flash_attn != "off",
        fit_target_bytes=fit_target_mib * MIB,
        strategy=strategy.upper() if strategy else None,
        **settings,
    )
    if flash_attn == "auto":
        out.warn("-fa auto is planned as on: what llama.cpp decides depends on its build.")
    if machine is None and gpu is None:
        _say_which_gpu(out, chosen)
    document = result.to_dict()
    warnings = [*result.warnings]
    if not no_registry:
        written = write_plan(result, output)
        warnings += written.warnings
        document |= {"registry_path": None if written.path is None else str(written.path), "warnings": warnings}
    for warning in warnings:
        out.warn(warning)
    out.json(document)
    print_plan(out, document)
    if document["registry_path"] is not None:
        out.line(f"\nRegistry: {document['registry_path']}")


def _trained_context(model: Model) -> int | None:
    """Context for ``-c 0``; None, which is the default, where the file does not tell."""
    return model.hyperparameters.n_ctx_train or None


def _say_which_gpu(out: Output, machine: Machine) -> None:
    """Say that a stored profile is of GPU 0 where there are more; a detected machine has said so in its notes."""
    from pshard import _core

    n_gpus = len(_core.query_gpus().devices)
    if n_gpus > 1 and machine.reference is None:
        out.warn(f"{n_gpus} GPUs found; this plans for GPU 0.")
