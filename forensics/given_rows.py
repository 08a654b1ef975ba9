"""Rows that an edit brings along in a file: lines of text or of token ids, which become instances of the fork."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, InvalidEdit, MissingFile
from data_index.run import Run
from replay.intervention import Row


@dataclass(slots=True, kw_only=True)
class Inserted:
    """Rows that come from files; they become instances after the run's own."""

    first_instance: int
    rows: list[np.ndarray] = field(default_factory=list)
    masks: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def add(self, token_ids: np.ndarray, num_padding: int) -> Row:
        instance = self.first_instance + len(self.rows)
        self.rows.append(token_ids)
        length = len(token_ids)
        return Row(instance, ((length - num_padding, length),) if num_padding else ())


def json_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise MissingFile(f"{path}, named by with=, is not there") from error
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON lines: {error}") from error


def token_row(line: Any, number: int, path: Path, run: Run) -> tuple[np.ndarray, int]:
    """One row from a line {"token_ids": […]} or {"text": "…"}; shorter ones are padded with the end token.

    Returns:
        token ids, int64 of shape [sequence_length], and how many of them are padding (kept out of the loss).
    Raises:
        InvalidEdit: it does not fit one row.
    """
    if isinstance(line, dict) and isinstance(line.get("text"), str):
        from data_index.text import encode

        ids = encode(run, line["text"])
    elif isinstance(line, dict) and isinstance(line.get("token_ids"), list):
        ids = [int(token) for token in line["token_ids"]]
    else:
        raise InvalidEdit(f'{path} line {number} is neither {{"text": …}} nor {{"token_ids": […]}}')
    length = run.sequence_length
    if not 2 <= len(ids) <= length:
        raise InvalidEdit(
            f"{path} line {number} has {len(ids)} tokens; a row of {run.name} takes 2 to {length}: split it"
        )
    vocabulary = run.largest_token_id
    if min(ids) < 0 or max(ids) > vocabulary:
        raise InvalidEdit(f"{path} line {number}: token ids must lie in 0..{vocabulary}")
    padding = length - len(ids)
    if padding and run.eos_token_id is None:
        raise InvalidEdit(
            f"{path} line {number} is short of a row by {padding} tokens, and {run.name} has no end token"
        )
    return np.array(ids + [run.eos_token_id] * padding, dtype=np.int64), padding
