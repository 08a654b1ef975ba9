"""The sample run's text: what ships with Python itself, as documents with provenance and tags. Nothing is downloaded.

Parts that an installation leaves out (documentation topics, licence texts) are left out here too. The choice and order
of documents depend on their names alone, so the same Python gives the same corpus.
"""

from __future__ import annotations

import hashlib
import marshal
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


def by_hash(documents: Iterable[SourceDocument]) -> list[SourceDocument]:
    """An order that mixes packages and depends on names only."""
    return sorted(documents, key=lambda document: hashlib.sha256(document.source.encode()).hexdigest())


def take(documents: Iterable[SourceDocument], characters: int, longest: int) -> Iterator[SourceDocument]:
    """Documents, each cut to at most `longest` characters, until there are enough characters."""
    taken = 0
    for document in documents:
        if taken >= characters:
            return
        piece = cut(document, longest)
        taken += len(piece.text)
        yield piece


def library_sources() -> list[SourceDocument]:
    """Standard-library modules, tagged with domain and package."""
    root = standard_library()
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.isdisjoint(relative.parts):
            found.append(_from_file(path, relative, "library"))
    return by_hash(document for document in found if len(document.text) > 200)


def character_tables() -> list[SourceDocument]:
    """The decoding tables of the standard library's encodings: one line for each of 256 characters, over and over."""
    root = standard_library()
    found = []
    for path in sorted((root / "encodings").glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        start = text.find("decoding_table = (")
        if start >= 0:
            document = _from_file(path, path.relative_to(root), "library")
            found.append(replace(document, start=start, end=len(text), text=text[start:]))
    return found


def _from_file(path: Path, relative: Path, domain: str) -> SourceDocument:
    text = path.read_text(encoding="utf-8", errors="replace")
    package = relative.parts[0].removesuffix(".py")
    return SourceDocument(
        source=relative.as_posix(), start=0, end=len(text), text=text, tags=(f"domain:{domain}", f"package:{package}")
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
    places = [root / "LICENSE.txt", Path(sys.base_prefix) / "LICENSE.txt", *sorted(root.rglob("LICENSE*"))]
    found: dict[str, SourceDocument] = {}
    for path in places:
        if path.is_file() and "site-packages" not in path.parts and path.name not in found:
            document = _from_file(path, Path(path.name), "licences")
            found[path.name] = replace(document, tags=("domain:licences", "package:licences"))
    return list(found.values())


def binary_as_text(characters: int) -> list[SourceDocument]:
    """Compiled and compressed modules of this Python, read as if they were Latin-1 text: how binary files slip in."""
    documents: list[SourceDocument] = []
    total = 0
    for source in library_sources():
        if total >= characters:
            break
        try:
            code = compile(source.text, source.source, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        content = zlib.compress(marshal.dumps(code), 9).decode("latin-1")
        total += len(content)
        documents.append(
            SourceDocument(source=f"{source.source}c.z", start=0, end=len(content), text=content, tags=source.tags)
        )
    return documents
