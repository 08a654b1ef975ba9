"""Megatron's data from configs to batches: shards, blends, documents, names.

Hashes were made by running gpt-neox @ ea7aefd8 on the files of tests/fixtures/neox; the first 16 hexadecimal digits of
sha256 over rows of tokens as little-endian int64.
"""

import hashlib
import struct
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.batch_queries import reader_of
from data_index.errors import CorruptFile, MissingFile, OrderMismatch, UnsafeFile
from data_index.megatron_index import read_megatron_index
from data_index.registration import add
from data_index.run import Run
from data_index.sources import bloom
from data_index.sources.megatron_data import documents_of_datasets, find_dataset, unique_names
from data_index.store import connect
from data_index.text import find_token
from data_index.workspace import Workspace
from forensics.lookup import batch, batches

NEOX = Path(__file__).parents[1] / "fixtures" / "neox"
TOYS = ["toy_text_document", "toyb_text_document", "toy_int32_text_document"]
TOY: dict[str, Any] = {"data_path": TOYS[0], "seq_length": 32, "train_batch_size": 8, "seed": 1234, "split": "1,0,0"}
PRESHUFFLED = TOY | {"data_path": "preshuffled_toy_document"}


def add_toy(workspace: Workspace, folder: Path, settings: dict[str, Any], **more: Any) -> Run:
    folder.mkdir(exist_ok=True)
    return add(folder, name="run", layout="neox", settings={"train_iters": 20} | settings, workspace=workspace, **more)


def served(workspace: Workspace) -> np.ndarray:
    run = workspace.run("run")
    return np.concatenate([one.token_ids for one in batches("run", 0, run.last_step, workspace=workspace)])


def digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()[:16]


def shard(folder: Path, name: str, borders: list[int]) -> None:
    """A fixture's .bin file cut at these bytes."""
    folder.mkdir(exist_ok=True)
    content = (NEOX / f"{name}.bin").read_bytes()
    (folder / f"{name}.idx").write_bytes((NEOX / f"{name}.idx").read_bytes())
    edges = [0, *borders, len(content)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        (folder / f"{name}-{number:05d}-of-{len(edges) - 2:05d}.bin").write_bytes(content[start:stop])


# --- shards ----------------------------------------------------------------------------------------------------------

SHARDS = {
    "shards of one token": [2 * n for n in range(1, 70)],
    "shards of one to forty tokens": np.cumsum(2 * np.arange(1, 41)).tolist(),
    "shards as long as a row": [66 * n for n in range(1, 150)],
    "shards of 1000 tokens": list(range(2000, 10_000, 2000)),
    "one border inside the first row, and an empty shard": [20, 20],
}


@pytest.mark.parametrize("settings", [TOY, PRESHUFFLED], ids=["shuffled", "preshuffled"])
@pytest.mark.parametrize("how", SHARDS)
def test_shards_with_borders_at_any_token_give_the_same_batches(
    settings: dict[str, Any], how: str, workspace: Workspace, tmp_path: Path
) -> None:
    shard(tmp_path / "run", settings["data_path"], SHARDS[how])
    whole = Workspace(tmp_path / "whole")
    add_toy(whole, tmp_path / "other", settings, data=NEOX)

    run = add_toy(workspace, tmp_path / "run", settings)

    assert len(run.files) == len(SHARDS[how]) + 1
    assert np.array_equal(served(workspace), served(whole))
    known = connect(workspace).execute("SELECT count(*), sum(num_bytes) FROM files").fetchall()
    assert known == [(len(run.files), (NEOX / f"{settings['data_path']}.bin").stat().st_size)]
    reader = reader_of(workspace, run)
    reader.rows(range(run.num_instances))
    assert reader.first_seen == {}


@pytest.mark.parametrize("settings", [TOY, PRESHUFFLED], ids=["shuffled", "preshuffled"])
def test_tokens_are_found_across_shards(settings: dict[str, Any], workspace: Workspace, tmp_path: Path) -> None:
    shard(tmp_path / "run", settings["data_path"], SHARDS["shards of one to forty tokens"])
    run = add_toy(workspace, tmp_path / "run", settings)
    reader = reader_of(workspace, run)
    rows = reader.rows(range(run.num_instances))

    for token in (int(rows[0, 0]), int(rows[7, 32]), 60_000):
        assert list(find_token(run, reader, token)) == np.flatnonzero((rows == token).any(axis=1)).tolist()


def test_a_border_inside_a_token_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    shard(tmp_path / "run", TOYS[0], [1001])

    with pytest.raises(
        CorruptFile, match="00000-of-00001.bin has 1,001 bytes, no whole number of uint16 tokens: it is"
    ):
        add_toy(workspace, tmp_path / "run", TOY)


@pytest.mark.parametrize(
    ("gone", "error", "said"),
    [
        ("00000", MissingFile, "toy_text_document-00000-of-….bin is not there; toy_text_document.idx describes its"),
        ("00001", MissingFile, "toy_text_document-00001-of-….bin is not there"),
        ("00002", UnsafeFile, "outside the .bin file of 4,000 bytes"),
    ],
)
def test_a_shard_that_is_gone_is_missed(
    gone: str, error: type[Exception], said: str, workspace: Workspace, tmp_path: Path
) -> None:
    shard(tmp_path / "run", TOYS[0], [2000, 4000])
    next((tmp_path / "run").glob(f"*-{gone}-of-*.bin")).unlink()

    with pytest.raises(error, match=said):
        add_toy(workspace, tmp_path / "run", TOY)


def test_a_preshuffled_set_that_ends_early_ends_the_run(workspace: Workspace, tmp_path: Path) -> None:
    """160 rows: 13 whole batches of 12."""
    run = add_toy(workspace, tmp_path / "run", PRESHUFFLED | {"train_batch_size": 12}, data=NEOX)

    assert run.last_step == 13


def test_data_that_do_not_lie_in_training_order_are_not_taken_for_it(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(OrderMismatch, match="is no pre-shuffled set for seq_length 32"):
        add_toy(workspace, tmp_path / "run", TOY | {"order": "preshuffled"}, data=NEOX)
    with pytest.raises(OrderMismatch, match="is no pre-shuffled set for seq_length 64"):
        add_toy(workspace, tmp_path / "run", PRESHUFFLED | {"order": "preshuffled", "seq_length": 64}, data=NEOX)
    with pytest.raises(CorruptFile, match="order = 'sorted' is neither"):
        add_toy(workspace, tmp_path / "run", TOY | {"order": "sorted"}, data=NEOX)
    shuffled = add_toy(workspace, tmp_path / "run", PRESHUFFLED | {"order": "shuffled"}, data=NEOX)
    assert shuffled.order.rule == "megatron"


# --- datasets and blends ---------------------------------------------------------------------------------------------

BLENDED = {"train_data_paths": TOYS, "seq_length": 32, "train_batch_size": 10, "train_iters": 60, "seed": 7}
RECORDED: dict[str, tuple[dict[str, Any], str]] = {
    "a blend by weights": (BLENDED | {"train_data_weights": [0.6, 0.3, 0.1]}, "21aedfe2272dc23b"),
    "a blend by documents": (
        BLENDED | {"weight_by_num_documents": True, "weighted_sampler_alpha": 0.3},
        "36ea6123458ec7b5",
    ),
    "a split": (
        TOY | {"seed": 11, "split": "969, 30, 1", "train_iters": 40, "train_batch_size": 10},
        "4ec95a4282e73e7c",
    ),
    "data that begin again": (
        TOY | {"data_path": TOYS[2], "seed": 3, "train_iters": 67, "train_batch_size": 1},
        "4987c2b9537f99a7",
    ),
}


@pytest.mark.parametrize("what", RECORDED)
def test_configs_give_the_rows_that_gpt_neox_served(what: str, workspace: Workspace, tmp_path: Path) -> None:
    settings, rows = RECORDED[what]

    add_toy(workspace, tmp_path / "run", settings, data=NEOX)

    assert digest(served(workspace)) == rows


def test_a_blend_of_sharded_and_whole_datasets_is_the_same_blend(workspace: Workspace, tmp_path: Path) -> None:
    settings, rows = RECORDED["a blend by weights"]
    shard(tmp_path / "data", TOYS[0], [2000, 4000])
    shard(tmp_path / "data", TOYS[1], [1000])
    for kind in (".bin", ".idx"):
        (tmp_path / "data" / f"{TOYS[2]}{kind}").write_bytes((NEOX / f"{TOYS[2]}{kind}").read_bytes())

    run = add_toy(workspace, tmp_path / "run", settings, data=tmp_path / "data")

    assert (len(run.files), digest(served(workspace))) == (6, rows)


def test_tokens_of_both_widths_stand_side_by_side(workspace: Workspace, tmp_path: Path) -> None:
    """A blend of uint16 and int32; what can be a token id is what the wider one can hold."""
    run = add_toy(workspace, tmp_path / "run", BLENDED, data=NEOX)

    assert [file.dtype for file in run.files] == ["uint16", "uint16", "int32"]
    assert run.largest_token_id == 2**31 - 1
    assert replace(run, files=run.files[:2]).largest_token_id == 2**16 - 1


def test_a_configuration_file_says_what_settings_say(workspace: Workspace, tmp_path: Path) -> None:
    """Names with dashes and underscores are one; settings win over files."""
    (tmp_path / "run").mkdir()
    lines = ["data-path: toy_text_document", "seq_length: 32", "train-iters: 7", "train_batch_size: 8", "seed: 1234"]
    (tmp_path / "run" / "toy.yml").write_text("\n".join([*lines, 'split: "1,0,0"']))

    run = add(tmp_path / "run", data=NEOX, settings={"train_iters": 20}, workspace=workspace)

    assert (run.layout, run.last_step) == ("neox", 20)
    assert np.array_equal(served(workspace), np.load(NEOX / "single_1epoch_seed1234.batches.npy").reshape(-1, 33))


def test_wrong_weights_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="gives 2 weights for 3 train_data_paths"):
        add_toy(workspace, tmp_path / "run", BLENDED | {"train_data_weights": [0.6, 0.3]}, data=NEOX)
    with pytest.raises(OrderMismatch, match="does not say how many rows a step reads .train_batch_size.: give it with"):
        add_toy(workspace, tmp_path / "run", {k: v for k, v in TOY.items() if k != "train_batch_size"}, data=NEOX)


# --- names -----------------------------------------------------------------------------------------------------------


def test_files_of_one_name_are_told_apart() -> None:
    paths = [Path(name) for name in ("a/x.bin", "b/x.bin", "a/y.bin", "a/x.bin", "c/a/x.bin")]

    assert unique_names(paths) == ["a/x.bin", "b/x.bin", "y.bin", "a/x.bin#2", "a/x.bin#3"]


def test_a_dataset_may_come_twice_in_a_blend(workspace: Workspace, tmp_path: Path) -> None:
    """Each is shuffled for its own share, and documents are found in both."""
    settings = BLENDED | {"train_data_paths": [TOYS[1], TOYS[1]], "train_data_weights": [0.5, 0.5]}

    run = add_toy(workspace, tmp_path / "run", settings, data=NEOX)

    names = [file.name for file in run.files]
    assert names == [f"neox/{TOYS[1]}.bin", f"neox/{TOYS[1]}.bin#2"]
    by_file = connect(workspace).execute(
        "SELECT file, count(DISTINCT document_id) FROM documents GROUP BY 1 ORDER BY 1"
    )
    assert by_file.fetchall() == [(name, 60) for name in names]
    rows = batch("run", "0:60", workspace=workspace).to_pylist()
    assert {row["file"] for row in rows} == set(names) and all(row["document_ids"] for row in rows)


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_documents_of_a_row_are_those_that_a_walk_over_its_tokens_meets(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Sequences are shuffled and laid end to end by numpy; the int32 set has two sequences a document."""
    index = read_megatron_index(NEOX / f"{name}.idx", (NEOX / f"{name}.bin").stat().st_size)
    slots = np.arange(index.num_sequences, dtype=np.int32)
    np.random.RandomState(1234).shuffle(slots)
    document_of = np.searchsorted(index.document_starts, np.arange(index.num_sequences), side="right") - 1
    owner = np.repeat(np.arange(len(slots)), index.sizes[slots])  # the slot of each token

    add_toy(workspace, tmp_path / "run", TOY | {"data_path": name, "train_iters": 4}, data=NEOX)

    found = batch("run", "0:4", workspace=workspace).to_pylist()
    assert len(found) == 32
    for row in found:
        slots_met = [slot for slot, _ in groupby(owner[row["instance"] * 32 :][:33].tolist())]
        assert row["document_ids"] == document_of[slots[slots_met]].tolist()
    spans = connect(workspace).execute("SELECT instance, sum(stop - start) FROM spans GROUP BY 1").fetchall()
    assert {total for _, total in spans} == {33}


def without_documents(folder: Path, starts: list[int]) -> Path:
    """The int32 toy with other document starts."""
    folder.mkdir(exist_ok=True)
    raw = (NEOX / f"{TOYS[2]}.idx").read_bytes()
    count = struct.unpack_from("<Q", raw, 18)[0]
    head = raw[:26] + struct.pack("<Q", len(starts)) + raw[34 : 34 + 12 * count]
    (folder / "bare.idx").write_bytes(head + np.array(starts, dtype="<i8").tobytes())
    (folder / "bare.bin").write_bytes((NEOX / f"{TOYS[2]}.bin").read_bytes())
    return folder


@pytest.mark.parametrize(("starts", "documents"), [([0], 40), ([0, 0], 40), ([0, 40], 1), ([0, 1, 1, 40], 2)])
def test_where_no_documents_are_kept_each_sequence_is_one(starts: list[int], documents: int, tmp_path: Path) -> None:
    dataset = find_dataset(without_documents(tmp_path / "run", starts), None, "bare")

    rows = documents_of_datasets([dataset])

    assert len({row["document_id"] for row in rows}) == documents
    assert sum(row["end"] - row["start"] for row in rows) == dataset.index.num_tokens


def test_documents_go_on_from_shard_to_shard(tmp_path: Path) -> None:
    """Each part lies inside its file, and together they are the tokens of the sequence."""
    shard(tmp_path / "run", TOYS[1], SHARDS["shards of one to forty tokens"])
    dataset = find_dataset(tmp_path / "run", None, TOYS[1])
    sizes = {f"{path.name}": path.stat().st_size // 2 for path in dataset.shards}

    rows = documents_of_datasets([dataset])

    assert all(0 <= row["start"] < row["end"] <= sizes[row["file"]] for row in rows)
    totals = [sum(r["end"] - r["start"] for r in rows if r["document_id"] == n) for n in range(60)]
    assert totals == dataset.index.sizes.tolist()


# --- BLOOM's steps ---------------------------------------------------------------------------------------------------


def rows_by_sample(full: int, ramp: tuple[int, int, int] | None, samples: int) -> list[int]:
    """Rows of each step as the trainer's microbatch calculator gives them, one step at a time."""
    consumed, rows = 0, []
    while True:
        size = full
        if ramp is not None and consumed <= ramp[2]:
            start, increment, length = ramp
            size = start + int(consumed / (length / ((full - start) // increment))) * increment
        if consumed + size > samples:
            return rows
        rows.append(size)
        consumed += size


@pytest.mark.parametrize("ramp", [None, (4, 4, 100), (2, 2, 37), (8, 4, 500), (16, 16, 64)])
@pytest.mark.parametrize("samples", [95, 161, 700])
def test_the_batch_ramp_is_the_trainers(ramp: tuple[int, int, int] | None, samples: int) -> None:
    arguments = {"global_batch_size": 32, "train_samples": samples, "rampup_batch_size": ramp and list(ramp)}

    segments = bloom.segments_of(arguments)

    found = [s.instances_per_batch for s in segments for _ in range(s.num_steps)]
    assert found == rows_by_sample(32, ramp, samples)
    assert [s.first_position for s in segments] == [sum(found[: s.first_step - 1]) for s in segments]


@pytest.mark.parametrize("steps", [1, 9, 30])
def test_a_ramp_counted_in_iterations_is_cut_there(steps: int) -> None:
    arguments = {"global_batch_size": 32, "train_iters": steps, "rampup_batch_size": "4 4 100"}

    segments = bloom.segments_of(arguments)

    found = [s.instances_per_batch for s in segments for _ in range(s.num_steps)]
    assert found == rows_by_sample(32, (4, 4, 100), 10_000)[:steps]


def test_a_run_without_a_whole_batch_is_no_run(workspace: Workspace, tmp_path: Path) -> None:
    settings = {"data_path": TOYS[0], "seq_length": 32, "train_samples": 5, "global_batch_size": 7}
    (tmp_path / "run").mkdir()

    with pytest.raises(OrderMismatch, match="5 samples or iterations do not fill one batch of 7"):
        add(tmp_path / "run", layout="bloom", data=NEOX, settings=settings, workspace=workspace)
    with pytest.raises(CorruptFile, match="rampup_batch_size .* is not start, increment and samples"):
        bloom.segments_of(settings | {"rampup_batch_size": "4 4"})
