"""Registries on disk: whole or not at all, nothing of others lost, nothing damaged overwritten."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import registry_cases as cases
import registry_writers as writers

from pshard.errors import FileError
from pshard.registry.errors import RegistryError
from pshard.registry.fingerprint import fingerprint
from pshard.registry.format import HEADER, Registry, render
from pshard.registry.reader import parse
from pshard.registry.store import read_registry, update

N_PLANNERS, N_VARIANTS = 48, 40
KEY = fingerprint(cases.SETTINGS, 1000)


def keys(registry: Registry) -> list[list[tuple[int, int]]]:
    return [[(v.budget_mib, v.cache_ubatch) for v in section.variants] for section in registry.sections]


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Children of a process without threads, with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["registry_writers", "filelock"])
    return context


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf.tensor_overrides.pshard_registry"


def test_a_new_file_is_the_planners_bytes(path: Path) -> None:
    variant = replace(cases.variant(200, 1, cases.tier()))
    written = update(path, KEY, cases.SETTINGS, variant)
    assert (written.path, written.kept) == (path.resolve(), None)
    assert path.read_text() == (
        "# Generated file. Edit at your own risk.\n"
        "\n"
        f"[fingerprint=0x{KEY:016x}]\n"
        "# n_ctx=1024 n_seq_max=1 n_threads=8 fa=on type_k=1 type_v=1 strategy=auto\n"
        "\n"
        "[variant budget=200 cache_ubatch=1]\n"
        "[tier 0 bs=1]\n"
        "strategy=STATIC_ATTNPRIO_ALLMODELS n_pinned=1 n_attn_pinned=1 overflow=NONE tps=10.00 vram=100.0 "
        "output_on_gpu=0 pin_from_back=0\n"
        r"ot=^output=CUDA_Host:3,^token_embd=CUDA_Host:3,blk\.0\..*=CUDA_Host:0,blk\.1\..*=CUDA_Host:3"
        "\n"
    )
    assert path.stat().st_mode & 0o777 == 0o644
    assert not list(path.parent.glob(".*"))


def test_same_budget_and_cache_are_replaced_and_moved_to_the_end(path: Path) -> None:
    for budget, cache_ubatch in ((200, 512), (300, 512), (200, 16), (200, 512)):
        update(path, KEY, cases.SETTINGS, cases.variant(budget, cache_ubatch))
    assert keys(read_registry(path)) == [[(300, 512), (200, 16), (200, 512)]]
    other = replace(cases.SETTINGS, n_ctx=2048)
    update(path, fingerprint(other, 1000), other, cases.variant(500))
    update(path, KEY, cases.SETTINGS, cases.variant(300, 512))
    assert keys(read_registry(path)) == [[(500, 512)], [(200, 16), (200, 512), (300, 512)]]


def test_the_oldest_are_trimmed(path: Path) -> None:
    for budget in range(1, 13):
        update(path, KEY, cases.SETTINGS, cases.variant(budget))
    assert keys(read_registry(path)) == [[(budget, 512) for budget in range(5, 13)]]
    for n_ctx in range(1, 13):
        settings = replace(cases.SETTINGS, n_ctx=n_ctx)
        update(path, fingerprint(settings, 1000), settings, cases.variant(n_ctx))
    assert keys(read_registry(path)) == [[(n_ctx, 512)] for n_ctx in range(3, 13)]


def test_many_planners_at_once_lose_nothing(path: Path, server: ForkServerContext) -> None:
    """As many as five sections of eight variants hold; the rest write theirs over again."""
    numbers = [number % N_VARIANTS for number in range(N_PLANNERS)]
    planners = [server.Process(target=writers.plan, args=(path, number)) for number in numbers]
    for planner in planners:
        planner.start()
    for planner in planners:
        planner.join(120)
    assert [planner.exitcode for planner in planners] == [0] * N_PLANNERS
    registry = read_registry(path)
    assert not registry.faults
    assert sorted(budget for section in keys(registry) for budget, _ in section) == list(range(1, N_VARIANTS + 1))
    assert not list(path.parent.glob(".*.part"))


def test_a_killed_writer_leaves_the_old_file_whole(path: Path, server: ForkServerContext) -> None:
    update(path, KEY, cases.SETTINGS, cases.variant(200))
    old = path.read_bytes()
    writer = server.Process(target=writers.die_before_replacing, args=(path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == 9
    assert path.read_bytes() == old
    assert len(list(path.parent.glob(".*.part"))) == 1
    # The lock died with it, and the next writer tidies up.
    update(path, KEY, cases.SETTINGS, cases.variant(300))
    assert keys(read_registry(path)) == [[(200, 512), (300, 512)]]
    assert not list(path.parent.glob(".*.part"))


def test_what_fails_its_check_does_not_replace(path: Path) -> None:
    update(path, KEY, cases.SETTINGS, cases.variant(200))
    old = path.read_bytes()

    def refuse(registry: Registry) -> None:
        assert keys(registry) == [[(200, 512), (300, 512)]]
        message = "no"
        raise RegistryError(message)

    with pytest.raises(RegistryError, match="no"):
        update(path, KEY, cases.SETTINGS, cases.variant(300), refuse)
    assert path.read_bytes() == old
    assert not list(path.parent.glob(".*.part"))


@pytest.mark.parametrize("data", [b"\0" * 4096, b"GGUF\3\0\0\0", b"not a registry\n", HEADER.encode(), b"\n\n{}\n"])
def test_a_foreign_file_is_kept_aside(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    written = update(path, KEY, cases.SETTINGS, cases.variant(200))
    assert written.kept is not None and written.kept.read_bytes() == data
    assert keys(read_registry(path)) == [[(200, 512)]]
    assert not read_registry(path).faults
    # A second one does not take its place.
    path.write_bytes(data)
    again = update(path, KEY, cases.SETTINGS, cases.variant(200))
    assert again.kept not in (None, written.kept)


def test_of_a_damaged_file_the_sound_variants_go_on(path: Path) -> None:
    for budget in (200, 300):
        update(path, KEY, cases.SETTINGS, cases.variant(budget))
    other = replace(cases.SETTINGS, n_ctx=2048)
    update(path, fingerprint(other, 1000), other, cases.variant(500))
    damaged = path.read_bytes()[:-40]
    path.write_bytes(damaged)
    written = update(path, KEY, cases.SETTINGS, cases.variant(400))
    assert written.kept is not None and written.kept.read_bytes() == damaged
    assert keys(read_registry(path)) == [[], [(200, 512), (300, 512), (400, 512)]]
    assert update(path, KEY, cases.SETTINGS, cases.variant(400)).kept is None


def test_plans_of_others_are_not_damage(path: Path) -> None:
    """Over-long lines, strategies of other versions and their fields are carried along."""
    data = cases.sample("qwen3-235b-a22b-q4km_12000_8192_tiermax16_OVERLONG")
    later = render(Registry((replace(parse(data).sections[0], fingerprint=1),))).replace(
        b"GPUONLY_ATTNPIN_FFNSTREAM", b"EXPERT_POOL"
    )
    path.write_bytes(later)
    assert update(path, KEY, cases.SETTINGS, cases.variant(200)).kept is None
    assert path.read_bytes().startswith(later)


def test_an_empty_file_is_no_loss(path: Path) -> None:
    path.touch()
    assert update(path, KEY, cases.SETTINGS, cases.variant(200)).kept is None
    assert keys(read_registry(path)) == [[(200, 512)]]


def test_a_folder_is_no_registry(path: Path) -> None:
    path.mkdir()
    with pytest.raises(RegistryError):
        read_registry(path)
    with pytest.raises(RegistryError):
        update(path, KEY, cases.SETTINGS, cases.variant(200))


def test_where_no_folder_can_be_nothing_is_written(path: Path) -> None:
    path.touch()
    with pytest.raises(FileError, match="cannot be written"):
        update(path / "registry", KEY, cases.SETTINGS, cases.variant(200))
