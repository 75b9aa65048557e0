"""Users shared out among copies of a model, so that all together get the most tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pshard.sharding.replica import DoesNotFitError, Replica
from pshard.sharding.tensor_parallel import apportion, apportion_within
from pshard.sharding.types import Refused

if TYPE_CHECKING:
    from pshard.fleet.groupings import Part
    from pshard.sharding.search import ShardSearch

LEAST_GAIN = 1e-9  # of the whole: rounding is no gain


class SharedUsers:
    """Shares out the users among copies on parts of the pool."""

    def __init__(self, search: ShardSearch, *, layers_shared: bool) -> None:
        self._search = search
        self._layers_shared = layers_shared
        self._users = search.users

    def best(self, part: Part, users: int) -> Replica | None:
        """Return the best copy on a part for so many users."""
        return self._search.best_copy(part, users, layers_shared=self._layers_shared)

    def speed(self, part: Part, users: int) -> float:
        """Return its tokens per second, 0 where it does not fit; without speeds 1 where it does."""
        found = self.best(part, users)
        return 0.0 if found is None else found.users_tokens_per_second or 1.0

    def served(self, ranked: Sequence[tuple[float, Part]]) -> list[Replica] | Refused:
        """Give users by speed, and then one by one to the copy that one more gains most."""
        speeds, parts = [speed for speed, _ in ranked], [part for _, part in ranked]
        wanted = apportion(self._users, speeds)
        found = [self.best(part, users) for part, users in zip(parts, wanted, strict=True)]
        if None in found:
            most = [self._most_users(part) for part in parts]
            if sum(most) < self._users:
                return self._too_many_users(parts, wanted, sum(most))
            shares = apportion_within(self._users, speeds, most)
            found = [self.best(part, users) for part, users in zip(parts, shares, strict=True)]
            if None in found:
                return self._too_many_users(parts, wanted, sum(most))
        replicas = [replica for replica in found if replica is not None]
        while self._search.problem.has_speeds and (better := self._with_one_moved(parts, replicas)) is not None:
            replicas = better
        return replicas

    def _with_one_moved(self, parts: Sequence[Part], replicas: Sequence[Replica]) -> list[Replica] | None:
        """Move a user from the copy that loses least to the one that gains most; None where that is not faster."""

        def change(i: int, users: int) -> float:
            speed = self.speed(parts[i], users) if users else 0.0
            return speed - tokens_per_second([replicas[i]]) if speed else float("-inf")

        losses = [change(i, replica.users - 1) for i, replica in enumerate(replicas)]
        gains = [change(i, replica.users + 1) for i, replica in enumerate(replicas)]
        giver, taker = max(range(len(parts)), key=losses.__getitem__), max(range(len(parts)), key=gains.__getitem__)
        if giver == taker or losses[giver] + gains[taker] <= tokens_per_second(replicas) * LEAST_GAIN:
            return None
        moved = list(replicas)
        for i, users in ((giver, replicas[giver].users - 1), (taker, replicas[taker].users + 1)):
            found = self.best(parts[i], users)
            assert found is not None
            moved[i] = found
        return moved

    def _most_users(self, part: Part) -> int:
        """Return how many users a copy has room for, of all; it has room for one."""
        fits, too_many = 1, self._users + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.best(part, middle) is None:
                too_many = middle
            else:
                fits = middle
        return fits

    def _too_many_users(self, parts: Sequence[Part], wanted: Sequence[int], most: int) -> Refused:
        """Say how many users the copies have room for, and what they lack for those that they should get."""
        lacking: dict[str, int] = {}
        for part, users in zip(parts, wanted, strict=True):
            error = self._search.lacking(part, users, layers_shared=self._layers_shared)
            lacking |= {} if error is None else error.lacking
        too_many = DoesNotFitError(lacking)
        reason = f"{len(parts)} copies have room for {most} users together; for {self._users}, {too_many.reason}"
        return Refused(strategy="data_parallel", reason=reason, missing_bytes=too_many.missing_bytes)


def tokens_per_second(replicas: Sequence[Replica]) -> float:
    """Of all users together."""
    return sum(replica.users_tokens_per_second or 0.0 for replica in replicas)
