"""The README's printed answers are what the commands print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_printed_answers_are_true(tmp_path: Path) -> None:
    assert len(sessions()) >= 3
    for command, printed in sessions():
        program, *arguments = command.split()
        done = subprocess.run(
            [sys.executable, "-m", "forensics.cli.main", *arguments],
            env=os.environ | {"FORENSICS_WORKSPACE": str(tmp_path)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (program, done.returncode, done.stdout) == ("forensics", 0, printed), command


@pytest.mark.parametrize("path", re.findall(r"`([a-z_]+/[\w/.]+\.(?:py|md))`", (ROOT / "README.md").read_text()))
def test_files_named_in_the_readme_exist(path: str) -> None:
    assert (ROOT / path).exists()
