"""Predictions from the measured profile of a GPU against a real llama.cpp on it, and the page that lists them.

Run as a program it writes the table of docs/accuracy.md anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import pshard

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "accuracy.md"
DATA = json.loads((ROOT / "tests" / "data" / "gpu_runs.json").read_text())
BEGIN, END = "<!-- gpu runs -->\n", "<!-- end of gpu runs -->\n"
MIB = 1 << 20
# Of llama.cpp's two decimals.
ROUNDING_MIB = 0.016


@cache
def predicted(model: str, vram_gib: int) -> dict[str, Any]:
    plan = pshard.plan(
        pshard.read_model(model), pshard.load_machine(ROOT / "bench" / "results" / DATA["profile"]),
        vram_bytes=vram_gib << 30,
        n_ctx=DATA["n_ctx"], prompt_tokens=DATA["prompt_tokens"], generate_tokens=DATA["generate_tokens"],
    )  # fmt: skip
    return plan.to_dict()


def line_of(run: dict) -> dict[str, Any]:
    document = predicted(run["model"], run["vram_gib"])
    return document["stock_fit" if run["line"] == "--fit" else "llama_cpp"]


def error(run: dict, what: str) -> float:
    return line_of(run)[what] / run[what] - 1.0


def table() -> str:
    lines = [
        "| model | budget | line | prompt, ms | predicted | error | decode, ms/token | predicted | error "
        "| VRAM, MiB | predicted |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    n = DATA["generate_tokens"]
    for run in DATA["runs"]:
        line = line_of(run)
        routed = "" if run["is_routed"] else f"{100 * error(run, 'prompt_seconds'):+.0f} %"
        lines.append(
            f"| {run['model']} | {run['vram_gib']} GiB | {run['line']} | {1e3 * run['prompt_seconds']:.1f} "
            f"| {1e3 * line['prompt_seconds']:.1f} | {routed} | {1e3 * run['generate_seconds'] / n:.2f} "
            f"| {1e3 * line['generate_seconds'] / n:.2f} | {100 * error(run, 'generate_seconds'):+.0f} % "
            f"| {sum(run['cuda0_mib']):.2f} | {line['vram_bytes'] / MIB:.2f} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_lists_what_is_predicted() -> None:
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


@pytest.mark.parametrize("run", DATA["runs"], ids=lambda run: f"{run['model']} {run['vram_gib']} {run['line']}")
def test_vram_is_what_llama_cpp_took(run: dict) -> None:
    assert line_of(run)["vram_bytes"] / MIB == pytest.approx(sum(run["cuda0_mib"]), abs=ROUNDING_MIB)


@pytest.mark.parametrize("run", DATA["runs"], ids=lambda run: f"{run['model']} {run['vram_gib']} {run['line']}")
def test_predictions_are_as_near_as_the_page_says(run: dict) -> None:
    if not run["is_routed"]:
        assert abs(error(run, "prompt_seconds")) <= 0.10
    # Neither the starts of kernels in a CUDA graph nor copies that wait at the border of the CPU are priced.
    assert abs(error(run, "generate_seconds")) <= 0.18


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :])
