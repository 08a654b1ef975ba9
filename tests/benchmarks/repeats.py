"""What it costs to find texts that were read more than once: hashes, signatures, pairs; and to ask again."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from data_index.files import sha256_of_file, write_npy, write_parquet
from data_index.kinds import KINDS, arrow_schema
from data_index.registration import add
from data_index.repeated_text import bands_for, buckets, signature_of
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import write_run
from data_index.workspace import Workspace
from forensics.repetition import Repeats, repeats

DOCUMENTS, TOKENS, LENGTH, ROWS = 50_000, 1000, 2000, 50
COPIES, NEAR_COPIES = 500, 500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        add(write_long_run(Path(folder) / "long"), workspace=workspace)
        print(f"{DOCUMENTS:,} documents of {TOKENS:,} tokens, {COPIES} copied, {NEAR_COPIES} with 10 tokens changed")
        asked("hashed, exact repeats", DOCUMENTS, lambda: repeats("long", workspace=workspace))
        asked("the same again", DOCUMENTS, lambda: repeats("long", workspace=workspace))
        near = asked("signed, near repeats", DOCUMENTS, lambda: repeats("long", near=0.8, workspace=workspace))
        asked("the same again", DOCUMENTS, lambda: repeats("long", near=0.8, workspace=workspace))
        print(
            f"{near.num_near} of {NEAR_COPIES} near copies found, {near.num_groups - near.num_near} of {COPIES} exact"
        )
    print(f"most memory held {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    propose()


def asked(what: str, count: int, question: Callable[[], Repeats]) -> Repeats:
    began = time.perf_counter()
    found = question()
    seconds = time.perf_counter() - began
    print(f"{what:24} {seconds:8.2f} s   {count / seconds:10,.0f} documents/s")
    return found


def propose() -> None:
    """Buckets of sorted bands, beside the library's tables."""
    from datasketch import MinHash, MinHashLSH

    text = np.random.default_rng(3).integers(0, 50_000, TOKENS)
    began = time.perf_counter()
    for _ in range(200):
        signature_of(text)
    print(f"one signature of {TOKENS:,} tokens    {(time.perf_counter() - began) / 200 * 1e6:8.0f} us")
    signatures = np.random.default_rng(4).integers(0, 2**32, (DOCUMENTS, 128), dtype=np.uint32)
    bands, rows = bands_for(0.8)
    began = time.perf_counter()
    count = sum(len(bucket) for bucket in buckets(signatures, bands, rows))
    print(f"buckets of {DOCUMENTS:,} signatures   {time.perf_counter() - began:8.2f} s ({count} in any)")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    tables = MinHashLSH(num_perm=128, params=(bands, rows))
    sketch = MinHash(128, 1, scheme="affine32")
    for number, values in enumerate(signatures):
        sketch.hashvalues = values
        tables.insert(number, sketch)
    held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1000 / DOCUMENTS
    print(f"datasketch's tables of them   {time.perf_counter() - began:8.2f} s ({held:,.0f} bytes a document more)")


def write_long_run(folder: Path) -> Path:
    """A native run of one epoch; its last documents are copies of its first."""
    random = np.random.default_rng(1)
    ids = random.integers(2, 50_000, (DOCUMENTS, TOKENS), dtype=np.uint16)
    ids[-COPIES:] = ids[:COPIES]
    ids[-COPIES - NEAR_COPIES : -COPIES] = ids[COPIES : COPIES + NEAR_COPIES]
    ids[-COPIES - NEAR_COPIES : -COPIES, 50::100] = 1
    (folder / "tokens").mkdir(parents=True)
    ids.tofile(folder / "tokens" / "0.bin")
    rows = ids.size // LENGTH
    write_npy(folder / "order" / "epoch-1.npy", random.permutation(rows).astype(np.uint32))
    write_parquet(folder / "documents.parquet", documents_of(np.arange(DOCUMENTS) * TOKENS))
    run = Run(
        name="long",
        layout="native",
        source=folder,
        sequence_length=LENGTH,
        files=(),
        order=Order(
            rule="file",
            parameters={
                "epoch_1": {"path": "order/epoch-1.npy", "sha256": sha256_of_file(folder / "order" / "epoch-1.npy")}
            },
        ),
        segments=(Segment(first_step=1, num_steps=rows // ROWS, epoch=1, first_position=0, instances_per_batch=ROWS),),
        trust=OrderTrust(level="derived", witness="order files", missing="a record"),
        config_format="native",
        config={},
    )
    file = TokenFile(
        name="tokens/0.bin",
        path=folder / "tokens" / "0.bin",
        dtype="uint16",
        num_bytes=ids.nbytes,
        first_instance=0,
        num_instances=rows,
    )
    write_run(replace(run, files=(file,)), folder)
    return folder


def documents_of(starts: np.ndarray) -> Any:
    columns = {
        "document_id": np.arange(len(starts)),
        "file": ["tokens/0.bin"] * len(starts),
        "start": starts,
        "end": starts + TOKENS,
    }
    empty = {name: [None] * len(starts) for name in KINDS["documents"] if name not in columns}
    return pyarrow.table(columns | empty, schema=arrow_schema("documents"))


if __name__ == "__main__":
    main()
