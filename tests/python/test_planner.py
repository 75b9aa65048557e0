"""plan(): its arguments, its limits, and what every plan must say."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from gguf_cases import header_of, llama_keys, llama_tensors, oracle_header, oracle_models
from msgspec.structs import replace
from planning_cases import GIB

from pshard import Machine, Model, NoFeasiblePlanError, Plan, SettingError, _core, load_machine, plan
from pshard.model.model import model_from_header

MIB = 1 << 20


@cache
def model(name: str = "llama31-8b-q4km") -> Model:
    return model_from_header(oracle_header(name), name)


@cache
def machine(ram: str = "128G@51GB/s") -> Machine:
    return load_machine(gpu="rtx-3060-12g", ram=ram, pcie="4x16")


def made_up(ram_bytes: int, with_gpu: bool = True) -> Machine:
    """The same machine with other memory."""
    profile = machine().profile
    capacities = replace(profile.capacities, ram_bytes=ram_bytes, page_lock_bytes=0)
    if not with_gpu:
        profile = replace(profile, gpu=None, link=None)
        capacities = replace(capacities, vram_bytes=0)
    return Machine("made up", replace(profile, capacities=capacities))


def planned(name: str = "llama31-8b-q4km", vram_bytes: int | None = 4 * GIB, **more: Any) -> Plan:
    return plan(model(name), machine(), vram_bytes=vram_bytes, **more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n_ctx": 0}, "n_ctx=0"),
        ({"n_ctx": 8192.0}, "n_ctx=8192.0"),
        ({"n_ctx": True}, "n_ctx=True"),
        ({"n_batch": 0}, "n_batch=0"),
        ({"n_ubatch": 0}, "n_ubatch=0"),
        ({"n_ubatch": -1}, "n_ubatch=-1"),
        ({"n_seq_max": 0}, "n_seq_max=0"),
        ({"n_ctx": 4, "n_seq_max": 8}, "n_seq_max=8"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"n_draft": -1}, "n_draft=-1"),
        ({"tier_max": 0}, "tier_max=0"),
        ({"prompt_tokens": -1}, "prompt_tokens=-1"),
        ({"generate_tokens": -1}, "generate_tokens=-1"),
        ({"prompt_tokens": 0, "generate_tokens": 0}, "both 0"),
        ({"n_ctx": 1024, "prompt_tokens": 1000, "generate_tokens": 25}, "exceed the context of 1024"),
        ({"n_ctx": 8192, "n_seq_max": 4, "prompt_tokens": 2048, "generate_tokens": 1}, "2048 tokens per sequence"),
        ({"strategy": "FASTEST"}, "STATIC_ATTNPRIO_ALLMODELS"),
        ({"strategy": "STOCK"}, "'STOCK'"),
        ({"type_k": "q3_9"}, "q3_9"),
        ({"type_v": "q8_0", "flash_attn": False}, "flash attention"),
        ({"vram_bytes": -1}, "vram_bytes=-1"),
        ({"vram_bytes": None, "fit_target_bytes": -1}, "fit_target_bytes=-1"),
    ],
)
def test_refuses(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said.replace("(", r"\(")):
        planned(**arguments)


def test_refuses_a_cache_type_that_does_not_divide_the_heads() -> None:
    # 16 heads of 16 elements: half a block of q8_0.
    keys = llama_keys(**{"attention.head_count": 16, "attention.head_count_kv": 4})
    metadata = {f"llama.{key}": value for key, value in keys.items()} | {"general.architecture": "llama"}
    narrow = model_from_header(header_of(metadata, llama_tensors()), "narrow heads")
    assert plan(narrow, machine(), vram_bytes=GIB).tiers
    with pytest.raises(SettingError, match="do not divide heads of 16"):
        plan(narrow, machine(), vram_bytes=GIB, type_k="q8_0")


@pytest.mark.parametrize("setting", [{"type_k": "q4_k"}, {"type_v": "i8"}, {"type_k": 8}])
def test_refuses_a_type_that_llama_cpp_keeps_no_cache_in(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="none of the cache types"):
        planned(**setting)


@pytest.mark.parametrize(
    "setting", ["n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_draft", "tier_max", "n_threads", "vram_bytes"]
)
def test_refuses_numbers_beyond_all_sense(setting: str) -> None:
    with pytest.raises(SettingError, match=f"{setting}={1 << 62} must be a whole number from"):
        planned(**{setting: 1 << 62})


@pytest.mark.parametrize("value", ["512", True, 2.5])
@pytest.mark.parametrize(
    "setting", ["n_ctx", "n_batch", "n_ubatch", "n_seq_max", "prompt_tokens", "generate_tokens", "n_draft", "tier_max"]
)
def test_refuses_what_is_no_whole_number(setting: str, value: object) -> None:
    """Before anything is computed from it."""
    with pytest.raises(SettingError, match=f"{setting}={value!r} must be a whole number from"):
        planned(**{setting: value})


def test_a_batch_that_was_given_bounds_the_micro_batch() -> None:
    assert planned(n_batch=64).settings.micro_batches == (64,)
    assert planned().settings.micro_batches == (512, 1024, 2048, 4096)


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_budget_is_what_is_free_less_the_target() -> None:
    assert planned(vram_bytes=None).settings.budget_bytes == machine().vram_bytes - 1024 * MIB
    assert planned(vram_bytes=None, fit_target_bytes=0).settings.budget_bytes == machine().vram_bytes
    assert planned(vram_bytes=5 * GIB).settings.budget_bytes == 5 * GIB


def test_every_candidate_keeps_to_the_budget() -> None:
    result = planned(vram_bytes=3 * GIB)
    for tier in result.tiers:
        for candidate in tier.candidates:
            if candidate.viable:
                assert candidate.memory.gpu.total() <= 3 * GIB
                assert candidate.memory.host.total() <= machine().ram_bytes
                assert candidate.missing_vram_bytes == candidate.missing_ram_bytes == 0
            else:
                assert candidate.missing_vram_bytes + candidate.missing_ram_bytes > 0


def test_a_budget_beyond_the_card_is_said() -> None:
    assert any("exceeds the 12.0 GiB" in warning for warning in planned(vram_bytes=16 * GIB).warnings)
    assert not planned(vram_bytes=8 * GIB).warnings


def test_what_fits_whole_needs_no_plan() -> None:
    assert planned(vram_bytes=2 * GIB).whole_vram_bytes is None
    result = planned(vram_bytes=11 * GIB)
    assert result.whole_vram_bytes is not None
    assert result.whole_vram_bytes <= 11 * GIB
    assert result.fit.outcome.name == "unchanged"


def test_without_budget_everything_is_on_the_cpu() -> None:
    result = planned(vram_bytes=0)
    assert result.fit.memory.gpus == []
    for tier in result.tiers:
        best = tier.candidates[tier.best]
        assert best.memory.gpu.total() == 0
        assert best.time.busy_seconds[_core.Lane.gpu] == 0.0
        assert best.time.n_splits == 1


def test_a_machine_without_gpu_plans_for_its_cpu_alone() -> None:
    host = made_up(ram_bytes=64 * GIB, with_gpu=False)
    assert not host.has_gpu
    result = plan(model(), host)
    assert result.settings.budget_bytes == 0
    assert result.tiers[0].candidates[result.tiers[0].best].memory.gpu.total() == 0
    with pytest.raises(SettingError, match="has no GPU"):
        plan(model(), host, vram_bytes=GIB)


def missing(name: str, where: Machine, vram_bytes: int, strategy: str | None = None) -> tuple[int, int]:
    """Bytes of VRAM and RAM that the refusal names."""
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan(model(name), where, vram_bytes=vram_bytes, strategy=strategy)
    said = dict.fromkeys(("VRAM", "RAM"), 0)
    said |= {kind: int(n) for n, kind in re.findall(r"(\d+) bytes \([^)]*\) of (VRAM|RAM)", str(caught.value))}
    assert caught.value.missing_bytes == sum(said.values()) > 0
    return said["VRAM"], said["RAM"]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("qwen3-30b-a3b-q4km", None),
        ("mamba2-2.7b-f16", None),
        ("llama31-8b-q4km", "GPUONLY_LAYERPIN_LAYERSTREAM"),
        ("gemma2-9b-q4km", "DYNAMIC_FFNCPU_ATTNSTREAM"),
    ],
)
def test_says_to_the_byte_what_vram_is_missing(name: str, strategy: str | None) -> None:
    vram, ram = missing(name, machine(), 1, strategy)
    assert ram == 0
    assert plan(model(name), machine(), vram_bytes=1 + vram, strategy=strategy).tiers  # exactly enough
    assert missing(name, machine(), vram, strategy) == (1, 0)


@pytest.mark.parametrize("vram_bytes", [0, 2 * GIB])
def test_says_to_the_byte_what_is_missing_of_both(vram_bytes: int) -> None:
    name = "llama31-8b-q4km"
    vram, ram = missing(name, made_up(GIB), vram_bytes)
    assert ram > 0
    assert plan(model(name), made_up(GIB + ram), vram_bytes=vram_bytes + vram).tiers
    assert sum(missing(name, made_up(GIB + ram - 1), vram_bytes + vram)) == 1


# --- what was asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", _core.strategy_names())
def test_a_forced_strategy_is_the_only_choice(strategy: str) -> None:
    for tier in planned(strategy=strategy).tiers:
        assert [c.strategy for c in tier.candidates] == [strategy, "STOCK_FIT"]
        assert tier.best in (-1, 0)  # stock fit stays beside it, never chosen


def test_tiers_follow_the_settings() -> None:
    def ladder(**arguments: Any) -> list[int]:
        return [tier.batch_size for tier in planned(**arguments).tiers]

    assert ladder() == [1, 16, 512, 1024, 2048, 4096, 8192]
    assert ladder(n_ctx=700, prompt_tokens=600, generate_tokens=50) == [1, 16, 512, 700]
    assert ladder(tier_max=1024) == [1, 16, 512, 1024]
    assert ladder(n_draft=4, tier_max=512) == [1, 5, 16, 512]
    assert ladder(n_seq_max=2, tier_max=512) == [1, 4, 16, 32, 64, 512]


def test_several_sequences_share_the_context() -> None:
    one, four = planned(tier_max=512), planned(n_seq_max=4, prompt_tokens=1024, tier_max=512)
    by_cache = [p.tiers[0].candidates[p.tiers[0].best].memory for p in (one, four)]
    total = [m.gpu.cache_bytes + m.host.cache_bytes for m in by_cache]
    assert total[0] == total[1]  # the same cells, divided


def test_a_quantised_cache_takes_less() -> None:
    plain, packed = planned(), planned(type_k="q8_0", type_v="q8_0")
    caches = [
        sum(device.cache_bytes for device in (memory.gpu, memory.host))
        for memory in (p.tiers[0].candidates[p.tiers[0].best].memory for p in (plain, packed))
    ]
    assert caches[1] == pytest.approx(caches[0] * 8.5 / 16, rel=0.01)
    assert planned(type_k="Q8_0").settings.type_k == "q8_0"


def test_without_flash_attention_scores_take_memory() -> None:
    on, off = planned(n_ubatch=2048), planned(n_ubatch=2048, flash_attn=False)
    assert off.stock.viable
    assert not off.settings.flash_attn
    assert off.fit.memory.gpu.compute_bytes > on.fit.memory.gpu.compute_bytes


def test_context_defaults_to_what_the_model_was_trained_on() -> None:
    assert planned("phi3-mini-4k-q4km").settings.n_ctx == 4096
    assert planned().settings.n_ctx == 8192


def test_a_context_beyond_training_is_said() -> None:
    assert any("4096 the model was trained on" in w for w in planned("phi3-mini-4k-q4km", n_ctx=8192).warnings)
    assert not planned("phi3-mini-4k-q4km", n_ctx=8192, n_seq_max=2, prompt_tokens=1024).warnings  # 4096 for each


def test_a_longer_prompt_takes_longer() -> None:
    short, long = (planned(prompt_tokens=n).stock.time for n in (512, 4096))
    assert long.prompt_seconds > 2 * short.prompt_seconds
    assert long.decode.seconds >= short.decode.seconds  # its cache is fuller


def test_more_threads_are_never_slower() -> None:
    seconds = [planned(n_threads=n, vram_bytes=0).stock.time.total_seconds for n in (1, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)


def test_the_same_plan_twice() -> None:
    assert planned().to_dict() == planned().to_dict()


def test_never_loses_to_stock_fit() -> None:
    for name in ("llama31-8b-q4km", "qwen3-30b-a3b-q4km", "gpt-oss-20b-mxfp4"):
        for vram_bytes in (2 * GIB, 6 * GIB):
            result = planned(name, vram_bytes)
            assert result.stock.time.total_seconds <= result.fit_time.total_seconds * (1 + 1e-9), (name, vram_bytes)
            for tier in result.tiers:
                fit = tier.candidates[-1]
                if fit.viable:
                    assert tier.candidates[tier.best].time.seconds <= fit.time.seconds


@pytest.mark.parametrize("name", sorted(oracle_models()))
def test_every_model_gets_plans_that_name_bottleneck_and_runner_up(name: str) -> None:
    is_encoder = not model(name).hyperparameters.traits.causal
    work = {"n_ctx": 512, "prompt_tokens": 512, "generate_tokens": 0} if is_encoder else {}
    n_viable = 0
    for gib in (2, 4, 8, 16, 24):
        result = planned(name, gib * GIB, **work)
        document = result.to_dict()
        assert result.stock.viable
        for tier, described in zip(result.tiers, document["tiers"], strict=True):
            if tier.best < 0:
                continue
            n_viable += 1
            best = tier.candidates[tier.best]
            assert described["bottleneck"] in _core.Lane.__members__
            assert best.time.critical_seconds[best.time.bottleneck] > 0.0
            others = [c for c in tier.candidates if c.viable and c is not best]
            # Where nothing fits at the tier's batch, stock fit in its own small batches is alone.
            assert others or best.micro_batch < tier.batch_size, f"tier {tier.batch_size} at {gib} GiB has no runner-up"
            assert all(c.time.seconds >= best.time.seconds for c in others)
    assert n_viable >= 5 * 3  # at the least, decode and small batches at every budget


def unmeasured(vram_bytes: int = 6 * GIB) -> Machine:
    return load_machine("none", vram_bytes=vram_bytes, ram="64G", cpu="8c")


def test_without_speeds_most_whole_layers_win_then_least_vram() -> None:
    result = plan(model("qwen3-30b-a3b-q4km"), unmeasured(), vram_bytes=6 * GIB)
    overflows = ["NONE", "ATTN", "UP", "GATE"]
    context = _core.ContextParameters()
    context.pshard_runtime = True
    context.n_batch = context.n_ubatch = result.tiers[-1].batch_size

    def rank(candidate: _core.Candidate) -> tuple[int, int, int, int]:
        k = candidate.knobs
        return -k.n_pinned, -k.n_attn_pinned, -overflows.index(k.overflow), candidate.memory.gpu.total()

    for tier in result.tiers:
        chosen = tier.candidates[tier.best]
        assert rank(chosen) == min(rank(candidate) for candidate in tier.candidates if candidate.viable)
        for candidate in tier.candidates[:-1]:  # and of no strategy would one layer more have fitted
            k = candidate.knobs
            n_attn_pinned = max(k.n_attn_pinned, k.n_pinned + 1) if candidate.strategy.startswith("STATIC") else 0
            more = _core.Knobs(k.n_pinned + 1, n_attn_pinned, "NONE", k.output_on_gpu, k.pin_from_back)
            placement = _core.make_placement(candidate.strategy, more, result.model.core)
            used = _core.memory(result.model.core, placement, context, tier.batch_size).gpu.total()
            assert k.n_attn_pinned > k.n_pinned or used > 6 * GIB


def test_without_speeds_nothing_has_a_time() -> None:
    document: Any = plan(model("qwen3-30b-a3b-q4km"), unmeasured(), vram_bytes=6 * GIB).to_dict()
    assert "nothing is priced" in document["machine"]["notes"][0]
    assert document["machine"]["link_bytes_per_second"] is None
    for tier in document["tiers"]:
        for candidate in (tier, *tier["candidates"]):
            assert candidate["tokens_per_second"] is candidate["seconds"] is candidate["bottleneck"] is None
        assert tier["vram_bytes"] == tier["weights_bytes"] + tier["kv_bytes"] + tier["compute_bytes"]
    assert document["llama_cpp"]["is_stock_fit"]
    assert document["llama_cpp"]["speedup_over_stock_fit"] is None
    assert document["pshard_runtime"]["prompt_seconds"] is None
    assert document["pshard_runtime"]["prompt_tier"] == 2048
    assert document["pshard_runtime"]["decode_tier"] == 1


def test_without_speeds_a_model_that_does_not_fit_is_still_said() -> None:
    with pytest.raises(NoFeasiblePlanError, match="nothing fits"):
        plan(model("glm45-air-q4km"), load_machine("none", vram_bytes=2 * GIB, ram="16G"), vram_bytes=2 * GIB)


def test_a_machine_without_speeds_prices_nothing() -> None:
    with pytest.raises(SettingError, match="prices nothing"):
        unmeasured().core()
    with pytest.raises(SettingError, match="is a speed"):
        load_machine("none", pcie="4x16")
