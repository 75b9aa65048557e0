"""What a plan counts is enough to run it: the executor refuses no plan for want of arena."""

from __future__ import annotations

import random
from collections.abc import Sequence

import gguf_cases
import numpy as np
import pytest
from planning_cases import MODEL_NAMES, cut_model

from pshard import _core, plan
from pshard.errors import PshardError
from pshard.machine.cpus import physical_cpus
from pshard.machine.machine import load_machine
from pshard.model.model import Model, model_from_header
from pshard.run.execution import Workload, execute, workload_of
from pshard.run.host_backend import share_cpus

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
BATCHES = (1, 7, 64, 256)
DRAWS = 12
STRATEGIES = _core.strategy_names()
STREAMING = [name for name in STRATEGIES if "STREAM" in name]


def small(chance: random.Random) -> Model:
    """A llama or, with experts, a qwen3moe, of which everything is executed."""
    n_embd, n_layer = chance.choice((256, 512)), chance.randint(3, 9)
    n_ff, n_vocab = chance.choice((256, 768, 2048)), chance.choice((512, 4096, 32000))
    n_head, n_kv = chance.choice(((4, 4), (8, 2)))
    n_expert = chance.choice((0, 0, 8))
    kind = chance.choice((F16, Q8_0, Q4_K))
    tensors = [("token_embd.weight", (n_embd, n_vocab), Q8_0), ("output_norm.weight", (n_embd,), F32)]
    tensors.append(("output.weight", (n_embd, n_vocab), Q8_0))
    for i in range(n_layer):
        shapes: list[tuple[str, tuple[int, ...], int]] = [
            ("attn_norm", (n_embd,), F32),
            ("attn_q", (n_embd, n_head * 64), kind),
            ("attn_k", (n_embd, n_kv * 64), kind),
            ("attn_v", (n_embd, n_kv * 64), kind),
            ("attn_output", (n_head * 64, n_embd), kind),
            ("ffn_norm", (n_embd,), F32),
        ]
        ends = (n_expert,) if n_expert else ()
        suffix = "_exps" if n_expert else ""
        shapes += [(f"ffn_gate{suffix}", (n_embd, n_ff, *ends), kind), (f"ffn_up{suffix}", (n_embd, n_ff, *ends), kind)]
        shapes.append((f"ffn_down{suffix}", (n_ff, n_embd, *ends), kind))
        if n_expert:
            shapes.append(("ffn_gate_inp", (n_embd, n_expert), F32))
        tensors += [(f"blk.{i}.{name}.weight", shape, type_) for name, shape, type_ in shapes]
    keys = gguf_cases.llama_keys(n_layer) | {
        "embedding_length": n_embd, "feed_forward_length": n_ff, "attention.head_count": n_head,
        "attention.head_count_kv": n_kv, "attention.key_length": 64, "attention.value_length": 64,
    }  # fmt: skip
    if n_expert:
        keys |= {"expert_count": n_expert, "expert_used_count": 2, "expert_feed_forward_length": n_ff}
    arch = "qwen3moe" if n_expert else "llama"
    metadata = {f"{arch}.{key}": value for key, value in keys.items()} | {"general.architecture": arch}
    return model_from_header(gguf_cases.header_of(metadata, tensors), f"{arch} {n_layer}x{n_embd}")


def planned(model: Model, chance: random.Random, strategies: Sequence[str] = STRATEGIES) -> Workload | None:
    """Plan for a drawn budget, batch and strategy; None where nothing of the strategy fits."""
    batch = chance.choice(BATCHES)
    budget = int(chance.uniform(0.05, 1.1) * model.tensor_bytes) + chance.choice((1 << 20, 32 << 20))
    try:
        made = plan(
            model, load_machine("rtx-5090"), n_ctx=512, vram_bytes=budget, prompt_tokens=256, generate_tokens=64,
            strategy=chance.choice(strategies), n_batch=256, tier_max=batch,
        )  # fmt: skip
        return workload_of(made, tier=batch)
    except PshardError:
        return None


def schedule_of(model: Model, workload: Workload) -> _core.Schedule:
    phase = workload.phases[0]
    return _core.make_schedule(model.core, phase.placement, phase.pass_, list(workload.cache_bytes))


def check_layout(schedule: _core.Schedule, vram_bytes: int) -> None:
    """What the executor puts into the arena is within the plan's bytes, and nothing lies over what is in use."""
    for layout in _core.lay_out([schedule], [[vram_bytes]])[0]:
        assert layout.n_bytes <= vram_bytes
        begin = np.array([lying.offset for lying in layout.lying], dtype=np.int64)
        end = begin + [lying.n_bytes for lying in layout.lying]
        first = np.array([lying.first_step for lying in layout.lying])
        last = np.array([lying.last_step for lying in layout.lying])
        assert (begin >= layout.resident_bytes).all()
        assert (end <= layout.n_bytes).all()
        together = (first[:, None] <= last) & (first <= last[:, None])
        over = (begin[:, None] < end) & (begin < end[:, None])
        assert not np.triu(together & over, 1).any()


def streams(schedule: _core.Schedule) -> bool:
    return any(split.streams for split in schedule.splits)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_plans_of_real_shapes_fit_what_they_count(name: str) -> None:
    chance = random.Random(name)
    model = cut_model(name, 4)
    found = streaming = 0
    for _ in range(3 * DRAWS):
        workload = planned(model, chance)
        if workload is None:
            continue
        schedule = schedule_of(model, workload)
        found += 1
        streaming += streams(schedule)
        check_layout(schedule, workload.phases[0].vram_bytes[0])
    assert found > streaming > 0


def test_plans_of_small_models_fit_what_they_count() -> None:
    chance = random.Random(2)
    streaming = 0
    while streaming < 20 * DRAWS:
        model = small(chance)
        workload = planned(model, chance, STREAMING)
        if workload is None:
            continue
        schedule = schedule_of(model, workload)
        streaming += streams(schedule)
        check_layout(schedule, workload.phases[0].vram_bytes[0])


def test_plans_run_in_what_they_count() -> None:
    # In an arena that is as small as it may be, operations write over each other's activations and over what was read.
    chance = random.Random(1)
    cpus = share_cpus(physical_cpus(), 1)
    n_left = {False: DRAWS // 2, True: DRAWS}
    while any(n_left.values()):
        model = small(chance)
        workload = planned(model, chance)
        kind = streams(schedule_of(model, workload)) if workload else None
        if workload is None or n_left[kind] == 0:
            continue
        n_left[kind] -= 1
        result = execute(model, workload, cpus=cpus, passes=2, check=True).phases[0]
        assert all(record.n_checked > 0 for record in result.records)
        assert result.arena_bytes[0] <= result.phase.vram_bytes[0]
