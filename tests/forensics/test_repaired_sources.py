"""`tokens --repair` of every form of a model, and of folders that are hostile or damaged."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_index.errors import (
    CorruptFile,
    UnknownLayout,
    UnsafeFile,
    UnsupportedRecipe,
)
from data_index.workspace import Workspace
from forensics.token_repair import repair
from replay.weights import read_weights
from tests.conftest import FIXTURES
from tests.forensics.test_token_repair import (
    INPUT,
    OUTPUT,
    assert_only_rows_changed,
    files_of,
    llama,
    mean_of,
    reworked,
    step_on,
    tensors_of,
)
from tests.forensics.test_undertrained_tokens import UNTRAINED, planted

# --- forms of the source ---------------------------------------------------------------------------------------------


def test_a_tied_matrix_that_was_saved_twice_is_reset_twice(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    entry = load_file(folder / "model.safetensors")[INPUT]
    save_file({INPUT: entry, OUTPUT: entry.clone()}, folder / "model.safetensors")
    for tied in (True, False):
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        repair(str(folder), tmp_path / f"out{tied}", workspace=workspace)

        assert_only_rows_changed(folder, tmp_path / f"out{tied}", {INPUT: UNTRAINED, OUTPUT: UNTRAINED})


def test_the_bias_of_the_output_and_old_names_are_reset_too(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m", tied=False)
    tensors = load_file(folder / "model.safetensors")
    bias = torch.linspace(-1, 1, 261)
    old = {"gpt_neox.embed_in.weight": tensors[INPUT], "embed_out.weight": tensors[OUTPUT], "embed_out.bias": bias}
    save_file(old | {"gpt_neox.norm.bias": torch.ones(261)}, folder / "model.safetensors")
    done = repair(str(folder), tmp_path / "out", workspace=workspace)
    now = tensors_of(tmp_path / "out")

    assert [matrix["name"] for matrix in done.matrices] == list(old)
    expected = bias.clone()
    expected[UNTRAINED] = mean_of(bias[:, None], UNTRAINED)
    assert torch.equal(now["embed_out.bias"], expected) and torch.equal(now["gpt_neox.norm.bias"], torch.ones(261))
    row = done.rows[0]
    assert row["bias_before"] == float(bias[row["token_id"]]) and row["bias_after"] == float(expected[UNTRAINED[0]])


def test_pickled_weights_are_written_as_safetensors(tmp_path: Path, workspace: Workspace) -> None:
    rows = llama(tmp_path / "m", tied=True, dtype=torch.bfloat16, sharded=False)
    was = tensors_of(tmp_path / "m")
    torch.save(was, tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "model.safetensors").unlink()
    done = repair(str(tmp_path / "m"), tmp_path / "out", workspace=workspace)
    now = tensors_of(tmp_path / "out")

    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}, "versions of transformers that people have refuse it without"
    assert now.keys() == was.keys() and torch.equal(now[INPUT][rows[0]], mean_of(was[INPUT], rows))
    assert all(torch.equal(now[name], was[name]) for name in was if name != INPUT)
    assert done.num_bytes_changed is None
    assert np.isfinite(step_on(tmp_path / "out", rows[0])[0])


@pytest.mark.parametrize(("name", "step"), [("core", 20), ("olmo", 20), ("tiny", 10)])
def test_a_checkpoint_of_a_trainer_becomes_a_model_that_transformers_loads(
    tmp_path: Path,
    core_shared: Workspace,
    tiny_shared: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    step: int,
) -> None:
    """Rows that Adam never updated, and padding, are the mean of the others; all else is what the checkpoint holds."""
    from transformers import AutoModelForCausalLM

    from replay import model_folder

    monkeypatch.setattr(model_folder, "SHARD_BYTES", 100_000)
    shared = tiny_shared if name == "tiny" else core_shared
    checkpoint = shared.checkpoint(shared.run(name), step)
    done = repair(name, tmp_path / "out", step, workspace=shared)
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    now, was = dict(model.named_parameters()), read_weights(checkpoint)
    rows = [row["token_id"] for row in done.rows]

    assert not any(told.values()) and now.keys() == was.keys() and len(list((tmp_path / "out").glob("*.safetensors")))
    assert {row["reason"] for row in done.rows} <= {"never updated", "no token"} and "Adam's" in done.judged_by
    for key, tensor in was.items():
        expected = tensor.clone()
        if key in (INPUT, OUTPUT):
            expected[rows] = mean_of(tensor, rows)
        assert torch.equal(now[key], expected), key
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == shared.run(name).tokenizer.read_bytes()
    assert tuple(sorted(files_of(tmp_path / "out"))) == tuple(sorted([*done.changed, *done.copied]))


@pytest.mark.parametrize("kind", ["gguf", "file", "trainer", "no config"])
def test_what_cannot_be_written_faithfully_says_what_to_do(tmp_path: Path, workspace: Workspace, kind: str) -> None:
    folder = planted(tmp_path / "m")
    model, said = folder, "config.json"
    if kind == "gguf":
        from tests.data_index.test_gguf_file import gguf

        model, said = folder / "m.gguf", "repair the model folder that it was made from"
        entry = load_file(folder / "model.safetensors")[INPUT]
        model.write_bytes(gguf({}, {"token_embd.weight": (tuple(entry.shape), 0, entry.numpy().tobytes())}))
    elif kind == "file":
        model, said = folder / "model.safetensors", "name the folder that holds it"
    elif kind == "trainer":
        model, said = FIXTURES / "olmo" / "run" / "step20-unsharded", "forensics add"
    else:
        (folder / "config.json").unlink()

    with pytest.raises(UnknownLayout, match=said):
        repair(str(model), tmp_path / "out", tokenizer=folder / "tokenizer.json", workspace=workspace)
    assert not (tmp_path / "out").exists()


def test_links_are_copied_as_what_they_lead_to_and_other_weights_are_left_out(
    tmp_path: Path, workspace: Workspace
) -> None:
    """The shared cache of the hub is links; weights in other formats would hold the rows as they were."""
    blobs = planted(tmp_path / "blobs")
    folder = tmp_path / "snapshot"
    (folder / "onnx").mkdir(parents=True)
    (folder / "templates").mkdir()
    for path in blobs.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("pytorch_model.bin", "optimizer.pt", "onnx/model.onnx", "onnx/config.json", "templates/a.jinja"):
        (folder / name).write_bytes(b"x")
    (folder / "elsewhere").symlink_to(tmp_path)
    before = files_of(blobs)
    done = repair(str(folder), tmp_path / "out", workspace=workspace)

    assert set(files_of(tmp_path / "out")) == {*before, "templates/a.jinja"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert set(done.left_out) == {"pytorch_model.bin", "optimizer.pt", "onnx/", "elsewhere/"}
    assert files_of(blobs) == before


# --- hostile input ---------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {INPUT: "../model.safetensors"}}))


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "generation_config.json")


@pytest.mark.parametrize(("damage", "error"), [(truncated, CorruptFile), (outside, UnsafeFile), (pipe, UnsafeFile)])
def test_a_hostile_folder_is_refused_and_nothing_is_written(
    tmp_path: Path, workspace: Workspace, damage, error: type[Exception]
) -> None:
    folder = planted(tmp_path / "m")
    damage(folder)

    with pytest.raises(error):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


def test_weights_that_change_while_they_are_read_are_not_written_to(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are replaced only where the copy holds what was judged."""
    from forensics import token_repair

    folder = planted(tmp_path / "m")
    original = token_repair.require_free_space

    def meddled(*arguments, **named) -> None:
        reworked(folder, {INPUT: ([256], torch.ones(48))})
        original(*arguments, **named)

    monkeypatch.setattr(token_repair, "require_free_space", meddled)
    with pytest.raises(CorruptFile, match="changed meanwhile"):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    assert not (tmp_path / "out").exists()


def test_quantised_rows_are_refused(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    numbers = torch.randint(1, 100, (261, 48), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    save_file({INPUT: numbers}, folder / "model.safetensors")

    with pytest.raises(UnsupportedRecipe, match="int8"):
        repair(str(folder), tmp_path / "out", rows=[3], workspace=workspace)
    assert not (tmp_path / "out").exists()
