"""What a probe is: something that measures one model and changes nothing, and says before what it needs.

There are three kinds. A `TensorProbe` needs a few stored tensors, and no model is built for it; a `PredictionProbe`
needs what the model predicts on some rows, so that all that look at the same rows share one forward pass; a
`ModelProbe` needs the model for itself. All data are bound to a probe when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from probes.prediction_blocks import PredictionStatistic
from probes.row_bootstrap import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number of one model.

    Attributes:
        metric: which of the probe's numbers it is.
        value: NaN where the model gives none.
        low, high: the 95 % interval, in the unit of the value; None where there is none.
        text: what a model wrote, where the number is about that.
    Raises:
        TypeError, ValueError, AttributeError, OverflowError: what is given is no number, interval or text.
    """

    metric: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        """They come from users' functions and from files too, and are written to a table at the end of a sweep."""
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.metric} has one end of an interval")
        for name in ("value",) if self.low is None else ("value", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for text in (self.metric, self.unit, *([] if self.text is None else [self.text])):
            text.encode()

    @classmethod
    def of(cls, metric: str, found: Estimate, unit: str) -> Measurement:
        """An estimate with its interval, where it has one."""
        has_interval = math.isfinite(found.low) and math.isfinite(found.high)
        return cls(
            metric=metric,
            value=found.value,
            unit=unit,
            low=found.low if has_interval else None,
            high=found.high if has_interval else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenRows:
    """Rows of tokens that a model is asked to predict.

    Attributes:
        token_ids: integers of shape [rows, length].
        scored: bool of the same shape, which tokens count; None: all.
        clusters: of each row, int64 [rows]: rows of one cluster (a document, a batch) are not independent; None: each
            row is its own.
    """

    token_ids: np.ndarray
    scored: np.ndarray | None = None
    clusters: np.ndarray | None = None


@runtime_checkable
class TensorProbe(Protocol):
    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> Collection[str]:
        """Which tensors it needs, of those that are stored (transformers' names)."""

    def measure_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Sequence[Measurement]:
        """
        Args:
            tensors: at least those, on one device, in the dtype they are stored in.
        """


@runtime_checkable
class PredictionProbe(Protocol):
    @property
    def rows(self) -> TokenRows: ...

    def statistic(self) -> PredictionStatistic:
        """A new one, to be gathered over one pass."""

    def measure_predictions(self, statistic: Any) -> Sequence[Measurement]: ...


@runtime_checkable
class ModelProbe(Protocol):
    def measure_model(self, model: Any) -> Sequence[Measurement]:
        """
        Args:
            model: a causal language model of transformers, in evaluation mode.
        """


Probe = TensorProbe | PredictionProbe | ModelProbe
