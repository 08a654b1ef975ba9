"""Token files too large to hash at `add` are hashed block by block as they are read."""

from pathlib import Path

import numpy as np
import pytest

from data_index.errors import CorruptFile
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.lookup import batch
from forensics.reproduction import replay


def test_a_block_is_remembered_when_first_read_and_watched_from_then_on(
    tiny_copy: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_index.witness.HASH_AT_ADD_BYTES", 0)
    add(tiny_copy, workspace=workspace)
    assert workspace.learned(workspace.home("tiny"), "block_hashes") == []

    first = replay("tiny", "5:10", workspace=workspace, device="cpu")
    again = replay("tiny", "5:10", workspace=workspace, device="cpu")
    seen = workspace.learned(workspace.home("tiny"), "block_hashes")

    assert any("hashed for the first time" in note for note in first.notes)
    assert not any("first time" in note for note in again.notes)
    assert {row["seen"] for row in seen} == {"first read"} and {row["file"] for row in seen} == {
        "text-0.bin",
        "text-1.bin",
    }
    tokens = np.fromfile(tiny_copy / "tokens" / "text-0.bin", dtype="<u2")
    tokens[5] ^= 1
    tokens.tofile(tiny_copy / "tokens" / "text-0.bin")
    with pytest.raises(CorruptFile, match="text-0.bin changed: block 0"):
        batch("tiny", "0:14", tokens=True, workspace=workspace)
