"""Files that are replaced whole: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pshard.errors import MachineError


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
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=30):
            _replace(path, data)
    except Timeout as error:
        msg = f"{path}: another process has held {path}.lock for 30 s; wait for it, or remove the lock if none runs"
        raise MachineError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); choose another file"
        raise MachineError(msg) from error
    return path


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
