"""What a pack of a run holds: its record, tables, order, findings and card; token files and checkpoints by budget.

A run that failed, or of which nothing but a log is at hand, is packed like any other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import ForensicsError, UnknownOrder
from data_index.files import MAX_JSON_BYTES, canonical_json, parse_json, read_limited, require_file, require_sha256
from data_index.finding_files import read_finding_file
from data_index.kinds import KINDS, conform
from data_index.orders import epoch_order
from data_index.pack_file import Content, content_bytes
from data_index.packed_run import ARRAY_FOLDERS, VERBATIM, portable_table
from data_index.pieces import ARRAYS
from data_index.run import Order, OrderTrust, Run, TokenFile
from data_index.run_check import LINES
from data_index.run_file import drop_none
from data_index.seal import check_named_hash
from data_index.sources.native import read_table
from data_index.workspace import Workspace, read_current
from forensics.finding import Finding
from forensics.pack_budget import Contents
from forensics.packed_checkpoints import offer_checkpoints
from forensics.page_sections import Section, page_of, sections_html
from forensics.run_card import card_table, failure_of, findings_of
from forensics.run_page import run_sections

# The log and what was found in it are in every pack. Then come those that most questions stand on, then the smallest.
ALWAYS = ("metrics", "checkpoints", "spikes", "audit")
FIRST_KINDS = (*ALWAYS, "evaluations", "probes", "masks", "consumed", "documents")
PIECE_KINDS = ("metrics", "consumed")  # of forks, written as they go
MAX_VERBATIM_BYTES = 4 * 2**20
_HASH = re.compile(r"[0-9a-f]{16}\Z")

Progress = Callable[[str], None]


def contents_of_run(
    workspace: Workspace, run: Run, *, budget: int, tokens: bool, making: Path | None, progress: Progress
) -> Contents:
    """
    Args:
        making: a folder for what has to be computed; None: nothing is, and sizes are estimated.
    """
    contents = Contents(budget=budget)
    failure, findings = failure_of(workspace, run), findings_of(workspace, run.name)
    progress("record, findings, picture")
    card = tomli_bytes(card_table(workspace, run, failure, findings))
    contents.put("card", {"card.toml": card})
    if findings:
        contents.put("findings", _findings(workspace, findings))
    if own := _verbatim(workspace, run) | _tokenizer(run):
        contents.put("config and tokenizer", own)
    told, order = _order(contents, run)
    contents.put("record", {"run.toml": tomli_bytes(portable_table(told, told.order)), **order})
    page = sections_html(run_sections(workspace, run, failure, findings))  # pictures take most of the time
    contents.put("page", {"index.html": page_of(f"Run {run.name}", page).encode()})
    progress("tables")
    contents.put("names of tables", {"tables.json": canonical_json(_offer_tables(contents, workspace, run))})
    _offer_tokens(contents, run, tokens)
    progress("checkpoints")
    offer_checkpoints(contents, workspace, run, failure.events, making)
    left_out = Section(title="What is not in this pack", rows=_rows_left_out(contents), lines=_all_in(contents))
    contents.files["index.html"] = page_of(f"Run {run.name}", page + sections_html([left_out])).encode()
    return contents


def tomli_bytes(table: Mapping[str, Any]) -> bytes:
    import tomli_w

    return tomli_w.dumps(drop_none(table)).encode()


def _rows_left_out(contents: Contents) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("part", "num_bytes", "why")} for row in contents.left_out]


def _all_in(contents: Contents) -> list[str]:
    return [] if contents.left_out else ["nothing: all of it is here"]


def _findings(workspace: Workspace, findings: Iterable[Finding]) -> dict[str, Content]:
    return {f"findings/{f.name}.json": read_finding_file(workspace, f.name)[0] for f in findings}


def _verbatim(workspace: Workspace, run: Run) -> dict[str, Content]:
    """The trainer's own config, as `add` kept it, and the edits of a fork."""
    texts = {}
    for path in sorted(workspace.home(run.name).glob("*")):
        named = VERBATIM.match(path.name) and path.name not in ("current.json", "seal.json", "run.toml", "card.toml")
        if named and path.is_file() and path.stat().st_size < MAX_VERBATIM_BYTES:
            texts[path.name] = read_limited(path, MAX_VERBATIM_BYTES).decode(errors="replace")
    texts.pop("tokenizer.json", None)
    return {"verbatim.json": canonical_json(texts)} if texts else {}


def _tokenizer(run: Run) -> dict[str, Content]:
    try:
        if run.tokenizer is not None:
            parse_json(read_limited(run.tokenizer, MAX_JSON_BYTES), run.tokenizer)
            require_sha256(run.tokenizer, run.tokenizer_sha256)
            return {"tokenizer.json": run.tokenizer}
    except ForensicsError:  # it is gone, another, or no JSON; the run's record keeps its hash
        pass
    return {}


# --- the order -------------------------------------------------------------------------------------------------------


def _order(contents: Contents, run: Run) -> tuple[Run, dict[str, Content]]:
    """The run as it can be told in the pack, and the files of its order: recorded ones, or none where a rule tells."""
    if not run.segments:
        return run, {}
    try:
        order, files = _order_files(run)
        files |= _piece_files(run)
        size = sum(map(content_bytes, files.values()))
        if not contents.fits(size):
            raise UnknownOrder(f"it has {size:,} bytes, more than is left of the budget")
        return replace(run, order=order), files
    except ForensicsError as error:
        contents.leave_out("order", None, str(error))
        missing = f"its order, which is not in the pack ({error})"
        facts = dict(run.facts) | {"last_step": str(run.last_step)}
        trust = OrderTrust(level="unknown", witness="nothing", missing=missing)
        told = replace(
            run, segments=(), pieces=None, files=() if run.pieces else run.files, order=Order(rule="unknown")
        )
        return replace(told, trust=trust, facts=facts), {}


def _order_files(run: Run) -> tuple[Order, dict[str, Content]]:
    named = {name: entry for name, entry in run.order.parameters.items() if _names_file(entry)}
    if run.order.rule != "file" and not named:
        return run.order, {}  # the rule and its seeds give it anywhere
    files: dict[str, Content] = {}
    parameters: dict[str, Any] = {}
    for epoch in run.epochs:
        path = f"order/epoch-{epoch}.npy"
        if run.order.rule == "file":
            entry = run.order.parameters[f"epoch_{epoch}"]
            epoch_order(run, epoch)  # held against its hash
            files[path] = run.source / entry["path"]
            parameters[f"epoch_{epoch}"] = {"path": path, "sha256": entry["sha256"]}
        else:
            files[path] = array_bytes(epoch_order(run, epoch).astype(np.uint64))
            parameters[f"epoch_{epoch}"] = {"path": path, "sha256": sha256_of(files[path])}
    return Order(rule="file", parameters=parameters), files


def _names_file(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "path" in entry


def sha256_of(content: Content) -> str:
    import hashlib

    assert isinstance(content, bytes)
    return hashlib.sha256(content).hexdigest()


def array_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _piece_files(run: Run) -> dict[str, Content]:
    """How instances are put together, and where lines of token files begin: the index and the reader stand on it."""
    files: dict[str, Content] = {}
    if run.pieces is not None:
        files |= {f"pieces/{name}.npy": run.pieces.path / f"{name}.npy" for name in ARRAYS}
    files |= {f"lines/{n:05d}.npy": file.lines for n, file in enumerate(run.files) if file.lines is not None}
    for path in files.values():
        content_bytes(path)
    return files


# --- tables ----------------------------------------------------------------------------------------------------------


def _offer_tables(contents: Contents, workspace: Workspace, run: Run) -> dict[str, list[str]]:
    """Put learned tables into a pack as far as they fit, a kind as a whole; returns kind -> names of those that are."""
    home, packed = workspace.home(run.name), {}
    found: dict[str, dict[str, Content]] = {}
    for kind in sorted({*read_current(home), *PIECE_KINDS}):
        if kind in KINDS and (paths := workspace.learned_files(home, kind)):
            found[kind] = _tables(kind, paths)
    sizes = {kind: sum(map(content_bytes, files.values())) for kind, files in found.items()}
    first = [kind for kind in FIRST_KINDS if kind in found]
    for kind in [*first, *sorted(found.keys() - set(first), key=lambda kind: (sizes[kind], kind))]:
        take = contents.put if kind in ALWAYS else contents.offer
        if take(f"tables: {kind}", {f"tables/{kind}/{name}.parquet": table for name, table in found[kind].items()}):
            packed[kind] = list(found[kind])
    return packed


def _tables(kind: str, paths: list[Path]) -> dict[str, Content]:
    """Files named by their content as they are; pieces of a run that was written here as one table."""
    if all(_HASH.match(path.stem) for path in paths):
        for path in paths:
            check_named_hash(path)
        return {path.stem: path for path in paths}
    import pyarrow

    tables = [conform(table, kind, path) for path in paths if (table := read_table(path)) is not None]
    content = table_bytes(pyarrow.concat_tables(tables))
    return {sha256_of(content)[:16]: content}


def table_bytes(table: Any) -> bytes:
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


# --- token files -----------------------------------------------------------------------------------------------------


def _offer_tokens(contents: Contents, run: Run, wanted: bool) -> None:
    local = {
        folder: [(n, file) for n, file in enumerate(files) if isinstance(file.path, Path)]
        for folder, files in (("tokens", run.files), ("heldout", run.heldout))
    }
    every = [file for files in local.values() for _, file in files]
    if served := len(run.files) + len(run.heldout) - len(every):
        contents.leave_out(f"{served} token files on servers", None, "their addresses are in the pack")
    if not every:
        return
    size = sum(file.num_bytes for file in every)
    if not wanted:
        contents.leave_out(f"{len(every)} token files", size, "not asked for (--tokens); their hashes are in run.toml")
        return
    try:
        files = {path: content for folder, found in local.items() for path, content in _token_files(folder, found)}
    except ForensicsError as error:
        contents.leave_out(f"{len(every)} token files", size, str(error))
        return
    contents.offer(f"{len(every)} token files", files)


def _token_files(folder: str, files: Iterable[tuple[int, TokenFile]]) -> Iterable[tuple[str, Content]]:
    """Each as an array with a header before it, which `open` takes away again; label masks beside them."""
    assert folder in ARRAY_FOLDERS
    for number, file in files:
        dtype = "uint8" if file.dtype == LINES else file.dtype
        whole = file.num_bytes % np.dtype(dtype).itemsize == 0
        require_file(file.on_disk)
        yield f"{folder}/{number:05d}.npy", (_header(dtype if whole else "uint8", file.num_bytes), file.on_disk)
        if file.label_mask is not None:
            yield f"masks/{number:05d}.npy", (_header("bool", require_file(file.label_mask)), file.label_mask)


def _header(dtype: str, num_bytes: int) -> bytes:
    """What stands before raw numbers to make them an .npy file."""
    out, kind = io.BytesIO(), np.dtype(dtype).newbyteorder("<")
    shape = (num_bytes // kind.itemsize,)
    np.lib.format.write_array_header_1_0(
        out, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    )
    return out.getvalue()
