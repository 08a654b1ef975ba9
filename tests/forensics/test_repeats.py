"""What a run read more than once, held against a count of every token of every text that every step read."""

from __future__ import annotations

import json
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

import forensics
from data_index.batch_queries import plan_of
from data_index.errors import Busy, CorruptFile, InvalidRange, StepOutOfRange, UnknownDocument
from data_index.files import exclusive_lock, sha256_of_file, write_npy, write_parquet
from data_index.kinds import table_of_rows
from data_index.registration import add
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import write_run
from data_index.store import run_query
from data_index.tokens import TokenReader
from data_index.workspace import Workspace, learn, put_in_force
from forensics import text_hashes
from forensics.figure import write_figure
from forensics.forking import fork
from forensics.repetition import Repeats, plan_repeats, repeats
from forensics.repetition_picture import figure_of_repeats, repeat_steps
from tests.conftest import FIXTURES
from tests.forensics.test_cli import answer
from tests.forensics.test_cli import forensics as command

END = 1
Documents = list[list[int]]
# (document, step, position, instance, first token, number of tokens)
Row = tuple[int, int, int, int, int, int]


# --- a run with planted texts ----------------------------------------------------------------------------------------


def write_planted(
    folder: Path, files: Sequence[tuple[str, Documents]], *, length: int = 8, epochs: int = 1, per_batch: int = 2
) -> Path:
    """A native run that reads rows of its files in order, epoch after epoch.

    Args:
        files: (dtype, documents as token ids, laid end to end); what is left of the last row is padded.
    """
    rows, there, first, number = [], [], 0, 0
    for index, (dtype, documents) in enumerate(files):
        name, start = f"tokens/{index}.bin", 0
        for document in documents:
            rows.append({"document_id": number, "file": name, "start": start, "end": start + len(document)})
            number, start = number + 1, start + len(document)
        ids = np.array([token for document in documents for token in document] + [0] * (-start % length), dtype=dtype)
        (folder / "tokens").mkdir(parents=True, exist_ok=True)
        ids.tofile(folder / name)
        count = len(ids) // length
        there.append(
            TokenFile(
                name=name,
                path=folder / name,
                dtype=np.dtype(dtype).name,
                num_bytes=ids.nbytes,
                first_instance=first,
                num_instances=count,
            )
        )
        first += count
    order = {}
    for epoch in range(1, epochs + 1):
        path = folder / "order" / f"epoch-{epoch}.npy"
        write_npy(path, np.arange(first, dtype=np.uint32))
        order[f"epoch_{epoch}"] = {"path": f"order/epoch-{epoch}.npy", "sha256": sha256_of_file(path)}
    steps = first // per_batch
    run = Run(
        name="planted",
        layout="native",
        source=folder,
        sequence_length=length,
        files=tuple(there),
        order=Order(rule="file", parameters=order),
        segments=tuple(
            Segment(
                first_step=1 + n * steps, num_steps=steps, epoch=n + 1, first_position=0, instances_per_batch=per_batch
            )
            for n in range(epochs)
        ),
        trust=OrderTrust(level="derived", witness="order files", missing="a record"),
        config_format="native",
        config={},
        eos_token_id=END,
    )
    write_run(run, folder)
    write_parquet(folder / "documents.parquet", table_of_rows("documents", rows, folder))
    return folder


def texts(seed: int, count: int, shortest: int = 3, longest: int = 30) -> Documents:
    """Documents of their own tokens, END after each."""
    random = np.random.default_rng(seed)
    sizes = random.integers(shortest, longest + 1, count)
    return [[*random.integers(10, 60_000, size).tolist(), END] for size in sizes]


@pytest.fixture
def planted(tmp_path: Path, workspace: Workspace) -> Workspace:
    """Two files of other dtypes; documents 2, 31 (in the other file) and 44 (without its end token) are one text."""
    one, other = texts(1, 30), texts(2, 30)
    other[1], other[14] = one[2], one[2][:-1]
    add(write_planted(tmp_path / "planted", [("<u2", one), ("<u4", other)]), workspace=workspace)
    return workspace


# --- the truth, token by token ---------------------------------------------------------------------------------------


def readings_of_documents(
    workspace: Workspace, name: str, first: int, last: int
) -> Iterator[tuple[Row, tuple[int, ...]]]:
    """Every reading of a piece of a document, with the document's tokens; of rows only what the model reads."""
    run = workspace.run(name)
    reader = TokenReader(run, None)
    documents: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in workspace.learned(workspace.home(name), "documents"):
        documents[[file.name for file in run.files].index(row["file"])].append(row)
    plan = plan_of(workspace, run, first, last)
    for step in plan.steps:
        begin = run.segment_of_step(step).positions_of_step(step).start
        for position, instance in enumerate(plan[step].instances.tolist(), begin):
            place = 0
            for file, start, stop in reader.pieces_of(instance):
                stop = min(stop, start + run.tokens_per_instance - place)
                for row in documents[file]:
                    ids = reader.read(run.files[file], row["start"], row["end"]).tolist()
                    ids = ids[:-1] if ids and ids[-1] == run.eos_token_id else ids
                    here = range(max(start, row["start"]), min(stop, row["start"] + len(ids)))
                    if len(here):
                        at = here.start - row["start"]
                        yield (row["document_id"], step, position, instance, at, len(here)), tuple(ids)
                place += stop - start


def truth(workspace: Workspace, name: str, first: int, last: int) -> tuple[set[Row], int]:
    """Readings that share a token of a text with another reading; and how many tokens had been read before."""
    found = list(readings_of_documents(workspace, name, first, last))
    counts: Counter[tuple[tuple[int, ...], int]] = Counter()
    for (*_, at, length), text in found:
        counts.update((text, place) for place in range(at, at + length))
    again = {row for row, text in found if any(counts[text, p] > 1 for p in range(row[4], row[4] + row[5]))}
    return again, sum(count - 1 for count in counts.values())


def rows_of(found: Repeats) -> list[Row]:
    names = ("document_id", "step", "position", "instance", "first_token", "num_tokens")
    return [tuple(row[name] for name in names) for row in found.rows.to_pylist()]  # type: ignore[misc]


def test_repeated_documents_are_those_whose_tokens_were_read_twice(planted: Workspace) -> None:
    found = repeats("planted", workspace=planted)
    again, num_again = truth(planted, "planted", 0, planted.run("planted").last_step)

    assert set(rows_of(found)) == again and len(rows_of(found)) == len(again) >= 3
    assert {row[0] for row in rows_of(found)} == {2, 31, 44}
    assert (found.num_again, found.num_groups, found.num_near) == (num_again, 1, 0)
    assert set(found.rows.column("similarity").to_pylist()) == {1.0}
    assert found.num_distinct == found.num_texts - 2


@pytest.mark.parametrize(("steps", "any_again"), [("0:40", True), ("85:200", True), ("0:1", False)])
def test_the_pieces_of_a_run_of_many_epochs_are_counted_once(steps: str, any_again: bool, workspace: Workspace) -> None:
    """Each epoch lays the documents out anew: rows cut a text at other places, and neighbours overlap by a label."""
    settings = {
        "data_path": "toy_text_document",
        "seq_length": 32,
        "train_batch_size": 8,
        "seed": 1234,
        "split": "1,0,0",
    }
    add(FIXTURES / "neox", layout="neox", name="toy", settings=settings | {"train_iters": 200}, workspace=workspace)
    first, last = map(int, steps.split(":"))

    found = repeats("toy", steps, workspace=workspace)
    again, num_again = truth(workspace, "toy", first, last)

    assert set(rows_of(found)) == again and len(rows_of(found)) == len(again)
    assert found.num_again == num_again
    assert bool(again) == any_again


def test_lines_of_json_are_read(workspace: Workspace) -> None:
    """103 lines of which 100 are read; one document a line."""
    settings = {"instances_per_batch": 20, "world_size": 4}
    add(FIXTURES / "other-orders" / "llm360", name="amber", settings=settings, workspace=workspace)
    found = repeats("amber", workspace=workspace)

    assert (found.num_texts, found.num_distinct, found.num_groups) == (100, 100, 0)
    assert found.rows.num_rows == 0


def test_the_planted_document_of_the_sample_run_is_found_with_its_steps(tiny: Workspace, tiny_source: Path) -> None:
    planted = json.loads((tiny_source / "truth.json").read_text())["duplicate"]
    found = repeats("tiny", "0:14", workspace=tiny).rows.to_pylist()

    assert {row["step"] for row in found} == set(planted["steps"]) == {3, 11}
    assert {row["instance"] for row in found} == set(planted["instances"])
    assert len({row["document_id"] for row in found}) == 1


def test_the_planted_rows_of_the_sample_run_are_found_with_their_steps(tiny: Workspace, tiny_source: Path) -> None:
    planted = json.loads((tiny_source / "truth.json").read_text())["duplicate"]
    found = repeats("tiny", "0:14", of="instances", workspace=tiny).rows.to_pylist()

    assert [(row["instance"], row["step"]) for row in found] == [(i, s) for i in planted["instances"] for s in (3, 11)]


def test_rows_read_in_two_epochs_are_those_of_the_order(core_shared: Workspace) -> None:
    """OLMo: no documents are known, and 9 steps of a second epoch of other batches."""
    plan = plan_of(core_shared, core_shared.run("olmo"), 0, 40)
    counts = Counter(int(i) for step in plan.steps for i in plan[step].instances)
    found = repeats("olmo", of="instances", workspace=core_shared)
    rows = Counter(found.rows.column("instance").to_pylist())

    assert rows == {instance: count for instance, count in counts.items() if count > 1}
    assert found.num_again == 128 * sum(count - 1 for count in counts.values())


# --- nearly the same -------------------------------------------------------------------------------------------------


def near_run(folder: Path) -> Path:
    """40 texts of 60 tokens, then a copy of the first 10 with 0 to 9 tokens changed, each 5 shingles of 56."""
    documents = texts(7, 40, 60, 60)
    for number in range(10):
        copy = list(documents[number])
        for change in range(number):
            copy[2 + 6 * change] = 60_001 + change
        documents.append(copy)
    return write_planted(folder, [("<u2", documents)], length=61, per_batch=1)


def shingles(document: list[int]) -> set[tuple[int, ...]]:
    return {tuple(document[start : start + 5]) for start in range(len(document) - 5)}


def test_near_texts_are_those_alike_enough(tmp_path: Path, workspace: Workspace) -> None:
    """Every pair compared; nothing below the threshold is printed, nothing above is missing."""
    add(near_run(tmp_path / "near"), workspace=workspace)
    documents = texts(7, 40, 60, 60)
    run = workspace.run("planted")
    reader = TokenReader(run, None)
    copies = [reader.read(run.files[0], 61 * n, 61 * (n + 1)).tolist() for n in range(50)]
    assert copies[:40] == documents
    alike = {}
    for one in range(50):
        for other in range(one):
            a, b = shingles(copies[one]), shingles(copies[other])
            if len(a & b) / len(a | b) >= 0.5:
                alike[other, one] = len(a & b) / len(a | b)

    found = repeats("planted", near=0.5, workspace=workspace)

    groups = defaultdict(list)
    for row in found.rows.to_pylist():
        groups[row["group"]].append((row["document_id"], row["similarity"]))
    assert sorted(tuple(d for d, _ in members) for members in groups.values()) == sorted(alike)
    assert all(similarity == alike[one, other] for (one, similarity), (other, _) in groups.values())
    assert len(alike) == 5 and (found.num_groups, found.num_near) == (5, 4)


def test_a_copy_of_a_near_text_is_in_its_group(tmp_path: Path, workspace: Workspace) -> None:
    documents = texts(3, 5, 60, 60)
    near = [*documents[0][:30], 60_001, *documents[0][31:]]
    add(
        write_planted(tmp_path / "p", [("<u2", [*documents, near, documents[0]])], length=61, per_batch=1),
        workspace=workspace,
    )
    rows = repeats("planted", near=0.8, workspace=workspace).rows.to_pylist()

    share = 51 / 61
    assert [(row["group"], row["document_id"], row["similarity"]) for row in rows] == [
        (1, 0, 1.0),
        (1, 5, share),
        (1, 6, 1.0),
    ]
    assert [row["text"] for row in rows][0] == [row["text"] for row in rows][2] != rows[1]["text"]


# --- kept, and asked again -------------------------------------------------------------------------------------------


def test_the_same_question_has_the_same_answer_and_reads_nothing_again(
    planted: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = repeats("planted", near=0.3, workspace=planted)
    home = planted.home("planted")
    before = (home / "current.json").read_bytes()
    monkeypatch.setattr(text_hashes, "sha256_of_ids", lambda ids: pytest.fail("hashed again"))
    monkeypatch.setattr(text_hashes, "signature_of", lambda ids: pytest.fail("signed again"))

    again = repeats("planted", near=0.3, workspace=planted)

    assert again.rows.equals(first.rows) and str(again) == str(first)
    assert (home / "current.json").read_bytes() == before
    assert plan_repeats("planted", workspace=planted)["to_hash"] == 0


def test_hashes_are_told_in_sql(planted: Workspace) -> None:
    found = repeats("planted", workspace=planted)
    rows = run_query(
        planted,
        "SELECT list(d.document_id ORDER BY d.document_id) AS same FROM documents d JOIN document_hashes USING (run, "
        "document_id) GROUP BY sha256 HAVING count(*) > 1",
    ).to_pylist()

    assert rows == [{"same": [2, 31, 44]}]
    assert run_query(planted, "SELECT count(*) AS n FROM document_hashes").to_pylist() == [{"n": found.num_texts}]


def test_hashes_of_a_part_are_completed_by_the_whole(planted: Workspace) -> None:
    last = planted.run("planted").last_step
    part = repeats("planted", f"0:{last // 2}", workspace=planted)
    hashed = run_query(planted, "SELECT count(*) AS n FROM document_hashes").to_pylist()[0]["n"]
    whole = repeats("planted", workspace=planted)
    rows = run_query(planted, "SELECT document_id FROM document_hashes").column("document_id").to_pylist()

    assert part.num_groups == 0 and hashed == part.num_texts < whole.num_texts == len(rows) == len(set(rows))
    assert whole.num_groups == 1


def test_other_documents_are_hashed_anew(planted: Workspace) -> None:
    """The documents were cut elsewhere: what was hashed by the old ids says nothing any more."""
    repeats("planted", near=0.5, workspace=planted)
    home = planted.home("planted")
    documents = planted.learned(home, "documents")
    moved = [row | {"end": row["end"] - 1} if row["document_id"] == 31 else row for row in documents]
    moved = [row | {"start": row["start"] + 1} if row["document_id"] == 2 else row for row in moved]
    learn(home, "documents", table_of_rows("documents", moved, "moved"))

    found = repeats("planted", workspace=planted)

    assert {row[0] for row in rows_of(found)} == {31, 44}
    names = run_query(planted, "SELECT DISTINCT documents FROM document_hashes").column("documents").to_pylist()
    assert names == [path.name for path in planted.learned_files(home, "documents")]


def test_what_was_kept_before_an_interruption_is_not_read_again(
    planted: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_hashes, "KEEP_TOKENS", 100)
    hashed: list[int] = []

    def interrupted(ids: np.ndarray) -> str:
        hashed.append(1)
        if len(hashed) == 40:
            signal.raise_signal(signal.SIGINT)
        return original(ids)

    original = text_hashes.sha256_of_ids
    monkeypatch.setattr(text_hashes, "sha256_of_ids", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repeats("planted", workspace=planted)
    kept = 60 - plan_repeats("planted", workspace=planted)["to_hash"]
    found = repeats("planted", workspace=planted)

    assert 30 <= kept < 40 and len(hashed) == 40 + 60 - kept
    assert {row[0] for row in rows_of(found)} == {2, 31, 44}


def test_two_do_not_hash_one_run(planted: Workspace) -> None:
    home = planted.home("planted")
    with exclusive_lock(home.with_name(f".{home.name}.lock"), "testing"), pytest.raises(Busy, match="writing planted"):
        repeats("planted", workspace=planted)


def test_a_fork_is_asked_like_its_parent(tiny: Workspace) -> None:
    """Its own steps count; it repeats on purpose what `repeat` was told."""
    edits = ["repeat instance:50 times=3 @11"]
    name = fork("tiny", from_step=10, num_steps=3, edits=edits, workspace=tiny, device="cpu").id
    parent = repeats("tiny", "0:14", workspace=tiny).rows.to_pylist()
    rows = repeats(name, workspace=tiny).rows.to_pylist()

    assert [(row["step"], row["instance"]) for row in rows] == [(11, 50)] * 3
    assert {row["document_id"] for row in rows} == {row["document_id"] for row in parent}


# --- what cannot be answered -----------------------------------------------------------------------------------------


def test_a_run_without_documents_says_what_to_do(tiny: Workspace) -> None:
    put_in_force(tiny.home("tiny"), {"documents": []})

    with pytest.raises(UnknownDocument, match="forensics documents tiny .*forensics repeats tiny --of instances"):
        repeats("tiny", workspace=tiny)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"of": "words"}, InvalidRange, "--of takes documents or instances, not 'words'"),
        ({"near": 0.01}, InvalidRange, "--near takes"),
        ({"min_tokens": 0}, InvalidRange, "--min-tokens takes 1 or more"),
        ({"limit": 0}, InvalidRange, "--limit takes 1 or more"),
        ({"steps": "5:5"}, InvalidRange, "holds no step"),
        ({"steps": "0:9999"}, StepOutOfRange, "planted took steps"),
    ],
)
def test_questions_without_sense_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, planted: Workspace
) -> None:
    with pytest.raises(error, match=message):
        repeats("planted", workspace=planted, **options)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "too long": (lambda row: row | {"end": 10**9}, "document 59 .* which has .* tokens"),
    "backwards": (lambda row: row | {"document_id": 0}, "more than one is called 0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_documents_of_other_files_are_corrupt(change: str, planted: Workspace) -> None:
    changed, message = CHANGES[change]
    home = planted.home("planted")
    rows = planted.learned(home, "documents")
    learn(home, "documents", table_of_rows("documents", [*rows[:-1], changed(rows[-1])], "changed"))

    with pytest.raises(CorruptFile, match=message):
        repeats("planted", workspace=planted)
    assert not planted.learned_files(home, "document_hashes")


def test_changed_tokens_are_corrupt_and_nothing_is_kept(planted: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "planted" / "tokens" / "1.bin"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)

    with pytest.raises(CorruptFile, match="1.bin changed"):
        repeats("planted", workspace=planted)
    assert not planted.learned_files(planted.home("planted"), "document_hashes")


# --- seen ------------------------------------------------------------------------------------------------------------


def test_short_texts_are_passed_over(tmp_path: Path, workspace: Workspace) -> None:
    """Texts of nothing but an end token are all the same, and say nothing."""
    documents = [[END], [END], [7, END], [7, END], [8, 9, END], [8, 9, END]]
    add(write_planted(tmp_path / "p", [("<u2", documents)], length=7, per_batch=1), workspace=workspace)

    assert repeats("planted", workspace=workspace).num_groups == 2
    assert repeats("planted", workspace=workspace, min_tokens=2).num_groups == 1
    assert repeats("planted", workspace=workspace, min_tokens=3).num_groups == 0


def test_groups_with_most_tokens_read_again_come_first(tmp_path: Path, workspace: Workspace) -> None:
    short, long = [5, 6, END], [*range(20, 40), END]
    add(write_planted(tmp_path / "p", [("<u2", [short, short, short, long, long])], per_batch=1), workspace=workspace)
    found = repeats("planted", workspace=workspace)
    groups = [(row["group"], row["document_id"]) for row in found.rows.to_pylist()]

    assert list(dict.fromkeys(groups)) == [(1, 3), (1, 4), (2, 0), (2, 1), (2, 2)]
    assert found.num_again == 20 + 2 * 2
    assert repeats("planted", workspace=workspace, limit=1).rows.equals(found.first_groups(1))
    assert set(found.first_groups(1).column("group").to_pylist()) == {1}


def test_the_picture_has_a_point_for_each_first_reading_and_repeat(tiny: Workspace, tmp_path: Path) -> None:
    same, near = repeat_steps(repeats("tiny", "0:14", of="instances", workspace=tiny).rows)
    assert (same.tolist(), near.tolist()) == ([[3, 11]], [])

    found = repeats("tiny", of="instances", near=0.3, workspace=tiny)
    same, near = repeat_steps(found.rows)
    plan = plan_of(tiny, tiny.run("tiny"), 0, 20)
    first: dict[int, int] = {}
    pairs = set()
    for step in plan.steps:
        for instance in plan[step].instances.tolist():
            if first.setdefault(instance, step) != step:
                pairs.add((first[instance], step))
    assert set(map(tuple, same.tolist())) == pairs
    assert near.tolist() and all(a <= b for a, b in near.tolist())
    for ending in (".png", ".html"):
        write_figure(figure_of_repeats(found), tmp_path / f"repeats{ending}")
        assert (tmp_path / f"repeats{ending}").stat().st_size > 1000


def test_a_near_point_is_the_first_reading_of_another_text() -> None:
    rows = pyarrow.table(
        {"group": [1] * 4, "text": ["a", "b", "a", "b"], "step": [2, 5, 6, 9], "num_tokens": [9, 8, 9, 8]}
    )
    same, near = repeat_steps(rows)

    assert (same.tolist(), near.tolist()) == ([[2, 6], [5, 9]], [[2, 5]])


def test_pieces_that_share_no_token_are_no_repeats_in_the_picture() -> None:
    rows = pyarrow.table(
        {
            "group": [1, 1, 1],
            "text": ["a"] * 3,
            "step": [2, 5, 6],
            "first_token": [0, 4, 3],
            "num_tokens": [4, 4, 2],
        }
    )

    assert repeat_steps(rows)[0].tolist() == [[2, 6]]


def test_nothing_repeated_is_drawn_too(planted: Workspace, tmp_path: Path) -> None:
    write_figure(figure_of_repeats(repeats("planted", "0:1", workspace=planted)), tmp_path / "none.png")

    assert (tmp_path / "none.png").stat().st_size > 1000


def test_the_verb_prints_rows_and_says_the_sum(planted: Workspace, tmp_path: Path) -> None:
    rows = answer(planted, "repeats", "planted", "--near", "0.9", "--picture", str(tmp_path / "p.png"))
    done = command(planted, "repeats", "planted", "--limit", "1")
    cost = answer(planted, "repeats", "planted", "--plan")

    assert rows == repeats("planted", workspace=planted).rows.to_pylist()
    assert "60 documents read, 58 distinct; 1 groups of repeats; " in done.stderr
    assert (tmp_path / "p.png").exists() and cost["to_hash"] == cost["read"] == cost["download"] == 0


def test_a_plan_counts_what_is_read(planted: Workspace) -> None:
    rows = planted.learned(planted.home("planted"), "documents")
    lengths = {
        file: sum(row["end"] - row["start"] for row in rows if row["file"] == file)
        for file in ("tokens/0.bin", "tokens/1.bin")
    }
    cost = plan_repeats("planted", workspace=planted)

    assert cost["to_hash"] == 60 and cost["tokens"] == sum(lengths.values()) and cost["download"] == 0
    assert cost["read"] == 2 * lengths["tokens/0.bin"] + 4 * lengths["tokens/1.bin"]


def test_the_python_name_is_the_verb(planted: Workspace) -> None:
    assert forensics.repeats("planted", workspace=planted).num_groups == 1
