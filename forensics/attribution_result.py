"""What was found about a spike, and the verdict that it allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forensics.removal import Band, Place, Removal, told_number
from forensics.spike_window import SPIKE_Z, SpikeWindow, UsualValue
from forensics.suspects import RowGradients
from forensics.window_replay import TakenStep

# Of the excess, by a removal that is called the cause. Groups are put together from the rows that help most, and
# batches chosen among several: where nothing is the cause, the best of many still takes away some of the excess.
RESTORED = {"instance": 0.5, "group": 0.7, "batch": 0.8}
CLEARLY_MORE = 0.2
EXTRAORDINARY_Z = 3.0  # of every row that is called a cause, under weights that nothing has damaged yet
REPRODUCED = 0.2  # of the excess, by which a replayed peak may differ from the logged one

Cause = Literal["instance", "group", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Suspect:
    """A row that was taken away.

    Attributes:
        loss: mean of its targets under the weights before its step, nats per token.
        loss_z: robust standard deviations above the window's other rows, all under the checkpoint's weights.
        norm_z: the same of the norm of its own part of the gradient.
        share: of its step's gradient, signed; 1 is the mean. norm: of its own part of the gradient over the step's.
        removal: what the peak comes to without it.
        span: the same with a stretch of it hidden from the loss, where one stands out; span_band: and random ones.
    """

    place: Place
    instance: int
    loss: float
    loss_z: float
    norm_z: float
    share: float
    norm: float
    removal: Removal
    span: Removal | None = None
    span_band: Band | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """Everything that was measured of a spike.

    Attributes:
        peak_loss, peak_grad_norm: replayed. usual: what the measure that spikes would have been; None: not known.
        taken: the steps taken again. scan: row losses of each step under the checkpoint's weights.
        steps: that were suspected; gradients: of their rows.
        suspects: ranked, first the row without which the peak is lowest.
        bands: by measure, what the removal of random rows comes to; group_bands: of random groups of the group's size.
        group: the fewest rows that together take away what the best prefix of the ranking does.
        batch: a whole step's batch with other rows in its place: of several draws the one that helps least.
    """

    window: SpikeWindow
    usual: UsualValue | None
    scan: Mapping[int, np.ndarray]
    taken: tuple[TakenStep, ...]
    steps: tuple[int, ...]
    gradients: Mapping[int, RowGradients]
    suspects: tuple[Suspect, ...]
    bands: Mapping[str, Band]
    group: Removal | None
    group_bands: Mapping[str, Band]
    batch: Removal | None

    @property
    def peak_loss(self) -> float:
        return self.taken[-1].result.loss

    @property
    def peak_grad_norm(self) -> float:
        return self.taken[-1].result.grad_norm

    @property
    def peak_value(self) -> float:
        """Of the measure that spikes, replayed."""
        return self.peak_loss if self.window.measure == "loss" else self.peak_grad_norm

    @property
    def excess(self) -> float | None:
        """Of the replayed peak over the usual value."""
        return None if self.usual is None else self.peak_value - self.usual.value

    def restored(self, removal: Removal) -> float:
        """The share of the excess that a removal takes away; 1: the peak is as usual. NaN: there is no spike."""
        return restored_share(self.peak_value, self.usual, removal.value(self.window.measure))

    @property
    def without_question(self) -> str | None:
        """Why there is nothing that data could explain; None: there is."""
        window, usual, peak, name = self.window, self.usual, self.peak_value, self._name
        if usual is None:
            return f"too little history: {name} was logged fewer than 16 times before step {window.onset}"
        if usual.z(peak) < SPIKE_Z:
            logged = window.logged.get(window.measure)
            if logged is not None and usual.z(logged) >= SPIKE_Z:
                return (
                    f"taking the steps again from checkpoint {window.start.step} gives a {name} of {peak:.4g} at step "
                    f"{window.peak}, where {told_number(logged)} was logged and {usual.value:.4g} is usual: what made "
                    "the spike is neither in the data nor in the recipe as recorded"
                )
            return (
                f"the {name} of step {window.peak} is no spike: {peak:.4g}, {usual.z(peak):.1f} robust standard "
                f"deviations above the usual {usual.value:.4g} ({SPIKE_Z:g} make a spike)"
            )
        return self._not_reproduced()

    @property
    def _name(self) -> str:
        return {"loss": "loss", "grad_norm": "gradient norm"}[self.window.measure]

    def verdict(self) -> tuple[Cause | None, str]:
        """The cause among the data, if there is one, and what that rests on."""
        window, name = self.window, self._name
        if (why := self.without_question) is not None:
            return None, why
        if causes := [found for found in self._causes() if self._is_a_cause(*found)]:
            cause, removal, band = causes[0]
            for other in causes[1:]:  # from the most specific on; the next only where it explains clearly more
                if other[1] and removal and self.restored(other[1]) > self.restored(removal) + CLEARLY_MORE:
                    cause, removal, band = other
            assert removal is not None
            return cause, self._told(cause, removal, band, name)
        best = max((self.restored(removal) for _, removal, _ in self._causes() if removal is not None), default=0.0)
        return None, (
            f"no row, group of rows or batch explains it: without the best of them the {name} of step {window.peak} "
            f"comes down by {max(best, 0.0):.0%} of its excess over the usual, or by no more than without random ones"
        )

    def _is_a_cause(self, cause: Cause, removal: Removal | None, band: Band | None) -> bool:
        if removal is None or not self.restored(removal) >= RESTORED[cause]:
            return False
        if cause != "batch" and not self._is_extraordinary(removal):
            return False
        return band is None or band.is_below(removal.value(self.window.measure))

    def _is_extraordinary(self, removal: Removal) -> bool:
        """Is there something about every row, besides that its removal helps, and before anything had happened?"""
        rows = [suspect for suspect in self.suspects if suspect.place in removal.places]
        return all(
            row.loss_z >= EXTRAORDINARY_Z or row.norm_z >= EXTRAORDINARY_Z or not math.isfinite(row.loss)
            for row in rows
        )

    def _causes(self) -> tuple[tuple[Cause, Removal | None, Band | None], ...]:
        """From the most specific to the least."""
        measure = self.window.measure
        return (
            ("instance", self.suspects[0].removal if self.suspects else None, self.bands.get(measure)),
            ("group", self.group, self.group_bands.get(measure)),
            ("batch", self.batch, None),
        )

    def _told(self, cause: Cause, removal: Removal, band: Band | None, name: str) -> str:
        steps = ", ".join(map(str, sorted({step for step, _ in removal.places})))
        what = {
            "instance": f"row {removal.places[0][1]} of step {steps}",
            "group": f"{len(removal.places)} rows of step {steps}",
            "batch": f"the batch of step {steps} as a whole",
        }[cause]
        value = removal.value(self.window.measure)
        random = "" if band is None else f"; without as many random rows {band}"
        return (
            f"without {what} the {name} at step {self.window.peak} is {value:.4g} instead of "
            f"{told_number(self.peak_value)}, which takes away {self.restored(removal):.0%} of the excess{random}"
        )

    def _not_reproduced(self) -> str | None:
        logged = self.window.logged.get(self.window.measure)
        if logged is None or self.usual is None:
            return None
        if not math.isfinite(logged) and not math.isfinite(self.peak_value):
            return None
        if abs(self.peak_value - logged) <= REPRODUCED * (logged - self.usual.value) < math.inf:
            return None
        return (
            f"the steps taken again come to {told_number(self.peak_value)} at step {self.window.peak}, logged was "
            f"{told_number(logged)}: something besides the recorded data and recipe took part"
        )


def restored_share(peak: float, usual: UsualValue | None, value: float) -> float:
    """The share of a peak's excess that another value takes away; NaN where there is no spike to speak of."""
    if usual is None or usual.z(peak) < SPIKE_Z:
        return math.nan
    if not math.isfinite(value):
        return 0.0
    if not math.isfinite(peak):
        return 1.0 if usual.z(value) < SPIKE_Z else 0.0
    return (peak - value) / (peak - usual.value)
