"""One optimizer step; the only place where a model is changed.

    read batch -> labels -> forward and backward, a micro-batch at a time -> clip -> learning rate -> optimizer

The arithmetic follows the trainers to the operation, because bits depend on the order: cross-entropy and z-loss are
summed over a micro-batch and divided once by the denominator of the whole batch, each micro-batch is backpropagated
alone, and the gradient norm is taken over parameters in the trainer's order.

Sources: Python packages ai2-olmo-core 3.0.0 (train/train_module/transformer/train_module.py,
nn/functional/cross_entropy_loss.py) and ai2-olmo 0.6.0 (olmo/train.py, olmo/optim.py); EleutherAI/gpt-neox v1.0
(megatron/training.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from data_index.batch import Batch, denominator_of_rows
from data_index.errors import InvalidEdit
from replay.models import document_masks
from replay.recipe import Recipe
from replay.skip_step import SkipStepAdamW
from replay.train_state import TrainState

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gives, as the trainer logs it.

    Attributes:
        loss: cross-entropy summed over targets and divided by the denominator, without z-loss unless the trainer logs
            it so; nats per token. NaN for a step whose batch was consumed without computing anything.
        z_loss: the z-loss term as added, with its multiplier.
        grad_norm: global L2 norm before clipping.
        tokens: consumed since the run's start.
        num_targets: tokens that counted in the loss.
        skipped: the update was not applied: by the optimizer's own rule, or because the trainer did not.
        scalars, arrays: what observers saw.
    """

    step: int
    loss: float
    z_loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    num_targets: int
    skipped: bool = False
    scalars: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Observer(Protocol):
    """Looks at a step without changing it. It is called at three moments of every step.

    before_step: weights as they were. before_update: gradients, not yet clipped. after_step: weights and moments
    afterwards; it returns scalars and arrays to be kept with the step.
    """

    def before_step(self, state: TrainState, batch: Batch) -> None: ...

    def before_update(self, state: TrainState, batch: Batch) -> None: ...

    def after_step(self, state: TrainState, batch: Batch) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]: ...


def train_step(state: TrainState, batch: Batch, recipe: Recipe, observers: Sequence[Observer] = ()) -> StepResult:
    """Take step `state.step + 1` on a batch; changes `state` in place.

    Raises:
        InvalidEdit: no token of the batch counts as a target.
    """
    for observer in observers:
        observer.before_step(state, batch)
    # The trainers count a step's tokens before they look up its learning rate.
    tokens = state.tokens + len(batch.token_ids) * recipe.tokens_per_instance(batch.token_ids.shape[1])
    learning_rate = recipe.learning_rate_of(batch.step, tokens, state.num_skipped)
    if batch.outcome == "skipped":
        losses, grad_norm, skipped = Losses.nothing(), math.nan, True
    else:
        losses = accumulate_gradients(state, batch, recipe)
        for observer in observers:
            observer.before_update(state, batch)
        norm = clip_gradients(state, recipe, batch.step, tokens)
        grad_norm = norm.item()
        skipped = update(state, recipe, learning_rate, losses, norm, withheld=batch.outcome == "withheld")
    state.step, state.tokens = batch.step, tokens
    state.num_skipped += skipped

    scalars: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for observer in observers:
        seen = observer.after_step(state, batch)
        scalars |= seen[0]
        arrays |= seen[1]
    state.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        step=batch.step,
        loss=losses.logged.item(),
        z_loss=losses.z_loss.item(),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        tokens=state.tokens,
        num_targets=losses.num_targets,
        skipped=skipped,
        scalars=scalars,
        arrays=arrays,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses of a step, 0-d tensors: `logged` as the trainer logs cross-entropy."""

    logged: torch.Tensor
    z_loss: torch.Tensor
    num_targets: int

    @classmethod
    def nothing(cls) -> Losses:
        return cls(logged=torch.tensor(math.nan), z_loss=torch.tensor(math.nan), num_targets=0)


def accumulate_gradients(state: TrainState, batch: Batch, recipe: Recipe) -> Losses:
    """Backpropagate every micro-batch of every rank; under `torch.no_grad()` their losses alone.

    Rank r of W holds every W-th row from the r-th on. Each divides by its own denominator, and gradients are averaged
    over ranks: where rows are hidden this is not the mean over the batch, and it is what the trainers did.
    """
    num_targets = int(batch.counts_as_target[:, 1:].sum())
    if num_targets == 0:
        raise InvalidEdit(f"no token of step {batch.step} counts in the loss: leave at least one row unmasked")
    loss, z_loss = torch.zeros([], device=state.device), torch.zeros([], device=state.device)
    for ids, wanted, denominator in microbatches(batch, recipe, state.device):
        cross_entropy, z = microbatch_losses(state, ids, wanted, recipe)
        if torch.is_grad_enabled():
            ((cross_entropy + z) / denominator).backward()
        loss += (cross_entropy / denominator).detach()
        z_loss += (z / denominator).detach()
    return Losses(logged=loss + z_loss if recipe.logs_z_loss_in_loss else loss, z_loss=z_loss, num_targets=num_targets)


def microbatches(
    batch: Batch, recipe: Recipe, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids, which of them are targets, and the denominator: of each micro-batch of each rank in turn."""
    token_ids = torch.from_numpy(batch.token_ids).to(device)
    counts = torch.from_numpy(batch.counts_as_target).to(device)
    by_row = denominator_of_rows(batch, recipe.denominator)
    ranks = min(recipe.num_ranks, len(token_ids))
    for rank in range(ranks):
        whole = by_row[rank::ranks].sum() * ranks if batch.loss_denominator is None else batch.loss_denominator
        if not whole:
            continue
        # A tensor on the device, not a number: CUDA multiplies by the reciprocal of a number.
        denominator = torch.tensor(int(whole), device=device)
        rows, counted = token_ids[rank::ranks], counts[rank::ranks]
        size = recipe.instances_per_microbatch or len(rows)
        for ids, wanted in zip(rows.split(size), counted.split(size), strict=True):
            yield ids, wanted, denominator


def microbatch_losses(
    state: TrainState, token_ids: torch.Tensor, counts: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and z-loss of a micro-batch, with gradients.

    Args:
        token_ids, counts: [rows, length]; what is read, and which of it counts as a target.
    """
    inputs, labels = inputs_and_labels(token_ids, counts, recipe)
    settings = {}
    if recipe.document_end_token is not None:
        settings["attention_mask"] = document_masks(inputs, recipe.document_end_token, recipe.model)
    with autocast(recipe, state.device):
        logits = state.model(input_ids=inputs, **settings).logits
    if recipe.labels == "last_dropped":
        logits = logits[:, :-1].contiguous()
    return loss_sums(logits, labels, recipe.z_loss)


def inputs_and_labels(
    token_ids: torch.Tensor, counts: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model reads, and the next token at each place where its loss is taken (IGNORED: no target).

    The last token of a row predicts nothing (`last_ignored` keeps its place in the sum, `last_dropped` takes it out
    first: equal in exact arithmetic, not in bits), or is only predicted (`extra_token`).
    """
    labels = torch.where(counts, token_ids, IGNORED)[:, 1:]
    if recipe.labels == "extra_token":
        return token_ids[:, :-1], labels
    return token_ids, F.pad(labels, (0, 1), value=IGNORED) if recipe.labels == "last_ignored" else labels


def loss_sums(logits: torch.Tensor, labels: torch.Tensor, z_multiplier: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and z-loss of a micro-batch in fp32.

    Args:
        logits: [rows, length, vocabulary]. labels: [rows, length].
    """
    flat, wanted = logits.float().view(-1, logits.shape[-1]), labels.reshape(-1)
    cross_entropy = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="sum")
    if not z_multiplier:
        return cross_entropy, torch.zeros_like(cross_entropy)
    z_squared = (flat.logsumexp(-1).pow(2) * (wanted != IGNORED)).sum()
    return cross_entropy, z_multiplier * z_squared


def clip_gradients(state: TrainState, recipe: Recipe, step: int, tokens: int) -> torch.Tensor:
    """Scale all gradients to the limit that is in force; returns their global L2 norm before, 0-d.

    The norm is that of the trainer's own parameters, fused projections as one, in the trainer's order.
    """
    parameters = state.trainer_parameters(recipe)
    gradients = [[p.grad for p in tensors if p.grad is not None] for tensors in parameters]
    if recipe.parameter_order == "olmo":
        # One fused gradient at a time, so that no second copy of all of them is held.
        fused = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in gradients if parts)
        norms = torch.stack([torch.linalg.vector_norm(gradient, 2.0, dtype=torch.float32) for gradient in fused])
        norm = (norms**2.0).sum() ** 0.5
    else:
        norm = torch.nn.utils.get_total_norm([gradient for parts in gradients for gradient in parts])
    limit = recipe.max_grad_norm_of(step, tokens, restarted=state.restarted)
    if limit is not None:
        flat = [p for tensors in parameters for p in tensors]
        torch.nn.utils.clip_grads_with_norm_(flat, limit, norm)
    state.restarted = False
    return norm


def update(
    state: TrainState, recipe: Recipe, learning_rate: float, losses: Losses, norm: torch.Tensor, *, withheld: bool
) -> bool:
    """Change the weights; returns True where nothing changed because the update was skipped."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    if withheld:
        return True
    if not isinstance(state.optimizer, SkipStepAdamW):
        state.optimizer.step()
        return False
    # Without clipping the trainer takes no norm, and judges by the loss alone.
    state.optimizer.window.append(losses.logged, None if recipe.max_grad_norm is None else norm)
    state.optimizer.step()
    return state.optimizer.skipped_last_step


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
