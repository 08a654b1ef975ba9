"""A workspace of someone who sends packs, and packs of theirs with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_index.pack_reading import Pack, read_pack
from data_index.workspace import Workspace
from forensics.figure import Figure, Panel, Series
from forensics.finding import Finding
from forensics.marked_text import MarkedText
from tests.attacks.packs import forged

EVIL = "<script>alert(1)</script>"
INSTANCES = (50, 7, 50)


def finding(**changes: Any) -> Finding:
    """About rows of `tiny`, with text that a page must not obey."""
    figure = Figure(
        title=f"loss {EVIL}",
        x_label="step",
        panels=(Panel(title="loss", y_label="nats", series=(Series(name="loss", x=(1, 2), y=(2.0, None)),)),),
    )
    rows = [
        {"step": 8, "instance": i, "loss": float("inf") if n else 1.5, "why": EVIL} for n, i in enumerate(INSTANCES)
    ]
    given: dict[str, Any] = {
        "name": "blame-tiny-8",
        "verb": "blame",
        "command": "forensics blame tiny 8",
        "runs": ("tiny",),
        "answer": {"verdict": "data", "candidates": rows, "odds": [{"mixed": 1}, {"mixed": "two"}]},
        "figure": figure,
        "texts": (MarkedText(title=EVIL, pieces=("a", EVIL), losses=np.array([np.nan, 2.5])),),
    }
    return Finding(**given | changes)


def files_of(pack: Pack) -> dict[str, bytes]:
    return {path: pack.read(path) for path in pack.files}


Change = Callable[[dict[str, bytes]], None]


def changed(path: Path, target: Path, change: Change, **told: Any) -> Path:
    """A pack of the right form that holds what another does, with a change that its manifest knows of."""
    pack = read_pack(path)
    files = files_of(pack)
    change(files)
    return forged(target, dict(sorted(files.items())), **{**pack.told, **told})


def in_text(path: str, old: str, new: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        assert old in files[path].decode(), (old, files[path][:300])
        files[path] = files[path].decode().replace(old, new, 1).encode()

    return change


def replaced(path: str, content: bytes) -> Change:
    return lambda files: files.update({path: content})


def without(path: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        del files[path]

    return change


def in_json(path: str, change: Callable[[Any], Any]) -> Change:
    return lambda files: files.update({path: json.dumps(change(json.loads(files[path]))).encode()})


def homes(workspace: Workspace) -> list[str]:
    """What stands in the folders of runs and findings, locks aside."""
    found = [
        *workspace.folder.glob("runs/*"),
        *workspace.folder.glob("runs/.tmp*"),
        *workspace.folder.glob("findings/*"),
    ]
    return sorted(path.name for path in found if not path.name.endswith(".lock"))
