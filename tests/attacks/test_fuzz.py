"""Damaged at random, files of every format are read or refused with a stated error: no other error, no dead process."""

import os
from pathlib import Path

from tests.attacks.mutations import fuzz_apart

MUTATIONS = int(os.environ.get("FORENSICS_MUTATIONS", "300"))


def test_no_damage_is_anything_but_read_or_stated(tiny_source: Path, tmp_path: Path) -> None:
    outcomes = fuzz_apart(tiny_source, tmp_path, range(MUTATIONS), seconds=120 + MUTATIONS / 10)
    crashes = [f"{name}, {crash}" for name, outcome in outcomes.items() for crash in outcome.crashes]

    assert not crashes, "\n".join(crashes[:5])
    # What is always refused, or never, is not damaged where it matters.
    for name, outcome in outcomes.items():
        assert outcome.read and outcome.refused > outcome.read // 10, (name, outcome)
