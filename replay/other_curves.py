"""Learning-rate curves of GPT-NeoX and Amber. Arithmetic: the trainers', to the operation, as in `curves.py`.

Sources: EleutherAI/gpt-neox megatron/learning_rates.py at v1.0 and @ 19f294d5; LLM360/amber-train main_utils.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

DecayStyle = Literal["linear", "cosine", "exponential", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxVersion1:
    """GPT-NeoX up to v2.0, so Pythia.

    The wave is as long as the whole run although it starts after warm-up, the count stops short of the end by the
    length of warm-up, and the rate is cut off at its minimum: with Pythia's settings it is constant from 0.8 of the
    run on.

    Attributes:
        warmup_steps: not rounded by the trainer, so a float.
        max_steps: lr-decay-iters, else train-iters.
        minimum: the rate never falls below this after warm-up.
    """

    kind: ClassVar[str] = "neox_v1"
    warmup_steps: float
    max_steps: int
    decay: DecayStyle = "linear"
    minimum: float = 0.0

    def learning_rate(self, base: float, current: int) -> float:
        count = min(current, self.max_steps - self.warmup_steps)
        if self.warmup_steps > 0 and current <= self.warmup_steps:
            return base * count / self.warmup_steps
        count = count - self.warmup_steps
        if self.decay == "linear":
            rate = base * (self.max_steps - count) / self.max_steps
        elif self.decay == "cosine":
            rate = base / 2.0 * (math.cos(math.pi * count / self.max_steps) + 1)
        elif self.decay == "exponential":
            rate = base * math.exp(-0.693 * count / self.max_steps)
        else:
            rate = base
        return max(rate, self.minimum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neox:
    """GPT-NeoX after v2.0: decays end at the end, and a cosine ends at the minimum.

    Attributes:
        warmup_steps, max_steps, minimum: as in NeoxVersion1.
        warmup_first: the ramp counts from here: 1 since pull request 1379 (May 2026), 0 before.
    """

    kind: ClassVar[str] = "neox"
    warmup_steps: float
    max_steps: int
    decay: DecayStyle = "linear"
    minimum: float = 0.0
    warmup_first: int = 1

    def learning_rate(self, base: float, current: int) -> float:
        if self.warmup_steps > 0 and current <= self.warmup_steps:
            return base * max(self.warmup_first, current) / self.warmup_steps
        count, length = current - self.warmup_steps, self.max_steps - self.warmup_steps
        if self.decay == "linear":
            rate = base * (length - count) / length
        elif self.decay == "cosine":
            rate = self.minimum + ((base - self.minimum) / 2.0 * (math.cos(math.pi * count / length) + 1))
        elif self.decay == "exponential":
            rate = base * math.exp(-0.693 * count / length)
        else:
            rate = base
        return max(rate, self.minimum)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineOfRatio:
    """A ramp from zero, then half a cosine wave, as Amber's trainer computes it.

    The same curve as CosineWithWarmup in real numbers; the angle is a product of pi and a quotient here, and the final
    rate is absolute.

    Attributes:
        final: the rate at the end of the decay and after it.
    """

    kind: ClassVar[str] = "cosine_of_ratio"
    warmup_steps: int
    max_steps: int
    final: float

    def learning_rate(self, base: float, current: int) -> float:
        if current < self.warmup_steps:
            return base * current / self.warmup_steps
        if current > self.max_steps:
            return self.final
        ratio = (current - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        weight = 0.5 * (1.0 + math.cos(math.pi * ratio))
        return self.final + weight * (base - self.final)
