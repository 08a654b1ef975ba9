"""How long a run goes on, in the two counts that a schedule may need.

Trainers work this out again at every step, from what is left; within a stretch of constant batch size their answer does
not change, so here it is worked out once, from where such a stretch begins.
Sources: Python packages ai2-olmo 0.6.0 (train.py) and ai2-olmo-core 3.0.0 (train/trainer.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_index.errors import UnsupportedRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long a run goes on, as its config says."""

    value: int
    unit: Literal["steps", "tokens", "epochs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a stretch of constant batch size begins: the run's start, or the checkpoint it was taken up from.

    Attributes:
        step, tokens: as the trainer counts them there.
        batches: taken from the data, if not one a step.
        tokens_per_step: from there on.
        batches_per_epoch: None: not known; needed only for durations in epochs.
    """

    tokens_per_step: int
    step: int = 0
    tokens: int = 0
    batches: int | None = None
    batches_per_epoch: int | None = None


def max_steps(duration: Duration, progress: Progress) -> int:
    """The step that training ends at, as the trainers count it.

    Raises:
        UnsupportedRecipe: a duration in epochs, whose length is not known.
    """
    if duration.unit == "steps":
        return duration.value
    if duration.unit == "tokens":
        return progress.step + math.ceil(max(duration.value - progress.tokens, 0) / progress.tokens_per_step)
    if progress.batches_per_epoch is None:
        raise UnsupportedRecipe(
            f"the schedule ends after {duration.value} epochs, and the number of batches in an epoch is not known"
        )
    batches = progress.step if progress.batches is None else progress.batches
    return progress.step + max(duration.value * progress.batches_per_epoch - batches, 0)


def max_tokens(duration: Duration, progress: Progress) -> int:
    """The tokens that training ends at, as the trainers count them. Raises: as max_steps."""
    if duration.unit == "tokens":
        return duration.value
    return progress.tokens + max(max_steps(duration, progress) - progress.step, 0) * progress.tokens_per_step
