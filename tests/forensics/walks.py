"""Weights that walk, as a run's do: simulated checkpoints in which departures can be planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from forensics.continuity import Departure, States, find_departures
from probes.distances import correlations, pairwise_distances

ELEMENTS = 4000
GRIDS = {
    "even": range(0, 200, 10),
    "powers of two, then even": [0, *(2**n for n in range(10)), *range(1000, 8000, 1000)],
    "five": range(0, 25, 5),
    "four": [0, 1, 9, 20],
    "uneven": [0, 10, 11, 12, 50, 51, 200, 201, 202, 210],
}
RATES: dict[str, Callable[[int], np.ndarray]] = {
    "constant": lambda n: np.ones(n),
    "decaying": lambda n: 0.05 + 0.475 * (1 + np.cos(np.pi * np.arange(n) / n)),
    "warmed up": lambda n: np.minimum(1, (np.arange(n) + 0.2) / 5),
    "annealed": lambda n: np.concatenate([np.ones(n - n // 4), np.linspace(0.8, 0.02, n // 4)]),
}


def walk(kind: str, steps: Sequence[int], rates: np.ndarray, seed: int) -> np.ndarray:
    """Weights of a run, [checkpoint, element]: steady, random, or random about a place that draws them back."""
    random = np.random.default_rng(seed)
    centre = random.normal(0, 0.02, ELEMENTS)
    heading = random.normal(0, 1, ELEMENTS)
    drawn = 0.9 if kind == "drawn back" else 1.0
    # Drawn back, they begin as far off as they will be for good at a constant rate.
    start = 2e-3 / (1 - drawn**2) ** 0.5 * random.normal(0, 1, ELEMENTS) if drawn < 1 else 0.0
    states = [centre + start]
    gaps = np.diff(steps)
    for gap, rate in zip(gaps / gaps.mean(), rates, strict=True):
        heading = 0.9 * heading + 0.435 * random.normal(0, 1, ELEMENTS)
        moved = gap * heading if kind == "steady" else 2 * gap**0.5 * random.normal(0, 1, ELEMENTS)
        states.append(centre + drawn**gap * (states[-1] - centre) + 1e-3 * rate * moved)
    return np.stack(states)


def found_in(states: np.ndarray, steps: Sequence[int], groups: np.ndarray | None = None) -> list[Departure]:
    """
    Args:
        groups: [element], the number of its parameter; default: all are of one.
    """
    if groups is None:
        groups = np.zeros(states.shape[1], dtype=np.int64)
    return find_departures(
        States(
            distances=pairwise_distances(states),
            correlations=correlations(states, groups),
            steps=list(steps),
            num_elements=states.shape[1],
        )
    )
