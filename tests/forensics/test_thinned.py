"""A picture of a million points shows the same peaks and gaps as one of all of them."""

import numpy as np

from forensics.figure import Figure, Panel, Series, write_html, write_png
from forensics.thinned import MOST_POINTS, thinned


def test_extremes_ends_and_gaps_survive() -> None:
    random = np.random.default_rng(0)
    y = random.standard_normal(200_000)
    y[[77_777, 123_456]] = 50.0, -50.0
    values: list[float | None] = y.tolist()
    values[100_000:100_010] = [None] * 10
    values[150_000] = None
    x, kept = thinned(range(200_000), values)
    by_x = dict(zip(x, kept, strict=True))

    assert len(x) <= MOST_POINTS + 2 and list(x) == sorted(x)
    assert by_x[77_777] == 50.0 and by_x[123_456] == -50.0
    assert by_x[0] == values[0] and by_x[199_999] == values[199_999]
    assert by_x[100_000] is None and by_x[150_000] is None and sum(v is None for v in kept) == 2


def test_every_stretch_keeps_its_lowest_and_highest() -> None:
    y = np.random.default_rng(1).standard_normal(40_000)
    x, kept = thinned(np.arange(40_000), y.tolist(), most=400)
    edges = np.linspace(0, 39_999, 101)
    for low, high in zip(edges, edges[1:], strict=False):
        all_there = y[int(np.ceil(low)) : int(np.ceil(high))]
        shown = [value for place, value in zip(x, kept, strict=True) if low <= place < high]
        assert max(shown) == all_there.max() and min(shown) == all_there.min()


def test_a_short_line_is_left_as_it_is() -> None:
    x, y = [1, 2, 3], [0.5, None, 2.0]

    assert thinned(x, y) == (x, y)


def test_pictures_of_long_lines_hold_the_peak(tmp_path) -> None:
    """Both outputs draw from the same points; the page would otherwise have 20 bytes for each of them."""
    y = np.random.default_rng(2).standard_normal(100_000)
    y[31_219] = 960.351
    line = Series(name="grad_norm", x=range(len(y)), y=y.tolist())
    bands = [(40_000, 50_000, "not finite")]
    figure = Figure(title="t", x_label="step", panels=[Panel(title="p", y_label="y", series=[line], bands=bands)])
    write_html(figure, tmp_path / "long.html")
    write_png(figure, tmp_path / "long.png")
    page = (tmp_path / "long.html").read_text()

    assert "960.351" in page and "not finite" in page
    assert len(page) < 6_500_000 and (tmp_path / "long.png").read_bytes()[:4] == b"\x89PNG"
