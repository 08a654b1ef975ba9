"""Learning-rate curves: the rate as a function of a base rate and of how far training has come.

One frozen record per shape, with the arithmetic of the trainer that used it: Python floats, the same operations in the
same order, because `a * b / c` and `a * (b / c)` differ in the last bit and so does every weight afterwards. Curves
made of other curves are in `joined_curves.py`, those of GPT-NeoX and Amber in `other_curves.py`; what a curve counts
(steps, tokens, updates) is said by `Schedule`.

Sources: Python packages ai2-olmo 0.6.0 (optim.py) and ai2-olmo-core 3.0.0 (optim/scheduler.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Protocol

from data_index.errors import UnsupportedRecipe


class Curve(Protocol):
    """A shape. Numbers whose name ends in `_steps` are in whatever the curve counts, which may be tokens."""

    kind: ClassVar[str]

    def learning_rate(self, base: float, current: int) -> float:
        """The rate at a count of steps, tokens or updates."""
        ...


# --- Shared arithmetic -------------------------------------------------------------------------------------------


def cosine_between(start: float, end: float, current: int, length: int) -> float:
    """From `start` at 0 to `end` at `length`, along half a wave."""
    # Multiplied before divided, as the trainers do: the other way round differs in the last bit.
    return end + (start - end) * (1 + math.cos(math.pi * current / length)) / 2


def linear_tail(start: float, end: float, num_left: int, length: int) -> float:
    """From `start` down to `end`, by how much of the tail is left; past the end it stays at `end`."""
    # A tail of no length has no trainer's answer (they divide by zero).
    if length == 0:
        return start
    return end + (start - end) * min(max(num_left, 0), length) / length


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """The straight ramp that most curves begin with.

    Attributes:
        warmup_steps: where the ramp ends.
        warmup_min: the rate that it starts from.
        warmup_min_fraction: start from this fraction of the base rate instead (OLMo's default is a tenth).
    """

    warmup_steps: int
    warmup_min: float = 0.0
    warmup_min_fraction: float | None = None

    def ramp(self, base: float, current: int) -> float:
        start = self.warmup_min if self.warmup_min_fraction is None else base * self.warmup_min_fraction
        return start + (base - start) * min(current, self.warmup_steps) / self.warmup_steps


# --- Curves ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The base rate throughout."""

    kind: ClassVar[str] = "constant"

    def learning_rate(self, base: float, current: int) -> float:
        return base


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantWithWarmup(WarmUp):
    """A ramp, then the base rate.

    Attributes:
        ramp_includes_end: the step `warmup_steps` itself is computed by the ramp's formula, which may differ from the
            base rate in the last bit: so in OLMo-core, not in OLMo.
    """

    kind: ClassVar[str] = "constant_with_warmup"
    ramp_includes_end: bool = False

    def learning_rate(self, base: float, current: int) -> float:
        on_ramp = current < self.warmup_steps or (self.ramp_includes_end and current == self.warmup_steps)
        return self.ramp(base, current) if on_ramp else base


@dataclass(frozen=True, slots=True, kw_only=True)
class RampAndDecay(WarmUp, ABC):
    """A ramp, a decay from its end, and then a constant rate.

    Attributes:
        max_steps: where the decay ends.
        alpha_final: the rate from there on, as a fraction of the base rate.
    """

    max_steps: int
    alpha_final: float = 0.1

    def learning_rate(self, base: float, current: int) -> float:
        final = base * self.alpha_final
        if current < self.warmup_steps:
            return self.ramp(self._peak(base, final), current)
        if current >= self.max_steps:
            return final
        return self._decay(base, final, current - self.warmup_steps, self.max_steps - self.warmup_steps)

    def _peak(self, base: float, final: float) -> float:
        return base

    @abstractmethod
    def _decay(self, base: float, final: float, done: int, length: int) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineWithWarmup(RampAndDecay):
    """Half a cosine wave down to a fraction of the base rate."""

    kind: ClassVar[str] = "cosine_with_warmup"

    def _decay(self, base: float, final: float, done: int, length: int) -> float:
        return cosine_between(base, final, done, length)


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCosineWithWarmup(RampAndDecay):
    """The second half of a cosine decay; the base rate is the peak of the whole one, never reached here."""

    kind: ClassVar[str] = "half_cosine_with_warmup"

    def _peak(self, base: float, final: float) -> float:
        return final + (base - final) / 2

    def _decay(self, base: float, final: float, done: int, length: int) -> float:
        return cosine_between(base, final, done + length, 2 * length)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWithWarmup(RampAndDecay):
    """A straight line down to a fraction of the base rate."""

    kind: ClassVar[str] = "linear_with_warmup"

    def _decay(self, base: float, final: float, done: int, length: int) -> float:
        return base - (base - final) * (done / length)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineLinearEnvelope(RampAndDecay):
    """A cosine decay multiplied by a linear one."""

    kind: ClassVar[str] = "cosine_linear_envelope"

    def _decay(self, base: float, final: float, done: int, length: int) -> float:
        envelope = 1 - done / length
        wave = (base - final) * (1 + math.cos(math.pi * done / length)) / 2
        return final + envelope * wave


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseSqrtWithWarmup(WarmUp):
    """A ramp, then a decay with the inverse square root, which never ends.

    Attributes:
        alpha_final: the fraction of the base rate that it tends to; 0 in OLMo.
    """

    kind: ClassVar[str] = "inverse_sqrt_with_warmup"
    alpha_final: float = 0.1

    def learning_rate(self, base: float, current: int) -> float:
        if current < self.warmup_steps:
            return self.ramp(base, current)
        final = base * self.alpha_final
        return final + (base - final) * math.sqrt(self.warmup_steps / current)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineOrInverseSqrt(WarmUp):
    """The higher of a cosine decay and an inverse-square-root decay (OLMo's max_scheduler).

    Attributes: as RampAndDecay; the inverse square root tends to 0.
    """

    kind: ClassVar[str] = "cosine_or_inverse_sqrt"
    max_steps: int
    alpha_final: float = 0.1

    def learning_rate(self, base: float, current: int) -> float:
        if current < self.warmup_steps:
            return self.ramp(base, current)
        cosine = CosineWithWarmup(
            warmup_steps=self.warmup_steps, max_steps=self.max_steps, alpha_final=self.alpha_final
        )
        inverse_sqrt = InverseSqrtWithWarmup(warmup_steps=self.warmup_steps, alpha_final=0.0)
        return max(cosine.learning_rate(base, current), inverse_sqrt.learning_rate(base, current))


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupStableDecay(WarmUp):
    """A ramp, the base rate, and a straight tail at the end (WSD).

    Attributes:
        max_steps: where the tail ends. decay_steps: its length. decay_min: the rate at its end.
    """

    kind: ClassVar[str] = "warmup_stable_decay"
    max_steps: int
    decay_steps: int
    decay_min: float = 0.0

    def learning_rate(self, base: float, current: int) -> float:
        if current <= self.warmup_steps and self.warmup_steps:
            return self.ramp(base, current)
        if current < self.max_steps - self.decay_steps:
            return base
        return linear_tail(base, self.decay_min, self.max_steps - current, self.decay_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerWithWarmup(WarmUp):
    """A ramp, a power law of current / warmup, and a straight tail at the end.

    Attributes:
        exponent: of the power law; negative.
        max_steps, decay_steps, decay_min: the tail, as in WarmupStableDecay.
    """

    kind: ClassVar[str] = "power_with_warmup"
    max_steps: int
    decay_steps: int
    exponent: float = -0.51
    decay_min: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup_steps:
            raise UnsupportedRecipe(f"{self.kind} needs warmup_steps of at least 1: it is a power of current / warmup")
        if self.decay_steps >= self.max_steps > self.warmup_steps:
            raise UnsupportedRecipe(f"{self.kind} needs decay_steps shorter than max_steps")

    def learning_rate(self, base: float, current: int) -> float:
        if current <= self.warmup_steps:
            return self.ramp(base, current)
        tail = self.max_steps - self.decay_steps
        if current < tail:
            return self._power(base, current)
        return linear_tail(self._power(base, tail), self.decay_min, self.max_steps - current, self.decay_steps)

    def _power(self, base: float, current: int) -> float:
        return float(base * (current / self.warmup_steps) ** self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineWithLinearDecay(WarmUp):
    """A cosine decay that is cut short and followed by a straight tail.

    Attributes:
        max_steps, alpha_final: of the cosine.
        end_steps: where the tail ends: the length of the run, often equal to `max_steps`.
        decay_steps: the length of the tail. decay_min: the rate at its end.
    """

    kind: ClassVar[str] = "cosine_with_linear_decay"
    max_steps: int
    end_steps: int
    decay_steps: int
    alpha_final: float = 0.1
    decay_min: float = 0.0

    def learning_rate(self, base: float, current: int) -> float:
        cosine = CosineWithWarmup(
            warmup_steps=self.warmup_steps,
            warmup_min=self.warmup_min,
            warmup_min_fraction=self.warmup_min_fraction,
            max_steps=self.max_steps,
            alpha_final=self.alpha_final,
        )
        tail = self.end_steps - self.decay_steps
        if current < tail:
            return cosine.learning_rate(base, current)
        start = cosine.learning_rate(base, tail)
        return linear_tail(start, self.decay_min, self.end_steps - current, self.decay_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupStableDecayPeriods(WarmUp):
    """One ramp, then periods that each hold a rate and end in a straight tail (WSD-S).

    Attributes:
        period_steps: length of each period; the first includes the ramp.
        decay_steps: length of the tail of each.
        period_factors: the rate of each, as a factor of the base rate.
        decay_min: the rate at the end of every tail, and after the last.
    """

    kind: ClassVar[str] = "warmup_stable_decay_periods"
    period_steps: tuple[int, ...]
    decay_steps: tuple[int, ...]
    period_factors: tuple[float, ...]
    decay_min: float = 0.0

    def learning_rate(self, base: float, current: int) -> float:
        if current < self.warmup_steps:
            return self.ramp(base * self.period_factors[0], current)
        ends = list(accumulate(self.period_steps))
        if current >= ends[-1]:
            return self.decay_min
        # The trainer counts a period's last step to it and not to the next.
        period = next(index for index, end in enumerate(ends) if current <= end)
        rate, decay, num_left = base * self.period_factors[period], self.decay_steps[period], ends[period] - current
        return rate if num_left > decay else linear_tail(rate, self.decay_min, num_left, decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """Growth from a small rate to the base rate, by a constant factor a step (a learning-rate range test)."""

    kind: ClassVar[str] = "exponential"
    max_steps: int
    start: float = 1e-9

    def learning_rate(self, base: float, current: int) -> float:
        if current >= self.max_steps:
            return base
        if current == 0:
            return self.start
        return float(self.start * (base / self.start) ** (current / self.max_steps))
