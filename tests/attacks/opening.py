"""Open hostile twins as a user would, in a process that may neither take much memory nor much time.

The process is forked for a list of twins from a server that has everything imported and has read nothing. It may map
two GiB more than the imports did (they map about 4 GiB, next to none of it in use, so that one limit for all would say
nothing), and an audit hook notes what a reader must never do: start a program, ask the network, look a name of a pickle
up, or write anywhere but in the workspace.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOM_BYTES = 3 * 2**30
SECONDS = 30.0  # for one twin: a guard against hanging, far above what any takes
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.",
    "socket.",
    "pickle.find_class",
    "ctypes.",
)
PRELOADED = (
    "duckdb",
    "h5py",
    "pyarrow.parquet",
    "replay.weights",
    "replay.recording",
    "forensics.soundness",
    "forensics.lookup",
    "forensics.reproduction",
    "data_index.registration",
    "tests.attacks.opening",
)
Door = tuple[str, Callable[[], object]]


@dataclass(frozen=True)
class Twin:
    """A hostile variant of something real.

    Attributes:
        folder: a checkpoint's, or a run's.
        kind: which doors are tried: `checkpoint`, `run`, `replayed run`, `trace`.
        says: what one of the refusals must say, the name of the file at least.
        layout: of a checkpoint.
        opens: may it be read after all? Then nothing has to be refused, and nothing may be run either.
    """

    name: str
    folder: Path
    kind: str
    says: str
    layout: str | None = None
    opens: bool = False


@dataclass
class Opened:
    """What came of a twin: by door the refusal, or "" where it opened; what else was raised; what the hook noted."""

    refusals: dict[str, str] = field(default_factory=dict)
    crashes: dict[str, str] = field(default_factory=dict)
    noted: list[str] = field(default_factory=list)


def open_twins(twins: list[Twin]) -> dict[str, Opened]:
    """Open each twin by every door there is for its kind.

    Raises:
        AssertionError: the process died, or a twin took too long.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_open_all, args=(twins, sender), daemon=True)
    child.start()
    sender.close()
    found: dict[str, Opened] = {}
    try:
        for twin in twins:
            # The first one waits for the imports.
            assert receiver.poll(SECONDS if found else 4 * SECONDS), f"{twin.name} took more than {SECONDS} seconds"
            try:
                found[twin.name] = receiver.recv()
            except EOFError:
                child.join()
                raise AssertionError(f"{twin.name} ended the process with code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
    return found


def assert_refused(twins: list[Twin], canary: Path | None = None) -> None:
    """Every twin is refused by a stated error that names its file, by no other error, and nothing was run."""
    wrong = []
    for twin, opened in zip(twins, open_twins(twins).values(), strict=True):
        said = [text for text in opened.refusals.values() if text]
        if opened.crashes:
            wrong.append(f"{twin.name}: {opened.crashes}")
        if opened.noted:
            wrong.append(f"{twin.name}: {opened.noted}")
        if not twin.opens and not any(twin.says in text for text in said):
            wrong.append(f"{twin.name}: nothing said {twin.says!r}: {opened.refusals}")
    assert not wrong, "\n".join(wrong)
    assert canary is None or not canary.exists()


def _open_all(twins: list[Twin], sender: Connection) -> None:
    import warnings

    warnings.simplefilter("ignore")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM_BYTES, mapped + ROOM_BYTES))
    noted: list[str] = []
    inside = [str(twin.folder.parent / f"workspace of {twin.folder.name}") for twin in twins]
    sys.addaudithook(lambda event, arguments: _note(event, arguments, inside, noted))
    for twin in twins:
        opened = Opened()
        for name, door in _doors(twin):
            _try(name, door, opened)
        opened.noted = noted[:]
        noted.clear()
        sender.send(opened)


def _note(event: str, arguments: tuple[Any, ...], inside: list[str], noted: list[str]) -> None:
    if event.startswith(FORBIDDEN):
        noted.append(f"{event} {arguments[:1]}")
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes and not str(arguments[0]).startswith((*inside, "/dev/")):
        noted.append(f"open to write {arguments[0]}")


def _try(name: str, door: Callable[[], object], opened: Opened) -> None:
    from data_index.errors import ForensicsError

    try:
        door()
        opened.refusals[name] = ""
    except ForensicsError as error:
        opened.refusals[name] = f"{type(error).__name__}: {error}"
    except BaseException:
        opened.crashes[name] = traceback.format_exc(limit=-4)


def _doors(twin: Twin) -> Iterator[Door]:
    if twin.kind == "checkpoint":
        return _doors_of_checkpoint(twin)
    if twin.kind == "trace":
        from replay.recording import read_trace

        return iter([("read_trace", lambda: read_trace(twin.folder))])
    return _doors_of_run(twin)


def _doors_of_checkpoint(twin: Twin) -> Iterator[Door]:
    from data_index.neox_checkpoint import is_neox_checkpoint, read_counts
    from data_index.olmo_checkpoint import layout_of, read_trainer_state, states_of
    from data_index.run import Checkpoint
    from replay.weights import read_optimizer, read_weights

    layout = twin.layout or layout_of(twin.folder) or "olmo"
    states = states_of(twin.folder) or ("weights", "optimizer")
    place = Checkpoint(run="twin", step=1, location=twin.folder, layout=layout, states=states)
    if "weights" in states:
        yield "read_weights", lambda: read_weights(place)
    if "optimizer" in states:
        yield "read_optimizer", lambda: read_optimizer(place)
    if "trainer" in states:
        yield "read_trainer_state", lambda: read_trainer_state(twin.folder)
    if is_neox_checkpoint(twin.folder):
        yield "read_counts", lambda: read_counts(twin.folder)


def _doors_of_run(twin: Twin) -> Iterator[Door]:
    from data_index.registration import add
    from data_index.workspace import Workspace
    from forensics.lookup import batch
    from forensics.reproduction import replay
    from forensics.soundness import audit
    from replay.weights import read_optimizer, read_weights

    workspace = Workspace(twin.folder.parent / f"workspace of {twin.folder.name}")
    yield "add", lambda: add(twin.folder, name="twin", workspace=workspace)
    if "twin" not in workspace.run_names():
        return
    run = workspace.run("twin")
    yield "audit", lambda: _failures(audit("twin", deep=True, workspace=workspace).rows)
    yield "batch", lambda: batch("twin", str(run.first_step), tokens=True, workspace=workspace)
    places: list[Any] = []
    yield "checkpoints", lambda: places.extend(workspace.checkpoints(run))
    for place in places:
        yield f"read_weights {place.step}", lambda place=place: read_weights(place)  # type: ignore[misc]
        if "optimizer" in place.states:
            yield f"read_optimizer {place.step}", lambda place=place: read_optimizer(place)  # type: ignore[misc]
    if twin.kind == "replayed run" and places:
        steps = f"{places[0].step}:{places[0].step + 1}"
        yield "replay", lambda: replay("twin", steps, device="cpu", workspace=workspace)


def _failures(rows: Sequence[dict[str, Any]]) -> None:
    """The audit does not raise: it answers what failed."""
    from data_index.errors import CorruptFile

    failed = [f"{row['artifact']}: {row['detail']}" for row in rows if row["result"] == "failed"]
    if failed:
        raise CorruptFile("; ".join(failed))
