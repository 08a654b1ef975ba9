"""Traces are HDF5, which can be made of other files: only plain arrays that lie in the file itself are read.

What Keras once read through links, external storage and virtual datasets, and through links in the middle of a path
(CVE-2026-1669, keras#23163), is tried here.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_index.errors import UnsafeFile
from replay.recording import read_trace
from tests.attacks.opening import Twin, assert_refused

SECRET = np.arange(8, dtype=np.float64)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What a trace must not give away: an HDF5 file and the raw bytes of one, elsewhere on the machine."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = SECRET
        file["inner/a"] = SECRET
    (tmp_path / "secret.raw").write_bytes(SECRET.tobytes())
    return tmp_path / "secret"


def external_link(file: h5py.File, secret: Path) -> None:
    file["a"] = h5py.ExternalLink(f"{secret}.h5", "a")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["a"] = h5py.SoftLink("/step")


def soft_link_to_nothing(file: h5py.File, secret: Path) -> None:
    file["a"] = h5py.SoftLink("/nothing")


def soft_link_to_itself(file: h5py.File, secret: Path) -> None:
    file["a"] = h5py.SoftLink("/a")


def soft_link_through_an_external_one(file: h5py.File, secret: Path) -> None:
    file["group/there"] = h5py.ExternalLink(f"{secret}.h5", "/inner")
    file["a"] = h5py.SoftLink("/group/there/a")


def link_in_a_group(file: h5py.File, secret: Path) -> None:
    file["group/a"] = h5py.ExternalLink(f"{secret}.h5", "a")


def group(file: h5py.File, secret: Path) -> None:
    file.create_group("a")


def group_in_itself(file: h5py.File, secret: Path) -> None:
    inner = file.create_group("a")
    inner["a"] = inner


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("a", (8,), dtype="f8", external=[(f"{secret}.raw", 0, 64)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(f"{secret}.h5", "a", (8,))
    file.create_virtual_dataset("a", layout)


def never_written(file: h5py.File, secret: Path) -> None:
    """10**15 elements that would all be the fill value."""
    file.create_dataset("a", (10**15,), dtype="f8")


def never_written_in_parts(file: h5py.File, secret: Path) -> None:
    file.create_dataset("a", (10**15,), dtype="f8", chunks=(1024,), fillvalue=1)


def packed(file: h5py.File, secret: Path) -> None:
    """A gigabyte of zeros in a few kilobytes."""
    array = file.create_dataset("a", (2**27,), dtype="f8", chunks=(2**24,), compression="gzip", compression_opts=9)
    array[: 2**24] = 0


def filtered(file: h5py.File, secret: Path) -> None:
    file.create_dataset("a", data=SECRET, chunks=(8,), shuffle=True, fletcher32=True)


def objects(file: h5py.File, secret: Path) -> None:
    file.create_dataset("a", data=["x" * 1000] * 8)


def references(file: h5py.File, secret: Path) -> None:
    file.create_dataset("a", data=file["step"].ref, dtype=h5py.ref_dtype)


def records(file: h5py.File, secret: Path) -> None:
    file["a"] = np.zeros(2, dtype=[("a", "f8"), ("b", "i8")])


def named_type(file: h5py.File, secret: Path) -> None:
    file["a"] = np.dtype("f8")


def nothing_at_all(file: h5py.File, secret: Path) -> None:
    file["a"] = h5py.Empty("f8")


ATTACKS: list[Callable[[h5py.File, Path], None]] = [
    external_link, soft_link, soft_link_to_nothing, soft_link_to_itself, soft_link_through_an_external_one,
    link_in_a_group, group, group_in_itself, external_storage, virtual, never_written, never_written_in_parts, packed,
    filtered, objects, references, records, named_type, nothing_at_all,
]  # fmt: skip


def fork_of(folder: Path) -> Path:
    """A folder whose committed trace would be read; returns the trace's place."""
    (folder / "checkpoints" / "step2").mkdir(parents=True)
    (folder / "trace").mkdir()
    return folder / "trace" / "000001-000002.h5"


def test_only_plain_arrays_are_read(secret: Path, tmp_path: Path) -> None:
    twins = []
    for attack in ATTACKS:
        folder = tmp_path / attack.__name__
        with h5py.File(fork_of(folder), "w") as file:
            file["step"] = np.arange(1, 3)
            attack(file, secret)
        twins.append(Twin(name=attack.__name__, folder=folder, kind="trace", says="000001-000002.h5"))
    assert_refused(twins)


def test_pieces_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    first = fork_of(tmp_path)
    for number, shape in ((1, (1, 3)), (2, (1, 4))):
        with h5py.File(first.with_name(f"00000{number}-00000{number}.h5"), "w") as file:
            file["a"] = np.zeros(shape)

    assert_refused([Twin(name="pieces", folder=tmp_path, kind="trace", says="do not fit together")])


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_trace_that_is_no_file_is_refused(what: str, tmp_path: Path) -> None:
    import os

    path = fork_of(tmp_path)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UnsafeFile, match="000001-000002.h5 is a folder, a pipe or a device"):
        read_trace(tmp_path)
