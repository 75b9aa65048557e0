"""The document of a plan: its fields, their sums, and what they say of every model."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from pshard import _core, catalogue, plan
from pshard.machine.machine import Machine, load_machine
from pshard.model.model import Model, read_model
from pshard.planning.document import TIE

GIB = 1 << 30
DOC = Path(__file__).parents[2] / "docs" / "plan.md"
NAMES = [next(names) for _, names in groupby(catalogue.names(), key=lambda name: name.partition(":")[0])]
DENSE, EXPERTS = "llama-3.3-70b:Q4_K_M", "qwen3-30b-a3b:Q4_K_M"

# What the first version promised. More fields may be added.
PROMISED = {
    "document": """schema_version model machine workload budget_bytes pshard_disabled baseline_vram_bytes stock_fit
        tiers llama_cpp registry_path warnings""",
    "stock_fit": "flags vram_bytes host_bytes prompt_seconds generate_seconds",
    "llama_cpp": "argv prompt_seconds generate_seconds",
    "tiers[]": """batch_size viable strategy n_pinned n_attn_pinned overflow output_on_gpu pin_from_back seconds
        seconds_low seconds_high basis tokens_per_second kv_fill_tokens vram_bytes weights_bytes kv_bytes compute_bytes
        stream_bytes host_bytes bottleneck busy_seconds splits candidates missing_bytes""",
    "splits": "count input_bytes activation_bytes write_back_bytes",
}


@cache
def machine(ram: str = "64G@51GB/s") -> Machine:
    return load_machine(gpu="rtx-3060-12g", ram=ram, pcie="4x16", cpu="8c")


@cache
def model_named(name: str) -> Model:
    return read_model(name)


@cache
def document(name: str = DENSE, vram_gib: float = 11.0, **settings: Any) -> dict[str, Any]:
    return plan(model_named(name), machine(), vram_bytes=int(vram_gib * GIB), **settings).to_dict()


def test_every_strategy_is_explained() -> None:
    section = DOC.read_text().partition("## Strategies")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([A-Z_]+)` \|", section, flags=re.MULTILINE)) == sorted(
        ["STOCK_FIT", *_core.strategy_names()]
    )


def documented() -> dict[str, list[str]]:
    """Fields of each table of the documentation."""
    sections = re.split(r"^### `([^`]+)`$", DOC.read_text(), flags=re.MULTILINE)[1:]
    return {
        name: re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.MULTILINE)
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def parts(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One dict of every kind that the document is made of, under the names of the documentation."""
    tier = whole["tiers"][0]
    names = ("model", "machine", "workload", "stock_fit", "llama_cpp", "pshard_runtime")
    return {
        "document": whole,
        **{name: whole[name] for name in names},
        "tiers[]": tier,
        "layers[]": tier["layers"][0],
        "busy_seconds": tier["busy_seconds"],
        "splits": tier["splits"],
    }


# --- fields -----------------------------------------------------------------------------------------------------------


def test_fields_are_those_of_the_documentation() -> None:
    tables = documented()
    found = parts(document())
    assert tables.pop("candidates[]") == ["loss"]
    assert {name: sorted(fields) for name, fields in tables.items()} == {
        name: sorted(fields) for name, fields in found.items()
    }
    assert all(len(fields) == len(set(fields)) for fields in tables.values())


def test_promised_fields_are_there() -> None:
    found = parts(document())
    for name, fields in PROMISED.items():
        assert set(fields.split()) <= found[name].keys(), name


def test_candidates_have_the_fields_of_their_tier() -> None:
    for vram_gib in (11.0, 0.0):
        for tier in document(vram_gib=vram_gib)["tiers"]:
            for candidate in tier["candidates"]:
                assert candidate.keys() - {"loss"} == tier.keys() - {"n_placements_priced", "candidates"}


def test_a_tier_without_a_plan_is_null_but_for_what_is_missing() -> None:
    tiers = document(vram_gib=0.0, strategy="GPUONLY_LAYERPIN_LAYERSTREAM")["tiers"]
    for tier in tiers:
        assert tier.keys() == document()["tiers"][0].keys()
        assert tier["viable"] is False
        stated = {name for name, value in tier.items() if value is not None}
        assert stated == {
            "batch_size", "viable", "kv_fill_tokens", "missing_bytes", "n_placements_priced", "candidates",
        }  # fmt: skip
        assert tier["missing_bytes"] == min(c["missing_bytes"] for c in tier["candidates"] if not c["viable"]) > 0


# --- sums -------------------------------------------------------------------------------------------------------------


def assert_sound(whole: dict[str, Any], n_layer: int, ram_bytes: int) -> None:
    """What holds of every document."""
    batches = [tier["batch_size"] for tier in whole["tiers"]]
    assert batches == sorted(set(batches))
    for tier in whole["tiers"]:
        viable = [c for c in tier["candidates"] if c["viable"]]
        eligible = [c for c in viable if whole["workload"]["strategy"] in (None, c["strategy"])]
        assert tier["viable"] == bool(eligible)
        for c in [*tier["candidates"], tier]:
            assert c["viable"] == (c["missing_bytes"] is None) == (c["seconds"] is not None)
        for c in [*viable, tier] if tier["viable"] else viable:
            assert c["vram_bytes"] == c["weights_bytes"] + c["kv_bytes"] + c["compute_bytes"] <= whole["budget_bytes"]
            assert 0 <= c["stream_bytes"] <= c["compute_bytes"]
            assert c["host_bytes"] <= ram_bytes
            assert c["tokens_per_second"] == c["batch_size"] / c["seconds"]
            assert 0 <= c["seconds_low"] <= c["seconds"] <= c["seconds_high"]
            assert c["basis"] in {"measured", "imported", "reference", "estimated"}
            assert math.isclose(sum(c["critical_seconds"].values()), c["seconds"], rel_tol=1e-6)
            assert c["critical_seconds"][c["bottleneck"]] == max(c["critical_seconds"].values())
            assert sum(stretch["count"] for stretch in c["layers"]) == n_layer
            assert [s["first"] for s in c["layers"]] == [
                sum(s["count"] for s in c["layers"][:i]) for i in range(len(c["layers"]))
            ]
        if tier["viable"]:
            assert tier["seconds"] == min(c["seconds"] for c in eligible)
            for c in viable:
                assert c["loss"] == c["seconds"] / tier["seconds"] - 1.0


@pytest.mark.parametrize("name", NAMES)
def test_every_model_gets_plans_that_name_bottleneck_and_runner_up(name: str) -> None:
    model, big = model_named(name), machine("1024G@51GB/s")
    for vram_gib in (4, 11):
        made = plan(model, big, vram_bytes=vram_gib * GIB)
        whole = made.to_dict()
        assert_sound(whole, model.n_layer, big.ram_bytes)
        assert whole["tiers"][0]["viable"]
        for tier in whole["tiers"]:
            if tier["viable"]:
                assert tier["bottleneck"] in tier["busy_seconds"]
                n_viable = sum(c["viable"] for c in tier["candidates"])
                # at 4 GiB, the large tiers of the largest models fit with their cache on the host only
                assert n_viable >= (2 if vram_gib > 4 or tier["batch_size"] == 1 else 1)
        stock, fit = whole["llama_cpp"], whole["stock_fit"]
        assert stock["vram_bytes"] <= whole["budget_bytes"]
        seconds = [e["prompt_seconds"] + e["generate_seconds"] for e in (stock, fit)]
        assert stock["speedup_over_stock_fit"] == pytest.approx(seconds[1] / seconds[0])
        # stock fit's own placement only where ours is no more than a tie faster
        assert seconds[0] <= made.stock.time.total_seconds * (1 + TIE)
        if fit["viable"]:
            assert stock["is_stock_fit"] == (seconds[1] <= made.stock.time.total_seconds * (1 + TIE))
            assert stock["is_stock_fit"] or seconds[0] < seconds[1]
        json.dumps(whole, allow_nan=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_seq_max": 4, "n_ctx": 16384},
        {"n_draft": 7},
        {"type_k": "q8_0", "type_v": "q4_0"},
        {"flash_attn": False},
        {"strategy": "STATIC_ATTNPRIO_ALLMODELS"},
        {"n_ubatch": 256, "prompt_tokens": 5000, "generate_tokens": 1},
        {"tier_max": 1024},
    ],
    ids=str,
)
def test_sums_hold_whatever_is_asked(settings: dict[str, Any]) -> None:
    for name in (DENSE, EXPERTS):
        assert_sound(document(name, **settings), model_named(name).n_layer, machine().ram_bytes)


# --- meaning ----------------------------------------------------------------------------------------------------------


def test_the_workload_says_what_was_asked() -> None:
    whole = document(EXPERTS, n_ctx=4096, n_draft=3, type_k="Q8_0", n_threads=6, generate_tokens=77)
    workload = whole["workload"]
    assert (workload["n_ctx"], workload["n_draft"], workload["type_k"]) == (4096, 3, "q8_0")
    assert (workload["prompt_tokens"], workload["generate_tokens"]) == (2048, 77)
    assert whole["machine"]["n_threads"] == 6
    assert whole["budget_bytes"] == 11 * GIB
    assert whole["llama_cpp"]["argv"][:9] == [
        "llama-server", "-m", "qwen3-30b-a3b-Q4_K_M.gguf", "-c", "4096", "-fa", "on", "-t", "6",
    ]  # fmt: skip


def test_the_whole_model_on_the_gpu_needs_no_plan() -> None:
    whole = document("llama-3.1-8b:Q4_K_M")
    assert whole["pshard_disabled"] is True
    assert 4.5 * GIB < whole["baseline_vram_bytes"] < 7 * GIB
    assert whole["stock_fit"]["fits_whole"]
    assert whole["stock_fit"]["flags"] == ["-ngl", "all"]
    assert document()["pshard_disabled"] is False
    assert document()["baseline_vram_bytes"] is None


def test_without_a_budget_everything_is_on_the_cpu() -> None:
    for owner in (machine(), load_machine("rtx-3060-12g")):
        whole = plan(model_named("llama-3.1-8b:Q4_K_M"), owner, vram_bytes=0).to_dict()
        assert whole["pshard_runtime"] is None
        assert whole["llama_cpp"]["argv"][-4:-2] == ["-dev", "none"]
        for tier in whole["tiers"]:
            assert tier["vram_bytes"] == 0
            assert [(s["count"], s["pinned"], s["streamed"]) for s in tier["layers"]] == [(32, [], [])]


def test_layers_follow_the_strategy() -> None:
    tier = next(t for t in document(strategy="DYNAMIC_FFNCPU_ATTNSTREAM")["tiers"] if t["overflow"] == "NONE")
    pinned, rest = sorted(tier["layers"], key=lambda stretch: not stretch["pinned"])
    assert pinned["count"] == tier["n_pinned"]
    assert pinned["streamed"] == pinned["cpu"] == rest["pinned"] == []
    assert rest["cpu"] == ["ffn_up", "ffn_gate", "ffn_down"]
    assert rest["streamed"] == ["norms", "attention", "cache"]


def test_stock_llama_cpp_is_never_told_to_stream() -> None:
    for vram_gib in (3.0, 11.0):
        for name in (DENSE, EXPERTS):
            whole = document(name, vram_gib)
            assert all(not stretch["streamed"] for stretch in whole["llama_cpp"]["layers"])
            argv = whole["llama_cpp"]["argv"]
            assert "-pshard" not in argv
            assert argv[argv.index("--fit") + 1] == "off"
            assert argv[-2:] == ["--load-mode", "none"]


def test_the_runtime_line_carries_the_budget_and_no_placement() -> None:
    runtime = document(n_seq_max=2, n_ctx=8192)["pshard_runtime"]
    assert runtime["argv"][-3:] == ["-pshard", "-mva", str(11 * 1024)]
    assert not {"-ngl", "-ot", "--n-cpu-moe", "--n-cpu-ffn"} & set(runtime["argv"])
    assert runtime["argv"][runtime["argv"].index("-np") + 1] == "2"
    total = runtime["prompt_seconds"] + runtime["switch_seconds"] + runtime["generate_seconds"]
    assert runtime["seconds_low"] < total < runtime["seconds_high"]


def test_stock_fit_counts_the_layers_of_its_placement() -> None:
    """Prediction layers, which flags count, are no layers of the plan."""
    whole = plan(model_named("glm-4.5-air:Q4_K_M"), machine("256G@51GB/s"), vram_bytes=200 * GIB).to_dict()
    fit = next(c for c in whole["tiers"][0]["candidates"] if c["strategy"] == "STOCK_FIT")
    assert fit["n_pinned"] == fit["n_attn_pinned"] == 46


def test_the_same_input_gives_the_same_bytes() -> None:
    def text() -> str:
        return json.dumps(plan(read_model(EXPERTS), load_machine("rtx-3060-12g"), vram_bytes=6 * GIB).to_dict())

    assert text() == text()


def test_strategies_are_called_by_their_names() -> None:
    names = [c["strategy"] for c in document()["tiers"][0]["candidates"]]
    assert names == [*_core.strategy_names(), "STOCK_FIT"]
