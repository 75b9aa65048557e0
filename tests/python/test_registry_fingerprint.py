"""Fingerprints, against vectors that the pull request's own tools printed."""

from __future__ import annotations

import json

import pytest
import registry_cases as cases
from gguf_cases import oracle_models

from pshard.registry.fingerprint import fingerprint
from pshard.registry.format import STRATEGIES, Settings
from pshard.registry.reader import parse

VECTORS = json.loads((cases.DATA / "fingerprints.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["fingerprint"])
def test_vectors(vector: dict[str, object]) -> None:
    inputs = vector["inputs"]
    assert isinstance(inputs, list)
    *numbers, file_bytes, strategy = inputs
    names = ("n_ctx", "n_seq_max", "n_threads", "flash_attn", "type_k", "type_v")
    settings = Settings(
        **dict(zip(names, numbers, strict=True)), strategy="auto" if strategy == -1 else STRATEGIES[strategy]
    )
    assert f"0x{fingerprint(settings, file_bytes):016x}" == vector["fingerprint"]


def test_sample_sections_are_of_their_models() -> None:
    checked = 0
    for name in cases.SAMPLES:
        model = oracle_models().get(name.split("_")[0])
        if model is None:
            continue
        section = parse(cases.sample(name)).sections[0]
        assert section.settings is not None
        if fingerprint(section.settings, model["file_bytes"]) == section.fingerprint:
            checked += 1
    assert checked >= 1
