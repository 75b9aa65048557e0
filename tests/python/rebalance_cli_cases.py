"""What tests of ``pshard rebalance`` share: metrics files, and documents on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HAND = ["rebalance", "--layers", "gpu0=16,gpu1=16"]
DEVICES = ["--devices", "rtx-3060-12g,rtx-4060-8g", "--ram", "32G"]


def write_metrics(path: Path, layers: dict[str, int], latencies_us: dict[str, float], n: int = 200) -> Path:
    random = np.random.default_rng(1)
    with path.open("a") as file:
        for i in range(n):
            for shard, count in layers.items():
                latency = latencies_us[shard] * float(np.exp(0.05 * random.standard_normal()))
                file.write(
                    json.dumps(
                        {
                            "shard": shard,
                            "layers": count,
                            "phase": "decode",
                            "n_tokens": 1,
                            "latency_us": latency,
                            "time_unix_s": 1e9 + i,
                        }
                    )
                    + "\n"
                )
    return path


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document
