"""The header reader against gguf.GGUFReader on sound files, and against every way a file can be broken."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import pytest
from gguf_cases import F32, Q4_K, Q8_0, RawGguf, llama_keys, llama_tensors, text, write_llama, write_sparse

from pshard.errors import GgufError
from pshard.gguf.file import SkippedArray, read_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_tensor_table_is_that_of_gguf_reader(path: Path) -> None:
    header = read_header(write_llama(path, tokens=300, merges=500))
    oracle = gguf.GGUFReader(path)
    assert [(t.name, t.shape, t.type, t.n_bytes, t.offset) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), int(t.n_bytes), int(t.data_offset))
        for t in oracle.tensors
    ]
    assert len(header.tensors) == 21
    assert header.path == path
    assert header.parts == (path,)
    assert header.file_bytes == path.stat().st_size
    assert header.version == 3


def test_metadata_is_that_of_gguf_reader(path: Path) -> None:
    keys = {"layers": [1, 2, 3], "name": "größe", "eps": 0.5, "flag": True, "labels": ["a", "b"], "empty": ""}
    write_sparse(path, "llama", keys, llama_tensors())
    metadata = read_header(path).metadata
    oracle = {name: f.contents() for name, f in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    assert metadata == oracle
    assert metadata["llama.layers"] == [1, 2, 3]
    assert metadata["llama.flag"] is True


@pytest.mark.parametrize(
    ("type_id", "payload", "value"),
    [
        (0, b"\xff", 255),
        (1, b"\xff", -1),
        (2, b"\xff\xff", 65535),
        (3, b"\xff\xff", -1),
        (4, b"\xff" * 4, 2**32 - 1),
        (5, b"\xff" * 4, -1),
        (6, struct.pack("<f", 1.5), 1.5),
        (7, b"\1", True),
        (8, text("x"), "x"),
        (10, b"\xff" * 8, 2**64 - 1),
        (11, b"\xff" * 8, -1),
        (12, struct.pack("<d", 1e300), 1e300),
        (9, struct.pack("<IQ", 3, 2) + b"\1\0\xff\xff", [1, -1]),
        (9, struct.pack("<IQ", 8, 2) + text("a") + text(""), ["a", ""]),
        (9, struct.pack("<IQ", 4, 0), []),
    ],
)
def test_every_value_type(path: Path, type_id: int, payload: bytes, value: object) -> None:
    header = read_header(RawGguf(keys=[RawGguf.key("k", type_id, payload), RawGguf.key("z", 0, b"\7")]).write(path))
    assert header.metadata == {"k": value, "z": 7}


def test_vocabulary_is_skipped_and_counted(path: Path) -> None:
    metadata = read_header(write_llama(path, tokens=300, merges=500)).metadata
    assert metadata["tokenizer.ggml.tokens"] == SkippedArray("string", 300)
    assert metadata["tokenizer.ggml.merges"] == SkippedArray("string", 500)
    assert metadata["tokenizer.ggml.scores"] == SkippedArray("float32", 300)


def test_strings_longer_than_the_read_chunk_are_skipped(path: Path) -> None:
    big = text(b"x" * (3 << 20))
    keys = [
        RawGguf.key("tokenizer.tokens", 9, struct.pack("<IQ", 8, 4) + text("a") + big + big + text("b")),
        RawGguf.key("template", 8, big),
        RawGguf.key("last", 0, b"\5"),
    ]
    header = read_header(RawGguf(keys=keys).write(path))
    assert header.metadata == {
        "tokenizer.tokens": SkippedArray("string", 4),
        "template": SkippedArray("uint8", 3 << 20),
        "last": 5,
    }


def test_version_2_and_own_alignment_are_read(path: Path) -> None:
    raw = RawGguf(version=2, keys=[RawGguf.key("general.alignment", 4, struct.pack("<I", 8))])
    head = raw.header()
    path.write_bytes(head + bytes(-len(head) % 8) + bytes(68))
    header = read_header(path)
    assert header.version == 2
    assert header.tensors[0].offset == len(head) + -len(head) % 8


def test_a_file_may_have_no_tensors(path: Path) -> None:
    assert read_header(RawGguf(tensors=[], data_bytes=0).write(path)).tensors == ()


def array_key(type_id: int, count: int, payload: bytes = b"", name: str = "tokenizer.x") -> bytes:
    return RawGguf.key(name, 9, struct.pack("<IQ", type_id, count) + payload)


def u32(name: str, value: int) -> bytes:
    return RawGguf.key(name, 4, struct.pack("<I", value))


T = RawGguf.tensor
BROKEN: dict[str, tuple[RawGguf | bytes, str]] = {
    "empty": (b"", "not a GGUF"),
    "not a GGUF": (b"PK\3\4 something else", r"begins with b'PK\\x03\\x04' instead of b'GGUF'"),
    "only magic": (b"GGUF", "at byte 4: the version needs 4 bytes, but 0 are left"),
    "version 1": (RawGguf(version=1), "GGUF version 1;.*Convert"),
    "version 4": (RawGguf(version=4), "GGUF version 4;.*Upgrade"),
    "big-endian": (RawGguf(version=3 << 24), "big-endian GGUF"),
    "too many tensors": (RawGguf(n_tensors=2**60), f"at byte 8: {2**60} tensors declared"),
    "too many keys": (RawGguf(n_keys=2**63), f"at byte 16: {2**63} metadata keys declared"),
    "more tensors than bytes": (RawGguf(n_tensors=9), "at byte 8: 9 tensors declared, more than a file of"),
    "more keys than bytes": (RawGguf(n_keys=20), "at byte 16: 20 metadata keys declared, more than a file of"),
    "one tensor too many": (RawGguf(n_tensors=2, data_bytes=0), "needs 8 bytes|dimensions|has 0 bytes"),
    "empty key": (RawGguf(keys=[RawGguf.key("", 0, b"\0")]), "metadata key 0 has 0 bytes"),
    "long key": (RawGguf(keys=[struct.pack("<Q", 2**40)]), f"metadata key 0 has {2**40} bytes"),
    "key not UTF-8": (RawGguf(keys=[RawGguf.key(b"\xff\xfe", 0, b"\0")]), "not UTF-8"),
    "duplicate key": (RawGguf(keys=[u32("k", 1), u32("k", 2)]), "metadata key 'k' occurs twice"),
    "value type": (RawGguf(keys=[RawGguf.key("k", 13, b"\0" * 8)]), "'k' has value type 13"),
    "element type": (RawGguf(keys=[array_key(77, 1, b"\0" * 8)]), "value type 77"),
    "array of arrays": (RawGguf(keys=[array_key(9, 1, struct.pack("<IQ", 0, 0))]), "array of arrays"),
    "array beyond the file": (RawGguf(keys=[array_key(4, 10**6)]), "needs 4000000 bytes, but"),
    "array of 2**64": (RawGguf(keys=[array_key(12, 2**64 - 1)]), f"needs {8 * (2**64 - 1)} bytes"),
    "strings of 2**64": (RawGguf(keys=[array_key(8, 2**64 - 1)]), f"needs {8 * (2**64 - 1)} bytes"),
    "a vocabulary string too long": (RawGguf(keys=[array_key(8, 1, struct.pack("<Q", 2**62))]), f"needs {2**62} bytes"),
    "a kept string too long": (RawGguf(keys=[array_key(8, 1, struct.pack("<Q", 2**62), "k")]), f"needs {2**62} bytes"),
    "a text too long": (RawGguf(keys=[RawGguf.key("k", 8, struct.pack("<Q", 2**63))]), f"needs {2**63} bytes"),
    "alignment 0": (RawGguf(keys=[u32("general.alignment", 0)]), "general.alignment is 0"),
    "alignment 48": (RawGguf(keys=[u32("general.alignment", 48)]), "general.alignment is 48"),
    "alignment huge": (RawGguf(keys=[u32("general.alignment", 2**31)]), "general.alignment is 2147483648"),
    "alignment text": (RawGguf(keys=[RawGguf.key("general.alignment", 8, text("32"))]), "general.alignment is '32'"),
    "empty tensor name": (RawGguf(tensors=[T("", (32,), F32, 0)]), "the name of tensor 0 has 0 bytes"),
    "long tensor name": (RawGguf(tensors=[T("x" * 64, (32,), F32, 0)]), "has 64 bytes; 1 to 63"),
    "tensor name not UTF-8": (RawGguf(tensors=[T(b"a\xff", (32,), F32, 0)]), "not UTF-8"),
    "duplicate tensor": (RawGguf(tensors=[T("a", (8,), F32, 0), T("a", (8,), F32, 32)]), "tensor 'a' occurs twice"),
    "no dimensions": (RawGguf(tensors=[T("a", (), F32, 0)]), "'a' has 0 dimensions"),
    "five dimensions": (RawGguf(tensors=[T("a", (1, 1, 1, 1, 1), F32, 0)]), "'a' has 5 dimensions"),
    "zero dimension": (RawGguf(tensors=[T("a", (32, 0), F32, 0)]), r"shape \[32, 0\]: empty"),
    "negative dimension": (RawGguf(tensors=[T("a", (2**64 - 32, 1), F32, 0)]), "too large to address"),
    "overflowing shape": (RawGguf(tensors=[T("a", (2**32, 2**32), F32, 0)]), "too large to address"),
    "overflowing bytes": (RawGguf(tensors=[T("a", (2**61, 2), F32, 0)]), "too large to address"),
    "unknown type": (RawGguf(tensors=[T("a", (32,), 199, 0)]), "type 199, unknown to gguf"),
    "removed type": (RawGguf(tensors=[T("a", (32,), 4, 0)]), "type 4, unknown to gguf"),
    "row not whole blocks": (RawGguf(tensors=[T("a", (33, 2), Q8_0, 0)]), "rows of 33 elements"),
    "misaligned": (RawGguf(tensors=[T("a", (32, 2), Q8_0, 16)]), "offset 16, not a multiple of the alignment 32"),
    "gap": (RawGguf(tensors=[T("a", (32, 2), Q8_0, 32)], data_bytes=200), "leaves a gap"),
    "overlap": (
        RawGguf(tensors=[T("a", (64,), F32, 0), T("b", (64,), F32, 32)], data_bytes=600),
        r"data offset 32, which overlaps .*\(expected 256\)",
    ),
    "data beyond the file": (RawGguf(data_bytes=67), "ends at byte .* but the file has"),
    "huge data": (RawGguf(tensors=[T("a", (2**40, 2**10), Q4_K, 0)]), "ends at byte"),
    "offset overflow": (RawGguf(tensors=[T("a", (32,), F32, 2**64 - 32)]), "leaves a gap"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_refused_with_its_reason(path: Path, case: str) -> None:
    raw, reason = BROKEN[case]
    path.write_bytes(raw if isinstance(raw, bytes) else raw.content())
    with pytest.raises(GgufError, match=reason) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: at byte ")
    assert str(caught.value).endswith(".")


def test_every_truncation_of_a_header_is_refused(path: Path) -> None:
    keys = [u32("a", 1), array_key(8, 3, text("x") * 3), array_key(6, 4, b"\0" * 16, "b")]
    content = RawGguf(keys=keys).content()
    for n in range(len(content)):
        path.write_bytes(content[:n])
        with pytest.raises(GgufError, match=r"file is truncated|not a GGUF"):
            read_header(path)
    path.write_bytes(content)
    assert len(read_header(path).tensors) == 1


def test_a_declared_length_allocates_nothing(path: Path) -> None:
    path.write_bytes(RawGguf(keys=[array_key(8, 2**50)]).content())
    tracemalloc.start()
    try:
        with pytest.raises(GgufError):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_opened_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "no.gguf"
    with pytest.raises(GgufError, match=r"cannot be read .*Check the path"):
        read_header(path)


# --- split files --------------------------------------------------------------------------------------------------


def write_split(folder: Path, count: int = 3, total: int | None = None) -> list[Path]:
    """One tensor table dealt out to `count` parts, the metadata in the first alone."""
    tensors = llama_tensors()
    paths = []
    for i in range(count):
        keys = {"split.no": i, "split.count": count, "split.tensors.count": len(tensors) if total is None else total}
        path = folder / f"m-{i + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_sparse(path, "llama", (llama_keys() if i == 0 else {}) | keys, tensors[i::count]))
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_split_file_is_joined_from_any_part(tmp_path: Path, given: int) -> None:
    parts = write_split(tmp_path)
    header = read_header(parts[given])
    assert header.path == parts[0]
    assert header.parts == tuple(parts)
    assert header.file_bytes == sum(part.stat().st_size for part in parts)
    assert header.metadata["llama.block_count"] == 2
    assert sorted(t.name for t in header.tensors) == sorted(name for name, _, _ in llama_tensors())
    for i, part in enumerate(parts):
        oracle = {t.name: int(t.data_offset) for t in gguf.GGUFReader(part).tensors}
        assert {t.name: t.offset for t in header.tensors if t.part == i} == oracle


def test_missing_part_is_named(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    parts[1].unlink()
    with pytest.raises(GgufError, match=r"m-00002-of-00003\.gguf: this part .* is missing"):
        read_header(parts[0])


def test_renamed_part_is_refused(tmp_path: Path) -> None:
    renamed = write_split(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GgufError, match="one part of 3, but the name"):
        read_header(renamed)


def test_parts_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    second = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(second)
    with pytest.raises(GgufError, match=r"00002-of-00003.*split\.no is 2, expected 1"):
        read_header(parts[0])


def test_part_of_another_split_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    parts[1].write_bytes(write_split(other, count=2)[1].read_bytes())
    with pytest.raises(GgufError, match=r"split\.count is 2, expected 3"):
        read_header(parts[0])


def test_truncated_part_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    with pytest.raises(GgufError, match=r"00003-of-00003.*truncated"):
        read_header(parts[0])


def test_tensor_count_of_the_whole_is_checked(tmp_path: Path) -> None:
    parts = write_split(tmp_path, total=99)
    with pytest.raises(GgufError, match=r"split\.tensors\.count is 99, but the 3 parts hold 21"):
        read_header(parts[0])


def test_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    for i, path in enumerate(paths):
        write_sparse(path, "llama", {"split.no": i, "split.count": 2}, [("a.weight", (32,), F32)])
    with pytest.raises(GgufError, match=r"'a\.weight' is in an earlier part"):
        read_header(paths[0])


def test_split_count_of_the_wrong_kind_is_refused(path: Path) -> None:
    write_sparse(path, "llama", {"split.count": "two"}, [("a.weight", (32,), F32)])
    with pytest.raises(GgufError, match=r"split\.count is 'two'"):
        read_header(path)
