"""Profile files: round trip, atomic writing, and errors that name file, place, value and remedy."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pshard.errors import FileError, MachineError
from pshard.machine.machine import load_machine
from pshard.machine.profile import (
    Anchor,
    Capacities,
    Curve,
    Figure,
    Key,
    Link,
    Memory,
    Pace,
    Processor,
    Profile,
    Sample,
    Series,
    encode_profile,
    parse_profile,
    read_profile,
    write_profile,
)
from pshard.machine.references import machine_names

DOCUMENT = Path(__file__).parents[2] / "docs" / "profile.md"


def example() -> dict:
    """The complete example of docs/profile.md."""
    found = re.search(r"```json\n(\{.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return json.loads(found[1])


def parse(document: object) -> Profile:
    return parse_profile(json.dumps(document).encode(), "shop.json")


def test_documented_example_is_complete(tmp_path):
    path = tmp_path / "example.json"
    path.write_text(json.dumps(example()))
    core = load_machine(path).core()
    assert core.has_gpu
    assert core.cpu.mul_mat[12].rate(1) > 0.0
    assert core.gpu.mul_mat[12].rate(512) == example()["gpu"]["series"][0]["flop_per_second"][-1]


def test_documented_fields_are_those_of_the_schema():
    text = DOCUMENT.read_text()
    for struct in (Profile, Capacities, Processor, Memory, Series, Link, Curve, Figure, Key, Sample, Pace, Anchor):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in text, f"{struct.__name__}.{field}"


@pytest.mark.parametrize("name", machine_names())
def test_reference_machines_survive_a_round_trip(name, tmp_path):
    profile = load_machine(name).profile
    assert parse_profile(encode_profile(profile)) == profile
    assert read_profile(write_profile(profile, tmp_path / "deep" / "profile.json")) == profile


def changed(path: str, value: object) -> dict:
    document = example()
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = document
    for part in parents:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", 7, "$.name = 7: Expected `str`, got `int`"),
        ("gpu.memory.0.spread", 1.5, "$.gpu.memory[0].spread: 1.5 is not at least 0 and below 1"),
        ("gpu.series.0.source", "guess", "$.gpu.series[0].source = 'guess': Invalid enum value 'guess'"),
        ("gpu.series.0.type", "Q4_Z", "$.gpu.series[0].type: 'Q4_Z' is no ggml type"),
        ("gpu.series.0.batch", [1, 1, 512], "$.gpu.series[0].batch[1]: 1.0 does not ascend"),
        ("gpu.series.0.flop_per_second", [1e12], "$.gpu.series[0].flop_per_second: 1 values for 3 of batch"),
        ("gpu.series.0.flop_per_second", [1e12, 0, 2e12], "$.gpu.series[0].flop_per_second[1]: 0.0 is not positive"),
        ("gpu.series.0.flop_per_second", [1e12, 2e12, 9e15], "$.gpu.series[0].flop_per_second: 9e+15 exceeds peak"),
        ("gpu.series.0.n_threads", 8, "$.gpu.series[0].n_threads: 8 on a GPU"),
        ("gpu.series.0.layout", "interleaved", "$.gpu.series[0].layout: 'interleaved' on a GPU"),
        ("cpu.series.0.n_threads", 3, "$.cpu.series[0].n_threads: 3 has no entry in $.cpu.memory"),
        ("cpu.memory.0.n_threads", ..., "$.cpu.memory[0].n_threads: None is not positive"),
        ("cpu.memory", [], "$.cpu.memory: is empty"),
        ("cpu.memory.0.bytes_per_second", 1e15, "$.cpu.memory[0].bytes_per_second: 1e+15 exceeds memory_peak"),
        ("link.up.chunk_bytes", [], "$.link.up.bytes_per_second: 2 values for 0 of chunk_bytes"),
        ("link.up.latency_seconds", -1e-6, "$.link.up.latency_seconds: -1e-06 is negative"),
        ("link.copy_engines", 0, "$.link.copy_engines: 0 is not at least 1"),
        ("link.cpu_rate_under_copy.value", 1.2, "$.link.cpu_rate_under_copy.value: 1.2 is not positive and at most 1"),
        ("cpu.memory.0.samples.0.minimum_seconds", 0.2, "samples[0].minimum_seconds: 0.2 is not positive and at most"),
        ("cpu.memory.0.samples.0.count", 0, "$.cpu.memory[0].samples[0]: spread or drift is negative, or nothing"),
        ("storage_bytes_per_second", {"source": "measured", "value": 0.0}, "$.storage_bytes_per_second.value: 0.0"),
        ("capacities.ram_bytes", 0, "$.capacities.ram_bytes: 0 is not positive"),
        ("capacities.vram_bytes", 0, "$.capacities.vram_bytes: 0 with gpu present"),
        ("capacities.page_lock_bytes", 2**60, "$.capacities.page_lock_bytes"),
        ("gpu", ..., "'gpu' and 'link' go together"),
        ("colour", "red", "Object contains unknown field `colour`"),
        ("host_bytes_per_second", ..., "Object missing required field `host_bytes_per_second`"),
        ("schema_version", 2, "$.schema_version is 2, this pshard reads 1; update pshard"),
        ("schema_version", "1", "$.schema_version is '1', this pshard reads 1; see docs/profile.md"),
    ],
)
def test_errors_name_file_place_and_value(path, value, message):
    with pytest.raises(MachineError) as error:
        parse(changed(path, value))
    assert str(error.value).startswith("shop.json: ")
    assert message in str(error.value)


def test_doubled_entries_are_refused():
    document = example()
    document["cpu"]["memory"].append(document["cpu"]["memory"][0])
    with pytest.raises(MachineError, match=r"\$\.cpu\.memory\[1\]\.n_threads: 8 has an entry already"):
        parse(document)
    document = example()
    document["gpu"]["series"].append(document["gpu"]["series"][0])
    with pytest.raises(MachineError, match=r"\$\.gpu\.series\[\d+\]: a second series"):
        parse(document)


def test_attention_is_of_several_depths_or_of_any():
    document = example()
    series = document["gpu"]["series"]
    attention = next(entry for entry in series if entry["operation"] == "attention")
    attention |= {"depth": 1024, "first_bytes_per_second": 4e9}
    series.append(attention | {"depth": 4096})
    assert [entry.depth for entry in parse(document).gpu.series if entry.operation == "attention"] == [1024, 4096]
    series[-1] |= {"depth": None}
    with pytest.raises(MachineError, match=r"\.depth: of the series for .*; give each a depth"):
        parse(document)
    series[-1] |= {"depth": 0}
    with pytest.raises(MachineError, match=r"\.depth: 0 of attention; it is attention's, and positive"):
        parse(document)
    series.pop()
    series[0] |= {"first_bytes_per_second": 1e9}
    with pytest.raises(MachineError, match=r"first_bytes_per_second: 1000000000\.0 of mul_mat"):
        parse(document)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'{\n "name": "a",\n "gpu": oops\n}', "shop.json:3:9: not JSON"),
        (b'{"name": "a"', "shop.json: not JSON"),
        (b"", "shop.json: not JSON"),
        (b"\xff\xfe{}", "shop.json"),
        (b"[" * 100_000, "shop.json: not JSON"),
        (b"[]", "shop.json: $.schema_version is None"),
    ],
)
def test_text_that_is_not_json(data, place):
    with pytest.raises(MachineError) as error:
        parse_profile(data, "shop.json")
    assert str(error.value).startswith(place)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(data):
    with pytest.raises(MachineError):
        parse_profile(data)


@given(st.integers(0, len(json.dumps(example())) - 2))
def test_a_cut_file_is_refused(length):
    with pytest.raises(MachineError):
        parse_profile(json.dumps(example()).encode()[:length])


def test_writing_leaves_the_old_file_where_it_fails(tmp_path, monkeypatch):
    profile = parse(example())
    path = write_profile(profile, tmp_path / "profile.json")
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FileError, match="No space left on device"):
        write_profile(profile, path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["profile.json"]


def test_an_inconsistent_profile_is_not_written(tmp_path):
    from msgspec.structs import replace

    profile = parse(example())
    with pytest.raises(MachineError, match=r"not written, \$: 'gpu' and 'link' go together"):
        write_profile(replace(profile, gpu=None), tmp_path / "profile.json")
    assert not (tmp_path / "profile.json").exists()


def test_writers_take_turns(tmp_path):
    path = tmp_path / "profile.json"
    profiles = [parse(changed("name", f"machine {i}")) for i in range(8)]
    threads = [threading.Thread(target=write_profile, args=(profile, path)) for profile in profiles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_profile(path) in profiles
