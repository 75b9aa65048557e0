"""Latencies from a file of JSON lines that may still be growing: one per pass and shard, as ``pshard run`` writes it.

``{"shard":"gpu0","layers":16,"phase":"decode","n_tokens":1,"latency_us":5123.4,"time_unix_s":1764244800.25}``
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pshard.rebalance.deployment import Phase
from pshard.rebalance.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pshard.rebalance.balancer import LoadBalancer

# No line of a metrics file is so long; a file without line ends is none.
MAX_LINE_BYTES = 64 << 10
# Read at a time, so that a file of any size takes little memory.
CHUNK_BYTES = 1 << 20


class Sample(msgspec.Struct, frozen=True):
    """One pass of one shard: a line of the file. Other fields may stand beside these."""

    shard: str
    layers: int
    phase: Phase
    n_tokens: int
    latency_us: float
    time_unix_s: float


class MetricsFile:
    """A metrics file, read from its beginning and then on as it grows.

    A file that is replaced (rotation) or has become shorter (truncation) is read from its beginning again; a last line
    without its end is kept until the rest comes. Nothing in a file raises: what cannot be used is counted in
    `problems`, by reason.

    Parameters
    ----------
    path : path-like
        It need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.problems = Tally()
        self._decoder = msgspec.json.Decoder(Sample)
        self._descriptor: int | None = None
        self._rest = b""

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading again begins anew."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._rest = b""

    def read(self) -> Iterator[Sample]:
        """Yield what has come since the last call."""
        if self._descriptor is not None and self._was_truncated():
            self.problems.add("the file became shorter; it is read from its beginning")
            self._rest = b""
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        yield from self._read_open()
        if self._was_replaced():
            if self._descriptor is not None:
                self.problems.add("the file was replaced; the new one is read")
                yield from self._last_line()
            self.close()
            self._open()
            yield from self._read_open()

    def finish(self) -> Iterator[Sample]:
        """Yield a last line without its end, if it is whole: nothing more will come."""
        yield from self._last_line()

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            self.problems.add(f"the file cannot be opened ({error.strerror})")

    def _was_truncated(self) -> bool:
        assert self._descriptor is not None
        status = os.fstat(self._descriptor)
        # A pipe has neither a size nor a position.
        return stat.S_ISREG(status.st_mode) and status.st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def _was_replaced(self) -> bool:
        """Whether the path names another file than the open one, or one is to be opened for the first time."""
        if self._descriptor is None:
            return True
        try:
            there = self.path.stat()
        except OSError:
            return False  # between removal and creation; the old one may still grow
        return not os.path.samestat(there, os.fstat(self._descriptor))

    def _read_open(self) -> Iterator[Sample]:
        if self._descriptor is None:
            return
        while True:
            try:
                chunk = os.read(self._descriptor, CHUNK_BYTES)
            except OSError as error:
                self.problems.add(f"the file cannot be read ({error.strerror})")
                return
            if not chunk:
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                yield from self._parse(line)
            if len(self._rest) > MAX_LINE_BYTES:
                self.problems.add(f"a line is longer than {MAX_LINE_BYTES >> 10} KiB")
                self._rest = b""

    def _last_line(self) -> Iterator[Sample]:
        rest, self._rest = self._rest, b""
        if not rest.strip():
            return
        try:
            yield self._decoder.decode(rest)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.problems.add("the last line is not complete")

    def _parse(self, line: bytes) -> Iterator[Sample]:
        if not line.strip():
            return
        try:
            yield self._decoder.decode(line)
        except msgspec.ValidationError as error:
            self.problems.add(f"a line lacks something ({error})")
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.problems.add("a line is not JSON")


def feed(balancer: LoadBalancer, samples: Iterator[Sample]) -> tuple[int, int]:
    """Record samples.

    Parameters
    ----------
    balancer : LoadBalancer
    samples : iterator of Sample

    Returns
    -------
    tuple of int
        How many were recorded, and how many were of another assignment than the present one, and left out: a file goes
        on when layers move. What came before them is of an earlier time, and forgotten.
    """
    deployment = balancer.deployment
    layers: dict[str, int] = {}
    if deployment is not None and balancer.counts_layers:
        layers = dict(zip(deployment.shards, deployment.counts, strict=True))
    recorded = others = 0
    is_since = balancer.has_latencies
    for sample in samples:
        if layers.get(sample.shard, sample.layers) != sample.layers:
            others += 1
            if is_since:
                balancer.reset()
                is_since = False
            continue
        is_since = True
        balancer.record(sample.shard, sample.latency_us, sample.phase, sample.n_tokens, sample.time_unix_s)
        recorded += 1
    return recorded, others
