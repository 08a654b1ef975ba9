"""Which steps and rows to suspect, from measurements that cost little: the order in which rows are taken away."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest

import numpy as np

from data_index.batch import Batch, denominator_of_rows
from forensics.removal import Place
from forensics.spike_window import SpikeWindow
from forensics.window_replay import TakenStep
from probes.gradient_shares import signed_shares
from probes.instance_gradients import instance_gradient_norms
from replay.batch_losses import batch_losses, loss_of_rows, row_weights
from replay.recipe import Recipe
from replay.train_state import TrainState
from replay.train_step import perturbed

MOST_STEPS = 3
MOVED_SHARE = 0.1  # of the excess, by one update
MOVED_Z = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowGradients:
    """What the rows of a step did to its gradient, under the weights before it.

    Attributes:
        shares: fp64 of shape [rows], mean 1. token_shares: [rows, length - 1].
        norms: fp64 of shape [rows]; L2 norm of each row's part of the step's gradient.
        grad_norm: of the whole step, before clipping.
        agreement: how well the shares' finite difference adds up; 1 is exact.
        token_losses: fp32 of shape [rows, length - 1], 0 where a token is no target.
        weights: fp64 of shape [rows]; what each row's summed losses count in the step's loss.
        remaining: fp64 of shape [rows]; the share of what the step's loss is divided by that lies in other rows.
    """

    shares: np.ndarray
    token_shares: np.ndarray
    norms: np.ndarray
    grad_norm: float
    agreement: float
    token_losses: np.ndarray
    weights: np.ndarray
    remaining: np.ndarray

    @property
    def losses_without(self) -> np.ndarray:
        """The step's loss without each row alone, the rest divided by what remains; [rows]."""
        sums = self.token_losses.sum(axis=1, dtype=np.float64) * self.weights
        finite = np.isfinite(sums)
        known = np.where(finite, sums, 0.0)
        # Not by subtraction: a row that is no number would make all others so.
        others = np.where((~finite).sum() > ~finite, np.nan, known.sum() - known)
        return np.divide(others, self.remaining, out=np.full(len(sums), np.nan), where=self.remaining > 0)

    @property
    def norms_without(self) -> np.ndarray:
        """The same of the gradient norm: |g - g_i|^2 = |g|^2 (1 - 2 c_i / n) + |g_i|^2."""
        squares = self.grad_norm**2 * (1 - 2 * self.shares / len(self.shares)) + self.norms**2
        norms = np.sqrt(np.maximum(squares, 0.0))
        return np.divide(norms, self.remaining, out=np.full(len(norms), np.nan), where=self.remaining > 0)

    @property
    def broken(self) -> np.ndarray:
        """Rows whose own loss or gradient is no number, where others' are; their numbers, int64."""
        broken = ~np.isfinite(self.token_losses).all(axis=1) | ~np.isfinite(self.norms)
        return np.flatnonzero(broken & ~broken.all())


@dataclass(slots=True, kw_only=True)
class GradientTrace:
    """An observer that measures the rows of a step once its gradients are there: four forwards and a backward."""

    recipe: Recipe
    steps: dict[int, RowGradients] = field(default_factory=dict)

    def before_step(self, state: TrainState, batch: Batch) -> None: ...

    def before_update(self, state: TrainState, batch: Batch) -> None:
        self.steps[batch.step] = row_gradients(state, batch, self.recipe)

    def after_step(self, state: TrainState, batch: Batch) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        return {}, {}


def row_gradients(state: TrainState, batch: Batch, recipe: Recipe) -> RowGradients:
    """Measure a batch whose gradients are in the parameters' `grad`; weights and gradients are left as they are.

    The shares are computed in fp32 whatever the recipe says: in bf16 the finite difference drowns in rounding.
    """
    model, device = state.model, state.device
    gradient = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
    exact = replace(recipe, precision="fp32")
    weights = row_weights(batch, recipe, device=device)
    shares = signed_shares(
        lambda: batch_losses(model, batch, exact, device=device, with_z_loss=True),
        lambda scale: perturbed(model, gradient, scale),
        weights,
        gradient.values(),
    )
    squares = [float(g.double().square().sum()) for g in gradient.values()]
    counted = denominator_of_rows(batch, recipe.denominator)
    return RowGradients(
        shares=shares.instances.cpu().numpy(),
        token_shares=shares.tokens.cpu().numpy(),
        norms=norms_of_rows(state, batch, recipe),
        grad_norm=sum(squares) ** 0.5,
        agreement=shares.agreement,
        token_losses=batch_losses(model, batch, recipe, device=device).cpu().numpy(),
        weights=weights.cpu().numpy(),
        remaining=1 - counted / max(batch.loss_denominator or int(counted.sum()), 1),
    )


def norms_of_rows(state: TrainState, batch: Batch, recipe: Recipe) -> np.ndarray:
    """The L2 norm of each row's part of a step's gradient, fp64 of shape [rows]; one forward and one backward pass."""
    size = recipe.instances_per_microbatch or len(batch.token_ids)
    norms = [
        instance_gradient_norms(
            state.model, partial(loss_of_rows, state.model, batch, recipe, rows, device=state.device)
        )
        for rows in (slice(first, first + size) for first in range(0, len(batch.token_ids), size))
    ]
    return np.concatenate([part.double().cpu().numpy() for part in norms])


def robust_z(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Robust standard deviations above the median of a base; NaN stays NaN."""
    base = base[np.isfinite(base)]
    if len(base) < 3:
        return np.full(len(values), np.nan)
    median = np.median(base)
    scale = max(1.4826 * float(np.median(np.abs(base - median))), 1e-9)
    return np.asarray((values - median) / scale)


def suspect_steps(window: SpikeWindow, taken: Sequence[TakenStep], excess: float | None) -> list[int]:
    """The peak's step, and the steps whose updates raised the loss of its batch most: rising, three at most.

    An update counts that did a tenth of the excess and stands out from the window's others; where none does, the one
    that raised the loss most, if that is as much (of a spiking gradient norm, no other is suspected). An update after
    which the loss is no number raised it most of all.
    """
    moved = {step.step: _raised(step) for step in taken if step.moved is not None}
    values = np.array(list(moved.values()))
    standing_out = robust_z(values, values)
    # An excess of the gradient norm is in other units than what updates do to the loss.
    known = window.measure == "loss" and excess is not None
    least = MOVED_SHARE * max(excess or 0.0, 0.0) if known else 0.0
    if not math.isfinite(least):
        least = sys.float_info.max
    ranked = sorted(zip(moved, values, standing_out, strict=True), key=lambda row: -row[1])
    chosen = [step for step, by, z in ranked if by > least and not z < MOVED_Z]
    if known and not chosen and ranked and ranked[0][1] > least:
        chosen = [ranked[0][0]]
    return sorted({window.peak, *chosen[: MOST_STEPS - 1]})


def _raised(step: TakenStep) -> float:
    """By how much an update raised the loss of the peak's batch; infinite where it then is no number any more."""
    assert step.moved is not None
    if math.isfinite(step.moved):
        return step.moved
    return math.inf if math.isfinite(step.peak_loss_before) else 0.0


def order_of_rows(
    window: SpikeWindow,
    gradients: Mapping[int, RowGradients],
    loss_z: Mapping[int, np.ndarray],
) -> list[Place]:
    """All rows of the suspect steps, those first that any measurement finds extreme.

    Rows that are no numbers come first. The measurements take turns, so that none is trusted alone: what the peak's own
    batch comes to without the row (exact there, but for several ranks), share of the gradient, gradient norm, and loss
    under the checkpoint's weights.
    """
    broken = [(step, int(row)) for step, found in gradients.items() for row in found.broken]
    rankings: list[list[Place]] = []
    if window.peak in gradients:
        own = gradients[window.peak]
        without = own.losses_without if window.measure == "loss" else own.norms_without
        rankings.append(_ranked({window.peak: -without}))
    rankings.append(_ranked({step: found.shares for step, found in gradients.items()}))
    rankings.append(_ranked({step: found.norms / found.grad_norm for step, found in gradients.items()}))
    rankings.append(_ranked({step: loss_z[step] for step in gradients if step in loss_z}))
    order = (place for places in zip_longest(*rankings) for place in places if place is not None)
    return list(dict.fromkeys([*broken, *order]))


def _ranked(scores: Mapping[int, np.ndarray]) -> list[Place]:
    """Places by falling score; those without a number last."""
    places = [(step, row) for step, values in scores.items() for row in range(len(values))]
    flat = np.concatenate([np.empty(0), *(np.nan_to_num(values, nan=-np.inf) for values in scores.values())])
    return [places[number] for number in np.argsort(-flat, kind="stable")]
