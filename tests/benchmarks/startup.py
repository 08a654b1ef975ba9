"""How long the verbs that only look take to answer, as whole processes; interpreter start beside it."""

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


if __name__ == "__main__":
    main()
