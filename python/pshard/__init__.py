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

from pshard.errors import GgufError, MachineError, ModelError, NoFeasiblePlanError, PshardError, SettingError

if TYPE_CHECKING:
    from pshard.machine import Machine, load_machine
    from pshard.memory import Draft, estimate_memory
    from pshard.memory_report import MemoryReport
    from pshard.model import Model, read_model
    from pshard.planner import Plan, plan
    from pshard.projector import Projector, read_projector
    from pshard.stock_fit import Fit, fit

__all__ = [
    "Draft",
    "Fit",
    "GgufError",
    "Machine",
    "MachineError",
    "MemoryReport",
    "Model",
    "ModelError",
    "NoFeasiblePlanError",
    "Plan",
    "Projector",
    "PshardError",
    "SettingError",
    "__version__",
    "estimate_memory",
    "fit",
    "load_machine",
    "plan",
    "read_model",
    "read_projector",
]

_HOME = {
    "Machine": "pshard.machine",
    "load_machine": "pshard.machine",
    "Draft": "pshard.memory",
    "estimate_memory": "pshard.memory",
    "MemoryReport": "pshard.memory_report",
    "Model": "pshard.model",
    "read_model": "pshard.model",
    "Plan": "pshard.planner",
    "plan": "pshard.planner",
    "Projector": "pshard.projector",
    "read_projector": "pshard.projector",
    "Fit": "pshard.stock_fit",
    "fit": "pshard.stock_fit",
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
