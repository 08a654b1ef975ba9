"""`probe --against`: each side equals measuring it alone, whatever form the other model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_index.errors import InvalidRange
from data_index.workspace import Workspace
from forensics.probing import probe
from forensics.side_by_side import COLUMNS, SideBySide, side_by_side
from replay.causal_model import model_of_checkpoint
from replay.recipe import recipe_of_run
from tests.forensics.test_cli import answer, forensics
from tests.forensics.test_probing import ONE_THREAD, values

PROBES = ("loss", "embedding-norms", "induction")


def column(found: SideBySide, name: str) -> dict[tuple[str, str], float]:
    return {(row["probe"], row["metric"]): row[name] for row in found.rows}


@pytest.fixture
def model_folder(tiny_shared: Workspace, tmp_path: Path) -> Path:
    """Checkpoint 5 of the tiny run, as transformers saves it, with its tokenizer."""
    run = tiny_shared.run("tiny")
    checkpoint = tiny_shared.checkpoint(run, 5)
    model = model_of_checkpoint(checkpoint, recipe_of_run(run).model, device=torch.device("cpu"))
    model.save_pretrained(tmp_path / "five")
    assert run.tokenizer is not None
    shutil.copy(run.tokenizer, tmp_path / "five" / "tokenizer.json")
    return tmp_path / "five"


def test_each_side_is_what_a_sweep_measures(tiny: Workspace) -> None:
    found = side_by_side("tiny", *PROBES, against="tiny@5", options=ONE_THREAD, workspace=tiny)
    swept = probe("tiny", *PROBES, options=ONE_THREAD, workspace=tiny)

    assert (found.one, found.other) == ("tiny@20", "tiny@5") and not found.messages and not found.problems
    metrics = {(row["probe"], row["metric"]) for row in swept.rows}
    for side, step in (("value", 20), ("other", 5)):
        assert column(found, side) == {key: values(swept, *key)[step] for key in metrics}
    for key, difference in column(found, "difference").items():
        assert difference == column(found, "other")[key] - column(found, "value")[key]


def test_a_model_of_no_run_is_measured_on_the_runs_rows(tiny_shared: Workspace, model_folder: Path) -> None:
    folder = side_by_side("tiny", *PROBES, against=str(model_folder), options=ONE_THREAD, workspace=tiny_shared)
    checkpoint = side_by_side("tiny", *PROBES, against="tiny@5", options=ONE_THREAD, workspace=tiny_shared)

    assert folder.other == str(model_folder)
    assert column(folder, "value") == column(checkpoint, "value")
    assert column(folder, "other") == column(checkpoint, "other")


def test_generations_stand_side_by_side(tiny_shared: Workspace, model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("import \n")
    asked = ("probe", "tiny", "loss", f"generations@{prompts}", "--against", str(model_folder), "--threads", "1")
    rows = answer(tiny_shared, *asked)
    assert [tuple(row) for row in rows] == [(*COLUMNS, "text", "other_text")] * 2
    picture = tmp_path / "sides.png"
    shown = forensics(tiny_shared, *asked, "--picture", str(picture))

    assert f"  tiny@20: {rows[1]['text']!r}"[:-1].replace("'", "") in shown.stdout.replace("'", "")
    assert f"  {model_folder}: " in shown.stdout and picture.stat().st_size > 10_000


def test_rows_that_mean_something_else_to_the_other_are_refused(tiny_shared: Workspace, model_folder: Path) -> None:
    run = tiny_shared.run("tiny")
    read = np.bincount(np.fromfile(run.heldout[0].path, dtype=run.heldout[0].dtype))
    often = np.argsort(read)[-2:].tolist()
    path = model_folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = [token for token, number in vocabulary.items() if number in often]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(InvalidRange, match=f"token {min(often)} is .* to tiny and .*mean something else"):
        side_by_side("tiny", "loss", against=str(model_folder), options=ONE_THREAD, workspace=tiny_shared)


def test_a_probe_that_fails_on_one_side_is_told(tiny: Workspace, tmp_path: Path) -> None:
    path = tiny.checkpoint(tiny.run("tiny"), 5).folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, path)
    picture = tmp_path / "sides.html"
    asked = ("probe", "tiny", "loss", "norms", "--against", "tiny@5", "--threads", "1", "--format", "json")
    told = forensics(tiny, *asked, "--picture", str(picture))

    assert told.returncode == 1
    assert "tiny@5: loss: " in told.stderr and "model.norm.weight is (3,), not (32,)" in told.stderr
    rows = json.loads(told.stdout)
    assert {row["probe"] for row in rows} == {"loss", "norms"} and picture.stat().st_size > 1000
    assert [(row["other"], row["difference"]) for row in rows if row["probe"] == "loss"] == [(None, None)]


def test_what_takes_several_checkpoints_is_refused(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidRange, match="memorization is measured over several checkpoints"):
        side_by_side("tiny", "memorization", against="tiny@5", workspace=tiny_shared)
    refused = forensics(tiny_shared, "probe", "tiny", "loss", "--against", "tiny@5", "--checkpoints", "log:3")
    assert refused.returncode == 2 and "--against takes one checkpoint" in refused.stderr
