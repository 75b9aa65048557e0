"""Two devices of this machine, each a core of its own, one of them slowed by a load that is pinned to its core: what
the rebalancer proposes from what `pshard run` measured, and what becomes of the time per pass when that is run.

    python bench/rebalance_for_real.py [--json FILE] [--plot FILE]

Two cores are needed, and two minutes in which nothing else runs. The load is a loop of another process at the same
priority, so it takes half of its core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "qwen3-0.6b:Q8_0"
LAYERS = (14, 14)
PASSES = 120
PSHARD = (sys.executable, "-m", "pshard")


def run(layers: tuple[int, ...], metrics: Path) -> None:
    """Generate tokens with the layers on two devices, and append what each pass took."""
    command = [*PSHARD, "run", MODEL, "--backend", "host", "--layers", ",".join(map(str, layers)), "--prompt", "16"]
    command += ["--generate", str(PASSES), "--passes", str(PASSES), "--metrics", str(metrics)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rebalance(layers: tuple[int, ...], metrics: Path, *options: str) -> dict[str, Any]:
    """Ask for a decision, as a person would."""
    named = ",".join(f"gpu{i}={n}" for i, n in enumerate(layers))
    command = [*PSHARD, "rebalance", "--layers", named, str(metrics), "--json", *options]
    document: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return document


@contextmanager
def load_on(cpu: int) -> Iterator[None]:
    """Compute on one core until the block ends."""
    code = f"import os\nos.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            yield
        finally:
            process.kill()


def latencies_ms(metrics: Path) -> np.ndarray:
    """Latency of every pass of one token on each device; shape (n, 2), 0 where a device has no layers."""
    by_time: dict[float, list[float]] = {}
    for row in metrics.read_text().splitlines():
        sample = json.loads(row)
        if sample["phase"] != "decode":
            continue
        by_time.setdefault(sample["time_unix_s"], [0.0, 0.0])[int(sample["shard"][-1])] = sample["latency_us"] / 1e3
    return np.array(list(by_time.values()))


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        run(LAYERS, metrics)
        alone = latencies_ms(metrics)
        quiet = rebalance(LAYERS, metrics)["decision"]
        with load_on(cpus[1]):
            run(LAYERS, metrics)
            loaded = latencies_ms(metrics)[len(alone) :]
            results = {"alone": (LAYERS, alone), "loaded": (LAYERS, loaded)}
            decisions = {}
            for name, options in (("slowest stage", ()), ("one stream", ("--one-stream",))):
                decision = rebalance(LAYERS, metrics, *options)["decision"]
                decisions[name] = decision
                if decision["kind"] != "rebalance":
                    continue
                layers = tuple(entry["layers"] for entry in decision["suggested"])
                applied = Path(folder) / f"{name}.jsonl"
                run(layers, applied)
                results[name] = (layers, latencies_ms(applied))
    report(quiet, decisions, results)
    if arguments.json is not None:
        plain = {name: {"layers": layers, "ms": ms.round(3).tolist()} for name, (layers, ms) in results.items()}
        arguments.json.write_text(json.dumps({"decisions": decisions, "results": plain}))
    if arguments.plot is not None:
        draw(results, arguments.plot)


def report(
    quiet: dict[str, Any], decisions: dict[str, dict[str, Any]], results: dict[str, tuple[tuple[int, ...], np.ndarray]]
) -> None:
    """Print what docs/rebalancing.md shows."""
    out = sys.stdout.write
    out(f"alone: {quiet['kind']}: {quiet['reason']}\n")
    for name, decision in decisions.items():
        out(f"{name}: {decision['kind']}: {decision['reason']}\n")
    out("\n| | layers | gpu0, ms | gpu1, ms | slowest stage, ms | pass, ms |\n|---|---|---|---|---|---|\n")
    for name, (layers, ms) in results.items():
        first, second = np.median(ms, axis=0)
        slowest, whole = np.median(ms.max(axis=1)), np.median(ms.sum(axis=1))
        out(f"| {name} | {layers[0]} + {layers[1]} | {first:.1f} | {second:.1f} | {slowest:.1f} | {whole:.1f} |\n")


def draw(results: dict[str, tuple[tuple[int, ...], np.ndarray]], path: Path) -> None:
    """Draw every pass: both devices and their sum, before and after."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.35, "svg.fonttype": "none", "svg.hashsalt": "1"}
    with rc_context(style):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axis = figure.subplots()
        begin = 0
        for name, (layers, ms) in results.items():
            passes = np.arange(begin, begin + len(ms))
            for values, colour, marker, label in (
                (ms[:, 0], "#0072B2", "o", "gpu0"),
                (ms[:, 1], "#D55E00", "s", "gpu1"),
                (ms.sum(axis=1), "black", "^", "pass"),
            ):
                axis.plot(passes, values, marker, color=colour, markersize=2.5, label=label if begin == 0 else None)
            axis.text(begin + len(ms) / 2, 0.99, f"{name}\n{layers[0]} + {layers[1]}", ha="center", va="top",
                      transform=axis.get_xaxis_transform())  # fmt: skip
            begin += len(ms)
            axis.axvline(begin - 0.5, color="grey", linewidth=0.8)
        axis.set_xlabel("pass")
        axis.set_ylabel("ms")
        axis.set_ylim(
            0, 1.35 * float(np.quantile(np.concatenate([ms.sum(axis=1) for _, ms in results.values()]), 0.98))
        )
        axis.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
