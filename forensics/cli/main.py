"""forensics: ask released language-model training runs what happened."""

from __future__ import annotations

import os
import sys

from forensics.cli.installation import find_intruder

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """Run the command line; exit 0 done, 1 a stated failure, 2 usage."""
    # Before anything of ours is imported: another module of the same name would be imported instead.
    if intruder := find_intruder():
        print(f"forensics: {intruder}", file=sys.stderr)
        sys.exit(1)
    sys.exit(run())


def run() -> int:
    """Parse, call, and turn every stated failure into one line and an exit code."""
    import click

    from data_index.errors import ForensicsError
    from data_index.remote import progress
    from forensics.cli.output import FetchProgress, printable, say
    from forensics.cli.program import app

    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() not in ("1", "ON", "YES", "TRUE"):
        progress.listener = FetchProgress()
    try:
        # Not standalone: typer would end for Ctrl-C without a word of how to go on. Here it answers with a code.
        code = app(standalone_mode=False) or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ForensicsError as error:
        # Names from data may hold what a terminal would obey; DuckDB's messages have lines.
        say("forensics: " + "\n".join(map(printable, str(error).split("\n"))))
        code = 1
    except RuntimeError as error:
        if "Query interrupted" not in str(error):  # DuckDB's word for Ctrl-C
            raise
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if (http := sys.modules.get("data_index.remote.connection")) is not None and http.TRAFFIC.num_requests:
        say(f"fetched {http.TRAFFIC.num_bytes:,} bytes in {http.TRAFFIC.num_requests:,} requests")
    if code == INTERRUPTED:
        say("\ninterrupted; what was saved is whole, and the same command goes on from there")
    return int(code)


if __name__ == "__main__":
    main()
