"""What a model answered about its tokens, kept so that an interrupted verification goes on.

One Parquet file, written anew every half minute: a row for each pair of token and prompt. Its name is made of all that
the answers depend on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import ForensicsError
from data_index.files import require_file, write_parquet

Answer = tuple[np.ndarray, np.ndarray]  # probabilities fp32 [3], generated ids int64 [3]


class KeptAnswers:
    """By prompt and token; what is not whole in the file counts as not asked.

    Attributes:
        notes: what was to be said of the model that answered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[tuple[str, int], Answer] = {}
        self.notes: tuple[str, ...] = ()
        self._find()

    def add(self, prompt: str, tokens: np.ndarray, probabilities: np.ndarray, generated: np.ndarray) -> None:
        for token, chances, ids in zip(tokens.tolist(), probabilities, generated, strict=True):
            self.answers[prompt, token] = chances, ids

    def save(self) -> None:
        """
        Raises:
            DiskFull, NotWritable
        """
        import pyarrow

        rows: list[dict[str, Any]] = [
            {"prompt": prompt, "token_id": token, "probabilities": chances.tolist(), "generated": ids.tolist()}
            for (prompt, token), (chances, ids) in self.answers.items()
        ]
        table = pyarrow.Table.from_pylist(rows, schema=_schema())
        write_parquet(self.path, table.replace_schema_metadata({"notes": json.dumps(self.notes)}))

    def _find(self) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            require_file(self.path)
            table = pyarrow.parquet.read_table(self.path, partitioning=None)
            self.notes = tuple(map(str, json.loads((table.schema.metadata or {}).get(b"notes", b"[]"))))
            table = table.cast(_schema())
        except (ForensicsError, OSError, ValueError, TypeError, pyarrow.ArrowException):
            return
        for row in table.to_pylist():
            chances = np.array(row["probabilities"], dtype=np.float32)
            ids = np.array(row["generated"], dtype=np.int64)
            if row["prompt"] is not None and chances.shape == ids.shape == (3,):
                self.answers[row["prompt"], row["token_id"]] = chances, ids


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema(
        [
            ("prompt", pyarrow.string()),
            ("token_id", pyarrow.int64()),
            ("probabilities", pyarrow.list_(pyarrow.float32())),
            ("generated", pyarrow.list_(pyarrow.int64())),
        ]
    )
