"""A run at a glance loses no peak, at any zoom."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import InvalidRange
from data_index.kinds import table_of_rows
from data_index.workspace import Workspace, learn
from forensics.figure import FAINT, interactive, picture
from forensics.ribbon import Ribbon, RibbonLine, gaps_between, ribbon, with_marks
from forensics.ribbon_picture import ribbon_figure
from forensics.ribbon_probes import probe_panels, usual_pairs


def log(workspace: Workspace, values: dict[int, float | None], **more: Any) -> None:
    """Put a log of these losses in the place of the tiny run's."""
    row = {"attempt": 1, "name": "loss", "original_name": "loss", "source": None}
    rows = [row | {"step": step, "value": value} | more for step, value in values.items()]
    learn(workspace.home("tiny"), "metrics", table_of_rows("metrics", rows, "test"))


def loss_of(workspace: Workspace, *asked: int | None, num_stretches: int = 3) -> RibbonLine:
    (line,) = ribbon("tiny", *asked, num_stretches=num_stretches, workspace=workspace).lines
    return line


def drawn(line: RibbonLine) -> dict[int, float]:
    return {step: value for step, value in zip(line.steps, line.values, strict=True) if value is not None}


@pytest.fixture(scope="module")
def noisy(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[int, float]]:
    from data_index.registration import add

    workspace = Workspace(tmp_path_factory.mktemp("noisy"))
    add(tiny_source, workspace=workspace)
    values = dict(zip(range(1, 21), np.random.default_rng(5).normal(5, 1, 20).tolist(), strict=True))
    log(workspace, values)
    return workspace, values


@pytest.mark.parametrize("num_stretches", [1, 2, 3, 7, 20, 1000])
@pytest.mark.parametrize(("first", "last"), [(0, 20), (0, 1), (3, 17), (9, 20), (12, 13)])
def test_the_extremes_are_there_at_every_zoom(
    noisy: tuple[Workspace, dict[int, float]], first: int, last: int, num_stretches: int
) -> None:
    """Users of other dashboards lose spikes to sampling."""
    workspace, values = noisy
    within = {step: value for step, value in values.items() if first < step <= last}
    found = drawn(loss_of(workspace, first, last, num_stretches=num_stretches))

    for extreme in (min, max):
        step = extreme(within, key=within.__getitem__)
        assert found[step] == within[step]
    assert found.items() <= within.items() and len(found) <= 4 * num_stretches
    assert {min(within), max(within)} <= set(found)


def test_a_short_stretch_is_drawn_value_for_value(noisy: tuple[Workspace, dict[int, float]]) -> None:
    workspace, values = noisy
    line = loss_of(workspace, num_stretches=1000)

    assert drawn(line) == values and line.num_values == 20 and line.gaps == () and None not in line.values


def test_of_a_step_taken_twice_the_last_attempt_counts(tiny: Workspace) -> None:
    first = {"attempt": 1, "name": "loss", "original_name": "loss", "source": None}
    rows = [first | {"step": step, "value": 5.0} for step in (1, 2, 3)] + [
        first | {"step": 2, "value": 99.0, "source": "log.csv", "attempt": 7},
        first | {"step": 3, "value": 4.0, "attempt": 2},
    ]
    learn(tiny.home("tiny"), "metrics", table_of_rows("metrics", rows, "test"))

    # What the trainer recorded itself counts before an imported log, a later attempt before an earlier one.
    assert drawn(loss_of(tiny, num_stretches=20)) == {1: 5.0, 2: 5.0, 3: 4.0}


def test_values_that_are_no_number_break_the_line_and_are_marked(tiny: Workspace) -> None:
    values: dict[int, float | None] = dict.fromkeys(range(1, 21), 5.0)
    log(tiny, values | {7: float("nan"), 8: float("inf"), 12: None})
    line = loss_of(tiny, num_stretches=20)

    assert line.not_finite == (7, 8, 12) and line.num_not_finite == 3
    assert [step for step, value in zip(line.steps, line.values, strict=True) if value is None] == [7, 8, 12]
    coarse = loss_of(tiny, num_stretches=2)
    assert coarse.num_not_finite == 3 and coarse.not_finite == (7, 12) and set(drawn(coarse).values()) == {5.0}


def test_a_metric_without_any_number_is_still_told(tiny: Workspace) -> None:
    log(tiny, dict.fromkeys(range(1, 21), float("nan")))
    found = ribbon("tiny", workspace=tiny)

    assert drawn(found.lines[0]) == {} and found.lines[0].num_not_finite == 20
    figure = ribbon_figure(found)
    assert figure is not None and picture(figure, "png")[:4] == b"\x89PNG"


def test_what_was_not_logged_is_a_gap(tiny: Workspace) -> None:
    log(tiny, {step: 5.0 for step in (1, 2, 3, 4, 11, 12, 13, 14)})
    line = loss_of(tiny, num_stretches=20)

    assert line.gaps == ((5, 10),)
    assert line.values[line.steps.index(5)] is None


def test_a_log_of_every_tenth_step_has_no_gaps() -> None:
    firsts = np.arange(10, 200, 10)

    assert gaps_between(firsts, firsts, np.ones_like(firsts)) == []
    assert gaps_between(firsts[:1], firsts[:1], [1]) == []
    without = np.delete(firsts, [4, 5])
    assert gaps_between(without, without, np.ones_like(without)) == [(41, 69)]


@pytest.mark.parametrize(("first", "last"), [(-1, 5), (5, 5), (6, 5), (0, 21)])
def test_a_stretch_outside_the_run_is_refused(tiny_shared: Workspace, first: int, last: int) -> None:
    with pytest.raises(InvalidRange, match="goes from checkpoint 0 to checkpoint 20"):
        ribbon("tiny", first, last, workspace=tiny_shared)


def test_what_happened_is_cut_to_what_is_looked_at(tiny_shared: Workspace) -> None:
    found = ribbon("tiny", 6, 13, workspace=tiny_shared)

    assert found.checkpoints == (10,) and not found.searched and found.forks == ()
    assert [segment.epoch for segment in found.segments] == [1]
    assert [segment.epoch for segment in ribbon("tiny", 13, 20, workspace=tiny_shared).segments] == [1, 2]


def test_of_steps_that_a_search_found_each_pixel_marks_the_first() -> None:
    found = Ribbon(run="r", first=10, last=20, lines=())

    assert with_marks(found, [20, 11, 12, 11, 15, 10, 21]).marked == (11, 12, 15, 20)
    assert with_marks(found, [20, 11, 12, 11, 15, 10, 21], num_stretches=2).marked == (11, 20)


def test_its_sql_gives_the_values_that_are_drawn(noisy: tuple[Workspace, dict[int, float]]) -> None:
    from forensics.lookup import sql

    workspace, values = noisy
    table = sql(ribbon("tiny", 3, 17, workspace=workspace).query(), workspace=workspace)

    assert dict(zip(table.column("step").to_pylist(), table.column("value").to_pylist(), strict=True)) == {
        step: value for step, value in values.items() if 3 < step <= 17
    }


def test_where_nothing_is_known_nothing_is_drawn() -> None:
    assert ribbon_figure(Ribbon(run="r", first=0, last=3, lines=())) is None


def test_the_pictures_show_the_same_and_escape_what_comes_from_data() -> None:
    lines = (RibbonLine(name="loss", steps=(1, 2, 3), values=(5.0, 9.0, 5.0), num_values=3),)
    spike = {"onset": 2, "peak": 2, "last": 2, "series": ["loss"], "peak_z": 9.0}
    forks = (("f<b>", 0, 2),)
    found = Ribbon(run="r", first=0, last=3, lines=lines, checkpoints=(0, 3), spikes=(spike,), forks=forks)
    figure = ribbon_figure(found)
    assert figure is not None
    canvas, svg = interactive(figure), picture(figure, "svg").decode()

    assert [trace.name for trace in canvas.data] == ["loss", "checkpoint", "spike", html.escape("fork f<b>")]
    assert max(canvas.data[0].y) == 9.0 and canvas.layout.yaxis2.ticktext == ("forks", "spikes", "checkpoints")
    assert not any(trace.showlegend for trace in canvas.data)  # the names stand beside the rows
    words = re.findall(r">([^<]+)</text>", svg)
    assert {"r, steps 1..3", "loss", "spike 2", "forks", "spikes", "checkpoints"} <= set(words)


# --- attempts that do not count, gaps, probes ------------------------------------------------------------------------


def attempts(workspace: Workspace) -> None:
    """Steps 1 .. 14, of which 8 .. 10 had been taken before, twice the last of them; and a second log of all."""
    row = {"name": "loss", "original_name": "loss", "source": None}
    rows = [row | {"step": step, "value": 5.0, "attempt": 3 if step > 7 else 1} for step in range(1, 15)]
    rows += [row | {"step": step, "value": 7.0 + step, "attempt": 1} for step in (8, 9, 10)]
    rows += [row | {"step": 10, "value": 9.0, "attempt": 2}]
    rows += [one | {"source": "copy.csv", "value": 0.0} for one in rows]
    learn(workspace.home("tiny"), "metrics", table_of_rows("metrics", rows, "test"))


def test_attempts_that_were_given_up_are_lines_of_their_own(tiny: Workspace) -> None:
    """What another log says of an attempt that counts was not given up."""
    attempts(tiny)
    found = ribbon("tiny", workspace=tiny)

    assert drawn(found.lines[0]) == dict.fromkeys(range(1, 15), 5.0)
    assert [(line.attempt, drawn(line)) for line in found.given_up] == [
        (1, {8: 15.0, 9: 16.0, 10: 17.0}),
        (2, {10: 9.0}),
    ]
    assert ribbon("tiny", 10, 14, workspace=tiny).given_up == ()
    figure = ribbon_figure(found)
    assert figure is not None and "given up" in figure.note
    faint = {trace.name: trace.opacity for trace in interactive(figure).data if trace.opacity is not None}
    assert faint == {"attempt 1, given up": FAINT, "attempt 2, given up": FAINT}


def test_a_log_of_one_attempt_has_nothing_given_up(noisy: tuple[Workspace, dict[int, float]]) -> None:
    assert ribbon("tiny", workspace=noisy[0]).given_up == ()


def test_gaps_are_hatched_as_high_as_the_panel_in_both_pictures(tiny: Workspace) -> None:
    log(tiny, {step: 5.0 for step in (1, 2, 3, 4, 11, 12, 13, 14, 15, 16, 19, 20)})
    figure = ribbon_figure(ribbon("tiny", workspace=tiny))
    assert figure is not None
    canvas = interactive(figure)
    (hatch,) = [trace for trace in canvas.data if trace.fillpattern.shape]
    axis = canvas.layout[hatch.yaxis.replace("y", "yaxis")]

    assert hatch.x == (4.5, 4.5, 10.5, 10.5, 4.5, None, 16.5, 16.5, 18.5, 18.5, 16.5, None)
    assert hatch.y == (0, 1, 1, 0, 0, None) * 2 and (axis.range, axis.overlaying) == ((0, 1), "y") and axis.fixedrange
    assert hatch.xaxis == "x" and hatch.hoverinfo == "skip" and "hatched: not logged" in figure.note
    words = re.findall(r">([^<]+)</text>", picture(figure, "svg").decode())
    assert words.count("not logged") == 2
    without = ribbon_figure(ribbon("tiny", 11, 16, workspace=tiny))
    assert without is not None and not any(trace.fillpattern.shape for trace in interactive(without).data)


def probe(metric: str, values: dict[int, float], name: str = "loss") -> list[dict[str, Any]]:
    row = {"probe": name, "metric": metric, "unit": "nats", "settings": "{}"}
    return [row | {"step": s, "value": v, "low": v - 1, "high": v + 1} for s, v in values.items()]


def test_probes_lie_under_the_ribbon_over_its_steps(tiny: Workspace) -> None:
    """A curve goes on to the next value outside, so that its line does not end inside the picture."""
    rows = probe("loss", {0: 6.0, 5: 5.0, 10: 4.0, 15: 3.0, 20: 2.0}) + probe("norm", {10: 99.0}, "norms")
    learn(tiny.home("tiny"), "probes", table_of_rows("probes", rows, "test"))
    pairs = [("loss", "loss"), ("norms", "norm")]
    loss, norm = probe_panels("tiny", pairs, 6, 12, workspace=tiny)

    assert (loss.title, norm.title) == ("probe loss", "probe norms: norm") and not loss.told_apart
    assert loss.x_range == norm.x_range == pytest.approx((5.94, 12.06))
    assert list(loss.curves[0].x) == [5, 10, 15] and loss.curves[0].at[0] == ("tiny", 5)
    assert [panel.title for panel in probe_panels("tiny", pairs, 16, 20, workspace=tiny)] == ["probe loss"]
    assert probe_panels("tiny", [], 0, 20, workspace=tiny) == []
    (whole,) = probe_panels("tiny", pairs[1:], 0, 20, workspace=tiny)
    assert list(whole.gaps[0].x) == [0, 5, 15, 20] and not whole.told_apart  # the note tells what the marks are
    figure = ribbon_figure(ribbon("tiny", workspace=tiny), [loss])
    assert figure is not None and figure.panels[-2] == loss and "95 % intervals" in figure.note
    assert picture(figure, "png")[:4] == b"\x89PNG"


def test_the_usual_probes_are_those_that_are_listed_first() -> None:
    pairs = [("task:b", "acc"), ("spectra", "rank, layer 1"), ("spectra", "rank"), ("loss", "loss"), ("norms", "norm")]

    assert usual_pairs(pairs) == [("loss", "loss"), ("norms", "norm"), ("spectra", "rank")]
    assert usual_pairs(pairs[:1]) == [("task:b", "acc")] and usual_pairs([]) == []
