"""The index of a run that did everything a run does, row by row against brute force; whole, in pieces, interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from data_index import index
from data_index.batch_queries import readings_of_instances
from data_index.errors import Busy
from data_index.index import BLOCK_INSTANCES, build_index, index_key
from data_index.orders import epoch_order
from data_index.readings import EpochOrder, layers, places_of_instances, steps_of_positions, stop_position
from data_index.registration import add
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import write_run
from data_index.shares import file_shares, mixture
from data_index.store import connect, run_query
from data_index.workspace import Workspace
from tests.benchmarks.index_build import BATCH, manifest
from tests.benchmarks.index_build import LENGTH as LENGTH_OF_ROWS

LENGTH = 4
FILE_SIZES = (3000, 0, 1, 5999, 900)


def segment(first: int, num: int, position: int, rows: int, *, epoch: int = 1, attempt: int = 1) -> Segment:
    return Segment(
        first_step=first,
        num_steps=num,
        epoch=epoch,
        first_position=position,
        instances_per_batch=rows,
        attempt=attempt,
    )


# Two epochs of 9,900 instances (9,904 positions: the order repeats its first instances to fill up 16 ranks).
# A batch ramp; a restart that reads the same batches again; one that goes on with others; a range that is skipped; a
# loader that starts the epoch over; an epoch that ends before its last positions.
SEGMENTS = (
    segment(1, 10, 0, 16),
    segment(11, 20, 160, 32),
    segment(26, 5, 640, 32, attempt=2),
    segment(31, 10, 800, 64),
    segment(36, 5, 2048, 64, attempt=2),
    segment(41, 100, 2400, 64),
    segment(141, 4, 0, 64),
    segment(145, 17, 9904 - 17 * 64, 64),
    segment(162, 120, 0, 64, epoch=2),
    segment(270, 12, 108 * 64, 64, epoch=2, attempt=2),
    segment(270, 12, 108 * 64, 64, epoch=2, attempt=3),
)


def eventful_run(rule: str = "olmo", segments: tuple[Segment, ...] = SEGMENTS) -> Run:
    firsts = np.cumsum([0, *FILE_SIZES]).tolist()
    return Run(
        name="eventful",
        layout="native",
        source=Path("/none"),
        sequence_length=LENGTH,
        files=tuple(
            TokenFile(
                name=f"part-{number}",
                path=Path(f"/none/part-{number}"),
                dtype="uint16",
                num_bytes=2 * LENGTH * size,
                first_instance=first,
                num_instances=size,
            )
            for number, (first, size) in enumerate(zip(firsts, FILE_SIZES, strict=False))
        ),
        order=Order(rule=rule, parameters={"seed": 7, "drop_last": False, "world_size": 16} if rule == "olmo" else {}),
        segments=segments,
        trust=OrderTrust(level="derived", witness="made up"),
        config_format="olmo",
        config={},
    )


@dataclass(frozen=True)
class Known:
    """Everything the run read, one by one from the segments: (step, attempt, epoch, position, instance)."""

    readings: list[tuple[int, int, int, int, int]]

    @classmethod
    def of(cls, run: Run) -> Known:
        orders = {epoch: epoch_order(run, epoch).tolist() for epoch in run.epochs}
        found = []
        for s in run.segments:
            for row in range(s.num_steps * s.instances_per_batch):
                step, position = s.first_step + row // s.instances_per_batch, s.first_position + row
                found.append((step, s.attempt, s.epoch, position, orders[s.epoch][position]))
        return cls(sorted(found))

    def never(self, run: Run) -> list[tuple[int, int]]:
        read = {(epoch, instance) for _, _, epoch, _, instance in self.readings}
        return [(e, i) for e in run.epochs for i in range(run.num_instances) if (e, i) not in read]


def place(instance: int) -> tuple[str, int]:
    for number, size in enumerate(FILE_SIZES):
        if instance < size:
            return f"part-{number}", instance * LENGTH
        instance -= size
    raise IndexError(instance)


@pytest.fixture(params=["whole", "in stretches"])
def stretches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs of the real size are written in many stretches, in two parts: so are these."""
    if request.param == "in stretches":
        monkeypatch.setattr(index, "STRETCH", 16 * BLOCK_INSTANCES)
        monkeypatch.setattr(index, "PART", 32 * BLOCK_INSTANCES)
        monkeypatch.setattr("data_index.readings.SCATTER_POSITIONS", 1000)
    return str(request.param)


def contents(path: Path) -> dict[str, list[Any]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        tables = [
            name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
        ]
        return {table: connection.execute(f"SELECT rowid, * FROM {table}").fetchall() for table in tables}


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["olmo", "sequential"])
def test_every_row_of_every_attempt_is_there_and_comes_back(rule: str, stretches: str, tmp_path: Path) -> None:
    segments = SEGMENTS if rule == "olmo" else tuple(replace(s, first_position=s.first_position // 2) for s in SEGMENTS)
    run = eventful_run(rule, segments)
    known = Known.of(run)
    build_index(run, tmp_path / "index.duckdb")

    with duckdb.connect(str(tmp_path / "index.duckdb"), read_only=True) as connection:
        columns = "step, attempt, epoch, position, instance"
        assert connection.sql(f"SELECT {columns} FROM batches ORDER BY ALL").fetchall() == known.readings
        found = connection.sql(f"SELECT {columns} FROM instances WHERE step IS NOT NULL ORDER BY ALL").fetchall()
        assert found == known.readings
        several = list(range(run.num_instances)) * 2
        found = connection.execute(f"SELECT {columns} FROM steps_of_instances(?) ORDER BY ALL", [several]).fetchall()
        assert found == known.readings
        never = "SELECT epoch, instance FROM instances WHERE step IS NULL AND position IS NULL ORDER BY ALL"
        assert connection.sql(never).fetchall() == known.never(run)
        places = 'SELECT DISTINCT instance, file, "offset" FROM {} ORDER BY 1'
        everywhere = [(i, *place(i)) for i in range(run.num_instances)]
        assert connection.sql(places.format("instances")).fetchall() == everywhere
        read = sorted({instance for *_, instance in known.readings})
        assert connection.sql(places.format("batches")).fetchall() == [(i, *place(i)) for i in read]


def test_the_rows_of_each_step_and_instance_alone(tmp_path: Path) -> None:
    run = eventful_run()
    known = Known.of(run).readings
    build_index(run, tmp_path / "index.duckdb")

    with duckdb.connect(str(tmp_path / "index.duckdb"), read_only=True) as connection:
        for step in (1, 11, 25, 26, 30, 36, 40, 41, 140, 141, 161, 162, 269, 270, 281):
            found = connection.execute(f"SELECT step, attempt, epoch, position, instance FROM batch({step})").fetchall()
            assert found == [reading for reading in known if reading[0] == step]
        order = epoch_order(run, 1).tolist()
        for instance in (0, 2999, 3000, 3001, 9899, order[9903], order[9899], order[0]):
            question = f"SELECT step, attempt, epoch, position, instance FROM steps_of_instance({instance})"
            found = connection.execute(f"{question} WHERE step IS NOT NULL ORDER BY ALL").fetchall()
            assert found == [reading for reading in known if reading[4] == instance]
        assert connection.execute("SELECT count(*) FROM batch(282)").fetchone() == (0,)


def test_the_workspace_answers_for_many_instances(workspace: Workspace) -> None:
    run = eventful_run()
    home = registered(run, workspace)
    assert home.is_dir()
    known = Known.of(run).readings
    wanted = np.random.default_rng(0).integers(0, run.num_instances, 500).tolist()

    found = readings_of_instances(workspace, run, wanted).select(["step", "attempt", "epoch", "position", "instance"])
    assert [tuple(row.values()) for row in found.to_pylist()] == [r for r in known if r[4] in set(wanted)]


def registered(run: Run, workspace: Workspace) -> Path:
    workspace.create()
    home = workspace.folder / "runs" / run.name
    home.mkdir(parents=True)
    write_run(run, home)
    build_index(run, home / "index.duckdb")
    return home


def test_an_index_that_was_replaced_answers_at_once(workspace: Workspace) -> None:
    """Connections are kept, but not those of a file that is no longer there."""
    home = registered(eventful_run(), workspace)
    question = "SELECT count(*) AS rows FROM batches"
    before = run_query(workspace, question).to_pylist()
    build_index(eventful_run(segments=SEGMENTS[:2]), home / "index.duckdb")

    assert before == [{"rows": len(Known.of(eventful_run()).readings)}]
    assert run_query(workspace, question).to_pylist() == [{"rows": 10 * 16 + 20 * 32}]


@pytest.mark.parametrize("every", [1, 7, 100, 1000])
def test_shares_of_files_are_those_of_the_kept_rows(every: int, workspace: Workspace) -> None:
    run = eventful_run()
    registered(run, workspace)
    kept = {step: max(a for s, a, *_ in Known.of(run).readings if s == step) for step in range(1, run.last_step + 1)}
    counts: dict[tuple[int, str], int] = {}
    for step, attempt, *_, instance in Known.of(run).readings:
        if attempt == kept[step]:
            key = ((step - 1) // every * every + 1, place(instance)[0])
            counts[key] = counts.get(key, 0) + 1
    totals: dict[int, int] = {}
    for (first, _), count in counts.items():
        totals[first] = totals.get(first, 0) + count
    known = [
        {
            "first_step": first,
            "last_step": min(first + every - 1, run.last_step),
            "file": file,
            "instances": count,
            "share": count / totals[first],
        }
        for (first, file), count in sorted(counts.items())
    ]

    assert file_shares(workspace, run, every).to_pylist() == known
    by_sql = connect(workspace).execute(
        f"SELECT (step - 1) // {every} * {every} + 1 AS first, file, count(*) FROM batches "
        f"JOIN (SELECT step, max(attempt) AS attempt FROM batches GROUP BY ALL) USING (step, attempt) GROUP BY ALL "
        "ORDER BY ALL"
    )
    assert by_sql.fetchall() == [(row["first_step"], row["file"], row["instances"]) for row in known]


@pytest.mark.parametrize("steps", [(0, 281), (25, 150), (268, 275), (140, 141)])
def test_the_mixture_by_file_is_the_same_counted_either_way(
    steps: tuple[int, int], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = eventful_run()
    registered(run, workspace)
    by_sql = mixture(workspace, run, *steps, "file", 10)
    monkeypatch.setattr("data_index.shares.ROWS_COUNTED_BY_SQL", 0)
    monkeypatch.setattr("data_index.shares.mixture_rows", lambda *_: pytest.fail("counted by SQL"))

    assert mixture(workspace, run, *steps, "file", 10).to_pylist() == by_sql.to_pylist()
    assert sum(by_sql.column("tokens").to_pylist()) > 0


# --- in parts, interrupted -------------------------------------------------------------------------------------------


def test_stretches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = eventful_run()
    build_index(run, tmp_path / "whole.duckdb")
    monkeypatch.setattr(index, "STRETCH", 16 * BLOCK_INSTANCES)
    monkeypatch.setattr(index, "PART", 16 * BLOCK_INSTANCES)
    build_index(run, tmp_path / "stretches.duckdb")

    assert contents(tmp_path / "whole.duckdb") == contents(tmp_path / "stretches.duckdb")


def test_a_build_interrupted_anywhere_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every message a build may end; the next one goes on from there, and computes no order twice."""
    monkeypatch.setattr(index, "STRETCH", 16 * BLOCK_INSTANCES)
    monkeypatch.setattr(index, "PART", 32 * BLOCK_INSTANCES)
    run = eventful_run()
    messages: list[str] = []
    build_index(run, tmp_path / "whole.duckdb", messages.append)
    partial, done = tmp_path / "partial", tmp_path / "index.duckdb"
    computed: list[int] = []

    def computing(run: Run, epoch: int) -> np.ndarray:
        computed.append(epoch)
        return epoch_order(run, epoch)

    monkeypatch.setattr(index, "epoch_order", computing)
    heard: list[str] = []

    def build_until_the_second_message() -> bool:
        said: list[str] = []

        def say(message: str) -> None:
            said.append(message)
            if len(said) == 2:
                raise KeyboardInterrupt

        try:
            build_index(run, done, say, partial=partial)
        except KeyboardInterrupt:
            assert partial.exists() and not done.exists()
            return False
        finally:
            heard.extend(said)
        return True

    starts = 1
    while not build_until_the_second_message():
        starts += 1
    assert done.exists() and not partial.exists()
    assert contents(done) == contents(tmp_path / "whole.duckdb")
    written = [message for message in heard if "wrote" in message]
    assert written == [message for message in messages if "wrote" in message]
    # An order of five stretches is computed until all of it is written, and read back after that.
    assert (computed, starts) == ([1] * 5 + [2] * 5, 21)


KILLED = """
import os, random, signal, sys, threading
from pathlib import Path
from data_index import index
from tests.data_index.test_full_index import eventful_run
index.STRETCH, index.PART = 16 * index.BLOCK_INSTANCES, 32 * index.BLOCK_INSTANCES
heard = 0
def say(message):
    global heard
    heard += 1
    if heard == 4:
        threading.Timer(random.Random(sys.argv[3]).uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGKILL)).start()
index.build_index(eventful_run(), Path(sys.argv[1]), say, partial=Path(sys.argv[2]))
"""


def test_a_build_killed_again_and_again_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "STRETCH", 16 * BLOCK_INSTANCES)
    monkeypatch.setattr(index, "PART", 32 * BLOCK_INSTANCES)
    build_index(eventful_run(), tmp_path / "whole.duckdb")
    done, partial = tmp_path / "index.duckdb", tmp_path / "partial"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    codes = []
    while not codes or codes[-1]:
        command = [sys.executable, "-c", KILLED, str(done), str(partial), str(len(codes))]
        codes.append(subprocess.run(command, env=environment, capture_output=True).returncode)
        assert len(codes) < 50

    assert set(codes) == {-signal.SIGKILL, 0} and len(codes) > 4
    assert contents(done) == contents(tmp_path / "whole.duckdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.duckdb", "whole.duckdb"]


def test_what_is_no_index_any_more_is_not_gone_on_with(tmp_path: Path) -> None:
    build_index(eventful_run(), tmp_path / "whole.duckdb")
    (tmp_path / "partial").write_bytes(b"no index" * 10_000)
    (tmp_path / "partial.wal").write_bytes(b"no log")
    build_index(eventful_run(), tmp_path / "index.duckdb", partial=tmp_path / "partial")

    assert contents(tmp_path / "index.duckdb") == contents(tmp_path / "whole.duckdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.duckdb", "whole.duckdb"]


def test_an_index_that_another_process_builds_is_left_to_it(tmp_path: Path) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "partial")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(Busy, match="is being built by another process: wait for it, or end it"):
            build_index(eventful_run(), tmp_path / "index.duckdb", partial=tmp_path / "partial")
        assert (tmp_path / "partial").exists()
        other.communicate()


def test_a_build_that_is_wrong_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    run = eventful_run(segments=(segment(1, 10, 0, 1000),))

    with pytest.raises(ValueError, match="need 10,000 positions of epoch 1; its order has 9,904"):
        build_index(run, tmp_path / "index.duckdb", partial=tmp_path / "partial")
    assert list(tmp_path.iterdir()) == []


def test_adding_a_large_run_goes_on_with_its_index(
    tiny_copy: Path, tiny_shared: Workspace, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_index.registration.RESUMABLE_INSTANCES", 0)

    def say(message: str) -> None:
        if message.startswith("epoch 1: wrote the places"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(tiny_copy, workspace=workspace, progress=say)
    assert workspace.run_names() == []
    (partial,) = (workspace.cache / "indexes").iterdir()
    heard: list[str] = []
    add(tiny_copy, workspace=workspace, progress=heard.append)

    assert not partial.exists()
    assert not any(message.startswith(("epoch 1: computing", "epoch 1: wrote")) for message in heard)
    paths = [there.home("tiny") / "index.duckdb" for there in (workspace, tiny_shared)]
    ours, theirs = (contents(path) for path in paths)
    assert {name: rows for name, rows in ours.items() if name != "files"} == {
        name: rows for name, rows in theirs.items() if name != "files"
    }


def test_an_index_is_named_by_all_that_it_is_built_from() -> None:
    """A build must never go on with that of other data, another order or other segments."""
    run = eventful_run()
    others = [
        replace(run, sequence_length=5),
        replace(run, segments=run.segments[:-1]),
        replace(run, order=replace(run.order, parameters={**run.order.parameters, "seed": 8})),
        replace(run, files=(replace(run.files[0], num_bytes=1), *run.files[1:])),
        replace(run, files=(replace(run.files[0], name="other"), *run.files[1:])),
    ]

    assert index_key(run) == index_key(replace(run, name="another", trust=OrderTrust(level="unknown", witness="")))
    assert len({index_key(other) for other in [run, *others]}) == 6


# --- a million instances ---------------------------------------------------------------------------------------------


def test_a_million_instances_answer_as_the_order_says(workspace: Workspace) -> None:
    """What the benchmark asks at the size of a real run (tests/benchmarks/index_build.py), held against the order."""
    run = manifest(1_000_000)
    registered(run, workspace)
    order = epoch_order(run, 1)
    random = np.random.default_rng(1)
    wanted = random.integers(0, run.num_instances, 10_000)
    place_of = np.full(run.num_instances, -1)
    place_of[order] = np.arange(len(order))
    read = place_of[wanted]
    read = np.unique(read[(read >= 0) & (read < run.last_step * BATCH)])

    found = readings_of_instances(workspace, run, wanted.tolist())
    assert found.column("position").to_pylist() == read.tolist()
    assert found.column("step").to_pylist() == (read // BATCH + 1).tolist()
    assert found.column("instance").to_pylist() == order[read].tolist()
    with connect(workspace) as connection:
        for step in (1, run.last_step, *random.integers(1, run.last_step, 3).tolist()):
            rows = connection.execute(f"SELECT instance, file, \"offset\" FROM batch('synthetic', {step})").fetchall()
            instances = order[(step - 1) * BATCH : step * BATCH].tolist()
            assert [row[0] for row in rows] == instances
            starts = {file.name: file.first_instance for file in run.files}
            assert [starts[file] + offset // LENGTH_OF_ROWS for _, file, offset in rows] == instances
        for instance in random.integers(0, run.num_instances, 5).tolist():
            rows = connection.execute(f"SELECT position FROM steps_of_instance('synthetic', {instance})").fetchall()
            assert rows == [(place_of[instance] if 0 <= place_of[instance] < run.last_step * BATCH else None,)]
    shares = file_shares(workspace, run, 100)
    starts = np.array([file.first_instance for file in run.files])
    number = np.searchsorted(starts, order[: run.last_step * BATCH], side="right") - 1
    known = np.bincount(np.arange(len(number)) // (100 * BATCH) * len(starts) + number)
    assert shares.column("instances").to_pylist() == known[known > 0].tolist()


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_places_of_an_order_with_repeats_do_not_depend_on_chance() -> None:
    """Instances stand at several positions, many at many: the first that was read leads, the others follow."""
    random = np.random.default_rng(3)
    instances = random.integers(0, 500, 5000).astype(np.uint32)
    order = EpochOrder(instances=instances, num_positions=5000, num_instances=600)
    segments = [segment(1, 100, 1000, 20)]
    for first, stop in ((0, 600), (0, 200), (200, 600)):
        places = places_of_instances(segments, order, first, stop)
        for instance in range(first, stop):
            (at,) = np.nonzero(instances == instance)
            at = np.concatenate([at[(at >= 1000) & (at < 3000)], at[(at < 1000) | (at >= 3000)]])
            more = places.more_positions[places.more_instances == instance]
            lead = places.position[instance - first]
            assert (lead == at[0] and sorted(more) == sorted(at[1:])) if len(at) else lead == order.nowhere


def test_layers_hold_every_segment_and_never_read_a_position_twice() -> None:
    segments = [s for s in SEGMENTS if s.epoch == 1]
    found = layers(segments)

    assert sorted((s for layer in found for s in layer), key=segments.index) == segments
    for layer in found:
        positions = np.concatenate([np.arange(s.first_position, stop_position(s)) for s in layer])
        assert len(np.unique(positions)) == len(positions)
        known = {
            s.first_position + row: s.first_step + row // s.instances_per_batch
            for s in layer
            for row in range(s.num_steps * s.instances_per_batch)
        }
        every = np.arange(10_500, dtype=np.uint32)
        assert steps_of_positions(layer, every).tolist() == [known.get(p, 0) for p in range(10_500)]
