"""A user's own function that tags documents: found by its name, asked about one document after another."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import FailedFunction
from data_index.files import sha256_of_file
from data_index.learned_tags import MAX_TAG_CHARACTERS, is_tag
from data_index.run import Run
from data_index.text import decode
from data_index.tokens import TokenReader

# (text, rows of the document) -> its tags, each once, in the order given.
Tagger = Callable[[str, Sequence[dict[str, Any]]], list[str]]


def find_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; the module may lie in the current folder.

    Raises:
        FailedFunction
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise FailedFunction(f"{name!r} names no function; write module:function, such as my_tags:language")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's code
        raise FailedFunction(f"{module}, named by --fn {name}, cannot be imported: {error!r}") from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise FailedFunction(f"{found.__name__} has no function {attribute!r}, which --fn {name} names")
    return function


def identity_of(function: Callable[..., Any]) -> str:
    """A hash of the file that a function stands in, so that tags of an edited one are not mixed with older ones."""
    source = inspect.getsourcefile(inspect.unwrap(function)) if inspect.isroutine(function) else None
    if source is not None and Path(source).is_file():
        return sha256_of_file(Path(source))
    return hashlib.sha256(repr(function).encode()).hexdigest()


def tagger_of(function: Callable[..., Any], name: str) -> Tagger:
    """A function of one argument is given the text; one of two also the document's row (a dict)."""
    takes_row = _takes_two(function)

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


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind("", {})
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        return False
    return True


def text_of_document(run: Run, reader: TokenReader, rows: Iterable[dict[str, Any]]) -> str:
    """The text of a document, its end token left out."""
    files = {file.name: (number, file) for number, file in enumerate((*run.files, *run.heldout))}
    there = [(*files[row["file"]], row["start"], row["end"]) for row in rows if row["file"] in files]
    placed = sorted(there, key=lambda piece: (piece[0], piece[2]))
    parts = [reader.read(file, start, end).astype(np.int64) for _, file, start, end in placed]
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return decode(run, ids[:-1] if len(ids) and ids[-1] == run.eos_token_id else ids)
