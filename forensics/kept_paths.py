"""What `tokens --track` has read of checkpoints, kept beside the run, so that no checkpoint is read twice.

    token_paths/choices/<key>.json      indicator and known-unused rows that the last checkpoint gave
    token_paths/<key>/state.json        by step: which checkpoint it was, its cluster, and the file of its rows
    token_paths/<key>/<hash>.parquet    rows of `token_paths` of one checkpoint

Each key is made of all that the answer depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import ForensicsError
from data_index.files import canonical_json, read_json_object, require_file, write_hashed_parquet, write_json
from data_index.kinds import arrow_schema
from data_index.run import Checkpoint
from data_index.seal import check_named_hash
from data_index.workspace import put_in_force
from forensics.place_identity import identity_of_place

if TYPE_CHECKING:
    from probes.untrained_cluster import UntrainedCluster

VERSION = 1  # of the rule that says which rows are in the cluster
KIND = "token_paths"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """What is held fixed over all checkpoints.

    Attributes:
        indicator, reason: the main one of the last checkpoint, and why.
        unused: ids of known-unused rows, int64, rising; unused_reason: why these.
        never_updated: rows whose second moments are exactly 0 at the last checkpoint; None: not known.
        tied: one matrix reads and predicts.
    """

    indicator: str
    reason: str
    unused: np.ndarray
    unused_reason: str
    never_updated: np.ndarray | None
    tied: bool
    num_rows: int
    messages: tuple[str, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """Rows whose values tell where the cluster is. A norm needs no direction that they share: where none serve as
        one, those that the optimizer never updated tell their norms."""
        from probes.embedding_indicators import INPUT_NORM

        if not len(self.unused) and self.never_updated is not None and self.indicator == INPUT_NORM:
            return self.never_updated
        return self.unused


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathPoint:
    """One checkpoint: the indicator of every row, float32, and the cluster of untrained rows."""

    step: int
    values: np.ndarray
    cluster: UntrainedCluster

    @property
    def inside(self) -> np.ndarray | None:
        """bool of shape [rows]; None: nothing tells."""
        return None if self.cluster.limit is None else self.values <= np.float32(self.cluster.limit)

    @property
    def limit(self) -> float | None:
        return self.cluster.limit

    @property
    def distance(self) -> np.ndarray | None:
        """float32: how far each row is above the median of the known-unused ones; None: none is known."""
        return None if self.cluster.centre is None else self.values - np.float32(self.cluster.centre)


def key_of(**parts: Any) -> str:
    return hashlib.sha256(canonical_json({"version": VERSION} | parts)).hexdigest()[:12]


def identity_of(checkpoint: Checkpoint) -> str:
    return identity_of_place(checkpoint.location, commit=checkpoint.commit)


# --- choices ---------------------------------------------------------------------------------------------------------


def read_choice(home: Path, key: str) -> Choice | None:
    """What is not whole was not kept."""
    try:
        kept = read_json_object(_choice_path(home, key))
        ids = {name: None if kept[name] is None else np.array(kept[name], np.int64) for name in _IDS}
        return Choice(**(kept | ids | {"messages": tuple(kept["messages"])}))
    except (ForensicsError, LookupError, TypeError, ValueError, OverflowError):
        return None


def write_choice(home: Path, key: str, choice: Choice) -> None:
    kept = asdict(choice)
    lists = {name: None if kept[name] is None else kept[name].tolist() for name in _IDS}
    write_json(_choice_path(home, key), kept | lists | {"messages": list(choice.messages)})


_IDS = ("unused", "never_updated")


def _choice_path(home: Path, key: str) -> Path:
    return home / KIND / "choices" / f"{key}.json"


# --- checkpoints -----------------------------------------------------------------------------------------------------


class KeptPaths:
    """The checkpoints that were gone through under one choice. Use it only while holding a lock of the run."""

    def __init__(self, home: Path, choice: Choice, texts: np.ndarray) -> None:
        """
        Args:
            texts: ids of tokens with a text, among which an ordinary one is sought.
        """
        parts: Mapping[str, Any] = {
            "indicator": choice.indicator,
            "unused": choice.known.tolist(),
            "tied": choice.tied,
            "texts": hashlib.sha256(texts.astype("<i8").tobytes()).hexdigest(),
        }
        self._home, self._indicator = home, choice.indicator
        self._folder = home / KIND / key_of(**parts)
        try:
            steps = read_json_object(self._folder / "state.json").get("steps")
        except ForensicsError:
            steps = None
        self._steps: dict[str, Any] = steps if isinstance(steps, dict) else {}

    def holds(self, checkpoint: Checkpoint) -> bool:
        return self._file(checkpoint) is not None

    def read(self, checkpoint: Checkpoint) -> PathPoint | None:
        """None: the checkpoint has to be read, for the first time or because it changed."""
        import pyarrow.parquet

        from probes.untrained_cluster import UntrainedCluster

        path = self._file(checkpoint)
        if path is None:
            return None
        try:
            check_named_hash(path)
            cluster = UntrainedCluster(**self._steps[str(checkpoint.step)]["cluster"])
        except (ForensicsError, LookupError, TypeError):
            return None
        table = pyarrow.parquet.read_table(path, columns=["indicator"], partitioning=None)
        values = table.column("indicator").to_numpy().astype(np.float32)
        return PathPoint(step=checkpoint.step, values=values, cluster=cluster)

    def add(self, checkpoint: Checkpoint, point: PathPoint) -> None:
        path = write_hashed_parquet(self._folder, _rows(point, self._indicator))
        self._steps[str(checkpoint.step)] = {
            "identity": identity_of(checkpoint),
            "file": path.name,
            "cluster": asdict(point.cluster),
        }
        write_json(self._folder / "state.json", {"steps": self._steps})

    def put_in_force(self, checkpoints: list[Checkpoint]) -> None:
        """Let these be what the view `token_paths` shows of the run."""
        paths = [self._file(checkpoint) for checkpoint in checkpoints]
        put_in_force(self._home, {KIND: [path for path in paths if path is not None]})

    def _file(self, checkpoint: Checkpoint) -> Path | None:
        kept = self._steps.get(str(checkpoint.step))
        if not isinstance(kept, dict) or kept.get("identity") != identity_of(checkpoint):
            return None
        path = self._folder / str(kept.get("file"))
        try:
            require_file(path)
        except ForensicsError:
            return None
        return path


def _rows(point: PathPoint, indicator: str) -> Any:
    """A table of `token_paths`."""
    import pyarrow

    count = len(point.values)
    nothing = pyarrow.nulls(count)
    columns = {
        "step": pyarrow.array(np.full(count, point.step)),
        "token_id": pyarrow.array(np.arange(count)),
        "indicator_name": pyarrow.array([indicator] * count, pyarrow.string()),
        "indicator": pyarrow.array(point.values),
        "distance_to_unused": nothing if point.distance is None else pyarrow.array(point.distance),
        "untrained": nothing if point.inside is None else pyarrow.array(point.inside),
    }
    return pyarrow.table(columns).cast(arrow_schema(KIND))
