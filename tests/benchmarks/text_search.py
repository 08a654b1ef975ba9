"""Searching token files for a text, on one thread: bytes of token files a second, and answers from the n-gram index.

Seconds are the processor's: other work may share the cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_index.files import sha256_of_blocks
from data_index.ngram_lookup import NgramIndex
from data_index.ngrams import build_ngrams
from data_index.run import Order, OrderTrust, Run, TokenFile
from data_index.text_search import TextMatcher
from data_index.token_search import Matcher, TokenMatcher, search
from data_index.tokens import TokenReader
from data_index.vocabulary import Vocabulary

NUM_TOKENS, LENGTH = 100_000_000, 2048
REPEATS = 3
VOCABULARIES = {"uint16": 50_304, "uint32": 130_000}


@dataclass(frozen=True)
class Needle:
    name: str
    text: bytes


def made_up_vocabulary(size: int, generator: np.random.Generator) -> tuple[bytes, ...]:
    """Words of any letters, half of them with a space before, frequent ones shorter, as BPE makes them; token 0 ends
    documents."""
    letters = np.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", dtype=np.uint8)
    weights = 1 / np.arange(2, 28)
    pieces = {b"": None} | {bytes([byte]): None for byte in range(256)}
    while len(pieces) < size:
        length = 1 + int(generator.integers(1, 3 + 2 * np.log10(len(pieces))))
        word = generator.choice(letters, size=length, p=weights / weights.sum()).tobytes()
        pieces[(b" " if generator.random() < 0.5 else b"") + word] = None
    return tuple(pieces)


def zipf_tokens(size: int, dtype: str, generator: np.random.Generator) -> np.ndarray:
    """Tokens distributed as in text; a document ends every thousand or so."""
    ends = np.cumsum(1 / np.arange(3, size + 2))
    tokens = 1 + np.searchsorted(ends, generator.random(NUM_TOKENS) * ends[-1]).astype(dtype)
    tokens[generator.integers(0, NUM_TOKENS, NUM_TOKENS // 1000)] = 0
    return tokens.astype(dtype)


def needles(pieces: tuple[bytes, ...], tokens: np.ndarray) -> Iterator[Needle]:
    at = NUM_TOKENS // 3

    def spelled(first: int, stop: int) -> bytes:
        return b"".join(pieces[token] for token in tokens[first:stop])

    rare = at + int(np.argmax(tokens[at : at + 10**6]))
    yield Needle("a rare word", spelled(rare, rare + 1))
    yield Needle("twelve tokens", spelled(at, at + 12))
    yield Needle("two common words", spelled(at, at + 2) if tokens[at : at + 2].max() < 2000 else pieces[300])
    yield Needle("text that is not there", b" zzyzx quqjx")
    yield Needle("10,000 bytes", spelled(at, at + 5000)[:10_000])
    yield Needle("one letter", b"e")
    yield Needle("four of one letter", b"eeee")
    yield Needle("two spaces", b"  ")


def a_run(path: Path, dtype: str) -> Run:
    instances = NUM_TOKENS // LENGTH
    file = TokenFile(
        name=path.name,
        path=path,
        dtype=dtype,
        num_bytes=path.stat().st_size,
        first_instance=0,
        num_instances=instances,
    )
    return Run(
        name="synthetic",
        layout="native",
        source=path.parent,
        sequence_length=LENGTH,
        files=(file,),
        order=Order(rule="file"),
        segments=(),
        trust=OrderTrust(level="derived", witness="none"),
        config_format="native",
        config={},
    )


def scan(run: Run, hashes: dict[tuple[str, int], str] | None, matcher: Matcher) -> int:
    """Instances found."""
    holding = np.zeros(run.num_instances, dtype=bool)
    for found in search(run, TokenReader(run, hashes), matcher):
        holding[found.touched.instance] = True
    return int(holding.sum())


def main() -> None:
    for dtype, size in VOCABULARIES.items():
        generator = np.random.default_rng(1)
        pieces = made_up_vocabulary(size, generator)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokens.bin"
            zipf_tokens(size, dtype, generator).tofile(path)
            run = a_run(path, dtype)
            measure(run, pieces)


def measure(run: Run, pieces: tuple[bytes, ...]) -> None:
    (file,) = run.files
    tokens = np.memmap(file.on_disk, dtype=file.dtype, mode="r")
    hashes = {(file.name, block): sha256 for block, sha256 in enumerate(sha256_of_blocks(file.on_disk))}
    began = time.process_time()
    vocabulary = Vocabulary(pieces)
    print(f"{file.dtype}, {len(pieces):,} tokens in the vocabulary, sorted in {time.process_time() - began:.2f} s")
    print(f"{file.num_bytes / 1e6:,.0f} MB; MB/s without and with hashes, median of {REPEATS}:")
    searched = [(needle.name, TextMatcher(vocabulary, needle.text)) for needle in needles(pieces, tokens)]
    matchers: list[tuple[str, Matcher]] = [*searched, ("a token id", TokenMatcher(40_000))]
    for name, matcher in matchers:
        rates, holding = [], 0
        for known in (None, hashes):
            times = []
            for _ in range(REPEATS):
                began = time.process_time()
                holding = scan(run, known, matcher)
                times.append(time.process_time() - began)
            rates.append(file.num_bytes / 1e6 / statistics.median(times))
        print(f"  {name:24} {rates[0]:7,.0f} {rates[1]:7,.0f}   {holding:,} of {run.num_instances:,} instances")
    measure_index(run, searched)


def measure_index(run: Run, searched: list[tuple[str, TextMatcher]]) -> None:
    home = run.source
    began = time.process_time()
    build_ngrams(home, run, TokenReader(run, None))
    print(f"n-gram index built in {time.process_time() - began:.1f} s; ms for an answer, the second time:")
    for name, matcher in searched:
        for _ in range(2):
            index, began = NgramIndex(home, run), time.process_time()
            count = sum(len(found.touched.instance) for found in search(run, TokenReader(run, None), matcher, index))
            spent = 1000 * (time.process_time() - began)
        print(f"  {name:24} {spent:9,.1f}   {count:,} stretches; {index.notes[-1]}")
