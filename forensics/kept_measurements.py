"""What was measured of checkpoints, kept beside the run, so that no probe is asked twice about the same weights.

probes/answers/<identity>.json    of one checkpoint: the answers of each probe, by the key of its settings; their hash
probes/<hash>.parquet             what the view `probes` shows, one file a probe: its numbers under its last settings
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_index.errors import ChangedFile, ForensicsError, MissingFile
from data_index.files import canonical_json, read_json_object, write_hashed_parquet, write_json
from data_index.kinds import arrow_schema
from data_index.run import Checkpoint
from data_index.workspace import put_in_force, read_current
from forensics.bound_probe import Answer, BoundProbe, Series
from forensics.measured_checkpoint import Measured
from forensics.place_identity import identity_of_place

KIND = "probes"
_PROBE, _KEY = b"probe", b"key"  # in a file's metadata: whose numbers it holds, and of which settings


class KeptMeasurements:
    """Of one run. Use it only while holding a lock of the run."""

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / KIND
        self._answers: dict[str, dict[str, Any]] = {}  # by identity, as far as they were looked at
        self._identities: dict[int, str] = {}  # by step, of the weights as they were when first looked at

    def answer(self, checkpoint: Checkpoint, probe: BoundProbe) -> Answer | None:
        """None: it was not asked, or its checkpoint is another one now. What is not whole was not kept."""
        try:
            kept = self._of(self._identity(checkpoint)).get(probe.key)
            return None if kept is None else Answer.from_json(kept["measurements"])
        except (MissingFile, LookupError, TypeError, ValueError, AttributeError, OverflowError):
            return None

    def add(self, checkpoint: Checkpoint, probes: Iterable[BoundProbe], measured: Measured) -> None:
        """Keep what was measured; not what failed, so that it is tried again.

        Raises:
            ChangedFile, MissingFile: its weights are no longer those that were there before it was read.
        """
        identity = identity_of_place(checkpoint.location, commit=checkpoint.commit)
        if identity != self._identities.get(checkpoint.step):
            raise ChangedFile(f"{checkpoint.location} was changed while it was measured: ask again")
        answers = self._of(identity)
        for probe in probes:
            answer = measured.answers[probe.name]
            if answer.problem is None:
                answers[probe.key] = {"probe": probe.name, "measurements": answer.as_json()}
        about = {"step": checkpoint.step, "answers": answers, "sha256": _hash_of(answers)}
        write_json(self._path(identity), about)

    def put_in_force(self, probes: Sequence[BoundProbe], checkpoints: Sequence[Checkpoint]) -> dict[str, Series]:
        """Let what was ever measured under these settings be what the view `probes` shows of these probes.

        Args:
            checkpoints: all of the run.
        Returns:
            By probe and step, what the view shows.
        """
        files = {name: path for name, (path, _) in self._in_force().items()}
        shown = {}
        tokens = {checkpoint.step: checkpoint.tokens for checkpoint in checkpoints}
        for probe in probes:
            found = {c.step: answer for c in checkpoints if (answer := self.answer(c, probe)) is not None}
            series: Series = {step: answer.measurements for step, answer in sorted(found.items())}
            shown[probe.name] = probe.joined(series) if probe.joined is not None and series else series
            files[probe.name] = write_hashed_parquet(self._folder, _table(probe, shown[probe.name], tokens))
        put_in_force(self._home, {KIND: list(files.values())})
        return shown

    def _identity(self, checkpoint: Checkpoint) -> str:
        """
        Raises:
            MissingFile
        """
        if checkpoint.step not in self._identities:
            found = identity_of_place(checkpoint.location, commit=checkpoint.commit)
            self._identities[checkpoint.step] = found
        return self._identities[checkpoint.step]

    def _of(self, identity: str) -> dict[str, Any]:
        if identity not in self._answers:
            self._answers[identity] = _whole(self._path(identity))
        return self._answers[identity]

    def _path(self, identity: str) -> Path:
        return self._folder / "answers" / f"{identity}.json"

    def of_other_settings(self, probes: Iterable[BoundProbe]) -> list[str]:
        """The probes among these whose numbers in the view are of other settings, and will leave it for new ones."""
        there = self._in_force()
        return [probe.name for probe in probes if probe.name in there and there[probe.name][1] != probe.key]

    def _in_force(self) -> dict[str, tuple[Path, str]]:
        """The file in force of each probe, and the key of its settings.

        A file that is damaged or was deleted is left out: the next question about its probe writes it anew.
        """
        import pyarrow.parquet

        found = {}
        for name in read_current(self._home).get(KIND, []):
            try:
                about = pyarrow.parquet.read_schema(self._home / name).metadata or {}
            except (OSError, pyarrow.ArrowInvalid):
                continue
            if _PROBE in about:
                found[about[_PROBE].decode()] = self._home / name, about.get(_KEY, b"").decode()
        return found


def _whole(path: Path) -> dict[str, Any]:
    """The answers in a file; none where a part of them was changed or lost, which would leave some series ragged."""
    try:
        about = read_json_object(path)
    except ForensicsError:
        return {}
    answers = about.get("answers")
    return answers if isinstance(answers, dict) and about.get("sha256") == _hash_of(answers) else {}


def _hash_of(answers: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(answers)).hexdigest()


def rows_of(probe: str, series: Series, tokens: Mapping[int, int | None]) -> list[dict[str, Any]]:
    """Rows as `probe` prints them, in step order."""
    return [
        {
            "step": step,
            "tokens": tokens.get(step),
            "probe": probe,
            "metric": one.metric,
            "value": one.value,
            "low": one.low,
            "high": one.high,
            "unit": one.unit,
            "text": one.text,
        }
        for step, measurements in sorted(series.items())
        for one in measurements
    ]


def _table(probe: BoundProbe, series: Series, tokens: Mapping[int, int | None]) -> Any:
    import pyarrow

    settings = json.dumps(probe.settings, sort_keys=True)
    rows = [row | {"settings": settings} for row in rows_of(probe.name, series, tokens)]
    table = pyarrow.Table.from_pylist(rows, schema=arrow_schema(KIND))
    return table.replace_schema_metadata({_PROBE: probe.name, _KEY: probe.key})
