"""Rows and prompts from files of the user's.

    .txt      one text                     .jsonl   a text a line: {"text": …}, with "tag" or "tags" if it has some
    .npy      token ids, rows or one stream

Texts are tokenized one by one with the run's tokenizer and never run on into one another; what fills up their last row
is not scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile
from data_index.files import read_limited, require_file
from data_index.run import Run
from data_index.text import encode
from forensics.probe_options import ProbeOptions
from forensics.probe_rows import ProbeRows, Span

MAX_FILE_BYTES = 2**30
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def rows_of_file(run: Run, path: Path, options: ProbeOptions) -> ProbeRows:
    """The first rows of it, as many as `options.num_tokens` fill.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    require_file(path)
    length = options.length or run.tokens_per_instance
    if path.suffix == ".npy":
        return _of_npy(path, run, length, options)
    num_rows = max(options.num_tokens // length, 1)
    rows: list[np.ndarray] = []
    kept: list[int] = []  # tokens of each row that are the text's
    spans: list[Span] = []
    tags: dict[int, Sequence[str]] = {}
    for number, (text, own_tags) in enumerate(_texts(path)):
        if len(rows) >= num_rows:
            break
        ids, tags[number] = np.array(encode(run, text), dtype=np.int64), own_tags
        for start in range(0, len(ids), length)[: num_rows - len(rows)]:
            part = ids[start : start + length]
            spans.append((number, len(rows), 0, len(part)))
            kept.append(len(part))
            rows.append(np.pad(part, (0, length - len(part)), constant_values=run.pad_token_id or 0))
    ids = np.stack(rows) if rows else np.empty((0, length), np.int64)
    scored = np.arange(length) < np.array(kept, dtype=np.int64)[:, None] if rows else None
    return ProbeRows(
        source=path.name,
        token_ids=ids,
        scored=None if scored is None or scored.all() else scored,
        spans=spans,
        tags=tags,
        description=f"{len(ids)} rows of {len(tags)} texts of {path.name}",
    )


def _of_npy(path: Path, run: Run, length: int, options: ProbeOptions) -> ProbeRows:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, which fails in many ways
        raise CorruptFile(f"{path} is no .npy file of token ids: {error}") from error
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "several arrays"
        raise CorruptFile(f"{path} holds {found}, not token ids of {run.name} (rows, or one stream)")
    if ids.ndim == 1:
        ids = ids[: len(ids) // length * length].reshape(-1, length)
    ids = ids[: max(options.num_tokens // max(ids.shape[1], 1), 1), :length]
    limit = run.vocabulary_size or 2**31
    if ids.size and not 0 <= ids.min() <= ids.max() < limit:
        raise CorruptFile(
            f"{path} holds ids from {ids.min()} to {ids.max()}; those of {run.name} go from 0 to {limit - 1}"
        )
    ids = ids.astype(np.int64)
    return ProbeRows(
        source=path.name,
        token_ids=ids,
        scored=None,
        spans=(),
        tags={},
        description=f"{len(ids)} rows of {path.name}",
    )


def _texts(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Texts and their tags.

    Raises:
        CorruptFile, UnsafeFile
    """
    try:
        content = read_limited(path, MAX_FILE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix != ".jsonl":
        yield content, (path.stem,)
        return
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            text = said["text"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CorruptFile(f'{path}, line {number}: no JSON object with a "text" ({error!r:.100})') from error
        tags = said.get("tags") or [said[name] for name in ("tag", "domain", "source") if name in said][:1]
        if not _is_text(text) or not isinstance(tags, list) or not all(map(_is_text, tags)):
            raise CorruptFile(f"{path}, line {number}: a text is a string of whole characters, and so is each tag")
        yield text, tags


def _is_text(value: Any) -> bool:
    """JSON can write half a character, which no tokenizer reads and no file keeps."""
    return isinstance(value, str) and not _HALF_CHARACTER.search(value)


def prompts_of(path: Path) -> list[str]:
    """A prompt a line; of .jsonl, the `prompt` (or `text`) of each line.

    Raises:
        MissingFile, CorruptFile
    """
    try:
        lines = [line for line in read_limited(path, MAX_FILE_BYTES).decode("utf-8").split("\n") if line.strip()]
        if path.suffix == ".jsonl":
            said = [json.loads(line) for line in lines]
            lines = [one["prompt"] if "prompt" in one else one["text"] for one in said]
        if not lines or not all(line and _is_text(line) for line in lines):
            raise ValueError("no prompt in it")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{path} holds no prompts, one a line: {error}") from error
    return lines
