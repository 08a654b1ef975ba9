import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from data_index.errors import UnsupportedRecipe
from data_index.workspace import Workspace
from replay.recipe import ClipWarmup, SkipRule, apply_overrides, recipe_of_run


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
        ("train_module.optim.type", "lion"),
        ("train_module.scheduler.type", "wsd"),
        ("train_module.scheduler.units", "samples"),
        ("train_module.float8_config", {"enabled": True}),
        ("train_module.tp_config", {"degree": 2}),
        ("train_module.label_ignore_index", -1),
        ("model.block.name", "default"),
        ("model.block.sequence_mixer.rope.scaling", {"factor": 8}),
        ("model.block.sequence_mixer.sliding_window", {"pattern": [64, 32, -1]}),
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


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        ("train_module.optim.type", "skip_step_adamw", "skip", SkipRule()),
        ("dataset.generate_doc_lengths", True, "document_end_token", 0),
        ("train_module.scheduler.units", "tokens", "learning_rate", 0.003),
        ("train_module.max_grad_norm", None, "max_grad_norm", None),
        ("train_module.z_loss_multiplier", None, "z_loss", 0.0),
        ("train_module.autocast_precision", "bfloat16", "precision", "bf16"),
        (
            "train_module.optim.group_overrides",
            [{"params": ["*_norm.weight"], "opts": {"weight_decay": 0.0}}],
            "no_decay",
            tuple(
                f"model.layers.{layer}.{norm}.weight"
                for layer in range(4)
                for norm in (
                    *("self_attn.q_norm", "self_attn.k_norm"),
                    *("post_attention_layernorm", "post_feedforward_layernorm"),
                )
            ),
        ),
    ],
)
def test_a_setting_of_olmo_core_becomes_a_field(
    core_shared: Workspace, path: str, value: Any, field: str, expected: Any
) -> None:
    run = core_shared.run("core")
    config = copy.deepcopy(dict(run.config))
    set_in(path, value)(config)

    assert getattr(recipe_of_run(replace(run, config=config)), field) == expected


def test_a_batch_size_that_changes_may_not_move_the_horizon_of_the_schedule(core_shared: Workspace) -> None:
    run = core_shared.run("core")
    config = copy.deepcopy(dict(run.config))
    size = config["data_loader"]["global_batch_size"]
    due = [{"value": step, "unit": "steps"} for step in (0, 10)]
    doubled = {"batch_sizes": [size, 2 * size], "schedule": due}
    set_in("trainer.callbacks.batch_size_scheduler", doubled)(config)

    assert config["trainer"]["max_duration"]["unit"] == "steps"
    assert recipe_of_run(replace(run, config=config)).base_rate_changes == ((11, math.sqrt(2)),)
    set_in("train_module.scheduler.units", "tokens")(config)
    with pytest.raises(UnsupportedRecipe, match="horizon"):
        recipe_of_run(replace(run, config=config))


def test_an_approximation_passes_over_what_is_not_supported_and_says_so(core_shared: Workspace) -> None:
    run = core_shared.run("core")
    config = copy.deepcopy(dict(run.config))
    set_in("train_module.float8_config", {"enabled": True})(config)

    recipe = recipe_of_run(replace(run, config=config), approximate=True)

    assert len(recipe.approximated) == 1 and "train_module.float8_config" in recipe.approximated[0]


@pytest.mark.parametrize(
    ("first", "last", "pattern", "windows"),
    [
        (False, True, [32, 32, 32, -1], [32, 32, 32, 0]),
        (False, False, [32, -1], [32, 0, 32, 0]),
        (True, True, [32, 32, -1], [0, 32, 32, 0]),
        (True, False, [32, -1], [0, 32, 0, 32]),
    ],
)
def test_layers_attend_to_windows_in_the_trainers_pattern(
    core_shared: Workspace, first: bool, last: bool, pattern: list[int], windows: list[int]
) -> None:
    run = core_shared.run("core")
    config = copy.deepcopy(dict(run.config))
    sliding = {
        "pattern": pattern,
        "force_full_attention_on_first_layer": first,
        "force_full_attention_on_last_layer": last,
    }
    set_in("model.block.sequence_mixer.sliding_window", sliding)(config)

    model = recipe_of_run(replace(run, config=config)).model
    kinds = {True: "sliding_attention", False: "full_attention"}

    assert (model["model_type"], model["sliding_window"]) == ("olmo3", 32)
    assert model["layer_types"] == [kinds[window > 0] for window in windows]


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

    assert (changed.learning_rate, changed.schedule.to_table()["max_steps"]) == (1.0, 99)
    assert changed.max_grad_norm is None and changed.betas == (0.8, 0.9)


@pytest.mark.parametrize("name", ["recipe.learning_rat", "recipe.schedule.steps", "recipe.model", "recipe.eps.x"])
def test_unknown_overrides_are_refused(tiny_shared: Workspace, name: str) -> None:
    with pytest.raises(UnsupportedRecipe, match="no field"):
        apply_overrides(recipe_of_run(tiny_shared.run("tiny")), {name: 1})


def test_overrides_of_another_type_are_refused(tiny_shared: Workspace) -> None:
    with pytest.raises(UnsupportedRecipe, match="learning_rate = 'fast'"):
        apply_overrides(recipe_of_run(tiny_shared.run("tiny")), {"recipe.learning_rate": "fast"})


def test_the_limit_of_the_gradient_norm_warms_up_a_step_late(core_shared: Workspace) -> None:
    """The legacy OLMo trainer sets it after clipping, and starts every process with the limit of the config."""
    recipe = replace(recipe_of_run(core_shared.run("olmo")), clip_warmup=ClipWarmup(until=3 * 1024, factor=10.0))

    def limit(step: int, restarted: bool = False) -> float | None:
        return recipe.max_grad_norm_of(step, step * 1024, restarted=restarted)

    assert [limit(step, restarted=step == 1) for step in (1, 2, 3, 4, 5)] == [1.0, 10.0, 10.0, 10.0, 1.0]
    assert limit(3, restarted=True) == 1.0
    assert replace(recipe, max_grad_norm=None).max_grad_norm_of(2, 2048, restarted=False) is None
