"""Where every byte of a model should live, and how fast it will be.

>>> import pshard
>>> model = pshard.read_model("llama-3.3-70b:Q4_K_M")       # or the path of a GGUF
>>> machine = pshard.load_machine("rtx-3060-12g")           # or the path of a profile
>>> pshard.plan(model, machine, vram_bytes=12 << 30).to_dict()
>>> pshard.estimate_memory(model, n_ctx=8192, devices=[24 << 30, 24 << 30]).devices[0].compute_bytes

Names are loaded when they are first used, so that ``import pshard`` and ``pshard --help`` cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pshard.errors import (
    GgufError,
    MachineError,
    MetricsError,
    ModelError,
    NoFeasiblePlanError,
    PshardError,
    SettingError,
)

if TYPE_CHECKING:
    from pshard.cluster.cluster import Cluster
    from pshard.cluster.device_list import parse_devices
    from pshard.cluster.toml_reading import read_cluster
    from pshard.detection import detect_devices
    from pshard.machine.machine import Machine, load_machine
    from pshard.mapping.device_map import map_model
    from pshard.mapping.types import DeviceMap, MapParameters
    from pshard.memory.memory import estimate_memory
    from pshard.memory.placed import Draft
    from pshard.memory.projector import Projector, read_projector
    from pshard.memory.report import MemoryReport
    from pshard.memory.stock_fit import Fit, fit
    from pshard.model.model import Model, read_model
    from pshard.planning.planner import Plan, plan
    from pshard.rebalance.balancer import Decision, LoadBalancer, RebalanceConfig
    from pshard.sharding.sharding import plan_sharding
    from pshard.sharding.types import ShardingPlan, ShardParameters

__all__ = [
    "Cluster",
    "Decision",
    "DeviceMap",
    "Draft",
    "Fit",
    "GgufError",
    "LoadBalancer",
    "Machine",
    "MachineError",
    "MapParameters",
    "MemoryReport",
    "MetricsError",
    "Model",
    "ModelError",
    "NoFeasiblePlanError",
    "Plan",
    "Projector",
    "PshardError",
    "RebalanceConfig",
    "SettingError",
    "ShardParameters",
    "ShardingPlan",
    "__version__",
    "detect_devices",
    "estimate_memory",
    "fit",
    "load_machine",
    "map_model",
    "parse_devices",
    "plan",
    "plan_sharding",
    "read_cluster",
    "read_model",
    "read_projector",
]

_HOME = {
    "Cluster": "pshard.cluster.cluster",
    "read_cluster": "pshard.cluster.toml_reading",
    "detect_devices": "pshard.detection",
    "parse_devices": "pshard.cluster.device_list",
    "Machine": "pshard.machine.machine",
    "load_machine": "pshard.machine.machine",
    "Draft": "pshard.memory.placed",
    "estimate_memory": "pshard.memory.memory",
    "MemoryReport": "pshard.memory.report",
    "Model": "pshard.model.model",
    "read_model": "pshard.model.model",
    "DeviceMap": "pshard.mapping.types",
    "MapParameters": "pshard.mapping.types",
    "map_model": "pshard.mapping.device_map",
    "Plan": "pshard.planning.planner",
    "plan": "pshard.planning.planner",
    "Projector": "pshard.memory.projector",
    "read_projector": "pshard.memory.projector",
    "ShardParameters": "pshard.sharding.types",
    "ShardingPlan": "pshard.sharding.types",
    "plan_sharding": "pshard.sharding.sharding",
    "Decision": "pshard.rebalance.balancer",
    "LoadBalancer": "pshard.rebalance.balancer",
    "RebalanceConfig": "pshard.rebalance.balancer",
    "Fit": "pshard.memory.stock_fit",
    "fit": "pshard.memory.stock_fit",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(import_module(_HOME[name]), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("pshard")
    elif name == "_core":
        try:
            return import_module("pshard._core")
        except ImportError as error:
            error.add_note("The compiled part of pshard cannot be loaded. In the source tree, run: pip install .")
            raise
    else:
        message = f"module 'pshard' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
