"""Checkpoints that are revisions of a repository: which revision holds which step, and what is known of it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_index.errors import MissingFile, UnknownLayout
from data_index.listing_checks import mistakes
from data_index.listings import ListedRow, Mistake, read_listing
from data_index.registry import ReleasedRun, issues_of, released_runs
from data_index.remote import hub

# How steps are named where neither the catalog nor the user says.
COMMON_REVISIONS = (
    r"^step(?P<step>\d+)$",
    r"^(?:global_)?step[-_]?(?P<step>\d+)$",
    r"^checkpoint-(?P<step>\d+)$",
    r"^stage1-step(?P<step>\d+)(?:-tokens\d+B)?$",
    r"^step(?P<step>\d+)-tokens\d+B$",
    r"^(?:iter|ckpt)_(?P<step>\d+)$",
)


def list_steps(
    repo_id: str, named: Mapping[str, str], release: ReleasedRun | None, pattern: str | None
) -> list[dict[str, Any]]:
    """A row of `checkpoints` for every revision of a repository that is named after a step, in step order.

    Args:
        named: the revisions with their commits.
    Raises:
        MissingFile, UnknownLayout
    """
    steps = steps_of_revisions(repo_id, named, pattern, release)
    if not steps:
        raise MissingFile(f"{repo_id} has no revision as those of {release.name if release else 'a run'} are named")
    return [_checkpoint_row(repo_id, release, step, name, named[name]) for step, name in sorted(steps.items())]


def steps_of_revisions(
    repo_id: str, named: Mapping[str, str], pattern: str | None, release: ReleasedRun | None
) -> dict[int, str]:
    """Step -> revision, by the pattern that is given, the catalog's, or the common one that fits most revisions.

    Raises:
        UnknownLayout: the pattern is none, or fits no revision.
    """
    if pattern is not None:
        return _matching(repo_id, named, _compiled(pattern))
    if release is not None and "hub_revision" in release.facts:
        steps = {release.step_of_revision(name): name for name in sorted(named, reverse=True)}
        return {step: name for step, name in steps.items() if step is not None}
    families = {str(run.value("hub_revision")) for run in released_runs() if "hub_revision" in run.facts}
    candidates = [re.compile(text) for text in (*COMMON_REVISIONS, *sorted(families))]
    return _matching(repo_id, named, max(candidates, key=lambda one: sum(bool(one.search(name)) for name in named)))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UnknownLayout(f"{pattern!r} is no regular expression: {error}") from error
    if "step" not in compiled.groupindex:
        raise UnknownLayout(f"{pattern!r} has no group for the step: ^checkpoint-(?P<step>[0-9]+)$ has one")
    return compiled


def _matching(repo_id: str, named: Mapping[str, str], pattern: re.Pattern[str]) -> dict[int, str]:
    found: dict[str, int] = {}
    for name in named:
        match = pattern.search(name)
        text = match["step"] if match else None
        if text is not None and text.isdecimal() and len(text) <= 18:
            found[name] = int(text)
    if not found:
        some = ", ".join(sorted(named)[:6]) or "none"
        raise UnknownLayout(
            f"no revision of {repo_id} is named after a step; it has {some}. Say how they are named with "
            "--revisions '^checkpoint-(?P<step>[0-9]+)$'"
        )
    steps: dict[int, str] = {}
    for name in sorted(found):
        other = steps.setdefault(found[name], name)
        if other != name:
            like = re.escape(other).replace(str(found[name]), "(?P<step>[0-9]+)")
            raise UnknownLayout(
                f"{repo_id} has two revisions for step {found[name]}, {other} and {name}, which are of two runs: say "
                f"which are meant with --revisions '^{like}$'"
            )
    return steps


def _checkpoint_row(repo_id: str, release: ReleasedRun | None, step: int, revision: str, commit: str) -> dict[str, Any]:
    per_step = release.value("tokens_per_step") if release else None
    return {
        "step": step,
        "tokens": step * int(per_step) if per_step else None,
        "location": hub.text_of(hub.folder_url("model", repo_id, commit)),
        "layout": "hf",
        "states": ["weights"],
        "issues": known_issues(release, step),
        "revision": revision,
        "commit": commit,
        "available": True,
        "checked_at": now(),
    }


def listed_steps(path: Path, release: ReleasedRun | None) -> list[dict[str, Any]]:
    """A row of `checkpoints` for every step of an official list; its mistakes are noted in the rows they are in.

    Args:
        release: whose rows are wanted, where the list has those of several stages or ingredients.
    Raises:
        MissingFile, CorruptFile, UnsafeFile
        UnknownLayout: the list is of no checkpoints, or not of this run's.
    """
    listing = read_listing(path)
    group = str(release.value("listing_group", "")) if release else next(iter(listing.groups))
    if listing.shape == "provenance" or group not in listing.groups or (release is None and len(listing.groups) > 1):
        raise UnknownLayout(
            f"{path} lists {', '.join(listing.groups) or 'one run'}"
            f"{f', and {release.name} is {group!r} of a list' if release else ': say of which run by its catalog name'}"
        )
    wrong = {line: mistake for mistake in mistakes(listing) for line in mistake.lines}
    found: dict[int, dict[str, Any]] = {}
    for row in listing.groups[group]:
        if row.step is not None:
            found.setdefault(row.step, _listed_row(row, release, wrong.get(row.line), listing.name))
    return [found[step] for step in sorted(found)]


def _listed_row(row: ListedRow, release: ReleasedRun | None, wrong: Mistake | None, source: str) -> dict[str, Any]:
    step = row.step or 0
    legacy = "-unsharded" in row.address and (release is None or release.value("trainer") != "olmo_core")
    per_step = release.value("tokens_per_step") if release else None
    noted = [f"{wrong.kind}: {wrong.text} ({source} line {row.line})"] if wrong else []
    return {
        "step": step,
        "tokens": step * int(per_step) if per_step else None,
        "location": row.address.rstrip("/"),
        "layout": "olmo" if legacy else "olmo_core",
        "states": ["weights"] if "nooptim" in row.address else ["weights", "optimizer", "trainer"],
        "issues": known_issues(release, step) + noted,
        "revision": None,
        "commit": None,
        "available": None,
        "checked_at": None,
    }


def known_issues(release: ReleasedRun | None, step: int) -> list[str]:
    """What the catalog says about a checkpoint in particular, each with its source."""
    return [f"{issue.kind}: {issue.text} ({issue.source})" for issue in issues_of(release, step)] if release else []


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
