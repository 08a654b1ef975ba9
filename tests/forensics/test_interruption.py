"""Whatever interrupts a job, the same call goes on and ends where an undisturbed one ends; two never write at once."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests.benchmarks is not installed

from tests.benchmarks import kill_nine
from tests.benchmarks.content import content_hashes, differences, leftovers
from tests.benchmarks.kill_nine import Outcome, Scale, Undisturbed

ROOT = Path(__file__).resolve().parents[2]
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
def copied(quiet: tuple[Path, dict[str, Undisturbed]], tmp_path: Path) -> Path:
    """A copy of the quiet workspace's trained run in a workspace of its own, not registered there."""
    shutil.copytree(quiet[0] / "trained", tmp_path / "trained")
    return tmp_path


@pytest.fixture
def registered(copied: Path, scale: Scale) -> Path:
    """A copy of the trained run in a workspace of its own, registered there."""
    kill_nine.finish(partial(kill_nine.index_job, copied, scale))
    return copied


def differences_from(quiet: tuple[Path, dict[str, Undisturbed]], workspace: Path, part: str) -> list[str]:
    expected = content_hashes(quiet[0] / part, quiet[0])
    assert expected
    return differences(expected, content_hashes(workspace / part, workspace))


def interrupt(job: kill_nine.Job, message: str, number: signal.Signals) -> int:
    """Start a job, send it a signal as soon as it says a message, and return its exit code."""
    running = kill_nine.start(job)
    assert running.wait_for(message)
    running.send_signal(number)
    return running.end()[0]


@contextmanager
def held_up(job: kill_nine.Job, message: str) -> Iterator[None]:
    """A process that stands still once it has said a message, and goes on to its end afterwards."""
    running = kill_nine.start(job)
    assert running.wait_for(message)
    running.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        running.send_signal(signal.SIGCONT)
        ended = running.end()
    kill_nine.require_finished(*ended)


def forensics(*arguments: str, workspace: Path) -> subprocess.Popen[str]:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "forensics.cli.main", *arguments, "--workspace", str(workspace)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


# --- the measure ------------------------------------------------------------------------------------------------------


def test_content_is_what_pieces_say_and_not_where_they_were_cut(quiet, copied, scale):
    """One value off by its last bit must show; otherwise the tests below would prove nothing."""
    folder = copied / "trained" / scale.spec.name / "metrics"
    pieces = sorted(folder.iterdir())
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(piece, partitioning=None) for piece in pieces])
    for piece in pieces:
        piece.unlink()
    pyarrow.parquet.write_table(table.slice(0, 7), folder / "000001-000001.parquet")
    pyarrow.parquet.write_table(table.slice(7), folder / "000002-000020.parquet")
    cut_elsewhere = differences_from(quiet, copied, "trained")
    values = table["value"].to_numpy(zero_copy_only=False).copy()
    values[3] = np.nextafter(values[3], np.inf)
    changed = table.set_column(table.schema.get_field_index("value"), "value", pyarrow.array(values))
    pyarrow.parquet.write_table(changed.slice(0, 7), folder / "000001-000001.parquet")

    assert cut_elsewhere == []
    assert differences_from(quiet, copied, "trained") == [f"{scale.spec.name}/metrics/*.parquet: differs"]


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", kill_nine.TRIALS)
def test_killed_and_continued_ends_as_if_never_killed(job, killed):
    assert len(killed[job].kills) == NUM_KILLS
    assert killed[job].differences == []
    assert killed[job].leftovers == []


@pytest.mark.parametrize("job", kill_nine.TRIALS)
def test_what_a_killed_preparation_left_is_cleared_away(job, registered, scale):
    """Otherwise the disk fills, one killed preparation after another."""
    if job == "index":
        shutil.rmtree(registered / "runs" / scale.spec.name)
    trial = kill_nine.TRIALS[job](registered, scale, 2)
    running = kill_nine.start(trial.job)
    while not leftovers(trial.folder.parent):
        assert running.process.is_alive()
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.end()
    left = leftovers(trial.folder.parent)
    kill_nine.finish(trial.job)

    assert left
    assert leftovers(registered) == []


def test_a_replay_killed_and_continued_reports_like_an_undisturbed_one(quiet, registered, scale):
    kill_nine.finish(partial(kill_nine.replay_job, quiet[0], scale))
    job = partial(kill_nine.replay_job, registered, scale)
    for message in ("saving step 7", "step 9", f"step {scale.spec.stretch[1]}"):
        assert interrupt(job, message, signal.SIGKILL) == -signal.SIGKILL
    kill_nine.finish(job)

    expected, actual = report_of(quiet[0]), report_of(registered)

    assert actual["grade"] == "R0"
    assert actual["steps"] == expected["steps"]
    assert actual == expected
    assert leftovers(registered) == []


def report_of(workspace: Path) -> dict:
    """The only replay's report, without the time when it was finished."""
    (path,) = workspace.glob("replays/*/report.json")
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "finished"}


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_interrupted_by_the_user_and_continued_ends_the_same(quiet, scale, tmp_path):
    """Ctrl-C in the demo: nothing temporary stays, and the same command goes on."""
    job = partial(kill_nine.demo_job, tmp_path, scale)
    for message in ("collecting the corpus and training a tokenizer", "saving step 10", "step 12"):
        assert interrupt(job, message, signal.SIGINT) == 130
        assert leftovers(tmp_path) == []
    kill_nine.finish(job)

    assert differences_from(quiet, tmp_path, "trained") == []
    assert differences_from(quiet, tmp_path, "runs") == []


def test_the_command_line_says_that_an_interrupted_command_goes_on(copied, scale):
    """Ctrl-C at the real command: exit 130, no traceback, a sentence that says what to do."""
    process = forensics("add", str(copied / "trained" / scale.spec.name), workspace=copied)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()

    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert "the same command goes on" in errors


# --- two at once ------------------------------------------------------------------------------------------------------


def test_a_fork_that_another_process_runs_is_refused_and_stays_whole(quiet, registered, scale):
    """The second process says why and changes nothing; the first goes on to the end."""
    job = partial(kill_nine.fork_job, registered, scale)
    with held_up(job, "step 8"):
        exit_code, last_words = kill_nine.start(job).end()

    assert exit_code == 1 and last_words.startswith("Busy: ")
    assert "another process is already running fork" in last_words
    assert differences_from(quiet, registered, "forks") == []


def test_a_run_that_another_process_adds_is_refused_and_stays_whole(quiet, copied, scale):
    job = partial(kill_nine.add_job, copied, scale)
    with held_up(job, "hashing token files"):
        second = forensics("add", str(copied / "trained" / scale.spec.name), workspace=copied)
        output, errors = second.communicate()
    exit_code, last_words = kill_nine.start(job).end()

    assert (second.returncode, output) == (1, "")
    assert f"another process is already adding {scale.spec.name}" in errors
    assert exit_code == 1 and last_words.startswith(f"RunExists: {scale.spec.name} is registered already")
    assert differences_from(quiet, copied, "runs") == []


def test_adding_a_run_leaves_alone_what_another_process_prepares(copied, scale):
    """Where the name of one run ends like the name of another, both can be added at once."""
    building = copied / "runs" / f".tmp-1-0123abcd-my-{scale.spec.name}"
    building.mkdir(parents=True)
    kill_nine.finish(partial(kill_nine.index_job, copied, scale))

    assert building.exists()


def test_of_two_processes_adding_a_run_at_once_one_wins(quiet, copied, scale):
    """Neither is held up, so they meet wherever they meet."""
    job = partial(kill_nine.add_job, copied, scale)
    ends = sorted(running.end() for running in [kill_nine.start(job), kill_nine.start(job)])

    assert ends[0] == (0, kill_nine.FINISHED)
    assert ends[1][0] == 1 and ends[1][1].startswith(("Busy", "RunExists"))
    assert differences_from(quiet, copied, "runs") == []


def test_of_two_processes_running_a_fork_at_once_one_runs_it(quiet, registered, scale):
    """The other is refused, or comes when it is done and finds it."""
    job = partial(kill_nine.fork_job, registered, scale)
    ends = sorted(running.end() for running in [kill_nine.start(job), kill_nine.start(job)])

    assert ends[0] == (0, kill_nine.FINISHED)
    assert ends[1] == ends[0] or (ends[1][0] == 1 and ends[1][1].startswith("Busy"))
    assert differences_from(quiet, registered, "forks") == []
