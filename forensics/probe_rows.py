"""Rows of tokens that probes look at, with the documents and tags in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_index.errors import MissingFile

if TYPE_CHECKING:
    from probes.probe import TokenRows

MOST_TAGS = 64
# (document id, row, first token of it there, last token + 1)
Span = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeRows:
    """
    Attributes:
        source: `heldout`, `run`, or the file's name.
        token_ids: int64 of shape [rows, length]. scored: bool of that shape; None: all.
        spans: pieces of documents in the rows. tags: of documents, by their id.
        description: for people and for the record.
    """

    source: str
    token_ids: np.ndarray
    scored: np.ndarray | None
    spans: Sequence[Span]
    tags: Mapping[int, Sequence[str]]
    description: str

    @property
    def sha256(self) -> str:
        """Of the tokens, and of which of them are scored."""
        digest = hashlib.sha256(np.array(self.token_ids.shape, "<i8").tobytes())
        digest.update(self.token_ids.astype("<i8").tobytes())
        digest.update(b"" if self.scored is None else self.scored.tobytes())
        return digest.hexdigest()

    @property
    def clusters(self) -> np.ndarray:
        """Of each row, int64 [rows]: a document whose rows are not independent, where a row is all of one; else the row
        itself."""
        found = -1 - np.arange(len(self.token_ids), dtype=np.int64)
        inside: dict[int, set[int]] = {}
        for document, row, _, _ in self.spans:
            inside.setdefault(row, set()).add(document)
        for row, documents in inside.items():
            if len(documents) == 1:
                found[row] = documents.pop()
        return found

    def for_model(self) -> TokenRows:
        from probes.probe import TokenRows

        return TokenRows(token_ids=self.token_ids, scored=self.scored, clusters=self.clusters)

    def masks_by_tag(self) -> dict[str, np.ndarray]:
        """Tokens of documents that carry a tag, bool of shape [rows, length]; of the tags with most tokens, by name.

        Raises:
            MissingFile: no document of these rows carries one.
        """
        masks: dict[str, np.ndarray] = {}
        for document, row, start, stop in self.spans:
            for tag in self.tags.get(document, ()):
                mask = masks.setdefault(tag, np.zeros(self.token_ids.shape, dtype=bool))
                mask[row, start:stop] = True
        if not masks:
            raise MissingFile(
                f"no document of these rows ({self.description}) carries a tag: forensics tag RUN makes tags, a .jsonl "
                'file states them ("tag": …)'
            )
        most = sorted(masks, key=lambda tag: (-int(masks[tag].sum()), tag))[:MOST_TAGS]
        return {tag: masks[tag] for tag in sorted(most)}
