"""Replace registries: whole or not at all, one writer at a time, and nothing lost that others wrote."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.atomic_file import explained, locked, replace_one
from pshard.registry.errors import RegistryError
from pshard.registry.format import Registry, Section, render
from pshard.registry.reader import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from pshard.registry.format import Settings, Variant

# The writer there trims to one less than these and appends: the oldest go first.
KEPT_SECTIONS, KEPT_VARIANTS = 9, 7
# 10 sections of 8 variants of 12 tiers are 8 MB.
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A registry that was replaced; `kept` is where a damaged predecessor lies."""

    path: Path
    kept: Path | None


def read_registry(path: str | PathLike[str]) -> Registry:
    """Read a registry; what is wrong with it is in its faults.

    Raises
    ------
    RegistryError
        The file cannot be read, is empty, or is too large to be one.
    """
    data = _content(path)
    if not data:
        message = f"{path}: is empty: the runtime finds no plan; write one (`pshard plan`), or give another file."
        raise RegistryError(message)
    return parse(data)


def _content(path: str | PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}); give the path of a registry."
        raise RegistryError(message) from error
    if len(data) > MAX_FILE_BYTES:
        message = f"{path}: more than {MAX_FILE_BYTES >> 20} MiB; a registry has at most a few. Give another file."
        raise RegistryError(message)
    return data


def merged(registry: Registry, fingerprint: int, settings: Settings, variant: Variant) -> Registry:
    """Put a variant into a registry as the pull request's writer does.

    The variant replaces that of the same budget and cache micro-batch; it and its section move to the end. What was
    damaged is left out.
    """
    own = [section for section in registry.sections if section.fingerprint == fingerprint]
    others = [s for s in registry.sections if s.fingerprint not in (None, fingerprint)][-KEPT_SECTIONS:]
    if registry.is_damaged:
        others = [_sound_part(s) for s in others]
    kept = [
        old
        for section in own
        for old in section.variants
        if not old.is_damaged and (old.budget_mib, old.cache_ubatch) != (variant.budget_mib, variant.cache_ubatch)
    ][-KEPT_VARIANTS:]
    section = Section(fingerprint=fingerprint, settings=settings, variants=(*kept, variant))
    if own and not registry.is_damaged:
        section = replace(own[-1], variants=section.variants)
    preamble = Registry().preamble if registry.is_damaged or not registry.preamble else registry.preamble
    return Registry((*others, section), preamble)


def with_variant(
    former: bytes | None,
    fingerprint: int,
    settings: Settings,
    variant: Variant,
    check: Callable[[Registry], None] = lambda registry: None,
) -> bytes:
    """Return what a registry becomes when a variant is put into it.

    Parameters
    ----------
    former : bytes or None
        The registry as it is; None or nothing: there is none yet.
    fingerprint : int
    settings : Settings
    variant : Variant
    check : callable
        Gets the new registry, read again from its bytes; raises if it is not what was meant.

    Returns
    -------
    bytes
    """
    new = render(merged(parse(former) if former else Registry(), fingerprint, settings, variant))
    check(parse(new))
    return new


def update(
    path: str | PathLike[str],
    fingerprint: int,
    settings: Settings,
    variant: Variant,
    check: Callable[[Registry], None] = lambda registry: None,
) -> Written:
    """Write a variant into a registry, which need not exist; `with_variant` describes the rest.

    Returns
    -------
    Written

    Raises
    ------
    FileError
        The folder cannot be written to, or another writer has held the lock for a minute. The old file is whole.
    RegistryError
        What is there cannot be read, or the check failed. The old file is whole.
    """
    path = Path(path).resolve()
    with locked([path]), explained(path):
        former = _content(path) if path.exists() and path.stat().st_size > 0 else None
        new = with_variant(former, fingerprint, settings, variant, check)
        kept = _keep(path) if former and parse(former).is_damaged else None
        replace_one(path, new)
    return Written(path, kept)


def _sound_part(section: Section) -> Section:
    """Return a section without what no planner wrote, its heading printed anew."""
    lines = () if section.settings is not None else section.lines[:1]
    return replace(section, lines=lines, variants=tuple(v for v in section.variants if not v.is_damaged))


def _keep(path: Path) -> Path:
    """Copy a file that cannot be continued to the first free name beside it."""
    number = 1
    while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    shutil.copy2(path, copy)
    return copy
