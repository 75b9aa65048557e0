"""Two devices of this machine, each a core of its own, one of them slowed by a load that is pinned to its core.

`pshard map` maps a model on what they reach, `pshard run --map` measures, `pshard rebalance --apply` replaces the map,
the time per pass falls, and `--undo` brings map and time back.

    python bench/rebalance_for_real.py [--json FILE] [--load pipelined|stream] [--plot FILE]

Two cores are needed, and two minutes for each load in which nothing else runs. The competing load is a loop of another
process at the same priority, so it takes half of its core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "qwen3-0.6b:Q8_0"
DEVICES = ("gpu0", "gpu1")
PASSES = 160
CONTEXT = 512
# Many streams, or one, and the device that is slowed: for one stream all layers are on the first.
SLOWED = {"pipelined": 1, "stream": 0}
CLUSTER = """
schema_version = 1
hosts = [{ name = "here" }]

[[devices]]
name = "gpu"
count = 2
host = "here"
kind = "nvidia"
memory = "4G"
speed = "profile.json"
"""


@dataclass
class Stretch:
    """Passes under one map; milliseconds of shape (n, 2), 0 where a device has no layers."""

    name: str
    layers: tuple[int, ...]
    ms: list[list[float]]

    @property
    def slowest(self) -> float:
        """Median over the passes of the slowest stage."""
        return float(np.median(np.max(self.ms, axis=1)))

    @property
    def whole(self) -> float:
        """Median pass."""
        return float(np.median(np.sum(self.ms, axis=1)))


class Experiment:
    """A folder with a map of two devices of this machine, and what is done with it."""

    def __init__(self, folder: Path, load: str) -> None:
        self.folder = folder
        self.load = load
        self.map = folder / "map.json"
        self.metrics = folder / "passes.jsonl"
        self.cluster = folder / "cluster.toml"

    def pshard(self, *arguments: str | Path) -> str:
        """Run a command as a person would."""
        command = [sys.executable, "-m", "pshard", *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def make_map(self) -> None:
        """Measure one of the devices, and map the model on two of them."""
        from pshard import read_model
        from pshard.machine.cpus import physical_cpus
        from pshard.machine.profile import write_profile
        from pshard.run.host_backend import measure_here, share_cpus

        measured = measure_here(read_model(MODEL), share_cpus(physical_cpus(), len(DEVICES)), (1,), depth=CONTEXT)
        write_profile(measured.profile, self.folder / "profile.json")
        self.cluster.write_text(CLUSTER)
        goal = ("--objective", "decode", "--load", self.load, "--max-seq-len", str(CONTEXT))
        self.map.write_text(self.pshard("map", MODEL, "--cluster", self.cluster, *goal, "--json"))

    def layers(self) -> tuple[int, ...]:
        """Layers of each device in the map as it is."""
        devices = json.loads(self.map.read_text())["map"]["devices"]
        counts = {device["name"]: device["n_layer"] for device in devices}
        return tuple(counts[name] for name in DEVICES)

    def run(self, name: str) -> Stretch:
        """Generate tokens with the map as it is; what each pass took goes to the metrics file."""
        before = len(self.lines())
        self.pshard("run", MODEL, "--backend", "host", "--map", self.map, "--prompt", "0", "--generate", str(PASSES),
                    "--passes", str(PASSES), "--metrics", self.metrics)  # fmt: skip
        by_time: dict[float, list[float]] = {}
        for line in self.lines()[before:]:
            sample = json.loads(line)
            row = by_time.setdefault(sample["time_unix_s"], [0.0] * len(DEVICES))
            row[DEVICES.index(sample["shard"])] = round(sample["latency_us"] / 1e3, 3)
        return Stretch(name, self.layers(), list(by_time.values()))

    def lines(self) -> list[str]:
        """Of the metrics file."""
        return self.metrics.read_text().splitlines() if self.metrics.exists() else []

    def rebalance(self, *options: str) -> dict[str, Any]:
        """Ask for a decision."""
        arguments = ("rebalance", self.map, self.metrics, "-m", MODEL, "--cluster", self.cluster, "--json")
        document: dict[str, Any] = json.loads(self.pshard(*arguments, *options))
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


def measure(load: str) -> dict[str, Any]:
    """Run one experiment: decisions, and stretches of passes."""
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(Path(folder), load)
        experiment.make_map()
        map_before = experiment.map.read_bytes()
        stretches = [experiment.run("alone")]
        alone = experiment.rebalance("--apply")
        assert experiment.map.read_bytes() == map_before, "moved without a load"
        with load_on(cpus[SLOWED[load]]):
            stretches.append(experiment.run("loaded"))
            applied = experiment.rebalance("--apply")
            assert applied["written"], (applied, stretches)
            stretches.append(experiment.run("applied"))
            after = experiment.rebalance()
            experiment.pshard("rebalance", experiment.map, "--undo")
            assert experiment.map.read_bytes() == map_before, "not what it was"
            stretches.append(experiment.run("undone"))
    decisions = {"alone": alone, "applied": applied, "after": after}
    return {
        "decisions": {name: document["decision"] for name, document in decisions.items()},
        "stretches": [asdict(stretch) for stretch in stretches],
    }


def report(load: str, found: dict[str, Any]) -> None:
    """Print what docs/rebalancing.md shows, and hold that the move paid."""
    out = sys.stdout.write
    for name, decision in found["decisions"].items():
        out(f"{load}, {name}: {decision['kind']}: {decision['reason']}\n")
        if decision["move"]:
            out(f"    move {decision['move']}, paid back after {decision['break_even_seconds']} s\n")
    stretches = {stretch["name"]: Stretch(**stretch) for stretch in found["stretches"]}
    out(f"\n| {load} | layers | gpu0, ms | gpu1, ms | slowest stage, ms | pass, ms |\n|---|---|---|---|---|---|\n")
    for name, stretch in stretches.items():
        first, second = np.median(stretch.ms, axis=0)
        layers = " + ".join(map(str, stretch.layers))
        out(f"| {name} | {layers} | {first:.1f} | {second:.1f} | {stretch.slowest:.1f} | {stretch.whole:.1f} |\n")
    for before in ("loaded", "undone"):
        what = Stretch.slowest if load == "pipelined" else Stretch.whole
        gain = what.__get__(stretches[before]) / what.__get__(stretches["applied"])
        out(f"{before} over applied: {gain:.2f}\n")
        assert gain > 1.0, f"{load}: the move did not pay"


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw every pass of each experiment: both devices and their sum, before and after."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.35,
        "svg.fonttype": "none",
        "svg.hashsalt": "1",
    }
    with rc_context(style):
        figure = Figure(figsize=(10, 3.2 * len(results)), layout="constrained")
        for axis, (load, found) in zip(np.atleast_1d(figure.subplots(len(results), 1)), results.items(), strict=True):
            stretches = [Stretch(**stretch) for stretch in found["stretches"]]
            begin = 0
            for stretch in stretches:
                ms = np.array(stretch.ms)
                ms[ms == 0.0] = np.nan
                passes = np.arange(begin, begin + len(ms))
                for values, colour, marker, label in (
                    (ms[:, 0], "#0072B2", "o", "gpu0"),
                    (ms[:, 1], "#D55E00", "s", "gpu1"),
                    (np.nansum(ms, axis=1), "black", "^", "pass"),
                ):
                    axis.plot(passes, values, marker, color=colour, markersize=2.5, label=label if begin == 0 else None)
                text = f"{stretch.name}\n{' + '.join(map(str, stretch.layers))}"
                axis.text(begin + len(ms) / 2, 0.98, text, ha="center", va="top", transform=axis.get_xaxis_transform())
                begin += len(ms)
                axis.axvline(begin - 0.5, color="grey", linewidth=0.8)
            everything = np.concatenate([np.sum(stretch.ms, axis=1) for stretch in stretches])
            axis.set_ylim(0, 1.35 * float(np.quantile(everything, 0.98)))
            axis.set_title(
                "many streams: the slowest stage counts" if load == "pipelined" else "one stream", fontsize=9
            )
            axis.set_ylabel("ms")
        axis.set_xlabel("pass")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Run the experiments, or draw what was measured, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", choices=[*SLOWED, "none"], action="append", help="only this one; none: draw alone")
    parser.add_argument("--json", type=Path, help="what was measured; added to what is there")
    parser.add_argument("--plot", type=Path, help="draw what was measured, now and before")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text())
    for load in arguments.load or list(SLOWED):
        if load == "none":
            continue
        results[load] = measure(load)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results))
        report(load, results[load])
    if arguments.plot is not None:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
