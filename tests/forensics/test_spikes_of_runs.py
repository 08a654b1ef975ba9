"""What `spikes` says of restarts, of runs in a workspace, of two logs, and of what it cannot search."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import forensics
from data_index.errors import InvalidRange, MissingMetric, UnknownLayout, UnknownRun
from data_index.run import Segment
from data_index.store import run_query
from data_index.workspace import Workspace
from forensics.figure import write_figure
from forensics.imported_metrics import import_metrics
from forensics.judged_series import judged
from forensics.logged_series import series_of_points
from forensics.restarts import restarts_of
from forensics.spike_coincidence import coincidence
from forensics.spike_counts import COLUMNS
from forensics.spike_detection import spikes
from forensics.spike_events import spike_events
from forensics.spike_picture import picture_of
from tests.forensics.test_cli import answer
from tests.forensics.test_cli import forensics as command
from tests.forensics.test_spikes import curves, found_in, written

# --- restarts --------------------------------------------------------------------------------------------------------


def test_steps_taken_twice_are_a_counterfactual(tmp_path: Path) -> None:
    """As PaLM's restarts: an earlier attempt spiked, the one that was kept did not."""
    steps, loss, norm = curves(500)
    first_loss, first_norm = loss.copy(), norm.copy()
    first_loss[420:424], first_norm[418:424] = 5.0, 9.0
    taken = np.concatenate([np.arange(430), np.arange(350, 500)])
    again = np.concatenate([np.zeros(430, dtype=bool), np.ones(150, dtype=bool)])
    found = found_in(
        tmp_path,
        steps[taken],
        np.where(again, loss[taken], first_loss[taken]),
        np.where(again, norm[taken], first_norm[taken]),
    )
    (restart,) = found.restarts
    (row,) = found.robust_rows

    assert found.events == ()  # of the attempt that counts
    assert (row["onset"], row["peak"], row["lead_steps"], row["attempt"]) == (419, 421, 2, 1)
    assert (restart.first_step, restart.last_step, restart.attempt, restart.kept_attempt) == (351, 430, 1, 2)
    assert row["detail"].startswith("given up: steps 351 to 430 were taken again, without")
    (said,) = [m for m in found.messages if m.startswith("restart")]
    assert "attempt 1 spiked at 421, attempt 2 did not in these steps, whether on the same data is not known" in said


def test_a_restart_that_spikes_again_is_told_apart(tmp_path: Path) -> None:
    """The 15 steps that were given up are judged by the kept ones before them."""
    steps, loss, norm = curves(500)
    loss[420:424] = 5.0
    taken = np.concatenate([np.arange(430), np.arange(415, 500)])
    found = found_in(tmp_path, steps[taken], loss[taken], norm[taken])

    assert [(row["peak"], row["attempt"]) for row in found.robust_rows] == [(421, 2), (421, 1)]
    assert any("attempt 1 spiked at 421, attempt 2 at 421" in message for message in found.messages)


@pytest.mark.parametrize("moved", [0, 512, None])
def test_whether_a_restart_read_the_same_data_is_told_from_the_run_s_record(moved: int | None) -> None:
    """PaLM's question: the same batches, another state. Where the data were passed over, nothing follows."""
    steps, loss, _ = curves(500)
    first = loss.copy()
    first[420:424] = 5.0
    series = series_of_points(
        "loss",
        np.concatenate([steps[:350], np.repeat(steps[350:430], 2), steps[430:]]),
        np.concatenate([np.ones(350), np.tile([1, 2], 80), np.full(70, 2)]),
        np.concatenate([loss[:350], np.stack([first[350:430], loss[350:430]], axis=1).ravel(), loss[430:]]),
    )
    segments = [Segment(first_step=1, num_steps=430, epoch=1, first_position=0, instances_per_batch=8)]
    if moved is not None:
        position = 350 * 8 + moved
        segments.append(replace(segments[0], first_step=351, num_steps=150, first_position=position, attempt=2))
    judged_loss = judged("loss", series.kept, 1)
    run: Any = SimpleNamespace(segments=segments)
    (restart,) = restarts_of(run, series, None, [judged_loss], spike_events(judged_loss, None))
    said = {
        0: "on the same data: so the data alone",
        512: "on other data",
        None: "whether on the same data is not known",
    }

    assert restart.same_data is {0: True, 512: False, None: None}[moved]
    assert said[moved] in restart.text and restart.spikes[0].peak == 421 and not restart.kept_spikes


# --- runs of a workspace ---------------------------------------------------------------------------------------------


def with_log(workspace: Workspace, folder: Path, peak: int) -> None:
    steps, loss, norm = curves(400)
    loss[peak - 1], norm[peak - 2] = 4.0, 3.0
    path = written(folder / f"log-{peak}.csv", steps, trl=loss, **{"grad norm": norm})
    import_metrics("tiny", path, workspace=workspace, replace=True)


@pytest.fixture
def logged(tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The tiny run with a longer log beside its own, under another name of the loss."""
    with_log(tiny, tmp_path, 300)
    return tiny


def test_what_is_found_of_a_run_is_kept_and_answers_in_sql(logged: Workspace, tmp_path: Path) -> None:
    found = spikes("tiny", workspace=logged)
    query = "select * from spikes where run = 'tiny' and kind = 'fast'"
    (row,) = run_query(logged, query).to_pylist()
    folder = logged.home("tiny")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = spikes("tiny", workspace=logged)

    assert (row["onset"], row["peak"], row["lead_steps"], row["kind"]) == (299, 300, 1, "fast")
    assert row["series"] == ["loss", "grad_norm"] and json.loads(row["parameters"])["window"] == 128
    assert set(found.rows[0]) == set(COLUMNS) and again.rows == found.rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with_log(logged, tmp_path, 320)
    spikes("tiny", workspace=logged)
    assert [row["peak"] for row in run_query(logged, query).to_pylist()] == [320]


def test_a_damaged_table_of_spikes_is_replaced(logged: Workspace) -> None:
    spikes("tiny", workspace=logged)
    (path,) = logged.learned_files(logged.home("tiny"), "spikes")
    path.write_bytes(b"no table")
    spikes("tiny", workspace=logged)

    assert run_query(logged, "from spikes where kind = 'fast'").num_rows == 1


def test_a_search_of_other_metrics_is_not_kept(logged: Workspace) -> None:
    found = spikes("tiny", loss="grad norm", workspace=logged)

    assert found.events and run_query(logged, "from spikes").num_rows == 0


def test_the_verb_draws_a_run_and_prints_what_it_found(logged: Workspace) -> None:
    done = command(logged, "spikes", "tiny")  # both pictures
    drawn = sorted(path.name for path in (logged.folder / "findings").glob("spikes-*"))
    header, _, *rows = done.stdout.splitlines()

    assert done.returncode == 0 and drawn == [f"spikes-tiny.{ending}" for ending in ("html", "json", "png")]
    assert header.split()[:5] == ["onset", "peak", "recovery", "kind", "lead_steps"]
    assert ["299", "300", "308", "fast", "1"] in [row.split()[:5] for row in rows]
    for named in ("olmo2_paper (window 1000", "olmo_core_monitor (window 128", "olmo_core_skip", "robust (window 128"):
        assert named in done.stderr


def test_two_runs_have_the_documented_keys(logged: Workspace, tmp_path: Path) -> None:
    steps, loss, norm = curves(400)
    loss[299] = 4.0
    other = written(tmp_path / "other.csv", steps, loss=loss, grad_norm=norm)
    value = answer(logged, "spikes", "tiny", other, "-o", str(tmp_path / "two.png"))
    table = command(logged, "spikes", other, other)

    keys = {"run", "other", "num_common", "expected", "p_value", "coincide", "num_shifts", "steps"}
    assert keys <= set(value) and set(value["steps"][0]) == {"step", "z", "z_other", "value", "value_other"}
    assert value["coincide"] and 300 in [row["step"] for row in value["steps"]]
    assert "other.csv and other.csv coincide" in table.stderr and "picture" not in table.stderr
    assert (tmp_path / "two.png").read_bytes()[:4] == b"\x89PNG"


# --- two logs, pictures, refusals ------------------------------------------------------------------------------------


def test_logs_that_are_a_step_off_are_told_so(tmp_path: Path) -> None:
    steps, loss, norm = curves(4000)
    loss[np.arange(200, 3900, 61)] += np.random.default_rng(0).uniform(0.5, 1, 61)
    files = [written(tmp_path / f"{n}.csv", steps + n, loss=loss.round(5)) for n in (0, 1)]
    found = spikes(*files, workspace=Workspace(tmp_path / "workspace")).coincidence
    assert found is not None

    assert not found.coincide and found.best_shift == 1 and found.best_count == 61
    assert "shifted by 1 steps, 61 are" in found.answer


def test_unrelated_logs_coincide_as_chance_says() -> None:
    """Over many pairs the p-value is below 0.1 no more than one time in ten, though the spikes are clusters."""
    small = 0
    for seed in range(60):
        both = []
        for part in (2 * seed, 2 * seed + 1):
            steps, loss, _ = curves(700, part)
            for place in np.random.default_rng(part).integers(20, 696, 15):
                loss[place : place + 4] += 0.5
            both.append(judged("loss", series_of_points("loss", steps, np.ones(700), loss).kept, 1))
        small += coincidence("a", "b", *both).p_value <= 0.1

    assert small <= 12


def test_a_run_coincides_with_itself_as_far_as_shifts_can_tell() -> None:
    steps, loss, _ = curves(2000)
    loss[np.arange(100, 2000, 61)] += 1.0
    one = judged("loss", series_of_points("loss", steps, np.ones(2000), loss).kept, 1)
    found = coincidence("a", "a", one, one)

    assert found.num_common == found.num_run == found.num_other == 32
    assert found.num_shifts == 2 * (1984 // 8 - 32) and found.p_value == 1 / (1 + found.num_shifts)


def test_too_few_common_steps_are_refused(tmp_path: Path) -> None:
    steps, loss, _ = curves(200)
    files = [written(tmp_path / f"{n}.csv", steps, loss=loss) for n in (0, 1)]

    with pytest.raises(InvalidRange, match="184 judged steps in common; whether they coincide takes 256"):
        spikes(*files, workspace=Workspace(tmp_path / "workspace"))


@pytest.mark.parametrize("ending", ["png", "html"])
def test_pictures_of_odd_logs_are_drawn(ending: str, tmp_path: Path) -> None:
    """Every value NaN, a single value, many events, NaN to the end, a restart."""
    steps, loss, norm = curves(1600)
    many = loss.copy()
    many[np.arange(200, 1500, 40)] += 1.0
    many[1550:] = math.nan
    zeros = norm.copy()
    zeros[50:60] = 0.0
    logs = [(steps, np.full(1600, math.nan), norm), (steps[:1], loss[:1], norm[:1]), (steps, many, zeros)]
    taken = np.concatenate([np.arange(430), np.arange(350, 500)])
    logs.append((steps[taken], loss[taken], norm[taken]))
    for number, log in enumerate(logs):
        path = tmp_path / f"{number}.{ending}"
        write_figure(picture_of(found_in(tmp_path, *log)), path)
        assert path.stat().st_size > 5000


def test_a_picture_marks_each_event_and_enlarges_the_largest(tmp_path: Path) -> None:
    steps, loss, norm = curves(3000)
    loss[[500, 1500, 2500]] = 3.0, 4.0, 3.2
    figure = picture_of(found_in(tmp_path, steps, loss, norm))
    whole, _, enlarged, _ = figure.panels

    (peaks,) = [series for series in whole.series if series.name == "peak"]
    assert list(peaks.x) == [501, 1501, 2501] and list(peaks.y) == [3.0, 4.0, 3.2]
    assert [label for _, label in whole.marks] == ["501", "1501", "2501"]
    assert "steps 1401..1609" in enlarged.title


def test_what_cannot_be_searched_is_said(tmp_path: Path, tiny_shared: Workspace) -> None:
    steps, loss, _ = curves(50)
    log = written(tmp_path / "log.csv", steps, accuracy=loss)
    (tmp_path / "results.json").write_text(json.dumps({"results": {"lambada": {"acc,none": 0.5}}}))

    with pytest.raises(UnknownRun, match="no run or fork is called 'tinny'.*No log file is called 'tinny' either"):
        forensics.spikes("tinny", workspace=tiny_shared)
    with pytest.raises(MissingMetric, match=r"has no metric 'loss'; it logged accuracy \(choose with --loss NAME"):
        forensics.spikes(log, workspace=tiny_shared)
    with pytest.raises(MissingMetric, match="has no metric 'nothing'"):
        forensics.spikes(log, loss="accuracy", grad_norm="nothing", workspace=tiny_shared)
    with pytest.raises(UnknownLayout, match="evaluations of checkpoints"):
        forensics.spikes(str(tmp_path / "results.json"), workspace=tiny_shared)
    assert forensics.spikes(log, loss="accuracy", workspace=tiny_shared).loss is not None
