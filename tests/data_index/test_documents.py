"""Where documents begin and end: against the fixtures' own record, and against numpy over the raw files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_index import document_borders, learned_documents
from data_index.document_borders import border_tokens, ends_by_token
from data_index.errors import CorruptFile, UnknownDocument
from data_index.files import ROW_GROUP_ROWS, write_hashed_parquet_parts
from data_index.kinds import arrow_schema, conform
from data_index.learned_documents import BorderRule, learn_documents, rule_by_end_token
from data_index.registration import add
from data_index.run import Order, OrderTrust, Run, TokenFile
from data_index.store import connect
from data_index.tokens import TokenReader
from data_index.workspace import Workspace, learn
from forensics.document_learning import documents, plan_documents
from forensics.lookup import batch

FIXTURES = Path(__file__).parents[1] / "fixtures"
CORE = FIXTURES / "olmo-core" / "data"


def borders(tokens: np.ndarray, eos: int) -> list[tuple[int, int]]:
    """Token by token."""
    found, start = [], 0
    for place, token in enumerate(tokens.tolist()):
        if token == eos or place == len(tokens) - 1:
            found.append((start, place + 1))
            start = place + 1
    return found


def documents_of(workspace: Workspace, run: str) -> list[tuple[Any, ...]]:
    query = f"""SELECT document_id, file, start, "end" FROM documents WHERE run = '{run}' ORDER BY ALL"""
    return connect(workspace, [run]).execute(query).fetchall()


def run_of(folder: Path, *tokens: list[int], eos: int | None = 0, **fields: Any) -> Run:
    """A run whose files hold these tokens."""
    files = []
    for number, ids in enumerate(tokens):
        path = folder / f"part-{number}.npy"
        np.array(ids, dtype="<u2").tofile(path)
        sizes = {"num_bytes": 2 * len(ids), "first_instance": 0, "num_instances": 0}
        files.append(TokenFile(name=path.name, path=path, dtype="uint16", **sizes))
    trust = OrderTrust(level="unknown", witness="none")
    common = {"name": "run", "layout": "native", "source": folder, "sequence_length": 4, "segments": ()}
    common |= {"order": Order(rule="file"), "trust": trust, "config_format": "native", "config": {}}
    return Run(files=tuple(files), eos_token_id=eos, **(common | fields))


def learned(home: Path) -> list[dict[str, Any]]:
    names = json.loads((home / "current.json").read_text())["documents"]
    return [row for name in names for row in pyarrow.parquet.read_table(home / name).to_pylist()]


# --- borders ---------------------------------------------------------------------------------------------------------


def test_the_documents_of_the_olmo_core_fixture_are_those_it_was_made_of(core_shared: Workspace) -> None:
    made = [json.loads(line) for line in (CORE / "documents.jsonl").read_text().splitlines()]
    wanted = [(n, f"data/part-{d['file']:02d}-00000.npy", d["start"], d["end"]) for n, d in enumerate(made)]

    assert documents_of(core_shared, "core") == wanted == documents_of(core_shared, "skip")


def test_the_documents_of_the_olmo_fixture_end_with_its_end_token(core_shared: Workspace) -> None:
    manifest = json.loads((FIXTURES / "olmo" / "data" / "manifest.json").read_text())
    found = documents_of(core_shared, "olmo")
    wanted = []
    for file in manifest["files"]:
        tokens = np.fromfile(FIXTURES / "olmo" / "data" / file["file"], dtype="<u2")
        there = borders(tokens, manifest["eos"])
        assert len(there) == file["n_docs"]
        wanted += [(f"data/{file['file']}", *border) for border in there]

    assert found == [(number, *row) for number, row in enumerate(wanted)]


@pytest.mark.parametrize("scan", [1, 2, 3, 7, 1000])
def test_borders_do_not_depend_on_where_the_scan_is_cut(
    scan: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_borders, "SCAN_TOKENS", scan)
    random = np.random.default_rng(scan)
    for case in ([], [0], [5], [0, 0, 0], [1, 0, 2, 0], *(random.integers(0, 3, n).tolist() for n in range(1, 30))):
        run = run_of(tmp_path, case)
        ends = [end for ends in ends_by_token(TokenReader(run, None), run.files[0], 0) for end in ends.tolist()]
        assert ends == [end for _, end in borders(np.array(case, dtype=int), 0)]


@pytest.mark.parametrize("scan", [1, 2, 1000])
@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        ([2, 5, 0, 2, 6, 0, 7, 0], [3, 8]),
        ([2, 5, 0, 0, 2, 6], [4, 6]),
        ([0, 2, 0, 2], [1, 3, 4]),
        ([2, 5, 0], [3]),
        ([], []),
    ],
)
def test_where_documents_begin_with_a_token_only_an_end_before_it_counts(
    tokens: list[int], ends: list[int], scan: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_borders, "SCAN_TOKENS", scan)
    run = run_of(tmp_path, tokens)

    found = ends_by_token(TokenReader(run, None), run.files[0], 0, bos=2)
    assert [end for some in found for end in some.tolist()] == ends


@pytest.mark.parametrize(
    ("config", "begin"),
    [
        ({"dataset": {"tokenizer": {"eos_token_id": 0, "bos_token_id": 2}}}, 2),
        ({"dataset": {"tokenizer": {"eos_token_id": 0, "bos_token_id": None}}}, None),
        ({"dataset": [{"sources": [], "tokenizer": {"bos_token_id": 3}}]}, 3),
        ({"dataset": [], "data_loader": {"tokenizer": {"bos_token_id": 4}}}, 4),
        ({"dataset": "hostile"}, None),
        ({}, None),
    ],
)
def test_the_begin_token_is_the_config_s(config: dict[str, Any], begin: int | None, tmp_path: Path) -> None:
    run = run_of(tmp_path, [1], config=config, config_format="olmo_core")

    assert border_tokens(run) == (0, begin)
    assert border_tokens(replace(run, config_format="olmo")) == (0, None)


def test_without_an_end_token_borders_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownDocument, match="its config names no end token.*--provenance DIR"):
        border_tokens(run_of(tmp_path, [1], eos=None))


# --- learning them ---------------------------------------------------------------------------------------------------


def test_documents_are_numbered_on_from_file_to_file(tmp_path: Path) -> None:
    run = run_of(tmp_path, [1, 0, 2], [], [0], [3, 4])

    assert learn_documents(run, tmp_path, rule_by_end_token(run), TokenReader(run, None)) == 4
    assert [(d["document_id"], d["file"], d["start"], d["end"]) for d in learned(tmp_path)] == [
        (0, "part-0.npy", 0, 2),
        (1, "part-0.npy", 2, 3),
        (2, "part-2.npy", 0, 1),
        (3, "part-3.npy", 0, 2),
    ]
    assert all(d["tags"] == [] and d["source"] is d["external_id"] is d["line"] is None for d in learned(tmp_path))


class Interrupted(Exception):
    pass


def test_a_stopped_search_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were done are not read again, and nothing is in force before all are."""
    run = run_of(tmp_path, [1, 0, 2], [0, 0], [3, 0])
    (whole := tmp_path / "whole").mkdir()
    learn_documents(run, whole, rule_by_end_token(run), TokenReader(run, None))
    searched: list[str] = []

    def until_the_third(reader: TokenReader, file: TokenFile, eos: int, bos: int | None) -> Any:
        if file.name == "part-2.npy" and searched.count(file.name) == 0:
            searched.append(file.name)
            raise Interrupted
        searched.append(file.name)
        return ends_by_token(reader, file, eos, bos)

    monkeypatch.setattr(learned_documents, "ends_by_token", until_the_third)
    (stopped := tmp_path / "stopped").mkdir()
    with pytest.raises(Interrupted):
        learn_documents(run, stopped, rule_by_end_token(run), TokenReader(run, None))
    assert not (stopped / "current.json").exists()
    learn_documents(run, stopped, rule_by_end_token(run), TokenReader(run, None))

    assert searched == ["part-0.npy", "part-1.npy", "part-2.npy", "part-2.npy"]
    assert learned(stopped) == learned(whole)
    assert not (stopped / "documents" / "work.json").exists()


def test_pieces_of_another_search_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, [1, 0, 2], [0, 0])
    monkeypatch.setattr(learned_documents, "put_in_force", lambda *_: (_ for _ in ()).throw(Interrupted()))
    with pytest.raises(Interrupted):
        learn_documents(run, tmp_path, rule_by_end_token(run), TokenReader(run, None))
    monkeypatch.undo()

    assert learn_documents(run, tmp_path, BorderRule(eos=1), TokenReader(run, None)) == 3
    assert [(d["start"], d["end"]) for d in learned(tmp_path)] == [(0, 1), (1, 3), (0, 2)]


def test_large_tables_are_written_in_small_groups_of_rows(tmp_path: Path) -> None:
    """So that DuckDB finds a document without reading them all."""
    schema = pyarrow.schema([("document_id", pyarrow.int64())])
    tables = (pyarrow.table({"document_id": np.arange(n, n + 30_000)}) for n in range(0, 300_000, 30_000))
    path = write_hashed_parquet_parts(tmp_path, schema, tables)

    read = pyarrow.parquet.ParquetFile(path)
    sizes = [read.metadata.row_group(n).num_rows for n in range(read.num_row_groups)]
    assert max(sizes) <= ROW_GROUP_ROWS and len(sizes) < 10
    assert read.read().column("document_id").to_pylist() == list(range(300_000))
    assert list(tmp_path.iterdir()) == [path]


def test_the_trainer_s_own_documents_win(tiny_shared: Workspace, raw: Any) -> None:
    assert len(documents_of(tiny_shared, "tiny")) == len(raw.documents)
    assert documents("tiny", workspace=tiny_shared).column("with_source").to_pylist() == [7, 10, 2]


def test_a_table_of_before_external_ids_can_be_read(tiny_copy: Path, workspace: Workspace, raw: Any) -> None:
    """Native folders, and workspaces, written before the column was there."""
    old = pyarrow.parquet.read_table(tiny_copy / "documents.parquet").drop_columns(["external_id", "line"])
    pyarrow.parquet.write_table(old, tiny_copy / "documents.parquet")
    add(tiny_copy, workspace=workspace)
    learn(workspace.home("tiny"), "documents", old)

    found = connect(workspace).execute("SELECT external_id, line, document_id FROM documents").fetchall()
    assert found == [(None, None, d["document_id"]) for d in raw.documents]
    assert conform(old, "documents", "x").schema == arrow_schema("documents")
    assert batch("tiny", "0:20", by="source", workspace=workspace).num_rows > 1
    with pytest.raises(CorruptFile, match="lacks the column 'start'"):
        conform(old.drop_columns(["start"]), "documents", "x")


def test_documents_are_learned_anew_where_a_way_is_named(core_copy: Path, workspace: Workspace) -> None:
    add(core_copy, name="core", workspace=workspace)
    before = documents_of(workspace, "core")
    assert plan_documents("core", by_end_token=True, workspace=workspace) == {
        "run": "core",
        "known": True,
        "by": "the end token 0",
        "files": 3,
        "read_bytes": sum(path.stat().st_size for path in (core_copy.parent / "data").glob("*.npy")),
        "fetch_bytes": 0,
    }
    found = documents("core", by_end_token=True, workspace=workspace)

    assert documents_of(workspace, "core") == before
    assert found.to_pylist() == [
        {"file": f"data/part-0{n}-00000.npy", "documents": d, "tokens": t, "with_external_id": 0, "with_source": 0}
        for n, (d, t) in enumerate([(27, 11243), (22, 9896), (20, 6396)])
    ]


# --- spans -----------------------------------------------------------------------------------------------------------


def expected_spans(placed: list[tuple[int, str, int, int, int]], documents: list[tuple[Any, ...]]) -> set[Any]:
    """(instance, document, start, stop) by comparing every piece of an instance with every document."""
    spans = set()
    for instance, file, first_token, start, stop in placed:
        for document, of, begin, end in documents:
            low, high = max(begin, start), min(end, stop)
            if of == file and low < high:
                spans.add((instance, document, first_token + low - start, first_token + high - start))
    return spans


def pieces_of(record: Run) -> list[tuple[int, str, int, int, int]]:
    """(instance, file, place in the row, start, stop) of every piece of every instance."""
    reader = TokenReader(record, None)
    placed = []
    for instance in range(record.num_instances):
        first = 0
        for number, start, stop in reader.pieces_of(instance):
            placed.append((instance, record.files[number].name, first, start, stop))
            first += stop - start
    return placed


def assert_spans_are_counted(workspace: Workspace, run: str) -> None:
    record = workspace.run(run)
    query = f"SELECT instance, document_id, start, stop FROM spans WHERE run = '{run}'"
    found = connect(workspace).execute(query).fetchall()
    placed = pieces_of(record)

    assert set(found) == expected_spans(placed, documents_of(workspace, run)) and len(found) == len(set(found))
    assert sum(stop - start for _, _, start, stop in found) == sum(stop - start for *_, start, stop in placed)


@pytest.mark.parametrize("run", ["core", "skip", "olmo"])
def test_spans_of_every_document_are_a_brute_force_count(run: str, core_shared: Workspace) -> None:
    assert_spans_are_counted(core_shared, run)


def test_spans_of_the_sample_run_are_a_brute_force_count(tiny_shared: Workspace) -> None:
    assert_spans_are_counted(tiny_shared, "tiny")


def test_spans_of_a_megatron_run_are_a_brute_force_count(workspace: Workspace) -> None:
    """Its documents are those of the .idx; rows are pieces of them in a shuffled order, and overlap by one token."""
    add(FIXTURES / "neox-run", data=FIXTURES / "neox", name="neox", workspace=workspace)

    assert_spans_are_counted(workspace, "neox")
    assert len(documents_of(workspace, "neox")) == 300


def test_spans_end_where_their_row_s_end_tokens_are(core_shared: Workspace) -> None:
    """From the rows' own tokens: a span ends with an end token or with its row."""
    record = core_shared.run("core")
    rows = TokenReader(record, None).rows(range(record.num_instances))
    query = "SELECT instance, start, stop FROM spans WHERE run = 'core' ORDER BY ALL"
    spans = connect(core_shared).execute(query).fetchall()

    ends = [(n, place + 1) for n, row in enumerate(rows) for place in range(128) if row[place] == 0 or place == 127]
    assert [(instance, stop) for instance, _, stop in spans] == ends


@pytest.mark.parametrize("kind", ["NumpyPaddedFSLDataset", "NumpyPackedFSLDataset"])
def test_documents_of_rows_in_pieces_lie_where_the_pieces_do(
    kind: str, workspace: Workspace, tmp_path: Path, write_core: Any
) -> None:
    tokenizer = {"vocab_size": 384, "eos_token_id": 0, "pad_token_id": 1}
    paths = [f"data/part-0{number}-00000.npy" for number in range(3)]
    dataset = {"_CLASS_": f"olmo_core.data.{kind}Config", "paths": paths, "dtype": "uint16", "tokenizer": tokenizer}
    folder = write_core(tmp_path / "run", dataset | {"sequence_length": 128})
    add(folder, data=CORE.parent, name="run", workspace=workspace)

    assert_spans_are_counted(workspace, "run")
    assert len(documents_of(workspace, "run")) == 69
