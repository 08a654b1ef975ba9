"""Files of the hub on disk: the client's shared cache, held against what the hub states of each file.

The client compares sizes alone, so that a file with the right size and wrong content would be there for every tool that
shares the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path, PurePosixPath

from data_index.errors import CorruptFile, MissingFile
from data_index.files import read_json_object, sha256_of_file, write_bytes, write_json
from data_index.remote.connection import TRAFFIC
from data_index.remote.hub import HubFile, RepoType, address_of, asking, cache_folder, endpoint, list_files


@lru_cache(maxsize=4096)
def _files_at(base: str, repo_type: RepoType, repo_id: str, commit: str, cache: Path) -> Mapping[str, HubFile]:
    """A commit's files never change, so that their list is kept."""
    kept = _read_list(cache, repo_type, repo_id, commit)
    if kept is not None:
        return kept
    files = {file.path: file for file in list_files(repo_id, commit, repo_type)}
    write_json(_list_path(cache, repo_type, repo_id, commit), {path: asdict(file) for path, file in files.items()})
    return files


def _list_path(cache: Path, repo_type: RepoType, repo_id: str, commit: str) -> Path:
    return cache / "hub" / f"{repo_type}s--{repo_id.replace('/', '--')}" / f"{commit}.json"


@lru_cache(maxsize=4096)
def _read_list_at(path: Path, changed_at: int) -> Mapping[str, HubFile] | None:
    try:
        return {name: HubFile(**entry) for name, entry in read_json_object(path).items()}
    except (CorruptFile, TypeError):
        path.unlink(missing_ok=True)
        return None


def _read_list(cache: Path, repo_type: RepoType, repo_id: str, commit: str) -> Mapping[str, HubFile] | None:
    path = _list_path(cache, repo_type, repo_id, commit)
    return _read_list_at(path, path.stat().st_mtime_ns) if path.is_file() else None


def _kept_list(url: str, cache: Path) -> Mapping[str, HubFile] | None:
    """The files of an address' commit, if they were listed before; nothing is asked."""
    address = address_of(url)
    return None if address is None else _read_list(cache, address.repo_type, address.repo_id, address.revision)


def files_at(url: str, cache: Path) -> Mapping[str, HubFile]:
    """The files of the repository and commit that an address names, by path.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    address = address_of(url if address_of(url) else f"{url}/.")
    assert address is not None
    return _files_at(endpoint(), address.repo_type, address.repo_id, address.revision, cache)


def stated(url: str, cache: Path) -> HubFile:
    """What the hub's listing says of a file.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    address, files = address_of(url), files_at(url, cache)
    assert address is not None
    if address.path not in files:
        raise MissingFile(f"{address.repo_id} has no file {address.path} at {address.revision}")
    return files[address.path]


def download(url: str, cache: Path) -> Path:
    """A whole file in the shared cache; the library resumes and locks, its content is compared here.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, DiskFull
        CorruptFile: it is not what the hub states; nothing of it was kept.
    """
    address = address_of(url)
    assert address is not None
    if (copy := checked_copy(url, cache)) is not None:
        return copy
    with asking(url) as api:
        found = api.hf_hub_download(
            address.repo_id,
            address.path,
            revision=address.revision,
            repo_type=address.repo_type,
            cache_dir=cache_folder(),
        )
    TRAFFIC.add(num_bytes=Path(found).stat().st_size)
    file = stated(url, cache)
    if not _is_as_stated(Path(found), file, cache):
        _discard(Path(found))
        wanted = str(file.sha256 or file.blob)
        raise CorruptFile(
            f"{url} has not the {file.num_bytes:,} bytes with the hash {wanted[:12]}…, as its publisher states: the "
            "content is wrong. Nothing of it was kept; ask again"
        )
    return Path(found)


# --- what is there ---------------------------------------------------------------------------------------------------


def checked_copy(url: str, cache: Path) -> Path | None:
    """The file in the shared cache, where it lies there whole and is what the hub states; nothing is asked.

    The client compares sizes alone. What is wrong is taken out of the cache, so that it is fetched again.

    Args:
        cache: where the lists of files are kept, and marks of what was compared.
    """
    path = _snapshot_file(url)
    if path is None:
        return None
    listed = _kept_list(url, cache)
    address = address_of(url)
    file = listed.get(address.path) if listed and address else None
    if file is None or _is_as_stated(path, file, cache):
        return path
    _discard(path)
    return None


def forget(url: str) -> None:
    """Take a file out of the shared cache, where it is there; another revision that has the same keeps its content."""
    path, address = _snapshot_file(url), address_of(url)
    if path is None or address is None:
        return
    content = path.resolve()
    path.unlink()
    revisions = path.parents[len(PurePosixPath(address.path).parts)]
    if not any(other.is_symlink() and other.resolve() == content for other in revisions.rglob("*")):
        content.unlink(missing_ok=True)


def _snapshot_file(url: str) -> Path | None:
    address = address_of(url)
    if address is None:
        return None
    repo = f"{address.repo_type}s--{address.repo_id.replace('/', '--')}"
    path = cache_folder() / repo / "snapshots" / address.revision / address.path
    return path if path.is_file() else None


def _is_as_stated(path: Path, file: HubFile, cache: Path) -> bool:
    """Compared once; a mark says so as long as the file is not written again."""
    found = path.stat()
    if found.st_size != file.num_bytes:
        return False
    wanted = file.sha256 or file.blob
    mark = cache / "checked" / f"{wanted}-{found.st_size}-{found.st_mtime_ns}"
    if wanted is None or mark.is_file():
        return True
    actual = sha256_of_file(path) if file.sha256 else _git_blob(path)
    if actual == wanted:
        write_bytes(mark, b"")
    return actual == wanted


def _git_blob(path: Path) -> str:
    """What git calls a small file: the hub states it as `blob_id`."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _discard(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
