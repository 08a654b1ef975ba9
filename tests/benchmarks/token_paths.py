"""What `tokens --track` costs beside reading: 50,257 tokens x 512 at 150 checkpoints, and 150 steps of 2^18 tokens.

The checkpoints are eight files of 103 MB with 150 names, in the page cache: reading is as fast as it gets, so that the
ratio to it is the worst there is. Reading alone and tracking are measured in turns, three times.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from data_index.files import sha256_of_file, write_npy, write_parquet
from data_index.kinds import table_of_rows
from data_index.registration import add
from data_index.run import Order, OrderTrust, Run, Segment
from data_index.run_file import write_run
from data_index.sources.folder import place_files
from data_index.workspace import Workspace
from forensics.path_reading import matrix_of, opened, read_points
from forensics.token_path_picture import figure_of
from forensics.token_paths import token_paths
from replay.embedding_weights import embeddings_of_checkpoint
from tests.benchmarks.undertrained import NUM_TOKENS, tokenizer_of

WIDTH, CHECKPOINTS, FILES = 512, 150, 8
ROWS, LENGTH = 256, 1_024
DOCUMENT = 700  # tokens


def write_run_folder(folder: Path) -> None:
    """A native run of which only what is read is there: one row of tokens after another, by rank as in text."""
    tokens = np.random.default_rng(0).zipf(1.3, CHECKPOINTS * ROWS * LENGTH).clip(max=NUM_TOKENS - 600).astype("<u2")
    (folder / "tokens").mkdir(parents=True)
    tokens.tofile(folder / "tokens" / "text.bin")
    write_npy(folder / "order" / "epoch-1.npy", np.arange(CHECKPOINTS * ROWS, dtype=np.uint32))
    order = {"path": "order/epoch-1.npy", "sha256": sha256_of_file(folder / "order" / "epoch-1.npy")}
    tokenizer_of(NUM_TOKENS).save(str(folder / "tokenizer.json"))
    starts = range(0, len(tokens), DOCUMENT)
    documents = [
        {
            "document_id": n,
            "file": "text.bin",
            "start": s,
            "end": min(s + DOCUMENT, len(tokens)),
            "tags": [f"t{n % 20}"],
        }
        for n, s in enumerate(starts)
    ]
    write_parquet(folder / "documents.parquet", table_of_rows("documents", documents, folder))
    run = Run(
        name="large",
        layout="native",
        source=folder,
        sequence_length=LENGTH,
        files=place_files(["text.bin"], [folder / "tokens" / "text.bin"], "uint16", lambda size: size // (2 * LENGTH)),
        order=Order(rule="file", parameters={"epoch_1": order}),
        segments=(Segment(first_step=1, num_steps=CHECKPOINTS, epoch=1, first_position=0, instances_per_batch=ROWS),),
        trust=OrderTrust(level="derived", witness="made here"),
        config_format="native",
        config={"model": {"vocab_size": NUM_TOKENS}},
        tokenizer=folder / "tokenizer.json",
        tokenizer_sha256=sha256_of_file(folder / "tokenizer.json"),
    )
    write_run(run, folder)
    _write_checkpoints(folder)


def _write_checkpoints(folder: Path) -> None:
    """Rows 0 .. 255 of the alphabet's impossible bytes and the last 600 tokens stay in one direction."""
    generator = torch.Generator().manual_seed(0)
    unused = [178, 179, *range(180, 189), 125, 126, *range(NUM_TOKENS - 600, NUM_TOKENS)]
    common = torch.randn(WIDTH, generator=generator)
    for number in range(FILES):
        matrix = torch.randn(NUM_TOKENS, WIDTH, generator=generator)
        matrix[unused] = 0.3 * (common + 0.05 * torch.randn(len(unused), WIDTH, generator=generator))
        save_file({"model.embed_tokens.weight": matrix}, folder / f"matrix-{number}")
    for step in range(1, CHECKPOINTS + 1):
        place = folder / "checkpoints" / f"step{step}"
        place.mkdir(parents=True)
        (place / "state.json").write_text("{}")
        os.link(folder / f"matrix-{step % FILES}", place / "model.safetensors")


def measure(folder: Path, number: int) -> None:
    workspace = Workspace(folder / f"workspace-{number}")
    run = add(folder / "large", workspace=workspace)
    began = time.perf_counter()
    tracking = opened(workspace, run, None)
    headers = time.perf_counter() - began
    began = time.perf_counter()
    choice, points, num_bytes = read_points(tracking)
    tracked = time.perf_counter() - began
    began = time.perf_counter()
    for checkpoint in tracking.tracked:
        matrix_of(embeddings_of_checkpoint(checkpoint), choice).read().clone()  # a mapped file is read when it is used
    read = time.perf_counter() - began
    print(
        f"tokenizer and headers {headers:.2f} s; {len(points)} checkpoints, {num_bytes / 1e9:.2f} GB: {tracked:.1f} s"
    )
    print(f"  read alone {read:.1f} s: tracking takes {tracked / read:.2f} times as long; indicator {choice.indicator}")
    seen: dict[str, tuple[float, float]] = {}

    def told(what: str, done: int, total: int) -> None:
        first, _ = seen.get(what, (time.perf_counter(), 0.0))
        seen[what] = first, time.perf_counter() - first

    began = time.perf_counter()
    found = token_paths("large", workspace=workspace, progress=told)
    print(f"  with exposures and documents {time.perf_counter() - began:.1f} s, {CHECKPOINTS * ROWS * LENGTH:,} tokens")
    print("    " + ", ".join(f"{what} {seconds:.2f} s" for what, (_, seconds) in seen.items()))
    began = time.perf_counter()
    token_paths("large", workspace=workspace)
    again = time.perf_counter() - began
    began = time.perf_counter()
    num_rows = found.table().num_rows
    tabled = time.perf_counter() - began
    began = time.perf_counter()
    figure_of(found)
    drawn = time.perf_counter() - began
    kept = sum(path.stat().st_size for path in (workspace.home("large") / "token_paths").rglob("*.parquet"))
    print(f"  asked again {again:.1f} s; table of {num_rows:,} rows {tabled:.1f} s; picture described {drawn:.2f} s")
    print(f"  kept {kept / 1e6:.0f} MB; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        write_run_folder(Path(temporary) / "large")
        for number in range(3):
            measure(Path(temporary), number)


if __name__ == "__main__":
    main()
