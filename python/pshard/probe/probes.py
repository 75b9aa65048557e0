"""What is measured of a machine: which probes, in which order, and with how much time each.

The probes themselves are in C++ (`_core.CpuProbe`; those of a GPU are listed in `gpu_work`). The order is by what
decides most, so that a run which ends early keeps the figures that matter.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

from pshard.errors import SettingError
from pshard.machine.profile import Sample
from pshard.probe.gpu_work import GpuWork, gpu_works_for
from pshard.probe.works import Attention, Peak, ProbeFailed, Product, Read, RecurrentScan, Result, Start, Storage, Task
from pshard.weight_types import COMMON, cpu_types, gpu_types, interleaved_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pshard import _core
    from pshard.machine.profile import Layout, Scan
    from pshard.model.model import Model
    from pshard.probe.works import Work

# A minute and six, less what a slow machine may overrun in its last probe, and the start of the program.
QUICK_SECONDS, FULL_SECONDS = 50.0, 335.0
QUICK_BATCHES, FULL_BATCHES = (1, 512, 16), (1, 512, 16, 64, 4)
# Rows per expert: a prompt of 512 tokens gives 32 to each of 128 experts, of which 8 are used. From 8 on K types are
# multiplied in panels.
QUICK_EXPERT_BATCHES, FULL_EXPERT_BATCHES = (1, 32), (1, 32, 8, 128, 4, 16)

# Of a feed-forward layer, large enough that starting the product is no part of its seconds.
N_ROWS, N_COLUMNS = 4096, 4096
EXPERT_ROWS, EXPERT_COLUMNS, EXPERTS_USED = 768, 2048, 8
# More rows of weights make a product of a large batch longer and its rate hardly another: enough that rounding the
# activations, which is done once for all rows, is a small part.
ROWS_OF_LARGE_BATCHES, ROWS_PER_THREAD, LARGE_BATCH = 2048, 128, 16
# Kernels multiply columns by so many at least.
KERNEL_COLUMNS = 32
N_HEADS, N_KV_HEADS, HEAD_SIZE = 32, 8, 128
# Cells of the cache: of a shallow one the key heads stay in a core's cache while all their query heads pass.
QUICK_DEPTHS, FULL_DEPTHS = (4096,), (4096, 1024, 16384)
# Query tokens. From 64 on llama.cpp attends in tiles, below token by token, so the rate jumps between 32 and 64. Over a
# quantised cache every token goes by itself, however many there are.
ATTENTION_BATCHES = (1, 512, 32, 64)
QUANTISED_CACHES, QUANTISED_BLOCK, QUANTISED_BATCHES = ("Q8_0", "Q4_0"), 32, (1, 8)
# Every token reads all cells of its head again: from a core's second-level cache, where they fit.
QUICK_QUANTISED_DEPTHS = (4096, 1024)
# Scans by kind: heads, outputs of a head, columns of the state for each. Of Qwen3-Next, Granite 4 and Falcon Mamba.
SCAN_SHAPES: dict[Scan, tuple[int, int, int]] = {
    "delta_net": (32, 128, 128),
    "mamba2": (48, 64, 128),
    "mamba": (8192, 1, 16),
}
# Tokens: one finds its state in memory, the second and all others in a cache.
SCAN_BATCHES = (1, 64)
STORAGE_BYTES, STORAGE_CHUNK_BYTES = 1 << 30, 16 << 20


class Prober(Protocol):
    """What measures. Raises ProbeFailed where a figure cannot be trusted at all."""

    def measure(self, work: Work, budget_seconds: float) -> Result:
        """Repeat `work` until its spread is small enough, or its seconds are over."""


class CpuProber:
    """The probes of the C++ core, on this machine's CPU.

    Parameters
    ----------
    cpus : sequence of int
        One worker is pinned to each.
    max_bytes : int
        Memory that all probes together may take.
    path : str
        Instructions to use, one of `_core.cpu_paths()`; the fastest by default.
    """

    def __init__(self, cpus: Sequence[int], *, max_bytes: int, path: str = "") -> None:
        from pshard import _core

        self.probe = _core.CpuProbe(list(cpus), max_bytes=max_bytes, path=path)
        self.path = self.probe.path

    def measure(self, work: Work, budget_seconds: float) -> Result:
        """As `Prober.measure`."""
        from pshard import _core

        policy = _core.MeasurePolicy(budget_seconds=budget_seconds)
        try:
            return result_of(work, self._found(work, policy))
        except (_core.ProbeError, ValueError) as error:  # a ValueError is a shape that has no kernel
            raise ProbeFailed(str(error)) from error

    def _found(self, work: Work, policy: _core.MeasurePolicy) -> _core.ProbeResult:
        from pshard import _core

        probe = self.probe
        match work:
            case Read():
                return probe.read(n_threads=work.n_threads, policy=policy)
            case Start():
                return probe.op_cost(n_threads=work.n_threads, policy=policy).op
            case Peak():
                return probe.peak(n_threads=work.n_threads, policy=policy).bytes
            case Product() if work.n_used:
                return probe.experts(
                    work.type,
                    work.layout,
                    n_rows=work.n_rows,
                    n_columns=work.n_columns,
                    batch=work.batch,
                    n_used=work.n_used,
                    n_threads=work.n_threads,
                    policy=policy,
                )
            case Product():
                return probe.product(
                    work.type,
                    work.layout,
                    n_rows=work.n_rows,
                    n_columns=work.n_columns,
                    batch=work.batch,
                    n_threads=work.n_threads,
                    policy=policy,
                )
            case Attention():
                return probe.attention(
                    n_heads=work.n_heads,
                    n_kv_heads=work.n_kv_heads,
                    head_size=work.head_size,
                    depth=work.depth,
                    batch=work.batch,
                    n_threads=work.n_threads,
                    policy=policy,
                    key_type=work.type,
                    value_type=work.type,
                )
            case RecurrentScan():
                return probe.scan(
                    work.kind,
                    n_heads=work.n_heads,
                    n_rows=work.n_rows,
                    n_columns=work.n_columns,
                    batch=work.batch,
                    n_threads=work.n_threads,
                    policy=policy,
                )
            case Storage():
                return _core.probe_storage(
                    work.path, n_bytes=work.n_bytes, chunk_bytes=STORAGE_CHUNK_BYTES, policy=policy
                )
            case _:
                msg = f"{work} is no probe of the CPU"
                raise ProbeFailed(msg)


def result_of(work: Work, found: _core.ProbeResult) -> Result:
    """Convert what a probe of the core returned."""
    time = found.time
    sample = Sample(
        median_seconds=time.median_seconds,
        minimum_seconds=time.minimum_seconds,
        spread=time.spread,
        drift=time.drift,
        count=time.count,
        is_settled=time.is_settled,
        is_noisy=time.is_noisy,
    )
    return Result(work, sample, found.n_bytes, found.n_flop, found.is_cold, found.note)


def quick_tasks(n_threads: int, gpu_works: Sequence[GpuWork] = ()) -> list[Task]:
    """List what decides most: reading, decode and prefill of the common types.

    Parameters
    ----------
    n_threads : int
        CPU threads, at least 1.
    gpu_works : sequence of GpuWork
        Probes of a GPU, as `gpu_work` lists them; none by default.

    Returns
    -------
    list of Task
        Their budgets sum to two thirds of `QUICK_SECONDS`; setting up takes the rest.
    """
    works: list[Work] = [Start(n_threads), Read(n_threads), Peak(n_threads)]
    works += _products(COMMON, "plain", QUICK_BATCHES, n_threads)
    works += _attention(QUICK_DEPTHS, n_threads)
    works += _products(_interleaved(COMMON), "interleaved", QUICK_BATCHES, n_threads)
    works += _experts(COMMON[:1], "plain", QUICK_EXPERT_BATCHES, n_threads)
    works += _experts(_interleaved(COMMON)[:1], "interleaved", QUICK_EXPERT_BATCHES, n_threads)
    works += _quantised_attention(QUICK_QUANTISED_DEPTHS, n_threads)
    works += [Read(count) for count in thread_counts(n_threads)[:1] if count < n_threads]
    works += _scans(SCAN_SHAPES, n_threads)
    return _within(_in_turns(works, gpu_works), QUICK_SECONDS)


def full_tasks(n_threads: int, storage_path: str = "", gpu_works: Sequence[GpuWork] = ()) -> list[Task]:
    """List all that a profile holds.

    Parameters
    ----------
    n_threads : int
        CPU threads, at least 1.
    storage_path : str
        A large file, whose file system is measured too; none by default.
    gpu_works : sequence of GpuWork
        As of `quick_tasks`.

    Returns
    -------
    list of Task
        Their budgets sum to two thirds of `FULL_SECONDS`.
    """
    works: list[Work] = [Start(n_threads), Read(n_threads), Peak(n_threads)]
    works += _products(COMMON, "plain", FULL_BATCHES, n_threads)
    works += _attention(FULL_DEPTHS, n_threads)
    works += _products(_interleaved(COMMON), "interleaved", FULL_BATCHES, n_threads)
    works += _experts(COMMON, "plain", FULL_EXPERT_BATCHES, n_threads)
    works += _experts(_interleaved(COMMON), "interleaved", FULL_EXPERT_BATCHES, n_threads)
    works += _quantised_attention(FULL_DEPTHS, n_threads)
    rarer = [name for name in cpu_types() if name not in COMMON]
    layouts: dict[Layout, list[str]] = {"plain": rarer, "interleaved": _interleaved(rarer)}
    for layout, names in layouts.items():
        works += _products(names, layout, QUICK_BATCHES, n_threads)
        works += _experts(names, layout, QUICK_EXPERT_BATCHES, n_threads)
    works += [Read(count) for count in thread_counts(n_threads) if count < n_threads]
    works += _scans(SCAN_SHAPES, n_threads)
    works += [Storage(storage_path, STORAGE_BYTES)] if storage_path else []
    return _within(_in_turns(works, gpu_works), FULL_SECONDS)


def tasks_for(
    model: Model, n_threads: int, seconds: float, storage_path: str = "", lock_limit_bytes: int | None = None
) -> tuple[list[Task], list[str]]:
    """List the shapes and types of one model.

    Parameters
    ----------
    model : Model
    n_threads : int
        CPU threads, at least 1.
    seconds : float
        What all of it may take.
    storage_path : str
        The model's file, to measure the file system that it lies on.
    lock_limit_bytes : int, optional
        Measure a GPU too, and page-lock so much host memory; no GPU by default.

    Returns
    -------
    list of Task
        For each type the shape that most of its bytes have, the types with most bytes first.
    list of str
        Types of the model that have no native kernel, on the CPU or on a GPU that is measured.

    Raises
    ------
    SettingError
        None of its types can be measured.
    """
    from pshard.model.model import type_name

    shapes: dict[tuple[bool, str], dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for tensor in model.tensors:
        is_table = tensor.name.startswith("token_embd.") and not model.tied_head  # looked up, not multiplied
        columns = tensor.shape[0]
        if len(tensor.shape) in (2, 3) and not is_table and columns % KERNEL_COLUMNS == 0:
            rows = tensor.shape[1]
            shapes[len(tensor.shape) == 3, type_name(tensor.type)][rows, columns] += tensor.n_bytes
    missing = sorted({name for _, name in shapes if name not in cpu_types()})
    if lock_limit_bytes is not None:
        missing += sorted({f"{name} on a GPU" for _, name in shapes if name in cpu_types() and name not in gpu_types()})
    by_bytes = sorted(shapes, key=lambda kind: (-sum(shapes[kind].values()), kind))
    wanted = [kind for kind in by_bytes if kind[1] in cpu_types()]
    if not wanted:
        msg = (
            f"{model.name}: no native kernel for its types ({', '.join(missing)}); measure the common ones "
            "(`pshard profile`), and import the engine's own figures (`pshard profile import`)"
        )
        raise SettingError(msg)
    works: list[Work] = [Start(n_threads), Read(n_threads), Peak(n_threads)]
    on_gpu: list[tuple[str, int, int, int, int]] = []
    for routed, name in wanted:
        rows, columns = max(shapes[routed, name], key=lambda shape: (shapes[routed, name][shape], shape))
        experts = (model.hyperparameters.n_expert, max(1, model.hyperparameters.n_expert_used)) if routed else (0, 0)
        if name in gpu_types():
            on_gpu.append((name, rows, columns, *experts))
        layouts: tuple[Layout, ...] = ("plain", "interleaved") if name in interleaved_types() else ("plain",)
        for layout in layouts:
            if routed:
                works += _experts([name], layout, FULL_EXPERT_BATCHES, n_threads, rows, columns, experts[1])
            else:
                works += _products([name], layout, FULL_BATCHES, n_threads, rows, columns)
    attending = [layer.parameters for layer in model.layers if layer.parameters.head_dim_v > 0]
    heads = attending[len(attending) // 2] if attending else None
    if heads is not None:
        of_head = heads.n_head, heads.n_head_kv, heads.head_dim_k
        works += _attention(FULL_DEPTHS, n_threads, *of_head)
        works += _quantised_attention(FULL_DEPTHS, n_threads, *of_head)
    works += _scans(_scan_shapes(model), n_threads)
    works += [Storage(storage_path, STORAGE_BYTES)] if storage_path else []
    gpu_works: list[GpuWork] = []
    if lock_limit_bytes is not None:
        shape = (heads.n_head, heads.n_head_kv, heads.head_dim_k) if heads is not None else None
        gpu_works = gpu_works_for(on_gpu, shape, lock_limit_bytes)
    return _within(_in_turns(works, gpu_works), seconds), missing


def thread_counts(n_threads: int) -> list[int]:
    """Thread counts that reading is measured at: powers of two up to `n_threads`, and itself."""
    counts = {1 << power for power in range(n_threads.bit_length())}
    return sorted({count for count in counts if count < n_threads} | {n_threads})


def _interleaved(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in interleaved_types()]


def _products(
    types: Iterable[str],
    layout: Layout,
    batches: Sequence[int],
    n_threads: int,
    n_rows: int = N_ROWS,
    n_columns: int = N_COLUMNS,
) -> list[Work]:
    """Products of all types at one batch, then at the next."""
    most = max(ROWS_OF_LARGE_BATCHES, ROWS_PER_THREAD * n_threads)
    return [
        Product(
            type=name,
            layout=layout,
            n_rows=min(n_rows, most) if batch > LARGE_BATCH else n_rows,
            n_columns=n_columns,
            batch=batch,
            n_threads=n_threads,
        )
        for batch in batches
        for name in types
    ]


def _experts(
    types: Iterable[str],
    layout: Layout,
    batches: Sequence[int],
    n_threads: int,
    n_rows: int = EXPERT_ROWS,
    n_columns: int = EXPERT_COLUMNS,
    n_used: int = EXPERTS_USED,
) -> list[Work]:
    return [
        Product(
            type=name,
            layout=layout,
            n_rows=n_rows,
            n_columns=n_columns,
            batch=batch,
            n_threads=n_threads,
            n_used=n_used,
        )
        for batch in batches
        for name in types
    ]


def _attention(
    depths: Sequence[int],
    n_threads: int,
    n_heads: int = N_HEADS,
    n_kv_heads: int = N_KV_HEADS,
    head_size: int = HEAD_SIZE,
    batches: Sequence[int] = ATTENTION_BATCHES,
    kind: str = "F16",
) -> list[Work]:
    """All batches at each depth, and one token with one query head per key head: so reading is told from arithmetic."""
    shapes = [(n_heads, batch) for batch in batches]
    if n_heads > n_kv_heads:
        shapes.insert(1, (n_kv_heads, 1))
    return [
        Attention(
            n_heads=heads,
            n_kv_heads=n_kv_heads,
            head_size=head_size,
            depth=depth,
            batch=batch,
            n_threads=n_threads,
            type=kind,
        )
        for depth in depths
        for heads, batch in shapes
    ]


def _quantised_attention(
    depths: Sequence[int],
    n_threads: int,
    n_heads: int = N_HEADS,
    n_kv_heads: int = N_KV_HEADS,
    head_size: int = HEAD_SIZE,
) -> list[Work]:
    """Attention over caches of all quantised types that there are kernels for, and whose blocks divide the heads."""
    works: list[Work] = []
    for kind in QUANTISED_CACHES if head_size % QUANTISED_BLOCK == 0 else ():
        works += _attention(depths, n_threads, n_heads, n_kv_heads, head_size, QUANTISED_BATCHES, kind)
    return works


def _scans(shapes: Mapping[Scan, tuple[int, int, int]], n_threads: int) -> list[Work]:
    return [
        RecurrentScan(kind=kind, n_heads=heads, n_rows=rows, n_columns=columns, batch=batch, n_threads=n_threads)
        for kind, (heads, rows, columns) in shapes.items()
        for batch in SCAN_BATCHES
    ]


def _scan_shapes(model: Model) -> dict[Scan, tuple[int, int, int]]:
    """Shapes of the states that a model's layers scan, by kind."""
    from pshard._core import Mixer

    kinds: dict[Mixer, Scan] = {
        Mixer.mamba: "mamba",
        Mixer.mamba2: "mamba2",
        Mixer.mamba_heads: "mamba2",
        Mixer.gated_delta: "delta_net",
        Mixer.channel_delta: "delta_net",
    }
    inner, heads = model.hyperparameters.ssm_inner_size, model.hyperparameters.ssm_time_step_rank
    norms = {tensor.name: tensor.shape[0] for tensor in model.tensors if tensor.name.endswith(".ssm_norm.weight")}
    found: dict[Scan, tuple[int, int, int]] = {}
    for index, layer in enumerate(layer.parameters for layer in model.layers):
        kind = kinds.get(layer.mixer) if layer.scan_state > 0 else None
        if kind == "delta_net" and (size := norms.get(f"blk.{index}.ssm_norm.weight")):
            found[kind] = layer.scan_state // size**2, size, size
        elif kind == "mamba2":
            found[kind] = heads, inner // heads, layer.scan_state // inner
        elif kind == "mamba":
            found[kind] = inner, 1, layer.scan_state // inner
    return found


def _in_turns(works: Sequence[Work], gpu_works: Sequence[GpuWork]) -> list[Work]:
    """Mix both lists evenly, each in its order, so that a run which ends early has the most important of both."""
    placed = [
        (index / len(kind), which, work)
        for which, kind in enumerate((works, gpu_works))
        for index, work in enumerate(kind)
    ]
    return [work for _, _, work in sorted(placed, key=lambda place: place[:2])]


def _within(works: Sequence[Work], seconds: float) -> list[Task]:
    """Share two thirds of the seconds out evenly: the rest is for setting up, which no budget counts."""
    return [Task(work, 2.0 / 3.0 * seconds / len(works)) for work in works]
