"""Repositories of the hub, and released runs of the catalog, as a `Published` run. Nothing large is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_index.errors import MissingFile, UnknownRun, Unreachable
from data_index.files import read_limited
from data_index.published.data import place_of_data, with_known_data, with_neox, with_olmo
from data_index.published.record import MAX_STAGED_BYTES, Progress, Published
from data_index.published.steps import list_steps, listed_steps
from data_index.registry import ReleasedRun, find_run
from data_index.remote import hub
from data_index.remote.files import files_of_repository

# Files of a repository that say how it was trained, or that text is read with.
_STAGED = re.compile(r"(tokenizer\.json|config\.json|(configs/)?[^/]+\.ya?ml)")


def released(source: str) -> ReleasedRun | None:
    """What the catalog knows of a run or repository of that name."""
    try:
        return find_run(source)
    except UnknownRun:
        return None


def gather(
    source: str,
    *,
    data: Path | str | None,
    settings: Mapping[str, Any],
    revisions: str | None,
    listing: Path | None,
    cache: Path,
    progress: Progress,
) -> Published:
    """Look at a repository of the hub: its revisions, its small files, its data.

    Args:
        source: ORG/NAME, or a run's name in the catalog.
        data: where the data are; None: where the catalog says, else in the repository itself.
        revisions: a regular expression with a group `step` for the revisions that are checkpoints.
        listing: an official list of further checkpoints, with all their states.
    Raises:
        UnknownRun: neither a repository's name nor in the catalog.
        MissingFile, AccessDenied, Unreachable, Offline, UnknownLayout, CorruptFile
    """
    wanted = source.removeprefix("hub:").removeprefix(f"{hub.endpoint()}/").removeprefix("https://huggingface.co/")
    release = released(wanted)
    repo_id = str(release.value("hub", "")) if release else wanted
    if not hub.is_repo_id(repo_id):
        raise _nowhere(source, release)
    progress(f"asking {hub.endpoint()} for the revisions of {repo_id}")
    try:
        named = hub.list_revisions(repo_id)
    except (MissingFile, Unreachable) as error:
        if release is not None or source.startswith("hub:"):
            raise
        raise type(error)(f"{error} (and {source} is no folder here)") from error
    rows = list_steps(repo_id, named, release, revisions)
    progress(
        f"{len(rows):,} of its {len(named):,} revisions are checkpoints: steps {rows[0]['step']}..{rows[-1]['step']}"
    )
    commit = named.get("main", rows[-1]["commit"])
    if listing is not None:
        rows = sorted(rows + listed_steps(listing, release), key=lambda row: row["step"])
    main = files_of_repository(repo_id, "model", cache, commit)
    staged = {
        path: read_limited(file, MAX_STAGED_BYTES) for path, file in main.files.items() if _STAGED.fullmatch(path)
    }
    published = Published(
        name=release.name if release else repo_id.partition("/")[2].lower(),
        origin=hub.repository_text("model", repo_id),
        layout=None,
        checkpoints=rows,
        staged=staged,
        settings={**({key: fact.value for key, fact in release.settings.items()} if release else {}), **settings},
        config_format=str(release.value("trainer", "hf")) if release else "hf",
        sequence_length=int(release.value("sequence_length", 1)) if release else 1,
    )
    if data is not None:
        found = place_of_data(data, cache) if isinstance(data, str) else data
        return with_neox(replace(published, data=found), asked=True)
    if release is not None and release.value("trainer") == "olmo":
        return with_olmo(published, release, cache, progress)
    return with_neox(with_known_data(published, release, main, cache, progress), asked=False)


def _nowhere(source: str, release: ReleasedRun | None) -> UnknownRun:
    if release is not None:
        places = ", ".join(map(str, release.value("checkpoints", []))) or "nowhere"
        return UnknownRun(
            f"the checkpoints of {release.name} are in no repository of the hub ({places}): download them, and add the "
            f"folder (what is known: forensics catalog {release.name})"
        )
    try:
        find_run(source)
    except UnknownRun as error:
        known = "no folder, no manifest (.toml), no repository of the hub (ORG/NAME)"
        return UnknownRun(f"{source} is {known}, and {error}")
    raise AssertionError
