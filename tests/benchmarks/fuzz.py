"""Damage files of every format at random and read them: `python -m tests.benchmarks.fuzz [MUTATIONS [FIRST_SEED]]`.

Prints, by reader, how many mutations were read as something, how many were refused with a stated error, how long they
took, and what crashed; the exit code is 1 where anything did.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(mutations: int = 10_000, first_seed: int = 1000) -> int:
    from forensics.sample_run import train_sample_run
    from tests.attacks.mutations import fuzz_apart
    from tests.conftest import TINY

    print(f"| reader | mutations | read | refused | other | seconds | slowest, ms |\n| {' | '.join(['---'] * 7)} |")
    crashes = []
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "native"
        train_sample_run(native, TINY)
        seeds = range(first_seed, first_seed + mutations)
        outcomes = fuzz_apart(native, Path(folder) / "damaged", seeds, seconds=120 + mutations / 5)
        for name, o in outcomes.items():
            tried, milliseconds = o.read + o.refused + len(o.crashes), 1000 * o.slowest
            counts = f"{tried:,} | {o.read:,} | {o.refused:,} | {len(o.crashes)}"
            print(f"| {name} | {counts} | {o.seconds:.0f} | {milliseconds:.0f} |")
            crashes += [f"{name}, {crash}" for crash in o.crashes]
    print(*crashes[:20], sep="\n")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
