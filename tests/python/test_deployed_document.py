"""What is deployed, as the rebalancer reads it, and again while somebody replaces it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pshard.errors import DocumentError
from pshard.rebalance.deployed_document import read_document

MAP = {
    "map": {"devices": [], "head": "first"},
    "load": "stream",
    "parameters": {},
    "cache": {"block_tokens": None},
}
SHARDS = [{"device": "gpu0", "layer_range": [0, 15]}, {"device": "gpu1", "layer_range": [16, 31]}]


def test_a_document_that_was_replaced_is_newer(tmp_path: Path) -> None:
    path = tmp_path / "shard.json"
    path.write_text(json.dumps({"shards": SHARDS}))
    document = read_document(path)
    assert document.newer() is None
    path.write_text(json.dumps({"shards": SHARDS[:1]}))
    newer = document.newer()
    assert newer is not None
    assert newer.content == path.read_bytes()
    assert newer.fields != document.fields
    assert newer.newer() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"shards": [{"device": "gpu0", "layer_range": [0, null]}]}', r"Expected `int`, got `null` - at `\$.shards"),
        ('{"tiers": []}', "not as pshard writes it"),
        (json.dumps(MAP), "another kind of document than before"),
    ],
)
def test_what_it_was_replaced_by_may_be_nothing_of_use(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "shard.json"
    path.write_text(json.dumps({"shards": SHARDS}))
    document = read_document(path)
    path.write_text(text)
    for _ in range(2):  # as long as it lies there
        with pytest.raises(DocumentError, match=message):
            document.newer()
