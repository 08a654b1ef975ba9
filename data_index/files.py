"""The only writer: files and folders appear whole or not at all.

Everything is written under a temporary name beside its target, flushed, fsynced and renamed; then the folder is
fsynced. A reader therefore sees the old file or the new one, also after kill -9. Temporary names start with ".tmp-";
`remove_leftovers` deletes those of dead writers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import Busy, CorruptFile, DiskFull, MissingFile, NotWritable, UnsafeFile

if TYPE_CHECKING:
    from data_index.remote.path import Place

BLOCK_BYTES = 4 * 2**20
# A size that is claimed is absurd where it is above both: this, and so many times what is stored.
PLAUSIBLE_BYTES = 4 * 2**30
PLAUSIBLE_RATIO = 1000
MAX_JSON_BYTES = 512 * 2**20
READ_BYTES = 2**30  # at once; the system takes no more than 2 GiB
ROW_GROUP_ROWS = 100_000
TEMPORARY_PREFIX = ".tmp-"
os.umask(_UMASK := os.umask(0))
USUAL_MODE = 0o666 & ~_UMASK  # of a file that this process makes


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that no reader looks at."""
    return path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}"


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn "no space left" of any library into DiskFull; the message says what is still whole."""
    try:
        yield
    except (DiskFull, NotWritable):
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left" in str(error) or "File too large" in str(error):
            raise DiskFull(
                f"no space to write {target}: what was there before is unchanged; free some disk and run the same "
                "command again"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise NotWritable(
                f"{target} cannot be written ({error.strerror}): give it the rights, or choose another workspace with "
                "--workspace"
            ) from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any error nothing changes.

    Raises:
        DiskFull: the disk has no room.
    """
    temporary = temporary_sibling(path)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.chmod(USUAL_MODE)  # some libraries write files that nobody else may read
            fsync_file(temporary)
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # of a disk that takes no writing, after another error said so
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path`, which must not exist yet."""
    temporary = temporary_sibling(path)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    fsync_file(Path(folder, name))
                fsync_folder(Path(folder))
            os.rename(temporary, path)
            fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of writers that died. Call it only while holding the folder's lock."""
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_dead_siblings(path: Path) -> None:
    """Delete what dead writers of exactly this path left beside it. Call it only while holding the path's lock."""
    for sibling in temporary_siblings(path):
        shutil.rmtree(sibling, ignore_errors=True) if sibling.is_dir() else sibling.unlink(missing_ok=True)


def temporary_siblings(path: Path) -> list[Path]:
    """What writers of exactly this path have beside it, dead or alive."""
    name = re.compile(re.escape(TEMPORARY_PREFIX) + r"\d+-[0-9a-f]{8}-" + re.escape(path.name))
    return [sibling for sibling in path.parent.glob(f"{TEMPORARY_PREFIX}*") if name.fullmatch(sibling.name)]


def remove_folder(folder: Path) -> None:
    """Delete a folder so that it vanishes at once: rename first, then delete the renamed one."""
    doomed = temporary_sibling(folder)
    os.rename(folder, doomed)
    fsync_folder(folder.parent)
    shutil.rmtree(doomed)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, wherever links lead, into a folder that is being built.

    Raises:
        MissingFile, UnsafeFile
    """
    require_file(source)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def copy_stretch(source: Path, start: int, stop: int, target: Path, *, skip_bytes: int = 0) -> str:
    """Copy bytes [start, stop) of a file into a folder that is being built; returns their sha256.

    Args:
        skip_bytes: of their beginning, which are hashed and not written.
    Raises:
        MissingFile, UnsafeFile, DiskFull
        CorruptFile: the file ends before.
    """
    digest = hashlib.sha256()
    with disk_errors(target), open_existing(source) as file:
        target.parent.mkdir(parents=True, exist_ok=True)
        file.seek(start)
        with target.open("xb") as out:
            while start < stop:
                block = file.read(min(BLOCK_BYTES, stop - start))
                if not block:
                    raise CorruptFile(f"{source} [{start}:{stop}]: the file ends early; it was truncated")
                digest.update(block)
                out.write(block[skip_bytes:])
                skip_bytes = max(skip_bytes - len(block), 0)
                start += len(block)
    return digest.hexdigest()


def overwrite(path: Path, stretches: Iterable[tuple[int, bytes]]) -> None:
    """Replace bytes of a file in a folder that is being built, each stretch from its first byte on; its size stays."""
    with disk_errors(path), path.open("r+b") as file:
        for first, content in stretches:
            file.seek(first)
            file.write(content)


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[Any]:
    """Open a file that a process of its own writes to, line by line; it is read by people and proves nothing.

    Raises:
        DiskFull, NotWritable
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        yield file


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=True) + "\n").encode())


def read_json(path: Place) -> Any:
    """Parse a JSON file.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    return parse_json(read_limited(path, MAX_JSON_BYTES), path)


def parse_json(content: bytes, source: object) -> Any:
    """
    Raises:
        CorruptFile: it is not JSON, or nested so deep that no one wrote it.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{source} is not JSON ({error})") from error


def read_json_object(path: Place) -> dict[str, Any]:
    """
    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise CorruptFile(f"{path} is not an object")
    return found


def write_toml(path: Path, value: Mapping[str, Any]) -> None:
    import tomli_w

    write_bytes(path, tomli_w.dumps(value).encode())


def write_npy(path: Path, array: Any) -> None:
    import numpy as np

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_parquet(path: Path, table: Any) -> None:
    """Write an Arrow table."""
    import pyarrow.parquet

    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def write_hashed_parquet(folder: Path, table: Any) -> Path:
    """Write an Arrow table under a name made from its content; returns the path."""
    return _named_by_content(folder, lambda temporary: write_parquet(temporary, table))


def write_hashed_parquet_parts(folder: Path, schema: Any, tables: Iterable[Any]) -> Path:
    """Write Arrow tables of one schema, one after another, as one file, like `write_hashed_parquet`.

    Few of their rows are in memory at once; groups of rows are small, so that a range of a sorted column is found fast.
    """
    import pyarrow
    import pyarrow.parquet

    def write(path: Path) -> None:
        waiting: list[Any] = []
        with (
            atomic_file(path) as temporary,
            pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as file,
        ):
            for table in tables:
                waiting.append(table)
                if sum(part.num_rows for part in waiting) >= ROW_GROUP_ROWS:
                    file.write_table(pyarrow.concat_tables(waiting), ROW_GROUP_ROWS)
                    waiting.clear()
            if waiting:
                file.write_table(pyarrow.concat_tables(waiting), ROW_GROUP_ROWS)

    return _named_by_content(folder, write)


def _named_by_content(folder: Path, write: Callable[[Path], None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(folder / "table.parquet")
    try:
        write(temporary)
        path = folder / f"{sha256_of_file(temporary)[:16]}.parquet"
        os.replace(temporary, path)
        fsync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces. Hash this, never a file's formatting."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sha256_of_file(path: Path) -> str:
    with open_existing(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_sha256(path: Path, sha256: str | None) -> None:
    """Compare a file with the hash that is known of it; None: none is.

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: it is another file.
    """
    if sha256 is not None and (actual := sha256_of_file(path)) != sha256:
        raise CorruptFile(
            f"{path} is not the file that it was (sha256 {actual[:12]}… instead of {sha256[:12]}…): restore it, or add "
            "the run again with the right one"
        )


def sha256_of_blocks(path: Path) -> list[str]:
    """sha256 of every 4 MiB block, in order; the last one may be shorter."""
    with open_existing(path) as file:
        return [hashlib.sha256(block).hexdigest() for block in iter(lambda: file.read(BLOCK_BYTES), b"")]


def require_file(path: Place) -> int:
    """Bytes of a regular file, wherever links lead: pipes and devices never end, and holes are no data.

    Raises:
        MissingFile
        UnsafeFile: it is something else than a file, or nearly all of it is a hole.
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    if not isinstance(path, Path):
        return path.size()
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFile(f"{path} is not there") from error
    except (OSError, ValueError) as error:  # links in a circle, names that cannot be
        raise UnsafeFile(f"{str(path)[:200]} cannot be a file ({error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFile(f"{path} is a folder, a pipe or a device, where a file was expected; it was not opened")
    if is_absurd(found.st_size, found.st_blocks * 512) and _has_hole(path, found.st_size):
        raise UnsafeFile(f"{path} claims {found.st_size:,} bytes, and nearly all of them are a hole without data")
    return found.st_size


def is_absurd(claimed_bytes: int, stored_bytes: int) -> bool:
    """Does something claim far more than what is stored can hold?"""
    return claimed_bytes > PLAUSIBLE_BYTES and claimed_bytes > PLAUSIBLE_RATIO * stored_bytes


def _has_hole(path: Path, num_bytes: int) -> bool:
    """Some file systems do not count the blocks of a file; those say that it has no hole."""
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < num_bytes


def open_existing(path: Place) -> Any:
    """Open a regular file to read bytes.

    Raises:
        MissingFile, UnsafeFile
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    if not isinstance(path, Path):
        return path.open()
    require_file(path)
    return path.open("rb")


def read_range(path: Place, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, and no others.

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: it ends before.
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    if not isinstance(path, Path):
        return path.read(start, stop)
    with open_existing(path) as file:
        file.seek(start)
        content: bytes = file.read(stop - start)
    if len(content) != stop - start:
        raise CorruptFile(f"{path} [{start}:{stop}]: the file ends early; it was truncated")
    return content


def read_into(path: Path, start: int, target: memoryview) -> None:
    """Fill memory with a file's bytes from `start` on, and read no page besides: a kernel may read megabytes ahead.

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: it ends before.
    """
    with open_existing(path) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(start)
        filled = 0
        while filled < len(target):
            count = file.readinto(target[filled : filled + READ_BYTES])
            if not count:
                raise CorruptFile(
                    f"{path} [{start}:{start + len(target)}]: the file ends early; it was truncated or changed"
                )
            filled += count


def read_limited(path: Place, max_bytes: int) -> bytes:
    """
    Raises:
        MissingFile
        UnsafeFile: it is no file, or larger than any of its kind.
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    size = require_file(path)
    if size > max_bytes:
        raise UnsafeFile(f"{path} has {size:,} bytes, more than any file of its kind")
    return path.read_bytes() if isinstance(path, Path) else path.read_all()


@contextlib.contextmanager
def exclusive_lock(path: Path, doing: str) -> Iterator[None]:
    """Hold an flock for the duration; the kernel releases it when the process dies, however it dies.

    Raises:
        Busy: another process holds it.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"another process is already {doing} (it holds {path}); wait for it, or stop it") from error
        yield


def require_free_space(folder: Path, num_bytes: int, purpose: str, *, option: str = "--workspace") -> None:
    """Raise DiskFull before starting what would not fit.

    Args:
        option: of the command line, that names another place.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise DiskFull(
            f"{purpose} needs {num_bytes / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are free: free some "
            f"disk, or choose another place with {option}; nothing was written"
        )


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
