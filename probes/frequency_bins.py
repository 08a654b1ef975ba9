"""Bins of tokens by how often the training data hold them: unseen tokens, then tenths from rare to frequent.

The loss of each bin is the grouped loss (probes/grouped_loss.py) of `bin_of_token[token_ids]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

UNSEEN = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrequencyBins:
    """
    Attributes:
        bin_of_token: int64 of shape [vocabulary]: 0 where a token is unseen, else 1 (rarest) to the number of bins.
        bin_ids: of the bins that hold a token, rising; the other arrays say of each of them:
        num_tokens: how many entries of the vocabulary; least_count, most_count: of them in the training data.
    """

    bin_of_token: np.ndarray
    bin_ids: np.ndarray
    num_tokens: np.ndarray
    least_count: np.ndarray
    most_count: np.ndarray


def frequency_bins(
    counts: np.ndarray, *, num_bins: int = 10, equal: Literal["tokens", "occurrences"] = "tokens"
) -> FrequencyBins:
    """Quantile bins of the unigram count, which are those of its logarithm as well.

    Tokens of one count stay together: they are all in the bin where the middle of them falls. So bins are equal but for
    ties, and a bin can be empty where many tokens have the same count.

    Args:
        counts: of every entry of the vocabulary in the training data, integers ≥ 0 of shape [vocabulary].
        equal: what each bin holds as much of: entries of the vocabulary, or their occurrences in the training data.
            With "tokens", most of a text falls into the last bins.
    """
    seen_counts, group, sizes = np.unique(counts[counts > 0].astype(np.int64), return_inverse=True, return_counts=True)
    held = sizes * (seen_counts if equal == "occurrences" else 1)
    # In integers, so that no border depends on rounding: twice the middle of what the tokens of a count hold.
    middles = 2 * np.cumsum(held) - held
    total = int(held.sum())
    of_counts = np.array([num_bins * int(middle) // (2 * total) + 1 for middle in middles], dtype=np.int64)
    bin_of_token = np.full(len(counts), UNSEEN, dtype=np.int64)
    bin_of_token[counts > 0] = of_counts[group]
    bin_ids, num_tokens = np.unique(bin_of_token, return_counts=True)
    of_bins = [counts[bin_of_token == one] for one in bin_ids]
    return FrequencyBins(
        bin_of_token=bin_of_token,
        bin_ids=bin_ids,
        num_tokens=num_tokens,
        least_count=np.array([one.min() for one in of_bins], dtype=np.int64),
        most_count=np.array([one.max() for one in of_bins], dtype=np.int64),
    )
