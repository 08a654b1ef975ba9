"""`tokens` on the tiny run, whose tokens without exposures are known by counting, and on models planted by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from data_index.errors import CorruptFile, InvalidRange, MissingFile, UnknownRun
from data_index.workspace import Workspace
from forensics.token_answer import UndertrainedTokens
from forensics.token_comparison import compared
from forensics.token_counts import exposures
from forensics.token_report import suspicious, write_report
from forensics.undertrained_tokens import tokens
from forensics.unused_set import NONE_KNOWN
from probes.embedding_indicators import INPUT_NORM, OUTPUT_COSINE
from tests.data_index.test_gguf_file import gguf
from tests.data_index.test_token_categories import byte_level, sentencepiece

WIDTH = 48
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
UNTRAINED = [0xC0, 0xC1, *range(0xF5, 0x100), 256, 258]  # impossible bytes, `Ġt` and `zz`


def planted(
    folder: Path, *, dtype: torch.dtype = torch.float32, tied: bool = True, padding: int = 0, bytes_known: bool = True
) -> Path:
    """A model folder whose rows are trained but for some tokens and the padding: these point one way, and are short."""
    tokenizer = byte_level()
    letters = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    id_of_byte = {number: token for number, (_, token) in enumerate(letters[:256])}
    rows = tokenizer.get_vocab_size() + padding
    untrained = [id_of_byte.get(token, token) for token in UNTRAINED if bytes_known or token >= 256]
    untrained += range(rows - padding, rows)
    generator = torch.Generator().manual_seed(5)
    matrices = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight")[: 1 if tied else 2]:
        matrix = torch.randn(rows, WIDTH, generator=generator)
        common = torch.randn(WIDTH, generator=generator)
        matrix[untrained] = 0.3 * (common + 0.02 * torch.randn(len(untrained), WIDTH, generator=generator))
        matrices[name] = matrix.to(dtype)
    folder.mkdir(exist_ok=True)
    save_file(matrices, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def ids(found: UndertrainedTokens, column: str) -> set[int]:
    return {row["token_id"] for row in found.rows if row[column]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_planted_tokens_are_found_below_the_gap(
    tmp_path: Path, workspace: Workspace, dtype: torch.dtype, tied: bool
) -> None:
    found = tokens(str(planted(tmp_path / "m", dtype=dtype, tied=tied)), workspace=workspace)

    assert ids(found, "below_gap") == set(UNTRAINED)
    assert found.tied == tied and found.indicator == (OUTPUT_COSINE if tied else INPUT_NORM)
    assert ids(found, "in_unused_set") == set(UNTRAINED[:13])
    assert [row["token_id"] for row in found.candidates()] == [row["token_id"] for row in found.rows[:1]]
    assert found.rows[0]["text"] == " t" and found.counts()["below_gap"] == 1


def test_padding_rows_come_before_other_evidence(tmp_path: Path, workspace: Workspace) -> None:
    found = tokens(str(planted(tmp_path / "m", padding=7)), workspace=workspace)
    rows = found.shape[0]

    assert found.unused.token_ids.tolist() == list(range(rows - 7, rows)) and "padding" in found.unused.reason
    padding = [row for row in found.rows if row["category"] == "no_token"]
    assert len(padding) == 7 and all(row["text"] is None and row["rank"] is None for row in padding)
    assert {one.kind for one in found.unused.evidence} >= {"padding rows", "impossible bytes", "near-duplicate rows"}


def test_added_special_tokens_are_ranked_and_marked(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    row = next(row for row in tokens(str(folder), workspace=workspace).rows if row["text"] == "<|end|>")

    assert row["category"] == "special" and row["encoding"] == "OK_SPECIAL" and row["rank"] is not None


def test_ranks_count_tokens_that_encode_to_themselves_lowest_first(tmp_path: Path, workspace: Workspace) -> None:
    rows = tokens(str(planted(tmp_path / "m", padding=3)), workspace=workspace).rows
    ranked = [row for row in rows if row["rank"] is not None]

    assert [row["rank"] for row in rows] == [*range(1, len(ranked) + 1), *[None] * (len(rows) - len(ranked))]
    assert all(row["encoding"] in ("OK", "OK_SPECIAL") for row in ranked)
    assert {row["category"] for row in ranked} == {"single_byte", "special", "ok"}
    values = [row["indicator"] for row in ranked]
    assert values == sorted(values)
    assert all(row["max_probability"] is None and row["verified"] is None for row in rows)


def test_a_norm_that_says_nothing_is_recognised(tmp_path: Path, workspace: Workspace) -> None:
    """Untied, but rows of unused tokens are as long as others: the published default would rank at random."""
    from safetensors.torch import load_file

    folder = planted(tmp_path / "m", tied=False)
    tensors = load_file(folder / "model.safetensors")
    entry = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = entry / entry.norm(dim=1, keepdim=True)
    save_file(tensors, folder / "model.safetensors")
    found = tokens(str(folder), workspace=workspace)

    assert found.indicator == OUTPUT_COSINE and "no information" in found.reason
    assert found.trust[INPUT_NORM].informative is False


@pytest.mark.parametrize("leading_space", [True, False])
def test_a_vocabulary_like_sentencepieces_is_judged_alike(
    tmp_path: Path, workspace: Workspace, leading_space: bool
) -> None:
    """Its impossible bytes are spelled <0xF5>; with the space before texts, pieces are judged behind a prefix."""
    tokenizer = sentencepiece(leading_space=leading_space)
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(tokenizer.get_vocab_size(), WIDTH, generator=generator)
    unused = [1 + byte for byte in UNTRAINED[:13]]
    planted_too = tokenizer.token_to_id("te")
    common = torch.randn(WIDTH, generator=generator)
    matrix[[*unused, planted_too]] = 0.3 * (common + 0.02 * torch.randn(14, WIDTH, generator=generator))
    save_file({"model.embed_tokens.weight": matrix}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = tokens(str(tmp_path), workspace=workspace)

    assert found.analysis.leading_space == leading_space and not found.analysis.byte_level
    assert found.unused.token_ids.tolist() == sorted(unused) and ids(found, "below_gap") == {*unused, planted_too}
    assert [row["text"] for row in found.candidates()] == ["te"]


def test_where_no_row_is_known_it_is_said(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m", bytes_known=False)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    found = tokens(str(folder), workspace=workspace)

    assert vocabulary and not len(found.unused.token_ids) and set(found.values) == {INPUT_NORM}
    assert "no rows serve" in found.unused.reason or found.unused.reason == NONE_KNOWN
    assert "no indicator can be checked" in found.reason
    named = tokens(str(folder), unused=[256, 258], workspace=workspace)
    assert named.unused.token_ids.tolist() == [256, 258] and OUTPUT_COSINE in named.values


def test_matrices_saved_twice_count_as_tied(tmp_path: Path, workspace: Workspace) -> None:
    from safetensors.torch import load_file

    folder = planted(tmp_path / "m")
    entry = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    save_file({"model.embed_tokens.weight": entry, "lm_head.weight": entry.clone()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    found = tokens(str(folder), workspace=workspace)

    assert found.tied and any("saved twice" in message for message in found.messages)


def test_a_tokenizer_that_fills_texts_up_or_cuts_them_is_told_not_to(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    expected, tokenizer = tokens(str(folder), workspace=workspace).rows, byte_level()
    tokenizer.enable_padding(length=8, pad_id=260, pad_token="<|end|>")
    tokenizer.enable_truncation(1)
    tokenizer.save(str(folder / "tokenizer.json"))

    assert tokens(str(folder), workspace=workspace).rows == expected


def test_layers_of_eight_bits_do_not_matter(tmp_path: Path, workspace: Workspace) -> None:
    from safetensors.torch import load_file

    folder = planted(tmp_path / "m")
    expected, tensors = tokens(str(folder), workspace=workspace).rows, load_file(folder / "model.safetensors")
    eight = {f"model.layers.{n}.weight": torch.ones(4, 4).to(dtype) for n, dtype in enumerate(EIGHT_BITS)}
    save_file(tensors | eight, folder / "model.safetensors")

    assert tokens(str(folder), workspace=workspace).rows == expected


def test_a_row_that_is_not_finite_is_said_and_spoils_no_other(tmp_path: Path, workspace: Workspace) -> None:
    """Its numbers would be in every mean."""
    from safetensors.torch import load_file

    folder = planted(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][70] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    found = tokens(str(folder), workspace=workspace)

    assert ids(found, "below_gap") == set(UNTRAINED) and any("not finite" in message for message in found.messages)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_zeros_are_candidates_whatever_their_distance(tmp_path: Path, workspace: Workspace, tied: bool) -> None:
    """They have no direction; by the published formula they are as far from unused rows as can be."""
    from safetensors.torch import load_file

    folder = planted(tmp_path / "m", tied=tied)
    tensors = load_file(folder / "model.safetensors")
    for matrix in tensors.values():
        matrix[70] = 0
    save_file(tensors, folder / "model.safetensors")
    found = tokens(str(folder), indicator=OUTPUT_COSINE, workspace=workspace)
    row = next(row for row in found.rows if row["token_id"] == 70)

    assert row["indicator"] == 1 and not row["below_gap"] and row["evidence"] == ["rows of zeros"]
    assert [row["token_id"] for row in found.candidates()] == [256, 70]
    assert [row["token_id"] for row in suspicious(found)][-1] == 70


def test_a_gguf_file_is_enough(tmp_path: Path, workspace: Workspace) -> None:
    """Its tokenizer is in its metadata; the answer is that of the folder it was made from."""
    from safetensors.torch import load_file

    folder = planted(tmp_path / "m")
    entry = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    tokenizer = byte_level()
    pieces = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3 if piece == "<|end|>" else 1 for piece in pieces],
        "tokenizer.ggml.merges": ["Ġ t", "Ġt e", "ð Ł"],
    }
    content = gguf(metadata, {"token_embd.weight": (tuple(entry.shape), 0, entry.numpy().tobytes())})
    (tmp_path / "m.gguf").write_bytes(content)
    there, again = tokens(str(folder), workspace=workspace), tokens(str(tmp_path / "m.gguf"), workspace=workspace)

    assert there.rows == again.rows


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"unused": [100_000]}, InvalidRange, "rows 0"),
        ({"indicator": "luck"}, InvalidRange, "input_norm"),
        ({"tokenizer": Path("nowhere.json")}, MissingFile, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, workspace: Workspace, arguments: dict, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        tokens(str(planted(tmp_path / "m")), workspace=workspace, **arguments)


def test_what_is_nothing_says_what_it_could_be(workspace: Workspace) -> None:
    with pytest.raises(UnknownRun, match="no run or fork"):
        tokens("nothing", workspace=workspace)


def test_a_tokenizer_larger_than_the_matrix_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m")
    save_file({"model.embed_tokens.weight": torch.randn(100, 8)}, folder / "model.safetensors")

    with pytest.raises(CorruptFile, match="100 rows"):
        tokens(str(folder), workspace=workspace)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_rows_that_adam_never_updated_are_the_tokens_that_were_never_read(tiny: Workspace) -> None:
    """Exactly: in the tiny run, by counting every token of every step."""
    found = tokens("tiny", workspace=tiny)
    counted = exposures("tiny", workspace=tiny).table(step=20).to_pylist()
    seen = {row["token_id"] for row in counted if row["as_input"]}

    assert ids(found, "never_updated") == set(range(found.shape[0])) - seen != set()


def test_of_a_run_the_rows_of_each_checkpoint_are_kept(tiny: Workspace) -> None:
    from forensics.lookup import sql

    for step in (5, 20, 20):
        tokens("tiny", step, workspace=tiny)
    kept = sql(
        "select step, count(*) as n, count(rank) as ranked from tokens group by step order by step", workspace=tiny
    )
    rows = kept.to_pylist()

    assert [row["step"] for row in rows] == [5, 20] and rows[0]["n"] == rows[1]["n"] > rows[0]["ranked"]


def test_checkpoints_are_compared_token_by_token(tiny: Workspace) -> None:
    one = tokens("tiny@5", indicator=INPUT_NORM, workspace=tiny)
    other = tokens("tiny@20", indicator=INPUT_NORM, workspace=tiny)
    found = compared(one, other)
    ranks = {row["token_id"]: row["rank"] for row in other.rows}

    assert len(found.rows) == len(one.rows)
    assert all(
        row["rank_change"] == ranks[row["token_id"]] - row["rank"] for row in found.rows if row["rank"] is not None
    )
    was, now = {r["token_id"] for r in one.candidates()}, {r["token_id"] for r in other.candidates()}
    assert set(found.joined) == now - was and set(found.left) == was - now


def test_reports_show_text_as_text(tmp_path: Path, workspace: Workspace) -> None:
    """A token may be markup, or what a terminal obeys."""
    found = tokens(str(planted(tmp_path / "m")), workspace=workspace)
    rows = [{**row, "text": "<b>|`\x1b[2J"} if row["token_id"] == 256 else row for row in found.rows]
    found = replace(found, rows=tuple(rows))
    written = write_report(found, tmp_path / "report.md") + write_report(found, tmp_path / "report.html")
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()

    assert [path.name for path in written] == ["report.md", "report.png", "report.html"]
    assert r"\<b\>\|\`\\x1b\[2J" in markdown and "\x1b" not in markdown + page
    assert "&lt;b&gt;|`\\x1b[2J" in page


def test_all_rows_fit_a_file(tmp_path: Path, workspace: Workspace) -> None:
    from data_index.exports import write_table

    found = tokens(str(planted(tmp_path / "m", padding=2)), workspace=workspace)
    write_table(tmp_path / "t.parquet", found.table())
    back = pyarrow.parquet.read_table(tmp_path / "t.parquet")

    assert back.column_names == found.columns and back.num_rows == found.shape[0]
