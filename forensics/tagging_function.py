"""A user's own function that tags documents: found by its name, asked about one document after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from data_index.errors import FailedFunction
from data_index.learned_tags import MAX_TAG_CHARACTERS, is_tag
from data_index.run import Run
from data_index.text import decode
from data_index.tokens import TokenReader
from forensics.users_functions import takes

# (text, rows of the document) -> its tags, each once, in the order given.
Tagger = Callable[[str, Sequence[dict[str, Any]]], list[str]]


def tagger_of(function: Callable[..., Any], name: str) -> Tagger:
    """A function of one argument is given the text; one of two also the document's row (a dict)."""
    takes_row = takes(function, "", {})

    def tags(text: str, rows: Sequence[dict[str, Any]]) -> list[str]:
        document = rows[0]["document_id"]
        try:
            said = function(text, dict(rows[0])) if takes_row else function(text)
            given = [] if said is None else [said] if isinstance(said, str) else list(said)
        except Exception as error:  # the user's code
            raise FailedFunction(f"{name} failed on document {document}: {error!r}") from error
        for tag in given:
            if not is_tag(tag):
                raise FailedFunction(
                    f"{name} gave {tag!r:.100} for document {document}; a tag is text of 1 to {MAX_TAG_CHARACTERS} "
                    "characters, and a function returns one, several, or None"
                )
        return list(dict.fromkeys(given))

    return tags


def text_of_document(run: Run, reader: TokenReader, rows: Iterable[dict[str, Any]]) -> str:
    """The text of a document, its end token left out."""
    files = {file.name: (number, file) for number, file in enumerate((*run.files, *run.heldout))}
    there = [(*files[row["file"]], row["start"], row["end"]) for row in rows if row["file"] in files]
    placed = sorted(there, key=lambda piece: (piece[0], piece[2]))
    parts = [reader.read(file, start, end).astype(np.int64) for _, file, start, end in placed]
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return decode(run, ids[:-1] if len(ids) and ids[-1] == run.eos_token_id else ids)
