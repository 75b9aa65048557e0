"""What is measured of a GPU and its link: which probes, and in which order.

`gpu_probes` runs them. They are work like that of `probes`, and share its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pshard.weight_types import COMMON, gpu_types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pshard.machine.profile import Layout

KIB, MIB = 1 << 10, 1 << 20

QUICK_CHUNKS = (4 * MIB, 64 * KIB, 64 * MIB, 512 * KIB)
FULL_CHUNKS = tuple(64 * KIB << power for power in range(13))  # to 256 MiB
BESIDE_CHUNK, SLICE_BYTES, PAGEABLE_CHUNK = 4 * MIB, 2 * MIB, 16 * MIB

QUICK_BATCHES, FULL_BATCHES = (1, 512, 16, 2048), (1, 512, 16, 2048, 64, 8, 4, 2, 8192)
# Of a feed-forward layer of 8 billion parameters; rows of large batches cost time and bring nothing.
N_ROWS, N_COLUMNS, ROWS_OF_LARGE_BATCHES, LARGE_BATCH = 14336, 4096, 4096, 64
N_EXPERTS, EXPERTS_USED, EXPERT_ROWS, EXPERT_COLUMNS = 128, 8, 768, 2048
# Rows per expert that is used at all, as on the CPU.
QUICK_EXPERT_BATCHES, FULL_EXPERT_BATCHES = (1, 32), (1, 32, 4, 128)
MOST_EXPERT_WEIGHTS, MOST_TOKENS = 1 << 29, 8192
N_HEADS, N_KV_HEADS, HEAD_SIZE = 32, 8, 128
# Query tokens: kernels differ between few and many.
QUICK_ATTENTION, FULL_ATTENTION = (1, 512), (1, 512, 16)
DEPTHS = (4096, 1024, 16384)

# Of the memory that is free: other probes hold some of the rest.
LOCK_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class GpuRead:
    """Reads of an array in the GPU's memory; `copies`: copies inside of it."""

    copies: bool = False

    def __str__(self) -> str:
        return "GPU memory, copies inside" if self.copies else "GPU memory"


@dataclass(frozen=True, slots=True)
class GpuStart:
    """What starting a kernel, waiting for an event and synchronising cost: parts ``hop`` and ``synchronise``."""

    def __str__(self) -> str:
        return "start of a kernel"


@dataclass(frozen=True, slots=True)
class Handoff:
    """From the CPU to the GPU, and back: part ``to_cpu``."""

    def __str__(self) -> str:
        return "hand-off between CPU and GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProduct:
    """A matrix product on the GPU: `n_rows` × `n_columns` weights with `n_tokens` rows of activations.

    `n_used` 0: one matrix. Else `n_used` experts for each token, of `n_experts`.
    """

    type: str
    n_rows: int
    n_columns: int
    n_tokens: int
    n_experts: int = 0
    n_used: int = 0

    @property
    def batch(self) -> float:
        """Rows of activations; of each expert that is used at all."""
        return max(1.0, self.n_tokens * self.n_used / self.n_experts) if self.n_used else float(self.n_tokens)

    @property
    def layout(self) -> Layout:
        """GPUs multiply weights as a file holds them."""
        return "plain"

    @property
    def n_threads(self) -> None:
        """No thread count: it is the GPU's."""
        return

    def __str__(self) -> str:
        return f"GPU {'experts, ' if self.n_used else ''}{self.type}, batch {self.batch:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAttention:
    """Fused attention on the GPU of `batch` query tokens over an F16 cache of `depth` tokens."""

    n_heads: int
    n_kv_heads: int
    head_size: int
    depth: int
    batch: int

    @property
    def n_threads(self) -> None:
        """No thread count: it is the GPU's."""
        return

    def __str__(self) -> str:
        return f"GPU attention, batch {self.batch}, {self.depth} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copies between host and GPU, one behind the other; scattered: from all over the host's memory."""

    direction: Literal["up", "down"]
    chunk_bytes: int
    memory: Literal["locked", "pageable"] = "locked"
    is_scattered: bool = False

    def __str__(self) -> str:
        kind = "slices" if self.is_scattered else "copies"
        memory = " of pageable memory" if self.memory == "pageable" else ""
        size = f"{self.chunk_bytes >> 20} MiB" if self.chunk_bytes >= MIB else f"{self.chunk_bytes >> 10} KiB"
        return f"{kind} {self.direction}{memory}, {size}"


@dataclass(frozen=True, slots=True)
class BothWays:
    """Copies up and down, alone and at once: parts ``down``, ``up_beside`` and ``down_beside``."""

    chunk_bytes: int

    def __str__(self) -> str:
        return "copies both ways at once"


@dataclass(frozen=True, slots=True)
class BesideGpu:
    """Copies up and a product of the GPU: parts ``product``, ``copy_beside`` and ``product_beside``."""

    product: GpuProduct
    chunk_bytes: int

    def __str__(self) -> str:
        return "copies while the GPU computes"


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideCpu:
    """Copies up and a product of the CPU that reads its weights: parts as those of `BesideGpu`."""

    type: str
    n_rows: int
    n_columns: int
    batch: int
    chunk_bytes: int

    def __str__(self) -> str:
        return "copies while the CPU computes"


@dataclass(frozen=True, slots=True)
class PageLock:
    """How much host memory the driver page-locks, up to a limit; `n_bytes` of its result."""

    limit_bytes: int

    def __str__(self) -> str:
        return "memory that can be page-locked"


GpuWork = GpuRead | GpuStart | Handoff | GpuProduct | GpuAttention | Copy | BothWays | BesideGpu | BesideCpu | PageLock


def quick_gpu_works(lock_limit_bytes: int) -> list[GpuWork]:
    """List what decides most of a GPU and its link, those first that decide most.

    Parameters
    ----------
    lock_limit_bytes : int
        Host memory that may be page-locked to see how much can be.
    """
    return [
        *_starts(),
        *_copies(QUICK_CHUNKS),
        *_products(COMMON, QUICK_BATCHES),
        *_experts(COMMON[:1], QUICK_EXPERT_BATCHES),
        *_attention(DEPTHS[:1], QUICK_ATTENTION),
        *_contention(),
        PageLock(lock_limit_bytes),
    ]


def full_gpu_works(lock_limit_bytes: int) -> list[GpuWork]:
    """List all that a profile holds of a GPU and its link.

    Parameters
    ----------
    lock_limit_bytes : int
        As of `quick_gpu_works`.
    """
    rarer = [name for name in gpu_types() if name not in COMMON]
    return [
        *_starts(),
        *_copies(FULL_CHUNKS),
        *_products(COMMON, FULL_BATCHES),
        *_experts(COMMON, FULL_EXPERT_BATCHES),
        *_attention(DEPTHS, FULL_ATTENTION),
        *_products(rarer, QUICK_BATCHES),
        *_experts(rarer, QUICK_EXPERT_BATCHES),
        *_contention(),
        GpuRead(copies=True),
        Copy(direction="down", chunk_bytes=PAGEABLE_CHUNK, memory="pageable"),
        PageLock(lock_limit_bytes),
    ]


def gpu_works_for(
    products: Sequence[tuple[str, int, int, int, int]],
    heads: tuple[int, int, int] | None,
    lock_limit_bytes: int,
) -> list[GpuWork]:
    """List the shapes and types of one model on a GPU.

    Parameters
    ----------
    products : sequence of (type, n_rows, n_columns, n_experts, n_used)
        Without experts, the last two are 0.
    heads : (n_heads, n_kv_heads, head_size), optional
        None where the model has no attention.
    lock_limit_bytes : int
        As of `quick_gpu_works`.
    """
    works = [*_starts(), *_copies(QUICK_CHUNKS)]
    for name, rows, columns, n_experts, n_used in products:
        if n_experts:
            works += _experts([name], FULL_EXPERT_BATCHES, rows, columns, n_experts, n_used)
        else:
            works += _products([name], FULL_BATCHES, rows, columns)
    if heads is not None:
        works += _attention(DEPTHS, FULL_ATTENTION, *heads)
    return [*works, *_contention(), PageLock(lock_limit_bytes)]


def _starts() -> list[GpuWork]:
    return [GpuStart(), GpuRead(), Handoff()]


def _copies(chunks: Sequence[int]) -> list[GpuWork]:
    works: list[GpuWork] = [Copy(direction="up", chunk_bytes=chunk) for chunk in chunks]
    works += [Copy(direction="down", chunk_bytes=chunk) for chunk in chunks]
    works += [Copy(direction="up", chunk_bytes=SLICE_BYTES, is_scattered=True)]
    return [*works, Copy(direction="up", chunk_bytes=PAGEABLE_CHUNK, memory="pageable")]


def _contention() -> list[GpuWork]:
    gpu = GpuProduct(type="Q4_K", n_rows=N_ROWS, n_columns=N_COLUMNS, n_tokens=16)
    return [
        BesideCpu(type="Q4_0", n_rows=4096, n_columns=4096, batch=1, chunk_bytes=BESIDE_CHUNK),
        BesideGpu(gpu, BESIDE_CHUNK),
        BothWays(BESIDE_CHUNK),
    ]


def _products(
    types: Sequence[str], batches: Sequence[int], n_rows: int = N_ROWS, n_columns: int = N_COLUMNS
) -> list[GpuWork]:
    return [
        GpuProduct(
            type=name,
            n_rows=min(n_rows, ROWS_OF_LARGE_BATCHES) if batch >= LARGE_BATCH else n_rows,
            n_columns=n_columns,
            n_tokens=batch,
        )
        for batch in batches
        for name in types
    ]


def _experts(
    types: Sequence[str],
    batches: Sequence[int],
    n_rows: int = EXPERT_ROWS,
    n_columns: int = EXPERT_COLUMNS,
    n_experts: int = N_EXPERTS,
    n_used: int = EXPERTS_USED,
) -> list[GpuWork]:
    """Products with experts; of large ones fewer, which take as many rows each."""
    n_experts = max(n_used, min(n_experts, MOST_EXPERT_WEIGHTS // (n_rows * n_columns)))
    return [
        GpuProduct(
            type=name,
            n_rows=n_rows,
            n_columns=n_columns,
            n_tokens=1 if batch == 1 else min(MOST_TOKENS, max(1, batch * n_experts // n_used)),
            n_experts=n_experts,
            n_used=n_used,
        )
        for batch in batches
        for name in types
    ]


def _attention(
    depths: Sequence[int],
    batches: Sequence[int],
    n_heads: int = N_HEADS,
    n_kv_heads: int = N_KV_HEADS,
    head_size: int = HEAD_SIZE,
) -> list[GpuWork]:
    return [
        GpuAttention(n_heads=n_heads, n_kv_heads=n_kv_heads, head_size=head_size, depth=depth, batch=batch)
        for depth in depths
        for batch in batches
    ]
