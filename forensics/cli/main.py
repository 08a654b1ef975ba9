"""forensics: ask released language-model training runs what happened."""

from __future__ import annotations

import os
import sys

import typer

from forensics.cli import acting, looking
from forensics.cli.options import WorkspaceOption
from forensics.cli.output import say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ask released language-model training runs what happened, under one key: (run, step). Start: forensics demo.",
)


@app.callback(invoke_without_command=True)
def root(workspace: WorkspaceOption = None, show_version: bool = typer.Option(False, "--version")) -> None:
    if show_version:
        from importlib.metadata import version

        print(version("checkpoint-forensics"))
        raise typer.Exit
    if workspace is not None:
        os.environ["FORENSICS_WORKSPACE"] = str(workspace)


for command in (*acting.COMMANDS, *looking.COMMANDS):
    app.command()(command)


def main() -> None:
    """Run the command line; exit 0 done, 1 a stated failure, 2 usage."""
    from data_index.errors import ForensicsError
    from forensics.cli.installation import check_installation

    try:
        check_installation()
        app()
    except ForensicsError as error:
        say(f"forensics: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("\ninterrupted; what was saved is whole, and the same command goes on from there")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
