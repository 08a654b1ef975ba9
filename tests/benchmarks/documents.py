"""How fast documents are found in token files and in provenance, and what a table of ten million costs to ask."""

from __future__ import annotations

import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from data_index.document_borders import ends_by_token
from data_index.files import write_hashed_parquet_parts
from data_index.kinds import arrow_schema
from data_index.learned_documents import BorderRule, learn_documents
from data_index.provenance import read_provenance
from data_index.run import Order, OrderTrust, Run, TokenFile
from data_index.tokens import TokenReader

NUM_TOKENS = 250_000_000
DOCUMENT_TOKENS = 800


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        run = _run(Path(name))
        (file,) = run.files
        megabytes = file.num_bytes / 1e6

        def scan(hashes: Any) -> int:
            return sum(len(ends) for ends in ends_by_token(TokenReader(run, hashes), file, 0))

        count, taken = _timed(lambda: scan(None))
        print(f"{count:,} borders by end token                      {megabytes / taken:8.0f} MB/s of tokens")
        _, taken = _timed(lambda: scan({}))
        print(f"  every block hashed as it is read             {megabytes / taken:8.0f} MB/s")
        _, taken = _timed(lambda: learn_documents(run, Path(name), BorderRule(eos=0), TokenReader(run, None)))
        print(f"  and the table written                        {megabytes / taken:8.0f} MB/s")
        path = _provenance(Path(name), run)
        rows, taken = _timed(lambda: sum(table.num_rows for table in read_provenance(path, NUM_TOKENS)))
        print(f"{rows:,} rows of provenance                        {rows / taken:8,.0f} rows/s")
        _ask_ten_million(Path(name))


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def _run(folder: Path) -> Run:
    random = np.random.default_rng(1)
    tokens = random.integers(1, 50_000, NUM_TOKENS, dtype=np.uint16)
    tokens[random.integers(0, NUM_TOKENS, NUM_TOKENS // DOCUMENT_TOKENS)] = 0
    tokens.tofile(folder / "part.npy")
    sizes = {"num_bytes": 2 * NUM_TOKENS, "first_instance": 0, "num_instances": NUM_TOKENS // 4096}
    return Run(
        name="benchmark",
        layout="native",
        source=folder,
        sequence_length=4096,
        files=(TokenFile(name="part.npy", path=folder / "part.npy", dtype="uint16", **sizes),),
        order=Order(rule="file"),
        segments=(),
        trust=OrderTrust(level="unknown", witness=""),
        config_format="native",
        config={},
        eos_token_id=0,
    )


def _provenance(folder: Path, run: Run) -> Path:
    ends = np.concatenate(list(ends_by_token(TokenReader(run, None), run.files[0], 0)))
    starts = np.append(0, ends[:-1])
    path = folder / "part.csv.gz"
    with gzip.open(path, "wt") as file:
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            source = f"s3://bucket/pretraining-data/sources/web/v0/documents/part-{number % 300:05d}.jsonl.gz"
            file.write(f"{start},{end},{number * 2654435761 % 2**32:032x},{source},{number}\r\n")
    return path


def _ask_ten_million(folder: Path) -> None:
    import duckdb

    schema = arrow_schema("documents")
    step = 100_000

    def tables() -> Any:
        for first in range(0, 10_000_000, step):
            ids = np.arange(first, first + step)
            given = {"document_id": ids, "start": ids * 800, "end": ids * 800 + 800, "line": ids}
            yield pyarrow.table(
                [pyarrow.array(given[c.name]) if c.name in given else pyarrow.nulls(step, c.type) for c in schema],
                schema=schema,
            )

    path, taken = _timed(lambda: write_hashed_parquet_parts(folder / "documents", schema, tables()))
    print(f"10,000,000 rows of documents written           {taken:8.2f} s, {path.stat().st_size / 1e6:.0f} MB")
    query = f"SELECT start FROM read_parquet('{path}') WHERE document_id = 7654321"
    _, taken = _timed(lambda: duckdb.connect().execute(query).fetchall())
    print(f"  one of them found                            {1000 * taken:8.1f} ms")


if __name__ == "__main__":
    main()
