"""What is strange about rows of a run, beside how often the run's other rows are as strange: odds ratios.

A flag says that a row lies farther out than all but half a percent of the run's rows, or breaks a rule of its own
(`Measure.fixed`); whether that has to do with a spike is for a counterfactual replay to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_index.run import Run
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.content_base import NUM_ROWS, Readings, RowContents, cost_of_readings, drawn_readings
from forensics.content_measures import (
    FAR_SHARE,
    MEASURES,
    BaseCounts,
    Content,
    Measure,
    base_counts,
    content_of,
    known_values,
)
from forensics.content_odds import OddsRatio, Shift, odds_ratio, shift
from forensics.fetching import require_allowed
from probes.token_content import Repetition, longest_repetitions

TAG = "tag:"
RARE_TAG_SHARE = (
    0.05  # a tag that more of the run's rows carry is no flag of a row; its odds ratio is told all the same
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One property of one row.

    Attributes:
        value: in the measure's unit; 1 and 0 for yes and no.
        threshold: what it must exceed (`side` high) or fall below (low) to be a flag; None: no flag can be told.
        base_rate: share of the run's rows that carry the flag; None where the base knows nothing of it.
        description: one line for people.
        span: tokens start .. stop of the row, half-open, where a stretch of it is meant.
    """

    value: float
    flagged: bool
    threshold: float | None
    base_rate: float | None
    description: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSignals:
    """Signals of a row by name; `tag:<tag>` for each tag of its documents. Those that cannot be known are left out."""

    instance: int
    signals: Mapping[str, Signal]

    @property
    def flags(self) -> dict[str, Signal]:
        return {name: signal for name, signal in self.signals.items() if signal.flagged}


class ContentSignals:
    """Judges rows by the rows that stand for a run. Made by `base_of_run`."""

    def __init__(self, contents: RowContents, readings: Readings) -> None:
        self.contents, self.readings = contents, readings
        self.without_text = contents.without_text
        unique, place = np.unique(readings.instances, return_inverse=True)
        token_ids = contents.reader.rows(unique)
        content = self._content(unique, token_ids)
        self.counts: BaseCounts = base_counts(content, contents.run.vocabulary_size or 0)
        found, _ = self._measured(content, token_ids)
        self._columns = {name: values[place] for name, values in found.items()}
        self._columns["read_before"] = contents.read_before(readings.instances, readings.steps).astype(float)
        self._tags = contents.tags(unique)
        self._flags: dict[str, np.ndarray] = {}
        self.thresholds = {m.name: m.threshold(self._values_of_base(m.name)) for m in MEASURES}

    def describe(
        self, instances: Sequence[int] | np.ndarray, token_ids: np.ndarray, steps: Sequence[int] | int | None = None
    ) -> list[RowSignals]:
        """Signals of rows, in their order. Rows that are described together count as other rows for each other.

        Args:
            token_ids: shape [rows, sequence_length], padding included.
            steps: that read the rows, one for all or one for each; default: not known, nor whether they had been read.
        Raises:
            UnknownInstance, CorruptFile
        """
        given = np.asarray(instances, dtype=np.int64)
        unique, first, place = np.unique(given, return_index=True, return_inverse=True)
        token_ids = np.asarray(token_ids)[first]
        found, repetitions = self._measured(self._content(unique, token_ids), token_ids)
        columns = {name: values[place] for name, values in found.items()}
        if steps is not None:
            of_rows = np.broadcast_to(np.asarray(steps, dtype=np.int64), given.shape)
            columns["read_before"] = self.contents.read_before(given, of_rows).astype(float)
        tags = self.contents.tags(unique)
        return [
            RowSignals(
                instance=int(instance),
                signals={
                    **{
                        m.name: self._signal(m, float(columns[m.name][n]), repetitions[place[n]])
                        for m in MEASURES
                        if m.name in columns and not np.isnan(columns[m.name][n])
                    },
                    **{f"{TAG}{tag}": self._tag_signal(tag) for tag in sorted(tags.get(int(instance), ()))},
                },
            )
            for n, instance in enumerate(given)
        ]

    def odds_ratios(self, rows: Sequence[RowSignals]) -> list[OddsRatio]:
        """For every signal that is known of some row: its odds among them beside those among the run's other rows.

        The strongest evidence comes first: what suspects have more often, by its p-value.
        """
        others = self._others(rows)
        names = dict.fromkeys(name for row in rows for name in row.signals)
        found = [self._odds(name, rows, others) for name in names]
        return sorted(found, key=lambda odds: (not odds.more_frequent, odds.p_value, -odds.ratio, odds.signal))

    def _odds(self, name: str, rows: Sequence[RowSignals], others: np.ndarray) -> OddsRatio:
        if name.startswith(TAG):
            with_it, heading = [name in row.signals for row in rows], f"a document tagged {name.removeprefix(TAG)}"
        else:
            with_it = [row.signals[name].flagged for row in rows if name in row.signals]
            heading = _MEASURE[name].heading
        return odds_ratio(name, heading, with_it, known_values(self._flags_of_base(name)[others]))

    def shifts(self, rows: Sequence[RowSignals]) -> list[Shift]:
        """For every measure on a scale: where the rows lie among the run's others, the clearest shift first.

        Left out where most of the run's rows have the same value: there the odds of the flag tell.
        """
        others, found = self._others(rows), []
        for measure in MEASURES:
            if measure.fixed or measure.name == "few_distinct_tokens":  # that is the scale of `random_tokens`
                continue
            values = np.array([row.signals[measure.name].value for row in rows if measure.name in row.signals])
            base = known_values(self._values_of_base(measure.name)[others])
            if told := shift(measure.name, measure.heading, values, base):
                found.append(told)
        return sorted(found, key=lambda told: (told.p_value, told.signal))

    def _others(self, rows: Sequence[RowSignals]) -> np.ndarray:
        """Which readings of the base are of none of these rows."""
        return ~np.isin(self.readings.instances, [row.instance for row in rows])

    def _content(self, instances: np.ndarray, token_ids: np.ndarray) -> Content:
        rows = self.contents.trimmed(instances, token_ids)
        return content_of(instances, rows, self.contents.texts(rows))

    def _measured(
        self, content: Content, token_ids: np.ndarray
    ) -> tuple[dict[str, np.ndarray], list[Repetition | None]]:
        """Measures of rows, and the repetition in each."""
        rows = content.rows
        found = self.counts.measure(content)
        lengths = np.array([len(row) for row in rows])
        repetitions = longest_repetitions(token_ids, lengths=None if (lengths == token_ids.shape[1]).all() else lengths)
        found["repetition"] = np.array([float(r.num_repeats) if r else 0.0 for r in repetitions])
        documents = self.contents.documents(content.instances, rows)
        found["many_documents"] = documents["documents"]
        found["short_document"], found["long_document"] = documents["shortest"], documents["longest"]
        return found, repetitions

    def _flags_of_base(self, name: str) -> np.ndarray:
        """1 and 0 for each reading of the base, NaN where nothing is known; fp64."""
        if name not in self._flags:
            self._flags[name] = self._find_flags(name)
        return self._flags[name]

    def _find_flags(self, name: str) -> np.ndarray:
        if name.startswith(TAG):
            tag = name.removeprefix(TAG)
            return np.array([float(tag in self._tags.get(i, ())) for i in self.readings.instances.tolist()])
        return _MEASURE[name].flags(self._values_of_base(name), self.thresholds[name])

    def _values_of_base(self, name: str) -> np.ndarray:
        """For each reading of the base, NaN where not known."""
        return self._columns.get(name, np.full(len(self.readings.instances), np.nan))

    def base_rate(self, name: str) -> float | None:
        """Share of the readings that stand for the run which carry a signal."""
        flags = known_values(self._flags_of_base(name))
        return float(flags.mean()) if len(flags) else None

    def _signal(self, measure: Measure, value: float, repetition: Repetition | None) -> Signal:
        threshold, rate = self.thresholds[measure.name], self.base_rate(measure.name)
        says = measure.says.format(value=measure.shown(value))
        span = (repetition.start, repetition.stop) if measure.name == "repetition" and repetition else None
        if span and repetition:
            says += f": {repetition.period} tokens over and over in tokens {span[0]}..{span[1]}"
        if threshold is not None and not measure.fixed:
            bound = "at most" if measure.side == "high" else "at least"
            says += f"; {1 - FAR_SHARE:.1%} of the run's rows: {bound} {measure.shown(threshold)}"
        return Signal(
            value=value,
            flagged=bool(measure.flags(np.array([value]), threshold)[0] > 0),
            threshold=threshold,
            base_rate=rate,
            description=says + ("" if rate is None else f"; {rate:.2%} of the run's rows carry this flag"),
            span=span,
        )

    def _tag_signal(self, tag: str) -> Signal:
        rate = self.base_rate(f"{TAG}{tag}") or 0.0
        return Signal(
            value=1.0,
            flagged=rate <= RARE_TAG_SHARE,
            threshold=None,
            base_rate=rate,
            description=f"a document in it is tagged {tag}, as in {rate:.2%} of the run's rows",
        )


def base_of_run(
    workspace: Workspace,
    run: Run,
    *,
    before_step: int | None = None,
    without: Sequence[int] | np.ndarray = (),
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    verify: bool = True,
    max_fetch: int | None = None,
) -> ContentSignals:
    """Read the rows that stand for a run, all or a seeded sample, and measure them.

    Args:
        before_step: only what steps before this one read; default: the whole run.
        without: instances in question, which are not to be compared with themselves.
        num_rows: at most, and no more than `content_base.MAX_BASE_TOKENS` tokens.
        max_fetch: bytes that may be fetched from servers; default: 1 GiB.
    Raises:
        UnknownOrder, InvalidRange: nothing is left to compare with.
        MissingFile, CorruptFile, TooMuchToFetch, AccessDenied, Unreachable, Offline
    """
    readings = drawn_readings(workspace, run, before_step=before_step, without=without, num_rows=num_rows, seed=seed)
    cost = cost_of_readings(workspace, run, readings, verify=verify)
    require_allowed(cost["download"], max_fetch, f"{cost['rows']:,} rows to compare with, of {run.name},")
    contents = RowContents(workspace, run, verify=verify)
    try:
        return ContentSignals(contents, readings)
    finally:
        remember_first_seen(workspace, run, contents.reader)


def plan_base(
    workspace: Workspace,
    run: Run,
    *,
    before_step: int | None = None,
    without: Sequence[int] | np.ndarray = (),
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    verify: bool = True,
) -> dict[str, int]:
    """What `base_of_run` with these arguments would read: rows, tokens, bytes read, bytes fetched.

    Raises:
        UnknownOrder, InvalidRange
    """
    readings = drawn_readings(workspace, run, before_step=before_step, without=without, num_rows=num_rows, seed=seed)
    return cost_of_readings(workspace, run, readings, verify=verify)


_MEASURE = {measure.name: measure for measure in MEASURES}
