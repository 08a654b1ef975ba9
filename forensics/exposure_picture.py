"""The picture of a run's exposures: ids as targets, most frequent first, and how many ids were seen by when."""

from __future__ import annotations

import numpy as np

from forensics.figure import Figure, Panel, Series
from forensics.token_counts import TokenExposures


def picture_of(found: TokenExposures, vocabulary_size: int | None) -> Figure:
    """Exposures at the last record by rank, and ids seen over steps.

    Args:
        vocabulary_size: rows of the model's embedding, to tell how many ids were never seen; None: not known.
    """
    table = found.table(step=found.last)
    targets = np.sort(table.column("as_target").to_numpy())[::-1]
    targets = targets[targets > 0]
    never = "" if vocabulary_size is None else f", {vocabulary_size - len(targets):,} of {vocabulary_size:,} ids never"
    first_steps = np.sort(table.column("first_step").drop_null().to_numpy())
    steps, new = np.unique(first_steps, return_counts=True)
    ranks = Panel(
        title=f"As target in the loss, by rank: {len(targets):,} ids{never}",
        y_label="times",
        x_label="rank of the token id",
        series=[Series(name="times", x=np.arange(1, len(targets) + 1).tolist(), y=targets.tolist())],
        log_x=True,
        log_y=True,
    )
    seen = Panel(
        title="Token ids seen so far",
        y_label="ids",
        series=[Series(name="ids", x=[*steps.tolist(), found.last], y=[*np.cumsum(new).tolist(), len(first_steps)])],
    )
    return Figure(
        title=f"Token exposures of {found.run}, steps {found.first + 1}..{found.last}",
        x_label="step",
        panels=[ranks, seen],
        shared_x=False,
    )
