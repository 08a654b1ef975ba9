"""The verbs of sharing as they are typed: what they print, and with what they exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_index.files import sha256_of_file
from data_index.workspace import Workspace
from forensics.finding import keep_finding
from tests.forensics.packs import finding, homes
from tests.forensics.test_cli import answer, forensics


def test_pack_and_open_print_the_same_hash(tiny: Workspace, tmp_path: Path) -> None:
    keep_finding(tiny, finding())
    path, other = tmp_path / "f.zip", Workspace(tmp_path / "other")
    packed = forensics(tiny, "pack", "blame-tiny-8", "-o", str(path))
    opened = forensics(other, "open", str(path))

    sha256 = sha256_of_file(path)
    assert packed.stdout == f"sha256 {sha256}  {path}\n" and packed.returncode == 0
    assert opened.stderr.startswith(f"sha256 {sha256}  (compare it with what the sender published)\n")
    assert opened.stdout == f"finding blame-tiny-8: {other.folder}/findings/blame-tiny-8.json\n"
    assert homes(other) == [f"blame-tiny-8.{ending}" for ending in ("html", "json", "png")]  # drawn from its numbers


def test_what_is_refused_is_one_clear_line(tiny_shared: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "r.zip"
    told = answer(tiny_shared, "pack", "tiny", "-o", str(path), "--budget", "50kB")
    path.write_bytes(path.read_bytes().replace(b"tiny", b"tinz", 1))
    done = forensics(Workspace(tmp_path / "other"), "open", str(path))

    assert told["what"] == "run" and told["sha256"] != sha256_of_file(path) and told["left_out"][0]["why"]
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "is refused: " in done.stderr and "nothing of it was written" in done.stderr
    assert homes(Workspace(tmp_path / "other")) == []


def test_a_plan_of_a_pack_is_rows(tiny_shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = answer(tiny_shared, "pack", "tiny", "--budget", "500kB", "--plan")

    assert {"part", "num_bytes", "packed", "why"} == set(rows[0]) and {row["packed"] for row in rows} == {True, False}
    assert list(tmp_path.iterdir()) == []


def test_packs_are_named_after_what_they_hold(
    tiny_shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = answer(tiny_shared, "pack", "tiny", "--budget", "0")
    printed = forensics(tiny_shared, "report", "tiny").stdout

    assert told["file"] == "tiny.zip" and printed == "tiny.html\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.html", "tiny.zip"]
    assert json.loads(forensics(tiny_shared, "cite", "--format", "json").stdout)["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pack", "nothing"], "nor is a finding"),
        (["pack", "tiny", "--budget", "much"], "--budget takes bytes"),
        (["pack", "tiny", "-o", "x.tar"], "a pack is FILE.zip"),
        (["open", "nothing.zip"], "nothing.zip is not there"),
        (["report", "tiny", "-o", "x.pdf"], "a report is FILE.md or FILE.html"),
        (["cite", "nothing"], "nor is a finding or a released run"),
    ],
)
def test_failures_are_stated(arguments: list[str], said: str, tiny_shared: Workspace) -> None:
    done = forensics(tiny_shared, *arguments)

    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
