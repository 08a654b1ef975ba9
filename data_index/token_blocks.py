"""Rows of many instances in blocks, in the dtype of their files: what is read once needs no order and no widening."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_index.tokens import TokenReader

BLOCK_TOKENS = 2**20

# (places in the instances that were asked for, int64 of shape [rows]; token ids of shape [rows, sequence_length])
Block = tuple[np.ndarray, np.ndarray]


def blocks_of(instances: np.ndarray, reader: TokenReader) -> Iterator[Block]:
    """Token ids of instances, each once, in the order of their files; padded as `TokenReader.rows` pads.

    Raises:
        UnknownInstance, MissingFile, CorruptFile
    """
    rows_together = max(BLOCK_TOKENS // reader.run.sequence_length, 1)
    by_place = np.argsort(instances, kind="stable")
    files = reader.cut_from(instances[by_place])
    borders = np.flatnonzero(np.diff(files, prepend=-2, append=-2))
    for first, end in zip(borders, borders[1:], strict=False):
        for start in range(first, end, rows_together):
            places = by_place[start : min(start + rows_together, end)]
            yield from _block(places, instances[places], int(files[first]), reader)


def _block(places: np.ndarray, instances: np.ndarray, number: int, reader: TokenReader) -> Iterator[Block]:
    """A block of rising instances that are cut from one file, or (number -1) put together from pieces."""
    tokens = reader.mapped(number) if number >= 0 else None
    if tokens is None:
        yield places, _gathered(instances, reader)
        return
    file, length = reader.run.files[number], reader.run.sequence_length
    whole = min(file.num_instances, (len(tokens) - file.first_token) // length)
    inside = instances - file.first_instance < whole
    if not inside.all():  # one runs on into the next file
        yield places[~inside], reader.rows(instances[~inside])
    if inside.any():
        numbers = instances[inside] - file.first_instance
        starts = file.first_token + numbers * length
        reader.check(number, starts, starts + length)
        rows = tokens[file.first_token : file.first_token + whole * length].reshape(whole, length)
        yield places[inside], rows[numbers]


def _gathered(instances: np.ndarray, reader: TokenReader) -> np.ndarray:
    """Rows of rising instances made of pieces; of files of one dtype on disk, in that dtype."""
    run, pieces = reader.run, reader.pieces
    padding, dtypes = run.pad_token_id or 0, {file.dtype for file in run.files}
    if pieces is None or instances[0] < 0 or instances[-1] >= pieces.num_instances or len(dtypes) > 1:
        return reader.rows(instances)
    of_row, which = pieces.of_instances(instances)
    numbers, starts, stops = pieces.file[which], pieces.start[which], pieces.stop[which]
    files = {int(number): reader.mapped(int(number)) for number in np.unique(numbers)}
    mapped = {number: tokens for number, tokens in files.items() if tokens is not None}
    dtype = next((tokens.dtype for tokens in mapped.values()), np.dtype(np.int64))
    if len(mapped) < len(files) or padding > np.iinfo(dtype).max:
        return reader.rows(instances)
    for number in mapped:
        reader.check(number, starts[numbers == number], stops[numbers == number])
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    first_of_row = np.searchsorted(of_row, of_row)
    places = of_row * run.sequence_length + before - before[first_of_row]
    flat = np.full(len(instances) * run.sequence_length, padding, dtype=dtype)
    for number, start, stop, place in zip(*(a.tolist() for a in (numbers, starts, stops, places)), strict=True):
        flat[place : place + stop - start] = mapped[number][start:stop]
    return flat.reshape(len(instances), run.sequence_length)
