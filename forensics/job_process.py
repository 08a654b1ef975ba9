"""What a job's process runs: one command line of ours, and then how it ended is written down.

python -P -m forensics.job_process FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

SECONDS_TO_BE_RECORDED = 60.0


def main() -> None:
    folder = Path(sys.argv[1])
    # An explorer that a shell put in the background ignores Ctrl-C, and what it starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _run(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from data_index.files import write_json

    write_json(folder / "ended.json", {"exit_code": code, "ended": time.time()})
    sys.exit(code)


def _run(folder: Path) -> int:
    try:
        if not _is_recorded(folder):
            print("whoever started this ended before it was recorded; nothing was done", file=sys.stderr)
            return 1
        return _command_line(folder)
    except KeyboardInterrupt:  # before or after the command line, which answers to it itself
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1


def _is_recorded(folder: Path) -> bool:
    """Nothing runs that nobody can find, follow and cancel."""
    until = time.monotonic() + SECONDS_TO_BE_RECORDED
    while not (folder / "job.json").exists():
        if time.monotonic() > until or not folder.exists():
            return False
        time.sleep(0.02)
    return True


def _command_line(folder: Path) -> int:
    from data_index.files import read_json_object
    from forensics.cli.main import main as command_line

    record = read_json_object(folder / "job.json")
    sys.argv = ["forensics", *record["arguments"]]
    print(f"$ {record['command']}", file=sys.stderr, flush=True)
    os.environ["FORENSICS_WORKSPACE"] = str(folder.parents[1])
    command_line()
    return 0


if __name__ == "__main__":
    main()
