"""How long the verbs that only look take to answer, as whole processes; interpreter start beside it.

Then a workspace of thirty runs: opened for one simple query in a process that has not opened it (cold), and in one
that has (warm).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 15


def seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    program = str(Path(sys.executable).with_name("forensics"))
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "forensics --help": [program, "--help"],
        "forensics runs": [program, "runs"],
        "forensics sql 'select 1'": [program, "sql", "select 1"],
    }
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"FORENSICS_WORKSPACE": folder}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(REPEATS):
            for name, command in commands.items():
                times[name].append(seconds(command, environment))
    for name, measured in times.items():
        print(f"{name:28} median {statistics.median(measured) * 1e3:6.0f} ms   worst {max(measured) * 1e3:6.0f} ms")
    thirty_runs()


QUERIES = {
    "of runs": "select run, last_step from runs",
    "of a step": "select instance from batch('core3', 7)",
    "of metrics": "select count(*) from metrics where run = 'core3'",
    "of all batches": "select run, count(*) from batches group by run",
}
ONE_QUERY = """
import sys, time
from data_index.store import query_rows
from data_index.workspace import Workspace
for _ in range(8):
    began = time.perf_counter()
    query_rows(Workspace(sys.argv[1]), sys.argv[2])
    print(time.perf_counter() - began)
"""


def thirty_runs() -> None:
    from data_index.registration import add
    from data_index.workspace import Workspace

    fixtures = Path(__file__).parents[1] / "fixtures"
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder)
        for number in range(10):
            add(fixtures / "olmo", name=f"olmo{number}", workspace=workspace)
            add(fixtures / "olmo-core" / "main", name=f"core{number}", workspace=workspace)
            add(fixtures / "neox-run", data=fixtures / "neox", name=f"neox{number}", workspace=workspace)
        for name, query in QUERIES.items():
            cold, warm = [], []
            for _ in range(5):
                answer = subprocess.run(
                    [sys.executable, "-c", ONE_QUERY, folder, query], check=True, capture_output=True, text=True
                )
                first, *others = map(float, answer.stdout.split())
                cold.append(first)
                warm += others
            print(
                f"30 runs, query {name:14} cold {statistics.median(cold) * 1e3:6.0f} ms   "
                f"warm {statistics.median(warm) * 1e3:6.0f} ms"
            )


if __name__ == "__main__":
    main()
