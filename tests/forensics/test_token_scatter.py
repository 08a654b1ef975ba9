"""What is kept of tokens as a scatter, as rows, and one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import InvalidRange
from data_index.files import write_json
from data_index.kinds import table_of_rows
from data_index.registration import add
from data_index.token_queries import categories_of_tokens, token_checkpoints, token_table
from data_index.workspace import Workspace, learn
from forensics.figure import Panel, interactive, picture
from forensics.kept_token_paths import cluster_limits, counted_of, kept_token_paths
from forensics.token_page import token_figure, token_page
from forensics.token_path_picture import figure_of
from forensics.token_scatter import (
    AS_INPUT,
    AS_TARGET,
    INDICATOR,
    NO_EXPOSURE,
    PROBABILITY,
    RANK,
    axes,
    scatter,
    scatter_figure,
)

NUM = 40
UNRANKED = (38, 39)  # known unused, without a rank


def token_rows(step: int = 20) -> list[dict[str, Any]]:
    """Tokens 0 .. 39: indicator = id + 1, the first four candidates, two of them verified."""
    return [
        {
            **{"step": step, "token_id": n, "text": f"<t{n}>", "category": "ok" if n % 4 else "single_byte"},
            **{"indicator_name": "input_norm", "indicator": n + 1.0, "rank": None if n in UNRANKED else n + 1},
            **{"candidate": n < 4, "below_gap": n < 6, "below_2_percent": n < 2, "in_unused_set": n in UNRANKED},
            **{"never_updated": None, "evidence": [], "max_probability": 10.0**-n if n < 4 else None},
            **{"verified": n >= 2 if n < 4 else None},
        }
        for n in range(NUM)
    ]


def exposure_row(step: int, token: int, count: int) -> dict[str, Any]:
    none = dict.fromkeys(("masked_target", "filtered_input", "filtered_target", "not_applied"), 0)
    return {"step": step, "token_id": token, "as_input": count, "as_target": 2 * count, **none} | {
        "first_step": 1,
        "last_step": step,
    }


def path_row(step: int, token: int, indicator: float, untrained: bool | None) -> dict[str, Any]:
    return {"step": step, "token_id": token, "indicator_name": "input_norm", "indicator": indicator} | {
        "distance_to_unused": None,
        "untrained": untrained,
    }


@pytest.fixture(scope="module")
def kept(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("tokens"))
    add(tiny_source, workspace=workspace)
    home = workspace.home("tiny")
    tables = {
        "tokens": [*token_rows(), *({**row, "indicator": 100.0} for row in token_rows(10))],
        "exposures": [exposure_row(step, n, n * step) for step in (5, 10, 15, 20) for n in range(1, NUM)],
        "token_paths": [path_row(step, n, 1.0 + n, n < 20 - step) for step in (0, 5, 10, 20) for n in range(NUM)],
        "token_origins": [{"token_id": 3, "document_ids": [7, 8], "tags": ["a", "b"], "tag_counts": [5, 1]}],
    }
    for kind, rows in tables.items():
        learn(home, kind, table_of_rows(kind, rows, "test"))
    return workspace


def test_every_number_that_is_kept_can_be_an_axis(kept: Workspace) -> None:
    run = kept.run("tiny")

    assert axes(kept, run, 20) == [INDICATOR, RANK, AS_TARGET, AS_INPUT, PROBABILITY, "indicator at 10"]
    (_, last) = token_checkpoints(kept, run)
    assert (last["num_candidates"], last["num_prompted"], last["num_verified"]) == (4, 4, 2)
    assert (last["gap"], last["two_percent"]) == (6.0, 2.0)


def test_points_have_their_tokens_numbers_and_kind(kept: Workspace) -> None:
    found = scatter("tiny", 20, AS_TARGET, INDICATOR, workspace=kept)
    points = {token: (kind, text, x, y) for kind, rows in found.points.items() for token, text, x, y in rows}

    assert len(points) == found.num_tokens == found.num_drawn == NUM
    assert points[0] == ("candidates", "<t0>", NO_EXPOSURE, 1.0) and points[1] == ("candidates", "<t1>", 40.0, 2.0)
    assert points[3] == ("cannot be repeated", "<t3>", 120.0, 4.0) and points[39][0] == "known unused"
    assert points[5][0] == "ordinary tokens" and points[8][0] == "bytes, specials, parts"
    assert list(found.points)[-1] == "cannot be repeated"  # drawn last, over the others


def test_the_other_axes_hold_what_they_say(kept: Workspace) -> None:
    """Counts are those up to the checkpoint; what has no number is left out."""
    ranked = scatter("tiny", 20, RANK, "indicator at 10", workspace=kept)
    assert ranked.num_tokens == NUM - len(UNRANKED)
    assert {(x - token, y) for rows in ranked.points.values() for token, _, x, y in rows} == {(1.0, 100.0)}
    prompted = scatter("tiny", 20, INDICATOR, PROBABILITY, workspace=kept)
    assert sorted(y for rows in prompted.points.values() for *_, y in rows) == [1e-3, 1e-2, 0.1, 1.0]
    early = scatter("tiny", 10, AS_INPUT, INDICATOR, workspace=kept)
    assert {token: x for rows in early.points.values() for token, _, x, _ in rows}[4] == 40.0


def test_candidates_are_never_thinned_away(kept: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forensics.chosen_points._STRETCHES", 2)
    found = scatter("tiny", 20, RANK, INDICATOR, most=10, workspace=kept)
    drawn = {token for rows in found.points.values() for token, *_ in rows}

    assert {0, 1, 2, 3, 37} <= drawn and found.num_covered == 0 and found.num_drawn == len(drawn) == 10
    assert "All candidates, known-unused and prompted tokens, and all extremes" in scatter_figure(found).note
    assert "All candidates" not in scatter_figure(scatter("tiny", 20, RANK, INDICATOR, workspace=kept)).note


@pytest.mark.parametrize(("step", "x", "said"), [(15, RANK, "no tokens of checkpoint 15"), (20, "size", "there are")])
def test_what_is_not_kept_is_said(kept: Workspace, step: int, x: str, said: str) -> None:
    with pytest.raises(InvalidRange, match=said):
        scatter("tiny", step, x, INDICATOR, workspace=kept)


def test_the_picture_leads_from_points_to_tokens_and_escapes_their_texts(kept: Workspace) -> None:
    figure = scatter_figure(scatter("tiny", 20, AS_TARGET, INDICATOR, workspace=kept))
    (panel,) = figure.panels
    canvas = interactive(figure)
    about = {entry[0]: entry[1] for trace in canvas.data if trace.customdata is not None for entry in trace.customdata}

    assert isinstance(panel, Panel) and panel.log_x and panel.log_y and about[3] == "&lt;t3&gt;" and len(about) == NUM
    assert [list(trace.y) for trace in canvas.data if trace.name == "gap"] == [[6.0, 6.0]]
    assert picture(figure, "png")[:4] == b"\x89PNG"


# --- rows ------------------------------------------------------------------------------------------------------------


def ids(table: Any) -> list[int]:
    found: list[int] = table.column("token_id").to_pylist()
    return found


def test_rows_are_filtered_together_and_ranked(kept: Workspace) -> None:
    run = kept.run("tiny")

    assert ids(token_table(kept, run, 20)) == list(range(NUM))
    assert categories_of_tokens(kept, run, 20) == {"ok": 30, "single_byte": 10}
    assert ids(token_table(kept, run, 20, categories=["single_byte"], only="candidates")) == [0]
    assert ids(token_table(kept, run, 20, only="verified")) == [2, 3]
    assert ids(token_table(kept, run, 20, only="prompted, can be repeated")) == [0, 1]
    assert ids(token_table(kept, run, 20, only="never updated")) == []
    assert ids(token_table(kept, run, 20, text="T3>")) == [3] and ids(token_table(kept, run, 20, text="17")) == [17]
    assert ids(token_table(kept, run, 20, text="%")) == []  # no pattern


# --- paths -----------------------------------------------------------------------------------------------------------


def test_kept_paths_tell_when_each_token_left_and_after_how_many_readings(kept: Workspace) -> None:
    """Tokens below 20 - step are inside at a step; the cluster's limit is that of the file beside the paths."""
    (path,) = kept.learned_files(kept.home("tiny"), "token_paths")
    write_json(path.parent / "state.json", {"steps": {"5": {"cluster": {"limit": 15.5}}, "10": {"cluster": {}}}})
    found = kept_token_paths("tiny", workspace=kept)
    assert found is not None
    rows = {row["token_id"]: row for row in found.rows}
    exposures = found.exposures_at()

    assert found.steps == [0, 5, 10, 20] and found.counted == "as_input" and exposures is not None
    assert exposures[:, 3].tolist() == [0, 15, 30, 60] and not exposures[0].any()
    assert (rows[12]["left_step"], rows[12]["left_after_min"], rows[12]["left_after_max"]) == (10, 60, 120)
    assert (rows[3]["left_step"], rows[3]["untrained"], rows[3]["text"]) == (20, False, "<t3>")
    assert [row["finding"] for row in found.rows[:2]] == ["never read", None] and found.rows[0]["token_id"] == 0
    assert cluster_limits(kept, kept.run("tiny")) == {}  # of a file that is not whole, nothing
    write_json(path.parent / "state.json", {"steps": {"5": {"cluster": {"limit": 15.5}}}})
    assert cluster_limits(kept, kept.run("tiny")) == {5: 15.5}
    assert [panel.title for panel in figure_of(found).panels][0] == "at checkpoint 20: all 40 tokens"


def test_without_counts_paths_come_without_them(tiny: Workspace) -> None:
    home = tiny.home("tiny")
    assert kept_token_paths("tiny", workspace=tiny) is None
    rows = [path_row(step, n, 1.0, None) for step in (5, 10) for n in range(3)]
    learn(home, "token_paths", table_of_rows("token_paths", rows, "test"))
    found = kept_token_paths("tiny", workspace=tiny)

    assert found is not None and found.exposures_at() is None and found.points[0].inside is None
    assert ["exposures" in message for message in found.messages] == [False, True]
    assert [row["text"] for row in found.rows] == ["<0>", "<1>", "<2>"]
    learn(home, "exposures", table_of_rows("exposures", [exposure_row(5, 1, 4)], "test"))
    partly = kept_token_paths("tiny", workspace=tiny)
    assert partly is not None and partly.exposures_at() is None  # nothing is said of checkpoint 10


def test_a_tied_matrix_is_moved_by_both_kinds_of_reading(tiny: Workspace) -> None:
    home = tiny.home("tiny")
    assert counted_of(tiny, "tiny", "input_norm") == "as_input" and counted_of(tiny, "tiny", "other") == "as_target"
    write_json(home / "token_paths" / "choices" / "a.json", {"tied": True})

    assert counted_of(tiny, "tiny", "input_norm") == "either"


# --- one token -------------------------------------------------------------------------------------------------------


def test_one_token_has_all_that_is_kept_of_it(kept: Workspace) -> None:
    page = token_page("tiny", 3, workspace=kept)

    assert page.text == "<t3>" and [row["step"] for row in page.found] == [10, 20]
    assert [(row["step"], row["as_target"]) for row in page.exposures] == [(5, 30), (10, 60), (15, 90), (20, 120)]
    assert [(row["step"], row["untrained"]) for row in page.path] == [(0, True), (5, True), (10, True), (20, False)]
    assert page.documents == (7, 8) and page.tags == (("a", 5), ("b", 1)) and page.traced
    figure = token_figure(page)
    assert figure is not None and [panel.title for panel in figure.panels] == [
        "indicator at each checkpoint",
        "exposures so far",
        "its path: exposures against the indicator",
    ]


def test_a_token_that_was_never_read_has_no_path_along_readings(kept: Workspace) -> None:
    page = token_page("tiny", 0, workspace=kept)
    figure = token_figure(page)

    assert {row["as_input"] for row in page.exposures} == {0} and page.documents == () and page.traced
    assert figure is not None and len(figure.panels) == 2 and picture(figure, "svg")[:5] == b"<?xml"


def test_a_token_of_a_run_that_was_not_asked_has_its_text_alone(tiny_shared: Workspace) -> None:
    page = token_page("tiny", 300, workspace=tiny_shared)

    assert page.piece and page.found == page.exposures == page.path == () and token_figure(page) is None
    assert not page.traced and json.dumps(page.text)
    with pytest.raises(InvalidRange, match="forensics tokens tiny"):
        token_page("tiny", 10**6, workspace=tiny_shared)


def test_numbers_that_are_none_are_left_out() -> None:
    from forensics.token_scatter import is_log

    assert not is_log(INDICATOR, np.array([np.nan])) and not is_log(INDICATOR, np.array([0.0, 100.0]))
    assert is_log(INDICATOR, np.array([1.0, 30.0])) and is_log(RANK, np.array([1.0]))
