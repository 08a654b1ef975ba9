"""Learning-rate curves that are made of others, or of stages. Arithmetic and sources: as `curves.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from data_index.errors import UnsupportedRecipe
from replay.curves import Curve, cosine_between

Shape = Literal["linear", "cosine"]


def interpolated(shape: Shape, start: float, end: float, current: int, length: int) -> float:
    """From `start` at 0 to `end` at `length`."""
    if shape == "cosine":
        return cosine_between(start, end, current, length)
    return start + (end - start) * current / length


@dataclass(frozen=True, slots=True, kw_only=True)
class BoltOnWarmup:
    """A second warm-up from zero, joining another curve where that one has gone on meanwhile.

    OLMo does this after a restart that forgets the optimizer's state (`reset_optimizer_state`).

    Attributes:
        start_steps, end_steps: where the ramp begins (the restart) and meets the curve.
    """

    kind: ClassVar[str] = "bolt_on_warmup"
    curve: Curve
    start_steps: int
    end_steps: int

    def learning_rate(self, base: float, current: int) -> float:
        if current < self.start_steps:
            return 0.0
        if current >= self.end_steps:
            return self.curve.learning_rate(base, current)
        target = self.curve.learning_rate(base, self.end_steps)
        return target * (current - self.start_steps) / (self.end_steps - self.start_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateDecay:
    """Another curve until a point, and from there a decay to an end (OLMo-core's override_decay).

    Attributes:
        start_steps, decay_steps: where the decay begins, and its length.
        end, end_fraction: the rate afterwards, absolute or as a fraction of the base rate; exactly one is set.
    """

    kind: ClassVar[str] = "late_decay"
    curve: Curve
    start_steps: int
    decay_steps: int
    shape: Shape = "linear"
    end: float | None = None
    end_fraction: float | None = None

    def __post_init__(self) -> None:
        _require_one_end(self)

    def learning_rate(self, base: float, current: int) -> float:
        if current < self.start_steps:
            return self.curve.learning_rate(base, current)
        end = _absolute(base, self.end, self.end_fraction, base)
        if current >= self.start_steps + self.decay_steps:
            return end
        start = self.curve.learning_rate(base, self.start_steps)
        return interpolated(self.shape, start, end, current - self.start_steps, self.decay_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch from one rate to another.

    Attributes:
        start, start_fraction: the first rate, absolute or as a fraction of the base rate; neither: where the stage
            before ended, or the base rate. At most one is set.
        end, end_fraction: the last rate; exactly one is set.
    """

    duration_steps: int
    shape: Shape = "linear"
    start: float | None = None
    start_fraction: float | None = None
    end: float | None = None
    end_fraction: float | None = None

    def __post_init__(self) -> None:
        _require_one_end(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Stages one after another; the last one's end afterwards (OLMo-core's composable scheduler)."""

    kind: ClassVar[str] = "stages"
    stages: tuple[Stage, ...]

    def learning_rate(self, base: float, current: int) -> float:
        begin, previous = 0, base
        for stage in self.stages:
            end = _absolute(base, stage.end, stage.end_fraction, previous)
            if current < begin + stage.duration_steps:
                start = _absolute(base, stage.start, stage.start_fraction, previous)
                return interpolated(stage.shape, start, end, current - begin, stage.duration_steps)
            begin, previous = begin + stage.duration_steps, end
        return previous


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Curves one after another, each counting from its own start, with the rate the one before ended at as its base.

    Attributes:
        curve_steps: how long each curve but the last runs.
    """

    kind: ClassVar[str] = "sequence"
    curves: tuple[Curve, ...]
    curve_steps: tuple[int, ...]

    def learning_rate(self, base: float, current: int) -> float:
        for curve, length in zip(self.curves[:-1], self.curve_steps, strict=True):
            if current <= length:
                return curve.learning_rate(base, current)
            base, current = curve.learning_rate(base, length), current - length
        return self.curves[-1].learning_rate(base, current)


def _require_one_end(record: LateDecay | Stage) -> None:
    if (record.end is None) == (record.end_fraction is None):
        raise UnsupportedRecipe("a decay of the schedule needs either an end or an end_fraction")


def _absolute(base: float, rate: float | None, fraction: float | None, otherwise: float) -> float:
    if rate is not None:
        return rate
    return otherwise if fraction is None else base * fraction
