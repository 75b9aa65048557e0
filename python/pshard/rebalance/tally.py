"""What was wrong with what was read: reasons, and how often each."""

from __future__ import annotations

# Reasons may quote what was read, of which there is no end.
MAX_REASONS = 64
OTHERS = "something else was wrong, of kinds too many to name"


class Tally(dict[str, int]):
    """Reasons and how often; beyond 64 of them, further ones count as one."""

    def add(self, reason: str) -> None:
        """Count a reason."""
        if reason not in self and len(self) >= MAX_REASONS:
            reason = OTHERS
        self[reason] = self.get(reason, 0) + 1
