"""Files that are replaced together while what they were is kept, so that exactly that can be taken back.

What was there lies in one document beside the first of the files: every path with its bytes, or that there was no file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pshard.atomic_file import locked, read_if_there, replace_all
from pshard.errors import DocumentError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

# What is to be in a file, or what makes that of what is there.
Content = bytes | Callable[[bytes | None], bytes]


class _File(msgspec.Struct):
    path: str
    data: bytes | None


class _Former(msgspec.Struct):
    schema_version: int
    files: list[_File]


def former_path(path: str | os.PathLike[str]) -> Path:
    """Where it is kept what a file, and those that were replaced with it, were before."""
    path = Path(path)
    return path.with_name(f"{path.name}.former")


def replace_keeping(files: Mapping[Path, Content], expected: Mapping[Path, bytes | None] | None = None) -> list[Path]:
    """Replace files, all or none, and keep what they were beside the first.

    Parameters
    ----------
    files : mapping from Path to bytes or callable
        A callable gets the bytes that are there, or None; nobody else writes the file meanwhile.
    expected : mapping from Path to bytes or None, optional
        What the caller takes to be in some of them, or that there is no file.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    FileError
        One cannot be read or written; all are as they were, and what was kept before too.
    DocumentError
        One is not what was expected: nothing is replaced.
    """
    paths = [path.resolve() for path in files]
    kept = former_path(next(iter(files))).resolve()
    with locked([kept]), locked(paths):
        former = {path: read_if_there(path) for path in paths}
        for path, content in (expected or {}).items():
            if former.get(path.resolve(), content) != content:
                message = f"{path}: somebody else has replaced it meanwhile; nothing is written."
                raise DocumentError(message)
        contents = {
            path: content(former[path]) if callable(content) else content
            for path, content in zip(paths, files.values(), strict=True)
        }
        # First of all what was: it is there whatever happens to the others.
        replace_all({kept: _encode(former), **contents})
    return list(files)


def restore(path: str | os.PathLike[str]) -> list[Path]:
    """Exchange files and what they were before the last `replace_keeping`: doing so twice changes nothing.

    Parameters
    ----------
    path : path-like
        The first of them.

    Returns
    -------
    list of Path
        All of them.

    Raises
    ------
    DocumentError
        Nothing is kept for this file, or something else than this function keeps.
    FileError
        One cannot be read or written; all are as they were, and what is kept too.
    """
    kept = former_path(path).resolve()
    with locked([kept]):
        former = _decode(Path(path), kept)
        with locked(former):
            present = {file: read_if_there(file) for file in former}
            # Last of all what is kept: until then it has what goes back.
            replace_all({**former, kept: _encode(present)})
    return list(former)


def _encode(former: Mapping[Path, bytes | None]) -> bytes:
    return msgspec.json.encode(_Former(1, [_File(str(path), data) for path, data in former.items()])) + b"\n"


def _decode(path: Path, kept: Path) -> dict[Path, bytes | None]:
    data = read_if_there(kept)
    if data is None:
        message = f"{path}: nothing to undo: there is no {kept.name} beside it."
        raise DocumentError(message)
    try:
        return {Path(file.path): file.data for file in msgspec.json.decode(data, type=_Former).files}
    except msgspec.DecodeError as error:
        message = f"{kept}: not what --apply keeps ({error}); nothing is undone."
        raise DocumentError(message) from error
