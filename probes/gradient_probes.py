"""Probes that take gradients of a model's loss: the gradient-noise scale and the local learning coefficient.

Both leave the model as it was, what its parameters have in `.grad` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.errors import InvalidRange
from probes.differentiable_loss import differentiable_mean_loss
from probes.gradient_noise import gradient_noise
from probes.learning_coefficient import LangevinSampling, local_learning_coefficient
from probes.probe import Measurement
from probes.row_bootstrap import Estimate

_SQUARED = "nats per token, squared"
_NORMAL_95 = 1.96  # standard errors on each side that hold 95 % of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GradientNoiseProbe:
    """How many instances a batch needs until its gradient is more signal than noise, and the two parts of that.

    Attributes:
        token_ids: integers of shape [rows, length], each row one instance; a multiple of `rows_at_once` rows, at least
            two times as many.
        rows_at_once: rows of a small batch; with 1 the variance is known best, more are faster.
    """

    token_ids: np.ndarray
    rows_at_once: int = 1

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        found = gradient_noise(model, self.token_ids, self.rows_at_once)
        return [
            Measurement(metric="noise scale", value=found.noise_scale, unit="instances"),
            Measurement(metric="squared gradient", value=found.squared_gradient, unit=_SQUARED),
            Measurement(metric="variance", value=found.variance, unit=_SQUARED),
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCoefficientProbe:
    """How many directions the loss resists around the weights, all parameters sampled together.

    The interval is that of the chains' mean, 1.96 standard errors on each side; there is none of a single chain.

    Attributes:
        token_ids: integers of shape [rows, length], a multiple of `rows_at_once` rows. Their predicted tokens are the
            instances that the loss is the mean over.
        sampling: of which the estimate depends on all: the same at every checkpoint.
        rows_at_once: rows of the batch of each step.
    """

    token_ids: np.ndarray
    sampling: LangevinSampling
    rows_at_once: int = 8

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        found = local_learning_coefficient(
            dict(model.named_parameters()),
            lambda weights, batch: differentiable_mean_loss(model, batch, weights),
            self._batches(),
            num_instances=self.token_ids[:, 1:].size,
            sampling=self.sampling,
        )
        half = _NORMAL_95 * found.standard_error
        estimate = Estimate(
            value=found.estimate,
            low=found.estimate - half,
            high=found.estimate + half,
            num_clusters=len(found.by_chain),
        )
        return [
            Measurement.of("estimate", estimate, "1"),
            Measurement(metric="drift", value=found.drift, unit="1"),
            Measurement(metric="loss", value=found.loss, unit="nats per token"),
        ]

    def _batches(self) -> list[np.ndarray]:
        num_rows = len(self.token_ids)
        if self.rows_at_once < 1 or not num_rows or num_rows % self.rows_at_once:
            raise InvalidRange(
                f"{num_rows} rows cannot be cut into batches of {self.rows_at_once}: choose a multiple, so that every "
                "row counts the same"
            )
        return np.split(self.token_ids, num_rows // self.rows_at_once)
