from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_index.batch import Batch
from data_index.errors import InvalidEdit
from replay.determinism import deterministic
from replay.recipe import Recipe
from replay.schedule import Schedule
from replay.train_state import TrainState, initial_state, moment_tensors, weight_tensors
from replay.train_step import accumulate_gradients, next_token_labels, train_step
from replay.weights import content_hash

CPU = torch.device("cpu")
RECIPE = Recipe(
    model={
        "model_type": "olmo2",
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 12,
        "eos_token_id": 0,
    },
    learning_rate=1e-2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    no_decay=("model.embed_tokens.weight",),
    schedule=Schedule(kind="constant_with_warmup", warmup_steps=2, max_steps=10),
    max_grad_norm=1.0,
    z_loss=1e-4,
)


def batch(step: int = 1, rows: int = 6) -> Batch:
    ids = np.random.default_rng(step).integers(0, 50, (rows, 12))
    return Batch(
        step=step, epoch=1, instances=np.arange(rows), token_ids=ids, counts_as_target=np.ones((rows, 12), dtype=bool)
    )


def state() -> TrainState:
    return initial_state(RECIPE, seed=1, device=CPU)


def hash_after(steps: int, recipe: Recipe = RECIPE, observers: tuple[object, ...] = ()) -> str:
    training = state()
    with deterministic(1):
        for step in range(1, steps + 1):
            train_step(training, batch(step), recipe, observers)  # type: ignore[arg-type]
    return content_hash(weight_tensors(training) | moment_tensors(training))


def test_the_same_steps_give_the_same_bits() -> None:
    assert hash_after(3) == hash_after(3)


def test_labels_are_the_next_tokens_and_masked_tokens_are_no_target() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    counts = torch.tensor([[True, True, False, True]])

    assert next_token_labels(ids, counts).tolist() == [[6, -100, 8, -100]]


def test_the_step_equals_textbook_torch() -> None:
    """Mean cross-entropy plus z-loss over all targets, clipped, AdamW with two groups: written out independently."""
    ours, theirs = state(), state()
    with deterministic(1):
        result = train_step(ours, batch(), RECIPE)
    ids = torch.from_numpy(batch().token_ids)
    logits = theirs.model(input_ids=ids).logits[:, :-1].reshape(-1, 50)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))
    (loss + 1e-4 * logits.logsumexp(-1).square().mean()).backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 1.0)
    for group in theirs.optimizer.param_groups:
        group["lr"] = 5e-3
    theirs.optimizer.step()

    # Sums in another order: fp32 rounding, nothing more.
    assert result.loss == pytest.approx(loss.item(), rel=1e-6) and result.grad_norm == pytest.approx(
        norm.item(), rel=1e-5
    )
    assert (result.learning_rate, result.num_targets, result.tokens) == (5e-3, 66, 72)
    for name, weight in weight_tensors(ours).items():
        torch.testing.assert_close(weight, weight_tensors(theirs)[name], rtol=1e-4, atol=1e-6)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, parts = state(), state()
    loss, z, n = accumulate_gradients(whole, batch(), RECIPE)
    loss_2, z_2, n_2 = accumulate_gradients(parts, batch(), replace(RECIPE, instances_per_microbatch=4))

    # 4 and 2 rows: sums of fp32 numbers in another order.
    torch.testing.assert_close(loss, loss_2, rtol=1e-6, atol=0)
    torch.testing.assert_close(z, z_2, rtol=1e-6, atol=0)
    assert n == n_2


def test_a_masked_row_teaches_nothing_and_the_rest_weighs_the_same() -> None:
    """Masking a row with the old denominator gives the gradient of the other rows' summed loss over all targets."""
    counts = np.ones((6, 12), dtype=bool)
    counts[2] = False
    masked, dropped = state(), state()
    accumulate_gradients(masked, replace(batch(), counts_as_target=counts, loss_denominator=66), RECIPE)
    others = [0, 1, 3, 4, 5]
    fewer = replace(batch(), token_ids=batch().token_ids[others], counts_as_target=counts[others], loss_denominator=66)
    accumulate_gradients(dropped, fewer, RECIPE)

    for a, b in zip(masked.model.parameters(), dropped.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)


def test_a_batch_without_targets_is_an_error() -> None:
    with pytest.raises(InvalidEdit, match="no token of step 1 counts"):
        train_step(state(), replace(batch(), counts_as_target=np.zeros((6, 12), dtype=bool)), RECIPE)


class Looker:
    """Looks at everything, keeps nothing."""

    def before_step(self, state: TrainState, batch: Batch) -> None:
        assert all(p.grad is None for p in state.model.parameters())

    def before_update(self, state: TrainState, batch: Batch) -> None:
        assert all(p.grad is not None for p in state.model.parameters())

    def after_step(self, state: TrainState, batch: Batch) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        return {"looked": float(batch.step)}, {}


def test_observers_change_no_bit() -> None:
    assert hash_after(2, observers=(Looker(),)) == hash_after(2)


def test_every_token_of_the_vocabulary_can_learn() -> None:
    """transformers would give a padding token an embedding without gradient; ours has none."""
    training = state()
    accumulate_gradients(training, batch(rows=12), RECIPE)
    embedding = dict(training.model.named_parameters())["model.embed_tokens.weight"]
    seen = np.unique(batch(rows=12).token_ids[:, :-1])

    assert embedding.grad is not None and bool((embedding.grad[seen].abs().sum(-1) > 0).all())


def test_bf16_autocast_keeps_fp32_master_weights() -> None:
    training = state()
    result = train_step(training, batch(), replace(RECIPE, precision="bf16"))

    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert np.isfinite(result.loss) and result.loss != train_step(state(), batch(), RECIPE).loss
