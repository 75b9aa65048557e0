"""The registry's text: read and written back without loss, and reported on whatever is done to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import registry_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st

from pshard.registry.faults import find_faults
from pshard.registry.fingerprint import fingerprint
from pshard.registry.format import LINE_BYTES, Registry, Section, render
from pshard.registry.reader import parse
from pshard.registry.store import merged

SMALL = "two_sections_two_budgets"


def kinds(data: bytes) -> set[str]:
    return {fault.kind for fault in find_faults(parse(data))}


def new(*sections: Section) -> bytes:
    return render(Registry(sections))


def one(*variants: cases.Variant) -> Registry:
    return Registry((Section(fingerprint=7, settings=cases.SETTINGS, variants=variants),))


@pytest.mark.parametrize("name", cases.SAMPLES)
def test_samples_come_back_byte_for_byte(name: str) -> None:
    data = cases.sample(name)
    assert render(parse(data)) == data
    assert not parse(data).is_damaged


@pytest.mark.parametrize("name", [name for name in cases.SAMPLES if "OVERLONG" not in name])
def test_samples_are_understood_in_full(name: str) -> None:
    """Printed from what was understood, not from the lines that were kept."""
    registry = parse(cases.sample(name))
    anew = tuple(
        replace(s, lines=(), variants=tuple(replace(v, lines=()) for v in s.variants)) for s in registry.sections
    )
    # The writer there leaves two blank lines where a section was once followed by another.
    assert new(*anew) == cases.sample(name).replace(b"\n\n\n", b"\n\n")


@pytest.mark.parametrize("name", cases.SAMPLES)
def test_replacing_one_variant_changes_nothing_else(name: str) -> None:
    registry = parse(cases.sample(name))
    first = registry.sections[0]
    added = cases.variant(first.variants[0].budget_mib, first.variants[0].cache_ubatch)
    assert first.fingerprint is not None
    lines = render(merged(registry, first.fingerprint, cases.SETTINGS, added)).split(b"\n")
    old_lines = cases.sample(name).split(b"\n")
    for section in registry.sections:
        for variant in section.variants:
            if section is first and variant is first.variants[0]:
                continue
            for line in variant.lines:
                assert line.encode() in lines
        assert section.lines[1].encode() in lines  # its comment
    again = parse(b"\n".join(lines))
    assert again.sections[-1].fingerprint == first.fingerprint
    assert again.sections[-1].variants[-1] == added
    kept = sum(len(s.variants) for s in registry.sections)
    assert sum(len(s.variants) for s in again.sections) == kept
    assert lines[0] == old_lines[0]


@given(st.lists(st.tuples(cases.settings(), st.lists(cases.variants(), max_size=3)), max_size=3), st.integers(0))
def test_written_and_read_is_the_same(content: list[tuple[cases.Settings, list[cases.Variant]]], size: int) -> None:
    sections = tuple(
        Section(fingerprint=fingerprint(s, size % (1 << 63)), settings=s, variants=tuple(v)) for s, v in content
    )
    registry = Registry(sections)
    data = render(registry)
    again = parse(data)
    assert again == registry
    assert render(again) == data


def mutations(data: bytes) -> dict[str, bytes]:
    lines = data.split(b"\n")[:-1]
    found = {}
    for i in range(len(lines)):
        before, line, after = lines[:i], lines[i], lines[i + 1 :]
        found[f"{i} dropped"] = b"\n".join([*before, *after, b""])
        found[f"{i} halved"] = b"\n".join([*before, line[: len(line) // 2], *after, b""])
        found[f"{i} duplicated"] = b"\n".join([*before, line, line, *after, b""])
        found[f"{i} cut off"] = b"\n".join([*before, line[: len(line) // 2]])
        found[f"{i} upper case"] = b"\n".join([*before, line.upper(), *after, b""])
        found[f"{i} NUL"] = b"\n".join([*before, line[:5] + b"\0" + line[5:], *after, b""])
        found[f"{i} over-long"] = b"\n".join([*before, line + b"x" * LINE_BYTES, *after, b""])
        found[f"{i} carriage return"] = b"\n".join([*before, line + b"\r", *after, b""])
        if after:
            found[f"{i} swapped"] = b"\n".join([*before, after[0], line, *after[1:], b""])
    return found


def meaning(data: bytes) -> Registry:
    return replace(parse(data), preamble=())


@pytest.mark.parametrize("name", [SMALL, "qwen3-30b-a3b-q4km_24000_8192_auto", "qwen3-32b-q4km_2000_8192_auto"])
def test_a_mutated_file_is_reported_or_means_the_same(name: str) -> None:
    data = cases.sample(name)
    sound = find_faults(parse(data))
    for what, mutant in mutations(data).items():
        faults = find_faults(parse(mutant))
        # A whole variant or section heading that is dropped leaves another sound file; a halved number is a number.
        is_quiet = len(faults) <= len(sound)
        line = data.split(b"\n")[int(what.split()[0])]
        if is_quiet and line.startswith((b"strategy=", b"ot=", b"pshard_disabled", b"[fingerprint")):
            assert "swapped" in what or "dropped" in what or "duplicated" in what, what
        if any(word in what for word in ("NUL", "over-long", "carriage return", "cut off")) and line:
            assert not is_quiet, what
        render(parse(mutant))


@given(data=st.data())
@settings(max_examples=60)
def test_damaged_bytes_never_raise(data: st.DataObject) -> None:
    original = bytearray(cases.sample(SMALL))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(original) - 1))
        end = at + data.draw(st.integers(0, 40))
        original[at:end] = data.draw(st.binary(max_size=40))
    registry = parse(bytes(original))
    find_faults(registry)
    # What is kept of it can be read again, and is then stable.
    kept = render(registry)
    assert render(parse(kept)) == kept


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    registry = parse(data)
    find_faults(registry)
    assert registry.sections or not data or registry.is_damaged


def test_the_reader_is_textual() -> None:
    data = new(*one(cases.variant()).sections)
    assert kinds(data) == set()
    assert parse(data.replace(b"\n", b"\r\n")).sections[0].variants == parse(data).sections[0].variants
    assert kinds(data.replace(b"\n", b"\r\n")) == {"carriage_return"}
    assert parse(data.replace(b"CUDA_Host", b"C")).sections[0].variants[0].tiers[0].overrides[0].backend == 3
    assert "fingerprint" in kinds(data.replace(b"0x0000000000000007", b"0x000000000000000A"))
    assert "fingerprint" in kinds(data.replace(b"07]", b"07] "))
    assert parse(data.replace(b" cache_ubatch=512]", b"]")).sections[0].variants[0].cache_ubatch == 0
    assert kinds(data.replace(cases.SETTINGS.comment().encode(), b"")) == {"no_comment"}
    # fields and lines of the third version
    later = data.replace(b"pin_from_back=0\n", b"pin_from_back=0 overlap=1\ncand strategy=X viable=1\n")
    assert kinds(later) == {"later_line"}
    assert parse(later).sections[0].variants[0].tiers[0].viable


@pytest.mark.parametrize(
    ("old", "new_text", "kind", "viable"),
    [
        (b"STATIC_ATTNPRIO_ALLMODELS", b"STATIC_FITPARAMS_DENSEPRIO_MOEONLY", "tier_dropped", False),
        (b" pin_from_back=0", b"", "tier_dropped", False),
        (b" output_on_gpu=0", b"", "tier_dropped", False),
        (b"n_pinned=1 n_attn", b"n_pinned=x n_attn", "strategy_broken", False),
        (b" vram=100.0", b"", "strategy_fields", True),
        (b"overflow=NONE", b"overflow=none", "overflow", True),
        (b"=CUDA_Host:0", b"=CUDA_Host", "override_broken", True),
        (b"ot=", b"OT=", "no_overrides", True),
    ],
)
def test_silent_cases_of_a_tier(old: bytes, new_text: bytes, kind: str, viable: bool) -> None:
    data = new(*one(cases.variant(200, 1, cases.tier())).sections)
    assert old in data
    broken = data.replace(old, new_text, 1)
    assert kind in kinds(broken)
    assert parse(broken).sections[0].variants[0].tiers[0].viable is viable


def test_the_reader_cuts_long_lines() -> None:
    name = "qwen3-235b-a22b-q4km_12000_8192_tiermax16_OVERLONG"
    registry = parse(cases.sample(name))
    assert [fault.kind for fault in registry.faults] == ["line_too_long", "line_too_long"]
    # 94 layers were planned; the last item of each line that the reader sees whole is of layer 81 and 80
    last = [tier.overrides[-1].pattern for tier in registry.sections[0].variants[0].tiers]
    assert last == [r"blk\.81\..*", r"blk\.80\..*"]
    assert {"no_place", "no_kv_place"} <= kinds(cases.sample(name))
    line = cases.sample(name).split(b"\n")[8]
    exact = cases.sample(name).replace(line, line[: LINE_BYTES - 1])
    assert [fault.kind for fault in parse(exact).faults].count("line_too_long") == 1


def test_the_longest_line_is_8191_bytes_with_its_newline() -> None:
    for n_bytes, is_read in ((8191, True), (8192, False)):
        filler = cases.Override("x" * 8000, 3)
        used = len("ot=" + ",".join(map(str, (*cases.overrides(), filler)))) + 1
        padded = cases.Override("x" * (8000 + n_bytes - used), 3)
        data = new(*one(cases.variant(200, 1, cases.tier(overrides=(*cases.overrides(), padded)))).sections)
        assert max(len(line) + 1 for line in data.split(b"\n")) == n_bytes
        assert ("line_too_long" not in {fault.kind for fault in parse(data).faults}) is is_read
