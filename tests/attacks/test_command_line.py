"""The program answers a hostile folder with one line on stderr and exit code 1, and obeys nothing that it reads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.attacks.payloads import CARRIERS, archive, pickled

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEP0 = FIXTURES / "olmo" / "run" / "step0-unsharded"


def add(folder: Path, workspace: Path) -> subprocess.CompletedProcess[str]:
    """`forensics add` as a user starts it."""
    program = Path(sys.executable).with_name("forensics")
    command = [program, "add", folder, "--name", "twin", "--workspace", workspace]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(STEP0, folder / "step0-unsharded", ignore=shutil.ignore_patterns("optim.pt"))
    return folder


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("reading ")]
    assert done.returncode == 1 and done.stdout == ""
    assert len(lines) == 1 and lines[0].startswith("forensics: ") and says in lines[0], done.stderr


def test_a_pickle_that_would_run_code(run: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (run / "step0-unsharded" / "train.pt").write_bytes(archive(pickled(CARRIERS["a call"](canary))))

    assert_one_line(add(run, tmp_path / "workspace"), "train.pt names posix.system")
    assert not canary.exists()


def test_tokens_from_a_device(run: Path, tmp_path: Path) -> None:
    path = run / "step0-unsharded" / "config.yaml"
    config = yaml.safe_load(path.read_bytes())
    config["data"]["paths"] = ["/dev/zero"]
    path.write_text(yaml.safe_dump(config))

    assert_one_line(add(run, tmp_path / "workspace"), "/dev/zero")


def test_a_config_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.yml")

    assert_one_line(add(tmp_path / "run", tmp_path / "workspace"), "is in no layout")


def test_a_name_cannot_command_the_terminal(run: Path, tmp_path: Path) -> None:
    """A file's name with escape sequences would else clear the screen, or pretend that all went well."""
    path = run / "step0-unsharded" / "config.yaml"
    config = yaml.safe_load(path.read_bytes())
    config["data"]["paths"] = ["\x1b[2J\x1b]0;all is well\x07\rregistered\u202e"]
    path.write_text(yaml.safe_dump(config))
    done = add(run, tmp_path / "workspace")

    assert_one_line(done, r"\x1b[2J\x1b]0;all is well\x07\rregistered\u202e")
    assert "\x1b" not in done.stderr and "\x07" not in done.stderr
