"""Text is found in token files however it was tokenized; ids and text turn into each other."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from data_index import token_search as searching
from data_index.batch_queries import reader_of
from data_index.errors import CorruptFile, InvalidRange, MissingFile, UnknownDocument, UnsupportedRecipe
from data_index.text import decode, encode, find_text, find_token, token_bytes
from data_index.workspace import Workspace
from forensics.lookup import where


def bytes_of_files(workspace: Workspace, raw: Any) -> list[tuple[int, bytes, np.ndarray]]:
    """Of each file its first instance, the bytes its tokens stand for, and the instance of every byte."""
    pieces = token_bytes(workspace.run("tiny"))
    found, first = [], 0
    for file in raw.manifest["files"]:
        rows = raw.token_ids[first : first + file["num_instances"]]
        lengths = [sum(len(pieces[token]) for token in row) for row in rows]
        content = b"".join(pieces[token] for token in rows.reshape(-1))
        found.append((first, content, np.repeat(np.arange(first, first + len(rows)), lengths)))
        first += len(rows)
    return found


def holding(files: list[tuple[int, bytes, np.ndarray]], needle: bytes) -> list[int]:
    """Brute force: the instances of every occurrence, overlapping ones too."""
    rows: set[int] = set()
    for _, content, instance_of_byte in files:
        for start in range(len(content) - len(needle) + 1):
            if content.startswith(needle, start):
                rows.update(range(instance_of_byte[start], instance_of_byte[start + len(needle) - 1] + 1))
    return sorted(rows)


def spans_to_find(files: list[tuple[int, bytes, np.ndarray]], count: int) -> list[str]:
    """Random stretches of text, every other one across the border of two instances."""
    generator, found = random.Random(12), []
    while len(found) < count:
        _, content, instance_of_byte = generator.choice(files)
        borders = np.flatnonzero(np.diff(instance_of_byte)) + 1
        middle = int(generator.choice(borders)) if len(found) % 2 else generator.randrange(len(content))
        start = max(middle - generator.randrange(1, 30), 0)
        try:
            text = content[start : middle + generator.randrange(1, 30)].decode()
        except UnicodeDecodeError:  # began or ended inside a character
            continue
        found.append(text)
    return found


@pytest.mark.parametrize("chunk", [None, 100], ids=["one chunk", "chunks of 100 tokens"])
def test_text_is_found_where_brute_force_finds_it(
    chunk: int | None, tiny_shared: Workspace, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk:
        monkeypatch.setattr(searching, "SCAN_TOKENS", chunk)
    run, files = tiny_shared.run("tiny"), bytes_of_files(tiny_shared, raw)
    reader = reader_of(tiny_shared, run)

    for text in spans_to_find(files, 60):
        assert list(find_text(run, reader, text)) == holding(files, text.encode()), text


@pytest.mark.parametrize("chunk", [64, 100])
def test_text_across_two_documents_is_found(
    chunk: int, tiny_shared: Workspace, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end token between them stands for no bytes."""
    monkeypatch.setattr(searching, "SCAN_TOKENS", chunk)
    run, files = tiny_shared.run("tiny"), bytes_of_files(tiny_shared, raw)
    tokens = np.fromfile(raw.folder / raw.manifest["files"][0]["path"], dtype="<u2")
    ends = [int(end) for end in np.flatnonzero(tokens == run.eos_token_id) if 8 < end < len(tokens) - 8]

    assert len(ends) >= 5
    for end in ends:
        text = decode(run, tokens[end - 8 : end]) + decode(run, tokens[end + 1 : end + 9])
        found = list(find_text(run, reader_of(tiny_shared, run), text))
        assert found == holding(files, text.encode())
        assert set(range((end - 8) // 64, (end + 8) // 64 + 1)) <= set(found)


def test_text_that_is_not_there_is_not_found(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")

    assert list(find_text(run, reader_of(tiny_shared, run), "no such words anywhere")) == []
    with pytest.raises(InvalidRange, match="a text to search for has 1 to 262,144 bytes, not 0"):
        find_text(run, reader_of(tiny_shared, run), "")


def test_every_token_is_found_where_numpy_finds_it(
    tiny_shared: Workspace, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SCAN_TOKENS", 1000)
    run = tiny_shared.run("tiny")
    reader = reader_of(tiny_shared, run)

    for token in range(384):
        known = np.flatnonzero((raw.token_ids == token).any(axis=1)).tolist()
        assert list(find_token(run, reader, token)) == known


def test_where_takes_exactly_one_thing_to_look_for(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidRange, match="exactly one of --text, --document, --instance and --token"):
        where("tiny", workspace=tiny_shared)
    with pytest.raises(InvalidRange, match="exactly one of"):
        where("tiny", text="a", token=0, workspace=tiny_shared)
    with pytest.raises(UnknownDocument, match="65536 cannot be a token id of tiny"):
        where("tiny", token=65536, workspace=tiny_shared)


@pytest.mark.parametrize(
    "text", ["", "def main() -> None:\n\treturn", "  two  spaces ", "naïve — Ω 漢字 🙂", "\x00\x7f"]
)
def test_encoding_and_decoding_give_the_text_back(text: str, tiny_shared: Workspace, core_shared: Workspace) -> None:
    for run in (tiny_shared.run("tiny"), core_shared.run("core")):
        ids = encode(run, text)
        pieces = token_bytes(run)

        assert decode(run, np.array(ids)) == text
        assert b"".join(pieces[token] for token in ids) == text.encode()


def test_special_tokens_are_shown_and_stand_for_no_bytes(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")
    assert run.eos_token_id is not None

    assert decode(run, np.array([run.eos_token_id])) == "<|endoftext|>"
    assert token_bytes(run)[run.eos_token_id] == b""


def test_without_a_tokenizer_there_is_no_text(tiny_shared: Workspace, tmp_path: Path) -> None:
    run = tiny_shared.run("tiny")
    with pytest.raises(MissingFile, match="tiny names no tokenizer.json, so its tokens cannot be turned into text"):
        decode(replace(run, tokenizer=None), np.array([1]))

    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptFile, match="tokenizer.json is not a tokenizer"):
        encode(replace(run, tokenizer=tmp_path / "tokenizer.json", tokenizer_sha256=None), "a")


def test_a_tokenizer_that_is_not_byte_level_is_not_searched(tiny_shared: Workspace, tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"▁the": 0, "?": 1}, unk_token="?")).save(str(tmp_path / "words.json"))
    run = replace(tiny_shared.run("tiny"), tokenizer=tmp_path / "words.json", tokenizer_sha256=None)

    with pytest.raises(UnsupportedRecipe, match="the tokenizer of tiny is not byte-level"):
        list(find_text(run, reader_of(tiny_shared, run), "the"))


def test_a_token_beyond_the_tokenizer_is_corrupt(tiny_shared: Workspace, tmp_path: Path) -> None:
    run = tiny_shared.run("tiny")
    file = replace(run.files[0], path=tmp_path / "tokens.bin", num_bytes=128, num_instances=1)
    np.full(64, 384, dtype="<u2").tofile(file.path)
    other = replace(run, files=(file,))

    with pytest.raises(CorruptFile, match="tokens.bin holds token 384; the tokenizer has 384"):
        list(find_text(other, reader_of(tiny_shared, other, verify=False), "a"))
