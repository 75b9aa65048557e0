"""Which CPUs measurements run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pshard.machine.cpus import physical_cpus


def siblings(root: Path, lists: dict[int, str]) -> Path:
    for cpu, text in lists.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("lists", "order"),
    [
        ({0: "0", 1: "1"}, [0, 1]),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 2, 1, 3]),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1, 2, 3]),
        ({}, [0, 1, 2, 3]),
        # the first thread of core 0 is not allowed
        ({1: "0-1", 2: "2-3", 3: "2-3"}, [1, 2, 3]),
    ],
)
def test_cores_come_before_their_other_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lists: dict[int, str], order: list[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(order), raising=False)
    assert physical_cpus(siblings(tmp_path, lists)) == order
