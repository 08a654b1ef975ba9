"""The data that probes look at, held against loops over raw files, and probes of them against a model asked by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F

from data_index.errors import CorruptFile, InvalidRange, MissingFile, UnsafeFile
from data_index.registration import add
from data_index.store import connect
from data_index.workspace import Workspace
from forensics import probe_data
from forensics.forking import fork
from forensics.probe_data import OwnCounts, ProbeData
from forensics.probe_options import ProbeOptions
from forensics.probe_rows import ProbeRows
from forensics.probing import probe
from forensics.row_files import prompts_of
from forensics.row_sources import probe_rows, sampled_instances
from replay.models import build_model
from replay.recipe import recipe_of_run
from replay.weights import read_weights
from tests.data_index.conftest import RawRun
from tests.data_index.test_every_order import Maker, amber_without_a_chunk
from tests.data_index.test_exposures import HIDDEN, LENGTH, PAD, SEGMENTS, Case
from tests.forensics.test_cli import forensics
from tests.forensics.test_probing import ONE_THREAD, stopped_after, values

ALL_ROWS = ProbeOptions(num_tokens=10**9)
LAST_STEP = 15
# Steps of the made-up runs that were consumed and changed nothing.
FOR_NOTHING = (5, 6, 11)


def repeats(tokens: Sequence[int], longest: int, shortest: int, times: int) -> bool:
    """Does some piece of `shortest` to `longest` tokens stand `times` times in a row?"""
    return any(
        list(tokens[at : at + period]) * times == list(tokens[at : at + period * times])
        for period in range(shortest, longest + 1)
        for at in range(len(tokens) - period * times + 1)
    )


@dataclass(frozen=True)
class ByHand:
    """A made-up run (tests/data_index/test_exposures.py) by its raw files."""

    case: Case
    folder: Path

    @property
    def length(self) -> int:
        return LENGTH - self.case.extra_label

    @cached_property
    def rows(self) -> list[Any]:
        found: list[Any] = json.loads((self.folder / "rows.json").read_text())
        return found

    def batch(self, step: int) -> list[int]:
        """Instances that the kept attempt of a step trained on."""
        if step in FOR_NOTHING or not 1 <= step <= LAST_STEP:
            return []
        segment = [one for one in SEGMENTS if one.first_step <= step <= one.last_step][-1]
        order = np.load(self.folder / "order" / f"epoch-{segment.epoch}.npy")
        start = segment.first_position + (step - segment.first_step) * segment.instances_per_batch
        return [int(instance) for instance in order[start : start + segment.instances_per_batch]]

    def first_step(self, instance: int) -> int:
        return min(step for step in range(1, LAST_STEP + 1) if instance in self.batch(step))

    def token_ids(self, instance: int) -> list[int]:
        tokens = self.rows[instance][0]
        return [*tokens, *[PAD] * (LENGTH - len(tokens))][: self.length]

    def scored(self, instance: int) -> list[bool]:
        tokens, masked = self.rows[instance]
        if self.case.filter and repeats(tokens, 3, 1, 3):
            return [False] * self.length
        counts = [
            not hidden and not (self.case.hides and token == HIDDEN)
            for token, hidden in zip(tokens, masked, strict=True)
        ]
        return [*counts, *[False] * (LENGTH - len(tokens))][: self.length]

    def check(self, instances: Sequence[int], token_ids: np.ndarray, scored: np.ndarray | None) -> None:
        assert token_ids.tolist() == [self.token_ids(instance) for instance in instances]
        wanted = [self.scored(instance) for instance in instances]
        assert (np.ones_like(token_ids, dtype=bool) if scored is None else scored).tolist() == wanted


CASES = [
    Case(False, False, False, False, "uint16"),
    Case(True, False, False, False, "int32"),  # a label that the model does not read stands after each row
    Case(False, True, True, False, "uint16"),
    Case(True, True, True, True, "uint16"),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeData, ByHand]:
    """Restarts, skipped steps, two epochs; with and without an extra label, masks, a filter, padded rows of pieces."""
    home = tmp_path_factory.mktemp("made")
    folder, workspace = request.param.write(home / "run"), Workspace(home / "workspace")
    run = add(folder, name="run", workspace=workspace)
    return ProbeData(workspace, run, ALL_ROWS), ByHand(request.param, folder)


def data_of(workspace: Workspace, run: str = "tiny", **options: Any) -> ProbeData:
    return ProbeData(workspace, workspace.run(run), ProbeOptions(**options))


# --- rows of the run -------------------------------------------------------------------------------------------------


def test_rows_of_the_run_are_all_that_it_trained_on(made: tuple[ProbeData, ByHand]) -> None:
    """Each once, nothing of an attempt that was given up, and what the trainer hid is context alone."""
    data, by_hand = made
    trained_on = sorted({instance for step in range(1, LAST_STEP + 1) for instance in by_hand.batch(step)})
    rows, for_model = data.rows("run")

    by_hand.check(trained_on, rows.token_ids, rows.scored)
    assert for_model.token_ids is rows.token_ids and for_model.scored is rows.scored


def test_a_sample_of_the_runs_rows_is_seeded(made: tuple[ProbeData, ByHand]) -> None:
    data, by_hand = made
    trained_on = {instance for step in range(1, LAST_STEP + 1) for instance in by_hand.batch(step)}
    drawn = [sampled_instances(data.workspace, data.run, 15, seed).tolist() for seed in (0, 0, 1)]

    assert drawn[0] == drawn[1] != drawn[2]
    for instances in drawn:
        assert 10 < len(set(instances)) == len(instances) <= 15 and set(instances) <= trained_on
    options = ProbeOptions(num_tokens=15 * by_hand.length + 3, seed=1)
    found = probe_rows(data.workspace, data.run, "run", options)
    by_hand.check(drawn[2], found.token_ids, found.scored)
    short = probe_rows(data.workspace, data.run, "run", ProbeOptions(num_tokens=15 * by_hand.length, seed=1, length=5))
    assert np.array_equal(short.token_ids, found.token_ids[:, :5])


def test_each_reading_is_as_likely(tiny_shared: Workspace) -> None:
    """Rows of epoch 1's duplicates were read twice, so that they are drawn nearly twice as often."""
    run = tiny_shared.run("tiny")
    read = Counter(r.instance for r in RawRun(run.source).readings)
    drawn = Counter(i for seed in range(80) for i in sampled_instances(tiny_shared, run, 20, seed).tolist())
    twice = [drawn[instance] for instance, times in read.items() if times == 2]
    once = [drawn[instance] for instance, times in read.items() if times == 1]

    assert 1.6 < np.mean(twice) / np.mean(once) < 2.1


# --- counts ----------------------------------------------------------------------------------------------------------


def counts_by_hand(rows: Sequence[Sequence[int]]) -> tuple[Counter[int], Counter[tuple[int, int]]]:
    tokens = Counter(token for row in rows for token in row)
    return tokens, Counter((row[at], row[at + 1]) for row in rows for at in range(len(row) - 1))


def check_counts(found: OwnCounts, rows: Sequence[Sequence[int]]) -> None:
    tokens, pairs = counts_by_hand(rows)
    assert {int(i): int(found.unigrams[i]) for i in np.flatnonzero(found.unigrams)} == tokens
    bigrams = found.bigrams
    seen = {}
    for first in range(len(bigrams.starts) - 1):
        for at in range(bigrams.starts[first], bigrams.starts[first + 1]):
            seen[first, int(bigrams.next_ids[at])] = int(bigrams.counts[at])
    assert seen == pairs
    assert found.num_tokens == tokens.total()


def test_own_counts_are_those_over_all_batches(made: tuple[ProbeData, ByHand]) -> None:
    """As often as each row was read; padding is no token, and no pair goes from row to row."""
    data, by_hand = made
    read = [instance for step in range(1, LAST_STEP + 1) for instance in by_hand.batch(step)]

    assert len(read) > len(set(read)) and data.own_counts.complete
    check_counts(data.own_counts, [by_hand.rows[instance][0][: by_hand.length] for instance in read])


def test_counts_of_a_sample_say_so(made: tuple[ProbeData, ByHand], monkeypatch: pytest.MonkeyPatch) -> None:
    data, by_hand = made
    monkeypatch.setattr(probe_data, "COUNTED_TOKENS", 20 * by_hand.length + 1)
    found = ProbeData(data.workspace, data.run, ALL_ROWS).own_counts

    assert not found.complete and found.num_tokens <= 20 * by_hand.length
    assert (found.unigrams <= data.own_counts.unigrams).all()


# --- rows whose reading is known -------------------------------------------------------------------------------------


def test_cohorts_have_the_first_step_that_trained_on_each_row(made: tuple[ProbeData, ByHand]) -> None:
    data, by_hand = made
    read = sorted({instance for step in range(1, LAST_STEP + 1) for instance in by_hand.batch(step)})
    ordered = sorted(read, key=by_hand.first_step)

    assert data.cohorts.first_steps.tolist() == [by_hand.first_step(instance) for instance in ordered]
    by_hand.check(ordered, data.cohorts.token_ids, data.cohorts.scored)


def test_rows_around_a_checkpoint_are_of_the_steps_at_its_sides(made: tuple[ProbeData, ByHand]) -> None:
    """Checkpoints 0 and 15, between and beyond; a step that was consumed for nothing is no side."""
    data, by_hand = made
    for step in range(-1, LAST_STEP + 3):
        before, after = sorted(by_hand.batch(step)), sorted(by_hand.batch(step + 1))
        found = data.around(step)
        if not before and not after:
            assert found is None, step
            continue
        assert found is not None
        rows, is_read = found
        assert is_read.tolist() == [True] * len(before) + [False] * len(after), step
        of_side = [sorted(rows.token_ids[is_read == side].tolist()) for side in (True, False)]
        assert of_side == [sorted(map(by_hand.token_ids, side)) for side in (before, after)]
        instances = [*by_hand.batch(step), *by_hand.batch(step + 1)]
        by_hand.check(instances, rows.token_ids, rows.scored)


def test_steps_whose_data_are_not_there_are_no_sides(tmp_path: Path, workspace: Workspace) -> None:
    """A chunk of an LLM360 run that was not downloaded: steps 6 to 8, and what is counted is not all that was read."""
    write: Any = None  # of runs of other layouts
    run = amber_without_a_chunk(Maker(tmp_path, workspace, write, write)).run
    data = ProbeData(workspace, run, ALL_ROWS)
    sides = {step: None if (found := data.around(step)) is None else found[1].tolist() for step in range(4, 10)}
    both, read, unread = [True] * 10 + [False] * 10, [True] * 10, [False] * 10

    assert sides == {4: both, 5: read, 6: None, 7: None, 8: unread, 9: both}
    assert not {6, 7, 8} & set(data.cohorts.first_steps.tolist()) and len(data.cohorts.first_steps) > 50
    assert not data.own_counts.complete


def test_large_batches_are_sampled(made: tuple[ProbeData, ByHand], monkeypatch: pytest.MonkeyPatch) -> None:
    data, by_hand = made
    monkeypatch.setattr(probe_data, "BATCH_ROWS", 2)
    seen = set()
    for seed in range(10):
        found = ProbeData(data.workspace, data.run, ProbeOptions(seed=seed)).around(3)
        assert found is not None and found[1].tolist() == [True, True, False, False]
        rows = [tuple(row) for row in found[0].token_ids.tolist()]
        for side, step in ((rows[:2], 3), (rows[2:], 4)):
            assert set(side) <= {tuple(by_hand.token_ids(instance)) for instance in by_hand.batch(step)}
        seen.add(tuple(rows))
    assert len(seen) > 5


def test_a_forks_rows_may_have_been_read_before_it_began(tiny: Workspace) -> None:
    """In the second epoch nearly all were. What its parent read after that does not count: steps 12 and 14 change."""
    child = fork("tiny", from_step=10, num_steps=8, edits=["swap @12 with=14"], workspace=tiny)
    raw = RawRun(tiny.run("tiny").source)
    swapped = {12: 14, 14: 12}
    read = [(swapped.get(reading.step, reading.step), reading.instance) for reading in raw.readings]
    first: dict[int, int] = {}
    for step, instance in sorted(read):
        first.setdefault(instance, step)
    data = data_of(tiny, child.id)
    of_fork = {instance for step, instance in read if 10 < step <= 18}

    assert data.cohorts.first_steps.tolist() == sorted(first[instance] for instance in of_fork)
    for step in (12, 14):
        rows = data.cohorts.token_ids[data.cohorts.first_steps == step]
        expected = [raw.token_ids[i].tolist() for i in of_fork if first[i] == step]
        assert sorted(rows.tolist()) == sorted(expected) and len(expected)
    assert (data.cohorts.first_steps <= 10).any() and (data.cohorts.first_steps > 10).any()


@pytest.mark.parametrize("name", ["core", "skip", "olmo"])
def test_rows_of_real_runs_are_those_of_the_trainers_record(core_shared: Workspace, name: str) -> None:
    """Instances as the trainer logged them, tokens as the files hold them; repetitive rows are not scored."""
    data = data_of(core_shared, name)
    run = data.run
    files = [np.fromfile(file.on_disk, file.dtype)[: file.num_instances * 128] for file in run.files]
    rows = np.concatenate(files).astype(np.int64).reshape(-1, 128)
    consumed = connect(core_shared).execute(
        "SELECT step, instances FROM consumed WHERE run = ? QUALIFY row_number() OVER (PARTITION BY step ORDER BY "
        "attempt DESC) = 1 ORDER BY step",
        [name],
    )
    logged = dict(consumed.fetchall())
    first: dict[int, int] = {}
    for step, instances in sorted(logged.items()):
        for instance in instances:
            first.setdefault(instance, step)
    instances = sampled_instances(core_shared, run, probe_data.COHORT_ROWS, 0)
    steps = [first.get(int(instance), run.last_step) for instance in instances]
    order = np.argsort(steps, kind="stable")
    known = np.array(steps)[order] <= max(logged)

    assert len(logged) >= 20 and known.sum() > 50
    assert np.array_equal(data.cohorts.first_steps[known], np.array(steps)[order][known])
    assert np.array_equal(data.cohorts.token_ids[known], rows[instances[order]][known])
    filtered = run.masking.repetition
    hidden = [filtered is not None and repeats(rows[i].tolist(), *filtered) for i in instances[order]]
    scored = np.ones((len(rows[instances]), 128), bool) if data.cohorts.scored is None else data.cohorts.scored
    assert scored[known].tolist() == [[not one] * 128 for one, k in zip(hidden, known, strict=True) if k]
    around = data.around(5)
    assert around is not None
    expected = [sorted(rows[logged[step]].tolist())[:32] for step in (5, 6)]
    assert [sorted(around[0].token_ids[around[1] == side].tolist()) for side in (True, False)] == expected


# --- documents and tags ----------------------------------------------------------------------------------------------


def documents_by_hand(run: Any, file: str) -> list[dict[str, Any]]:
    documents = pyarrow.parquet.read_table(run.source / "documents.parquet").to_pylist()
    return [document for document in documents if document["file"] == file]


def masks_by_hand(
    documents: Sequence[dict[str, Any]], places: Sequence[tuple[str, int]], length: int
) -> dict[str, np.ndarray]:
    """Token by token: the tags of the document in which it lies. `places`: file and first token of each row."""
    found: dict[str, np.ndarray] = {}
    for row, (file, start) in enumerate(places):
        for at in range(length):
            for document in documents:
                if document["file"] == file and document["start"] <= start + at < document["end"]:
                    for tag in document["tags"]:
                        found.setdefault(tag, np.zeros((len(places), length), bool))[row, at] = True
    return found


def check_masks(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == sorted(expected) and expected
    for tag, mask in expected.items():
        assert np.array_equal(found[tag], mask), tag


@pytest.mark.parametrize("length", [64, 24])
def test_heldout_rows_are_the_files_tokens_with_their_documents(tiny_shared: Workspace, length: int) -> None:
    run = tiny_shared.run("tiny")
    file = run.heldout[0]
    tokens = np.fromfile(file.path, file.dtype).astype(np.int64)
    num_rows = len(tokens) // 64
    rows, _ = data_of(tiny_shared, length=length).rows(None)

    assert rows.source == "heldout" and np.array_equal(rows.token_ids, tokens.reshape(-1, 64)[:, :length])
    documents = documents_by_hand(run, file.name)
    places = [(file.name, 64 * row) for row in range(num_rows)]
    check_masks(rows.masks_by_tag(), masks_by_hand(documents, places, length))
    for row, (_, start) in enumerate(places):
        inside = {d["document_id"] for d in documents if d["start"] < start + length and d["end"] > start}
        alone = [other for other in range(num_rows) if rows.clusters[other] == rows.clusters[row]]
        assert rows.clusters[row] == (inside.pop() if len(inside) == 1 else -1 - row)
        assert rows.clusters[row] >= 0 or alone == [row]
    few, _ = data_of(tiny_shared, num_tokens=64 * 3 + 63).rows("heldout")
    assert np.array_equal(few.token_ids, tokens[: 64 * 3].reshape(3, 64))
    assert few.sha256 != rows.sha256


def test_tags_of_the_runs_rows_are_those_of_their_documents(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")
    raw = RawRun(run.source)
    rows, _ = data_of(tiny_shared, num_tokens=30 * 64).rows("run")
    instances = sampled_instances(tiny_shared, run, 30, 0).tolist()

    assert np.array_equal(rows.token_ids, raw.token_ids[instances])
    places = [raw.place(instance) for instance in instances]
    check_masks(rows.masks_by_tag(), masks_by_hand(raw.documents, places, 64))


def test_rows_without_tags_have_no_loss_by_tag(core_shared: Workspace) -> None:
    rows, _ = data_of(core_shared, "core").rows("run")
    if not rows.tags:
        with pytest.raises(MissingFile, match="forensics tag RUN"):
            rows.masks_by_tag()
    else:
        assert rows.masks_by_tag()
    with pytest.raises(MissingFile, match="core has no held-out tokens"):
        data_of(core_shared, "core").rows("heldout")


# --- files -----------------------------------------------------------------------------------------------------------


def rows_of(workspace: Workspace, path: Path, **options: Any) -> ProbeRows:
    return data_of(workspace, **options).rows(str(path))[0]


def ids_of(workspace: Workspace, text: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = (
        Tokenizer.from_file(str(workspace.run("tiny").tokenizer)).encode(text, add_special_tokens=False).ids
    )
    return ids


def test_texts_do_not_run_into_one_another(tiny_shared: Workspace, tmp_path: Path) -> None:
    texts = ["def f(x):\n    return x\n", "", "import os\n" * 40, "é\u20ac\U0001f600"]
    said: list[dict[str, Any]] = [
        {"text": texts[0], "tag": "code"},
        {"text": texts[1], "tags": ["nothing"]},
        {"text": texts[2], "tags": ["code", "long"], "domain": "not looked at"},
        {"text": texts[3], "source": "signs"},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, said)) + "\n")
    rows = rows_of(tiny_shared, path, length=16)

    expected, scored = [], []
    tags: dict[str, list[tuple[int, int]]] = {"code": [], "long": [], "signs": []}
    for text, named in zip(texts, (["code"], [], ["code", "long"], ["signs"]), strict=True):
        ids = ids_of(tiny_shared, text)
        for start in range(0, len(ids), 16):
            part = ids[start : start + 16]
            for tag in named:
                tags[tag] += [(len(expected), at) for at in range(len(part))]
            expected.append([*part, *[tiny_shared.run("tiny").pad_token_id or 0] * (16 - len(part))])
            scored.append([at < len(part) for at in range(16)])
    assert rows.scored is not None
    assert (rows.token_ids.tolist(), rows.scored.tolist()) == (expected, scored)
    masks = rows.masks_by_tag()
    assert {tag: [tuple(place) for place in np.argwhere(mask).tolist()] for tag, mask in masks.items()} == tags
    assert len(set(rows.clusters.tolist())) == 3  # the rows of a text are not independent
    few = rows_of(tiny_shared, path, length=16, num_tokens=50)
    assert np.array_equal(few.token_ids, rows.token_ids[:3])


def test_a_long_text_is_cut_where_enough_was_seen(tiny_shared: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("x = [1, 2, 3]\n" * 500)
    ids = ids_of(tiny_shared, path.read_text())
    rows = rows_of(tiny_shared, path, num_tokens=640)

    assert len(ids) > 2 * 640 and rows.scored is None
    assert rows.token_ids.reshape(-1).tolist() == ids[:640]
    assert list(rows.masks_by_tag()) == ["book"] and len(set(rows.clusters.tolist())) == 1


def test_token_ids_are_taken_as_rows_or_as_a_stream(tiny_shared: Workspace, tmp_path: Path) -> None:
    stream = np.random.default_rng(0).integers(0, 384, 200).astype(np.uint16)
    np.save(tmp_path / "stream.npy", stream)
    np.save(tmp_path / "rows.npy", stream.reshape(4, 50))
    np.save(tmp_path / "columns.npy", np.asfortranarray(stream.reshape(2, 100).astype(np.int64)))

    assert rows_of(tiny_shared, tmp_path / "stream.npy").token_ids.tolist() == stream[:192].reshape(3, 64).tolist()
    assert rows_of(tiny_shared, tmp_path / "rows.npy").token_ids.tolist() == stream.reshape(4, 50).tolist()
    cut = rows_of(tiny_shared, tmp_path / "columns.npy", length=10, num_tokens=100)
    assert cut.token_ids.tolist() == stream.reshape(2, 100)[:1, :10].tolist()
    assert cut.token_ids.dtype == np.int64 and cut.scored is None


NPY_HEADER = b"{'descr': '<u2', 'fortran_order': False, 'shape': (%s,), }"


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n"


HOSTILE: dict[str, bytes] = {
    "not-utf8.txt": b"caf\xe9",
    "not-utf8.jsonl": b'{"text": "caf\xe9"}',
    "broken.jsonl": b'{"text": "a"',
    "list.jsonl": b'["text"]',
    "number.jsonl": b'{"text": 3}',
    "without.jsonl": b'{"content": "a"}',
    "tag.jsonl": b'{"text": "a", "tag": 3}',
    "tags.jsonl": b'{"text": "a", "tags": "x"}',
    "half.jsonl": b'{"text": "a\\ud800b"}',
    "half-tag.jsonl": b'{"text": "a", "tag": "\\udc00"}',
    "deep.jsonl": b'{"text": ' + b"[" * 200_000,
    "digits.jsonl": b'{"text": "a", "n": ' + b"9" * 10_000 + b"}",
    "empty.npy": b"",
    "pickle.npy": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin\x94.",
    "text.npy": b"1 2 3",
    "cut.npy": npy(NPY_HEADER % b"100") + b"\0" * 10,
    "huge.npy": npy(NPY_HEADER % b"99999999999999"),
    "brackets.npy": npy(b"{'descr': [[[]]], 'shape': (((("),
    "code.npy": npy(b"__import__('os').abort()"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_hold_no_rows_are_refused(tiny_shared: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(CorruptFile, match=name):
        rows_of(tiny_shared, tmp_path / name)


def test_the_line_that_is_wrong_is_named(tiny_shared: Workspace, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('\n{"text": "a"}\n\n{"text": }\n')
    with pytest.raises(CorruptFile, match="line 4"):
        rows_of(tiny_shared, tmp_path / "t.jsonl")


def test_arrays_of_something_else_are_refused(tiny_shared: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (np.zeros(70), np.ones(70, bool), np.zeros((2, 3, 4), int), np.array(3), np.array(["a"] * 70)):
        np.save(path, array)
        with pytest.raises(CorruptFile, match=r"a\.npy holds .* of shape"):
            rows_of(tiny_shared, path)
    for ids in ([[383, 384]], [[-1, 0]], np.array([[2**63, 1]], np.uint64)):
        np.save(path, np.array(ids))
        with pytest.raises(CorruptFile, match="those of tiny go from 0 to 383"):
            rows_of(tiny_shared, path)
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(CorruptFile, match="no .npy file"):
        rows_of(tiny_shared, path)
    np.savez(tmp_path / "z.npz", a=np.arange(100))
    (tmp_path / "z.npz").rename(path)
    with pytest.raises(CorruptFile, match="several arrays"):
        rows_of(tiny_shared, path)


def test_what_gives_no_row_or_is_no_file_is_told(tiny_shared: Workspace, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.arange(10))
    np.save(tmp_path / "none.npy", np.zeros((3, 0), int))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    for name in ("short.npy", "none.npy", "empty.txt", "blank.jsonl"):
        with pytest.raises(InvalidRange, match="gives no row of two tokens"):
            rows_of(tiny_shared, tmp_path / name)
    with pytest.raises(MissingFile):
        rows_of(tiny_shared, tmp_path / "absent.txt")
    for path in (tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(UnsafeFile):
            rows_of(tiny_shared, path)
    done = forensics(tiny_shared, "probe", "tiny", f"loss@{tmp_path}", "--threads", "1")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "folder" in done.stderr


def test_odd_texts_are_read_all_the_same(tiny_shared: Workspace, tmp_path: Path) -> None:
    """NUL, a line of 200 kB, byte marks, line separators that JSON allows inside a string."""
    texts = ["a\0b", "y" * 200_000, "\ufeffx", "one\u2028two", "\r\n"]
    path = tmp_path / "odd.jsonl"
    path.write_text("\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), newline="")
    rows = rows_of(tiny_shared, path, num_tokens=10**7)
    assert rows.scored is not None
    ids = [i for text in texts for i in ids_of(tiny_shared, text)]
    assert rows.token_ids[rows.scored].tolist() == ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", b" \n\n"),
        ("p.txt", b"caf\xe9"),
        ("p.jsonl", b'{"prompt": 3}'),
        ("p.jsonl", b'{"prompt": ""}'),
        ("p.jsonl", b'"prompt"'),
        ("p.jsonl", b"[" * 100_000),
        ("p.jsonl", b'{"prompt": "\\ud83d"}'),
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFile, match="holds no prompts"):
        prompts_of(tmp_path / name)


# --- bytes of tokens -------------------------------------------------------------------------------------------------


def test_bytes_of_tokens_are_those_of_their_text(tiny_shared: Workspace, tmp_path: Path) -> None:
    text = "naïve = 'é€😀'\n\tif x:\x00 pass\n"
    (tmp_path / "t.txt").write_text(text)
    data = data_of(tiny_shared)
    rows, _ = data.rows(str(tmp_path / "t.txt"))
    found = data.utf8_bytes(rows.token_ids)

    assert found.shape == rows.token_ids.shape
    assert found[rows.scored if rows.scored is not None else ...].sum() == len(text.encode())
    heldout, _ = data.rows("heldout")
    for ids, num_bytes in zip(heldout.token_ids, data.utf8_bytes(heldout.token_ids), strict=True):
        assert num_bytes.sum() == len(text_of(data, ids).encode())
    beyond = np.array([[0, 383, 100_000]])
    assert data.utf8_bytes(beyond)[0, 2] == 0


def text_of(data: ProbeData, ids: np.ndarray) -> str:
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_file(str(data.run.tokenizer)).decode(ids.tolist(), skip_special_tokens=True)
    assert "\ufffd" not in text
    return text


# --- probes of these data, against a model asked by hand -------------------------------------------------------------


def predictions_by_hand(workspace: Workspace, step: int, token_ids: np.ndarray) -> torch.Tensor:
    """Log-probabilities, fp64 [rows, length - 1, vocabulary], of the model that replay trains."""
    run = workspace.run("tiny")
    model = build_model(recipe_of_run(run).model, device=torch.device("cpu"))
    model.load_state_dict(read_weights(workspace.checkpoint(run, step)))
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(token_ids)).logits[:, :-1]
    return F.log_softmax(logits.double(), dim=-1)


def losses_by_hand(workspace: Workspace, step: int, token_ids: np.ndarray) -> np.ndarray:
    found = predictions_by_hand(workspace, step, token_ids)
    targets = torch.from_numpy(token_ids[:, 1:, None])
    return np.asarray(-found.gather(2, targets)[..., 0].numpy())


def heldout_by_hand(workspace: Workspace) -> np.ndarray:
    file = workspace.run("tiny").heldout[0]
    return np.fromfile(file.path, file.dtype).astype(np.int64).reshape(-1, 64)


@pytest.fixture(scope="module")
def probed_once(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Any]:
    """Checkpoint 20 of a tiny run of its own, and 0 .. 15 for what needs several."""
    workspace = Workspace(tmp_path_factory.mktemp("rows") / "workspace")
    add(tiny_source, workspace=workspace)
    names = ("bits-per-byte", "loss-by-tag", "loss-by-frequency", "unigram-kl", "next-batch", "memorization")
    return workspace, probe("tiny", *names, options=ONE_THREAD, workspace=workspace)


# Other attention kernels, and log-probabilities in fp32 instead of fp64, round otherwise.
CLOSE = {"abs": 5e-6}


def test_bits_per_byte_are_nats_by_the_bytes_of_the_text(probed_once: tuple[Workspace, Any]) -> None:
    workspace, found = probed_once
    rows = heldout_by_hand(workspace)
    num_bytes = sum(len(text_of(data_of(workspace), row[1:]).encode()) for row in rows)
    nats = losses_by_hand(workspace, 20, rows).sum()

    measured = values(found, "bits-per-byte", "bits per byte")[20]
    assert measured == pytest.approx(nats / np.log(2) / num_bytes, **CLOSE)


def test_loss_by_tag_is_over_the_tokens_of_the_tags_documents(probed_once: tuple[Workspace, Any]) -> None:
    workspace, found = probed_once
    run, rows = workspace.run("tiny"), heldout_by_hand(workspace)
    losses, name = losses_by_hand(workspace, 20, rows), run.heldout[0].name
    masks = masks_by_hand(documents_by_hand(run, name), [(name, 64 * row) for row in range(len(rows))], 64)

    assert len(masks) > 1
    for tag, mask in masks.items():
        by_hand = losses[mask[:, 1:]].mean()
        assert values(found, "loss-by-tag", f"loss, {tag}")[20] == pytest.approx(by_hand, **CLOSE)
    metrics = {row["metric"] for row in found.rows if row["probe"] == "loss-by-tag"}
    assert metrics == {f"{kind}, {tag}" for kind in ("loss", "bits per byte") for tag in masks}


def test_loss_by_frequency_and_unigrams_are_of_the_runs_own_counts(probed_once: tuple[Workspace, Any]) -> None:
    workspace, found = probed_once
    raw, rows = RawRun(workspace.run("tiny").source), heldout_by_hand(workspace)
    counts, _ = counts_by_hand([raw.token_ids[reading.instance].tolist() for reading in raw.readings])
    predicted = predictions_by_hand(workspace, 20, rows)
    losses = losses_by_hand(workspace, 20, rows)

    of_targets = np.vectorize(lambda token: counts[token])(rows[:, 1:])
    by_bin = [row for row in found.rows if row["probe"] == "loss-by-frequency" and row["step"] == 20]
    num_tokens = 0
    for row in by_bin:
        words = row["metric"].split()
        least, most = (0, 0) if "unseen" in words else map(int, words[3].split("-"))
        chosen = (least <= of_targets) & (of_targets <= most)
        num_tokens += chosen.sum()
        assert row["value"] == pytest.approx(losses[chosen].mean(), **CLOSE), row["metric"]
    assert len(by_bin) > 5 and num_tokens == losses.size
    shares = torch.tensor([counts[token] / counts.total() for token in range(384)], dtype=torch.float64)
    seen = shares > 0
    kl = (shares[seen] * (shares[seen].log() - predicted[..., seen])).sum(-1).mean()
    assert values(found, "unigram-kl", "KL(unigram || model)")[20] == pytest.approx(float(kl), **CLOSE)


def test_next_batch_compares_the_batches_at_the_checkpoints_sides(probed_once: tuple[Workspace, Any]) -> None:
    workspace, found = probed_once
    raw = RawRun(workspace.run("tiny").source)
    rows = {s: raw.token_ids[[r.instance for r in raw.readings if r.step == s]].astype(np.int64) for s in (1, 10, 11)}
    just, after = (losses_by_hand(workspace, 10, rows[step]).mean() for step in (10, 11))

    assert values(found, "next-batch", "loss, read just before")[10] == pytest.approx(just, **CLOSE)
    assert values(found, "next-batch", "loss, read next")[10] == pytest.approx(after, **CLOSE)
    assert values(found, "next-batch", "gap")[10] == pytest.approx(after - just, **CLOSE)
    assert list(values(found, "next-batch", "gap")) == [5, 10, 15]
    assert list(values(found, "next-batch", "loss, read next")) == [0, 5, 10, 15]
    first = losses_by_hand(workspace, 0, rows[1]).mean()
    assert values(found, "next-batch", "loss, read next")[0] == pytest.approx(first, **CLOSE)


def test_memorization_is_a_difference_in_differences(probed_once: tuple[Workspace, Any]) -> None:
    """Rows first read in steps 6 .. 10, against those first read later, from checkpoint 5 to 10 and to 15."""
    workspace, found = probed_once
    raw = RawRun(workspace.run("tiny").source)
    first: dict[int, int] = {}
    for reading in raw.readings:
        first.setdefault(reading.instance, reading.step)
    rows = raw.token_ids[list(first)].astype(np.int64)
    steps = np.array(list(first.values()))
    at = {step: losses_by_hand(workspace, step, rows).mean(axis=1) for step in (5, 10)}
    fell = at[5] - at[10]
    effect = fell[(steps > 5) & (steps <= 10)].mean() - fell[steps > 10].mean()

    assert values(found, "memorization", "read right before")[10] == pytest.approx(effect, **CLOSE)
    placebo = fell[(steps > 10) & (steps <= 15)].mean() - fell[steps > 15].mean() if (steps > 15).any() else None
    measured = values(found, "memorization", "before being read")
    assert measured.get(10) == (None if placebo is None else pytest.approx(placebo, **CLOSE))


def test_memorization_of_no_checkpoint_is_nothing(tiny: Workspace) -> None:
    """Where none can be read, and where a sweep ends before the first is done."""
    for checkpoint in tiny.checkpoints(tiny.run("tiny")):
        (checkpoint.folder / "model.safetensors").write_bytes(b"")
    found = probe("tiny", "memorization", options=ONE_THREAD, workspace=tiny)
    assert not found.rows and [problem.step for problem in found.problems] == [0, 5, 10, 15, 20]
    with pytest.raises(KeyboardInterrupt):
        stopped = stopped_after(0, KeyboardInterrupt)
        probe("tiny", "memorization", options=ONE_THREAD, measuring=stopped, workspace=tiny)


# --- all -------------------------------------------------------------------------------------------------------------


def test_all_measures_what_has_data_and_says_what_has_none(tiny: Workspace) -> None:
    """With the run's tokens gone, held-out rows, made-up rows and tensors are still there to be measured."""
    done = forensics(tiny, "probe", "tiny", "all", "--checkpoints", "20", "--threads", "1", "--format", "json")
    assert done.returncode == 0, done.stderr
    everything = {row["probe"] for row in json.loads(done.stdout)}
    for file in tiny.run("tiny").files:
        file.on_disk.unlink()
    again = forensics(tiny, "probe", "tiny", "all", "--checkpoints", "15", "--threads", "1", "--format", "json")
    assert again.returncode == 0, again.stderr
    left = {row["probe"] for row in json.loads(again.stdout)}

    of_the_runs_tokens = {"loss-by-frequency", "unigram-kl", "bigram-kl", "next-batch", "memorization"}
    of_the_runs_tokens |= {"extractability", "gradient-noise", "induction", "induction-heads"}
    assert {"loss", "loss-by-tag", "attention", "norms"} <= left
    assert everything - left <= of_the_runs_tokens and {"next-batch", "unigram-kl"} <= everything - left
    for name in everything - left:
        assert f"{name} is left out: " in again.stderr


def test_a_probe_whose_data_are_gone_is_told_with_its_checkpoint(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one checkpoint alone, while all else is measured."""
    plain = ProbeData.around

    def around(data: ProbeData, step: int) -> Any:
        if step == 10:
            raise MissingFile("the tokens of step 10 are gone")
        return plain(data, step)

    monkeypatch.setattr(ProbeData, "around", around)
    found = probe("tiny", "next-batch", "norms", options=ONE_THREAD, workspace=tiny)

    assert [(one.step, one.probe) for one in found.problems] == [(10, "next-batch")]
    assert sorted({row["step"] for row in found.rows if row["probe"] == "next-batch"}) == [0, 5, 15, 20]
    monkeypatch.undo()
    mended = probe("tiny", "next-batch", options=ONE_THREAD, workspace=tiny)
    assert (mended.num_measured, mended.num_kept, mended.problems) == (1, 4, ())


@pytest.mark.parametrize(("unigrams", "message"), [([0] * 384, "are all 0"), ([1] * 400, "predicts only 384")])
def test_a_statistic_that_fails_keeps_no_other_from_measuring(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch, unigrams: list[int], message: str
) -> None:
    """Probes of the same rows share a pass; counts that the model cannot be compared with are the fault of one."""
    plain = ProbeData.own_counts.func  # type: ignore[attr-defined]

    def counted(data: ProbeData) -> Any:
        found: OwnCounts = plain(data)
        return OwnCounts(
            unigrams=np.array(unigrams), bigrams=found.bigrams, num_tokens=found.num_tokens, complete=False
        )

    monkeypatch.setattr(ProbeData, "own_counts", property(counted))
    names = ("loss", "unigram-kl", "bigram-kl")
    found = probe("tiny", *names, checkpoints="20", options=ONE_THREAD, workspace=tiny)

    assert [one.probe for one in found.problems] == ["unigram-kl"] and message in found.problems[0].message
    assert {row["probe"] for row in found.rows} == {"loss", "bigram-kl"}
