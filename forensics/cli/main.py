"""forensics: ask released language-model training runs what happened."""

from __future__ import annotations

import os
import sys

import click
import typer

from forensics.cli import acting, looking
from forensics.cli.options import WorkspaceOption
from forensics.cli.output import say

INTERRUPTED = 130  # 128 + SIGINT, as shells count

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
        # Not standalone: typer would end for Ctrl-C without a word of how to go on. Here it answers with a code.
        code = app(standalone_mode=False) or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ForensicsError as error:
        say(f"forensics: {error}")
        code = 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code == INTERRUPTED:
        say("\ninterrupted; what was saved is whole, and the same command goes on from there")
    sys.exit(code)


if __name__ == "__main__":
    main()
