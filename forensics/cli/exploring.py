"""The verb that opens the explorer: app."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from data_index.errors import MissingFile
from forensics.cli.options import WorkspaceOption, open_workspace
from forensics.cli.output import say


def app(
    port: Annotated[int | None, typer.Option(metavar="N", help="Port [default: the first free one from 8501].")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
    share: Annotated[bool, typer.Option("--share", help="Let other machines look, read-only.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Open the explorer: runs, steps and their text in a browser. Ctrl-C ends it.

    Example: forensics app
    """
    from forensics.explorer_server import chosen_address, serve

    there = open_workspace(workspace)
    if not there.folder.is_dir():
        raise MissingFile(
            f"there is no workspace {there.folder}: forensics demo makes one with a sample run, forensics add SOURCE "
            "one with a run of yours; --workspace DIR chooses another"
        )
    address = chosen_address(port, shared=share)
    os.environ["FORENSICS_WORKSPACE"] = str(there.folder)
    os.environ["FORENSICS_SHARED"] = "1" if share else ""
    say(f"explorer of {there.folder}: {address.url} (Ctrl-C ends it)")
    if share:
        say(f"shared, read-only: whoever reaches port {address.port} of this machine reads the whole workspace")
    serve(address, browser=browser)
    say("explorer ended")


COMMANDS = (app,)
