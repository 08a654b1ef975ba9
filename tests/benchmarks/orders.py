"""What it costs to work out orders and instances, beside what nothing can be cheaper than: the shuffle itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from data_index.instances.megatron import document_stream, sample_pieces
from data_index.instances.packed import pack
from data_index.masking import hidden_by_repetition
from data_index.megatron_index import MegatronIndex
from data_index.orders.blend import blend_order
from data_index.orders.megatron import neox_shuffle, sample_order
from data_index.orders.olmo_core_fsl import global_indices

REPEATS = 3


def best(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    random = np.random.Generator(np.random.PCG64(seed=1))
    samples, length = 2_000_000, 2048
    shuffled = best(lambda: global_indices(samples, seed=1, epoch=1))
    print(f"shuffle of {samples:,} instances (the yardstick)        {shuffled:8.3f} s")

    sizes = random.integers(50, 3000, 2_700_000).astype(np.int32)
    shuffle = neox_shuffle(sizes, sequence_length=length, seed=1234, num_samples=samples)
    ends = np.cumsum(sizes, dtype=np.int64)
    index = MegatronIndex(
        path=__file__,  # type: ignore[arg-type]
        dtype="uint16",
        sizes=sizes,
        pointers=2 * (ends - sizes),
        document_starts=np.arange(len(sizes) + 1),
    )
    rows = shuffle.num_samples
    taken = best(lambda: sample_order(shuffle))
    print(f"NeoX order of {rows:,} rows, {len(sizes):,} documents   {taken:8.3f} s")
    stream = document_stream(shuffle, sizes)
    taken = best(lambda: sample_pieces(stream, index, np.arange(rows)))
    print(f"their pieces                                         {taken:8.3f} s ({rows / taken / 1e6:.2f}M rows/s)")
    taken = best(lambda: blend_order([0.5, 0.3, 0.15, 0.05], 10_000_000))
    print(f"blend of 4 datasets, 10,000,000 rows                 {taken:8.3f} s")

    documents = np.stack([np.zeros(200_000, np.int64), random.integers(1, 8192, 200_000)], axis=1)
    taken = best(lambda: pack(documents, 8192))
    print(f"packing 200,000 documents                            {taken:8.3f} s ({taken / 0.2:.1f} us each)")

    # Word frequencies fall with rank, as in text; two ids alone are the worst case.
    text = np.minimum(random.zipf(1.3, (2048, 4096)), 50_000)
    two = random.integers(0, 2, (256, 4096))
    for name, tokens in (("text-like", text), ("two ids", two)):
        taken = best(lambda t=tokens: hidden_by_repetition(t, max_period=13, min_period=1, max_count=32))  # type: ignore[misc]
        print(f"instance filter, {name:10}                          {tokens.size / taken / 1e6:8.0f}M tokens/s")
