"""Files are replaced together, what they were is kept, and exactly that can be taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pshard.errors import DocumentError, FileError
from pshard.rebalance.kept_file import former_path, replace_keeping, restore


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.endswith(".lock")}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let no file of this name be replaced, as when its folder has become read-only."""
    replace = Path.replace

    def replace_but(self: Path, target: Path) -> Path:
        if target.name == name:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_but)


def test_undoing_exchanges_files_and_what_they_were(tmp_path: Path) -> None:
    path, flags = tmp_path / "map.json", tmp_path / "flags"
    path.write_bytes(b"one")
    path.chmod(0o640)
    assert replace_keeping({path: b"two", flags: b"-ts 1"}) == [path, flags]
    assert (path.read_bytes(), flags.read_bytes()) == (b"two", b"-ts 1")
    assert restore(path) == [path, flags]
    assert path.read_bytes() == b"one"
    assert not flags.exists()  # there was none
    restore(path)
    assert (path.read_bytes(), flags.read_bytes()) == (b"two", b"-ts 1")
    assert path.stat().st_mode & 0o777 == 0o640


def test_only_what_was_replaced_last_is_taken_back(tmp_path: Path) -> None:
    path, flags = tmp_path / "map.json", tmp_path / "flags"
    replace_keeping({path: b"one", flags: b"-ts 1"})
    path.unlink()
    replace_keeping({path: b"two"})
    flags.write_bytes(b"-ts 2")
    assert restore(path) == [path]
    assert not path.exists()
    assert flags.read_bytes() == b"-ts 2"


def test_what_is_written_may_follow_from_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    replace_keeping({path: lambda former: b"new" if former is None else former + b"!"})
    replace_keeping({path: lambda former: b"new" if former is None else former + b"!"})
    assert path.read_bytes() == b"new!"


@pytest.mark.parametrize("failing", ["map.json.former", "map.json", "flags", "registry"])
def test_a_write_that_fails_takes_back_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    files = [tmp_path / name for name in ("map.json", "flags", "registry")]
    replace_keeping({path: b"zero" for path in files[:2]})
    replace_keeping({path: b"one" for path in files[:2]})
    before = contents(tmp_path)
    fail_at(monkeypatch, failing)
    with pytest.raises(FileError, match="Permission denied"):
        replace_keeping({path: b"two" for path in files})
    assert contents(tmp_path) == before
    monkeypatch.undo()
    restore(files[0])
    assert [path.read_bytes() for path in files[:2]] == [b"zero", b"zero"]


@pytest.mark.parametrize("failing", ["map.json", "flags", "map.json.former"])
def test_an_undoing_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    files = [tmp_path / name for name in ("map.json", "flags")]
    for path in files:
        path.write_bytes(b"one")
    replace_keeping({path: b"two" for path in files})
    before = contents(tmp_path)
    fail_at(monkeypatch, failing)
    with pytest.raises(FileError, match="Permission denied"):
        restore(files[0])
    assert contents(tmp_path) == before
    monkeypatch.undo()
    restore(files[0])
    assert [path.read_bytes() for path in files] == [b"one", b"one"]


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(b"one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        replace_keeping({path: b"two"})
    assert contents(tmp_path) == {"map.json": b"one"}


def test_what_cannot_be_read_is_a_known_failure(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        replace_keeping({tmp_path: b"two"})


def test_nothing_kept_is_nothing_to_undo(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    with pytest.raises(DocumentError, match="nothing to undo"):
        restore(path)
    former_path(path).write_bytes(b"-ts 1\n")
    with pytest.raises(DocumentError, match="not what --apply keeps"):
        restore(path)


def test_what_somebody_else_has_replaced_is_left_as_it_is(tmp_path: Path) -> None:
    path, flags = tmp_path / "map.json", tmp_path / "flags"
    path.write_bytes(b"one")
    replace_keeping({path: b"two"}, {path: b"one"})
    before = contents(tmp_path)
    for files, expected in (({path: b"three"}, {path: b"one"}), ({flags: b"-ts 1", path: b"three"}, {path: None})):
        with pytest.raises(DocumentError, match="somebody else has replaced it"):
            replace_keeping(files, expected)
        assert contents(tmp_path) == before
    replace_keeping({flags: b"-ts 1"}, {flags: None})
    with pytest.raises(DocumentError, match="somebody else"):
        replace_keeping({flags: b"-ts 2"}, {flags: None})
