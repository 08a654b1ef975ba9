"""What the steps of a published run read: data and settings, as far as servers, the catalog and the user say.

Two trainers' data are read from servers: GPT-NeoX's (.bin and .idx) and OLMo's (headerless arrays at addresses that its
config lists).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from data_index.errors import CorruptFile, MissingFile, UnknownLayout, Unreachable
from data_index.files import read_limited
from data_index.plain_yaml import parse_yaml
from data_index.published.record import MAX_STAGED_BYTES, Progress, Published
from data_index.registry import ReleasedRun
from data_index.remote import hub
from data_index.remote.files import Data, RemoteFiles, files_of_repository, parse_hub_place, with_sizes
from data_index.remote.path import RemotePath
from data_index.sources.folder import lookup


def place_of_data(text: str, cache: Path) -> Data:
    """`hub:datasets/ORG/NAME[@REVISION]`, `hub:ORG/NAME`, or a folder.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, UnknownLayout
    """
    place = parse_hub_place(text)
    if place is not None:
        return files_of_repository(place[1], place[0], cache, place[2])
    if not Path(text).is_dir():
        raise MissingFile(f"{text}, given as --data, is neither a folder nor a repository (hub:datasets/ORG/NAME)")
    return Path(text)


def with_known_data(
    published: Published, release: ReleasedRun | None, main: RemoteFiles, cache: Path, progress: Progress
) -> Published:
    """Data where the catalog says, else in the repository itself."""
    for text in release.value("data", []) if release else []:
        if place := parse_hub_place(str(text)):
            progress(f"asking {hub.endpoint()} for the files of {text}")
            try:
                return replace(published, data=files_of_repository(place[1], place[0], cache, place[2]))
            except (MissingFile, Unreachable) as error:
                return replace(published, missing=f"where its data were, {error}")
    if prefixes_of(main):
        return replace(published, data=main)
    needs = release.value("order_needs") if release else None
    known = f"no data of it are read from servers; its order takes {needs}" if needs else "its data are not known"
    return replace(published, missing=f"{known}: say where they are with --data")


def prefixes_of(data: Data) -> list[str]:
    """Prefixes of the Megatron data sets that are there."""
    if isinstance(data, RemoteFiles):
        return sorted(path.removesuffix(".idx") for path in data.files if path.endswith(".idx"))
    return sorted(str(path.with_suffix("")) for path in data.rglob("*.idx")) if data is not None else []


def with_neox(published: Published, *, asked: bool) -> Published:
    """GPT-NeoX's rules give the order where the data are in its format and what it was told is known.

    Args:
        asked: the user said where the data are; then what is missing is an error, not a run without an order.
    Raises:
        UnknownLayout: the data are in no format that is read from servers, or it is not said which of several counts.
        CorruptFile: the trainer was told something that is not known.
    """
    if published.data is None:
        return published
    prefixes, settings = prefixes_of(published.data), dict(published.settings)
    staged = dict(published.staged)
    if isinstance(published.data, Path):
        staged |= {path.name: read_limited(path, MAX_STAGED_BYTES) for path in published.data.glob("*.y*ml")}
    told = {name.replace("-", "_") for name in settings} | _keys_of_configs(staged)
    if not {"data_path", "train_data_paths"} & told and len(prefixes) == 1:
        settings["data_path"] = prefixes[0]
        told.add("data_path")
    absent = [name for name in NEOX_NEEDS if not set(name.split("|")) & told]
    if prefixes and not absent:
        return replace(published, layout="neox", config_format="neox", settings=settings, staged=staged)
    why = "its data hold no .idx, and GPT-NeoX's format is the one that is read from a repository"
    if prefixes:
        names = [name.partition("|")[0] for name in absent]
        why = f"what the trainer was told is not known: give it with {' '.join(f'--set {name}=…' for name in names)}"
    if asked:
        raise (CorruptFile if prefixes else UnknownLayout)(f"{published.origin}: {why}")
    return replace(published, data=None, missing=why)


# What an order follows from, where a configuration may say it in one of several ways.
NEOX_NEEDS = ("data_path|train_data_paths", "seq_length", "train_iters", "train_batch_size|global_num_gpus")


def _keys_of_configs(staged: Mapping[str, bytes]) -> set[str]:
    found: set[str] = set()
    for name, content in staged.items():
        if name.endswith((".yml", ".yaml")):
            found |= {str(key).replace("-", "_") for key in parse_yaml(content, name)}
    return found


def with_olmo(published: Published, release: ReleasedRun, cache: Path, progress: Progress) -> Published:
    """The config of a listed checkpoint names the token files; their sizes are asked of the servers.

    Raises:
        CorruptFile, UnsafeFile
    """
    listed = next((str(place) for place in release.value("checkpoints", []) if "<N>" in str(place)), None)
    if listed is None:
        return replace(published, missing="the address of no checkpoint with its config is known")
    folder = RemotePath(listed.replace("<N>", "0").rstrip("/"), cache)
    try:
        staged = {f"{folder.name}/config.yaml": read_limited(folder / "config.yaml", MAX_STAGED_BYTES)}
        with contextlib.suppress(MissingFile):  # the loader's position, which is the start at checkpoint 0
            staged[f"{folder.name}/train.pt"] = read_limited(folder / "train.pt", MAX_STAGED_BYTES)
        config = parse_yaml(staged[f"{folder.name}/config.yaml"], str(folder / "config.yaml"))
        listed = lookup(config, "data.paths")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        if odd := next((name for name in names if not name.startswith(("https://", "http://"))), None):
            return replace(published, missing=f"its config names token files that are not on the web, such as {odd}")
        progress(f"asking for the sizes of {len(set(names)):,} token files")
        files = with_sizes({name: RemotePath(name, cache) for name in names}, progress=_counted(progress))
    except MissingFile as error:  # gone, which trying again does not mend
        return replace(published, missing=f"where its config and data were, {error}")
    except Unreachable as error:
        return replace(published, missing=f"{error} (try again: forensics remove {published.name} --yes, and add it)")
    data = RemoteFiles(origin=f"the token files of {folder}/config.yaml", files=files)
    return replace(published, layout="olmo", config_format="olmo", data=data, staged={**published.staged, **staged})


def _counted(progress: Progress) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            progress(f"{done:,} of {total:,} sizes are known")

    return tell
