"""Replace registries: whole or not at all, one writer at a time, and nothing lost that others wrote."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
LOCK_SECONDS = 60.0


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
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}); give the path of a registry."
        raise RegistryError(message) from error
    if not data:
        message = f"{path}: is empty: the runtime finds no plan; write one (`pshard plan`), or give another file."
        raise RegistryError(message)
    if len(data) > MAX_FILE_BYTES:
        message = f"{path}: more than {MAX_FILE_BYTES >> 20} MiB; a registry has at most a few. Give another file."
        raise RegistryError(message)
    return parse(data)


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


def update(
    path: str | PathLike[str],
    fingerprint: int,
    settings: Settings,
    variant: Variant,
    check: Callable[[Registry], None] = lambda registry: None,
) -> Written:
    """Write a variant into a registry, which need not exist.

    Parameters
    ----------
    path : path-like
    fingerprint : int
    settings : Settings
    variant : Variant
    check : callable
        Gets what was read back from the new file, before it replaces the old one; raises to keep the old one.

    Returns
    -------
    Written

    Raises
    ------
    RegistryError
        The folder cannot be written to, or another writer holds the lock for a minute. The old file is whole.
    """
    from filelock import FileLock, Timeout

    path = Path(path).resolve()
    lock = path.with_name(f"{path.name}.lock")
    if not path.parent.is_dir():
        message = f"{path}: not written: there is no folder {path.parent}; choose another (-o)."
        raise RegistryError(message)
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            has_content = path.exists() and path.stat().st_size > 0
            old = read_registry(path) if has_content else Registry()
            kept = _keep(path) if old.is_damaged else None
            _replace(path, render(merged(old, fingerprint, settings, variant)), check)
    except Timeout as error:
        message = f"{path}: another process has held {lock} for {LOCK_SECONDS:.0f} s; end it, or write elsewhere (-o)."
        raise RegistryError(message) from error
    except OSError as error:
        message = f"{path}: not written ({error.strerror or error}); choose another folder (-o)."
        raise RegistryError(message) from error
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


def _replace(path: Path, data: bytes, check: Callable[[Registry], None]) -> None:
    for left in path.parent.glob(f".{_escaped(path.name)}.*.part"):
        left.unlink(missing_ok=True)  # a writer was killed; the lock is ours, so none is at work
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        check(read_registry(part))
        part.chmod(mode)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _escaped(name: str) -> str:
    """Return a name that glob takes for itself."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
