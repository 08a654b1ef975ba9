"""Files of a run: are they there, of the size and content that is stated or was first seen, and do they open?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from data_index.artifacts import Artifact
from data_index.dcp import read_dcp_metadata
from data_index.errors import UNFORESEEN, ForensicsError
from data_index.files import BLOCK_BYTES, read_json_object
from data_index.kinds import table_of_rows
from data_index.neox_checkpoint import read_counts
from data_index.olmo_checkpoint import read_trainer_state
from data_index.orders import epoch_order
from data_index.pickles import read_torch_archive
from data_index.pieces import read_pieces
from data_index.run import Checkpoint, Run
from data_index.seal import SEAL, broken_seals, read_seal
from data_index.tokens import hashed_files
from data_index.witness import block_rows
from data_index.workspace import Workspace, learn
from forensics.audit_rows import Result, Row, judged, row
from forensics.weight_samples import Reading

# What reading a damaged file may raise: stated, or not foreseen by its reader.
READING = (ForensicsError, *UNFORESEEN)
# Without --deep, files are hashed up to this size, where all checkpoints together are not more than that.
SMALL_FILE_BYTES, SMALL_RUN_BYTES = 64 * 2**20, 8 * 2**30


def reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ForensicsError) else f"cannot be read: {error!r}"


def availability_rows(artifacts: Sequence[Artifact]) -> Iterator[Row]:
    """One row for each file, with its size and the day it was looked for."""
    for artifact in artifacts:
        yield judged(
            artifact.name,
            "available",
            artifact.error,
            step=artifact.step,
            num_bytes=artifact.num_bytes,
            checked_at=artifact.checked_at,
        )


# --- the run's own ---------------------------------------------------------------------------------------------------


def index_rows(workspace: Workspace, run: Run) -> Iterator[Row]:
    from data_index.batch_queries import count_readings

    try:
        found = count_readings(workspace, run)
        expected = sum(s.num_steps * s.instances_per_batch for s in run.segments)
        wrong = None if found == expected else f"holds {found} readings; the segments say {expected}"
        yield judged("index.duckdb", "readings", wrong, ok=f"{expected:,} readings")
    except ForensicsError as error:
        yield judged("index.duckdb", "opens", str(error))


def seal_rows(home: Path, *, deep: bool, say: Callable[[str], None]) -> Iterator[Row]:
    """What was written when the run was added, against the hashes taken then; all of it with `deep`."""
    try:
        seal = read_seal(home)
    except ForensicsError as error:
        yield judged(SEAL, "sealed", str(error))
        return
    if seal is None:
        again = f"{home.name} was added by an earlier version, which sealed nothing: add it again"
        yield row(SEAL, "sealed", "not known", again)
        return
    small = None if deep else SMALL_FILE_BYTES
    broken = list(broken_seals(home, small, say))
    for name, wrong in broken:
        yield judged(name, "sealed", wrong)
    if not broken:
        yield judged(SEAL, "sealed", None, ok=f"{len(seal)} files{'' if deep else ', those that are small,'} as sealed")


def order_rows(run: Run) -> Iterator[Row]:
    yield row("order", "trust", "not known" if run.trust.level == "unknown" else "ok", str(run.trust))
    for epoch in run.epochs:
        try:
            order = epoch_order(run, epoch)
            yield judged(f"order of epoch {epoch}", "computed", None, ok=f"{len(order):,} positions")
        except ForensicsError as error:
            yield judged(f"order of epoch {epoch}", "computed", str(error))


def piece_rows(run: Run) -> Iterator[Row]:
    if run.pieces is None:
        return
    try:
        pieces = read_pieces(run.pieces, verify=True)
        yield judged("pieces", "content", None, ok=f"{pieces.num_instances:,} instances of {len(pieces.file):,} pieces")
    except ForensicsError as error:
        yield judged("pieces", "content", str(error))


def token_rows(
    workspace: Workspace, run: Run, artifacts: Mapping[str, Artifact], *, deep: bool, say: Callable[[str], None]
) -> Iterator[Row]:
    """Sizes of token files; with `deep`, every block against what was first read of it."""
    try:
        rows = workspace.learned(workspace.home(run.name), "block_hashes")
    except ForensicsError as error:
        yield judged("block_hashes", "reads", str(error))
        rows = []
    known = {(entry["file"], entry["block"]): entry["sha256"] for entry in rows}
    for file in (*run.files, *run.heldout):
        there = artifacts[file.name]
        if not there.available:
            yield judged(file.name, "present", f"{file.path} is not there")
            continue
        size = there.num_bytes
        wrong = None if size == file.num_bytes else f"{size:,} bytes instead of {file.num_bytes:,}"
        yield judged(file.name, "size", wrong, ok=f"{size:,} bytes", num_bytes=size)
        if wrong is None and deep and not isinstance(file.path, Path):
            yield row(file.name, "blocks", "not known", "on a server; what is read of it is compared then")
    for name, path in hashed_files(run).items() if deep else ():
        if path.is_file():
            say(f"{name}: reading {path.stat().st_size:,} bytes")
            yield _block_row(workspace, run, name, path, known)


def _block_row(workspace: Workspace, run: Run, name: str, path: Path, known: Mapping[tuple[str, int], str]) -> Row:
    """Every block against what was first read of it; what was never read before is remembered for the next time."""
    found = block_rows({name: path}, "audit")
    unseen = [entry for entry in found if (name, entry["block"]) not in known]
    there = {(name, entry["block"]): entry["sha256"] for entry in found}
    # A block that is gone has changed too.
    changed = sorted(
        block for (file, block), sha256 in known.items() if file == name and there.get((file, block)) != sha256
    )
    if unseen and not changed:
        table = table_of_rows("block_hashes", unseen, run.name)
        learn(workspace.home(run.name), "block_hashes", table, replace_kind=False)
    if changed:
        where = ", ".join(f"{number} (bytes {number * BLOCK_BYTES:,}..)" for number in changed)
        return judged(name, "blocks", f"changed: block {where}")
    if unseen:
        detail = f"{len(found) - len(unseen)} of {len(found)} blocks were hashed before, and are as they were"
        return row(name, "blocks", "not known", f"{detail}; the others are from now on")
    return judged(name, "blocks", None, ok="all as first hashed")


# --- a checkpoint's --------------------------------------------------------------------------------------------------


def checkpoint_rows(checkpoint: Checkpoint) -> Iterator[Row]:
    """The states it holds, the step its own files name, and whether what it holds opens; no tensor is read."""
    name, step = f"checkpoint {checkpoint.step}", checkpoint.step
    yield judged(name, "states", None, step=step, ok=", ".join(checkpoint.states))
    for issue in checkpoint.issues:
        # Someone else's finding: what is wrong with the weights, if anything, the audit finds itself.
        result: Result = "expected" if issue.startswith("expected_equal:") else "not known"
        yield row(name, "known issue", result, issue, step=step)
    if not isinstance(checkpoint.location, Path):
        return
    try:
        yield from _stated_step(checkpoint, name)
        if checkpoint.layout == "olmo_core":
            yield _dcp_row(checkpoint, name)
        elif "optimizer" in checkpoint.states:
            from replay.weights import stored_moments

            moments = stored_moments(checkpoint)
            yield judged(f"{name} optimizer", "opens", None, step=step, ok=", ".join(moments))
    except READING as error:
        yield judged(name, "reads", reason(error), step=step)


def _stated_step(checkpoint: Checkpoint, name: str) -> Iterator[Row]:
    if checkpoint.layout == "native":
        said, source = read_json_object(checkpoint.folder / "state.json").get("step"), "state.json"
    elif "trainer" not in checkpoint.states or checkpoint.layout not in ("neox", "olmo", "olmo_sharded", "olmo_core"):
        return
    elif checkpoint.layout == "olmo_core":
        said, source = read_torch_archive(checkpoint.folder / "train" / "rank0.pt").value["global_step"], "rank0.pt"
    elif checkpoint.layout == "neox":
        said, source = read_counts(checkpoint.folder).step, "the trainer's state"
    else:
        said, source = read_trainer_state(checkpoint.folder)["global_step"], "the trainer's state"
    wrong = None if said == checkpoint.step else f"{source} says step {said}"
    yield judged(name, "step", wrong, step=checkpoint.step)


def _dcp_row(checkpoint: Checkpoint, name: str) -> Row:
    entries = read_dcp_metadata(checkpoint.folder / "model_and_optim")
    missing = sorted({str(p.path) for e in entries.values() for p in e.pieces if not p.path.is_file()})
    wrong = f"{missing[0]} is not there" if missing else None
    return judged(name, "pieces", wrong, step=checkpoint.step, ok=f"{len(entries):,} entries")


def content_rows(checkpoint: Checkpoint, reading: Reading | None) -> Iterator[Row]:
    """Deep: what was read of all weights, and all of the optimizer, against what the checkpoint states of itself."""
    name, step = f"checkpoint {checkpoint.step}", checkpoint.step
    native = checkpoint.layout == "native" and isinstance(checkpoint.location, Path)
    try:
        stated = read_json_object(checkpoint.folder / "state.json") if native else {}
        if reading is not None and reading.weights_sha256 is not None:
            artifact = f"{name} model.safetensors" if native else f"{name} weights"
            yield _content_row(artifact, step, reading.weights_sha256, stated, "weights_sha256", len(reading.shapes))
        if "optimizer" in checkpoint.states and isinstance(checkpoint.location, Path):
            yield from _optimizer_rows(checkpoint, name, stated, reading)
    except READING as error:
        yield judged(name, "reads", reason(error), step=step)


def _content_row(artifact: str, step: int, actual: str, stated: Mapping[str, object], key: str, count: int) -> Row:
    if not stated:
        return judged(artifact, "tensors", None, step=step, ok=f"{count} read, sha256 {actual[:12]}…; none is stated")
    if key not in stated:
        return judged(artifact, "content", f"state.json states no {key}", step=step)
    wrong = None if stated[key] == actual else f"content hash {actual[:12]}… instead of {str(stated[key])[:12]}…"
    return judged(artifact, "content", wrong, step=step, ok=f"sha256 {actual[:12]}…, as stated")


def _optimizer_rows(
    checkpoint: Checkpoint, name: str, stated: Mapping[str, object], reading: Reading | None
) -> Iterator[Row]:
    from replay.weights import content_hash, read_optimizer, read_safetensors

    if stated:
        actual = content_hash(read_safetensors(checkpoint.folder / "optimizer.safetensors"))
        artifact = f"{name} optimizer.safetensors"
        yield _content_row(artifact, checkpoint.step, actual, stated, "optimizer_sha256", 0)
        return
    moments = read_optimizer(checkpoint)
    known = set(reading.shapes) if reading else set()
    odd = [moment for moment in ("exp_avg", "exp_avg_sq") if known and set(moments[moment]) - known]
    wrong = f"{odd[0]} has parameters that the weights do not have" if odd else None
    yield judged(
        f"{name} optimizer", "tensors", wrong, step=checkpoint.step, ok=f"{len(moments['exp_avg'])} moments read"
    )


# --- hashes of files -------------------------------------------------------------------------------------------------


def is_small(artifacts: Mapping[int, Sequence[Artifact]]) -> bool:
    """Are all checkpoints of a run together few enough bytes to hash their files at every audit?"""
    return sum(a.num_bytes or 0 for of_step in artifacts.values() for a in of_step) <= SMALL_RUN_BYTES


def can_be_hashed(artifact: Artifact, *, deep: bool) -> bool:
    if not isinstance(artifact.place, Path):  # fetched whole only if asked for, and if there is a hash to compare with
        return artifact.available and deep and artifact.holds_weights and artifact.sha256_stated is not None
    return artifact.available and (deep or (artifact.num_bytes or 0) <= SMALL_FILE_BYTES)


def hash_row(artifact: Artifact, actual: str, first_seen: Mapping[tuple[str, int | None], tuple[str, str]]) -> Row:
    """A file's content against what its publisher states, else against what was seen first.

    Args:
        first_seen: (name, step) -> (sha256, day).
    """
    seen = first_seen.get((artifact.name, artifact.step))
    stated, wrong = artifact.sha256_stated, None
    if stated is not None:
        ok = f"sha256 {actual[:12]}…, as its publisher states"
        if actual != stated:
            wrong = f"sha256 {actual[:12]}… instead of {stated[:12]}…, which its publisher states"
    elif seen is None:
        ok = f"sha256 {actual[:12]}…, seen for the first time; none is stated, so later audits compare with this"
    else:
        ok = f"as first seen {seen[1]}"
        if actual != seen[0]:
            wrong = f"sha256 {actual[:12]}… instead of {seen[0][:12]}…, first seen {seen[1]}: it was changed since"
    return judged(artifact.name, "hash", wrong, ok=ok, step=artifact.step, num_bytes=artifact.num_bytes)
