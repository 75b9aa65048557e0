"""A map as stock llama.cpp can be told it: ``-ngl``, ``-ts`` and ``-ot``, by llama.cpp's own splitting rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pshard.mapping.solvers import DoesNotFitError, fastest, fill_behind_cpu, repaired
from pshard.mapping.types import LlamaLaunch

if TYPE_CHECKING:
    from pshard import _core
    from pshard.mapping.problem import Layout, MapProblem, Run
    from pshard.mapping.types import HeadPlace

# How llama.cpp calls devices of a kind, numbered from 0.
LLAMA_CPP_NAMES = {"nvidia": "CUDA", "gpu": "CUDA", "amd": "ROCm", "intel": "SYCL", "apple": "MTL"}


def llama_names(problem: MapProblem) -> list[str] | None:
    """Return llama.cpp's names of the GPUs; None where it cannot use one, or they are on several hosts."""
    counts: dict[str, int] = {}
    names = []
    for device in problem.gpus:
        prefix = LLAMA_CPP_NAMES.get(device.kind)
        if prefix is None or device.host != problem.host:
            return None
        names.append(f"{prefix}{counts.get(prefix, 0)}")
        counts[prefix] = counts.get(prefix, 0) + 1
    return names


def tensor_split(counts: Sequence[int], n_not_loaded: int = 0) -> list[int]:
    """Return ``-ts`` for so many layers on each GPU, in llama.cpp's order of them.

    What it divides are the layers, those that are not loaded, and the output, which is with the last layers.
    """
    shares = list(counts)
    last = max(device for device, count in enumerate(counts) if count)
    shares[last] += n_not_loaded + 1
    return shares


def split(problem: MapProblem, runs: Sequence[Run], head: HeadPlace) -> tuple[int, list[int], list[tuple[str, int]]]:
    """Return runs as llama.cpp's flags: ``-ngl``, ``-ts``, and overrides with the indices of their devices."""
    on_gpus = [run for run in runs if not problem.devices[run.device].is_cpu]
    if not on_gpus:
        return 0, [], []
    counts = [0] * len(problem.gpus)
    for run in on_gpus:
        counts[run.device] = run.end - run.begin
    shares = tensor_split(counts, problem.model.n_layer_nextn)
    overrides = []
    first = runs[0].device
    if head == "first" and not problem.devices[first].is_cpu:
        if problem.looks_up_on_gpu:
            overrides.append((r"^token_embd\.weight", first))
        if first != runs[-1].device and not problem.model.tied_head:
            overrides.append(("^output", first))
    return sum(shares), shares, overrides


def llama_placement(problem: MapProblem, runs: Sequence[Run], head: HeadPlace) -> _core.Placement:
    """Return what stock llama.cpp makes of the flags."""
    from pshard.launch.placements import placement_from_flags

    n_gpu_layers, shares, overrides = split(problem, runs, head)
    return placement_from_flags(
        problem.model.core,
        n_gpu_layers,
        [(pattern, f"CUDA{d}") for pattern, d in overrides],
        devices=[1.0] * len(problem.gpus),
        tensor_split=shares or None,
    )


def measure_llama(problem: MapProblem, runs: Sequence[Run], head: HeadPlace) -> Layout:
    """Ask the memory model what llama.cpp takes with these flags, and that it puts the layers where they belong.

    Raises
    ------
    AssertionError
        Flags and runs disagree, which is a defect.
    """
    placement = llama_placement(problem, runs, head)
    wanted, embedding = problem.placement(runs, head)
    places = [placement.patterns[i].device for i in placement.layer_pattern]
    assert places == [wanted.patterns[i].device for i in wanted.layer_pattern], "layers"
    assert placement.head == wanted.head, "head"
    return problem.layout(placement, runs, head, embedding)


def llama_launch(problem: MapProblem, layout: Layout) -> LlamaLaunch | None:
    """Return the map for stock llama.cpp: itself where that can be said, else the nearest that can."""
    names = llama_names(problem)
    if names is None:
        problem.notes.append("No llama.cpp line: it cannot use all of these devices from one process.")
        return None
    found = None
    # A tied head is the embedding: an override moves both.
    moves_head = layout.head == "first" and layout.runs[0].device != layout.runs[-1].device
    sayable = not (moves_head and (problem.model.tied_head or problem.load == "pipelined"))
    if sayable and not any(problem.devices[run.device].is_cpu for run in layout.runs):
        found = measure_llama(problem, layout.runs, layout.head)
        if any(problem.used(found, d) > problem.capacity[d] for d in range(len(problem.devices))):
            found = None
    if found is None:
        gpus, cpu = list(range(len(problem.gpus))), [len(problem.gpus)] if problem.cpu is not None else []
        # Without the CPU first: only then does llama.cpp work on several micro-batches at once.
        orders = [gpus, [*cpu, *gpus]] if problem.load == "pipelined" and gpus else [[*cpu, *gpus]]
        solvers = [fastest(problem, order, ["last"]) for order in orders]
        if problem.goal == "memory" and cpu:
            solvers = [fill_behind_cpu(problem)]
        for solve in solvers:
            try:
                found = repaired(problem, solve, partial(measure_llama, problem))
                break
            except DoesNotFitError:
                continue
    if found is None:
        problem.notes.append("No llama.cpp line: with the CPU's layers in front of all others it does not fit.")
        return None
    n_gpu_layers, shares, overrides = split(problem, found.runs, found.head)
    argv = ["-c", str(problem.parameters.max_seq_len * problem.parameters.max_batch_size)]
    argv += ["-np", str(problem.parameters.max_batch_size), "-ub", str(problem.parameters.n_ubatch)]
    argv += ["-fa", problem.parameters.flash_attn]
    argv += ["-ctk", problem.parameters.type_k] if problem.parameters.type_k != "f16" else []
    argv += ["-ctv", problem.parameters.type_v] if problem.parameters.type_v != "f16" else []
    n_counted = problem.model.n_layer + problem.model.n_layer_nextn
    argv += ["--fit", "off", "-ngl", "all" if n_gpu_layers == n_counted + 1 else str(n_gpu_layers)]
    if len(shares) > 1:
        argv += ["-ts", ",".join(map(str, shares))]
    if overrides:
        argv += ["-ot", ",".join(f"{pattern}={names[d]}" for pattern, d in overrides)]
    return LlamaLaunch(argv=tuple(argv), layers=problem.layer_map(found))
