"""The recipe as the native run format states it: the fields of `Recipe` themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from data_index.errors import UnsupportedRecipe
from data_index.run import Run
from replay.recipe import ClipWarmup, Recipe, SkipRule
from replay.schedule import schedule_from_table


def recipe_from(run: Run, approximate: bool) -> Recipe:
    """
    Raises:
        UnsupportedRecipe: a field that this version does not know.
    """
    table = dict(run.config["recipe"])
    known = {field.name for field in fields(Recipe)} - {"model"}
    if unknown := set(table) - known:
        raise UnsupportedRecipe(f"the recipe has fields that this version does not know: {', '.join(sorted(unknown))}")
    table["schedule"] = schedule_from_table(table["schedule"])
    for name in ("betas", "no_decay", "unfaithful", "approximated"):
        table[name] = tuple(table.get(name, ()))
    table["base_rate_changes"] = tuple(
        (int(step), float(factor)) for step, factor in table.get("base_rate_changes", ())
    )
    nested: Mapping[str, Any] = {"skip": SkipRule, "clip_warmup": ClipWarmup}
    table |= {name: kind(**table[name]) for name, kind in nested.items() if name in table}
    return Recipe(model=run.config["model"], **table)
