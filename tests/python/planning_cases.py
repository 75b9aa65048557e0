"""Machines and models for tests of prices and plans: simple ones, random ones, and real models cut to a few layers."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache

from gguf_cases import header_of, oracle_models
from hypothesis import strategies as st

from pshard import _core
from pshard.machine.rates import bits_per_weight, type_ids
from pshard.model.model import Model, data_type, model_from_header

GIB = 1 << 30
ALL_STRATEGIES = [*_core.strategy_names(), "STOCK"]
SMALL_CHUNK, LARGE_CHUNK = 64.0 * 1024, 64.0 * 1024 * 1024

# One of each kind: dense, tied head, parallel block, sliding window, latent attention, experts with and without dense
# lead and shared experts, recurrent.
MODEL_NAMES = (
    "llama31-8b-q4km",
    "qwen3-0.6b-q8_0",
    "command-r7b-cohere2-q4km",
    "gemma2-9b-q4km",
    "gpt-oss-20b-mxfp4",
    "deepseek-v2-lite-q4km",
    "qwen3-30b-a3b-q4km",
    "granite4-h-small-q4km",
    "qwen3-next-80b-a3b-q4km",
    "mamba2-2.7b-f16",
)


@cache
def cut_model(name: str, n_layer: int) -> Model:
    """One of the oracle's models with its first layers only."""
    model = oracle_models()[name]
    metadata = dict(model["metadata"])
    key = f"{metadata['general.architecture']}.block_count"
    n_whole = metadata[key]
    for other, value in metadata.items():
        if isinstance(value, list) and len(value) == n_whole:
            metadata[other] = value[:n_layer]
    metadata[key] = n_layer
    metadata.pop(f"{metadata['general.architecture']}.nextn_predict_layers", None)
    tensors = [t for t in model["tensors"] if not t[0].startswith("blk.") or int(t[0].split(".")[1]) < n_layer]
    return model_from_header(header_of(metadata, tensors), f"{name} cut to {n_layer}")


@cache
def stretched_model(name: str, n_layer: int) -> Model:
    """One of the oracle's models with as many layers as are asked for: its own, over and over."""
    model = oracle_models()[name]
    metadata = dict(model["metadata"])
    key = f"{metadata['general.architecture']}.block_count"
    n_whole = metadata[key]
    metadata[key] = n_layer
    tensors = [t for t in model["tensors"] if not t[0].startswith("blk.")]
    for name_, shape, type_id in model["tensors"]:
        if name_.startswith("blk."):
            _, layer, rest = name_.split(".", 2)
            tensors += [(f"blk.{i}.{rest}", shape, type_id) for i in range(int(layer), n_layer, n_whole)]
    return model_from_header(header_of(metadata, tensors), f"{name} stretched to {n_layer}")


@dataclass(frozen=True)
class Rates:
    """Everything that a random machine is made of; speeds in bytes/s, FLOP/s and seconds."""

    gpu_memory: float = 400e9
    gpu_flop: float = 40e12
    gpu_op_seconds: float = 3e-6
    read_share: float = 0.8  # of the memory's rate at which products of one row read weights
    cpu_memory: float = 40e9
    cpu_flop: float = 0.5e12
    cpu_op_seconds: float = 2e-6
    host: float = 45e9
    link: float = 12e9
    link_small_share: float = 0.4  # of the rate that the smallest chunk reaches
    link_latency_seconds: float = 8e-6
    copy_engines: int = 1
    pageable: float = 4e9
    page_lock_bytes: int = 1 << 50
    to_gpu_seconds: float = 20e-6
    to_cpu_seconds: float = 30e-6
    cpu_rate_under_copy: float = 0.8
    copy_rate_under_cpu: float = 0.7
    vram_bytes: int = 24 * GIB
    ram_bytes: int = 1 << 50


def processor(memory: float, flop: float, op_seconds: float, read_share: float = 0.8) -> _core.Processor:
    """Products of one row read at a share of the memory's rate, 512 rows reach 60 % of the peak; experts 20 % less."""
    processor = _core.Processor()
    processor.memory_bytes_per_second = memory
    processor.memory_peak_bytes_per_second = memory / 0.9
    processor.peak_flop_per_second = flop
    processor.op_seconds = op_seconds

    def series(bits: float, share: float) -> _core.RateSeries:
        one = min(read_share * memory * 16.0 / bits, 0.6 * flop)
        return _core.RateSeries(batch=[1.0, 512.0], flop_per_second=[one * share, max(one, 0.6 * flop) * share])

    ids = {name: number for name, number in type_ids().items() if number < 64}
    processor.mul_mat = {number: series(bits_per_weight(name), 1.0) for name, number in ids.items()}
    processor.mul_mat_id = {number: series(bits_per_weight(name), 0.8) for name, number in ids.items()}
    attention = _core.RateSeries(batch=[1.0, 512.0], flop_per_second=[0.05 * flop, 0.4 * flop])
    processor.attention = [_core.AttentionRates(depth=1.0, rates=attention)]
    return processor


def link(rates: Rates) -> _core.LinkCurve:
    return _core.LinkCurve(
        chunk_bytes=[SMALL_CHUNK, LARGE_CHUNK],
        bytes_per_second=[rates.link * rates.link_small_share, rates.link],
        latency_seconds=rates.link_latency_seconds,
        peak_bytes_per_second=rates.link * 1.1,
    )


def core_machine(rates: Rates | None = None) -> _core.Machine:
    rates = rates or Rates()
    machine = _core.Machine()
    machine.name = "made up"
    machine.has_gpu = True
    machine.gpu = processor(rates.gpu_memory, rates.gpu_flop, rates.gpu_op_seconds, rates.read_share)
    machine.cpu = processor(rates.cpu_memory, rates.cpu_flop, rates.cpu_op_seconds)
    machine.up = link(rates)
    machine.down = link(rates)
    machine.copy_engines = rates.copy_engines
    machine.pageable_bytes_per_second = rates.pageable
    machine.page_lock_bytes = rates.page_lock_bytes
    machine.handoff_to_gpu_seconds = rates.to_gpu_seconds
    machine.handoff_to_cpu_seconds = rates.to_cpu_seconds
    machine.host_bytes_per_second = rates.host
    machine.cpu_rate_under_copy = rates.cpu_rate_under_copy
    machine.copy_rate_under_cpu = rates.copy_rate_under_cpu
    machine.vram_bytes = rates.vram_bytes
    machine.ram_bytes = rates.ram_bytes
    machine.check()
    return machine


def without_gpu(machine: _core.Machine) -> _core.Machine:
    machine = copy(machine)
    machine.has_gpu = False
    return machine


def context(
    n_ctx: int = 4096, n_ubatch: int = 512, n_seq_max: int = 1, flash_attn: bool = True, type_kv: str = "f16"
) -> _core.ContextParameters:
    parameters = _core.ContextParameters()
    parameters.n_ctx = n_ctx
    parameters.n_batch = max(2048, n_ubatch)
    parameters.n_ubatch = n_ubatch
    parameters.n_seq_max = n_seq_max
    parameters.flash_attn = flash_attn
    parameters.type_k = parameters.type_v = data_type(type_kv)
    return parameters


def whole_model_bytes(model: Model) -> int:
    """VRAM that the whole model needs at the default context, at 512 tokens: the scale of budgets."""
    n = model.n_layer
    placement = _core.make_placement(
        "STATIC_ATTNPRIO_ALLMODELS", _core.Knobs(n, n, "NONE", output_on_gpu=True), model.core
    )
    return _core.memory(model.core, placement, context(), 512).gpu.total()


def _log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(0.0, 1.0).map(lambda t: low * (high / low) ** t)


def rates() -> st.SearchStrategy[Rates]:
    """Machines from a netbook with a small card to a server, in any combination."""
    return st.builds(
        Rates,
        gpu_memory=_log_uniform(50e9, 4e12),
        gpu_flop=_log_uniform(2e12, 800e12),
        gpu_op_seconds=_log_uniform(0.5e-6, 20e-6),
        cpu_memory=_log_uniform(8e9, 400e9),
        cpu_flop=_log_uniform(0.05e12, 10e12),
        cpu_op_seconds=_log_uniform(0.5e-6, 20e-6),
        host=_log_uniform(8e9, 500e9),
        link=_log_uniform(2e9, 100e9),
        link_small_share=st.floats(0.05, 1.0),
        link_latency_seconds=_log_uniform(1e-6, 50e-6),
        copy_engines=st.sampled_from([1, 2]),
        pageable=_log_uniform(1e9, 20e9),
        page_lock_bytes=st.sampled_from([0, GIB // 4, GIB, 1 << 50]),
        to_gpu_seconds=_log_uniform(1e-6, 200e-6),
        to_cpu_seconds=_log_uniform(1e-6, 200e-6),
        cpu_rate_under_copy=st.floats(0.2, 1.0),
        copy_rate_under_cpu=st.floats(0.2, 1.0),
    )


def models(n_layer: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Model]:
    return st.builds(cut_model, st.sampled_from(MODEL_NAMES), n_layer or st.integers(1, 6))


def batches() -> st.SearchStrategy[int]:
    return st.sampled_from([1, 4, 16, 31, 32, 64, 512, 1024])


def n_kernels(model: Model, tier: _core.Pass) -> int:
    """Kernels that a GPU computes the pass in, with all layers and the head there."""
    blocks = [_core.layer_operations(model.core, i, tier, i + 1 == model.n_layer) for i in range(model.n_layer)]
    blocks += [_core.head_operations(model.core, tier), _core.embedding_operations(model.core, tier)[1:]]
    works = [
        [o["kernel"] for o in block if not o["is_view"] and (o["weight"] or o["activation_bytes"] + o["cache_bytes"])]
        for block in blocks
    ]
    return sum(len(set(kernels)) for kernels in works)
