"""A model that drafts with its own next-token-prediction layers: what llama.cpp loads and reserves for them."""

from __future__ import annotations

import json
from typing import Any

import oracle
import pytest
from gguf_cases import DATA

from pshard import SettingError
from pshard.launch.line import parse_launch_line
from pshard.memory.launch_memory import own_draft
from pshard.memory.memory import estimate
from pshard.memory.next_tokens import whole
from pshard.memory.placed import Draft
from pshard.memory.report import MemoryReport
from pshard.memory.settings import ContextSettings, PlacementSettings

DOCUMENT: dict[str, Any] = json.loads((DATA / "next_tokens.json").read_text())
FLASH = {-1: "auto", 0: "off", 1: "on"}


def estimated(launch: dict[str, Any], *, drafts: bool = True) -> MemoryReport:
    model = oracle.model(DOCUMENT["model"])
    return estimate(
        model,
        ContextSettings(
            n_ctx=launch["n_ctx"], flash_attn=FLASH[launch["fa"]], n_seq_max=launch["n_seq_max"],
            n_outputs_max=4 * launch["n_seq_max"],
        ),
        PlacementSettings(
            devices=tuple((f"CUDA{i}", mib << 20) for i, mib in enumerate(launch["devices"])),
            n_gpu_layers=launch["ngl"],
        ),
        drafts_itself=Draft(model=model) if drafts else None,
    )  # fmt: skip


def by_memory(report: MemoryReport, field: str) -> dict[str, int]:
    found = {memory.name: getattr(memory, field) for memory in (*report.devices, report.host)}
    return {name: n_bytes for name, n_bytes in found.items() if n_bytes}


@pytest.mark.parametrize("row", DOCUMENT["rows"], ids=lambda row: "-".join(map(str, row["launch"].values())))
def test_bytes_are_what_llama_cpp_takes(row: dict[str, Any]) -> None:
    report = estimated(row["launch"])
    assert report.draft is not None
    assert by_memory(report, "model_bytes") == row["model_bytes"]
    assert by_memory(report, "compute_bytes") == row["compute_bytes"]
    assert by_memory(report.draft, "model_bytes") == {}
    assert by_memory(report.draft, "context_bytes") == row["own_context_bytes"]
    assert by_memory(report.draft, "compute_bytes") == row["own_compute_bytes"]


def test_the_hidden_states_are_handed_on_in_host_memory() -> None:
    launch = DOCUMENT["rows"][0]["launch"]
    drafting, plain = estimated(launch), estimated(launch, drafts=False)
    assert drafting.output_bytes - plain.output_bytes == 2048 * 4096 * 4
    assert drafting.page_locked_bytes >= plain.page_locked_bytes


def test_a_line_asks_for_it() -> None:
    model = oracle.model(DOCUMENT["model"])
    for flags in ("--mtp", "--spec-type draft-mtp"):
        line = parse_launch_line(["model.gguf", *flags.split(), "-ctkd", "q8_0"])
        draft = own_draft(line, model)
        assert draft is not None
        assert draft.type_k == "q8_0"
    assert own_draft(parse_launch_line(["model.gguf", "--mtp", "-md", "draft.gguf"]), model) is None
    assert own_draft(parse_launch_line(["model.gguf"]), model) is None


def test_a_model_without_such_layers_cannot() -> None:
    with pytest.raises(SettingError, match="no layers that predict the token after the next"):
        whole(oracle.model("llama31-8b-q4km"))
