"""What can go wrong with a registry."""

from __future__ import annotations

from pshard.errors import PshardError


class RegistryError(PshardError):
    """A registry that cannot be read or written, or a placement that none can hold."""
