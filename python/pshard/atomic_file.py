"""Files that are replaced whole: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pshard.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LOCK_SECONDS = 30


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file.

    Writers take turns by a lock file beside it. The directory itself is not synchronised: after a power failure the old
    file may be back.

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
    MachineError
        If the directory cannot be written to, or another writer holds the lock for half a minute.
    """
    with locked([path]), _explained(path):
        temporary = _stage(path, data)
        try:
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


@contextmanager
def locked(paths: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of files that are read and then written. Missing directories are made.

    Raises
    ------
    MachineError
        As `write_atomically`.
    """
    from filelock import FileLock

    with ExitStack() as held:
        # In one order everywhere, so that two holders of several cannot wait for each other.
        for path in sorted(set(paths)):
            with _explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(f"{path}.lock", timeout=LOCK_SECONDS))
        yield


def read_if_there(path: Path) -> bytes | None:
    """Return what is in a file; None where there is none.

    Raises
    ------
    MachineError
        It is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error}); choose another file"
        raise MachineError(msg) from error


def replace_all(contents: Mapping[Path, bytes | None]) -> None:
    """Replace files whose locks are held, in the order given: all of them, or none.

    Parameters
    ----------
    contents : mapping from Path to bytes or None
        None: the file is removed.

    Raises
    ------
    MachineError
        One of them cannot be written; all are as they were.
    """
    with ExitStack() as temporaries:

        def staged(path: Path, data: bytes | None) -> Path | None:
            if data is None:
                return None
            temporary = _stage(path, data)
            temporaries.callback(temporary.unlink, missing_ok=True)
            return temporary

        moves: list[tuple[Path, Path | None, Path | None]] = []
        for path, data in contents.items():
            # What takes room is done before anything is replaced, the way back included.
            former = read_if_there(path)
            with _explained(path):
                moves.append((path, staged(path, data), staged(path, former)))
        done: list[tuple[Path, Path | None]] = []
        try:
            for path, new, old in moves:
                with _explained(path):
                    _put(path, new)
                done.append((path, old))
        except BaseException:
            for path, old in reversed(done):
                _put(path, old)
            raise


def _put(path: Path, temporary: Path | None) -> None:
    if temporary is None:
        path.unlink(missing_ok=True)
    else:
        temporary.replace(path)


def _stage(path: Path, data: bytes) -> Path:
    """Write what is to become a file beside it."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            Path(temporary).chmod(mode)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Path(temporary)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from filelock import Timeout

    try:
        yield
    except Timeout as error:
        msg = (
            f"{path}: another process has held {path}.lock for {LOCK_SECONDS} s; wait for it, or remove the lock if "
            "none runs"
        )
        raise MachineError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); choose another file"
        raise MachineError(msg) from error
