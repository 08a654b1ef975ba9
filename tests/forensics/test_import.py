"""Logs and evaluations are put beside a run: every point once, and the trainer's own record counts."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forensics
from data_index.errors import CorruptFile, InvalidRange, UnknownLayout
from data_index.kinds import KINDS
from data_index.metric_queries import logged_metrics
from data_index.registration import add
from data_index.store import connect, run_query
from data_index.workspace import Workspace, learn
from forensics.imported_metrics import COLUMNS, import_metrics
from tests.conftest import FIXTURES
from tests.forensics import test_cli
from tests.forensics.test_cli import answer
from tests.servers.fake_hub import FakeHub
from tests.servers.tiny_neox import REPO

PUBLISHED = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere"))
CURVES = {
    "bloom/bigscience_log_lines.csv": "iteration",
    "megatron-golden/gpt3_15b_8t_0.10.0.csv": "step",
    "megatron-golden/gpt3_15b_8t_0.9.0.csv": "step",
    "megatron-golden/mixtral_8x7b_alltoall_tp2pp4ep4_release.csv": "step",
    "modded-nanogpt/1B_scaleup_A_ad8d7ae5.train.csv": "step",
    "modded-nanogpt/1B_scaleup_B_87bd51fd.train.csv": "step",
    "modded-nanogpt/1B_scaleup_C_c0078066.train.csv": "step",
    "../metrics/pythia/polypythias/data/training_maps.tsv": "step",
}


@pytest.fixture
def run(workspace: Workspace) -> Workspace:
    """A workspace with a run of the real trainer, named `olmo`."""
    add(FIXTURES / "olmo", name="olmo", workspace=workspace)
    return workspace


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip("published metrics are not beside the checkout")
    return path


def log(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(workspace: Workspace, columns: str = "step, attempt, name, value") -> list[tuple[Any, ...]]:
    query = f"SELECT {columns} FROM metrics WHERE source IS NOT NULL ORDER BY ALL"
    return [tuple(row.values()) for row in run_query(workspace, query).to_pylist()]


# --- published files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CURVES)
def test_published_curves_are_imported_without_loss(name: str, run: Workspace) -> None:
    """Counts, extremes and every point, against Python's csv and float."""
    path = published(f"curves/{name}")
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for column, text in row.items():
            if column != CURVES[name] and text and column not in ("file", "group"):
                expected.setdefault(column, []).append((int(row[CURVES[name]]), float(text)))
    found = import_metrics("olmo", path, workspace=run)

    _assert_same(run, expected)
    for column in expected:
        values = np.array([value for _, value in expected[column]])
        (told,) = [row for row in found.rows if row["original_name"] == column]
        assert (told["points"], told["nan"]) == (len(values), int(np.isnan(values).sum()))
        assert (told["lowest"], told["highest"]) == (np.nanmin(values), np.nanmax(values))
        steps = [step for step, _ in expected[column]]
        assert (told["first_step"], told["last_step"]) == (min(steps), max(steps))
        assert told["attempts"] == max(Counter(steps).values())
    assert found.num_points == sum(map(len, expected.values()))


def test_a_published_log_with_two_losses_keeps_them_apart(run: Workspace) -> None:
    path = published("curves/modded-nanogpt/124M_llmc_adamw_main.log.csv")
    expected: dict[str, list[tuple[int, float]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            step = int(row["step"])
            expected.setdefault(row["kind"], []).append((step, float(row["value"])))
            for name in ("lr", "grad_norm"):
                if row[name]:
                    expected.setdefault(name, []).append((step, float(row[name])))
    found = import_metrics("olmo", path, workspace=run)

    _assert_same(run, expected)
    names = {row["original_name"]: row["name"] for row in found.rows}
    assert names == {"trl": "loss", "tel": "validation_loss", "lr": "learning_rate", "grad_norm": "grad_norm"}


def _assert_same(workspace: Workspace, expected: dict[str, list[tuple[int, float]]]) -> None:
    """Every point with its attempt, NaN as NaN, in the metrics of the workspace."""
    kept: dict[str, dict[tuple[int, int], float]] = {}
    for name, step, attempt, value in imported(workspace, "original_name, step, attempt, value"):
        assert (step, attempt) not in kept.setdefault(name, {})
        kept[name][step, attempt] = value
    assert kept.keys() == expected.keys()
    for name, points in expected.items():
        seen: Counter[int] = Counter()
        for step, value in points:
            seen[step] += 1
            assert np.array_equal(kept[name].pop((step, seen[step])), value, equal_nan=True)
        assert not kept[name]


@pytest.mark.parametrize("size", ["70m", "1.4b", "2.8b"])
def test_published_evaluations_are_imported_without_loss(size: str, run: Workspace) -> None:
    folder = published(f"metrics/pythia/pythia-{size}")
    expected = {}
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        step = int(path.stem.rpartition("step")[2])
        for task, metrics in content["results"].items():
            for metric, value in metrics.items():
                expected[step, task, metric] = value
    import_metrics("olmo", folder, workspace=run)

    assert _evaluations(run) == expected and len({step for step, _, _ in expected}) == 27


@pytest.mark.parametrize("name", ["tr3d-1B3-oscar", "tr3e-1B3-c4", "tr3m-1B3-pile"])
def test_published_trajectories_are_imported_without_loss(name: str, run: Workspace) -> None:
    path = published(f"metrics/bigscience/{name}-checkpoints_agg.json")
    content = json.loads(path.read_text())
    expected = {
        (step, task, metric): value
        for task, metrics in content["results"].items()
        for metric, values in metrics.items()
        for step, value in zip(content["checkpoints"], values, strict=True)
    }
    import_metrics("olmo", path, workspace=run)
    tokens = zip(content["checkpoints"], content["tokens"], strict=True)

    assert _evaluations(run) == expected
    assert imported(run) == [(step, 1, "tokens", float(count)) for step, count in sorted(tokens)]


def _evaluations(workspace: Workspace) -> dict[tuple[int, str, str], float]:
    """Every number, standard errors too, as the files name them."""
    found: dict[tuple[int, str, str], float] = {}
    for row in workspace.learned(workspace.home("olmo"), "evaluations"):
        assert (row["step"], row["task"], row["metric"]) not in found
        found[row["step"], row["task"], row["metric"]] = row["value"]
        if row["stderr"] is not None:
            found[row["step"], row["task"], f"{row['metric']}_stderr"] = row["stderr"]
    return found


# --- attempts, again, other values -----------------------------------------------------------------------------------


def test_files_named_together_are_one_log_and_restarts_are_attempts(run: Workspace, tmp_path: Path) -> None:
    first = log(tmp_path, "a/log.jsonl", {"step": 30, "loss": 3.0}, {"step": 31, "loss": 2.9})
    second = log(tmp_path, "b/log.jsonl", {"step": 31, "loss": 2.8}, {"step": 32, "loss": math.nan})
    import_metrics("olmo", first, second, workspace=run)
    *points, last = imported(run)

    assert points == [(30, 1, "loss", 3.0), (31, 1, "loss", 2.9), (31, 2, "loss", 2.8)]
    assert last[:3] == (32, 1, "loss") and math.isnan(last[3])
    assert {source for (source,) in imported(run, "source")} == {str(first), str(second)}
    assert logged_metrics(run, run.run("olmo"), 29, 32)[31] == {"loss": 2.8}


def test_the_same_file_again_changes_nothing(run: Workspace, tmp_path: Path) -> None:
    path = log(tmp_path, "log.jsonl", {"step": 1, "x": 1.5}, {"step": 1, "x": math.nan})
    import_metrics("olmo", path, workspace=run)
    before = (run.home("olmo") / "current.json").read_bytes()
    again = import_metrics("olmo", shutil.copy(path, tmp_path / "copy.jsonl"), workspace=run)

    assert (run.home("olmo") / "current.json").read_bytes() == before
    assert again.kinds == () and "all 2 metrics are there already" in again.messages[-1]


def test_a_log_that_grew_takes_the_place_of_its_beginning(run: Workspace, tmp_path: Path) -> None:
    rows = [{"step": step, "x": step / 10} for step in range(1, 9)]
    import_metrics("olmo", log(tmp_path, "log.jsonl", *rows[:5]), workspace=run)
    import_metrics("olmo", log(tmp_path, "log.jsonl", *rows), workspace=run)

    assert imported(run) == [(step, 1, "x", step / 10) for step in range(1, 9)]


def test_other_values_are_kept_beside_and_said(run: Workspace, tmp_path: Path) -> None:
    import_metrics("olmo", log(tmp_path, "a.jsonl", {"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}), workspace=run)
    found = import_metrics(
        "olmo", log(tmp_path, "b.jsonl", {"step": 1, "x": 1.0}, {"step": 2, "x": 3.0}), workspace=run
    )

    assert "1 metrics differ from an earlier import, for example 2 1 x: 3 here, 2 there" in found.messages[-1]
    assert imported(run, "step, value, source") == [
        *((1, 1.0, "a.jsonl"), (1, 1.0, "b.jsonl")),
        *((2, 2.0, "a.jsonl"), (2, 3.0, "b.jsonl")),
    ]
    import_metrics("olmo", log(tmp_path, "c.jsonl", {"step": 3, "x": 1.0}), replace=True, workspace=run)
    assert imported(run, "step, source") == [(3, "c.jsonl")]


def test_the_trainers_own_record_counts_before_what_is_imported(run: Workspace, tmp_path: Path) -> None:
    record = run.run("olmo")
    before = logged_metrics(run, record, 0, 25)
    shown = forensics.at("olmo", 5, workspace=run)["metrics"]
    rows = [{"step": step, "loss": 1.0, "more": 2.0} for step in (5, 5, 30)]
    found = import_metrics("olmo", log(tmp_path, "log.jsonl", *rows), workspace=run)

    assert "differ from the trainer's own record" in found.messages[-1]
    after = logged_metrics(run, record, 0, 30)
    assert {step: {k: v for k, v in after[step].items() if k != "more"} for step in before} == before
    assert forensics.at("olmo", 5, workspace=run)["metrics"] == shown | {"more": 2.0}
    assert after[30] == {"loss": 1.0, "more": 2.0}
    import_metrics("olmo", log(tmp_path, "log.jsonl", rows[0]), replace=True, workspace=run)
    assert logged_metrics(run, record, 0, 25, ["loss"]) == {s: {"loss": v["loss"]} for s, v in before.items()}


def test_a_replay_compares_with_the_trainers_own_record(tiny: Workspace, tmp_path: Path) -> None:
    path = log(tmp_path, "wrong.jsonl", *({"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(1, 21)))
    import_metrics("tiny", path, workspace=tiny)
    report = forensics.replay("tiny", "5:7", device="cpu", workspace=tiny)

    assert report.grade in ("R0", "R1") and report.max_abs_loss_difference == 0.0


# --- what it says and refuses ----------------------------------------------------------------------------------------


def test_a_run_without_known_order_takes_metrics(fake_hub: FakeHub, workspace: Workspace, tmp_path: Path) -> None:
    add(REPO, name="bare", workspace=workspace)
    assert workspace.run("bare").trust.level == "unknown"
    found = import_metrics("bare", log(tmp_path, "log.jsonl", {"step": 100_000, "loss": 1.0}), workspace=workspace)

    assert found.kinds == ("metrics",) and imported(workspace) == [(100_000, 1, "loss", 1.0)]


def test_steps_are_moved_and_those_outside_the_run_are_said(run: Workspace, tmp_path: Path) -> None:
    path = log(tmp_path, "log.jsonl", {"step": 0, "x": 1.0}, {"step": 40, "x": 2.0})
    told = import_metrics("olmo", path, plan=True, workspace=run)
    moved = import_metrics("olmo", path, step_offset=1, workspace=run)

    assert "step 0 is there" in " ".join(told.messages) and told.kinds == ()
    assert "1 points are after the last step of olmo, 40" in " ".join(moved.messages)
    assert imported(run) == [(1, 1, "x", 1.0), (41, 1, "x", 2.0)]
    with pytest.raises(InvalidRange, match="the first step would be -1"):
        import_metrics("olmo", path, step_offset=-1, workspace=run)


def test_a_plan_writes_nothing(run: Workspace, tmp_path: Path) -> None:
    before = sorted(path for path in run.folder.rglob("*"))
    import_metrics("olmo", log(tmp_path, "log.jsonl", {"step": 1, "x": 1.0}), plan=True, workspace=run)

    assert sorted(path for path in run.folder.rglob("*")) == before


def test_what_cannot_be_read_leaves_nothing(run: Workspace, tmp_path: Path) -> None:
    good, bad = log(tmp_path, "good.jsonl", {"step": 1, "x": 1.0}), log(tmp_path, "bad.jsonl", {"x": 1.0})
    with pytest.raises(CorruptFile, match="bad.jsonl line 1 names no step; it has x"):
        import_metrics("olmo", good, bad, workspace=run)
    with pytest.raises(CorruptFile, match="holds no point"):
        import_metrics("olmo", log(tmp_path, "text.jsonl", {"step": 1, "x": "a"}), workspace=run)
    table = tmp_path / "table.csv"
    table.write_text("step,x\n1,2\n")
    with pytest.raises(CorruptFile, match="table.csv: there is no column 'seed' to choose rows by"):
        import_metrics("olmo", table, only={"seed": "1"}, workspace=run)
    with pytest.raises(UnknownLayout, match="--as takes json-lines"):
        import_metrics("olmo", good, format="yaml", workspace=run)
    with pytest.raises(InvalidRange, match="one file or more"):
        import_metrics("olmo", workspace=run)
    step = tmp_path / "results.json"
    step.write_text('{\n"results": {"sciq": {"acc": 0.5}}}')
    with pytest.raises(CorruptFile, match="results.json names no step"):
        import_metrics("olmo", step, workspace=run)

    assert imported(run) == [] and "evaluations" not in json.loads((run.home("olmo") / "current.json").read_text())


def test_metrics_from_before_sources_were_kept_still_read(run: Workspace, tmp_path: Path) -> None:
    """A workspace that an earlier version wrote: its table of metrics has no column `source`."""
    import pyarrow.parquet

    home = run.home("olmo")
    (name,) = json.loads((home / "current.json").read_text())["metrics"]
    table = pyarrow.parquet.read_table(home / name).drop_columns(["source"])
    learn(home, "metrics", table)
    before = logged_metrics(run, run.run("olmo"), 0, 25)
    import_metrics("olmo", log(tmp_path, "log.jsonl", {"step": 1, "loss": 1.0}), workspace=run)

    assert before[1]["loss"] > 5 and logged_metrics(run, run.run("olmo"), 0, 25) == before
    assert connect(run).execute("SELECT count(*) FROM metrics").fetchone() == (table.num_rows + 1,)
    assert run_query(run, "FROM metrics").column_names == ["run", *KINDS["metrics"]]


def test_the_command_prints_a_row_a_metric(run: Workspace, tmp_path: Path) -> None:
    rows = [
        {"step": 1, "lr": 0.5, "who": "a"},
        {"step": 2, "lr": math.nan, "who": "a"},
        {"step": 2, "lr": 9, "who": "b"},
    ]
    path = log(tmp_path, "log.jsonl", *rows)
    (row,) = answer(run, "import", "olmo", str(path), "--only", "who=a")
    done = test_cli.forensics(run, "import", "olmo", str(path), "--plan")
    refused = test_cli.forensics(run, "import", "olmo", str(path), "--only", "who")

    assert tuple(row) == COLUMNS and row == {
        **{"kind": "metrics", "name": "learning_rate", "original_name": "lr", "points": 2, "nan": 1, "attempts": 1},
        **{"first_step": 1, "last_step": 2, "lowest": 0.5, "highest": 0.5, "sources": ["log.jsonl"]},
    }
    assert done.returncode == 0 and "3 points of 1 metrics; nothing was written (--plan)" in done.stderr
    assert "3 values that are no numbers are left out: who (3)" in done.stderr
    assert refused.returncode == 2 and "--only takes FIELD=TEXT" in refused.stderr
