"""Kill -9 what writes, again and again, and compare the result with one where nothing was killed.

    python -m tests.benchmarks.kill_nine --kills 20 --output kill_nine.json

In one workspace that keeps growing, three jobs: training the sample run, building its index (`add`), and a fork. A job
is started, killed at a random moment, started again, killed again ..., then left to finish; its content
(tests/benchmarks/content.py) must equal that of an undisturbed workspace, and no temporary file may remain. That is one
round; rounds repeat, each from nothing, until enough kills have hit a running process.

When to kill: a job says what it does (each message of `say`, each save, each step). The undisturbed run gives the time
from each message to the next; a kill waits for one message and then for up to 1.5 times that time. So kills fall on
what a job does, not on the start of the interpreter, and as many on saves as on steps.

A job is a process of its own, forked from one that has the libraries loaded and has computed nothing: loading torch
again for each kill would take most of the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the package is not installed

from data_index.errors import ForensicsError
from data_index.files import write_json
from data_index.registration import add
from data_index.sources.native import all_pieces, saved_steps
from data_index.workspace import Workspace
from forensics.forking import ForkRequest, fork, fork_id
from forensics.reproduction import Progress, replay
from forensics.sample_run import SampleSpec, train_sample_run
from forensics.tidying import remove
from forensics.walked_questions import BAD_ROWS
from forensics.walkthrough import prepare_sample
from replay import recording
from replay.determinism import environment
from replay.intervention import parse_edit
from replay.recording import Recording
from replay.train_state import TrainState
from tests.benchmarks.content import content_hashes, differences, leftovers

Say = Callable[[str], None]
Job = Callable[[Say], None]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "tests.benchmarks.kill_nine",
        "transformers.models.olmo2.modeling_olmo2",
        # Arrow imports these with the first array of objects and the first folder of Parquet files of a process.
        "pandas",
        "pyarrow.dataset",
    ]
)

KILLS_PER_ROUND = 5
STARTED, FINISHED = "started", "finished"
PREPARING, STEP, SAVING, DONE = PLACES = ("preparing", "in a step", "saving", "after the end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A sample run, and how often its forks and replays save (the toolkit: every 30 s, too seldom to be hit)."""

    spec: SampleSpec
    seconds_between_saves: float

    @property
    def edit(self) -> str:
        """What the walkthrough's fork does: the accident did not happen."""
        return f'drop where:"{BAD_ROWS}" @{self.spec.binary_step}'


def tiny_scale() -> Scale:
    from tests.conftest import TINY

    return Scale(spec=TINY, seconds_between_saves=0.03)


def full_scale() -> Scale:
    return Scale(spec=SampleSpec(), seconds_between_saves=0.5)


# --- jobs: what a process does; functions of the module, since processes find them by name ----------------------------


def steps_said(say: Say, scale: Scale) -> Progress:
    """Have this process save as often as the scale wants, and say each save before it and each step after it."""
    recording.SECONDS_BETWEEN_SAVES = scale.seconds_between_saves
    save = Recording.save

    def save_and_say(own: Recording, state: TrainState) -> None:
        say(f"saving step {state.step}")
        save(own, state)

    Recording.save = save_and_say  # type: ignore[method-assign]
    return lambda result, last: say(f"step {result.step}")


def train_job(folder: Path, scale: Scale, say: Say) -> None:
    train_sample_run(folder, scale.spec, progress=steps_said(say, scale), say=say)


def index_job(workspace: Path, scale: Scale, say: Say) -> None:
    """`add`, unless the run is there already: what `forensics demo` does."""
    if scale.spec.name not in Workspace(workspace).run_names():
        add_job(workspace, scale, say)


def add_job(workspace: Path, scale: Scale, say: Say) -> None:
    source = workspace / "trained" / scale.spec.name
    add(source, workspace=Workspace(workspace), progress=lambda message: say(message.replace(str(source), "the run")))


def fork_job(workspace: Path, scale: Scale, say: Say) -> None:
    fork(
        scale.spec.name,
        from_step=scale.spec.fork_from,
        num_steps=scale.spec.fork_steps,
        edits=[scale.edit],
        workspace=Workspace(workspace),
        device="cpu",
        progress=steps_said(say, scale),
        say=say,
    )


def replay_job(workspace: Path, scale: Scale, say: Say) -> None:
    first, last = scale.spec.stretch
    progress = steps_said(say, scale)
    replay(scale.spec.name, f"{first}:{last}", workspace=Workspace(workspace), device="cpu", progress=progress)


def demo_job(workspace: Path, scale: Scale, say: Say) -> None:
    """What `forensics demo` does before it asks its questions."""
    prepare_sample(Workspace(workspace), scale.spec, say, lambda doing: steps_said(say, scale))


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started job. Its messages end when it does, however it does."""

    process: BaseProcess
    connection: Connection

    def messages(self) -> Iterator[str]:
        while True:
            try:
                yield self.connection.recv()
            except (EOFError, OSError):  # it ended, maybe in the middle of a message
                return

    def wait_for(self, message: str) -> bool:
        """Whether it, or the same of a later step, was said; False: the job ended without."""
        return any(comes_to(said, message) for said in self.messages())

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        try:
            os.kill(self.process.pid, number)
        except ProcessLookupError:
            pass  # it has ended

    def end(self) -> tuple[int, str]:
        """Wait for the end. Returns the exit code, minus the signal where one ended it, and the last words."""
        *_, last = "", *self.messages()
        self.process.join()
        self.connection.close()
        assert self.process.exitcode is not None
        return self.process.exitcode, last


def comes_to(said: str, message: str) -> bool:
    """Is this the message, or what it says of a step, of a later step?"""
    doing, _, step = message.rpartition("step ")
    done, _, reached = said.rpartition("step ")
    later = step.isdigit() and reached.isdigit() and done == doing and int(reached) >= int(step)
    return said == message or later


def start(job: Job) -> Running:
    receiving, sending = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run_job, args=(job, sending), daemon=True)
    process.start()
    sending.close()
    return Running(process=process, connection=receiving)


def run_job(job: Job, connection: Connection) -> None:
    """The process: exit 0 done, 1 a stated failure (its text are the last words), 130 interrupted."""
    say = connection.send
    say(STARTED)
    try:
        job(say)
    except ForensicsError as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    say(FINISHED)


def finish(job: Job) -> None:
    """Run a job to its end."""
    require_finished(*start(job).end())


def require_finished(exit_code: int, last_words: str) -> None:
    if exit_code != 0:
        raise RuntimeError(f"a job that nobody killed ended with exit code {exit_code}: {last_words}")


# --- trials -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A job, the folder that it makes in a workspace, and its last step where it takes steps."""

    name: str
    workspace: Path
    folder: Path
    job: Job
    last_step: int | None = None


def training_trial(workspace: Path, scale: Scale, number: int = 1) -> Trial:
    """`number` counts the trainings in one workspace, each in a folder of its own."""
    name = scale.spec.name if number == 1 else f"{scale.spec.name}-{number}"
    folder = workspace / "trained" / name
    job, last_step = partial(train_job, folder, scale), scale.spec.num_steps
    return Trial(name="training", workspace=workspace, folder=folder, job=job, last_step=last_step)


def index_trial(workspace: Path, scale: Scale, number: int = 1) -> Trial:
    folder = workspace / "runs" / scale.spec.name
    return Trial(name="index", workspace=workspace, folder=folder, job=partial(index_job, workspace, scale))


def fork_trial(workspace: Path, scale: Scale, number: int = 1) -> Trial:
    spec, parent = scale.spec, Workspace(workspace).run(scale.spec.name)
    request = ForkRequest(
        parent=parent,
        first=spec.fork_from,
        last=spec.fork_from + spec.fork_steps,
        edits=(parse_edit(scale.edit),),
        overrides={},
    )
    folder, job = workspace / "forks" / fork_id(request.to_table()), partial(fork_job, workspace, scale)
    return Trial(name="fork", workspace=workspace, folder=folder, job=job, last_step=spec.fork_from + spec.fork_steps)


# Each needs what those before it made.
TRIALS: Mapping[str, Callable[[Path, Scale, int], Trial]] = {
    "training": training_trial,
    "index": index_trial,
    "fork": fork_trial,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a trial makes when nobody kills it, and what it says: each message with the seconds until the next."""

    hashes: Mapping[str, str]
    timeline: Sequence[tuple[str, float]]


def observe(trial: Trial) -> Undisturbed:
    running = start(trial.job)
    said = [(message, time.monotonic()) for message in running.messages()]
    require_finished(running.end()[0], said[-1][0])
    timeline = [(message, after - at) for (message, at), (_, after) in zip(said, said[1:], strict=False)]
    return Undisturbed(hashes=content_hashes(trial.folder, trial.workspace), timeline=timeline)


def observe_all(workspace: Path, scale: Scale) -> dict[str, Undisturbed]:
    return {name: observe(trial(workspace, scale, 1)) for name, trial in TRIALS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A kill that hit a running process; `place` is what the folder tells of what the process was doing."""

    round: int
    waited_for: str
    delay_seconds: float
    place: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A trial's kills, and what is wrong afterwards."""

    name: str
    rounds: int = 0
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not self.differences and not self.leftovers


def kill_rounds(
    name: str, workspace: Path, scale: Scale, undisturbed: Undisturbed, num_kills: int, chance: random.Random
) -> Outcome:
    """Rounds of one trial, until `num_kills` kills have hit. The last round's result stays in the workspace."""
    outcome, began, earlier = Outcome(name=name), time.monotonic(), leftovers(workspace)
    while len(outcome.kills) < num_kills:
        outcome.rounds += 1
        trial = TRIALS[name](workspace, scale, outcome.rounds)
        if trial.folder.exists():
            list(remove(trial.folder.name, confirmed=True, workspace=Workspace(workspace)))
        moments = moments_of_round(undisturbed.timeline, chance)[: num_kills - len(outcome.kills)]
        outcome.kills += kill_and_finish(trial, moments, outcome.rounds)
        found = differences(undisturbed.hashes, content_hashes(trial.folder, workspace))
        outcome.differences += [f"round {outcome.rounds}: {line}" for line in found]
    outcome.leftovers = [str(path.relative_to(workspace)) for path in leftovers(workspace) if path not in earlier]
    outcome.seconds = time.monotonic() - began
    return outcome


def moments_of_round(timeline: Sequence[tuple[str, float]], chance: random.Random) -> list[tuple[str, float]]:
    """When to kill: messages to wait for, in the order in which they come, and seconds to wait after each.

    One while the job prepares; then, where it takes steps, at growing progress, in steps and in saves alternately.
    """

    def numbers(doing: str) -> list[int]:
        return [number for number, (message, _) in enumerate(timeline) if message.startswith(doing)]

    steps, saves = numbers("step "), numbers("saving step ")
    setup = [number for number in range(len(timeline)) if number not in steps + saves]
    wanted = KILLS_PER_ROUND - 1
    chosen = chance.sample(saves, min(len(saves), wanted // 2)) + chance.sample(steps, min(len(steps), wanted // 2))
    moments = [timeline[number] for number in [chance.choice(setup), *sorted(chosen)]]
    return [(message, chance.uniform(0, 1.5 * seconds)) for message, seconds in moments]


def kill_and_finish(trial: Trial, moments: Sequence[tuple[str, float]], number: int) -> list[Kill]:
    """Start and kill, once for each moment, then let it finish. A job that is faster than its kill ends the round."""
    kills = []
    for message, delay in moments:
        running = start(trial.job)
        if running.wait_for(message):
            time.sleep(delay)
            running.send_signal(signal.SIGKILL)
        exit_code, last_words = running.end()
        if exit_code != -signal.SIGKILL:
            require_finished(exit_code, last_words)
            return kills
        kills.append(Kill(round=number, waited_for=message, delay_seconds=delay, place=place_of_death(trial)))
    finish(trial.job)
    return kills


def place_of_death(trial: Trial) -> str:
    """The folder appears by a rename when it is prepared; pieces become part of it when the next state is saved."""
    if not trial.folder.exists():
        return PREPARING
    saved = max(saved_steps(trial.folder), default=-1)
    pieces = [stop for kind in ("trace", "metrics", "consumed") for (_, stop), _ in all_pieces(trial.folder, kind)]
    if leftovers(trial.folder) or max(pieces, default=saved) > saved:
        return SAVING
    return STEP if trial.last_step is not None and saved < trial.last_step else DONE


# --- the report -------------------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    heads = [*PLACES, "left behind", "content"]
    yield f"{'job':10}{'kills':>7}{'rounds':>8}" + "".join(f"{head:>15}" for head in heads)
    for outcome in outcomes:
        places = Counter(kill.place for kill in outcome.kills)
        cells = f"{len(outcome.kills):7}{outcome.rounds:8}" + "".join(f"{places[place]:15}" for place in PLACES)
        content = "DIFFERS" if outcome.differences else "the same"
        yield f"{outcome.name:10}{cells}{len(outcome.leftovers):15}{content:>15}"
    for outcome in outcomes:
        yield from (f"{outcome.name}: {line}" for line in outcome.differences)
        yield from (f"{outcome.name}: {line} was left behind" for line in outcome.leftovers)


def run(folder: Path, scale: Scale, num_kills: int, seed: int, output: Path | None) -> list[Outcome]:
    chance, outcomes = random.Random(seed), []
    report("undisturbed, to compare with")
    undisturbed = observe_all(folder / "undisturbed", scale)
    for name in TRIALS:
        report(f"{name}: {num_kills} kills")
        outcomes.append(kill_rounds(name, folder / "killed", scale, undisturbed[name], num_kills, chance))
        if output:
            found = {"seed": seed, "spec": asdict(scale.spec), "environment": environment()}
            write_json(output, found | {"outcomes": [asdict(outcome) for outcome in outcomes]})
    return outcomes


def report(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit 0 when every result is the undisturbed one, 1 when one differs or something was left behind."""
    parser = argparse.ArgumentParser(description="Kill -9 what writes; what remains must be the same.")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="for each of the three jobs")
    parser.add_argument("--tiny", action="store_true", help="the 20-step run of the tests")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; when exactly a kill hits still varies")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write every kill there")
    options = parser.parse_args()
    scale = tiny_scale() if options.tiny else full_scale()
    with tempfile.TemporaryDirectory(prefix="kill-nine-") as folder:
        outcomes = run(Path(folder), scale, options.kills, options.seed, options.output)
    print("\n".join(table(outcomes)))
    return int(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
