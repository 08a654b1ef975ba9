"""Learning rate as a function of the step. Steps are 1-based: the first update uses step 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Turns the base rate and a step into the rate of that step.

    Attributes:
        alpha_final: the rate at and after `max_steps`, as a fraction of the base rate.
        warmup_min: the rate that warm-up starts from.

    Source: olmo_core/optim/scheduler.py, CosWithWarmup (Python package ai2-olmo-core 3.0.0).
    """

    kind: Literal["cosine_with_warmup", "constant_with_warmup"]
    warmup_steps: int
    max_steps: int
    alpha_final: float = 0.1
    warmup_min: float = 0.0

    def learning_rate(self, base: float, step: int) -> float:
        """The rate of one step, in the arithmetic of the trainer (Python floats)."""
        if step < self.warmup_steps:
            return self.warmup_min + (base - self.warmup_min) * min(step, self.warmup_steps) / self.warmup_steps
        if self.kind == "constant_with_warmup":
            return base
        final = base * self.alpha_final
        if step >= self.max_steps:
            return final
        # Multiplied before divided, as the trainer does: the other way round differs in the last bit.
        angle = math.pi * (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        return final + (base - final) * (1 + math.cos(angle)) / 2
