"""Is it the tokenizer that the data were made with, and does the model have room for what the data hold?

Text that a byte-level BPE made into tokens comes back as the same tokens when it is decoded and encoded again. Tokens
of another tokenizer decode to other text, whose tokens are mostly others: merges that this tokenizer would have made
are not made in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from data_index.batch_queries import reader_of
from data_index.errors import UNFORESEEN, ForensicsError, UnsupportedRecipe
from data_index.run import Run
from data_index.run_check import LINES
from data_index.text import decode, encode, load_tokenizer, token_bytes
from data_index.token_search import SCAN_TOKENS
from data_index.tokens import TokenReader
from data_index.workspace import Workspace
from forensics.audit_rows import Row, judged, row

MOST_ROWS = 64
# Of the median row. Measured with byte-level BPE of 384 to 16,384 tokens on rows of 64 and of 512: the right tokenizer
# 1.00 (single rows from 0.97 on, since their borders cut tokens), others of the same size, trained on other text or on
# the other half of the same, 0.77 to 0.88. The median, because some rows of a run may be no text at all.
LEAST_REPRODUCED = 0.95


def tokenizer_rows(workspace: Workspace, run: Run, model_vocabulary: int | None, *, deep: bool) -> Iterator[Row]:
    """Sizes against each other, then the round trip.

    Args:
        model_vocabulary: rows of the model's embedding; None: not known.
        deep: look at every token of the data for the largest, not at a sample of rows.
    """
    try:
        reader = reader_of(workspace, run, verify=False)
        rows = reader.rows(_spread(run.num_instances)) if run.files else np.empty((0, 0), dtype=np.int64)
        largest = _largest_token(reader) if deep else int(rows.max(initial=-1))
    except (ForensicsError, *UNFORESEEN) as error:
        yield row("tokenizer", "data", "not known", f"no rows of the data can be read: {error}")
        return
    if largest < 0:
        yield row("tokenizer", "data", "not known", "no data to compare with")
        return
    scope = "of all tokens" if deep else f"in {len(rows)} rows"
    yield _model_row(largest, model_vocabulary, scope)
    if run.tokenizer is None:
        yield row("tokenizer", "round trip", "not known", f"{run.name} names no tokenizer")
        return
    try:
        yield from _own_rows(run, rows, largest, model_vocabulary, scope)
    except UnsupportedRecipe as error:
        yield row("tokenizer", "round trip", "not known", str(error))
    except (ForensicsError, *UNFORESEEN) as error:
        yield judged("tokenizer", "opens", str(error))


def _model_row(largest: int, model_vocabulary: int | None, scope: str) -> Row:
    if model_vocabulary is None:
        detail = f"largest token id {largest} {scope}; the model's size is not known"
        return row("vocabulary", "largest id", "not known", detail)
    wrong = f"the data hold token id {largest}; the model's vocabulary has ids 0..{model_vocabulary - 1}"
    ok = f"largest token id {largest} {scope}; the model has {model_vocabulary}"
    return judged("vocabulary", "largest id", wrong if largest >= model_vocabulary else None, ok=ok)


def _own_rows(run: Run, rows: np.ndarray, largest: int, model_vocabulary: int | None, scope: str) -> Iterator[Row]:
    size = int(load_tokenizer(run).get_vocab_size(with_added_tokens=True))
    wrong = None
    if largest >= size:
        wrong = f"the data hold token id {largest}; the tokenizer has {size} ids, 0..{size - 1}"
    elif model_vocabulary is not None and size > model_vocabulary:
        wrong = f"the tokenizer has {size} ids; the model's vocabulary has room for {model_vocabulary}"
    padded = f", the model {model_vocabulary}" if model_vocabulary is not None else ""
    yield judged("tokenizer", "vocabulary", wrong, ok=f"{size} ids{padded}; largest in the data {largest} {scope}")
    token_bytes(run)  # refuses what is not byte-level
    rates = sorted(reproduced(tokens.tolist(), encode(run, decode(run, tokens))) for tokens in _within(rows, size))
    if not rates:
        yield row("tokenizer", "round trip", "not known", "no sampled row can be decoded")
        return
    median = float(np.median(rates))
    detail = f"decoded and encoded again, the median of {len(rates)} rows keeps {median:.1%} of its tokens"
    low = f"{detail}: the data were made with another tokenizer (the right one keeps {LEAST_REPRODUCED:.0%} or more)"
    yield judged("tokenizer", "round trip", low if median < LEAST_REPRODUCED else None, ok=detail)


def reproduced(tokens: Sequence[int], again: Sequence[int]) -> float:
    """The share of neighbouring pairs of tokens that come back, 0 .. 1; where in the row does not matter."""
    pairs = Counter(zip(tokens, tokens[1:], strict=False))
    common = pairs & Counter(zip(again, again[1:], strict=False))
    return sum(common.values()) / max(sum(pairs.values()), 1)


def _spread(num_instances: int) -> np.ndarray:
    """Instances spread evenly over the data."""
    count = min(MOST_ROWS, num_instances)
    return (np.arange(count) * num_instances) // max(count, 1)


def _within(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for tokens in rows:
        if len(tokens) > 1 and 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            yield tokens


def _largest_token(reader: TokenReader) -> int:
    largest = -1
    for file in reader.run.files:
        if file.dtype == LINES:
            for instance in range(file.first_instance, file.first_instance + file.num_instances):
                largest = max(largest, int(reader.rows([instance]).max()))
            continue
        num_tokens = file.num_bytes // np.dtype(file.dtype).itemsize
        for start in range(0, num_tokens, SCAN_TOKENS):
            largest = max(largest, int(reader.read(file, start, min(start + SCAN_TOKENS, num_tokens)).max()))
    return largest
