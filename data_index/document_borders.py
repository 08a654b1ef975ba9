"""Where the documents of a run's token files end, by the tokens themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_index.errors import UnknownDocument
from data_index.instances.documents import ends_in
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.sources.folder import lookup
from data_index.tokens import TokenReader

SCAN_TOKENS = 4 * 2**20


def num_tokens_of(file: TokenFile, run: Run) -> int:
    if file.dtype == LINES:
        return file.num_instances * run.sequence_length
    return file.num_bytes // np.dtype(file.dtype).itemsize


def border_tokens(run: Run) -> tuple[int, int | None]:
    """The token that ends a document, and the one that must follow for it to count, where the config names one.

    Raises:
        UnknownDocument: the run has no end token.
    Source:
        get_document_lengths in olmo_core/data/utils.py (Python package ai2-olmo-core 3.0.0)
    """
    if run.eos_token_id is None:
        raise UnknownDocument(
            f"where documents of {run.name} end is not known: its config names no end token, and there is no "
            "provenance (give the folder of its .csv.gz files with --provenance DIR)"
        )
    return run.eos_token_id, _begin_token(run)


def _begin_token(run: Run) -> int | None:
    if run.config_format != "olmo_core":
        return None
    dataset = run.config.get("dataset")
    source = dataset[0] if isinstance(dataset, list) and dataset else dataset
    tokenizer = lookup(run.config, "data_loader.tokenizer") or lookup(source, "tokenizer")
    begin = lookup(tokenizer, "bos_token_id")
    return begin if isinstance(begin, int) else None


def ends_by_token(reader: TokenReader, file: TokenFile, eos: int, bos: int | None = None) -> Iterator[np.ndarray]:
    """Ends (the token after the last one) of a file's documents in rising order, int64, chunk after chunk.

    The documents tile the file; the last may lack its end token.

    Args:
        bos: where given, a document ends only at an `eos` that a `bos` follows, or with the file.
    Raises:
        MissingFile, CorruptFile
    """
    num_tokens = num_tokens_of(file, reader.run)
    for start in range(0, num_tokens, SCAN_TOKENS):
        stop = min(start + SCAN_TOKENS, num_tokens)
        ends = start + ends_in(reader.read(file, start, min(stop + 1, num_tokens)), stop - start, eos, bos)
        if stop == num_tokens and not (len(ends) and ends[-1] == num_tokens):
            ends = np.append(ends, num_tokens)
        yield ends


def ends_by_line(file: TokenFile, length: int) -> Iterator[np.ndarray]:
    """The same for files with one instance a line: every line is a document."""
    for first in range(0, file.num_instances, SCAN_TOKENS):
        yield np.arange(first + 1, min(first + SCAN_TOKENS, file.num_instances) + 1) * length
