"""Whatever interrupts a job, the same call goes on and ends where an undisturbed one ends; two never write at once."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests.benchmarks is not installed

from data_index.workspace import Workspace
from tests.benchmarks import kill_nine
from tests.benchmarks.content import content_hashes, differences, leftovers
from tests.benchmarks.kill_nine import Outcome, Scale, Undisturbed

NUM_KILLS = 3


@pytest.fixture(scope="module")
def scale() -> Scale:
    return kill_nine.tiny_scale()


@pytest.fixture(scope="module")
def quiet(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Undisturbed]]:
    """A workspace where the run was trained, indexed and forked, and nothing was ever interrupted."""
    folder = tmp_path_factory.mktemp("quiet")
    return folder, kill_nine.observe_all(folder, scale)


@pytest.fixture(scope="module")
def killed(
    scale: Scale, quiet: tuple[Path, dict[str, Undisturbed]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """The same three jobs in another workspace, each killed three times."""
    folder, chance = tmp_path_factory.mktemp("killed"), random.Random(0)
    return {
        name: kill_nine.kill_rounds(name, folder, scale, undisturbed, NUM_KILLS, chance)
        for name, undisturbed in quiet[1].items()
    }


@pytest.fixture
def copied(quiet: tuple[Path, dict[str, Undisturbed]], scale: Scale, tmp_path: Path) -> Path:
    """A copy of the quiet workspace's trained run in a workspace of its own, not registered there."""
    shutil.copytree(quiet[0] / "trained", tmp_path / "trained")
    return tmp_path


@pytest.fixture
def registered(copied: Path, scale: Scale) -> Path:
    """A copy of the trained run in a workspace of its own, and registered there."""
    kill_nine.finish(partial(kill_nine.index_job, copied, scale))
    return copied


def forensics(*arguments: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "forensics.cli.main", *arguments, "--workspace", str(workspace)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def fork_command(scale: Scale) -> list[str]:
    steps = str(scale.fork_to - scale.fork_from)
    return ["fork", scale.spec.name, "--from", str(scale.fork_from), "--num-steps", steps, "--edit", scale.edit]


@pytest.mark.parametrize("job", kill_nine.TRIALS)
def test_killed_and_continued_ends_as_if_never_killed(job, killed):
    assert len(killed[job].kills) == NUM_KILLS
    assert killed[job].differences == []


@pytest.mark.parametrize("job", kill_nine.TRIALS)
def test_what_killed_writers_left_is_cleared_away(job, killed):
    """Otherwise the disk fills, a killed preparation at a time."""
    assert killed[job].leftovers == []


@pytest.mark.parametrize("message", ["collecting the corpus and training a tokenizer", "saving step 10", "step 12"])
def test_interrupted_by_the_user_and_continued_ends_the_same(message, quiet, scale, tmp_path):
    """Ctrl-C in the demo: the files are whole, nothing temporary stays, and the same command goes on."""
    job = partial(kill_nine.demo_job, tmp_path, scale)
    running = kill_nine.start(job)
    assert running.wait_for(message)
    running.send_signal(signal.SIGINT)

    exit_code, _ = running.end()
    left = leftovers(tmp_path)
    kill_nine.finish(job)

    assert exit_code == 130
    assert left == []
    for part in ("trained", "runs"):
        expected = content_hashes(quiet[0] / part, quiet[0])
        assert differences(expected, content_hashes(tmp_path / part, tmp_path)) == []


def test_a_replay_killed_and_continued_gives_the_report_of_an_undisturbed_one(registered, quiet, scale):
    undisturbed = partial(kill_nine.replay_job, quiet[0], scale)
    kill_nine.finish(undisturbed)
    job = partial(kill_nine.replay_job, registered, scale)
    for message in ("saving step 7", "step 9", f"step {scale.fork_to}"):
        running = kill_nine.start(job)
        assert running.wait_for(message)
        running.send_signal(signal.SIGKILL)
        assert running.end()[0] == -signal.SIGKILL
    kill_nine.finish(job)

    expected, actual = report_of(quiet[0]), report_of(registered)

    assert actual["grade"] == "R0"
    assert actual["steps"] == expected["steps"]
    assert actual | {"finished": 0} == expected | {"finished": 0}
    assert leftovers(registered) == []


def report_of(workspace: Path) -> dict:
    (path,) = workspace.glob("replays/*/report.json")
    return json.loads(path.read_text())


def test_a_fork_that_another_process_runs_is_refused_and_stays_whole(registered, quiet, scale):
    """The second process says why and changes nothing; the first goes on to the end."""
    first = kill_nine.start(partial(kill_nine.fork_job, registered, scale))
    assert first.wait_for("step 8")
    first.send_signal(signal.SIGSTOP)
    second = forensics(*fork_command(scale), workspace=registered)
    first.send_signal(signal.SIGCONT)
    kill_nine.require_finished(*first.end())

    assert second.returncode == 1
    assert "another process is already running fork" in second.stderr
    assert second.stdout == ""
    expected = content_hashes(quiet[0] / "forks", quiet[0])
    assert differences(expected, content_hashes(registered / "forks", registered)) == []


def test_a_run_that_another_process_adds_is_refused(copied, quiet, scale):
    job = partial(kill_nine.add_job, copied, scale)
    first = kill_nine.start(job)
    assert first.wait_for("hashing token files")
    first.send_signal(signal.SIGSTOP)
    second = forensics("add", str(copied / "trained" / scale.spec.name), workspace=copied)
    first.send_signal(signal.SIGCONT)
    kill_nine.require_finished(*first.end())
    third = kill_nine.start(job).end()

    assert (second.returncode, second.stdout) == (1, "")
    assert f"another process is already adding {scale.spec.name}" in second.stderr
    assert third[0] == 1 and third[1].startswith("RunExists")
    expected = content_hashes(quiet[0] / "runs", quiet[0])
    assert differences(expected, content_hashes(copied / "runs", copied)) == []


@pytest.mark.parametrize("doing", ["add_job", "fork_job"])
def test_of_two_started_at_once_one_wins(doing, quiet, scale, request):
    """Without being held up, so that they meet wherever they meet."""
    workspace = request.getfixturevalue("copied" if doing == "add_job" else "registered")
    job = partial(getattr(kill_nine, doing), workspace, scale)
    ends = [running.end() for running in [kill_nine.start(job), kill_nine.start(job)]]

    assert (0, kill_nine.FINISHED) in ends
    assert all(code == 0 or words.startswith(("Busy", "RunExists")) for code, words in ends)
    assert doing == "fork_job" or [code for code, _ in ends].count(0) == 1
    folder = "runs" if doing == "add_job" else "forks"
    expected = content_hashes(quiet[0] / folder, quiet[0])
    assert differences(expected, content_hashes(workspace / folder, workspace)) == []


def test_the_command_line_says_that_an_interrupted_job_goes_on(registered, scale):
    """Ctrl-C at the real command: exit 130, no traceback, a sentence that says what to do."""
    arguments = [*fork_command(scale), "--workspace", str(registered)]
    process = subprocess.Popen(
        [sys.executable, "-m", "forensics.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()

    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert "the same command goes on" in errors
