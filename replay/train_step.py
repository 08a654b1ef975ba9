"""One optimizer step; the only place where a model is changed, for good (`train_step`) or for a while (`perturbed`).

    read batch -> labels -> forward and backward, a micro-batch at a time -> clip -> learning rate -> optimizer

The arithmetic follows the trainers to the operation, because bits depend on the order: cross-entropy and z-loss are
summed over a micro-batch (`replay.batch_losses`) and divided once by the denominator of the whole batch, each
micro-batch is backpropagated alone, and the gradient norm is taken over parameters in the trainer's order.

Sources: Python packages ai2-olmo-core 3.0.0 (train/train_module/transformer/train_module.py)
and ai2-olmo 0.6.0 (olmo/train.py, olmo/optim.py); EleutherAI/gpt-neox v1.0
(megatron/training.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from data_index.batch import Batch
from data_index.errors import InvalidEdit
from replay.batch_losses import microbatches, summed_losses
from replay.recipe import Recipe
from replay.skip_step import SkipStepAdamW
from replay.train_state import TrainState


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
        cross_entropy, z = summed_losses(state.model, ids, wanted, recipe)
        if torch.is_grad_enabled():
            ((cross_entropy + z) / denominator).backward()
        loss += (cross_entropy / denominator).detach()
        z_loss += (z / denominator).detach()
    return Losses(logged=loss + z_loss if recipe.logs_z_loss_in_loss else loss, z_loss=z_loss, num_targets=num_targets)


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


@contextmanager
def perturbed(model: torch.nn.Module, direction: Mapping[str, torch.Tensor], scale: float) -> Iterator[None]:
    """Add `scale * direction` to the weights inside the block; after it they have their own bits again, in any case.

    The weights themselves stay untouched beside the moved ones, so that inside the block the weights that `direction`
    names are held twice. What the block does to the moved ones is lost.

    Args:
        direction: by parameter name; parameters that it does not name stay where they are.
    Raises:
        InvalidEdit: it names what the model does not have, or another shape.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in direction.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            there = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise InvalidEdit(f"the direction has {name} of shape {tuple(tensor.shape)}; the model has {there}")
    own = {name: parameters[name].data for name in direction}
    try:
        for name, weight in own.items():
            parameters[name].data = torch.add(weight, direction[name].detach().to(weight), alpha=scale)
        yield
    finally:
        for name, weight in own.items():
            parameters[name].data = weight
