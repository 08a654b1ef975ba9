"""The stages of `blame` in turn: a funnel, each dearer than the one before and looking at less.

    scan      losses of all rows around the event under the weights of the checkpoint before it; forwards only
    replay    the steps again up to the peak, with the loss of the peak's batch before and after every update
    shares    of the suspect steps: each row's signed share of the gradient, and the norm of its own gradient
    removal   the steps again without a row, a group, a span, a batch; and without as many random ones

Only the last is a claim about causes: where no removal brings the peak down, nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_index.batch_queries import plan_of
from data_index.errors import InvalidRange
from forensics.attribution_result import Attribution, Suspect, restored_share
from forensics.removal import Band, Place, Removal, Removals
from forensics.spans import standing_out
from forensics.spike_window import MEASURES, STEPS_BEFORE_ONSET, SpikeWindow, UsualValue
from forensics.suspects import GradientTrace, RowGradients, norms_of_rows, order_of_rows, robust_z, suspect_steps
from forensics.window_replay import TakenStep, WindowReplay, mean_of_targets

Progress = Callable[[str, int, int], None]

GROUP_NULLS = 5
DRAWS = 3
SPANS_TRIED = 3
SPAN_NULLS = 5
FULLY_RESTORED = 0.9
NO_FURTHER = 0.05
MOST_DRAWN = 2**16
STEPS_COMPARED = 4  # whose rows' gradient norms the suspects' are compared with
EARLIER_STEPS = 32  # whose rows may stand in the place of others


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How far to look.

    Attributes:
        before: at least so many steps before the onset are looked at, if there is a checkpoint to begin from.
        top: so many rows are taken away one by one. nulls: and as many random ones.
    """

    before: int = STEPS_BEFORE_ONSET
    top: int = 10
    nulls: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.before < 0 or self.top < 1 or self.nulls < 1:
            raise InvalidRange(
                f"before={self.before}, top={self.top}, nulls={self.nulls}: at least one suspect and one random row "
                "are taken away, and no negative number of steps is looked at"
            )


@dataclass(slots=True, kw_only=True, eq=False)
class Investigation:
    """The stages in turn. Each writes down what it found; the next looks at less."""

    window: SpikeWindow
    search: Search
    replayed: WindowReplay
    folder: Path
    progress: Progress
    scan: dict[int, np.ndarray] = field(default_factory=dict)
    taken: list[TakenStep] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    gradients: dict[int, RowGradients] = field(default_factory=dict)
    loss_z: dict[int, np.ndarray] = field(default_factory=dict)
    norm_z: dict[int, np.ndarray] = field(default_factory=dict)
    random: np.random.Generator = field(init=False)
    removals: Removals = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed=self.search.seed))

    @property
    def usual(self) -> UsualValue | None:
        return self.window.usual.get(self.window.measure)

    def run(self) -> Attribution:
        self._scan_and_replay()
        self._measure_rows()
        removals = Removals(window=self.replayed, path=self.folder / "outcomes.json", elsewhere=self._elsewhere())
        self.removals = removals
        order = order_of_rows(self.window, self.gradients, self.loss_z)
        order = [place for place in order if removals.is_possible([place])]
        # Of few rows no more than half are suspects: the others are what they are compared with.
        num_suspects = max(min(self.search.top, len(order) // 2), 1)
        others = order[num_suspects:]
        nulls = self._drawn(others, min(self.search.nulls, len(others)))
        singles = self._without_each(removals, order[:num_suspects], "rows")
        ranked = sorted(singles, key=self._value)
        bands = self._bands(self._without_each(removals, nulls, "random rows"))
        group, group_bands = self._group(removals, ranked, others)
        suspects = tuple(self._suspect(removal) for removal in ranked)
        result = Attribution(
            window=self.window,
            usual=self.usual,
            scan=self.scan,
            taken=tuple(self.taken),
            steps=tuple(self.steps),
            gradients=self.gradients,
            suspects=suspects,
            bands=bands,
            group=group,
            group_bands=group_bands,
            batch=None,
        )
        if result.without_question is None and result.verdict()[0] is None:
            result = replace(result, batch=self._whole_batch(removals))
            if result.verdict()[0] != "batch" or result.batch is None:
                return result
            # Of a batch that is the cause as a whole, no row alone is; its rows come before those of other steps.
            own = {step for step, _ in result.batch.places}
            return replace(result, suspects=tuple(sorted(suspects, key=lambda suspect: suspect.place[0] not in own)))
        return replace(result, suspects=self._with_spans(removals, result, others))

    # --- cheap stages ------------------------------------------------------------------------------------------------

    def _scan_and_replay(self) -> None:
        numbers = range(self.window.start.step + 1, self.window.peak + 1)
        for done, (step, losses) in enumerate(self.replayed.scan(numbers), 1):
            self.scan[step] = losses
            self.progress("scan", done, len(numbers))
        for done, taken in enumerate(self.replayed.take(), 1):
            self.taken.append(taken)
            self.progress("replay", done, len(numbers))

    def _measure_rows(self) -> None:
        excess = None if self.usual is None else self._peak_value() - self.usual.value
        self.steps = suspect_steps(self.window, self.taken, excess)
        base = [losses for step, losses in self.scan.items() if step not in self.steps] or list(self.scan.values())
        self.loss_z = {step: robust_z(self.scan[step], np.concatenate(base)) for step in self.steps}
        self.norm_z = self._norms_under_the_checkpoint()
        self.replayed.keep_before(min(self.steps))
        trace = GradientTrace(recipe=self.replayed.recipe)
        self.replayed.watch(self.steps, trace)
        self.gradients = trace.steps
        self.progress("shares", len(self.steps), len(self.steps))

    def _norms_under_the_checkpoint(self) -> dict[int, np.ndarray]:
        """How far the norms of rows lie above others' before anything happened: a row that is extraordinary only under
        weights that something else has damaged did not make the spike."""
        others = [step for step in self.scan if step not in self.steps][-STEPS_COMPARED:]
        self.replayed.at_checkpoint()
        norms = {
            step: norms_of_rows(self.replayed.state, self.replayed.batch(step), self.replayed.recipe)
            for step in (*self.steps, *others)
        }
        base = np.concatenate([norms[step] for step in others or self.steps])
        return {step: robust_z(norms[step], base) for step in self.steps}

    def _peak_value(self) -> float:
        result = self.taken[-1].result
        return result.loss if self.window.measure == "loss" else result.grad_norm

    def _value(self, removal: Removal) -> float:
        value = removal.value(self.window.measure)
        return math.inf if math.isnan(value) else value

    # --- removal -----------------------------------------------------------------------------------------------------

    def _without_each(self, removals: Removals, places: list[Place], what: str) -> list[Removal]:
        found = []
        for done, place in enumerate(places, 1):
            found.append(removals.without([place]))
            self.progress(f"removal of {what}", done, len(places))
        return found

    def _drawn(self, places: list[Place], size: int) -> list[Place]:
        chosen = self.random.permutation(len(places))[:size]
        return [places[number] for number in sorted(chosen.tolist())]

    def _bands(self, nulls: list[Removal]) -> dict[str, Band]:
        return {measure: band for measure in MEASURES if (band := Band.of(nulls, measure)) is not None}

    def _group(
        self, removals: Removals, ranked: list[Removal], others: list[Place]
    ) -> tuple[Removal | None, dict[str, Band]]:
        """Take away the first two, three … of the ranking, until the peak is as usual or falls no further."""
        tried: list[tuple[float, Removal]] = []
        if not ranked:
            return None, {}
        best, without_gain = restored_share(self._peak_value(), self.usual, self._value(ranked[0])), 0
        while len(tried) + 2 <= len(ranked) and best < FULLY_RESTORED and without_gain < 2:
            places = [removal.places[0] for removal in ranked[: len(tried) + 2]]
            if not removals.is_possible(places):
                break
            removal = removals.without(places)
            share = restored_share(self._peak_value(), self.usual, self._value(removal))
            without_gain = 0 if share > best + NO_FURTHER else without_gain + 1
            best = max(best, share)
            tried.append((share, removal))
            self.progress("removal of groups", len(tried), len(ranked) - 1)
        highest = max((share for share, _ in tried), default=0.0)
        if not highest > 0:
            return None, {}
        group = next(removal for share, removal in tried if share >= FULLY_RESTORED * highest)
        size = min(len(group.places), len(others))
        drawn = [self._drawn(others, size) for _ in range(GROUP_NULLS)] if size else []
        nulls = [removals.without(places) for places in drawn if removals.is_possible(places)]
        return group, self._bands(nulls)

    def _whole_batch(self, removals: Removals) -> Removal | None:
        """Put others in the place of a step's whole batch; of several draws the one that helps least; the best step."""
        worst = []
        for done, step in enumerate(self.steps, 1):
            draws = [removal for seed in range(DRAWS) if (removal := removals.replaced(step, seed)) is not None]
            worst += [max(draws, key=self._value)] if draws else []
            self.progress("removal of batches", done, len(self.steps))
        return min(worst, key=self._value, default=None)

    def _elsewhere(self) -> np.ndarray:
        """Instances that may stand in the place of others: of steps before the window, else of ordinary steps in it."""
        setup, first = self.replayed.setup, self.window.start.step
        run = setup.run
        before = max(first - EARLIER_STEPS, run.first_step - 1)
        plans = [self.replayed.plan[step] for step in self.scan if step not in self.steps]
        if first > before:
            earlier = plan_of(setup.workspace, run, before, first)
            plans = [earlier[step] for step in earlier.steps] + plans
        if not plans:
            draw = np.random.Generator(np.random.PCG64(seed=self.search.seed))
            return np.unique(draw.integers(run.num_instances, size=MOST_DRAWN))
        return np.unique(np.concatenate([plan.instances for plan in plans]))

    # --- rows and spans ----------------------------------------------------------------------------------------------

    def _suspect(self, removal: Removal) -> Suspect:
        step, row = removal.places[0]
        found, batch = self.gradients[step], self.replayed.batch(step)
        return Suspect(
            place=(step, row),
            instance=int(batch.instances[row]),
            loss=float(mean_of_targets(found.token_losses, batch)[row]),
            loss_z=float(self.loss_z[step][row]),
            norm_z=float(self.norm_z[step][row]),
            share=float(found.shares[row]),
            norm=float(found.norms[row] / found.grad_norm),
            removal=removal,
        )

    def _with_spans(self, removals: Removals, result: Attribution, others: list[Place]) -> tuple[Suspect, ...]:
        """Of the first rows, hide the stretch that stands out; beside it random stretches of the same length."""
        band, measure = result.bands.get(self.window.measure), self.window.measure
        suspects = list(result.suspects)
        for number, suspect in enumerate(suspects[:SPANS_TRIED]):
            if band is not None and not band.is_below(suspect.removal.value(measure)):
                continue
            if not result.restored(suspect.removal) > 0 or (span := self._span_of(suspect.place)) is None:
                continue
            length, row_length = span[1] - span[0], self.replayed.batch(suspect.place[0]).token_ids.shape[1]
            nulls = [
                removals.without_span(place, start, start + length)
                for place in self._drawn(others, min(SPAN_NULLS, len(others)))
                for start in [int(self.random.integers(1, row_length - length + 1))]
            ]
            hidden = removals.without_span(suspect.place, *span)
            suspects[number] = replace(suspect, span=hidden, span_band=Band.of(nulls, measure))
        return tuple(suspects)

    def _span_of(self, place: Place) -> tuple[int, int] | None:
        """The tokens that pushed the gradient most; of the peak's own batch also those that lose most: the clearer."""
        step, row = place
        found = self.gradients[step]
        targets = self.replayed.batch(step).counts_as_target[:, 1:]
        ordinary = np.argsort(found.norms)[: max(len(targets) // 2, 1)]
        losses = np.nan_to_num(found.token_losses, nan=np.inf, posinf=np.inf)
        of_tokens = [found.token_shares, *([losses] if step == self.window.peak else [])]
        spans = []
        for values in of_tokens:
            scores = np.where(targets, values, np.nan).astype(np.float64)
            if (span := standing_out(scores[row], scores[ordinary])) is not None:
                spans.append(span)
        best = max(spans, key=lambda span: span.strength, default=None)
        return (best.start, best.stop) if best is not None else None
