"""`add` refuses data or an order that are not the run's own, and leaves nothing behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_index.errors import CorruptFile, ForensicsError, MissingFile, OrderMismatch
from data_index.registration import add
from data_index.run import Run
from data_index.run_file import read_run, write_run
from data_index.workspace import Workspace


def assert_nothing_left(workspace: Workspace) -> None:
    """But for the lock file, which holds nothing."""
    assert workspace.run_names() == []
    assert [path.name for path in workspace.folder.glob("runs/*") if path.suffix != ".lock"] == []


def change_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "batch":
            change(line)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def change_config(folder: Path, section: str, **fields: Any) -> None:
    for path in folder.glob("ckpt/step*/config.json"):
        config = json.loads(path.read_text())
        config[section] |= fields
        path.write_text(json.dumps(config))


def one_token(folder: Path) -> None:
    """The first token of instance 54, which step 1 read."""
    path = folder.parent / "data" / "part-00-00000.npy"
    tokens = np.fromfile(path, dtype="<u2")
    tokens[54 * 128] ^= 1
    tokens.tofile(path)


def swapped_files(folder: Path) -> None:
    first, second = (folder.parent / "data" / f"part-0{n}-00000.npy" for n in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def two_more_bytes(folder: Path) -> None:
    with (folder.parent / "data" / "part-02-00000.npy").open("ab") as file:
        file.write(b"\0\0")


def other_indices(folder: Path) -> None:
    (path,) = (folder / "work").glob("global_indices*")
    path.write_bytes(path.read_bytes()[::-1])


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "a changed token": (one_token, "step 1 of main: the instances are those .*: the token files are wrong"),
    "swapped files": (swapped_files, "was trained on other files: its dataset fingerprint"),
    "a file of another size": (two_more_bytes, "was trained on other files: its dataset fingerprint"),
    "other global indices": (other_indices, "the trainer's own order, is not what the rule gives for epoch 1"),
    "another seed": (
        lambda f: change_config(f, "data_loader", seed=1),
        "of epoch 1 with seed 34521; by the config step 0 .* with seed 1",
    ),
    "another batch in the record": (
        lambda f: change_record(f, lambda line: line["index"].reverse()),
        r"step 1 of main read instances .95, 134.* by the trainer's record, .54, 145.*: the order is wrong",
    ),
    "another hash in the record": (
        lambda f: change_record(f, lambda line: line.update(input_ids_i64_sha256="00" * 32)),
        "the token files are wrong",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_data_that_are_not_the_runs_are_a_mismatch(what: str, core_copy: Path, workspace: Workspace) -> None:
    change, said = WRONG[what]
    change(core_copy)

    with pytest.raises(OrderMismatch, match=said):
        add(core_copy, workspace=workspace)
    assert_nothing_left(workspace)


def native_token(folder: Path, run: Run) -> None:
    content = bytearray(run.files[0].path.read_bytes())
    content[100] ^= 1
    run.files[0].path.write_bytes(content)


def native_order(folder: Path, run: Run) -> None:
    path = folder / "order" / "epoch-1.npy"
    np.save(path, np.load(path)[::-1])


def native_record(folder: Path, run: Run) -> None:
    path = sorted((folder / "consumed").iterdir())[1]
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    rows[0]["instances"].reverse()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)


def native_files_gone(folder: Path, run: Run) -> None:
    run.files[1].path.unlink()


def native_steps(folder: Path, run: Run) -> None:
    write_run(replace(run, segments=(replace(run.segments[0], first_position=8, num_steps=13),)), folder)


NATIVE: dict[str, tuple[Callable[[Path, Run], None], type[ForensicsError], str]] = {
    "a changed token": (native_token, CorruptFile, "text-0.bin is not the token file that run.toml of tiny names"),
    "another order": (native_order, CorruptFile, "epoch-1.npy is not the order that run.toml of tiny names"),
    "another record": (native_record, OrderMismatch, "step 6 of tiny read instances .*: the order is wrong"),
    "no token file": (native_files_gone, MissingFile, "text-1.bin is not there"),
    "other segments": (native_steps, OrderMismatch, "step 1 of tiny read instances .*: the order is wrong"),
}


@pytest.mark.parametrize("what", NATIVE)
def test_a_native_run_is_checked_against_what_it_states(what: str, tiny_copy: Path, workspace: Workspace) -> None:
    change, error, said = NATIVE[what]
    change(tiny_copy, read_run(tiny_copy))

    with pytest.raises(error, match=said):
        add(tiny_copy, workspace=workspace)
    assert_nothing_left(workspace)


def test_what_was_added_can_be_added_again_after_a_failure(core_copy: Path, workspace: Workspace) -> None:
    one_token(core_copy)
    with pytest.raises(OrderMismatch):
        add(core_copy, workspace=workspace)
    one_token(core_copy)

    assert add(core_copy, workspace=workspace).trust.proved == ((1, 25),)
