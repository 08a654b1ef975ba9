"""A family's file in the catalog: its records, and the reader that lets no fact through without a source."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from data_index.errors import CorruptFile

ISSUE_KINDS = {
    "other_weights": "checkpoints that serve the weights of another step",
    "equal_weights": "checkpoints that serve the same weights and should not",
    "expected_equal": "checkpoints that serve the same weights and should",
    "shared_checkpoints": "checkpoints that another run's list has too",
    "different_init": "initialized otherwise than the family, or than its own checkpoint 0",
    "mislabelled_listing": "the official list is of another run, or calls its rows what they are not",
    "duplicate_rows": "the official list has rows twice",
    "listed_tokens": "the tokens that the official list states are not what the checkpoint has seen",
    "missing_steps": "checkpoints that should be there and are not",
    "missing_state": "optimizer or trainer state that was never published, or is lost",
    "lost_order": "the trainer's own order of the data is lost or damaged",
    "order_not_fixed": "what the published rule leaves open about the order of the data",
    "dead_links": "published addresses that do not answer",
    "format": "files that the usual tools do not read as they are",
    "config_not_what_ran": "the published configuration is not what was trained with",
    "changed_midway": "data, batch size or model were changed during the run",
    "trainer_quirk": "what the trainer does against what its configuration says",
    "data": "damage or doubt in the published data",
    "naming": "names that mislead",
}
EVENT_KINDS = ("spike", "restart")
ORDER_LEVELS = ("exact", "derived", "chunk", "unknown")
REPLAY_LEVELS = ("exact", "approximate", "refused")
STATES = ("weights", "optimizer", "trainer")

_TEXTS = (
    "hub hub_revision parameters checkpoint_steps token_dtype trainer order order_needs replay replay_needs schedule "
    "warmup parent listing_group provenance"
).split()
_NUMBERS = (
    "last_step num_checkpoints tokens tokens_per_step sequence_length instances_per_batch vocabulary_size "
    "learning_rate seed steps_per_checkpoint first_checkpoint_step"
).split()
_LISTS = "states final_states checkpoints data metrics listing provenance_parts".split()
_CHOICES = {"order": ORDER_LEVELS, "replay": REPLAY_LEVELS, "states": STATES, "final_states": STATES}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\Z")

Value = str | int | float | bool | list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known, and where it can be read up; `note` says how far it is to be believed."""

    value: Value
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedRun:
    """
    Attributes:
        settings: what the trainer was told, by its own names, for layouts whose published files do not say.
    """

    name: str
    family: str
    facts: Mapping[str, Fact]
    settings: Mapping[str, Fact] = field(default_factory=dict)

    def value(self, name: str, default: Any = None) -> Any:
        return self.facts[name].value if name in self.facts else default

    def step_of_revision(self, revision: str) -> int | None:
        """The step that a branch or tag of the hub repository holds; None if it is named otherwise.

        Some families count checkpoints there; then `steps_per_checkpoint` is a fact of the run.
        """
        found = re.search(self.value("hub_revision", r"(?P<step>(?!))"), revision)
        if found is None:
            return None
        number = int(found["step"])
        return int(self.value("first_checkpoint_step", 0) + number * self.value("steps_per_checkpoint", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """
    Attributes:
        runs: names, or globs over them.
        steps: the steps that it concerns, for people; first_step .. last_step and listed_steps say the same to
            programs. An issue without either concerns the run as a whole.
    """

    runs: tuple[str, ...]
    kind: str
    text: str
    source: str
    steps: str = ""
    first_step: int | None = None
    last_step: int | None = None
    listed_steps: tuple[int, ...] = ()

    def concerns(self, run: str) -> bool:
        return any(fnmatchcase(run, pattern) for pattern in self.runs)

    def concerns_step(self, step: int) -> bool:
        """Is it about that checkpoint in particular?"""
        if step in self.listed_steps:
            return True
        if self.first_step is None and self.last_step is None:
            return False
        return (self.first_step or 0) <= step and (self.last_step is None or step <= self.last_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedEvent:
    """A spike or restart that the publisher told of; `step` where it is known."""

    runs: tuple[str, ...]
    kind: str
    at: str
    text: str
    source: str
    step: int | None = None

    def concerns(self, run: str) -> bool:
        return any(fnmatchcase(run, pattern) for pattern in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One file of the catalog."""

    name: str
    title: str
    publisher: str
    sources: Mapping[str, str]
    runs: tuple[ReleasedRun, ...]
    issues: tuple[KnownIssue, ...] = ()
    events: tuple[PublishedEvent, ...] = ()


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_family(content: str, where: str) -> Family:
    """
    Raises:
        CorruptFile: a fact without a source, a source that is not listed or not used, a kind or field that is not
            documented, a name given twice, an issue about no run.
    """
    try:
        table = tomllib.loads(content)
        return _Reader(where, table).family()
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{where} lacks or misstates {error}") from error


class _Reader:
    """Reads one family's table and notes which of its sources are cited."""

    def __init__(self, where: str, table: Mapping[str, Any]) -> None:
        self.where, self.table = where, table
        self.sources: dict[str, str] = dict(table["sources"])
        self.cited: set[str] = set()

    def family(self) -> Family:
        self._only(self.table, "family title publisher sources defaults runs issues events", "the file")
        name, defaults = str(self.table["family"]), dict(self.table.get("defaults", {}))
        runs = tuple(self._run(entry, name, defaults) for entry in self.table["runs"])
        names = [run.name for run in runs]
        if len(set(names)) < len(names):
            raise self._error(f"two runs called {next(n for n in names if names.count(n) > 1)}")
        family = Family(
            name=name,
            title=self.table["title"],
            publisher=self.table["publisher"],
            sources=self.sources,
            runs=runs,
            issues=tuple(self._issue(entry, names) for entry in self.table.get("issues", [])),
            events=tuple(self._event(entry, names) for entry in self.table.get("events", [])),
        )
        if unused := sorted(set(self.sources) - self.cited):
            raise self._error(f"the source {unused[0]}, which nothing cites")
        return family

    def _run(self, entry: Mapping[str, Any], family: str, defaults: Mapping[str, Any]) -> ReleasedRun:
        name = str(entry["name"])
        if not _NAME.match(name):
            raise self._error(f"the name {name!r}: lower case letters, digits, '.', '_' and '-'")
        told = defaults.get("settings", {}) | entry.get("settings", {})
        merged = {**entry, **{key: value for key, value in defaults.items() if key not in entry}}
        merged = {key: value for key, value in merged.items() if key not in ("name", "settings")}
        facts = {key: self._fact(value, f"{name}.{key}") for key, value in merged.items()}
        for key, fact in facts.items():
            self._check(key, fact.value, f"{name}.{key}")
        if missing := [key for key in ("order", "replay") if key not in facts]:
            raise self._error(f"{name} without {missing[0]}")
        settings = {key: self._fact(value, f"{name}.settings.{key}") for key, value in told.items()}
        return ReleasedRun(name=name, family=family, facts=facts, settings=settings)

    def _fact(self, entry: Any, key: str) -> Fact:
        if not isinstance(entry, Mapping) or "value" not in entry:
            raise self._error(f"{key}, which has no value")
        self._only(entry, "value source note", key)
        return Fact(value=entry["value"], source=self._cite(entry, key), note=entry.get("note", ""))

    def _check(self, key: str, value: Value, where: str) -> None:
        if key not in (*_TEXTS, *_NUMBERS, *_LISTS):
            raise self._error(f"{where}, which is no field of a run")
        items = value if isinstance(value, list) else [value]
        kind = int | float if key in _NUMBERS else str
        of_its_kind = bool(items) and all(isinstance(item, kind) and not isinstance(item, bool) for item in items)
        if not of_its_kind or isinstance(value, list) is not (key in _LISTS) and key not in _NUMBERS:
            raise self._error(f"{where} = {value!r}, which is not what such a field holds")
        for item in items if key in _CHOICES else ():
            if item not in _CHOICES[key]:
                raise self._error(f"{where} = {item!r}: one of {', '.join(_CHOICES[key])}")
        if key == "hub_revision":
            self._check_revision(str(value), where)

    def _check_revision(self, pattern: str, where: str) -> None:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise self._error(f"{where}, which is no regular expression ({error})") from error
        if "step" not in groups:
            raise self._error(f"{where}, which has no group called step")

    def _issue(self, entry: Mapping[str, Any], names: Iterable[str]) -> KnownIssue:
        self._only(entry, "runs kind text source steps first_step last_step listed_steps", "issues")
        self._concerning(entry, names, ISSUE_KINDS)
        rest = {key: value for key, value in entry.items() if key not in ("runs", "source", "listed_steps")}
        return KnownIssue(
            runs=tuple(entry["runs"]),
            source=self._cite(entry, str(entry["text"])),
            listed_steps=tuple(entry.get("listed_steps", ())),
            **rest,
        )

    def _event(self, entry: Mapping[str, Any], names: Iterable[str]) -> PublishedEvent:
        self._only(entry, "runs kind at step text source", "events")
        self._concerning(entry, names, EVENT_KINDS)
        rest = {key: value for key, value in entry.items() if key not in ("runs", "source")}
        return PublishedEvent(runs=tuple(entry["runs"]), source=self._cite(entry, str(entry["text"])), **rest)

    def _concerning(self, entry: Mapping[str, Any], names: Iterable[str], kinds: Iterable[str]) -> None:
        if entry["kind"] not in kinds:
            raise self._error(f"the kind {entry['kind']!r}: one of {', '.join(kinds)}")
        for pattern in entry["runs"]:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise self._error(f"{pattern!r}, which is no run of the family")

    def _cite(self, entry: Mapping[str, Any], what: str) -> str:
        """The whole citation that a source's key stands for."""
        key = entry.get("source")
        if not key:
            raise self._error(f"{what}, which names no source")
        if not self.sources.get(key):
            raise self._error(f"{what}, whose source {key!r} is not listed under [sources]")
        self.cited.add(key)
        return self.sources[key]

    def _only(self, entry: Mapping[str, Any], allowed: str, where: str) -> None:
        if unknown := sorted(set(entry) - set(allowed.split())):
            raise self._error(f"{where} with {unknown[0]}, which is not known there")

    def _error(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.where} has {what}")
