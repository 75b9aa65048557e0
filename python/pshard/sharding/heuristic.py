"""What ai-hwaccel's planner would say: a heuristic by rules and constants, shown beside what is priced.

Rules are those of its ``plan_sharding``; constants and multipliers are those of version 1.2.0 (``units.rs``,
``hardware.rs``, ``quantization.rs``). It knows neither layers, nor caches, nor what one device of several can hold.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pshard.sharding.types import Heuristic

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster, Device
    from pshard.model.model import Model

NVSWITCH_TP_BONUS = 1.8
MAX_NON_NVSWITCH_TP_BONUS = 0.8
TP_INTERCONNECT_BW_DIVISOR = 200.0
TP_MIN_INTERCONNECT_BW = 100.0
TP_MAX_DEVICES_WITHOUT_NVSWITCH = 8
PP_HIGH_BW_EFFICIENCY = 0.85
PP_PCIE_ONLY_EFFICIENCY = 0.65
TPU_TP_ICI_BONUS = 2.0
TOKENS_PER_SEC_BASE = 1e9
ACTIVATION_OVERHEAD = 1.2

# Relative to a CPU; kinds that it does not know count as a generic (Vulkan) GPU.
THROUGHPUT = {
    "cpu": 1.0, "nvidia": 20.0, "gpu": 20.0, "amd": 15.0, "apple": 12.0, "intel": 13.0, "gaudi": 22.0, "neuron": 24.0,
    "qualcomm": 14.0, "tpu": 25.0,
}  # fmt: skip
GENERIC_THROUGHPUT = 10.0


def heuristic(model: Model, cluster: Cluster) -> Heuristic:
    """Apply the rules.

    Parameters
    ----------
    model : Model
        Of which only the number of parameters and the bits per parameter count.
    cluster : Cluster

    Returns
    -------
    Heuristic
    """
    n_parameters = model.n_parameters
    bits = 8 * model.tensor_bytes / n_parameters
    # It knows 32, 16, 8 and 4 bits.
    reduction = 32 / min((32, 16, 8, 4), key=lambda known: abs(math.log(bits / known)))
    needed = math.ceil(n_parameters * 4 / reduction * ACTIVATION_OVERHEAD)
    available = [device for device in cluster.devices if device.available]
    if not available:
        return Heuristic(strategy="data_parallel", n_devices=0, total_memory_bytes=0, tokens_per_second=None)
    best = max(available, key=lambda device: (_throughput(device), device.memory_total_bytes))

    def alone(device: Device) -> Heuristic:
        speed = TOKENS_PER_SEC_BASE / n_parameters * _throughput(device) * reduction
        return Heuristic(strategy="none", n_devices=1, total_memory_bytes=needed, tokens_per_second=speed)

    if needed <= best.memory_total_bytes:
        return alone(best)
    tpus = [device for device in available if device.family == "tpu"]
    if tpus and sum(device.memory_total_bytes for device in tpus) >= needed:
        chips = sum(device.chips for device in tpus)
        speed = min(map(_throughput, tpus)) * chips * reduction * TPU_TP_ICI_BONUS
        return Heuristic(
            strategy="tensor_parallel", n_devices=chips, total_memory_bytes=needed, tokens_per_second=speed
        )
    pool = [device for device in available if device.family in ("gpu", "asic", "tpu")]
    if not pool or sum(device.memory_total_bytes for device in pool) < needed:
        cpu = next((device for device in available if device.is_cpu), available[-1])
        return alone(cpu)
    switch, high = _fast_links(cluster)
    slowest = min(map(_throughput, pool)) * len(pool) * reduction
    if prefers_ranks(cluster, len(pool)):
        bonus = NVSWITCH_TP_BONUS if switch else 1 + min(high / TP_INTERCONNECT_BW_DIVISOR, MAX_NON_NVSWITCH_TP_BONUS)
        strategy, speed = "tensor_parallel", slowest * bonus
    else:
        strategy, speed = (
            "pipeline_parallel",
            slowest * (PP_HIGH_BW_EFFICIENCY if high > 0 else PP_PCIE_ONLY_EFFICIENCY),
        )
    return Heuristic(strategy=strategy, n_devices=len(pool), total_memory_bytes=needed, tokens_per_second=speed)


def prefers_ranks(cluster: Cluster, n_devices: int) -> bool:
    """Whether the rules share every layer among the devices, for their links; else they make a pipeline."""
    switch, high = _fast_links(cluster)
    return switch or (high > TP_MIN_INTERCONNECT_BW and n_devices <= TP_MAX_DEVICES_WITHOUT_NVSWITCH)


def _fast_links(cluster: Cluster) -> tuple[bool, float]:
    """Whether there is an NVSwitch, and the GB/s of NVLink and xGMI together."""
    rates: dict[str, float] = {}
    for link in cluster.links:
        rates[link.kind] = max(rates.get(link.kind, 0.0), link.bandwidth_bytes_per_second / 1e9)
    high = max(rates.get("nvlink", 0.0), rates.get("nvswitch", 0.0)) + rates.get("xgmi", 0.0)
    return "nvswitch" in rates, high


def _throughput(device: Device) -> float:
    return THROUGHPUT.get(device.kind, GENERIC_THROUGHPUT)
