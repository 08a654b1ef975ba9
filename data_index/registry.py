"""The catalog of released runs, offline: what is published of each, what is missing, what is known to be wrong.

Facts live in `catalog/<family>.toml`, each with its source. A run's name there is what `forensics add` takes. Two
facts are judgements, made from the others:

    order    the best trust that the order of its data can reach: exact, derived, chunk, unknown (as in a run's trust)
    replay   exact: the published states and the trainer's rule define the step, though other kernels, versions and
             machines may move its last bits; approximate: something that defines the step has to be made up for, say
             an optimizer state that was never published; refused: the data or the rule are not to be had

`order_needs` and `replay_needs` say what it takes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from importlib import resources

from data_index.catalog_file import Fact, Family, KnownIssue, PublishedEvent, ReleasedRun, parse_family
from data_index.errors import CorruptFile, UnknownRun

__all__ = [
    "Fact",
    "Family",
    "KnownIssue",
    "PublishedEvent",
    "ReleasedRun",
    "catalog",
    "events_of",
    "families",
    "find_family",
    "find_run",
    "issues_of",
    "released_runs",
]


@cache
def families() -> tuple[Family, ...]:
    """All families, by name."""
    files = [file for file in (resources.files("data_index") / "catalog").iterdir() if file.name.endswith(".toml")]
    found = [parse_family(file.read_text(), file.name) for file in sorted(files, key=lambda file: file.name)]
    seen: set[str] = set()
    for name in [name for family in found for name in (family.name, *(run.name for run in family.runs))]:
        if name in seen:
            raise CorruptFile(f"the catalog has two runs or families called {name}")
        seen.add(name)
    return tuple(found)


def catalog(name: str | None = None) -> tuple[Family, ...] | Family | ReleasedRun:
    """All families; the family of a name; or the run of a name or hub repository.

    Raises:
        UnknownRun: with the nearest names.
    """
    if name is None:
        return families()
    try:
        return find_family(name)
    except UnknownRun:
        return find_run(name)


def released_runs() -> Iterator[ReleasedRun]:
    return (run for family in families() for run in family.runs)


def find_family(name: str) -> Family:
    """
    Raises:
        UnknownRun
    """
    for family in families():
        if family.name == name.lower():
            return family
    raise _unknown(name)


def find_run(name: str) -> ReleasedRun:
    """A run by its name or by its hub repository; where stages share a repository, the first stage.

    Raises:
        UnknownRun: with the nearest names.
    """
    wanted = name.lower()
    for run in released_runs():
        if wanted in (run.name, str(run.value("hub", run.name)).lower()):
            return run
    raise _unknown(name)


def _unknown(name: str) -> UnknownRun:
    names = [family.name for family in families()]
    for run in released_runs():
        names += [run.name, str(run.value("hub", run.name))]
    lowered = {known.lower(): known for known in names}
    near = [lowered[key] for key in difflib.get_close_matches(name.lower()[:100], lowered, n=3)]
    nearest = f"the nearest: {', '.join(near)}; list" if near else "list"
    return UnknownRun(f"the catalog knows no released run or family {name[:100]!r} ({nearest} all: forensics catalog)")


def issues_of(run: ReleasedRun | str, step: int | None = None) -> list[KnownIssue]:
    """What is known to be wrong with a run; with `step`, only what is about that checkpoint in particular.

    Raises:
        UnknownRun
    """
    released = find_run(run) if isinstance(run, str) else run
    concerning = [issue for issue in find_family(released.family).issues if issue.concerns(released.name)]
    return [issue for issue in concerning if step is None or issue.concerns_step(step)]


def events_of(run: ReleasedRun) -> list[PublishedEvent]:
    return [event for event in find_family(run.family).events if event.concerns(run.name)]
