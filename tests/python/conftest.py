"""What files of tests share. Property tests draw the same examples in every run of CI; elsewhere they explore."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def measured_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs on the host backend measure as little as they can before they predict."""
    from pshard.run import host_backend

    monkeypatch.setitem(host_backend.measure_host_backend.__kwdefaults__, "budget_seconds", 0.01)
    monkeypatch.setattr(host_backend, "MEMORY_SHARE", 0.0)
