"""Hostile and impossible inputs, one claim each: every one of these once got through."""

import hashlib
import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import data_index.stand_ins as stand_ins
from data_index.batch_queries import plan_of
from data_index.dcp import read_dcp_metadata
from data_index.errors import (
    CorruptFile,
    DiskFull,
    FailedQuery,
    ForensicsError,
    RefusedQuery,
    UnknownLayout,
    UnsafeFile,
)
from data_index.index import build_index
from data_index.pickles import TorchArchive, read_pickle
from data_index.registration import add
from data_index.run import Order
from data_index.run_file import read_run, write_run
from data_index.store import connect, run_query
from data_index.workspace import Workspace
from forensics.lookup import where

WRITES = [
    "WITH x AS (COPY (SELECT 1) TO '{new}') SELECT * FROM x",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{new}'",
    "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{new}'",
    "EXPLAIN/**/ANALYZE COPY (SELECT 1) TO '{new}'",
    "EXPLAIN ANALYZE/**/COPY (SELECT 1) TO '{new}'",
    "-- a comment first\nEXPLAIN ANALYZE COPY (SELECT 1) TO '{new}'",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{new}') SELECT * FROM x",
    "WITH x AS (DELETE FROM runs RETURNING *) SELECT * FROM x",
]


@pytest.mark.parametrize("query", WRITES)
def test_sql_that_writes_is_refused(query: str, tiny_shared: Workspace) -> None:
    new = tiny_shared.folder / "new"
    new.unlink(missing_ok=True)
    with pytest.raises(RefusedQuery):
        run_query(tiny_shared, query.format(new=new))
    assert not new.exists()


def test_a_query_that_is_no_text_is_a_failed_query(tiny_shared: Workspace) -> None:
    with pytest.raises(FailedQuery):
        run_query(tiny_shared, "SELECT '\udc80'")
    assert where("tiny", text="\udc80", workspace=tiny_shared).num_rows == 0  # or a stated error


def test_an_index_on_a_full_disk_is_disk_full_not_empty(small_disk: Path, tiny_shared: Workspace) -> None:
    with pytest.raises(DiskFull):
        build_index(tiny_shared.run("tiny"), small_disk / "index.duckdb")

    assert list(small_disk.iterdir()) == []


def test_sql_is_executed_on_connections_of_two_doors() -> None:
    """Who asks a question gets its connection from `store`, and imports no DuckDB (test_duckdb_has_two_doors)."""
    root = Path(__file__).parents[2]
    found = {
        path.relative_to(root).as_posix()
        for package in ("data_index", "replay", "probes", "forensics", "app")
        for path in (root / package).rglob("*.py")
        if any(call in path.read_text() for call in (".execute(", ".executemany(", ".sql("))
    }
    queries = {
        f"data_index/{of}_queries.py" for of in ("batch", "document", "metric", "origin", "probe", "text", "token")
    }
    assert found == {"data_index/store.py", "data_index/index.py"} | queries


def archive(pickled: bytes, storage: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", storage)
    return buffer.getvalue()


@pytest.mark.parametrize("flag", [0x01, 0x20, 0x40], ids=["encrypted", "patched", "strong encryption"])
def test_zip_flags_that_are_not_read_are_refused(flag: int) -> None:
    raw = bytearray(archive(pickle.dumps({}, 2)))
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = raw.find(magic)
        while at >= 0:
            raw[at + offset] |= flag
            at = raw.find(magic, at + 1)
    with pytest.raises(CorruptFile):
        TorchArchive(io.BytesIO(bytes(raw)), "test.pt", len(raw))


class Metadata: ...


def dcp(folder: Path, **state: Any) -> Any:
    """Write a .metadata whose Metadata has this state, and read it."""
    head = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81"
    (folder / ".metadata").write_bytes(head + pickle.dumps(state, 2)[2:-1] + b"b.")
    return read_dcp_metadata(folder)


@pytest.mark.parametrize(
    "state",
    [
        {"state_dict_metadata": {}, "storage_data": None},
        {"state_dict_metadata": {}, "storage_data": [1]},
        {"state_dict_metadata": {}, "storage_data": {1: 2}},
        {"state_dict_metadata": None, "storage_data": {}},
        {"state_dict_metadata": {"a": 3}, "storage_data": {}},
    ],
)
def test_metadata_of_another_shape_is_corrupt(state: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptFile):
        dcp(tmp_path, **state)


def test_a_record_without_a_state_lacks_its_fields() -> None:
    record = read_pickle(b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81.", "test.pkl")
    with pytest.raises(CorruptFile, match="lacks 'fqn'"):
        record.get("fqn")


def test_a_shared_tuple_is_not_unfolded() -> None:
    """Each object is resolved once; unfolded, this one of 120 bytes would have 2**40 parts, and writing it out in a
    message would never end.
    """
    with pytest.raises(UnsafeFile, match="test.pkl unfolds into [0-9]+ values"):
        read_pickle(b"\x80\x02)" + b"2\x86" * 40 + b".", "test.pkl")


def test_a_pickle_cannot_change_the_reader() -> None:
    """BUILD with a slot state sets attributes on what find_class gave."""
    try:
        read_pickle(b"\x80\x02ctorch\nSize\n}X\x05\x00\x00\x00leftsK\x01sb.".replace(b"lefts", b"leftx"), "test.pkl")
    except ForensicsError:
        pass
    assert not hasattr(stand_ins.ALLOWED["torch", "Size"], "leftx")


def test_a_tensor_larger_than_its_storage_is_refused() -> None:
    """Stride 0 makes 40 TB of 8 bytes; tensor_of_archive clones it."""
    storage = stand_ins.StorageRecord(key="0", dtype="float32", num_elements=2)
    with pytest.raises(UnsafeFile):
        stand_ins.TensorRecord(storage=storage, offset=0, shape=(10**13,), strides=(0,))


def huge() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<u4", "fortran_order": False, "shape": (10**13,)})
    return buffer.getvalue() + bytes(16)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "content", [huge(), npz(), b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118], ids=["huge", "npz", "("]
)
def test_an_order_that_is_no_npy_is_corrupt(content: bytes, tiny_copy: Path, workspace: Workspace) -> None:
    (tiny_copy / "order" / "epoch-1.npy").write_bytes(content)
    run = read_run(tiny_copy)
    entry = {"path": "order/epoch-1.npy", "sha256": hashlib.sha256(content).hexdigest()}
    write_run(
        replace(run, order=Order(rule="file", parameters=dict(run.order.parameters) | {"epoch_1": entry})), tiny_copy
    )
    with pytest.raises(CorruptFile):
        add(tiny_copy, workspace=workspace)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", 'version = "1"'),
        ("num_steps = 14", 'num_steps = "14"'),
        ("sequence_length = 64", "sequence_length = 0"),
        ("instances_per_batch = 8", "instances_per_batch = -8"),
        ('dtype = "uint16"', 'dtype = "banana"'),
        ('dtype = "uint16"', 'dtype = "object"'),
        ("num_instances = 50", "num_instances = 51"),
    ],
)
def test_a_run_toml_with_impossible_values_is_corrupt(old: str, new: str, tiny_copy: Path) -> None:
    text = (tiny_copy / "run.toml").read_text()
    assert old in text
    (tiny_copy / "run.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(CorruptFile):
        read_run(tiny_copy)


@pytest.mark.parametrize("content", ["[1]", "3", '{"version": true}'])
def test_a_workspace_marker_that_is_no_object_is_corrupt(content: str, workspace: Workspace) -> None:
    workspace.create()
    (workspace.folder / "workspace.json").write_text(content)
    with pytest.raises(CorruptFile):
        Workspace(workspace.folder)


def test_a_step_taken_twice_is_planned_once(tiny_copy: Path, workspace: Workspace) -> None:
    """Steps 8..10 were taken, then the run restarted at checkpoint 7: the last attempt is the one that was kept."""
    run = read_run(tiny_copy)
    first, second = run.segments
    again = replace(first, first_step=8, num_steps=7, first_position=56, attempt=2)
    write_run(replace(run, segments=(replace(first, num_steps=10), again, second)), tiny_copy)
    (tiny_copy / "consumed").rename(tiny_copy / "set aside")
    run = add(tiny_copy, workspace=workspace)
    plan = plan_of(workspace, run, 0, 20)
    assert [len(plan[step].instances) for step in plan.steps] == [8] * 20
    assert run.segment_of_step(9).attempt == 2
    assert run.tokens_after(20) == 20 * 8 * 64


def test_a_forced_layout_that_does_not_fit_is_said(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(UnknownLayout):
        add(tmp_path, layout="olmo_core", workspace=workspace)


CONFIGS = [
    ("dataset", {"sequence_length": None}),
    ("dataset", {"sequence_length": 0}),
    ("dataset", {"dtype": "banana"}),
    ("dataset", {"max_target_sequence_length": 100}),
    ("data_loader", {"global_batch_size": 0}),
    ("data_loader", {"seed": None}),
    ("trainer", {"max_duration": {"value": 40}}),
]


@pytest.mark.parametrize(("section", "fields"), CONFIGS)
def test_a_config_with_impossible_values_is_stated(
    section: str, fields: dict[str, Any], core_copy: Path, workspace: Workspace
) -> None:
    for path in core_copy.glob("ckpt/step*/config.json"):
        config = json.loads(path.read_text())
        config[section] |= fields
        path.write_text(json.dumps(config))
    with pytest.raises(ForensicsError):
        add(core_copy, workspace=workspace)


def test_a_file_with_half_a_token_at_its_end_is_read(core_copy: Path, workspace: Workspace) -> None:
    """OLMo-core reads by offset; without a fingerprint to contradict, so should we, or say CorruptFile."""
    for path in core_copy.glob("ckpt/step*/train/rank0.pt"):
        path.unlink()
    with (core_copy.parent / "data" / "part-02-00000.npy").open("ab") as file:
        file.write(b"x")
    try:
        assert add(core_copy, workspace=workspace).trust.proved == ((1, 25),)
    except ForensicsError:
        pass


@pytest.mark.parametrize(
    ("file", "column"),
    [("documents", "tags"), ("consumed", "instances"), ("consumed", "input_ids_sha256"), ("metrics", "attempt")],
)
def test_a_native_table_without_a_column_is_named(
    file: str, column: str, tiny_copy: Path, workspace: Workspace
) -> None:
    paths = [tiny_copy / "documents.parquet"] if file == "documents" else list((tiny_copy / file).iterdir())
    for path in paths:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns([column]), path)
    with pytest.raises(CorruptFile, match=column):
        add(tiny_copy, workspace=workspace)
        connect(workspace)


def test_two_files_of_one_name_are_refused(tiny_copy: Path, workspace: Workspace) -> None:
    """Hashes and documents are kept by file name."""
    text = (tiny_copy / "run.toml").read_text()
    (tiny_copy / "run.toml").write_text(text.replace('name = "heldout.bin"', 'name = "text-0.bin"'))

    with pytest.raises(CorruptFile, match="text-0.bin: there are two of it"):
        add(tiny_copy, workspace=workspace)
