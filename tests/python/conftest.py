"""Property tests draw the same examples in every run of CI, so that it tells of the change; elsewhere they explore."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
