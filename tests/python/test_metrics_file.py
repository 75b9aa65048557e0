"""A metrics file that grows, is rotated, cut and broken: what can be read is, what cannot is told, nothing raises."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pshard.rebalance.balancer import LoadBalancer
from pshard.rebalance.metrics_file import MAX_LINE_BYTES, MetricsFile, Sample, feed
from pshard.rebalance.sources import is_engine, shard_names


def line(i: int, shard: str = "gpu0", **changes: object) -> str:
    fields: dict[str, object] = {"shard": shard, "layers": 16, "phase": "decode", "n_tokens": 1}
    fields |= {"latency_us": 1000.0 + i, "time_unix_s": float(i)}
    return json.dumps(fields | changes) + "\n"


def read(file: MetricsFile) -> list[float]:
    return [sample.latency_us - 1000.0 for sample in file.read()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_lines_are_samples(path: Path) -> None:
    path.write_text(line(1, pass_number=7) + "\n" + line(2, phase="prefill", n_tokens=512))
    samples = list(MetricsFile(path).read())
    assert samples == [
        Sample("gpu0", 16, "decode", 1, 1001.0, 1.0),
        Sample("gpu0", 16, "prefill", 512, 1002.0, 2.0),
    ]


def test_a_growing_file_is_followed_and_a_part_of_a_line_waits(path: Path) -> None:
    with MetricsFile(path) as file, path.open("w") as writer:
        assert read(file) == []
        for text, expected in ((line(1) + line(2)[:20], [1]), (line(2)[20:], [2]), ("", []), (line(3), [3])):
            writer.write(text)
            writer.flush()
            assert read(file) == expected
        assert file.problems == {}


def test_a_file_that_comes_later_is_read(path: Path) -> None:
    file = MetricsFile(path)
    assert read(file) == []
    assert file.problems == {"the file cannot be opened (No such file or directory)": 1}
    path.write_text(line(1))
    assert read(file) == [1]


def test_a_rotated_file_is_read_to_its_end_and_the_new_one_from_its_beginning(path: Path) -> None:
    path.write_text(line(1))
    file = MetricsFile(path)
    assert read(file) == [1]
    with path.open("a") as writer:
        writer.write(line(2))
    path.rename(path.with_suffix(".1"))
    assert read(file) == [2]  # nothing has taken its place yet
    path.write_text(line(3))
    assert read(file) == [3]
    assert file.problems == {"the file was replaced; the new one is read": 1}


def test_a_truncated_file_is_read_from_its_beginning(path: Path) -> None:
    path.write_text(line(1) + line(2))
    file = MetricsFile(path)
    assert read(file) == [1, 2]
    os.truncate(path, 0)
    path.write_text(line(3))
    assert read(file) == [3]
    assert file.problems == {"the file became shorter; it is read from its beginning": 1}


@pytest.mark.parametrize(("rest", "kept"), [(line(2).rstrip("\n"), [2]), (line(2)[:-3], [])])
def test_a_last_line_without_its_end_counts_if_it_is_whole(path: Path, rest: str, kept: list[float]) -> None:
    path.write_text(line(1) + rest)
    file = MetricsFile(path)
    assert read(file) == [1]
    assert [sample.latency_us - 1000.0 for sample in file.finish()] == kept
    assert file.problems == ({} if kept else {"the last line is not complete": 1})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json\n", "a line is not JSON"),
        ("[1, 2]\n", "a line lacks something"),
        ('{"shard": "gpu0"}\n', "a line lacks something"),
        (line(1, phase="training"), "a line lacks something"),
        (line(1, latency_us="12"), "a line lacks something"),
        (line(1, layers=None), "a line lacks something"),
        ("\xff\xfe\n", "a line is not JSON"),
        ("\0" * 100 + "\n", "a line is not JSON"),
    ],
)
def test_what_is_no_sample_is_told_and_left_out(path: Path, text: str, reason: str) -> None:
    path.write_bytes((line(1) + text + line(2)).encode("latin-1"))
    file = MetricsFile(path)
    assert read(file) == [1, 2]
    (problem,) = file.problems
    assert problem.startswith(reason)


def test_a_file_without_line_ends_takes_little_memory(path: Path) -> None:
    path.write_bytes(b"x" * (3 * MAX_LINE_BYTES))
    file = MetricsFile(path)
    assert read(file) == []
    assert "a line is longer than 64 KiB" in file.problems


def test_latencies_of_another_assignment_are_left_out(path: Path) -> None:
    path.write_text(line(2, layers=20) + line(1) + line(3, shard="ghost"))
    balancer = LoadBalancer()
    balancer.register_shards([("gpu0", 16), ("gpu1", 16)])
    assert feed(balancer, MetricsFile(path).read()) == (2, 1)
    assert balancer.metrics["gpu0"].forwards == 1  # the ghost is told by the decision


def test_what_came_before_another_assignment_is_of_an_earlier_time(path: Path) -> None:
    path.write_text(line(1) + line(2) + line(3, layers=20) + line(4, layers=20) + line(5))
    file, balancer = MetricsFile(path), LoadBalancer()
    balancer.register_shards([("gpu0", 16), ("gpu1", 16)])
    assert feed(balancer, file.read()) == (3, 2)
    assert balancer.metrics["gpu0"].forwards == 1
    assert balancer.metrics["gpu0"].last_latency_us == 1005.0
    with path.open("a") as writer:
        writer.write(line(6, layers=20) + line(7))
    assert feed(balancer, file.read()) == (1, 1)
    assert balancer.metrics["gpu0"].last_latency_us == 1007.0
    assert balancer.metrics["gpu0"].forwards == 1


def test_reasons_that_quote_what_was_read_do_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    line = '{{"shard":"a","layers":1,"phase":"{}","n_tokens":1,"latency_us":1.0,"time_unix_s":1.0}}\n'
    path.write_text("".join(line.format(f"phase{i}") for i in range(500)))
    file = MetricsFile(path)
    assert list(file.read()) == []
    assert len(file.problems) <= 65
    assert sum(file.problems.values()) == 500


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    os.write(writer, b"# not to be consumed\n")
    assert not is_engine(str(pipe))
    assert shard_names(str(pipe)) == []
    assert os.read(writer, 100) == b"# not to be consumed\n"
    os.close(writer)
