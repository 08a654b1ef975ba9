"""How much reading a row lowered its loss, without training anything: difference-in-differences over checkpoints.

Rows of a cohort were read between two checkpoints, g − 1 and g. From g − 1 to a checkpoint c their loss falls by more
than that of rows which were not read by then; the difference is what having read them did:

    memorization(g, c) = [loss(g−1) − loss(c)] of the cohort − [loss(g−1) − loss(c)] of unread rows

in nats per token, where both would have fallen alike (parallel trends) and nothing was read ahead. At checkpoints
before g − 1 it should be 0, which is how that can be checked. Unread rows are those not read by the later of c and g.

Source: Lesci et al. 2024 (arXiv 2406.04327), there of sequence log-likelihoods and with held-out rows as control
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from probes.row_bootstrap import Estimate, estimate_of

# Of a cohort's four means: its own before and after, the unread rows' before and after.
_SIGNS = np.array([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorization:
    """
    Attributes:
        cohort: the first checkpoint after the rows were read; checkpoint: at which they are looked at. Both are places
            in the array of checkpoints, 0-based.
        effect: nats per token; above 0 where having read the rows lowered their loss.
        num_treated, num_control: rows.
    """

    cohort: int
    checkpoint: int
    effect: Estimate
    num_treated: int
    num_control: int


def difference_in_differences(
    before: np.ndarray,
    after: np.ndarray,
    is_treated: np.ndarray,
    *,
    num_tokens: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How much more the loss of treated rows fell than that of the others, nats per token.

    The interval is a bootstrap over rows, or clusters of rows (documents, batches); a row's two losses stay together.

    Args:
        before, after: mean loss of each row at two checkpoints, nats per token, [rows].
        is_treated: bool [rows]: read between the two; the others were read by neither.
        num_tokens: that each row's loss is the mean of, by which it counts; None: all rows count the same.
    """
    totals, counts = _four_means(before, after, is_treated, ~is_treated, num_tokens)
    return estimate_of(totals, counts, _SIGNS, clusters=clusters, num_draws=num_draws, seed=seed)


def memorization_profile(
    losses: np.ndarray,
    first_checkpoints: np.ndarray,
    *,
    num_tokens: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> list[Memorization]:
    """Every cohort at every checkpoint but the one right before it, where there are unread rows to compare with.

    Args:
        losses: mean loss of each row at each checkpoint, nats per token, [checkpoints, rows], in training order.
        first_checkpoints: of each row [rows], the place of the first checkpoint after it was first read; the number of
            checkpoints where it was read by none of them. Rows read by the very first have no loss before, and are
            left out.
    """
    cell_of = partial(memorization_of, num_tokens=num_tokens, clusters=clusters, num_draws=num_draws, seed=seed)
    cells = [
        cell_of(losses, first_checkpoints, cohort, checkpoint)
        for cohort in range(1, len(losses))
        for checkpoint in range(len(losses))
    ]
    return [cell for cell in cells if cell is not None]


def memorization_of(
    losses: np.ndarray,
    first_checkpoints: np.ndarray,
    cohort: int,
    checkpoint: int,
    *,
    num_tokens: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Memorization | None:
    """One cohort at one checkpoint, both 0-based places in the array of checkpoints; other args as for the profile.

    Returns:
        None for a cohort without a checkpoint before it, for that checkpoint, and where there are no rows of the cohort
        or no unread ones.
    """
    treated, control = _arms(first_checkpoints, cohort, checkpoint)
    if not 1 <= cohort < len(losses) or checkpoint == cohort - 1 or not treated.any() or not control.any():
        return None
    means = _four_means(losses[cohort - 1], losses[checkpoint], treated, control, num_tokens)
    return Memorization(
        cohort=cohort,
        checkpoint=checkpoint,
        effect=estimate_of(*means, _SIGNS, clusters=clusters, num_draws=num_draws, seed=seed),
        num_treated=int(treated.sum()),
        num_control=int(control.sum()),
    )


def mean_memorization(
    losses: np.ndarray,
    first_checkpoints: np.ndarray,
    *,
    checkpoints_later: int = 0,
    num_tokens: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean over cohorts, each as many times as it has rows, so many checkpoints after the first that read it.

    All cohorts are drawn together, for they share unread rows.

    Raises:
        ValueError: no cohort can be compared with unread rows.
    """
    totals, counts, signs = [], [], []
    for cohort in range(1, len(losses) - checkpoints_later):
        treated, control = _arms(first_checkpoints, cohort, cohort + checkpoints_later)
        if treated.any() and control.any():
            before, after = losses[cohort - 1], losses[cohort + checkpoints_later]
            of_cohort = _four_means(before, after, treated, control, num_tokens)
            totals.append(of_cohort[0])
            counts.append(of_cohort[1])
            signs.append(_SIGNS * int(treated.sum()))
    if not totals:
        raise ValueError("no rows were read between two of the checkpoints while others were not read by the later one")
    weights = _normalized(signs)
    joined = np.concatenate(totals, axis=1), np.concatenate(counts, axis=1)
    return estimate_of(*joined, weights, clusters=clusters, num_draws=num_draws, seed=seed)


def _normalized(signs: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(signs) / sum(float(one[0]) for one in signs)


def _arms(first_checkpoints: np.ndarray, cohort: int, checkpoint: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are of a cohort, and which were not read by it nor by a checkpoint."""
    return first_checkpoints == cohort, first_checkpoints > max(cohort, checkpoint)


def _four_means(
    before: np.ndarray, after: np.ndarray, treated: np.ndarray, control: np.ndarray, num_tokens: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Totals and counts of each row, [rows, 4]."""
    weights = np.ones(len(before)) if num_tokens is None else num_tokens.astype(np.float64)
    counts = np.stack([weights * treated, weights * treated, weights * control, weights * control], axis=1)
    losses = np.stack([before, after, before, after], axis=1)
    return np.where(counts > 0, counts * losses, 0), counts
