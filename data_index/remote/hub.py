"""The Hugging Face hub: its environment, its shared cache, the revisions of a repository.

All of it goes through huggingface_hub; only stretches of files are read by `remote`. Settings are read when they are
needed, not when this is imported, so that HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE count as set.

Source: huggingface_hub 2.4.0, constants.py (the environment), file_download.py (addresses, the cache)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from data_index.errors import AccessDenied, CorruptFile, MissingFile, Offline, Unreachable
from data_index.files import disk_errors
from data_index.remote.connection import TRAFFIC, is_offline

RepoType = Literal["model", "dataset"]
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDERS: Mapping[RepoType, str] = {"model": "", "dataset": "datasets/"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository at a commit. `sha256` is stated for large files only."""

    path: str
    num_bytes: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """What a resolve address names."""

    repo_type: RepoType
    repo_id: str
    revision: str
    path: str


# --- the environment -------------------------------------------------------------------------------------------------


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """The cache that every tool of the hub shares."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{base}/huggingface").expanduser() / "hub"


def token() -> str | None:
    """The user's token, from HF_TOKEN or where `hf auth login` put it."""
    found = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not found:
        from huggingface_hub import get_token

        found = get_token()
    found = (found or "").strip()
    if not found.isascii():
        raise AccessDenied("HF_TOKEN holds characters that no token has: set it anew")
    return found or None


def headers_for(url: str) -> dict[str, str]:
    """The token goes to the hub alone."""
    if not url.startswith(f"{endpoint()}/"):
        return {}
    found = token()
    return {"Authorization": f"Bearer {found}"} if found else {}


# --- addresses -------------------------------------------------------------------------------------------------------


def is_repo_id(text: str) -> bool:
    return bool(_REPO_ID.fullmatch(text)) and ".." not in text


def is_commit(text: str) -> bool:
    return bool(_COMMIT.fullmatch(text))


def text_of(url: str) -> str:
    """How an address is kept: those of the hub without its endpoint, which may be another one next time."""
    prefix = f"{endpoint()}/"
    match = re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)(/.*)?", url.removeprefix(prefix))
    if not url.startswith(prefix) or match is None:
        return url
    return f"hub:{match[1] or ''}{match[2]}@{match[3]}{match[4] or ''}"


def url_of(text: str) -> str:
    """The address that `text_of` kept."""
    match = re.fullmatch(r"hub:(datasets/)?([^/@]+/[^/@]+)@([^/]+)(/.*)?", text)
    if match is None:
        return text
    return f"{endpoint()}/{match[1] or ''}{match[2]}/resolve/{match[3]}{match[4] or ''}"


def folder_url(repo_type: RepoType, repo_id: str, commit: str) -> str:
    """Where the files of a repository at a commit lie."""
    return f"{endpoint()}/{_FOLDERS[repo_type]}{repo_id}/resolve/{quote(commit, safe='')}"


def repository_text(repo_type: RepoType, repo_id: str) -> str:
    """A repository as people write it here."""
    return f"hub:{_FOLDERS[repo_type]}{repo_id}"


@lru_cache(maxsize=65536)
def _address(url: str, base: str) -> Address | None:
    if not url.startswith(f"{base}/"):
        return None
    path = urlsplit(url[len(base) + 1 :]).path
    match = re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    if match is None:
        return None
    repo_type: RepoType = "dataset" if match[1] else "model"
    return Address(repo_type, match[2], unquote(match[3]), unquote(match[4]))


def address_of(url: str) -> Address | None:
    """What an address of the hub names; None for any other."""
    return _address(url, endpoint())


# --- asking ----------------------------------------------------------------------------------------------------------


@contextmanager
def asking(what: str) -> Iterator[Any]:
    """The library's errors as ours; a call counts as one request."""
    if is_offline():
        raise Offline(f"{what} cannot be asked for: HF_HUB_OFFLINE is set; unset it to fetch what is missing")
    from huggingface_hub import HfApi, errors

    TRAFFIC.add(requests=1)
    try:
        yield HfApi(endpoint=endpoint(), token=token() or False)
    except errors.GatedRepoError as error:
        raise AccessDenied(
            f"{what} is gated: accept its terms on its page, and give a token with HF_TOKEN or hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFile(
            f"{what} is not on {endpoint()}, or is private: check its name (organisation/name), and give a token with "
            "HF_TOKEN or hf auth login if it is private"
        ) from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise MissingFile(f"{what} is not on {endpoint()}: {_first_line(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise Offline(f"{what} cannot be asked for: HF_HUB_OFFLINE is set") from error
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # a file or folder here
            with disk_errors(Path(error.filename)):
                raise
        raise Unreachable(f"{what}: {endpoint()} gave no answer ({_first_line(error)})") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise Unreachable(f"{what}: {endpoint()} gave no answer ({_first_line(error)})") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
            raise
        raise Unreachable(f"{what}: {endpoint()} gave no answer ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def list_revisions(repo_id: str, repo_type: RepoType = "model") -> dict[str, str]:
    """Branches and tags of a repository with the commit that each names now.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    with asking(f"the list of revisions of {repo_id}") as api:
        refs = api.list_repo_refs(repo_id, repo_type=repo_type)
    found = {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}
    # It becomes part of addresses and of paths.
    wrong = next((name for name, commit in found.items() if not re.fullmatch(r"[0-9A-Za-z]{4,64}", str(commit))), None)
    if wrong is not None:
        raise CorruptFile(f"{endpoint()} names {found[wrong]!r} as the commit of {wrong} of {repo_id}")
    return found


def list_files(repo_id: str, commit: str, repo_type: RepoType = "model") -> list[HubFile]:
    """Files of a repository at a commit, with size and, for large ones, the hash that the hub states.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    from huggingface_hub.hf_api import RepoFile

    with asking(f"the list of files of {repo_id} at {commit[:12]}") as api:
        found = list(api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type))
    return [
        HubFile(path=f.path, num_bytes=f.size, sha256=f.lfs.sha256 if f.lfs else None, blob=f.blob_id)
        for f in found
        if isinstance(f, RepoFile)
    ]
