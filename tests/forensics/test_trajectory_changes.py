"""Breaks and crossings of trajectories come with the checkpoints that they lie between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from forensics.trajectories import COLUMNS, Curve, Trajectories
from forensics.trajectory_changes import BREAK_COLUMNS, CROSSING_COLUMNS, break_rows, crossing_rows

STEPS = [0, *(2**k for k in range(10)), *range(1000, 20_000, 1000)]


def curve(values: Mapping[int, float], run: str = "one", width: float | None = None, published: bool = False) -> Curve:
    rows = tuple(
        dict.fromkeys(COLUMNS)
        | {"run": run, "step": step, "value": value}
        | {"low": None if width is None else value - width, "high": None if width is None else value + width}
        for step, value in values.items()
    )
    return Curve(run=run, probe="loss", metric="loss", unit="nats", published=published, rows=rows)


def found(*curves: Curve) -> Trajectories:
    runs = tuple(dict.fromkeys(one.run for one in curves))
    return Trajectories(runs=runs, probes=("loss",), curves=curves, shown=frozenset({("loss", "loss")}))


def bent(log_of: Any = lambda value: value) -> dict[int, float]:
    """9 up to step 700, then falling by 1.25 at each doubling of the step, with a little noise."""
    noise = 0.01 * np.random.default_rng(2).standard_normal(len(STEPS))
    values = [9.0 - max(np.log2(max(step, 0.5) / 700), 0) * 1.25 for step in STEPS]
    return {step: float(log_of(value + more)) for step, value, more in zip(STEPS, values, noise, strict=True)}


def test_a_break_is_bracketed_by_checkpoints_and_its_slopes_are_of_tenfold_steps() -> None:
    (row,) = break_rows(found(curve({**bent(), 1500: float("nan")})))

    assert tuple(row) == BREAK_COLUMNS
    assert (row["last_step_before"], row["first_step_after"], row["unit"]) == (512, 1000, "nats")
    assert row["slope_before"] == pytest.approx(0, abs=0.02)
    assert row["slope_after"] == pytest.approx(-1.25 * np.log2(10), rel=0.01)
    assert row["low"] < row["change"] < row["high"] and row["noise"] == pytest.approx(0.01, rel=0.5)


def test_what_spans_decades_is_broken_by_its_logarithm() -> None:
    """Else the noise of an untrained model's perplexity would hide all that follows."""
    (row,) = break_rows(found(curve(bent(lambda value: 10**value))))

    assert (row["last_step_before"], row["unit"]) == (512, "log10 of nats")
    assert row["slope_after"] == pytest.approx(-1.25 * np.log2(10), rel=0.01)


def test_two_runs_cross_between_two_checkpoints() -> None:
    one = curve({0: 6.0, 10: 5.0, 100: 4.0, 1000: 3.0}, "one", width=0.1)
    other = curve({0: 5.0, 10: 4.5, 100: 4.25, 1000: 4.0}, "other", width=0.1)
    (row,) = crossing_rows(found(one, other))

    assert tuple(row) == CROSSING_COLUMNS
    assert (row["run"], row["other"], row["last_step_before"], row["first_step_after"]) == ("one", "other", 10, 100)
    assert row["crosses_at_step"] == round(10 ** (1 + 0.5 / 0.75))
    assert (row["higher_before"], row["higher_now"], row["num_steps"]) == ("one", "other", 4)
    assert row["sure_before"] is row["sure_now"] is True and row["next_crossing_step"] is None


def test_step_0_is_step_0_again() -> None:
    (row,) = crossing_rows(found(curve({0: 6.0, 20: 4.0}, "one"), curve({0: 5.0, 20: 5.0}, "other")))

    assert (row["last_step_before"], row["first_step_after"], row["sure_now"]) == (0, 20, None)
    assert 10 < row["crosses_at_step"] < 20


def test_each_two_runs_are_compared_once_by_what_was_measured() -> None:
    runs = [curve({0: 1.0 + n, 20: 2.0}, name) for n, name in enumerate(("a", "b", "c"))]
    rows = crossing_rows(found(*runs, curve({0: 9.0, 20: 9.0}, "a", published=True), curve({5: 1.0}, "d")))

    assert [(row["run"], row["other"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {row["higher_now"] for row in rows} == {"b", "c"}
