"""Memory beside llama.cpp's buffers: what driver and libraries take, and what grows while a server runs.

None of it is in the exact bytes. Each figure is the upper end of what its source says, and stands in the report with
that source. What the engine's own rules give (temporary buffers, checkpoints) is computed from them; the rest are
published measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.memory.report import Allowance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pshard import _core
    from pshard.launch.line import LaunchLine
    from pshard.model.model import Model

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure and where it stands."""

    n_bytes: int
    source: str


CUDA_CONTEXT = Published(
    555 * MIB,
    "measured on an RTX PRO 6000, and 107 MiB on an RTX 4060 Ti: it grows with the GPU's multiprocessors "
    "(github.com/ggml-org/llama.cpp/pull/23604)",
)
CUBLAS_WORKSPACE = Published(
    32 * MIB,
    "cuBLAS documentation of cublasSetWorkspace(): 32 MiB on Hopper, 4 MiB before (docs.nvidia.com/cuda/cublas)",
)
CUDA_GRAPH_NODE = Published(
    64 * KIB,
    "64 KiB for each kernel of a pass: 362 MB at 500 kernels, 458 MB at 2000 "
    "(forums.developer.nvidia.com/t/increasing-memory-footprint-with-large-task-graphs/244901)",
)
POOL_SOURCE = (
    "activations of one product as 8-bit blocks (36 bytes for 32 values, rows padded to 512) or as f16, "
    "rules of ggml/src/ggml-cuda (mmq.cu, ggml-cuda.cu)"
)
STREAM_K_BYTES = 12 * MIB  # partial tiles of 64 KiB for each of 188 multiprocessors, the most that a card has


def device_allowances(
    model: Model, placement: _core.Placement, context: _core.ContextParameters, n_tokens: int, names: tuple[str, ...]
) -> list[Allowance]:
    """List the allowances of one model on each GPU, without the CUDA context, which a process has once.

    Parameters
    ----------
    model : Model
    placement : _core.Placement
    context : _core.ContextParameters
    n_tokens : int
        Tokens of the micro-batch.
    names : tuple of str
        Of the placement's GPUs.
    """
    from pshard import _core

    demands = _core.kernel_demand(model.core, placement, context, n_tokens)
    return [
        allowance
        for name, demand in zip(names, demands, strict=True)
        if demand.n_kernels
        for allowance in (
            Allowance(
                where=name,
                what="CUDA graph",
                n_bytes=demand.n_kernels * CUDA_GRAPH_NODE.n_bytes,
                source=CUDA_GRAPH_NODE.source,
            ),
            Allowance(
                where=name,
                what="temporary buffers of kernels",
                n_bytes=demand.pool_bytes + STREAM_K_BYTES,
                source=POOL_SOURCE,
            ),
        )
    ]


def process_allowances(names: tuple[str, ...]) -> list[Allowance]:
    """List the CUDA context and library workspace of each GPU that a process uses."""
    return [
        allowance
        for name in names
        for allowance in (
            Allowance(where=name, what="CUDA context", n_bytes=CUDA_CONTEXT.n_bytes, source=CUDA_CONTEXT.source),
            Allowance(
                where=name, what="cuBLAS workspace", n_bytes=CUBLAS_WORKSPACE.n_bytes, source=CUBLAS_WORKSPACE.source
            ),
        )
    ]


def server_allowances(line: LaunchLine, model: Model, context: _core.ContextParameters) -> Iterator[Allowance]:
    """List host memory that a server fills as prompts come in.

    Parameters
    ----------
    line : LaunchLine
    model : Model
    context : _core.ContextParameters
    """
    if not line.is_server or not model.hyperparameters.traits.causal:
        return
    if line.prompt_cache_mib > 0:
        yield Allowance(
            where="Host",
            what="cache of past prompts, at most",
            n_bytes=line.prompt_cache_mib * MIB,
            source="llama-server's --cache-ram (0 turns it off)",
            on_demand=True,
        )
    each = _checkpoint_bytes(model, context)
    if line.n_context_checkpoints > 0 and each:
        yield Allowance(
            where="Host",
            what=f"{line.n_context_checkpoints} context checkpoints for each of {line.n_seq_max} slots, at most",
            n_bytes=line.n_context_checkpoints * line.n_seq_max * each,
            source="llama-server's --ctx-checkpoints: sliding-window cells and recurrent state of one sequence each",
            on_demand=True,
        )


def _checkpoint_bytes(model: Model, context: _core.ContextParameters) -> int:
    """Bytes of what one sequence cannot be rewound without: window layers and recurrent states."""
    from pshard import _core

    cells = _core.cache_cells(model.core, context)
    n_bytes = 0
    for layer in model.core.layers:
        n_bytes += _core.state_bytes(layer.parameters)
        if layer.parameters.window and cells.window < cells.full:
            n_bytes += cells.window * _core.kv_bytes_per_cell(layer.parameters, context.type_k, context.type_v)
    return n_bytes
