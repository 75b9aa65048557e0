"""Predictions from a measured profile against a real llama.cpp on the same CPU, and the page that lists them.

Run as a program it writes the table of docs/accuracy.md anew.
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path

import pytest

import pshard

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "accuracy.md"
DATA = json.loads((ROOT / "tests" / "data" / "cpu_runs.json").read_text())
BEGIN, END = "<!-- cpu runs -->\n", "<!-- end of cpu runs -->\n"
N_CTX_LEAST = 512


@cache
def machine(n_threads: int) -> pshard.Machine:
    return pshard.load_machine(ROOT / "bench" / "results" / DATA["profiles"][str(n_threads)])


@cache
def model(name: str) -> pshard.Model:
    return pshard.read_model(name)


def predicted(run: dict) -> float:
    """Seconds per token with all weights on the CPU."""
    n_tokens, depth = run["n_tokens"], run["depth"]
    prompt, generate = (n_tokens, 0) if run["what"] == "prompt" else (depth, n_tokens)
    plan = pshard.plan(
        model(run["model"]),
        machine(run["n_threads"]),
        vram_bytes=0,
        n_threads=run["n_threads"],
        n_ctx=max(N_CTX_LEAST, n_tokens + depth),
        prompt_tokens=prompt,
        generate_tokens=generate,
    )
    time = plan.fit_time
    return (time.prompt_seconds if run["what"] == "prompt" else time.generate_seconds) / n_tokens


def error(run: dict) -> float:
    return predicted(run) / run["seconds_per_token"] - 1.0


def table() -> str:
    lines = ["| model | threads | run | measured, ms/token | predicted | error |", "|---|---|---|---|---|---|"]
    for run in DATA["runs"]:
        what = f"prompt of {run['n_tokens']}" if run["what"] == "prompt" else "decode"
        what += f" behind {run['depth']}" if run["depth"] else ""
        seconds = predicted(run)
        lines.append(
            f"| {run['model']} | {run['n_threads']} | {what} | {1e3 * run['seconds_per_token']:.3g} "
            f"| {1e3 * seconds:.3g} | {100 * error(run):+.0f} % |"
        )
    unseen = [run for run in DATA["runs"] if run["validation"]]
    lines += ["", f"All: {summary(DATA['runs'])}. Models that nobody had looked at: {summary(unseen)}."]
    return "\n".join(lines) + "\n"


def summary(runs: list[dict]) -> str:
    errors = sorted(abs(error(run)) for run in runs)
    within = sum(e <= 0.15 for e in errors)
    return (
        f"median error {100 * statistics.median(errors):.0f} %, largest {100 * errors[-1]:.0f} %, "
        f"{within} of {len(errors)} within 15 %"
    )


def test_the_page_lists_what_is_predicted() -> None:
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


def test_predictions_are_as_near_as_the_page_says() -> None:
    errors = [abs(error(run)) for run in DATA["runs"]]
    assert statistics.median(errors) <= DATA["median_error"]
    assert max(errors) <= DATA["largest_error"]


def test_the_readme_says_the_same() -> None:
    errors = [abs(error(run)) for run in DATA["runs"]]
    within = sum(e <= 0.15 for e in errors)
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"median error {100 * statistics.median(errors):.0f} %, {within} of {len(errors)} runs within 15 %" in said


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_profile_was_measured(n_threads: int) -> None:
    profile = machine(n_threads).profile
    assert {entry.source for entry in (*profile.cpu.memory, *profile.cpu.series)} == {"measured"}
    assert profile.key is not None
    assert profile.key.n_threads == n_threads


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :])
