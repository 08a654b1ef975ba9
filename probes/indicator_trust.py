"""Does an indicator tell unused rows from others, and where in its values is the cut? Low values are suspicious."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from probes.embedding_indicators import MOST_LEFT_OUT, cosine_distances, mean_of_rows

PUBLISHED_PERCENT = 2.0
LEAST_SEPARATION = 0.9  # below it, an indicator does not say which rows are unused
MISTAKES_THAT_MATTER = 0.001  # a share of pairs of rows; and at most twice those of the best indicator
_LEAST_GROUP = 4
_LEAST_GAP = 0.05  # of the way from the unused rows to the median
_OTHERS = 4096


def separation(unused: np.ndarray, others: np.ndarray) -> float:
    """The probability that an unused row's value lies below another row's; 0.5 is chance, ties count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, unused, side="left")
    equal = np.searchsorted(ordered, unused, side="right") - below
    return float(1 - np.mean(below + equal / 2) / max(len(others), 1))


def coherence(output: torch.Tensor, ids: torch.Tensor) -> float | None:
    """How well the direction of some rows tells them from others: the separation of each one's cosine distance to the
    mean of the others. None for a single row, which cannot be compared with others.
    """
    if len(ids) < 2:
        return None
    tried = output[ids[:MOST_LEFT_OUT]].float()
    mean = mean_of_rows(output, ids)
    without = (mean * len(ids) - tried) / (len(ids) - 1)
    own = 1 - torch.cosine_similarity(tried, without, dim=1)
    kept = torch.ones(output.shape[0], dtype=torch.bool)
    kept[ids] = False
    rest = kept.nonzero()[:, 0]
    if not len(rest):
        return None
    sample = rest[torch.linspace(0, len(rest) - 1, min(_OTHERS, len(rest))).long()]
    return separation(own.numpy(), cosine_distances(output[sample], mean).numpy())


def alignment(output: torch.Tensor, ids: torch.Tensor) -> float:
    """The norm of the mean direction of some rows: 1 where all point the same way, 1/√n where each is as it began."""
    return float(torch.nn.functional.normalize(output[ids].float(), dim=1).mean(dim=0).norm())


def published_cut(values: np.ndarray, percent: float = PUBLISHED_PERCENT) -> float:
    """The percentile at or below which a token is a candidate, of the values of tokens of the category OK."""
    return float(np.percentile(values[np.isfinite(values)], percent)) if np.isfinite(values).any() else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """An interval without a token. `width` is a share of the way from the lowest values to the median."""

    below: float
    above: float
    width: float

    @property
    def cut(self) -> float:
        return (self.below + self.above) / 2


def gap_of(values: np.ndarray, unused: np.ndarray | None = None) -> Gap | None:
    """The widest interval without a token between the lowest values and the median; None where none stands out.

    Where rows are known to be unused, it is searched above three quarters of them, so that no gap among unused rows is
    taken for it; else above the four lowest values. It stands out where it is a twentieth of the way from there to the
    median, and four times as wide as the widest among the quarter of the tokens that come next below the median. Where
    none is so wide: the widest inside the sparsest tenth of that way, where tokens lie four times as close both below
    it and in that quarter.

    Args:
        values: of all tokens. unused: of those that are known to be unused, each left out of their mean.
    """
    ordered = np.sort(values[np.isfinite(values)])
    lower = ordered[: (len(ordered) + 1) // 2]
    if len(lower) < 8:
        return None
    # Where nothing is known, a few stragglers are no group.
    floor = float(np.percentile(unused, 75)) if unused is not None and len(unused) else float(lower[_LEAST_GROUP - 1])
    first = max(int(np.searchsorted(lower, floor, side="right")) - 1, 0)
    way, widths = float(lower[-1] - lower[first]), np.diff(lower)
    if way <= 0:
        return None
    at = first + int(np.argmax(widths[first:]))
    usual = float(widths[len(lower) // 2 :].max(initial=0.0))
    if widths[at] < max(_LEAST_GAP * way, 4 * usual):
        valley = _valley(lower, first, way / 10)
        if valley is None:
            return None
        at = valley.start + int(np.argmax(widths[valley]))
    return Gap(below=float(lower[at]), above=float(lower[at + 1]), width=float(widths[at]) / way)


def _valley(lower: np.ndarray, first: int, width: float) -> slice | None:
    """Where the sparsest stretch of a width lies; None where it is not much sparser than both sides of it."""
    starts = lower[first:]
    starts = starts[starts + width <= lower[-1]]
    if not len(starts):
        return None
    stops = np.searchsorted(lower, starts + width, side="right")
    counts = stops - np.arange(first, first + len(starts))
    at = int(np.argmin(counts))
    before, density = first + at + 1, counts[at] / width
    below = before / max(float(lower[before - 1] - lower[0]), np.finfo(float).tiny)
    quarter = lower[len(lower) // 2 :]
    above = len(quarter) / max(float(quarter[-1] - quarter[0]), np.finfo(float).tiny)
    if 4 * density > min(below, above):
        return None
    return slice(first + at, int(stops[at]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """One indicator. `separation`: of the known-unused rows from other tokens; None where none is known."""

    name: str
    separation: float | None

    @property
    def informative(self) -> bool | None:
        return None if self.separation is None else self.separation >= LEAST_SEPARATION


def trust_of(
    values: Mapping[str, np.ndarray], left_out: Mapping[str, np.ndarray], others: np.ndarray
) -> dict[str, Trust]:
    """
    Args:
        values: by name, [rows]. left_out: by name, of the known-unused rows; empty where none is known.
        others: ids of tokens that encode to themselves and are not known to be unused.
    """
    return {
        name: Trust(
            name=name,
            separation=separation(left_out[name], of_rows[others]) if name in left_out and len(others) else None,
        )
        for name, of_rows in values.items()
    }


def chosen_indicator(trust: Mapping[str, Trust], default: str) -> tuple[str, str]:
    """The indicator to trust, and why in a sentence: the published default, unless it tells clearly less than another.

    Args:
        default: the published one for this kind of embedding; may be missing where no unused row is known.
    """
    known = {name: one.separation for name, one in trust.items() if one.separation is not None}
    if not known:
        name = default if default in trust else next(iter(trust))
        instead = "" if name == default else f"{default}, the published default, needs such rows; "
        return name, f"no row is known to be unused, so that no indicator can be checked; {instead}{name} is used"
    # Of several that tell about as much, the one that is published first.
    allowed = max(MISTAKES_THAT_MATTER, 2 * (1 - max(known.values())))
    best = next(name for name, told in sorted(known.items(), key=lambda one: one[0] != default) if 1 - told <= allowed)
    told = f"{best} puts known-unused rows below others {known[best]:.2%} of the time"
    if best == default:
        blind = "" if known[default] >= LEAST_SEPARATION else ", which is little: none of them tells much here"
        return default, f"the published default: {told}{blind}"
    if default not in known:
        return best, f"{told}; {default}, the published default, cannot be checked"
    why = "carries no information here" if known[default] < LEAST_SEPARATION else "tells less"
    return best, f"{told}; {default}, the published default, {why} ({known[default]:.2%})"
