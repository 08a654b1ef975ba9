"""A probe with the data it looks at, for any checkpoint of a run; and what it says of one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from data_index.files import canonical_json

if TYPE_CHECKING:
    from forensics.probe_data import ProbeData
    from probes.probe import Measurement, Probe

# Raised when a probe comes to measure something else under the same settings.
VERSION = 2
Series = Mapping[int, Sequence["Measurement"]]  # step -> what was measured there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundProbe:
    """
    Attributes:
        at: the probe at a checkpoint (its data may depend on what was read by then); None: nothing to measure there.
        settings: all that its numbers depend on besides the weights, as JSON has it.
        name: as it is typed, and as it stands in the view `probes`.
        joined: for numbers that need several checkpoints: from what was measured at each of them.
        tokens: about how many go through the model at a checkpoint; None: not known.
    """

    at: Callable[[int], Probe | None]
    settings: Mapping[str, Any]
    name: str = ""
    joined: Callable[[Series], Series] | None = None
    tokens: int | None = None

    @property
    def key(self) -> str:
        """A hash of the settings: under it, measurements are kept."""
        content = canonical_json({"version": VERSION, "settings": self.settings})
        return hashlib.sha256(content).hexdigest()[:16]


def always(probe: Probe, settings: Mapping[str, Any], tokens: int | None = None) -> BoundProbe:
    """The same probe at every checkpoint."""
    return BoundProbe(at=lambda step: probe, settings=dict(settings), tokens=tokens)


# (data of a run, what stands after @ in the name) -> the probe, without its name
Builder = Callable[["ProbeData", "str | None"], BoundProbe]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a probe says of a checkpoint: measurements, or why there are none."""

    measurements: tuple[Measurement, ...] = ()
    problem: str | None = None

    def as_json(self) -> list[dict[str, Any]]:
        """JSON has no NaN; numbers that are none become text."""
        return [{name: _plain(value) for name, value in asdict(one).items()} for one in self.measurements]

    @classmethod
    def from_json(cls, rows: Any) -> Answer:
        """
        Raises:
            TypeError, ValueError, AttributeError, OverflowError: they are no measurements.
        """
        from probes.probe import Measurement

        return cls(measurements=tuple(Measurement(**row) for row in rows))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
