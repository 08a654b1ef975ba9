"""A text is found where brute force over the decoded bytes finds it, by a scan and by the n-gram index alike.

The brute force lays the bytes of all tokens end to end and looks at every place; that those bytes are right is held
against the tokenizers' own decoding.
"""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_index import ngram_lookup, ngrams, token_search
from data_index.batch_queries import reader_of
from data_index.errors import Busy, CorruptFile, DiskFull, InvalidRange, UnsupportedRecipe
from data_index.files import exclusive_lock
from data_index.ngram_lookup import NgramIndex
from data_index.ngrams import build_ngrams, ngram_folder
from data_index.run import Order, OrderTrust, Run, TokenFile
from data_index.spelling import spelling_of
from data_index.text import find_text, find_token, text_matcher
from data_index.token_search import TokenMatcher, search
from data_index.tokens import TokenReader
from data_index.workspace import Workspace
from forensics.lookup import where
from forensics.occurrences import find_occurrences

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
TEXTS = [
    "import sys\nimport os\n\n\ndef main(argv):\n    return sys.exit(len(argv))\n",
    "The cat sat on the mat. The cats sat on the mats; naïve café — Ω 漢字 🙂🙂.",
    "aaaaaaaaaaaaaaaaaaaa bbbb aaaa        spaces                  and\ttabs\t\t\t",
    "<|endoftext|> is also a word, and so is < | end | > of text.",
]


# --- tokenizers ------------------------------------------------------------------------------------------------------


def byte_level() -> Tokenizer:
    """Like the sample run's, with special tokens, and with runs of spaces added as GPT-NeoX's has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 8)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Like Llama's: spaces are ▁, what has no piece falls back to bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS[:2] * 20, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"])]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level, "metaspace": metaspace}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def test_pieces_are_what_the_tokenizer_decodes(tokenizer: Tokenizer) -> None:
    """With special tokens shown and not, in any mixture; what is no text is compared byte for byte elsewhere."""
    spelling, generator, compared = spelling_of(tokenizer, "run"), random.Random(3), 0
    shown = [spelling.special.get(token, piece) for token, piece in enumerate(spelling.pieces)]
    filler = tokenizer.token_to_id("a")
    for _ in range(3000):
        tokens = [filler, *(generator.randrange(len(spelling.pieces)) for _ in range(generator.randrange(1, 4)))]
        for pieces, skip in ((spelling.pieces, True), (shown, False)):
            content = b"".join(pieces[token] for token in tokens)
            try:
                text = content.decode()
            except UnicodeDecodeError:
                continue
            assert tokenizer.decode(tokens, skip_special_tokens=skip) == text
            compared += 1
    assert compared > 1000


def test_added_tokens_that_are_not_special_stand_for_their_text() -> None:
    """GPT-NeoX's runs of spaces are such."""
    tokenizer = byte_level()
    spelling = spelling_of(tokenizer, "run")

    assert spelling.pieces[tokenizer.token_to_id(" " * 8)] == b" " * 8
    assert spelling.special == {0: b"<|endoftext|>", 1: b"<|pad|>"}


def test_every_byte_has_its_token() -> None:
    tokenizer = metaspace()
    pieces = spelling_of(tokenizer, "run").pieces

    assert all(pieces[tokenizer.token_to_id(f"<0x{byte:02X}>")] == bytes([byte]) for byte in range(256))


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.BPEDecoder()], ids=str)
def test_what_spells_otherwise_is_refused(decoder: Any) -> None:
    tokenizer = byte_level()
    if decoder is None:
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    else:
        tokenizer.decoder = decoder
    with pytest.raises(UnsupportedRecipe, match="the tokenizer of run is not byte-level, nor SentencePiece-like"):
        spelling_of(tokenizer, "run")


# --- brute force over made-up runs -----------------------------------------------------------------------------------

LENGTH = 16


@dataclass(frozen=True)
class Data:
    """A run cut from three files, and their tokens."""

    run: Run
    tokenizer: Tokenizer
    files: tuple[np.ndarray, ...]


def some_tokens(tokenizer: Tokenizer, generator: random.Random) -> list[int]:
    """Documents with ends between them, some text again and again, and stretches of any tokens."""
    tokens: list[int] = []
    while len(tokens) < 1500:
        text = generator.choice(TEXTS)
        start = generator.randrange(len(text))
        tokens += tokenizer.encode(text[start : start + generator.randrange(5, 80)], add_special_tokens=False).ids
        if generator.random() < 0.3:
            tokens += [generator.randrange(3)] * generator.choice([1, 1, 2, 30])
        if generator.random() < 0.3:
            tokens += [generator.randrange(tokenizer.get_vocab_size()) for _ in range(generator.randrange(6))]
    return tokens


@pytest.fixture(scope="module", params=["<u2", "<u4"])
def data(tokenizer: Tokenizer, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder, generator = tmp_path_factory.mktemp("data"), random.Random(7)
    tokenizer.save(str(folder / "tokenizer.json"))
    arrays, files, first = [], [], 0
    for number in range(3):
        array = np.array(some_tokens(tokenizer, generator), dtype=request.param)
        array = array[: len(array) // LENGTH * LENGTH]
        array.tofile(folder / f"{number}.bin")
        files.append(a_file(folder / f"{number}.bin", array, first))
        arrays.append(array)
        first += len(array) // LENGTH
    return Data(run=a_run(folder, tuple(files)), tokenizer=tokenizer, files=tuple(arrays))


def a_file(path: Path, array: np.ndarray, first_instance: int) -> TokenFile:
    return TokenFile(
        name=path.name,
        path=path,
        dtype=array.dtype.name,
        num_bytes=array.nbytes,
        first_instance=first_instance,
        num_instances=len(array) // LENGTH,
    )


def a_run(folder: Path, files: tuple[TokenFile, ...], **more: Any) -> Run:
    return Run(
        name="made",
        layout="native",
        source=folder,
        sequence_length=LENGTH,
        files=files,
        order=Order(rule="file"),
        segments=(),
        trust=OrderTrust(level="derived", witness="none"),
        config_format="native",
        config={},
        tokenizer=folder / "tokenizer.json",
        **more,
    )


def brute_force(pieces: tuple[bytes, ...], tokens: np.ndarray, needle: bytes) -> set[int]:
    """Every token between the first and the last of an occurrence, of all occurrences."""
    spelled = [pieces[token] for token in tokens.tolist()]
    owner = [place for place, piece in enumerate(spelled) for _ in piece]
    content, found = b"".join(spelled), set()
    for start in range(len(content) - len(needle) + 1):
        if content[start : start + len(needle)] == needle:
            found.update(range(owner[start], owner[start + len(needle) - 1] + 1))
    return found


def instances_by_force(data: Data, needle: bytes) -> list[int]:
    spelling = spelling_of(data.tokenizer, "run")
    pieces = tuple(
        spelling.special[token] if spelling.special.get(token, b"\0not there") in needle else piece
        for token, piece in enumerate(spelling.pieces)
    )
    found = set()
    for file, tokens in zip(data.run.files, data.files, strict=True):
        found |= {file.first_instance + place // LENGTH for place in brute_force(pieces, tokens, needle)}
    return sorted(found)


def random_needles(data: Data, count: int, seed: int) -> list[bytes]:
    """Bytes cut anywhere, spelled token spans, runs of one character, special tokens, and what is not there."""
    generator, spelling = random.Random(seed), spelling_of(data.tokenizer, "run")
    shown = [spelling.special.get(token, piece) for token, piece in enumerate(spelling.pieces)]
    needles: list[bytes] = [b"a", b"aaaa", b"    ", b" ", b"\xf0\x9f", b"\x99\x82", b"zzz not there", b"\x80"]
    while len(needles) < count:
        tokens = generator.choice(data.files).tolist()
        start = generator.randrange(len(tokens))
        span = tokens[start : start + generator.choice([1, 2, 3, 5, 8, 20, 40])]
        pieces = shown if generator.random() < 0.2 else spelling.pieces
        needle = b"".join(pieces[token] for token in span)
        if generator.random() < 0.6:  # cut inside tokens, and inside characters
            cut = generator.randrange(len(needle) + 1)
            needle = needle[cut : cut + generator.randrange(1, 30)]
        if needle:
            needles.append(needle)
    return needles


@pytest.mark.parametrize("chunk", [None, 50], ids=["one chunk", "chunks of 50 tokens"])
def test_instances_are_those_of_brute_force(chunk: int | None, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunk:
        monkeypatch.setattr(token_search, "SCAN_TOKENS", chunk)
    for needle in random_needles(data, 60, seed=chunk or 0):
        known = instances_by_force(data, needle)
        found = find_text(data.run, TokenReader(data.run, None), needle.decode(errors="surrogateescape"))
        assert found == known, needle


def test_every_anchor_finds_the_same(data: Data) -> None:
    """Which byte is chosen changes the time, never the answer."""
    tokens = data.files[0]
    for needle in random_needles(data, 40, seed=5):
        matcher = text_matcher(data.run, needle.decode(errors="surrogateescape"))
        known = brute_force(tuple(matcher.vocabulary.pieces), tokens, needle)
        for byte in range(min(len(needle), 12)):
            anchor = matcher.anchor_at(byte)
            hits = anchor.hits(tokens, anchor.places(tokens))
            touched = {t for pair in zip(hits.first, hits.stop, strict=True) for t in range(*map(int, pair))}
            assert touched == known, (needle, byte)


def test_stretches_lie_where_the_text_lies(data: Data) -> None:
    for needle in random_needles(data, 30, seed=9):
        matcher = text_matcher(data.run, needle.decode(errors="surrogateescape"))
        file, tokens = data.run.files[1], data.files[1]
        known = {divmod(p, LENGTH) for p in brute_force(tuple(matcher.vocabulary.pieces), tokens, needle)}
        touched = set()
        for found in search(data.run, TokenReader(data.run, None), matcher):
            columns = (found.touched.instance, found.touched.start, found.touched.stop)
            for instance, start, stop in zip(*(column.tolist() for column in columns), strict=True):
                if file.first_instance <= instance < file.first_instance + file.num_instances:
                    touched |= {(instance - file.first_instance, place) for place in range(start, stop)}
        assert touched == known, needle


def test_a_special_token_stands_for_its_text_only_where_it_is_named(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sys_, mat = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("sys", "mat"))
    rows = np.zeros((4, LENGTH), dtype="<u2")
    rows[0, : len(sys_) + len(mat)] = [*sys_, *mat]
    rows[2, -len(sys_) :], rows[3, 1 : 1 + len(mat)] = sys_, mat
    rows.tofile(tmp_path / "a.bin")
    run = a_run(tmp_path, (a_file(tmp_path / "a.bin", rows.reshape(-1), 0),))
    reader = TokenReader(run, None)

    assert find_text(run, reader, "sysmat") == [0, 2, 3]
    assert find_text(run, reader, "sys<|endoftext|>mat") == [2, 3]
    assert find_text(run, reader, "mat<|endoftext|>") == [0, 3]
    assert find_text(run, reader, "sys<|pad|>mat") == []
    assert find_text(run, reader, "endoftext") == []


def test_a_long_run_of_blank_tokens_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long: more than a chunk, more than was read at first."""
    monkeypatch.setattr(token_search, "SCAN_TOKENS", 256)
    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sys_, mat = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("sys", "mat"))
    tokens = np.ones(5000 * LENGTH, dtype="<u2")
    tokens[100 : 100 + len(sys_)], tokens[70_000 : 70_000 + len(mat)] = sys_, mat
    tokens.tofile(tmp_path / "a.bin")
    run = a_run(tmp_path, (a_file(tmp_path / "a.bin", tokens, 0),))

    last = (70_000 + len(mat) - 1) // LENGTH
    assert find_text(run, TokenReader(run, None), "sysmat") == list(range(100 // LENGTH, last + 1))


def test_a_long_text_is_found(data: Data) -> None:
    """Ten thousand bytes and more, and one that differs at its last."""
    spelling = spelling_of(data.tokenizer, "run")
    whole = b"".join(spelling.pieces[token] for token in np.tile(data.files[0], 8).tolist())
    tiled = np.tile(data.files[0], 8)
    tiled.tofile(data.run.source / "long.bin")
    run = replace(data.run, files=(a_file(data.run.source / "long.bin", tiled, 0),))
    needle = whole[333:12_000]

    found = find_text(run, TokenReader(run, None), needle.decode(errors="surrogateescape"))
    assert found == sorted({place // LENGTH for place in brute_force(spelling.pieces, tiled, needle)})
    assert len(found) > 10
    wrong = needle[:-1] + bytes([needle[-1] ^ 1])
    assert find_text(run, TokenReader(run, None), wrong.decode(errors="surrogateescape")) == []
    with pytest.raises(InvalidRange, match="has 1 to 262,144 bytes, not 262,145: search for a part of it"):
        text_matcher(run, "a" * (2**18 + 1))


def test_rows_that_run_on_into_the_next_file_are_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Three files cut anywhere: what lies in a row is found, and what crosses a row's border within a file."""
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = np.array(some_tokens(tokenizer, random.Random(1)), dtype="<u2")[: 60 * LENGTH]
    cuts, files = [0, 305, 630, len(tokens)], []
    for number, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        tokens[start:stop].tofile(tmp_path / f"{number}.bin")
        first, last = -(-start // LENGTH), -(-stop // LENGTH)
        file = a_file(tmp_path / f"{number}.bin", tokens[start:stop], first)
        files.append(replace(file, first_token=first * LENGTH - start, num_instances=last - first))
    run = a_run(tmp_path, tuple(files))
    pieces, generator = spelling_of(tokenizer, "run").pieces, random.Random(2)

    for _ in range(60):
        start = generator.choice([*(cut + generator.randrange(-20, 5) for cut in cuts[1:3]), generator.randrange(900)])
        needle = b"".join(pieces[token] for token in tokens[start : start + generator.randrange(1, 12)])[:20]
        if not needle:
            continue
        known: set[int] = set()
        for begin, stop in zip(cuts, cuts[1:], strict=False):
            known |= {(begin + p) // LENGTH for p in brute_force(pieces, tokens[begin:stop], needle)}
        for row in range(60):
            if brute_force(pieces, tokens[row * LENGTH : (row + 1) * LENGTH], needle):
                known.add(row)
        found = find_text(run, TokenReader(run, None), needle.decode(errors="surrogateescape"))
        assert found == sorted(known), needle


def test_a_changed_token_is_noticed_by_a_search(tiny: Workspace, tmp_path: Path) -> None:
    run = tiny.run("tiny")
    path = run.files[0].on_disk
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)

    with pytest.raises(CorruptFile, match="changed: block 0"):
        where("tiny", text="import", workspace=tiny)


# --- real runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A run's files as arrays, and its documents, read without the index."""

    run: Run
    files: tuple[np.ndarray, ...]
    pieces: tuple[bytes, ...]

    def holding(self, needle: bytes) -> list[int]:
        found = set()
        for file, tokens in zip(self.run.files, self.files, strict=True):
            places = brute_force(self.pieces, tokens, needle)
            found |= {file.first_instance + place // self.run.sequence_length for place in places}
        return sorted(found)

    def spans(self, count: int) -> list[str]:
        """Random spans of tokens, every third across the end of a document, every third across one of an instance."""
        generator, texts = random.Random(11), []
        while len(texts) < count:
            tokens = generator.choice(self.files).tolist()
            start = generator.randrange(len(tokens) - 30)
            if len(texts) % 3 == 1:
                ends = [place for place, token in enumerate(tokens[:-20]) if token == self.run.eos_token_id]
                start = max(generator.choice(ends) - generator.randrange(1, 8), 0) if ends else start
            elif len(texts) % 3 == 2:
                length = self.run.sequence_length
                start = max(start // length * length - generator.randrange(1, 8), 0)
            text = b"".join(self.pieces[token] for token in tokens[start : start + generator.randrange(1, 20)])
            if generator.random() < 0.5:
                text = text[generator.randrange(3) :][: generator.randrange(3, 40)]
            if text:
                texts.append(text.decode(errors="surrogateescape"))
        return texts


def stored(workspace: Workspace, name: str) -> Stored:
    run = workspace.run(name)
    arrays = tuple(np.fromfile(file.on_disk, dtype=np.dtype(file.dtype).newbyteorder("<")) for file in run.files)
    used = [file.num_instances * run.sequence_length for file in run.files]  # the rest no step reads
    arrays = tuple(array[:count] for array, count in zip(arrays, used, strict=True))
    assert run.tokenizer is not None
    return Stored(run=run, files=arrays, pieces=spelling_of(Tokenizer.from_file(str(run.tokenizer)), name).pieces)


@pytest.mark.parametrize("name", ["tiny", "olmo", "core"])
def test_two_hundred_spans_are_found_where_brute_force_finds_them(
    name: str, tiny_shared: Workspace, core_shared: Workspace
) -> None:
    workspace = tiny_shared if name == "tiny" else core_shared
    known = stored(workspace, name)
    reader, across = reader_of(workspace, known.run), 0

    for text in known.spans(200):
        holding = known.holding(text.encode(errors="surrogateescape"))
        assert holding and find_text(known.run, reader, text) == holding, text
        across += len(holding) > 1
    assert across > 30


def test_where_names_the_documents_in_which_the_text_lies(tiny_shared: Workspace, raw: Any) -> None:
    known = stored(tiny_shared, "tiny")
    for text in known.spans(30):
        needle = text.encode(errors="surrogateescape")
        documents: dict[int, list[int]] = {}
        for file, tokens in zip(known.run.files, known.files, strict=True):
            touched = brute_force(known.pieces, tokens, needle)
            for place in sorted(touched):
                row = documents.setdefault(file.first_instance + place // raw.length, [])
                for document in raw.documents:
                    inside = document["file"] == file.name and document["start"] <= place < document["end"]
                    if inside and document["document_id"] not in row:
                        row.append(document["document_id"])
        table = where("tiny", text=text, workspace=tiny_shared)
        assert table.num_rows and table.column_names[-1] == "document_ids"
        for row in table.to_pylist():
            assert row["document_ids"] == documents[row["instance"]], text
        readings = [reading for reading in raw.readings if reading.instance in documents]
        assert sorted(table.column("step").to_pylist()) == sorted(reading.step for reading in readings)


@pytest.mark.parametrize("limit", [1, 3, 10_000])
def test_a_limit_stops_the_search(limit: int, tiny_shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_search, "SCAN_TOKENS", 100)
    run, told = tiny_shared.run("tiny"), []
    whole = find_occurrences(tiny_shared, run, text_matcher(run, "import"))
    found = find_occurrences(
        tiny_shared, run, text_matcher(run, "import"), limit=limit, progress=lambda *numbers: told.append(numbers)
    )

    assert len(whole.instances) > 3
    assert len(found.instances) == min(limit, len(whole.instances))
    assert set(found.instances) <= set(whole.instances)
    assert set(found.documents) == set(found.instances)
    assert all(found.documents[i] == whole.documents[i] or len(found.instances) == limit for i in found.instances)
    assert any("stopped early, in " in note for note in found.notes) == (limit < 1000)
    total = sum(file.num_bytes for file in run.files)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told) and told[-1][0] == total
    assert told[-1][2] == len(found.instances)
    with pytest.raises(InvalidRange, match="--limit takes a number of instances from 1 on, not 0"):
        where("tiny", text="a", limit=0, workspace=tiny_shared)


# --- the n-gram index ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2**25, 700])
def test_the_index_answers_as_the_scan_does(
    chunk: int, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of texts, with chunks whose borders cut occurrences, and ranges narrowed as if they were large."""
    monkeypatch.setattr(ngram_lookup, "SMALL_RANGE", 1)
    monkeypatch.setattr(ngram_lookup, "POSITIONS_PER_TOKEN", 0)
    build_ngrams(tmp_path, data.run, TokenReader(data.run, None), chunk_tokens=chunk)
    reader, answered = TokenReader(data.run, None), 0

    for needle in random_needles(data, 300, seed=21):
        matcher, index = text_matcher(data.run, needle.decode(errors="surrogateescape")), NgramIndex(tmp_path, data.run)
        known = sorted({i for part in search(data.run, reader, matcher) for i in part.touched.instance.tolist()})
        found = sorted({i for part in search(data.run, reader, matcher, index) for i in part.touched.instance.tolist()})
        assert found == known, needle
        answered += index.notes == ("the n-gram index answered for 3 of 3 token files",)
    assert answered == 300
    for token in (0, 1, 17, 100, 399):
        index = NgramIndex(tmp_path, data.run)
        parts = search(data.run, reader, TokenMatcher(token), index)
        assert sorted({i for part in parts for i in part.touched.instance.tolist()}) == find_token(
            data.run, reader, token
        )


def test_positions_are_sorted_by_what_stands_there(data: Data, tmp_path: Path) -> None:
    build_ngrams(tmp_path, data.run, TokenReader(data.run, None), chunk_tokens=500)
    tokens = data.files[0].tolist()
    positions = np.load(ngram_folder(tmp_path) / "0-1.npy", allow_pickle=False)

    assert sorted(positions.tolist()) == list(range(500))
    grams = [tokens[500 + place : 504 + place] for place in positions.tolist()]
    assert grams == sorted(grams)


def test_what_is_too_common_for_the_index_is_scanned(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram_lookup, "LEAST_LIMIT", 5)
    build_ngrams(tmp_path, data.run, TokenReader(data.run, None))
    index = NgramIndex(tmp_path, data.run)
    matcher = text_matcher(data.run, "a")

    found = [i for part in search(data.run, TokenReader(data.run, None), matcher, index) for i in part.touched.instance]
    assert sorted(set(found)) == instances_by_force(data, b"a")
    assert index.notes == ("all 3 token files were scanned",)


def test_an_index_of_another_file_is_not_used(tiny: Workspace) -> None:
    """The same size, another time: the scan notices what changed."""
    run = tiny.run("tiny")
    build_ngrams(tiny.home("tiny"), run, reader_of(tiny, run))
    matcher = text_matcher(run, "import")
    before = find_occurrences(tiny, run, matcher)
    path = run.files[0].on_disk
    path.write_bytes(path.read_bytes())
    after = find_occurrences(tiny, run, matcher)

    assert before.notes == (f"the n-gram index answered for {len(run.files)} of {len(run.files)} token files",)
    assert "is not the file that its n-gram index was made from: it is not used" in after.notes[0]
    assert after.notes[1].endswith("the other 1 token files were scanned")
    assert after.instances == before.instances


DAMAGES = {
    "a byte": lambda folder: flip(folder / "0-0.npy", 200),
    "a header": lambda folder: flip(folder / "0-0.npy", 1),
    "cut": lambda folder: (folder / "0-0.npy").write_bytes((folder / "0-0.npy").read_bytes()[:-4]),
    "gone": lambda folder: (folder / "0-0.npy").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").write_text("[]"),
    "another version": lambda folder: (folder / "manifest.json").write_text('{"version": 2, "files": {}}'),
    "odd entries": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"depth"', '"width"')
    ),
}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_ignored_and_built_again(damage: str, data: Data, tmp_path: Path) -> None:
    reader = TokenReader(data.run, None)
    build_ngrams(tmp_path, data.run, reader)
    DAMAGES[damage](ngram_folder(tmp_path))
    index, matcher = NgramIndex(tmp_path, data.run), text_matcher(data.run, "main")
    found = [i for part in search(data.run, reader, matcher, index) for i in part.touched.instance.tolist()]

    assert sorted(set(found)) == instances_by_force(data, b"main")
    assert any("it is not used (build it with forensics ngrams made)" in note for note in index.notes)
    build_ngrams(tmp_path, data.run, reader)
    again = NgramIndex(tmp_path, data.run)
    list(search(data.run, reader, matcher, again))
    assert again.notes == ("the n-gram index answered for 3 of 3 token files",)


def test_an_interrupted_build_goes_on_and_gives_the_same(data: Data, tmp_path: Path) -> None:
    reader = TokenReader(data.run, None)
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    build_ngrams(whole, data.run, reader, chunk_tokens=400)

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done >= 1200:
            raise Interrupted

    with pytest.raises(Interrupted):
        build_ngrams(halted, data.run, reader, chunk_tokens=400, progress=interrupt)
    (ngram_folder(halted) / ".tmp-1-00000000-0-3.npy").write_bytes(b"half")
    times = {path.name: path.stat().st_mtime_ns for path in ngram_folder(halted).glob("*.npy") if path.name[0] != "."}
    index, matcher = NgramIndex(halted, data.run), text_matcher(data.run, "main")
    found = [i for part in search(data.run, reader, matcher, index) for i in part.touched.instance.tolist()]
    told: list[tuple[int, int]] = []
    build_ngrams(halted, data.run, reader, chunk_tokens=400, progress=lambda *numbers: told.append(numbers))

    assert sorted(set(found)) == instances_by_force(data, b"main")
    assert len(times) == 3 and told[-1] == (sum(map(len, data.files)) - 1200,) * 2
    names = {path.name for path in ngram_folder(whole).glob("*.npy")}
    assert names == {path.name for path in ngram_folder(halted).glob("*.npy")}
    for name in names:
        assert (ngram_folder(whole) / name).read_bytes() == (ngram_folder(halted) / name).read_bytes()
    assert all((ngram_folder(halted) / name).stat().st_mtime_ns == time for name, time in times.items())
    assert build_ngrams(halted, data.run, reader, chunk_tokens=400) == 0


def test_a_build_needs_room_and_is_alone(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = TokenReader(data.run, None)
    with exclusive_lock(ngram_folder(tmp_path) / ".lock", "testing"), pytest.raises(Busy, match="already building"):
        build_ngrams(tmp_path, data.run, reader)

    def full(folder: Path, num_bytes: int, purpose: str) -> None:
        assert num_bytes == 4 * sum(map(len, data.files))
        raise DiskFull("no room")

    monkeypatch.setattr(ngrams, "require_free_space", full)
    with pytest.raises(DiskFull):
        build_ngrams(tmp_path, data.run, reader)
    assert not list(ngram_folder(tmp_path).glob("*.npy"))
