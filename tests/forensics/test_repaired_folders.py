"""Where `tokens --repair` writes: whole or not at all, and nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_index.errors import (
    DiskFull,
    NotWritable,
    RunExists,
)
from data_index.workspace import Workspace
from forensics.token_repair import REPORT, repair
from tests.forensics.test_cli import answer, forensics
from tests.forensics.test_token_repair import (
    PADDING,
    files_of,
)
from tests.forensics.test_undertrained_tokens import UNTRAINED, planted

# --- where it is written ---------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_left_as_it_is(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted(tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    before = files_of(folder)
    for out, said in ((folder, "holds files"), (tmp_path / "file", "no folder"), (folder / "new", "lies in")):
        with pytest.raises(RunExists, match=said):
            repair(str(folder), out, workspace=workspace)
    with pytest.raises(NotWritable, match="file is no folder: name another place"):
        repair(str(folder), tmp_path / "file" / "out", workspace=workspace)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        with pytest.raises(NotWritable, match="may not be written to"):
            repair(str(folder), tmp_path / "new" / "out", workspace=workspace)
    assert files_of(folder) == before and (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()

    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert repair(str(folder), tmp_path / "link", workspace=workspace).folder == tmp_path / "empty"
    assert (tmp_path / "empty" / REPORT).is_file() and (tmp_path / "link").is_symlink()


def test_a_plan_says_what_would_be_written_and_writes_nothing(tmp_path: Path, workspace: Workspace) -> None:
    folder = planted(tmp_path / "m", tied=False, padding=PADDING)
    plan = repair(str(folder), tmp_path / "out", workspace=workspace, plan=True)
    there = {path.name for path in tmp_path.iterdir()}
    done = repair(str(folder), tmp_path / "out", workspace=workspace)

    assert "out" not in there and not any(name.startswith(".tmp-") for name in there)
    assert plan.folder is None and plan.report() == done.report()
    assert plan.num_bytes == sum(map(len, files_of(tmp_path / "out").values()))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_it_midway_leaves_nothing(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    folder = planted(tmp_path / "m")

    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr("replay.row_reset.overwrite", stopped)
    with pytest.raises(DiskFull if isinstance(stop, OSError) else KeyboardInterrupt):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    assert {path.name for path in tmp_path.iterdir()} - {"workspace"} == {"m"}


def test_a_model_that_does_not_fit_the_disk_is_refused_first(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted(tmp_path / "m")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))

    with pytest.raises(DiskFull, match="the repaired model needs .* -o DIR; nothing was written"):
        repair(str(folder), tmp_path / "out", workspace=workspace)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_named_and_does_not_hinder(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / ".tmp-1-abcdef01-out").mkdir()
    done = repair(str(planted(tmp_path / "m")), tmp_path / "out", workspace=workspace)

    assert (tmp_path / "out" / REPORT).is_file() and ".tmp-1-abcdef01-out is left from a run" in done.messages[-1]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_and_prints_the_rows(tmp_path: Path, workspace: Workspace) -> None:
    folder, out = str(planted(tmp_path / "m")), tmp_path / "out"
    planned = answer(workspace, "tokens", folder, "--repair", "--plan")
    assert not out.exists()
    done = forensics(workspace, "tokens", folder, "--repair", "-o", str(out), "--unused", "97-98")

    assert done.returncode == 0 and "97" in done.stdout and f"wrote {out}" in done.stderr
    assert [row["token_id"] for row in planned] == sorted(UNTRAINED)
    assert [row["token_id"] for row in json.loads((out / REPORT).read_text())["rows"]] == [97, 98]
    assert forensics(workspace, "tokens", folder, "--repair").returncode == 2
    assert forensics(workspace, "tokens", folder, "--repair", "-o", str(out)).returncode == 1


@pytest.mark.parametrize("source", ["copied", "written anew"])
def test_progress_ends_when_all_bytes_are_written(tmp_path: Path, tiny: Workspace, source: str) -> None:
    told: list[tuple[int, int]] = []
    name = "tiny" if source == "written anew" else str(planted(tmp_path / "m"))
    done = repair(name, tmp_path / "out", workspace=tiny, progress=lambda *now: told.append(now))

    assert len(told) > 1 and told == sorted(told)
    assert told[-1] == (done.num_bytes, done.num_bytes)
