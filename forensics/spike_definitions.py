"""The three published definitions of a spike, each exactly as it is stated, beside the robust one.

They differ in window, threshold, standard deviation, side and start, so that a count says nothing without them. Flagged
values enter the windows of all three: one large spike hides the next.

Source: OLMo 2 paper, section 3.2; allenai/OLMo-core src/olmo_core/train/callbacks/stability_monitor.py and
src/olmo_core/optim/skip_step_optimizer.py @ fa6c5014
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedDefinition:
    """What one definition says of a log.

    Attributes:
        flags: bool by series, one a logged value; of `olmo_core_skip` one series, `step`, for both judge together.
        scores: percent of the logged values that are flagged, by series and, where the definition joins them, `total`.
    """

    name: str
    parameters: Mapping[str, Any]
    flags: Mapping[str, np.ndarray]
    scores: Mapping[str, float]

    @property
    def flagged(self) -> np.ndarray:
        """Either series."""
        return np.logical_or.reduce(list(self.flags.values()))

    @property
    def num_flagged(self) -> int:
        return int(self.flagged.sum())


PAPER: Mapping[str, Any] = {
    "window": 1000,
    "standard_deviations": 7,
    "side": "both",
    "deviation": "population",
    "full_window": True,
}
MONITOR: Mapping[str, Any] = {
    "window": 128,
    "standard_deviations": 6,
    "side": "above",
    "deviation": "population",
    "full_window": True,
    "least_deviation": 1e-10,
}
SKIP: Mapping[str, Any] = {
    "window": 128,
    "standard_deviations": 6,
    "side": "above",
    "deviation": "sample",
    "first_judged": 64,
}


def olmo2_paper(series: Mapping[str, np.ndarray]) -> PublishedDefinition:
    """|x - mean| >= 7 standard deviations of the last 1000 values, for each series.

    The paper does not say which deviation, from when on, and whether the value itself counts: here the population's, a
    full window, without it.
    """
    flags = {}
    for name, values in series.items():
        mean, deviation = moving_mean_and_deviation(values, PAPER["window"])
        with np.errstate(invalid="ignore"):
            flags[name] = np.abs(values - mean) >= PAPER["standard_deviations"] * deviation
            flags[name] &= deviation > 0  # equal values are no spike of each other
    return _definition("olmo2_paper", PAPER, flags)


def olmo_core_monitor(series: Mapping[str, np.ndarray]) -> PublishedDefinition:
    """More than 6 standard deviations above the mean of the last 128 values, in the loss or the gradient norm."""
    flags = {}
    for name, values in series.items():
        mean, deviation = moving_mean_and_deviation(values, MONITOR["window"])
        with np.errstate(invalid="ignore"):
            flags[name] = values > mean + MONITOR["standard_deviations"] * deviation
            flags[name] &= deviation >= MONITOR["least_deviation"]
    return _definition("olmo_core_monitor", MONITOR, flags)


def olmo_core_skip(series: Mapping[str, np.ndarray]) -> PublishedDefinition:
    """Steps that the skipping optimizer would leave out: not (x - mean <= 6 standard deviations) in either series.

    The mean and the deviation are of up to 128 values before; steps are judged once 64 are remembered, this one
    included. Where NaN stands among them, every comparison fails and every step is left out.
    """
    ordinary = {}
    for name, values in series.items():
        mean, deviation = moving_mean_and_deviation(values, SKIP["window"], ddof=1, fewest=SKIP["first_judged"] - 1)
        with np.errstate(invalid="ignore"):
            ordinary[name] = values - mean <= SKIP["standard_deviations"] * deviation
    judged = np.arange(len(next(iter(series.values())))) >= SKIP["first_judged"] - 1
    skipped = judged & ~np.logical_and.reduce(list(ordinary.values()))
    return _definition("olmo_core_skip", SKIP, {"step": skipped})


def published_definitions(series: Mapping[str, np.ndarray]) -> list[PublishedDefinition]:
    """All three.

    Args:
        series: values by name, of the same steps.
    """
    return [olmo2_paper(series), olmo_core_monitor(series), olmo_core_skip(series)]


def _definition(name: str, parameters: Mapping[str, Any], flags: dict[str, np.ndarray]) -> PublishedDefinition:
    def percent(flagged: np.ndarray) -> float:
        return 100 * float(flagged.mean()) if len(flagged) else 0.0

    scores = {series: percent(flagged) for series, flagged in flags.items()}
    if len(flags) > 1:
        scores["total"] = percent(np.logical_or.reduce(list(flags.values())))
    return PublishedDefinition(name=name, parameters=parameters, flags=flags, scores=scores)


def moving_mean_and_deviation(
    values: np.ndarray, window: int, ddof: int = 0, fewest: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the `window` values before each value.

    Windows are put together from halves, quarters and so on, each with its own mean and sum of squares, so that no
    number outside a window, however large, leaves a trace in it.

    Args:
        fewest: as few values as this are enough at the beginning; default: a full window.
    Returns:
        Two arrays of the same length; NaN where there are too few values, or one of them is NaN or infinite.
    """
    mean, deviation = np.full(len(values), np.nan), np.full(len(values), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        if len(values) > window:
            means, squares = _window_moments(values[:-1], window)
            mean[window:], deviation[window:] = means, np.sqrt(squares / (window - ddof))
        for place in range(window if fewest is None else fewest, min(window, len(values))):
            mean[place], deviation[place] = values[:place].mean(), values[:place].std(ddof=ddof)
    return mean, deviation


def _window_moments(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared differences from it, of values[0:window], values[1:window + 1], …

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979)
    """
    num_windows = len(values) - window + 1
    means, squares, size = values.astype(np.float64), np.zeros(len(values)), 1
    found: tuple[np.ndarray, np.ndarray] | None = None
    covered = 0
    while size <= window:
        if window & size:
            part = means[covered : covered + num_windows], squares[covered : covered + num_windows]
            found = part if found is None else _joined(found, covered, part, size)
            covered += size
        if 2 * size <= window:
            left, right = (means[:-size], squares[:-size]), (means[size:], squares[size:])
            means, squares = _joined(left, size, right, size)
        size *= 2
    assert found is not None
    return found


def _joined(
    one: tuple[np.ndarray, np.ndarray], num_one: int, other: tuple[np.ndarray, np.ndarray], num_other: int
) -> tuple[np.ndarray, np.ndarray]:
    count = num_one + num_other
    apart = other[0] - one[0]
    mean = one[0] + apart * (num_other / count)
    return mean, one[1] + other[1] + apart**2 * (num_one * num_other / count)
