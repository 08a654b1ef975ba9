"""A batch as the trainer saw it: padding, what leaves the loss, and what the loss is divided by."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.batch import Batch, IndexedPlan, StepPlan, denominator_of_rows, read_batch, read_batches
from data_index.errors import CorruptFile, MissingFile, StepOutOfRange
from data_index.files import sha256_of_blocks
from data_index.pieces import Pieces, read_pieces, write_pieces
from data_index.run import Masking, Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import read_run
from data_index.sources.llm360 import line_offsets
from data_index.text import find_text, find_token, token_bytes
from data_index.tokens import TokenReader

LENGTH, PAD = 12, 99
TOKENS = np.arange(100, 160)  # of the first file; the second holds 200..219


def a_file(folder: Path, name: str, tokens: np.ndarray, **fields: Any) -> TokenFile:
    tokens.astype("<u2").tofile(folder / name)
    place = {"first_instance": 0, "num_instances": 0} | fields
    return TokenFile(name=name, path=folder / name, dtype="uint16", num_bytes=2 * len(tokens), **place)


def a_run(folder: Path, files: tuple[TokenFile, ...], **fields: Any) -> Run:
    return Run(
        **{
            "name": "run",
            "layout": "olmo_core",
            "source": folder,
            "sequence_length": LENGTH,
            "files": files,
            "order": Order(rule="sequential"),
            "segments": (Segment(first_step=1, num_steps=1, epoch=1, first_position=0, instances_per_batch=1),),
            "trust": OrderTrust(level="derived", witness="the test"),
            "config_format": "olmo_core",
            "config": {},
            **fields,
        }
    )


def pieces_of(*instances: list[tuple[int, int, int]]) -> Pieces:
    file, start, stop = np.array([piece for pieces in instances for piece in pieces], dtype=np.int64).reshape(-1, 3).T
    first = np.cumsum([0, *map(len, instances)])
    return Pieces(first=first, file=file.astype(np.int32), start=start, stop=stop)


@pytest.fixture
def in_pieces(tmp_path: Path) -> Run:
    """Instances of 1, 3 and no pieces, the last of which is all padding; a full one; and one cut from a file."""
    pieces = pieces_of([(0, 5, 9)], [(0, 0, 3), (1, 10, 14), (0, 50, 52)], [], [(1, 0, 12)])
    files = (
        a_file(tmp_path, "a", TOKENS),
        a_file(tmp_path, "b", np.arange(200, 220)),
        a_file(tmp_path, "added", np.arange(300, 312), first_instance=4, num_instances=1),
    )
    return a_run(tmp_path, files, pieces=write_pieces(pieces, tmp_path / "pieces"), pad_token_id=PAD)


def plan_of(*instances: int, **fields: Any) -> StepPlan:
    return StepPlan(step=1, epoch=1, instances=np.array(instances), **fields)


def padded(*tokens: int) -> list[int]:
    return [*tokens, *[PAD] * (LENGTH - len(tokens))]


# --- rows in pieces --------------------------------------------------------------------------------------------------


def test_pieces_are_laid_end_to_end_and_padded(in_pieces: Run) -> None:
    batch = read_batch(plan_of(1, 0, 2, 4, 3), TokenReader(in_pieces, None))

    assert batch.token_ids.tolist() == [
        padded(100, 101, 102, 210, 211, 212, 213, 150, 151),
        padded(105, 106, 107, 108),
        padded(),
        list(range(300, 312)),
        list(range(200, 212)),
    ]
    assert batch.counts_as_target.sum(axis=1).tolist() == [9, 4, 0, 12, 12]
    assert all(row == sorted(row, reverse=True) for row in batch.counts_as_target.tolist())


def test_label_masks_hide_pieces_where_they_lie(in_pieces: Run, tmp_path: Path) -> None:
    mask = np.ones(60, dtype=bool)
    mask[[1, 2, 7, 51]] = False
    mask.tofile(tmp_path / "mask")
    first, *others = in_pieces.files
    run = replace(in_pieces, files=(replace(first, label_mask=tmp_path / "mask"), *others))

    batch = read_batch(plan_of(0, 1, 3, 4), TokenReader(run, None))

    hidden = [np.flatnonzero(~row).tolist() for row in batch.counts_as_target]
    assert hidden == [[2, *range(4, 12)], [1, 2, 8, *range(9, 12)], [], []]
    mask[:-1].tofile(tmp_path / "mask")
    with pytest.raises(CorruptFile, match="mask has 59 booleans; a has 60 tokens"):
        read_batch(plan_of(0), TokenReader(run, None))
    (tmp_path / "mask").unlink()
    with pytest.raises(MissingFile, match="mask, a label mask of run, is not there"):
        read_batch(plan_of(0), TokenReader(run, None))


def test_padding_is_not_found_as_a_token(in_pieces: Run, tmp_path: Path) -> None:
    """99 pads; here it is also a token of the second file."""
    tokens = np.arange(200, 220)
    tokens[11] = PAD
    tokens.astype("<u2").tofile(tmp_path / "b")
    reader = TokenReader(in_pieces, None)

    assert list(find_token(in_pieces, reader, PAD)) == [1, 3]
    assert list(find_token(in_pieces, reader, 106)) == [0]
    assert list(find_token(in_pieces, reader, 305)) == [4]
    assert list(find_token(in_pieces, reader, 130)) == []  # a token that no instance took


def test_text_is_found_across_the_borders_of_instances_in_pieces(tiny_source: Path, tmp_path: Path) -> None:
    """The first tokens of a real run, against brute force over their bytes."""
    tiny = read_run(tiny_source)
    tokens = np.fromfile(tiny.files[0].path, dtype="<u2")[:300]
    instances = [[(0, 0, 100)], [(0, 100, 150), (0, 200, 250)], [(0, 150, 200)], [(0, 40, 60)]]
    stored = write_pieces(pieces_of(*instances), tmp_path / "pieces")
    file = a_file(tmp_path, "a", tokens)
    run = a_run(tmp_path, (file,), pieces=stored, sequence_length=100, tokenizer=tiny.tokenizer)
    spelled = [token_bytes(run)[token] for token in tokens]
    owner = np.repeat(np.arange(300), [len(piece) for piece in spelled])
    content = b"".join(spelled)

    for first, stop in ((97, 104), (145, 152), (3, 9), (52, 53), (199, 203), (260, 266)):
        text = b"".join(spelled[first:stop])
        hits = [n for n in range(len(content)) if content.startswith(text, n)]
        touched = {int(token) for n in hits for token in owner[n : n + len(text)]}
        known = [n for n, some in enumerate(instances) if any(touched & set(range(a, b)) for _, a, b in some)]
        assert list(find_text(run, TokenReader(run, None), text.decode())) == known


def test_the_arrays_of_pieces_are_those_that_were_written(in_pieces: Run) -> None:
    stored = in_pieces.pieces
    assert stored is not None
    np.save(stored.path / "stop.npy", np.array([9, 3, 14, 53, 12]))

    with pytest.raises(CorruptFile, match="does not hold the pieces that run.toml names .sha256"):
        read_pieces(stored)
    assert read_pieces(stored, verify=False).stop.tolist() == [9, 3, 14, 53, 12]
    with pytest.raises(CorruptFile, match="holds 4 instances, not 5"):
        read_pieces(replace(stored, num_instances=5), verify=False)
    (stored.path / "file.npy").unlink()
    with pytest.raises(MissingFile, match="file.npy is not there"):
        read_pieces(stored, verify=False)


def test_blocks_of_pieces_are_checked(in_pieces: Run, tmp_path: Path) -> None:
    hashes = {(file.name, 0): sha256_of_blocks(file.path)[0] for file in in_pieces.files}
    np.arange(201, 221).astype("<u2").tofile(tmp_path / "b")
    reader = TokenReader(in_pieces, hashes)

    assert reader.rows([0, 4]).shape == (2, LENGTH)
    with pytest.raises(CorruptFile, match="b changed: block 0"):
        reader.rows([1])


# --- what the trainer hides ------------------------------------------------------------------------------------------

REPEATS = Masking(repetition=(3, 1, 5))  # five times the same piece of up to three tokens


@pytest.mark.parametrize(("sees_padding", "filtered"), [(False, [False, True, False]), (True, [True, True, False])])
def test_the_filter_may_or_may_not_see_padding(sees_padding: bool, filtered: list[bool], tmp_path: Path) -> None:
    """A row of 7 tokens and 5 of padding, one with five equal tokens, one of 10 different ones."""
    tokens = np.concatenate([np.arange(7), [7, 7, 7, 7, 7, 8, 9], np.arange(20, 30)])
    stored = write_pieces(pieces_of([(0, 0, 7)], [(0, 7, 14)], [(0, 14, 24)]), tmp_path / "pieces")
    masking = replace(REPEATS, filter_sees_padding=sees_padding)
    run = a_run(tmp_path, (a_file(tmp_path, "a", tokens),), pieces=stored, pad_token_id=PAD, masking=masking)

    batch = read_batch(plan_of(0, 1, 2), TokenReader(run, None))

    assert batch.filtered.tolist() == filtered
    assert batch.counts_as_target.sum(axis=1).tolist() == [
        0 if f else n for f, n in zip(filtered, (7, 7, 10), strict=True)
    ]


def test_a_hidden_token_is_no_target_wherever_it_stands(tmp_path: Path) -> None:
    tokens = np.array([5, 6, 5, 7, 8, 9, 5, 5, 1, 2, 3, 4])
    run = a_run(
        tmp_path,
        (a_file(tmp_path, "a", tokens, num_instances=1),),
        masking=Masking(hidden_token_id=5),
    )

    batch = read_batch(plan_of(0), TokenReader(run, None))

    assert np.flatnonzero(~batch.counts_as_target[0]).tolist() == [0, 2, 6, 7]
    assert run.hides_tokens and not replace(run, masking=Masking()).hides_tokens


# --- denominators ----------------------------------------------------------------------------------------------------


def a_batch(tmp_path: Path, masks: tuple[tuple[int, int, int], ...] = ()) -> Batch:
    """A plain row, a filtered one, one of 7 tokens, and a plain one again."""
    tokens = np.concatenate([np.arange(12), np.full(12, 7), np.arange(7), np.arange(50, 62)])
    stored = write_pieces(pieces_of([(0, 0, 12)], [(0, 12, 24)], [(0, 24, 31)], [(0, 31, 43)]), tmp_path / "pieces")
    run = a_run(tmp_path, (a_file(tmp_path, "a", tokens),), pieces=stored, pad_token_id=PAD, masking=REPEATS)
    return read_batch(plan_of(0, 1, 2, 3, masks=masks), TokenReader(run, None))


@pytest.mark.parametrize(
    ("rule", "rows"),
    [("targets", [11, 0, 6, 11]), ("targets_and_filtered", [11, 12, 6, 11]), ("tokens", [12, 12, 12, 12])],
)
def test_each_rule_counts_what_its_trainer_divides_by(rule: Any, rows: list[int], tmp_path: Path) -> None:
    """The first token of a row is no target, but legacy OLMo counts it."""
    assert denominator_of_rows(a_batch(tmp_path), rule).tolist() == rows


@pytest.mark.parametrize(
    ("rule", "rows"),
    [("targets", [8, 0, 4, 0]), ("targets_and_filtered", [8, 12, 4, 0]), ("tokens", [9, 12, 10, 1])],
)
def test_what_an_edit_hides_weighs_nothing_under_any_rule(rule: Any, rows: list[int], tmp_path: Path) -> None:
    """Three tokens of row 0, some of a filtered row, two tokens and padding of row 2, all of row 3."""
    batch = a_batch(tmp_path, ((0, 2, 5), (1, 3, 6), (2, 5, 9), (3, 0, 12)))

    assert denominator_of_rows(batch, rule).tolist() == rows
    assert batch.counted_by_trainer.sum(axis=1).tolist() == [12, 0, 7, 12]


def test_what_an_edit_hides_from_the_first_token_changes_no_denominator(tmp_path: Path) -> None:
    for rule in ("targets", "targets_and_filtered", "tokens"):
        edited = denominator_of_rows(a_batch(tmp_path, ((0, 0, 1),)), rule)  # type: ignore[arg-type]
        assert edited.tolist() == denominator_of_rows(a_batch(tmp_path), rule).tolist()  # type: ignore[arg-type]


def test_a_plan_hands_on_what_it_says(tmp_path: Path, in_pieces: Run) -> None:
    plan = IndexedPlan(by_step={1: plan_of(0, loss_denominator=77, outcome="skipped")})

    (batch,) = read_batches(plan, TokenReader(in_pieces, None))

    assert (batch.loss_denominator, batch.outcome, batch.num_tokens) == (77, "skipped", 12)
    with pytest.raises(StepOutOfRange, match="the plan covers steps 1..1, not 2"):
        plan[2]


# --- lines of JSON ---------------------------------------------------------------------------------------------------


def in_lines(folder: Path, lines: list[str]) -> Run:
    """A run of one file of lines; all rows have four tokens."""
    path = folder / "train_0.jsonl"
    path.write_text("\n".join(lines))
    np.save(folder / "lines.npy", line_offsets(path))
    file = TokenFile(
        name=path.name,
        path=path,
        dtype="jsonl",
        num_bytes=path.stat().st_size,
        first_instance=0,
        num_instances=len(lines),
        lines=folder / "lines.npy",
    )
    return a_run(folder, (file,), sequence_length=4)


def a_line(*ids: Any) -> str:
    return json.dumps({"token_ids": list(ids), "source": "c4"})


def test_each_line_is_a_row(tmp_path: Path) -> None:
    """Lines of any length, the last without a line feed."""
    run = in_lines(tmp_path, [a_line(1, 2, 3, 4), a_line(5, 60000, 7, 2**31 - 1), a_line(0, 0, 0, 7)])
    reader = TokenReader(run, {})

    assert reader.rows([2, 0, 1]).tolist() == [[0, 0, 0, 7], [1, 2, 3, 4], [5, 60000, 7, 2**31 - 1]]
    assert reader.read(run.files[0], 5, 7).tolist() == [60000, 7]
    assert list(find_token(run, reader, 7)) == [1, 2]
    assert set(reader.first_seen) == {("train_0.jsonl", 0), ("train_0.jsonl lines", 0)}


DAMAGED = {
    "no JSON": ('{"token_ids": [1, 2', "line 2 is no object with token_ids"),
    "no object": ("[1, 2, 3, 4]", "line 2 is no object with token_ids"),
    "no ids": ('{"tokens": [1]}', "line 2 is no object with token_ids"),
    "too few": (a_line(1, 2, 3), "line 2 has 3 token ids; the run's rows have 4"),
    "too many": (a_line(1, 2, 3, 4, 5), "line 2 has 5 token ids"),
    "none": (a_line(), "line 2 has 0 token ids"),
    "nested": (a_line([1, 2, 3, 4]), "line 2 has 4 token ids"),
    "ragged": (a_line([1, 2], 3, 4, 5), "line 2 is no object with token_ids"),
    "fractions": (a_line(1, 2.5, 3, 4), "line 2 holds what is no token id, such as 2.5"),
    "no list": ('{"token_ids": true}', "line 2 holds what is no token id, such as True"),
    "one number": ('{"token_ids": 7}', "line 2 has 1 token ids"),
    "text": (a_line("1", "2", "3", "4"), "line 2 holds what is no token id, such as 1"),
    "null": (a_line(1, None, 3, 4), "line 2 holds what is no token id, such as None"),
    "negative": (a_line(1, -2, 3, 4), "line 2 holds what is no token id, such as -2"),
    "beyond 32 bits": (a_line(1, 2, 2**31, 4), "line 2 holds what is no token id, such as 2147483648"),
    "beyond 64 bits": (a_line(1, 2, 2**70, 4), "line 2 holds what is no token id, such as 1180591620717411303424"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_line_names_itself(what: str, tmp_path: Path) -> None:
    line, said = DAMAGED[what]
    reader = TokenReader(in_lines(tmp_path, [a_line(1, 2, 3, 4), line, a_line(9, 9, 9, 9)]), None)

    assert reader.rows([0, 2]).tolist() == [[1, 2, 3, 4], [9, 9, 9, 9]]
    with pytest.raises(CorruptFile, match=said):
        reader.rows([1])


def test_line_offsets_that_are_not_the_files_are_corrupt(tmp_path: Path) -> None:
    run = in_lines(tmp_path, [a_line(1, 2, 3, 4), a_line(5, 6, 7, 8)])
    np.save(tmp_path / "lines.npy", np.array([0, 10], dtype=np.int64))

    with pytest.raises(CorruptFile, match="does not hold the offsets of 2 lines"):
        TokenReader(run, None).rows([0])
    (tmp_path / "lines.npy").unlink()
    with pytest.raises(MissingFile, match="lines.npy is not there: register run again"):
        TokenReader(run, None).rows([0])
    without = replace(run, files=(replace(run.files[0], lines=None),))
    with pytest.raises(CorruptFile, match="names no line offsets for train_0.jsonl"):
        TokenReader(without, None).rows([0])


@pytest.mark.parametrize("content", ["a\n\nb\n", "\na", "a\n\n"])
def test_an_empty_line_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content)

    with pytest.raises(CorruptFile, match=r"x.jsonl has an empty line .line \d"):
        line_offsets(tmp_path / "x.jsonl")
