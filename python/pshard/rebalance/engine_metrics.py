"""Latencies of a whole engine, from the counters that it shows to Prometheus: llama-server's and vLLM's.

An engine tells tokens and seconds of all its devices together. So what comes out corrects the machine as a whole: it
says how far a prediction is off, not which device is.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import MetricsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pshard.rebalance.deployment import Phase

TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Two counters: what all tokens of a phase took, and how many they were."""

    engine: str
    phase: Phase
    seconds: str
    tokens: str


# The first of a phase whose names are there counts. Seconds are those of each sequence, so that a decode step of
# several sequences counts once for each, with one token each.
SOURCES = (
    # tools/server/README.md of llama.cpp, since pull request 5937.
    Source("llama-server", "prefill", "llamacpp:prompt_seconds_total", "llamacpp:prompt_tokens_total"),
    Source("llama-server", "decode", "llamacpp:tokens_predicted_seconds_total", "llamacpp:tokens_predicted_total"),
    # docs/usage/metrics.md of vLLM. Tokens that came from the prefix cache took no time.
    Source("vLLM", "prefill", "vllm:request_prefill_time_seconds_sum", "vllm:request_prefill_kv_computed_tokens_sum"),
    Source("vLLM", "prefill", "vllm:request_prefill_time_seconds_sum", "vllm:request_prompt_tokens_sum"),
    Source("vLLM", "decode", "vllm:inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_count"),
    Source("vLLM", "decode", "vllm:time_per_output_token_seconds_sum", "vllm:time_per_output_token_seconds_count"),
    # Of finished requests; the counter of all generated tokens has those of running ones too.
    Source("vLLM", "decode", "vllm:request_decode_time_seconds_sum", "vllm:request_generation_tokens_sum"),
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens and their seconds since the engine started."""

    engine: str
    tokens: float
    seconds: float


def parse_engine_metrics(text: str) -> dict[Phase, Totals]:
    """Read what an engine shows.

    Parameters
    ----------
    text : str
        Prometheus's text format. Values of one name with several labels (engines, models) are added.

    Returns
    -------
    dict from phase to Totals
        The phases that the engine tells.

    Raises
    ------
    MetricsError
        It is not that format, or has none of the names.
    """
    from prometheus_client.parser import text_string_to_metric_families

    if text.lstrip().startswith('"'):
        # Some builds of llama-server quoted the whole of it as one JSON string (llama.cpp issue 17384).
        with suppress(ValueError):
            text = json.loads(text)
    sums: dict[str, float] = {}
    wanted = {name for source in SOURCES for name in (source.seconds, source.tokens)}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in wanted:
                    sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    except Exception as error:  # the parser raises whatever its string operations do
        message = f"not Prometheus's text format ({error}); give llama-server's or vLLM's /metrics."
        raise MetricsError(message) from error
    totals: dict[Phase, Totals] = {}
    for source in SOURCES:
        if source.phase not in totals and source.seconds in sums and source.tokens in sums:
            totals[source.phase] = Totals(source.engine, sums[source.tokens], sums[source.seconds])
    if not totals:
        message = (
            "none of the counters of llama-server (llamacpp:tokens_predicted_seconds_total, ...) or vLLM "
            "(vllm:request_decode_time_seconds_sum, ...) is there; start llama-server with --metrics, or give another "
            "address."
        )
        raise MetricsError(message)
    return totals


def read_engine_metrics(source: str) -> str:
    """Fetch the text of a URL (http, https) or a file.

    Raises
    ------
    MetricsError
        It cannot be had, with the reason.
    """
    try:
        if not source.startswith(("http://", "https://")):
            return Path(source).read_text(encoding="utf-8", errors="replace")
        with urllib.request.urlopen(source, timeout=TIMEOUT_SECONDS) as answer:
            return str(answer.read(MAX_ANSWER_BYTES).decode("utf-8", errors="replace"))
    except urllib.error.HTTPError as error:
        message = (
            f"{source}: the engine answers {error.code} ({error.reason}); llama-server shows metrics with --metrics."
        )
        raise MetricsError(message) from error
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        message = f"{source}: cannot be read ({reason}); is the engine running, and is the address right?"
        raise MetricsError(message) from error


class EngineReader:
    """Turns counters into seconds per token, poll by poll."""

    def __init__(self) -> None:
        self.restarts = 0
        self._before: dict[Phase, Totals] = {}

    def add(self, totals: Mapping[Phase, Totals]) -> dict[Phase, float]:
        """Return the seconds per token since the last call, by phase; of the first call, since the engine started.

        A counter that is lower than before began again at zero: the engine was restarted, which `restarts` counts.
        """
        restarted = any(
            now.tokens < self._before[phase].tokens or now.seconds < self._before[phase].seconds
            for phase, now in totals.items()
            if phase in self._before
        )
        if restarted:
            self.restarts += 1
            self._before.clear()
        found: dict[Phase, float] = {}
        for phase, now in totals.items():
            before = self._before.get(phase)
            tokens = now.tokens - (before.tokens if before else 0.0)
            seconds = now.seconds - (before.seconds if before else 0.0)
            if tokens > 0 and seconds > 0:
                found[phase] = seconds / tokens
        self._before.update(totals)
        return found
