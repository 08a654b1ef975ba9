"""Provenance files: good ones as Dolma and OLMo-core write them, damaged ones, hostile ones."""

import csv
import gzip
import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_index import provenance
from data_index.errors import CorruptFile, ForensicsError, MissingFile, UnsafeFile
from data_index.provenance import provenance_files, read_provenance
from data_index.registration import add
from data_index.store import connect
from data_index.workspace import Workspace
from forensics.document_learning import documents, plan_documents
from tests.data_index.test_documents import run_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOURCE = "s3://ai2-llm/pretraining-data/sources/{}/v0/documents/{}.jsonl.gz"

Row = tuple[Any, ...]


def text_of(rows: list[Row]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def write(path: Path, rows: list[Row] | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(rows if isinstance(rows, bytes) else text_of(rows)))
    return path


def read(path: Path, num_tokens: int) -> list[dict[str, Any]]:
    return [row for table in read_provenance(path, num_tokens) for row in table.to_pylist()]


GOOD: list[Row] = [
    (0, 3, "plain", "s3://bucket/a.jsonl.gz", 1),
    (3, 7, 'https://a.org/?q="x,y"', "b.jsonl.gz", 20),
    (7, 8, "über\nzwei Zeilen", "c.jsonl.gz", 3),
    (8, 10, "", "", ""),
]
DESCRIBED = [
    dict(zip(("start", "end", "external_id", "source", "line"), row, strict=True))
    for row in [*GOOD[:3], (8, 10, None, None, None)]
]


@pytest.mark.parametrize("block_bytes", [200, 1 << 22])
def test_rows_come_as_they_were_written(block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "BLOCK_BYTES", block_bytes)

    assert read(write(tmp_path / "x.csv.gz", GOOD), 10) == DESCRIBED


def test_files_of_several_gzip_members_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(text_of(GOOD[:2])) + gzip.compress(text_of(GOOD[2:])))

    assert read(path, 10) == DESCRIBED


def test_what_olmo_core_writes_has_borders_alone_and_leaves_out_the_rest(tmp_path: Path) -> None:
    nothing = {"external_id": None, "source": None, "line": None}
    path = write(tmp_path / "x.csv.gz", b"0,3\n3,7\n")

    assert read(path, 9) == [{"start": a, "end": b} | nothing for a, b in [(0, 3), (3, 7), (7, 9)]]
    assert read(path, 7) == [{"start": a, "end": b} | nothing for a, b in [(0, 3), (3, 7)]]
    assert read(write(tmp_path / "empty.csv.gz", b""), 0) == []


def changed(number: int, row: Row) -> list[Row]:
    return [*GOOD[:number], row, *GOOD[number + 1 :]]


DAMAGED: dict[str, tuple[list[Row] | bytes, int, str]] = {
    "gap": (changed(1, (4, 7, "x", "y", 1)), 10, "row 2 is tokens 4..7, which leaves a gap: .* ends at 3"),
    "overlap": (changed(2, (6, 8, "x", "y", 1)), 10, "row 3 is tokens 6..8, which overlaps: .* ends at 7"),
    "late start": (changed(0, (1, 3, "x", "y", 1)), 10, "row 1 is tokens 1..3, which leaves a gap: .* ends at 0"),
    "empty document": (changed(1, (3, 3, "x", "y", 1)), 10, "row 2 is tokens 3..3, which is no document"),
    "backwards": (changed(1, (3, 2, "x", "y", 1)), 10, "row 2 is tokens 3..2, which is no document"),
    "overrun": (GOOD, 9, "row 4 is tokens 8..10; its token file has 9"),
    "ends early": (GOOD, 11, "ends with row 4 at token 10; its token file has 11"),
    "nothing in it": (b"", 5, "ends with row 0 at token 0; its token file has 5"),
    "borders run over": (b"0,3\n3,7\n", 6, "row 2 is tokens 3..7; its token file has 6"),
    "no number": (changed(2, ("seven", 8, "x", "y", 1)), 10, "row 3 has 'seven' where a number belongs"),
    "negative": (changed(0, (-1, 3, "x", "y", 1)), 10, "row 1 has '-1' where a number belongs"),
    "fraction": (changed(1, (3, 7.5, "x", "y", 1)), 10, "row 2 has '7.5' where a number belongs"),
    "huge number": (changed(3, (8, 10**30, "x", "y", 1)), 10, "row 4 has '1000.* where a number belongs"),
    "odd line": (changed(3, (8, 10, "x", "y", "last")), 10, "row 4 has 'last' where a number belongs"),
    "empty number": (changed(1, ("", 7, "x", "y", 1)), 10, "row 2 has '' where a number belongs"),
    "other columns": (b"0,3,x\n3,10,y\n", 10, "has 3 columns; provenance has start, end, document id"),
    "a row short": ([*GOOD[:1], (3, 7, "x"), *GOOD[2:]], 10, "is not whole provenance, after row 0"),
    "a header": ([("start", "end", "id", "src", "loc"), *GOOD], 10, "row 1 has 'start' where a number belongs"),
    "no text": (b"0,10,\xff\xfe\xfd,b,1\n", 10, "is not whole provenance"),
    "an endless id": (changed(0, (0, 3, "x" * 20_000, "y", 1)), 10, "row 1 has an id or a source of more than 16,384"),
    "an endless row": (b"0,3," + b"x" * 9_000_000, 10, "is not whole provenance"),
    "an open quote": (b'0,3,"x,y,1\n' + b"3,4,a,b,1\n" * 900_000, 10, "is not whole provenance"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_does_not_tile_its_file_is_named_by_row(damage: str, tmp_path: Path) -> None:
    rows, num_tokens, message = DAMAGED[damage]

    with pytest.raises(CorruptFile, match=message):
        read(write(tmp_path / "x.csv.gz", rows), num_tokens)


@pytest.mark.parametrize("size", [0, 1, 10, 30, 50, -8, -1])
def test_truncated_files_are_corrupt(size: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv.gz", GOOD)
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(CorruptFile):
        read(path, 10)


def test_files_that_are_no_gzip_are_corrupt(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(text_of(GOOD))
    with pytest.raises(CorruptFile, match="x.csv.gz is not whole provenance"):
        read(tmp_path / "x.csv.gz", 10)
    with pytest.raises(MissingFile):
        read(tmp_path / "y.csv.gz", 10)


@pytest.mark.parametrize("flip", range(0, 120, 7))
def test_flipped_bytes_are_noticed_or_change_only_what_is_said_of_documents(flip: int, tmp_path: Path) -> None:
    """Nothing but ForensicsError, and whatever is read tiles the file."""
    path = write(tmp_path / "x.csv.gz", GOOD)
    raw = bytearray(path.read_bytes())
    raw[flip % len(raw)] ^= 0x55
    path.write_bytes(raw)

    try:
        rows = read(path, 10)
    except ForensicsError:
        return
    assert [row["start"] for row in rows] == [0, *(row["end"] for row in rows[:-1])] and rows[-1]["end"] == 10


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that tile a huge claimed file, each with an id that packs to nothing."""
    monkeypatch.setattr(provenance, "ALWAYS_PLAUSIBLE_BYTES", 2**20)
    rows = [(n, n + 1, "x" * 16_000, "", 1) for n in range(2_000)]

    with pytest.raises(UnsafeFile, match="unpacks into more than .*; reading stopped"):
        read(write(tmp_path / "x.csv.gz", rows), 2_000)


# --- which file describes which --------------------------------------------------------------------------------------


def test_the_longest_end_of_a_name_counts(tmp_path: Path) -> None:
    run = run_of(tmp_path, [1])
    named = [
        ("web/a/part.npy", "web/a/part.csv.gz"),
        ("web/b/part.npy", "b/part.csv.gz"),
        ("c/part.npy", "part.csv.gz"),
    ]
    for _, place in named:
        write(tmp_path / "provenance" / place, b"")
    for name, place in named:
        object.__setattr__(run.files[0], "name", name)
        assert provenance_files(run, tmp_path / "provenance") == {name: tmp_path / "provenance" / place}
    object.__setattr__(run.files[0], "name", "../part.npy")
    assert provenance_files(run, tmp_path / "provenance" / "web") == {}


def described(core_shared: Workspace) -> dict[str, list[Row]]:
    """Provenance of the OLMo fixture's files as Dolma would have written it, by the file's name."""
    query = """SELECT file, document_id, start, "end" FROM documents WHERE run = 'olmo' ORDER BY document_id"""
    found: dict[str, list[Row]] = {}
    for file, number, start, end in connect(core_shared).execute(query).fetchall():
        source = SOURCE.format(("dclm", "pes2o")[number % 2], f"part-{number % 5:03d}")
        found.setdefault(file, []).append((start, end, f"id-{number:04d}", source, number // 5 + 1))
    return found


def rows_of(workspace: Workspace) -> list[Row]:
    query = 'SELECT document_id, file, start, "end", external_id, source, line FROM documents ORDER BY document_id'
    return connect(workspace, ["olmo"]).execute(query).fetchall()


def expected(rows: dict[str, list[Row]]) -> list[Row]:
    flat = [(file, *row) for file, some in rows.items() for row in some]
    return [(number, *row) for number, row in enumerate(flat)]


def test_provenance_beside_token_files_is_taken_at_add(
    workspace: Workspace, core_shared: Workspace, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FIXTURES / "olmo", tmp_path / "olmo"))
    rows = described(core_shared)
    for file, some in rows.items():
        write((folder / file).with_suffix(".csv.gz"), some)
    add(folder, name="olmo", workspace=workspace)

    assert rows_of(workspace) == expected(rows)
    assert connect(workspace).execute("SELECT count(*) FROM spans").fetchone() == (
        connect(core_shared).execute("SELECT count(*) FROM spans WHERE run = 'olmo'").fetchone()
    )


def test_provenance_beside_some_files_only_is_not_used(
    workspace: Workspace, core_shared: Workspace, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FIXTURES / "olmo", tmp_path / "olmo"))
    file, some = next(iter(described(core_shared).items()))
    write((folder / file).with_suffix(".csv.gz"), some)
    said: list[str] = []
    add(folder, name="olmo", workspace=workspace, progress=said.append)

    assert "only 1 of 3 token files have provenance beside them; it is not used" in said
    assert [row[4] for row in rows_of(workspace)] == [None] * 50


def test_damaged_provenance_beside_token_files_stops_add(
    workspace: Workspace, core_shared: Workspace, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FIXTURES / "olmo", tmp_path / "olmo"))
    for file, some in described(core_shared).items():
        write((folder / file).with_suffix(".csv.gz"), some[:-1] if "part-1" in file else some)

    with pytest.raises(CorruptFile, match="part-1-00000.csv.gz ends with row 15 .* or take them away to add the run"):
        add(folder, name="olmo", workspace=workspace)
    assert workspace.run_names() == []


def test_provenance_of_a_folder_is_learned_and_stands_instead(
    workspace: Workspace, core_shared: Workspace, tmp_path: Path
) -> None:
    add(FIXTURES / "olmo", name="olmo", workspace=workspace)
    rows = described(core_shared)
    for file, some in rows.items():
        write((tmp_path / "provenance" / Path(file).name).with_suffix(".csv.gz"), some)
    plan = plan_documents("olmo", provenance=tmp_path / "provenance", workspace=workspace)
    found = documents("olmo", provenance=tmp_path / "provenance", workspace=workspace)

    assert rows_of(workspace) == expected(rows)
    assert found.column("with_external_id").to_pylist() == [25, 16, 9] == found.column("with_source").to_pylist()
    assert (plan["by"], plan["fetch_bytes"]) == ("provenance files", 0)
    assert plan["read_bytes"] == sum(path.stat().st_size for path in (tmp_path / "provenance").iterdir())


def test_what_a_damaged_folder_says_is_not_put_in_force(
    workspace: Workspace, core_shared: Workspace, tmp_path: Path
) -> None:
    add(FIXTURES / "olmo", name="olmo", workspace=workspace)
    before = rows_of(workspace)
    for file, some in described(core_shared).items():
        write((tmp_path / Path(file).name).with_suffix(".csv.gz"), some[1:] if "part-2" in file else some)

    with pytest.raises(CorruptFile, match="part-2-00000.csv.gz row 1 is tokens .*, which leaves a gap"):
        documents("olmo", provenance=tmp_path, workspace=workspace)
    assert rows_of(workspace) == before
    (tmp_path / "part-1-00000.csv.gz").unlink()
    with pytest.raises(MissingFile, match="no provenance of 1 of 3 token files of olmo; the first is data/part-1-0"):
        documents("olmo", provenance=tmp_path, workspace=workspace)
