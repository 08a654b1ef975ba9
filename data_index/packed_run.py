"""A run inside a pack: its record without places of the sender's machine, and the run that a pack is opened to.

    run.toml                   the record; local files are named as they will lie in the home
    tables.json                kind -> learned tables in force, by the beginning of their hash
    tables/<kind>/<hash>.parquet
    order/epoch-<e>.npy        where the order is a recorded one; else its rule and parameters stand in run.toml
    pieces/*.npy  lines/*.npy  masks/*.npy
    tokens/<n>.npy  heldout/<n>.npy  tokenizer.json                     where they were packed
    checkpoints/step<N>/       model.safetensors, optimizer.safetensors, state.json
    verbatim.json              the trainer's own config files, by name
    card.toml  findings/*.json  index.html                              for people

The opened run is a native run folder that is also its home, as forks are; its index is built anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import RefusedPack, RunExists
from data_index.files import (
    atomic_folder,
    exclusive_lock,
    parse_json,
    remove_dead_siblings,
    require_free_space,
    require_sha256,
    write_bytes,
)
from data_index.index import build_index
from data_index.kinds import KINDS, conform
from data_index.pack_reading import Pack
from data_index.pieces import ARRAYS
from data_index.registration import said_of
from data_index.run import Order, OrderTrust, Run, TokenFile
from data_index.run_check import LINES
from data_index.run_file import drop_none, parse_run, path_text, read_run, run_to_table, write_run
from data_index.seal import write_seal
from data_index.sources.native import NO_RECORD, read_table
from data_index.witness import hash_token_files, prove_consumed
from data_index.workspace import Workspace, put_in_force, valid_name

Progress = Callable[[str], None]

BASE = Path("/pack")  # where a packed record says that its files lie
INDEX_BYTES_PER_INSTANCE = 24
ARRAY_FOLDERS = ("tokens", "heldout", "masks", "lines")
_FILES = (
    r"run\.toml|card\.toml|tables\.json|verbatim\.json|tokenizer\.json|index\.html|findings/[^/]+\.json"
    rf"|order/epoch-\d+\.npy|pieces/(?:{'|'.join(ARRAYS)})\.npy|(?:{'|'.join(ARRAY_FOLDERS)})/\d{{5}}\.npy"
    r"|tables/[a-z_]+/[0-9a-f]{16}\.parquet"
    r"|checkpoints/step\d{1,18}/(?:model\.safetensors|optimizer\.safetensors|state\.json)"
)
_FILE = re.compile(rf"(?:{_FILES})\Z")
VERBATIM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(?:ya?ml|json|toml|txt)\Z")


def portable_table(run: Run, order: Order) -> dict[str, Any]:
    """The TOML form of a run for a pack: no path of this machine in it, and no parent.

    Args:
        order: how its order is told in the pack.
    """
    facts = {name: text for name, text in run.facts.items() if not str(text).startswith(("/", "~"))}
    if run.parent is not None:
        facts["parent"] = f"{run.parent[0]} at step {run.parent[1]}"
    told = _at(replace(run, layout="native", parent=None, facts=facts, order=order), BASE)
    table: dict[str, Any] = drop_none(run_to_table(told, BASE))
    return table


def _at(run: Run, base: Path) -> Run:
    """The run with all of its local files where they lie in an opened pack whose home is `base`."""
    return replace(
        run,
        source=base,
        files=_files_at(run.files, base, "tokens"),
        heldout=_files_at(run.heldout, base, "heldout"),
        tokenizer=base / "tokenizer.json" if run.tokenizer is not None else None,
        pieces=replace(run.pieces, path=base / "pieces") if run.pieces is not None else None,
    )


def _files_at(files: Iterable[TokenFile], base: Path, folder: str) -> tuple[TokenFile, ...]:
    return tuple(_file_at(file, base, folder, number) for number, file in enumerate(files))


def _file_at(file: TokenFile, base: Path, folder: str, number: int) -> TokenFile:
    if not isinstance(file.path, Path):
        return file
    ending = "jsonl" if file.dtype == LINES else "bin"
    at = base / folder / f"{number:05d}.{ending}"
    mask = base / "masks" / f"{number:05d}.bin" if file.label_mask else None
    return replace(file, path=at, label_mask=mask, lines=base / "lines" / f"{number:05d}.npy" if file.lines else None)


# --- opening ---------------------------------------------------------------------------------------------------------


def register_packed(pack: Pack, name: str, workspace: Workspace, progress: Progress) -> Run:
    """Put a packed run in force under a name, its index built from the packed record.

    Raises:
        RunExists
        RefusedPack, CorruptFile, OrderMismatch: the record is none, or contradicts what is packed with it.
        DiskFull
    """
    content = pack.read("run.toml")
    stated = parse_run(content, BASE, workspace.cache, f"run.toml in {pack.path}")
    _require_inside(pack, stated)
    tables = _tables_in_force(pack)
    verbatim = _verbatim(pack)
    home = workspace.folder / "runs" / valid_name(name)
    _require_new(workspace, name)
    size = sum(file.num_bytes for file in pack.files.values())
    require_free_space(workspace.folder, size + INDEX_BYTES_PER_INSTANCE * stated.num_instances, f"opening {pack.path}")
    workspace.create()
    with exclusive_lock(home.with_name(f".{name}.lock"), f"adding {name}"):
        _require_new(workspace, name)
        remove_dead_siblings(home)
        with atomic_folder(home) as building, said_of(building, home):
            run = replace(parse_run(content, building, workspace.cache, "run.toml in the pack"), name=name)
            run = replace(run, facts=dict(run.facts) | {"pack": f"{pack.name}, sha256 {pack.sha256}"})
            _unpack(pack, run, building)
            for file, text in verbatim.items():
                write_bytes(building / file, text.encode())
            run = _proved(run, pack, tables, building, progress)
            progress("building the index")
            build_index(_at_home(run, building, home), building / "index.duckdb", progress)
            put_in_force(building, {kind: [building / path for path in paths] for kind, paths in tables.items()})
            write_run(run, building)
            read_run(building)  # what could not be read again must not be put in force
            write_seal(building, without=("checkpoints", "tokens", "heldout"))
    return read_run(home, workspace.cache)


def _require_new(workspace: Workspace, name: str) -> None:
    if any((workspace.folder / kind / name).exists() for kind in ("runs", "forks")):
        raise RunExists(
            f"{name} is registered already: open this one under another name with --name, or take the other away with "
            f"forensics remove {name}"
        )


def _require_inside(pack: Pack, run: Run) -> None:
    """Nothing but files of the pack, and addresses that are fetched from over https when they are asked for."""
    if strange := [path for path in pack.files if not _FILE.match(path)]:
        raise RefusedPack(f"{pack.path} is refused: it holds {strange[0]}, which no run is made of")
    if run.layout != "native" or run.parent is not None or run != _at(run, BASE):
        raise RefusedPack(f"{pack.path} is refused: its run.toml names files outside of the pack")
    for entry in run.order.parameters.values():
        named = entry.get("path") if isinstance(entry, Mapping) else None
        if (named is not None or run.order.rule == "file") and named not in pack.below("order"):
            raise RefusedPack(f"{pack.path} is refused: its run.toml names an order that is not in the pack")
    places = [file.path for file in (*run.files, *run.heldout) if not isinstance(file.path, Path)]
    if not all(_is_served(path_text(place, BASE)) for place in places):
        raise RefusedPack(f"{pack.path} is refused: its run.toml names token files at an address that is not https")
    for kind, files in (("tokens", run.files), ("heldout", run.heldout)):
        packed = {path for path in pack.below(kind)}
        local = {f"{kind}/{n:05d}.npy" for n, file in enumerate(files) if isinstance(file.path, Path)}
        if packed - local or (packed and packed != local):
            raise RefusedPack(f"{pack.path} is refused: its {kind} are not those that its run.toml names")


def _tables_in_force(pack: Pack) -> dict[str, list[str]]:
    """Kind -> files in the home; held against what the pack has."""
    named = parse_json(pack.read("tables.json"), f"tables.json in {pack.path}")
    if not isinstance(named, dict) or not all(isinstance(names, list) for names in named.values()):
        raise RefusedPack(f"{pack.path} is refused: its tables.json names no tables by kind")
    if unknown := [kind for kind in named if kind not in KINDS]:
        raise RefusedPack(f"{pack.path} is refused: {unknown[0][:40]!r} is no kind of table that this toolkit knows")
    paths = [f"tables/{kind}/{name}.parquet" for kind, names in named.items() for name in names]
    if sorted(paths) != sorted(pack.below("tables")) or len(set(paths)) != len(paths):
        raise RefusedPack(f"{pack.path} is refused: its tables are not those that its tables.json names")
    if wrong := [path for path in paths if pack.files[path].sha256[:16] != Path(path).stem]:
        raise RefusedPack(f"{pack.path} is refused: {wrong[0]} is not named by its content")
    return {kind: [f"{kind}/{name}.parquet" for name in names] for kind, names in named.items()}


def _verbatim(pack: Pack) -> dict[str, str]:
    if "verbatim.json" not in pack.files:
        return {}
    found = parse_json(pack.read("verbatim.json"), f"verbatim.json in {pack.path}")
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise RefusedPack(f"{pack.path} is refused: its verbatim.json holds no texts")
    taken = {"current.json", "seal.json", "run.toml", "card.toml", "tokenizer.json"}
    if wrong := [name for name in found if not VERBATIM.match(name) or name in taken]:
        raise RefusedPack(f"{pack.path} is refused: {wrong[0][:80]!r} cannot name a config")
    return found


def _unpack(pack: Pack, run: Run, building: Path) -> None:
    """Every file to its place; token files and masks without the header that made them arrays."""
    for path, packed in pack.files.items():
        folder, _, rest = path.partition("/")
        if folder in ("index.html", "run.toml", "tables.json", "verbatim.json", "findings"):
            continue
        if folder == "tables":
            pack.unpack(path, building / rest)
        elif folder in ("tokens", "heldout", "masks"):
            file = (run.heldout if folder == "heldout" else run.files)[int(rest[:5])]
            target = file.label_mask if folder == "masks" else file.on_disk
            if target is None:
                raise RefusedPack(f"{pack.path} is refused: {path} is no file of its run.toml")
            raw = file.num_bytes if folder != "masks" else file.num_bytes // np.dtype(file.dtype).itemsize
            if not 0 < packed.num_bytes - raw < 2**16:
                raise RefusedPack(f"{pack.path} is refused: {path} is not as large as its run.toml says")
            pack.unpack(path, target, skip_bytes=packed.num_bytes - raw)
        else:
            pack.unpack(path, building / path)


def _at_home(run: Run, building: Path, home: Path) -> Run:
    """Token files named where they will lie; the order is read where it lies now."""

    def moved(file: TokenFile) -> TokenFile:
        return replace(file, path=home / file.path.relative_to(building)) if isinstance(file.path, Path) else file

    return replace(run, files=tuple(map(moved, run.files)), heldout=tuple(map(moved, run.heldout)))


def _proved(run: Run, pack: Pack, tables: Mapping[str, Iterable[str]], building: Path, progress: Progress) -> Run:
    """The run with a trust that rests on what was packed, not on what its sender says of it."""
    consumed: list[dict[str, Any]] = []
    for kind, paths in tables.items():
        for path in paths:
            table = conform(read_table(building / path), kind, f"{path} in {pack.path}")
            if kind == "consumed":
                consumed += table.to_pylist()
            if kind == "checkpoints" and not all(_is_served(row["location"]) for row in table.to_pylist()):
                raise RefusedPack(f"{pack.path} is refused: it names checkpoints at an address that is not https")
    if run.tokenizer is not None and run.tokenizer.is_file():
        require_sha256(run.tokenizer, run.tokenizer_sha256)
    run = replace(run, trust=_believed(run.trust))
    local = [file.path for file in run.files if isinstance(file.path, Path)]
    if not run.segments:
        return run
    if not local or not all(path.is_file() for path in local):
        rows = [row | {"input_ids_sha256": None} for row in consumed]
        return prove_consumed(run, rows)
    progress("hashing token files")
    if pack.below("heldout") or not run.heldout:
        hash_token_files(run)
    progress("checking the trainer's record of batches")
    return prove_consumed(run, consumed)


def _is_served(location: object) -> bool:
    return isinstance(location, str) and location.startswith(("hub:", "https://"))


def _believed(stated: OrderTrust) -> OrderTrust:
    """What a pack says of its order proves nothing; its record of batches is compared, or is missing."""
    if stated.level == "exact":
        return OrderTrust(level="derived", witness=f"as its sender saw it: {stated.witness}", missing=NO_RECORD)
    rest = [part for part in stated.witness.split("; ") if not part.startswith("the trainer's record of")]
    witness, level = "; ".join(rest) or "what its sender says", stated.level
    return OrderTrust(level=level, witness=witness, missing=stated.missing or NO_RECORD)


def missing_of(run: Run) -> str:
    """What of an opened run its pack did not hold, for people; nothing: it is whole."""
    local = [file for file in (*run.files, *run.heldout) if isinstance(file.path, Path)]
    lacking = [file.name for file in local if not file.on_disk.is_file()]
    if not lacking:
        return ""
    first = f"{', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}"
    return (
        f"{len(lacking)} token files of {run.name} are not in the pack ({first}): what reads text or takes steps again "
        f"needs them in {run.source / 'tokens'}, named by their number; run.toml there has their hashes"
    )
