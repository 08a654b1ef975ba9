"""A damaged or boasting checkpoint is named for what it is: nothing absurd is allocated, nothing outside is read."""

import io
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_index.dcp import read_dcp_metadata
from data_index.errors import CorruptFile, MissingFile, UnsafeFile
from data_index.pickles import TensorRecord, TorchArchive, read_pickle, read_torch_archive

STEP10 = Path(__file__).parents[1] / "fixtures" / "olmo-core" / "main" / "ckpt" / "step10"
RANK0 = STEP10 / "train" / "rank0.pt"
MODEL_AND_OPTIM = STEP10 / "model_and_optim"


@pytest.fixture
def dcp(tmp_path: Path) -> Path:
    """A copy of a distributed checkpoint that a test may damage."""
    return Path(shutil.copytree(MODEL_AND_OPTIM, tmp_path / "model_and_optim"))


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, storage: bytes = b"") -> bytes:
    """A file as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", storage)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def read_archive(content: bytes) -> TorchArchive:
    return TorchArchive(io.BytesIO(content), "test.pt", len(content))


def tensor_pickle(*, num_elements: int, shape: tuple[int, ...], offset: int = 0) -> bytes:
    """A float32 tensor on storage 0, with whatever sizes are claimed for it."""

    class Storage: ...

    class Tensor: ...

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", num_elements) if isinstance(value, Storage) else None

        def reducer_override(self, value: Any) -> Any:
            strides = tuple(int(np.prod(shape[n + 1 :])) for n in range(len(shape)))
            arguments = (Storage(), offset, shape, strides, False, {})
            return (torch._utils._rebuild_tensor_v2, arguments) if isinstance(value, Tensor) else NotImplemented

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Tensor())
    return buffer.getvalue()


# --- nothing absurd is allocated, nothing outside is read ------------------------------------------------------------


@pytest.mark.parametrize("memo", [b"r" + struct.pack("<I", 2**31 - 1), b"p2147483647\n"], ids=["LONG_BINPUT", "PUT"])
def test_an_absurd_memo_is_refused_before_it_is_allocated(memo: bytes) -> None:
    with pytest.raises(UnsafeFile, match="claims a memo of 2147483647 entries"):
        read_pickle(b"\x80\x02K\x01" + memo + b".", "test.pkl")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused(compression: int) -> None:
    """torch stores; a compressed entry can only be a bomb."""
    with pytest.raises(UnsafeFile, match="archive/data.pkl is compressed or claims"):
        read_archive(archive(pickle.dumps({}, 2), compression=compression, storage=bytes(10**6)))


def test_a_storage_of_terabytes_is_not_believed() -> None:
    claims = tensor_pickle(num_elements=10**13, shape=(10**13,))
    file = read_archive(archive(claims, storage=bytes(8)))

    with pytest.raises(CorruptFile, match="storage 0 has 8 bytes, not 40000000000000"):
        file.storage_bytes(file.value)


@pytest.mark.parametrize(
    ("num_elements", "shape", "offset"), [(2, (10**13,), 0), (2, (2,), 1), (6, (2, 4), 0), (2, (2,), -1), (-2, (2,), 0)]
)
def test_a_tensor_that_reaches_past_its_storage_is_refused(
    num_elements: int, shape: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(UnsafeFile, match="a tensor (of shape .* reaches past its storage|claims shape)"):
        read_archive(archive(tensor_pickle(num_elements=num_elements, shape=shape, offset=offset), storage=bytes(8)))


@pytest.mark.parametrize("path", [b"../../passwd", b"/etc/passwd0", b"a/../../bcde"])
def test_metadata_cannot_name_a_file_outside_its_folder(path: bytes, dcp: Path) -> None:
    content = (dcp / ".metadata").read_bytes()
    (dcp / ".metadata").write_bytes(content.replace(b"__0_0.distcp", path))

    with pytest.raises(UnsafeFile, match=f"metadata names {path.decode()}, outside its folder"):
        read_dcp_metadata(dcp)


def test_entries_that_share_their_bytes_are_refused() -> None:
    """A small file could else be a thousand tensors of its own size."""
    one = archive(pickle.dumps({}, 2), storage=bytes(5000))
    entry = one[one.rfind(b"PK\x01\x02", 0, one.rfind(b"archive/data/0")) :]
    entry = entry[: entry.find(b"PK\x01\x02", 4)]
    names = [b"archive/data/%d" % number for number in range(1, 9)]
    copies = b"".join(entry.replace(b"archive/data/0", name) for name in names)
    end = one.rfind(b"PK\x05\x06")
    directory = one.find(b"PK\x01\x02")
    tail = bytearray(one[end:])
    struct.pack_into("<HHI", tail, 8, 3 + 8, 3 + 8, end - directory + len(copies))

    with pytest.raises(UnsafeFile, match="entries claim 45[0-9]+ bytes, more than the file's"):
        read_archive(one[:end] + copies + bytes(tail))


@pytest.mark.parametrize("flag", [0x01, 0x20, 0x40], ids=["encrypted", "patched", "strong encryption"])
def test_a_storage_that_is_not_plain_is_refused(flag: int) -> None:
    """Its bytes would be read as numbers."""
    content = bytearray(archive(tensor_pickle(num_elements=2, shape=(2,)), storage=bytes(8)))
    content[content.rfind(b"PK\x01\x02", 0, content.rfind(b"archive/data/0")) + 8] |= flag

    with pytest.raises(UnsafeFile, match="entry archive/data/0 is encrypted or patched"):
        read_archive(bytes(content))


def test_another_byte_order_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, 2))
        file.writestr("archive/byteorder", b"big")
    with pytest.raises(CorruptFile, match="another byte order"):
        read_archive(buffer.getvalue())


@pytest.mark.parametrize("size", [-1, 2**63, 10**5000], ids=["-1", "2**63", "10**5000"])
def test_a_storage_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(CorruptFile):
        read_archive(archive(tensor_pickle(num_elements=size, shape=(0,)), storage=b""))


@pytest.mark.parametrize("shape", [(0, 2**63), (0, 10**5000)], ids=["2**63", "10**5000"])
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CorruptFile):
        read_archive(archive(tensor_pickle(num_elements=4, shape=shape), storage=bytes(16)))


def test_metadata_whose_item_is_too_short_for_its_sizes_is_corrupt(dcp: Path) -> None:
    """The sizes alone would let a tensor of terabytes be allocated for the first piece of a few bytes."""
    content = (dcp / ".metadata").read_bytes()
    entries = read_dcp_metadata(dcp)
    longest = max(piece.length for entry in entries.values() for piece in entry.pieces)
    stated = b"J" + struct.pack("<i", longest)
    assert stated in content
    (dcp / ".metadata").write_bytes(content.replace(stated, b"J" + struct.pack("<i", 16)))

    with pytest.raises(CorruptFile, match="has fewer bytes than its sizes need"):
        read_dcp_metadata(dcp)


# --- damage is named -------------------------------------------------------------------------------------------------


def test_a_truncated_distcp_is_corrupt(dcp: Path) -> None:
    (dcp / "__0_3.distcp").write_bytes((dcp / "__0_3.distcp").read_bytes()[:-1])

    with pytest.raises(CorruptFile, match="__0_3.distcp has 509764 bytes; .metadata places an item at"):
        read_dcp_metadata(dcp)


def test_a_distcp_truncated_after_opening_is_corrupt(dcp: Path) -> None:
    pieces = [piece for entry in read_dcp_metadata(dcp).values() for piece in entry.pieces]
    last = max((piece for piece in pieces if piece.path.name == "__0_3.distcp"), key=lambda piece: piece.offset)
    last.path.write_bytes(last.path.read_bytes()[:-1])

    with pytest.raises(CorruptFile, match="__0_3.distcp .*the file ends early; it was truncated"):
        last.open()


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_trainer_state_is_corrupt(keep: int, tmp_path: Path) -> None:
    (tmp_path / "rank0.pt").write_bytes(RANK0.read_bytes()[:keep])

    with pytest.raises(CorruptFile, match="rank0.pt is not a torch archive"):
        read_torch_archive(tmp_path / "rank0.pt")


def test_a_missing_piece_is_found_when_it_is_opened(dcp: Path) -> None:
    (dcp / "__0_0.distcp").unlink()
    entries = read_dcp_metadata(dcp)
    gone = next(piece for e in entries.values() for piece in e.pieces if piece.path.name == "__0_0.distcp")

    with pytest.raises(MissingFile, match="__0_0.distcp is not there"):
        gone.open()
    (dcp / ".metadata").unlink()
    with pytest.raises(MissingFile, match="metadata is not there: the checkpoint is incomplete"):
        read_dcp_metadata(dcp)


def test_a_storage_whose_checksum_differs_is_damaged() -> None:
    content = bytearray(archive(tensor_pickle(num_elements=2, shape=(2,)), storage=b"\x11" * 8))
    content[content.find(b"\x11" * 8)] ^= 1
    file = read_archive(bytes(content))

    with pytest.raises(CorruptFile, match="entry data/0 is damaged: its checksum differs"):
        file.storage_bytes(file.value)


@pytest.mark.parametrize(("at", "by"), [(0, b"X"), (30, b"b"), (26, b"\xff\xff")], ids=["magic", "name", "length"])
def test_an_entry_that_is_not_where_it_should_be_is_named(at: int, by: bytes) -> None:
    content = bytearray(archive(tensor_pickle(num_elements=2, shape=(2,)), storage=bytes(8)))
    header = content.rfind(b"PK\x03\x04", 0, content.find(b"archive/data/0"))
    content[header + at : header + at + len(by)] = by
    file = read_archive(bytes(content))

    with pytest.raises(CorruptFile, match="entry archive/data/0 (is not where|has another name)"):
        file.storage_bytes(file.value)


def test_an_archive_truncated_after_opening_is_corrupt(tmp_path: Path) -> None:
    content = archive(tensor_pickle(num_elements=2000, shape=(2000,)), storage=bytes(8000))
    (tmp_path / "model.pt").write_bytes(content)
    file = read_torch_archive(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(content[:4000])

    with pytest.raises(CorruptFile, match="entry data/0 ends early; the file was truncated"):
        file.storage_bytes(file.value)


def read_all(file: TorchArchive) -> None:
    def visit(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            visit(item)
        if isinstance(value, TensorRecord):
            file.storage_bytes(value)

    visit(file.value)


@pytest.mark.parametrize(
    ("source", "flips", "read"),
    [
        (RANK0, 200, lambda path: read_all(read_torch_archive(path))),
        (MODEL_AND_OPTIM / ".metadata", 40, lambda path: read_dcp_metadata(path.parent)),
    ],
    ids=["rank0.pt", ".metadata"],
)
def test_a_flipped_bit_is_read_or_named_never_a_crash(
    source: Path, flips: int, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    generator, content, named = random.Random(20), source.read_bytes(), 0
    for _ in range(flips):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (tmp_path / source.name).write_bytes(damaged)
        try:
            read(tmp_path / source.name)
        except (CorruptFile, MissingFile):  # UnsafeFile is a CorruptFile
            named += 1

    assert named > flips // 4
