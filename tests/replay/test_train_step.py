from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_index.batch import Batch
from data_index.errors import InvalidEdit
from replay.batch_losses import inputs_and_labels
from replay.curves import ConstantWithWarmup
from replay.determinism import deterministic
from replay.recipe import Recipe
from replay.schedule import Schedule
from replay.train_state import TrainState, initial_state, moment_tensors, weight_tensors
from replay.train_step import accumulate_gradients, train_step
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
    schedule=Schedule(curve=ConstantWithWarmup(warmup_steps=2)),
    max_grad_norm=1.0,
    z_loss=1e-4,
)


def batch(step: int = 1, rows: int = 6) -> Batch:
    ids = np.random.default_rng(step).integers(0, 50, (rows, 12))
    counts = np.ones((rows, 12), dtype=bool)
    return Batch(
        step=step,
        epoch=1,
        instances=np.arange(rows),
        token_ids=ids,
        counts_as_target=counts,
        counted_by_trainer=counts,
        filtered=np.zeros(rows, dtype=bool),
    )


def gradients(training: TrainState) -> list[torch.Tensor]:
    return [p.grad for p in training.model.parameters() if p.grad is not None]


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

    def labels_of(convention: str) -> tuple[list[int], list[int]]:
        inputs, labels = inputs_and_labels(ids, counts, replace(RECIPE, labels=convention))  # type: ignore[arg-type]
        return inputs[0].tolist(), labels[0].tolist()

    assert labels_of("last_ignored") == ([5, 6, 7, 8], [6, -100, 8, -100])
    assert labels_of("last_dropped") == ([5, 6, 7, 8], [6, -100, 8])
    assert labels_of("extra_token") == ([5, 6, 7], [6, -100, 8])


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
    one = accumulate_gradients(whole, batch(), RECIPE)
    two = accumulate_gradients(parts, batch(), replace(RECIPE, instances_per_microbatch=4))

    # 4 and 2 rows: sums of fp32 numbers in another order.
    torch.testing.assert_close(one.logged, two.logged, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.z_loss, two.z_loss, rtol=1e-6, atol=0)
    assert one.num_targets == two.num_targets


def test_ranks_divide_by_their_own_denominators() -> None:
    """Rank r holds every W-th row; the step is the mean of the ranks' means, not the mean over the batch."""
    counts = batch().counts_as_target.copy()
    counts[0, 4:] = False
    hidden = replace(batch(), counts_as_target=counts, counted_by_trainer=counts)
    ranks = [
        replace(
            hidden,
            token_ids=hidden.token_ids[rank::2],
            counts_as_target=counts[rank::2],
            counted_by_trainer=counts[rank::2],
            filtered=hidden.filtered[rank::2],
        )
        for rank in range(2)
    ]
    together = accumulate_gradients(state(), hidden, replace(RECIPE, num_ranks=2))
    apart = [accumulate_gradients(state(), rank, RECIPE).logged for rank in ranks]

    torch.testing.assert_close(together.logged, (apart[0] + apart[1]) / 2, rtol=1e-6, atol=0)
    assert together.logged != accumulate_gradients(state(), hidden, RECIPE).logged


@pytest.mark.parametrize(
    ("rule", "denominator"),
    [("targets", 4 * 11 + 8), ("targets_and_filtered", 4 * 11 + 8 + 12), ("tokens", 6 * 12)],
)
def test_each_rule_has_its_own_denominator(rule: str, denominator: int) -> None:
    """Row 1 is filtered as a whole, and row 2 hides 3 tokens by a label mask."""
    counts = batch().counts_as_target.copy()
    counts[1], counts[2, 3:6] = False, False
    hidden = replace(batch(), counts_as_target=counts, counted_by_trainer=counts, filtered=np.arange(6) == 1)
    stated = accumulate_gradients(state(), replace(hidden, loss_denominator=denominator), RECIPE)
    ruled = accumulate_gradients(state(), hidden, replace(RECIPE, denominator=rule))  # type: ignore[arg-type]

    assert ruled.logged.item() == stated.logged.item()


@pytest.mark.parametrize("rule", ["targets", "targets_and_filtered", "tokens"])
def test_what_an_edit_hides_leaves_every_denominator(rule: str) -> None:
    counts = batch().counts_as_target.copy()
    counts[3] = False
    recipe = replace(RECIPE, denominator=rule)  # type: ignore[arg-type]
    masked = accumulate_gradients(state(), replace(batch(), counts_as_target=counts), recipe).logged.item()
    whole = {"targets": 66, "targets_and_filtered": 66, "tokens": 72}[rule]
    expected = accumulate_gradients(
        state(), replace(batch(), counts_as_target=counts, loss_denominator=whole - 11), recipe
    ).logged.item()

    assert masked == expected


def test_a_withheld_step_computes_its_loss_and_changes_no_weight() -> None:
    training = state()
    before = content_hash(weight_tensors(training))
    result = train_step(training, replace(batch(), outcome="withheld"), RECIPE)

    assert np.isfinite(result.loss) and result.skipped and (training.step, training.num_skipped) == (1, 1)
    assert content_hash(weight_tensors(training)) == before and not moment_tensors(training)


def test_a_skipped_step_counts_its_tokens_and_computes_nothing() -> None:
    training = state()
    result = train_step(training, replace(batch(), outcome="skipped"), RECIPE)

    assert np.isnan(result.loss) and result.skipped and training.tokens == 72 and not gradients(training)


def test_attention_ends_at_document_borders() -> None:
    """A document's loss does not depend on what stood before it in the row; without the mask it does."""
    one = batch(rows=1)
    ids = one.token_ids.copy()
    ids[0, 5] = 49
    other = ids.copy()
    other[0, :5] = (other[0, :5] + 1) % 48
    counts = one.counts_as_target.copy()
    counts[0, :7] = False

    def loss(tokens: np.ndarray, end: int | None) -> float:
        rows = replace(one, token_ids=tokens, counts_as_target=counts, counted_by_trainer=counts)
        return accumulate_gradients(state(), rows, replace(RECIPE, document_end_token=end)).logged.item()

    # The mask takes another kernel: equal up to rounding.
    assert loss(ids, 49) == pytest.approx(loss(other, 49), rel=1e-6)
    assert loss(ids, None) != pytest.approx(loss(other, None), rel=1e-4)


def test_a_masked_row_teaches_nothing_and_the_rest_weighs_the_same() -> None:
    """Masking a row with the old denominator gives the gradient of the other rows' summed loss over all targets."""
    counts = np.ones((6, 12), dtype=bool)
    counts[2] = False
    masked, dropped = state(), state()
    accumulate_gradients(masked, replace(batch(), counts_as_target=counts, loss_denominator=66), RECIPE)
    others = [0, 1, 3, 4, 5]
    fewer = replace(
        batch(rows=5),
        token_ids=batch().token_ids[others],
        counts_as_target=counts[others],
        counted_by_trainer=counts[others],
        loss_denominator=66,
    )
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
