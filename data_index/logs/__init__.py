"""Logs of training loops: which format a file has, told by its content, and its points, every one of them.

json-lines   one object a line                          csv          a row a step; also TSV, charts of W&B
parquet      a row a step                               tensorboard  event files, or a folder of them
wandb        a local run: run-<id>.wandb or its folder  megatron     the text that Megatron and GPT-NeoX print
lm-eval      evaluations of checkpoints                 (data_index/evaluations.py)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data_index.errors import CorruptFile, ForensicsError, UnknownLayout
from data_index.files import open_existing, parse_json

if TYPE_CHECKING:
    from data_index.logs.points import Notes, Points, Wanted

LM_EVAL = "lm-eval"
_READERS = {
    "json-lines": "json_lines",
    "csv": "csv_history",
    "parquet": "parquet_history",
    "tensorboard": "tensorboard",
    "wandb": "wandb_run",
    "megatron": "megatron_text",
}
FORMATS = (*_READERS, LM_EVAL)
_HEAD_BYTES = 2**16
_SEARCHED_BYTES = 64 * 2**20
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def read_log(path: Path, format: str, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """The points of a log, those of one metric in the order of the log.

    Raises:
        MissingFile, UnsafeFile, CorruptFile
    """
    reader = importlib.import_module(f"data_index.logs.{_READERS[format]}")
    return reader.read(path, wanted, notes)


def recognise(path: Path, step_field: str | None = None) -> str:
    """The format of a log, by its content.

    Args:
        step_field: what the log calls its step, where it is not one of the usual names.
    Raises:
        MissingFile, UnsafeFile
        UnknownLayout: none that is known.
    """
    if path.is_dir():
        return _of_folder(path)
    with open_existing(path) as file:
        head: bytes = file.read(_HEAD_BYTES)
    if not head.strip():
        raise CorruptFile(f"{path} is empty")
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise UnknownLayout(f"{path} is packed with {name}: unpack it first")
    found = _by_mark(head) or (_of_text(path, head, step_field) if b"\0" not in head else None)
    if found is None:
        raise UnknownLayout(
            f"{path} is no log that is recognised; if it is one of {', '.join(FORMATS)}, say so with --as"
        )
    return found


def _of_folder(folder: Path) -> str:
    for pattern, format in (("*tfevents*", "tensorboard"), ("*.wandb", "wandb"), ("*.json", LM_EVAL)):
        if any(path.is_file() for path in islice(folder.rglob(pattern), 1000)):
            return format
    raise UnknownLayout(f"{folder} holds no event files of TensorBoard, no run of W&B and no result files of lm-eval")


def _by_mark(head: bytes) -> str | None:
    from data_index.logs import tensorboard, wandb_run

    if head.startswith(wandb_run.MAGIC):
        return "wandb"
    if head.startswith(b"PAR1"):
        return "parquet"
    return "tensorboard" if tensorboard.is_event_file(head) else None


def _of_text(path: Path, head: bytes, step_field: str | None) -> str | None:
    from data_index.logs.csv_history import header_of
    from data_index.logs.megatron_text import ITERATION
    from data_index.logs.points import Wanted, step_field_of

    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _of_json(path)
    try:
        names, _ = header_of(path)
        if len(names) > 1 and step_field_of(names, Wanted(step_field=step_field), str(path)):
            return "csv"
    except CorruptFile:
        pass  # no table with a step
    with open_existing(path) as file:
        return "megatron" if ITERATION.search(file.read(_SEARCHED_BYTES)) else None


def _of_json(path: Path) -> str:
    """A file that is one object, over one line or many, is a result file; else each line is an object."""
    from data_index.logs.json_lines import lines_of

    first = next(line for _, line in lines_of(path))
    try:
        content = parse_json(first, path)
    except ForensicsError:
        return LM_EVAL if first.strip() == b"{" or b'"results"' in first else "json-lines"
    return LM_EVAL if isinstance(content, dict) and isinstance(content.get("results"), dict) else "json-lines"


def require_format(format: str) -> str:
    """
    Raises:
        UnknownLayout
    """
    if format not in FORMATS:
        raise UnknownLayout(f"--as takes {', '.join(FORMATS)}, not {format!r}")
    return format
