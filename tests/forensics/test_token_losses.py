"""`batch --losses`: losses of a step's tokens under a checkpoint's weights, against what the trainers logged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import forensics
from data_index.errors import MissingCheckpoint, TooMuchToFetch, UnknownInstance
from data_index.metric_queries import logged_metrics
from data_index.registration import add
from data_index.store import run_query
from data_index.workspace import Workspace
from forensics.cli.program import app
from forensics.forking import fork
from forensics.kept_losses import kept_token_losses
from forensics.lookup import batch
from forensics.step_losses import plan_token_losses
from tests.conftest import FIXTURES

# fp32 losses of single tokens, summed in fp64 here, in another order in the trainer.
SAME = 2e-6


@pytest.mark.parametrize("step", [1, 6, 11, 16])
def test_the_rows_of_a_step_give_the_loss_that_was_logged(tiny: Workspace, step: int) -> None:
    """Steps that follow a checkpoint directly were taken with its weights."""
    logged = logged_metrics(tiny, tiny.run("tiny"), step - 1, step)[step]["loss"]
    found = forensics.token_losses("tiny", step, workspace=tiny)

    assert found.checkpoint == step - 1 and found.loss_logged == logged
    assert found.mean == pytest.approx(logged, rel=SAME)
    assert found.loss == pytest.approx(logged, rel=SAME)
    later = forensics.token_losses("tiny", step, 20, workspace=tiny)
    assert later.loss is not None and abs(later.loss - logged) > 100 * SAME


@pytest.mark.parametrize(("name", "folder"), [("core", "olmo-core/main"), ("olmo", "olmo")])
@pytest.mark.parametrize("step", [11, 21])
def test_the_rows_of_a_real_trainers_step_give_the_loss_that_it_logged(
    workspace: Workspace, name: str, folder: str, step: int
) -> None:
    """With document borders, masks and denominators as those trainers have them."""
    add(FIXTURES / folder, name=name, workspace=workspace)
    run = workspace.run(name)
    logged = logged_metrics(workspace, run, step - 1, step)[step]["loss"]
    found = forensics.token_losses(name, step, workspace=workspace)

    assert found.checkpoint == step - 1
    assert found.loss == pytest.approx(logged, rel=SAME)


def test_every_token_has_its_row_and_no_loss_where_it_is_no_target(tiny: Workspace) -> None:
    table = forensics.token_losses("tiny", 8, workspace=tiny).table
    rows = batch("tiny", 8, tokens=True, workspace=tiny)

    assert table.column("instance").to_pylist() == [i for i in rows.column("instance").to_pylist() for _ in range(64)]
    assert table.column("position").unique().to_pylist() == rows.column("position").to_pylist()
    assert table.column("token_id").to_pylist() == [t for row in rows.column("token_ids").to_pylist() for t in row]
    assert table.column("token").to_pylist() == list(range(64)) * 8
    losses = np.array(table.column("loss").to_pylist(), dtype=float).reshape(8, 64)
    assert np.isnan(losses[:, 0]).all() and (losses[:, 1:] > 0).all()
    shown = run_query(tiny, "from token_losses where run = 'tiny' order by position, token")
    assert shown.drop_columns("run").equals(table.cast(shown.drop_columns("run").schema))


def test_losses_are_computed_once(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only some rows were asked for before, and then all."""
    from forensics import step_losses

    computed: list[int] = []
    forward = step_losses.batch_losses

    def counted(model: object, read: object, *args: object, **options: object) -> object:
        computed.append(len(read.token_ids))  # type: ignore[attr-defined]
        return forward(model, read, *args, **options)  # type: ignore[arg-type]

    whole = forensics.token_losses("tiny", 6, workspace=tiny)
    (tiny.home("tiny") / "current.json").write_text("{}")
    monkeypatch.setattr(step_losses, "batch_losses", counted)
    instances = batch("tiny", 6, workspace=tiny).column("instance").to_pylist()[2:5]
    some = forensics.token_losses("tiny", 6, instances=instances, workspace=tiny)
    again = forensics.token_losses("tiny", 6, instances=instances[:1], workspace=tiny)
    every = forensics.token_losses("tiny", 6, workspace=tiny)
    kept = forensics.token_losses("tiny", 6, workspace=tiny)

    assert computed == [3, 5] and some.table.num_rows == 3 * 64 and again.table.num_rows == 64
    assert some.loss is None and every.loss == pytest.approx(whole.loss, rel=SAME) and kept.loss == every.loss
    assert every.table.drop_columns("loss").equals(whole.table.drop_columns("loss"))
    forensics.token_losses("tiny", 6, enforce_determinism=False, workspace=tiny)
    assert computed == [3, 5, 8]  # other kernels may give other bits
    difference = np.abs(_losses(every) - _losses(whole))
    assert np.nanmax(difference) < 1e-4  # kernels may depend on how many rows are taken at once


def _losses(found: forensics.step_losses.TokenLosses) -> np.ndarray:  # type: ignore[name-defined]
    return np.array(found.table.column("loss").to_pylist(), dtype=float)


def test_of_other_weights_nothing_is_taken_for_theirs(tiny: Workspace, tmp_path: Path) -> None:
    """A checkpoint that is replaced is asked again."""
    before = forensics.token_losses("tiny", 8, workspace=tiny)
    assert kept_token_losses("tiny", 8, workspace=tiny).equals(before.table)
    assert (
        kept_token_losses("tiny", 8, 10, workspace=tiny) is None
        and kept_token_losses("tiny", 9, workspace=tiny) is None
    )
    folder = tmp_path / "tiny" / "checkpoints"
    shutil.copy(folder / "step10" / "model.safetensors", folder / "step5" / "model.safetensors")

    assert kept_token_losses("tiny", 8, workspace=tiny) is None
    after = forensics.token_losses("tiny", 8, workspace=tiny)
    assert after.loss == forensics.token_losses("tiny", 8, 10, workspace=tiny).loss != before.loss
    assert len(tiny.learned_files(tiny.home("tiny"), "token_losses")) == 2


def test_what_an_edit_hides_has_no_loss(tiny: Workspace) -> None:
    row = batch("tiny", 6, workspace=tiny).column("instance")[3].as_py()
    made = fork("tiny", from_step=5, num_steps=1, edits=[f"mask span:{row}:10-20 @6"], workspace=tiny)
    found = forensics.token_losses(made.id, 6, instances=[row], workspace=tiny)
    step = made.steps[0]

    assert [n for n, loss in enumerate(found.table.column("loss").to_pylist()) if loss is None] == [0, *range(10, 20)]
    whole = forensics.token_losses(made.id, 6, workspace=tiny)
    assert whole.loss == pytest.approx(step["loss"], rel=SAME)
    assert whole.loss != forensics.token_losses("tiny", 6, workspace=tiny).loss


def test_a_plan_tells_what_is_read_and_reads_nothing(tiny: Workspace) -> None:
    plan = plan_token_losses("tiny", 8, workspace=tiny)
    weights = (tiny.checkpoint(tiny.run("tiny"), 5).folder / "model.safetensors").stat().st_size

    assert {name: plan[name] for name in ("checkpoint", "rows", "kept", "download")} == {
        **{"checkpoint": 5, "rows": 8, "kept": 0, "download": 0}
    }
    assert 0.9 * weights < plan["weights"] <= weights and plan["seconds"] > 0
    assert not tiny.learned_files(tiny.home("tiny"), "token_losses")
    forensics.token_losses("tiny", 8, workspace=tiny)
    assert plan_token_losses("tiny", 8, workspace=tiny)["kept"] == 8


def test_what_cannot_be_asked_is_said(tiny: Workspace) -> None:
    with pytest.raises(UnknownInstance, match="step 8 of tiny did not read instance 99999"):
        forensics.token_losses("tiny", 8, instances=[99999], workspace=tiny)
    with pytest.raises(MissingCheckpoint, match="no checkpoint at step 7; the nearest are 5 and 10"):
        forensics.token_losses("tiny", 8, 7, workspace=tiny)
    for step in (0, 5):
        shutil.rmtree(tiny.checkpoint(tiny.run("tiny"), step).folder)
    with pytest.raises(
        MissingCheckpoint, match="no checkpoint of tiny before step 8 has weights here; the first is 10"
    ):
        forensics.token_losses("tiny", 8, workspace=tiny)


def test_the_command_prints_a_line_a_row_and_keeps_every_token(tiny: Workspace, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--workspace", str(tiny.folder)])
        assert result.exit_code == 0, result.output
        return result.output

    whole = forensics.token_losses("tiny", 11, workspace=tiny)
    out = said("batch", "tiny", "11", "--losses", "-o", str(tmp_path / "losses.parquet"))
    assert f"as the trainer logs it {whole.loss:.6g}; logged at step 11 {whole.loss_logged:.6g}\n" in out
    printed = said("batch", "tiny", "11", "--losses", "--checkpoint", "0")
    assert printed.count("\n") == 2 + 8 + 2 and "under the weights after step 10" in printed
    assert said("batch", "tiny", "11", "--losses", "--format", "csv").count("\n") == 1 + 8 * 64 + 2
    assert '"kept": 8' in said("batch", "tiny", "11", "--losses", "--plan", "--format", "json")
    for wrong in (["10:15", "--losses"], ["11", "--checkpoint", "5"], ["11", "--losses", "--tokens"]):
        assert CliRunner().invoke(app, ["batch", "tiny", *wrong, "--workspace", str(tiny.folder)]).exit_code == 2


def test_weights_on_a_server_are_not_fetched_beyond_what_is_allowed(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forensics import losses_question

    monkeypatch.setattr(losses_question, "bytes_of_weights", lambda checkpoint: 3_000)
    with pytest.raises(TooMuchToFetch, match="8 rows of step 8 would fetch 3,000 bytes, and 100 are allowed"):
        forensics.token_losses("tiny", 8, max_fetch=100, workspace=tiny)
