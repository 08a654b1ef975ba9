"""Files appear whole or not at all; the kernel's lock says who may write."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest

from data_index.errors import Busy, CorruptFile, DiskFull, MissingFile
from data_index.files import (
    atomic_file,
    atomic_folder,
    exclusive_lock,
    read_into,
    read_json,
    remove_folder,
    remove_leftovers,
    require_free_space,
    sha256_of_file,
    temporary_sibling,
    write_bytes,
    write_hashed_parquet,
    write_json,
    write_parquet,
)

ROOT = Path(__file__).parents[2]
STOPS = [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1), OSError(errno.EIO, "input/output error")]
HOLDER = """
import sys, time
from pathlib import Path
from data_index.files import exclusive_lock

with exclusive_lock(Path(sys.argv[1]), "holding"):
    print("held", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: type(stop).__name__)
def test_an_error_while_writing_leaves_the_old_file(stop: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_bytes(path, b"old")

    with pytest.raises(type(stop)) as caught, atomic_file(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise stop

    assert caught.value is stop
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: type(stop).__name__)
def test_an_error_while_filling_leaves_no_folder(stop: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(stop)), atomic_folder(tmp_path / "new") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_bytes(b"1")
        raise stop

    assert names(tmp_path) == []


def test_a_file_may_be_read_by_whom_the_umask_says(tmp_path: Path) -> None:
    """Some libraries make theirs readable by nobody else, which a group that shares a disk trips over."""
    usual = tmp_path / "usual"
    usual.touch()
    with atomic_file(tmp_path / "made") as temporary:
        temporary.touch(mode=0o600)

    assert (tmp_path / "made").stat().st_mode == usual.stat().st_mode


def test_a_folder_never_replaces_one_that_holds_something(tmp_path: Path) -> None:
    write_bytes(tmp_path / "there" / "file", b"old")

    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "there") as temporary:
        (temporary / "file").write_bytes(b"new")

    assert (tmp_path / "there" / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["there"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_is_disk_full_and_the_old_file_stays(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="no space to write .*kept: what was there"):
        patch.setattr(os, call, full)
        write_bytes(path, b"new")

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_no_space_for_a_folder_leaves_none(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="free some disk and run the same command"):
        patch.setattr(os, call, full)
        with atomic_folder(tmp_path / "new") as temporary:
            (temporary / "file").write_bytes(b"1")

    assert names(tmp_path) == []


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    write_bytes(small_disk / "kept", b"old")

    with pytest.raises(DiskFull, match="no space to write"):
        write_bytes(small_disk / "kept", b"x" * 2_000_000)

    assert (small_disk / "kept").read_bytes() == b"old"
    assert names(small_disk) == ["kept"]


def test_a_full_disk_is_disk_full_in_the_words_of_other_libraries_too(small_disk: Path) -> None:
    write_parquet(small_disk / "kept.parquet", pyarrow.table({"step": [1]}))
    before = (small_disk / "kept.parquet").read_bytes()

    with pytest.raises(DiskFull, match="no space to write"):
        write_parquet(small_disk / "kept.parquet", pyarrow.table({"noise": [os.urandom(2_000_000)]}))

    assert (small_disk / "kept.parquet").read_bytes() == before
    assert names(small_disk) == ["kept.parquet"]


def test_free_space_is_checked_before_starting(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "there" / "yet", 1, "a fork")

    with pytest.raises(DiskFull, match=r"a fork needs .* MB in .* are free: .*--workspace; nothing was written"):
        require_free_space(tmp_path, 10**18, "a fork")


def test_a_second_process_is_told_who_holds_the_lock_until_the_first_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=f"another process is already adding tiny .it holds {lock}"):
            with exclusive_lock(lock, "adding tiny"):
                pass
        holder.send_signal(signal.SIGKILL)

    with exclusive_lock(lock, "adding tiny"):
        pass


def test_equal_tables_have_equal_names(tmp_path: Path) -> None:
    table = pyarrow.table({"step": [1, 2], "value": [0.5, 0.25]})
    first, second = (write_hashed_parquet(tmp_path / name, table) for name in ("a", "b"))
    other = write_hashed_parquet(tmp_path / "a", table.slice(0, 1))

    assert first.name == second.name == f"{sha256_of_file(first)[:16]}.parquet"
    assert names(tmp_path / "a") == sorted([first.name, other.name])


def test_leftovers_of_dead_writers_go_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "kept", b"1")
    temporary_sibling(tmp_path / "deep" / "file").write_bytes(b"half")
    temporary_sibling(tmp_path / "folder").mkdir()

    remove_leftovers(tmp_path)

    assert names(tmp_path) == ["deep"]
    assert names(tmp_path / "deep") == ["kept"]


def test_a_folder_that_is_removed_vanishes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two steps, only a leftover remains, which no reader looks at."""
    write_bytes(tmp_path / "run" / "run.toml", b"")
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)

    remove_folder(tmp_path / "run")

    assert [name.startswith(".tmp-") for name in names(tmp_path)] == [True]


def test_json_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    with pytest.raises(MissingFile, match="value.json is not there"):
        read_json(path)

    write_json(path, {"loss": 0.1, "steps": [1, 2]})
    assert read_json(path) == {"loss": 0.1, "steps": [1, 2]}

    write_bytes(path, path.read_bytes()[:-4])
    with pytest.raises(CorruptFile, match="value.json is not JSON"):
        read_json(path)


def test_memory_is_filled_from_any_byte_of_a_file(tmp_path: Path) -> None:
    """And a file that ends before leaves no half-filled memory that passes for its content."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    for start, count in ((0, 0), (0, 25_600), (8_190, 5), (25_599, 1)):
        target = bytearray(count)
        read_into(path, start, memoryview(target))
        assert bytes(target) == (bytes(range(256)) * 100)[start : start + count]
    with pytest.raises(CorruptFile, match="ends early"):
        read_into(path, 25_590, memoryview(bytearray(11)))
    with pytest.raises(MissingFile):
        read_into(tmp_path / "absent", 0, memoryview(bytearray(1)))
