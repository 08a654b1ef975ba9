"""Is a run sound? The local part of the audit: files, hashes, order, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_index.dcp import read_dcp_metadata
from data_index.errors import ForensicsError
from data_index.files import BLOCK_BYTES, read_json_object, sha256_of_blocks, sha256_of_file
from data_index.neox_checkpoint import read_counts
from data_index.olmo_checkpoint import read_trainer_state
from data_index.orders import epoch_order
from data_index.pieces import read_pieces
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace

Row = dict[str, Any]


def audit(
    run: str,
    *,
    deep: bool = False,
    workspace: Workspace | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Check every artifact of a run.

    Args:
        deep: also read every token file and every tensor, and compare hashes.
    Returns:
        Rows of `artifact, step, check, result, detail`; result is "ok", "failed" or "not known".
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    rows: list[Row] = []
    for check in (_index_rows, _order_rows, _piece_rows, _token_rows, _checkpoint_rows):
        for row in check(workspace, record, deep):
            progress(f"{row['artifact']}: {row['check']} {row['result']}")
            rows.append(row)
    return rows


def _row(artifact: str, check: str, error: str | None, *, step: int | None = None, ok: str = "") -> Row:
    result = "ok" if error is None else "failed"
    return {"artifact": artifact, "step": step, "check": check, "result": result, "detail": error or ok}


def _unknown(artifact: str, check: str, why: str, step: int | None = None) -> Row:
    return {"artifact": artifact, "step": step, "check": check, "result": "not known", "detail": why}


def _index_rows(workspace: Workspace, run: Run, deep: bool) -> Iterator[Row]:
    from data_index.store import count_readings

    try:
        found = count_readings(workspace, run)
        expected = sum(s.num_steps * s.instances_per_batch for s in run.segments)
        wrong = None if found == expected else f"holds {found} readings; the segments say {expected}"
        yield _row("index.duckdb", "readings", wrong, ok=f"{expected:,} readings")
    except ForensicsError as error:
        yield _row("index.duckdb", "opens", str(error))


def _order_rows(workspace: Workspace, run: Run, deep: bool) -> Iterator[Row]:
    yield _row("order", "trust", None, ok=str(run.trust))
    for epoch in run.epochs:
        try:
            order = epoch_order(run, epoch)
            yield _row(f"order of epoch {epoch}", "computed", None, ok=f"{len(order):,} positions")
        except ForensicsError as error:
            yield _row(f"order of epoch {epoch}", "computed", str(error))


def _piece_rows(workspace: Workspace, run: Run, deep: bool) -> Iterator[Row]:
    if run.pieces is None:
        return
    try:
        pieces = read_pieces(run.pieces, verify=True)
        yield _row("pieces", "content", None, ok=f"{pieces.num_instances:,} instances of {len(pieces.file):,} pieces")
    except ForensicsError as error:
        yield _row("pieces", "content", str(error))


def _token_rows(workspace: Workspace, run: Run, deep: bool) -> Iterator[Row]:
    rows = workspace.learned(workspace.home(run.name), "block_hashes")
    known = {(row["file"], row["block"]): row["sha256"] for row in rows}
    for file in (*run.files, *run.heldout):
        if not file.path.exists():
            yield _row(file.name, "present", f"{file.path} is not there")
            continue
        size = file.path.stat().st_size
        wrong = None if size == file.num_bytes else f"{size:,} bytes instead of {file.num_bytes:,}"
        yield _row(file.name, "size", wrong, ok=f"{size:,} bytes")
        if wrong or not deep:
            continue
        changed = []
        for block, sha256 in enumerate(sha256_of_blocks(file.path)):
            if known.get((file.name, block), sha256) != sha256:
                changed.append(block)
        if not any(name == file.name for name, _ in known):
            yield _unknown(file.name, "blocks", "never hashed before; nothing to compare with")
        else:
            where = ", ".join(f"{b} (bytes {b * BLOCK_BYTES:,}..)" for b in changed)
            yield _row(file.name, "blocks", f"changed: block {where}" if changed else None, ok="all as first hashed")


def _checkpoint_rows(workspace: Workspace, run: Run, deep: bool) -> Iterator[Row]:
    for checkpoint in workspace.checkpoints(run):
        name = f"checkpoint {checkpoint.step}"
        issues = "; ".join(checkpoint.issues) or None
        yield _row(name, "states", issues, step=checkpoint.step, ok=", ".join(checkpoint.states))
        try:
            yield from _LAYOUT_ROWS.get(checkpoint.layout, _tensor_rows)(checkpoint, name, deep)
        except ForensicsError as error:
            yield _row(name, "reads", str(error), step=checkpoint.step)


def _native_rows(checkpoint: Checkpoint, name: str, deep: bool) -> Iterator[Row]:
    state = read_json_object(checkpoint.location / "state.json")
    wrong = None if state.get("step") == checkpoint.step else f"state.json says step {state.get('step')}"
    yield _row(name, "step", wrong, step=checkpoint.step)
    if not deep:
        return
    from replay.weights import content_hash, read_safetensors

    for file, key in (("model.safetensors", "weights_sha256"), ("optimizer.safetensors", "optimizer_sha256")):
        actual = content_hash(read_safetensors(checkpoint.location / file))
        wrong = (
            None if actual == state.get(key) else f"content hash {actual[:12]}… instead of {str(state.get(key))[:12]}…"
        )
        yield _row(f"{name} {file}", "content", wrong, step=checkpoint.step, ok=f"sha256 {actual[:12]}…")


def _dcp_rows(checkpoint: Checkpoint, name: str, deep: bool) -> Iterator[Row]:
    entries = read_dcp_metadata(checkpoint.location / "model_and_optim")
    missing = sorted({str(p.path) for e in entries.values() for p in e.pieces if not p.path.exists()})
    wrong = f"{missing[0]} is not there" if missing else None
    yield _row(name, "pieces", wrong, step=checkpoint.step, ok=f"{len(entries):,} entries")
    if wrong or not deep:
        return
    from replay.weights import read_dcp_tensor

    for entry in entries.values():
        if entry.dtype is not None:
            read_dcp_tensor(entry)
    config = checkpoint.location / "config.json"
    yield _row(name, "tensors", None, step=checkpoint.step, ok="all read")
    yield _unknown(f"{name} weights", "content", f"the trainer states no hash (config {sha256_of_file(config)[:12]}…)")


def _tensor_rows(checkpoint: Checkpoint, name: str, deep: bool) -> Iterator[Row]:
    """Layouts whose files state no hash: the trainer's own word for the step, and whether every tensor reads."""
    if "trainer" in checkpoint.states:
        said = (
            read_counts(checkpoint.location).step
            if checkpoint.layout == "neox"
            else read_trainer_state(checkpoint.location)["global_step"]
        )
        wrong = None if said == checkpoint.step else f"the trainer's state says step {said}"
        yield _row(name, "step", wrong, step=checkpoint.step)
    if not deep:
        return
    from replay.weights import content_hash, read_optimizer, read_weights

    if "weights" in checkpoint.states:
        weights = read_weights(checkpoint)
        detail = f"{len(weights)} tensors read, sha256 {content_hash(weights)[:12]}…; the trainer states none"
        yield _row(f"{name} weights", "tensors", None, step=checkpoint.step, ok=detail)
    if "optimizer" in checkpoint.states:
        moments = read_optimizer(checkpoint)
        odd = [moment for moment in ("exp_avg", "exp_avg_sq") if set(moments[moment]) - set(weights)]
        wrong = f"{odd[0]} has parameters that the weights do not have" if odd else None
        yield _row(f"{name} optimizer", "tensors", wrong, step=checkpoint.step, ok=f"{len(moments['exp_avg'])} moments")


_LAYOUT_ROWS: Mapping[str, Callable[[Checkpoint, str, bool], Iterator[Row]]] = {
    "native": _native_rows,
    "olmo_core": _dcp_rows,
}
