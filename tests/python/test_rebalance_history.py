"""What is remembered between decisions and between calls: what was left, and which devices were set aside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rebalance_cases import Clock, Shards, deployment, run_passes
from rebalance_simulation import follow_two

from pshard.errors import DocumentError
from pshard.rebalance.balancer import LoadBalancer, RebalanceConfig
from pshard.rebalance.history import MOST_LEFT, Aside, History, HistoryFile, history_path

EVEN = np.array([500.0, 500.0])
SHARDS = ("gpu0", "gpu1")


def history_of_a_move() -> History:
    history = History()
    history.leave((16, 16), (32, 0), 5.0)
    history.want((16, 16), 7.0)
    history.set_aside("gpu1", {"decode": (6.0, 5.0, 7.0)}, 5.0, 600.0)
    return history


# --- what it goes by -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "present", "proposed", "goes_back"),
    [
        ((16, 16), (20, 12), (16, 16), True),
        ((16, 16), (20, 12), (17, 15), True),  # three layers of the four
        ((16, 16), (20, 12), (18, 14), True),
        ((16, 16), (20, 12), (15, 17), True),  # further back than it was
        ((16, 16), (20, 12), (24, 8), False),  # on in the same direction
        ((16, 16), (20, 12), (8, 24), False),  # mostly to where they never were
        ((10, 12, 10), (10, 16, 6), (10, 12, 10), True),
        ((10, 12, 10), (10, 16, 6), (6, 20, 6), False),
    ],
)
def test_a_return_is_where_most_layers_that_move_were_before(
    left: tuple[int, ...], present: tuple[int, ...], proposed: tuple[int, ...], goes_back: bool
) -> None:
    history = History()
    history.leave(left, present, 1.0)
    assert (history.returned_to(present, proposed) == left) is goes_back


def test_plans_are_returned_to_as_a_whole() -> None:
    history = History()
    history.leave("one", "two", 1.0)
    assert history.returned_to("two", "one") == "one"
    assert history.returned_to("two", "three") is None


def test_what_was_left_does_not_grow_without_end() -> None:
    history = History()
    for n in range(100):
        history.leave((n, 100), (n + 1, 100), float(n))
    assert len(history.left) == MOST_LEFT
    assert history.left[(99, 100)] == 99.0
    history.leave((100, 100), (99, 100), 100.0)
    assert (99, 100) not in history.left  # it is there again


def test_a_device_that_fails_again_waits_twice_as_long() -> None:
    history = History()
    waits = []
    now = 0.0
    for _ in range(3):
        history.set_aside("gpu1", {}, now, 600.0)
        waits.append(history.aside["gpu1"].wait)
        now += waits[-1]
        assert history.aside["gpu1"].is_due(now)
        history.take_back("gpu1", now)
        now += 10.0
        assert history.aside["gpu1"].is_on_trial(now)
    assert waits == [600.0, 1200.0, 2400.0]
    history.set_aside("gpu1", {}, now + 2400.0, 600.0)  # it has served for so long that this is another matter
    assert history.aside["gpu1"].wait == 600.0


# --- between calls ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    clock = Clock()
    path = history_path(tmp_path / "map.json")
    assert path.name == "map.json.history"
    HistoryFile(path, clock, clock).write(history_of_a_move(), SHARDS, (32, 0))
    # of another process, whose clock began elsewhere
    read = HistoryFile(path, lambda: clock.now - 900.0, clock).read(SHARDS, (32, 0))
    assert read.left == {(16, 16): 5.0 - 900.0}
    assert read.wanted is not None
    assert (read.wanted.placement, read.wanted.since) == ((16, 16), 7.0 - 900.0)
    assert read.aside["gpu1"].wait == 600.0
    assert read.aside["gpu1"].bounds == {"decode": (6.0, 5.0, 7.0)}


def test_nothing_is_written_where_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "map.json.history"
    file = HistoryFile(path)
    file.write(history_of_a_move(), SHARDS, (32, 0))
    written = path.stat().st_mtime_ns, path.stat().st_ino
    again = HistoryFile(path)
    again.write(again.read(SHARDS, (32, 0)), SHARDS, (32, 0))
    file.write(history_of_a_move(), SHARDS, (32, 0))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written


def test_who_finds_another_assignment_knows_that_the_former_was_left(tmp_path: Path) -> None:
    clock = Clock()
    file = HistoryFile(tmp_path / "h", clock)
    file.write(History(), SHARDS, (16, 16))
    assert file.read(SHARDS, (20, 12)).left == {(16, 16): clock.now}
    assert file.read(SHARDS, (16, 16)).left == {}
    assert file.read(("gpu0", "gpu2"), (20, 12)).left == {}  # of other shards
    assert HistoryFile(tmp_path / "none").read(SHARDS, (20, 12)) == History()


def test_what_comes_from_the_future_is_taken_for_now(tmp_path: Path) -> None:
    """The clock has gone back: what is forbidden for a minute must not be forbidden for a year."""
    path = tmp_path / "h"
    clock = Clock()
    HistoryFile(path, clock).write(history_of_a_move(), SHARDS, (32, 0))
    document = json.loads(path.read_text())
    for entry in document["left"]:
        entry["at_unix_s"] = time.time() + 1e8
    document["aside"][0]["since_unix_s"] = time.time() + 1e8
    path.write_text(json.dumps(document))
    read = HistoryFile(path, clock).read(SHARDS, (32, 0))
    assert read.left == {(16, 16): clock.now}
    assert read.aside["gpu1"].since == clock.now


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 1, "shards": 3}', "\0"])
def test_what_is_no_history_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "h"
    path.write_text(text)
    with pytest.raises(DocumentError, match="not what is remembered between calls"):
        HistoryFile(path).read(SHARDS, (16, 16))
    path.unlink()
    path.mkdir()
    with pytest.raises(DocumentError, match="cannot be read"):
        HistoryFile(path).read(SHARDS, (16, 16))


# --- a device that changes its mind, looked at from a timer ----------------------------------------------------------


def moves_from_a_timer(tmp_path: Path, *, remembers: bool, slowdown: Callable[[int], float], looks: int) -> list[int]:
    """Return the looks at which something was moved. Each is of a process of its own, and moves what it finds."""
    clock = Clock()
    links = np.array([0.05e9, 0.05e9])  # a layer takes 20 seconds
    counts: tuple[int, ...] = (16, 16)
    shards = Shards(EVEN, 0.05, 3)
    since_the_move: list[list[float]] = []
    moved = []
    for look in range(looks):
        shards.slowdown = np.array([1.0, slowdown(look)])
        for latencies in shards.many_latencies_us(counts, 150).tolist():
            clock.now += 0.5
            since_the_move.append(latencies)
        balancer = LoadBalancer(deployment=deployment(EVEN, counts, link_bytes_per_second=links), clock=clock)
        file = HistoryFile(tmp_path / "h", clock, clock)
        if remembers:
            balancer.remember(file.read(balancer.shards, balancer.placement))
        for latencies in since_the_move:
            for name, latency in zip(balancer.shards, latencies, strict=True):
                if latency:
                    balancer.record(name, latency, time_unix_s=clock.now)
        decision = balancer.evaluate()
        file.write(balancer.history, balancer.shards, balancer.placement)
        if decision.kind == "rebalance":
            counts = tuple(count for _, count in decision.suggested or ())
            moved.append(look)
            since_the_move = []
            clock.now += decision.move.seconds or 0.0 if decision.move else 0.0
    return moved


def test_calls_from_a_timer_do_not_follow_a_device_to_and_fro(tmp_path: Path) -> None:
    """Slow for five minutes, well for five: a move takes 80 s, and pays in what a watch would wait for as well."""

    def flaps(look: int) -> float:
        return 1.7 if look // 4 % 2 else 1.0

    forgetful = moves_from_a_timer(tmp_path, remembers=False, slowdown=flaps, looks=48)
    remembering = moves_from_a_timer(tmp_path, remembers=True, slowdown=flaps, looks=48)
    assert len(forgetful) >= 10
    assert len(remembering) <= len(forgetful) // 2


def test_calls_from_a_timer_go_back_when_that_has_paid(tmp_path: Path) -> None:
    moved = moves_from_a_timer(tmp_path, remembers=True, slowdown=lambda look: 1.7 if 4 <= look < 10 else 1.0, looks=30)
    assert moved[0] == 4
    assert len(moved) == 2
    assert 11 <= moved[1] <= 20


# --- a device without layers -----------------------------------------------------------------------------------------


def test_a_device_that_is_well_again_gets_its_layers_back() -> None:
    taken = follow_two(lambda t: 12.0 if 100 < t < 300 else 1.0, 3600.0, retry_secs=600.0)
    (dropped_at, dropped), (back_at, back) = taken
    assert dropped == (8, 0)
    assert back == (4, 4)
    assert 600.0 <= back_at - dropped_at < 740.0


def test_a_device_that_stays_slow_is_tried_ever_more_seldom() -> None:
    taken = follow_two(lambda t: 12.0 if t > 100 else 1.0, 20_000.0, retry_secs=600.0)
    assert [counts for _, counts in taken] == [(8, 0), (4, 4)] * (len(taken) // 2) + [(8, 0)] * (len(taken) % 2)
    tried = [at for at, counts in taken if counts == (4, 4)]
    gone = [at for at, counts in taken if counts == (8, 0)]
    assert 3 <= len(tried) <= 5
    waits = [at - since for since, at in zip(gone, tried, strict=False)]
    assert all(1.8 < later / sooner < 2.3 for sooner, later in pairwise(waits))
    # it is found out soon
    assert all(after - at < 200.0 for at, after in zip(tried, gone[1:], strict=False))


def test_until_then_it_counts_as_slow_as_it_was() -> None:
    """Another device shifts meanwhile: what was set aside is no way out."""
    clock = Clock()
    layer_us = np.array([500.0, 500.0, 500.0])
    links = np.full(3, 5e9)
    present = deployment(layer_us, (4, 4, 4), link_bytes_per_second=links)
    balancer = LoadBalancer(RebalanceConfig(eval_interval_secs=0), present, clock=clock)
    shards = Shards(layer_us, 0.1, 1)
    run_passes(balancer, shards, 200, clock)
    shards.slowdown = np.array([1.0, 1.0, 12.0])
    run_passes(balancer, shards, 40, clock)
    decision = balancer.evaluate()
    assert decision.suggested == (("gpu0", 6), ("gpu1", 6), ("gpu2", 0))
    balancer.deploy(deployment(layer_us, (6, 6, 0), link_bytes_per_second=links))
    run_passes(balancer, shards, 200, clock)
    shards.slowdown = np.array([2.0, 1.0, 12.0])
    run_passes(balancer, shards, 40, clock)
    balancer.evaluate()
    clock.now += 5.0  # two layers go where they would have gone back to, which must have cost its price
    decision = balancer.evaluate()
    assert decision.kind == "rebalance"
    assert decision.suggested == (("gpu0", 4), ("gpu1", 8), ("gpu2", 0))
    assert decision.factors is not None
    assert decision.factors["gpu2"][0] == pytest.approx(12.0, rel=0.1)


def test_noise_tries_no_device_that_was_never_worth_using() -> None:
    clock = Clock()
    layer_us = np.array([500.0, 500.0, 20_000.0])
    balancer = LoadBalancer(
        RebalanceConfig(eval_interval_secs=0, retry_secs=60.0), deployment(layer_us, (16, 16, 0)), clock=clock
    )
    balancer.history.aside["gpu2"] = Aside(clock.now, 60.0, {"decode": (3.0, 2.9, 3.1)})
    shards = Shards(layer_us, 0.2, 7)
    for _ in range(200):
        run_passes(balancer, shards, 64, clock)
        assert balancer.evaluate().kind != "rebalance"
