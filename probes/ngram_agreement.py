"""How near a model's predictions are to the unigram and bigram distributions of its training data.

KL(n-gram ‖ model), averaged over places of a text: Σ_y p(y) · (log p(y) − log q(y)), where p are relative frequencies
without smoothing and q is what the model predicts there. Early in training a model comes near the unigrams, then near
the bigrams, and then leaves both behind, for it takes more context into account.

A place where the token before was never counted as the first of a bigram has no bigram distribution: it is left out of
the bigrams' mean, and counted.

Source: Belrose et al. 2024 (arXiv 2402.04362) on the order in which n-gram statistics are learned
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probes.prediction_blocks import PredictionBlock

_TARGETS_AT_ONCE = 64  # in fp64, each with a whole vocabulary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BigramCounts:
    """How often one token follows another, by the first of them.

    Attributes:
        starts: int64 of shape [first tokens + 1]: what follows token t stands at starts[t] : starts[t + 1].
        next_ids, counts: int64 of shape [pairs]; next ids rise for each first token, counts are above 0.
    """

    starts: np.ndarray
    next_ids: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_pairs(cls, first: np.ndarray, second: np.ndarray, counts: np.ndarray | None = None) -> BigramCounts:
        """From pairs of tokens in any order, the same pair several times if need be.

        Args:
            first, second: ids, integers of one shape. counts: of each pair, integers ≥ 0; None: each once.
        """
        times = np.ones(first.size, dtype=np.int64) if counts is None else counts.reshape(-1).astype(np.int64)
        counted = times > 0
        firsts, seconds = (ids.reshape(-1)[counted].astype(np.int64) for ids in (first, second))
        width = int(seconds.max(initial=-1)) + 1
        pairs, place = np.unique(firsts * width + seconds, return_inverse=True)
        summed = np.zeros(len(pairs), dtype=np.int64)
        np.add.at(summed, place, times[counted])
        num_following = np.bincount(pairs // max(width, 1))
        return cls(
            starts=np.concatenate([[0], np.cumsum(num_following)]).astype(np.int64),
            next_ids=pairs % max(width, 1),
            counts=summed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """
    Attributes:
        mean_kl: KL(n-gram ‖ model), nats, the mean over places; NaN where there is none.
        num_places: it is the mean of. num_left_out: scored places without an n-gram distribution.
    """

    mean_kl: float
    num_places: int
    num_left_out: int


class _PlaceValues:
    """KL(n-gram ‖ model) of every place, gathered part by part."""

    def __init__(self) -> None:
        self._places: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._num_left_out = 0

    @property
    def by_place(self) -> tuple[np.ndarray, np.ndarray]:
        """Places in a flattened array [rows, length - 1], int64, and KL(n-gram ‖ model) there, nats, fp64."""
        return (
            np.concatenate([np.zeros(0, dtype=np.int64), *self._places]),
            np.concatenate([np.zeros(0), *self._values]),
        )

    @property
    def agreement(self) -> Agreement:
        _, values = self.by_place
        mean = float(values.mean()) if len(values) else float("nan")
        return Agreement(mean_kl=mean, num_places=len(values), num_left_out=self._num_left_out)


class UnigramAgreement(_PlaceValues):
    """KL(unigram ‖ model), gathered over the blocks of a pass."""

    def __init__(self, counts: np.ndarray) -> None:
        """
        Args:
            counts: of every entry of the vocabulary in the training data, integers ≥ 0 of shape [vocabulary]; the
                model's vocabulary may be longer (padded).
        Raises:
            ValueError: nothing was counted.
        """
        super().__init__()
        ids = np.flatnonzero(counts)
        if not len(ids):
            raise ValueError("the unigram counts are all 0, so that there is no unigram distribution")
        shares = counts[ids].astype(np.float64) / int(counts.sum(dtype=np.int64))
        self._ids, self._shares = torch.from_numpy(ids), torch.from_numpy(shares)
        self._negative_entropy = float(shares @ np.log(shares))

    def add(self, block: PredictionBlock) -> None:
        _require_vocabulary(block, int(self._ids[-1]) + 1)
        device = block.log_probabilities.device
        ids, shares = self._ids.to(device), self._shares.to(device)
        for part in block.log_probabilities.split(_TARGETS_AT_ONCE):
            cross_entropy = -(part[:, ids].double() @ shares)
            self._values.append((self._negative_entropy + cross_entropy).cpu().numpy())
        self._places.append(block.places)


class BigramAgreement(_PlaceValues):
    """KL(bigram ‖ model), gathered over the blocks of a pass; the bigram is that of the token before the target."""

    def __init__(self, bigrams: BigramCounts) -> None:
        super().__init__()
        num_following = np.diff(bigrams.starts)
        running = np.concatenate([[0], np.cumsum(bigrams.counts)])
        of_first = np.diff(running[bigrams.starts])
        shares = bigrams.counts / np.repeat(of_first, num_following)
        first = np.repeat(np.arange(len(num_following)), num_following)
        negative_entropy = np.bincount(first, weights=shares * np.log(shares), minlength=len(num_following))
        self._starts, self._num_following = torch.from_numpy(bigrams.starts), torch.from_numpy(num_following)
        self._next_ids, self._shares = torch.from_numpy(bigrams.next_ids), torch.from_numpy(shares)
        self._negative_entropy = torch.from_numpy(negative_entropy)
        self._vocabulary = int(bigrams.next_ids.max(initial=-1)) + 1

    def add(self, block: PredictionBlock) -> None:
        _require_vocabulary(block, self._vocabulary)
        # The counts are large and the pairs of a few contexts few: they are looked up where the counts are.
        contexts = block.contexts.cpu()
        known = contexts < len(self._num_following)
        known[known.clone()] = self._num_following[contexts[known]] > 0
        self._num_left_out += int((~known).sum())
        for rows in known.nonzero()[:, 0].split(_TARGETS_AT_ONCE):
            self._values.append(self._kl_of(contexts[rows], block.log_probabilities, rows))
            self._places.append(block.places[rows.numpy()])

    def _kl_of(self, contexts: torch.Tensor, log_probabilities: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
        """Of each of some rows of the predictions."""
        lengths = self._num_following[contexts]
        first_pairs = torch.cumsum(lengths, 0) - lengths
        # Of every pair of every row: where it stands among all pairs.
        pairs = torch.arange(int(lengths.sum())) + (self._starts[contexts] - first_pairs).repeat_interleave(lengths)
        device = log_probabilities.device
        row, next_ids = rows.repeat_interleave(lengths).to(device), self._next_ids[pairs].to(device)
        terms = (self._shares[pairs].to(device) * log_probabilities[row, next_ids].double()).cpu().numpy()
        of_pair = torch.arange(len(rows)).repeat_interleave(lengths).numpy()
        cross_entropy = -np.bincount(of_pair, weights=terms, minlength=len(rows))
        return np.asarray(self._negative_entropy[contexts].numpy() + cross_entropy)


def _require_vocabulary(block: PredictionBlock, least: int) -> None:
    predicted = block.log_probabilities.shape[1]
    if predicted < least:
        raise ValueError(f"token {least - 1} was counted, but the model predicts only {predicted} tokens")
