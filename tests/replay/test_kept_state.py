"""A state that is kept in memory and returned to is the same to the bit, as often as it is returned to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from replay.recipe import Recipe, SkipRule
from replay.skip_step import SkipStepAdamW
from replay.train_state import keep_state, moment_tensors, return_to, weight_tensors
from replay.train_step import train_step
from tests.replay.test_batch_losses import RECIPE, state
from tests.replay.test_train_step import batch


@pytest.mark.parametrize("num_before", [0, 3], ids=["no update yet", "after three steps"])
@pytest.mark.parametrize("skip", [None, SkipRule(interval=6, sigma=0.0)], ids=["AdamW", "SkipStepAdamW"])
def test_steps_from_a_kept_state_are_the_same_each_time(num_before: int, skip: SkipRule | None) -> None:
    """Also the first time, with no moments yet, and with a rule that leaves steps out by what it remembers."""
    recipe: Recipe = replace(RECIPE, skip=skip)
    training = state(recipe)
    random = np.random.default_rng(0)
    shape = batch().token_ids.shape
    batches = [replace(batch(), step=number, token_ids=random.integers(50, size=shape)) for number in range(1, 10)]
    for one in batches[:num_before]:
        train_step(training, one, recipe)
    kept = keep_state(training)
    weights = {name: tensor.clone() for name, tensor in weight_tensors(training).items()}
    moments = {name: tensor.clone() for name, tensor in moment_tensors(training).items()}

    def onwards() -> list[tuple[float, float, bool]]:
        results = [train_step(training, one, recipe) for one in batches[num_before:]]
        return [(result.loss, result.grad_norm, result.skipped) for result in results]

    first = onwards()
    for _ in range(2):
        return_to(training, kept)
        assert (training.step, bool(moment_tensors(training))) == (num_before, num_before > 0)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in weight_tensors(training).items())
        assert all(torch.equal(tensor, moments[name]) for name, tensor in moment_tensors(training).items())
        assert onwards() == first
    if skip is not None:
        assert isinstance(training.optimizer, SkipStepAdamW) and any(skipped for _, _, skipped in first)
