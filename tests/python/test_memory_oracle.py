"""Memory against what llama.cpp allocates: all rows, every device of each, on every run."""

from __future__ import annotations

import oracle
import pytest

from pshard.memory.memory import compute_bound_bytes
from pshard.model.architectures import ARCHITECTURES


def differences(name: str) -> list[oracle.Row]:
    """Return the launches of which any byte of any buffer is not said."""
    model = oracle.model(name)
    found = []
    for row in oracle.rows(name):
        report = row.report(model)
        said = [(gpu.weights_bytes, gpu.cache_bytes, gpu.compute_bytes) for gpu in report.gpus]
        said.append((report.host.weights_bytes, report.host.cache_bytes, report.host.compute_bytes))
        taken = list(zip(row.gpu_model, row.gpu_context, row.gpu_compute, strict=True))
        taken.append((row.host_model, row.host_context, row.host_compute))
        if said != taken:
            found.append(row)
    return found


@pytest.mark.parametrize("name", oracle.names())
def test_weights_caches_and_compute_are_exact(name: str) -> None:
    assert differences(name) == []


def test_there_are_4189_launches() -> None:
    assert sum(len(oracle.rows(name)) for name in oracle.names()) == 4189


@pytest.mark.parametrize("name", oracle.more_names())
def test_more_models_are_exact(name: str) -> None:
    assert oracle.model(name).warnings == ()
    assert differences(name) == []


def test_every_described_architecture_has_launches() -> None:
    assert len(oracle.more_names()) >= 140
    names = [*oracle.names(), *oracle.more_names(), *oracle.estimated_names()]
    known = {oracle.model(name).architecture for name in names} & set(ARCHITECTURES)
    assert known == set(ARCHITECTURES)
    replayed = {oracle.model(name).architecture for name in [*oracle.names(), *oracle.more_names()]}
    assert replayed == {name for name in ARCHITECTURES if ARCHITECTURES[name].replayed}


@pytest.mark.parametrize("name", oracle.estimated_names())
def test_what_is_not_described_says_so_and_stays_within_its_bound(name: str) -> None:
    model = oracle.model(name)
    assert not model.is_replayed
    assert any("is not known" in warning for warning in model.warnings) == (model.architecture not in ARCHITECTURES)
    for row in oracle.rows(name):
        report = row.report(model)
        assert [gpu.weights_bytes for gpu in report.gpus] == row.gpu_model
        assert [gpu.cache_bytes for gpu in report.gpus] == row.gpu_context
        compute = row.compute(model)
        for taken, found in zip(compute.taken, compute.found, strict=True):
            assert taken <= compute_bound_bytes(model, found), row
