"""`batch A:B --by` counts as plain Python counts."""

from collections import defaultdict
from typing import Any

import pytest

from data_index.batch_queries import batch_groups
from data_index.errors import InvalidRange
from data_index.kinds import table_of_rows
from data_index.store import connect
from data_index.workspace import Workspace, learn
from forensics.lookup import batch


def tokens_by_group(raw: Any, instance: int, by: str) -> dict[str, int]:
    """Tokens of a row by group."""
    if by == "file":
        return {raw.place(instance)[0]: raw.length}
    counts: dict[str, int] = defaultdict(int)
    for document, tokens in raw.pieces(instance):
        keys = {"tag": document["tags"], "source": [document["source"]], "document": [str(document["document_id"])]}
        for key in keys[by]:
            counts[key] += tokens
    return counts


def counted(raw: Any, first: int, last: int, by: str) -> list[dict[str, Any]]:
    """What `batch first:last --by` should say, row by row."""
    rows: dict[str, dict[str, Any]] = {}
    run_tokens: dict[str, int] = defaultdict(int)
    for reading in raw.readings:
        for key, tokens in tokens_by_group(raw, reading.instance, by).items():
            run_tokens[key] += tokens
            if first < reading.step <= last:
                row = rows.setdefault(key, {by: key, "instances": 0, "tokens": 0, "repeats": 0})
                row["instances"] += 1
                row["tokens"] += tokens
                row["repeats"] += reading.again
    stretch = sum(first < reading.step <= last for reading in raw.readings) * raw.length
    for key, row in rows.items():
        row |= {"share": row["tokens"] / stretch, "run_share": run_tokens[key] / (len(raw.readings) * raw.length)}
    return sorted(rows.values(), key=lambda row: (-row["tokens"], row[by]))


@pytest.mark.parametrize("stretch", ["0:20", "6:7", "2:12", "10:11", "13:16", "19:20"])
@pytest.mark.parametrize("by", ["tag", "file", "document", "source"])
def test_groups_are_counted_row_by_row(by: str, stretch: str, tiny_shared: Workspace, raw: Any) -> None:
    first, last = map(int, stretch.split(":"))

    assert batch("tiny", stretch, by=by, workspace=tiny_shared).to_pylist() == counted(raw, first, last, by)


def test_what_is_read_a_second_time_is_a_repeat(tiny_shared: Workspace, raw: Any) -> None:
    """Step 3 reads the planted document first, step 11 again, and epoch 2 everything."""

    def repeats(steps: str) -> int:
        return sum(batch("tiny", steps, by="file", workspace=tiny_shared).column("repeats").to_pylist())

    assert repeats("0:10") == 0
    assert repeats("10:11") == repeats("0:14") == 2
    assert repeats("14:20") == 6 * 8


def test_spans_tile_documents_and_instances(tiny_shared: Workspace, raw: Any) -> None:
    """All but held-out documents, which lie in no instance."""
    connection = connect(tiny_shared)
    lengths = dict(connection.execute("SELECT document_id, sum(stop - start) FROM spans GROUP BY ALL").fetchall())
    trained = {file["name"] for file in raw.manifest["files"]}
    pieces = connection.execute("SELECT instance, start, stop FROM spans ORDER BY ALL").fetchall()
    tiled = {(instance, token) for instance, start, stop in pieces for token in range(start, stop)}

    assert lengths == {d["document_id"]: d["end"] - d["start"] for d in raw.documents if d["file"] in trained}
    assert len(tiled) == sum(stop - start for _, start, stop in pieces) == raw.token_ids.size


@pytest.mark.parametrize("by", ["document", "source", "tag"])
@pytest.mark.parametrize("every", [None, 20])
def test_a_document_in_two_files_counts_once(by: str, every: int | None, tiny: Workspace, raw: Any) -> None:
    """It has a row for each of its files, as in Megatron's shards, with the same source and tags."""
    ends = {file["name"]: file["num_instances"] * raw.length for file in raw.manifest["files"]}
    row = {"document_id": 0, "start": 0, "source": "one", "tags": ["of all"]}
    rows = [row | {"file": name, "end": end} for name, end in ends.items()]
    learn(tiny.home("tiny"), "documents", table_of_rows("documents", rows, "test"))

    (found,) = batch("tiny", "0:20", by=by, every=every, workspace=tiny).to_pylist()
    assert (found["tokens"], found["share"]) == (len(raw.readings) * raw.length, 1.0)


def test_only_known_groups_are_counted(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidRange, match="--by takes document, file, source, tag, not 'colour'"):
        batch("tiny", "0:20", by="colour", workspace=tiny_shared)


def test_a_run_without_documents_is_counted_by_file_alone(core_shared: Workspace) -> None:
    rows = batch("core", "0:26", by="file", workspace=core_shared).to_pylist()

    assert sum(row["instances"] for row in rows) == 26 * 8
    assert [row["share"] for row in rows] == [row["tokens"] / (26 * 8 * 128) for row in rows]
    assert batch("core", "0:26", by="tag", workspace=core_shared).num_rows == 0


@pytest.mark.parametrize("by", ["document", "source", "tag", "file"])
def test_of_a_run_too_large_for_an_average_all_else_is_counted(
    by: str, tiny_shared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_shared.run("tiny")
    for first, last in ((0, 20), (10, 11), (13, 16)):
        with monkeypatch.context() as patched:
            known = batch_groups(tiny_shared, run, first, last, by).to_pylist()
            patched.setattr("data_index.batch_queries.ROWS_FOR_AN_AVERAGE", 0)
            found = batch_groups(tiny_shared, run, first, last, by).to_pylist()

        assert sum(row["repeats"] for row in known) > 0 or last < 20
        assert found == [row | {"run_share": None} for row in known]
