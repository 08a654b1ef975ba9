"""What the sample run is made of, and the accidents in it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data_index.batch_queries import plan_of, reader_of
from data_index.files import read_json
from data_index.metric_queries import logged_metrics
from data_index.run import Run
from data_index.run_file import read_run
from data_index.sources.native import read_table
from data_index.workspace import Workspace
from forensics.attribution import blame
from forensics.divergence import compare
from forensics.finding import read_finding
from forensics.fork_list import forks_of
from forensics.lookup import batch, where
from forensics.reproduction import prepare, replay, replay_folder
from forensics.spike_detection import spikes
from forensics.token_path_report import path_facts
from forensics.token_path_rows import NEVER_READ
from forensics.token_paths import token_paths
from forensics.walkthrough import demo

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from tests.app.browser import chromium, served, visiting


@pytest.fixture(scope="module")
def demo_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The full sample run, as `forensics demo` makes it; about two minutes."""
    workspace = Workspace(tmp_path_factory.mktemp("demo"))
    lines: list[str] = []
    demo(workspace=workspace, show=lines.append)
    (workspace.folder / "shown.txt").write_text("\n".join(lines))
    return workspace


def robust_z(values: dict[int, float], step: int, window: int = 40) -> float:
    """Distance of a value from its neighbours' median, in robust standard deviations."""
    near = np.array([v for s, v in values.items() if s != step and abs(s - step) <= window // 2])
    return float((values[step] - np.median(near)) / (1.4826 * np.median(np.abs(near - np.median(near)))))


def series(workspace: Workspace, name: str) -> dict[int, float]:
    logged = logged_metrics(workspace, workspace.run("demo"), 0, 240)
    return {step: metrics[name] for step, metrics in logged.items()}


def truth(workspace: Workspace) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((workspace.folder / "trained" / "demo" / "truth.json").read_text())
    return found


@pytest.mark.slow
def test_the_binary_rows_make_a_loss_spike_that_recovers(demo_workspace: Workspace) -> None:
    losses, step = series(demo_workspace, "loss"), truth(demo_workspace)["binary"]["step"]
    assert isinstance(step, int)

    assert robust_z(losses, step) > 6
    assert all(robust_z(losses, other) < 6 for other in range(step + 2, step + 20))


@pytest.mark.slow
def test_the_repetitive_batch_moves_the_gradient_norm_and_hardly_the_loss(demo_workspace: Workspace) -> None:
    norms, losses = series(demo_workspace, "grad_norm"), series(demo_workspace, "loss")
    step = truth(demo_workspace)["repetitive"]["step"]
    assert isinstance(step, int)
    near = np.median([norms[s] for s in range(step - 10, step + 11) if s != step])

    assert norms[step] > 2.5 * near and abs(losses[step] - losses[step - 1]) < 0.6


@pytest.mark.slow
def test_neither_bad_stretch_returns_in_the_second_epoch(demo_workspace: Workspace) -> None:
    rows = batch("demo", "190:240", workspace=demo_workspace).column("instance").to_pylist()
    planted = [i for kind in ("binary", "repetitive") for i in truth(demo_workspace)[kind]["instances"]]  # type: ignore[attr-defined]

    assert not set(rows) & set(planted)


@pytest.mark.slow
def test_the_duplicate_is_read_twice_in_epoch_1_far_apart(demo_workspace: Workspace) -> None:
    first = truth(demo_workspace)["duplicate"]["instances"][0]  # type: ignore[index]
    steps = [r["step"] for r in where("demo", instance=first, workspace=demo_workspace).to_pylist() if r["epoch"] == 1]

    assert len(steps) == 2 and steps[1] - steps[0] >= 50


@pytest.mark.slow
def test_the_never_seen_token_is_in_the_vocabulary_and_in_no_file(demo_workspace: Workspace) -> None:
    token = truth(demo_workspace)["never_seen_token"]["token_id"]
    run = demo_workspace.run("demo")

    assert run.config["model"]["vocab_size"] > token  # type: ignore[operator]
    assert not any((np.fromfile(file.path, dtype="<u2") == token).any() for file in (*run.files, *run.heldout))


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["0:20", "180:200"])
def test_the_demo_replays_bit_for_bit(demo_workspace: Workspace, steps: str) -> None:
    """From the initialization, and across the border between the epochs."""
    report = replay("demo", steps, workspace=demo_workspace, device="cpu")

    assert report.grade == "R0" and report.fingerprint_matches


@pytest.mark.slow
def test_the_walkthrough_replayed_60_steps_bit_for_bit(demo_workspace: Workspace) -> None:
    """From a checkpoint with its optimizer's state, through both accidents, three checkpoints on."""
    setup = prepare(demo_workspace, demo_workspace.run("demo"), "cpu", "recipe")

    report = read_json(replay_folder(setup, 100, 160, True) / "report.json")

    assert report["grade"] == "R0" and report["fingerprint_matches"]
    assert [row["step"] for row in report["steps"]] == list(range(101, 161))


@pytest.mark.slow
def test_without_the_bad_rows_the_spike_is_gone(demo_workspace: Workspace) -> None:
    (made,) = forks_of(demo_workspace, "demo")
    step = truth(demo_workspace)["binary"]["step"]
    assert isinstance(step, int)
    result = compare(made["id"], workspace=demo_workspace)
    difference = {r["step"]: r["treatment"] for r in result.rows if r["metric"] == "loss"}
    losses = series(demo_workspace, "loss")
    without = losses | {s: losses[s] + d for s, d in difference.items()}

    assert {d for s, d in difference.items() if s < step} == {0.0}
    assert robust_z(losses, step) > 6 > abs(robust_z(without, step))


@pytest.mark.slow
def test_both_bad_stretches_are_found_and_blamed(demo_workspace: Workspace) -> None:
    """By the log, the data and the checkpoints alone."""
    planted = truth(demo_workspace)
    peaks = [event.peak for event in spikes("demo", workspace=demo_workspace).events if event.is_spike]
    kept = read_finding(demo_workspace, "blame-demo-154")  # the demo asked it
    batch_of_112 = blame("demo", 112, device="cpu", workspace=demo_workspace)
    repetitive = planted["repetitive"]["instances"]
    assert isinstance(repetitive, list)

    assert peaks == [planted["repetitive"]["step"], planted["binary"]["step"]] == [112, 154]
    assert kept.answer["cause"] == "group" and {row["instance"] for row in kept.answer["candidates"][:4]} == {
        *planted["binary"]["instances"]  # type: ignore[misc]
    }
    assert kept.answer["group"]["restored"] > 0.8 and kept.command == "forensics blame demo 154"
    (first, *_), (text, *others) = kept.answer["candidates"], kept.texts
    assert len(others) == 2 and np.nanmean(text.losses) == pytest.approx(first["loss"], rel=1e-6)
    assert batch_of_112.cause == "batch" and batch_of_112.batch is not None
    assert batch_of_112.batch["steps"] == [112] and batch_of_112.batch["restored"] > 0.8
    assert all(row["instance"] in repetitive for row in batch_of_112.candidates)


@pytest.mark.slow
def test_every_token_without_exposure_is_found_and_tracked(
    demo_workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted one among them, at every checkpoint; what else is in the cluster was hardly read. The tool prints
    precision and recall; here they are held against a count by hand."""
    run, planted = demo_workspace.run("demo"), truth(demo_workspace)["never_seen_token"]["token_id"]
    rows = reader_of(demo_workspace, run).rows(plan_instances(demo_workspace, run))
    targets = np.bincount(rows[:, 1:].ravel(), minlength=1024)
    unread = set(np.flatnonzero(targets == 0).tolist())
    found = token_paths("demo", workspace=demo_workspace)
    inside = {row["token_id"] for row in found.rows if row["untrained"]}
    told = dict(path_facts(found))["in the cluster against no exposure"]
    with capsys.disabled():
        print(f"\n{told}")

    assert found.steps == list(range(0, 241, 20)) and found.table().num_rows == 13 * 1024
    assert found.exposures is not None and np.array_equal(found.exposures.as_target[-1], targets)
    assert planted in unread == {row["token_id"] for row in found.found(NEVER_READ)} <= inside
    assert all(p.inside is not None and unread <= set(np.flatnonzero(p.inside).tolist()) for p in found.points)
    assert len(unread) / len(inside) > 0.6 and max(targets[list(inside)]) < 20
    assert f"precision {len(unread) / len(inside):.2f}, recall 1.00" in told
    exact = dict(path_facts(found))["second moments of 0 against never an input"]
    assert "precision 1.00, recall 1.00" in exact


def plan_instances(workspace: Workspace, run: Run) -> np.ndarray:
    """Of all rows that the run read, in order."""
    plan = plan_of(workspace, run, 0, run.last_step)
    return np.concatenate([plan[step].instances for step in plan.steps])


@pytest.mark.slow
def test_the_walkthrough_finds_what_exists(demo_workspace: Workspace) -> None:
    lines: list[str] = []
    demo(workspace=demo_workspace, show=lines.append)
    before = (demo_workspace.folder / "shown.txt").read_text().splitlines()
    lines = "\n".join(lines).splitlines()

    assert len([line for line in lines if line.startswith("$")]) == 15
    assert [line for line in lines if line.startswith("$")] == [line for line in before if line.startswith("$")]
    assert any("grade R0" in line for line in lines) and any("grade R0" in line for line in before)


def test_documents_cover_the_files_and_keep_their_provenance(tiny_source: Path) -> None:
    run = read_run(tiny_source)
    table = read_table(tiny_source / "documents.parquet")
    assert table is not None
    for file in (*run.files, *run.heldout):
        spans = sorted((r["start"], r["end"]) for r in table.to_pylist() if r["file"] == file.name)
        assert spans[0][0] == 0 and spans[-1][1] == file.num_bytes // 2
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_documents_decode_to_their_source(tiny_source: Path) -> None:
    """Tokens of a document are the characters of its source that its record says."""
    from data_index.text import decode
    from forensics.corpus import standard_library

    run = read_run(tiny_source)
    files = {file.name: np.fromfile(file.path, dtype="<u2") for file in run.files}
    table = read_table(tiny_source / "documents.parquet")
    assert table is not None
    checked = 0
    for row in table.to_pylist():
        path = standard_library() / row["source"]
        if row["file"] in files and path.is_file():
            text = decode(run, files[row["file"]][row["start"] : row["end"]]).removesuffix("<|endoftext|>")
            source = path.read_text(encoding="utf-8", errors="replace")
            assert text == source[row["source_start"] : row["source_end"]]
            checked += 1
    assert checked > 5


def test_one_document_in_twenty_is_held_out(tiny_source: Path) -> None:
    run = read_run(tiny_source)

    assert run.heldout[0].num_instances > 0
    assert {file.name for file in run.heldout}.isdisjoint(file.name for file in run.files)


def test_the_run_says_what_it_was_made_with(tiny_source: Path) -> None:
    environment = read_run(tiny_source).environment

    assert {"python", "torch", "transformers", "num_threads", "fingerprint", "corpus_sha256"} <= set(environment)


# Of each page that is not on the way to the spike: a word of what it shows.
PAGES_WALKED = {
    "Search": "A text is found however it was split",
    "Forks": "Compare with their parent",
    "Tokens": "tokens with a finding",
    "Trajectories": "95 % intervals",
    "SQL": "Views and macros",
    "Released runs": "Family",
    "Runs": "Known issues",
    "Run": "Steps 1 to 240",
}


@pytest.mark.slow
def test_a_visitor_finds_the_planted_spike_by_clicking_only(demo_workspace: Workspace) -> None:
    """From the first page to the rows that made it; then every other page, and a link to come back by."""
    step = truth(demo_workspace)["binary"]["step"]
    chromium()
    with served(demo_workspace) as url, visiting(url) as visitor:
        visitor.open()
        visitor.choose_row(0)
        visitor.click("Look at its loss")
        assert visitor.largest("gradient norm") == max(series(demo_workspace, "grad_norm").values())
        visitor.click_point("loss", int(str(step)))
        visitor.click(f"Read step {step}")
        assert visitor.link() == f"/step?run=demo&step={step}" and "tkinter/constants.pyc.z" in visitor.text()
        visitor.click("Spikes", "link")
        visitor.choose_row(1)
        assert f"Step {step}: the data made it" in visitor.text() and "without 4 rows" in visitor.text()
        visitor.click("Text", "tab")
        cause = visitor.link()
        for page, shown in PAGES_WALKED.items():
            visitor.click(page, "link")
            assert visitor.page.locator("h1").inner_text() == page and shown in visitor.text()
        visitor.open(cause)
        assert f"Step {step}: the data made it" in visitor.text()
