from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_index.batch import Batch
from probes.gradient_shares import SignedShares, directional_derivatives, scale_along_gradient, signed_shares
from replay.batch_losses import batch_losses, loss_of_rows, row_weights, token_losses
from replay.recipe import Recipe
from replay.train_state import TrainState, initial_state, weight_tensors
from replay.train_step import accumulate_gradients, perturbed
from replay.weights import content_hash
from tests.forensics.test_architectures import MODELS, recipe_of
from tests.replay.test_batch_losses import ragged

CPU = torch.device("cpu")
RECIPES = {
    "one mean over all": recipe_of(MODELS["olmo2"], z_loss=1e-3),
    "ranks with unequal denominators": recipe_of(MODELS["gpt_neox"], num_ranks=3),
    "documents apart": recipe_of(MODELS["llama"], document_end_token=9),
}


def prepared(recipe: Recipe) -> tuple[TrainState, Batch, dict[str, torch.Tensor]]:
    """A model that has learned a little, a batch with a strange row, and the gradient of the step."""
    state = initial_state(recipe, seed=1, device=CPU)
    for _ in range(20):
        accumulate_gradients(state, ragged(), recipe)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
    ids = ragged().token_ids.copy()
    ids[0] = 3
    batch = replace(ragged(), token_ids=ids)
    accumulate_gradients(state, batch, recipe)
    gradient = {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
    state.optimizer.zero_grad(set_to_none=True)
    return state, batch, gradient


def shares_of(state: TrainState, batch: Batch, recipe: Recipe, gradient: dict[str, torch.Tensor]) -> SignedShares:
    return signed_shares(
        lambda: batch_losses(state.model, batch, recipe, device=CPU, with_z_loss=True),
        lambda scale: perturbed(state.model, gradient, scale),
        row_weights(batch, recipe, device=CPU),
        gradient.values(),
    )


def product(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(sum((one[name].double() * other[name].double()).sum() for name in one))


def gradient_of(loss: torch.Tensor, state: TrainState) -> dict[str, torch.Tensor]:
    names, parameters = zip(*state.model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_shares_of_instances_are_those_of_a_backward_for_each(name: str) -> None:
    recipe = RECIPES[name]
    state, batch, gradient = prepared(recipe)
    shares = shares_of(state, batch, recipe, gradient)
    exact = []
    for row in range(6):
        loss = loss_of_rows(state.model, batch, recipe, slice(row, row + 1), device=CPU)
        exact.append(6 * product(gradient_of(loss, state), gradient) / product(gradient, gradient))

    assert shares.instances.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert shares.agreement == pytest.approx(1.0, abs=2e-3)
    assert np.corrcoef(shares.instances.numpy(), exact)[0, 1] >= 0.9999
    np.testing.assert_allclose(shares.instances.numpy(), exact, atol=5e-3)  # the finite difference
    assert shares.instances[1] == shares.instances[3] == 0, "filtered rows take no part"


def test_shares_of_tokens_are_those_of_a_backward_for_each_and_add_up() -> None:
    recipe = RECIPES["one mean over all"]
    state, batch, gradient = prepared(recipe)
    shares = shares_of(state, batch, recipe, gradient)
    weights = row_weights(batch, recipe, device=CPU)
    parts = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.counts_as_target)
    losses = token_losses(state.model, *parts, recipe, with_z_loss=True)
    exact = [product(gradient_of(losses[2, place], state), gradient) for place in range(11)]
    expected = 6 * np.array(exact) * weights[2].item() / product(gradient, gradient)

    assert np.corrcoef(shares.tokens[2].numpy(), expected)[0, 1] >= 0.9999
    torch.testing.assert_close(shares.tokens.sum(dim=1), shares.instances)
    assert not shares.tokens[2, 2:5].any(), "hidden tokens take no part"


def test_weights_are_as_they_were() -> None:
    recipe = RECIPES["documents apart"]
    state, batch, gradient = prepared(recipe)
    before = content_hash(weight_tensors(state))
    shares_of(state, batch, recipe, gradient)

    assert content_hash(weight_tensors(state)) == before


class Cubic:
    """Losses x^3 and -2 x of one weight x, without a model."""

    def __init__(self) -> None:
        self.x = torch.tensor(2.0, dtype=torch.float64)
        self.evaluations = 0

    def losses(self) -> torch.Tensor:
        self.evaluations += 1
        return torch.stack([self.x**3, -2 * self.x])[:, None]

    def moved(self) -> Callable[[float], AbstractContextManager[object]]:
        from contextlib import contextmanager

        @contextmanager
        def moved(scale: float):  # type: ignore[no-untyped-def]
            own, self.x = self.x, self.x + scale
            yield
            self.x = own

        return moved


def test_a_derivative_is_a_central_difference_of_two_evaluations() -> None:
    """(x^3)' is 12 at 2; the central difference is off by the square of the scale, a one-sided one by 6 scales."""
    cubic = Cubic()
    found = directional_derivatives(cubic.losses, cubic.moved(), 0.1)

    assert found.flatten().tolist() == pytest.approx([12.01, -2.0], abs=1e-12)
    assert cubic.evaluations == 2 and cubic.x == 2.0


def test_shares_may_be_negative_and_agreement_shows_the_error() -> None:
    """g = 12 - 2 = 10 per summed loss: shares 2 * 12 / 10 and -2 * 2 / 10."""
    cubic = Cubic()
    shares = signed_shares(cubic.losses, cubic.moved(), torch.ones(2), [torch.tensor([10.0])])
    rough = signed_shares(cubic.losses, cubic.moved(), torch.ones(2), [torch.tensor([1e-3])])

    assert shares.instances.tolist() == pytest.approx([2.4, -0.4], abs=1e-6)
    assert rough.agreement > 1e3, "a gradient of another loss"


def test_the_way_along_the_gradient_is_set_by_the_loss_and_bounded() -> None:
    """A loss falls by |g| times the way: 0.002 nats, but no way longer than 0.03."""
    assert scale_along_gradient(10.0) * 10.0 * 10.0 == pytest.approx(2e-3)
    assert scale_along_gradient(1e-3) * 1e-3 == pytest.approx(3e-2)
    assert np.isnan(scale_along_gradient(0.0)) and np.isnan(scale_along_gradient(float("inf")))
