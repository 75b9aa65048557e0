"""docs/rebalancing.md: its settings and fields are those of the code."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from pshard.cli import main
from pshard.cli.rebalance import SETTINGS
from pshard.rebalance.balancer import RebalanceConfig

PAGE = (Path(__file__).parents[2] / "docs" / "rebalancing.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table behind a text."""
    table = PAGE.split(heading, 1)[1].split("\n|---", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def names(heading: str) -> list[str]:
    return [name for row in rows(heading) for name in re.findall(r"`([a-z_]+)`", row[0])]


def test_settings_and_their_defaults() -> None:
    assert [(row[0].strip("`"), float(row[1])) for row in rows("## Settings")] == [
        (field.name, float(field.default)) for field in fields(RebalanceConfig)
    ]  # fmt: skip


def test_options_are_the_settings_with_their_defaults() -> None:
    defaults = {field.name: field.default for field in fields(RebalanceConfig)}
    assert {name: default for name, default, _ in SETTINGS} == defaults
    assert all(type(default) is type(defaults[name]) for name, default, _ in SETTINGS)


def test_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = tmp_path / "m.jsonl"
    line = {"shard": "a", "layers": 8, "phase": "decode", "n_tokens": 1, "latency_us": 5.0, "time_unix_s": 1.0}
    metrics.write_text("\n".join(json.dumps(line | {"shard": name}) for name in ("a", "b") for _ in range(200)))
    assert main(["rebalance", "--layers", "a=8,b=8", str(metrics), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert names("## The JSON document") == list(document)
    assert names("`decision`, which is also") == list(document["decision"])
    assert sorted(names("`shards[]`:")) == sorted(document["shards"][0])
    phases = next(row for row in rows("`shards[]`:") if row[0] == "`phases`")
    assert re.findall(r"`([a-z_]+)`", phases[1]) == list(document["shards"][0]["phases"]["decode"])
