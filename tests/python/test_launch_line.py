"""llama.cpp's launch lines: spellings, defaults of each program, what is ignored and what is refused."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import get_type_hints

import msgspec
import pytest

from pshard.errors import SettingError
from pshard.launch import spellings
from pshard.launch.line import LaunchLine, parse_launch_line
from pshard.launch.spellings import CACHE_TYPES

ATTRIBUTES = get_type_hints(LaunchLine)


def parse(text: str) -> LaunchLine:
    return parse_launch_line(shlex.split(text))


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_a_server_line_has_the_servers_defaults() -> None:
    line = parse("model.gguf")
    assert (line.program, line.model, line.n_ctx, line.n_batch, line.n_ubatch) == (
        "llama-server", "model.gguf", 0, 2048, 512
    )  # fmt: skip
    assert (line.n_seq_max, line.kv_unified, line.n_outputs_max) == (4, True, 4)
    assert (line.flash_attn, line.type_k, line.n_gpu_layers, line.fit, line.load_mode) == (
        "auto",
        "f16",
        -1,
        True,
        "auto",
    )
    assert line.given == {"model"}


def test_a_number_of_slots_keeps_their_caches_apart() -> None:
    line = parse("model.gguf -np 2")
    assert (line.n_seq_max, line.kv_unified, line.n_outputs_max) == (2, False, 2)
    assert parse("model.gguf -np 2 -kvu").kv_unified
    assert parse("model.gguf -np -1").kv_unified


@pytest.mark.parametrize("program", ["llama-cli", "llama-fit-params", "/opt/bin/llama-fit-params"])
def test_other_programs_have_one_sequence(program: str) -> None:
    line = parse(f"{program} -m model.gguf")
    assert (line.n_seq_max, line.kv_unified) == (1, False)
    assert line.n_outputs_max == (1 if program == "llama-cli" else None)


def test_speculation_asks_for_more_outputs() -> None:
    assert parse("a.gguf -np 2 -md d.gguf").n_outputs_max == 2
    assert parse("a.gguf -np 2 -md d.gguf --spec-type draft-simple").n_outputs_max == 2 * (1 + 3)
    assert parse("a.gguf -np 2 --spec-type draft-simple --spec-draft-n-max 8").n_outputs_max == 2 * (1 + 8)
    assert parse("a.gguf -np 2 --spec-type draft-simple,ngram-mod").n_outputs_max == 2 * (1 + 64)
    assert parse("a.gguf -b 16 -np 2 --spec-default").n_outputs_max == 16


@pytest.mark.parametrize("flags", ["--embeddings", "--rerank", "--pooling mean"])
def test_embeddings_are_wanted_of_every_token(flags: str) -> None:
    assert parse(f"a.gguf {flags}").n_outputs_max is None
    assert parse("a.gguf --pooling none").n_outputs_max == 4


def test_embeddings_need_a_batch_in_one_piece() -> None:
    assert parse("a.gguf --embeddings -b 4096 -ub 1024").n_batch == 1024
    assert parse("llama-fit-params a.gguf -b 4096 -ub 1024").n_batch == 4096


def test_a_limit_per_slot_sizes_the_context_where_nothing_else_does() -> None:
    assert parse("a.gguf --kv-unified-per-slot 4096").n_ctx == 4 * 4096
    assert parse("a.gguf --kv-unified-per-slot 4096 -c 8192").n_ctx == 8192
    assert parse("a.gguf --kv-unified-per-slot 4096 -c 0").n_ctx == 0


# --- spellings --------------------------------------------------------------------------------------------------------

SPELLINGS = [
    ("-c --ctx-size --ctx_size", "4096", "n_ctx", 4096),
    ("-b --batch-size", "1024", "n_batch", 1024),
    ("-ub --ubatch-size", "256", "n_ubatch", 256),
    ("-np --parallel", "3", "n_seq_max", 3),
    ("-fa --flash-attn", "on", "flash_attn", "on"),
    ("-fa --flash-attn", "0", "flash_attn", "off"),
    ("-fa --flash-attn", "auto", "flash_attn", "auto"),
    ("-ctk --cache-type-k", "q8_0", "type_k", "q8_0"),
    ("-ctv --cache-type-v", "iq4_nl", "type_v", "iq4_nl"),
    ("-ngl --gpu-layers --n-gpu-layers", "12", "n_gpu_layers", 12),
    ("-ngl", "all", "n_gpu_layers", -1),
    ("-ngl", "-5", "n_gpu_layers", -1),
    ("-ot --override-tensor", "exps=CPU,norm=CUDA1", "overrides", (("exps", "CPU"), ("norm", "CUDA1"))),
    ("-dev --device", "CUDA1,CUDA0", "device_names", ("CUDA1", "CUDA0")),
    ("-dev", "none", "device_names", ()),
    ("-sm --split-mode", "none", "split_mode", "none"),
    ("-ts --tensor-split", "3,1", "tensor_split", (3.0, 1.0)),
    ("-ts", "0.5/0.25", "tensor_split", (0.5, 0.25)),
    ("-mg --main-gpu", "1", "main_gpu", 1),
    ("-lm --load-mode", "dio", "load_mode", "dio"),
    ("-fit --fit", "off", "fit", False),
    ("-fitt --fit-target", "512,256", "fit_target_mib", (512, 256)),
    ("-fitc --fit-ctx", "8192", "fit_ctx", 8192),
    ("-md --model-draft --spec-draft-model", "d.gguf", "draft_model", "d.gguf"),
    ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", "4", "draft_n_gpu_layers", 4),
    ("-ctkd --cache-type-k-draft --spec-draft-type-k", "q4_0", "draft_type_k", "q4_0"),
    ("-ctvd --cache-type-v-draft --spec-draft-type-v", "q4_0", "draft_type_v", "q4_0"),
    ("-devd --device-draft --spec-draft-device", "CUDA1", "draft_device_names", ("CUDA1",)),
    ("-otd --override-tensor-draft --spec-draft-override-tensor", "a=CPU", "draft_overrides", (("a", "CPU"),)),
    ("-mm --mmproj", "p.gguf", "projector", "p.gguf"),
    ("-mmdev --mmproj-device", "CUDA1", "projector_device", "CUDA1"),
    ("-cram --cache-ram", "0", "prompt_cache_mib", 0),
    ("-ctxcp --ctx-checkpoints --swa-checkpoints", "8", "n_context_checkpoints", 8),
    ("-kvu --kv-unified", "", "kv_unified", True),
    ("-nkvo --no-kv-offload", "", "offload_kqv", False),
    ("--no-op-offload", "", "op_offload", False),
    ("--swa-full --swa_full", "", "swa_full", True),
    ("--no-host", "", "host_buffer", False),
    ("-nr --no-repack", "", "repack", False),
    ("--no-mmproj-offload", "", "projector_offload", False),
    ("--no-warmup", "", "warmup", False),
    ("--no-mmap", "", "load_mode", "none"),
    ("-dio --direct-io", "", "load_mode", "dio"),
    ("-cmoe --cpu-moe", "", "overrides", ((r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),)),
]


@pytest.mark.parametrize(
    ("flag", "text", "field", "value"),
    [(flag, text, field, value) for flags, text, field, value in SPELLINGS for flag in flags.split()],
)
def test_every_spelling_is_read(flag: str, text: str, field: str, value: object) -> None:
    line = parse_launch_line(["model.gguf", flag, *([text] if text else [])])
    assert getattr(line, field) == value
    assert field in line.given
    assert not line.ignored
    assert not line.warnings


def test_layers_whose_experts_stay_are_numbered_and_the_order_of_rules_is_kept() -> None:
    line = parse("a.gguf -ot attn=CUDA0 -ncmoe 2 -ncffn 1 -cmoe")
    assert line.overrides == (
        ("attn", "CUDA0"),
        (r"blk\.0\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),
        (r"blk\.1\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),
        (r"blk\.0\.ffn_(up|down|gate)\.", "CPU"),
        (r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),
    )


def test_the_last_of_two_wins() -> None:
    assert parse("a.gguf -c 4096 -c 8192").n_ctx == 8192
    assert "n_gpu_layers" not in parse("a.gguf -ngl 5 -ngl auto").given


# --- what is not of memory --------------------------------------------------------------------------------------------


def test_flags_without_bearing_on_memory_are_listed() -> None:
    line = parse("a.gguf -t 8 --temp 0.7 --jinja --keep -1 --host 0.0.0.0 -c 4096 --logit-bias '{\"a\": 1}'")
    assert line.ignored == (
        "-t 8", "--temp 0.7", "--jinja", "--keep -1", "--host 0.0.0.0", "--logit-bias {\"a\": 1}"
    )  # fmt: skip
    assert line.n_ctx == 4096
    assert not line.warnings


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--override-kv a=int:1", "as it stands"),
        ("--rpc host:50052", "--devices"),
        ("-cd 4096", "follows -c"),
        ("--draft-max 8", "--spec-draft-n-max"),
        ("--ctx-sise 4096", "did you mean --ctx-size"),
    ],
)
def test_what_is_not_counted_is_said(flags: str, part: str) -> None:
    line = parse(f"a.gguf {flags}")
    assert len(line.warnings) == 1
    assert part in line.warnings[0]
    assert line.warnings[0].startswith(flags)
    assert not line.ignored


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a.gguf -c 8k", "whole number"),
        ("a.gguf -c -1", "at least 0"),
        ("a.gguf -c 99999999999", "32-bit"),
        ("a.gguf -c", "takes a value"),
        ("a.gguf -np 0", "at least one sequence"),
        ("llama-cli a.gguf -np -1", "only llama-server"),
        ("a.gguf -ngl some", "'auto' or 'all'"),
        ("a.gguf -fa yes", "'on', 'off' or 'auto'"),
        ("a.gguf -fit maybe", "'on' or 'off'"),
        ("a.gguf -ctk q8", "did you mean q8_0"),
        ("a.gguf -ctv q6_K", "none of f32"),
        ("a.gguf -ts 3;1", "proportions"),
        ("a.gguf -ts " + ",".join("1" * 16), "fewer than 16"),
        ("a.gguf -ot exps", "PATTERN=BUFFER"),
        ("a.gguf -lm fast", "none of auto"),
        ("a.gguf --spec-type draft", "did you mean draft-"),
        ("a.gguf --ctx-size=4096", "write --ctx-size 4096"),
        ("a.gguf b.gguf", "is 'a.gguf' already"),
        ("-hf user/model", "still to be downloaded"),
    ],
)
def test_what_llama_cpp_would_not_take_is_refused(text: str, part: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse(text)
    assert part in str(caught.value)


def test_cache_types_are_the_ones_that_llama_cpp_lists() -> None:
    assert sorted(CACHE_TYPES) == ["bf16", "f16", "f32", "iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]


def test_no_flag_is_read_in_two_ways() -> None:
    names = [name for table in (spellings.VALUED, spellings.SWITCHES) for names, *_ in table for name in names.split()]
    names += [*spellings.UNCOUNTED, *spellings.GONE, *spellings.DOWNLOADS]
    assert len(names) == len(set(names)) > 100


# Between them, every flag finds one that it takes.
TEXTS = ["a.gguf", "1", "on", "f16", "layer", "none", "mean", "a=CPU", "3,1", "draft-mtp", "a.gguf:0.5", "1 2"]


@pytest.mark.parametrize("flag", sorted(spellings.READERS))
def test_what_is_read_of_a_flag_is_of_its_attributes_type(flag: str) -> None:
    attribute, read = spellings.READERS[flag]
    values = []
    for text in TEXTS:
        with suppress(SettingError, ValueError):
            values.append(read(flag, text))
    assert values
    for value in values:
        assert msgspec.convert(value, ATTRIBUTES[attribute], strict=True) == value


@pytest.mark.parametrize("flag", sorted(spellings.SETTERS))
def test_what_a_flag_sets_is_of_its_attributes_type(flag: str) -> None:
    attribute, value = spellings.SETTERS[flag]
    assert msgspec.convert(value, ATTRIBUTES[attribute], strict=True) == value
