"""`tokens --repair`: which rows are reset, that nothing else changes, and that fine-tuning on them is finite after."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_index.errors import (
    CorruptFile,
    DiskFull,
    InvalidEdit,
    InvalidRange,
    NotWritable,
    RunExists,
    UnknownLayout,
    UnsafeFile,
    UnsupportedRecipe,
)
from data_index.workspace import Workspace
from forensics.token_repair import REPORT, repair
from probes.embedding_indicators import INPUT_NORM
from replay.weights import read_weights
from tests.conftest import FIXTURES
from tests.data_index.test_token_categories import byte_level
from tests.forensics.test_cli import answer, forensics
from tests.forensics.test_undertrained_tokens import UNTRAINED, planted

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
PADDING = 5


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != REPORT
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def mean_of(matrix: torch.Tensor, without: list[int]) -> torch.Tensor:
    kept = torch.ones(len(matrix), dtype=torch.bool)
    kept[without] = False
    return matrix.double()[kept].mean(dim=0).float().to(matrix.dtype)


def assert_only_rows_changed(before: Path, after: Path, rows: dict[str, list[int]]) -> None:
    """All tensors are equal byte for byte but these rows; all files but those with them; and their headers."""
    was, now = tensors_of(before), tensors_of(after)
    assert was.keys() == now.keys()
    for name, matrix in was.items():
        expected = matrix.clone()
        if name in rows:
            expected[rows[name]] = mean_of(matrix, rows[name])
        assert torch.equal(expected.view(torch.uint8), now[name].view(torch.uint8)), name
    source, copy = files_of(before), files_of(after)
    assert source.keys() == copy.keys()
    for name, content in source.items():
        changed = sum(a != b for a, b in zip(content, copy[name], strict=True))
        held = [matrix for matrix in rows if name.endswith(".safetensors") and matrix in load_file(before / name)]
        assert (changed > 0) == bool(held), name
        start = int.from_bytes(content[:8], "little") + 8 if held else 0
        assert content[:start] == copy[name][:start]


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def llama(folder: Path, *, tied: bool, dtype: torch.dtype, sharded: bool) -> list[int]:
    """A model of transformers with a padded vocabulary; the rows of its special token and of the padding are zeros."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level()
    special, ids = tokenizer.token_to_id("<|end|>"), tokenizer.get_vocab_size()
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ids + PADDING,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=7,
            num_attention_heads=2,
            max_position_embeddings=32,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            pad_token_id=None,
        )
    )
    rows = [special, *range(ids, ids + PADDING)]
    with torch.no_grad():
        for matrix in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            matrix[rows] = 0
    model.to(dtype).save_pretrained(folder, max_shard_size="30KB" if sharded else "1GB")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return rows


def step_on(folder: Path, token: int) -> tuple[float, float]:
    """The norm of the gradient on a text that begins with a token, and the loss after a step of that gradient."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = torch.tensor([[token, token, 72, 101, 108, token]])
    model(input_ids=text, labels=text).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        return float(norm), float(model(input_ids=text, labels=text).loss)


@pytest.mark.parametrize(
    ("tied", "dtype", "sharded"),
    [(True, torch.bfloat16, False), (False, torch.float32, True), (False, torch.float16, False)],
)
def test_fine_tuning_on_a_reset_token_is_finite(
    tmp_path: Path, workspace: Workspace, tied: bool, dtype: torch.dtype, sharded: bool
) -> None:
    """A row of zeros stays zeros through all layers, and every norm multiplies its gradient by a thousand."""
    rows = llama(tmp_path / "m", tied=tied, dtype=dtype, sharded=sharded)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1 or not sharded
    done = repair(str(tmp_path / "m"), tmp_path / "out", workspace=workspace)

    assert not np.isfinite(step_on(tmp_path / "m", rows[0])[0])
    norm, loss = step_on(tmp_path / "out", rows[0])
    assert np.isfinite(norm) and norm < 1e3 and np.isfinite(loss)
    assert_only_rows_changed(tmp_path / "m", tmp_path / "out", {name: rows for name in (INPUT, OUTPUT)[: 2 - tied]})
    assert [(row["token_id"], row["reason"]) for row in done.rows] == [
        (token, "all zeros" if token == rows[0] else "no token") for token in rows
    ]


# --- which rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_below_the_gap_and_padding_are_reset_and_nothing_else(
    tmp_path: Path, workspace: Workspace, tied: bool, dtype: torch.dtype
) -> None:
    folder = planted(tmp_path / "m", tied=tied, dtype=dtype, padding=PADDING)
    done = repair(str(folder), tmp_path / "out", workspace=workspace)
    size = len(tensors_of(folder)[INPUT])
    rows = [*UNTRAINED, *range(size - PADDING, size)]

    assert_only_rows_changed(folder, tmp_path / "out", {name: sorted(rows) for name in tensors_of(folder)})
    assert [row["token_id"] for row in done.rows] == sorted(rows)
    assert done.counts() == {"unused_byte": 13, "no_token": PADDING, "ok": 1, "unreachable": 1}
    assert done.num_bytes_changed == len(rows) * 48 * dtype.itemsize * (1 if tied else 2)


def test_the_report_tells_every_row_before_and_after(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m", tied=False)
    repair(str(folder), tmp_path / "out", workspace=workspace)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    was, now = tensors_of(folder), tensors_of(tmp_path / "out")
    row = next(row for row in report["rows"] if row["text"] == " t")

    assert row["reason"] == "below the gap" and row["category"] == "ok" and not row["seems_trained"]
    for role, name in (("input", INPUT), ("output", OUTPUT)):
        assert row[f"{role}_norm_before"] == pytest.approx(float(was[name][256].norm()), rel=1e-6)
        assert row[f"{role}_norm_after"] == pytest.approx(float(now[name][256].norm()), rel=1e-6)
    assert report["source"] == str(folder) and "below the gap" in report["judged_by"]
    assert report["files_changed"] == ["model.safetensors"] and report["rows_of_the_mean"] == 261 - len(UNTRAINED)


def test_rows_that_were_named_are_reset_and_said_to_seem_trained(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m", padding=PADDING)
    done = repair(str(folder), tmp_path / "out", rows=[97, 256], workspace=workspace)
    reasons = {row["token_id"]: (row["reason"], row["seems_trained"]) for row in done.rows}

    assert reasons[97] == ("named", True) and reasons[256] == ("named", False)
    assert Counter(reason for reason, _ in reasons.values()) == {"named": 2, "no token": PADDING}
    assert any("seem to be trained" in message for message in done.messages)
    changed = (tensors_of(folder)[INPUT] != tensors_of(tmp_path / "out")[INPUT]).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == sorted(reasons)


def test_the_mean_is_of_rows_that_are_not_known_to_be_unused(tmp_path: Path, workspace: Workspace) -> None:
    """Rows that were not named to be reset may be untrained all the same."""
    folder = planted(tmp_path / "m")
    repair(str(folder), tmp_path / "out", rows=[97], workspace=workspace)
    was, now = tensors_of(folder)[INPUT], tensors_of(tmp_path / "out")[INPUT]

    assert torch.equal(now[97], mean_of(was, [97, *UNTRAINED[:13]])) and torch.equal(now[UNTRAINED], was[UNTRAINED])


def test_an_id_that_the_vocabulary_leaves_out_is_a_row_without_a_token(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 264  # it was 258
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    entry = load_file(folder / "model.safetensors")[INPUT]
    save_file({INPUT: torch.cat([entry, entry[:4]])}, folder / "model.safetensors")
    reasons = {row["token_id"]: row["reason"] for row in repair(str(folder), None, workspace=workspace, plan=True).rows}

    assert [token for token, reason in reasons.items() if reason == "no token"] == [258, 261, 262, 263]


def test_where_nothing_tells_a_name_is_asked_for(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    generator = torch.Generator().manual_seed(0)
    save_file({INPUT: torch.randn(261, 48, generator=generator)}, folder / "model.safetensors")

    with pytest.raises(InvalidRange, match="no gap below which they would lie. Name the rows to reset with --unused"):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    with pytest.raises(InvalidRange, match=r"rows 0 \.\. 260"):
        repair(str(folder), tmp_path / "out", rows=[261], workspace=workspace)
    with pytest.raises(InvalidEdit, match="none would be left"):
        repair(str(folder), tmp_path / "out", rows=range(261), workspace=workspace)
    assert not (tmp_path / "out").exists()
    assert len(repair(str(folder), tmp_path / "out", rows=[5], workspace=workspace).rows) == 1


def reworked(folder: Path, change: dict[str, tuple[list[int], torch.Tensor]]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for name, (rows, value) in change.items():
        tensors[name][rows] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_token_that_is_only_predicted_keeps_its_output_row(tmp_path: Path, workspace: Workspace) -> None:
    """What ends a document may never be read, and is predicted at every one."""
    trained = torch.randn(48, generator=torch.Generator().manual_seed(9))
    folder = reworked(planted(tmp_path / "m", tied=False, padding=PADDING), {OUTPUT: ([256], trained)})
    done = repair(str(folder), tmp_path / "out", indicator=INPUT_NORM, workspace=workspace)
    now = tensors_of(tmp_path / "out")

    assert done.kept == {"input": [], "output": [256]} and torch.equal(now[OUTPUT][256], trained)
    assert not torch.equal(now[INPUT][256], tensors_of(folder)[INPUT][256])
    row = next(row for row in done.rows if row["token_id"] == 256)
    assert row["output_norm_before"] is None and row["input_norm_before"] is not None


def test_a_token_that_is_only_read_keeps_its_input_row(tmp_path: Path, workspace: Workspace) -> None:
    """What begins a text is never predicted, and read in every one. The norms of the input tell nothing here."""
    folder = planted(tmp_path / "m", tied=False, padding=PADDING)
    entry = load_file(folder / "model.safetensors")[INPUT]
    reworked(folder, {INPUT: (list(range(len(entry))), entry / entry.norm(dim=1, keepdim=True))})
    done = repair(str(folder), tmp_path / "out", workspace=workspace)

    assert done.indicator == "output_cosine_to_unused" and done.kept["input"] == sorted(UNTRAINED)
    changed = {
        name: (tensors_of(folder)[name] != matrix).any(dim=1).nonzero()[:, 0].tolist()
        for name, matrix in tensors_of(tmp_path / "out").items()
    }
    assert changed[INPUT] == list(range(261, 261 + PADDING))
    assert changed[OUTPUT] == sorted([*UNTRAINED, *range(261, 261 + PADDING)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_reset_and_do_not_spoil_the_mean(
    tmp_path: Path, workspace: Workspace, value: float
) -> None:
    folder = reworked(planted(tmp_path / "m"), {INPUT: ([70], torch.full((48,), value))})
    done = repair(str(folder), tmp_path / "out", workspace=workspace)

    assert {row["token_id"]: row["reason"] for row in done.rows}[70] == "not finite"
    assert tensors_of(tmp_path / "out")[INPUT].isfinite().all()
    json.loads((tmp_path / "out" / REPORT).read_text(), parse_constant=pytest.fail)


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


# --- where it is written ---------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_left_as_it_is(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted(tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    before = files_of(folder)
    for out, said in ((folder, "holds files"), (tmp_path / "file", "no folder"), (folder / "new", "lies in")):
        with pytest.raises(RunExists, match=said):
            repair(str(folder), out, workspace=workspace)
    with pytest.raises(NotWritable, match="file is no folder: name another place"):
        repair(str(folder), tmp_path / "file" / "out", workspace=workspace)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        with pytest.raises(NotWritable, match="may not be written to"):
            repair(str(folder), tmp_path / "new" / "out", workspace=workspace)
    assert files_of(folder) == before and (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()

    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert repair(str(folder), tmp_path / "link", workspace=workspace).folder == tmp_path / "empty"
    assert (tmp_path / "empty" / REPORT).is_file() and (tmp_path / "link").is_symlink()


def test_a_plan_says_what_would_be_written_and_writes_nothing(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m", tied=False, padding=PADDING)
    plan = repair(str(folder), tmp_path / "out", workspace=workspace, plan=True)
    there = {path.name for path in tmp_path.iterdir()}
    done = repair(str(folder), tmp_path / "out", workspace=workspace)

    assert "out" not in there and not any(name.startswith(".tmp-") for name in there)
    assert plan.folder is None and plan.report() == done.report()
    assert plan.num_bytes == sum(map(len, files_of(tmp_path / "out").values()))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_it_midway_leaves_nothing(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    folder = planted(tmp_path / "m")

    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr("replay.row_reset.overwrite", stopped)
    with pytest.raises(DiskFull if isinstance(stop, OSError) else KeyboardInterrupt):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    assert {path.name for path in tmp_path.iterdir()} - {"workspace"} == {"m"}


def test_a_model_that_does_not_fit_the_disk_is_refused_first(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted(tmp_path / "m")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))

    with pytest.raises(DiskFull, match="the repaired model needs .* -o DIR; nothing was written"):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_named_and_does_not_hinder(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / ".tmp-1-abcdef01-out").mkdir()
    done = repair(str(planted(tmp_path / "m")), tmp_path / "out", workspace=workspace)

    assert (tmp_path / "out" / REPORT).is_file() and ".tmp-1-abcdef01-out is left from a run" in done.messages[-1]


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


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_and_prints_the_rows(tmp_path: Path, workspace: Workspace) -> None:
    folder, out = str(planted(tmp_path / "m")), tmp_path / "out"
    planned = answer(workspace, "tokens", folder, "--repair", "--plan")
    assert not out.exists()
    done = forensics(workspace, "tokens", folder, "--repair", "-o", str(out), "--unused", "97-98")

    assert done.returncode == 0 and "97" in done.stdout and f"wrote {out}" in done.stderr
    assert [row["token_id"] for row in planned] == sorted(UNTRAINED)
    assert [row["token_id"] for row in json.loads((out / REPORT).read_text())["rows"]] == [97, 98]
    assert forensics(workspace, "tokens", folder, "--repair").returncode == 2
    assert forensics(workspace, "tokens", folder, "--repair", "-o", str(out)).returncode == 1


@pytest.mark.parametrize("source", ["copied", "written anew"])
def test_progress_ends_when_all_bytes_are_written(tmp_path: Path, tiny: Workspace, source: str) -> None:
    told: list[tuple[int, int]] = []
    name = "tiny" if source == "written anew" else str(planted(tmp_path / "m"))
    done = repair(name, tmp_path / "out", workspace=tiny, progress=lambda *now: told.append(now))

    assert len(told) > 1 and told == sorted(told)
    assert told[-1] == (done.num_bytes, done.num_bytes)
