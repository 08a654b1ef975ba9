"""What a step read: the index against brute force, and against the trainers' own records."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet
import pytest

from data_index.batch_queries import readings_of_instances
from data_index.errors import OrderMismatch, UnknownInstance
from data_index.index import build_index
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.store import connect
from data_index.workspace import Workspace
from forensics.lookup import batch, where

FIXTURE = Path(__file__).parents[1] / "fixtures" / "olmo-core"

# Batches that OLMo-core 3.0.0's loader handed out for this configuration, where its epochs meet (26 batches each).
BORDER = {
    26: [20, 103, 10, 127, 21, 150, 30, 14],
    27: [100, 192, 182, 123, 5, 105, 26, 174],
    28: [68, 41, 140, 23, 208, 79, 186, 148],
}


# --- batch -----------------------------------------------------------------------------------------------------------


def test_every_batch_is_what_the_order_files_say(tiny_shared: Workspace, raw: Any) -> None:
    columns = ("step", "epoch", "position", "instance", "file", "offset", "num_tokens", "document_ids", "masked")
    known = []
    for r in raw.readings:
        document_ids = [document["document_id"] for document, _ in raw.pieces(r.instance)]
        known.append((r.step, r.epoch, r.position, r.instance, *raw.place(r.instance), raw.length, document_ids, 0))

    rows = batch("tiny", "0:20", workspace=tiny_shared).to_pylist()
    assert [tuple(row[column] for column in columns) for row in rows] == known
    for step in (1, 7, 14, 15, 20):
        assert batch("tiny", step, workspace=tiny_shared).to_pylist() == [row for row in rows if row["step"] == step]


def test_every_batch_is_the_one_the_trainer_recorded(tiny_shared: Workspace, raw: Any) -> None:
    """The record is written from what was handed to the model; here it is made again from the raw files."""
    record: dict[int, dict[str, Any]] = {}
    for path in (raw.folder / "consumed").iterdir():
        record |= {row["step"]: row for row in pyarrow.parquet.read_table(path).to_pylist()}

    shown = batch("tiny", "0:20", tokens=True, workspace=tiny_shared).to_pylist()
    assert sorted(record) == list(range(1, 21))
    for step, row in record.items():
        instances = [reading.instance for reading in raw.readings if reading.step == step]
        token_ids = raw.token_ids[instances]
        assert row["instances"] == instances
        assert row["input_ids_sha256"] == hashlib.sha256(token_ids.astype("<i8").tobytes()).hexdigest()
        assert [r["token_ids"] for r in shown if r["step"] == step] == token_ids.tolist()


def test_a_real_trainers_batches_hash_as_it_recorded(core_shared: Workspace) -> None:
    lines = map(json.loads, (FIXTURE / "main" / "metrics.jsonl").read_text().splitlines())
    record = {line["step"]: line for line in lines if line["kind"] == "batch"}

    assert sorted(record) == list(range(1, 26))
    table = batch("core", "0:25", tokens=True, workspace=core_shared)
    ids = np.array(table.column("token_ids").to_pylist(), dtype="<i8").reshape(25, 8, 128)
    instances = table.column("instance").to_numpy().reshape(25, 8)
    for step, line in record.items():
        assert instances[step - 1].tolist() == line["index"]
        assert hashlib.sha256(ids[step - 1].tobytes()).hexdigest() == line["input_ids_i64_sha256"]


def test_epochs_meet_where_the_trainers_loader_lets_them(core_shared: Workspace) -> None:
    """The remainder of epoch 1 fills no batch and is dropped."""
    rows = batch("core", "25:28", workspace=core_shared).to_pylist()

    assert {step: [row["instance"] for row in rows if row["step"] == step] for step in BORDER} == BORDER
    assert [row["epoch"] for row in rows] == [1] * 8 + [2] * 16
    assert [row["position"] for row in rows] == [*range(200, 208), *range(16)]


# --- where -----------------------------------------------------------------------------------------------------------


def test_where_inverts_batch(tiny_shared: Workspace, raw: Any) -> None:
    """For every instance, whether it was read once, twice in an epoch, or in both epochs."""
    columns = ("step", "position", "instance", "file", "offset")
    known = [(r.step, r.position, r.instance, *raw.place(r.instance)) for r in raw.readings]
    planted = json.loads((raw.folder / "truth.json").read_text())["duplicate"]

    def found(rows: Any) -> list[tuple[Any, ...]]:
        return [tuple(row[column] for column in columns) for row in rows.to_pylist()]

    every = readings_of_instances(tiny_shared, tiny_shared.run("tiny"), range(len(raw.token_ids)))
    assert found(every) == known
    for instance in (0, len(raw.token_ids) - 1, *planted["instances"]):
        rows = found(where("tiny", instance=instance, workspace=tiny_shared))
        assert rows == [row for row in known if row[2] == instance]
        assert instance not in planted["instances"] or [row[0] for row in rows][:2] == planted["steps"]


def test_an_instance_that_was_never_read_has_rows_without_a_step(core_shared: Workspace) -> None:
    """Two epochs of 213 instances, 40 batches of 8: some are left over."""
    read = set(batch("core", "0:40", workspace=core_shared).column("instance").to_pylist())
    never = sorted(set(range(213)) - read)
    query = "SELECT instance FROM instances WHERE run = 'core' GROUP BY ALL HAVING count(step) = 0 ORDER BY ALL"

    assert never
    assert connect(core_shared, ["core"]).execute(query).fetchall() == [(instance,) for instance in never]
    for instance in never:
        assert where("core", instance=instance, workspace=core_shared).num_rows == 0
        with pytest.raises(UnknownInstance, match=f"did not read instance {instance} .who did: forensics where core"):
            batch("core", "0:40", instance=instance, workspace=core_shared)
    with pytest.raises(UnknownInstance, match="core has instances 0..212, not 213"):
        where("core", instance=213, workspace=core_shared)


def test_a_document_is_found_wherever_a_piece_of_it_was_read(tiny_shared: Workspace, raw: Any) -> None:
    for document in raw.documents[:8]:
        readings = [r for r in raw.readings if document in [d for d, _ in raw.pieces(r.instance)]]
        rows = where("tiny", document=document["document_id"], workspace=tiny_shared).to_pylist()

        assert [(row["step"], row["instance"]) for row in rows] == [(r.step, r.instance) for r in readings]


# --- the file alone --------------------------------------------------------------------------------------------------


def test_plain_duckdb_answers_from_the_file_alone(tiny_shared: Workspace, raw: Any) -> None:
    with duckdb.connect(tiny_shared.home("tiny") / "index.duckdb", read_only=True) as connection:
        rows = connection.execute("SELECT instance FROM batch(7)").fetchall()
        seen = connection.execute("SELECT step, position FROM steps_of_instance(50) WHERE step > 0").fetchall()
        columns = [column[0] for column in connection.execute("FROM batch(7)").description]

    assert rows == [(r.instance,) for r in raw.readings if r.step == 7]
    assert seen == [(r.step, r.position) for r in raw.readings if r.instance == 50]
    assert columns == ["step", "attempt", "epoch", "position", "instance", "file", "offset", "num_tokens"]


def a_segment(first_step: int, num_steps: int, first_position: int, attempt: int = 1) -> Segment:
    return Segment(
        first_step=first_step,
        num_steps=num_steps,
        epoch=1,
        first_position=first_position,
        instances_per_batch=10,
        attempt=attempt,
    )


@pytest.mark.parametrize("num_restarts", [0, 1, 3])
def test_a_restart_reads_positions_again(num_restarts: int, tiny_shared: Workspace, tmp_path: Path, raw: Any) -> None:
    """Steps 1..4, and step 3 and 4 again for each restart; 112 positions, most of them never read."""
    restarts = [a_segment(3, 2, 20, attempt=attempt) for attempt in range(2, num_restarts + 2)]
    build_index(replace(tiny_shared.run("tiny"), segments=(a_segment(1, 4, 0), *restarts)), tmp_path / "index.duckdb")
    order = np.load(raw.folder / "order" / "epoch-1.npy").astype(int).tolist()
    attempts = {step: range(1, num_restarts + 2) if step > 2 else [1] for step in (1, 2, 3, 4)}
    known = [
        (step, a, p, order[p]) for step in attempts for a in attempts[step] for p in range(step * 10 - 10, step * 10)
    ]

    with duckdb.connect(tmp_path / "index.duckdb", read_only=True) as connection:
        columns = "step, attempt, position, instance"
        assert connection.execute(f"SELECT {columns} FROM batches ORDER BY ALL").fetchall() == known
        assert connection.execute(f"SELECT {columns} FROM instances WHERE step > 0 ORDER BY ALL").fetchall() == known
        never = connection.execute("SELECT DISTINCT instance, position FROM instances WHERE step IS NULL").fetchall()
    unread = set(range(len(raw.token_ids))) - {instance for *_, instance in known}
    assert sorted(never) == [(instance, None) for instance in sorted(unread)]


PAST: dict[str, Callable[[Run], Segment]] = {
    "too many steps": lambda run: replace(run.segments[0], num_steps=15),
    "too late a start": lambda run: replace(run.segments[0], first_position=1),
    "too large a batch": lambda run: replace(run.segments[0], instances_per_batch=9),
}


@pytest.mark.parametrize("how", PAST)
def test_segments_that_reach_past_the_order_are_a_mismatch(how: str, tiny_shared: Workspace, tmp_path: Path) -> None:
    run = tiny_shared.run("tiny")

    with pytest.raises(OrderMismatch, match=r"steps 1..1\d need 1\d\d positions of epoch 1; its order has 112"):
        build_index(replace(run, segments=(PAST[how](run),)), tmp_path / "index.duckdb")
    assert list(tmp_path.iterdir()) == []


# --- data in training order ------------------------------------------------------------------------------------------


def in_training_order(*segments: Segment) -> Run:
    file = TokenFile(name="a", path=Path("/a"), dtype="uint16", num_bytes=800, first_instance=0, num_instances=100)
    return Run(
        name="through",
        layout="neox",
        source=Path("/"),
        sequence_length=4,
        files=(file,),
        order=Order(rule="sequential"),
        segments=segments,
        trust=OrderTrust(level="derived", witness="x"),
        config_format="neox",
        config={},
    )


def stretch(first: int, num: int, position: int, rows: int, attempt: int = 1) -> Segment:
    return Segment(
        first_step=first,
        num_steps=num,
        epoch=1,
        first_position=position,
        instances_per_batch=rows,
        attempt=attempt,
    )


@pytest.mark.parametrize(
    "segments",
    [
        [stretch(1, 10, 0, 10)],
        [stretch(1, 3, 0, 7)],
        [stretch(1, 3, 5, 7), stretch(4, 2, 40, 20)],
        [stretch(4, 2, 40, 20, attempt=2), stretch(1, 3, 5, 7)],
        [stretch(1, 3, 0, 7), stretch(3, 2, 14, 7, attempt=2)],
    ],
    ids=["all of it", "the start of it", "with a gap", "restarted further on", "read twice"],
)
def test_data_in_training_order_are_indexed_without_an_array_of_them(
    segments: list[Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_index.index.epoch_order", lambda run, epoch: pytest.fail("an array was made"))
    build_index(in_training_order(*segments), tmp_path / "index.duckdb")
    known = sorted(
        (s.first_step + row // s.instances_per_batch, s.attempt, s.first_position + row)
        for s in segments
        for row in range(s.num_steps * s.instances_per_batch)
    )

    with duckdb.connect(str(tmp_path / "index.duckdb"), read_only=True) as connection:
        for view in ("batches", "instances"):
            found = connection.sql(f"SELECT step, attempt, position, instance FROM {view} WHERE step > 0 ORDER BY ALL")
            assert found.fetchall() == [(*reading, reading[2]) for reading in known]
        never = connection.sql("SELECT instance FROM instances WHERE step IS NULL ORDER BY 1").fetchall()
    assert never == [(i,) for i in range(100) if i not in {position for _, _, position in known}]
