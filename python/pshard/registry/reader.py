"""Read a registry as its runtime does, and report what that reader passes over without a word."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from pshard.registry.format import (
    DAMAGE,
    FLASH_ATTENTION,
    LINE_BYTES,
    OVERFLOWS,
    STRATEGIES,
    Fault,
    Override,
    Registry,
    Section,
    Settings,
    Tier,
    Variant,
)

_UINT = r"(\d{1,10})"
_REAL = r"([-+]?\d{1,30}(?:\.\d{1,30})?)"
_FINGERPRINT = re.compile(r"\[fingerprint=0x([0-9a-f]{16})\]")
_SETTINGS = re.compile(
    rf"# n_ctx={_UINT} n_seq_max={_UINT} n_threads=(-?\d{{1,10}}) fa=(off|on|auto) "
    rf"type_k=(\d{{1,3}}) type_v=(\d{{1,3}}) strategy=(\w+)"
)
_VARIANT = re.compile(rf"\[variant budget={_UINT}(?: cache_ubatch={_UINT})?(\]| .*\])")
_TIER = re.compile(rf"\[tier {_UINT} bs={_UINT}\](.*)")
_DISABLED = re.compile(rf"pshard_disabled=1 baseline_vram={_REAL}")
_STRATEGY_FIELDS = (
    ("strategy", r"(\S+)"),
    ("n_pinned", _UINT),
    ("n_attn_pinned", _UINT),
    ("overflow", r"(\w+)"),
    ("tps", _REAL),
    ("vram", _REAL),
)
N_NEEDED_FIELDS = 4


def parse(data: bytes) -> Registry:
    """Read a registry as its runtime does, and collect what that reader passes over without a word.

    Parameters
    ----------
    data : bytes
        Anything; nothing makes it raise.

    Returns
    -------
    Registry
    """
    return _Parser().parse(data.decode("latin-1"))


def parse_overrides(text: str) -> tuple[tuple[Override, ...], list[str]]:
    """Items of an ``ot=`` line by the reader's rules: cut at each comma, the first ``=`` and the last ``:``.

    Returns
    -------
    overrides : tuple of Override
    rejected : list of str
        Items that cannot be cut so.
    """
    overrides, rejected = [], []
    for item in text.split(",") if text else []:
        pattern, equals, target = item.partition("=")
        buffer, colon, backend = target.rpartition(":")
        if pattern and equals and colon and re.fullmatch(r"[0-9]{1,9}", backend):
            overrides.append(Override(pattern, int(backend), buffer))
        else:
            rejected.append(item)
    return tuple(overrides), rejected


def shorten(text: str, width: int = 60) -> str:
    """Return the start of a text, for messages; unprintable bytes escaped."""
    return ascii(text if len(text) <= width else text[: width - 1] + "~")


class _Parser:
    """One pass over the lines; blocks are closed when the next begins."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.preamble: list[str] = []
        self.sections: list[Section] = []
        self.section: Section | None = None
        self.variants: list[Variant] = []
        self.variant: Variant | None = None
        self.tiers: list[Tier] = []
        self.tier: Tier | None = None
        self.lines: list[str] = self.preamble  # raw lines of the block that is open
        self.n_faults_before = 0
        self.is_cut = False
        self.number = 0

    def parse(self, text: str) -> Registry:
        lines = text.split("\n")
        is_cut = lines[-1] != ""
        if not is_cut:
            lines.pop()
        for self.number, line in enumerate(lines, 1):
            for chunk_number, chunk in enumerate(self.chunks(line)):
                self.read(chunk, line if chunk_number == 0 else None)
        if is_cut:
            self.fault("no_last_newline", "the last line has no newline; it may have been cut.")
        self.close_section()
        self.number = 1
        if not self.sections and text:
            self.fault("no_section", "no section; the runtime finds no plan.")
        return Registry(tuple(self.sections), tuple(self.preamble), tuple(self.faults))

    def fault(self, kind: str, text: str, *, is_note: bool = False) -> None:
        self.faults.append(Fault(kind, f"line {self.number}", text, is_note))

    def chunks(self, line: str) -> list[str]:
        """Return what the reader sees of a line: pieces of its buffer's size, each up to a NUL."""
        if len(line) + 1 > LINE_BYTES:
            self.fault(
                "line_too_long",
                f"{len(line) + 1} bytes with the newline; the runtime reads {LINE_BYTES} and passes over the rest, "
                "so the last layers stay without a place.",
            )
        if "\0" in line:
            self.fault("nul", "a NUL byte; the runtime does not see what follows in this line.")
        if line.endswith("\r"):
            self.fault("carriage_return", "ends in a carriage return; the runtime accepts it.", is_note=True)
        whole = line + "\n"
        return [
            whole[at : at + LINE_BYTES].rstrip("\n").partition("\0")[0].removesuffix("\r")
            for at in range(0, len(whole), LINE_BYTES)
        ]

    def read(self, seen: str, raw: str | None) -> None:
        """Take one line that the reader sees; `raw` is None for the rest of a line that was too long."""
        if seen.startswith("[fingerprint") and raw is not None:
            self.open_section(seen, raw)
        elif raw is not None and (found := _VARIANT.fullmatch(seen)):
            self.open_variant(found, raw)
        else:
            if raw is not None:
                self.lines.append(raw)
                self.is_cut = len(raw) + 1 > LINE_BYTES
            self.read_content(seen, is_rest=raw is None)

    def read_content(self, seen: str, *, is_rest: bool) -> None:
        if not seen.strip():
            return
        if seen.startswith("#"):
            self.read_comment(seen)
        elif self.variant is None:
            place = "before the first section" if self.section is None else "outside a variant"
            self.fault("stray_line", f"{shorten(seen)} {place}; the runtime passes over it.")
        elif found := _TIER.fullmatch(seen):
            self.close_tier()
            self.tier = Tier(index=int(found[1]), batch_size=int(found[2]), line=self.number)
            if found[3] == " not_viable":
                self.close_tier()
            elif found[3]:
                self.fault("unknown_field", f"{shorten(found[3])} behind a tier's heading.", is_note=True)
        elif found := _DISABLED.fullmatch(seen):
            self.replace_variant(baseline_vram_mib=float(found[1]))
        elif seen.startswith("strategy=") and self.tier is not None:
            self.read_strategy(seen)
        elif seen.startswith("ot=") and self.tier is not None:
            self.read_overrides(seen[3:])
        elif not is_rest:
            # Lines of a later version begin with a word; anything else was never a planner's.
            is_later = bool(re.match(r"[a-z_]+[ =]", seen)) and not seen.startswith(("strategy=", "ot=", "pshard_"))
            kind = "later_line" if is_later else "unknown_line"
            self.fault(kind, f"{shorten(seen)} means nothing to the runtime.", is_note=is_later)

    def read_comment(self, seen: str) -> None:
        found = _SETTINGS.match(seen)
        if found and self.section is not None and self.variant is None and self.section.settings is None:
            self.section = replace(
                self.section,
                settings=Settings(
                    n_ctx=int(found[1]),
                    n_seq_max=int(found[2]),
                    n_threads=int(found[3]),
                    flash_attn=FLASH_ATTENTION[found[4]],
                    type_k=int(found[5]),
                    type_v=int(found[6]),
                    strategy=found[7],
                ),
            )

    def read_strategy(self, seen: str) -> None:
        assert self.tier is not None
        values: list[str] = []
        rest = seen
        for name, value in _STRATEGY_FIELDS:
            found = re.match(rf"\s*{name}={value}(?!\S)", rest)
            if not found:
                break
            values.append(found[1])
            rest = rest[found.end() :]
        ends = {name: re.search(rf"\b{name}=(\d{{1,10}})", seen) for name in ("output_on_gpu", "pin_from_back")}
        problems = []
        if len(values) < N_NEEDED_FIELDS:
            self.fault("strategy_broken", "fewer than four fields can be read; the runtime drops this tier.")
        elif len(values) < len(_STRATEGY_FIELDS):
            self.fault("strategy_fields", "tps= or vram= cannot be read; the runtime takes it for 0.")
        problems += [f"{name}= is missing" for name, found in ends.items() if found is None]
        if values and values[0] not in STRATEGIES:
            problems.append(f"strategy {shorten(values[0])} is none of the four it knows")
        if self.tier.strategy is not None:
            self.fault("strategy_twice", "a second strategy line in one tier.")
        if problems:
            self.fault("tier_dropped", f"{' and '.join(problems)}; the runtime drops this tier without a word.")
        is_viable = len(values) >= N_NEEDED_FIELDS and not problems
        output, back = ends["output_on_gpu"], ends["pin_from_back"]
        values += ["", "0", "0", "NONE", "0", "0"][len(values) :]
        if values[3] not in OVERFLOWS:
            self.fault("overflow", f"overflow={shorten(values[3])} is none of {', '.join(OVERFLOWS)}.")
        self.tier = replace(
            self.tier,
            strategy=values[0],
            n_pinned=int(values[1]),
            n_attn_pinned=int(values[2]),
            overflow=values[3],
            tokens_per_second=float(values[4]),
            vram_mib=float(values[5]),
            output_on_gpu=output is not None and int(output[1]) != 0,
            pin_from_back=back is not None and int(back[1]) != 0,
            viable=is_viable,
        )

    def read_overrides(self, text: str) -> None:
        assert self.tier is not None
        overrides, rejected = parse_overrides(text)
        # The last item of a line that the reader's buffer cuts is a part: what is wrong has been said.
        for item in rejected[: -1 if self.is_cut else None]:
            self.fault("override_broken", f"override {shorten(item)} is not PATTERN=BUFFER:NUMBER.")
        if self.tier.overrides:
            self.fault("overrides_twice", "a second ot= line in one tier.")
        self.tier = replace(self.tier, overrides=overrides)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def open_section(self, seen: str, raw: str) -> None:
        self.close_section()
        found = _FINGERPRINT.fullmatch(seen)
        if not found:
            self.fault(
                "fingerprint",
                f"{shorten(seen)} is not [fingerprint=0x and 16 lower-case hexadecimal digits]; the runtime never "
                "finds this section.",
            )
        self.section = Section(fingerprint=int(found[1], 16) if found else None, settings=None, line=self.number)
        self.lines = [raw]

    def open_variant(self, found: re.Match[str], raw: str) -> None:
        if self.section is None:
            self.lines.append(raw)
            self.fault("stray_line", "a variant before the first section; the runtime passes over it.")
            return
        self.close_variant()
        self.variant = Variant(budget_mib=int(found[1]), cache_ubatch=int(found[2] or 0), line=self.number)
        self.n_faults_before = len(self.faults)
        self.lines = [raw]

    def close_tier(self) -> None:
        if self.tier is not None:
            if self.tier.viable and not self.tier.overrides:
                self.fault(
                    "no_overrides", f"tier bs={self.tier.batch_size} has no ot= line; the runtime loads nothing."
                )
            if self.tier.strategy is None and self.tier.overrides:
                self.fault("no_strategy", f"tier bs={self.tier.batch_size} has no strategy line, so it is not viable.")
            self.tiers.append(self.tier)
        self.tier = None

    def close_variant(self) -> None:
        self.close_tier()
        self.drop_separator()
        if self.variant is None:
            if self.section is not None:
                self.section = replace(self.section, lines=tuple(self.lines))
        else:
            damaged = any(fault.kind in DAMAGE for fault in self.faults[self.n_faults_before :])
            self.replace_variant(tiers=tuple(self.tiers), lines=tuple(self.lines), is_damaged=damaged)
            self.variants.append(self.variant)
        self.variant, self.tiers = None, []

    def close_section(self) -> None:
        self.close_variant()
        if self.section is not None:
            self.sections.append(replace(self.section, variants=tuple(self.variants)))
        self.section, self.variants = None, []

    def drop_separator(self) -> None:
        """Take one blank line off the block that ends: the writer puts it before the next."""
        if self.lines and self.lines[-1] == "":
            self.lines.pop()

    def replace_variant(self, **changes: Any) -> None:
        assert self.variant is not None
        self.variant = replace(self.variant, **changes)
