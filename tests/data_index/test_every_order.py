"""What holds for every order rule and layout, on one small run each, through `add` and the views."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.batch_queries import plan_of, reader_of
from data_index.errors import StepOutOfRange
from data_index.registration import add
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import write_run
from data_index.store import connect
from data_index.workspace import Workspace
from forensics.lookup import batch, batches, where

FIXTURES = Path(__file__).parents[1] / "fixtures"
CORE, NEOX = FIXTURES / "olmo-core", FIXTURES / "neox"
TOKENIZER = {"vocab_size": 384, "eos_token_id": 0, "pad_token_id": 1}
PARTS = [f"data/part-0{number}-00000.npy" for number in range(3)]


@dataclass(frozen=True)
class Added:
    """A registered run, and what is special about it.

    Attributes:
        once: positions of an epoch in which no instance may come twice; None: all of them.
        not_there: steps inside the run whose data are not there.
    """

    workspace: Workspace
    run: Run
    once: int | None = None
    not_there: range = range(0)

    def steps(self) -> list[int]:
        return [s for s in range(self.run.first_step, self.run.last_step + 1) if s not in self.not_there]


# --- one small run a rule --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maker:
    """Where a case writes its run, and what helps it."""

    folder: Path
    workspace: Workspace
    write_core: Callable[..., Path]
    write_olmo: Callable[..., Path]

    def add(self, folder: Path, **settings: Any) -> Run:
        return add(folder, name="run", workspace=self.workspace, **settings)

    def core(self, kind: str, loader: dict[str, Any] | None = None, **fields: Any) -> Run:
        dataset = {"_CLASS_": f"olmo_core.data.{kind}Config", "paths": PARTS, "dtype": "uint16", "tokenizer": TOKENIZER}
        folder = self.write_core(self.folder / "run", dataset | {"sequence_length": 128} | fields, loader=loader)
        return self.add(folder, data=CORE)

    def composed(self, **loader: Any) -> Run:
        document = {"_CLASS_": "x.NumpyDocumentSourceConfig", "dtype": "uint16", "tokenizer": TOKENIZER}
        chunked = {"_CLASS_": "x.ConcatAndChunkInstanceSourceConfig", "sequence_length": 128}
        sources = [
            chunked | {"max_sequence_length": 256, "sources": [document | {"source_paths": paths}]}
            for paths in (PARTS[:1], PARTS[1:])
        ]
        return self.add(self.write_core(self.folder / "run", sources, loader=loader), data=CORE)

    def megatron(self, layout: str = "neox", **settings: Any) -> Run:
        common = {"data_path": "toy_text_document", "seq_length": 32, "seed": 7, "split": "1,0,0"}
        (self.folder / "run").mkdir()
        return self.add(self.folder / "run", data=NEOX, layout=layout, settings=common | settings)


def a_native_run(maker: Maker) -> Added:
    """Two epochs, a batch ramp, a file shorter than a row, and instances that are never read."""
    folder = maker.folder / "native"
    (folder / "order").mkdir(parents=True)
    random = np.random.default_rng(5)
    files: list[TokenFile] = []
    orders = {}
    for number, rows in enumerate((30, 0, 21)):
        path = folder / f"{number}.bin"
        random.integers(0, 384, rows * 16 + 5, dtype="<u2").tofile(path)
        files.append(
            TokenFile(
                name=path.name,
                path=path,
                dtype="uint16",
                num_bytes=path.stat().st_size,
                first_instance=sum(file.num_instances for file in files),
                num_instances=rows,
            )
        )
    for epoch in (1, 2):
        path = folder / "order" / f"epoch-{epoch}.npy"
        np.save(path, random.permutation(51).astype(np.uint32)[: 51 - epoch])
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        orders[f"epoch_{epoch}"] = {"path": f"order/epoch-{epoch}.npy", "sha256": sha256}
    ramp = Segment(first_step=1, num_steps=5, epoch=1, first_position=0, instances_per_batch=4)
    run = Run(
        name="run",
        layout="native",
        source=folder,
        sequence_length=16,
        files=tuple(files),
        order=Order(rule="file", parameters=orders),
        segments=(
            ramp,
            replace(ramp, first_step=6, num_steps=3, first_position=20, instances_per_batch=8),
            replace(ramp, first_step=9, num_steps=6, epoch=2, instances_per_batch=8),
        ),
        trust=OrderTrust(level="exact", witness="the test"),
        config_format="native",
        config={},
    )
    write_run(run, folder)
    return Added(maker.workspace, maker.add(folder))


def olmo(maker: Maker) -> Added:
    folder = maker.write_olmo(maker.folder / "run", {10: {"position": (0, 80)}}, max_duration="2ep")
    return Added(maker.workspace, maker.add(folder, data=FIXTURES / "olmo"))


def preshuffled_in_shards(maker: Maker) -> Added:
    """Shards of 700 tokens, whose borders are no row's, and one of 3 tokens inside a row."""
    folder = maker.folder / "run"
    folder.mkdir()
    (folder / "pre.idx").write_bytes((NEOX / "preshuffled_toy_document.idx").read_bytes())
    content = (NEOX / "preshuffled_toy_document.bin").read_bytes()
    borders = [0, 40, 46, *range(1400, len(content), 1400), len(content)]
    for number, (start, stop) in enumerate(pairwise(borders)):
        (folder / f"pre-{number:05d}-of-{len(borders) - 1:05d}.bin").write_bytes(content[start:stop])
    settings = {"data_path": "pre", "seq_length": 32, "train_iters": 20, "train_batch_size": 8}
    return Added(maker.workspace, maker.add(folder, layout="neox", settings=settings))


def write_chunk(path: Path, lines: int, **fields: Any) -> None:
    random = np.random.default_rng(lines)
    rows = random.integers(0, 32000, (lines, 9)).tolist()
    path.write_text("".join(json.dumps({"token_ids": row, "source": "c4", **fields}) + "\n" for row in rows))


def amber_without_a_chunk(maker: Maker) -> Added:
    """Chunk 2 is not there: 3 steps of 10 rows."""
    folder = maker.folder / "run"
    folder.mkdir()
    for chunk, lines in ((0, 34), (1, 27), (3, 41)):
        write_chunk(folder / f"train_{chunk:03d}.jsonl", lines)
    settings = {"instances_per_batch": 10, "world_size": 2, "lines_per_chunk": 33, "restarts": "0,1"}
    return Added(maker.workspace, maker.add(folder, settings=settings), not_there=range(6, 9))


def k2_with_a_few_chunks(maker: Maker) -> Added:
    """Chunks 15 and 32 follow one another; 33 is not there, and 40 comes far later. 12 lines a chunk, 5 rows a step."""
    folder = maker.folder / "run"
    folder.mkdir()
    for chunk in (14, 15, 32, 48):
        write_chunk(folder / f"{chunk:03d}.jsonl", 12, subset_name="x")
    settings = {"instances_per_batch": 5, "lines_per_chunk": 12}
    run = maker.add(folder, settings=settings)
    first, second = run.segments
    return Added(maker.workspace, run, not_there=range(first.last_step + 1, second.first_step))


BLEND = {"train_data_paths": ["toy_text_document", "toyb_text_document"], "train_data_weights": [0.7, 0.3]}
CASES: dict[str, Callable[[Maker], Added]] = {
    "file": a_native_run,
    "olmo": olmo,
    "fsl": lambda m: Added(m.workspace, m.core("NumpyFSLDataset")),
    "fsl, chunks of 2": lambda m: Added(m.workspace, m.core("NumpyFSLDataset", max_target_sequence_length=256)),
    "fsl, not shuffled": lambda m: Added(m.workspace, m.core("NumpyFSLDataset", {"shuffle": False})),
    "padded": lambda m: Added(m.workspace, m.core("NumpyPaddedFSLDataset")),
    "packed": lambda m: Added(m.workspace, m.core("NumpyPackedFSLDataset", source_group_size=2)),
    "inter_source": lambda m: Added(m.workspace, m.composed(shuffle_strategy="inter_source")),
    "intra_source": lambda m: Added(m.workspace, m.composed(shuffle_strategy="intra_source")),
    "interleaved_source": lambda m: Added(m.workspace, m.composed(shuffle_strategy="interleaved_source")),
    "composable, not shuffled": lambda m: Added(m.workspace, m.composed(shuffle=False)),
    "neox": lambda m: Added(m.workspace, m.megatron(train_iters=20, train_batch_size=8)),
    "neox, two epochs": lambda m: Added(m.workspace, m.megatron(train_iters=150, train_batch_size=8)),
    "neox, data begin again": lambda m: Added(
        m.workspace,
        m.megatron(data_path="toy_int32_text_document", train_iters=67, train_batch_size=1),
        once=66,
    ),
    "neox, a blend": lambda m: Added(m.workspace, m.megatron(train_iters=40, train_batch_size=8, **BLEND)),
    "neox, a split": lambda m: Added(m.workspace, m.megatron(train_iters=40, train_batch_size=8, split="969, 30, 1")),
    "bloom, last epoch apart, ramp": lambda m: Added(
        m.workspace,
        m.megatron("bloom", train_samples=965, global_batch_size=16, rampup_batch_size=[4, 4, 100], seed=42),
    ),
    "preshuffled in shards": preshuffled_in_shards,
    "amber": amber_without_a_chunk,
    "k2": k2_with_a_few_chunks,
}


@pytest.fixture(scope="module", params=CASES)
def added(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    write_core: Callable[..., Path],
    write_olmo: Callable[..., Path],
) -> Added:
    folder = tmp_path_factory.mktemp("case")
    return CASES[request.param](Maker(folder, Workspace(folder / "workspace"), write_core, write_olmo))


# --- what holds ------------------------------------------------------------------------------------------------------


def test_segments_tile_the_steps_and_the_positions(added: Added) -> None:
    """But for steps whose data are not there."""
    covered = [step for s in added.run.segments for step in range(s.first_step, s.last_step + 1)]
    next_position: dict[int, int] = {}
    for segment in added.run.segments:
        assert segment.first_position == next_position.get(segment.epoch, 0) or added.run.order.rule == "k2"
        next_position[segment.epoch] = segment.positions_of_step(segment.last_step).stop

    assert covered == added.steps()


def test_an_epoch_reads_an_instance_at_most_once(added: Added) -> None:
    query = "SELECT count(*) - count(DISTINCT instance) FROM batches WHERE position < ? GROUP BY epoch"

    repeats = connect(added.workspace).execute(query, [added.once or 10**9]).fetchall()

    assert set(repeats) == {(0,)}


def test_a_step_has_its_rows_in_order_of_position(added: Added) -> None:
    rows = connect(added.workspace).execute(
        "SELECT step, epoch, list(position ORDER BY position) FROM batches GROUP BY ALL ORDER BY step"
    )

    found = {step: (epoch, positions) for step, epoch, positions in rows.fetchall()}
    assert list(found) == added.steps()
    for step, (epoch, positions) in found.items():
        segment = added.run.segment_of_step(step)
        place = segment.positions_of_step(step)
        assert (epoch, positions) == (segment.epoch, list(range(place.start, place.stop)))


def test_the_instances_view_is_the_inverse_of_the_batches(added: Added) -> None:
    """Row for row; and each instance that an epoch never read is there once, without a step."""
    columns = 'epoch, step, attempt, position, instance, file, "offset"'
    connection = connect(added.workspace)

    read = connection.execute(f"SELECT {columns} FROM instances WHERE step IS NOT NULL ORDER BY ALL").fetchall()
    unread = connection.execute("SELECT epoch, instance, position FROM instances WHERE step IS NULL").fetchall()

    assert read == connection.execute(f"SELECT {columns} FROM batches ORDER BY ALL").fetchall()
    seen = {(epoch, instance) for epoch, _, _, _, instance, _, _ in read}
    every = {(epoch, instance) for epoch in added.run.epochs for instance in range(added.run.num_instances)}
    assert sorted(unread) == [(epoch, instance, None) for epoch, instance in sorted(every - seen)]


def test_where_inverts_batch(added: Added) -> None:
    last = added.run.last_step
    for row in batch("run", last, workspace=added.workspace).to_pylist()[:2]:
        found = where("run", instance=row["instance"], workspace=added.workspace).to_pylist()
        columns = ("step", "attempt", "position", "instance", "file", "offset", "epoch")
        assert {key: row[key] for key in columns} in [{key: one[key] for key in columns} for one in found]


def raw_tokens(run: Run) -> dict[str, np.ndarray]:
    """The tokens of every file, read without the toolkit."""
    found = {}
    for file in run.files:
        if file.dtype == "jsonl":
            lines = file.path.read_text().splitlines()
            found[file.name] = np.concatenate([np.array(json.loads(line)["token_ids"]) for line in lines])
        else:
            item = np.dtype(file.dtype).itemsize
            found[file.name] = np.frombuffer(file.path.read_bytes()[: file.num_bytes // item * item], dtype=file.dtype)
    return found


def test_every_instance_is_the_tokens_of_its_places(added: Added) -> None:
    """Places by SQL and bytes by numpy, against the reader; what is left of a row is padding, outside the loss."""
    run, raw = added.run, raw_tokens(added.run)
    reader, everything = reader_of(added.workspace, run), range(run.num_instances)
    expected = np.full((run.num_instances, run.sequence_length), run.pad_token_id or 0, dtype=np.int64)
    filled = np.zeros(expected.shape, dtype=bool)
    places = connect(added.workspace).execute(
        'SELECT instance, file, first_token, start, stop FROM pieces UNION SELECT instance, file, 0, "offset", '
        f'"offset" + {run.sequence_length} FROM instances ANTI JOIN pieces USING (instance) WHERE file IS NOT NULL '
        "ORDER BY instance, first_token"
    )
    for instance, file, first, start, stop in places.fetchall():
        assert not filled[instance, first : first + stop - start].any() and filled[instance, :first].all()
        expected[instance, first : first + stop - start] = raw[file][start:stop]
        filled[instance, first : first + stop - start] = True

    assert np.array_equal(reader.rows(everything), expected)
    assert np.array_equal(reader.counts_as_target(everything), filled)
    assert np.array_equal(reader.num_tokens_of(everything), filled.sum(axis=1))
    assert reader.first_seen == {}


def test_a_batch_says_where_its_rows_begin(added: Added) -> None:
    raw = raw_tokens(added.run)

    for row in batch("run", added.run.last_step, tokens=True, workspace=added.workspace).to_pylist():
        assert row["token_ids"][0] == raw[row["file"]][row["offset"]]


def test_resuming_anywhere_equals_never_stopping(added: Added) -> None:
    for first, stop in ((s.first_step, s.last_step) for s in added.run.segments):
        whole = plan_of(added.workspace, added.run, first - 1, stop)
        for step in sorted({(first + stop) // 2, stop}):
            rest = [one.instances.tolist() for one in batches("run", step - 1, stop, workspace=added.workspace)]
            assert rest == [whole[number].instances.tolist() for number in range(step, stop + 1)]


def test_all_that_is_not_there_is_said_so(workspace: Workspace, tmp_path: Path) -> None:
    """A stretch across steps without data is no stretch."""
    maker = Maker(tmp_path, workspace, lambda: tmp_path, lambda: tmp_path)
    amber_without_a_chunk(maker)

    with pytest.raises(StepOutOfRange, match=r"steps 6..8 of run read data that are not there; ask for 3:5 and 8:10"):
        batch("run", "3:10", workspace=workspace)
    with pytest.raises(StepOutOfRange, match="step 7 of run read data that are not there"):
        batch("run", 7, workspace=workspace)
    assert [one.step for one in batches("run", 8, 12, workspace=workspace)] == [9, 10, 11, 12]
