"""Trajectories hold every value once, in order, and say which checkpoints have none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import MissingMetric, UnknownRun
from data_index.kinds import table_of_rows
from data_index.registration import add
from data_index.workspace import Workspace, learn
from forensics.imported_metrics import import_metrics
from forensics.trajectories import COLUMNS, Trajectories, trajectory
from forensics.trajectory_names import MOST_IN_ALL, MOST_METRICS

STEPS = (0, 5, 10, 15, 20)  # the checkpoints of the tiny run


@pytest.fixture(scope="module")
def shared(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of this module's own with the tiny run; each test writes the tables it needs."""
    workspace = Workspace(tmp_path_factory.mktemp("trajectories"))
    add(tiny_source, workspace=workspace)
    return workspace


def measured(
    probe: str, metric: str, values: Mapping[int, float], unit: str = "nats per token", settings: str | None = "{}"
) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "tokens": 512 * step,
            "probe": probe,
            "metric": metric,
            "value": value,
            "low": value - 0.5,
            "high": value + 0.5,
            "unit": unit,
            "settings": settings,
        }
        for step, value in values.items()
    ]


def published(
    task: str, metric: str, values: Mapping[int, float], source: str = "a.json", unit: str | None = "share"
) -> list[dict[str, Any]]:
    return [
        {"step": step, "task": task, "metric": metric, "value": value, "stderr": 0.25, "source": source, "unit": unit}
        | {"num_fewshot": 0}
        for step, value in values.items()
    ]


def write(workspace: Workspace, probes: Sequence[Any] = (), evaluations: Sequence[Any] = (), run: str = "tiny") -> None:
    home = workspace.home(run)
    learn(home, "probes", table_of_rows("probes", list(probes), "test"))
    learn(home, "evaluations", table_of_rows("evaluations", list(evaluations), "test"))


def values(found: Trajectories) -> list[tuple[str, str, int, float]]:
    return [(row["probe"], row["metric"], row["step"], row["value"]) for row in found.rows]


def test_rows_stand_in_the_order_of_the_question(shared: Workspace) -> None:
    """Runs and probes as asked for, metrics by their names with numbers as numbers, then steps."""
    norms = measured("norms", "norm, layer 10", {5: 1.0}) + measured("norms", "norm, layer 2", {5: 2.0, 0: 3.0})
    write(shared, measured("loss", "loss", dict.fromkeys(reversed(STEPS), 4.0)) + norms)
    found = trajectory("tiny", ["norms", "loss"], workspace=shared)

    assert values(found) == [
        ("norms", "norm, layer 2", 0, 3.0),
        ("norms", "norm, layer 2", 5, 2.0),
        ("norms", "norm, layer 10", 5, 1.0),
        *(("loss", "loss", step, 4.0) for step in STEPS),
    ]
    first = found.rows[0]
    assert tuple(first) == COLUMNS and first["run"] == "tiny" and first["source"] is None
    assert (first["tokens"], first["low"], first["high"], first["unit"]) == (0, 2.5, 3.5, "nats per token")
    assert found.table().to_pylist() == [dict(row) for row in found.rows]


def test_checkpoints_without_a_value_are_gaps(shared: Workspace) -> None:
    """NaN is no value; a metric that was measured nowhere has no gap."""
    rows = measured("loss", "loss", {0: 6.0, 10: float("nan"), 20: 4.0}) + measured("norms", "norm", {20: 1.0})
    rows += measured("norms", "none", {20: float("inf")})
    write(shared, rows)
    found = trajectory("tiny", ["loss", "norms"], workspace=shared)

    gap = [(row["probe"], row["metric"], row["step"], row["tokens"]) for row in found.gaps]
    assert gap == [
        *(("loss", "loss", step, 512 * step) for step in (5, 10, 15)),
        *(("norms", "norm", step, 512 * step) for step in (0, 5, 10, 15)),
    ]
    assert len(found.rows) == 5
    assert "tiny: 4 checkpoints lack a value that others have: 0, 5, 10, 15" in found.messages[0]


def test_published_values_stand_beside_measured_ones_and_make_no_gap(shared: Workspace) -> None:
    """A step that only a publisher evaluated is no checkpoint here, and what it states of one is a value of it, if it
    is a number.
    """
    write(
        shared,
        measured("task:sciq", "acc", {0: 0.25, 10: 0.5, 20: 0.75}, "share"),
        published("sciq", "acc", {5: float("nan"), 7: 0.5, 15: 0.5}) + published("piqa", "acc", {7: 0.5}),
    )
    found = trajectory("tiny", "task:*", workspace=shared)

    assert [(curve.probe, curve.published, len(curve.rows), curve.gaps) for curve in found.curves] == [
        ("task:piqa", True, 1, ()),
        ("task:sciq", False, 3, ((5, 5 * 512),)),
        ("task:sciq", True, 3, ()),
    ]
    at_15 = found.rows[-1]
    assert (at_15["step"], at_15["tokens"], at_15["source"]) == (15, 15 * 512, "a.json")
    assert (at_15["low"], at_15["high"]) == (0.5 - 1.96 * 0.25, 0.5 + 1.96 * 0.25)
    assert found.rows[0]["tokens"] == 7 * 512  # no checkpoint, but the trainer logged it
    alone = trajectory("tiny", "task:sciq", published=False, workspace=shared)
    assert [curve.published for curve in alone.curves] == [False] and [row["step"] for row in alone.gaps] == [5, 15]
    theirs = trajectory("tiny", "task:sciq", measured=False, workspace=shared)
    assert [curve.published for curve in theirs.curves] == [True] and theirs.gaps == []


def test_evaluations_kept_without_a_unit_get_theirs(shared: Workspace) -> None:
    write(shared, [], published("sciq", "acc", {5: 0.5}, unit=None))

    assert [row["unit"] for row in trajectory("tiny", "task:sciq", workspace=shared).rows] == ["share"]


def test_other_settings_at_one_checkpoint_are_other_curves(shared: Workspace) -> None:
    """A line must not jump between numbers that were measured in two ways."""
    few, many = (
        measured("loss", "loss", {0: 6.0, 5: 5.0}, settings="few"),
        measured("loss", "loss", {5: 5.5, 20: 4.0}, settings="many"),
    )
    write(shared, few + many)
    found = trajectory("tiny", "loss", workspace=shared)

    assert [[(row["step"], row["value"]) for row in curve.rows] for curve in found.curves] == [
        [(0, 6.0), (5, 5.0)],
        [(5, 5.5), (20, 4.0)],
    ]
    assert [row["step"] for row in found.curves[0].rows] == [0, 5] and found.curves[0].gaps == found.curves[1].gaps
    assert "was measured with 2 settings; each is a curve of its own" in found.messages[0]
    write(shared, few + many[1:] + few)
    joined = trajectory("tiny", "loss", workspace=shared)
    assert [row["step"] for row in joined.rows] == [0, 5, 20]
    assert "2 settings; one curve joins them" in joined.messages[0]


def test_contradicting_evaluations_are_said(shared: Workspace) -> None:
    write(shared, [], published("sciq", "acc", {5: 0.5}) + published("sciq", "acc", {5: 0.6}, source="b.json"))
    found = trajectory("tiny", "task:sciq", workspace=shared)

    assert [row["value"] for row in found.rows] == [0.5, 0.6]
    assert "was published with several values of one checkpoint" in found.messages[0]


def test_what_is_shown_of_many_metrics_is_of_the_whole_model(shared: Workspace) -> None:
    heads = [f"score, layer {layer} head {head}" for layer in range(12) for head in range(4)]
    rows = [row for name in [*heads, "total score", "uniform share"] for row in measured("heads", name, {5: 1.0})]
    write(shared, rows)
    found = trajectory("tiny", "heads", workspace=shared)
    shown = [curve.metric for curve in found.shown_curves]

    assert len(found.rows) == 50 and set(shown) == {"total score", "uniform share", *heads[: MOST_METRICS - 2]}
    assert "heads: 8 of 50 metrics are shown and drawn, 42 are not" in found.messages[0]
    named = trajectory("tiny", "heads", metrics=["*layer 3 *", "total score"], workspace=shared)
    assert [curve.metric for curve in named.shown_curves] == [*heads[12:16], "total score"] and len(named.rows) == 5
    many = trajectory("tiny", "heads", metrics=["*"], workspace=shared)
    assert len(many.shown) == MOST_IN_ALL and len(many.rows) == 50
    assert f"{MOST_IN_ALL} of 50 metrics are shown and drawn, the first ones of each probe" in many.messages[0]
    write(shared, rows + measured("loss", "loss", {5: 1.0}))
    assert ("loss", "loss") in trajectory("tiny", ["heads", "loss"], metrics=["*"], workspace=shared).shown


def test_names_that_are_not_there_are_answered_with_those_that_are(shared: Workspace, tmp_path: Path) -> None:
    write(shared, measured("loss", "loss", {5: 1.0}) + measured("norms", "norm, all", {5: 1.0}))
    (tmp_path / "step5.json").write_text('{"results": {"sciq": {"acc": 0.5}}}')
    if "other" not in shared.run_names():
        import_metrics("other", tmp_path / "step5.json", new=True, workspace=shared)

    with pytest.raises(UnknownRun, match="no run or fork is called 'none'"):
        trajectory("tiny,none", "loss", workspace=shared)
    with pytest.raises(
        MissingMetric, match=r"'norm' at .* tiny; there are norms and 1 more \(forensics probe tiny norm "
    ):
        trajectory("tiny", "norm", workspace=shared)
    with pytest.raises(MissingMetric, match="no metric of norms is called 'norm'; there is norm, all"):
        trajectory("tiny", "norms", metrics=["norm"], workspace=shared)
    with pytest.raises(
        MissingMetric, match=r"nothing .* of 'loss' at the checkpoints of other; .*forensics import other"
    ):
        trajectory("tiny,other", "loss", workspace=shared)
    with pytest.raises(MissingMetric, match="nothing was published of 'loss' at the checkpoints of tiny"):
        trajectory("tiny", "loss", measured=False, workspace=shared)
    partly = trajectory(["tiny", "other"], ["loss", "task:sciq"], workspace=shared)
    assert partly.messages[:2] == (
        "tiny has no value of task:sciq, which others have",
        "tiny: 4 checkpoints lack a value that others have: 0, 10, 15, 20 (gaps in the picture)",
    )
    assert partly.messages[2] == "other has no value of loss, which others have"


def test_published_trajectories_of_three_models_are_one_table(workspace: Workspace) -> None:
    """27 checkpoints each, every value as it stands in the files."""
    metrics = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere")) / "metrics" / "pythia"
    if not metrics.is_dir():
        pytest.skip("published metrics are not beside the checkout")
    runs = ["pythia-2.8b", "pythia-70m", "pythia-1.4b"]
    expected = []
    for run in runs:
        import_metrics(run, metrics / run, new=True, workspace=workspace)
        files = {int(path.stem.rpartition("step")[2]): path for path in (metrics / run).rglob("*.json")}
        for metric in ("acc", "ppl"):
            for step, path in sorted(files.items()):
                value = json.loads(path.read_text())["results"]["lambada_openai"][metric]
                expected.append((run, step, metric, value, path.name))
    found = trajectory(runs, "task:lambada_openai", workspace=workspace)

    rows = [(row["run"], row["step"], row["metric"], row["value"], row["source"]) for row in found.rows]
    assert rows == expected and len(rows) == 3 * 2 * 27
    assert {row["unit"] for row in found.rows} == {"share", "perplexity"} and found.messages == () and found.gaps == []
