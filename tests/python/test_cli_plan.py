"""``pshard plan``: options, endings, and the text, which must say what the JSON says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pshard import _core
from pshard.cli import _output, main
from pshard.cli._plan_tables import figure, placement_words, verdicts

GIB = 1 << 30
MODEL = "llama-3.3-70b:Q4_K_M"
MACHINE = ("--gpu", "rtx-3060-12g", "--ram", "64G@51GB/s", "--pcie", "4x16", "--cpu", "8c")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PSHARD_STRATEGY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no profile stored here


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def run_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """What stderr says; stdout must be empty, with --json and without."""
    for more in ([], ["--json"]):
        assert main(["plan", *arguments, *more]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
    return captured.err


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_arrive_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "-m qwen3-30b-a3b:Q4_K_M -c 4096 -b 1024 -ub 256 -np 2 -fa off -ctk q8_0 -ctv f32 -t 4 -mva 6000 "
        "--pshard-tier-max 1024 --prompt 1000 --generate 50 --draft 20"
    )
    document = run_json(capsys, *arguments.split(), *MACHINE)
    assert document["workload"] == {
        "n_ctx": 4096, "n_batch": 1024, "n_ubatch": 256, "n_seq_max": 2, "flash_attn": False, "type_k": "q8_0",
        "type_v": "f32", "prompt_tokens": 1000, "generate_tokens": 50, "n_draft": 20, "strategy": None,
    }  # fmt: skip
    assert document["machine"]["n_threads"] == 4
    assert document["budget_bytes"] == 6000 << 20
    assert [tier["batch_size"] for tier in document["tiers"]][-1] == 1024


def test_long_names_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    short = "-c 2048 -b 512 -ub 512 -np 1 -fa on -ctk f16 -ctv f16 -t 4 -mva 4096 --prompt 1000"
    long = (
        "--ctx-size 2048 --batch-size 512 --ubatch-size 512 --parallel 1 --flash-attn on --cache-type-k F16 "
        "--cache-type-v F16 --threads 4 --max-vram-alloc 4096 --prompt 1000"
    )
    one = run_json(capsys, "qwen3-4b:Q4_K_M", *short.split(), *MACHINE)
    assert one == run_json(capsys, "--model", "qwen3-4b:Q4_K_M", *long.split(), *MACHINE)


@pytest.mark.parametrize(
    ("options", "n_bytes"),
    [
        (["--vram", "6G"], 6 * GIB),
        (["--vram", "6"], 6 * GIB),
        (["--vram", "6gib"], 6 * GIB),
        (["--vram", "6144M"], 6 * GIB),
        (["--vram", "6144 MiB"], 6 * GIB),
        (["--vram", "5.5"], 11 * GIB // 2),
        (["--vram", "0"], 0),
        (["-mva", "6144"], 6 * GIB),
        (["-mva", "0"], 11 * GIB),
        (["-mva", "0", "--fit-target", "2048"], 10 * GIB),
        (["--fit-target", "0"], 12 * GIB),
        ([], 11 * GIB),
    ],
    ids=str,
)
def test_budgets(capsys: pytest.CaptureFixture[str], options: list[str], n_bytes: int) -> None:
    assert run_json(capsys, "qwen3-0.6b", *MACHINE, *options)["budget_bytes"] == n_bytes


def test_context_defaults_and_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "qwen3-0.6b", *MACHINE)["workload"]["n_ctx"] == 8192
    whole = run_json(capsys, "qwen3-0.6b", "-c", "0", *MACHINE)
    assert whole["workload"]["n_ctx"] == whole["model"]["n_ctx_train"] == 40960
    assert run_json(capsys, "phi-3-mini-4k", *MACHINE)["workload"]["n_ctx"] == 4096


def test_automatic_flash_attention_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "qwen3-0.6b", "-fa", "auto", "--json", *MACHINE]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["workload"]["flash_attn"] is True
    assert "-fa auto is planned as on" in captured.err


def test_strategy_comes_from_the_option_before_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSHARD_STRATEGY", "GPUONLY_ATTNPIN_FFNSTREAM")
    arguments = ("qwen3-30b-a3b:Q4_K_M", "--vram", "8G", *MACHINE)
    forced = run_json(capsys, *arguments)
    assert {tier["strategy"] for tier in forced["tiers"]} == {"GPUONLY_ATTNPIN_FFNSTREAM"}
    other = run_json(capsys, *arguments, "--strategy", "static_attnprio_allmodels")
    assert {tier["strategy"] for tier in other["tiers"]} == {"STATIC_ATTNPRIO_ALLMODELS"}
    monkeypatch.setenv("PSHARD_STRATEGY", "")
    assert run_json(capsys, *arguments)["workload"]["strategy"] is None


def test_memory_alone_chooses_the_nearest_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "query_gpus", _no_gpus)
    for option in (["--vram", "12G"], ["-mva", "12288"]):
        document = run_json(capsys, "qwen3-4b:Q4_K_M", *option)
        assert document["machine"]["vram_bytes"] == document["budget_bytes"] == 12 * GIB
        assert any("reference GPU nearest to 12 GiB" in note for note in document["machine"]["notes"])


def _no_gpus() -> SimpleNamespace:
    return SimpleNamespace(devices=[], reason="none for this test")


def test_without_a_gpu_all_is_on_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "query_gpus", _no_gpus)
    text = run_text(capsys, "qwen3-4b:Q4_K_M", "--ram", "64G@51GB/s")
    assert "budget    no GPU" in text
    assert "all 36 layers on CPU; head on CPU" in text
    assert "All on the CPU; limited by CPU." in text
    assert " -dev none " in text
    assert "-pshard" not in text


def test_several_gpus_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(
        name="NVIDIA GeForce RTX 3060", total_bytes=12 * GIB, free_bytes=11 * GIB, pci_bus_id="none", copy_engines=2,
        multiprocessors=28, memory_bus_bits=192, memory_clock_hertz=7.5e9,
    )  # fmt: skip

    def two() -> SimpleNamespace:
        return SimpleNamespace(devices=[device, device], reason="")

    monkeypatch.setattr(_core, "query_gpus", two)
    document = run_json(capsys, "qwen3-4b:Q4_K_M", "--ram", "64G@51GB/s")
    assert any("2 GPUs found; this plans for GPU 0" in note for note in document["machine"]["notes"])
    assert document["budget_bytes"] == 10 * GIB  # what is free less the target


# --- endings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-ngl", "99"], "-ngl: pshard chooses what lies on the GPU"),
        (["-ngl", "-1"], "-ngl: pshard chooses"),
        (["--gpu-layers", "20"], "-ngl: pshard chooses"),
        (["--n-gpu-layers", "20"], "-ngl: pshard chooses"),
        (["-ot", "exps=CPU"], "-ot: pshard chooses"),
        (["--override-tensor", "exps=CPU"], "-ot: pshard chooses"),
        (["--n-cpu-moe", "4"], "-ncmoe: pshard chooses"),
        (["-cmoe"], "-cmoe: pshard chooses"),
        (["-ncffn", "4"], "-ncffn: pshard chooses"),
        (["-ts", "1,1"], "-ts: a plan is for one GPU"),
        (["--tensor-split", "1,1"], "-ts: a plan is for one GPU"),
        (["-sm", "row"], "-sm: a plan is for one GPU"),
        (["--split-mode", "row"], "-sm: a plan is for one GPU"),
        (["-nkvo"], "-nkvo: the KV cache follows its layers"),
        (["--no-kv-offload"], "-nkvo: the KV cache follows its layers"),
        (["--vram", "4G", "-mva", "4096"], "--vram and -mva both give the budget"),
        (["--vram", "12Q"], "'12Q' is not a size; examples: 12G"),
        (["--vram", "-1"], "'-1' is not a size"),
        (["-m", "other"], "MODEL and -m both name a model"),
        (["-fa", "maybe"], "'maybe' is not one of"),
        (["-ctk", "q9"], "'q9' is not one of 'f32'"),
        (["-t", "0"], "x>=1"),
        (["-c", "many"], "'many' is not a valid integer"),
        (["--strategy", "BEST"], "strategy 'BEST' is none of GPUONLY_LAYERPIN_LAYERSTREAM"),
        (["--gpu", "voodoo-2"], "voodoo-2"),
        (["--pcie", "9x3"], "--pcie '9x3' is not GENERATIONxLANES"),
        (["--prompt", "9000"], "prompt_tokens=9000"),
        (["--prompt", "0", "--generate", "0"], "both 0"),
        (["-fa", "off", "-ctv", "q8_0"], "needs flash attention"),
        (["--frobnicate"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], options: list[str], reason: str) -> None:
    machine = () if "--gpu" in options or "--pcie" in options else MACHINE
    extra = ("--gpu", "rtx-3060-12g") if "--pcie" in options else machine
    assert reason in refusal(capsys, 2, MODEL, *extra, *options)


def test_no_model_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give one model" in refusal(capsys, 2)


def test_known_failures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a GGUF at all, but long enough to be read")
    assert str(path) in refusal(capsys, 1, str(path), *MACHINE)
    assert "missing.gguf" in refusal(capsys, 1, "missing.gguf", *MACHINE)
    assert "llama-3.3-70b" in refusal(capsys, 1, "llama-3.3-71b", *MACHINE)


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, 3, MODEL, "--vram", "8G", "--gpu", "rtx-3060-12g", "--ram", "8G@51GB/s")
    assert "nothing fits" in said
    missing = [int(number) for number in re.findall(r"(\d+) bytes", said)]
    assert missing and max(missing) > 20 * GIB
    assert "--ram" in said and "a smaller quantisation" in said


def test_a_file_is_planned_like_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a model.gguf"
    assert main(["skeleton", "qwen3-4b:Q4_K_M", "-o", str(path)]) == 0
    capsys.readouterr()
    by_path = run_json(capsys, str(path), "--vram", "2G", *MACHINE)
    by_name = run_json(capsys, "qwen3-4b:Q4_K_M", "--vram", "2G", *MACHINE)
    assert by_path["tiers"] == by_name["tiers"]
    assert by_path["llama_cpp"]["argv"][2] == by_path["model"]["path"] == str(path)
    text = run_text(capsys, str(path), "--vram", "2G", *MACHINE)
    assert shlex.join(by_path["llama_cpp"]["argv"]) in text.splitlines()


# --- text -------------------------------------------------------------------------------------------------------------


def tier_rows(text: str) -> list[list[str]]:
    """Lines of the first table by tier."""
    rows: list[list[str]] = []
    lines = text.split("─\n", 1)[1].split("\n\n", 1)[0].splitlines()
    for line in lines:
        if re.match(r" *\d+   ", line):
            rows.append([])
        rows[-1].append(line)
    return rows


def test_text_says_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (MODEL, "--vram", "11G", *MACHINE)
    document, text = run_json(capsys, *arguments), run_text(capsys, *arguments)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["model", "machine", "budget", "workload"]
    assert all(f"note      {note}"[:80] in text for note in document["machine"]["notes"])
    rows = tier_rows(text)
    assert len(rows) == len(document["tiers"])
    for row, tier in zip(rows, document["tiers"], strict=True):
        flat = " ".join(" ".join(row).split())
        assert int(row[0].split()[0]) == tier["batch_size"]
        runner_up = min(
            (c for c in tier["candidates"] if c["viable"] and c["strategy"] != tier["strategy"]),
            key=lambda c: c["loss"],
        )
        words = (
            tier["strategy"], runner_up["strategy"], "limited by", tier["basis"], figure(tier["tokens_per_second"]),
            *(f"{tier[key] / GIB:.2f}" for key in ("vram_bytes", "weights_bytes", "kv_bytes", "compute_bytes")),
        )  # fmt: skip
        for word in words:
            assert word.replace("STOCK_FIT", "stock --fit") in flat
        if tier["batch_size"] >= 512:
            assert f"{figure(tier['seconds'])} s" in flat
    for verdict in verdicts(document):
        assert verdict in " ".join(lines)
    for engine in ("llama_cpp", "pshard_runtime"):
        assert shlex.join(document[engine]["argv"]) in lines
    assert "Needs the pshard runtime (llama.cpp pull request #22692)" in text
    assert f"Stock {document['llama_cpp']['engine']}; prices assume --load-mode none" in text
    assert [line for line in lines if len(line) > 100] == [
        line for line in lines if line.startswith("llama-server") and len(line) > 100
    ]


@pytest.mark.parametrize("columns", [40, 60, 79, 80])
def test_tables_fit_any_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = run_text(capsys, MODEL, "--vram", "11G", *MACHINE)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(_output, "_console", lambda: Console(width=columns, file=sys.stdout))
    text = run_text(capsys, MODEL, "--vram", "11G", *MACHINE)
    assert "…" not in text
    of_plan = [line for line in text.splitlines() if not line.startswith(("llama-server", "stock --fit decides"))]
    assert all(len(line) <= columns for line in of_plan)
    if columns >= 60:  # nothing is missing, and no word broken
        assert set(wide.split()) - set(text.split()) <= {"─" * len(line) for line in wide.splitlines()}


def test_what_fits_is_just_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_text(capsys, "llama-3.1-8b:Q4_K_M", "--vram", "11G", *MACHINE)
    assert "GiB: just run this." in text
    assert "-ngl all" in text
    assert "-pshard" not in text


def test_without_speeds_the_text_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_text(capsys, MODEL, "--machine", "none", "--vram", "11G", "--ram", "128G")
    assert "nothing is priced" in text
    assert all("not known" in " ".join(row) for row in tier_rows(text))
    assert "limited by" not in text and "times stock" not in text
    assert "Without speeds nothing says which engine is faster." in text
    assert "--load-mode none" in text  # in the launch line; no price assumes it
    assert "prices assume" not in text


def test_a_tier_that_does_not_fit_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (MODEL, "--vram", "0", "--strategy", "GPUONLY_LAYERPIN_LAYERSTREAM", *MACHINE)
    rows = tier_rows(run_text(capsys, *arguments))
    assert rows and all(re.search(r"does not fit: [\d.]+ [MG]iB missing", row[0]) for row in rows)


# --- words ------------------------------------------------------------------------------------------------------------


def stretch(count: int, pinned: str = "", streamed: str = "", cpu: str = "") -> dict[str, Any]:
    return {"first": 0, "count": count, "pinned": pinned.split(), "streamed": streamed.split(), "cpu": cpu.split()}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([stretch(9, "norms attention ffn_up")], "all 9 layers pinned; head pinned"),
        ([stretch(8, cpu="norms ffn_up"), stretch(1, "norms ffn_up")], "1 layer pinned; 8 on CPU; head pinned"),
        (
            [
                stretch(3, "norms attention cache ffn_up ffn_gate ffn_down"),
                stretch(6, streamed="norms attention cache", cpu="ffn_up ffn_gate ffn_down"),
            ],
            "3 layers pinned; 6: attention streamed, FFN on CPU; head pinned",
        ),
        (
            [
                stretch(8, "norms cache router shared_up", cpu="experts_up experts_down"),
                stretch(1, "norms cache router shared_up experts_up", cpu="experts_down"),
            ],
            "8 layers: attention pinned, experts on CPU; 1: attention pinned, experts down on CPU; head pinned",
        ),
        (
            [stretch(9, "norms cache ffn_up ffn_down", streamed="experts_up experts_down")],
            "all 9 layers: attention pinned, experts streamed; head pinned",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_placement_words(layers: list[dict[str, Any]], words: str) -> None:
    assert placement_words({"layers": layers, "output_on_gpu": True}, 9) == words


def engines(**changes: Any) -> dict[str, Any]:
    engine = {"bottleneck": "up", "link_bytes_per_token": 3_100_000_000, "speedup_over_stock_fit": 1.8}
    document = {
        "pshard_disabled": False, "budget_bytes": GIB, "stock_fit": {"viable": True, "basis": "reference"},
        "llama_cpp": engine | {"is_stock_fit": False}, "pshard_runtime": dict(engine),
    }  # fmt: skip
    for path, value in changes.items():
        owner, _, key = path.partition("__")
        if key:
            document[owner][key] = value
        else:
            document[owner] = value
    return document


def test_verdicts_are_honest() -> None:
    limits = "3.10 GB over PCIe per token; limited by PCIe up."
    gain = "1.80 times stock --fit for your workload"
    assert verdicts(engines()) == [
        f"Stock llama.cpp with this plan: {gain}; {limits}",
        f"pshard runtime: {gain}; {limits}",
    ]
    assert verdicts(engines(llama_cpp__is_stock_fit=True))[0] == (
        f"Stock llama.cpp: its own --fit is as good as any placement: use it; {limits}"
    )
    assert verdicts(engines(pshard_runtime__speedup_over_stock_fit=1.004))[1] == (
        f"pshard runtime: no faster than stock --fit for your workload; {limits}"
    )
    assert verdicts(engines(llama_cpp=None))[0] == "Stock llama.cpp cannot hold this model in the budget."
    assert verdicts(engines(stock_fit__viable=False))[0] == (
        f"Stock llama.cpp: its own --fit does not fit, this plan does; {limits}"
    )
    small = engines(pshard_runtime=None, llama_cpp__link_bytes_per_token=5_300_000)
    assert verdicts(small) == [
        f"Stock llama.cpp with this plan: {gain}; 5.30 MB over PCIe per token; limited by PCIe up."
    ]


def test_figures_have_three_digits() -> None:
    assert [figure(x) for x in (0.0, 0.01234, 0.5, 1.826, 12.34, 155.4, 8004.4)] == [
        "0", "0.0123", "0.500", "1.83", "12.3", "155", "8004",
    ]  # fmt: skip
