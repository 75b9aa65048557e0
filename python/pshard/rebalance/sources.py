"""Where latencies come from: a metrics file, or an engine's counters; each read once, or again and again."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from pshard.errors import MetricsError
from pshard.rebalance.engine_metrics import EngineReader, parse_engine_metrics, read_engine_metrics
from pshard.rebalance.metrics_file import MetricsFile, Sample, feed
from pshard.rebalance.plan_balancer import ENGINE
from pshard.rebalance.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pshard.rebalance.balancer import LoadBalancer
    from pshard.rebalance.deployment import Phase

# Of a file, to tell JSON lines from Prometheus's text.
SNIFFED_BYTES = 4096
# Of a metrics file, to learn which shards there are.
MAX_NAMED_BYTES = 1 << 16


class Source(Protocol):
    """Latencies that can be asked for again."""

    @property
    def problems(self) -> Mapping[str, int]:
        """What could not be used, by reason, and how often."""
        ...

    def read(self, balancer: LoadBalancer) -> int:
        """Record what is new; return how many latencies that were. Never raises for what is read."""
        ...

    def finish(self, balancer: LoadBalancer) -> int:
        """Record what was held back because more might come."""
        ...


class FileSource:
    """JSON lines."""

    def __init__(self, path: str) -> None:
        self._file = MetricsFile(path)
        self._others = 0

    @property
    def problems(self) -> dict[str, int]:
        """Reasons and how often."""
        others = {"a latency is of another assignment than the present one": self._others} if self._others else {}
        return {**self._file.problems, **others}

    def read(self, balancer: LoadBalancer) -> int:
        """Record the lines that have come."""
        recorded, others = feed(balancer, self._file.read())
        self._others += others
        return recorded

    def finish(self, balancer: LoadBalancer) -> int:
        """Record a last line without its end, if it is whole."""
        recorded, others = feed(balancer, self._file.finish())
        self._others += others
        return recorded


class EngineSource:
    """Counters of an engine, at a URL or in a file."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reader = EngineReader()
        self._problems = Tally()
        self._last: dict[Phase, float] = {}

    @property
    def problems(self) -> dict[str, int]:
        """Reasons and how often."""
        restarts = self._reader.restarts
        again = {"the engine's counters began again: it was restarted": restarts} if restarts else {}
        return {**self._problems, **again}

    def read(self, balancer: LoadBalancer) -> int:
        """Record seconds per token since the last time, for each phase that moved on."""
        try:
            found = self._reader.add(parse_engine_metrics(read_engine_metrics(self._address)))
        except MetricsError as error:
            self._problems.add(str(error))
            return 0
        self._last = found
        for phase, seconds in found.items():
            balancer.record(ENGINE, seconds * 1e6, phase, 1, time.time())
        return len(found)

    def finish(self, balancer: LoadBalancer) -> int:
        """Let the one average that was read stand for as many tokens as a decision takes: it is of more than those."""
        config = balancer.config
        for phase, seconds in self._last.items():
            for _ in range(config.warm_up + config.min_samples):
                balancer.record(ENGINE, seconds * 1e6, phase, 1, time.time())
        return 0


def is_engine(address: str) -> bool:
    """Whether an address is an engine's counters, and not JSON lines: a URL, or a file in Prometheus's text format."""
    if address.startswith(("http://", "https://")):
        return True
    if not Path(address).is_file():
        return False  # what a pipe is asked for here would be missing later
    try:
        with Path(address).open("rb") as file:
            beginning = file.read(SNIFFED_BYTES).lstrip()
    except OSError:
        return False
    return beginning.startswith((b"#", b'"#')) or beginning.startswith((b"llamacpp:", b"vllm:"))


def shard_names(path: str) -> list[str]:
    """Return the shards that the beginning of a metrics file names; none of a pipe, or where there is no file yet."""
    if not Path(path).is_file():
        return []
    try:
        with Path(path).open("rb") as file:
            lines = file.read(MAX_NAMED_BYTES).split(b"\n")[:-1]
    except OSError:
        return []
    names: dict[str, None] = {}
    for line in lines:
        with suppress(msgspec.DecodeError):
            names[msgspec.json.decode(line, type=Sample).shard] = None
    return list(names)


def source_of(address: str) -> Source:
    """Return what reads an address."""
    return EngineSource(address) if is_engine(address) else FileSource(address)
