"""`add`: read a run's folder, prove its order, build its index, and put it in the workspace in one rename."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_index.errors import (
    CorruptFile,
    ForensicsError,
    RunExists,
    UnknownDocument,
    UnknownLayout,
    UnsafeFile,
)
from data_index.files import (
    atomic_folder,
    exclusive_lock,
    remove_dead_siblings,
    require_sha256,
    sha256_of_file,
    write_bytes,
    write_npy,
)
from data_index.index import build_index, index_key
from data_index.kinds import table_of_rows
from data_index.pieces import write_pieces
from data_index.provenance_witness import prove_provenance
from data_index.run import Run
from data_index.run_check import check_run
from data_index.run_file import read_run, write_run
from data_index.seal import write_seal
from data_index.sources import Imported, read_layout, recognise
from data_index.sources.trainer_record import read_record
from data_index.tokens import TokenReader
from data_index.witness import HASH_AT_ADD_BYTES, hash_token_files, prove_consumed
from data_index.workspace import Workspace, learn, valid_name

Progress = Callable[[str], None]
# The run and what was learned of it, by kind -> the run with its trust.
Prove = Callable[[Run, Mapping[str, Any]], Run]

# Indexes from this size on take more than some ten seconds to build.
RESUMABLE_INSTANCES = 2**25


def add(
    source: Path | str,
    *,
    name: str | None = None,
    data: Path | str | None = None,
    metrics: Path | None = None,
    layout: str | None = None,
    settings: Mapping[str, Any] | None = None,
    revisions: str | None = None,
    listing: Path | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda message: None,
    prove: Prove | None = None,
) -> Run:
    """Register and index a run.

    Args:
        source: the run's folder, in a published layout; a manifest (a .toml file); a repository of the hub (ORG/NAME);
            or a released run by its name in the catalog.
        name: what to call it; default: what the source says.
        data: where its token files are, when not where the run says: a folder, or hub:datasets/ORG/NAME.
        metrics: a trainer's record (JSON lines) that does not lie in the folder.
        settings: what the trainer was told and no file says, by the trainer's own names.
        revisions: a regular expression with a group `step`: how a repository names its checkpoints.
        listing: an official list (CSV) of checkpoints that lie elsewhere, with all their states.
        prove: a witness that needs more than this package has; asked last, before anything is put in force.
    Raises:
        MissingFile, UnknownLayout, RunExists, CorruptFile, OrderMismatch, UnsupportedRecipe, DiskFull
        UnknownRun: the source is nothing of these.
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    workspace = workspace or Workspace()
    settings = settings or {}
    if _is_local(source):
        if revisions is not None or listing is not None:
            raise UnknownLayout("--revisions and --listing are for repositories; the steps of a folder are its folders")
        folder = _resolved(Path(source))
        progress(f"reading {folder}")
        imported = read_layout(layout or recognise(folder), folder, name, Path(data) if data else None, settings)
        return register(imported.run.name, lambda building: imported, metrics, workspace, progress, prove)
    if str(source).endswith(".toml") and (data is not None or revisions is not None or listing is not None):
        raise UnknownLayout(f"--data, --revisions and --listing are for repositories; {source} says all that itself")
    from data_index.published.manifest import is_manifest, read_manifest
    from data_index.published.record import read_published
    from data_index.published.repository import gather

    published = (
        read_manifest(Path(source), settings=settings, cache=workspace.cache, progress=progress)
        if is_manifest(source)
        else gather(
            str(source),
            data=_as_data(data),
            settings=settings,
            revisions=revisions,
            listing=listing,
            cache=workspace.cache,
            progress=progress,
        )
    )
    called = name or published.name
    if published.missing:
        progress(f"what the steps of {called} read is not known: {published.missing}")
    return register(
        called,
        lambda building: read_published(published, called, building, layout),
        metrics,
        workspace,
        progress,
        prove,
    )


def _is_local(source: Path | str) -> bool:
    """Is it meant as a folder? What is there counts, then how it is written."""
    if Path(source).is_dir():
        return True
    text = str(source)
    return not text.endswith(".toml") and (isinstance(source, Path) or text[:1] in ("/", ".", "~"))


def register(
    name: str,
    build: Callable[[Path], Imported],
    metrics: Path | None,
    workspace: Workspace,
    progress: Progress,
    prove: Prove | None = None,
) -> Run:
    """Put a run in force under its name; `build` reads it, and may keep files in the home that is being built.

    Raises:
        RunExists
    """
    workspace.create()
    home = workspace.folder / "runs" / valid_name(name)
    with exclusive_lock(workspace.folder / "runs" / f".{name}.lock", f"adding {name}"):
        if home.exists() or (workspace.folder / "forks" / name).exists():
            raise RunExists(
                f"{name} is registered already: give this one another name with --name, or take the other away "
                f"with forensics remove {name}"
            )
        remove_dead_siblings(home)
        with atomic_folder(home) as building, said_of(building, home):
            imported = build(building)
            given = read_record(metrics) if metrics is not None else {}
            tables = dict(imported.tables) | given
            run = _checked(_with_tokenizer(_write_arrays(imported, building)), imported.run.source)
            progress("hashing token files")
            blocks = hash_token_files(run)
            run = prove_provenance(run)
            progress("checking the trainer's record of batches")
            records = [found["consumed"] for found in (imported.tables, given) if "consumed" in found]
            run = prove_consumed(run, *(table.to_pylist() for table in (*imported.records, *records)))
            run = prove(run, tables) if prove is not None else run
            for file, content in imported.verbatim.items():
                write_bytes(building / file, content)
            build_index(run, building / "index.duckdb", progress, partial=_partial_index(run, workspace))
            for kind, table in tables.items():
                learn(building, kind, table)
            if "documents" not in tables:
                _learn_documents(run, building, progress)
            if blocks:
                learn(building, "block_hashes", table_of_rows("block_hashes", blocks, run.source))
            write_run(replace(run, source=run.source.absolute()), building)
            read_run(building)  # what could not be read again must not be put in force
            write_seal(building)
    return read_run(home, workspace.cache)


def _partial_index(run: Run, workspace: Workspace) -> Path | None:
    """Where a large index is kept until it is whole, so that `add` goes on with it after an interruption."""
    if run.num_instances < RESUMABLE_INSTANCES:
        return None
    return workspace.cache / "indexes" / f"{index_key(run)}.duckdb"


def _learn_documents(run: Run, building: Path, progress: Progress) -> None:
    """Find the documents of token files that are small enough to be read at `add`, where anything says where they end.

    Raises:
        CorruptFile: the provenance beside a token file is damaged, or of another file.
    """
    from data_index.learned_documents import default_rule, learn_documents

    on_disk = all(isinstance(file.path, Path) for file in run.files)
    if not run.files or not on_disk or sum(file.num_bytes for file in run.files) > HASH_AT_ADD_BYTES:
        return
    try:
        rule = default_rule(run, progress)
    except UnknownDocument:
        return
    count = learn_documents(run, building, rule, TokenReader(run, None))
    progress(f"found {count:,} documents by {rule.described()}")


@contextmanager
def said_of(building: Path, home: Path) -> Iterator[None]:
    """Messages about a home that is being built name it as it will be called."""
    try:
        yield
    except ForensicsError as error:
        if str(building) not in str(error):
            raise
        raise type(error)(str(error).replace(str(building), str(home))) from error


def _with_tokenizer(run: Run) -> Run:
    """From here on it is this tokenizer; what the run itself states of it counts.

    Raises:
        CorruptFile: it is not the one that the run states.
    """
    if run.tokenizer is None or not run.tokenizer.is_file():
        return run
    require_sha256(run.tokenizer, run.tokenizer_sha256)
    return replace(run, tokenizer_sha256=run.tokenizer_sha256 or sha256_of_file(run.tokenizer))


def _as_data(data: Path | str | None) -> Path | str | None:
    return data if data is None or isinstance(data, str) else data.absolute()


def _resolved(source: Path) -> Path:
    try:
        return source.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsafeFile(f"{str(source)[:200]} leads nowhere ({error})") from error


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
        # Instances cut from files come after those in pieces; a native run says so itself.
        before = imported.pieces.num_instances if imported.pieces is not None else 0
        files.append(replace(file, first_instance=file.first_instance + before))
    return replace(run, files=tuple(files))
