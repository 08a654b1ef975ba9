"""Pictures as the explorer draws them: what can be clicked, and that nothing of a line is lost for it."""

from __future__ import annotations

import pytest

from app.charts import MANY_POINTS, MOST_CLICKABLE, ribbon_canvas
from forensics.figure import Figure, Panel, Series

PEAK = 1234


def canvas(num_points: int, *, dark: bool = False) -> tuple:
    values = [1.0] * num_points
    values[min(PEAK, num_points - 1)] = 9.0
    series = Series(name="loss", x=list(range(num_points)), y=values)
    figure = Figure(title="t", x_label="step", panels=[Panel(title="loss", y_label="nats", series=[series])])
    return ribbon_canvas(figure, dark=dark, x_range=(0, num_points), marking=False).data


def test_a_long_line_is_a_line_whose_peaks_can_be_clicked() -> None:
    """Thousands of points to click make a browser slow; a peak that could not be clicked would be lost."""
    line, points = canvas(5000)

    assert (line.mode, len(line.x), max(line.y)) == ("lines", 5000, 9.0)
    assert points.mode == "markers" and points.marker.opacity == 0 and not points.showlegend
    assert len(points.x) <= MOST_CLICKABLE and dict(zip(points.x, points.y, strict=True))[PEAK] == 9.0


def test_every_point_of_a_short_line_can_be_clicked() -> None:
    (line,) = canvas(MANY_POINTS)

    assert line.mode == "lines+markers" and line.marker.opacity == 1 and len(line.x) == MANY_POINTS


@pytest.mark.parametrize(("dark", "colour"), [(False, "#0072B2"), (True, "#3D86F0")])
def test_points_have_the_colour_of_their_line(dark: bool, colour: str) -> None:
    for trace in (*canvas(5000, dark=dark), *canvas(50, dark=dark)):
        assert trace.marker.color == colour and trace.line.color == colour
