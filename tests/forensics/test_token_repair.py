"""`tokens --repair`: which rows are reset, that nothing else changes, and that fine-tuning on them is finite after."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_index.errors import (
    InvalidEdit,
    InvalidRange,
)
from data_index.workspace import Workspace
from forensics.token_repair import REPORT, repair
from probes.embedding_indicators import INPUT_NORM
from tests.data_index.test_token_categories import byte_level
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
