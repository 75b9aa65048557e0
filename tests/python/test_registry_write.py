"""Plans into registries: what a model's plan becomes, and what it gives up for the runtime's sake."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import gguf_cases
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pshard import _core
from pshard.machine.machine import load_machine
from pshard.model.model import Model, model_from_header, read_model
from pshard.planning.planner import Plan, plan
from pshard.registry import registry_path, write
from pshard.registry.choice import Option, choose, worth_loading
from pshard.registry.faults import find_faults, initial_tier
from pshard.registry.fingerprint import fingerprint
from pshard.registry.overrides import placement_places, places, tensor_names
from pshard.registry.store import read_registry
from pshard.registry.write import WriteResult, settings_of, variant_of, write_plan

GIB, MIB = 1 << 30, 1 << 20
MODELS = (
    "llama3-8b-norf-q4km",
    "llama31-8b-q4km",
    "gemma3-27b-q4km",
    "qwen3-30b-a3b-q4km",
    "gpt-oss-20b-mxfp4",
    "glm45-air-q4km",
    "granite4-h-small-q4km",
    "deepseek-v2-lite-q4km",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def stored(folder: Path, name: str) -> Model:
    path = folder / f"{name}.gguf"
    return read_model(path if path.exists() else gguf_cases.write_oracle_model(name, path))


def planned(model: Model, vram_bytes: int, **settings: object) -> Plan:
    machine = load_machine(gpu="rtx-3060-12g", cpu="8c", ram="128G@51GB/s", pcie="4x16", vram_bytes=vram_bytes)
    return plan(model, machine, vram_bytes=vram_bytes, **{"n_ctx": 8192, **settings})


@pytest.mark.parametrize("budget", [2, 4, 9])
@pytest.mark.parametrize("name", MODELS)
def test_a_written_plan_is_sound_for_the_runtime(folder: Path, name: str, budget: int) -> None:
    model = stored(folder, name)
    try:
        result = planned(model, budget * GIB)
    except Exception as error:
        if type(error).__name__ != "NoFeasiblePlanError":
            raise
        pytest.skip("nothing fits")
    written = write_plan(result)
    assert written.path == registry_path(folder / f"{name}.gguf"), written.warnings
    registry = read_registry(written.path)
    section = registry.sections[-1]
    assert section.settings == settings_of(result)
    assert section.fingerprint == fingerprint(section.settings, (folder / f"{name}.gguf").stat().st_size)
    variant = section.variants[-1]
    assert (variant.budget_mib, variant.cache_ubatch) == (budget * 1024, variant.tiers[-1].batch_size if variant.tiers
                                                          else 512)  # fmt: skip
    faults = [fault for fault in find_faults(registry, model) if not fault.is_note]
    assert not faults
    assert variant.disabled == (result.whole_vram_bytes is not None)
    if variant.disabled:
        return
    viable = [tier for tier in variant.tiers if tier.viable]
    assert viable and [tier.batch_size for tier in variant.tiers] == [tier.batch_size for tier in result.tiers]
    for tier in viable:
        assert tier.vram_mib <= variant.budget_mib
        assert len("ot=" + ",".join(map(str, tier.overrides))) + 1 <= 8191
    # What the first and the largest tier both hold, every tier holds.
    resident = [
        {n for n, at in places(tier.overrides, tensor_names(model)).tensors.items() if at == 0} for tier in viable
    ]
    sizes = [tier.batch_size for tier in viable]
    both = resident[sizes.index(initial_tier(sizes))] & resident[-1]
    assert all(both <= held for held in resident)


def test_tiers_that_keep_the_plan_have_its_places_and_figures(folder: Path) -> None:
    model = stored(folder, "llama3-8b-norf-q4km")
    result = planned(model, 4 * GIB)
    variant, _ = variant_of(result)
    assert variant is not None
    same = 0
    for tier, meant in zip(variant.tiers, result.tiers, strict=True):
        best = meant.candidates[meant.best]
        found = places(tier.overrides, tensor_names(model))
        if found == placement_places(model, best.placement):
            same += 1
            assert tier.tokens_per_second == round(meant.batch_size / best.time.seconds, 2)
            assert tier.vram_mib == round(best.memory.gpu.total() / MIB, 1)
    assert same > 0


def test_everything_that_fits_switches_pshard_off(folder: Path) -> None:
    model = stored(folder, "qwen2-0.5b-q8_0")
    result = planned(model, 8 * GIB)
    assert result.whole_vram_bytes is not None
    written = write_plan(result)
    assert written.path is not None
    lines = written.path.read_text().splitlines()
    assert lines[-2:] == [
        "[variant budget=8192 cache_ubatch=512]",
        f"pshard_disabled=1 baseline_vram={result.whole_vram_bytes / MIB:.1f}",
    ]


def test_names_of_the_first_version_and_stock_fit_are_written_as_the_nearest(folder: Path) -> None:
    model = stored(folder, "qwen3-30b-a3b-q4km")
    result = planned(model, 8 * GIB, strategy="STATIC_FITPARAMS_DENSEPRIO_MOEONLY")
    variant, warnings = variant_of(result)
    assert variant is not None
    assert {tier.strategy for tier in variant.tiers if tier.viable} == {"STATIC_ATTNPRIO_ALLMODELS"}
    assert settings_of(result).strategy == "auto"
    assert not any("PSHARD_STRATEGY" in warning for warning in warnings)
    forced = planned(model, 8 * GIB, strategy="GPUONLY_ATTNPIN_FFNSTREAM")
    variant, warnings = variant_of(forced)
    assert variant is not None
    assert {tier.strategy for tier in variant.tiers if tier.viable} == {"GPUONLY_ATTNPIN_FFNSTREAM"}
    assert any("PSHARD_STRATEGY=GPUONLY_ATTNPIN_FFNSTREAM" in warning for warning in warnings)


def test_rope_factors_are_warned_of(folder: Path) -> None:
    assert any("rope_freqs" in warning for warning in write_plan(planned(stored(folder, MODELS[1]), 3 * GIB)).warnings)
    assert not any(
        "rope_freqs" in warning for warning in write_plan(planned(stored(folder, MODELS[0]), 3 * GIB)).warnings
    )


def test_without_a_file_or_a_gpu_there_is_nothing_to_write(folder: Path, tmp_path: Path) -> None:
    model = model_from_header(gguf_cases.oracle_header("llama3-8b-norf-q4km"))
    assert write_plan(planned(model, 4 * GIB)) == WriteResult(None, ())
    asked = write_plan(planned(model, 4 * GIB), tmp_path / "registry")
    assert asked.path is None and len(asked.warnings) == 1 and not (tmp_path / "registry").exists()
    machine = load_machine(gpu="rtx-3060-12g", cpu="8c", ram="128G@51GB/s", pcie="4x16")
    assert write_plan(plan(stored(folder, MODELS[0]), machine, vram_bytes=0)) == WriteResult(None, ())


def test_a_folder_that_cannot_be_costs_only_the_file(folder: Path, tmp_path: Path) -> None:
    result = planned(stored(folder, MODELS[0]), 4 * GIB)
    (tmp_path / "file").touch()
    missing = write_plan(result, tmp_path / "file" / "registry")
    assert missing.path is None and "cannot be written" in missing.warnings[-1]
    elsewhere = write_plan(result, tmp_path / "registry")
    assert elsewhere.path == tmp_path / "registry"


def test_a_placement_that_comes_back_different_does_not_replace(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = planned(stored(folder, MODELS[0]), 4 * GIB)
    path = tmp_path / "registry"
    assert write_plan(result, path).path == path
    old = path.read_bytes()
    monkeypatch.setattr(write, "find_faults", lambda registry, model: find_faults(registry, stored(folder, MODELS[3])))
    spoiled = write_plan(result, path)
    assert spoiled.path is None and "would fail in the runtime" in spoiled.warnings[-1]
    assert path.read_bytes() == old


def option(seconds: float, resident: int) -> Option:
    return Option("", None, None, seconds, 0, resident)


@given(
    st.lists(
        st.lists(st.builds(option, st.floats(0.1, 10.0), st.integers(0, 15)), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_the_choice_is_safe_and_the_best(options: list[list[Option]]) -> None:
    """Against every combination."""
    from itertools import product
    from math import log

    sizes = (1, 16, 512, 1024)[: len(options)]
    by_size = dict(zip(sizes, options, strict=True))
    chosen = choose(by_size)
    first, last = initial_tier(sizes), sizes[-1]

    def cost(combination: dict[int, Option]) -> float:
        return sum(log(o.cost / min(x.cost for x in by_size[s])) for s, o in combination.items())

    def is_safe(combination: dict[int, Option]) -> bool:
        both = combination[first].resident & combination[last].resident
        return all(o.resident & both == both for o in combination.values())

    assert is_safe(chosen)
    whole = [dict(zip(sizes, c, strict=True)) for c in product(*options)]
    safe = [combination for combination in whole if is_safe(combination)]
    if safe:
        assert len(chosen) == len(sizes)
        assert cost(chosen) == pytest.approx(min(map(cost, safe)))
    else:
        assert len(chosen) < len(sizes)


def test_tiers_that_only_slow_prompts_down_are_left_out() -> None:
    def rates(**by_size: float) -> dict[int, list[Option]]:
        return {int(size[1:]): [option(int(size[1:]) / rate, 0)] for size, rate in by_size.items()}

    assert set(worth_loading(rates(n1=10, n16=100, n512=1000, n1024=900, n8192=501))) == {1, 16, 512, 1024, 8192}
    # 499 is less than half of the best so far, 700 is not
    assert set(worth_loading(rates(n1=10, n512=1000, n1024=499, n8192=700))) == {1, 512, 8192}
    assert worth_loading({}) == {}


def test_stock_fit_is_priced_as_the_runtime_takes_it(folder: Path) -> None:
    """Stock llama.cpp copies a head on the CPU to the GPU for a batch; the runtime computes it where it lies."""
    model = stored(folder, "llama3-8b-norf-q4km")
    options = write._Options(planned(model, 4 * GIB), 4 * GIB)
    nothing = _core.stock_fit(model.core, options.context, [_core.FitDevice(1, margin_bytes=1)]).placement
    assert nothing.head == _core.Where.cpu
    candidate = SimpleNamespace(
        strategy="STOCK_FIT", knobs=_core.Knobs(), placement=nothing, micro_batch=512, viable=True
    )
    (option,) = options.of(SimpleNamespace(batch_size=512, candidates=[candidate]))
    same = _core.make_placement("STATIC_ATTNPRIO_ALLMODELS", _core.Knobs(), model.core)
    assert option.vram_bytes == _core.memory(model.core, same, options.context, 512).gpu.total()
    assert option.vram_bytes < _core.memory(model.core, nothing, options.context, 512).gpu.total()


@pytest.mark.parametrize(
    ("name", "budget"), [("gpt-oss-20b-mxfp4", GIB), ("qwen3-30b-a3b-q4km", 3 * GIB // 4), ("glm45-air-q4km", GIB)]
)
def test_where_stock_fit_wins_with_its_own_batches_the_registry_says_what_it_gives_up(
    folder: Path, name: str, budget: int
) -> None:
    """Scratch of large batches leaves no room to stream: the plan's best for those tiers is stock fit in small ones."""
    result = planned(stored(folder, name), budget, n_ctx=32768, n_seq_max=4)
    best = {tier.batch_size: tier.candidates[tier.best] for tier in result.tiers if tier.best >= 0}
    in_small_ones = {n for n, b in best.items() if b.strategy == "STOCK_FIT" and b.micro_batch < n}
    variant, warnings = variant_of(result)
    assert variant is not None
    left_out = {tier.batch_size for tier in variant.tiers if tier.batch_size in best and not tier.viable}
    assert in_small_ones & left_out
    assert any("twice as fast" in warning for warning in warnings)
    # No tier of the plan is left out, or slower, without a word.
    said = [found[1] for warning in warnings if (found := re.search(r"tier ([0-9, ]+) is left out", warning))]
    assert {int(size) for sizes in said for size in sizes.split(",")} == left_out
    slower = {
        tier.batch_size
        for tier in variant.tiers
        if tier.viable and tier.batch_size / tier.tokens_per_second > 1.02 * best[tier.batch_size].time.seconds
    }
    assert slower <= {int(size) for warning in warnings for size in re.findall(r"bs=([0-9]+) by", warning)}


def test_a_plan_without_speeds_is_written_with_none(folder: Path) -> None:
    model = stored(folder, "llama3-8b-norf-q4km")
    machine = load_machine("none", cpu="8c", ram="128G", vram_bytes=4 * GIB)
    written = write_plan(plan(model, machine, vram_bytes=4 * GIB, n_ctx=8192))
    assert written.path is not None, written.warnings
    tiers = read_registry(written.path).sections[-1].variants[-1].tiers
    assert all(tier.viable for tier in tiers)
    assert {tier.tokens_per_second for tier in tiers} == {0.0}
    assert max(tier.n_pinned for tier in tiers) > 10
