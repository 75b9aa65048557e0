"""Files that are replaced whole: a reader sees the old one or the new one, never a part.

Writers take turns by a lock file beside each, and follow a link to the file itself. The directory is not synchronised:
after a power failure the old file may be back.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import FileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LOCK_SECONDS = 60


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file.

    Parameters
    ----------
    path : Path
        Missing directories are made.
    data : bytes

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    FileError
        The directory cannot be written to, or another writer has held the lock for a minute.
    """
    with locked([path]):
        replace_one(path, data)
    return path


@contextmanager
def locked(paths: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of files that are read and then written. Missing directories are made.

    Raises
    ------
    FileError
        As `write_atomically`.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        # In one order everywhere, so that two holders of several cannot wait for each other.
        for path in sorted({path.resolve() for path in paths}):
            lock = path.with_name(f"{path.name}.lock")
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(FileLock(lock, timeout=LOCK_SECONDS))
                except Timeout as error:
                    message = (
                        f"{path}: another process has held {lock} for {LOCK_SECONDS} s; wait for it, end it, or write "
                        "another file."
                    )
                    raise FileError(message) from error
        yield


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says while a file is written into a sentence.

    Raises
    ------
    FileError
        Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror or error}); choose another file."
        raise FileError(message) from error


def require_writable(path: Path) -> None:
    """Find out that a file cannot be written before the work whose result it is to take. Missing directories are made.

    Raises
    ------
    FileError
        Its directory takes no new file.
    """
    path = path.resolve()
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def read_if_there(path: Path) -> bytes | None:
    """Return what is in a file; None where there is none.

    Raises
    ------
    FileError
        It is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}); choose another file."
        raise FileError(message) from error


def replace_one(path: Path, data: bytes) -> None:
    """Replace a file whose lock is held.

    Raises
    ------
    FileError
        It cannot be written; it is as it was.
    """
    path = path.resolve()
    with ExitStack() as staged, explained(path):
        _stage(path, data, "new", staged).replace(path)


def replace_all(contents: Mapping[Path, bytes | None]) -> None:
    """Replace files whose locks are held, in the order given: all of them, or none.

    Parameters
    ----------
    contents : mapping from Path to bytes or None
        None: the file is removed.

    Raises
    ------
    FileError
        One of them cannot be written; all are as they were.
    """
    with ExitStack() as staged:
        moves: list[tuple[Path, Path | None, Path | None]] = []
        for path, data in contents.items():
            # What takes room is done before anything is replaced, the way back included.
            former = read_if_there(path)
            with explained(path):
                new = None if data is None else _stage(path, data, "new", staged)
                old = None if former is None else _stage(path, former, "old", staged)
            moves.append((path, new, old))
        done: list[tuple[Path, Path | None]] = []
        try:
            for path, new, old in moves:
                with explained(path):
                    _put(path, new)
                done.append((path, old))
        except BaseException:
            for path, old in reversed(done):
                _put(path, old)
            raise


def _put(path: Path, staged: Path | None) -> None:
    if staged is None:
        path.unlink(missing_ok=True)
    else:
        staged.replace(path)


def _stage(path: Path, data: bytes, role: str, staged: ExitStack) -> Path:
    """Write what is to become a file beside it, with the file's mode; it is gone when `staged` ends.

    The lock is held, so nobody else stages for this file: what has this name was left by a writer that was killed.
    """
    temporary = path.with_name(f".{path.name}.{role}.part")
    temporary.unlink(missing_ok=True)
    staged.callback(temporary.unlink, missing_ok=True)
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    return temporary
