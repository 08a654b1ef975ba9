"""Packs of the right form whose findings, records or tables are hostile: refused, and nothing is left of them."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from data_index.errors import DiskFull, ForensicsError, RefusedPack
from data_index.kinds import table_of_rows
from data_index.pack_reading import read_pack
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.finding import keep_finding
from forensics.opening import open_pack
from forensics.packing import pack
from forensics.run_contents import sha256_of, table_bytes
from tests.attacks.packs import npy
from tests.forensics.packs import Change, changed, files_of, finding, homes, in_json, in_text, replaced, without

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packs(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with r.zip, a pack of `tiny` with its tokens, and f.zip, one of a finding."""
    folder = tmp_path_factory.mktemp("packs")
    workspace = Workspace(folder / "sender")
    add(tiny_source, workspace=workspace)
    pack("tiny", folder / "r.zip", budget=500_000, tokens=True, workspace=workspace)
    keep_finding(workspace, finding())
    pack("blame-tiny-8", folder / "f.zip", workspace=workspace)
    return folder


def assert_refused(path: Path, folder: Path, said: str, **given: str) -> None:
    workspace = Workspace(folder / "receiver")
    with pytest.raises(ForensicsError, match=said):
        open_pack(path, workspace=workspace, **given)
    assert homes(workspace) == []


def with_table(kind: str, content: bytes) -> Change:
    """One more table in force, named by its content."""

    def change(files: dict[str, bytes]) -> None:
        name = sha256_of(content)[:16]
        files[f"tables/{kind}/{name}.parquet"] = content
        named = json.loads(files["tables.json"])
        files["tables.json"] = json.dumps(named | {kind: [name]}).encode()
        for path in [p for p in files if p.startswith(f"tables/{kind}/") and name not in p]:
            del files[path]

    return change


def misnamed(files: dict[str, bytes]) -> None:
    """A table under the hash of another content."""
    named = json.loads(files["tables.json"])
    (name,) = named["metrics"]
    files[f"tables/metrics/{'0' * 16}.parquet"] = files.pop(f"tables/metrics/{name}.parquet")
    files["tables.json"] = json.dumps(named | {"metrics": ["0" * 16]}).encode()


def rows(kind: str, **row: object) -> bytes:
    return table_bytes(table_of_rows(kind, [dict(row)], "attack"))


def other_table() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), out)
    return out.getvalue()


TOKENS = 'path = "tokens/00000.bin"'
STEP = {"step": 3, "attempt": 1, "input_ids_sha256": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_text("run.toml", TOKENS, 'path = "/etc/passwd"'), "names files outside of the pack"),
        (in_text("run.toml", TOKENS, 'path = "../../other/x.bin"'), "names files outside of the pack"),
        (in_text("run.toml", TOKENS, 'path = "http://10.0.0.1/x.bin"'), "at an address that is not https"),
        (in_text("run.toml", 'source = "."', 'source = "/etc"'), "names files outside of the pack"),
        (in_text("run.toml", "tokenizer.json", "/etc/passwd"), "names files outside of the pack"),
        (in_text("run.toml", '"native"', '"olmo"'), "names files outside of the pack"),
        (in_text("run.toml", "order/epoch-1.npy", "../order.npy"), "an order that is not in the pack"),
        (in_text("run.toml", "order/epoch-1.npy", "card.toml"), "an order that is not in the pack"),
        (in_text("run.toml", "version = 1", "version = 2"), "update it"),
        (in_text("run.toml", "num_steps = 14", "num_steps = 15"), "the order is wrong"),
        (in_text("run.toml", "sequence_length = 64", "sequence_length = 0"), "sequence_length"),
        (in_text("run.toml", "num_instances = ", "num_instances = 9"), "do not follow the file before"),
        (replaced("run.toml", b'format = "other"\n'), "does not say format"),
        (without("run.toml"), "it has no run.toml"),
        (without("tables.json"), "it has no tables.json"),
        (without("order/epoch-1.npy"), "an order that is not in the pack"),
        (replaced("order/epoch-1.npy", npy(np.arange(112, dtype=np.uint64))), "not the order that run.toml"),
        (without("tokens/00000.npy"), "its tokens are not those"),
        (replaced("tokens/00007.npy", npy(np.zeros(3, dtype=np.uint16))), "its tokens are not those"),
        (replaced("tokens/00000.npy", npy(np.zeros(3, dtype=np.uint16))), "is not as large as"),
        (replaced("masks/00000.npy", npy(np.zeros(3, dtype=np.bool_))), "is no file of its run.toml"),
        (replaced("tokenizer.json", b"{}"), "is not the file that it was"),
        (replaced("evil.json", b"{}"), "holds evil.json, which no run is made of"),
        (replaced("current.json", b"{}"), "holds current.json, which no run is made of"),
        (replaced("checkpoints/step5/extra.json", b"{}"), "which no run is made of"),
        (replaced("tables.json", b"[]"), "names no tables by kind"),
        (in_json("tables.json", lambda named: named | {"metrics": ["0" * 16]}), "not those that its tables.json names"),
        (in_json("tables.json", lambda named: named | {"metrics": [7, {}]}), "not those that its tables.json names"),
        (in_json("tables.json", lambda named: {k: n * 2 for k, n in named.items()}), "not those that its tables.json"),
        (in_json("tables.json", lambda named: named | {"../x": []}), "is no kind of table"),
        (replaced(f"tables/spikes/{'0' * 16}.parquet", other_table()), "not those that its tables.json names"),
        (misnamed, "is not named by its content"),
        (with_table("metrics", other_table()), "lacks the column"),
        (with_table("consumed", rows("consumed", instances=[0] * 8, **STEP)), "the order is wrong"),
        (
            with_table("checkpoints", rows("checkpoints", step=1, location="http://10.0.0.1/x", layout="hf")),
            "not https",
        ),
        (with_table("checkpoints", rows("checkpoints", step=1, location="/etc", layout="hf")), "not https"),
        (replaced("verbatim.json", b'{"../x.json": ""}'), "cannot name a config"),
        (replaced("verbatim.json", b'{"current.json": "{}"}'), "cannot name a config"),
        (replaced("verbatim.json", b'{"seal.json": "{}"}'), "cannot name a config"),
        (replaced("verbatim.json", b'{"x.json": 7}'), "holds no texts"),
        (replaced("findings/x.json", b"{}"), "no finding of version 1"),
    ],
)
def test_runs_that_lie_are_refused(change: Change, said: str, packs: Path, tmp_path: Path) -> None:
    assert_refused(changed(packs / "r.zip", tmp_path / "p.zip", change), tmp_path, said)


def test_token_files_that_are_not_the_runs_are_refused(packs: Path, tmp_path: Path) -> None:
    def other_tokens(files: dict[str, bytes]) -> None:
        files["tokens/00000.npy"] = files["tokens/00000.npy"][:-2] + b"\1\0"

    path = changed(packs / "r.zip", tmp_path / "p.zip", other_tokens)
    assert_refused(path, tmp_path, "is not the token file that run.toml of tiny names")


def test_a_claim_that_no_disk_holds_is_refused_before_anything_is_computed(packs: Path, tmp_path: Path) -> None:
    """Without token files nothing bounds how many instances a record may claim but the room for their index."""

    def huge(files: dict[str, bytes]) -> None:
        for path in [p for p in files if p.startswith(("tokens/", "heldout/"))]:
            del files[path]
        text = files["run.toml"].decode()
        start = text.index("[[files]]")
        file = f'[[files]]\nname = "a"\n{TOKENS}\ndtype = "uint16"\nnum_bytes = {2 * 64 * 10**15}\n'
        one = f"{file}first_instance = 0\nnum_instances = {10**15}\n\n"
        files["run.toml"] = (text[:start] + one + text[text.index("[[heldout]]") :]).encode()

    assert_refused(changed(packs / "r.zip", tmp_path / "p.zip", huge), tmp_path, "nothing was written")


@pytest.mark.parametrize("name", ["../x", "", "a b", "-", ".x", "x" * 101])
def test_names_that_leave_their_folder_are_refused(name: str, packs: Path, tmp_path: Path) -> None:
    assert_refused(changed(packs / "r.zip", tmp_path / "r.zip", lambda files: None, name=name), tmp_path, "cannot name")
    assert_refused(packs / "r.zip", tmp_path, "cannot name", **({"name": name} if name else {"name": "../"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_json("finding.json", lambda found: found | {"name": "../x"}), "cannot name a file"),
        (in_json("finding.json", lambda found: found | {"name": "y"}), "calls itself 'blame-tiny-8'"),
        (in_json("finding.json", lambda found: found | {"version": 2}), "no finding of version 1"),
        (in_json("finding.json", lambda found: found | {"figure": {"class": "Path"}}), "a class known here"),
        (replaced("finding.json", b"[]"), "no finding of version 1"),
        (without("finding.json"), "it has no finding.json"),
        (replaced("run.toml", b""), "which no finding is made of"),
        (replaced("findings/x.json", b"{}"), "which no finding is made of"),
    ],
)
def test_findings_that_lie_are_refused(change: Change, said: str, packs: Path, tmp_path: Path) -> None:
    assert_refused(changed(packs / "f.zip", tmp_path / "p.zip", change), tmp_path, said)


def test_a_finding_that_is_called_otherwise_keeps_to_names(packs: Path, tmp_path: Path) -> None:
    for name in ("../x", "a/b", ".x"):
        assert_refused(packs / "f.zip", tmp_path, "cannot name a finding", name=name)


@pytest.mark.parametrize("name", ["r.zip", "f.zip"])
def test_a_changed_byte_anywhere_is_refused(name: str, packs: Path, tmp_path: Path) -> None:
    """Places in every header, every file, the directory and the end."""
    path = Path(shutil.copyfile(packs / name, tmp_path / name))
    whole, found = path.read_bytes(), read_pack(path)
    offsets = found.form.offsets
    places = [offset + extra for offset in offsets.values() for extra in (0, 9, 20, 28)]
    places += [offsets[p] + found.form.header_bytes(p) + size // 2 for p, size in found.form.sizes if size]
    places += [len(whole) - back for back in (1, 5, 10, 22, 30, 200)]
    with path.open("r+b") as file:
        for place in sorted(set(places))[:: 2 if name == "r.zip" else 1]:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1]))
            file.flush()
            with pytest.raises(RefusedPack):
                open_pack(path, workspace=Workspace(tmp_path / "receiver"))
            file.seek(place)
            file.write(whole[place : place + 1])
    assert homes(Workspace(tmp_path / "receiver")) == []
    assert files_of(read_pack(path)).keys() == found.files.keys()


# --- what happens on the way -----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from data_index import packed_run
from data_index.workspace import Workspace
from forensics.opening import open_pack

packed_run.build_index = lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL)
open_pack(Path(sys.argv[1]), workspace=Workspace(sys.argv[2]))
"""


def test_who_is_killed_while_opening_leaves_no_run(packs: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "receiver")
    command = [sys.executable, "-c", KILLED, packs / "r.zip", workspace.folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert workspace.run_names() == [] and not (workspace.folder / "findings").exists()

    open_pack(packs / "r.zip", workspace=workspace)
    assert homes(workspace) == ["tiny"]


@pytest.mark.parametrize("failing", ["build_index", "write_seal", "put_in_force"])
def test_a_full_disk_leaves_nothing(failing: str, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"data_index.packed_run.{failing}", full)
    with pytest.raises(DiskFull, match="no space to write"):
        open_pack(packs / "r.zip", workspace=Workspace(tmp_path / "receiver"))
    assert homes(Workspace(tmp_path / "receiver")) == []


def test_opening_needs_room_first(packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10))
    for name in ("r.zip", "f.zip"):
        with pytest.raises(DiskFull, match="nothing was written"):
            open_pack(packs / name, workspace=Workspace(tmp_path / name))
        assert homes(Workspace(tmp_path / name)) == []
