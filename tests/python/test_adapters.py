"""LoRA adapters and control vectors: what llama.cpp itself takes for them, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
from adapter_cases import adapter, rows, write_adapter, write_control_vector
from gguf_cases import header_of, write_llama

from pshard import ModelError, SettingError, estimate_memory, read_model
from pshard.cli import main
from pshard.launch.line import parse_launch_line
from pshard.memory.adapters import Adapter, ControlVector, adapted, read_adapter, read_control_vectors
from pshard.memory.check import comparable, print_arguments
from pshard.memory.launch_memory import line_memory
from pshard.memory.memory import estimate
from pshard.memory.report import MemoryReport
from pshard.memory.settings import ContextSettings, PlacementSettings

GIB = 1 << 30
ROWS = rows()
FLASH = {-1: "auto", 0: "off", 1: "on"}


def estimated(row: dict[str, Any]) -> MemoryReport:
    model, launch = oracle.model(row["model"]), row["launch"]
    control = ControlVector("vector", model.hyperparameters.n_embd, *row["control"]) if row["control"] else None
    return estimate(
        model,
        ContextSettings(n_ctx=launch["n_ctx"], flash_attn=FLASH[launch["fa"]], n_outputs_max=launch["n_outputs_max"]),
        PlacementSettings(
            devices=tuple((f"CUDA{i}", mib << 20) for i, mib in enumerate(launch["devices"])),
            n_gpu_layers=launch["ngl"],
            tensor_overrides=((launch["ot"], "CPU"),) if "ot" in launch else (),
        ),
        adapters=tuple(adapter(model, pattern, rank) for pattern, rank in row["adapters"]),
        control_vector=control,
    )


@pytest.mark.parametrize("name", sorted({row["model"] for row in ROWS}))
def test_bytes_are_what_llama_cpp_takes(name: str) -> None:
    checked = [row for row in ROWS if row["model"] == name]
    assert len(checked) >= 8
    for row in checked[::2]:
        report = estimated(row)
        assert [part.model_bytes for part in report.adapters] == row["adapter_bytes"], row
        memories = {memory.name: memory.compute_bytes for memory in (*report.devices, report.host)}
        assert {where: n_bytes for where, n_bytes in memories.items() if n_bytes} == row["compute"], row


def test_the_models_own_weights_do_not_change() -> None:
    model = oracle.model("llama31-8b-q4km")
    plain = estimate_memory(model, n_ctx=8192, devices=[24 * GIB])
    both = [adapter(model, "attn_q", 16), adapter(model, "ffn", 8)]
    found = estimate_memory(model, n_ctx=8192, devices=[24 * GIB], adapters=both)
    assert [d.model_bytes for d in found.devices] == [d.model_bytes for d in plain.devices]
    assert found.host.model_bytes == plain.host.model_bytes
    assert found.page_locked_bytes == plain.page_locked_bytes
    first, second = (part.model_bytes for part in found.adapters)
    assert first == {"CUDA0": 32 * (4096 + 4096) * 16 * 2}
    assert second == {"CUDA0": 32 * 3 * (4096 + 14336) * 8 * 2}
    grown = found.devices[0].compute_bytes - plain.devices[0].compute_bytes
    assert found.used_bytes("CUDA0") - plain.used_bytes("CUDA0") >= first["CUDA0"] + second["CUDA0"] + grown
    assert adapted(model, []) is model


def test_an_adapter_of_scale_zero_is_loaded_and_not_applied() -> None:
    model = oracle.model("llama31-8b-q4km")
    plain, idle, applied = (
        estimate_memory(model, n_ctx=8192, n_outputs_max=1, n_gpu_layers=10, devices=[24 * GIB], adapters=adapters)
        for adapters in ([], [adapter(model, "blk", 64, scale=0.0)], [adapter(model, "blk", 64)])
    )
    assert idle.adapters[0].model_bytes == applied.adapters[0].model_bytes
    assert idle.devices[0].compute_bytes == plain.devices[0].compute_bytes != applied.devices[0].compute_bytes


def pairs(adapter_: Adapter, change: Callable[[str, tuple[int, ...]], tuple[str, tuple[int, ...]] | None]) -> Adapter:
    changed = [change(tensor.name, tensor.shape) for tensor in adapter_.header.tensors]
    tensors = [(name, shape, 1) for name, shape in filter(None, changed)]
    return Adapter("adapter.gguf", header_of(dict(adapter_.header.metadata), tensors))


def test_what_llama_cpp_refuses_is_refused() -> None:
    model, other = oracle.model("llama31-8b-q4km"), oracle.model("qwen3-30b-a3b-q4km")
    good = adapter(model, r"blk\.0\.attn_q\.", 8)
    wrong = {
        "an adapter of a 'qwen3moe' model; the model is 'llama'": adapter(other, r"blk\.0\.attn_q\.", 8),
        "adapts 'blk.99.attn_q.weight', which the model does not have; the nearest is": pairs(
            good, lambda name, shape: (name.replace("blk.0", "blk.99"), shape)
        ),
        "matrices of 4096x8, 8x1024, 4096x4096 do not fit together": pairs(
            good, lambda name, shape: (name, (8, 1024) if name.endswith("b") else shape)
        ),
        "attn_q.weight.lora_b is missing": pairs(
            good, lambda name, shape: (name, shape) if name.endswith("a") else None
        ),
        "ends in neither .lora_a nor .lora_b": pairs(good, lambda name, shape: (name + ".old", shape)),
    }
    for message, bad in wrong.items():
        with pytest.raises(ModelError) as caught:
            estimate_memory(model, n_ctx=512, adapters=[bad])
        assert message in str(caught.value)
    tied = oracle.model("llama32-1b-q8_0")
    with pytest.raises(ModelError, match="the head of this model too"):
        estimate_memory(tied, n_ctx=512, adapters=[adapter(tied, "token_embd", 8)])
    with pytest.raises(ModelError, match="a control vector of 5120 values; the model has 4096"):
        estimate_memory(model, n_ctx=512, control_vector=ControlVector("vector.gguf", 5120))


def test_norms_of_an_adapter_are_skipped() -> None:
    model = oracle.model("llama31-8b-q4km")
    good = adapter(model, r"blk\.0\.attn_q\.", 8)
    more = [(t.name, t.shape, 1) for t in good.header.tensors] + [("blk.0.attn_norm.weight", (4096,), 0)]
    with_norm = Adapter("adapter.gguf", header_of(dict(good.header.metadata), more))
    assert with_norm.pairs().keys() == good.pairs().keys() == {"blk.0.attn_q.weight"}


def stored(folder: Path) -> str:
    """Write a small model, an adapter and a control vector for it; return a launch line that names them."""
    path = write_llama(folder / "model.gguf")
    model = read_model(path)
    lora = write_adapter(folder / "lora.gguf", adapter(model, "attn_q", 4))
    vector = write_control_vector(folder / "vector.gguf", model.hyperparameters.n_embd)
    return f"{path} -c 512 -np 1 --lora {lora} --lora-scaled {lora}:0.5,{lora}:0 --control-vector {vector}"


def test_a_launch_line_counts_them(tmp_path: Path) -> None:
    line = parse_launch_line([*stored(tmp_path).split(), "--control-vector-layer-range", "1", "1"])
    assert [scale for _, scale in line.adapters] == [1.0, 0.5, 0.0]
    assert line.control_layers == (1, 1)
    assert not line.warnings
    report = line_memory(line, [GIB])
    assert [(part.name, part.kind) for part in report.adapters][:3] == [("lora.gguf", "lora")] * 3
    assert report.adapters[3].kind == "control vector"
    plain = line_memory(parse_launch_line([str(line.model), "-c", "512", "-np", "1"]), [GIB])
    own = sum(part.model_bytes["CUDA0"] for part in report.adapters)
    compute = report.devices[0].compute_bytes - plain.devices[0].compute_bytes
    assert report.used_bytes("CUDA0") - plain.used_bytes("CUDA0") >= own + compute > 0
    document = report.to_dict()
    assert document["adapters"][0]["model_bytes"] == report.adapters[0].model_bytes


def test_the_sheet_and_the_check_name_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = parse_launch_line(stored(tmp_path).split())
    arguments, left_out = print_arguments(line)
    assert "the adapters" in left_out
    assert "the control vector" in left_out
    assert "--lora" not in arguments
    assert comparable(line).adapters == comparable(line).control_vectors == ()
    assert main(["memory", *stored(tmp_path).split(), "--devices", "1G"]) == 0
    sheet = capsys.readouterr().out
    assert "lora: lora.gguf" in sheet
    assert "control vector: vector.gguf" in sheet


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--lora-scaled a.gguf", "FILE:SCALE"),
        ("--lora-scaled a.gguf:x", "FILE:SCALE"),
        ("--lora-scaled a.gguf:1:2", "FILE:SCALE"),
        ("--control-vector-layer-range 1", "two values"),
        ("--control-vector-layer-range 1 x", "whole number"),
    ],
)
def test_values_that_llama_cpp_would_not_take(flags: str, part: str) -> None:
    with pytest.raises(SettingError, match=part):
        parse_launch_line(["model.gguf", *flags.split()])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"general\.type is None, not 'adapter'"):
        read_adapter(path)
    with pytest.raises(ModelError, match="it is no control vector"):
        read_control_vectors([str(path)])
    two = [str(write_control_vector(tmp_path / f"{width}.gguf", width)) for width in (64, 128)]
    with pytest.raises(ModelError, match="of 64 and 128 values"):
        read_control_vectors(two)
    assert read_control_vectors([]) is None
