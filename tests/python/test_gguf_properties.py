"""Whatever the bytes, the reader answers with a header or a GgufError, soon and in bounded memory."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from gguf_cases import F32, RawGguf, header_of, llama_keys, llama_tensors, text, write_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pshard.errors import GgufError, ModelError
from pshard.gguf.file import GgufHeader, SkippedArray, read_header
from pshard.model.model import model_from_header

# A read chunk, gguf's table of types and the interpreter's own small change, whatever the file; and a few times the
# file, since a key of one byte becomes a Python object.
FIXED_BYTES = 6 << 20
BYTES_PER_FILE_BYTE = 40
CALM = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_llama(tmp_path_factory.mktemp("gguf") / "m.gguf", tokens=40, merges=40)
    read_header(path)  # what is loaded once is not counted below
    return path.read_bytes()


def check(content: bytes) -> GgufHeader | None:
    """Read `content` as a file; any header must describe something inside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        tracemalloc.start()
        try:
            header = read_header(path)
        except GgufError as error:
            assert "m.gguf" in str(error)
            return None
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < FIXED_BYTES + BYTES_PER_FILE_BYTE * len(content)
    assert header.file_bytes == len(content)
    assert len({tensor.name for tensor in header.tensors}) == len(header.tensors)
    end = 0
    for tensor in header.tensors:
        assert end <= tensor.offset
        end = tensor.offset + tensor.n_bytes
        assert tensor.n_bytes > 0
    assert end <= len(content)
    return header


@CALM
@given(data=st.data())
def test_mutated_header(sound: bytes, data: st.DataObject) -> None:
    content = bytearray(sound)
    header_bytes = sound.index(b"blk.1.ffn_down.weight") + 60
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_bytes))
        patch = data.draw(
            st.one_of(st.binary(min_size=1, max_size=9), st.integers(0, 2**64 - 1).map(struct.Struct("<Q").pack))
        )
        content[at : at + len(patch)] = patch
    header = check(bytes(content))
    if header is not None:  # and a model is made of it, or refused for a reason
        try:
            model = model_from_header(header)
        except ModelError as error:
            assert len(str(error)) > 20
        else:
            assert model.n_layer > 0
            assert all(model.kv_bytes_per_cell(i) >= 0 and model.state_bytes(i) >= 0 for i in range(model.n_layer))


COUNTS = ("block_count", "nextn_predict_layers", "expert_count", "expert_used_count", "attention.head_count")


@CALM
@given(
    counts=st.dictionaries(st.sampled_from(COUNTS), st.one_of(st.integers(0, 16), st.integers(0, 2**32 - 1))),
    missing=st.sets(st.integers(0, 20), max_size=2),
    with_experts=st.booleans(),
)
def test_any_counts_and_gaps_make_a_bounded_model_or_are_refused(
    counts: dict[str, int], missing: set[int], with_experts: bool
) -> None:
    tensors = llama_tensors(2)
    keys = llama_keys(2, expert_count=8, expert_used_count=2) if with_experts else llama_keys(2)
    if with_experts:
        stacked = [("gate_inp", (256, 8)), *((f"{n}_exps", (256, 256, 8)) for n in ("gate", "up", "down"))]
        tensors = [t for t in tensors if not t[0].endswith(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"))]
        tensors += [(f"blk.{i}.ffn_{name}.weight", shape, F32) for i in range(2) for name, shape in stacked]
    header = header_of(
        {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in (keys | counts).items()},
        [tensor for i, tensor in enumerate(tensors) if i not in missing],
    )
    try:
        h = model_from_header(header).hyperparameters
    except ModelError as error:
        assert len(str(error)) > 20
    else:
        assert 0 < h.n_layer <= 2  # no layer is computed without its tensors; those behind may be left out of a file
        assert h.n_expert_used <= h.n_expert <= 1024
        assert h.n_expert == 8 or not with_experts


@CALM
@given(n=st.integers(0, 1 << 20))
def test_truncated_file(sound: bytes, n: int) -> None:
    n = min(n, len(sound) - 1)
    assert check(sound[:n]) is None


@CALM
@given(content=st.binary(max_size=400))
def test_arbitrary_bytes_behind_the_magic(content: bytes) -> None:
    check(b"GGUF" + struct.pack("<I", 3) + content)


@CALM
@given(at=st.integers(0, 4000), removed=st.integers(1, 64))
def test_bytes_lost_in_the_middle(sound: bytes, at: int, removed: int) -> None:
    check(sound[:at] + sound[at + removed :])


VALUES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda v: (4, struct.pack("<I", v), v)),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: (11, struct.pack("<q", v), v)),
    st.booleans().map(lambda v: (7, struct.pack("<?", v), v)),
    st.floats(allow_nan=False).map(lambda v: (12, struct.pack("<d", v), v)),
    st.text(max_size=20).map(lambda v: (8, text(v), v)),
    st.lists(st.integers(0, 255), max_size=9).map(lambda v: (9, struct.pack("<IQ", 0, len(v)) + bytes(v), v)),
    st.lists(st.text(max_size=5), max_size=9).map(
        lambda v: (9, struct.pack("<IQ", 8, len(v)) + b"".join(text(s) for s in v), v)
    ),
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15).filter(
    lambda name: not name.startswith(("general.", "split.", "tokenizer."))
)


@CALM
@given(keys=st.dictionaries(NAMES, VALUES, max_size=8), vocabulary=st.lists(st.binary(max_size=40), max_size=400))
def test_any_sound_header_reads_as_it_was_written(
    keys: dict[str, tuple[int, bytes, object]], vocabulary: list[bytes]
) -> None:
    raw = [RawGguf.key(name, type_id, payload) for name, (type_id, payload, _) in keys.items()]
    strings = struct.pack("<IQ", 8, len(vocabulary)) + b"".join(map(text, vocabulary))
    raw.insert(len(raw) // 2, RawGguf.key("tokenizer.ggml.tokens", 9, strings))
    header = check(RawGguf(keys=raw).content())
    assert header is not None
    expected = {name: value for name, (_, _, value) in keys.items()}
    assert header.metadata == expected | {"tokenizer.ggml.tokens": SkippedArray("string", len(vocabulary))}
