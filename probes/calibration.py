"""Is a model's most probable next token right as often as its probability says?

The expected calibration error is the mean over targets of |accuracy − mean confidence| of the bin they fall in, where
the confidence is the probability of the most probable token, and bins are of equal width.

Source: Guo et al. 2017 (arXiv 1706.04599); Brier 1950 (the score of all classes, 0 to 2)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.prediction_blocks import PredictionBlock

NUM_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reliability:
    """Of every bin of confidence; bin b of n holds confidences above b / n up to (b + 1) / n.

    Attributes:
        num_targets: int64 of shape [bins].
        mean_confidence, accuracy: shares, fp64 of shape [bins]; NaN where no target falls.
        brier_score: the mean over targets of Σ_y (q(y) − [y came])², 0 to 2; NaN where there are none, or where a
            prediction is not finite.
        num_not_finite: targets whose prediction is not finite, and which are in no bin.
    """

    num_targets: np.ndarray
    mean_confidence: np.ndarray
    accuracy: np.ndarray
    brier_score: float
    num_not_finite: int

    @property
    def expected_calibration_error(self) -> float:
        """A share, 0 to 1; NaN where there is no target, or where a prediction is not finite."""
        return self._mean_over_targets(np.abs(self.accuracy - self.mean_confidence))

    @property
    def overall_accuracy(self) -> float:
        """Share of targets that were the most probable token; NaN as the error is."""
        return self._mean_over_targets(self.accuracy)

    @property
    def overall_confidence(self) -> float:
        """Mean probability of the most probable token, a share; NaN as the error is."""
        return self._mean_over_targets(self.mean_confidence)

    def _mean_over_targets(self, of_bins: np.ndarray) -> float:
        if self.num_not_finite or not self.num_targets.sum():
            return float("nan")
        filled = self.num_targets > 0
        return float(of_bins[filled] @ self.num_targets[filled] / self.num_targets.sum())


class Calibration:
    """Reliability of the most probable next token, gathered over the blocks of a pass."""

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        self._num_targets = np.zeros(num_bins, dtype=np.int64)
        self._num_right = np.zeros(num_bins, dtype=np.int64)
        self._confidence = np.zeros(num_bins)
        self._squares, self._num_not_finite = 0.0, 0

    def add(self, block: PredictionBlock) -> None:
        most, guesses = block.log_probabilities.max(dim=-1)
        confidence = most.double().exp().cpu().numpy()
        finite = np.isfinite(confidence)
        self._num_not_finite += int((~finite).sum())
        confidence, right = confidence[finite], (guesses == block.targets).cpu().numpy()[finite]
        bins = confidence_bins(confidence, len(self._num_targets))
        self._num_targets += np.bincount(bins, minlength=len(self._num_targets))
        self._num_right += np.bincount(bins[right], minlength=len(self._num_targets))
        self._confidence += np.bincount(bins, weights=confidence, minlength=len(self._num_targets))
        squares = (2 * block.log_probabilities).exp().sum(dim=-1).double()
        of_targets = block.log_probabilities.gather(1, block.targets[:, None])[:, 0].double().exp()
        self._squares += float((squares - 2 * of_targets + 1).sum())

    @property
    def reliability(self) -> Reliability:
        with np.errstate(invalid="ignore"):
            return Reliability(
                num_targets=self._num_targets.copy(),
                mean_confidence=self._confidence / self._num_targets,
                accuracy=self._num_right / self._num_targets,
                brier_score=self._squares / total if (total := int(self._num_targets.sum())) else float("nan"),
                num_not_finite=self._num_not_finite,
            )


def confidence_bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """The 0-based bin of each confidence; a border belongs to the bin below it."""
    return np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
