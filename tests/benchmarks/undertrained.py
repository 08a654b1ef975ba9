"""What `tokens` costs: a tokenizer of 50,000, and the indicators and unused rows of a matrix of 100,000 x 4,096.

Aims: the tokenizer in 2 s, the indicators in 10 s on two cores. The tokenizer is GPT-2's in size and kind: byte-level,
its merges made here. Each figure is the best of three; the matrix has a shared mean, a strong component and 500 rows
that are nearly the same.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_index.spelling import BYTE_OF_CHARACTER
from data_index.token_categories import analyse_tokenizer
from probes.embedding_indicators import all_indicators
from probes.unused_rows import exact_duplicates, near_duplicates

ROWS, WIDTH, NUM_TOKENS = 100_000, 4_096, 50_257


def tokenizer_of(size: int) -> Tokenizer:
    """Byte-level, with words of two to six letters, each joined from a shorter one and a letter."""
    pieces = dict.fromkeys(char for char, _ in sorted(BYTE_OF_CHARACTER.items(), key=lambda item: item[1]))
    merges = []
    queue = ["Ġ", *"etaoinshrdlu"]
    for word, letter in ((word, letter) for word in itertools.chain(queue) for letter in "etaoinshrdlcumfpgwy"):
        if len(pieces) >= size:
            break
        if word + letter not in pieces:
            pieces[word + letter] = None
            merges.append((word, letter))
            queue.append(word + letter)
    tokenizer = Tokenizer(models.BPE({piece: token for token, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def matrix_of(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.empty(ROWS, WIDTH, dtype=dtype)
    mean, component = (torch.randn(WIDTH, generator=generator) / 2 for _ in range(2))
    for start in range(0, ROWS, 5_000):
        rows = torch.randn(5_000, WIDTH, generator=generator) + mean
        matrix[start : start + 5_000] = rows + torch.randn(5_000, 1, generator=generator) * component
    matrix[:500] = mean + 0.02 * torch.randn(500, WIDTH, generator=generator)
    return matrix


def seconds(do: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return min(times)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    tokenizer = tokenizer_of(NUM_TOKENS)
    taken = seconds(lambda: analyse_tokenizer(tokenizer))
    print(f"tokenizer of {tokenizer.get_vocab_size():,}: {taken:.2f} s")
    unused = torch.arange(500)
    for dtype in (torch.bfloat16, torch.float32):
        matrix = matrix_of(dtype)
        found = seconds(lambda matrix=matrix: all_indicators(matrix, None, unused))
        near = seconds(lambda matrix=matrix: near_duplicates(matrix))
        exact = seconds(lambda matrix=matrix: exact_duplicates(matrix))
        size = matrix.numel() * matrix.element_size()
        print(f"{ROWS:,} x {WIDTH:,} {dtype} ({size / 1e9:.2f} GB), {torch.get_num_threads()} thread(s)")
        print(f"  indicators {found:.2f} s; near duplicates {near:.2f} s, identical rows {exact:.2f} s")
        print(f"  the process took {peak_bytes() / 1e9:.2f} GB at most so far")
        del matrix


if __name__ == "__main__":
    main()
