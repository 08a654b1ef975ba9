"""Where embedding matrices and a tokenizer come from: a checkpoint of a run, a folder, a file, the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, MissingCheckpoint, MissingFile, UnknownLayout, UnknownRun, Unreachable
from data_index.files import read_json_object, read_limited
from data_index.gguf_file import read_gguf
from data_index.gguf_tokenizer import tokenizer_of_gguf
from data_index.text import load_tokenizer, plain
from data_index.workspace import Workspace

if TYPE_CHECKING:
    from data_index.remote.path import Place, RemotePath
    from data_index.run import Run
    from replay.embedding_weights import StoredEmbeddings

MAX_TOKENIZER_BYTES = 256 * 2**20
_ROLES = re.compile(r"(bos|eos|pad|unk|sep|mask|cls)_token|additional_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSource:
    """A model that is still where it lies.

    Attributes:
        label: what it is called in answers.
        run, step: of a run's checkpoint; else None.
        special_ids: tokens with a role, as far as the files say.
        place: where its weights lie.
    """

    label: str
    run: str | None
    step: int | None
    embeddings: StoredEmbeddings
    tokenizer: Any
    special_ids: frozenset[int]
    place: Place
    messages: tuple[str, ...] = ()


def token_source(
    name: str, workspace: Workspace, *, checkpoint: int | None = None, tokenizer: Path | None = None
) -> TokenSource:
    """
    Args:
        name: a run or fork, `RUN@STEP`; a folder or file; `owner/name[@revision][/FILE]` of the hub; a web address.
        checkpoint: of a run; default: its last one that is there.
        tokenizer: a tokenizer.json, where none lies beside the weights.
    Raises:
        UnknownRun, MissingCheckpoint, MissingFile, MissingState, CorruptFile, UnsafeFile, UnknownLayout
        UnsupportedRecipe, AccessDenied, Unreachable, Offline
    """
    plain, at, step = name.rpartition("@")
    if at and step.isdigit() and plain in {*workspace.run_names(), *workspace.fork_ids()}:
        return _of_run(plain, workspace, int(step), tokenizer)
    if name in {*workspace.run_names(), *workspace.fork_ids()}:
        return _of_run(name, workspace, checkpoint, tokenizer)
    if checkpoint is not None:
        workspace.home(name)  # says which runs there are
    if Path(name).exists():
        return _of_place(Path(name), name, tokenizer)
    if (place := _on_server(name, workspace)) is not None:
        return _of_place(place, name, tokenizer)
    raise UnknownRun(
        f"{name[:200]!r} is no run or fork of {workspace.folder} (list all: forensics runs), no file or folder that is "
        "there, and no owner/name of the hub"
    )


def _of_run(name: str, workspace: Workspace, step: int | None, tokenizer: Path | None) -> TokenSource:
    from replay.embedding_weights import embeddings_of_checkpoint

    run: Run = workspace.run(name)
    if step is None:
        there = [c for c in workspace.checkpoints(run) if "weights" in c.states and c.is_available() is not False]
        if not there:
            raise MissingCheckpoint(f"{name} has no checkpoint with weights (list all: forensics checkpoints {name})")
        step = max(checkpoint.step for checkpoint in there)
    checkpoint = workspace.checkpoint(run, step)
    loaded = _from_file(tokenizer) if tokenizer else load_tokenizer(run)
    return TokenSource(
        label=f"{name}@{step}",
        run=name,
        step=step,
        embeddings=embeddings_of_checkpoint(checkpoint),
        tokenizer=loaded,
        special_ids=frozenset(_ids_of_roles(tokenizer.parent if tokenizer else checkpoint.location, loaded)),
        place=checkpoint.location,
    )


def _of_place(place: Place, label: str, tokenizer: Path | None) -> TokenSource:
    from replay.embedding_weights import embeddings_of_place

    if isinstance(place, Path) and place.is_dir() and not (place / "config.json").is_file():
        files = sorted(place.glob("*.gguf"))
        place = files[0] if len(files) == 1 else place
    elif not isinstance(place, Path):
        place = _gguf_of(place, label) or place
    embeddings = embeddings_of_place(place)
    folder = place.parent if place.suffix in (".gguf", ".safetensors", ".pt", ".pth", ".bin") else place
    messages: tuple[str, ...] = ()
    if tokenizer is None and not (folder / "tokenizer.json").is_file() and place.suffix == ".gguf":
        made = tokenizer_of_gguf(read_gguf(place).metadata, place)
        loaded, roles = made.tokenizer, made.special_ids
        messages = (made.message,) if made.message else ()
    else:
        if tokenizer is None and not (folder / "tokenizer.json").is_file():
            raise MissingFile(f"{folder} holds no tokenizer.json: name one with --tokenizer FILE")
        loaded = _from_file(tokenizer or folder / "tokenizer.json")
        roles = frozenset(_ids_of_roles(tokenizer.parent if tokenizer else folder, loaded))
    return TokenSource(
        label=label,
        run=None,
        step=None,
        embeddings=embeddings,
        tokenizer=loaded,
        special_ids=roles,
        place=place,
        messages=messages,
    )


def _on_server(name: str, workspace: Workspace) -> Place | None:
    """A file or folder of the hub, at the commit that its revision names now, or at a web address; None: neither."""
    from data_index.remote import hub
    from data_index.remote.path import RemotePath

    wanted = name.removeprefix("hub:").removeprefix(f"{hub.endpoint()}/").removeprefix("https://huggingface.co/")
    if wanted.startswith(("https://", "http://")):
        return RemotePath(wanted.rstrip("/"), workspace.cache)
    repository, at, rest = wanted.partition("@")
    if not at:
        repository, rest = "/".join(wanted.split("/")[:2]), "/".join(["main", *wanted.split("/")[2:]])
    if not hub.is_repo_id(repository) or {"", ".", ".."} & set(rest.rstrip("/").split("/")[1:]):
        return None
    try:
        commit, path = _commit_and_path(repository, rest.rstrip("/") or "main")
    except (MissingFile, Unreachable) as error:
        raise type(error)(f"{error} (and {name} is no file or folder here)") from error
    folder = RemotePath(hub.folder_url("model", repository, commit), workspace.cache)
    return folder / path if path else folder


def _commit_and_path(repository: str, text: str) -> tuple[str, str]:
    """What `REVISION[/PATH]` names in a repository; a revision may hold slashes itself."""
    from data_index.remote import hub

    first, _, path = text.partition("/")
    if hub.is_commit(first):
        return first, path
    revisions = hub.list_revisions(repository)
    fitting = [one for one in revisions if f"{text}/".startswith(f"{one}/")]
    if not fitting:
        raise MissingCheckpoint(f"{repository} has no revision {text!r}; there are {', '.join([*revisions][:5])}")
    revision = max(fitting, key=len)
    return revisions[revision], text[len(revision) + 1 :]


def _gguf_of(folder: RemotePath, name: str) -> RemotePath | None:
    """The GGUF file of a repository that holds no other weights; None where it does, or cannot be listed.

    Raises:
        UnknownLayout: it holds several.
    """
    from data_index.olmo_checkpoint import HUGGING_FACE
    from data_index.remote import hub, hub_files

    address = hub.address_of(f"{folder.url}/.")
    if folder.suffix == ".gguf" or address is None:
        return None
    below = address.path.removesuffix(".")
    names = {
        path.removeprefix(below) for path in hub_files.files_at(folder.url, folder.cache) if path.startswith(below)
    }
    found = sorted(one for one in names if one.endswith(".gguf") and "/" not in one)
    if not found or names & set(HUGGING_FACE):
        return None
    if len(found) > 1:
        raise UnknownLayout(f"{name} holds {len(found)} GGUF files: name one of them, such as {name}/{found[0]}")
    return folder / found[0]


def _from_file(path: Place) -> Any:
    from tokenizers import Tokenizer

    content = read_limited(path, MAX_TOKENIZER_BYTES)
    try:
        return plain(Tokenizer.from_str(content.decode()))
    except Exception as error:  # the library raises bare Exception
        raise CorruptFile(f"{path} is not a tokenizer: {error}") from error


def _ids_of_roles(folder: Place, tokenizer: Any) -> Iterator[int]:
    """Ids of tokens with a role, as the files beside a tokenizer name them."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if not path.is_file():
            continue
        for role, value in read_json_object(path).items():
            if not _ROLES.fullmatch(role):
                continue
            for one in value if isinstance(value, list) else [value]:
                text = one.get("content") if isinstance(one, dict) else one
                token = tokenizer.token_to_id(text) if isinstance(text, str) else None
                if token is not None:
                    yield token
