"""A hub on loopback that the real `huggingface_hub` client takes for the Hugging Face hub (HF_ENDPOINT, `endpoint=`).

Spoken: refs, tree, repository information, auth-check, resolve. Large files are redirected to a second server under
another origin, as the hub redirects to its CDN, so that a test can see which headers go there. Nothing of Xet is
spoken, so that the client downloads over HTTP. Nothing can be uploaded.

Source: huggingface_hub 2.4.0, hf_api.py, file_download.py, utils/_http.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Self
from urllib.parse import quote, unquote, urlencode

from tests.servers.exchange import Answer, Asked, Resource, resource_of
from tests.servers.hub_repo import SAVED, HubFile, HubRepo, Kind, info, tree_entries
from tests.servers.loopback import LoopbackServer
from tests.servers.range_server import RangeServer

TOKEN = "hf_loopback_token_of_someone_let_in"


class Refused(Exception):
    """An answer that ends a request wherever it has got to."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class FakeHub(LoopbackServer):
    """
    Attributes:
        cdn: the server that large files are redirected to, at /SHA256 of their content; faults of a body go there.
        token: who sends it may download what is gated; who sends another is known, and not let in.
        page_size: entries of one page of a tree.
        redirect_large: to the CDN; else they come from the hub itself.
        redirect_small: to another path of the hub, relative, as the hub does with what git stores.
    """

    def __init__(
        self, *, page_size: int = 1000, redirect_large: bool = True, redirect_small: bool = False, token: str = TOKEN
    ) -> None:
        super().__init__()
        self.cdn = RangeServer()
        self.token = token
        self.page_size = page_size
        self.redirect_large = redirect_large
        self.redirect_small = redirect_small
        self._repos: dict[tuple[str, str], HubRepo] = {}

    def __enter__(self) -> Self:
        self.cdn.__enter__()
        return super().__enter__()

    def __exit__(self, kind: object, *rest: object) -> None:
        self.cdn.__exit__(kind, *rest)
        super().__exit__(kind, *rest)

    # --- for tests ---------------------------------------------------------------------------------------------------

    def add_repo(
        self,
        name: str,
        revisions: Mapping[str, Mapping[str, bytes]],
        *,
        kind: Kind = "model",
        gated: Literal[False, "files", "all"] = False,
    ) -> HubRepo:
        """A repository owner/name; `revisions` is branch -> path -> content. More of them: `put` of what it returns."""
        repo = self._repos[kind, name] = HubRepo(name=name, kind=kind, gated=gated)
        for revision, files in revisions.items():
            repo.put(revision, files)
        return repo

    def repo(self, name: str, kind: Kind = "model") -> HubRepo:
        return self._repos[kind, name]

    def file(self, name: str, revision: str, path: str, kind: Kind = "model") -> HubFile:
        repo = self.repo(name, kind)
        commit = repo.commit_of(revision)
        assert commit is not None, f"{name} has no revision {revision}"
        return repo.commits[commit][path]

    def resolve_path(self, name: str, revision: str, path: str, kind: Kind = "model") -> str:
        """Where a file is asked for: the path to plant faults at, and to look for in the log."""
        return f"/{'datasets/' if kind == 'dataset' else ''}{name}/resolve/{revision}/{path}"

    def cdn_path(self, name: str, revision: str, path: str, kind: Kind = "model") -> str:
        """Where a large file's bytes are, on `cdn`."""
        return f"/{self.file(name, revision, path, kind).sha256}"

    # --- what it answers ---------------------------------------------------------------------------------------------

    def find(self, asked: Asked) -> Resource | Answer:
        parts = [unquote(part) for part in asked.raw_path.strip("/").split("/")]
        try:
            match parts:
                case ["api", "agent-harnesses"]:  # asked once by every client that says what it runs under
                    return _json({"standardEnvVars": [], "harnesses": {}})
                case ["api", "resolve-cache", "models" | "datasets" as kinds, owner, name, commit, *path]:
                    return self._resolve(asked, _kind(kinds), f"{owner}/{name}", commit, "/".join(path), cached=True)
                case ["api", "models" | "datasets" as kinds, owner, name, *rest]:
                    return self._api(asked, self._repo(asked, _kind(kinds), f"{owner}/{name}"), rest)
                case ["datasets", owner, name, "resolve", revision, *path]:
                    return self._resolve(asked, "dataset", f"{owner}/{name}", revision, "/".join(path))
                case [owner, name, "resolve", revision, *path]:
                    return self._resolve(asked, "model", f"{owner}/{name}", revision, "/".join(path))
        except Refused as refused:
            return refused.answer
        return _error(404, None, "Sorry, we can't find the page you are looking for.")

    def _api(self, asked: Asked, repo: HubRepo, rest: list[str]) -> Resource:
        if repo.gated == "all" or rest == ["auth-check"]:
            self._require_access(asked, repo)
        match rest:
            case ["auth-check"]:
                return _json({})
            case ["refs"]:
                return _json(_refs(repo))
            case []:
                return _json(info(repo, _commit(repo, "main"), "blobs" in asked.query))
            case ["revision", revision]:
                return _json(info(repo, _commit(repo, revision), "blobs" in asked.query))
            case ["tree", revision, *path]:
                return self._tree(asked, repo, _commit(repo, revision), "/".join(path))
        _refuse(404, None, f"{asked.path} is no route")

    def _tree(self, asked: Asked, repo: HubRepo, commit: str, folder: str) -> Resource:
        """One page of a listing; the next one's address is in the header Link."""
        recursive, expand = (asked.query.get(name, "").lower() in ("true", "1") for name in ("recursive", "expand"))
        entries = tree_entries(repo.commits[commit], folder, recursive)
        if entries is None:
            _refuse(404, "EntryNotFound", f"{folder} does not exist on {commit}", commit)
        start = int(asked.query.get("cursor", "0"))
        page = entries[start : start + self.page_size]
        if expand:
            page = [{**entry, "lastCommit": {"id": commit, "title": "Upload", "date": SAVED}} for entry in page]
        if start + self.page_size >= len(entries):
            return _json(page)
        query = urlencode({**asked.query, "cursor": str(start + self.page_size)})
        return _json(page, Link=f'<{self.address}{asked.raw_path}?{query}>; rel="next"')

    def _resolve(
        self, asked: Asked, kind: Kind, name: str, revision: str, path: str, cached: bool = False
    ) -> Resource | Answer:
        repo = self._repo(asked, kind, name)
        if repo.gated:
            self._require_access(asked, repo)
        commit = _commit(repo, revision)
        file = repo.commits[commit].get(path)
        if file is None:
            _refuse(404, "EntryNotFound", "Entry not found", commit)
        headers = {"X-Repo-Commit": commit}
        if file.sha256 is not None:
            headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(len(file.content))}
            if self.redirect_large:
                self.cdn.files[f"/{file.sha256}"] = file.content
                headers["Location"] = f"{self.cdn.address}/{file.sha256}?Expires=4102444800&Signature=loopback"
                return Answer(status=302, headers=headers, body=b"Found")
        elif self.redirect_small and not cached:
            headers["Location"] = f"/api/resolve-cache/{kind}s/{name}/{commit}/{quote(path)}"
            return Answer(status=307, headers=headers, body=b"Temporary Redirect")
        return Resource(content=file.content, etag=file.etag, headers=headers)

    def _repo(self, asked: Asked, kind: Kind, name: str) -> HubRepo:
        """A repository that is not there looks to a stranger like one that may not be seen."""
        repo = self._repos.get((kind, name))
        if repo is None:
            _refuse(404 if "authorization" in asked.headers else 401, "RepoNotFound", "Repository not found")
        return repo

    def _require_access(self, asked: Asked, repo: HubRepo) -> None:
        sent = asked.headers.get("authorization")
        if sent is None:
            _refuse(401, "GatedRepo", f"Access to {repo.kind} {repo.name} is restricted. Please log in.")
        if sent != f"Bearer {self.token}":
            _refuse(403, "GatedRepo", f"Access to {repo.kind} {repo.name} is restricted: you are not on the list.")


def _kind(kinds: str) -> Kind:
    return "dataset" if kinds == "datasets" else "model"


def _commit(repo: HubRepo, revision: str) -> str:
    commit = repo.commit_of(revision)
    if commit is None:
        _refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _refs(repo: HubRepo) -> dict[str, Any]:
    def listed(kind: str, commits: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit} for n, commit in commits.items()]

    return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}


def _json(content: Any, **headers: str) -> Resource:
    return resource_of(json.dumps(content).encode(), Content_Type="application/json; charset=utf-8", **headers)


def _error(status: int, code: str | None, message: str, commit: str | None = None) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8", "X-Error-Message": message}
    headers |= {"X-Error-Code": code} if code else {}
    headers |= {"X-Repo-Commit": commit} if commit else {}
    return Answer(status=status, headers=headers, body=json.dumps({"error": message}).encode())


def _refuse(status: int, code: str | None, message: str, commit: str | None = None) -> NoReturn:
    raise Refused(_error(status, code, message, commit))
