"""From a problem to its map: the fastest layout, the greedy one beside it, and what to say where nothing fits."""

from __future__ import annotations

from dataclasses import replace

from pshard.errors import NoFeasiblePlanError
from pshard.mapping.llama_map import llama_launch
from pshard.mapping.problem import Layout, MapProblem
from pshard.mapping.solvers import DoesNotFitError, fastest, fill, layout_value, repaired
from pshard.mapping.types import DeviceMap
from pshard.quantities import MIB

SHORTEST_CONTEXT = 512


def find_map(problem: MapProblem) -> DeviceMap:
    """Find the map.

    Raises
    ------
    NoFeasiblePlanError
        With every capacity, the missing bytes and what would help.
    """
    order = list(range(len(problem.devices)))
    greedy = found = None
    try:
        greedy = found = repaired(problem, fill(problem, order))
    except DoesNotFitError as error:
        if problem.goal == "memory":
            raise does_not_fit(problem, error) from None
    if problem.goal != "memory":
        try:
            found = repaired(problem, fastest(problem, order, ["first", "last"]))
        except DoesNotFitError as error:
            raise does_not_fit(problem, error) from None
        if greedy is not None and layout_value(problem, greedy) < layout_value(problem, found):
            found = greedy
    assert found is not None
    uses_cpu = any(problem.devices[run.device].is_cpu for run in found.runs)
    if problem.parameters.paged_block is not None and uses_cpu:
        return _without_paging(problem)
    layers = problem.layer_map(found)
    _say_who_has_none(problem, found)
    return DeviceMap(
        model=problem.model,
        cluster=problem.cluster,
        parameters=problem.parameters,
        vision=problem.projector is not None,
        goal=problem.goal,
        load=problem.load,
        layers=layers,
        exact=problem.goal != "memory" and found is not greedy and not found.repaired,
        greedy=None if greedy is None else problem.layer_map(greedy),
        cache_policy="contiguous" if problem.parameters.paged_block is None else "paged",
        paged_fallback=False,
        activation_bytes=problem.activation_bytes(),
        basis="" if problem.times is None else problem.times.basis.name,
        llama_cpp=llama_launch(problem.changed(paged_block=None), found)
        if problem.parameters.paged_block
        else llama_launch(problem, found),
        warnings=tuple((*problem.model.warnings, *problem.warnings)),
        notes=tuple(problem.notes),
    )


def _without_paging(problem: MapProblem) -> DeviceMap:
    found = find_map(problem.changed(paged_block=None))
    note = "The CPU has layers, where caches are not paged: caches are contiguous everywhere."
    return replace(found, paged_fallback=True, notes=(*found.notes, note))


def _say_who_has_none(problem: MapProblem, layout: Layout) -> None:
    """Warn of devices that can take no layer, and say of which ones it is a choice."""
    mapped, _ = problem.activation_bytes()
    has_layers = {run.device for run in layout.runs}
    for d, device in enumerate(problem.devices):
        if d in has_layers or device.is_cpu:
            continue
        smallest = int(problem.bytes.layers[:, d].min())
        if problem.capacity[d] < mapped + smallest:
            problem.warnings.append(
                f"{device.name} can take no layer: {_mib(problem.capacity[d])} may be used (of {_mib(problem.free[d])} "
                f"free), and the smallest layer with its compute buffers needs {_mib(mapped + smallest)}. Reduce "
                f"--max-seq-len, --max-batch-size or -ub, or quantise the cache (now "
                f"{problem.parameters.describe(vision=problem.projector is not None)})."
            )
        else:
            problem.notes.append(f"{device.name} is left without layers: it is not needed.")


def does_not_fit(problem: MapProblem, error: DoesNotFitError) -> NoFeasiblePlanError:
    """Say what every device may hold, what is missing, and what would help."""
    missing = sum(error.lacking)
    lines = [
        f"{device.name} may hold {_mib(problem.capacity[d])} ({_mib(problem.free[d])} free)"
        + (f" and lacks {_mib(error.lacking[d])}" if error.lacking[d] else "")
        for d, device in enumerate(problem.devices)
    ]
    vision = problem.projector is not None
    message = (
        f"{problem.model.name} does not fit on these devices: {_mib(missing)} are missing ({missing} bytes). "
        f"{'; '.join(lines)}. Parameters: {problem.parameters.describe(vision=vision)}. "
    )
    return NoFeasiblePlanError(message + _advice(problem, missing), missing)


def _advice(problem: MapProblem, missing: int) -> str:
    helps = [f"{_mib(missing)} more memory on the devices that lack it"]
    n_ctx = problem.parameters.max_seq_len // 2
    while n_ctx >= SHORTEST_CONTEXT:
        shorter = problem.changed(max_seq_len=n_ctx)
        try:
            repaired(shorter, fill(shorter, list(range(len(problem.devices)))))
        except DoesNotFitError:
            n_ctx //= 2
            continue
        helps.append(f"--max-seq-len {n_ctx}")
        break
    if not problem.allow_swap and problem.cpu is not None:
        helps.append("--allow-swap, which lets the CPU page to disk")
    return f"It fits with {', or with '.join(helps)}; or take a smaller quantisation."


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB"
