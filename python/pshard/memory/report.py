"""What a launch takes of every memory: plain values, and the sums that people ask for."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, to_builtins

SCHEMA_VERSION = 1


class DeviceMemory(Struct, frozen=True, kw_only=True):
    """Bytes in one memory, split as llama.cpp splits them.

    Attributes
    ----------
    name : str
        ``"CUDA0"``, or ``"Host"``.
    free_bytes : int or None
        What is free before the launch; None where nobody said.
    model_bytes, context_bytes, compute_bytes : int
        Weights; KV cache and recurrent state; compute buffers.
    compute_bound_bytes : int
        What the compute buffers do not exceed. Where the report is exact: `compute_bytes`, or what a run takes if
        llama.cpp states less before it.
    """

    name: str
    free_bytes: int | None = None
    model_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0
    compute_bound_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Weights, context and compute."""
        return self.model_bytes + self.context_bytes + self.compute_bytes


class Allowance(Struct, frozen=True, kw_only=True):
    """Memory that llama.cpp's buffers do not show: counted from a published figure, at its upper end.

    Attributes
    ----------
    where : str
        Name of the device, or ``"Host"``.
    what : str
    n_bytes : int
    source : str
        Who published the figure, or the rule that it follows.
    on_demand : bool
        Grows while the program runs and need not be there; what stays free is counted without it.
    """

    where: str
    what: str
    n_bytes: int
    source: str
    on_demand: bool = False


class ProjectorMemory(Struct, frozen=True, kw_only=True):
    """What a multimodal projector takes on its one device.

    Attributes
    ----------
    name, kind : str
        File, and the projector's type in it (``"gemma3"``).
    where : str
        Name of the device, or ``"Host"``.
    model_bytes : int
    compute_bytes : int
        The compute buffer for llama.cpp's warm-up input.
    largest_compute_bytes : int
        What the buffer grows to with the largest image that it accepts, or with several that are encoded together.
    host_bytes, largest_host_bytes : int
        Beside a device's buffer, in host memory (not page-locked): inputs, and what the GPU has no kernel for.
    output_bytes : int
        The embeddings of the largest input, which llama.cpp keeps in host memory while it needs them.
    n_positions, largest_n_positions : int
        Patches (or steps of sound) of the two inputs.
    """

    name: str
    kind: str
    where: str
    model_bytes: int
    compute_bytes: int
    largest_compute_bytes: int
    host_bytes: int
    largest_host_bytes: int
    output_bytes: int
    n_positions: int
    largest_n_positions: int

    def bytes_in(self, name: str) -> int:
        """Bytes in one memory."""
        used = self.model_bytes + self.compute_bytes if name == self.where else 0
        return used + (self.host_bytes if name == "Host" else 0)


class AdapterMemory(Struct, frozen=True, kw_only=True):
    """What an adapter's own weights take; what it adds to the pass is in the model's compute buffers.

    Attributes
    ----------
    name, kind : str
        File, and ``"lora"`` or ``"control vector"``.
    model_bytes : dict
        Name of a memory -> bytes there: each matrix lies with the tensor that it adapts.
    """

    name: str
    kind: str
    model_bytes: dict[str, int]


class MemoryReport(Struct, frozen=True, kw_only=True):
    """What a launch takes of every memory.

    Attributes
    ----------
    model : str
    architecture : str
    engine : str
        The llama.cpp whose rules these are.
    n_ctx_actual : int
        Context over all sequences as llama.cpp pads it.
    n_ctx_sequence : int
        Context that one sequence may use.
    n_seq_max : int
    n_tokens : int
        Tokens of the micro-batch that compute buffers are reserved for.
    flash_attn : bool
        What ``auto`` came to.
    pipeline : bool
        Several GPUs work on several batches at once, with inputs kept four times.
    exact : bool
        All bytes are replayed; False: compute is an estimate of an architecture (or setting) that is not, and
        `compute_bound_bytes` says how far it may be off.
    devices : tuple of DeviceMemory
        One for each free memory that was given, in that order; zeros where a device is not used.
    host : DeviceMemory
    output_bytes : int
        Buffer of logits in host memory; llama.cpp's own table does not list it.
    page_locked_bytes : int
        The part of host memory that the GPU's driver locks.
    mapped_bytes : int
        The part of `host.model_bytes` that is a mapping of the file (rounded out to what lies between), which the
        system may drop and read again.
    allowances : tuple of Allowance
    adapters : tuple of AdapterMemory
    draft : MemoryReport or None
    projector : ProjectorMemory or None
    warnings : tuple of str
    """

    model: str
    architecture: str
    engine: str
    n_ctx_actual: int
    n_ctx_sequence: int
    n_seq_max: int
    n_tokens: int
    flash_attn: bool
    pipeline: bool
    exact: bool
    devices: tuple[DeviceMemory, ...]
    host: DeviceMemory
    output_bytes: int
    page_locked_bytes: int
    mapped_bytes: int
    allowances: tuple[Allowance, ...] = ()
    adapters: tuple[AdapterMemory, ...] = ()
    draft: MemoryReport | None = None
    projector: ProjectorMemory | None = None
    warnings: tuple[str, ...] = ()

    def parts_in(self, name: str) -> Iterator[DeviceMemory]:
        """Yield what the model, and then its draft, has in one memory."""
        for report in (self, self.draft):
            if report is not None:
                yield from (memory for memory in (*report.devices, report.host) if memory.name == name)

    def used_bytes(self, name: str) -> int:
        """Bytes of everything in one memory: model, adapters, draft, projector, output buffers, allowances.

        Parameters
        ----------
        name : str
            ``"CUDA0"``, ``"Host"``.
        """
        used = sum(part.model_bytes + part.context_bytes + part.compute_bound_bytes for part in self.parts_in(name))
        if name == self.host.name:
            used += self.output_bytes + (0 if self.draft is None else self.draft.output_bytes)
        used += sum(adapter.model_bytes.get(name, 0) for adapter in self.adapters)
        if self.projector is not None:
            used += self.projector.bytes_in(name)
        return used + sum(a.n_bytes for a in self.allowances if a.where == name and not a.on_demand)

    def left_bytes(self, name: str) -> int | None:
        """Bytes that stay free in one memory, negative where they do not suffice; None where its size is not known."""
        free = next(memory.free_bytes for memory in (*self.devices, self.host) if memory.name == name)
        return None if free is None else free - self.used_bytes(name)

    @property
    def fits(self) -> bool:
        """Nothing is short of memory, as far as sizes are known."""
        left = [self.left_bytes(memory.name) for memory in (*self.devices, self.host)]
        return all(n_bytes is None or n_bytes >= 0 for n_bytes in left)

    def to_dict(self) -> dict[str, object]:
        """Return the document that ``pshard memory --json`` prints: see docs/memory.md."""
        document: dict[str, object] = {"schema_version": SCHEMA_VERSION, **_plain(self), "fits": self.fits}
        document["totals"] = [
            {"name": name, "used_bytes": self.used_bytes(name), "left_bytes": self.left_bytes(name)}
            for name in (memory.name for memory in (*self.devices, self.host))
        ]
        return document


def _plain(report: MemoryReport) -> dict[str, object]:
    document: dict[str, object] = to_builtins(report)
    return document
