"""The program that typer makes of the verbs."""

from __future__ import annotations

import os

import typer

from forensics.cli import (
    acting,
    attributing,
    auditing,
    background,
    counting,
    exploring,
    following,
    forking,
    importing,
    labelling,
    looking,
    probing,
    releases,
    repeating,
    searching,
    sharing,
    spiking,
    undertraining,
)
from forensics.cli.options import WorkspaceOption

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


COMMANDS = (
    *acting.COMMANDS,
    *forking.COMMANDS,
    *looking.COMMANDS,
    *searching.COMMANDS,
    *labelling.COMMANDS,
    *counting.COMMANDS,
    *repeating.COMMANDS,
    *importing.COMMANDS,
    *spiking.COMMANDS,
    *attributing.COMMANDS,
    *undertraining.COMMANDS,
    *probing.COMMANDS,
    *following.COMMANDS,
    *auditing.COMMANDS,
    *sharing.COMMANDS,
    *releases.COMMANDS,
    *exploring.COMMANDS,
    *background.COMMANDS,
)
for command in COMMANDS:
    app.command()(command)
