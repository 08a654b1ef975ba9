"""Spikes of known causes: does `blame` name the planted rows, and say `unexplained` where the data are innocent?

    python -m tests.benchmarks.spike_causes [RUNS OF EACH KIND] [FOLDER] [PROCESSES] [FIRST SEED]

Each run is trained, added, asked for its spikes, and asked who is to blame for the one that was planted. Results are
kept in FOLDER as they come: the same call goes on where it was interrupted. A seed whose log shows no spike where one
was planted is passed over and counted. Of the kind `nothing` the step is asked about that stands out most without being
a spike.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RUNS = 20
MOST_SEEDS = 4  # for each run that is wanted
Result = Mapping[str, Any]


def one(folder: Path, kind: str, seed: int) -> Result:
    """Train a run, and ask."""
    import torch

    from data_index.registration import add
    from data_index.workspace import Workspace
    from forensics.attribution import blame
    from tests.spiked.causes import CAUSES
    from tests.spiked.runs import BENCHMARK, make_spiked_run
    from tests.spiked.text import Text

    torch.set_num_threads(1)
    cause = CAUSES[kind][seed % len(CAUSES[kind])]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        began = time.monotonic()
        text = Text.collect(folder / "text", BENCHMARK.vocabulary)
        planted = make_spiked_run(Path(place) / "spiked", text, cause, seed)
        workspace = Workspace(Path(place) / "workspace")
        workspace.create()
        add(planted.folder, workspace=workspace)
        trained = time.monotonic() - began
        found: dict[str, Any] = {"kind": kind, "seed": seed, "planted_step": planted.step, "trained": trained}
        step = _asked(workspace, planted.step, kind, reads=cause.spoil is not None)
        if step is None:
            return found | {"spiked": False}
        answer = blame("spiked", step, workspace=workspace)
        told = answer.to_json()
    group = told["group"] or {"rows": []}
    top = [row["instance"] for row in told["candidates"]][: max(len(planted.instances), 1)]
    return found | {
        "spiked": True,
        "asked": step,
        "seconds": time.monotonic() - began - trained,
        "verdict": told["verdict"],
        "cause": told["cause"],
        "measure": told["measure"],
        "reason": told["reason"],
        "ranked_first": set(top) == set(planted.instances),
        "group_rows": len(group["rows"]),
    }


def _asked(workspace: Any, planted: int, kind: str, *, reads: bool) -> int | None:
    """The step that a user would ask about, having looked at the curves; None where there is none to ask about.

    Bad rows show at the step that reads them, if it spikes; else, and for what is done to an update, it is the one
    that stands out most of those after it: a step's loss and gradient are taken before its update. Where nothing was
    planted, it is the one of all that stands out most without being a spike.
    """
    from forensics.spike_window import SPIKE_Z, logged_with_parents, usual_values
    from tests.spiked.runs import BENCHMARK, STEPS_AFTER

    series = logged_with_parents(workspace, workspace.run("spiked"), BENCHMARK.num_steps)
    onset = None if kind == "nothing" else planted

    def z(step: int) -> float:
        usual = usual_values(series, onset or step, step)
        return max(value.z(series[name][step]) for name, value in usual.items())

    if kind == "nothing":
        return max((s for s in range(BENCHMARK.first_spike, BENCHMARK.num_steps) if z(s) < SPIKE_Z), key=z)
    if reads and z(planted) >= SPIKE_Z:
        return planted
    highest = max(range(planted + 1, planted + 1 + STEPS_AFTER), key=z)
    return highest if z(highest) >= SPIKE_Z else None


def is_right(result: Result, kind: str) -> bool:
    from tests.spiked.causes import CAUSES

    if CAUSES[kind][0].spoil is None:
        return result["verdict"] == "unexplained"
    return result["verdict"] == "data" and bool(result["ranked_first"])


def campaign(folder: Path, runs: int, processes: int, first_seed: int) -> list[Result]:
    """Results of at least so many spiked runs of each kind; those that are in the folder count."""
    from tests.spiked.causes import CAUSES
    from tests.spiked.runs import BENCHMARK
    from tests.spiked.text import Text

    Text.collect(folder / "text", BENCHMARK.vocabulary)
    path = folder / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with ProcessPoolExecutor(processes) as pool:
        while wanted := list(_wanted(results, list(CAUSES), runs, first_seed)):
            for result in pool.map(one, *zip(*((folder, kind, seed) for kind, seed in wanted), strict=True)):
                results.append(dict(result))
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                told = result.get("verdict", "no spike")
                print(f"{result['kind']}, seed {result['seed']}: {told}", file=sys.stderr, flush=True)
    return results


def _wanted(results: list[dict[str, Any]], kinds: list[str], runs: int, first_seed: int) -> Iterator[tuple[str, int]]:
    """The next seeds of each kind that has too few spiked runs."""
    for kind in kinds:
        there = [result for result in results if result["kind"] == kind]
        missing = runs - sum(result["spiked"] for result in there)
        first = max((result["seed"] for result in there), default=first_seed - 1) + 1
        if missing > 0 and first - first_seed < MOST_SEEDS * runs:
            yield from ((kind, seed) for seed in range(first, first + missing))


def main(runs: int = RUNS, folder: Path | None = None, processes: int = 2, first_seed: int = 0) -> None:
    place = folder or Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    by_kind: defaultdict[str, list[Result]] = defaultdict(list)
    for result in campaign(place, runs, processes, first_seed):
        by_kind[result["kind"]].append(result)
    print(f"{'planted':32}{'runs':>6}{'right':>7}{'share':>7}{'no spike':>10}{'seconds a run':>15}")
    for kind, results in by_kind.items():
        spiked = [result for result in results if result["spiked"]]
        right = sum(is_right(result, kind) for result in spiked)
        seconds = sorted(result["seconds"] for result in spiked)[len(spiked) // 2]
        print(
            f"{kind:32}{len(spiked):6}{right:7}{right / len(spiked):7.0%}{len(results) - len(spiked):10}{seconds:15.1f}"
        )
        for result in spiked:
            if not is_right(result, kind):
                print(f"    seed {result['seed']}, step {result['asked']}: {result['verdict']}, {result['reason']}")
    print(f"{time.monotonic() - began:,.0f} s with {processes} processes")
    if folder is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else RUNS,
        Path(given[1]) if len(given) > 1 else None,
        int(given[2]) if len(given) > 2 else 2,
        int(given[3]) if len(given) > 3 else 0,
    )
