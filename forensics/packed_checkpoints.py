"""Which checkpoints of a run go into a pack, and their files as the native format has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_index.errors import ForensicsError
from data_index.files import folder_bytes
from data_index.pack_file import Content
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics.pack_budget import Contents

WEIGHTS = "model.safetensors"
STATE = ("optimizer.safetensors", "state.json")


def chosen_first(steps: Sequence[int], events: Sequence[int]) -> list[int]:
    """Checkpoints in the order in which they are worth keeping.

    The last, the first, of each event the one before it and the one after it, then again and again the one that is
    farthest from all of those.

    Args:
        steps: of the checkpoints that there are. events: steps of spikes and of what is no number, the worst first.
    """
    left = sorted(set(steps))
    if not left:
        return []
    chosen = [left[-1], left[0]]
    for event in events:
        before = [step for step in left if step < event][-1:]
        chosen += before + [step for step in left if step >= event][:1]
    chosen = list(dict.fromkeys(chosen))
    while len(chosen) < len(left):
        chosen.append(max((s for s in left if s not in chosen), key=lambda s: min(abs(s - c) for c in chosen)))
    return chosen


def offer_checkpoints(
    contents: Contents, workspace: Workspace, run: Run, events: Sequence[int], making: Path | None
) -> list[int]:
    """Put checkpoints into a pack as long as they fit: of each its weights, then its optimizer's and trainer's state.

    Args:
        making: a folder in which those of other trainers are converted; None: only their sizes are estimated.
    Returns:
        Steps of those whose weights are packed, rising.
    """
    there: dict[int, Checkpoint] = {}
    for checkpoint in workspace.checkpoints(run):
        if isinstance(checkpoint.location, Path):
            there.setdefault(checkpoint.step, checkpoint)
    served = [c for c in workspace.checkpoints(run) if not isinstance(c.location, Path)]
    if served:
        contents.leave_out(
            f"{len(served)} checkpoints on servers", None, "their addresses are in the pack, and work from anywhere"
        )
    packed = []
    for step in chosen_first(list(there), events):
        if _offer(contents, workspace, run, there[step], making):
            packed.append(step)
    return sorted(packed)


def _offer(contents: Contents, workspace: Workspace, run: Run, checkpoint: Checkpoint, making: Path | None) -> bool:
    part, folder = f"checkpoint {checkpoint.step}", checkpoint.folder
    if checkpoint.layout != "native":
        size = folder_bytes(folder)
        if not contents.fits(size // 3):
            contents.leave_out(part, size, "does not fit in what is left of the budget")
            return False
        if making is None:
            contents.expect(f"{part}, as safetensors", min(size, contents.budget - contents.used))
            return True
        try:
            folder = _converted(workspace, run, checkpoint, making)
        except ForensicsError as error:
            contents.leave_out(part, size, f"cannot be written as safetensors: {error}")
            return False
    return _offer_native(contents, part, checkpoint.step, folder)


def _offer_native(contents: Contents, part: str, step: int, folder: Path) -> bool:
    def files(*names: str) -> dict[str, Content]:
        return {f"checkpoints/step{step}/{name}": folder / name for name in names if (folder / name).is_file()}

    if not files(WEIGHTS):
        contents.leave_out(part, None, "has no weights here")
        return False
    if not contents.offer(f"{part}, weights", files(WEIGHTS)):
        return False
    if files(*STATE):
        contents.offer(f"{part}, optimizer and trainer state", files(*STATE))
    return True


def _converted(workspace: Workspace, run: Run, checkpoint: Checkpoint, making: Path) -> Path:
    """Another trainer's checkpoint in the native form: what a replay would begin with."""
    import torch

    from forensics.reproduction import prepare
    from forensics.starting import complete_state
    from replay.train_state import load_state, save_state

    recipe = prepare(workspace, run, "cpu", "recipe").recipe
    folder = making / f"step{checkpoint.step}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # no recipe draws from it; the same checkpoint gives the same bytes
        state = load_state(checkpoint, recipe, device=torch.device("cpu"), fresh_optimizer=True)
        complete_state(state, workspace, run, checkpoint, recipe)
        save_state(state, folder)
    if "optimizer" not in checkpoint.states:  # moments of zero are not the run's
        for name in STATE:
            (folder / name).unlink()
    return folder


def known_hashes(workspace: Workspace, run: Run) -> Iterator[dict[str, Any]]:
    """Checkpoints with the content hashes that are known of them, of those that this toolkit saved."""
    from data_index.files import read_json_object

    for checkpoint in workspace.checkpoints(run):
        row: dict[str, Any] = {"step": checkpoint.step, "states": list(checkpoint.states)}
        if isinstance(checkpoint.location, Path) and checkpoint.layout == "native" and "trainer" in checkpoint.states:
            saved = read_json_object(checkpoint.location / "state.json")
            row |= {name: saved[name] for name in ("weights_sha256", "optimizer_sha256") if name in saved}
        elif not isinstance(checkpoint.location, Path):
            row |= {"location": str(checkpoint.location), "commit": checkpoint.commit}
        yield row
