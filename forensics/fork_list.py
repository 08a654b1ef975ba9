"""What forks there are, what each changed, and where a new one could start; answered without torch."""

from __future__ import annotations

import shlex
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, ForensicsError
from data_index.run import Checkpoint, Run
from data_index.run_file import read_run
from data_index.sources.native import saved_steps
from data_index.workspace import Workspace, fullest
from replay.intervention import OPERATIONS, SELECTORS, Edit, parse_edit, text_of_edit

WRITING_SECONDS = 120.0  # a step of a large model takes as long


def forks_of(workspace: Workspace, run: str | None = None) -> list[dict[str, Any]]:
    """All forks, or those of one run: id, parent, steps, how far each has come, edits."""
    rows = []
    for name in workspace.fork_ids():
        child = read_run(workspace.home(name))
        if child.parent is None or (run is not None and child.parent[0] != run):
            continue
        rows.append(
            {
                "id": name,
                "parent": child.parent[0],
                "from_step": child.parent[1],
                "num_steps": child.last_step - child.parent[1],
                "done": steps_done(workspace, name),
                "edits": "; ".join(described(workspace.home(name))) or "none",
                "recipe": ", ".join(f"{k}={v}" for k, v in child.recipe_overrides.items()) or "as the parent's",
            }
        )
    return rows


def steps_done(workspace: Workspace, fork: str) -> int | None:
    """Steps that a fork has taken and saved; None: there is no such fork."""
    home = workspace.folder / "forks" / fork
    if not (home / "run.toml").is_file():
        return None
    child, saved = read_run(home), saved_steps(home)
    return saved[-1] - (child.first_step - 1) if saved else 0


def is_being_written(workspace: Workspace, fork: str) -> bool:
    """Was a step of it taken within the last minutes, and are there more to come?"""
    home = workspace.folder / "forks" / fork
    try:
        if time.time() - (home / "progress.jsonl").stat().st_mtime > WRITING_SECONDS:
            return False
        child = read_run(home)
    except (FileNotFoundError, ForensicsError):
        return False
    return steps_done(workspace, fork) != child.last_step - child.first_step + 1


def described(folder: Path) -> list[str]:
    """What each edit of a fork hit, in sentences."""
    return list(map(str, _fork_toml(folder).get("described", [])))


def _fork_toml(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "fork.toml").read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{folder}/fork.toml is not TOML: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A fork as it is written down: what `forensics fork RUN` takes."""

    run: str
    from_step: int
    num_steps: int
    edits: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    fresh_optimizer: bool = False
    approximate: bool = False
    precision: str = "recipe"

    def arguments(self) -> tuple[str, ...]:
        """After `forensics`, as a list."""
        given = ["fork", self.run, "--from", str(self.from_step), "--num-steps", str(self.num_steps)]
        given += [word for edit in self.edits for word in ("--edit", edit)]
        given += [word for setting in self.settings for word in ("--set", setting)]
        given += ["--fresh-optimizer"] if self.fresh_optimizer else []
        given += ["--approximate"] if self.approximate else []
        return (*given, *(["--precision", self.precision] if self.precision != "recipe" else []))


def composition_of(workspace: Workspace, fork: str) -> Composition:
    """What would make a fork again.

    Raises:
        UnknownRun, CorruptFile
    """
    table = _fork_toml(workspace.home(fork))
    try:
        return Composition(
            run=str(table["parent"]),
            from_step=int(table["from_step"]),
            num_steps=int(table["num_steps"]),
            edits=tuple(text_of_edit(_edit(edit)) for edit in table["edits"]),
            # What --precision asked for has no dot; written as --set it would make another fork.
            settings=tuple(f"{name}={_toml(value)}" for name, value in table["recipe"].items() if name != "precision"),
            precision=str(table["recipe"].get("precision", "recipe")),
            fresh_optimizer=bool(table.get("fresh_optimizer", False)),
            approximate=bool(table.get("approximate", False)),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorruptFile(f"fork.toml of {fork} lacks or misstates {error}") from error


def _edit(table: Mapping[str, Any]) -> Edit:
    selector = next(((kind, str(table[kind])) for kind in SELECTORS if kind in table), None)
    steps = (int(table["steps"][0]), int(table["steps"][1])) if "steps" in table else None
    options = {str(name): str(value) for name, value in table.get("options", {}).items()}
    operation = str(table["operation"])
    if operation not in OPERATIONS:
        raise ValueError(f"operation {operation!r}")
    return Edit(operation=operation, selector=selector, steps=steps, options=options)


def _toml(value: Any) -> str:
    """As the command line takes it."""
    import tomli_w

    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def written_edit(operation: str, selector: tuple[str, str] | None, steps: str, options: Mapping[str, str]) -> str:
    """An edit from its parts, as `--edit` takes it.

    Args:
        selector: its kind and value, such as ("instance", "12,40"); lines of a condition become one.
        steps: "154" or "150:160"; empty: all of the fork's.
        options: those that are empty are left out.
    Raises:
        InvalidEdit
    """
    words = [operation]
    words += [f"{selector[0]}:{' '.join(selector[1].splitlines())}"] if selector and selector[1].strip() else []
    words += [f"@{steps.strip().removeprefix('@')}"] if steps.strip() else []
    words += [f"{name}={value.strip()}" for name, value in options.items() if value.strip()]
    return text_of_edit(parse_edit(shlex.join(words)))


def parsed_edits(texts: Sequence[str]) -> tuple[Edit, ...]:
    """
    Raises:
        InvalidEdit: the error's `edit_number` says which of them, from 0.
    """
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(parse_edit(text))
        except ForensicsError as error:
            error.edit_number = number
            raise
    return tuple(found)


def file_of_edit(edit: Edit) -> Path | None:
    """The file of rows that an edit names."""
    given = edit.options.get("with", "")
    return Path(given) if given and not given.startswith("instance:") and not given.isdigit() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A checkpoint as the start of a fork; `obstacle`: why it cannot be, else empty."""

    step: int
    obstacle: str = ""
    has_optimizer: bool = True


def starts_of(workspace: Workspace, run: str, *, fresh_optimizer: bool = False) -> list[Start]:
    """All checkpoints of a run, in step order, and which of them a fork can start at.

    Args:
        fresh_optimizer: what the optimizer remembers may start at zero.
    """
    record = workspace.run(run)
    places: dict[int, list[Checkpoint]] = {}
    for checkpoint in workspace.checkpoints(record):
        places.setdefault(checkpoint.step, []).append(checkpoint)
    best = [fullest(found) for _, found in sorted(places.items())]
    return [
        Start(
            step=checkpoint.step,
            obstacle=_obstacle(record, checkpoint, fresh_optimizer),
            has_optimizer="optimizer" in checkpoint.states,
        )
        for checkpoint in best
    ]


def _obstacle(run: Run, checkpoint: Checkpoint, fresh_optimizer: bool) -> str:
    if checkpoint.step >= run.last_step:
        return "what comes after it is not known"
    if checkpoint.step < run.first_step - 1:
        return f"the run is known from step {run.first_step} on"
    if checkpoint.available is False:
        return "it did not answer when last looked for"
    if "weights" not in checkpoint.states:
        return "it has no weights"
    if "optimizer" not in checkpoint.states and not fresh_optimizer:
        return "it has no optimizer state"
    return ""


def recipe_fields_of(workspace: Workspace, run: str) -> dict[str, Any]:
    """Fields of a run's recipe that `--set` takes, by dotted name, with their values.

    Raises:
        UnknownRun, UnsupportedRecipe, CorruptFile
    """
    from replay.recipe import fields_of_recipe, recipe_of_run

    record = workspace.run(run)
    return fields_of_recipe(recipe_of_run(record, approximate=bool(record.environment.get("approximate"))))
