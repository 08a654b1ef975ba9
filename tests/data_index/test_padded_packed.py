"""OLMo-core's padded and packed datasets, held against what its real loaders served, token by token."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import CorruptFile, MissingFile, OrderMismatch, UnsupportedRecipe
from data_index.instances.documents import documents_of, fragmented, source_order, truncated
from data_index.instances.packed import (
    PLAIN,
    Packing,
    check_packing,
    group_documents,
    grouped,
    pack,
    packed_pieces,
    sort_kernel,
)
from data_index.instances.packing_cache import KINDS, packing_key, packing_of, read_packing, read_packings
from data_index.instances.padded import padded_pieces
from data_index.masking import document_lengths
from data_index.orders.olmo_core_fingerprint import dataset_fingerprint, packed_fields, padded_fields
from data_index.orders.olmo_core_fsl import global_indices
from data_index.pieces import Pieces

OLMO_CORE = Path(__file__).parents[1] / "fixtures" / "olmo-core"
NAMES = [f"part-0{number}-00000.npy" for number in range(3)]
EOS, PAD = 0, 1


def recorded(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((OLMO_CORE / "data_orders" / f"{name}.json").read_text())
    return record


@pytest.fixture(scope="module")
def files() -> list[np.ndarray]:
    return [np.fromfile(OLMO_CORE / "data" / name, dtype="<u2") for name in NAMES]


def row_of(pieces: Pieces, files: Sequence[np.ndarray], instance: int, length: int) -> np.ndarray:
    tokens = np.concatenate([files[file][start:stop] for file, start, stop in pieces.of_instance(instance)])
    return np.append(tokens.astype(np.int64), np.full(length - len(tokens), PAD))


def assert_served(record: dict[str, Any], pieces: Pieces, files: Sequence[np.ndarray]) -> None:
    """Every batch of every epoch has the recorded instances, ids, unpadded lengths and documents."""
    assert pieces.num_instances == record["config"]["len"]
    for epoch in record["epochs"]:
        order = global_indices(pieces.num_instances, seed=34521, epoch=epoch["epoch"])
        assert hashlib.sha256(order.astype("<u4").tobytes()).hexdigest() == epoch["indices_sha256"]
        rows_together, length = epoch["data"][0]["shape"]
        for number, batch in enumerate(epoch["data"]):
            instances = order[number * rows_together : (number + 1) * rows_together].tolist()
            rows = np.stack([row_of(pieces, files, instance, length) for instance in instances])
            assert instances == batch["index"]
            assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == batch["sha256_i64"]
            assert pieces.lengths()[instances].tolist() == batch["label_mask_sum"]
            for row, lengths in zip(rows, batch.get("doc_lens", []), strict=False):
                assert document_lengths(row, EOS).tolist() == lengths


def packings_of(
    files: Sequence[np.ndarray], *, length: int, strategy: str, size: int, kernel: str | None = None
) -> tuple[list[Packing], list[list[int]]]:
    tables = grouped([documents_of(file, EOS) for file in files], size)
    groups = grouped([len(file) for file in files], size)
    documents = [
        group_documents(table, tokens, sequence_length=length, long_doc_strategy=strategy)
        for table, tokens in zip(tables, groups, strict=True)
    ]
    return [pack(table, length, kernel=kernel) for table in documents], groups


def test_padded_batches_are_those_that_the_loader_served(files: list[np.ndarray]) -> None:
    record = recorded("padded")

    assert_served(record, padded_pieces([documents_of(file, EOS) for file in files], 256), files)


@pytest.mark.parametrize("kernel", [None, PLAIN])
def test_packed_batches_are_those_that_the_loader_served(files: list[np.ndarray], kernel: str | None) -> None:
    """But only where numpy sorts equals as on the machine of the record; without vector instructions it does not."""
    record = recorded("packed_fragment_group2_perm123")
    permuted = [files[number] for number in source_order(3, 123)]
    packings, groups = packings_of(permuted, length=128, strategy="fragment", size=2, kernel=kernel)
    pieces = packed_pieces(packings, groups)

    if PLAIN not in (kernel, sort_kernel()):
        assert_served(record, pieces, permuted)
    else:
        with pytest.raises(AssertionError):
            assert_served(record, pieces, permuted)


def test_fingerprints_of_padded_and_packed_datasets_are_the_trainers() -> None:
    sizes = [(name, (OLMO_CORE / "data" / name).stat().st_size) for name in NAMES]
    padded, packed = recorded("padded")["config"], recorded("packed_fragment_group2_perm123")["config"]
    tokenizer = padded["dataset"]["tokenizer"]

    assert padded["fingerprint"] == dataset_fingerprint(
        "NumpyPaddedFSLDataset", padded_fields(tokenizer, "uint16", 256), sizes
    )
    assert packed["fingerprint"] == dataset_fingerprint(
        "NumpyPackedFSLDataset",
        packed_fields(tokenizer, "uint16", 128, long_doc_strategy="fragment", source_group_size=2),
        [sizes[number] for number in source_order(3, 123)],
    )


def test_plain_sorting_is_the_same_on_every_machine() -> None:
    """Hashes of what numpy 1.24.4 gives, which has no other way to sort."""
    lengths = np.arange(20_000, dtype=np.int64) * 7919 % 613 + 1
    stops = np.cumsum(lengths)

    packing = pack(np.stack([stops - lengths, stops], axis=1), 1024, kernel=PLAIN)

    order = np.searchsorted(stops, packing.documents[:, 0], side="right")
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest().startswith("3155196cbccaa39e")


def test_sorting_like_another_machine_is_refused() -> None:
    with pytest.raises(UnsupportedRecipe, match="AVX1024"):
        pack(np.array([[0, 3]]), 8, kernel="AVX1024")


def test_each_document_goes_where_it_fits_best_and_first_where_it_fits_equally() -> None:
    """Lengths 6, 5, 5, 3, 3, 2, 2 into 8: bins (6 2) (5 3) (5 3) (2)."""
    lengths = np.array([2, 5, 3, 6, 5, 3, 2])
    stops = np.cumsum(lengths)

    packing = pack(np.stack([stops - lengths, stops], axis=1), 8, kernel=PLAIN)

    in_order = packing.documents[packing.packed]
    sizes = (in_order[:, 1] - in_order[:, 0]).tolist()
    instances = [sizes[a:b] for a, b in zip(packing.first, packing.first[1:], strict=False)]
    assert instances == [[6, 2], [5, 3], [5, 3], [2]]
    # Of two bins with 3 tokens of space, the older one is filled first.
    assert packing.packed.tolist()[2:6] == [1, 3, 2, 4]


@pytest.mark.parametrize("strategy", ["truncate", "fragment"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kernel", [None, PLAIN])
def test_every_document_is_packed_once_and_every_instance_fits(
    files: list[np.ndarray], strategy: str, size: int, kernel: str | None
) -> None:
    packings, groups = packings_of(files, length=64, strategy=strategy, size=size, kernel=kernel)
    pieces = packed_pieces(packings, groups)

    placed = sorted(zip(pieces.file.tolist(), pieces.start.tolist(), pieces.stop.tolist(), strict=True))

    cut = truncated if strategy == "truncate" else fragmented
    expected = [(n, *span) for n, file in enumerate(files) for span in cut(documents_of(file, EOS), 64).tolist()]
    assert placed == expected
    assert pieces.lengths().max() <= 64
    assert pieces.lengths().min() > 0


def test_other_ways_with_long_documents_are_refused() -> None:
    with pytest.raises(UnsupportedRecipe, match="'wrap'"):
        group_documents([np.array([[0, 3]])], [3], sequence_length=8, long_doc_strategy="wrap")


@pytest.mark.parametrize(
    ("tokens", "bos", "to_the_end", "documents"),
    [
        ([5, 0, 6, 7, 0], None, False, [[0, 2], [2, 5]]),
        ([5, 0, 6, 7], None, False, [[0, 2]]),
        ([5, 0, 6, 7], None, True, [[0, 2], [2, 4]]),
        ([5, 0], None, True, [[0, 2]]),
        ([0, 0], None, False, [[0, 1], [1, 2]]),
        ([5, 6], None, False, []),
        ([], None, False, []),
        ([], None, True, []),
        ([9, 5, 0, 9, 0], 9, False, [[0, 3], [3, 5]]),
        ([9, 5, 0, 6, 0, 9, 7], 9, False, [[0, 5]]),
        ([9, 5, 0, 6, 0, 9, 7], 9, True, [[0, 5], [5, 7]]),
    ],
)
def test_documents_end_where_the_trainer_ends_them(
    tokens: list[int], bos: int | None, to_the_end: bool, documents: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a document's last token is the last of a block."""
    for block in (2**24, 1, 2, 3):
        monkeypatch.setattr("data_index.instances.documents.BLOCK_TOKENS", block)
        found = documents_of(np.array(tokens, dtype=np.uint16), EOS, bos, to_the_end=to_the_end)
        assert found.tolist() == documents


def test_long_documents_are_cut_or_fragmented() -> None:
    documents = np.array([[0, 3], [3, 11], [11, 19], [19, 20]])

    assert truncated(documents, 4).tolist() == [[0, 3], [3, 7], [11, 15], [19, 20]]
    assert fragmented(documents, 4).tolist() == [[0, 3], [3, 7], [7, 11], [11, 15], [15, 19], [19, 20]]


def test_files_are_permuted_as_pythons_generator_does() -> None:
    assert source_order(3, None) == [0, 1, 2]
    assert source_order(8, 123) == [1, 4, 5, 6, 3, 7, 2, 0]


# Packing caches. The packing of file 0 and 1 at length 64, written as the trainer writes it.


def written_packing(folder: Path, packing: Packing, key: str, length: int = 64) -> None:
    offsets = np.stack([packing.first[:-1], packing.first[1:]], axis=1)
    for kind, array in zip(KINDS, (packing.documents, offsets, packing.packed), strict=True):
        (folder / f"{kind}-{length}-{key}.npy").write_bytes(array.astype("<u8").tobytes())


@pytest.fixture
def documents(files: list[np.ndarray]) -> np.ndarray:
    tables = [documents_of(file, EOS) for file in files[:2]]
    return group_documents(tables, [len(file) for file in files[:2]], sequence_length=64, long_doc_strategy="truncate")


def test_a_cached_packing_counts_more_than_a_computed_one(tmp_path: Path, documents: np.ndarray) -> None:
    """What the cache says is taken, also where this machine would have sorted equals in another order."""
    elsewhere, here = pack(documents, 64, kernel=PLAIN), pack(documents[::-1], 64)
    assert not np.array_equal(elsewhere.documents, here.documents)
    written_packing(tmp_path, elsewhere, "a")
    written_packing(tmp_path, elsewhere, "b", length=128)

    packings = read_packings(tmp_path, 64)
    found = packing_of(packings, "a", documents, 64)

    assert [*packings] == ["a"]
    assert np.array_equal(found.documents, elsewhere.documents)
    assert np.array_equal(found.first, elsewhere.first)
    assert np.array_equal(found.packed, elsewhere.packed)


def test_a_packing_under_a_forgotten_path_is_recognised_by_its_documents(tmp_path: Path, documents: np.ndarray) -> None:
    written_packing(tmp_path, pack(documents[:40], 64), "another")
    written_packing(tmp_path, pack(documents, 64), "forgotten")

    found = packing_of(read_packings(tmp_path, 64), "key of a path that moved", documents, 64)

    assert len(found.documents) == len(documents)


def test_a_packing_of_other_files_is_refused(tmp_path: Path, documents: np.ndarray) -> None:
    written_packing(tmp_path, pack(documents, 64), "a")
    shifted = documents + 1

    with pytest.raises(OrderMismatch, match="not of these token files"):
        packing_of(read_packings(tmp_path, 64), "a", shifted, 64)
    with pytest.raises(OrderMismatch, match="none of 1 packings"):
        packing_of(read_packings(tmp_path, 64), "b", shifted, 64)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ({"packed": [0, 1, 1, 3]}, "each document once"),
        ({"packed": [0, 1, 2, 4]}, "each document once"),
        ({"packed": [0, 1, 2]}, "each document once"),
        ({"first": [0, 2, 3]}, "do not tile"),
        ({"first": [1, 2, 4]}, "do not tile"),
        ({"first": [0, 2, 2, 4]}, "do not tile"),
        ({"first": []}, "do not tile"),
        ({"first": [0, 3, 4]}, "more than 8 tokens"),
        ({"documents": [[0, 5], [5, 9], [9, 12], [12, 15]]}, "not of these token files"),
        ({"documents": [[0, 5], [5, 9], [9, 12], [12, 15], [15, 16]]}, "not of these token files"),
    ],
)
def test_a_packing_that_is_not_one_is_refused(damage: dict[str, Any], match: str) -> None:
    documents = np.array([[0, 5], [5, 9], [9, 12], [12, 14]])
    good = {"documents": documents, "first": np.array([0, 2, 4]), "packed": np.array([0, 2, 1, 3])}
    check_packing(Packing(**good), documents, 8)

    with pytest.raises(OrderMismatch, match=match):
        check_packing(Packing(**(good | {k: np.array(v, np.int64) for k, v in damage.items()})), documents, 8)


def test_damaged_cache_files_are_named(tmp_path: Path, documents: np.ndarray) -> None:
    written_packing(tmp_path, pack(documents, 64), "a")
    path = tmp_path / "instance-offsets-64-a.npy"
    whole = path.read_bytes()
    for content, error, match in (
        (whole[:-3], CorruptFile, "no multiple of 8"),
        (whole[:-8], CorruptFile, "no pairs"),
        (whole[:-16] + b"\xff" * 16, CorruptFile, "no number of a token"),
        (whole[16:32] + whole[:16] + whole[32:], OrderMismatch, "do not follow one another"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=match):
            read_packing(tmp_path, 64, "a")
    path.unlink()
    with pytest.raises(MissingFile, match="instance-offsets-64-a.npy"):
        read_packings(tmp_path, 64)


def test_keys_of_packings_are_the_trainers() -> None:
    """From running NumpyPackedFSLDataset's own methods on these paths and sizes."""
    group = [("data/part-02-00000.npy", 12792), ("data/part-00-00000.npy", 22486)]

    assert packing_key(group, long_doc_strategy="fragment").startswith("6afad74e051ecc2d7d8edf268f930511")
    key = packing_key(group, long_doc_strategy="truncate", use_array_if_local=True)
    assert key.startswith("73a33d926770d2855d60963de1e9873e")
