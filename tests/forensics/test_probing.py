"""`probe`: a sweep over the tiny run against measuring by hand; what it reads, keeps, resumes and skips."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from data_index.batch_queries import reader_of
from data_index.errors import Busy, FailedFunction, InvalidRange, MissingCheckpoint, MissingFile, UnsupportedRecipe
from data_index.files import canonical_json, exclusive_lock
from data_index.metric_queries import logged_metrics
from data_index.registration import add
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics import probing, sql
from forensics.bound_probe import Answer, always
from forensics.chosen_checkpoints import chosen_checkpoints, log_spaced
from forensics.cli.program import app
from forensics.forking import fork
from forensics.kept_measurements import KeptMeasurements
from forensics.local_measuring import measured_here
from forensics.measured_checkpoint import Computing, Measured, Task, read_needed
from forensics.probe_catalogue import bound_probe
from forensics.probe_data import ProbeData
from forensics.probe_options import ProbeOptions
from forensics.probing import COLUMNS, Probed, probe
from forensics.probing_plan import plan_probe
from probes.loss import mean_loss
from probes.prediction_probes import CalibrationError
from probes.probe import Measurement
from probes.weight_probes import WeightNorms
from replay.models import build_model
from replay.recipe import recipe_of_run
from replay.stored_tensors import StoredTensor
from replay.weights import read_weights
from tests.conftest import FIXTURES
from tests.forensics.test_cli import answer, forensics

STEPS = [0, 5, 10, 15, 20]
ONE_THREAD = ProbeOptions(threads=1, device="cpu")
# Of each kind: tensors, predictions, the model, and one that needs several checkpoints.
SEVERAL = ("embedding-norms", "loss", "calibration", "induction", "memorization")


def values(found: Probed, probe: str, metric: str) -> dict[int, float]:
    return {row["step"]: row["value"] for row in found.rows if (row["probe"], row["metric"]) == (probe, metric)}


def model_by_hand(workspace: Workspace, step: int) -> Any:
    """That replay trains, with its own attention."""
    run = workspace.run("tiny")
    model = build_model(recipe_of_run(run).model, device=torch.device("cpu"))
    model.load_state_dict(read_weights(workspace.checkpoint(run, step)))
    return model


def loss_by_hand(workspace: Workspace, step: int, token_ids: np.ndarray) -> float:
    return mean_loss(model_by_hand(workspace, step), token_ids)


@pytest.fixture(scope="module")
def probed(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Probed]:
    """The tiny run in a workspace of its own, probed without interruption."""
    folder = tmp_path_factory.mktemp("probed")
    shutil.copytree(tiny_source, folder / "tiny")
    workspace = Workspace(folder / "workspace")
    add(folder / "tiny", workspace=workspace)
    return workspace, probe("tiny", *SEVERAL, options=ONE_THREAD, workspace=workspace)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[StoredTensor]:
    """Every tensor that is read from disk, in order."""
    read: list[StoredTensor] = []
    plain = StoredTensor.read

    def noted(tensor: StoredTensor) -> torch.Tensor:
        read.append(tensor)
        return plain(tensor)

    monkeypatch.setattr(StoredTensor, "read", noted)
    return read


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_every_checkpoint_has_the_loss_that_the_trainers_own_model_has(probed: tuple[Workspace, Probed]) -> None:
    """The sweep asks transformers' model, in one pass with other probes; here the model that replay trains, alone."""
    workspace, found = probed
    run = workspace.run("tiny")
    tokens = np.fromfile(run.heldout[0].path, dtype=run.heldout[0].dtype).reshape(-1, run.sequence_length)
    by_hand = {}
    for checkpoint in workspace.checkpoints(run):
        by_hand[checkpoint.step] = loss_by_hand(workspace, checkpoint.step, tokens.astype(np.int64))

    measured = values(found, "loss", "loss")
    assert list(measured) == STEPS and not found.problems
    for step, loss in by_hand.items():
        assert measured[step] == pytest.approx(loss, abs=2e-6), step  # other attention kernels round otherwise
    assert measured[20] < measured[0] - 0.3


@pytest.mark.parametrize(("name", "folder", "counted"), [("core", "olmo-core/main", 1), ("olmo", "olmo", 127 / 128)])
def test_the_loss_of_the_next_batch_is_what_real_trainers_logged(
    name: str, folder: str, counted: float, workspace: Workspace
) -> None:
    """The loss of step s + 1 is of the weights of checkpoint s. OLMo's predecessor divides by all tokens of a row, the
    first among them, which nothing predicts."""
    add(FIXTURES / folder, name=name, workspace=workspace)
    found = probe(name, "next-batch", options=ONE_THREAD, workspace=workspace)
    logged = logged_metrics(workspace, workspace.run(name), 0, 40, ["loss"])
    measured = values(found, "next-batch", "loss, read next")

    assert list(measured) == [0, 10, 20]
    for step, loss in measured.items():
        assert loss * counted == pytest.approx(logged[step + 1]["loss"], rel=2e-6), step


def test_memorization_is_of_the_rows_that_were_read_up_to_a_checkpoint(probed: tuple[Workspace, Probed]) -> None:
    """A row that step 5 read is one that checkpoint 5 has read, and checkpoint 0 has not."""
    workspace, found = probed
    run = workspace.run("tiny")
    cohorts = ProbeData(workspace, run, ONE_THREAD).cohorts
    assert cohorts.scored is None and (cohorts.first_steps == 5).any()
    models = model_by_hand(workspace, 0), model_by_hand(workspace, 5)
    before, after = (np.array([mean_loss(model, row[None]) for row in cohorts.token_ids]) for model in models)
    fell = before - after
    is_read = cohorts.first_steps <= 5

    by_hand = fell[is_read].mean() - fell[~is_read].mean()
    assert values(found, "memorization", "read right before")[5] == pytest.approx(by_hand, abs=5e-6)
    extractability: Any = bound_probe("extractability", ProbeData(workspace, run, ONE_THREAD)).at(5)
    assert np.array_equal(extractability.is_read, is_read)


def test_norms_are_those_of_the_stored_tensors(probed: tuple[Workspace, Probed]) -> None:
    workspace, found = probed
    of_input = [row for row in found.rows if row["probe"] == "embedding-norms" and "mean" in row["metric"]]
    for step in STEPS:
        stored = read_weights(workspace.checkpoint(workspace.run("tiny"), step))
        norms = {np.linalg.norm(stored[n].numpy().astype(np.float64), axis=1).mean() for n in stored if "embed" in n}
        norms |= {np.linalg.norm(stored[n].numpy().astype(np.float64), axis=1).mean() for n in stored if "lm_head" in n}
        here = [row["value"] for row in of_input if row["step"] == step]
        assert sorted(here) == pytest.approx(sorted(norms), rel=1e-6)


def test_the_view_shows_what_was_printed(probed: tuple[Workspace, Probed]) -> None:
    workspace, found = probed
    columns = ", ".join(COLUMNS)
    shown = sql(f"SELECT {columns} FROM probes WHERE run = 'tiny' ORDER BY ALL", workspace=workspace).to_pylist()
    printed = [{name: row[name] for name in COLUMNS} for row in found.rows]

    def by_place(row: Any) -> tuple[Any, ...]:
        return row["step"], row["probe"], row["metric"]

    assert sorted(shown, key=by_place) == sorted(printed, key=by_place)
    settings = sql("SELECT DISTINCT settings FROM probes WHERE probe = 'loss'", workspace=workspace).to_pylist()
    assert json.loads(settings[0]["settings"]).keys() == {"probe", "rows", "rows_sha256", "precision", "device"}


def test_a_fork_is_probed_from_where_it_begins(tiny: Workspace) -> None:
    child = fork("tiny", from_step=10, num_steps=5, workspace=tiny)
    parent = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)
    found = probe(child.id, "loss", options=ONE_THREAD, workspace=tiny)

    assert values(found, "loss", "loss") == {
        step: loss for step, loss in values(parent, "loss", "loss").items() if step in (10, 15)
    }


# --- what is read ----------------------------------------------------------------------------------------------------


def test_each_tensor_is_read_once_for_all_probes(tiny: Workspace, reads: list[StoredTensor]) -> None:
    found = probe("tiny", *SEVERAL, options=ONE_THREAD, workspace=tiny)
    stored = sum(tiny_bytes(tiny, step) for step in STEPS)

    assert len({id(tensor) for tensor in reads}) == len(reads)
    assert sum(tensor.num_bytes for tensor in reads) == found.num_bytes == stored


def tiny_bytes(workspace: Workspace, step: int) -> int:
    """Of a checkpoint's tensors, by its file."""
    from safetensors import safe_open

    folder = workspace.checkpoint(workspace.run("tiny"), step).folder
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def test_what_was_read_does_not_change_with_the_file(tiny: Workspace) -> None:
    """Nor is it fetched from disk at last while something is measured, as mapped files are."""
    checkpoint = tiny.checkpoint(tiny.run("tiny"), 5)
    tensors, _ = read_needed(Task(checkpoint=checkpoint, config={}, probes={"norms": WeightNorms()}))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with (checkpoint.folder / "model.safetensors").open("r+b") as file:
        file.seek(-10_000, os.SEEK_END)
        file.write(bytes(10_000))

    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())


def test_probes_of_some_tensors_read_those_alone(tiny: Workspace, reads: list[StoredTensor]) -> None:
    found = probe("tiny", "embedding-norms", options=ONE_THREAD, workspace=tiny)

    assert {tensor.name for tensor in reads} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert found.num_bytes == sum(tensor.num_bytes for tensor in reads) == len(STEPS) * 2 * 384 * 32 * 4


def test_one_forward_pass_serves_all_probes_of_the_same_rows(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import prediction_blocks

    passes = []
    plain = prediction_blocks.prediction_blocks

    def counted(model: Any, token_ids: np.ndarray, **given: Any) -> Iterator[Any]:
        passes.append(token_ids.shape)
        return plain(model, token_ids, **given)

    monkeypatch.setattr(prediction_blocks, "prediction_blocks", counted)
    probe(
        "tiny",
        *("loss", "bits-per-byte", "loss-by-position", "calibration", "unigram-kl", "loss@run"),
        checkpoints="20",
        options=ONE_THREAD,
        workspace=tiny,
    )
    assert len(passes) == 2  # held-out rows, and rows of the run


def test_the_next_checkpoint_is_read_ahead_where_memory_allows(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for it, two have been read when the first is measured; without, one; the numbers are the same."""
    from forensics import local_measuring

    order: list[str] = []
    measure, read = local_measuring.measured, local_measuring.read_needed

    def noted_measure(task: Task, *rest: Any) -> Measured:
        if task.checkpoint.step == 0 and available > 0:
            began.wait(10)
        order.append(f"measured {task.checkpoint.step}")
        return measure(task, *rest)

    def noted_read(task: Task) -> Any:
        order.append(f"read {task.checkpoint.step}")
        if task.checkpoint.step == 5:
            began.set()
        return read(task)

    monkeypatch.setattr(local_measuring, "measured", noted_measure)
    monkeypatch.setattr(local_measuring, "read_needed", noted_read)
    found = []
    for available in (1e12, 0):
        began = threading.Event()
        order.clear()
        monkeypatch.setattr(local_measuring, "available_memory", lambda available=available: available)
        shutil.rmtree(tiny.home("tiny") / "probes", ignore_errors=True)
        found.append(probe("tiny", "norms", checkpoints="0:5", options=ONE_THREAD, workspace=tiny).rows)
        first = order[:3]
        assert first == (["read 0", "read 5", "measured 0"] if available else ["read 0", "measured 0", "read 5"])
    assert found[0] == found[1]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_numbers_of_weights_that_were_replaced_meanwhile_are_not_kept(tiny: Workspace) -> None:
    """A trainer that is running may write a checkpoint again, or delete it, while it is measured."""
    folders = {step: tiny.checkpoint(tiny.run("tiny"), step).folder for step in STEPS}

    def measuring(tasks: Sequence[Task], computing: Computing) -> Iterator[Measured]:
        for measured in measured_here(tasks, computing):
            if measured.step == 10:
                shutil.copy(folders[20] / "model.safetensors", folders[10] / "model.safetensors")
            if measured.step == 15:
                shutil.rmtree(folders[15])
            yield measured

    found = probe("tiny", "loss", "norms", options=ONE_THREAD, measuring=measuring, workspace=tiny)
    assert [(one.step, one.probe) for one in found.problems] == [(s, p) for s in (10, 15) for p in ("loss", "norms")]
    assert "was changed while it was measured" in found.problems[0].message
    assert list(values(found, "loss", "loss")) == [0, 5, 20]
    again = values(probe("tiny", "loss", options=ONE_THREAD, workspace=tiny), "loss", "loss")
    assert again[10] == again[20] and list(again) == [0, 5, 10, 20]


def test_nothing_is_measured_twice(tiny: Workspace, reads: list[StoredTensor]) -> None:
    first = probe("tiny", "loss", "induction", checkpoints="0:10", options=ONE_THREAD, workspace=tiny)
    reads.clear()
    again = probe("tiny", "loss", "induction", checkpoints="0:10", options=ONE_THREAD, workspace=tiny)
    assert (again.rows, again.num_measured, again.num_kept, reads) == (first.rows, 0, 3, [])
    further = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)

    assert (further.num_measured, further.num_kept) == (2, 3)
    other = probe("tiny", "loss", checkpoints="0", options=ProbeOptions(threads=1, num_tokens=128), workspace=tiny)
    assert other.num_measured == 1 and other.rows[0]["value"] != first.rows[0]["value"]
    assert len(other.messages) == 1 and "shows loss of these settings from now on" in other.messages[0]
    shown = "SELECT count(DISTINCT step) AS steps FROM probes WHERE probe = 'loss'"
    assert sql(shown, workspace=tiny).to_pylist() == [{"steps": 1}]
    reads.clear()
    back = probe("tiny", "loss", checkpoints="0", options=ONE_THREAD, workspace=tiny)
    assert back.rows == first.rows[:1] and not reads and sql(shown, workspace=tiny).to_pylist() == [{"steps": 5}]


def test_changed_weights_are_measured_anew(tiny: Workspace) -> None:
    before = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)
    folder = tiny.checkpoint(tiny.run("tiny"), 5).folder
    shutil.copy(tiny.checkpoint(tiny.run("tiny"), 20).folder / "model.safetensors", folder / "model.safetensors")
    after = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)

    assert after.num_measured == 1
    assert values(after, "loss", "loss")[5] == values(before, "loss", "loss")[20]


def stopped_after(count: int, error: type[BaseException]) -> Any:
    def measuring(tasks: Sequence[Task], computing: Computing) -> Iterator[Measured]:
        for number, measured in enumerate(measured_here(tasks, computing)):
            if number == count:
                raise error
            yield measured

    return measuring


def test_interrupted_and_resumed_equals_uninterrupted(tiny: Workspace, probed: tuple[Workspace, Probed]) -> None:
    """To the last bit, and what was done by then is in the view."""
    with pytest.raises(KeyboardInterrupt):
        probe("tiny", *SEVERAL, options=ONE_THREAD, measuring=stopped_after(0, KeyboardInterrupt), workspace=tiny)
    with pytest.raises(KeyboardInterrupt):
        probe("tiny", *SEVERAL, options=ONE_THREAD, measuring=stopped_after(2, KeyboardInterrupt), workspace=tiny)
    shown = sql("SELECT DISTINCT step FROM probes WHERE probe = 'loss' ORDER BY ALL", workspace=tiny)
    assert shown.column("step").to_pylist() == STEPS[:2]
    resumed = probe("tiny", *SEVERAL, options=ONE_THREAD, workspace=tiny)

    assert resumed.num_measured == 3
    assert resumed.rows == probed[1].rows


KILLED = """
import os, signal, sys
from forensics.probe_options import ProbeOptions
from forensics.probing import probe
from data_index.workspace import Workspace
def progress(done, total, step):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
options = ProbeOptions(threads=1, device="cpu")
probe("tiny", *sys.argv[2:], options=options, workspace=Workspace(sys.argv[1]), progress=progress)
"""


def test_killed_and_resumed_equals_uninterrupted(tiny: Workspace, probed: tuple[Workspace, Probed]) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tiny.folder), *SEVERAL], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = probe("tiny", *SEVERAL, options=ONE_THREAD, workspace=tiny)

    assert resumed.num_measured == 3
    assert resumed.rows == probed[1].rows


def test_answers_that_are_not_whole_were_not_kept(tiny: Workspace) -> None:
    first = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)
    for number, path in enumerate(sorted((tiny.home("tiny") / "probes" / "answers").glob("*.json"))):
        path.write_text(["", "[]", '{"answers": {"x": 1}}', path.read_text().replace('"value"', '"v"'), "{"][number])
    again = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)

    assert again.num_measured == 5 and again.rows == first.rows


DAMAGE: dict[str, dict[str, Any]] = {
    "no number": {"value": None},
    "a number that no float holds": {"value": 10**400},
    "half an interval": {"low": 1.0, "high": None},
    "a metric that is none": {"metric": 5},
    "a text that no file holds": {"text": "\ud800"},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_kept_answers_of_other_types_are_not_believed(
    tiny_shared: Workspace, tmp_path: Path, damage: dict[str, Any]
) -> None:
    """Whoever changed them may have hashed them anew; a sweep would end with a traceback, each time."""
    checkpoint, bound = tiny_shared.checkpoint(tiny_shared.run("tiny"), 5), always(WeightNorms(), {"probe": "x"})
    bound = replace(bound, name="x")
    answer = Answer(measurements=(Measurement(metric="m", value=math.nan, unit="u", low=-math.inf, high=1.0),))
    keeping = KeptMeasurements(tmp_path)
    assert keeping.answer(checkpoint, bound) is None
    keeping.add(checkpoint, [bound], Measured(step=5, answers={"x": answer}))
    kept = KeptMeasurements(tmp_path).answer(checkpoint, bound)
    assert kept is not None and kept.as_json() == answer.as_json() and math.isnan(kept.measurements[0].value)

    (path,) = (tmp_path / "probes" / "answers").glob("*.json")
    about = json.loads(path.read_text())
    about["answers"][bound.key]["measurements"][0] |= damage
    about["sha256"] = hashlib.sha256(canonical_json(about["answers"])).hexdigest()
    path.write_text(json.dumps(about))
    assert KeptMeasurements(tmp_path).answer(checkpoint, bound) is None


def test_an_answer_that_lost_a_row_was_not_kept(tiny: Workspace) -> None:
    """Numbers over several checkpoints are made of rows that each of them has."""
    first = probe("tiny", "memorization", options=ONE_THREAD, workspace=tiny)
    path = sorted((tiny.home("tiny") / "probes" / "answers").glob("*.json"))[2]
    about = json.loads(path.read_text())
    for kept in about["answers"].values():
        kept["measurements"].pop()
    path.write_text(json.dumps(about))
    again = probe("tiny", "memorization", options=ONE_THREAD, workspace=tiny)

    assert again.num_measured == 1 and again.rows == first.rows


def test_a_view_whose_files_were_deleted_or_damaged_is_written_anew(tiny: Workspace) -> None:
    first = probe("tiny", "loss", "norms", "induction", options=ONE_THREAD, workspace=tiny)
    deleted, damaged, _ = sorted((tiny.home("tiny") / "probes").glob("*.parquet"))
    deleted.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    again = probe("tiny", "loss", "norms", "induction", options=ONE_THREAD, workspace=tiny)

    assert again.rows == first.rows and again.num_measured == 0
    shown = sql("SELECT count(*) AS rows FROM probes", workspace=tiny).to_pylist()
    assert shown == [{"rows": len(first.rows)}]


def test_two_sweeps_of_a_run_do_not_meet(tiny: Workspace) -> None:
    with exclusive_lock(tiny.home("tiny") / "probes.lock", "probing tiny"), pytest.raises(Busy):
        probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_bad_checkpoints_are_told_and_skipped(tiny: Workspace) -> None:
    whole = tiny.checkpoint(tiny.run("tiny"), 10).folder / "model.safetensors"
    content = whole.read_bytes()
    whole.write_bytes(content[:-7])
    (tiny.checkpoint(tiny.run("tiny"), 15).folder / "model.safetensors").write_bytes(b"")
    done = forensics(tiny, "probe", "tiny", "loss", "embedding-norms", "--threads", "1", "--format", "json")

    assert done.returncode == 1
    assert {row["step"] for row in json.loads(done.stdout)} == {0, 5, 20}
    assert "skipped at checkpoint 10" in done.stderr and "model.safetensors" in done.stderr
    whole.write_bytes(content)
    mended = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)
    assert mended.num_measured == 2 and [problem.step for problem in mended.problems] == [15]


def test_a_probe_without_data_at_a_checkpoint_is_told_and_the_rest_is_measured(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the checkpoints, whichever was found first."""
    plain = ProbeData.around

    def around(data: ProbeData, step: int) -> Any:
        if step == 10:
            raise MissingFile("tokens are not here")
        return plain(data, step)

    monkeypatch.setattr(ProbeData, "around", around)
    (tiny.checkpoint(tiny.run("tiny"), 5).folder / "model.safetensors").write_bytes(b"")
    _, messages = plan_probe("tiny", "next-batch", "norms", options=ONE_THREAD, workspace=tiny)
    assert "next-batch will be left out at checkpoint 10: tokens are not here" in messages
    found = probe("tiny", "next-batch", "norms", options=ONE_THREAD, workspace=tiny)

    assert [(one.step, one.probe) for one in found.problems] == [(5, "next-batch"), (5, "norms"), (10, "next-batch")]
    assert found.problems[-1].message == "tokens are not here"
    assert {row["step"] for row in found.rows if row["probe"] == "norms"} == {0, 10, 15, 20}
    assert (found.num_measured, found.num_kept) == (5, 0)
    alone = probe("tiny", "memorization", "norms", checkpoints="5", options=ONE_THREAD, workspace=tiny)
    assert not alone.messages and {one.probe for one in alone.problems} == {"memorization", "norms"}
    alone = probe("tiny", "memorization", "norms", checkpoints="0", options=ONE_THREAD, workspace=tiny)
    assert "memorization has no number at these checkpoints: it compares several" in alone.messages[0]
    assert len(alone.messages) == 1
    again = probe("tiny", "next-batch", "norms", options=ONE_THREAD, workspace=tiny)
    assert (again.num_measured, again.num_kept) == (1, 3) and again.rows == found.rows


def test_one_of_the_probes_that_share_a_pass_may_fail(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(probe: Any) -> Any:
        raise ValueError

    whole = probe("tiny", "loss", "unigram-kl", checkpoints="5", options=ONE_THREAD, workspace=tiny)
    shutil.rmtree(tiny.home("tiny") / "probes" / "answers")
    monkeypatch.setattr(CalibrationError, "statistic", failing)
    found = probe("tiny", "loss", "calibration", "unigram-kl", checkpoints="5", options=ONE_THREAD, workspace=tiny)
    assert [(one.probe, one.message) for one in found.problems] == [("calibration", "ValueError")]
    assert found.rows == whole.rows and whole.num_measured == found.num_measured == 1


def test_a_question_without_probes_is_refused(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidRange, match="no probe is left"):
        probe("tiny", workspace=tiny_shared)


def test_tensors_are_measured_where_no_model_can_be_made(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(run: Run, checkpoint: Checkpoint) -> Any:
        raise UnsupportedRecipe("no such model")

    monkeypatch.setattr(probing, "config_of", unknown)
    before = torch.get_num_threads()
    found = probe(
        "tiny", "loss", "norms", checkpoints="5", options=ProbeOptions(threads=before + 1, device="cpu"), workspace=tiny
    )
    assert [(one.probe, one.message) for one in found.problems] == [("loss", "no such model")]
    monkeypatch.setattr(probing, "config_of", None)  # no probe of tensors asks for it
    probe("tiny", "norms", checkpoints="10", options=ONE_THREAD, workspace=tiny)
    assert {row["probe"] for row in found.rows} == {"norms"} and torch.get_num_threads() == before


def test_a_probe_that_fails_does_not_keep_others_from_measuring(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of the user's that gives up on weights of NaN; a loss that is no number is told as what it is."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "strict_probe.py").write_text(
        "def total(model):\n"
        "    found = sum(p.double().sum() for p in model.parameters())\n"
        "    if not found.isfinite():\n"
        "        raise ArithmeticError('not finite')\n"
        "    return found\n"
    )
    monkeypatch.chdir(tmp_path)
    path = tiny.checkpoint(tiny.run("tiny"), 10).folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][:] = torch.nan
    save_file(tensors, path)
    found = probe("tiny", "strict_probe:total", "loss", "embedding-norms", options=ONE_THREAD, workspace=tiny)

    assert [(problem.step, problem.probe) for problem in found.problems] == [(10, "strict_probe:total")]
    assert "not finite" in found.problems[0].message
    losses = values(found, "loss", "loss")
    assert np.isnan(losses.pop(10)) and np.isfinite(list(losses.values())).all()
    stored = read_weights(tiny.checkpoint(tiny.run("tiny"), 20)).values()
    total = values(found, "strict_probe:total", "total")[20]
    assert total == pytest.approx(float(sum(tensor.double().sum() for tensor in stored)), rel=1e-9)
    again = probe("tiny", "loss", options=ONE_THREAD, workspace=tiny)
    assert again.num_measured == 0 and np.isnan(values(again, "loss", "loss")[10])


def test_a_function_that_changes_the_model_spoils_no_other_probe(
    tiny: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoiling_probe.py").write_text(
        "def zeroed(model):\n    next(model.parameters()).data.zero_()\n    return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    found = probe(
        "tiny", "spoiling_probe:zeroed", "induction", "loss", checkpoints="20", options=ONE_THREAD, workspace=tiny
    )
    assert [problem.probe for problem in found.problems] == ["spoiling_probe:zeroed"]
    alone = probe("tiny", "induction", checkpoints="20", options=ProbeOptions(threads=1, seed=0), workspace=tiny)
    (tiny.home("tiny") / "probes" / "answers").rename(tmp_path / "answers")
    anew = probe("tiny", "induction", "loss", checkpoints="20", options=ONE_THREAD, workspace=tiny)
    assert alone.num_measured == 0 and anew.num_measured == 1
    assert anew.rows == tuple(row for row in found.rows if row["probe"] != "spoiling_probe:zeroed")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["lss"], InvalidRange, "near: loss"),
        (["norms@run"], InvalidRange, "write norms without"),
        (["generations"], InvalidRange, "generations@FILE"),
        (["no_such_module:function"], FailedFunction, "no_such_module"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_read(
    tiny_shared: Workspace, reads: list[StoredTensor], names: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        probe("tiny", "loss", *names, options=ONE_THREAD, workspace=tiny_shared)
    assert not reads


# --- which checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "steps"),
    [
        ("all", STEPS),
        ("5:15", [5, 10, 15]),
        ("0:20:10", [0, 10, 20]),
        ("5:20:10", [5, 15]),
        ("20,0", [0, 20]),
        ("log:2", [0, 20]),
        ("log:3", [0, 5, 20]),
        ("log:9", STEPS),
        ([10], [10]),
    ],
)
def test_checkpoints_are_chosen(tiny_shared: Workspace, selection: Any, steps: list[int]) -> None:
    chosen = chosen_checkpoints(tiny_shared, tiny_shared.run("tiny"), selection)
    assert [checkpoint.step for checkpoint in chosen] == steps


@pytest.mark.parametrize("selection", ["log:0", "log:x", "9:1", "1:2:0", "1:2:3:4", "every 5", "", "1:2:-1"])
def test_a_choice_that_means_nothing_is_refused(tiny_shared: Workspace, selection: str) -> None:
    with pytest.raises(InvalidRange, match="--checkpoints takes all, log:40"):
        chosen_checkpoints(tiny_shared, tiny_shared.run("tiny"), selection)


@pytest.mark.parametrize("selection", ["7", "6:9", "21:30"])
def test_a_choice_without_a_checkpoint_says_what_there_is(tiny_shared: Workspace, selection: str) -> None:
    with pytest.raises(MissingCheckpoint, match="tiny has no checkpoint"):
        chosen_checkpoints(tiny_shared, tiny_shared.run("tiny"), selection)


def test_steps_are_evenly_spaced_on_a_logarithmic_scale() -> None:
    """Pythia's: 0, powers of two to 512, then every 1,000."""
    steps = [0, *(2**n for n in range(10)), *range(1000, 143_001, 1000)]
    chosen = log_spaced(steps, 12)
    assert len(set(chosen)) == 12 and (chosen[0], chosen[-1]) == (0, 143_000) and set(chosen) <= set(steps)
    gaps = np.diff(np.log1p(chosen))
    assert gaps.max() < 1.5 * gaps.mean()
    assert log_spaced(steps, 1) == [143_000] and log_spaced(steps, len(steps)) == steps
    assert len(set(log_spaced(steps, 140))) == 140


# --- the command line ------------------------------------------------------------------------------------------------


def test_probing_has_the_documented_keys(tiny: Workspace, tmp_path: Path) -> None:
    plan = answer(tiny, "probe", "tiny", "loss", "embedding-norms", "--plan")
    assert [row["step"] for row in plan] == [*STEPS, None]
    assert plan[-1]["bytes_to_read"] == sum(tiny_bytes(tiny, step) for step in STEPS)
    rows = answer(tiny, "probe", "tiny", "loss", "--checkpoints", "log:2")
    assert [tuple(row) for row in rows] == [COLUMNS] * 2
    left = answer(tiny, "probe", "tiny", "loss", "--plan")
    assert [row["step"] for row in left] == [5, 10, 15, None]

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def \nimport \n")
    written = answer(tiny, "probe", "tiny", f"generations@{prompts}", "--checkpoints", "20", "--num-generated", "4")
    assert [row["metric"] for row in written] == ["prompt 1", "prompt 2"] and all(row["text"] for row in written)
    out = tmp_path / "rows.csv"
    assert forensics(tiny, "probe", "tiny", "loss", "-o", str(out)).returncode == 0
    assert out.read_text().splitlines()[0].replace('"', "") == ",".join((*COLUMNS, "text"))
    assert "…" not in forensics(tiny, "probes").stdout  # descriptions are whole
    names = [row["name"] for row in answer(tiny, "probes")]
    assert "loss[@ROWS]" in names and "norms" in names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--picture", "x.png"), "--picture draws what --against finds"),
        (("--against", "tiny@5", "--picture", "x.xyz"), "neither in .png nor in .html"),
        (("--against", "tiny@5", "--plan"), "--plan goes with a sweep"),
        (("--against", "tiny@5", "--workers", "2"), "--workers goes with a sweep"),
        (("--against", "tiny@5", "--checkpoints", "\u00b2"), "--against takes one checkpoint"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(
    tiny_shared: Workspace, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        app(["probe", "tiny", "loss", *options, "--workspace", str(tiny_shared.folder)], standalone_mode=False)


def test_what_a_function_prints_is_no_row(
    tiny_shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chatty_probe.py").write_text(
        "import torch\ndef one(model):\n    print('no row')\n    return torch.get_num_threads()\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ["probe", "tiny", "chatty_probe:one", "--checkpoints", "5", "--workspace", str(tiny_shared.folder)]
    for more in ([], ["--against", "tiny@10"]):
        app([*asked, *more, "--threads", "3", "--format", "csv"], standalone_mode=False)
        said = capfd.readouterr()
        assert "no row" in said.err and said.out.count("\n") == 2 and "no row" not in said.out
        assert ",3.0," in said.out  # the threads that were asked for


def test_rows_of_the_run_read_only_what_its_files_hold(tiny: Workspace) -> None:
    """`loss@run` is of tokens that the run's own files have at the places which the index names."""
    run = tiny.run("tiny")
    from forensics.row_sources import sampled_instances

    instances = sampled_instances(tiny, run, 3, seed=0)
    assert len(instances) == 3
    found = probe("tiny", "loss@run", checkpoints="20", options=ProbeOptions(num_tokens=192, threads=1), workspace=tiny)
    by_hand = loss_by_hand(tiny, 20, reader_of(tiny, run).rows(instances))
    assert found.rows[0]["value"] == pytest.approx(by_hand, abs=2e-6)
