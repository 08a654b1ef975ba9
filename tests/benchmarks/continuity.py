"""How well the audit tells checkpoints that are where they do not belong: simulated and trained runs, one fault each.

A fault counts as named if just it is found, with the right kind and the right places; an alarm is anything found in an
untouched run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from data_index.sources.native import saved_steps
from forensics.reproduction import saved_checkpoint
from forensics.sample_data import SampleSpec
from forensics.sample_run import train_sample_run
from forensics.weight_samples import read_checkpoint
from tests.forensics.walks import ELEMENTS, GRIDS, RATES, found_in, walk

KINDS = ("steady", "random", "drawn back")
SEEDS = 3
Planted = tuple[tuple[int, ...], np.ndarray]  # which places, and the states with the fault in them


def exchanged(states: np.ndarray) -> Iterator[Planted]:
    for one, other in combinations(range(len(states)), 2):
        planted = states.copy()
        planted[[one, other]] = planted[[other, one]]
        yield (one, other), planted


def foreign(states: np.ndarray, others: np.ndarray) -> Iterator[Planted]:
    for place in range(len(states)):
        planted = states.copy()
        planted[place] = others[place]
        yield (place,), planted


def count(kind: str, planted: Iterator[Planted], steps: Sequence[int], groups: np.ndarray | None = None) -> np.ndarray:
    """[named, all]"""
    named = [
        [(one.kind, tuple(sorted(one.places))) for one in found_in(states, steps, groups)] == [(kind, places)]
        for places, states in planted
    ]
    return np.array([sum(named), len(named)])


def print_row(weights: str, steps: Sequence[int], swaps: np.ndarray, strangers: np.ndarray) -> None:
    print(f"| {weights} | {len(steps)} | {swaps[0]} of {swaps[1]} | {strangers[0]} of {strangers[1]} |", flush=True)


def simulated() -> None:
    for kind in KINDS:
        for grid in ("even", "five"):
            steps = GRIDS[grid]
            swaps, strangers = np.zeros(2, int), np.zeros(2, int)
            for rate in RATES.values():
                rates = rate(len(steps) - 1)
                states, others = walk(kind, steps, rates, 0), walk(kind, steps, rates, 1)
                swaps += count("exchanged", exchanged(states), steps)
                strangers += count("foreign", foreign(states, others), steps)
            print_row(kind, steps, swaps, strangers)


def trained() -> None:
    """The sample run, and the same with other weights to begin with; of them all checkpoints, then fewer."""
    with tempfile.TemporaryDirectory() as folder:
        spec = replace(SampleSpec(), save_every=12)
        runs = [replace(spec, name="one"), replace(spec, name="other", seed=99)]
        (states, groups), (others, _) = (sampled(Path(folder) / one.name, one) for one in runs)
    steps = range(0, spec.num_steps + 1, spec.save_every)
    for every in (1, 2, 5):
        kept, some = states[::every], steps[::every]
        assert found_in(kept, some, groups) == [], "an alarm on an untouched run"
        swaps = count("exchanged", exchanged(kept), some, groups)
        strangers = count("foreign", foreign(kept, others[::every]), some, groups)
        print_row("sample run", some, swaps, strangers)


def sampled(folder: Path, spec: SampleSpec) -> tuple[np.ndarray, np.ndarray]:
    """Train a run; [checkpoint, element] as the audit reads it, and the number of each element's parameter."""
    run = train_sample_run(folder, spec)
    checkpoints = [saved_checkpoint(folder, run.name, step, run.tokens_after(step)) for step in saved_steps(folder)]
    readings = [read_checkpoint(checkpoint, whole=False) for checkpoint in checkpoints]
    return np.stack([reading.sample for reading in readings]), readings[0].groups


def main() -> None:
    print("| weights | checkpoints | exchanges named | of another run named |")
    print("| --- | --- | --- | --- |")
    simulated()
    trained()
    runs = [
        found_in(walk(kind, steps, rate(len(steps) - 1), seed), steps)
        for kind in KINDS
        for steps in GRIDS.values()
        for rate in RATES.values()
        for seed in range(SEEDS)
    ]
    print(f"untouched runs with an alarm: {sum(map(bool, runs))} of {len(runs)}")
    jittered = [found_in(_jitter(seed, len(steps)), steps) for steps in GRIDS.values() for seed in range(4 * SEEDS)]
    print(f"runs that only jitter, with an alarm: {sum(map(bool, jittered))} of {len(jittered)}")


def _jitter(seed: int, num_states: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(0, 0.02, ELEMENTS) + random.normal(0, 1e-3, (num_states, ELEMENTS))
