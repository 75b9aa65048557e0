"""Stock llama.cpp's --fit, against what its own tool printed and what it tried on its way."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf_cases import oracle_header

import pshard
from pshard import _core
from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.launch.line import parse_launch_line
from pshard.launch.placements import placement_from_flags
from pshard.memory.launch_memory import context_settings
from pshard.memory.stock_fit import Fit, fit_line
from pshard.model.model import Model, model_from_header

ROWS = Path(__file__).parents[1] / "data" / "stock_fit.json.gz"
PAGE = Path(__file__).parents[2] / "docs" / "fit.md"
MIB, GIB = 1 << 20, 1 << 30
KEPT = {"ATTN": 1, "UP": 2, "GATE": 3, "NONE": 4}


@dataclass(frozen=True)
class Row:
    """A run of llama-fit-params: MiB free on each GPU, its arguments, and the line that it printed (none: it gave up).

    `initial_mib` is what the model takes of all GPUs unchanged. `probes` are the first distributions that it tried: per
    GPU layers, partial ones, what the first of those keeps, MiB.
    """

    model: str
    free_mib: list[int]
    args: str
    line: str
    is_changed: bool
    initial_mib: int
    probes: list[list[list[int]]]


@cache
def document() -> dict[str, Any]:
    with gzip.open(ROWS) as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def rows(key: str = "rows") -> list[Row]:
    return [Row(*row) for row in document()[key]]


@cache
def oracle_model(name: str) -> Model:
    return model_from_header(oracle_header(name), name)


def fit(row: Row) -> Fit | None:
    line = parse_launch_line([row.model, *row.args.split()], "llama-fit-params")
    try:
        return fit_line(line, oracle_model(row.model), [mib * MIB for mib in row.free_mib])
    except NoFeasiblePlanError:
        return None


def agrees(row: Row) -> bool:
    found = fit(row)
    return (found.line if found else "") == row.line


def share(some: list[Row]) -> float:
    return sum(map(agrees, some)) / len(some)


def documented(row: str) -> int:
    """A figure of the table in docs/fit.md."""
    found = re.search(rf"^\| {row}.*\| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def tried(row: Row) -> _core.StockFit:
    """What the core tried for a row whose placement was left open."""
    line = parse_launch_line([row.model, *row.args.split()], "llama-fit-params")
    model = oracle_model(row.model)
    targets = line.fit_target_mib * len(row.free_mib) if len(line.fit_target_mib) == 1 else (*line.fit_target_mib, 1024)
    gpus = [_core.FitDevice(free * MIB, target * MIB) for free, target in zip(row.free_mib, targets, strict=False)]
    context = replace(context_settings(line, model), n_ctx=line.n_ctx).core()
    return _core.stock_fit(
        model.core, context, gpus, n_ctx_min=line.fit_ctx, offload_kqv=line.offload_kqv, op_offload=line.op_offload
    )


# --- against llama-fit-params -----------------------------------------------------------------------------------------


def test_all_runs() -> None:
    agreeing = [row for row in rows() if agrees(row)]
    assert len(rows()) == 548
    assert len(agreeing) >= 0.97 * 548
    assert len(agreeing) == documented("548 of twenty models")
    changed = [row for row in rows() if row.is_changed]
    assert len(changed) == 195
    assert sum(row.is_changed for row in agreeing) >= 0.92 * 195
    assert sum(row.is_changed for row in agreeing) == documented("of them 195")


def test_where_compute_is_exact_so_is_the_fit() -> None:
    assert not [row for row in rows() if not agrees(row)]


def test_other_flags_and_lopsided_devices() -> None:
    """Runs with margins by device, shortest contexts, parts of a placement given, and GPUs too small for anything."""
    assert len(rows("more")) > 150
    assert share(rows("more")) >= 0.98


def test_the_same_distributions_are_tried() -> None:
    """As long as the bytes agree, so does the next step."""
    n_equal = n_all = 0
    for row in rows():
        mine = [
            [[gpu.n_layer, gpu.n_partial, KEPT[gpu.overflow], n_bytes // MIB]
             for gpu, n_bytes in zip(probe.layers, probe.bytes, strict=True)]
            for probe in tried(row).probes
        ]  # fmt: skip
        for want, have in zip(row.probes, mine, strict=False):
            n_all += 1
            assert [gpu[:3] for gpu in have] == [gpu[:3] for gpu in want], row
            if have != want:
                break
            n_equal += 1
    assert n_all > 700
    assert n_equal >= 0.8 * n_all


def test_the_unchanged_model_has_its_bytes() -> None:
    exact = 0
    for row in rows():
        if row.is_changed:
            continue
        found = fit(row)
        assert found is not None
        exact += sum(memory.total_bytes for memory in found.devices) // MIB == row.initial_mib
    assert exact >= 0.95 * sum(not row.is_changed for row in rows())


def test_where_fit_overshoots_it_is_said() -> None:
    kinds = set()
    for row in rows() + rows("more"):
        found = fit(row)
        if found is None:
            continue
        for memory, target in zip(found.devices, found.fit_target_bytes, strict=True):
            over = memory.total_bytes > (memory.free_bytes or 0) - target
            said = [warning for warning in found.warnings if warning.startswith(f"{memory.name} ")]
            assert len(said) == over, row
            kinds |= {warning.split(": ")[1] for warning in said}
    assert len(kinds) == 3


# --- the line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({row.model for row in rows()}))
def test_the_flags_say_the_placement(name: str) -> None:
    """Read as llama.cpp reads flags, they give the placement whose bytes are reported."""
    for row in rows() + rows("more"):
        if row.model != name or not row.is_changed:
            continue
        found = fit(row)
        if found is None or found.outcome != "distributed":
            continue
        model = oracle_model(name)
        placement = placement_from_flags(
            model.core, found.n_gpu_layers, found.tensor_overrides, offload_kqv="-nkvo" not in row.args,
            op_offload="--no-op-offload" not in row.args,
            devices=[float(memory.free_bytes or 0) for memory in found.devices],
            tensor_split=found.tensor_split or None,
        )  # fmt: skip
        context = replace(
            context_settings(parse_launch_line([name, *row.args.split()], "llama-fit-params"), model), n_ctx=found.n_ctx
        ).core()
        n_tokens = min(context.n_ubatch, context.n_batch, context.n_ctx)
        memory = _core.memory(model.core, placement, context, n_tokens)
        assert [gpu.total() for gpu in memory.gpus] == [device.total_bytes for device in found.devices], row
        assert memory.host.total() == found.host.total_bytes, row


def test_a_device_at_the_end_without_layers_is_not_in_the_line() -> None:
    found = pshard.fit(oracle_model("qwen3-30b-a3b-q4km"), [24 * GIB, 2 * GIB], n_ctx=4096)
    assert found.tensor_split == (49, 0)
    assert found.line == r'-c 4096 -ngl 49 -ot "blk\.48\.ffn_down.*=CUDA1"'
    assert found.warnings[-1].endswith("add -ts 49,0.")


# --- settings ---------------------------------------------------------------------------------------------------------


def test_no_context_is_left_open_and_zero_is_the_trained_one() -> None:
    model = oracle_model("llama31-8b-q4km")
    assert pshard.fit(model, [8 * GIB]).n_ctx == 19968
    whole = pshard.fit(model, [8 * GIB], n_ctx=0)
    assert (whole.n_ctx, whole.n_gpu_layers) == (131072, 10)


def test_targets_by_device() -> None:
    model = oracle_model("llama31-8b-q4km")
    even = pshard.fit(model, [3 * GIB, 3 * GIB], n_ctx=4096)
    uneven = pshard.fit(model, [3 * GIB, 3 * GIB], n_ctx=4096, fit_target_bytes=[0, 2 * GIB])
    assert uneven.fit_target_bytes == (0, 2 * GIB)
    assert uneven.tensor_split[0] > even.tensor_split[0]
    assert uneven.tensor_split[1] < even.tensor_split[1]
    assert pshard.fit(model, [4 * GIB, 4 * GIB], fit_target_bytes=[5]).fit_target_bytes == (5, GIB)


def test_what_is_given_is_left_alone() -> None:
    model = oracle_model("llama31-8b-q4km")
    for given in (
        {"n_gpu_layers": 20},
        {"tensor_overrides": [(r"ffn_up\.", "CPU")]},
        {"tensor_split": (1, 0)},
    ):
        with pytest.raises(NoFeasiblePlanError, match=rf"--fit gives up \({next(iter(given))} given") as error:
            pshard.fit(model, [GIB, GIB], n_ctx=4096, **given)
        assert error.value.missing_bytes > 0
    kept = pshard.fit(model, [8 * GIB], n_ctx=4096, n_gpu_layers=20)
    assert (kept.outcome, kept.line) == ("unchanged", "-c 4096 -ngl 20")
    assert pshard.fit(model, [8 * GIB], n_ctx=4096, n_gpu_layers=-1).line == "-c 4096 -ngl -2"


def test_without_a_gpu_the_context_follows_host_memory() -> None:
    model = oracle_model("llama31-8b-q4km")
    assert pshard.fit(model, []).n_ctx == 131072
    shorter = pshard.fit(model, [], ram_bytes=12 * GIB)
    assert shorter.outcome == "shorter_context"
    assert 4096 < shorter.n_ctx < 131072
    with pytest.raises(NoFeasiblePlanError, match="without a GPU there is only the context to shorten"):
        pshard.fit(model, [], ram_bytes=4 * GIB)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit_ctx": -1}, "fit_ctx=-1"),
        ({"fit_target_bytes": -1}, "fit_target_bytes=-1"),
        ({"fit_target_bytes": [GIB, "1"]}, "fit_target_bytes"),
        ({"n_seq_max": 0}, "n_seq_max=0"),
        ({"split_mode": "row"}, "split_mode='row'"),
        ({"flash_attn": "maybe"}, "flash_attn='maybe'"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        pshard.fit(oracle_model("llama31-8b-q4km"), [8 * GIB, 8 * GIB], **settings)


def test_refuses_a_device_without_memory() -> None:
    with pytest.raises(SettingError, match="CUDA0 has no memory"):
        pshard.fit(oracle_model("llama31-8b-q4km"), [0])


# --- effort -----------------------------------------------------------------------------------------------------------


def test_memory_is_asked_for_a_few_times_only() -> None:
    for row in rows():
        found = fit(row)
        assert found is not None
        # Where not even one layer fits, llama.cpp takes them away one by one.
        limit = 60 if found.n_gpu_layers == 0 else 8 + 8 * len(row.free_mib)
        assert found.n_measured <= limit, row


def test_without_a_gpu_everything_is_on_the_cpu() -> None:
    model = oracle_model("qwen3-30b-a3b-q4km")
    result = _core.stock_fit(model.core, _core.ContextParameters(), [])
    assert result.outcome == _core.FitOutcome.unchanged
    assert result.memory.gpus == []
    assert result.placement.head == _core.Where.cpu


# What llama.cpp decides for `llama-server -np 1 -md qwen3-0.6b-q8_0`, null CUDA devices: model, MiB free, -c, -ngld,
# then -c, -ngl, -ts and how many overrides.
WITH_DRAFT = [
    ("qwen3-32b-q4km", [6144], 8192, -1, 8192, 9, (), 0),
    ("qwen3-32b-q4km", [6144], None, -1, 4096, 11, (), 0),
    ("qwen3-32b-q4km", [12288], 8192, -1, 8192, 29, (), 0),
    ("qwen3-32b-q4km", [12288], 32768, 8, 32768, 22, (), 0),
    ("qwen3-32b-q4km", [24576], None, -1, 11776, -1, (), 0),
    ("qwen3-32b-q4km", [24576, 12288], None, -1, 39168, 65, (44, 21), 0),
    ("qwen3-30b-a3b-q4km", [6144], 8192, -1, 8192, 49, (), 45),
    ("qwen3-30b-a3b-q4km", [6144], 32768, 8, 32768, 39, (), 38),
    ("qwen3-30b-a3b-q4km", [12288], None, -1, 4096, 49, (), 24),
    ("qwen3-30b-a3b-q4km", [12288], 32768, 8, 32768, 49, (), 33),
    ("qwen3-30b-a3b-q4km", [24576], None, -1, 25856, -1, (), 0),
    ("qwen3-30b-a3b-q4km", [24576, 12288], 32768, 8, 32768, -1, (), 0),
]


@pytest.mark.parametrize(
    ("name", "free_mib", "n_ctx", "n_draft_layers", "found_ctx", "ngl", "split", "n_moved"), WITH_DRAFT
)
def test_a_draft_takes_its_part(
    name: str,
    free_mib: list[int],
    n_ctx: int | None,
    n_draft_layers: int,
    found_ctx: int,
    ngl: int,
    split: tuple[int, ...],
    n_moved: int,
) -> None:
    draft = pshard.Draft(model=oracle_model("qwen3-0.6b-q8_0"), n_gpu_layers=n_draft_layers)
    free = [n * MIB for n in free_mib]
    found = pshard.fit(oracle_model(name), free, n_ctx=n_ctx, n_outputs_max=1, draft=draft)
    assert (found.n_ctx, found.n_gpu_layers, found.tensor_split) == (found_ctx, ngl, split)
    assert len(found.tensor_overrides) == n_moved
    alone = pshard.fit(oracle_model(name), free, n_ctx=n_ctx, n_outputs_max=1)
    assert alone.n_ctx > found.n_ctx or alone.devices != found.devices or found.outcome == "unchanged"
