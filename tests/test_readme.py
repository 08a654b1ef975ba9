"""The README's printed answers are what the commands print."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests is not installed

from tests.forensics.test_cli import forensics

ROOT = Path(__file__).parents[1]
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)


def sessions() -> list[tuple[str, str]]:
    """Commands of the README's console blocks with the output printed below each."""
    found = []
    for block in CONSOLE.findall((ROOT / "README.md").read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def test_printed_answers_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORENSICS_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert len(sessions()) >= 3
    for command, printed in sessions():
        program, *arguments = command.split()
        done = forensics(None, *arguments)
        assert (program, done.returncode, done.stdout) == ("forensics", 0, printed), command


@pytest.mark.parametrize("path", re.findall(r"`([a-z_]+/[\w/.]+\.(?:py|md))`", (ROOT / "README.md").read_text()))
def test_files_named_in_the_readme_exist(path: str) -> None:
    assert (ROOT / path).exists()
