"""Megatron's .idx files: read as the trainers read them, and never believed beyond the sizes of both files."""

import struct
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import CorruptFile, MissingFile, UnknownLayout, UnsafeFile
from data_index.megatron_index import read_megatron_index

NEOX = Path(__file__).parents[1] / "fixtures" / "neox"


def index_bytes(
    sizes: list[int],
    *,
    code: int = 8,
    itemsize: int = 2,
    pointers: list[int] | None = None,
    documents: list[int] | None = None,
    version: int = 1,
    magic: bytes = b"MMIDIDX\0\0",
    counts: tuple[int, int] | None = None,
) -> bytes:
    if pointers is None:
        pointers = [int(n) * itemsize for n in np.append(0, np.cumsum(sizes))[:-1]]
    documents = [*range(len(sizes) + 1)] if documents is None else documents
    header = magic + struct.pack("<QBQQ", version, code, *(counts or (len(sizes), len(documents))))
    arrays = (np.array(sizes, "<i4"), np.array(pointers, "<i8"), np.array(documents, "<i8"))
    return header + b"".join(array.tobytes() for array in arrays)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "data.idx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "dtype", "num_sequences", "num_tokens", "num_documents"),
    [
        ("toy_text_document", "uint16", 300, 22296, 300),
        ("toyb_text_document", "uint16", 60, 2524, 60),
        ("toy_int32_text_document", "int32", 40, 2168, 20),
        ("preshuffled_toy_document", "uint16", 160, 5280, 160),
    ],
)
def test_indexes_of_gpt_neox_are_read(
    name: str, dtype: str, num_sequences: int, num_tokens: int, num_documents: int
) -> None:
    index = read_megatron_index(NEOX / f"{name}.idx", (NEOX / f"{name}.bin").stat().st_size)

    assert (index.dtype, index.num_sequences, index.num_tokens) == (dtype, num_sequences, num_tokens)
    assert len(index.document_starts) == num_documents + 1
    assert index.starts().tolist() == np.append(0, np.cumsum(index.sizes))[:-1].tolist()


@pytest.mark.parametrize(
    ("code", "dtype", "itemsize"),
    [(1, "uint8", 1), (2, "int8", 1), (3, "int16", 2), (4, "int32", 4), (5, "int64", 8), (8, "uint16", 2)]
    + [(6, "float32", 4), (6, "float64", 8), (7, "float32", 4), (7, "float64", 8)],
)
def test_every_dtype_code_is_read_and_file_sizes_decide_where_trainers_differ(
    tmp_path: Path, code: int, dtype: str, itemsize: int
) -> None:
    path = written(tmp_path, index_bytes([3, 0, 4], code=code, itemsize=itemsize))

    assert read_megatron_index(path, 7 * itemsize).dtype == dtype


def test_a_float_dtype_is_told_by_pointers_where_the_bin_file_holds_more(tmp_path: Path) -> None:
    path = written(tmp_path, index_bytes([3, 4], code=6, itemsize=8))

    assert read_megatron_index(path, 100).dtype == "float64"


def test_a_float_dtype_that_nothing_tells_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, index_bytes([3], code=6, itemsize=8))

    with pytest.raises(CorruptFile, match="dtype code 6.*float32 or float64"):
        read_megatron_index(path, 100)


def test_sequences_need_not_follow_one_another(tmp_path: Path) -> None:
    path = written(tmp_path, index_bytes([3, 4], pointers=[8, 0]))

    assert read_megatron_index(path, 14).starts().tolist() == [4, 0]


def test_documents_may_be_missing_as_after_a_merge(tmp_path: Path) -> None:
    path = written(tmp_path, index_bytes([3, 4], documents=[0]))

    assert read_megatron_index(path, 14).document_starts.tolist() == [0]


GOOD = index_bytes([3, 4])


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", CorruptFile, "not a Megatron index"),
        (b"\x93NUMPY\x01\x00" + bytes(100), CorruptFile, "not a Megatron index"),
        (GOOD[:20], CorruptFile, "ends inside its header"),
        (GOOD[:-1], CorruptFile, "truncated"),
        (GOOD + b"\0", CorruptFile, "1 bytes more"),
        (b"TNTIDX\0\0" + bytes(40), UnknownLayout, "TNTIDX"),
        (index_bytes([3, 4], version=2), UnknownLayout, "version 2"),
        (index_bytes([3, 4], code=9), CorruptFile, "dtype code 9"),
        (index_bytes([3, 4], counts=(2**63, 3)), UnsafeFile, "claims 9,223,372,036,854,775,808 sequences"),
        (index_bytes([3, 4], counts=(2, 2**61)), UnsafeFile, "claims"),
        (index_bytes([3, -4]), UnsafeFile, "-4 tokens"),
        (index_bytes([3, 4], pointers=[0, -6]), UnsafeFile, "sequence 1 .* outside"),
        (index_bytes([3, 4], pointers=[0, 2**63 - 2]), UnsafeFile, "sequence 1 .* outside"),
        (index_bytes([3, 2**31 - 1], pointers=[0, 6]), UnsafeFile, "sequence 1 .* outside"),
        (index_bytes([3, 4], pointers=[0, 5]), CorruptFile, "multiple of 2 bytes"),
        (index_bytes([3, 4], documents=[]), CorruptFile, "document starts"),
        (index_bytes([3, 4], documents=[0, 1]), CorruptFile, "document starts"),
        (index_bytes([3, 4], documents=[1, 2]), CorruptFile, "document starts"),
        (index_bytes([3, 4], documents=[0, 2, 1, 2]), CorruptFile, "document starts"),
        (index_bytes([3, 4], documents=[0, 3]), CorruptFile, "document starts"),
    ],
)
def test_a_damaged_or_hostile_index_is_refused(tmp_path: Path, content: bytes, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        read_megatron_index(written(tmp_path, content), 14)


def test_an_index_of_a_longer_bin_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match="sequence 1 .*outside the .bin file of 12 bytes"):
        read_megatron_index(written(tmp_path, GOOD), 12)


def test_every_truncation_of_an_index_is_refused(tmp_path: Path) -> None:
    whole = (NEOX / "toyb_text_document.idx").read_bytes()
    for stop in range(0, len(whole), 7):
        with pytest.raises(CorruptFile):
            read_megatron_index(written(tmp_path, whole[:stop]), 5048)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="data.idx"):
        read_megatron_index(tmp_path / "data.idx", 14)


def test_an_index_of_nothing_is_read(tmp_path: Path) -> None:
    index = read_megatron_index(written(tmp_path, index_bytes([], documents=[0])), 0)

    assert (index.num_sequences, index.num_tokens, index.starts().tolist()) == (0, 0, [])
