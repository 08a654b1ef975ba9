import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from data_index.errors import UnsupportedRecipe
from data_index.workspace import Workspace
from replay.recipe import apply_overrides, recipe_of_run


def test_a_native_recipe_survives_its_file(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")
    recipe = recipe_of_run(run)

    written = replace(run, config={"model": recipe.model, "recipe": json.loads(json.dumps(recipe.to_table()))})

    assert recipe_of_run(written) == recipe


def test_the_olmo_core_recipe_is_the_trainers(core_shared: Workspace) -> None:
    recipe = recipe_of_run(core_shared.run("core"))

    assert (recipe.learning_rate, recipe.betas, recipe.eps, recipe.weight_decay) == (0.003, (0.9, 0.95), 1e-8, 0.1)
    assert recipe.no_decay == ("model.embed_tokens.weight",)
    assert (recipe.max_grad_norm, recipe.z_loss, recipe.instances_per_microbatch) == (1.0, 1e-5, 4)
    assert recipe.model["hidden_size"] == 64 and recipe.model["rope_parameters"]["rope_theta"] == 500000


def set_in(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train_module.optim.type", "skip_step_adamw"),
        ("train_module.scheduler.type", "wsd"),
        ("train_module.scheduler.units", "tokens"),
        ("train_module.float8_config", {"enabled": True}),
        ("train_module.dp_config", {"name": "hsdp"}),
        ("train_module.label_ignore_index", -1),
        ("dataset.generate_doc_lengths", True),
        ("dataset.instance_filter_config", {"repetition_max_period": 13}),
        ("trainer.steps_to_skip", [[3, 4]]),
        ("model.block.name", "default"),
        ("model.block.sequence_mixer.rope.scaling", {"factor": 8}),
        ("model.block.sequence_mixer.sliding_window", {"pattern": [4096]}),
        ("model.lm_head.loss_implementation", "fused_linear"),
        ("train_module.optim.group_overrides", [{"params": ["*.bias"], "opts": {"weight_decay": 0.0}}]),
    ],
)
def test_a_field_that_defines_another_step_is_refused_by_name(core_shared: Workspace, path: str, value: Any) -> None:
    run = core_shared.run("core")
    config = copy.deepcopy(dict(run.config))
    set_in(path, value)(config)

    with pytest.raises(UnsupportedRecipe, match=path.split(".")[-1] if "type" not in path else path.split(".")[-2]):
        recipe_of_run(replace(run, config=config))


def test_unknown_native_fields_are_refused_by_name(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")
    config = {"model": run.config["model"], "recipe": dict(run.config["recipe"]) | {"dropout": 0.1}}

    with pytest.raises(UnsupportedRecipe, match="dropout"):
        recipe_of_run(replace(run, config=config))


def test_overrides_reach_nested_fields_and_keep_types(tiny_shared: Workspace) -> None:
    recipe = recipe_of_run(tiny_shared.run("tiny"))

    changed = apply_overrides(
        recipe, {"recipe.learning_rate": 1, "schedule.max_steps": 99, "max_grad_norm": "none", "betas": [0.8, 0.9]}
    )

    assert (changed.learning_rate, changed.schedule.max_steps) == (1.0, 99)
    assert changed.max_grad_norm is None and changed.betas == (0.8, 0.9)


@pytest.mark.parametrize("name", ["recipe.learning_rat", "recipe.schedule.steps", "recipe.model", "recipe.eps.x"])
def test_unknown_overrides_are_refused(tiny_shared: Workspace, name: str) -> None:
    with pytest.raises(UnsupportedRecipe, match="no field"):
        apply_overrides(recipe_of_run(tiny_shared.run("tiny")), {name: 1})


def test_overrides_of_another_type_are_refused(tiny_shared: Workspace) -> None:
    with pytest.raises(UnsupportedRecipe, match="learning_rate = 'fast'"):
        apply_overrides(recipe_of_run(tiny_shared.run("tiny")), {"recipe.learning_rate": "fast"})
