"""Which config a stretch of steps was taken with: a run that is restarted may go on with another.

Both OLMo trainers write their config into every checkpoint. The process that took a step is the one that saved the next
checkpoint, so that checkpoint's config is the step's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.files import read_json_object
from data_index.metric_queries import logged_metrics
from data_index.olmo_checkpoint import read_config
from data_index.run import Run
from data_index.sources import list_checkpoints
from data_index.workspace import Workspace
from replay.recipe import Recipe, recipe_of_run


def _read_json_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    return read_json_object(path) if path.is_file() else None


_READERS: Mapping[str, Callable[[Path], dict[str, Any] | None]] = {"olmo": read_config, "olmo_core": _read_json_config}


def configured_run(run: Run, first: int, last: int, *, approximate: bool = False) -> Run:
    """The run with the config that steps first+1 .. last were taken with.

    Raises:
        UnsupportedRecipe: it changed between them; the message says where and what.
    """
    reader = _READERS.get(run.layout)
    if reader is None:
        return run
    after = [c for c in list_checkpoints(run) if c.step > first]
    covering = [c for c in after if c.step < last] + [c for c in after if c.step >= last][:1]
    configured = [
        (checkpoint.step, replace(run, config=config))
        for checkpoint in covering
        if (config := reader(checkpoint.folder)) is not None
    ]
    if not configured:
        return run
    recipes = [(step, recipe_of_run(one, approximate=approximate)) for step, one in configured]
    for (step, recipe), (later, other) in zip(recipes, recipes[1:], strict=False):
        if recipe != other:
            raise UnsupportedRecipe(
                f"{run.name} went on with another config after step {step} (its checkpoint {later} says so: "
                f"{', '.join(_different(recipe, other))}): take {first}:{step} and {step}:{last} apart"
            )
    return configured[-1][1]


def described_recipe(run: Run) -> dict[str, Any]:
    """How the run's steps are computed, as far as it was understood; `refused` says why they are not replayed."""
    try:
        recipe = recipe_of_run(run)
    except (UnsupportedRecipe, CorruptFile) as error:
        return {"refused": str(error)}
    return {"model": dict(recipe.model)} | recipe.to_table()


def learning_rate_of_step(workspace: Workspace, run: Run, step: int, *, approximate: bool = False) -> float | None:
    """The rate that the recipe gives a step, as the trainer computes it; None where no recipe was understood.

    Args:
        approximate: what is not supported of the step may be passed over, such as the precision of its forward pass.
    """
    try:
        recipe = recipe_of_run(configured_run(run, step - 1, step, approximate=approximate), approximate=approximate)
    except (UnsupportedRecipe, CorruptFile):
        return None
    skipped = 0
    if recipe.withholds_logged_skips:
        logged = logged_metrics(workspace, run, 0, step - 1, ("skipped",))
        skipped = sum(bool(values.get("skipped")) for values in logged.values())
    return recipe.learning_rate_of(step, run.tokens_after(step), skipped)


def _different(one: Recipe, other: Recipe) -> list[str]:
    return [field.name for field in fields(Recipe) if getattr(one, field.name) != getattr(other, field.name)]
