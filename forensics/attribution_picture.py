"""The pictures of `blame`: the event, the waterfall from the usual to the peak and back, rows, tokens, marked text."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from forensics.attribution import Blame
from forensics.figure import BLACK, COLOURS, GREY, Bar, Bars, Figure, Panel, Series
from forensics.marked_text import MarkedText, colours_html, legend_html, marked_text
from forensics.removal import Band, Removal, told_number
from forensics.spike_window import logged_with_parents
from forensics.window_replay import TakenStep, mean_of_targets

NAMES = {"loss": "loss", "grad_norm": "gradient norm"}
UNITS = {"loss": "nats per token", "grad_norm": "L2, before clipping"}
RAISED, LOWERED, WHOLE, REMOVED = COLOURS[1], COLOURS[0], COLOURS[BLACK], COLOURS[2]
STEPS_BEFORE, STEPS_AFTER = 48, 16
SINGLES_SHOWN = 5
TEXTS_SHOWN = 3
BROKEN_SHOWN = 12
CLOSE = 0.15  # of the steps shown
MOST_TOLD = 12  # updates one by one
LEAST_MOVED = 0.05  # of the excess; smaller updates are told as one


def picture_of(answer: Blame) -> Figure:
    measure = answer.found.window.measure
    panels: list[Panel | Bars] = [_event(answer)]
    if _waterfall_bars(answer):
        panels.append(_waterfall(answer))
    panels += [*_rows(answer), *_tokens(answer)]
    return Figure(
        title=f"{answer.run}, step {answer.found.window.peak}: {answer.verdict}"
        + (f" ({answer.cause})" if answer.cause else ""),
        x_label="",
        panels=panels,
        shared_x=False,
        note=f"{answer.reason[0].upper()}{answer.reason[1:]}. Measured by the {NAMES[measure]}.",
    )


def texts_of(answer: Blame) -> list[MarkedText]:
    """The text of the first suspects; of those that are the cause, where some are."""
    found, replayed = answer.found, answer.replayed
    texts = []
    for row, suspect in list(zip(answer.candidates, found.suspects, strict=True))[:TEXTS_SHOWN]:
        step, number = suspect.place
        span = suspect.span.span if suspect.span is not None else None
        title = f"{row['rank']}. step {step}, instance {suspect.instance} ({row['file']} +{row['offset']})"
        if row["signals"]:
            title += f": {', '.join(row['signals'])}"
        batch, losses = replayed.batch(step), found.gradients[step].token_losses[number]
        targets = batch.counts_as_target[number, 1:]
        texts.append(marked_text(replayed.setup.run, batch.token_ids[number], losses, targets, title, span))
    return texts


def page_below(answer: Blame) -> str:
    """What stands below the picture in HTML: the texts, coloured by the loss just before each row's step."""
    texts = texts_of(answer)
    return colours_html() + legend_html() + "".join(text.as_html() for text in texts) if texts else ""


# --- the event -----------------------------------------------------------------------------------------------------


def _event(answer: Blame) -> Panel:
    """The log around the peak, the steps taken again over it."""
    window, measure = answer.found.window, answer.found.window.measure
    setup = answer.replayed.setup
    logged = logged_with_parents(setup.workspace, setup.run, setup.run.last_step)[measure]
    around = range(window.start.step - STEPS_BEFORE, window.peak + STEPS_AFTER + 1)
    steps = [step for step in sorted(logged) if step in around]
    again = answer.found.taken
    values = [step.result.loss if measure == "loss" else step.result.grad_norm for step in again]
    series = [
        Series(name="logged", x=steps, y=[_finite(logged[step]) for step in steps], colour=GREY),
        Series(name="taken again", x=[step.step for step in again], y=[_finite(v) for v in values], colour=0),
    ]
    marks = {window.start.step: f"checkpoint {window.start.step}", window.peak: f"peak {window.peak}"}
    for step in answer.found.steps:
        close = (window.peak - step) < CLOSE * len(around)  # its label would lie over the peak's
        marks.setdefault(step, "" if close else f"step {step}")
    title = f"{NAMES[measure].capitalize()} around step {window.peak}"
    if not math.isfinite(answer.found.peak_value):
        title += ", where it is no number"
    return Panel(
        title=title,
        y_label=UNITS[measure],
        x_label="step",
        series=series,
        marks=sorted(marks.items()),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- the waterfall -------------------------------------------------------------------------------------------------


def _waterfall(answer: Blame) -> Bars:
    measure, usual = answer.found.window.measure, answer.found.usual
    lines = [(answer.found.peak_value, "peak")]
    if usual is not None:
        lines.insert(0, (usual.value, "usual"))
    return Bars(
        title=f"From the usual {NAMES[measure]} to the peak, and what it comes to without …",
        x_label=UNITS[measure],
        bars=_waterfall_bars(answer),
        lines=lines,
        band_name="without random rows",
    )


def _waterfall_bars(answer: Blame) -> list[Bar]:
    """None where the peak, or what it is compared with, is no number."""
    found = answer.found
    if found.usual is None or not math.isfinite(found.peak_value):
        return []
    return [*_rises(answer), *_removals(answer)]


def _rises(answer: Blame) -> Iterator[Bar]:
    """How the excess came about: the batch itself under the checkpoint's weights, then update by update."""
    found, usual = answer.found, answer.found.usual
    assert usual is not None
    window, peak = found.window, found.peak_value
    if window.measure == "loss":
        place = found.taken[0].peak_loss_before
        yield _rise(f"batch {window.peak} itself, at checkpoint {window.start.step}", usual.value, place)
        for steps in _together(answer):
            moved = sum(step.moved or 0.0 for step in steps)
            yield _rise(_updates(steps[0].step, steps[-1].step), place, place + moved)
            place += moved
    yield Bar(name=f"peak at step {window.peak}", start=usual.value, stop=peak, colour=WHOLE, text=f"{peak:.4g}")


def _together(answer: Blame) -> list[list[TakenStep]]:
    """Steps before the peak; neighbours of which none did much are told as one."""
    found = answer.found
    by_size = sorted((abs(step.moved or 0.0) for step in found.taken[:-1]), reverse=True)
    least = max(LEAST_MOVED * abs(found.excess or 0.0), *by_size[MOST_TOLD - 1 : MOST_TOLD], 1e-12)
    groups: list[list[TakenStep]] = []
    alone = True
    for step in found.taken[:-1]:
        tells = step.step in found.steps or abs(step.moved or 0.0) >= least
        if alone or tells:
            groups.append([])
        groups[-1].append(step)
        alone = tells
    return groups


def _updates(first: int, last: int) -> str:
    return f"update of step {first}" if first == last else f"updates of steps {first}..{last}"


def _rise(name: str, start: float, stop: float) -> Bar:
    colour = RAISED if stop >= start else LOWERED
    return Bar(name=name, start=start, stop=stop, colour=colour, text=f"{stop - start:+.3g}")


def _removals(answer: Blame) -> Iterator[Bar]:
    """What the peak comes to without the suspects, beside what it comes to without random rows."""
    found, measure = answer.found, answer.found.window.measure
    band, group_band = found.bands.get(measure), found.group_bands.get(measure)
    for suspect in found.suspects[:SINGLES_SHOWN]:
        name = f"without instance {suspect.instance} (step {suspect.place[0]})"
        yield _removal_bar(answer, name, suspect.removal, band)
        if suspect.span is not None and suspect.span.span is not None:
            start, stop = suspect.span.span
            yield _removal_bar(answer, f"… with its tokens {start}..{stop} hidden", suspect.span, suspect.span_band)
    if found.group is not None:
        yield _removal_bar(answer, f"without {len(found.group.places)} rows at once", found.group, group_band)
    if found.batch is not None:
        yield _removal_bar(answer, f"with another batch at step {found.batch.places[0][0]}", found.batch, None)


def _removal_bar(answer: Blame, name: str, removal: Removal, band: Band | None) -> Bar:
    value = removal.value(answer.found.window.measure)
    stop = value if math.isfinite(value) else answer.found.peak_value
    text = f"{told_number(value)} ({answer.found.restored(removal):.0%} of the excess gone)"
    if not answer.found.restored(removal) >= 0.005:
        text = told_number(value)
    return Bar(
        name=name,
        start=answer.found.peak_value,
        stop=stop,
        colour=REMOVED,
        text=text,
        band=(band.low, band.high) if band is not None and math.isfinite(band.high) else None,
    )


# --- rows and tokens -----------------------------------------------------------------------------------------------


def _rows(answer: Blame) -> Iterator[Panel]:
    """Every row of the step of the first suspect: its loss, and its share of the gradient."""
    found = answer.found
    if not found.suspects:
        return
    step = found.suspects[0].place[0]
    gradients, batch = found.gradients[step], answer.replayed.batch(step)
    losses = mean_of_targets(gradients.token_losses, batch)
    suspects = {suspect.place[1] for suspect in found.suspects if suspect.place[0] == step}
    named = _cause_rows(answer, step) or suspects
    others = [row for row in range(len(losses)) if row not in named]
    broken = [int(row) for row in np.flatnonzero(~np.isfinite(losses))]
    for title, unit, values in (
        (f"Rows of step {step}: loss just before it", "nats per token", losses),
        (f"Rows of step {step}: signed share of its gradient (mean 1)", "share", gradients.shares),
    ):
        series = [
            Series(name="rows", x=others, y=[_finite(float(values[row])) for row in others], style="points"),
            Series(
                name="the cause" if answer.cause else "suspects",
                x=sorted(named),
                y=[_finite(float(values[row])) for row in sorted(named)],
                style="points",
                colour=1,
            ),
        ]
        if not np.isfinite(values).any():
            continue
        x_label = f"row of the batch ({len(losses)} rows)"
        if broken:
            x_label += f"; without a number: {', '.join(map(str, broken[:BROKEN_SHOWN]))}"
            x_label += " …" if len(broken) > BROKEN_SHOWN else ""
        drawn = [one for one in series if any(y is not None for y in one.y)]
        yield Panel(title=title, y_label=unit, x_label=x_label, series=drawn)


def _cause_rows(answer: Blame, step: int) -> set[int]:
    found = answer.found
    removal = {
        "instance": found.suspects[0].removal if found.suspects else None,
        "group": found.group,
        "batch": found.batch,
    }.get(answer.cause or "")
    return {row for of, row in removal.places if of == step} if removal is not None else set()


def _tokens(answer: Blame) -> Iterator[Panel]:
    """Loss of every token of the first suspect."""
    for text in texts_of(answer)[:1]:
        losses = [_finite(loss) for loss in text.losses.tolist()]
        if all(loss is None for loss in losses):
            continue
        bands = [(text.span[0], text.span[1], "stands out")] if text.span else []
        yield Panel(
            title=f"Loss of each token of instance {answer.found.suspects[0].instance}, just before its step",
            y_label="nats",
            x_label="token of the row",
            series=[Series(name="loss", x=list(range(len(losses))), y=losses, style="stairs")],
            bands=bands,
        )
