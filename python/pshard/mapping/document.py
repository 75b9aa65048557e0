"""The JSON document of ``pshard map``; docs/map.md is its manual, and ``pshard run --map`` reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pshard.mapping.types import DeviceMap, LayerMap, MappedDevice

SCHEMA_VERSION = 1


def describe(found: DeviceMap) -> dict[str, object]:
    """Return the document of a map."""
    parameters = found.parameters
    kind = "vision" if found.vision else "text"
    images = {
        "max_image_shape": list(parameters.max_image_shape),
        "max_num_images": parameters.max_num_images,
    }
    mapped_bytes, non_mapped_bytes = found.activation_bytes
    return {
        "schema_version": SCHEMA_VERSION,
        "model": found.model.name,
        "architecture": found.model.architecture,
        "n_layer": found.model.n_layer,
        "objective": found.goal,
        "load": found.load,
        "parameters": {
            "kind": kind,
            "max_seq_len": parameters.max_seq_len,
            "max_batch_size": parameters.max_batch_size,
            **(images if found.vision else {}),
            "n_ubatch": parameters.n_ubatch,
            "type_k": parameters.type_k,
            "type_v": parameters.type_v,
            "flash_attn": parameters.flash_attn,
            "allow_swap": parameters.allow_swap,
        },
        "cache": {
            "policy": found.cache_policy,
            "block_tokens": parameters.paged_block if found.cache_policy == "paged" else None,
            "paged_fallback": found.paged_fallback,
        },
        "activations": {"mapped_bytes": mapped_bytes, "non_mapped_bytes": non_mapped_bytes},
        "exact": found.exact,
        "basis": found.basis or None,
        "map": layer_map(found.layers, found.load),
        "greedy": None if found.greedy is None else layer_map(found.greedy, found.load),
        "llama_cpp": None
        if found.llama_cpp is None
        else {"argv": list(found.llama_cpp.argv), "map": layer_map(found.llama_cpp.layers, found.load)},
        "warnings": list(found.warnings),
        "notes": list(found.notes),
    }


def layer_map(layers: LayerMap, load: str) -> dict[str, object]:
    """Return one layout: its devices and, where speeds are known, its times."""
    return {
        "order": list(layers.order),
        "head": layers.head,
        "pipeline": layers.pipeline,
        "seconds": layers.seconds,
        "spread_seconds": layers.spread_seconds,
        "slowest_seconds": layers.slowest_seconds,
        "pass_tokens": layers.n_tokens or None,
        "tokens_per_second": layers.tokens_per_second("pipelined" if load == "pipelined" else "stream"),
        "devices": [_device(device, layers.seconds) for device in layers.devices],
    }


def _device(mapped: MappedDevice, seconds: float | None) -> dict[str, object]:
    share = None
    if seconds and mapped.seconds is not None:
        share = (mapped.seconds + (mapped.transfer_seconds or 0.0)) / seconds
    return {
        "name": mapped.device.name,
        "kind": mapped.device.kind,
        "host": mapped.device.host,
        "first_layer": mapped.first_layer,
        "n_layer": mapped.n_layer,
        "non_mapped": list(mapped.non_mapped),
        "free_bytes": mapped.free_bytes,
        "reserve_bytes": mapped.reserve_bytes,
        "capacity_bytes": mapped.capacity_bytes,
        "weights_bytes": mapped.weights_bytes,
        "cache_bytes": mapped.cache_bytes,
        "compute_bytes": mapped.compute_bytes,
        "projector_bytes": mapped.projector_bytes,
        "used_bytes": mapped.used_bytes,
        "left_bytes": mapped.left_bytes,
        "seconds": mapped.seconds,
        "transfer_seconds": mapped.transfer_seconds,
        "share_of_time": share,
    }
