"""Counters of llama-server and vLLM, as recorded from real ones."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pshard.errors import MetricsError
from pshard.rebalance.engine_metrics import EngineReader, Totals, parse_engine_metrics, read_engine_metrics

DATA = Path(__file__).parents[1] / "data" / "engine_metrics"


def recorded(name: str) -> str:
    return (DATA / f"{name}.txt").read_text()


def test_llama_server() -> None:
    assert parse_engine_metrics(recorded("llama_server")) == {
        "prefill": Totals("llama-server", 6886.0, 2903.63),
        "decode": Totals("llama-server", 3469.0, 3544.27),
    }


def test_llama_server_quoted_as_one_string() -> None:
    """As builds around 7010 did: https://github.com/ggml-org/llama.cpp/issues/17384."""
    text = recorded("llama_server")
    assert parse_engine_metrics(json.dumps(text)) == parse_engine_metrics(text)


def test_vllm_counts_tokens_that_were_computed_and_requests_that_ended() -> None:
    totals = parse_engine_metrics(recorded("vllm"))
    # 4000 of 4150 prompt tokens came from the prefix cache; 231 of 731 tokens are of a request that runs
    assert totals["prefill"] == Totals("vLLM", 150.0, 0.177739146980457)
    assert totals["decode"] == Totals("vLLM", 500.0, 2.583450863021426)


def test_vllm_before_it_counted_computed_tokens() -> None:
    text = "\n".join(row for row in recorded("vllm").splitlines() if "kv_computed" not in row)
    assert parse_engine_metrics(text)["prefill"].tokens == 4150.0


def test_engines_of_one_page_are_added() -> None:
    text = recorded("vllm")
    both = text + "\n".join(r for r in text.replace('engine="0"', 'engine="1"').splitlines() if not r.startswith("#"))
    assert parse_engine_metrics(both + "\n")["decode"].tokens == 1000.0


@pytest.mark.parametrize(
    "text", ["", "go_goroutines 7\n", "{", "llamacpp:prompt_tokens_total not-a-number\n", "<html>"]
)
def test_what_tells_nothing_is_refused(text: str) -> None:
    with pytest.raises(MetricsError, match=r"counters|text format"):
        parse_engine_metrics(text)


def test_seconds_per_token_between_two_looks() -> None:
    reader = EngineReader()
    assert reader.add({"decode": Totals("llama-server", 100.0, 5.0)}) == {"decode": 0.05}
    assert reader.add({"decode": Totals("llama-server", 100.0, 5.0)}) == {}
    assert reader.add({"decode": Totals("llama-server", 150.0, 10.0)}) == {"decode": 0.1}
    assert reader.restarts == 0


def test_counters_that_begin_again_are_those_of_a_restarted_engine() -> None:
    reader = EngineReader()
    reader.add({"decode": Totals("llama-server", 100.0, 5.0), "prefill": Totals("llama-server", 10.0, 1.0)})
    found = reader.add({"decode": Totals("llama-server", 20.0, 2.0), "prefill": Totals("llama-server", 40.0, 2.0)})
    assert found == {"decode": 0.1, "prefill": 0.05}
    assert reader.restarts == 1


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        there = self.path == "/metrics"
        body = recorded("llama_server").encode() if there else b"no"
        self.send_response(200 if there else 501)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_engine_is_asked(address: str, tmp_path: Path) -> None:
    assert read_engine_metrics(f"{address}/metrics") == recorded("llama_server")
    with pytest.raises(MetricsError, match="answers 501"):
        read_engine_metrics(f"{address}/other")
    with pytest.raises(MetricsError, match="cannot be read"):
        read_engine_metrics(str(tmp_path / "none.txt"))
    with pytest.raises(MetricsError, match="is the engine running"):
        read_engine_metrics("http://127.0.0.1:9/metrics")
