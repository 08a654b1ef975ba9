"""Packs come from strangers: what is not byte for byte a pack is refused, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_index.errors import RefusedPack, UnsafeFile
from data_index.pack_contents import PAGE_START
from data_index.pack_file import Form, PackedFile, write_pack
from data_index.pack_reading import read_pack
from data_index.workspace import Workspace
from forensics.opening import open_pack
from tests.attacks.no_files import fifo
from tests.attacks.packs import TOLD, entry, forged, npy, rows_of, safetensors, zipped

FILES = {"a.json": b"{}", "b/c.npy": npy(np.arange(3))}


def table() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), out)
    return out.getvalue()


def refused(path: Path, said: str) -> None:
    with pytest.raises(RefusedPack, match=said):
        read_pack(path)


# --- zips of another form --------------------------------------------------------------------------------------------

LINK = {"external_attr": (stat.S_IFLNK | 0o777) << 16}
PIPE = {"external_attr": (stat.S_IFIFO | 0o666) << 16}
FOLDER = {"external_attr": (stat.S_IFDIR | 0o755) << 16}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("c.json", {}, "is not named by manifest.json"),
        ("a.json", {}, "is there more than once"),
        ("/etc/passwd.json", {}, "has a name that no file of a pack has"),
        ("../x.json", {}, "has a name that no file of a pack has"),
        ("b/../../x.json", {}, "has a name that no file of a pack has"),
        ("b\\x.json", {}, "has a name that no file of a pack has"),
        ("C:x.json", {}, "has a name that no file of a pack has"),
        ("x.zip", {}, "has a name that no file of a pack has"),
        ("x.pkl", {}, "has a name that no file of a pack has"),
        ("x.json ", {}, "has a name that no file of a pack has"),
        (".hidden.json", {}, "has a name that no file of a pack has"),
        ("l.json", LINK, "is a link, a folder or a special file"),
        ("p.json", PIPE, "is a link, a folder or a special file"),
        ("d/", FOLDER, "is a link, a folder or a special file"),
    ],
)
def test_whatever_is_not_in_the_manifest_is_refused(
    name: str, fields: dict[str, int], said: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile notices that a name comes twice
        path = zipped(tmp_path / "p.zip", FILES, [entry(name, b"x", **fields)])

    refused(path, said)


def test_a_compressed_file_is_refused_before_it_grows(tmp_path: Path) -> None:
    bomb = entry("a.json", b" " * 50_000_000, compress_type=zipfile.ZIP_DEFLATED)
    path = zipped(tmp_path / "p.zip", FILES, [bomb], without=["a.json"])

    assert path.stat().st_size < 100_000
    refused(path, "is compressed, as no file of a pack is")


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", FILES, [])
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1

    path.write_bytes(raw)
    refused(path, "is encrypted")


def test_a_file_that_is_missing_or_longer_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "p.zip", FILES, [], without=["a.json"]), "its manifest makes them")
    longer = entry("a.json", b"{}" + b" " * 9)
    refused(zipped(tmp_path / "q.zip", FILES, [longer], without=["a.json"]), "claims 11 bytes; manifest.json says 2")


@pytest.mark.parametrize("change", [lambda raw: b"#!/bin/sh\n" + raw, lambda raw: raw + b"more", lambda raw: raw[:-1]])
def test_nothing_may_stand_before_or_behind(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    write_pack(path, TOLD, FILES)
    path.write_bytes(change(path.read_bytes()))

    refused(path, "is refused")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"\0" * 100, b"<html>", b"PK\x03\x04" * 20]
)
def test_what_is_no_pack_at_all_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(content)

    refused(tmp_path / "p.zip", "is refused")


def test_a_pipe_or_a_folder_is_not_opened(tmp_path: Path) -> None:
    fifo(tmp_path / "p.zip")
    with pytest.raises(UnsafeFile):
        read_pack(tmp_path / "p.zip")
    with pytest.raises(UnsafeFile):
        read_pack(tmp_path)


def test_sizes_of_64_bits_that_lie_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of such a pack stands twice; each that is changed is noticed."""
    monkeypatch.setattr("data_index.pack_file.WIDE_FROM", 0)
    path = tmp_path / "p.zip"
    write_pack(path, TOLD, FILES)
    read_pack(path)
    whole = path.read_bytes()
    form = Form(sizes=[("manifest.json", 0)])
    places = [place for place in range(len(whole)) if whole[place : place + 4] == b"\x01\x00\x10\x00"]
    assert form.wide and len(places) == 3
    for place in (*places, whole.rindex(b"PK\x06\x06") + 40, whole.rindex(b"PK\x06\x07") + 8):
        path.write_bytes(whole[: place + 5] + bytes([whole[place + 5] ^ 1]) + whole[place + 6 :])
        refused(path, "is refused")


def test_overlapping_files_are_refused(tmp_path: Path) -> None:
    """Two entries of the directory that lead to the same bytes: the classic of bombs without compression."""
    path = forged(tmp_path / "p.zip", {"a.json": b"{}", "b.json": b"{}"})
    raw = bytearray(path.read_bytes())
    first, second = raw.index(b"a.json", raw.index(b"PK\x01\x02")), raw.rindex(b"b.json")
    raw[second - 4 : second] = raw[first - 4 : first]
    path.write_bytes(raw)

    refused(path, "its directory was changed")


# --- packs of the right form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("/a.json", "../a.json", "a/../b.json", "a//b.json", "./a.json", "a\\b.json", "a b.json", "a.json\n", "a.zip"),
        *("a.h5", "a.duckdb", "a.pkl", "a", "", "-a.json", ".a.json", "é.json", "a:b.json", "x" * 200 + ".json"),
        *("a/b/c/d/e/f.json", "a.JSON", "a.json/"),
    ],
)
def test_names_that_no_pack_holds_are_refused(name: str, tmp_path: Path) -> None:
    named = [PackedFile(path=name, num_bytes=2, sha256=rows_of(FILES)[0].sha256)]

    refused(forged(tmp_path / "p.zip", {"a.json": b"{}"}, rows=named), "which no pack holds")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.json", "a.json"], "named twice, or not in order"),
        (["b.json", "a.json"], "named twice, or not in order"),
        (["A.json", "a.json"], "some disks cannot tell apart"),
        (["a.json", "a.json/b.json"], "some disks cannot tell apart"),
        (["MANIFEST.json"], "some disks cannot tell apart"),
        (["manifest.json"], "some disks cannot tell apart"),
    ],
)
def test_names_that_would_meet_on_disk_are_refused(names: list[str], said: str, tmp_path: Path) -> None:
    named = [PackedFile(path=name, num_bytes=2, sha256=rows_of(FILES)[0].sha256) for name in names]

    refused(forged(tmp_path / "p.zip", FILES, rows=named), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "does not say format"),
        ({"version": 2}, "of version 2, this toolkit reads version 1"),
        ({"version": True}, "of version True"),
        ({"what": "program"}, "neither of a finding nor of a run"),
        ({"name": 7}, "neither of a finding nor of a run"),
        ({"files": {}}, "names no list"),
        ({"files": [{"path": "a.json"}]}, "describes a file wrongly"),
        ({"files": [{"path": "a.json", "num_bytes": -1, "sha256": "0" * 64}]}, "describes a.json wrongly"),
        ({"files": [{"path": "a.json", "num_bytes": True, "sha256": "0" * 64}]}, "describes a.json wrongly"),
        ({"files": [{"path": "a.json", "num_bytes": 10**18, "sha256": "0" * 64}]}, "its manifest makes them"),
        ({"files": [{"path": "a.json", "num_bytes": 2, "sha256": 7}]}, "describes a.json wrongly"),
        (
            {"files": [{"path": f"{n}.json", "num_bytes": 0, "sha256": "0" * 64} for n in range(20_001)]},
            "at most 20,000",
        ),
        ({"extra": float("nan")}, "cannot be read|not written as packs write it"),
    ],
)
def test_manifests_that_lie_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    plain = {"format": "forensics-pack", "version": 1, **TOLD, "files": []}
    content = json.dumps(plain | change, indent=1, sort_keys=True).encode() + b"\n"

    refused(forged(tmp_path / "p.zip", {}, manifest=content), said)


@pytest.mark.parametrize(
    "manifest", [b"[]", b"{", b"\xff", b"[" * 10**5, b'{"format": "forensics-pack", "version": 1}']
)
def test_manifests_that_are_none_are_refused(manifest: bytes, tmp_path: Path) -> None:
    refused(forged(tmp_path / "p.zip", {}, manifest=manifest), "is refused")


def test_a_file_with_another_hash_is_refused_whatever_its_checksum_says(tmp_path: Path) -> None:
    """A checksum of 32 bits is made to fit by anyone; everything else of this pack does fit."""
    path = forged(tmp_path / "p.zip", {"a.json": b"[]"}, rows=rows_of({"a.json": b"{}"}))

    refused(path, "a.json in it is not the file that its manifest names")


def test_a_manifest_says_each_thing_once(tmp_path: Path) -> None:
    """Readers differ in which of two equal keys they believe."""
    path = forged(tmp_path / "p.zip", FILES)
    manifest = read_pack(path).read
    assert manifest("a.json") == b"{}"
    text = json.dumps({"format": "forensics-pack", "version": 1, **TOLD, "files": []}, indent=1, sort_keys=True) + "\n"
    twice = text.replace('"name": "x"', '"name": "y",\n "name": "x"').encode()

    refused(forged(path, {}, manifest=twice), "not written as packs write it")


OBJECTS = npy(np.array([{"x": 1}], dtype=object), allow_pickle=True)
TENSORS = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.npy": OBJECTS}, "no plain numbers"),
        ({"a.npy": npy(np.arange(9))[:-8]}, r"claims \(9,\)"),
        ({"a.npy": npy(np.arange(9)) + b"\0"}, r"claims \(9,\)"),
        ({"a.npy": npy(np.arange(9)).replace(b"(9,)", b"(-1,)")}, "is refused"),
        ({"a.npy": npy(np.array(["x"]))}, "no plain numbers"),
        ({"a.npy": b"\x93NUMPY\x03\x00" + b"\0" * 90}, "an array of version"),
        ({"a.npy": b"MZ"}, "cannot be read"),
        ({"a.safetensors": safetensors(TENSORS, b"\0" * 7)}, "claims 8 bytes of tensors"),
        ({"a.safetensors": safetensors(TENSORS, b"\0" * 9)}, "claims 8 bytes of tensors"),
        ({"a.safetensors": b"\xff" * 8 + b"{}"}, "claims a header"),
        ({"a.safetensors": safetensors(TENSORS.replace(b"[2]", b"[3]"), b"\0" * 8)}, "misstates where the tensor"),
        ({"a.safetensors": safetensors(TENSORS.replace(b"[0,8]", b"[8,16]"), b"\0" * 16)}, "misstates where"),
        ({"a.safetensors": safetensors(TENSORS.replace(b"F32", b"X99"), b"\0" * 8)}, "cannot be read"),
        ({"a.safetensors": safetensors(b"[]")}, "names no tensors"),
        ({"a.safetensors": b"\x80\x04."}, "is refused"),
        ({"a.parquet": b"PAR1" + b"\0" * 20 + b"PAR1"}, "no Parquet"),
        ({"a.parquet": table()[:-1]}, "no Parquet"),
        ({"a.parquet": b""}, "is refused"),
        ({"a.json": b"{"}, "not JSON"),
        ({"a.json": b"[" * 10**5}, "not JSON"),
        ({"a.toml": b"a = "}, "not TOML"),
        ({"a.toml": b"a" + b".a" * 1000 + b" = 1"}, "more than 200 parts"),
        ({"a.png": b"GIF89a"}, "no PNG"),
        ({"a.png": PNG + b"\0\0\0\0IHDR\0\0\0\0"}, "damaged PNG"),
        ({"a.html": b"<script>alert(1)</script>"}, "does not forbid scripts"),
        ({"a.html": PAGE_START.replace("default-src", "default_src").encode()}, "does not forbid scripts"),
    ],
)
def test_contents_that_are_not_what_their_ending_says_are_refused(
    files: Mapping[str, bytes], said: str, tmp_path: Path
) -> None:
    refused(forged(tmp_path / "p.zip", files), said)


def test_what_fits_its_ending_is_let_in(tmp_path: Path) -> None:
    """Otherwise the refusals above would prove nothing."""
    good = {
        "a.html": PAGE_START.encode(),
        "a.json": b"[1]",
        "a.npy": npy(np.zeros((2, 3), dtype=np.uint16)),
        "a.parquet": table(),
        "a.safetensors": safetensors(TENSORS, b"\0" * 8),
        "a.toml": b"a = 1\n",
    }
    pack = read_pack(forged(tmp_path / "p.zip", good))

    assert {path: pack.read(path) for path in pack.files} == good


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    write_pack(path, TOLD, {"a.json": b"{}", "b/c.npy": npy(np.arange(3)), "d.toml": b"a = 1\n"})
    whole = path.read_bytes()
    with path.open("r+b") as file:
        for place in range(len(whole)):
            file.seek(place)
            file.write(bytes([whole[place] ^ (1 << place % 8)]))
            file.flush()
            with pytest.raises(RefusedPack):
                read_pack(path)
            file.seek(place)
            file.write(whole[place : place + 1])
    read_pack(path)


def test_a_pack_that_changes_while_it_is_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    write_pack(path, TOLD, FILES)
    pack = read_pack(path)
    path.write_bytes(path.read_bytes().replace(b"{}", b"[]"))

    with pytest.raises(RefusedPack, match="while the pack was opened"):
        pack.read("a.json")
    with pytest.raises(RefusedPack, match="while the pack was opened"):
        pack.unpack("a.json", tmp_path / "a.json")


def test_a_refused_pack_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    for number, files in enumerate(({"finding.json": b"{}"}, {"other.json": b"{}"}, {"finding.json": OBJECTS})):
        path = forged(tmp_path / f"{number}.zip", files)
        with pytest.raises(RefusedPack):
            open_pack(path, workspace=workspace)

    assert not os.path.lexists(workspace.folder)
