"""Looks of ``pshard rebalance``: read, decide, tell, apply, remember; once, or until interrupted."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pshard.rebalance.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pshard.cli._output import Output
    from pshard.rebalance.audit import AuditLog
    from pshard.rebalance.balancer import Decision, ShardMetrics
    from pshard.rebalance.sources import Source
    from pshard.rebalance.targets import Target


class KeptHistory:
    """The history of a target's balancer, between calls: beside what --apply writes, or where it was asked for."""

    def __init__(self, target: Target, path: Path | None, *, applies: bool) -> None:
        from pshard.rebalance.history import HistoryFile, history_path

        self._target = target
        self._writes = applies or path is not None
        if path is None and target.first_file is not None:
            path = history_path(target.first_file)
        self._file = None if path is None else HistoryFile(path)

    def read(self) -> None:
        """Take up what earlier calls remembered.

        Raises
        ------
        DocumentError
            It cannot be read.
        """
        if self._file is not None:
            balancer = self._target.balancer
            balancer.remember(self._file.read(balancer.shards, balancer.placement))

    def write(self) -> None:
        """Write what is remembered, where that has changed.

        Raises
        ------
        FileError
            It cannot be written.
        """
        if self._file is not None and self._writes:
            balancer = self._target.balancer
            self._file.write(balancer.history, balancer.shards, balancer.placement)


class Session:
    """Reads, decides, tells and applies."""

    def __init__(
        self, out: Output, target: Target, source: Source, history: KeptHistory, audit: AuditLog, *, applies: bool
    ) -> None:
        self._out = out
        self._target = target
        self._source = source
        self._history = history
        self._audit = audit
        self._applies = applies
        self._told: dict[str, int] = {}
        self._last: Decision | None = None
        self._watching = False
        self._failures = Tally()  # of a watch, which goes on
        self._is_unapplied = False

    def once(self, metrics: str) -> None:
        """Decide on what there is, and print it."""
        from pshard.errors import MetricsError

        self._tell_failure(self._history.read)
        balancer = self._target.balancer
        self._source.read(balancer)
        self._source.finish(balancer)
        self._tell_problems()
        if not any(shard.forwards for shard in balancer.metrics.values()):
            message = f"{metrics}: no latencies of the present assignment; see the warnings."
            raise MetricsError(message)
        self._decide()
        self._tell_failure(self._history.write)
        self._tell_problems()

    def watch(self, interval: float) -> None:
        """Go on until interrupted or terminated. Nothing that is read or written ends it."""
        self._watching = True
        self._out.note(f"watching every {interval:g} s; Ctrl-C ends it")
        try:
            with _terminated_like_interrupted():
                self._tell_failure(self._history.read)
                while True:
                    self._tell_failure(self._look)
                    self._tell_problems()
                    time.sleep(interval)
        except KeyboardInterrupt:
            self._audit.write("stop", {})

    def _look(self) -> None:
        if self._target.follow():
            self._audit.write("followed", {"path": str(self._target.first_file)})
            self._is_unapplied = False
        self._source.read(self._target.balancer)
        self._decide(always=False)
        self._history.write()

    def _tell_failure(self, step: Callable[[], None]) -> None:
        """Do what may fail without ending anything."""
        from pshard.errors import PshardError

        try:
            step()
        except PshardError as error:
            self._failures.add(str(error))

    def _decide(self, *, always: bool = True) -> None:
        decision = self._target.balancer.evaluate()
        changed = self._last is None or _said(decision) != _said(self._last)
        self._last = decision
        if changed:
            self._audit.decision(decision, self._target.balancer)
        # Of what was deployed until now; applying begins anew.
        metrics = list(self._target.balancer.metrics.values())
        flags, written = self._put_into_effect(decision, is_news=changed or always)
        if changed or always or written:
            self._show(decision, metrics, flags, written)

    def _put_into_effect(self, decision: Decision, *, is_news: bool) -> tuple[tuple[str, ...], list[Path]]:
        """Return a proposal's flags and what was written of it. What could not be written is tried at each look."""
        from pshard.errors import PshardError

        if decision.kind != "rebalance" or not (is_news or self._is_unapplied):
            return (), []
        flags: tuple[str, ...] = ()
        written: list[Path] = []
        self._is_unapplied = self._applies
        try:
            flags = self._target.proposed(decision).flags
            if self._applies:
                written = self._target.apply(decision)
                self._is_unapplied = False
                self._audit.write("applied", {"paths": [str(path) for path in written]})
        except PshardError as error:
            if not self._watching:
                self._audit.write("input", {"problem": str(error)})
                raise
            self._failures.add(str(error))
        return flags, written

    def _show(
        self, decision: Decision, metrics: list[ShardMetrics], flags: tuple[str, ...], written: list[Path]
    ) -> None:
        from pshard.cli._rebalance_tables import print_decision
        from pshard.rebalance.audit import describe_shard

        self._out.json(
            {
                "schema_version": 1,
                "decision": decision.to_dict(),
                "shards": [describe_shard(shard) for shard in metrics],
                "problems": dict(self._source.problems),
                "flags": list(flags),
                "written": [str(path) for path in written],
            }
        )
        print_decision(self._out, decision, metrics, flags, written)

    def _tell_problems(self) -> None:
        """Say what is wrong with the input: each thing once, and again when it is ten times as often."""
        problems = {**self._source.problems, **self._target.balancer.problems, **self._failures}
        for problem, count in problems.items():
            if count >= 10 * self._told.get(problem, 0) or problem not in self._told:
                self._told[problem] = count
                often = f" ({count} times so far)" if count > 1 else ""
                self._out.warn(f"{problem}{often}")
                self._audit.write("input", {"problem": problem, "count": count})
        if self._audit.lost and "audit" not in self._told:
            self._told["audit"] = 1
            self._out.warn(f"{self._audit.path}: the audit log cannot be written.")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: a service is ended so, and shells start what is behind ``&`` deaf to Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _said(decision: Decision) -> tuple[object, ...]:
    """Return what of a decision is news to a person: another kind of it, or another reason, its figures aside."""
    proposed = decision.suggested if decision.kind == "rebalance" else None
    return decision.kind, proposed, re.sub(r"[\d.]+", "#", decision.reason)
