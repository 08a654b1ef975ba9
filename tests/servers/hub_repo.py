"""A repository of the fake hub: revisions, commits, and files as git and LFS name them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["model", "dataset"]
# As the .gitattributes that the hub writes into every repository has them; token indices are as large as weights.
LFS_SUFFIXES = (".bin", ".idx", ".safetensors", ".pt", ".npy", ".gz", ".parquet", ".h5")
SAVED = "2023-06-01T12:00:00.000Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file at a commit.

    Attributes:
        oid: git's name of what git stores: the content, or the pointer to it.
        sha256: the content's, where LFS stores it.
    """

    path: str
    content: bytes
    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.oid}"'

    def entry(self) -> dict[str, Any]:
        """The file in a listing of a tree."""
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": len(self.content), "path": self.path}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": self.pointer_size}
        return entry

    def sibling(self, blobs: bool) -> dict[str, Any]:
        """The file in a repository's information; where `blobs` are asked for, with its size and hashes."""
        sibling: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            sibling |= {"size": len(self.content), "blobId": self.oid}
            if self.sha256 is not None:
                sibling["lfs"] = {
                    "sha256": self.sha256,
                    "size": len(self.content),
                    "pointerSize": self.pointer_size,
                }
        return sibling


@dataclass(slots=True, kw_only=True)
class HubRepo:
    """
    Attributes:
        name: owner/name.
        gated: False; "files", where anyone may list and only who was let in may download, as the hub has it; "all",
            where listing is refused too.
        branches, tags: name -> commit.
        commits: every commit there was -> its files by path. A branch that moves on leaves its old ones behind.
    """

    name: str
    kind: Kind = "model"
    gated: Literal[False, "files", "all"] = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)

    def put(self, revision: str, files: Mapping[str, bytes]) -> str:
        """Let a branch hold these files and nothing else. Returns its commit, which follows from names and content."""
        stored = {path: hub_file(path, content) for path, content in sorted(files.items())}
        named = "\n".join([self.kind, self.name, revision, *(f"{file.oid} {path}" for path, file in stored.items())])
        commit = hashlib.sha1(named.encode()).hexdigest()
        self.commits[commit] = stored
        self.branches[revision] = commit
        return commit

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own name stands for."""
        named = self.branches | self.tags | {f"refs/heads/{name}": commit for name, commit in self.branches.items()}
        return named.get(revision, revision if revision in self.commits else None)


def hub_file(path: str, content: bytes) -> HubFile:
    if not path.endswith(LFS_SUFFIXES):
        return HubFile(path=path, content=content, oid=git_oid(content))
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    return HubFile(path=path, content=content, oid=git_oid(pointer), sha256=sha256, pointer_size=len(pointer))


def git_oid(content: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree_entries(files: Mapping[str, HubFile], folder: str, recursive: bool) -> list[dict[str, Any]] | None:
    """What lies below a folder ("" for all), folders too, by path; None where there is no such folder."""
    below = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
    if folder and not below:
        return None
    found = {parent: _directory(parent, files) for path in below for parent in _parents(path, folder)}
    found |= {path: file.entry() for path, file in below.items()}
    depth = folder.count("/") + 1 if folder else 0
    return [entry for path, entry in sorted(found.items()) if recursive or path.count("/") == depth]


def _parents(path: str, folder: str) -> Iterator[str]:
    parts = path.split("/")
    for count in range(1, len(parts)):
        parent = "/".join(parts[:count])
        if len(parent) > len(folder):
            yield parent


def _directory(path: str, files: Mapping[str, HubFile]) -> dict[str, Any]:
    oids = "\n".join(file.oid for name, file in files.items() if name.startswith(f"{path}/"))
    return {"type": "directory", "oid": hashlib.sha1(oids.encode()).hexdigest(), "size": 0, "path": path}


def info(repo: HubRepo, commit: str, blobs: bool) -> dict[str, Any]:
    """A repository's information at a commit, as far as clients read it."""
    return {
        "id": repo.name,
        "author": repo.name.split("/")[0],
        "sha": commit,
        "private": False,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "createdAt": SAVED,
        "lastModified": SAVED,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [file.sibling(blobs) for file in repo.commits[commit].values()],
    } | ({"modelId": repo.name} if repo.kind == "model" else {})
