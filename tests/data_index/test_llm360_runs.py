"""Amber and K2 from folders of chunks to batches, where only some chunks are there, against brute force."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import CorruptFile, MissingFile, OrderMismatch, UnknownLayout
from data_index.registration import add
from data_index.run import Run
from data_index.store import connect
from data_index.workspace import Workspace
from forensics.lookup import batch, batches

LLM360 = Path(__file__).parents[1] / "fixtures" / "other-orders" / "llm360"
Line = tuple[int, int]  # chunk, line


def write_chunks(folder: Path, sizes: Mapping[int, int], **fields: Any) -> Path:
    """The first two ids of a line say which it is."""
    folder.mkdir()
    for chunk, lines in sizes.items():
        rows = [{"token_ids": [chunk, line, 7, 7], "source": "c4", **fields} for line in range(lines)]
        (folder / f"train_{chunk:03d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read_by(workspace: Workspace, run: Run) -> dict[int, list[Line]]:
    """Each step's lines."""
    found = {}
    for first, last, _ in run.kept_steps():
        for one in batches(run.name, first - 1, last, workspace=workspace):
            found[one.step] = [(int(chunk), int(line)) for chunk, line in one.token_ids[:, :2]]
    return found


# --- Amber -----------------------------------------------------------------------------------------------------------


def amber_steps(
    sizes: Mapping[int, int], there: set[int], starts: list[int], ranks: int, rows: int
) -> dict[int, list[Line]]:
    """Batch after batch, rank after rank; a process draws one permutation a chunk, from its first chunk on."""
    steps: dict[int, list[Line]] = {}
    step = 0
    for chunk, lines in sizes.items():
        if chunk in starts:
            generator = np.random.RandomState(11111 + chunk)
        order = generator.permutation(lines)
        for number in range(lines // (ranks * rows)):
            step += 1
            places = [(number * rows + row) * ranks + rank for rank in range(ranks) for row in range(rows)]
            if chunk in there:
                steps[step] = [(chunk, int(order[place])) for place in places]
    return steps


@pytest.mark.parametrize("starts", [[0], [0, 1], [0, 2], [0, 1, 3], [0, 4]])
@pytest.mark.parametrize("gone", [set(), {1}, {0, 3}, {2, 4}])
def test_ambers_steps_are_those_of_its_processes(
    starts: list[int], gone: set[int], workspace: Workspace, tmp_path: Path
) -> None:
    """Chunk 3 fills no batch, but draws its permutation. Restarts matter to what comes after them alone."""
    sizes = {0: 33, 1: 33, 2: 33, 3: 9, 4: 25}
    there = {chunk: lines if chunk in (3, 4) else 33 for chunk, lines in sizes.items() if chunk not in gone}
    sizes = {chunk: there.get(chunk, 33) for chunk in range(max(there) + 1)}
    folder = write_chunks(tmp_path / "amber", there)
    settings = {
        "instances_per_batch": 10,
        "world_size": 5,
        "lines_per_chunk": 33,
        "restarts": ",".join(map(str, starts)),
    }

    run = add(folder, settings=settings, workspace=workspace)

    assert read_by(workspace, run) == amber_steps(sizes, set(there), starts, 5, 2)


def test_ambers_checkpoints_are_taken_after_their_chunks(workspace: Workspace, tmp_path: Path) -> None:
    """Chunk 1 is too small for a step, and chunk 3 is not there."""
    folder = write_chunks(tmp_path / "amber", {0: 33, 1: 9, 2: 25})
    for number in range(4):
        (folder / f"ckpt_{number:03d}").mkdir()
        (folder / f"ckpt_{number:03d}" / "model.safetensors").write_bytes(b"")

    run = add(folder, settings={"instances_per_batch": 10, "world_size": 5}, workspace=workspace)

    assert [(c.location.name, c.step) for c in workspace.checkpoints(run)] == [("ckpt_000", 3), ("ckpt_002", 5)]


def test_without_its_restarts_amber_is_known_by_the_chunk_only(workspace: Workspace, tmp_path: Path) -> None:
    run = add(LLM360, settings={"instances_per_batch": 20, "world_size": 4}, workspace=workspace)

    assert str(run.trust).startswith("chunk (the trainer's rule and the lines of each chunk; missing: the chunks at")


# --- K2 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_k2s_steps_are_those_whose_rows_are_all_there(seed: int, workspace: Workspace, tmp_path: Path) -> None:
    """Steps run over the borders of chunks, in the order that was recorded from its own code."""
    order = json.loads((LLM360 / "k2_chunk_order.json").read_text())
    chance = random.Random(seed)
    first = chance.randrange(350)
    chosen = order[first : first + chance.randrange(1, 6)] + chance.sample(order, 2)
    there = {chunk: 12 for chunk in sorted(set(chosen))}
    rows = chance.choice([5, 7, 12])
    lines = [(chunk, line) for chunk in order for line in range(12)]
    steps = {n + 1: lines[n * rows :][:rows] for n in range(len(lines) // rows)}
    whole = {step: some for step, some in steps.items() if all(chunk in there for chunk, _ in some)}
    folder = write_chunks(tmp_path / "k2", there, subset_name="x")

    run = add(folder, settings={"instances_per_batch": rows, "lines_per_chunk": 12}, workspace=workspace)

    assert run.layout == "k2"
    assert read_by(workspace, run) == whole


# --- what is said of lines -------------------------------------------------------------------------------------------


def test_lines_are_documents_with_their_source_and_subset(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_chunks(tmp_path / "amber", {0: 12}, subset_name="x")
    add(folder, name="a", layout="amber", settings={"instances_per_batch": 5, "world_size": 1}, workspace=workspace)

    by_tag = batch("a", "0:2", by="tag", workspace=workspace).to_pylist()
    rows = batch("a", 1, workspace=workspace).to_pylist()

    assert [(row["tag"], row["instances"], row["tokens"]) for row in by_tag] == [("x", 10, 40)]
    assert [row["document_ids"] for row in rows] == [[row["instance"]] for row in rows]
    assert connect(workspace).execute("SELECT DISTINCT source FROM documents").fetchall() == [("c4",)]


REFUSED: dict[str, tuple[str, dict[int, int], dict[str, Any], type[Exception], str]] = {
    "a chunk of unknown size": ("k2", {3: 9}, {}, MissingFile, "chunk 0 of 360 is not there, and .*lines_per_chunk"),
    "no whole step": (
        "k2",
        {3: 9},
        {"lines_per_chunk": 9, "instances_per_batch": 50},
        OrderMismatch,
        "do not hold all rows of one step of 50",
    ),
    "no whole batch": ("amber", {0: 9}, {"instances_per_batch": 10, "world_size": 5}, OrderMismatch, "no chunk fills"),
    "uneven ranks": (
        "amber",
        {0: 9},
        {"instances_per_batch": 5, "world_size": 2},
        OrderMismatch,
        "shared out to 2 ran",
    ),
    "an unknown setting": ("amber", {0: 9}, {"seed": 3}, UnknownLayout, "--set seed: layout amber has no such setting"),
    "restarts that cannot be": (
        "amber",
        {0: 9},
        {"instances_per_batch": 3, "world_size": 1, "restarts": "1"},
        OrderMismatch,
        "processes cannot have started at chunks",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_settings_cannot_be_is_said(what: str, workspace: Workspace, tmp_path: Path) -> None:
    layout, sizes, settings, error, said = REFUSED[what]
    folder = write_chunks(tmp_path / "run", sizes)

    with pytest.raises(error, match=said):
        add(folder, layout=layout, settings=settings, workspace=workspace)


def test_two_files_of_one_chunk_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_chunks(tmp_path / "run", {0: 9})
    (folder / "other_0.jsonl").write_bytes((folder / "train_000.jsonl").read_bytes())

    with pytest.raises(CorruptFile, match="are both chunk 0"):
        add(folder, workspace=workspace)
