"""`add`: read a run's folder, prove its order, build its index, and put it in the workspace in one rename."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError, OutOfMemory, RunExists, UnsafeFile
from data_index.files import atomic_folder, exclusive_lock, remove_dead_siblings, write_bytes, write_npy
from data_index.index import build_index
from data_index.kinds import table_of_rows
from data_index.pieces import write_pieces
from data_index.run import Run
from data_index.run_check import check_run
from data_index.run_file import read_run, write_run
from data_index.sources import Imported, layout_named, recognise
from data_index.sources.trainer_record import read_record
from data_index.witness import hash_token_files, prove_consumed
from data_index.workspace import Workspace, learn, valid_name


def add(
    source: Path | str,
    *,
    name: str | None = None,
    data: Path | None = None,
    metrics: Path | None = None,
    layout: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workspace: Workspace | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Run:
    """Register and index a run.

    Args:
        source: the run's folder, in a published layout.
        name: what to call it; default: what the folder says.
        data: where its token files are, when not where the run says.
        metrics: a trainer's record (JSON lines) that does not lie in the folder.
        settings: what the trainer was told and no file of the folder says, by the trainer's own names.
    Raises:
        MissingFile, UnknownLayout, RunExists, CorruptFile, OrderMismatch, UnsupportedRecipe, DiskFull
    """
    workspace = workspace or Workspace()
    folder = _resolved(Path(source))
    progress(f"reading {folder}")
    imported = _read(layout or recognise(folder), folder, name, data, settings or {})
    run, tables = imported.run, dict(imported.tables)
    if metrics is not None:
        tables |= read_record(metrics)
    workspace.create()
    home = workspace.folder / "runs" / valid_name(run.name)
    with exclusive_lock(workspace.folder / "runs" / f".{run.name}.lock", f"adding {run.name}"):
        if home.exists() or (workspace.folder / "forks" / run.name).exists():
            raise RunExists(
                f"{run.name} is registered already: give this one another name with --name, or take the other away "
                f"with forensics remove {run.name}"
            )
        remove_dead_siblings(home)
        with atomic_folder(home) as building:
            run = _checked(_write_arrays(imported, building), folder)
            progress("hashing token files")
            blocks = hash_token_files(run)
            progress("checking the trainer's record of batches")
            run = prove_consumed(run, tables["consumed"].to_pylist()) if "consumed" in tables else run
            for file, content in imported.verbatim.items():
                write_bytes(building / file, content)
            build_index(run, building / "index.duckdb", progress)
            for kind, table in tables.items():
                learn(building, kind, table)
            if blocks:
                learn(building, "block_hashes", table_of_rows("block_hashes", blocks, folder))
            write_run(replace(run, source=run.source.absolute()), building)
            read_run(building)  # what could not be read again must not be put in force
    return read_run(home)


def _resolved(source: Path) -> Path:
    try:
        return source.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsafeFile(f"{str(source)[:200]} leads nowhere ({error})") from error


def _read(layout: str, folder: Path, name: str | None, data: Path | None, settings: Mapping[str, Any]) -> Imported:
    """What a layout's reader says; what it did not foresee in a damaged or hostile folder is stated too."""
    try:
        return layout_named(layout).read(folder, name, data, settings)
    except ForensicsError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"reading {folder} as {layout} needs more memory than there is: {error}") from error
    except UNFORESEEN as error:
        raise CorruptFile(f"{folder} cannot be read as a run of layout {layout}: {error!r}") from error


def _checked(run: Run, folder: Path) -> Run:
    try:
        return check_run(run)
    except ValueError as error:
        raise CorruptFile(f"{folder} describes a run that cannot be: {error}") from error


def _write_arrays(imported: Imported, building: Path) -> Run:
    """Keep what was computed once for the run (pieces, line offsets) in its home; returns the run that names it."""
    run = imported.run
    if imported.pieces is not None:
        run = replace(run, pieces=write_pieces(imported.pieces, building / "pieces"))
    files = []
    for number, file in enumerate(run.files):
        if file.name in imported.lines:
            path = building / "lines" / f"{number:05d}.npy"
            write_npy(path, imported.lines[file.name])
            file = replace(file, lines=path)
        # Instances cut from files come after those in pieces.
        files.append(
            replace(file, first_instance=file.first_instance + (run.pieces.num_instances if run.pieces else 0))
        )
    return replace(run, files=tuple(files))
