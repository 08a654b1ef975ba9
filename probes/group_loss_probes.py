"""Probes of the loss of some of the tokens: by group (domain, tag), by position in the row, by frequency in training.

Groups without a scored token are left out, so that which metrics there are depends on the rows and never on the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.frequency_bins import FrequencyBins, frequency_bins
from probes.loss import TokenLosses
from probes.position_loss import EARLY, LATE, in_context_learning_score
from probes.prediction_probes import NATS_PER_TOKEN, bits_measurement, has_targets, loss_measurement
from probes.probe import Measurement, TokenRows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupLoss:
    """Loss, and bits per byte, of each of several groups of tokens.

    Attributes:
        groups: which tokens are in each group, bool [rows, length], by its name; a token may be in several or in none.
        utf8_bytes: of each token, integers of shape [rows, length]; None: no bits per byte. A group whose scored tokens
            stand for no text has none either.
    """

    rows: TokenRows
    groups: Mapping[str, np.ndarray]
    utf8_bytes: np.ndarray | None = None

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        found = [
            loss_measurement(f"loss, {name}", statistic.losses, self.rows, members)
            for name, members in self.groups.items()
            if has_targets(self.rows, members)
        ]
        if self.utf8_bytes is None:
            return found
        return found + [
            bits_measurement(f"bits per byte, {name}", statistic.losses, self.rows, self.utf8_bytes, members)
            for name, members in self.groups.items()
            if has_targets(self.rows, members & (self.utf8_bytes > 0))
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossByPosition:
    """How loss falls with the context: the in-context-learning score, and the loss in windows that double.

    The score is the loss at late positions less that at early ones. Rows of at least 500 tokens are measured at the
    500th and the 50th, as published; the metric is then "in-context score". In shorter ones it is the last tenth of the
    row less as many positions around one tenth of it, and the metric names them, as the score depends on them:
    "in-context score, positions 59-64 less 3-8". Rows of less than three tokens have none.

    Attributes:
        early, late: positions of the score, 1-based and half-open; None: those above. Positions that the rows do not
            have are a ValueError.
    """

    rows: TokenRows
    early: range | None = None
    late: range | None = None

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        by_window = [
            loss_measurement(f"loss, {_positions(window)}", statistic.losses, self.rows, self._tokens_at(window))
            for window in doubling_windows(self.rows.token_ids.shape[1])
            if has_targets(self.rows, self._tokens_at(window))
        ]
        return [*self._score(statistic.losses), *by_window]

    def _score(self, losses: np.ndarray) -> list[Measurement]:
        """None where positions were not asked for and rows are too short, or have no scored token at one side."""
        defaults = score_windows(self.rows.token_ids.shape[1])
        early, late = self.early or defaults[0], self.late or defaults[1]
        is_known = all(has_targets(self.rows, self._tokens_at(window)) for window in (early, late))
        if (early, late) == defaults and (early.stop > late.start or not is_known):
            return []
        is_published = (early, late) == (EARLY, LATE)
        metric = "in-context score" + ("" if is_published else f", {_positions(late)} less {_range(early)}")
        found = in_context_learning_score(
            losses, early=early, late=late, scored=self.rows.scored, clusters=self.rows.clusters
        )
        return [Measurement.of(metric, found, NATS_PER_TOKEN)]

    def _tokens_at(self, window: range) -> np.ndarray:
        num_rows, length = self.rows.token_ids.shape
        positions = np.arange(1, length + 1)
        inside = (window.start <= positions) & (positions < window.stop)
        return np.broadcast_to(inside, (num_rows, length))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossByFrequency:
    """The loss of tokens by how often the training data hold them: unseen ones, then from rare to frequent.

    Attributes:
        counts: of every entry of the vocabulary in the training data, integers ≥ 0 of shape [vocabulary]. The metrics'
            names depend on them, so hand in the same at every checkpoint.
    """

    rows: TokenRows
    counts: np.ndarray
    num_bins: int = 10

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        largest = int(self.rows.token_ids.max(initial=-1))
        if largest >= len(self.counts):
            raise ValueError(f"the rows hold token {largest}, and there are counts of {len(self.counts)} tokens only")
        bins = frequency_bins(self.counts, num_bins=self.num_bins)
        bin_of = bins.bin_of_token[self.rows.token_ids]
        return [
            loss_measurement(f"loss, {name}", statistic.losses, self.rows, bin_of == bin_id)
            for bin_id, name in _named_bins(bins)
            if has_targets(self.rows, bin_of == bin_id)
        ]


def doubling_windows(length: int) -> list[range]:
    """Positions 2-3, 4-7, 8-15 and so on to the last, 1-based and half-open."""
    starts = [2**power for power in range(1, length.bit_length())]
    return [range(start, min(2 * start, length + 1)) for start in starts]


def score_windows(length: int) -> tuple[range, range]:
    """Early and late positions of the in-context-learning score for rows of a length, 1-based and half-open."""
    if length >= LATE.stop - 1:
        return EARLY, LATE
    width = max(length // 10, 1)
    start = max(length // 10 - width // 2, 2)
    return range(start, start + width), range(length + 1 - width, length + 1)


def _positions(window: range) -> str:
    return f"position{'s' * (len(window) > 1)} {_range(window)}"


def _range(window: range) -> str:
    return f"{window.start}-{window.stop - 1}" if len(window) > 1 else str(window.start)


def _named_bins(bins: FrequencyBins) -> Iterator[tuple[int, str]]:
    for bin_id, least, most in zip(bins.bin_ids, bins.least_count, bins.most_count, strict=True):
        yield int(bin_id), f"tokens counted {least}-{most} times" if bin_id else "unseen"
