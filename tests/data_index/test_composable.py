"""OLMo-core's composable sources and loader, held against what the real ones served."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import OrderMismatch, UnsupportedRecipe
from data_index.instances.concatenated import concatenated_pieces
from data_index.orders.olmo_core_composable import (
    composable_indices,
    indices_file_name,
    run_instances,
    sources_of_epoch,
)
from data_index.orders.olmo_core_fingerprint import (
    concat_and_chunk_fingerprint,
    concatenated_fingerprint,
    dataset_fingerprint,
    document_source_fingerprint,
    fsl_fields,
    packing_fingerprint,
)

OLMO_CORE = Path(__file__).parents[1] / "fixtures" / "olmo-core"
NAMES = [f"part-0{number}-00000.npy" for number in range(3)]


@pytest.fixture(scope="module")
def files() -> list[np.ndarray]:
    return [np.fromfile(OLMO_CORE / "data" / name, dtype="<u2") for name in NAMES]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((OLMO_CORE / "data_orders" / "composable_inter_source.json").read_text())
    return loaded


def test_batches_are_those_that_the_loader_served(record: dict[str, Any], files: list[np.ndarray]) -> None:
    """Three concat-and-chunk sources, half of the longest length, two epochs."""
    pieces = concatenated_pieces(
        [len(file) for file in files], sequence_length=128, max_sequence_length=256, source_group_size=1
    )
    assert [int((pieces.file == number).sum()) for number in range(3)] == record["config"]["len"]
    for epoch in record["epochs"]:
        order = composable_indices(
            [86, 76, 48], seed=34521, epoch=epoch["epoch"], strategy="inter_source", chunk_size=2
        )
        assert hashlib.sha256(order.astype("<u4").tobytes()).hexdigest() == epoch["indices_sha256"]
        for number, batch in enumerate(epoch["data"]):
            instances = order[8 * number : 8 * (number + 1)].tolist()
            spans = [span for instance in instances for span in pieces.of_instance(instance)]
            rows = np.stack([files[file][start:stop] for file, start, stop in spans]).astype("<i8")
            assert instances == batch["index"]
            assert hashlib.sha256(rows.tobytes()).hexdigest() == batch["sha256_i64"]


def test_the_file_of_an_epochs_order_is_found_by_its_name(record: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"sequence_length": 128, "max_sequence_length": 256, "seed": 34521}
    for epoch in record["epochs"]:
        name = indices_file_name(210, epoch=epoch["epoch"], strategy="inter_source", **settings)
        assert name == Path(epoch["indices_file"]).name
    unshuffled = indices_file_name(210, epoch=1, strategy=None, **settings)
    assert unshuffled == "global_indices_max_seq_len256_seq_len128_size210_v1.npy"


@pytest.mark.parametrize(
    ("strategy", "epoch", "chunk_size", "sources_per_epoch", "length", "first_8", "digest"),
    [
        ("intra_source", 1, 2, -1, 210, [78, 79, 18, 19, 58, 59, 12, 13], "e2337e428083c8c2"),
        ("interleaved_source", 2, 2, -1, 144, [10, 118, 192, 11, 119, 193, 38, 88], "0afe412c3911795c"),
        ("intra_source", 3, 1, 2, 162, [85, 27, 62, 17, 11, 76, 74, 2], "72a337de772e8021"),
        ("interleaved_source", 4, 1, 2, 60, [8, 48, 11, 56, 18, 73, 22, 76], "5513cbd3b48fd084"),
    ],
)
def test_other_strategies_are_the_trainers(
    strategy: str, epoch: int, chunk_size: int, sources_per_epoch: int, length: int, first_8: list[int], digest: str
) -> None:
    """From running ComposableDataLoader._build_global_indices of 3.0.0 on sources of these sizes."""
    sizes = [86, 76, 48] if sources_per_epoch == -1 else [86, 76, 48, 30]

    order = composable_indices(
        sizes,
        seed=34521,
        epoch=epoch,
        strategy=strategy,
        chunk_size=chunk_size,
        sources_per_epoch=sources_per_epoch,
    )

    assert (len(order), order[:8].tolist(), order.dtype) == (length, first_8, np.uint32)
    assert hashlib.sha256(order.astype("<u4").tobytes()).hexdigest().startswith(digest)


@pytest.mark.parametrize("strategy", [None, "inter_source", "intra_source", "interleaved_source"])
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_no_instance_comes_twice_an_epoch_and_chunks_stay_together(strategy: str | None, chunk_size: int) -> None:
    order = composable_indices([8, 4, 6], seed=1, epoch=2, strategy=strategy, chunk_size=chunk_size)

    assert len(np.unique(order)) == len(order) == (12 if strategy == "interleaved_source" else 18)
    if strategy != "interleaved_source":
        assert (order[chunk_size - 1 :: chunk_size] == order[::chunk_size] + chunk_size - 1).all()
    else:
        sources = np.searchsorted([0, 8, 12], order, side="right") - 1
        assert sources.tolist() == [0, 1, 2] * 4
    if strategy == "intra_source":
        assert np.array_equal(np.sort(order[:8]), np.arange(8))
    if strategy is None:
        assert np.array_equal(order, np.arange(18))


def test_groups_of_sources_take_turns() -> None:
    assert [list(sources_of_epoch(6, epoch, 2)) for epoch in (1, 2, 3, 4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert list(sources_of_epoch(6, 5)) == [*range(6)]


def test_instances_of_an_epoch_count_from_the_runs_first_source() -> None:
    order = composable_indices([3, 4, 5, 6], seed=1, epoch=2, strategy="inter_source", sources_per_epoch=2)

    instances = run_instances(order, [3, 4, 5, 6], epoch=2, sources_per_epoch=2)

    assert sorted(order.tolist()) == [*range(11)]
    assert sorted(instances.tolist()) == [*range(7, 18)]
    assert instances.dtype == np.uint32


def test_settings_that_the_trainer_refuses_are_refused() -> None:
    with pytest.raises(UnsupportedRecipe, match="sources_per_epoch 4 does not divide 6"):
        sources_of_epoch(6, 1, 4)
    with pytest.raises(UnsupportedRecipe, match="'by_moon'"):
        composable_indices([3], seed=1, epoch=1, strategy="by_moon")
    with pytest.raises(OrderMismatch, match="whole chunks of 2"):
        composable_indices([3, 4], seed=1, epoch=1, strategy="inter_source", chunk_size=2)
    with pytest.raises(UnsupportedRecipe, match="no multiple"):
        concatenated_pieces([9], sequence_length=4, max_sequence_length=6, source_group_size=1)


@pytest.mark.parametrize("sizes", [[9, 5, 0, 30, 2], [4, 4], [0, 0, 50], [3, 2, 1]])
@pytest.mark.parametrize("size", [1, 2, 3, -1])
@pytest.mark.parametrize("longest", [4, 8])
def test_instances_tile_the_files_of_a_group_laid_end_to_end(sizes: list[int], size: int, longest: int) -> None:
    tokens = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    pieces = concatenated_pieces(sizes, sequence_length=4, max_sequence_length=longest, source_group_size=size)

    rows = [
        np.concatenate([tokens[file][start:stop] for file, start, stop in pieces.of_instance(instance)]).tolist()
        for instance in range(pieces.num_instances)
    ]

    expected = []
    step = len(sizes) if size == -1 else size
    for first in range(0, len(sizes), step):
        flat = np.concatenate(tokens[first : first + step])
        whole = len(flat) // longest * longest
        expected += flat[:whole].reshape(-1, 4).tolist()
    assert rows == expected
    assert (pieces.stop > pieces.start).all()


def test_fingerprints_of_sources_are_the_trainers(record: dict[str, Any], files: list[np.ndarray]) -> None:
    sources = [
        document_source_fingerprint([(f"data/{name}", len(file))], dtype="uint16", eos_token_id=0)
        for name, file in zip(NAMES, files, strict=True)
    ]

    found = [concat_and_chunk_fingerprint([source], 256) for source in sources]

    assert found == record["epochs"][0]["end_state"]["source_fingerprints"]


@pytest.mark.parametrize("name", ["fsl", "fsl_chunk2"])
def test_fingerprints_of_fsl_datasets_are_the_trainers_wherever_the_files_lie(name: str) -> None:
    config = json.loads((OLMO_CORE / "data_orders" / f"{name}.json").read_text())["config"]
    sizes = [(f"s3://bucket/{part}", (OLMO_CORE / "data" / part).stat().st_size) for part in NAMES]
    fields = fsl_fields(config["dataset"]["tokenizer"], "uint16", config["dataset"]["max_target_sequence_length"])

    assert dataset_fingerprint("NumpyFSLDataset", fields, sizes) == config["fingerprint"]


def test_fingerprints_tell_every_setting_apart() -> None:
    source = document_source_fingerprint([("a.npy", 10)], dtype="uint16", eos_token_id=0)
    found = [
        source,
        document_source_fingerprint([("b.npy", 10)], dtype="uint16", eos_token_id=0),
        document_source_fingerprint([("a.npy", 11)], dtype="uint16", eos_token_id=0),
        document_source_fingerprint([("a.npy", 10)], dtype="uint32", eos_token_id=0),
        document_source_fingerprint([("a.npy", 10)], dtype="uint16", eos_token_id=1),
        document_source_fingerprint([("a.npy", 10)], dtype="uint16", eos_token_id=0, bos_token_id=2),
        document_source_fingerprint([("a.npy", 10)], dtype="uint16", eos_token_id=0, max_document_length=5),
        packing_fingerprint([source], 8),
        packing_fingerprint([source], 8, long_doc_strategy="fragment"),
        packing_fingerprint([source], 8, source_group_size=2),
        concat_and_chunk_fingerprint([source], 8),
        concatenated_fingerprint([source]),
    ]

    assert len(set(found)) == len(found)
