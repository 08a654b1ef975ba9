"""run.toml: a run's record as a file that people can read.

Paths inside the run's folder are relative to it, so that a folder can be moved. What no run can be is refused.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, NewerWorkspace, UnsafeFile
from data_index.files import read_limited, require_file, write_toml
from data_index.run import Masking, Order, OrderTrust, Run, Segment, StoredPieces, TokenFile
from data_index.run_check import check_run

if TYPE_CHECKING:
    from data_index.remote.path import Place

RUN_FORMAT_VERSION = 1
MAX_RUN_BYTES = 64 * 2**20
MAX_KEY_PARTS = 200


def _file_table(file: TokenFile, base: Path) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": file.name,
        "path": path_text(file.path, base),
        "dtype": file.dtype,
        "num_bytes": file.num_bytes,
        "first_instance": file.first_instance,
        "num_instances": file.num_instances,
    }
    optional = {
        "sha256": file.sha256,
        "first_token": file.first_token or None,
        "label_mask": path_text(file.label_mask, base) if file.label_mask else None,
        "lines": path_text(file.lines, base) if file.lines else None,
    }
    return table | {key: value for key, value in optional.items() if value is not None}


def path_text(path: Place, base: Path) -> str:
    """Relative inside `base`, so that a run folder can be moved; absolute elsewhere, also where that is an address."""
    if not isinstance(path, Path):
        from data_index.remote.hub import text_of

        return text_of(str(path))
    path, base = path.absolute(), base.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def run_to_table(run: Run, base: Path) -> dict[str, Any]:
    """The TOML form of a run whose run.toml lies in `base`."""
    table: dict[str, Any] = {
        "format": "forensics-run",
        "version": RUN_FORMAT_VERSION,
        "name": run.name,
        "layout": run.layout,
        "source": path_text(run.source, base),
        "sequence_length": run.sequence_length,
        "config_format": run.config_format,
    }
    if run.extra_label:
        table["extra_label"] = True
    if run.pad_token_id is not None:
        table["pad_token_id"] = run.pad_token_id
    if run.pieces is not None:
        table["pieces"] = {
            "path": path_text(run.pieces.path, base),
            "num_instances": run.pieces.num_instances,
            "num_pieces": run.pieces.num_pieces,
            "sha256": run.pieces.sha256,
        }
    if run.masking != Masking():
        table["masking"] = drop_none(
            {
                "repetition": run.masking.repetition,
                "filter_sees_padding": run.masking.filter_sees_padding or None,
                "hidden_token_id": run.masking.hidden_token_id,
            }
        )
    if run.tokenizer is not None:
        table["tokenizer"] = path_text(run.tokenizer, base)
    if run.tokenizer_sha256 is not None:
        table["tokenizer_sha256"] = run.tokenizer_sha256
    if run.eos_token_id is not None:
        table["eos_token_id"] = run.eos_token_id
    if run.parent is not None:
        table["parent"] = {"run": run.parent[0], "step": run.parent[1]}
    table["trust"] = {"level": run.trust.level, "witness": run.trust.witness, "missing": run.trust.missing}
    if run.trust.proved:
        table["trust"]["proved"] = [list(stretch) for stretch in run.trust.proved]
    table["facts"] = dict(run.facts)
    table["environment"] = dict(run.environment)
    table["recipe_overrides"] = dict(run.recipe_overrides)
    table["order"] = {"rule": run.order.rule, "parameters": dict(run.order.parameters)}
    table["config"] = drop_none(run.config)
    table["files"] = [_file_table(file, base) for file in run.files]
    table["heldout"] = [_file_table(file, base) for file in run.heldout]
    table["segments"] = [
        {
            "first_step": s.first_step,
            "num_steps": s.num_steps,
            "epoch": s.epoch,
            "first_position": s.first_position,
            "instances_per_batch": s.instances_per_batch,
            "attempt": s.attempt,
        }
        | ({} if s.loss_denominator is None else {"loss_denominator": s.loss_denominator})
        | ({} if s.outcome == "applied" else {"outcome": s.outcome})
        for s in run.segments
    ]
    return table


def drop_none(value: Any) -> Any:
    """TOML has no null: an absent key means the same in every config we store. In a list it becomes text."""
    if isinstance(value, Mapping):
        return {str(key): drop_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return ["null" if item is None else drop_none(item) for item in value]
    return value


def write_run(run: Run, folder: Path) -> None:
    """
    Raises:
        CorruptFile: the run's config holds what no config is made of.
    """
    try:
        write_toml(folder / "run.toml", run_to_table(run, folder))
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptFile(f"the config of {run.source} cannot be kept as TOML: {error}") from error


def read_run(folder: Path, cache: Path | None = None) -> Run:
    """Parse `folder/run.toml`.

    Args:
        cache: where bytes of files on servers are kept; default: `cache/` beside it.
    Raises:
        MissingFile, CorruptFile, NewerWorkspace
    """
    path = folder / "run.toml"
    require_file(path)
    found = path.stat()
    return _read_run(folder, cache or folder / "cache", (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _read_run(folder: Path, cache: Path, identity: tuple[int, int, int]) -> Run:
    """One for each content, as far as inode, size and time tell: of a run of 1,000 files, parsing takes 50 ms."""
    path = folder / "run.toml"
    return parse_run(read_limited(path, MAX_RUN_BYTES), folder, cache, path)


def parse_toml(content: bytes, source: object) -> dict[str, Any]:
    """
    Raises:
        CorruptFile, UnsafeFile
    """
    # The parser's time grows with the square of the parts of a key.
    if any(line.partition(b"=")[0].count(b".") > MAX_KEY_PARTS for line in content.splitlines()):
        raise UnsafeFile(f"{source} has a key of more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{source} is not TOML: {error}") from error


def parse_run(content: bytes, folder: Path, cache: Path, source: object) -> Run:
    """A run from the bytes of its run.toml, as if that lay in `folder`.

    Raises:
        CorruptFile, UnsafeFile, NewerWorkspace
    """
    table = parse_toml(content, source)
    if table.get("format") != "forensics-run":
        raise CorruptFile(f'{source} does not say format = "forensics-run"')
    version = table.get("version", 0)
    if not isinstance(version, int) or isinstance(version, bool):
        raise CorruptFile(f"{source} states no version")
    if version > RUN_FORMAT_VERSION:
        raise NewerWorkspace(
            f"{source} is version {table['version']}, this toolkit reads up to {RUN_FORMAT_VERSION}: update it"
        )
    try:
        return _run_from_table(table, folder, cache)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CorruptFile(f"{source} lacks or misstates {error}") from error


def _run_from_table(table: Mapping[str, Any], base: Path, cache: Path) -> Run:
    def files(key: str) -> tuple[TokenFile, ...]:
        paths = ("label_mask", "lines")
        return tuple(
            TokenFile(
                **(entry | {name: base / entry[name] for name in paths if name in entry} | _place(entry, base, cache))
            )
            for entry in table.get(key, [])
        )

    pieces, masking = table.get("pieces"), table.get("masking", {})
    parent = table.get("parent")
    segments = tuple(Segment(**entry) for entry in table["segments"])
    if not segments and table["trust"].get("level") != "unknown":
        raise ValueError("segments (there is none)")
    run = Run(
        name=table["name"],
        layout=table["layout"],
        source=base / table["source"],
        sequence_length=int(table["sequence_length"]),
        files=files("files"),
        order=Order(rule=table["order"]["rule"], parameters=table["order"].get("parameters", {})),
        segments=segments,
        trust=_trust(table["trust"]),
        config_format=table["config_format"],
        config=table["config"],
        extra_label=bool(table.get("extra_label", False)),
        pieces=StoredPieces(**(pieces | {"path": base / pieces["path"]})) if pieces else None,
        masking=_masking(masking),
        pad_token_id=table.get("pad_token_id"),
        recipe_overrides=table.get("recipe_overrides", {}),
        tokenizer=base / table["tokenizer"] if "tokenizer" in table else None,
        tokenizer_sha256=table.get("tokenizer_sha256"),
        eos_token_id=table.get("eos_token_id"),
        heldout=files("heldout"),
        parent=(parent["run"], int(parent["step"])) if parent else None,
        environment=table.get("environment", {}),
        facts=table.get("facts", {}),
    )
    return check_run(run)


def _trust(table: Mapping[str, Any]) -> OrderTrust:
    proved = tuple((int(first), int(last)) for first, last in table.get("proved", []))
    return OrderTrust(**(dict(table) | {"proved": proved}))


def _place(entry: Mapping[str, Any], base: Path, cache: Path) -> dict[str, Any]:
    if not is_url(entry["path"]):
        return {"path": base / entry["path"]}
    from data_index.remote.hub import url_of
    from data_index.remote.path import RemotePath

    return {
        "path": RemotePath(url_of(entry["path"]), cache, num_bytes=int(entry["num_bytes"]), sha256=entry.get("sha256"))
    }


def is_url(text: str) -> bool:
    return text.startswith(("https://", "http://", "hub:"))


def _masking(table: Mapping[str, Any]) -> Masking:
    repetition = table.get("repetition")
    if repetition is not None:
        longest, shortest, most = (int(number) for number in repetition)
        repetition = (longest, shortest, most)
    return Masking(
        repetition=repetition,
        filter_sees_padding=bool(table.get("filter_sees_padding", False)),
        hidden_token_id=table.get("hidden_token_id"),
    )
