"""Take runs and forks away, or thin their saved states; always showing first."""

from __future__ import annotations

from collections.abc import Iterator

from data_index.errors import Busy, InvalidRange, MissingFile
from data_index.files import exclusive_lock, folder_bytes, remove_folder
from data_index.sources.native import checkpoint_folder, saved_steps
from data_index.workspace import Workspace


def remove(name: str, *, confirmed: bool, workspace: Workspace) -> Iterator[str]:
    """Delete a fork, or the registration of a run; the folder a run was added from stays as it is.

    Raises:
        UnknownRun
        Busy: forks of it are there, or it is being written.
    """
    home = workspace.home(name)
    children = [
        fork for fork in workspace.fork_ids() if (p := workspace.run(fork, verify=False).parent) and p[0] == name
    ]
    if children:
        raise Busy(f"{name} has forks, which need it: {', '.join(children)}; remove them first")
    with exclusive_lock(home.with_name(f".{home.name}.lock"), f"writing {name}"):
        size = folder_bytes(home) / 1e6
        if not confirmed:
            yield f"would delete {home} ({size:,.1f} MB)"
            source = workspace.run(name, verify=False).source
            if home.parent.name == "runs" and not source.is_relative_to(home):
                yield f"would keep {source}, the run's own folder"
            yield f"to do it: forensics remove {name} --yes"
            return
        remove_folder(home)
        yield f"deleted {home} ({size:,.1f} MB)"


def prune(name: str, *, keep_every: int, confirmed: bool, workspace: Workspace) -> Iterator[str]:
    """Delete saved states whose step is no multiple of `keep_every`, but for the first and the last.

    Raises:
        UnknownRun, InvalidRange
        MissingFile: the run's checkpoints are not the toolkit's to delete.
    """
    run = workspace.run(name)
    folder = run.source
    if keep_every < 1:
        raise InvalidRange(f"--keep-every {keep_every}: keep every K-th step, K at least 1")
    if not folder.is_relative_to(workspace.folder):
        raise MissingFile(
            f"{folder} lies outside the workspace {workspace.folder}; its checkpoints are not deleted here"
        )
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"writing {name}"):
        steps = saved_steps(folder)
        doomed = [step for step in steps[1:-1] if step % keep_every]
        size = sum(folder_bytes(checkpoint_folder(folder, step)) for step in doomed) / 1e6
        if not doomed:
            yield f"{name}: nothing to delete; it keeps {', '.join(map(str, steps)) or 'no state'}"
        elif not confirmed:
            yield f"would delete {len(doomed)} states ({size:,.1f} MB): {', '.join(map(str, doomed))}"
            yield f"to do it: forensics prune {name} --keep-every {keep_every} --yes"
        else:
            for step in doomed:
                remove_folder(checkpoint_folder(folder, step))
            yield f"deleted {len(doomed)} states ({size:,.1f} MB): {', '.join(map(str, doomed))}"
