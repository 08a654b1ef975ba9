"""How long a run goes on: in the trainers' configs, and in the two counts that steps and schedules may need.

Trainers work this out again at every step, from what is left; within a stretch of constant batch size their answer does
not change, so here it is worked out once, from where such a stretch begins.
Sources: Python packages ai2-olmo 0.6.0 (train.py) and ai2-olmo-core 3.0.0 (train/trainer.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from data_index.errors import CorruptFile, UnsupportedRecipe

Unit = Literal["steps", "tokens", "epochs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long a run goes on, or a point that it comes to, as its config says."""

    value: int
    unit: Unit

    def is_reached(self, steps: int, tokens: int, epochs: int) -> bool:
        """Has the run come this far: steps taken, tokens consumed, whole epochs read?"""
        return {"steps": steps, "tokens": tokens, "epochs": epochs}[self.unit] >= self.value

    def batches_until(self, steps: int, tokens: int, tokens_per_batch: int) -> int | None:
        """Batches from here until it is reached; None for epochs, whose ends are looked at anyway."""
        if self.unit == "steps":
            return max(self.value - steps, 0)
        return max(-(-(self.value - tokens) // tokens_per_batch), 0) if self.unit == "tokens" else None


def olmo_duration(text: int | str) -> Duration:
    """`max_duration` of the legacy OLMo trainer: steps as a number, "2e12T" tokens, "1ep" epochs.

    Raises:
        UnsupportedRecipe: none of these.
    """
    try:
        if isinstance(text, str) and text.endswith("T"):
            return Duration(value=int(float(text[:-1])), unit="tokens")
        if isinstance(text, str) and text.endswith("ep"):
            return Duration(value=int(text[:-2]), unit="epochs")
        return Duration(value=int(float(text)), unit="steps")
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsupportedRecipe(f"config.yaml: max_duration = {text!r} is not a duration") from error


def olmo_core_duration(table: Mapping[str, Any], where: str) -> Duration:
    """`{value, unit}` of OLMo-core's configs.

    Raises:
        CorruptFile: it names another unit.
    """
    unit = str(table["unit"])
    if unit not in get_args(Unit):
        raise CorruptFile(f"config.json: {where} is in {unit!r}, which is neither steps, tokens nor epochs")
    return Duration(value=int(table["value"]), unit=unit)  # type: ignore[arg-type]


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
