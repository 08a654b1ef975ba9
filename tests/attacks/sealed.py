"""Faults in what a run was added with: where are they noticed? When it is opened, when it is read, or by an audit."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_index.artifacts import run_artifacts
from data_index.batch_queries import plan_of, reader_of
from data_index.errors import ForensicsError
from data_index.run import Run
from data_index.text import load_tokenizer
from data_index.workspace import Workspace
from forensics import artifact_checks as checks
from forensics.audit_rows import Row, judged
from forensics.tokenizer_check import tokenizer_rows
from tests.attacks import faults as plant
from tests.attacks.faults import Fault
from tests.attacks.planted import Subject

OPENED, READ, AUDITED, MISSED = AFTER = ("opened", "read", "audited", "missed")


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """Where a fault was noticed first, and whether `audit --deep` has a row that failed, or says why it cannot look."""

    first: str
    audited: bool


def home_faults(layout: str) -> dict[str, Fault]:
    """Of files in the home of a run."""
    numbers = (
        "first_step|num_steps|epoch|first_position|instances_per_batch|first_instance|num_instances|seed|chunk_size"
    )
    return {
        **plant.named("run.toml", plant.byte_faults("run.toml")),
        "run.toml: a number": plant.number_in_toml(numbers),
        **plant.named("index.duckdb", plant.byte_faults("index.duckdb")),
        **plant.named("config", plant.byte_faults("config*")),
        **plant.named("pieces", plant.byte_faults("pieces/*.npy")),
        **plant.named("lines", plant.byte_faults("lines/*.npy")),
        **plant.named("learned table", plant.byte_faults("*/*.parquet")),
        **plant.named("seal", plant.byte_faults("seal.json")),
    }


def plant_after(chosen: Mapping[str, Subject], number: int, seed: int = 0) -> Iterator[tuple[str, str, Noticed]]:
    """About so many faults after the runs were added: subject, fault, where it was noticed."""
    for name, subject in chosen.items():
        chance = random.Random(f"{seed} {name}")
        with tempfile.TemporaryDirectory() as place:
            folder, workspace = Path(place) / "made", Workspace(Path(place) / "workspace")
            subject.write(folder)
            run = subject.add(folder, "all", workspace)
            places = [(folder, kind, fault) for kind, fault in _outside(subject, run, folder).items()]
            places += [(workspace.home("run"), kind, fault) for kind, fault in home_faults(run.layout).items()]
            assert look(workspace) == Noticed(first=MISSED, audited=False)
            chance.shuffle(places)
            planted = tried = 0
            while planted < -(-number // len(chosen)) and tried < 20 * number:
                where, kind, fault = places[tried % len(places)]
                tried += 1
                with as_it_was(where):
                    before = _bytes(where)
                    if fault(where, chance) is False or _bytes(where) == before:
                        continue
                    planted += 1
                    yield name, kind, look(workspace)


def _outside(subject: Subject, run: Run, folder: Path) -> dict[str, Fault]:
    """Of what the run names outside its home: token files, recorded orders, the tokenizer."""
    found = {kind: fault for kind, fault in subject.faults.items() if kind.startswith("token file")}
    if run.order.rule == "file":
        found |= plant.named("order file", plant.byte_faults("run/order/*.npy"))
        found |= plant.named("order file", plant.number_faults("run/order/*.npy", "", header=True))
    if run.tokenizer is not None:
        found |= plant.named("tokenizer", plant.tokenizer_faults(run.tokenizer.relative_to(folder).as_posix()))
    return found


def look(workspace: Workspace) -> Noticed:
    """Open the run, read all it reads, load its tokenizer; and audit its files, whatever that found."""
    first = MISSED
    try:
        run = workspace.run("run")
        first = READ
        reader = reader_of(workspace, run)
        for stretch in run.kept_steps():
            plan = plan_of(workspace, run, stretch[0] - 1, stretch[1])
            for step in plan.steps:
                reader.rows(plan[step].instances)
        if run.tokenizer is not None:
            load_tokenizer(run)
        first = MISSED
    except ForensicsError:
        first = OPENED if first == MISSED else READ
    failed = any(found["result"] == "failed" for found in own_rows(workspace))
    return Noticed(first=AUDITED if first == MISSED and failed else first, audited=failed)


def own_rows(workspace: Workspace) -> Iterator[Row]:
    """What `audit --deep` says of the run's own files; it reads the weights of checkpoints besides."""
    home = workspace.home("run")
    try:
        yield from checks.seal_rows(home, deep=True, say=lambda message: None)
        run = workspace.run("run", verify=False)
        there = {artifact.name: artifact for artifact in run_artifacts(workspace, run)}
        yield from checks.order_rows(run)
        yield from checks.piece_rows(run)
        yield from checks.token_rows(workspace, run, there, deep=True, say=lambda message: None)
        yield from tokenizer_rows(workspace, run, None, deep=True)
    except ForensicsError as error:
        yield judged("run", "opens", str(error))


def _bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@contextmanager
def as_it_was(folder: Path) -> Iterator[None]:
    """Put every file of a folder back afterwards."""
    before = _bytes(folder)
    try:
        yield
    finally:
        for path, content in _bytes(folder).items():
            if path not in before:
                path.unlink()
            elif before[path] != content:
                path.write_bytes(before[path])
        for path, content in before.items():
            if not path.exists():
                path.write_bytes(content)
