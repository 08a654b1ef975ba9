"""The mixture over time: counts equal brute force, the picture draws every one of them."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import InvalidRange
from data_index.workspace import Workspace
from forensics.figure import Series, write_figure
from forensics.lookup import batch
from forensics.mixture import SHOWN_GROUPS, mixture_figure
from tests.data_index.conftest import RawRun
from tests.data_index.test_groups import tokens_by_group
from tests.forensics.test_cli import answer, forensics

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def raw(tiny_source: Path) -> RawRun:
    return RawRun(tiny_source)


def counted(raw: RawRun, first: int, last: int, by: str, every: int) -> Rows:
    """Row by row, in plain Python."""
    rows: Rows = []
    for begin in range(first, last, every):
        end = min(begin + every, last)
        counts: dict[str, int] = defaultdict(int)
        readings = [reading for reading in raw.readings if begin < reading.step <= end]
        for reading in readings:
            for key, tokens in tokens_by_group(raw, reading.instance, by).items():
                counts[key] += tokens
        for key in sorted(counts, key=lambda key: (-counts[key], key)):
            share = counts[key] / (len(readings) * raw.length)
            rows.append({"first_step": begin + 1, "last_step": end, by: key, "tokens": counts[key], "share": share})
    return rows


@pytest.mark.parametrize(("steps", "every"), [("0:20", 5), ("0:20", 3), ("4:11", 1), ("2:20", 100), ("13:15", 2)])
@pytest.mark.parametrize("by", ["tag", "source", "file", "document"])
def test_shares_are_a_brute_force_count(by: str, steps: str, every: int, tiny_shared: Workspace, raw: RawRun) -> None:
    first, last = map(int, steps.split(":"))

    found = batch("tiny", steps, by=by, every=every, workspace=tiny_shared).to_pylist()
    assert found == counted(raw, first, last, by, every)


def test_one_stretch_is_what_by_alone_counts(core_shared: Workspace) -> None:
    whole = batch("olmo", "5:35", by="document", workspace=core_shared).to_pylist()
    apart = batch("olmo", "5:35", by="document", every=30, workspace=core_shared).to_pylist()

    assert [(r["document"], r["tokens"], r["share"]) for r in apart] == [
        (r["document"], r["tokens"], r["share"]) for r in whole
    ]
    assert sum(row["share"] for row in apart) == pytest.approx(1.0, abs=1e-12)  # a sum of 50 rounded quotients


def test_every_needs_a_group_and_a_number_of_steps(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidRange, match="--every counts groups: it goes with --by"):
        batch("tiny", "0:20", every=2, workspace=tiny_shared)
    with pytest.raises(InvalidRange, match="--every takes a number of steps, not 0"):
        batch("tiny", "0:20", by="file", every=0, workspace=tiny_shared)
    assert forensics(tiny_shared, "batch", "tiny", "0:20", "--by", "file", "--picture", "x.png").returncode == 2


# --- the picture -----------------------------------------------------------------------------------------------------


def drawn(series: Series) -> list[tuple[float, float | None]]:
    return list(zip(series.x, series.y, strict=True))


@pytest.mark.parametrize("every", [1, 3])
def test_the_picture_holds_every_count(every: int, tiny_shared: Workspace, raw: RawRun) -> None:
    """No point is left out, none is averaged with another; what is not shown apart is in `others`."""
    table = batch("tiny", "0:20", by="source", every=every, workspace=tiny_shared)
    (panel,) = mixture_figure(tiny_shared, tiny_shared.run("tiny"), table, "source", every).panels
    rows = counted(raw, 0, 20, "source", every)
    edges = [*range(0, 20, every), 20]

    assert len(panel.series) == SHOWN_GROUPS + 1 and panel.series[-1].name == "10 others"
    for series in panel.series[:-1]:
        shares = {row["first_step"] - 1: row["share"] for row in rows if row["source"] == series.name}
        values = [shares.get(edge, 0.0) for edge in edges[:-1]]
        assert (series.style, drawn(series)) == ("area", list(zip(edges, [*values, values[-1]], strict=True)))
    stacked = [sum(column) for column in zip(*(series.y for series in panel.series), strict=True)]
    assert stacked == pytest.approx([1.0] * len(edges), abs=1e-12)  # sums of rounded quotients


def test_namespaces_of_tags_have_panels_of_their_own(tiny_shared: Workspace) -> None:
    table = batch("tiny", "0:20", by="tag", every=4, workspace=tiny_shared)
    figure = mixture_figure(tiny_shared, tiny_shared.run("tiny"), table, "tag", 4)

    assert [panel.title for panel in figure.panels] == ["domain", "package"]
    assert [series.name for series in figure.panels[0].series] == ["library", "licences", "topics"]
    assert {series.style for panel in figure.panels for series in panel.series} == {"area"}
    assert figure.title == "What tiny read, steps 1 to 20, by tag, counted every 4 steps"


def test_tags_that_overlap_are_lines_that_are_not_stacked(tiny: Workspace, tmp_path: Path) -> None:
    from forensics.document_tags import tag

    (tmp_path / "x.csv").write_text("document_id,tag\n" + "".join(f"{n},x:{n % 9}\n{n},x:all\n" for n in range(19)))
    tag("tiny", table=tmp_path / "x.csv", workspace=tiny)
    table = batch("tiny", "0:20", by="tag", every=4, workspace=tiny)
    figure = mixture_figure(tiny, tiny.run("tiny"), table, "tag", 4)
    panel = next(panel for panel in figure.panels if panel.title.startswith("x"))

    assert panel.title == "x (documents may carry several, so that shares overlap); the 7 largest of 10"
    assert {series.style for series in panel.series} == {"stairs"} and panel.top == 1.0
    assert (panel.series[0].name, panel.series[0].y) == ("all", [1.0] * 6)


def test_pictures_are_written_whatever_the_groups_are_called(tiny: Workspace, tmp_path: Path) -> None:
    """Names that matplotlib would hide or read as mathematics, and HTML that a browser would obey."""
    from forensics.document_tags import tag

    names = ["_hidden", "a $\\frac$ b", "<script>alert(1)</script>", "x" * 200, "n:$", "\x1b[2J"]
    rows = "".join(f'{n},"{name}"\n' for n, name in enumerate(names * 3))
    (tmp_path / "x.csv").write_text("document_id,tag\n" + rows)
    tag("tiny", table=tmp_path / "x.csv", workspace=tiny)
    table = batch("tiny", "0:20", by="tag", every=4, workspace=tiny)
    figure = mixture_figure(tiny, tiny.run("tiny"), table, "tag", 4)
    for ending in ("png", "html"):
        write_figure(figure, tmp_path / f"x.{ending}")

    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert "<script>alert(1)" not in (tmp_path / "x.html").read_text()


def test_the_verb_prints_rows_and_draws_them(tiny_shared: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "mixture.png"
    rows = answer(tiny_shared, "batch", "tiny", "0:20", "--by", "file", "--every", "10", "--picture", str(path))

    assert list(rows[0]) == ["first_step", "last_step", "file", "tokens", "share"]
    assert path.read_bytes()[:4] == b"\x89PNG"
