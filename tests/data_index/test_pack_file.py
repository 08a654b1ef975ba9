"""Packs: one form, readable by every zip program, whose bytes follow from their content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from data_index.errors import ChangedFile, DiskFull, RefusedPack
from data_index.pack_file import WIDE_FROM, Form, write_pack
from data_index.pack_reading import read_pack
from tests.attacks.packs import TOLD, npy


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes | Path | tuple[bytes, Path]]:
    """Bytes, a file, and a file behind a header."""
    (tmp_path / "raw").write_bytes(b"\x01\x02\x03")
    (tmp_path / "whole").write_bytes(b"a = 1\n")
    import numpy as np

    header = npy(np.zeros(3, dtype=np.uint8))[:-3]
    return {"z.json": b"{}", "b/c.toml": tmp_path / "whole", "a.npy": (header, tmp_path / "raw")}


@pytest.mark.parametrize("wide_from", [WIDE_FROM, 0], ids=["32 bits", "64 bits"])
def test_a_pack_is_a_zip_that_others_read(
    wide_from: int, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with numbers of 64 bits, as packs of more than 4 GB have them."""
    monkeypatch.setattr("data_index.pack_file.WIDE_FROM", wide_from)
    path = tmp_path / "p.zip"
    sha256 = write_pack(path, TOLD, files)
    pack = read_pack(path)

    assert sha256 == pack.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None
        assert found.namelist() == ["manifest.json", "a.npy", "b/c.toml", "z.json"]
        assert {name: found.read(name) for name in pack.files} == {name: pack.read(name) for name in pack.files}
        assert found.read("b/c.toml") == b"a = 1\n" and found.read("a.npy").endswith(b"\x01\x02\x03")
    if program := shutil.which("unzip"):
        assert subprocess.run([program, "-tqq", path]).returncode == 0


def test_the_same_content_gives_the_same_bytes(files: dict[str, bytes], tmp_path: Path) -> None:
    write_pack(tmp_path / "p.zip", TOLD, files)
    os.utime(tmp_path / "raw", (1, 1))
    write_pack(tmp_path / "q.zip", TOLD, dict(reversed(files.items())))

    assert (tmp_path / "p.zip").read_bytes() == (tmp_path / "q.zip").read_bytes()


def test_where_everything_lies_follows_from_names_and_sizes() -> None:
    small = Form(sizes=[("a.json", 10), ("b.json", 20)])
    large = Form(sizes=[("a.json", 2**32), ("b.json", 20)])

    assert not small.wide and large.wide
    for form in (small, large):
        header = form.header_bytes("a.json")
        assert header == len(form.header("a.json", 10, 0)) == len(form.header("b.json", 10, 0))
        assert form.offsets == {"a.json": 0, "b.json": header + form.sizes[0][1]}
        contents = sum(size for _, size in form.sizes)
        assert form.num_bytes == contents + 2 * header + len(form.end({"a.json": 0, "b.json": 0}))


def test_a_file_that_changes_while_it_is_packed_is_noticed(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_index import pack_file

    described = pack_file._described

    def and_changed(name, content):
        found = described(name, content)
        (tmp_path / "raw").write_bytes(b"\x01\x02\x04")
        return found

    monkeypatch.setattr(pack_file, "_described", and_changed)
    with pytest.raises(ChangedFile, match="changed while it was packed"):
        write_pack(tmp_path / "p.zip", TOLD, files)
    assert not (tmp_path / "p.zip").exists() and not list(tmp_path.glob(".tmp-*"))


def test_names_that_no_pack_holds_cannot_be_written(tmp_path: Path) -> None:
    for name in ("../a.json", "a.pkl", "/a.json", "a b.json"):
        with pytest.raises(ValueError, match="cannot name a file of a pack"):
            write_pack(tmp_path / "p.zip", TOLD, {name: b"{}"})


def test_a_disk_without_room_is_said_before(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(DiskFull, match="nothing was written"):
        write_pack(tmp_path / "p.zip", TOLD, files)
    assert not (tmp_path / "p.zip").exists()


def test_unpacking_leaves_out_a_header(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    write_pack(path, TOLD, files)
    pack = read_pack(path)
    pack.unpack("a.npy", tmp_path / "out" / "a.bin", skip_bytes=pack.files["a.npy"].num_bytes - 3)

    assert (tmp_path / "out" / "a.bin").read_bytes() == b"\x01\x02\x03"
    with pytest.raises(RefusedPack, match="it has no finding.json"):
        pack.read("finding.json")
