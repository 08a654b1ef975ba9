"""The sample run's text: what ships with Python itself, as documents with provenance and tags. Nothing is downloaded.

Parts that an installation leaves out (documentation topics, licence texts) are left out here too. The choice and order
of documents depend on their names alone, so the same Python gives the same corpus.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_index.errors import MissingFile

LEFT_OUT = frozenset(
    {"encodings", "site-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "__pycache__"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDocument:
    """A text with the place it came from; start and end are characters of the decoded source."""

    source: str
    start: int
    end: int
    text: str
    tags: tuple[str, ...]


def standard_library() -> Path:
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "json" / "__init__.py").exists():
        raise MissingFile(f"{folder} holds no standard library sources; the sample run is made from them")
    return folder


def cut(document: SourceDocument, characters: int) -> SourceDocument:
    text = document.text[:characters]
    return replace(document, text=text, end=document.start + len(text))


def hash_of_name(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def by_hash(documents: Iterable[SourceDocument]) -> list[SourceDocument]:
    """An order that mixes packages and depends on names only."""
    return sorted(documents, key=lambda document: hash_of_name(document.source))


def take(documents: Iterable[SourceDocument], characters: int, longest: int) -> Iterator[SourceDocument]:
    """Documents, each cut to at most `longest` characters, until there are enough characters."""
    taken = 0
    for document in documents:
        if taken >= characters:
            return
        piece = cut(document, longest)
        taken += len(piece.text)
        yield piece


def files_below(root: Path, left_out: frozenset[str]) -> Iterator[str]:
    """Files of a folder and its subfolders, relative to it; subfolders with the names left out are not entered."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in left_out]
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in names)


def library_sources() -> Iterator[SourceDocument]:
    """Standard-library modules, tagged with domain and package, in the order of `by_hash`; read as they are taken."""
    root = standard_library()
    found = [name.replace(os.sep, "/") for name in files_below(root, LEFT_OUT) if name.endswith(".py")]
    for source in sorted(found, key=hash_of_name):
        document = _from_file(root / source, source, "library")
        if len(document.text) > 200:
            yield document


def character_tables() -> list[SourceDocument]:
    """The decoding tables of the standard library's encodings: one line for each of 256 characters, over and over."""
    root = standard_library()
    found = []
    for path in sorted((root / "encodings").glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        start = text.find("decoding_table = (")
        if start >= 0:
            document = _from_file(path, path.relative_to(root).as_posix(), "library")
            found.append(replace(document, start=start, end=len(text), text=text[start:]))
    return found


def _from_file(path: Path, source: str, domain: str) -> SourceDocument:
    text = path.read_text(encoding="utf-8", errors="replace")
    package = source.split("/")[0].removesuffix(".py")
    return SourceDocument(
        source=source, start=0, end=len(text), text=text, tags=(f"domain:{domain}", f"package:{package}")
    )


def documentation_topics() -> list[SourceDocument]:
    """The texts behind Python's help() topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    found = [
        SourceDocument(
            source=f"pydoc_data/topics.py#{name}",
            start=0,
            end=len(text),
            text=text,
            tags=("domain:topics", "package:pydoc_data"),
        )
        for name, text in topics.items()
    ]
    return by_hash(found)


def licence_texts() -> list[SourceDocument]:
    """Licence files beside the standard library."""
    root = standard_library()
    below = files_below(root, frozenset({"site-packages"}))
    beside = sorted(root / name for name in below if os.path.basename(name).startswith("LICENSE"))
    places = [root / "LICENSE.txt", Path(sys.base_prefix) / "LICENSE.txt", *beside]
    found: dict[str, SourceDocument] = {}
    for path in places:
        if path.is_file() and path.name not in found:
            document = _from_file(path, path.name, "licences")
            found[path.name] = replace(document, tags=("domain:licences", "package:licences"))
    return list(found.values())


def binary_as_text(characters: int) -> list[SourceDocument]:
    """Compiled and compressed modules of this Python, read as if they were Latin-1 text: how binary files slip in."""
    documents: list[SourceDocument] = []
    total = 0
    for source in library_sources():
        if total >= characters:
            break
        # marshal writes down whether a string is interned, and a path interns its parts: a copy of the name is not.
        name = source.source.encode().decode()
        try:
            code = compile(source.text, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        content = zlib.compress(marshal.dumps(code), 9).decode("latin-1")
        total += len(content)
        documents.append(
            SourceDocument(source=f"{source.source}c.z", start=0, end=len(content), text=content, tags=source.tags)
        )
    return documents
