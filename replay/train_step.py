"""One optimizer step; the only place where a model is changed.

    read batch -> labels -> forward and backward, a micro-batch at a time -> clip -> learning rate -> AdamW

The arithmetic follows OLMo-core's TransformerTrainModule to the operation, because bits depend on the order: the sum of
cross-entropy and z-loss is divided once by the number of targets of the whole batch, each micro-batch is backpropagated
alone, and the gradient norm is taken over parameters in the trainer's order.
Source: Python package ai2-olmo-core 3.0.0, train/train_module/transformer/train_module.py and
nn/functional/cross_entropy_loss.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from data_index.batch import Batch
from data_index.errors import InvalidEdit
from replay.recipe import Recipe
from replay.train_state import TrainState

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gives, as the trainer logs it.

    Attributes:
        loss: cross-entropy summed over targets and divided by the denominator, without z-loss; nats per token.
        z_loss: the z-loss term as added, with its multiplier.
        grad_norm: global L2 norm before clipping.
        tokens: consumed since the run's start.
        num_targets: tokens that counted in the loss.
        scalars, arrays: what observers saw.
    """

    step: int
    loss: float
    z_loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    num_targets: int
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
    loss, z_loss, num_targets = accumulate_gradients(state, batch, recipe)
    for observer in observers:
        observer.before_update(state, batch)

    parameters = state.parameters_in_order(recipe.parameter_order)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if recipe.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.max_grad_norm, grad_norm)
    learning_rate = recipe.schedule.learning_rate(recipe.learning_rate, batch.step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.step, state.tokens = batch.step, state.tokens + batch.num_tokens

    scalars: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for observer in observers:
        seen = observer.after_step(state, batch)
        scalars |= seen[0]
        arrays |= seen[1]
    state.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        step=batch.step,
        loss=loss.item(),
        z_loss=z_loss.item(),
        grad_norm=grad_norm.item(),
        learning_rate=learning_rate,
        tokens=state.tokens,
        num_targets=num_targets,
        scalars=scalars,
        arrays=arrays,
    )


def accumulate_gradients(state: TrainState, batch: Batch, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Backpropagate every micro-batch; returns cross-entropy, z-loss (0-d) and the number of targets."""
    token_ids = torch.from_numpy(batch.token_ids).to(state.device)
    labels = next_token_labels(token_ids, torch.from_numpy(batch.counts_as_target).to(state.device))
    targets = (labels != IGNORED).sum()
    num_targets = int(targets)
    if num_targets == 0:
        raise InvalidEdit(f"no token of step {batch.step} counts in the loss: leave at least one row unmasked")
    # A tensor on the device, not a number: CUDA multiplies by the reciprocal of a number.
    denominator = targets if batch.loss_denominator is None else torch.full_like(targets, batch.loss_denominator)

    loss, z_loss = torch.zeros([], device=state.device), torch.zeros([], device=state.device)
    rows = recipe.instances_per_microbatch or len(token_ids)
    for ids, wanted in zip(token_ids.split(rows), labels.split(rows), strict=True):
        with autocast(recipe, state.device):
            logits = state.model(input_ids=ids).logits
        cross_entropy, z = loss_sums(logits, wanted, recipe.z_loss)
        del logits  # its fp32 copy is what the backward pass needs
        ((cross_entropy + z) / denominator).backward()
        loss += (cross_entropy / denominator).detach()
        z_loss += (z / denominator).detach()
    return loss, z_loss, num_targets


def next_token_labels(token_ids: torch.Tensor, counts_as_target: torch.Tensor) -> torch.Tensor:
    """Labels of shape [rows, length]: the next token, or IGNORED at the row's end and where it does not count."""
    labels = torch.where(counts_as_target, token_ids, IGNORED)
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


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


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
