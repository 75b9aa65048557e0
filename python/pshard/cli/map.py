"""``pshard map``: whole layers on several devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pshard.cli._cluster import parse_image_shape, read_devices, with_cluster
from pshard.cli._options import COUNT, with_cache_types
from pshard.cli._output import Output, format_bytes, with_output

if TYPE_CHECKING:
    from pshard.mapping.types import DeviceMap, Goal, LayerMap, Load


@click.command("map")
@click.argument("model")
@with_cluster
@click.option(
    "--objective", "goal", type=click.Choice(["memory", "decode", "prefill"]), default="memory", show_default=True,
    help="memory: fill devices in order; decode, prefill: the map of least predicted time.",
)  # fmt: skip
@click.option(
    "--load", type=click.Choice(["stream", "pipelined"]),
    help="One pass after the other, or many at once.  [default: stream; for prefill pipelined]",
)  # fmt: skip
@click.option("--max-seq-len", type=COUNT, default=4096, show_default=True, metavar="N", help="Tokens of one sequence.")
@click.option("--max-batch-size", type=COUNT, default=1, show_default=True, metavar="N", help="Sequences at once.")
@click.option("--mmproj", type=click.Path(dir_okay=False), metavar="FILE", help="The model's multimodal projector.")
@click.option(
    "--max-image-shape", callback=parse_image_shape, default="1024x1024", show_default=True, metavar="HxW",
    help="Largest image, beside --mmproj.",
)  # fmt: skip
@click.option("--max-num-images", type=COUNT, default=1, show_default=True, metavar="N", help="Images of one request.")
@click.option("-ub", "--ubatch-size", "n_ubatch", type=COUNT, default=512, show_default=True, metavar="N",
              help="Tokens of a micro-batch.")  # fmt: skip
@with_cache_types
@click.option(
    "-fa", "--flash-attn", "flash_attn", type=click.Choice(["on", "off", "auto"]), default="auto", show_default=True,
    help="Flash attention.",
)  # fmt: skip
@click.option(
    "--paged-attention", "paged_block", type=COUNT, is_flag=False, flag_value=32, metavar="[CELLS]",
    help="Caches in blocks of so many cells (32); contiguous ones where the CPU has layers.",
)  # fmt: skip
@click.option("--allow-swap", is_flag=True, help="The CPU may take more than RAM.")
@with_output
def command(
    out: Output,
    /,
    *,
    model: str,
    device_list: str | None,
    cluster_file: Path | None,
    ram: str | None,
    goal: Goal,
    load: Load | None,
    mmproj: str | None,
    allow_swap: bool,
    **parameters: Any,
) -> None:
    """Give whole layers to devices, in their order, the CPU last.

    \b
    pshard map llama-3.3-70b:Q4_K_M --devices rtx-4090-24g,rtx-3090-24g
    pshard map model.gguf --cluster cluster.toml --objective decode

    What is not part of a layer (head, projector, the embedding where a GPU can look it up) is on the first device. With
    --objective decode or prefill the map is the fastest contiguous one, or near it where memory is tight ("exact" in
    --json says which), and not slower than filling the devices in order, which is shown beside it. Exit code 3 where it
    does not fit.
    """
    from pshard.mapping.device_map import MapParameters, map_model
    from pshard.memory.projector import read_projector
    from pshard.model.model import read_model

    found = map_model(
        read_model(model),
        read_devices(out, device_list, cluster_file, ram),
        parameters=MapParameters(**parameters),
        goal=goal,
        load=load,
        projector=None if mmproj is None else read_projector(mmproj),
        allow_swap=allow_swap,
    )
    for warning in found.warnings:
        out.warn(warning)
    out.json(found.to_dict())
    _print(out, found, model)


def _print(out: Output, found: DeviceMap, file: str) -> None:
    hyper = found.model.hyperparameters
    out.line(f"model       {found.model.name} ({hyper.architecture}), {found.model.n_layer} layers")
    out.line(
        f"parameters  {found.parameters.describe(vision=found.vision)}; KV {found.parameters.type_k}, {_cache(found)}"
    )
    objective = found.goal if found.goal == "memory" else f"{found.goal} ({found.load})"
    out.line(f"objective   {objective}")
    for mapped in found.layers.devices:
        product = mapped.device.product or mapped.device.kind
        out.line(f"{mapped.device.name:<11} {product}, {format_bytes(mapped.free_bytes)} free")
    for note in found.notes:
        out.line(f"note        {note}")
    out.line()
    _table(out, found.layers, found)
    if found.greedy is not None and found.greedy != found.layers:
        out.line()
        out.line(f"Filled in order instead: {_in_words(found.greedy, found)}")
    if found.llama_cpp is not None:
        import shlex

        out.line()
        moved = found.llama_cpp.layers
        if moved.order != found.layers.order or moved.counts != found.layers.counts or moved.head != found.layers.head:
            out.line(f"llama.cpp counts -ngl from the back, the CPU's layers first: {_in_words(moved, found)}")
        name = file if file.endswith(".gguf") else f"{file.replace(':', '-')}.gguf"
        out.line(shlex.join(["llama-server", "-m", name, *found.llama_cpp.argv]))


def _cache(found: DeviceMap) -> str:
    if found.cache_policy == "paged":
        return f"paged, blocks of {found.parameters.paged_block}"
    return "contiguous (a paged cache was asked for)" if found.paged_fallback else "contiguous"


def _table(out: Output, layers: LayerMap, found: DeviceMap) -> None:
    rows: list[list[object]] = []
    for mapped in layers.devices:
        last = mapped.first_layer + mapped.n_layer - 1
        share = None
        if layers.seconds and mapped.seconds is not None:
            share = f"{100 * (mapped.seconds + (mapped.transfer_seconds or 0.0)) / layers.seconds:.0f} %"
        rows.append(
            [
                mapped.device.name,
                f"{mapped.n_layer} ({mapped.first_layer}-{last})" if mapped.n_layer else "none",
                ", ".join(mapped.non_mapped),
                *(
                    format_bytes(n_bytes) if n_bytes else ""
                    for n_bytes in (
                        mapped.weights_bytes + mapped.projector_bytes,
                        mapped.cache_bytes,
                        mapped.compute_bytes,
                    )
                ),
                share,
                format_bytes(mapped.left_bytes),
            ]
        )
    out.table(["device", "layers", "besides", "weights", "KV", "compute", "share of time", "stays free"], rows)
    if layers.seconds is not None:
        out.line()
        out.line(f"{_time(layers, found)} ({found.basis} figures)")


def _time(layers: LayerMap, found: DeviceMap) -> str:
    assert layers.seconds is not None
    assert layers.slowest_seconds is not None
    what = "token" if layers.n_tokens == 1 else f"pass of {layers.n_tokens} tokens"
    text = f"{layers.seconds * 1e3:.2f} ms for a {what} (range {_range(layers)}), slowest device "
    text += f"{layers.slowest_seconds * 1e3:.2f} ms: {layers.tokens_per_second(found.load):.3g} tokens/s"
    return text + (" with the pipeline full" if found.load == "pipelined" else "")


def _range(layers: LayerMap) -> str:
    assert layers.seconds is not None
    spread = layers.spread_seconds or 0.0
    return f"{(layers.seconds - spread) * 1e3:.2f} to {(layers.seconds + spread) * 1e3:.2f}"


def _in_words(layers: LayerMap, found: DeviceMap) -> str:
    by_name = {mapped.device.name: mapped.n_layer for mapped in layers.devices}
    words = ", ".join(f"{name} {by_name[name]}" for name in layers.order)
    head = "head with the first" if layers.head == "first" else "head behind the last"
    return f"{words}; {head}" + ("" if layers.seconds is None else f"; {_time(layers, found)}") + "."
