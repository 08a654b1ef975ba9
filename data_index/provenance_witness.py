"""Are the token files those that the provenance beside them describes? X.csv.gz beside X.npy.

Documents were written whole, one after another, with an end token each: provenance must tile the file, and name where
end tokens are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_index.errors import CorruptFile, OrderMismatch
from data_index.files import require_file
from data_index.provenance import provenance_files, read_provenance
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.tokens import TokenReader

# A few seconds a gigabyte; where there is more, it is not read at `add`.
MAX_PROVENANCE_BYTES = 2**30


def prove_provenance(run: Run) -> Run:
    """Compare token files with the provenance beside them; returns the run with its trust.

    Raises:
        CorruptFile, UnsafeFile: provenance is damaged, or does not tile its token file.
        OrderMismatch: it ends documents where the token file does not.
    """
    beside = provenance_files(run)
    described = [(file, beside[file.name]) for file in run.files if file.name in beside and file.dtype != LINES]
    if not described or sum(require_file(path) for _, path in described) > MAX_PROVENANCE_BYTES:
        return run
    reader = TokenReader(run, block_hashes=None)
    try:
        documents = sum(_check(reader, file, path) for file, path in described)
    except (CorruptFile, OrderMismatch) as error:
        raise type(error)(f"{error}; restore the .csv.gz files, or take them away to add the run without") from error
    ends = "" if run.eos_token_id is None else ", each with an end token"
    said = f"provenance of {documents:,} documents tiles {len(described)} of {len(run.files)} token files{ends}"
    return replace(run, trust=replace(run.trust, witness=f"{run.trust.witness}; {said}"))


def _check(reader: TokenReader, file: TokenFile, path: Path) -> int:
    """Documents of a file that its provenance tiles."""
    num_tokens, end_token, count = file.num_bytes // np.dtype(file.dtype).itemsize, reader.run.eos_token_id, 0
    for table in read_provenance(path, num_tokens):
        starts, stops = (table.column(name).to_numpy() for name in ("start", "end"))
        if end_token is not None and len(stops):
            wrong = reader.read(file, int(starts[0]), int(stops[-1]))[stops - 1 - starts[0]] != end_token
            if stops[-1] == num_tokens:
                wrong[-1] = False  # the last document of a file may have been cut off
            if wrong.any():
                row = int(np.argmax(wrong))
                raise OrderMismatch(
                    f"{path} row {count + row + 1} ends before token {stops[row]:,}; the token there in {file.path} is "
                    f"not the end token {end_token}: the token file is another, or was changed"
                )
        count += len(stops)
    return count
