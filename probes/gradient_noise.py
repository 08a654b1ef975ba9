"""Gradient-noise scale: how many instances a batch needs until its gradient is more signal than noise.

Let G be the expected gradient of an instance, and S the trace of the covariance of the gradients of single instances.
The mean gradient of a batch of B independent instances then has E|g_B|^2 = |G|^2 + S / B. Its squared length at two
batch sizes, b < B, gives both without bias, and the simple noise scale S / |G|^2, in instances:

    |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)          S = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)

The small batches may be parts of the large one, down to single instances: with b = 1, S is the unbiased sample variance
of the instances' gradients. Of a quotient, estimates without bias of both terms are no estimate without bias: average
|G|^2 and S over measurements before dividing (as is done here with all that is handed in at once), and read the scale
with its error: |G|^2 of too few instances may come out near 0 or below, and the scale is then NaN.

Source: McCandlish, Kaplan, Amodei 2018, arXiv 1812.06162, appendix A.1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from data_index.errors import InvalidRange
from probes.differentiable_loss import differentiable_mean_loss
from probes.norms import group_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNoise:
    """
    Attributes:
        squared_gradient: |G|^2, of the expected gradient of one instance's mean loss; may come out below 0.
        variance: S, the trace of the covariance of the gradients of single instances, in the same unit.
        num_instances: that were measured.
    """

    squared_gradient: float
    variance: float
    num_instances: int

    @property
    def noise_scale(self) -> float:
        """S / |G|^2, instances; NaN where |G|^2 was not told from 0."""
        return self.variance / self.squared_gradient if self.squared_gradient > 0 else math.nan


def noise_from_two_sizes(
    small_squares: np.ndarray, big_squares: np.ndarray, *, small_instances: int, big_instances: int
) -> GradientNoise:
    """From squared norms of mean gradients of small and of big batches, however many of each; both are averaged first.

    Args:
        small_squares, big_squares: |g|^2 of each batch, at the same weights.
        small_instances, big_instances: in one batch.
    Raises:
        InvalidRange: the small batch is not the smaller one.
    """
    b, big = small_instances, big_instances
    if not 0 < b < big:
        raise InvalidRange(
            f"the gradient-noise scale needs batches of two sizes, got {b} and {big} instances: hand in more than one "
            "small batch, of at least one instance"
        )
    small_square = float(np.mean(small_squares, dtype=np.float64))
    big_square = float(np.mean(big_squares, dtype=np.float64))
    return GradientNoise(
        squared_gradient=(big * big_square - b * small_square) / (big - b),
        variance=(small_square - big_square) / (1 / b - 1 / big),
        num_instances=big * np.size(big_squares),
    )


def noise_from_instances(instance_norms: np.ndarray, mean_gradient_norm: float) -> GradientNoise:
    """From the norm of each instance's gradient and the norm of the mean of all these gradients.

    Args:
        instance_norms: [instances], L2, as `probes.instance_gradients` gives them for a sum of the instances' losses
            (not for their mean, which makes each one's gradient `instances` times too small).
    """
    return noise_from_two_sizes(
        np.square(instance_norms, dtype=np.float64),
        np.array([mean_gradient_norm**2]),
        small_instances=1,
        big_instances=len(instance_norms),
    )


def gradient_noise(model: torch.nn.Module, token_ids: np.ndarray, rows_at_once: int = 1) -> GradientNoise:
    """The gradient-noise scale of a causal language model on some token rows, each of them one instance.

    One forward and one backward pass over all rows, of any architecture: the mean gradient of each `rows_at_once` rows
    is the small batch, that of all rows the big one. With 1 the variance is known best, more are faster. In a row, each
    predicted token counts the same. Besides the gradient of a small batch, the sum of all is held, in fp32.

    The model stays as it is, what its parameters have in `.grad` too.

    Args:
        token_ids: [rows, length], a multiple of `rows_at_once` rows, at least two times as many.
    Raises:
        InvalidRange: the rows are fewer, or not a multiple.
    """
    num_rows = len(token_ids)
    if rows_at_once < 1 or num_rows % rows_at_once or num_rows < 2 * rows_at_once:
        raise InvalidRange(
            f"{num_rows} rows cannot be cut into two or more small batches of {rows_at_once}: choose a multiple"
        )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    squares = []
    for start in range(0, num_rows, rows_at_once):
        gradient = mean_gradient(model, parameters, token_ids[start : start + rows_at_once])
        squares.append(group_norm(gradient) ** 2)
        for name, part in zip(sums, gradient, strict=True):
            sums[name] += part
    return noise_from_two_sizes(
        np.array(squares),
        np.array([(group_norm(sums.values()) / len(squares)) ** 2]),
        small_instances=rows_at_once,
        big_instances=num_rows,
    )


def mean_gradient(
    model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], token_ids: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Gradient of the mean cross-entropy, nats per token, by each parameter; zeros where it takes no part."""
    with torch.inference_mode(False), torch.enable_grad():
        loss = differentiable_mean_loss(model, token_ids)
        return torch.autograd.grad(loss, tuple(parameters.values()), allow_unused=True, materialize_grads=True)
