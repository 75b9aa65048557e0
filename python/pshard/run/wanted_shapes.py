"""Shapes of a model's products, which predictions of a run need rates for."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pshard.errors import ModelError
from pshard.weight_types import executed_types

if TYPE_CHECKING:
    from pshard.model.model import Model

Shape = tuple[int, int]
# Kernels multiply columns by so many at least.
KERNEL_COLUMNS = 32


def wanted_of(model: Model) -> tuple[dict[str, tuple[Shape, ...]], dict[str, tuple[Shape, ...]]]:
    """Return the shapes that predictions need rates for, of each type, dense and routed: rows and columns.

    The one with most bytes comes first.

    Raises
    ------
    ModelError
        None of the model's products has a native kernel.
    """
    from pshard.model.model import type_name

    types = executed_types()
    found: dict[tuple[bool, str], dict[Shape, int]] = defaultdict(dict)
    head = {tensor.name for tensor in model.core.head}
    for tensor in model.tensors:
        name = type_name(tensor.type)
        is_routed = len(tensor.shape) == 3 and tensor.shape[2] > 1 and "_exps" in tensor.name
        is_look_up = tensor.name.startswith("token_embd") and tensor.name not in head
        if name not in types or len(tensor.shape) < 2 or is_look_up or tensor.shape[0] % KERNEL_COLUMNS:
            continue
        # The head is one matrix among many: it stands for its type only where nothing else does.
        n_bytes = 0 if tensor.name in head else tensor.n_bytes
        shapes = found[is_routed, name]
        shape = (tensor.shape[1], tensor.shape[0])
        shapes[shape] = max(shapes.get(shape, 0), n_bytes)
    if not found:
        message = f"{model.name}: none of its weights has a type that is executed; give {', '.join(types)}."
        raise ModelError(message)

    def largest_first(routed: bool) -> dict[str, tuple[Shape, ...]]:
        return {
            name: tuple(sorted(shapes, key=lambda shape: (-shapes[shape], shape)))
            for (is_routed, name), shapes in found.items()
            if is_routed == routed
        }

    return largest_first(False), largest_first(True)
