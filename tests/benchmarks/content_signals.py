"""How fast rows are searched for repeated n-grams, on one core; and what the rows that stand for a run cost.

Ordinary text is Python's own sources, tokenized as the sample run's and cut into rows of 4096 tokens. Hostile rows are
repetitive through and through: nothing can be passed over.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_index.batch_queries import reader_of
from data_index.files import sha256_of_file
from data_index.masking import hidden_by_repetition
from data_index.registration import add
from data_index.run import Order, Run, TokenFile
from data_index.run_file import read_run, write_run
from data_index.workspace import Workspace
from forensics.content_signals import base_of_run, plan_base
from forensics.sample_data import SampleSpec, prepare_sample_data
from probes.token_content import MAX_PERIOD, MIN_REPEATS, longest_repetitions

ROWS, LENGTH, REPEATS = 2048, 4096, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_sample_data(folder / "demo", SampleSpec())
        text = np.concatenate([np.fromfile(file.on_disk, "<u2") for file in read_run(folder / "demo").files])
        ordinary = np.resize(text, (ROWS, LENGTH)).astype(np.uint32)
        search(ordinary)
        workspace = Workspace(folder / "workspace")
        add(write_long_rows(folder, ordinary), workspace=workspace)
        judge(workspace)


def search(ordinary: np.ndarray) -> None:
    print(f"{ROWS} rows of {LENGTH} tokens, uint32; M tokens/s, best of {REPEATS}: with spans, the filter alone")
    period = np.resize(np.arange(13, dtype=np.uint32), (ROWS, LENGTH))
    nearly = ordinary.copy()
    nearly[:, :4000] = 7
    mixed = ordinary.copy()
    mixed[:, :2000], mixed[:, 2000:4000] = period[:, :2000], 8
    rows = {
        "ordinary text": ordinary,
        "one token": np.full((ROWS, LENGTH), 7, dtype=np.uint32),
        "13 tokens over and over": period,
        "4000 of one token, then text": nearly,
        "2000 of period 13, 2000 of one": mixed,
    }
    for name, tokens in rows.items():
        speeds = [rate(tokens, longest_repetitions), rate(tokens, filtered)]
        print(f"{name:32} {speeds[0]:8.1f} {speeds[1]:8.1f}")


def filtered(tokens: np.ndarray) -> np.ndarray:
    return hidden_by_repetition(tokens, max_period=MAX_PERIOD, min_period=1, max_count=MIN_REPEATS)


def rate(tokens: np.ndarray, search: Callable[[np.ndarray], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        search(tokens)
        times.append(time.perf_counter() - began)
    return tokens.size / min(times) / 1e6


def write_long_rows(folder: Path, ordinary: np.ndarray) -> Path:
    """A run that reads these rows once, with the sample run's tokenizer."""
    target = folder / "long"
    target.mkdir()
    ordinary.astype("<u2").tofile(target / "text.bin")
    np.save(target / "order.npy", np.arange(ROWS, dtype=np.uint32))
    run = read_run(folder / "demo")
    file = TokenFile(
        name="text.bin",
        path=target / "text.bin",
        dtype="uint16",
        num_bytes=ordinary.size * 2,
        first_instance=0,
        num_instances=ROWS,
    )
    segment = replace(run.segments[0], num_steps=ROWS // 16, instances_per_batch=16)
    order = Order(
        rule="file", parameters={"epoch_1": {"path": "order.npy", "sha256": sha256_of_file(target / "order.npy")}}
    )
    long: Run = replace(
        run,
        name="long",
        source=target,
        sequence_length=LENGTH,
        files=(file,),
        heldout=(),
        order=order,
        segments=(segment,),
    )
    write_run(long, target)
    return target


def judge(workspace: Workspace) -> None:
    run = workspace.run("long")
    print(f"the rows that stand for a run: {plan_base(workspace, run)}")
    began = time.perf_counter()
    base = base_of_run(workspace, run)
    print(f"read and measured in {time.perf_counter() - began:.2f} s")
    instances = np.arange(16)
    tokens = reader_of(workspace, run).rows(instances)
    began = time.perf_counter()
    rows = base.describe(instances, tokens, 1)
    described = time.perf_counter()
    base.odds_ratios(rows)
    print(f"16 rows described in {described - began:.2f} s, odds in {time.perf_counter() - described:.2f} s")
    print(f"most memory held {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
