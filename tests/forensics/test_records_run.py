"""Runs of which only evaluations or a log are at hand are runs like any other, in the same table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import CorruptFile, RunExists, UnknownLayout, UnknownRun
from data_index.registration import add
from data_index.store import connect
from data_index.workspace import Workspace
from forensics.imported_metrics import import_metrics
from tests.forensics.test_cli import forensics

Row = tuple[int, str, str, float, float | None]


def published(name: str) -> Path:
    path = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere")) / "metrics" / name
    if not path.exists():
        pytest.skip("published metrics are not beside the checkout")
    return path


def probes(workspace: Workspace, run: str) -> list[tuple[Any, ...]]:
    question = "SELECT step, probe, metric, value, high FROM probes WHERE run = ? ORDER BY ALL"
    return connect(workspace).execute(question, [run]).fetchall()


def rows_of(step: int, results: dict[str, dict[str, float]]) -> list[Row]:
    """What a file says of one checkpoint, as the table must hold it."""
    found: list[Row] = []
    for task, metrics in results.items():
        for name, value in metrics.items():
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                high = None if error is None else value + 1.96 * error
                found.append((step, f"task:{task}", name, value, high))
    return found


def same(found: list[tuple[Any, ...]], expected: list[Row]) -> bool:
    """Every number as it stands in the file; the upper ends were computed elsewhere, and may round otherwise."""
    expected = sorted(expected, key=lambda row: row[:4])
    if [row[:4] for row in found] != [row[:4] for row in expected]:
        return False
    ends = [None if row[4] is None else pytest.approx(row[4], rel=1e-15) for row in expected]
    return [row[4] for row in found] == ends


def test_published_evaluations_of_three_models_and_three_trajectories_stand_in_one_table(workspace: Workspace) -> None:
    """27 checkpoints of each model; tokens where the files state them."""
    expected: dict[str, list[Row]] = {}
    for name in ("pythia-70m", "pythia-1.4b", "pythia-2.8b"):
        folder = published(f"pythia/{name}")
        expected[name] = []
        for path in folder.rglob("*.json"):
            step = int(path.stem.rpartition("step")[2])
            expected[name] += rows_of(step, json.loads(path.read_text())["results"])
        import_metrics(name, folder, new=True, workspace=workspace)
    stated: dict[str, dict[int, int]] = {}
    for name in ("tr3d-1B3-oscar", "tr3e-1B3-c4", "tr3m-1B3-pile"):
        path = published(f"bigscience/{name}-checkpoints_agg.json")
        content, expected[name] = json.loads(path.read_text()), []
        for number, step in enumerate(content["checkpoints"]):
            at = {task: {key: v[number] for key, v in of.items()} for task, of in content["results"].items()}
            expected[name] += rows_of(step, at)
        stated[name] = dict(zip(content["checkpoints"], content["tokens"], strict=True))
        import_metrics(name, path, new=True, workspace=workspace)

    for name, rows in expected.items():
        assert same(probes(workspace, name), rows), name
        assert len({row[0] for row in rows}) == {"tr3e-1B3-c4": 34}.get(name, 27 if name.startswith("pythia") else 63)
    connection = connect(workspace)
    question = "SELECT DISTINCT step, tokens FROM probes WHERE run = ? ORDER BY step"
    for name, tokens in stated.items():
        assert dict(connection.execute(question, [name]).fetchall()) == tokens
    told = connection.execute("SELECT count(tokens) FROM probes WHERE run LIKE 'pythia%'").fetchall()
    assert told == [(0,)]  # their files state none
    units = dict(connection.execute("SELECT DISTINCT metric, unit FROM probes").fetchall())
    assert units["acc"] == units["acc_norm"] == units["em"] == "share" and units["ppl"] == "perplexity"


def result(folder: Path, step: int, value: float = 0.5) -> Path:
    path = folder / f"step{step}.json"
    path.write_text(json.dumps({"results": {"sciq": {"acc": value, "acc_stderr": 0.01}}, "config": {}}))
    return path


def test_a_run_of_evaluations_alone_is_made_by_its_first_import(workspace: Workspace, tmp_path: Path) -> None:
    """Its weights and data are elsewhere; it grows by further imports."""
    first = result(tmp_path, 10)
    done = forensics(workspace, "import", "other", str(first), "--new")
    assert done.returncode == 0, done.stderr
    run = workspace.run("other")
    assert (run.layout, run.last_step, run.trust.level, workspace.checkpoints(run)) == ("records", 10, "unknown", [])
    import_metrics("other", first, result(tmp_path, 20, 0.75), workspace=workspace)

    assert [row[:4] for row in probes(workspace, "other")] == [
        (10, "task:sciq", "acc", 0.5),
        (20, "task:sciq", "acc", 0.75),
    ]
    assert forensics(workspace, "runs").returncode == forensics(workspace, "show", "other").returncode == 0
    assert forensics(workspace, "audit", "other").returncode == 0


def test_a_log_alone_makes_a_run_too(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,3.5\n2,3.25\n")
    found = import_metrics("logged", tmp_path / "log.csv", new=True, workspace=workspace)

    assert found.kinds == ("metrics",) and workspace.run("logged").last_step == 2


def test_what_cannot_be_made_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    good, bad = result(tmp_path, 10), tmp_path / "bad.json"
    bad.write_text('{"results": {"sciq": {"acc": 0.5}}}')
    with pytest.raises(UnknownRun, match="there is none yet.*; --new makes a run of nothing but what is imported"):
        import_metrics("other", good, workspace=workspace)
    with pytest.raises(CorruptFile, match="names no step"):
        import_metrics("other", bad, format="lm-eval", new=True, workspace=workspace)
    with pytest.raises(UnknownRun, match="cannot name a run"):
        import_metrics("../other", good, new=True, workspace=workspace)
    assert import_metrics("other", good, new=True, plan=True, workspace=workspace).kinds == ()
    assert workspace.run_names() == []

    import_metrics("other", good, new=True, workspace=workspace)
    with pytest.raises(RunExists, match="without --new, the files are imported into it"):
        import_metrics("other", good, new=True, workspace=workspace)
    with pytest.raises(UnknownLayout, match="forensics import NAME .* --new"):
        add(tmp_path, layout="records", workspace=workspace)
