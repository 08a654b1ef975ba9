"""The step on the legacy OLMo trainer's own model class: what transformers rounds otherwise is left out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_index.batch import read_batch
from data_index.batch_queries import plan_of, reader_of
from data_index.metric_queries import logged_metrics
from data_index.workspace import Workspace
from forensics.reproduction import prepare
from replay.determinism import deterministic
from replay.recipe import Recipe
from replay.train_state import TrainState
from replay.train_step import StepResult, train_step

RUN = Path(__file__).parents[1] / "fixtures" / "olmo" / "run"
pytestmark = [pytest.mark.published, pytest.mark.filterwarnings("ignore")]


class TrainersState(TrainState):
    """A state whose parameters have the trainer's names, so that its order needs no translation."""

    def trainer_parameters(self, recipe: Recipe) -> list[tuple[torch.nn.Parameter, ...]]:
        return [(p,) for group in self.optimizer.param_groups for p in group["params"]]


def trainers_state(step: int, recipe: Recipe) -> TrainersState:
    """Model and optimizer of a checkpoint, in the trainer's classes and groups."""
    from olmo.config import TrainConfig
    from olmo.model import OLMo

    folder = RUN / f"step{step}-unsharded"
    model = OLMo(TrainConfig.load(folder / "config.yaml").model)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    named: dict[str, Any] = dict(model.named_parameters())
    exempt = ["transformer.wte.weight"]
    decayed = sorted(set(named) - set(exempt))
    groups = [
        {"params": [named[name] for name in decayed], "weight_decay": recipe.weight_decay},
        {"params": [named[name] for name in exempt], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)
    for name, state in torch.load(folder / "optim.pt", weights_only=True)["state"].items():
        optimizer.state[named[name]] = dict(state)
    return TrainersState(
        model=model.train(),
        optimizer=optimizer,
        step=step,
        tokens=step * 1024,
        device=torch.device("cpu"),
        restarted=step == 0,
    )


def replayed(core_shared: Workspace, first: int, last: int) -> tuple[list[StepResult], TrainersState]:
    run = core_shared.run("olmo")
    setup = prepare(core_shared, run, "cpu", "recipe")
    state = trainers_state(first, setup.recipe)
    plan, reader = plan_of(core_shared, run, first, last), reader_of(core_shared, run)
    with deterministic(1):
        return [train_step(state, read_batch(plan[s], reader), setup.recipe) for s in plan.steps], state


@pytest.mark.parametrize(("first", "last"), [(0, 10), (10, 20), (20, 25)])
def test_every_step_is_the_trainers(
    core_shared: Workspace, known_kernels: dict[str, bool], first: int, last: int
) -> None:
    """Bit for bit where kernels are those of the machine that made the fixture; elsewhere 2e-6, a few fp32 units."""
    results, state = replayed(core_shared, first, last)
    logged = logged_metrics(core_shared, core_shared.run("olmo"), first, last)
    tolerance = 0.0 if known_kernels["olmo"] else 2e-6
    for result in results:
        there = logged[result.step]
        assert abs(result.loss - there["loss"]) <= tolerance
        assert abs(result.grad_norm - there["grad_norm"]) <= tolerance
        assert abs(result.z_loss - there["z_loss"]) <= tolerance
        assert result.learning_rate == there["learning_rate"]
    end = RUN / f"step{last}-unsharded" / "model.pt"
    if end.exists() and known_kernels["olmo"]:
        theirs = torch.load(end, weights_only=True)
        ours = dict(state.model.named_parameters())
        assert theirs.keys() == ours.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_package_is_the_one_that_made_the_run() -> None:
    import olmo.version

    assert olmo.version.VERSION == "0.6.0"
