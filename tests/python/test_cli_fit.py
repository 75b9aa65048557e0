"""``pshard fit``: the line of llama-fit-params, the table below it, and what is refused."""

from __future__ import annotations

import json
import shlex

import pytest

import pshard
from pshard.cli import main
from pshard.launch.line import parse_launch_line

GIB = 1 << 30
EXPERTS = "qwen3-30b-a3b:Q4_K_M"
DRAFT = "qwen3-0.6b:Q4_K_M"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["fit", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_first_line_is_that_of_the_tool(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, EXPERTS, "-c", "8192", "--devices", "8G,12G", "--fit-target", "512,2048")
    line, blank, head, *table = out.splitlines()
    expected = pshard.fit(
        pshard.read_model(EXPERTS), [8 * GIB, 12 * GIB], n_ctx=8192, fit_target_bytes=[GIB // 2, 2 * GIB]
    )
    assert line == expected.line
    assert not blank
    assert head.split() == ["MiB", "weights", "KV", "cache,", "state", "compute", "all", "stays", "free"]
    assert [row.split()[0] for row in table[1:]] == ["CUDA0", "CUDA1", "Host"]
    weights, cache, compute, used, left = map(float, table[1].split()[1:])
    assert used == pytest.approx(weights + cache + compute, abs=0.2)
    assert used + left == pytest.approx(8192, abs=0.2)
    assert left >= 512
    assert not err


def test_the_line_can_be_given_to_llama_cpp_again(capsys: pytest.CaptureFixture[str]) -> None:
    """What it decided fits, and is left as it is."""
    out, _ = printed(capsys, EXPERTS, "-c", "8192", "--devices", "8G,12G")
    first = out.splitlines()[0]
    again, _ = printed(capsys, EXPERTS, *shlex.split(first), "--devices", "8G,12G")
    assert again.splitlines()[0] == first
    assert parse_launch_line([EXPERTS, *shlex.split(first)], "llama-fit-params").n_gpu_layers == 49


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, EXPERTS, "--devices", "8G", "-t", "8", "--json")
    document = json.loads(out)
    assert document["schema_version"] == 1
    assert document["line"].startswith("-c 4096 -ngl 49 -ot ")
    assert (document["outcome"], document["n_ctx"], document["n_gpu_layers"]) == ("distributed", 4096, 49)
    assert document["tensor_split"] == []
    assert document["fit_target_bytes"] == [GIB]
    assert all(buffer == "CPU" for _, buffer in document["tensor_overrides"])
    (device,) = document["devices"]
    used = device["model_bytes"] + device["context_bytes"] + device["compute_bytes"]
    assert used <= device["free_bytes"] - GIB
    assert (document["program"], document["ignored"]) == ("llama-fit-params", ["-t 8"])


def test_a_server_has_other_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Logits for a token of each of four sequences, not for the whole micro-batch: more context fits."""
    tool, _ = printed(capsys, "llama-3.1-8b:Q4_K_M", "--devices", "8G")
    server, _ = printed(capsys, "llama-server", "-m", "llama-3.1-8b:Q4_K_M", "--devices", "8G")
    n_ctx = [int(out.split()[1]) for out in (tool, server)]
    assert n_ctx[0] < n_ctx[1]


def test_what_is_given_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, EXPERTS, "-c", "8192", "-ngl", "40", "-ot", "exps=CUDA0", "--devices", "8G", code=3)
    assert not out
    assert "--fit gives up (n_gpu_layers and tensor_overrides given, of which it changes nothing): CUDA0 is" in err
    assert "short of leaving 1024 MiB free. What would help: leave them out" in err


def test_zero_keeps_the_trained_context_until_a_shortest_one_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    model = "llama-3.1-8b:Q4_K_M"
    assert printed(capsys, model, "-c", "0", "--devices", "8G")[0].startswith("-c 131072 -ngl 10\n")
    assert printed(capsys, model, "-c", "0", "-fitc", "4096", "--devices", "8G")[0].startswith("-c 19968 -ngl -1\n")
    assert printed(capsys, model, "-fitc", "4096", "-c", "0", "--devices", "8G")[0].startswith("-c 131072 -ngl 10\n")


def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "llama-3.1-8b:Q4_K_M", "--devices", "none", "--ram", "12G")
    line, _, _, _, host = out.splitlines()
    assert line.endswith("-ngl -1")
    assert float(host.split()[-1]) >= 1024
    _, err = printed(capsys, "llama-3.1-8b:Q4_K_M", "--devices", "none", "--ram", "4G", code=3)
    assert "without a GPU there is only the context to shorten" in err


def test_what_is_not_counted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = printed(
        capsys, "llama-server", "-m", EXPERTS, "-md", DRAFT, "-fit", "off", "--devices", "24G", "-c", "4096"
    )
    assert "The line says --fit off" in err
    assert "-md" not in err
    assert (
        "-md: llama-fit-params does not look at it"
        in printed(capsys, EXPERTS, "-md", "draft.gguf", "--devices", "24G", "-c", "4096")[1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model"),
        ([EXPERTS, "--devices", "12X"], "12X"),
        ([EXPERTS, "--devices", "8G", "-fitt", "x"], "-fitt x"),
        ([EXPERTS, "--devices", "8G,8G", "-sm", "row"], "split_mode='row'"),
        ([EXPERTS, "--devices", "0"], "CUDA0 has no memory"),
        ([EXPERTS, "--devices", "8G", "-dev", "CUDA1"], "-dev names CUDA1"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in printed(capsys, *arguments, code=2)[1]
