from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_index.batch import Batch
from replay.batch_losses import batch_losses, loss_of_rows, row_weights
from replay.recipe import Recipe
from replay.train_state import TrainState, initial_state
from replay.train_step import accumulate_gradients
from tests.replay.test_train_step import CPU, RECIPE, batch

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one pass after another": {"instances_per_microbatch": 2},
    "last dropped, over all tokens": {"labels": "last_dropped", "denominator": "tokens"},
    "one token more a row": {"labels": "extra_token"},
    "filtered rows counted": {"denominator": "targets_and_filtered"},
    "four ranks": {"num_ranks": 4},
    "four ranks that count filtered rows": {"num_ranks": 4, "denominator": "targets_and_filtered"},
    "documents apart": {"document_end_token": 9},
    "bf16": {"precision": "bf16"},
}


def ragged() -> Batch:
    """Row 1 is filtered, and so is row 3; row 2 has a label mask; an edit hides a part of row 4."""
    trained = np.ones((6, 12), dtype=bool)
    trained[1], trained[3], trained[2, 3:6] = False, False, False
    counts = trained.copy()
    counts[4, 7:] = False
    ids = batch().token_ids.copy()
    ids[:, 5] = 9
    filtered = np.isin(np.arange(6), (1, 3))
    return replace(batch(), token_ids=ids, counts_as_target=counts, counted_by_trainer=trained, filtered=filtered)


def state(recipe: Recipe) -> TrainState:
    return initial_state(recipe, seed=1, device=CPU)


@pytest.mark.parametrize("settings", SETTINGS)
def test_token_losses_times_row_weights_are_the_steps_loss(settings: str) -> None:
    recipe = replace(RECIPE, **SETTINGS[settings])
    training = state(recipe)
    with torch.no_grad():
        step = accumulate_gradients(training, ragged(), recipe)
    weights = row_weights(ragged(), recipe, device=CPU)

    def weighted(with_z_loss: bool) -> torch.Tensor:
        losses = batch_losses(training.model, ragged(), recipe, device=CPU, with_z_loss=with_z_loss)
        return (losses.double().sum(dim=1) * weights).sum().float()

    assert step.z_loss > 0
    # Sums in another order.
    torch.testing.assert_close(weighted(False), step.logged, rtol=1e-6, atol=0)
    torch.testing.assert_close(weighted(True), step.logged + step.z_loss, rtol=1e-6, atol=0)


def test_a_stated_denominator_is_every_rows() -> None:
    weights = row_weights(replace(ragged(), loss_denominator=50), replace(RECIPE, num_ranks=2), device=CPU)

    assert weights.tolist() == [1 / 50] * 6


def test_rows_of_a_rank_without_targets_weigh_nothing() -> None:
    """Of three ranks the second has rows 1 and 4."""
    counts = ragged().counts_as_target.copy()
    counts[4] = False
    recipe = replace(RECIPE, num_ranks=3)
    weights = row_weights(replace(ragged(), counts_as_target=counts, counted_by_trainer=counts), recipe, device=CPU)

    # Ranks 0 and 2 hold 11 and 8 + 11 targets, and each is one third of the step.
    assert weights.tolist() == [1 / 33, 0, 1 / 57, 1 / 33, 0, 1 / 57]


def test_losses_stand_where_their_token_is_and_are_0_where_it_is_no_target() -> None:
    training = state(RECIPE)
    losses = batch_losses(training.model, ragged(), RECIPE, device=CPU, rows_at_once=4)
    counts = ragged().counts_as_target[:, 1:]
    with torch.no_grad():
        logits = training.model(input_ids=torch.from_numpy(ragged().token_ids)).logits.double()
    expected = -logits.log_softmax(-1)[2, 6, ragged().token_ids[2, 7]]

    assert losses.shape == (6, 11) and losses.dtype == torch.float32 and not losses.requires_grad
    assert np.array_equal(losses.numpy() != 0, counts)
    assert losses[2, 6].item() == pytest.approx(expected.item(), rel=1e-5)  # fp32 against fp64


@pytest.mark.parametrize("settings", ["plain", "four ranks that count filtered rows", "documents apart"])
def test_gradients_of_rows_add_up_to_the_steps(settings: str) -> None:
    recipe = replace(RECIPE, **SETTINGS[settings])
    whole, rows = state(recipe), state(recipe)
    accumulate_gradients(whole, ragged(), recipe)
    for start in (0, 4):
        loss_of_rows(rows.model, ragged(), recipe, slice(start, start + 4), device=CPU).backward()

    for expected, found in zip(whole.model.parameters(), rows.model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7)  # sums in another order
