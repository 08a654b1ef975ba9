"""Counting exposures: tokens per second in one thread, first and last step included; token files are in the page cache.

Time is the process's own, since other work may share the cores. Ids fall off with rank, as words do, and their numbers
are shuffled, so that frequent ones share no cache line.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch import StepPlan
from data_index.exposures import Exposures
from data_index.files import sha256_of_blocks
from data_index.pieces import Pieces, write_pieces
from data_index.run import Masking, Order, OrderTrust, Run, Segment, TokenFile
from data_index.step_rows import rows_of_step
from data_index.tokens import TokenReader

LENGTH, STEPS, REPEATS = 4096, 8, 3
FILTER = Masking(repetition=(13, 1, 32))
HIDDEN = Masking(hidden_token_id=7)


def a_run(folder: Path, dtype: str, vocabulary: int, rows: int) -> Run:
    """All instances in one shuffled epoch of STEPS steps, in four files."""
    random = np.random.default_rng(1)
    names, weights = random.permutation(vocabulary), 1 / (np.arange(vocabulary) + 2.7) ** 1.1
    per_file = rows * STEPS // 4
    files = []
    for number in range(4):
        ranks = random.choice(vocabulary, per_file * LENGTH, p=weights / weights.sum())
        path = folder / f"{dtype}-{vocabulary}-{rows}-{number}.npy"
        names[ranks].astype(dtype).tofile(path)
        files.append(
            TokenFile(
                name=path.name,
                path=path,
                dtype=dtype,
                num_bytes=path.stat().st_size,
                first_instance=number * per_file,
                num_instances=per_file,
            )
        )
    return Run(
        name="synthetic",
        layout="native",
        source=folder,
        sequence_length=LENGTH,
        files=tuple(files),
        order=Order(rule="sequential"),
        segments=(Segment(first_step=1, num_steps=STEPS, epoch=1, first_position=0, instances_per_batch=rows),),
        trust=OrderTrust(level="derived", witness="synthetic"),
        config_format="native",
        config={},
    )


def in_documents(run: Run, folder: Path) -> Run:
    """The same tokens as rows of documents of about 1,000 tokens that follow one another in another order."""
    random = np.random.default_rng(2)
    pieces, stop = [], np.cumsum(random.integers(600, 1400, LENGTH * run.num_instances // 4 // 1000))
    ends = stop[stop <= run.files[0].num_instances * LENGTH]
    starts = np.append(0, ends[:-1])
    stream = [(n % 4, int(starts[d]), int(ends[d])) for n, d in enumerate(np.repeat(random.permutation(len(ends)), 4))]
    first, missing = [0], LENGTH
    for file, start, end in stream:
        while start < end:
            taken = min(missing, end - start)
            pieces.append((file, start, start + taken))
            start, missing = start + taken, missing - taken
            if not missing:
                first.append(len(pieces))
                missing = LENGTH
    number, begin, until = np.array(pieces[: first[-1]], dtype=np.int64).T
    stored = write_pieces(
        Pieces(first=np.array(first), file=number.astype(np.int32), start=begin, stop=until), folder / "pieces"
    )
    files = tuple(replace(file, first_instance=0, num_instances=0) for file in run.files)
    return replace(run, files=files, pieces=stored)


def count(run: Run, hashes: Any) -> tuple[float, Exposures]:
    """Seconds a token, and the counts."""
    order = np.random.default_rng(3).permutation(run.num_instances)
    rows = min(run.segments[0].instances_per_batch, run.num_instances // STEPS)
    reader, counts = TokenReader(run, hashes), Exposures(extra_label=False)
    began = time.process_time()
    for step in range(1, STEPS + 1):
        plan = StepPlan(step=step, epoch=1, instances=order[(step - 1) * rows : step * rows])
        counts.count_step(step, rows_of_step(plan, reader), applied=True)
    taken = time.process_time() - began
    assert int(counts["as_input"].sum() + counts["filtered_input"].sum()) == STEPS * rows * LENGTH
    return taken / (STEPS * rows * LENGTH), counts


def line(name: str, run: Run, hashes: Any = None) -> None:
    seconds = min(count(run, hashes)[0] for _ in range(REPEATS))
    print(f"  {name:58}{1e-6 / seconds:8.0f}M tokens/s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for dtype, vocabulary, rows in (("uint16", 50_000, 512), ("uint16", 50_000, 1024), ("uint32", 100_000, 1024)):
            run = a_run(Path(folder), dtype, vocabulary, rows)
            print(f"{dtype}, {vocabulary:,} ids, steps of {rows} x {LENGTH}")
            line("rows cut from files", run)
            line("rows cut from files, with the instance filter", replace(run, masking=FILTER))
            line("rows cut from files, with a hidden id", replace(run, masking=HIDDEN))
            hashes = {
                (file.name, block): sha256
                for file in run.files
                for block, sha256 in enumerate(sha256_of_blocks(file.on_disk))
            }
            line("rows cut from files, every block checked by its hash", run, hashes)
            line("rows of pieces (documents of about 1,000 tokens)", in_documents(run, Path(folder)))
        print(f"memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
