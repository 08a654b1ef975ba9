"""Files on servers that a run's data may be among, by the names that configs call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from data_index.errors import MissingFile, UnknownLayout
from data_index.remote import hub, hub_files
from data_index.remote.parallel import side_by_side

if TYPE_CHECKING:
    from data_index.remote.path import RemotePath


@dataclass(frozen=True, kw_only=True)
class RemoteFiles:
    """Files on servers, by path.

    Attributes:
        origin: where they are, for people.
    """

    origin: str
    files: Mapping[str, RemotePath]

    @cached_property
    def _by_name(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(PurePosixPath(path).name, []).append(path)
        return found

    def find(self, name: str) -> RemotePath | None:
        """The file of that path, else the one whose path ends like it; none where two do."""
        if name in self.files:
            return self.files[name]
        parts = PurePosixPath(name).parts
        candidates = self._by_name.get(parts[-1], []) if parts else []
        for start in range(len(parts)):
            tail = parts[start:]
            ending = [path for path in candidates if PurePosixPath(path).parts[-len(tail) :] == tail]
            if ending:
                return self.files[ending[0]] if len(ending) == 1 else None
        return None

    def beside(self, place: RemotePath) -> dict[str, RemotePath]:
        """The files in the same folder, by name."""
        return {other.name: other for other in self.files.values() if other.parent == place.parent}


Data = Path | RemoteFiles | None  # where a run's data are: a folder, servers, or wherever its config says


def files_of_repository(repo_id: str, repo_type: hub.RepoType, cache: Path, revision: str | None = None) -> RemoteFiles:
    """Files of a repository of the hub, at the commit that a revision names now.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    from data_index.remote.path import RemotePath

    if revision is None or not hub.is_commit(revision):
        revisions = hub.list_revisions(repo_id, repo_type)
        wanted = revision or "main"
        if wanted not in revisions:
            raise MissingFile(f"{repo_id} has no revision {wanted}; it has {', '.join(sorted(revisions)[:5])}")
        revision = revisions[wanted]
    folder = RemotePath(hub.folder_url(repo_type, repo_id, revision), cache)
    files = {
        file.path: replace(folder / file.path, num_bytes=file.num_bytes, sha256=file.sha256)
        for file in hub_files.files_at(folder.url, cache).values()
    }
    return RemoteFiles(origin=f"{hub.repository_text(repo_type, repo_id)}@{revision[:12]}", files=files)


def parse_hub_place(text: str) -> tuple[hub.RepoType, str, str | None] | None:
    """Read `hub:datasets/ORG/NAME[@REVISION]` or `hub:ORG/NAME[@REVISION]`; None where it is something else.

    Raises:
        UnknownLayout: it begins like one and names no repository.
    """
    if not text.startswith("hub:"):
        return None
    repository, _, revision = text.removeprefix("hub:").partition("@")
    repo_type: hub.RepoType = "dataset" if repository.startswith("datasets/") else "model"
    repo_id = repository.removeprefix("datasets/")
    if not hub.is_repo_id(repo_id):
        raise UnknownLayout(f"{text} names no repository: hub:ORG/NAME, or hub:datasets/ORG/NAME, [@REVISION]")
    return repo_type, repo_id, revision or None


def with_sizes(
    files: Mapping[str, RemotePath], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, RemotePath]:
    """The same files, each with its size: those that are not known are asked of the servers, many at a time.

    An answer is kept as it comes, so that a call that was interrupted asks for the others only.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    unknown = [name for name, path in files.items() if path.num_bytes is None]
    sized = dict(files)
    sizes = side_by_side(lambda name, abort: files[name].fresh_size(), unknown)
    for done, (name, size) in enumerate(sizes, 1):
        sized[name] = replace(files[name], num_bytes=size)
        progress(done, len(unknown))
    return sized
