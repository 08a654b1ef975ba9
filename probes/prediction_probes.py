"""Probes of what a model predicts on token rows: loss, bits per byte, distance from n-grams, calibration.

Losses of parts of the rows are in probes/group_loss_probes.py, of rows by when they were read in
probes/row_loss_probes.py. Every mean that is known row by row has a bootstrap interval over rows, or clusters of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.calibration import Calibration
from probes.grouped_loss import bits_per_byte_estimate, mean_loss_estimate
from probes.loss import TokenLosses
from probes.ngram_agreement import BigramAgreement, BigramCounts, UnigramAgreement
from probes.prediction_blocks import targets_of
from probes.probe import Measurement, TokenRows
from probes.row_bootstrap import Estimate, estimate_of

NATS_PER_TOKEN = "nats per token"
BITS_PER_BYTE = "bits per byte"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanLoss:
    """Mean cross-entropy of all scored tokens."""

    rows: TokenRows

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        return [loss_measurement("loss", statistic.losses, self.rows)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BitsPerByte:
    """The loss of all scored tokens by the UTF-8 bytes they stand for, to compare models with other tokenizers.

    Attributes:
        utf8_bytes: of each token, integers of shape [rows, length]; 0 for tokens that stand for no text.
    """

    rows: TokenRows
    utf8_bytes: np.ndarray

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        return [bits_measurement("bits per byte", statistic.losses, self.rows, self.utf8_bytes)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnigramKL:
    """KL(unigram ‖ model), the mean over all scored tokens.

    Attributes:
        counts: of every entry of the vocabulary in the training data, integers ≥ 0 of shape [vocabulary].
    """

    rows: TokenRows
    counts: np.ndarray

    def statistic(self) -> UnigramAgreement:
        return UnigramAgreement(self.counts)

    def measure_predictions(self, statistic: UnigramAgreement) -> Sequence[Measurement]:
        return [Measurement.of("KL(unigram || model)", _kl_estimate(statistic, self.rows), NATS_PER_TOKEN)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BigramKL:
    """KL(bigram ‖ model), the mean over the scored tokens before which stands one that the bigrams were counted of."""

    rows: TokenRows
    bigram_counts: BigramCounts

    def statistic(self) -> BigramAgreement:
        return BigramAgreement(self.bigram_counts)

    def measure_predictions(self, statistic: BigramAgreement) -> Sequence[Measurement]:
        return [Measurement.of("KL(bigram || model)", _kl_estimate(statistic, self.rows), NATS_PER_TOKEN)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationError:
    """Is the most probable next token right as often as its probability says? Without intervals."""

    rows: TokenRows

    def statistic(self) -> Calibration:
        return Calibration()

    def measure_predictions(self, statistic: Calibration) -> Sequence[Measurement]:
        found = statistic.reliability
        return [
            Measurement(metric="expected calibration error", value=found.expected_calibration_error, unit="share"),
            Measurement(metric="Brier score", value=found.brier_score, unit="1"),
            Measurement(metric="accuracy", value=found.overall_accuracy, unit="share"),
            Measurement(metric="mean confidence", value=found.overall_confidence, unit="share"),
        ]


def loss_measurement(
    metric: str, losses: np.ndarray, rows: TokenRows, counted: np.ndarray | None = None
) -> Measurement:
    """Mean loss of the scored tokens, nats per token.

    Args:
        losses: nats of every token but the first, [rows, length - 1].
        counted: the only tokens that count, bool [rows, length]; None: all that are scored.
    """
    found = mean_loss_estimate(losses, scored=scored_among(rows, counted), clusters=rows.clusters)
    return Measurement.of(metric, found, NATS_PER_TOKEN)


def bits_measurement(
    metric: str, losses: np.ndarray, rows: TokenRows, utf8_bytes: np.ndarray, counted: np.ndarray | None = None
) -> Measurement:
    """Bits per UTF-8 byte of the scored tokens; NaN where they have no byte. Otherwise as `loss_measurement`."""
    if not has_targets(rows, utf8_bytes > 0 if counted is None else counted & (utf8_bytes > 0)):
        return Measurement(metric=metric, value=math.nan, unit=BITS_PER_BYTE)
    scored = scored_among(rows, counted)
    found = bits_per_byte_estimate(losses, utf8_bytes, scored=scored, clusters=rows.clusters)
    return Measurement.of(metric, found, BITS_PER_BYTE)


def has_targets(rows: TokenRows, counted: np.ndarray) -> bool:
    """Whether one of some tokens, bool [rows, length], is scored and not the first of its row."""
    return bool(targets_of(rows.token_ids.shape, scored_among(rows, counted)).any())


def scored_among(rows: TokenRows, counted: np.ndarray | None) -> np.ndarray | None:
    """Which of some tokens are scored, bool [rows, length]; None: all.

    Raises:
        ValueError: the mask is of another shape or type than the rows.
    """
    if counted is None:
        return rows.scored
    if counted.shape != rows.token_ids.shape or counted.dtype != np.bool_:
        raise ValueError(
            f"a mask of tokens is bool of shape {rows.token_ids.shape} here, not {counted.dtype} of {counted.shape}"
        )
    return counted if rows.scored is None else counted & rows.scored


def _kl_estimate(statistic: UnigramAgreement | BigramAgreement, rows: TokenRows) -> Estimate:
    """The mean over places, with an interval over rows."""
    places, values = statistic.by_place
    num_rows, length = rows.token_ids.shape
    row = places // max(length - 1, 1)
    totals = np.bincount(row, weights=values, minlength=num_rows)
    counts = np.bincount(row, minlength=num_rows)
    return estimate_of(totals[:, None], counts[:, None], [1.0], clusters=rows.clusters)
