import pytest
import torch

from data_index.errors import InvalidEdit
from replay.models import build_model
from replay.train_state import weight_tensors
from replay.train_step import accumulate_gradients, perturbed
from replay.weights import content_hash
from tests.replay.test_train_step import CPU, RECIPE, batch, state


def direction_of(training: object) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(p.shape, generator=generator) for name, p in weight_tensors(training).items()}  # type: ignore[arg-type]


def test_weights_move_by_the_scaled_direction_and_come_back_bit_for_bit() -> None:
    """Taking the direction off again would leave rounding behind."""
    training = state()
    before = {name: weight.clone() for name, weight in weight_tensors(training).items()}
    direction = direction_of(training)
    with perturbed(training.model, direction, 0.3):
        for name, weight in weight_tensors(training).items():
            torch.testing.assert_close(weight, before[name] + 0.3 * direction[name], rtol=1e-6, atol=1e-7)

    assert content_hash(weight_tensors(training)) == content_hash(before)
    assert any(
        not torch.equal(before[name] + 0.3 * step - 0.3 * step, before[name]) for name, step in direction.items()
    )


def test_weights_come_back_after_an_error_and_after_being_written_to() -> None:
    training = state()
    before = content_hash(weight_tensors(training))
    with pytest.raises(RuntimeError, match="inside"), perturbed(training.model, direction_of(training), -1e30):
        for parameter in training.model.parameters():
            parameter.data.fill_(float("nan"))
        raise RuntimeError("inside")

    assert content_hash(weight_tensors(training)) == before


def test_the_loss_inside_is_that_of_moved_weights_and_training_goes_on_as_before() -> None:
    training, untouched = state(), state()
    with torch.no_grad():
        before = accumulate_gradients(training, batch(), RECIPE).logged
        with perturbed(training.model, direction_of(training), 0.1):
            assert accumulate_gradients(training, batch(), RECIPE).logged != before
    for one in (training, untouched):
        accumulate_gradients(one, batch(), RECIPE)
        one.optimizer.step()

    assert content_hash(weight_tensors(training)) == content_hash(weight_tensors(untouched))


def test_tied_weights_move_together() -> None:
    model = build_model(dict(RECIPE.model) | {"tie_word_embeddings": True}, device=CPU, seed=1)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    before = embedding.weight.detach().clone()
    with perturbed(model, {"model.embed_tokens.weight": torch.ones(50, 16)}, 2.0):
        assert torch.equal(head.weight, before + 2) and torch.equal(embedding.weight, before + 2)

    assert torch.equal(head.weight, before)


@pytest.mark.parametrize(
    ("direction", "complaint"),
    [
        ({"model.embed_tokens.weight": torch.ones(50, 1)}, r"weight of shape \(50, 1\); the model has \(50, 16\)"),
        ({"model.norm.bias": torch.ones(16)}, "model.norm.bias .* no such parameter"),
    ],
)
def test_a_direction_of_another_model_moves_nothing(direction: dict[str, torch.Tensor], complaint: str) -> None:
    training = state()
    with pytest.raises(InvalidEdit, match=complaint), perturbed(training.model, direction, 1.0):
        raise AssertionError("the block was entered")
