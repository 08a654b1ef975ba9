from dataclasses import replace

import pytest

from data_index.metric_queries import logged_metrics
from data_index.workspace import Workspace
from forensics.configured import described_recipe, learning_rate_of_step
from forensics.lookup import at


@pytest.mark.parametrize("run", ["core", "skip", "olmo"])
def test_the_learning_rate_of_every_step_is_the_logged_one(core_shared: Workspace, run: str) -> None:
    record = core_shared.run(run)
    logged = logged_metrics(core_shared, record, 0, 25)

    for step in range(1, 26):
        assert learning_rate_of_step(core_shared, record, step) == logged[step]["learning_rate"]


def test_at_gives_the_rate_where_no_log_does(core_shared: Workspace) -> None:
    found = at("skip", 37, workspace=core_shared)

    assert "learning_rate" not in found["metrics"] and 0 < found["learning_rate"] < 0.003


def test_a_recipe_that_is_not_understood_says_why(core_shared: Workspace) -> None:
    run = core_shared.run("olmo")
    config = dict(run.config) | {"optimizer": dict(run.config["optimizer"]) | {"name": "lionw"}}

    assert described_recipe(run)["learning_rate"] == 0.002
    assert "optimizer.name = 'lionw'" in described_recipe(replace(run, config=config))["refused"]
    assert learning_rate_of_step(core_shared, replace(run, config=config, layout="native"), 1) is None
