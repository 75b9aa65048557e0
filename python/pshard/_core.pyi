"""
Compiled core of pshard: model, machine, memory, cost, plan, fleet and latency.
"""
from __future__ import annotations
import collections.abc
import enum
import numpy
import numpy.typing
import typing
import typing_extensions
__all__: list[str] = ['Assignment', 'AttentionRates', 'Basis', 'Budget', 'CacheCells', 'Candidate', 'Chain', 'ComputeBuffers', 'ComputeBytes', 'Contention', 'ContextParameters', 'CopyRecord', 'Cost', 'CpuProbe', 'DataType', 'DeviceBytes', 'DeviceCosts', 'DeviceLayout', 'Encoder', 'EncoderBuffers', 'Executor', 'FitDevice', 'FitDraft', 'FitOutcome', 'FitProbe', 'Found', 'Gating', 'GpuDevice', 'GpuError', 'GpuLayers', 'GpuProbe', 'GpuQuery', 'GpuStart', 'GraphTraits', 'Group', 'Handoff', 'HostDevice', 'Hyperparameters', 'KernelDemand', 'Knobs', 'Lane', 'LateRows', 'LatencyCounters', 'LatencyEstimate', 'LatencySeries', 'LatencyShift', 'Layer', 'LayerParameters', 'LayerPlacement', 'LeftOut', 'LinkCurve', 'LockedMemory', 'Lying', 'Machine', 'MeasurePolicy', 'Measurement', 'MemoryReport', 'MemoryStage', 'Mixer', 'Model', 'Objective', 'OpCost', 'OpKind', 'Order', 'Pass', 'PassRecord', 'PassTime', 'Peak', 'Placement', 'ProbeError', 'ProbeResult', 'Processor', 'RateSeries', 'RuntimePlan', 'Schedule', 'ShapeRates', 'Sides', 'Split', 'SplitRecord', 'SplitTime', 'Stage', 'StockFit', 'StockPlan', 'StreamError', 'Sum', 'SwitchCost', 'SwitchRecord', 'Temperature', 'Tensor', 'TensorException', 'TensorInFile', 'TierPlan', 'WeightType', 'Where', 'Workload', 'WorkloadTime', 'alarm_height', 'all_knobs', 'assign', 'built_with_cuda', 'cache_bytes', 'cache_cells', 'cpu_paths', 'dequantise', 'device_costs', 'distinct_expert_share', 'embedding_bytes', 'embedding_operations', 'encoder_buffers', 'gpu_head_bytes', 'gpu_of', 'gpu_tensor_bytes', 'gpu_weight_bytes', 'group_of', 'head_operations', 'host_head_bytes', 'host_weight_bytes', 'interval_deviations', 'is_described', 'is_pinned', 'kernel_demand', 'kv_bytes_per_cell', 'last_level_cache_bytes', 'lay_out', 'layer_of', 'layer_operations', 'layer_places', 'local_name', 'make_placement', 'make_schedule', 'memory', 'multiply', 'offloads_head', 'pinned_on', 'plan_runtime', 'plan_stock', 'plan_tier', 'price_executed', 'price_pass', 'price_workload', 'probe_storage', 'query_gpus', 'queue_costs', 'random_rows', 'resident_memory', 'resolve_flash_attention', 'search', 'skip_strings', 'state_bytes', 'stock_fit', 'strategy_names', 'switch_cost', 'tier_ladder', 'tier_pass', 'weight_types']
class Group(enum.IntEnum):
    norms = 0
    attention = 1
    cache = 2
    mixer = 3
    ffn_up = 4
    ffn_gate = 5
    ffn_down = 6
    router = 7
    experts_up = 8
    experts_gate = 9
    experts_down = 10
    shared_up = 11
    shared_gate = 12
    shared_down = 13
    embedding = 14
    head = 15
class Mixer(enum.IntEnum):
    attention = 0
    mamba = 1
    mamba2 = 2
    mamba_heads = 3
    gated_delta = 4
    channel_delta = 5
    short_convolution = 6
    token_shift = 7
    lightning = 8
    none = 9
class LateRows(enum.IntEnum):
    no = 0
    behind_layers = 1
    before_norm = 2
    behind_norm = 3
    never = 4
class Sum(enum.IntEnum):
    sequential = 0
    ffn_residual_attention = 1
    ffn_attention_residual = 2
    attention_ffn_residual = 3
class Temperature(enum.IntEnum):
    none = 0
    unrotated = 1
    all = 2
class Gating(enum.IntEnum):
    softmax = 0
    sigmoid = 1
    softmax_of_selected = 2
    softmax_chosen_by_sigmoid = 3
class DataType:
    def __eq__(self, other: object) -> bool:
        ...
    def __hash__(self) -> int:
        ...
    def __init__(self, id: int, block_elements: int, block_bytes: int) -> None:
        ...
    def row_bytes(self, n: int) -> int:
        ...
    @property
    def block_bytes(self) -> int:
        ...
    @property
    def block_elements(self) -> int:
        ...
    @property
    def id(self) -> int:
        ...
class Tensor:
    def __init__(self, name: str, type: DataType, shape: typing.Annotated[collections.abc.Sequence[int], "FixedSize(4)"], n_bytes: int) -> None:
        ...
    @property
    def n_bytes(self) -> int:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def shape(self) -> typing.Annotated[list[int], "FixedSize(4)"]:
        ...
    @property
    def type(self) -> DataType:
        ...
class Encoder:
    def __init__(self, kind: str, is_of_sound: bool, numbers: collections.abc.Mapping[str, collections.abc.Sequence[int]], tensors: collections.abc.Sequence[Tensor]) -> None:
        ...
    @property
    def is_of_sound(self) -> bool:
        ...
    @property
    def kind(self) -> str:
        ...
    @property
    def tensors(self) -> list[Tensor]:
        ...
class LayerParameters:
    gives_value: bool
    is_selective: bool
    is_sparse: bool
    mixer: Mixer
    norms_before_state: bool
    uses_rope: bool
    def __init__(self) -> None:
        ...
    @property
    def compression(self) -> int:
        ...
    @compression.setter
    def compression(self, arg0: int) -> None:
        ...
    @property
    def conv_state(self) -> int:
        ...
    @conv_state.setter
    def conv_state(self, arg0: int) -> None:
        ...
    @property
    def head_dim_k(self) -> int:
        ...
    @head_dim_k.setter
    def head_dim_k(self, arg0: int) -> None:
        ...
    @property
    def head_dim_v(self) -> int:
        ...
    @head_dim_v.setter
    def head_dim_v(self, arg0: int) -> None:
        ...
    @property
    def indexer_dim(self) -> int:
        ...
    @indexer_dim.setter
    def indexer_dim(self, arg0: int) -> None:
        ...
    @property
    def indexer_dim_v(self) -> int:
        ...
    @indexer_dim_v.setter
    def indexer_dim_v(self, arg0: int) -> None:
        ...
    @property
    def n_head(self) -> int:
        ...
    @n_head.setter
    def n_head(self, arg0: int) -> None:
        ...
    @property
    def n_head_kv(self) -> int:
        ...
    @n_head_kv.setter
    def n_head_kv(self, arg0: int) -> None:
        ...
    @property
    def scan_state(self) -> int:
        ...
    @scan_state.setter
    def scan_state(self, arg0: int) -> None:
        ...
    @property
    def shared_cache(self) -> int:
        ...
    @shared_cache.setter
    def shared_cache(self, arg0: int) -> None:
        ...
    @property
    def window(self) -> int:
        ...
    @window.setter
    def window(self, arg0: int) -> None:
        ...
class GraphTraits:
    attention_ignores_adapters: bool
    caches_by_sequence: bool
    causal: bool
    clamped_qkv: bool
    experts_down_on_host: bool
    ffn_reads_attention_norm: bool
    full_layers_scale_rope: bool
    fuses_attention: bool
    gated_attention: bool
    gating: Gating
    halves_experts: bool
    has_encoder: bool
    head_ignores_adapters: bool
    is_guessed: bool
    joined_heads: bool
    keeps_cache: bool
    late_rows: LateRows
    layer_norm: bool
    loads_head: bool
    norm_behind_rope: bool
    norm_without_weight: bool
    normalised_expert_weights: bool
    normed_embedding: bool
    norms_before_dropping_rows: bool
    norms_results_alone: bool
    norms_time_step: bool
    norms_values: bool
    predicts: bool
    reads_embedding: bool
    repeats_key_heads: bool
    repeats_tied_head: bool
    residual_first: bool
    residual_first_in_attention: bool
    routes_layer_input: bool
    scaled_embedding: bool
    scaled_expert_weights: bool
    scaled_head_input: bool
    scaled_logits: bool
    scaled_query: bool
    scaled_residual: bool
    scales_normed_input: bool
    shared_gate_by_ratio: bool
    squared_activation: bool
    sum: Sum
    temperature: Temperature
    unweighted_norms: bool
    weight_before_ffn: bool
    windows_scale_rope: bool
    def __init__(self) -> None:
        ...
    @property
    def attention_softcap(self) -> float:
        ...
    @attention_softcap.setter
    def attention_softcap(self, arg0: float) -> None:
        ...
    @property
    def logits_softcap(self) -> float:
        ...
    @logits_softcap.setter
    def logits_softcap(self, arg0: float) -> None:
        ...
    @property
    def n_expert_groups(self) -> int:
        ...
    @n_expert_groups.setter
    def n_expert_groups(self, arg0: int) -> None:
        ...
    @property
    def n_expert_groups_used(self) -> int:
        ...
    @n_expert_groups_used.setter
    def n_expert_groups_used(self, arg0: int) -> None:
        ...
    @property
    def n_side_by_side(self) -> int:
        ...
    @n_side_by_side.setter
    def n_side_by_side(self, arg0: int) -> None:
        ...
    @property
    def positions_per_token(self) -> int:
        ...
    @positions_per_token.setter
    def positions_per_token(self, arg0: int) -> None:
        ...
class Hyperparameters:
    architecture: str
    traits: GraphTraits
    def __init__(self) -> None:
        ...
    @property
    def head_dim_k_mla(self) -> int:
        ...
    @head_dim_k_mla.setter
    def head_dim_k_mla(self, arg0: int) -> None:
        ...
    @property
    def head_dim_v_mla(self) -> int:
        ...
    @head_dim_v_mla.setter
    def head_dim_v_mla(self, arg0: int) -> None:
        ...
    @property
    def indexer_n_head(self) -> int:
        ...
    @indexer_n_head.setter
    def indexer_n_head(self, arg0: int) -> None:
        ...
    @property
    def indexer_top_k(self) -> int:
        ...
    @indexer_top_k.setter
    def indexer_top_k(self, arg0: int) -> None:
        ...
    @property
    def kv_lora_rank(self) -> int:
        ...
    @kv_lora_rank.setter
    def kv_lora_rank(self, arg0: int) -> None:
        ...
    @property
    def layers(self) -> list[LayerParameters]:
        ...
    @layers.setter
    def layers(self, arg0: collections.abc.Sequence[LayerParameters]) -> None:
        ...
    @property
    def n_ctx_train(self) -> int:
        ...
    @n_ctx_train.setter
    def n_ctx_train(self, arg0: int) -> None:
        ...
    @property
    def n_deepstack(self) -> int:
        ...
    @n_deepstack.setter
    def n_deepstack(self, arg0: int) -> None:
        ...
    @property
    def n_embd(self) -> int:
        ...
    @n_embd.setter
    def n_embd(self, arg0: int) -> None:
        ...
    @property
    def n_expert(self) -> int:
        ...
    @n_expert.setter
    def n_expert(self, arg0: int) -> None:
        ...
    @property
    def n_expert_used(self) -> int:
        ...
    @n_expert_used.setter
    def n_expert_used(self, arg0: int) -> None:
        ...
    @property
    def n_layer(self) -> int:
        ...
    @n_layer.setter
    def n_layer(self, arg0: int) -> None:
        ...
    @property
    def n_layer_nextn(self) -> int:
        ...
    @n_layer_nextn.setter
    def n_layer_nextn(self, arg0: int) -> None:
        ...
    @property
    def n_states(self) -> int:
        ...
    @n_states.setter
    def n_states(self, arg0: int) -> None:
        ...
    @property
    def n_vocab(self) -> int:
        ...
    @n_vocab.setter
    def n_vocab(self, arg0: int) -> None:
        ...
    @property
    def rope_dim(self) -> int:
        ...
    @rope_dim.setter
    def rope_dim(self, arg0: int) -> None:
        ...
    @property
    def ssm_conv_kernel(self) -> int:
        ...
    @ssm_conv_kernel.setter
    def ssm_conv_kernel(self, arg0: int) -> None:
        ...
    @property
    def ssm_group_count(self) -> int:
        ...
    @ssm_group_count.setter
    def ssm_group_count(self, arg0: int) -> None:
        ...
    @property
    def ssm_inner_size(self) -> int:
        ...
    @ssm_inner_size.setter
    def ssm_inner_size(self, arg0: int) -> None:
        ...
    @property
    def ssm_state_size(self) -> int:
        ...
    @ssm_state_size.setter
    def ssm_state_size(self, arg0: int) -> None:
        ...
    @property
    def ssm_time_step_rank(self) -> int:
        ...
    @ssm_time_step_rank.setter
    def ssm_time_step_rank(self, arg0: int) -> None:
        ...
class Layer:
    @property
    def layer_class(self) -> int:
        ...
    @property
    def parameters(self) -> LayerParameters:
        ...
    @property
    def tensors(self) -> list[Tensor]:
        ...
class Model:
    def __init__(self, hyperparameters: Hyperparameters, tensors: collections.abc.Sequence[Tensor]) -> None:
        ...
    @property
    def embedding(self) -> list[Tensor]:
        ...
    @property
    def head(self) -> list[Tensor]:
        ...
    @property
    def hyperparameters(self) -> Hyperparameters:
        ...
    @property
    def layers(self) -> list[Layer]:
        ...
    @property
    def tied_head(self) -> bool:
        ...
class Basis(enum.IntEnum):
    measured = 0
    imported = 1
    reference = 2
    estimated = 3
class RateSeries:
    """
    FLOP/s that a kernel reaches over its batch.
    """
    basis: Basis
    def __init__(self, batch: collections.abc.Sequence[float] = [], flop_per_second: collections.abc.Sequence[float] = [], basis: Basis = ..., spread: float = 0.0) -> None:
        ...
    def rate(self, batch: float) -> float:
        """
        FLOP/s at a batch.
        """
    @property
    def batch(self) -> list[float]:
        ...
    @batch.setter
    def batch(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def flop_per_second(self) -> list[float]:
        ...
    @flop_per_second.setter
    def flop_per_second(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def spread(self) -> float:
        ...
    @spread.setter
    def spread(self, arg0: float) -> None:
        ...
class AttentionRates:
    """
    FLOP/s of attention over query tokens, for caches of about one depth.
    """
    rates: RateSeries
    def __init__(self, depth: float, rates: RateSeries, first_bytes_per_second: float = 0.0) -> None:
        ...
    @property
    def depth(self) -> float:
        ...
    @depth.setter
    def depth(self, arg0: float) -> None:
        ...
    @property
    def first_bytes_per_second(self) -> float:
        ...
    @first_bytes_per_second.setter
    def first_bytes_per_second(self, arg0: float) -> None:
        ...
class ShapeRates:
    """
    Rates of one shape of matrix, which was itself measured; they go before the series of its type.
    """
    def __init__(self, *, is_routed: bool, type: int, n_rows: int, n_columns: int, series: RateSeries) -> None:
        ...
    @property
    def is_routed(self) -> bool:
        ...
    @property
    def n_columns(self) -> int:
        ...
    @property
    def n_rows(self) -> int:
        ...
    @property
    def series(self) -> RateSeries:
        ...
    @property
    def type(self) -> int:
        ...
class Processor:
    """
    Rooflines of the GPU, or of the CPU at one thread count.
    """
    basis: Basis
    delta_net: RateSeries
    mamba: RateSeries
    mamba2: RateSeries
    skips_masked: bool
    def __init__(self) -> None:
        ...
    @property
    def attention(self) -> list[AttentionRates]:
        ...
    @attention.setter
    def attention(self, arg0: collections.abc.Sequence[AttentionRates]) -> None:
        ...
    @property
    def attention_by_query(self) -> dict[int, list[AttentionRates]]:
        ...
    @attention_by_query.setter
    def attention_by_query(self, arg1: collections.abc.Mapping[int, collections.abc.Sequence[AttentionRates]]) -> None:
        ...
    @property
    def copied_shapes(self) -> list[ShapeRates]:
        ...
    @copied_shapes.setter
    def copied_shapes(self, arg0: collections.abc.Sequence[ShapeRates]) -> None:
        ...
    @property
    def memory_bytes_per_second(self) -> float:
        ...
    @memory_bytes_per_second.setter
    def memory_bytes_per_second(self, arg0: float) -> None:
        ...
    @property
    def memory_peak_bytes_per_second(self) -> float:
        ...
    @memory_peak_bytes_per_second.setter
    def memory_peak_bytes_per_second(self, arg0: float) -> None:
        ...
    @property
    def mul_mat(self) -> dict[int, RateSeries]:
        ...
    @mul_mat.setter
    def mul_mat(self, arg1: collections.abc.Mapping[int, RateSeries]) -> None:
        ...
    @property
    def mul_mat_id(self) -> dict[int, RateSeries]:
        ...
    @mul_mat_id.setter
    def mul_mat_id(self, arg1: collections.abc.Mapping[int, RateSeries]) -> None:
        ...
    @property
    def n_threads(self) -> int:
        ...
    @n_threads.setter
    def n_threads(self, arg0: int) -> None:
        ...
    @property
    def op_seconds(self) -> float:
        ...
    @op_seconds.setter
    def op_seconds(self, arg0: float) -> None:
        ...
    @property
    def peak_flop_per_second(self) -> float:
        ...
    @peak_flop_per_second.setter
    def peak_flop_per_second(self, arg0: float) -> None:
        ...
    @property
    def shapes(self) -> list[ShapeRates]:
        ...
    @shapes.setter
    def shapes(self, arg0: collections.abc.Sequence[ShapeRates]) -> None:
        ...
    @property
    def spread(self) -> float:
        ...
    @spread.setter
    def spread(self, arg0: float) -> None:
        ...
class LinkCurve:
    """
    Bytes/s over the size of one copy, in one direction, from page-locked memory.
    """
    basis: Basis
    def __init__(self, chunk_bytes: collections.abc.Sequence[float] = [], bytes_per_second: collections.abc.Sequence[float] = [], latency_seconds: float = 0.0, peak_bytes_per_second: float = 0.0, basis: Basis = ..., spread: float = 0.0) -> None:
        ...
    def seconds(self, n_bytes: float, chunk: float) -> float:
        """
        Seconds for n_bytes in chunks of `chunk` bytes.
        """
    @property
    def bytes_per_second(self) -> list[float]:
        ...
    @bytes_per_second.setter
    def bytes_per_second(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def chunk_bytes(self) -> list[float]:
        ...
    @chunk_bytes.setter
    def chunk_bytes(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def latency_seconds(self) -> float:
        ...
    @latency_seconds.setter
    def latency_seconds(self, arg0: float) -> None:
        ...
    @property
    def peak_bytes_per_second(self) -> float:
        ...
    @peak_bytes_per_second.setter
    def peak_bytes_per_second(self, arg0: float) -> None:
        ...
    @property
    def spread(self) -> float:
        ...
    @spread.setter
    def spread(self, arg0: float) -> None:
        ...
class Machine:
    """
    A machine as the cost model sees it.
    """
    cpu: Processor
    down: LinkCurve
    gpu: Processor
    has_gpu: bool
    name: str
    up: LinkCurve
    def __copy__(self) -> Machine:
        ...
    def __init__(self) -> None:
        ...
    def check(self) -> None:
        """
        Raise ValueError, naming the field, where a figure cannot be priced with.
        """
    @property
    def copy_engines(self) -> int:
        ...
    @copy_engines.setter
    def copy_engines(self, arg0: int) -> None:
        ...
    @property
    def copy_rate_under_cpu(self) -> float:
        ...
    @copy_rate_under_cpu.setter
    def copy_rate_under_cpu(self, arg0: float) -> None:
        ...
    @property
    def copy_rate_under_gpu(self) -> float:
        ...
    @copy_rate_under_gpu.setter
    def copy_rate_under_gpu(self, arg0: float) -> None:
        ...
    @property
    def cpu_rate_under_copy(self) -> float:
        ...
    @cpu_rate_under_copy.setter
    def cpu_rate_under_copy(self, arg0: float) -> None:
        ...
    @property
    def gpu_rate_under_copy(self) -> float:
        ...
    @gpu_rate_under_copy.setter
    def gpu_rate_under_copy(self, arg0: float) -> None:
        ...
    @property
    def handoff_to_cpu_seconds(self) -> float:
        ...
    @handoff_to_cpu_seconds.setter
    def handoff_to_cpu_seconds(self, arg0: float) -> None:
        ...
    @property
    def handoff_to_gpu_seconds(self) -> float:
        ...
    @handoff_to_gpu_seconds.setter
    def handoff_to_gpu_seconds(self, arg0: float) -> None:
        ...
    @property
    def host_bytes_per_second(self) -> float:
        ...
    @host_bytes_per_second.setter
    def host_bytes_per_second(self, arg0: float) -> None:
        ...
    @property
    def page_lock_bytes(self) -> int:
        ...
    @page_lock_bytes.setter
    def page_lock_bytes(self, arg0: int) -> None:
        ...
    @property
    def pageable_bytes_per_second(self) -> float:
        ...
    @pageable_bytes_per_second.setter
    def pageable_bytes_per_second(self, arg0: float) -> None:
        ...
    @property
    def ram_bytes(self) -> int:
        ...
    @ram_bytes.setter
    def ram_bytes(self, arg0: int) -> None:
        ...
    @property
    def vram_bytes(self) -> int:
        ...
    @vram_bytes.setter
    def vram_bytes(self, arg0: int) -> None:
        ...
class Where(enum.IntEnum):
    pinned = 0
    stream_a = 1
    stream_b = 2
    cpu = 3
    gpu1 = 4
    gpu2 = 5
    gpu3 = 6
    gpu4 = 7
    gpu5 = 8
    gpu6 = 9
    gpu7 = 10
    gpu8 = 11
    gpu9 = 12
    gpu10 = 13
    gpu11 = 14
    gpu12 = 15
    gpu13 = 16
    gpu14 = 17
class LayerPlacement:
    device: Where
    def __eq__(self, other: object) -> bool:
        ...
    def __getitem__(self, group: Group) -> Where:
        ...
    def __hash__(self) -> int:
        ...
    def __init__(self, where: Where) -> None:
        ...
    def __setitem__(self, group: Group, where: Where) -> None:
        ...
class TensorException:
    def __init__(self, name: str, where: Where) -> None:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def where(self) -> Where:
        ...
class Placement:
    head: Where
    head_op_offload: bool
    offload_kqv: bool
    offloads_all: bool
    op_offload: bool
    pipeline: bool
    def __init__(self) -> None:
        ...
    @property
    def exceptions(self) -> list[TensorException]:
        ...
    @exceptions.setter
    def exceptions(self, arg0: collections.abc.Sequence[TensorException]) -> None:
        ...
    @property
    def layer_pattern(self) -> list[int]:
        ...
    @layer_pattern.setter
    def layer_pattern(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def n_gpu(self) -> int:
        ...
    @n_gpu.setter
    def n_gpu(self, arg0: int) -> None:
        ...
    @property
    def patterns(self) -> list[LayerPlacement]:
        ...
    @patterns.setter
    def patterns(self, arg0: collections.abc.Sequence[LayerPlacement]) -> None:
        ...
class Pass:
    flash_attn: bool
    type_k: DataType
    type_v: DataType
    def __init__(self) -> None:
        ...
    @property
    def n_filled(self) -> int:
        ...
    @n_filled.setter
    def n_filled(self, arg0: int) -> None:
        ...
    @property
    def n_kv(self) -> int:
        ...
    @n_kv.setter
    def n_kv(self, arg0: int) -> None:
        ...
    @property
    def n_kv_window(self) -> int:
        ...
    @n_kv_window.setter
    def n_kv_window(self, arg0: int) -> None:
        ...
    @property
    def n_outputs(self) -> int:
        ...
    @n_outputs.setter
    def n_outputs(self, arg0: int) -> None:
        ...
    @property
    def n_seqs(self) -> int:
        ...
    @n_seqs.setter
    def n_seqs(self, arg0: int) -> None:
        ...
    @property
    def n_streams(self) -> int:
        ...
    @n_streams.setter
    def n_streams(self, arg0: int) -> None:
        ...
    @property
    def n_tokens(self) -> int:
        ...
    @n_tokens.setter
    def n_tokens(self, arg0: int) -> None:
        ...
class OpKind(enum.IntEnum):
    mul_mat = 0
    mul_mat_id = 1
    attention = 2
    attention_kq = 3
    get_rows = 4
    elementwise = 5
    copy = 6
    scan = 7
class ContextParameters:
    flash_attn: bool
    flash_attn_auto: bool
    kv_unified: bool
    pshard_runtime: bool
    swa_full: bool
    type_k: DataType
    type_v: DataType
    def __init__(self) -> None:
        ...
    @property
    def cell_padding(self) -> int:
        ...
    @cell_padding.setter
    def cell_padding(self, arg0: int) -> None:
        ...
    @property
    def n_batch(self) -> int:
        ...
    @n_batch.setter
    def n_batch(self, arg0: int) -> None:
        ...
    @property
    def n_ctx(self) -> int:
        ...
    @n_ctx.setter
    def n_ctx(self, arg0: int) -> None:
        ...
    @property
    def n_outputs_max(self) -> int:
        ...
    @n_outputs_max.setter
    def n_outputs_max(self, arg0: int) -> None:
        ...
    @property
    def n_seq_max(self) -> int:
        ...
    @n_seq_max.setter
    def n_seq_max(self, arg0: int) -> None:
        ...
    @property
    def n_ubatch(self) -> int:
        ...
    @n_ubatch.setter
    def n_ubatch(self, arg0: int) -> None:
        ...
class CacheCells:
    @property
    def full(self) -> int:
        ...
    @property
    def n_streams(self) -> int:
        ...
    @property
    def window(self) -> int:
        ...
class DeviceBytes:
    def total(self) -> int:
        ...
    @property
    def cache_bytes(self) -> int:
        ...
    @property
    def compute_bytes(self) -> int:
        ...
    @property
    def stream_bytes(self) -> int:
        ...
    @property
    def weights_bytes(self) -> int:
        ...
class MemoryReport:
    @property
    def gpu(self) -> DeviceBytes:
        ...
    @property
    def gpus(self) -> list[DeviceBytes]:
        ...
    @property
    def host(self) -> DeviceBytes:
        ...
class KernelDemand:
    @property
    def n_kernels(self) -> int:
        ...
    @property
    def pool_bytes(self) -> int:
        ...
class ComputeBytes:
    @property
    def gpu_bytes(self) -> typing.Annotated[list[int], "FixedSize(15)"]:
        ...
    @property
    def gpu_stream_bytes(self) -> int:
        ...
    @property
    def host_bytes(self) -> int:
        ...
class EncoderBuffers:
    @property
    def attends_on_gpu(self) -> bool:
        ...
    @property
    def gpu_bytes(self) -> int:
        ...
    @property
    def host_bytes(self) -> int:
        ...
    @property
    def output_bytes(self) -> int:
        ...
class ComputeBuffers:
    def __call__(self, placement: Placement) -> ComputeBytes:
        ...
    def __init__(self, model: Model, context: ContextParameters, n_tokens: int, n_gpu: int = 1) -> None:
        ...
    def gpu_at_least(self, placement: Placement) -> int:
        ...
    @property
    def n_replays(self) -> int:
        ...
class MemoryStage(enum.IntEnum):
    stated = 0
    running = 1
class Lane(enum.IntEnum):
    gpu = 0
    cpu = 1
    up = 2
    down = 3
    host_memory = 4
    handoff = 5
class PassTime:
    @property
    def activation_bytes(self) -> float:
        ...
    @property
    def basis(self) -> Basis:
        ...
    @property
    def bottleneck(self) -> Lane:
        ...
    @property
    def busy_seconds(self) -> typing.Annotated[list[float], "FixedSize(6)"]:
        ...
    @property
    def critical_seconds(self) -> typing.Annotated[list[float], "FixedSize(6)"]:
        ...
    @property
    def n_splits(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def spread_seconds(self) -> float:
        ...
    @property
    def weights_up_bytes(self) -> float:
        ...
    @property
    def write_back_bytes(self) -> float:
        ...
class SwitchCost:
    @property
    def down_bytes(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def up_bytes(self) -> int:
        ...
class Workload:
    def __init__(self, prompt_tokens: int, generate_tokens: int) -> None:
        ...
    @property
    def generate_tokens(self) -> int:
        ...
    @property
    def prompt_tokens(self) -> int:
        ...
class Budget:
    def __init__(self, vram_bytes: int, ram_bytes: int) -> None:
        ...
    @property
    def ram_bytes(self) -> int:
        ...
    @ram_bytes.setter
    def ram_bytes(self, arg0: int) -> None:
        ...
    @property
    def vram_bytes(self) -> int:
        ...
    @vram_bytes.setter
    def vram_bytes(self, arg0: int) -> None:
        ...
class Knobs:
    def __eq__(self, other: object) -> bool:
        ...
    def __hash__(self) -> int:
        ...
    def __init__(self, n_pinned: int = 0, n_attn_pinned: int = 0, overflow: str = 'NONE', output_on_gpu: bool = False, pin_from_back: bool = False) -> None:
        ...
    @property
    def n_attn_pinned(self) -> int:
        ...
    @property
    def n_pinned(self) -> int:
        ...
    @property
    def output_on_gpu(self) -> bool:
        ...
    @property
    def overflow(self) -> str:
        ...
    @property
    def pin_from_back(self) -> bool:
        ...
class Found:
    @property
    def knobs(self) -> Knobs:
        ...
    @property
    def memory(self) -> MemoryReport:
        ...
    @property
    def missing_ram_bytes(self) -> int:
        ...
    @property
    def missing_vram_bytes(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def viable(self) -> bool:
        ...
class FitDevice:
    def __init__(self, free_bytes: int, margin_bytes: int = 0) -> None:
        ...
    @property
    def free_bytes(self) -> int:
        ...
    @property
    def margin_bytes(self) -> int:
        ...
    @property
    def target_bytes(self) -> int:
        ...
class FitDraft:
    def __init__(self, model: Model, context: ContextParameters, placement: Placement, gpus: collections.abc.Sequence[int]) -> None:
        ...
class GpuLayers:
    @property
    def n_layer(self) -> int:
        ...
    @property
    def n_partial(self) -> int:
        ...
    @property
    def overflow(self) -> str:
        ...
class FitProbe:
    @property
    def bytes(self) -> list[int]:
        ...
    @property
    def layers(self) -> list[GpuLayers]:
        ...
class FitOutcome(enum.Enum):
    unchanged = 0
    shorter_context = 1
    distributed = 2
    refused = 3
class StockFit:
    @property
    def ends(self) -> bool:
        ...
    @property
    def layers(self) -> list[GpuLayers]:
        ...
    @property
    def memory(self) -> MemoryReport:
        ...
    @property
    def n_ctx(self) -> int:
        ...
    @property
    def n_measured(self) -> int:
        ...
    @property
    def outcome(self) -> FitOutcome:
        ...
    @property
    def placement(self) -> Placement:
        ...
    @property
    def probes(self) -> list[FitProbe]:
        ...
class Candidate:
    @property
    def knobs(self) -> Knobs:
        ...
    @property
    def memory(self) -> MemoryReport:
        ...
    @property
    def micro_batch(self) -> int:
        ...
    @property
    def missing_ram_bytes(self) -> int:
        ...
    @property
    def missing_vram_bytes(self) -> int:
        ...
    @property
    def placement(self) -> Placement:
        ...
    @property
    def strategy(self) -> str:
        ...
    @property
    def time(self) -> PassTime:
        ...
    @property
    def viable(self) -> bool:
        ...
class TierPlan:
    @property
    def batch_size(self) -> int:
        ...
    @property
    def best(self) -> int:
        ...
    @property
    def candidates(self) -> list[Candidate]:
        ...
    @property
    def kv_fill_tokens(self) -> int:
        ...
    @property
    def n_priced(self) -> int:
        ...
    @property
    def n_replays(self) -> int:
        ...
class WorkloadTime:
    @property
    def basis(self) -> Basis:
        ...
    @property
    def decode(self) -> PassTime:
        ...
    @property
    def generate_seconds(self) -> float:
        ...
    @property
    def prompt_seconds(self) -> float:
        ...
    @property
    def spread_seconds(self) -> float:
        ...
    @property
    def total_seconds(self) -> float:
        ...
class StockPlan:
    @property
    def knobs(self) -> Knobs:
        ...
    @property
    def memory(self) -> MemoryReport:
        ...
    @property
    def missing_ram_bytes(self) -> int:
        ...
    @property
    def missing_vram_bytes(self) -> int:
        ...
    @property
    def n_ubatch(self) -> int:
        ...
    @property
    def placement(self) -> Placement:
        ...
    @property
    def time(self) -> WorkloadTime:
        ...
    @property
    def viable(self) -> bool:
        ...
class RuntimePlan:
    @property
    def decode_tier(self) -> int:
        ...
    @property
    def generate_seconds(self) -> float:
        ...
    @property
    def prompt_seconds(self) -> float:
        ...
    @property
    def prompt_tier(self) -> int:
        ...
    @property
    def switch_bytes(self) -> int:
        ...
    @property
    def switch_seconds(self) -> float:
        ...
    @property
    def total_seconds(self) -> float:
        ...
    @property
    def viable(self) -> bool:
        ...
class Objective(enum.Enum):
    latency = 0
    throughput = 1
class Chain:
    def __init__(self) -> None:
        ...
    @property
    def capacity_bytes(self) -> list[int]:
        ...
    @capacity_bytes.setter
    def capacity_bytes(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def entry_bytes(self) -> list[int]:
        ...
    @entry_bytes.setter
    def entry_bytes(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def entry_seconds(self) -> list[float]:
        ...
    @entry_seconds.setter
    def entry_seconds(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def exit_bytes(self) -> list[int]:
        ...
    @exit_bytes.setter
    def exit_bytes(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def exit_seconds(self) -> list[float]:
        ...
    @exit_seconds.setter
    def exit_seconds(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def fixed_bytes(self) -> list[int]:
        ...
    @fixed_bytes.setter
    def fixed_bytes(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def layer_bytes(self) -> list[int]:
        ...
    @layer_bytes.setter
    def layer_bytes(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def layer_seconds(self) -> list[float]:
        ...
    @layer_seconds.setter
    def layer_seconds(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
    @property
    def memory_device(self) -> list[int]:
        ...
    @memory_device.setter
    def memory_device(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def n_device(self) -> int:
        ...
    @n_device.setter
    def n_device(self, arg0: int) -> None:
        ...
    @property
    def n_layer(self) -> int:
        ...
    @n_layer.setter
    def n_layer(self, arg0: int) -> None:
        ...
    @property
    def run_bytes(self) -> list[int]:
        ...
    @run_bytes.setter
    def run_bytes(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def run_table(self) -> list[int]:
        ...
    @run_table.setter
    def run_table(self, arg0: collections.abc.Sequence[int]) -> None:
        ...
    @property
    def transfer_seconds(self) -> list[float]:
        ...
    @transfer_seconds.setter
    def transfer_seconds(self, arg0: collections.abc.Sequence[float]) -> None:
        ...
class Stage:
    @property
    def begin(self) -> int:
        ...
    @property
    def device(self) -> int:
        ...
    @property
    def end(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def transfer_seconds(self) -> float:
        ...
class Assignment:
    @property
    def exact(self) -> bool:
        ...
    @property
    def feasible(self) -> bool:
        ...
    @property
    def missing_bytes(self) -> int:
        ...
    @property
    def n_orders(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def slowest_seconds(self) -> float:
        ...
    @property
    def stages(self) -> list[Stage]:
        ...
class Cost:
    @property
    def basis(self) -> Basis:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def spread_seconds(self) -> float:
        ...
class DeviceCosts:
    @property
    def embedding(self) -> Cost:
        ...
    @property
    def head(self) -> Cost:
        ...
    @property
    def hidden_bytes(self) -> int:
        ...
    @property
    def input_bytes(self) -> int:
        ...
    @property
    def layers(self) -> list[Cost]:
        ...
    @property
    def logits_bytes(self) -> int:
        ...
class LatencyEstimate:
    """
    What a window of latencies says; median and average are seconds over expected seconds.
    """
    @property
    def average(self) -> float:
        ...
    @property
    def correlation(self) -> float:
        ...
    @property
    def error(self) -> float:
        ...
    @property
    def median(self) -> float:
        ...
    @property
    def outliers(self) -> int:
        ...
    @property
    def samples(self) -> int:
        ...
    @property
    def scale(self) -> float:
        ...
class LatencyShift:
    """
    A lasting change: its factor, when it probably began and when it was certain.
    """
    @property
    def began_unix_s(self) -> float:
        ...
    @property
    def factor(self) -> float:
        ...
    @property
    def found_unix_s(self) -> float:
        ...
class LatencyCounters:
    """
    Of all valid latencies since the last reset.
    """
    @property
    def clock_backwards(self) -> int:
        ...
    @property
    def forwards(self) -> int:
        ...
    @property
    def invalid(self) -> int:
        ...
    @property
    def last_unix_s(self) -> float:
        ...
    @property
    def last_us(self) -> float:
        ...
    @property
    def max_us(self) -> float:
        ...
    @property
    def min_us(self) -> float:
        ...
    @property
    def total_us(self) -> float:
        ...
    @property
    def warm_up(self) -> int:
        ...
class LatencySeries:
    """
    Latencies of one shard in one phase.
    """
    def __init__(self, *, window: int, warm_up: int, settle: int, half_life: float, alarm_height: float, deviations: float, expected_tokens: collections.abc.Sequence[float], expected_seconds: collections.abc.Sequence[float]) -> None:
        ...
    def estimate(self) -> LatencyEstimate | None:
        ...
    def record(self, latency_us: float, n_tokens: float, time_unix_s: float) -> None:
        ...
    def record_invalid(self) -> None:
        ...
    def reset(self) -> None:
        ...
    @property
    def counters(self) -> LatencyCounters:
        ...
    @property
    def is_fresh(self) -> bool:
        ...
    @property
    def samples(self) -> int:
        ...
    @property
    def shift(self) -> LatencyShift | None:
        ...
    @property
    def shifts(self) -> int:
        ...
class GpuDevice:
    """
    A GPU as its driver describes it; a field that the driver does not tell is 0.
    """
    @property
    def compute_major(self) -> int:
        ...
    @property
    def compute_minor(self) -> int:
        ...
    @property
    def copy_engines(self) -> int:
        ...
    @property
    def free_bytes(self) -> int:
        ...
    @property
    def memory_bus_bits(self) -> int:
        ...
    @property
    def memory_clock_hertz(self) -> int:
        ...
    @property
    def multiprocessors(self) -> int:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def pci_bus_id(self) -> str:
        ...
    @property
    def total_bytes(self) -> int:
        ...
class GpuQuery:
    """
    The GPUs that were found, or why there are none.
    """
    @property
    def devices(self) -> list[GpuDevice]:
        ...
    @property
    def reason(self) -> str:
        ...
class WeightType:
    """
    A type of weights, as GGUF stores them.
    
    Attributes
    ----------
    name : str
        As `gguf` spells it.
    number : int
        ggml's.
    block_columns, block_bytes : int
    on_cpu, on_gpu : bool
        Whether there are kernels for it.
    is_interleaved : bool
        The CPU's kernels also take it interleaved by rows.
    """
    @property
    def block_bytes(self) -> int:
        ...
    @property
    def block_columns(self) -> int:
        ...
    @property
    def is_interleaved(self) -> bool:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def number(self) -> int:
        ...
    @property
    def on_cpu(self) -> bool:
        ...
    @property
    def on_gpu(self) -> bool:
        ...
class ProbeError(RuntimeError):
    """
    A measurement that cannot be trusted: a wrong result, a clock that is too coarse, a CPU, file or memory that is not there.
    """
class MeasurePolicy:
    """
    When a measurement ends.
    
    Parameters
    ----------
    max_spread : float
        Relative spread at which a figure is settled.
    noisy_spread : float
        Relative spread, or drift between the halves of the samples, over which a figure is noisy.
    budget_seconds : float
        For warm-up and samples together. The least count is taken even where it needs longer.
    min_count, max_count : int
        Samples.
    
    Raises
    ------
    ValueError
        A bound that no measurement can meet; the message names it.
    """
    def __init__(self, *, max_spread: float = 0.03, noisy_spread: float = 0.1, budget_seconds: float = 0.5, min_count: int = 5, max_count: int = 1000) -> None:
        ...
    @property
    def budget_seconds(self) -> float:
        ...
    @property
    def max_count(self) -> int:
        ...
    @property
    def max_spread(self) -> float:
        ...
    @property
    def min_count(self) -> int:
        ...
    @property
    def noisy_spread(self) -> float:
        ...
class Measurement:
    """
    Seconds of one sample, over all that were taken after warm-up.
    
    Attributes
    ----------
    median_seconds, minimum_seconds : float
    spread : float
        Half the distance between the 16th and the 84th percentile, relative to the median.
    drift : float
        Distance between the medians of the first and the second half, relative to the median.
    count : int
        Samples that the figures rest on.
    is_settled : bool
        The spread came under the policy's bound; otherwise its budget or its greatest count ended the measurement.
    is_noisy : bool
        Spread or drift are over the policy's bound of noise: something else ran, or clocks changed.
    """
    @property
    def count(self) -> int:
        ...
    @property
    def drift(self) -> float:
        ...
    @property
    def is_noisy(self) -> bool:
        ...
    @property
    def is_settled(self) -> bool:
        ...
    @property
    def median_seconds(self) -> float:
        ...
    @property
    def minimum_seconds(self) -> float:
        ...
    @property
    def spread(self) -> float:
        ...
class ProbeResult:
    """
    What one sample of a probe did, and how long it took.
    
    Attributes
    ----------
    time : Measurement
    n_bytes, n_flop : float
        Of one sample: weights or cache that were read, or bytes copied; a multiplication and an addition are two FLOP.
    bytes_per_second, flop_per_second : float
        By the median.
    n_threads : int
    is_cold : bool
        No sample found what it read in a cache.
    note : str
        Why it was not cold, or how the operating system was asked; empty where there is nothing to say.
    """
    @property
    def bytes_per_second(self) -> float:
        ...
    @property
    def flop_per_second(self) -> float:
        ...
    @property
    def is_cold(self) -> bool:
        ...
    @property
    def n_bytes(self) -> float:
        ...
    @property
    def n_flop(self) -> float:
        ...
    @property
    def n_threads(self) -> int:
        ...
    @property
    def note(self) -> str:
        ...
    @property
    def time(self) -> Measurement:
        ...
class Contention:
    """
    Copies and products, each alone and under the other.
    
    Attributes
    ----------
    copy_alone, copy_under_product : ProbeResult
        `n_bytes` counts what was copied; memory reads and writes each of them.
    product_alone, product_under_copy : ProbeResult
    """
    @property
    def copy_alone(self) -> ProbeResult:
        ...
    @property
    def copy_under_product(self) -> ProbeResult:
        ...
    @property
    def product_alone(self) -> ProbeResult:
        ...
    @property
    def product_under_copy(self) -> ProbeResult:
        ...
class OpCost:
    """
    Cost of starting operations that do nothing.
    
    Attributes
    ----------
    op : ProbeResult
        One of many in a running pass: every thread takes part and waits for all others.
    wake : ProbeResult
        From a sleeping pool to the end of its first operation, once per pass.
    """
    @property
    def op(self) -> ProbeResult:
        ...
    @property
    def wake(self) -> ProbeResult:
        ...
class Peak:
    """
    Multiply-adds in registers, which no kernel of the same instruction set exceeds.
    
    Attributes
    ----------
    bytes : ProbeResult
        Products of 8-bit numbers, summed in 32 bits.
    floats : ProbeResult
        Of 32 bits.
    """
    @property
    def bytes(self) -> ProbeResult:
        ...
    @property
    def floats(self) -> ProbeResult:
        ...
class CpuProbe:
    """
    Measures what the CPU and its memory reach. Every result is verified.
    
    Parameters
    ----------
    cpus : list of int
        One thread is pinned to each. Give one CPU per physical core.
    max_bytes : int
        Bound of the memory that a probe takes. It is kept between probes.
    path : str
        Instruction set, one of `cpu_paths()`; the fastest by default.
    
    Raises
    ------
    ProbeError
        A CPU is not available to this process.
    ValueError
        An unknown path, no CPU, or no memory.
    """
    def __init__(self, cpus: collections.abc.Sequence[int], *, max_bytes: int, path: str = '') -> None:
        ...
    def attention(self, *, n_heads: int, n_kv_heads: int, head_size: int, depth: int, batch: int, n_threads: int, policy: MeasurePolicy, key_type: str = 'F16', value_type: str = 'F16') -> ProbeResult:
        """
        Fused attention of `batch` query tokens over a cache of `depth` cells, each of which every token reads.
        
        Parameters
        ----------
        n_heads, n_kv_heads, head_size : int
        depth : int
            Cells.
        batch : int
            Query tokens.
        n_threads : int
        policy : MeasurePolicy
        key_type, value_type : {"F16", "Q8_0", "Q4_0"}
            Of the cache. Over F16 many queries go in tiles; over others each goes by itself, as in llama.cpp.
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the cache; FLOP are 4 × head_size × n_heads × batch × depth.
        
        Raises
        ------
        ProbeError
            As `product`.
        ValueError
            A shape or a type that has no kernel.
        """
    def contention(self, type: str, layout: str, *, n_rows: int, n_columns: int, batch: int, chunk_bytes: int, policy: MeasurePolicy, n_used: int = 1, room_bytes: int | None = None) -> Contention:
        """
        How copies and products slow each other down: one thread copies from memory to memory, the others multiply.
        
        Parameters
        ----------
        type, layout, n_rows, n_columns, batch
            As those of `product`.
        chunk_bytes : int
            Of one copy.
        policy : MeasurePolicy
            For each of the four measurements.
        n_used : int
            Experts of one product, each with `batch` rows of activations.
        room_bytes : int, optional
            That copies are written to, in turn, as through a slot; no cache holds it by default.
        
        Returns
        -------
        Contention
        
        Raises
        ------
        ProbeError
            As `product`; and where there is only one CPU.
        ValueError
            As `product`.
        """
    def experts(self, type: str, layout: str, *, n_rows: int, n_columns: int, batch: int, n_used: int, n_threads: int, policy: MeasurePolicy, in_tiles: bool = False) -> ProbeResult:
        """
        Products with `n_used` different experts, `batch` rows of activations each.
        
        Parameters
        ----------
        type, layout, n_rows, n_columns, n_threads, policy
            As those of `product`, for each expert.
        batch : int
            Rows per expert that is used at all.
        n_used : int
        in_tiles : bool
            Many rows of activations at once, as pshard's own executor multiplies. llama.cpp does so for plain Q4_K and Q6_K
            alone, and takes those of other experts one by one.
        
        Returns
        -------
        ProbeResult
            `n_bytes` and `n_flop` are those of all experts that one sample uses.
        
        Raises
        ------
        ProbeError, ValueError
            As `product`.
        """
    def op_cost(self, *, n_threads: int, policy: MeasurePolicy) -> OpCost:
        """
        Cost of starting one operation on threads that poll, and of waking them.
        
        Parameters
        ----------
        n_threads : int
        policy : MeasurePolicy
        
        Returns
        -------
        OpCost
            Seconds are those of one operation.
        
        Raises
        ------
        ProbeError
            An operation was left out, or the clock is too coarse.
        """
    def peak(self, *, n_threads: int, policy: MeasurePolicy) -> Peak:
        """
        What the multiplying units do at most.
        
        Parameters
        ----------
        n_threads : int
        policy : MeasurePolicy
        
        Returns
        -------
        Peak
        
        Raises
        ------
        ProbeError
            A wrong sum.
        """
    def product(self, type: str, layout: str, *, n_rows: int, n_columns: int, batch: int, n_threads: int, policy: MeasurePolicy) -> ProbeResult:
        """
        Product of an n_rows × n_columns matrix with `batch` rows of activations, rounding of the activations included.
        
        Parameters
        ----------
        type : str
            One of `weight_types()` that CPUs multiply.
        layout : {"plain", "interleaved"}
            As in the file, or interleaved by rows, where the type is.
        n_rows, n_columns, batch : int
        n_threads : int
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the matrix.
        
        Raises
        ------
        ProbeError
            A wrong product, a sample that is too short for the clock, or too little memory.
        ValueError
            A type, layout or shape that has no kernel.
        """
    def read(self, *, n_threads: int, policy: MeasurePolicy) -> ProbeResult:
        """
        Read bandwidth of memory: threads sum their own parts of an array far larger than the caches.
        
        Parameters
        ----------
        n_threads : int
            At most as many as there are CPUs.
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the array.
        
        Raises
        ------
        ProbeError
            A wrong sum, or too little memory.
        """
    def scan(self, kind: str, *, n_heads: int, n_rows: int, n_columns: int, batch: int, n_threads: int, policy: MeasurePolicy) -> ProbeResult:
        """
        Scan of a recurrent layer over `batch` tokens of one sequence.
        
        Parameters
        ----------
        kind : {"mamba", "mamba2", "delta_net"}
        n_heads, n_rows, n_columns : int
            Of the state: a matrix for each head, with a row for each of its outputs.
        batch : int
            Tokens.
        n_threads : int
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the state before; FLOP are 6 for each of its elements and token.
        
        Raises
        ------
        ProbeError
            As `product`.
        ValueError
            A kind or a shape that has no kernel.
        """
    @property
    def n_threads(self) -> int:
        ...
    @property
    def path(self) -> str:
        ...
class GpuError(RuntimeError):
    """
    A call of the CUDA runtime failed, or there is no such GPU; the message has the call and what the runtime says.
    """
class GpuStart:
    """
    Seconds of starting work on a GPU.
    
    Attributes
    ----------
    launch : ProbeResult
        One of many kernels in a row that do nothing.
    hop : ProbeResult
        The same on two streams in turns, each kernel waiting for an event behind the one before.
    synchronise : ProbeResult
        One call that waits for an idle stream.
    """
    @property
    def hop(self) -> ProbeResult:
        ...
    @property
    def launch(self) -> ProbeResult:
        ...
    @property
    def synchronise(self) -> ProbeResult:
        ...
class Handoff:
    """
    Seconds of going from one processor to the other.
    
    Attributes
    ----------
    to_gpu : ProbeResult
        From the call that queues a kernel until that runs and the host sees it.
    to_cpu : ProbeResult
        From then until the host knows of its end.
    """
    @property
    def to_cpu(self) -> ProbeResult:
        ...
    @property
    def to_gpu(self) -> ProbeResult:
        ...
class Sides:
    """
    Two kinds of work, each alone and while the other goes on.
    
    Attributes
    ----------
    first_alone, second_alone, first_beside, second_beside : ProbeResult
    """
    @property
    def first_alone(self) -> ProbeResult:
        ...
    @property
    def first_beside(self) -> ProbeResult:
        ...
    @property
    def second_alone(self) -> ProbeResult:
        ...
    @property
    def second_beside(self) -> ProbeResult:
        ...
class LockedMemory:
    """
    How much host memory was page-locked.
    
    Attributes
    ----------
    n_bytes : int
    was_refused : bool
        The driver gave no more; otherwise no more was asked for.
    """
    @property
    def n_bytes(self) -> int:
        ...
    @property
    def was_refused(self) -> bool:
        ...
class GpuProbe:
    """
    Measures what a GPU and its link reach. Every result is verified.
    
    Parameters
    ----------
    index : int
        Which GPU, in the CUDA runtime's order.
    max_device_bytes, max_host_bytes : int
        Bounds of the memory that a probe takes.
    
    Raises
    ------
    GpuError
        No such GPU, or pshard was built without CUDA.
    ValueError
        No memory.
    """
    def __init__(self, index: int, *, max_device_bytes: int, max_host_bytes: int) -> None:
        ...
    def attend(self, queries: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], keys: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], values: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], *, n_kv_heads: int) -> numpy.typing.NDArray[numpy.float32]:
        """
        Attention as `attention` times it, for those who check the result.
        
        Parameters
        ----------
        queries : numpy.ndarray of float32, shape (batch, n_heads, head_size)
        keys, values : numpy.ndarray of uint8
            The bytes of F16 numbers, (depth, n_kv_heads, head_size) each.
        n_kv_heads : int
        
        Returns
        -------
        numpy.ndarray of float32, shape (batch, n_heads, head_size)
        
        Raises
        ------
        ValueError, GpuError
            As `multiply`.
        """
    def attention(self, *, n_heads: int, n_kv_heads: int, head_size: int, depth: int, batch: int, policy: MeasurePolicy) -> ProbeResult:
        """
        Fused attention of `batch` query tokens over an F16 cache of `depth` cells, each of which every token reads.
        
        Parameters
        ----------
        n_heads, n_kv_heads, head_size : int
        depth, batch : int
            Cells, and at most as many query tokens.
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the cache; FLOP are 4 × head_size × n_heads × batch × depth.
        
        Raises
        ------
        ProbeError, GpuError, ValueError
            As `product`.
        """
    def copies_beside_cpu(self, cpu: CpuProbe, type: str, *, n_rows: int, n_columns: int, batch: int, chunk_bytes: int, policy: MeasurePolicy) -> Contention:
        """
        Copies up and products of the CPU, each alone and beside the other.
        
        Parameters
        ----------
        cpu : CpuProbe
            Its first thread starts the copies, the others multiply.
        type, n_rows, n_columns, batch
            As those of `CpuProbe.product`.
        chunk_bytes : int
        policy : MeasurePolicy
        
        Returns
        -------
        Contention
        
        Raises
        ------
        ProbeError, GpuError, ValueError
            As `copy` and `CpuProbe.contention`.
        """
    def copies_beside_product(self, type: str, *, n_rows: int, n_columns: int, batch: int, chunk_bytes: int, policy: MeasurePolicy) -> Sides:
        """
        Copies up and products of the GPU, each alone and beside the other.
        
        Parameters
        ----------
        type, n_rows, n_columns, batch
            As those of `product`.
        chunk_bytes : int
        policy : MeasurePolicy
        
        Returns
        -------
        Sides
            First the copies, second the product.
        
        Raises
        ------
        ProbeError, GpuError, ValueError
            As `product` and `copies_both_ways`.
        """
    def copies_both_ways(self, *, chunk_bytes: int, policy: MeasurePolicy) -> Sides:
        """
        Copies up and copies down, each alone and beside the other.
        
        Parameters
        ----------
        chunk_bytes : int
        policy : MeasurePolicy
        
        Returns
        -------
        Sides
            First up, second down.
        
        Raises
        ------
        ProbeError, GpuError, ValueError
            As `copy`; and where one side ended before the other was measured.
        """
    def copy(self, direction: str, memory: str, *, chunk_bytes: int, is_scattered: bool, policy: MeasurePolicy) -> ProbeResult:
        """
        Copies between host and GPU, one behind the other.
        
        Parameters
        ----------
        direction : {"up", "down"}
            To the GPU, or to the host.
        memory : {"locked", "pageable"}
            Of the host. Pageable memory is copied by calls that wait, and timed by the clock of the host.
        chunk_bytes : int
            Of one copy, a multiple of 16.
        is_scattered : bool
            Chunks from all over the memory, as slices of experts lie; otherwise one after the other.
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            Of one copy, its set-up included.
        
        Raises
        ------
        ProbeError
            Bytes that did not arrive, memory that the driver does not page-lock, or too little memory.
        GpuError
            A call failed.
        ValueError
            An unknown name, or a chunk that is no multiple of 16.
        """
    def copy_on_device(self, *, policy: MeasurePolicy) -> ProbeResult:
        """
        Copies from the GPU's memory to itself.
        
        Parameters
        ----------
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` counts what is copied: memory reads and writes each of them.
        
        Raises
        ------
        ProbeError, GpuError
            As `read`.
        """
    def experts(self, type: str, *, n_rows: int, n_columns: int, n_experts: int, n_used: int, n_tokens: int, policy: MeasurePolicy) -> ProbeResult:
        """
        Products of tokens with their experts, which are drawn at random.
        
        Parameters
        ----------
        type, n_rows, n_columns, policy
            As those of `product`, for each expert.
        n_experts, n_used : int
            Experts that there are, and different ones for each token.
        n_tokens : int
        
        Returns
        -------
        ProbeResult
            `n_bytes` is those matrices that some token uses, `n_flop` counts all tokens.
        
        Raises
        ------
        ProbeError, GpuError, ValueError
            As `product`.
        """
    def handoff(self, *, policy: MeasurePolicy) -> Handoff:
        """
        Going from one processor to the other.
        
        Parameters
        ----------
        policy : MeasurePolicy
        
        Returns
        -------
        Handoff
        
        Raises
        ------
        ProbeError, GpuError
            As `read`.
        """
    def library_product(self, *, n_rows: int, n_columns: int, batch: int, policy: MeasurePolicy) -> ProbeResult:
        """
        As `product` of F16, by cuBLAS; rounding of the activations not included.
        
        Parameters
        ----------
        n_rows, n_columns, batch, policy
            As those of `product`.
        
        Returns
        -------
        ProbeResult
        
        Raises
        ------
        GpuError
            No cuBLAS is installed, or a call failed.
        ProbeError, ValueError
            As `product`.
        """
    def lockable(self, *, step_bytes: int, limit_bytes: int, budget_seconds: float) -> LockedMemory:
        """
        How much host memory the driver will page-lock. All of it is given back.
        
        Parameters
        ----------
        step_bytes, limit_bytes : int
            What is locked at a time, and at most.
        budget_seconds : float
            No further step begins after it.
        
        Returns
        -------
        LockedMemory
        
        Raises
        ------
        ValueError
            A step that is not positive.
        """
    def multiply(self, type: str, weights: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], activations: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        One product as `product` times it, for those who check its result.
        
        Parameters
        ----------
        type : str
        weights : numpy.ndarray of uint8, shape (n_rows, bytes of a row)
            As in a GGUF file.
        activations : numpy.ndarray of float32, shape (batch, n_columns)
        
        Returns
        -------
        numpy.ndarray of float32, shape (batch, n_rows)
        
        Raises
        ------
        ValueError
            Shapes that do not go together, or that no kernel takes.
        GpuError
            A call failed.
        """
    def multiply_experts(self, type: str, weights: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], ids: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], activations: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Routed experts as `experts` times them, for those who check the result.
        
        Parameters
        ----------
        type : str
        weights : numpy.ndarray of uint8, shape (n_experts, n_rows, bytes of a row)
        ids : numpy.ndarray of int32, shape (n_tokens, n_used)
        activations : numpy.ndarray of float32, shape (n_tokens, n_columns) or (n_tokens, n_used, n_columns)
        
        Returns
        -------
        numpy.ndarray of float32, shape (n_tokens, n_used, n_rows)
        
        Raises
        ------
        ValueError, GpuError
            As `multiply`.
        """
    def plain_copy_seconds(self, direction: str, *, chunk_bytes: int) -> float:
        """
        Seconds of one of many copies of page-locked memory in a row, by the clock of the host: what `copy` is held against.
        
        Parameters
        ----------
        direction : {"up", "down"}
        chunk_bytes : int
        
        Returns
        -------
        float
            Of the fastest of a few rounds. Nothing is verified.
        
        Raises
        ------
        ProbeError, GpuError, ValueError
            As `copy`.
        """
    def product(self, type: str, *, n_rows: int, n_columns: int, batch: int, policy: MeasurePolicy) -> ProbeResult:
        """
        Product of an n_rows × n_columns matrix with `batch` rows of activations, rounding of the activations included.
        
        Parameters
        ----------
        type : str
            One of `weight_types()` that GPUs multiply.
        n_rows, n_columns : int
        batch : int
            From 1 to 8192.
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the matrix.
        
        Raises
        ------
        ProbeError
            A wrong product, a sample that is too short for the GPU's clock, or too little memory.
        GpuError
            A call failed.
        ValueError
            A shape that no kernel takes.
        """
    def read(self, *, policy: MeasurePolicy) -> ProbeResult:
        """
        Read bandwidth of the GPU's memory.
        
        Parameters
        ----------
        policy : MeasurePolicy
        
        Returns
        -------
        ProbeResult
            `n_bytes` is the array.
        
        Raises
        ------
        ProbeError
            A wrong sum, or a sample that is too short for the GPU's clock.
        GpuError
            A call failed.
        """
    def start(self, *, policy: MeasurePolicy) -> GpuStart:
        """
        What starting work costs.
        
        Parameters
        ----------
        policy : MeasurePolicy
        
        Returns
        -------
        GpuStart
        
        Raises
        ------
        ProbeError, GpuError
            As `read`.
        """
    @property
    def copy_engines(self) -> int:
        ...
    @property
    def free_bytes(self) -> int:
        ...
    @property
    def name(self) -> str:
        ...
class StreamError(RuntimeError):
    """
    An execution that cannot go on: memory or a file that is not there, a result that is wrong.
    """
class Order(enum.Enum):
    overlapped = 0
    serial = 1
    unordered = 2
class LeftOut:
    """
    Operations that are not executed, and why; `weight_bytes` are those of products.
    """
    @property
    def count(self) -> int:
        ...
    @property
    def weight_bytes(self) -> int:
        ...
    @property
    def what(self) -> str:
        ...
class Split:
    """
    A run of operations on one device, and in one lane of it.
    
    Attributes
    ----------
    lane : Where
    device : int
        0 is the host, GPU i is i + 1.
    first_layer, n_layers : int
        Of the layers that it executes something of; -1 and 0 where it executes none.
    is_sliced : bool
        Of its streamed experts only those that are used are copied.
    """
    @property
    def device(self) -> int:
        ...
    @property
    def first_layer(self) -> int:
        ...
    @property
    def is_sliced(self) -> bool:
        ...
    @property
    def lane(self) -> Where:
        ...
    @property
    def n_layers(self) -> int:
        ...
    @property
    def offloads(self) -> bool:
        ...
    @property
    def streams(self) -> bool:
        ...
class Schedule:
    """
    The splits of one pass, in order, with all that is executed and copied for them.
    
    Attributes
    ----------
    n_tokens : int
    splits : list of Split
    left_out : list of LeftOut
        What is not executed.
    flop : float
        Of what is executed.
    weight_bytes : int
        Of the products that are executed, experts whole.
    """
    def slice(self, is_sliced: collections.abc.Sequence[bool]) -> None:
        """
        Say for each split whether its streamed experts come in slices, as the price says.
        """
    @property
    def flop(self) -> float:
        ...
    @property
    def left_out(self) -> list[LeftOut]:
        ...
    @property
    def n_tokens(self) -> int:
        ...
    @property
    def splits(self) -> list[Split]:
        ...
    @property
    def weight_bytes(self) -> int:
        ...
class SplitTime:
    """
    A split as it was priced; seconds from the start of the pass.
    """
    @property
    def backend(self) -> Where:
        ...
    @property
    def begin_seconds(self) -> float:
        ...
    @property
    def compute_begin_seconds(self) -> float:
        ...
    @property
    def compute_seconds(self) -> float:
        ...
    @property
    def copy_begin_seconds(self) -> float:
        ...
    @property
    def copy_seconds(self) -> float:
        ...
    @property
    def end_seconds(self) -> float:
        ...
    @property
    def exposed_seconds(self) -> float:
        ...
    @property
    def is_sliced(self) -> bool:
        ...
    @property
    def write_back_seconds(self) -> float:
        ...
class Lying:
    """
    Bytes of an arena that are in use for a while.
    
    Attributes
    ----------
    offset, n_bytes : int
    first_step, last_step : int
        Of the pass, both included; each split has one step to receive values and one for each operation, the logits have the last.
    """
    @property
    def first_step(self) -> int:
        ...
    @property
    def last_step(self) -> int:
        ...
    @property
    def n_bytes(self) -> int:
        ...
    @property
    def offset(self) -> int:
        ...
class DeviceLayout:
    """
    What lies where in a GPU's arena.
    
    Attributes
    ----------
    resident_bytes : int
        From the start: weights and caches that stay.
    lying : list of Lying
        Behind them: activations, results, and what is copied.
    n_bytes : int
        Of all of it.
    """
    @property
    def lying(self) -> list[Lying]:
        ...
    @property
    def n_bytes(self) -> int:
        ...
    @property
    def resident_bytes(self) -> int:
        ...
class SplitRecord:
    """
    When a split ran; seconds from the start of the pass. It begins when it has all it waited for.
    """
    @property
    def begin_seconds(self) -> float:
        ...
    @property
    def compute_seconds(self) -> float:
        ...
    @property
    def end_seconds(self) -> float:
        ...
class CopyRecord:
    """
    Copies of weights and cache for one split, on one queue.
    
    Attributes
    ----------
    split : int
    device : int
        Whose queue it is, as of a split: a cache that the CPU reads comes down from the GPU that holds it.
    stream : str
        "lane a", "lane b" or "down"; "compute" where the CPU copies for itself.
    begin_seconds, end_seconds : float
    n_bytes : int
    """
    @property
    def begin_seconds(self) -> float:
        ...
    @property
    def device(self) -> int:
        ...
    @property
    def end_seconds(self) -> float:
        ...
    @property
    def n_bytes(self) -> int:
        ...
    @property
    def split(self) -> int:
        ...
    @property
    def stream(self) -> str:
        ...
class PassRecord:
    """
    One pass as it ran.
    
    Attributes
    ----------
    seconds : float
    splits : list of SplitRecord
    copies : list of CopyRecord
    up_bytes, down_bytes : int
        Weights and cache.
    activation_bytes : int
        Both ways, graph inputs and logits included.
    n_checked : int
        Shards and results that were compared; 0 outside of checking mode.
    """
    @property
    def activation_bytes(self) -> int:
        ...
    @property
    def copies(self) -> list[CopyRecord]:
        ...
    @property
    def down_bytes(self) -> int:
        ...
    @property
    def n_checked(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def splits(self) -> list[SplitRecord]:
        ...
    @property
    def up_bytes(self) -> int:
        ...
class SwitchRecord:
    """
    What became resident when a schedule was loaded, and what cache lost its place.
    """
    @property
    def down_bytes(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def up_bytes(self) -> int:
        ...
class HostDevice:
    """
    A GPU that threads of this machine stand in for.
    
    Parameters
    ----------
    compute_cpus, copy_cpus : list of int
        CPUs that its threads stay on; others may share them.
    arena_bytes : int
        Of host memory, as its own.
    """
    def __init__(self, *, compute_cpus: collections.abc.Sequence[int], copy_cpus: collections.abc.Sequence[int], arena_bytes: int) -> None:
        ...
    @property
    def arena_bytes(self) -> int:
        ...
    @property
    def compute_cpus(self) -> list[int]:
        ...
    @property
    def copy_cpus(self) -> list[int]:
        ...
class TensorInFile:
    """
    Where a tensor lies: index of the file, offset and size in bytes.
    """
    def __init__(self, name: str, file: int, offset: int, n_bytes: int) -> None:
        ...
class Executor:
    """
    Runs schedules on this machine.
    
    Parameters
    ----------
    schedules : list of Schedule
        What several keep resident has one place in all of them.
    host_cpus : list of int
        That compute the splits of the CPU.
    devices : list of HostDevice, optional
        Threads that stand in for GPUs; without them, the GPUs of the CUDA runtime run.
    vram_bytes : list of list of int
        What each schedule may use of each GPU's memory.
    is_limited : bool
        Whether `vram_bytes` are a budget that somebody gave; if not, arenas are as much larger as the schedules need.
    page_lock_bytes : int
        At most so much host memory is page-locked; what is copied from other memory is staged.
    files, tensors : lists of str and TensorInFile, optional
        Where the weights lie; without, valid random blocks are made.
    routing_exponent : float
        Of the distribution that experts are drawn from: 0 is uniform, s is Zipf's with that exponent.
    seed : int
        Of weights and routes.
    order : Order
    check : bool
        Compare what arrives by checksum, and every product with a reference.
    path : str
        Instruction set of the CPU, one of `cpu_paths()`.
    
    Raises
    ------
    StreamError
        A schedule needs more of an arena than it may, memory is refused, a file is not what it should be.
    ProbeError
        A CPU is not available to this process.
    ValueError
        An order without waits that is to be checked, a distribution that cannot be drawn from.
    """
    def __init__(self, schedules: collections.abc.Sequence[Schedule], *, host_cpus: collections.abc.Sequence[int], devices: collections.abc.Sequence[HostDevice] | None = None, vram_bytes: collections.abc.Sequence[collections.abc.Sequence[int]], page_lock_bytes: int, files: collections.abc.Sequence[str] = [], tensors: collections.abc.Sequence[TensorInFile] = [], routing_exponent: float = 0.0, seed: int = 1, order: Order = ..., check: bool = False, path: str = '', is_limited: bool = True) -> None:
        ...
    def arena_bytes(self, schedule: int, gpu: int = 0) -> int:
        """
        What a schedule takes of a GPU's arena.
        """
    def load(self, schedule: int) -> SwitchRecord:
        """
        Make what a schedule keeps resident so.
        
        Raises
        ------
        StreamError
            What went wrong; the executor can be used again.
        """
    def run(self, schedule: int) -> PassRecord:
        """
        Run one pass; loads first, if another is loaded.
        
        Raises
        ------
        StreamError
            What went wrong, or was found wrong; the executor can be used again.
        """
    def weights(self, schedule: int, name: str) -> bytes:
        """
        Bytes of a tensor, as passes copy and multiply them.
        
        Raises
        ------
        ValueError
            The schedule has no such tensor.
        """
    @property
    def locked_bytes(self) -> int:
        ...
    @property
    def queueing_seconds(self) -> tuple[float, float]:
        """
        Of the host, to queue the last pass; and of that, in calls that hand over copies and operations.
        """
    @property
    def staged_bytes(self) -> int:
        ...
def alarm_height(values_per_false_alarm: float) -> float:
    ...
def all_knobs(strategy: str, model: Model) -> list[Knobs]:
    ...
def assign(chain: Chain, *, objective: Objective = Objective.latency, search_order: bool = False, allow_empty: bool = True, max_exact_order: int = 8) -> Assignment:
    ...
def cache_bytes(model: Model, layer: Layer, context: ContextParameters, where: Where = Where.pinned) -> int:
    ...
def cache_cells(model: Model, context: ContextParameters) -> CacheCells:
    ...
def cpu_paths() -> list[str]:
    """
    Instruction sets that this build has kernels for and this CPU runs, from the plainest to the fastest.
    """
def dequantise(type: str, rows: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Weights as numbers: what results of kernels are held against.
    
    Parameters
    ----------
    type : str
        One of `weight_types()`.
    rows : numpy.ndarray of uint8, shape (n_rows, bytes of a row)
        Plain rows, as GGUF stores them.
    
    Returns
    -------
    numpy.ndarray of float64, shape (n_rows, n_columns)
    
    Raises
    ------
    ValueError
        An unknown type, or rows that are not whole blocks.
    """
def device_costs(model: Model, machine: Machine, pass_: Pass, on_gpu: bool) -> DeviceCosts:
    ...
def distinct_expert_share(n_expert: int, n_expert_used: int, n_tokens: float) -> float:
    ...
def embedding_bytes(model: Model) -> int:
    ...
def embedding_operations(model: Model, pass_: Pass) -> list[typing.Any]:
    ...
def encoder_buffers(encoder: Encoder, width: int, height: int, n_images: int, flash_attn: bool, on_gpu: bool, tile_columns: int = 0) -> EncoderBuffers:
    """
    What one pass of an encoder of images or sound computes in.
    """
def gpu_head_bytes(model: Model) -> int:
    ...
def gpu_of(where: Where) -> int:
    ...
def gpu_tensor_bytes(tensor: Tensor) -> int:
    ...
def gpu_weight_bytes(layer: Layer, placement: LayerPlacement) -> int:
    ...
def group_of(tensor_name: str) -> Group:
    ...
def head_operations(model: Model, pass_: Pass) -> list[typing.Any]:
    ...
def host_head_bytes(model: Model) -> int:
    ...
def host_weight_bytes(layer: Layer, placement: LayerPlacement) -> int:
    ...
def interval_deviations(passages_per_window: float) -> float:
    ...
def is_described(encoder: Encoder) -> bool:
    ...
def is_pinned(where: Where) -> bool:
    ...
def kernel_demand(model: Model, placement: Placement, context: ContextParameters, n_tokens: int) -> list[KernelDemand]:
    """
    What CUDA kernels take besides the compute buffers, by GPU.
    """
def kv_bytes_per_cell(layer: LayerParameters, type_k: DataType, type_v: DataType) -> int:
    ...
def last_level_cache_bytes() -> int:
    """
    Bytes of the largest cache, as the operating system tells; 128 MiB where it does not.
    """
def lay_out(schedules: collections.abc.Sequence[Schedule], vram_bytes: collections.abc.Sequence[collections.abc.Sequence[int]]) -> list[list[DeviceLayout]]:
    """
    Lay out schedules as the executor does where kernels need no scratch, and allocate nothing.
    
    Parameters
    ----------
    schedules : list of Schedule
    vram_bytes : list of list of int
        What each may use of each GPU; one that needs more takes what it needs.
    
    Returns
    -------
    list of list of DeviceLayout
        By schedule and GPU.
    
    Raises
    ------
    ValueError
        As many limits as there are not schedules.
    """
def layer_of(tensor_name: str) -> int:
    ...
def layer_operations(model: Model, layer: int, pass_: Pass, is_last: bool = False) -> list[typing.Any]:
    ...
def layer_places(n_layer: int, n_gpu_layers: int, shares: collections.abc.Sequence[float]) -> list[Where]:
    ...
def local_name(tensor_name: str) -> str:
    ...
def make_placement(strategy: str, knobs: Knobs, model: Model) -> Placement:
    ...
def make_schedule(model: Model, placement: Placement, pass_: Pass, cache_bytes: collections.abc.Sequence[int]) -> Schedule:
    """
    Make the schedule of a pass under a placement.
    
    Parameters
    ----------
    model : Model
    placement : Placement
    pass_ : Pass
        Of one sequence.
    cache_bytes : list of int
        What is reserved for each layer's cache or state.
    
    Returns
    -------
    Schedule
    
    Raises
    ------
    ValueError
        Several sequences, or as many sizes as there are not layers.
    """
def memory(model: Model, placement: Placement, context: ContextParameters, n_tokens: int, stage: MemoryStage = MemoryStage.stated) -> MemoryReport:
    """
    Bytes per device for one placement.
    """
def multiply(type: str, layout: str, *, weights: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], activations: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], path: str = '') -> numpy.typing.NDArray[numpy.float32]:
    """
    Multiply by one of the kernels that are measured.
    
    Parameters
    ----------
    type, layout : str
        As those of `CpuProbe.product`. Interleaving is done here.
    weights : numpy.ndarray of uint8, shape (n_rows, bytes of a row)
        Plain rows, as GGUF stores them.
    activations : numpy.ndarray of float32, shape (batch, n_columns)
        Finite. Rounded to eight bits per value, with weights in F16 or BF16 to those, with F32 not at all, as llama.cpp
        does.
    path : str
        One of `cpu_paths()`; the fastest by default.
    
    Returns
    -------
    numpy.ndarray of float32, shape (batch, n_rows)
    
    Raises
    ------
    ValueError
        A type, layout, path or shape that has no kernel.
    """
def offloads_head(strategy: str, model: Model) -> bool:
    ...
def pinned_on(gpu: int) -> Where:
    ...
def plan_runtime(model: Model, machine: Machine, context: ContextParameters, workload: Workload, tiers: collections.abc.Sequence[TierPlan]) -> RuntimePlan:
    ...
def plan_stock(model: Model, machine: Machine, context: ContextParameters, workload: Workload, budget: Budget, micro_batches: collections.abc.Sequence[int]) -> StockPlan:
    ...
def plan_tier(model: Model, machine: Machine | None, context: ContextParameters, workload: Workload, budget: Budget, strategies: collections.abc.Sequence[str], batch_size: int, fit: StockFit, fit_context: ContextParameters, allow_stock_fit: bool = True) -> TierPlan:
    ...
def price_executed(model: Model, machines: collections.abc.Sequence[Machine], pass_: Pass, placement: Placement) -> tuple[PassTime, list[SplitTime]]:
    """
    Price a pass of which only the operations that the executor runs count.
    
    Parameters
    ----------
    model : Model
    machines : list of Machine
        One where all GPUs are alike, else one for each; the first is the host's, too.
    pass_ : Pass
    placement : Placement
    
    Returns
    -------
    tuple of PassTime and list of SplitTime
        One for each split of `make_schedule`.
    
    Raises
    ------
    ValueError
        Fewer machines than GPUs, or several of which one has no GPU; no rate of a weight's type.
    """
def price_pass(model: Model, machine: Machine, pass_: Pass, placement: Placement) -> PassTime:
    ...
def price_workload(model: Model, machine: Machine, context: ContextParameters, workload: Workload, placement: Placement) -> WorkloadTime:
    ...
def probe_storage(path: str, *, n_bytes: int, chunk_bytes: int, policy: MeasurePolicy) -> ProbeResult:
    """
    Sequential reads of a file past the cache of the operating system.
    
    Parameters
    ----------
    path : str
    n_bytes : int
        Only the first so many are read, again from the start where the policy asks for more.
    chunk_bytes : int
        That one sample reads, a multiple of 4096.
    policy : MeasurePolicy
    
    Returns
    -------
    ProbeResult
        `note` says how the cache was passed by.
    
    Raises
    ------
    ProbeError
        The file cannot be read, is shorter than one chunk, or two reads of the same bytes differ.
    ValueError
        `chunk_bytes` is no multiple of a page.
    """
def query_gpus() -> GpuQuery:
    """
    Ask the CUDA runtime for the GPUs of this machine. Opens a context on each; an absent driver or device is an answer, not an error.
    """
def queue_costs(host_cpus: collections.abc.Sequence[int], device: HostDevice) -> tuple[float, float]:
    """
    Seconds to start an operation on a host device, and to go on with the work of another queue.
    """
def random_rows(type: str, *, n_rows: int, n_columns: int, seed: int) -> numpy.typing.NDArray[numpy.uint8]:
    """
    Rows of weights as probes multiply them: random codes, and scales of such magnitudes that nothing overflows.
    
    Parameters
    ----------
    type : str
        One of `weight_types()`.
    n_rows, n_columns : int
    seed : int
    
    Returns
    -------
    numpy.ndarray of uint8, shape (n_rows, bytes of a row)
    
    Raises
    ------
    ValueError
        An unknown type, or columns that are not whole blocks.
    """
def resident_memory(model: Model, placement: Placement, context: ContextParameters) -> MemoryReport:
    """
    Weights and caches alone.
    """
def resolve_flash_attention(model: Model, placement: Placement, context: ContextParameters) -> ContextParameters:
    ...
def search(strategy: str, model: Model, machine: Machine | None, context: ContextParameters, workload: Workload, budget: Budget, batch_size: int, exhaustively: bool = False) -> Found:
    ...
def skip_strings(data: typing_extensions.Buffer, count: int) -> tuple[int, int]:
    """
    Step over whole GGUF strings at the start of data: (strings, bytes).
    """
def state_bytes(layer: LayerParameters) -> int:
    ...
def stock_fit(model: Model, context: ContextParameters, gpus: collections.abc.Sequence[FitDevice], *, host: FitDevice | None = None, n_ctx_min: int = 4096, offload_kqv: bool = True, op_offload: bool = True, given: Placement | None = None, n_gpu_layers: int = -1, draft: FitDraft | None = None) -> StockFit:
    ...
def strategy_names() -> list[str]:
    ...
def switch_cost(model: Model, machine: Machine, from_: Placement, to: Placement, cache_bytes_per_layer: collections.abc.Sequence[int]) -> SwitchCost:
    ...
def tier_ladder(context: ContextParameters, n_draft: int = 0, tier_max: int = 0) -> list[int]:
    ...
def tier_pass(model: Model, context: ContextParameters, workload: Workload, n_tokens: int) -> Pass:
    ...
def weight_types() -> list[WeightType]:
    """
    Types of weights whose blocks are known here.
    """
built_with_cuda: bool
