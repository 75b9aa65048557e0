"""What a registry holds, and how it is printed.

Lines are kept as they are, beside what they mean: a section that is not replaced is written back byte for byte, with
fields and comments of later versions that mean nothing here. Bytes are read as Latin-1, so that any file can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HEADER = "# Generated file. Edit at your own risk."
# The reader's buffer holds this much of a line, newline included; the rest it takes for another line.
LINE_BYTES = 8191
HOST_BUFFER = "CUDA_Host"
# By the numbers that the fingerprint of a forced strategy holds. Any other name makes a tier unviable.
STRATEGIES = (
    "GPUONLY_LAYERPIN_LAYERSTREAM",
    "GPUONLY_ATTNPIN_FFNSTREAM",
    "DYNAMIC_FFNCPU_ATTNSTREAM",
    "STATIC_ATTNPRIO_ALLMODELS",
)
OVERFLOWS = ("NONE", "ATTN", "UP", "GATE", "MOE")
FLASH_ATTENTION = {"off": 0, "on": 1, "auto": -1}

# Faults of a file that no planner leaves; other faults are plans that a planner wrote and the runtime trips over.
DAMAGE = frozenset(
    {
        "fingerprint",
        "no_last_newline",
        "no_overrides",
        "no_section",
        "no_strategy",
        "nul",
        "override_broken",
        "overrides_twice",
        "stray_line",
        "strategy_broken",
        "strategy_fields",
        "strategy_twice",
        "unknown_line",
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a registry that a person should know.

    Attributes
    ----------
    kind : str
        A short stable name, like ``"line_too_long"``.
    where : str
        Line, or section, budget and tier.
    text : str
        What it is and what the runtime does about it.
    is_note : bool
        True where plans work all the same.
    """

    kind: str
    where: str
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Override:
    """One item of an ``ot=`` line: tensors whose name the pattern is found in run on the backend."""

    pattern: str
    backend: int
    buffer: str = HOST_BUFFER

    def __str__(self) -> str:
        return f"{self.pattern}={self.buffer}:{self.backend}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The plan of one batch size. `strategy` is None where the planner found none viable."""

    index: int
    batch_size: int
    strategy: str | None = None
    n_pinned: int = 0
    n_attn_pinned: int = 0
    overflow: str = "NONE"
    tokens_per_second: float = 0.0
    vram_mib: float = 0.0
    output_on_gpu: bool = False
    pin_from_back: bool = False
    overrides: tuple[Override, ...] = ()
    # The reader takes it for viable: a strategy that it knows, and enough fields.
    viable: bool = False
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Plans for one budget and cache micro-batch; `baseline_vram_mib` is set where pshard is to stay off."""

    budget_mib: int
    cache_ubatch: int
    tiers: tuple[Tier, ...] = ()
    baseline_vram_mib: float | None = None
    lines: tuple[str, ...] = field(default=(), compare=False)
    line: int = field(default=0, compare=False)
    is_damaged: bool = field(default=False, compare=False)

    @property
    def disabled(self) -> bool:
        """The whole model fits, so the runtime loads it as stock llama.cpp does."""
        return self.baseline_vram_mib is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a section is for, as its comment says. `flash_attn` is -1 (auto), 0 or 1; types are ggml numbers."""

    n_ctx: int
    n_seq_max: int
    n_threads: int
    flash_attn: int
    type_k: int
    type_v: int
    strategy: str = "auto"

    def comment(self) -> str:
        """Return the comment line of a section."""
        flash = next(name for name, number in FLASH_ATTENTION.items() if number == self.flash_attn)
        return (
            f"# n_ctx={self.n_ctx} n_seq_max={self.n_seq_max} n_threads={self.n_threads} fa={flash} "
            f"type_k={self.type_k} type_v={self.type_v} strategy={self.strategy}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """All variants of one fingerprint; None is a heading that the reader does not take for one."""

    fingerprint: int | None
    settings: Settings | None
    variants: tuple[Variant, ...] = ()
    lines: tuple[str, ...] = field(default=(), compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Registry:
    """A whole file. `faults` are those of its text; `pshard.registry.faults` finds the others."""

    sections: tuple[Section, ...] = ()
    preamble: tuple[str, ...] = (HEADER,)
    faults: tuple[Fault, ...] = field(default=(), compare=False)

    @property
    def is_damaged(self) -> bool:
        """Something in it was not written by a planner, or not to its end."""
        return any(fault.kind in DAMAGE for fault in self.faults)


def variant_lines(variant: Variant) -> tuple[str, ...]:
    """Lines of a variant as the pull request's writer prints them, heading first."""
    lines = [f"[variant budget={variant.budget_mib} cache_ubatch={variant.cache_ubatch}]"]
    if variant.baseline_vram_mib is not None:
        return (*lines, f"pshard_disabled=1 baseline_vram={variant.baseline_vram_mib:.1f}")
    for tier in variant.tiers:
        heading = f"[tier {tier.index} bs={tier.batch_size}]"
        if tier.strategy is None:
            lines.append(f"{heading} not_viable")
            continue
        lines.append(heading)
        lines.append(
            f"strategy={tier.strategy} n_pinned={tier.n_pinned} n_attn_pinned={tier.n_attn_pinned} "
            f"overflow={tier.overflow} tps={tier.tokens_per_second:.2f} vram={tier.vram_mib:.1f} "
            f"output_on_gpu={int(tier.output_on_gpu)} pin_from_back={int(tier.pin_from_back)}"
        )
        lines.append("ot=" + ",".join(map(str, tier.overrides)))
    return tuple(lines)


def render(registry: Registry) -> bytes:
    """Bytes of a registry: blocks with the lines they were read with, or as the writer there prints them."""
    lines = list(registry.preamble)
    for section in registry.sections:
        lines.append("")
        if section.lines:
            lines += section.lines
        else:
            assert section.fingerprint is not None and section.settings is not None
            lines += [f"[fingerprint=0x{section.fingerprint:016x}]", section.settings.comment()]
        for variant in section.variants:
            lines += ["", *(variant.lines or variant_lines(variant))]
    return "\n".join([*lines, ""]).encode("latin-1")
