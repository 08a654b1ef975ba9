"""Pictures of trajectories show every value and every gap, the same as PNG and as HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import MissingMetric
from forensics.figure import COLOURS, Figure, write_figure
from forensics.figure_curves import Curves, Gaps, IntervalCurve, add_curves, draw_curves
from forensics.trajectories import COLUMNS, Curve, Trajectories
from forensics.trajectory_picture import figure_of


def curve(
    values: Mapping[int, float],
    *,
    run: str = "one",
    probe: str = "loss",
    metric: str = "loss",
    unit: str = "nats per token",
    published: bool = False,
    gaps: Sequence[int] = (),
    tokens: int | None = 100,
) -> Curve:
    """Values by step, each 1 ± 0.25 of it; `tokens` are those of a step."""
    rows = [
        dict.fromkeys(COLUMNS)
        | {"run": run, "step": step, "tokens": None if tokens is None else tokens * step, "value": value}
        | {"low": 0.75 * value, "high": 1.25 * value}
        for step, value in values.items()
    ]
    missing = tuple((step, None if tokens is None else tokens * step) for step in gaps)
    return Curve(run=run, probe=probe, metric=metric, unit=unit, published=published, rows=tuple(rows), gaps=missing)


def picture(*curves: Curve, x: Any = "steps") -> Figure:
    found = Trajectories(
        runs=tuple(dict.fromkeys(one.run for one in curves)),
        probes=tuple(dict.fromkeys(one.probe for one in curves)),
        curves=curves,
        shown=frozenset((one.probe, one.metric) for one in curves),
    )
    return figure_of(found, x)


def panels(figure: Figure) -> list[Curves]:
    assert all(isinstance(panel, Curves) for panel in figure.panels)
    return [panel for panel in figure.panels if isinstance(panel, Curves)]


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_several_runs_have_a_panel_for_each_metric_and_a_colour_for_each_run() -> None:
    figure = picture(
        *(
            curve({0: 6.0, 10: 4.0}, run=run, metric=metric)
            for run in ("one", "two")
            for metric in ("loss", "late loss")
        ),
        curve({5: 5.0}, run="two", metric="loss", published=True),
    )

    assert [panel.title for panel in panels(figure)] == ["loss", "loss: late loss"]
    assert [(line.name, line.colour, line.open) for line in panels(figure)[0].curves] == [
        ("one", COLOURS[0], False),
        ("two", COLOURS[1], False),
        ("two, published", COLOURS[1], True),
    ]
    assert "Dashed lines, open points: published." in figure.note and "Solid lines: measured here." in figure.note


def test_one_run_has_a_panel_for_each_unit_and_a_colour_for_each_metric() -> None:
    metrics = [curve({0: 6.0}, metric=f"loss, bin {n}") for n in range(10)]
    figure = picture(
        *metrics, curve({0: 0.5}, metric="accuracy", unit="share"), curve({0: 2.0}, probe="norms", unit="1")
    )

    assert [len(panel.curves) for panel in panels(figure)] == [8, 2, 1, 1]  # no more than can be told apart
    assert [panel.y_label for panel in panels(figure)] == ["nats per token", "nats per token", "share", "value"]
    assert len({line.colour for line in panels(figure)[0].curves}) == 8


def test_gaps_break_the_line_and_are_marked() -> None:
    figure = picture(curve({0: 6.0, 5: 5.0, 15: 4.0, 20: 3.0}, gaps=(10, 25)))
    (panel,) = panels(figure)

    assert (panel.curves[0].x, panel.curves[0].y) == ([0, 5, 10, 15, 20], [6.0, 5.0, None, 4.0, 3.0])
    assert list(panel.curves[0].stretches()) == [[0, 1], [3, 4]]
    assert [list(gaps.x) for gaps in panel.gaps] == [[10, 25]]
    low, _ = panel.y_range
    assert low < panel.row_of_gaps(0) < 0.75 * 3.0  # below the lowest interval
    assert panel.x_range[0] < 0 and panel.x_range[1] > 25 and "a checkpoint without a value" in figure.note


def test_a_sweep_of_a_few_checkpoints_is_one_line_with_the_others_marked() -> None:
    (panel,) = panels(picture(curve({0: 6.0, 100: 3.0}, gaps=tuple(range(10, 100, 10)))))

    assert panel.curves[0].y == [6.0, 3.0] and list(panel.gaps[0].x) == list(range(10, 100, 10))


def test_step_0_has_a_place_on_a_logarithmic_axis() -> None:
    figure = picture(curve({0: 3.0, 1: 2.0, 143000: 1.0}, tokens=None), x="log-steps")
    (panel,) = panels(figure)

    assert list(panel.curves[0].x) == [0.5, 1, 143000] and panel.log_x and 0 < panel.x_range[0] < 0.5
    assert panel.x_ticks == [
        (0.5, "0"),
        (1, "1"),
        (10, "10"),
        (100, "100"),
        (1e3, "1,000"),
        (1e4, "10,000"),
        (1e5, "100,000"),
    ]
    assert "Step 0 is drawn at half the first step after it." in figure.note
    (few,) = panels(picture(curve({20: 2.0, 240: 1.0}), x="log-steps"))
    assert [label for _, label in few.x_ticks] == ["20", "50", "100", "200"]


def test_tokens_are_counted_in_a_unit_that_is_said() -> None:
    known, unknown = curve({10: 2.0, 30: 1.0}, tokens=10**8, gaps=(20,)), curve({10: 2.0}, metric="other", tokens=None)
    figure = picture(known, unknown, x="tokens")
    (panel,) = panels(figure)

    assert figure.x_label == "tokens (billions)"
    assert (list(panel.curves[0].x), list(panel.gaps[0].x)) == ([1.0, 2.0, 3.0], [2.0]) and len(panel.curves) == 1
    assert "1 values of checkpoints whose tokens are not known are not drawn" in figure.note
    with pytest.raises(MissingMetric, match="is not known here; --x steps and --x log-steps need none"):
        picture(unknown, x="tokens")


def test_values_over_decades_have_a_logarithmic_axis() -> None:
    """The perplexity of an untrained model is a million times that of a trained one."""
    wide, narrow = curve({0: 4e6, 10: 5.0}), curve({0: 6.0, 10: 3.0}, probe="b")
    negative = curve({0: -1.0, 10: 3000.0}, probe="c")

    assert [panel.log_y for panel in panels(picture(wide, narrow, negative))] == [True, False, False]


def test_values_that_are_no_numbers_leave_a_picture(tmp_path: Path) -> None:
    figure = picture(curve({0: math.nan, 5: math.inf, 10: 1.0}), curve({0: math.nan}, probe="b"))
    for ending in ("png", "html"):
        write_figure(figure, tmp_path / f"p.{ending}")

    assert [list(line.x) for panel in panels(figure) for line in panel.curves] == [[10]]
    assert (tmp_path / "p.png").stat().st_size > 10_000


# --- both renderers --------------------------------------------------------------------------------------------------

LINE = IntervalCurve(
    name="a <run> of $",
    x=[0.5, 1.0, 10.0, 20.0, 100.0],
    y=[8.0, 4.0, None, 2.0, 1.0],
    low=[7.0, -1.0, None, None, 0.5],
    high=[9.0, 5.0, None, None, 1.5],
    colour=COLOURS[0],
)
PANEL = Curves(
    title="panel",
    y_label="unit",
    curves=[LINE, IntervalCurve(name="b", x=[1.0], y=[3.0], low=[None], high=[None], colour=COLOURS[1], open=True)],
    gaps=[Gaps(name="no value", x=[10.0], colour="#555555")],
    x_range=(0.4, 120.0),
    x_ticks=[(0.5, "0"), (1.0, "1"), (100.0, "100")],
    log_x=True,
    log_y=True,
)


@pytest.fixture
def axis() -> Iterator[Any]:
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    canvas, axis = pyplot.subplots()
    yield axis
    pyplot.close(canvas)


def test_matplotlib_draws_what_is_described(axis: Any) -> None:
    draw_curves(axis, PANEL)
    by_label = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}

    assert list(by_label) == ["a <run> of \\$", "b", "no value"]
    line = by_label["a <run> of \\$"]
    assert list(line.get_xdata()) == LINE.x and [None if y != y else y for y in line.get_ydata()] == LINE.y
    assert (line.get_linestyle(), by_label["b"].get_linestyle()) == ("-", "--")
    assert by_label["b"].get_markerfacecolor() == "white" and list(by_label["no value"].get_xdata()) == [10.0]
    assert len(axis.collections) == 1  # a band over two points; the last one alone has a bar
    band = axis.collections[0].get_paths()[0].vertices
    assert set(band[:, 0]) == {0.5, 1.0} and min(band[:, 1]) == pytest.approx(PANEL.y_range[0])
    (bar,) = [line for line in axis.lines if list(line.get_xdata()) == [100.0, 100.0]]
    assert list(bar.get_ydata()) == [0.5, 1.5]
    assert (axis.get_xscale(), axis.get_yscale(), axis.get_xlim()) == ("log", "log", PANEL.x_range)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "1", "100"]


def test_plotly_draws_the_same() -> None:
    from plotly.subplots import make_subplots

    canvas = make_subplots(rows=2, cols=1)
    add_curves(canvas, PANEL, 2)
    named = {trace.name: trace for trace in canvas.data if trace.showlegend is not False}

    assert list(named) == ["a &lt;run&gt; of $", "b", "no value"]
    line = named["a &lt;run&gt; of $"]
    assert (list(line.x), list(line.y), line.line.dash) == (LINE.x, LINE.y, "solid")
    assert (named["b"].line.dash, named["b"].marker.symbol) == ("dash", "circle-open")
    assert (list(named["no value"].x), list(named["no value"].y)) == ([10.0], [PANEL.row_of_gaps(0)])
    bands = [(list(trace.x), list(trace.y)) for trace in canvas.data if trace.fill == "toself"]
    floor = PANEL.y_range[0]
    assert bands == [([0.5, 1.0, 1.0, 0.5], [7.0, floor, 5.0, 9.0]), ([100.0, 100.0], [0.5, 1.5])]
    x_axis, y_axis = canvas.layout.xaxis2, canvas.layout.yaxis2
    assert (x_axis.type, y_axis.type, y_axis.title.text) == ("log", "log", "unit")
    assert [10**end for end in x_axis.range] == pytest.approx(PANEL.x_range)
    assert [10**end for end in y_axis.range] == pytest.approx(PANEL.y_range)
    assert list(x_axis.ticktext) == ["0", "1", "100"] and canvas.layout.legend2.y == y_axis.domain[1]


def test_every_value_lies_inside_its_panel() -> None:
    low, high = PANEL.y_range

    assert low < PANEL.row_of_gaps(0) < 0.5 and high > 9.0
    flat = Curves(
        title="",
        y_label="",
        curves=[IntervalCurve(name="", x=[1], y=[0.0], low=[None], high=[None], colour="")],
        x_range=(0, 2),
    )
    assert flat.y_range[0] < 0 < flat.y_range[1]
