"""A logged loss as a witness of data that nothing else vouches for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import OrderMismatch
from data_index.workspace import Workspace
from forensics import adding
from forensics.adding import add
from tests.conftest import FIXTURES


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """The OLMo-core run with its losses, without the batches that it recorded."""
    folder = Path(shutil.copytree(FIXTURES / "olmo-core", tmp_path / "published")) / "main"
    path = folder / "metrics.jsonl"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if json.loads(line)["kind"] == "metrics")
    )
    return folder


def shuffle_batch(folder: Path) -> None:
    """Other tokens of the same counts, in a row that step 21 reads."""
    from data_index.orders import epoch_order
    from data_index.tokens import TokenReader

    workspace = Workspace(folder.parent / "look")
    run = add(folder, name="look", loss_check=False, workspace=workspace)
    instance = int(epoch_order(run, 1)[20 * 8])
    file, start = TokenReader(run, None).place_of(instance)
    tokens = np.fromfile(file.on_disk, "<u2")
    tokens[start : start + 128] = tokens[start : start + 128][::-1]
    tokens.tofile(file.on_disk)


def test_a_loss_that_comes_out_again_is_a_witness_of_one_step(logged: Path, workspace: Workspace) -> None:
    trust = add(logged, workspace=workspace).trust

    assert (trust.level, trust.of_steps(21, 21).level) == ("derived", "derived")
    assert "; the logged loss of step 21, with a relative difference of" in trust.witness
    assert trust.missing == "a record of the token ids that were consumed"


def test_data_that_give_another_loss_are_a_mismatch(logged: Path, workspace: Workspace) -> None:
    shuffle_batch(logged)

    with pytest.raises(OrderMismatch, match="step 21 of main has another loss with these data .*--no-loss-check"):
        add(logged, workspace=workspace)
    assert workspace.run_names() == []
    assert "logged loss" not in str(add(logged, loss_check=False, workspace=workspace).trust)


def test_a_token_that_the_model_does_not_have_is_a_mismatch(logged: Path, workspace: Workspace) -> None:
    shuffle_batch(logged)
    for path in (logged.parent / "data").glob("part-*.npy"):
        np.full(path.stat().st_size // 2, 999, "<u2").tofile(path)

    with pytest.raises(OrderMismatch, match="step 21 of main would read token id 999; its model has 384 ids"):
        add(logged, workspace=workspace)


def test_where_it_would_take_long_the_command_is_named(
    logged: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "MAX_BATCH_TOKENS", 8 * 128 - 1)

    missing = add(logged, workspace=workspace).trust.missing
    assert missing.endswith("; a look at the logged loss of step 21 (forensics replay main 20:21)")


def test_without_a_loss_that_is_what_is_missing(logged: Path, workspace: Workspace) -> None:
    (logged / "metrics.jsonl").unlink()

    missing = add(logged, workspace=workspace).trust.missing
    assert missing.endswith("; a logged loss of a step that follows a checkpoint with weights")


def test_a_proved_run_is_not_computed(tiny_source: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "loss_difference", lambda run, logged: pytest.fail("it was computed"))

    assert add(tiny_source, workspace=workspace).trust.level == "exact"
    assert add(FIXTURES / "olmo-core" / "main", workspace=workspace).trust.proved == ((1, 25),)
