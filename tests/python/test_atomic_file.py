"""Files that are replaced whole, under a lock, by one mechanism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from pshard import atomic_file
from pshard.atomic_file import write_atomically
from pshard.errors import FileError


@pytest.fixture
def umask() -> Iterator[int]:
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.suffix != ".lock"}


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    path = write_atomically(tmp_path / "folder" / "profile.json", b"one")
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_file_keeps_its_mode_and_a_link_its_file(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "elsewhere" / "link"
    path.write_bytes(b"one")
    path.chmod(0o604)
    link.parent.mkdir()
    link.symlink_to(path)
    assert write_atomically(link, b"two") == link
    assert link.is_symlink()
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o604
    assert names(tmp_path) == {"file", "elsewhere"}


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    left = tmp_path / ".file.new.part"
    left.write_bytes(b"half of")
    left.chmod(0o444)
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    assert not left.exists()


def test_who_holds_the_lock_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_file, "LOCK_SECONDS", 0)
    path = tmp_path / "file"
    with FileLock(f"{path}.lock"), pytest.raises(FileError, match=r"another process has held .*file\.lock for 0 s"):
        write_atomically(path, b"one")
    assert not path.exists()
