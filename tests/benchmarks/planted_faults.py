"""Faults planted in runs of every trainer: are they refused, or is it said what nothing vouches for?

    python -m tests.benchmarks.planted_faults 2000

(a) After a run was added: what it reads is damaged, and it is opened, read, and audited (`tests.attacks.sealed`).
(b) At `add`: runs with one witness each (`tests.attacks.planted`). No wrong batch may be `exact`.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.attacks.planted import NO_WITNESS, Batches, Planted, Subject, plant_and_add, subjects, template
from tests.attacks.sealed import AFTER, Noticed, plant_after

OUTCOMES = ("refused", "derived", "harmless", "exact")


def campaign(
    chosen: dict[str, Subject], number: int, seed: int = 0, always: Mapping[tuple[str, str], str] | None = None
) -> Iterator[tuple[str, str, str, Planted]]:
    """About so many faults at `add`: subject, witness, fault, what became of it.

    Args:
        always: a fault by subject and witness, which is planted besides and comes first.
    """
    always = always or {}
    truths: dict[str, Batches] = {}
    pairs = [(name, witness) for name, subject in chosen.items() for witness in subject.witnesses]
    for name, witness in pairs:
        subject = chosen[name]
        chance = random.Random(f"{seed} {name} {witness}")
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / "made"
            truth = truths[name] = template(subject, witness, made, truths.get(name))
            if kind := always.get((name, witness)):
                found = plant_and_add(subject, witness, made, truth, subject.faults[kind], random.Random(0))
                assert found is not None, kind
                yield name, witness, kind, found
            kinds = list(subject.faults)
            chance.shuffle(kinds)
            planted = tried = 0
            while planted < -(-number // len(pairs)) and tried < 20 * number:
                kind = kinds[tried % len(kinds)]
                tried += 1
                found = plant_and_add(subject, witness, made, truth, subject.faults[kind], chance)
                if found is not None:
                    planted += 1
                    yield name, witness, kind, found


def trained_run(folder: Path) -> Path:
    from forensics.sample_run import train_sample_run
    from tests.conftest import TINY

    train_sample_run(folder, TINY)
    return folder


def main(number: int = 400) -> None:
    began = time.monotonic()
    by_witness: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_kind: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    unnamed = []
    with tempfile.TemporaryDirectory() as place:
        there = subjects(trained_run(Path(place) / "trained"))
        after = list(plant_after(there, number // 2))
        _print_after(after)
        for name, witness, kind, found in campaign(there, number - len(after)):
            by_witness[witness][found.outcome] += 1
            by_kind[kind.partition("#")[0], witness][found.outcome] += 1
            if found.outcome == "exact" or (found.outcome == "derived" and not found.missing):
                unnamed.append(f"{name}, {witness}, {kind}: {found}")
    print(f"\nat add{'':44}" + "".join(f"{outcome:>10}" for outcome in ("planted", *OUTCOMES)))
    for witness in sorted(by_witness, key=lambda w: (w == NO_WITNESS, w)):
        _print_row(witness, by_witness[witness])
    print("\nby kind and witness")
    for (kind, witness), counts in sorted(by_kind.items()):
        _print_row(f"{kind} | {witness}", counts)
    total = len(after) + sum(sum(counts.values()) for counts in by_witness.values())
    print(f"\n{total} faults in {time.monotonic() - began:.0f} s")
    print(*unnamed or ["no wrong batch was exact; every missing witness was named"], sep="\n")


def _print_row(what: str, counts: Counter[str]) -> None:
    print(f"{what:50}" + "".join(f"{n:>10}" for n in (sum(counts.values()), *(counts[o] for o in OUTCOMES))))


def _print_after(found: list[tuple[str, str, Noticed]]) -> None:
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, kind, noticed in found:
        table[kind.partition(":")[0]][noticed.first] += 1
    print(f"after it was added{'':32}" + "".join(f"{outcome:>10}" for outcome in ("planted", *AFTER)))
    for what, counts in sorted(table.items()):
        print(f"{what:50}" + "".join(f"{n:>10}" for n in (sum(counts.values()), *(counts[o] for o in AFTER))))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
