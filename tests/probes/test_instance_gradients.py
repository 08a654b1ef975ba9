from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import probes.instance_products
from data_index.batch import Batch
from data_index.errors import UnsupportedRecipe
from probes.instance_gradients import instance_gradient_norms, squared_norms_by_parameter
from probes.instance_products import linear_squares, squares_by_gradient, squares_by_pairs
from replay.batch_losses import loss_of_rows
from replay.models import build_model
from replay.recipe import Recipe
from replay.train_state import initial_state
from tests.forensics.test_architectures import MODELS, recipe_of
from tests.replay.test_batch_losses import ragged
from tests.replay.test_train_step import batch

CPU = torch.device("cpu")
TIED = {"tie_word_embeddings": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "olmo, queries clipped in place": ("olmo", {}, {}),
    "olmo2, grouped queries": ("olmo2", {}, {"z_loss": 1e-2}),
    "olmo3, sliding windows": ("olmo3", {}, {}),
    "olmo3, sliding windows and documents apart": ("olmo3", {}, {"document_end_token": 9}),
    "gpt_neox, fused projections and biases": ("gpt_neox", {}, {}),
    "gpt_neox, tied": ("gpt_neox", TIED, {"num_ranks": 3}),
    "llama, tied": ("llama", TIED, {"labels": "last_dropped"}),
    "llama, apart": ("llama", {"tie_word_embeddings": False}, {"labels": "extra_token"}),
    "llama, biases in attention": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
}


def norms_of(model: nn.Module, recipe: Recipe, rows: Batch) -> dict[str, torch.Tensor]:
    return squared_norms_by_parameter(model, lambda: loss_of_rows(model, rows, recipe, slice(None), device=CPU))


def model_of(recipe: Recipe) -> nn.Module:
    """Random norms and biases too: at 1 and 0 a mistake in them would not show."""
    model = initial_state(recipe, seed=1, device=CPU).model
    torch.manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def exact_squares(model: nn.Module, recipe: Recipe, rows: Batch) -> dict[str, torch.Tensor]:
    """By a backward pass of each instance."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    squares = []
    for row in range(len(rows.token_ids)):
        loss = loss_of_rows(model, rows, recipe, slice(row, row + 1), device=CPU)
        squares.append([g.double().square().sum() for g in torch.autograd.grad(loss, parameters)])
    return dict(zip(names, torch.tensor(squares, dtype=torch.float64).T, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_a_backward_for_each_instance(case: str) -> None:
    """Rows 1 and 3 of the batch are hidden from the loss, and parts of rows 2 and 4."""
    architecture, model_settings, settings = CASES[case]
    recipe = recipe_of(MODELS[architecture] | model_settings, **settings)
    model = model_of(recipe)
    exact, found = exact_squares(model, recipe, ragged()), norms_of(model, recipe, ragged())
    total = instance_gradient_norms(model, lambda: loss_of_rows(model, ragged(), recipe, slice(None), device=CPU))

    assert list(found) == list(exact)
    for name in exact:
        torch.testing.assert_close(
            found[name], exact[name], rtol=1e-5, atol=1e-14, msg=lambda text, n=name: f"{n}: {text}"
        )
    torch.testing.assert_close(total, sum(exact.values()).sqrt(), rtol=1e-6, atol=0)  # type: ignore[union-attr]
    assert total[1] == total[3] == 0 and (total[[0, 2, 4, 5]] > 0).all()


def test_equal_tokens_of_a_row_are_added_up_first() -> None:
    """And a token that stands in two rows is not."""
    recipe = recipe_of(MODELS["olmo2"])
    ids = batch().token_ids.copy()
    ids[0] = 7
    ids[1, ::2] = 7
    rows = replace(batch(), token_ids=ids)
    model = model_of(recipe)
    name = "model.embed_tokens.weight"

    torch.testing.assert_close(
        norms_of(model, recipe, rows)[name], exact_squares(model, recipe, rows)[name], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("numbers", [1, 50, 10**6])
def test_both_ways_of_a_linear_layer_agree_however_they_are_cut(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.instance_products, "NUMBERS_AT_ONCE", numbers)
    torch.manual_seed(3)
    a, d = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    exact = torch.stack([(d[row].T @ a[row]).square().sum() for row in range(3)])

    for ways in (squares_by_gradient, squares_by_pairs, linear_squares):
        torch.testing.assert_close(ways(a, d), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("places", "cheaper"), [(3, "squares_by_pairs"), (300, "squares_by_gradient")])
def test_the_cheaper_way_is_taken(places: int, cheaper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = torch.tensor([42.0])
    monkeypatch.setattr(probes.instance_products, cheaper, lambda a, d: taken)

    assert linear_squares(torch.ones(1, places, 8), torch.ones(1, places, 32)) is taken


def test_gradients_whose_parts_cancel_are_as_exact() -> None:
    """The sum over pairs alone would be off by 1e-4 and more, or below 0."""
    generator = torch.Generator().manual_seed(4)
    a, d = torch.randn(50, 16, 64, generator=generator), torch.randn(50, 1, 64, generator=generator).expand(-1, 16, -1)
    a = a - a.mean(dim=1, keepdim=True) + 1e-3
    a[0] += 1  # and one whose parts do not
    exact = torch.bmm(d.double().transpose(1, 2), a.double()).square().sum(dim=(1, 2))

    assert (squares_by_pairs(a, d) / exact - 1).abs().max() > 1e-4
    torch.testing.assert_close(linear_squares(a, d), exact, rtol=1e-5, atol=0)


def traces_left(model: nn.Module) -> bool:
    return any(module._forward_hooks for module in model.modules()) or not all(
        p.requires_grad for p in model.parameters()
    )


def test_the_model_and_its_gradients_are_left_as_they_were() -> None:
    recipe = recipe_of(MODELS["olmo2"])
    model = model_of(recipe)
    loss_of_rows(model, batch(), recipe, slice(None), device=CPU).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    found = norms_of(model, recipe, batch())

    assert not traces_left(model)
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), gradients, strict=True))  # type: ignore[arg-type]

    def failing() -> torch.Tensor:
        loss_of_rows(model, batch(), recipe, slice(None), device=CPU)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        instance_gradient_norms(model, failing)
    assert not traces_left(model)
    for name, squares in norms_of(model, recipe, batch()).items():
        assert torch.equal(squares, found[name])


def test_what_does_not_learn_is_left_out_and_stays_so() -> None:
    recipe = recipe_of(MODELS["olmo2"])
    model = model_of(recipe)
    exact = exact_squares(model, recipe, batch())
    model.get_input_embeddings().weight.requires_grad_(False)
    found = norms_of(model, recipe, batch())

    assert list(found) == [name for name in exact if name != "model.embed_tokens.weight"]
    torch.testing.assert_close(found["model.norm.weight"], exact["model.norm.weight"], rtol=1e-5, atol=0)
    assert not model.get_input_embeddings().weight.requires_grad


class OnePlusWeightRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight)


class Shared(nn.Module):
    """A linear layer, with what each test makes of it."""

    def __init__(self, forward: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.run = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.layer, x)


def changed_in_place(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    x += 1
    return y


def of_one_weight(*layers: nn.Module) -> nn.Module:
    for layer in layers:
        layer.weight = layers[0].weight
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 1)), "module 1 .Conv1d.: one instance's part"),
        (nn.Sequential(OnePlusWeightRMSNorm()), "module 0 .OnePlusWeightRMSNorm.: one instance's part"),
        (of_one_weight(nn.Linear(4, 4), nn.Linear(4, 4)), "module 1 .Linear.: it shares a parameter with 0"),
        (
            of_one_weight(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)),
            "module 2 .Linear.: it shares a parameter",
        ),
        (Shared(lambda layer, x: layer(layer(x))), "module layer .Linear.: it is used more than once"),
        (Shared(lambda layer, x: layer(x) + layer.bias.sum() if len(x) < 2 else x + 1), "computed without it"),
        (Shared(changed_in_place), "changed in place afterwards"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(4, 4)),
            "module 2 .Linear.: it reads 6 rows where the first module read 3",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(model: nn.Module, complaint: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=complaint):
        instance_gradient_norms(model, lambda: model(torch.ones(3, 2, 4, requires_grad=True) + 0).sum())

    assert not traces_left(model)


def test_a_padding_token_learns_nothing() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=2), nn.LayerNorm(4), nn.Linear(4, 3))
    ids = torch.tensor([[2, 2, 1], [2, 0, 2], [5, 5, 3]])
    found = squared_norms_by_parameter(model, lambda: model(ids).square().sum())
    exact = [torch.autograd.grad(model(row[None]).square().sum(), model[0].weight)[0].square().sum() for row in ids]

    torch.testing.assert_close(found["0.weight"], torch.stack(exact).double(), rtol=1e-5, atol=0)


def test_bf16_passes_are_measured_in_fp32() -> None:
    recipe = recipe_of(MODELS["olmo2"], precision="bf16")
    model = build_model(recipe.model, device=CPU, seed=1)
    total = torch.stack(list(norms_of(model, recipe, batch()).values())).sum(dim=0)
    exact = torch.stack(list(exact_squares(model, recipe, batch()).values())).sum(dim=0)

    torch.testing.assert_close(total, exact, rtol=2e-2, atol=0)  # weights' gradients would be rounded to bf16
